package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

// onceMargin is how much longer than asked a one-time id is remembered: replicas
// whose clocks differ must not disagree on whether it has run out.
const onceMargin = time.Minute

// Use implements [broker.Once]. When it errs the id may have been used up: whoever
// tries again with it is then refused, rightly or not.
func (r *Redis) Use(ctx context.Context, purpose, id string, expires time.Time) (bool, error) {
	ctx, cancel := r.bound(ctx, r.wait)
	defer cancel()
	ttl := max(expires.Sub(r.now()), 0) + onceMargin + time.Millisecond // Redis counts whole ones
	confirmed := confirmation{r: r}
	p := r.client.Pipeline()
	set := p.SetArgs(ctx, r.key("once:", digest(purpose, id)), 1, redis.SetArgs{Mode: "NX", TTL: ttl.Truncate(time.Millisecond)})
	confirmed.ask(ctx, p)
	err := send(ctx, p)
	if err == nil {
		err = set.Err()
	}
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	if err == nil {
		err = confirmed.err()
	}
	if err != nil {
		return false, fmt.Errorf("redis: use a one-time id: %w", err)
	}
	return true, nil
}

// noteScript files a session under when it began and under when it ends, and drops
// some that have ended. The sets live as long as the last session in them.
//
//	KEYS  by beginning, by end
//	ARGV  session, beginning in ms, end in ms
var noteScript = newScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, 16)) do
  redis.call('ZREM', KEYS[1], old)
  redis.call('ZREM', KEYS[2], old)
end
local left = ARGV[3] - now
if left <= 0 then return 0 end
redis.call('ZADD', KEYS[1], 'NX', ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[2], 'NX', ARGV[3], ARGV[1])
for _, key in ipairs(KEYS) do
  if redis.call('PTTL', key) < left then redis.call('PEXPIRE', key, string.format('%.0f', left)) end
end
return 1
`)

// listScript drops the sessions that have ended, and returns the newest of the
// rest.
var listScript = newScript(`
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
repeat
  local ended = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)
  for _, old in ipairs(ended) do
    redis.call('ZREM', KEYS[1], old)
    redis.call('ZREM', KEYS[2], old)
  end
until #ended == 0
return redis.call('ZREVRANGE', KEYS[1], 0, ARGV[1] - 1)
`)

func (r *Redis) session(member string) string { return r.key("session:", member) }

// sessionSets returns the keys of the two sets of a subject; of everybody without
// one.
func (r *Redis) sessionSets(subject string) []string {
	tag := "{all}"
	if subject != "" {
		tag = "{" + digest(subject) + "}"
	}
	return []string{r.key("sessions:", tag), r.key("sessions:", tag, ":ends")}
}

// Note implements [broker.Sessions]. The session is written before it is listed;
// a second Note lists it where the first died in between.
func (r *Redis) Note(ctx context.Context, s broker.Session) error {
	now := r.now()
	if !s.Expires.After(now) {
		return nil
	}
	doc, err := strictjson.Encode(s)
	if err != nil {
		return fmt.Errorf("redis: note session: %w", err)
	}
	ctx, cancel := r.bound(ctx, 2*r.timeout) // three exchanges
	defer cancel()
	member := digest(s.ID, s.Client)
	args := redis.SetArgs{Mode: "NX", ExpireAt: s.Expires}
	if err := r.client.SetArgs(ctx, r.session(member), doc, args).Err(); err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("redis: note session: %w", err)
	}
	lists := [][]string{r.sessionSets("")}
	if s.Subject != "" {
		lists = append(lists, r.sessionSets(s.Subject))
	}
	for _, keys := range lists {
		if _, err := r.run(ctx, noteScript, keys, []any{member, millis(s.First), millis(s.Expires)}, func(redis.Pipeliner) {}); err != nil {
			return fmt.Errorf("redis: list session: %w", err)
		}
	}
	return nil
}

// Sessions implements [broker.Sessions].
func (r *Redis) Sessions(ctx context.Context, subject string, limit int) ([]broker.Session, error) {
	if limit < 1 {
		return nil, nil
	}
	ctx, cancel := r.bound(ctx, r.timeout) // two exchanges
	defer cancel()
	reply, err := r.run(ctx, listScript, r.sessionSets(subject), []any{limit}, func(redis.Pipeliner) {})
	if err != nil {
		return nil, fmt.Errorf("redis: list sessions: %w", err)
	}
	members, _ := reply.([]any)
	docs := make([]*redis.StringCmd, len(members))
	err = r.together(ctx, func(p redis.Pipeliner) {
		for i, m := range members {
			member, _ := m.(string)
			docs[i] = p.Get(ctx, r.session(member))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("redis: read sessions: %w", err)
	}
	var out []broker.Session
	for _, d := range docs {
		doc, err := d.Bytes()
		if errors.Is(err, redis.Nil) {
			continue // it ended just now
		}
		if err != nil {
			return nil, fmt.Errorf("redis: read sessions: %w", err)
		}
		s, err := decodeSession(doc)
		if err != nil {
			return nil, fmt.Errorf("redis: read sessions: %w", err)
		}
		out = append(out, s)
	}
	newestFirst(out)
	return out, nil
}
