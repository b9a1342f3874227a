package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	bolt "go.etcd.io/bbolt"
)

// Claim implements [broker.Answers].
func (e *Embedded) Claim(ctx context.Context, name string, data []byte, expires time.Time) (was []byte, err error) {
	now := e.now()
	key := []byte(digest(name))
	err = e.write(ctx, func(tx *bolt.Tx) error {
		was = nil
		if at, kept, ok := cutStamp(tx.Bucket(bucketAnswers).Get(key)); ok && at > nanos(now) {
			was = bytes.Clone(kept)
			return nil
		}
		return putAnswer(tx, key, data, expires, now)
	})
	if err != nil {
		return nil, fmt.Errorf("embedded store: claim an answer: %w", err)
	}
	return was, nil
}

// Answer implements [broker.Answers].
func (e *Embedded) Answer(ctx context.Context, name string, data []byte, expires time.Time) error {
	now := e.now()
	if data == nil {
		expires = now
	}
	err := e.write(ctx, func(tx *bolt.Tx) error { return putAnswer(tx, []byte(digest(name)), data, expires, now) })
	if err != nil {
		return fmt.Errorf("embedded store: keep an answer: %w", err)
	}
	return nil
}

func putAnswer(tx *bolt.Tx, key, data []byte, expires, now time.Time) error {
	answers, order := tx.Bucket(bucketAnswers), tx.Bucket(bucketAnswered)
	if old := answers.Get(key); old != nil {
		if err := order.Delete(slices.Concat(old[:8], key)); err != nil {
			return err
		}
	}
	ends := stamp(expires)
	if err := answers.Put(key, slices.Concat(ends, data)); err != nil {
		return err
	}
	if err := order.Put(slices.Concat(ends, key), nil); err != nil {
		return err
	}
	return sweepAnswers(tx, now)
}

func sweepAnswers(tx *bolt.Tx, now time.Time) error {
	return sweep(tx, bucketAnswered, now, func(key []byte) error { return tx.Bucket(bucketAnswers).Delete(key) })
}

func (r *Redis) answer(name string) string { return r.key("answer:", digest(name)) }

// Claim implements [broker.Answers].
func (r *Redis) Claim(ctx context.Context, name string, data []byte, expires time.Time) ([]byte, error) {
	ctx, cancel := r.bound(ctx, r.wait+r.timeout) // two exchanges
	defer cancel()
	for range 2 { // what is there may end between the two
		claimed, err := r.keepAnswer(ctx, name, data, expires, "NX")
		if err != nil {
			return nil, fmt.Errorf("redis: claim an answer: %w", err)
		}
		if claimed {
			return nil, nil
		}
		was, err := r.client.Get(ctx, r.answer(name)).Bytes()
		if err == nil || !errors.Is(err, redis.Nil) {
			return was, err
		}
	}
	return nil, errors.New("redis: claim an answer: it ends and comes back")
}

// Answer implements [broker.Answers].
func (r *Redis) Answer(ctx context.Context, name string, data []byte, expires time.Time) error {
	if data == nil {
		expires = r.now()
	}
	ctx, cancel := r.bound(ctx, r.wait)
	defer cancel()
	if _, err := r.keepAnswer(ctx, name, data, expires, ""); err != nil {
		return fmt.Errorf("redis: keep an answer: %w", err)
	}
	return nil
}

// keepAnswer writes an answer, and reports whether it did.
func (r *Redis) keepAnswer(ctx context.Context, name string, data []byte, expires time.Time, mode string) (bool, error) {
	ttl := max(expires.Sub(r.now()).Truncate(time.Millisecond), time.Millisecond)
	confirmed := confirmation{r: r}
	p := r.client.Pipeline()
	set := p.SetArgs(ctx, r.answer(name), data, redis.SetArgs{Mode: mode, TTL: ttl})
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
	return err == nil, err
}
