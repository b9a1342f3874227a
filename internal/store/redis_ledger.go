package store

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stint-dev/stint/broker"
)

// shards is how many hash slots leases are spread over. The number is part of the
// format: another one would not find what is there.
const shards = 16

// putScript writes a lease and its place among those that are due. It answers ok,
// or what is in the way:
//
//	KEYS  lease, due of its shard
//	ARGV  id, version to be replaced (empty: none), new version, digest of its keys,
//	      next in ms, next in ns, closed (0 or 1), lease, when it can go in ms,
//	      how long it stays in ms
var putScript = newScript(`
local was = redis.call('HMGET', KEYS[1], 'v', 'k', 'c')
if ARGV[2] == '' then
  if was[1] then return 'conflict' end
else
  if was[1] ~= ARGV[2] then return 'conflict' end
  if was[2] ~= ARGV[4] then return 'keys' end
  if was[3] == '1' and ARGV[7] ~= '1' then return 'closed' end
end
redis.call('HSET', KEYS[1], 'v', ARGV[3], 'k', ARGV[4], 'n', ARGV[6], 'c', ARGV[7], 'd', ARGV[8])
if ARGV[7] == '1' then
  local t = redis.call('TIME')
  local gone = math.max(ARGV[9], t[1] * 1000 + ARGV[10])
  redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', gone))
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1])
end
return 'ok'
`)

// dropDueScript takes a lease that is gone from those that are due.
var dropDueScript = newScript(`
if redis.call('EXISTS', KEYS[1]) == 0 then return redis.call('ZREM', KEYS[2], ARGV[1]) end
return 0
`)

func shardOf(id string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return shardName(int(h.Sum32() % shards))
}

func shardName(n int) string { return fmt.Sprintf("{%02d}", n) }

func (r *Redis) lease(id string) string  { return r.key("lease:", shardOf(id), ":", id) }
func (r *Redis) due(shard string) string { return r.key("due:", shard) }

// Create implements [broker.Ledger]. The lease is under its keys before it is
// there.
func (r *Redis) Create(ctx context.Context, l *broker.Lease) error {
	keys, sum := fileKeys(l)
	ctx, cancel := r.bound(ctx, r.timeout) // two exchanges
	defer cancel()
	if l.State != broker.Closed {
		if err := r.file(ctx, l, keys); err != nil {
			return fmt.Errorf("redis: file lease %s: %w", l.ID, err)
		}
	}
	if err := r.put(ctx, l, "", l.Version, sum); err != nil {
		return fmt.Errorf("redis: create lease %s: %w", l.ID, err)
	}
	return nil
}

// Update implements [broker.Ledger]. A lease that is gone has changed as well:
// ErrConflict. After another error it may have been updated; l then still carries
// the version from before, and a further try ends in ErrConflict. The keys of a
// lease do not change, and a closed one does not open again.
//
// Replicas do not confirm this: a lease that a failover loses is in the journal,
// and a mark that it loses is made again from the feed.
func (r *Redis) Update(ctx context.Context, l *broker.Lease) error {
	keys, sum := fileKeys(l)
	ctx, cancel := r.bound(ctx, 0)
	defer cancel()
	if err := r.put(ctx, l, strconv.Itoa(l.Version), l.Version+1, sum); err != nil {
		return fmt.Errorf("redis: update lease %s: %w", l.ID, err)
	}
	l.Version++
	if l.State == broker.Closed {
		r.unfile(context.WithoutCancel(ctx), l.ID, keys)
	}
	return nil
}

func (r *Redis) put(ctx context.Context, l *broker.Lease, old string, version int, keys string) error {
	doc, err := encodeLease(l, version)
	if err != nil {
		return err
	}
	closed := 0
	if l.State == broker.Closed {
		closed = 1
	}
	said, err := r.run(ctx, putScript, []string{r.lease(l.ID), r.due(shardOf(l.ID))}, []any{
		l.ID, old, version, keys, millis(l.Next), nanos(l.Next), closed, doc,
		min(millis(l.Expires)+retention.Milliseconds(), lastMilli), retention.Milliseconds(),
	}, func(redis.Pipeliner) {})
	switch {
	case err != nil:
		return err
	case said == "keys":
		return errKeysChanged
	case said == "closed":
		return errReopened
	case said != "ok":
		return broker.ErrConflict
	}
	return nil
}

// Lease implements [broker.Ledger]. A closed lease can be read for another hour,
// and for an hour after it ran out.
func (r *Redis) Lease(ctx context.Context, id string) (*broker.Lease, error) {
	ctx, cancel := r.bound(ctx, 0)
	defer cancel()
	doc, err := r.client.HGet(ctx, r.lease(id), "d").Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("redis: lease %s: %w", id, broker.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("redis: read lease %s: %w", id, err)
	}
	l, err := decodeLease(id, doc)
	if err != nil {
		return nil, fmt.Errorf("redis: read %w", err)
	}
	return l, nil
}

