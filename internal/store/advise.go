package store

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Advice is something about a Redis that works and could be better, and what to do.
type Advice struct{ Detail, Do string }

// Advise looks at a Redis that is ready: whether it keeps what it takes, and whether its
// user may do more than it needs. It changes nothing.
func (r *Redis) Advise(ctx context.Context) (out []Advice, err error) {
	ctx, cancel := r.bound(ctx, r.timeout)
	defer cancel()
	info := make(map[string]string)
	for _, section := range []string{"server", "replication", "memory", "persistence"} {
		text, err := r.client.Info(ctx, section).Result()
		if err != nil {
			return nil, fmt.Errorf("redis: ask how it is: %w", err)
		}
		for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), ":")
			info[name] = value
		}
	}
	add := func(detail, do string) { out = append(out, Advice{detail, do}) }
	connected, _ := strconv.Atoi(info["connected_slaves"])
	if info["aof_enabled"] == "0" {
		add("it writes no append-only file: what it took last is lost when its machine fails", "set appendonly yes and appendfsync always; revocations come back from the replicas of Stint and from the journal, leases by stint recover")
	}
	if info["aof_last_write_status"] == "err" || info["rdb_last_bgsave_status"] == "err" {
		add("its last write to disk failed", "look into its log, and at its disk")
	}
	if connected > 0 && r.replicas == 0 {
		add(fmt.Sprintf("%d replicas of it are connected, and none has to confirm: a failover may lose the newest revocations until a replica of Stint puts them back", connected), "set store.redis.replicas_to_wait: 1")
	}
	used, _ := strconv.ParseFloat(info["used_memory"], 64)
	if most, _ := strconv.ParseFloat(info["maxmemory"], 64); most > 0 && used > 0.8*most {
		add(fmt.Sprintf("%.0f %% of its memory is used; when it is full it takes nothing any more", 100*used/most), "raise maxmemory")
	}
	if r.client.ConfigGet(ctx, "maxmemory").Err() == nil {
		add("its user may read the configuration, and so more than it needs", "give it the rights of deploy/redis.acl")
	}
	return out, nil
}

// Clock returns Redis's own time.
func (r *Redis) Clock(ctx context.Context) (time.Time, error) {
	ctx, cancel := r.bound(ctx, 0)
	defer cancel()
	return r.client.Time(ctx).Result()
}
