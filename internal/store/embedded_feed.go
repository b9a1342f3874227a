package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/stint-dev/stint/broker"
)

// lastEntry returns the end of the feed; key and data are nil if it is empty.
func lastEntry(tx *bolt.Tx) (key, data []byte) { return tx.Bucket(bucketFeed).Cursor().Last() }

// endsAt reports whether the feed ends at a head.
func endsAt(tx *bolt.Tx, h broker.Head) bool {
	key, data := lastEntry(tx)
	if key == nil || h == (broker.Head{}) {
		return key == nil && h == (broker.Head{})
	}
	sum := sha256.Sum256(data)
	return binary.BigEndian.Uint64(key) == h.Pos.Seq && broker.ChainID(sum[:16]) == h.ID
}

// Append implements [broker.Feed].
func (e *Embedded) Append(ctx context.Context, after broker.Head, entries ...broker.Entry) error {
	data, err := encodeEntries(after, entries)
	if err != nil {
		return fmt.Errorf("embedded store: append to the feed: %w", err)
	}
	conflict := false
	err = e.write(ctx, func(tx *bolt.Tx) error {
		if conflict = !endsAt(tx, after); conflict {
			return nil
		}
		b := tx.Bucket(bucketFeed)
		b.FillPercent = 0.95 // it grows at its end alone
		for i, entry := range entries {
			if err := b.Put(number(entry.Pos.Seq), data[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && conflict {
		err = fmt.Errorf("behind %s: %w", after.Pos, broker.ErrConflict)
	}
	if err != nil {
		return fmt.Errorf("embedded store: append to the feed: %w", err)
	}
	e.mu.Lock()
	close(e.news)
	e.news = make(chan struct{})
	e.mu.Unlock()
	return nil
}

// Read implements [broker.Feed].
func (e *Embedded) Read(ctx context.Context, after uint64, limit int, wait time.Duration) ([]broker.Entry, error) {
	if limit < 1 {
		return nil, errors.New("embedded store: read the feed: a limit of at least one entry is needed")
	}
	timer := time.NewTimer(max(wait, 0))
	defer timer.Stop()
	for {
		e.mu.Lock()
		news := e.news // before looking: what comes after that closes it
		e.mu.Unlock()
		entries, err := e.entries(ctx, after, limit)
		if err != nil {
			return nil, fmt.Errorf("embedded store: read the feed: %w", err)
		}
		if len(entries) > 0 || wait <= 0 {
			return entries, nil
		}
		select {
		case <-news:
		case <-timer.C:
			return nil, nil
		case <-ctx.Done():
			return nil, fmt.Errorf("embedded store: read the feed: %w", ctx.Err())
		case <-e.ended:
			return nil, fmt.Errorf("embedded store: read the feed: %w", errClosed)
		}
	}
}

func (e *Embedded) entries(ctx context.Context, after uint64, limit int) (out []broker.Entry, err error) {
	if after+1 == 0 {
		return nil, nil
	}
	err = e.view(ctx, func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketFeed).Cursor()
		for k, v := c.Seek(number(after + 1)); k != nil && len(out) < limit; k, v = c.Next() {
			entry, err := decodeEntry(binary.BigEndian.Uint64(k), v)
			if err != nil {
				return err
			}
			out = append(out, entry)
		}
		return nil
	})
	return out, err
}

// trimStep is how many entries one transaction drops.
const trimStep = 4096

// Trim implements [broker.Feed].
func (e *Embedded) Trim(ctx context.Context, upto uint64) error {
	for more := true; more; {
		err := e.write(ctx, func(tx *bolt.Tx) error {
			more = false
			last, _ := lastEntry(tx)
			if last == nil {
				return nil
			}
			end := min(upto, binary.BigEndian.Uint64(last)-1)
			b := tx.Bucket(bucketFeed)
			var old [][]byte
			for c, k := firstKey(b); k != nil && binary.BigEndian.Uint64(k) <= end; k, _ = c.Next() {
				if more = len(old) == trimStep; more {
					break
				}
				old = append(old, number(binary.BigEndian.Uint64(k)))
			}
			for _, k := range old {
				if err := b.Delete(k); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("embedded store: trim the feed: %w", err)
		}
	}
	return nil
}

func firstKey(b *bolt.Bucket) (*bolt.Cursor, []byte) {
	c := b.Cursor()
	k, _ := c.First()
	return c, k
}

// Beat implements [broker.Feed]. There is one process; that the heartbeat is
// written shows that a revocation could be.
func (e *Embedded) Beat(ctx context.Context, me broker.Replica, life time.Duration) (broker.Beat, error) {
	none := broker.Beat{}
	if me.ID == "" || life < time.Millisecond {
		return none, errors.New("embedded store: heartbeat: it needs a replica's id, and a life of at least 1ms")
	}
	now := e.now()
	text, err := encodeReplica(me, now.Add(life))
	if err == nil {
		err = e.write(ctx, func(tx *bolt.Tx) error {
			if err := tx.Bucket(bucketReplicas).Put([]byte(me.ID), []byte(text)); err != nil {
				return err
			}
			return sweepAll(tx, now)
		})
	}
	if err != nil {
		return none, fmt.Errorf("embedded store: heartbeat: %w", err)
	}
	beat := broker.Beat{Now: e.now()}
	err = e.view(ctx, func(tx *bolt.Tx) error {
		if key, data := lastEntry(tx); key != nil {
			entry, err := decodeEntry(binary.BigEndian.Uint64(key), data)
			if err != nil {
				return err
			}
			beat.Head = entry.Head()
		}
		return tx.Bucket(bucketReplicas).ForEach(func(id, text []byte) error {
			replica, live, err := decodeReplica(string(id), string(text), beat.Now)
			if live {
				beat.Replicas = append(beat.Replicas, replica)
			}
			return err
		})
	})
	if err != nil {
		return none, fmt.Errorf("embedded store: heartbeat: %w", err)
	}
	sortReplicas(beat.Replicas)
	return beat, nil
}

// sweepAll drops a little of everything that has run out, also where nothing new
// of its kind is written.
func sweepAll(tx *bolt.Tx, now time.Time) error {
	replicas := tx.Bucket(bucketReplicas)
	var old [][]byte
	err := replicas.ForEach(func(id, text []byte) error {
		if _, live, err := decodeReplica(string(id), string(text), now); err == nil && !live {
			old = append(old, []byte(string(id)))
		}
		return nil
	})
	for _, id := range old {
		err = errors.Join(err, replicas.Delete(id))
	}
	return errors.Join(err, sweepLeases(tx, now), sweepOnce(tx, now), sweepSessions(tx, now), sweepAnswers(tx, now))
}

// Leave implements [broker.Feed].
func (e *Embedded) Leave(ctx context.Context, id string) error {
	err := e.write(ctx, func(tx *bolt.Tx) error { return tx.Bucket(bucketReplicas).Delete([]byte(id)) })
	if err != nil {
		return fmt.Errorf("embedded store: leave: %w", err)
	}
	return nil
}