// Due implements [broker.Ledger].
func (r *Redis) Due(ctx context.Context, now time.Time, limit int) ([]string, error) {
	ctx, cancel := r.bound(ctx, r.timeout) // two exchanges
	defer cancel()
	found := make([]*redis.ZSliceCmd, shards)
	err := r.together(ctx, func(p redis.Pipeliner) {
		for n := range shards {
			found[n] = p.ZRangeArgsWithScores(ctx, redis.ZRangeArgs{
				Key: r.due(shardName(n)), Start: "-inf", Stop: millis(now), ByScore: true, Count: int64(max(limit, 1)),
			})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("redis: look for leases that are due: %w", err)
	}
	var all []redis.Z
	for _, f := range found {
		all = append(all, f.Val()...)
	}
	slices.SortStableFunc(all, func(a, b redis.Z) int { return int(a.Score - b.Score) })
	ids := make([]string, min(len(all), max(limit, 0)))
	for i := range ids {
		ids[i], _ = all[i].Member.(string)
	}
	if ids, err = r.trulyDue(ctx, now, ids); err != nil {
		return nil, fmt.Errorf("redis: look for leases that are due: %w", err)
	}
	return ids, nil
}

// trulyDue leaves out what is due only in a later part of this millisecond, and
// takes away what has no lease, which is the case only where somebody deleted it:
// it would be found again and again.
func (r *Redis) trulyDue(ctx context.Context, now time.Time, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	next := make([]*redis.StringCmd, len(ids))
	err := r.together(ctx, func(p redis.Pipeliner) {
		for i, id := range ids {
			next[i] = p.HGet(ctx, r.lease(id), "n")
		}
	})
	if err != nil {
		return nil, err
	}
	out := ids[:0]
	for i, id := range ids {
		at, err := next[i].Int64()
		switch {
		case errors.Is(err, redis.Nil):
			if _, err := r.run(ctx, dropDueScript, []string{r.lease(id), r.due(shardOf(id))}, []any{id}, func(redis.Pipeliner) {}); err != nil {
				return nil, err
			}
		case err != nil || at <= nanos(now): // what cannot be read is for whoever reads it to say
			out = append(out, id)
		}
	}
	return out, nil
}

// All implements [broker.Ledger]. A lease that cannot be read is passed over and
// reported at the end.
func (r *Redis) All(ctx context.Context, each func(*broker.Lease) error) error {
	var damaged, stop error
	for n := range shards {
		seen := make(map[string]bool)
		err := r.scan(ctx, r.due(shardName(n)), page/4, func(ctx context.Context, members []redis.Z) error {
			var ids []string
			for _, m := range members {
				if id, _ := m.Member.(string); !seen[id] {
					seen[id] = true
					ids = append(ids, id)
				}
			}
			leases, bad, err := r.leases(ctx, ids)
			if err != nil {
				return err
			}
			damaged = errors.Join(damaged, bad)
			for _, l := range leases {
				if stop = each(l); stop != nil {
					return stop
				}
			}
			return nil
		})
		if stop != nil {
			return stop
		}
		if err != nil {
			return fmt.Errorf("redis: go through leases: %w", err)
		}
	}
	return damaged
}

// leases reads open leases, and says which could not be read.
func (r *Redis) leases(ctx context.Context, ids []string) (out []*broker.Lease, damaged, err error) {
	ctx, cancel := r.bound(ctx, 0)
	defer cancel()
	docs := make([]*redis.StringCmd, len(ids))
	err = r.together(ctx, func(p redis.Pipeliner) {
		for i, id := range ids {
			docs[i] = p.HGet(ctx, r.lease(id), "d")
		}
	})
	if err != nil {
		return nil, nil, err
	}
	for i, id := range ids {
		doc, err := docs[i].Bytes()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		l, err := decodeLease(id, doc)
		if err != nil {
			damaged = errors.Join(damaged, err)
		} else if l.State != broker.Closed {
			out = append(out, l)
		}
	}
	return out, damaged, nil
}

// Open implements [broker.Ledger].
func (r *Redis) Open(ctx context.Context) (int, error) {
	ctx, cancel := r.bound(ctx, 0)
	defer cancel()
	counts := make([]*redis.IntCmd, shards)
	err := r.together(ctx, func(p redis.Pipeliner) {
		for n := range shards {
			counts[n] = p.ZCard(ctx, r.due(shardName(n)))
		}
	})
	if err != nil {
		return 0, fmt.Errorf("redis: count leases: %w", err)
	}
	total := 0
	for _, c := range counts {
		total += int(c.Val())
	}
	return total, nil
}
