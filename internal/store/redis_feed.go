package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

// appendScript adds entries to the stream if it ends where the caller thinks, by
// sequence number and chain id, and returns 1; otherwise it adds nothing and
// returns 0.
//
// A stream remembers the highest id it ever had. Where entries were taken out at
// its end by hand, they have to be put back under ids that it takes for old: it is
// told to forget.
var appendScript = newScript(`
local stream = KEYS[1]
local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
if ARGV[1] == '' then
  if last then return 0 end
elseif not last or last[1] ~= ARGV[1] or last[2][1] ~= 'i' or last[2][2] ~= ARGV[2] then
  return 0
end
local first = redis.pcall('XADD', stream, ARGV[3], 'i', ARGV[4], 'e', ARGV[5])
if type(first) == 'table' and first.err then
  if not string.find(first.err, 'equal or smaller', 1, true) then return first end
  redis.call('XSETID', stream, last and last[1] or '0-0')
  redis.call('XADD', stream, ARGV[3], 'i', ARGV[4], 'e', ARGV[5])
end
for n = 6, #ARGV, 3 do
  redis.call('XADD', stream, ARGV[n], 'i', ARGV[n+1], 'e', ARGV[n+2])
end
return 1
`)

func (r *Redis) feed() string    { return r.key("{feed}") }
func (r *Redis) members() string { return r.key("{feed}:replicas") }

func streamID(seq uint64) string { return strconv.FormatUint(seq, 10) + "-0" }

// Append implements [broker.Feed]. An error other than ErrConflict says that the
// entries may have been added: where too few replicas confirmed them, they were,
// and readers see them. The broker's callers then report a failure. When they are
// asked again, they append once more, behind what there is by then; a revocation
// that is there twice is no harm.
func (r *Redis) Append(ctx context.Context, after broker.Head, entries ...broker.Entry) error {
	data, err := encodeEntries(after, entries)
	if err != nil {
		return fmt.Errorf("redis: append to the feed: %w", err)
	}
	args := make([]any, 2, 2+3*len(entries))
	args[0], args[1] = "", ""
	if after != (broker.Head{}) {
		args[0], args[1] = streamID(after.Pos.Seq), after.ID[:]
	}
	for i, e := range entries {
		args = append(args, streamID(e.Pos.Seq), e.ID[:], data[i])
	}
	ctx, cancel := r.bound(ctx, r.wait)
	defer cancel()
	confirmed := confirmation{r: r}
	added, err := r.run(ctx, appendScript, []string{r.feed()}, args, func(p redis.Pipeliner) { confirmed.ask(ctx, p) })
	if err == nil && added != int64(1) {
		return fmt.Errorf("redis: append to the feed behind %s: %w", after.Pos, broker.ErrConflict)
	}
	if err == nil {
		err = confirmed.err()
	}
	if err != nil {
		return fmt.Errorf("redis: append to the feed: %w", err)
	}
	return nil
}

// maxBlock is how long one command waits at Redis: the connection of a Read whose
// context was cancelled is in use for so long.
const maxBlock = time.Second

// Read implements [broker.Feed].
func (r *Redis) Read(ctx context.Context, after uint64, limit int, wait time.Duration) ([]broker.Entry, error) {
	if limit < 1 {
		return nil, errors.New("redis: read the feed: a limit of at least one entry is needed")
	}
	end := time.Now().Add(wait)
	for {
		entries, err := r.await(ctx, after, limit, min(wait, maxBlock))
		if err != nil {
			return nil, fmt.Errorf("redis: read the feed: %w", err)
		}
		if wait = time.Until(end); len(entries) > 0 || wait <= 0 {
			return entries, nil
		}
	}
}

