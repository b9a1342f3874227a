package store

import (
	"bufio"
	"context"
	"crypto/sha1" //nolint:gosec // how Redis names a script, no protection
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/stint-dev/stint/broker"
)

var (
	_ broker.Feed     = (*Redis)(nil)
	_ broker.Ledger   = (*Redis)(nil)
	_ broker.Once     = (*Redis)(nil)
	_ broker.Sessions = (*Redis)(nil)
	_ broker.Answers  = (*Redis)(nil)
)

// Redis keeps state in Redis. It is safe for concurrent use, and every call ends
// within the configured timeouts, whatever Redis does.
//
// Every script and every command touches keys of one hash slot, so that nothing
// here stands in the way of Redis Cluster. In keys, what is in braces decides the
// slot:
//
//	{feed}                 stream: entries of the feed, each under SEQ-0
//	{feed}:replicas        hash: replica -> when its heartbeat ends, and the replica
//	lease:{NN}:ID          hash: a lease; NN is one of 16 shards, by the id
//	due:{NN}               sorted set: open leases of a shard by when they are due
//	key:{KEY}              sorted set: leases filed under a key
//	once:DIGEST            a one-time id
//	session:DIGEST         a session
//	sessions:{DIGEST}      sorted set: sessions of a subject by when they began
//	sessions:{DIGEST}:ends the same by when they end; {all} instead: everybody's
//
// A lease and its place among those that are due change together, in one script,
// and so cannot disagree. Its places under its keys are made before the lease is
// and removed after it is closed: whenever a process dies, an open lease is found
// by each of its keys, and what is left over is recognised (see Match).
//
// Nothing is ever sent twice. A repeated Append that had taken effect the first
// time would be answered with a conflict, and a repeated Use with "used before":
// errors that claim to know. The broker is told what happened, that it is not
// known, and it knows what follows: it looks at the feed, refuses the one-time id,
// or leaves the intent to the reaper.
type Redis struct {
	client   *redis.Client
	prefix   string
	replicas int
	wait     time.Duration
	timeout  time.Duration
	now      func() time.Time
}

// OpenRedis checks the configuration and returns a store. It does not connect:
// [Redis.Ready] says whether Redis can be used. now is the clock by which one-time
// ids end.
func OpenRedis(cfg RedisConfig, secrets RedisSecrets, now func() time.Time) (*Redis, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	if cfg.Username != "" && secrets.Password.Empty() || now == nil {
		return nil, errors.New("redis: a user needs a password, and the store a clock")
	}
	cfg = cfg.withDefaults()
	tlsConfig, err := cfg.tlsConfig(secrets)
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	silence()
	// Deadlines come from contexts; these are for what has none of ours.
	longest := cfg.Timeout.Duration + cfg.WaitTimeout.Duration
	client := redis.NewClient(&redis.Options{
		Addr:      cfg.Address,
		DB:        cfg.DB,
		TLSConfig: tlsConfig,
		CredentialsProvider: func() (string, string) {
			return cfg.Username, secrets.Password.Reveal()
		},
		Protocol:                 2,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		MaxRetries:               -1,
		DialTimeout:              cfg.DialTimeout.Duration,
		DialerRetries:            1,
		ReadTimeout:              longest,
		WriteTimeout:             longest,
		ContextTimeoutEnabled:    true,
		PoolSize:                 cfg.PoolSize,
		PipelinePoolSize:         -1, // pipelines use the one pool
		PoolTimeout:              cfg.Timeout.Duration,
		ConnMaxIdleTime:          5 * time.Minute,
	})
	return &Redis{
		client: client, prefix: cfg.Prefix, replicas: cfg.ReplicasToWait,
		wait: cfg.WaitTimeout.Duration, timeout: cfg.Timeout.Duration, now: now,
	}, nil
}

// silence keeps the client from writing to standard error: what goes wrong is
// returned to whoever asked.
var silence = sync.OnceFunc(func() { redis.SetLogger(&logging.VoidLogger{}) })

// Close ends all connections. What is under way fails.
func (r *Redis) Close() error { return r.client.Close() }

