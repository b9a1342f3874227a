package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/stint-dev/stint/broker"
)

func (r *Redis) filed(key string) string { return r.key("key:{", key, "}") }

// file puts a lease under its keys. Until the time that stands beside it, nobody
// takes it for one that was never written; this clock may be off by less than the
// retention.
func (r *Redis) file(ctx context.Context, l *broker.Lease, keys []string) error {
	until := max(millis(l.Expires), millis(r.now())) + retention.Milliseconds()
	return r.together(ctx, func(p redis.Pipeliner) {
		for _, k := range keys {
			p.ZAdd(ctx, r.filed(k), redis.Z{Score: float64(until), Member: l.ID})
		}
	})
}

// unfileScript takes leases from under a key whose time there has passed, unless
// they have been filed again since.
var unfileScript = newScript(`
local n = 0
for i = 2, #ARGV do
  local ends = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if ends and tonumber(ends) < tonumber(ARGV[1]) then n = n + redis.call('ZREM', KEYS[1], ARGV[i]) end
end
return n
`)

// unfile takes a closed lease from under its keys, and with it some of what
// processes that died left there. Errors do not matter: what stays is recognised
// when it is read, and removed when another lease of the same key is closed. Under
// a key that is never used again it stays, some hundred bytes for each crash.
func (r *Redis) unfile(ctx context.Context, id string, keys []string) {
	ctx, cancel := r.bound(ctx, 0)
	defer cancel()
	now := strconv.FormatInt(millis(r.now()), 10)
	old := make([]*redis.StringSliceCmd, len(keys))
	_ = r.together(ctx, func(p redis.Pipeliner) {
		for i, k := range keys {
			p.ZRem(ctx, r.filed(k), id)
			old[i] = p.ZRangeArgs(ctx, redis.ZRangeArgs{Key: r.filed(k), Start: "-inf", Stop: "(" + now, ByScore: true, Count: 8})
		}
	})
	for i, k := range keys {
		if ids := old[i].Val(); len(ids) > 0 {
			_, _ = r.leftOver(ctx, k, ids)
		}
	}
}

// leftOver returns which of the ids under a key, all of whose time there has
// passed, belong to no open lease, and takes them away.
func (r *Redis) leftOver(ctx context.Context, key string, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	ctx, cancel := r.bound(ctx, r.timeout) // two exchanges
	defer cancel()
	closed := make([]*redis.StringCmd, len(ids))
	err := r.together(ctx, func(p redis.Pipeliner) {
		for i, id := range ids {
			closed[i] = p.HGet(ctx, r.lease(id), "c")
		}
	})
	if err != nil {
		return nil, err
	}
	var gone []string
	args := []any{millis(r.now())}
	for i, id := range ids {
		if v, err := closed[i].Result(); errors.Is(err, redis.Nil) || err == nil && v == "1" {
			gone = append(gone, id)
			args = append(args, id)
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	_, err = r.run(ctx, unfileScript, []string{r.filed(key)}, args, func(redis.Pipeliner) {})
	return gone, err
}

// page is how many members of a set are read at a time.
const page = 1000

// Match implements [broker.Ledger]. It returns every open lease that is filed
// under the key, and may return closed ones and ids whose lease never came to be.
func (r *Redis) Match(ctx context.Context, k broker.Key) ([]string, error) {
	var ids []string
	now := float64(millis(r.now()))
	err := r.scan(ctx, r.filed(k.String()), page, func(ctx context.Context, members []redis.Z) error {
		var found, old []string
		for _, m := range members {
			id, _ := m.Member.(string)
			found = append(found, id)
			if m.Score < now {
				old = append(old, id)
			}
		}
		gone, err := r.leftOver(ctx, k.String(), old)
		if err != nil {
			return err
		}
		for _, id := range found {
			if !slices.Contains(gone, id) {
				ids = append(ids, id)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("redis: match leases: %w", err)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// scan reads a sorted set in pieces. What is a member all the while is in one of
// them, perhaps in two.
func (r *Redis) scan(ctx context.Context, set string, count int64, each func(context.Context, []redis.Z) error) error {
	for cursor := uint64(0); ; {
		bounded, cancel := r.bound(ctx, 0)
		texts, next, err := r.client.ZScan(bounded, set, cursor, "", count).Result()
		cancel()
		if err != nil {
			return err
		}
		members := make([]redis.Z, 0, len(texts)/2)
		for i := 0; i+1 < len(texts); i += 2 {
			score, err := strconv.ParseFloat(texts[i+1], 64)
			if err != nil {
				return fmt.Errorf("score of %s: %w", texts[i], err)
			}
			members = append(members, redis.Z{Member: texts[i], Score: score})
		}
		if len(members) > 0 {
			if err := each(ctx, members); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}