// await reads once, waiting at Redis. The client does not notice the end of a
// context while it reads from a connection, so somebody else waits for it.
func (r *Redis) await(ctx context.Context, after uint64, limit int, wait time.Duration) ([]broker.Entry, error) {
	args := redis.XReadArgs{Streams: []string{r.feed(), streamID(after)}, Count: int64(limit), Block: -1}
	if wait > 0 {
		// BLOCK counts milliseconds, and BLOCK 0 is for ever.
		args.Block = max(wait, time.Millisecond)
	}
	type answer struct {
		entries []broker.Entry
		err     error
	}
	answers := make(chan answer, 1)
	go func() {
		ctx, cancel := r.bound(ctx, wait)
		defer cancel()
		streams, err := r.client.XRead(ctx, &args).Result()
		if errors.Is(err, redis.Nil) {
			err = nil
		}
		var a answer
		if a.err = err; err == nil && len(streams) == 1 {
			a.entries, a.err = decodeMessages(streams[0].Messages)
		}
		answers <- a
	}()
	select {
	case a := <-answers:
		return a.entries, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func decodeMessages(messages []redis.XMessage) ([]broker.Entry, error) {
	out := make([]broker.Entry, len(messages))
	for i, m := range messages {
		number, _ := strings.CutSuffix(m.ID, "-0")
		seq, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is no id of an entry", m.ID)
		}
		data, _ := m.Values["e"].(string)
		if out[i], err = decodeEntry(seq, []byte(data)); err != nil {
			return nil, err
		}
		// Append compares this id; a chain cannot go on behind one that is false.
		if id, _ := m.Values["i"].(string); id != string(out[i].ID[:]) {
			return nil, fmt.Errorf("entry %d is filed under another's id", seq)
		}
	}
	return out, nil
}

// trimScript drops what is below an id, but not the last entry. Numbers are
// compared as texts: Lua's have 53 bits.
var trimScript = newScript(`
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last then return 0 end
local top, min = string.match(last[1], '^%d+'), ARGV[1]
if #top < #min or #top == #min and top < min then min = top end
return redis.call('XTRIM', KEYS[1], 'MINID', min)
`)

// Trim implements [broker.Feed]. It is not confirmed by replicas: if it is lost,
// more is kept.
func (r *Redis) Trim(ctx context.Context, upto uint64) error {
	ctx, cancel := r.bound(ctx, 0)
	defer cancel()
	least := strconv.FormatUint(min(upto, math.MaxUint64-1)+1, 10)
	if _, err := r.run(ctx, trimScript, []string{r.feed()}, []any{least}, func(redis.Pipeliner) {}); err != nil {
		return fmt.Errorf("redis: trim the feed: %w", err)
	}
	return nil
}

// beatScript writes a heartbeat and when it ends, by the clock of Redis, and drops
// those that have ended.
var beatScript = newScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', now + ARGV[2]) .. ARGV[3])
local all = redis.call('HGETALL', KEYS[1])
for n = 1, #all, 2 do
  local ends = tonumber(string.match(all[n+1], '^%d+ '))
  if not ends or ends <= now then redis.call('HDEL', KEYS[1], all[n]) end
end
return 1
`)

// redisFormat is the version of what is kept in Redis, beside the feed. Whoever
// changes what others read raises it, when no replica of the version before is left.
const redisFormat = "stint redis 1"

// checkFormat refuses what a later version of Stint has written. Without any, it is ours
// to write.
func (r *Redis) checkFormat(ctx context.Context, found *redis.StringCmd) error {
	format, err := found.Result()
	switch {
	case errors.Is(err, redis.Nil):
		return r.client.SetArgs(ctx, r.key("{feed}:format"), redisFormat, redis.SetArgs{Mode: "NX"}).Err()
	case err != nil:
		return err
	}
	return checkFormat(format, redisFormat)
}

// CheckFormat fails if what is in Redis is not of this version, for whoever writes there
// without having joined the replicas. Errors: ErrLater.
func (r *Redis) CheckFormat(ctx context.Context) error {
	ctx, cancel := r.bound(ctx, 0)
	defer cancel()
	format, err := r.client.Get(ctx, r.key("{feed}:format")).Result()
	if err == nil {
		err = checkFormat(format, redisFormat)
	}
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("redis: %w", err)
	}
	return nil
}

// Beat implements [broker.Feed]. It is one exchange on one connection: Redis reads
// clock, feed and replicas after it has the replicas' answer to the heartbeat, and
// being able to take the heartbeat shows that it is the master.
func (r *Redis) Beat(ctx context.Context, me broker.Replica, life time.Duration) (broker.Beat, error) {
	none := broker.Beat{}
	if me.ID == "" || life < time.Millisecond {
		return none, errors.New("redis: heartbeat: it needs a replica's id, and a life of at least 1ms")
	}
	doc, err := strictjson.Encode(me)
	if err != nil {
		return none, fmt.Errorf("redis: heartbeat: %w", err)
	}
	ctx, cancel := r.bound(ctx, r.wait)
	defer cancel()
	confirmed := confirmation{r: r}
	var clock *redis.TimeCmd
	var last *redis.XMessageSliceCmd
	var all *redis.MapStringStringCmd
	var format *redis.StringCmd
	_, err = r.run(ctx, beatScript, []string{r.members()}, []any{me.ID, life.Milliseconds(), doc}, func(p redis.Pipeliner) {
		confirmed.ask(ctx, p)
		clock = p.Time(ctx)
		last = p.XRevRangeN(ctx, r.feed(), "+", "-", 1)
		all = p.HGetAll(ctx, r.members())
		format = p.Get(ctx, r.key("{feed}:format"))
	})
	if err == nil {
		err = confirmed.err()
	}
	if err := cmp.Or(err, clock.Err(), last.Err(), all.Err()); err != nil {
		return none, fmt.Errorf("redis: heartbeat: %w", err)
	}
	if err := r.checkFormat(ctx, format); err != nil && !errors.Is(err, redis.Nil) { // Nil: another replica was first
		return none, fmt.Errorf("redis: heartbeat: %w", err)
	}
	beat := broker.Beat{Now: clock.Val()}
	entries, err := decodeMessages(last.Val())
	if err != nil {
		return none, fmt.Errorf("redis: heartbeat: the head of the feed: %w", err)
	}
	if len(entries) > 0 {
		beat.Head = entries[0].Head()
	}
	for id, text := range all.Val() {
		replica, live, err := decodeReplica(id, text, beat.Now)
		if err != nil {
			return none, fmt.Errorf("redis: heartbeat: %w", err)
		}
		if live {
			beat.Replicas = append(beat.Replicas, replica)
		}
	}
	sortReplicas(beat.Replicas)
	return beat, nil
}

// Leave implements [broker.Feed].
func (r *Redis) Leave(ctx context.Context, id string) error {
	ctx, cancel := r.bound(ctx, 0)
	defer cancel()
	if err := r.client.HDel(ctx, r.members(), id).Err(); err != nil {
		return fmt.Errorf("redis: leave: %w", err)
	}
	return nil
}