// Ready returns nil if Redis answers, is a master with as many replicas as have to
// confirm, does not evict, and holds nothing of a later format.
func (r *Redis) Ready(ctx context.Context) error {
	ctx, cancel := r.bound(ctx, 0)
	defer cancel()
	info := make(map[string]string)
	for _, section := range []string{"replication", "memory"} {
		text, err := r.client.Info(ctx, section).Result()
		if err != nil {
			return fmt.Errorf("redis: ask how it is: %w", err)
		}
		for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), ":")
			info[name] = value
		}
	}
	connected, _ := strconv.Atoi(info["connected_slaves"])
	switch {
	case info["role"] != "master":
		return fmt.Errorf("redis: it is a %s, no master", info["role"])
	case connected < r.replicas:
		return fmt.Errorf("redis: %d replicas are connected, %d have to confirm", connected, r.replicas)
	case info["maxmemory"] != "0" && info["maxmemory_policy"] != "noeviction":
		return fmt.Errorf("redis: with maxmemory-policy %s it forgets one-time ids and leases; set noeviction", info["maxmemory_policy"])
	}
	return r.CheckFormat(ctx)
}

// bound gives an operation its time: what one answer may take, and what it waits.
func (r *Redis) bound(ctx context.Context, wait time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, r.timeout+wait)
}

func (r *Redis) key(parts ...string) string { return r.prefix + strings.Join(parts, "") }

// script is a Lua script, which Redis runs as one step.
type script struct{ text, sha string }

func newScript(text string) *script {
	sum := sha1.Sum([]byte(text)) //nolint:gosec // as above
	return &script{text, hex.EncodeToString(sum[:])}
}

// run runs a script, and behind it, on the same connection and in this order, what
// more adds. Only a script that Redis does not know yet is sent again, in full: it
// was not run. Errors of what more adds are for the caller to look at.
func (r *Redis) run(ctx context.Context, s *script, keys []string, args []any, more func(redis.Pipeliner)) (any, error) {
	p := r.client.Pipeline()
	cmd := p.EvalSha(ctx, s.sha, keys, args...)
	more(p)
	if err := send(ctx, p); err != nil {
		return nil, err
	}
	if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
		p = r.client.Pipeline()
		cmd = p.Eval(ctx, s.text, keys, args...)
		more(p)
		if err := send(ctx, p); err != nil {
			return nil, err
		}
	}
	return cmd.Result()
}

// send sends what was put together, and errs if it never left. Where Redis refused
// the connection (a user that is switched off, a password that was changed) the
// client gives the commands no error of their own: they look as if Redis had
// answered with nothing. The errors of commands that left are theirs.
func send(ctx context.Context, p redis.Pipeliner) error {
	_, err := exec(ctx, p)
	return err
}

// exec is send, and returns what was sent. Nothing else may run a pipeline.
func exec(ctx context.Context, p redis.Pipeliner) ([]redis.Cmder, error) {
	cmds, err := p.Exec(ctx)
	if slices.ContainsFunc(cmds, func(c redis.Cmder) bool { return c.Err() != nil }) {
		return cmds, nil
	}
	return cmds, err
}

// together sends what add puts together, and errs if it never left or if one of the
// commands failed. That there is nothing to be had (redis.Nil) is no failure, and is
// for the caller to see.
func (r *Redis) together(ctx context.Context, add func(redis.Pipeliner)) error {
	p := r.client.Pipeline()
	add(p)
	cmds, err := exec(ctx, p)
	if err != nil {
		return err
	}
	for _, c := range cmds {
		if err := c.Err(); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
	}
	return nil
}

// confirmation is the answer of the replicas to what was written before it on the
// same connection.
type confirmation struct {
	r   *Redis
	cmd *redis.Cmd
}

// ask adds the question. Redis does not go on to what is behind it before it has
// the answer.
func (c *confirmation) ask(ctx context.Context, p redis.Pipeliner) {
	if c.r.replicas > 0 {
		c.cmd = p.Do(ctx, "WAIT", c.r.replicas, c.r.wait.Milliseconds())
	}
}

// err returns nil if enough replicas have what was written.
func (c *confirmation) err() error {
	if c.r.replicas == 0 {
		return nil
	}
	n, err := c.cmd.Int64()
	if err != nil {
		return fmt.Errorf("wait for replicas: %w", err)
	}
	if n < int64(c.r.replicas) {
		return fmt.Errorf("%d of %d replicas confirmed within %s", n, c.r.replicas, c.r.wait)
	}
	return nil
}
