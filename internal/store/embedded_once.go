package store

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

// digestSize is the length of what [digest] returns.
var digestSize = base64.RawURLEncoding.EncodedLen(32)

// Use implements [broker.Once].
func (e *Embedded) Use(ctx context.Context, purpose, id string, expires time.Time) (first bool, err error) {
	now := e.now()
	if expires.Before(now) {
		expires = now
	}
	key, ends := []byte(digest(purpose, id)), stamp(expires.Add(onceMargin))
	err = e.write(ctx, func(tx *bolt.Tx) error {
		once, order := tx.Bucket(bucketOnce), tx.Bucket(bucketOnceEnds)
		was := once.Get(key)
		if at, _, ok := cutStamp(was); ok && at > nanos(now) {
			first = false
			return nil
		}
		first = true
		if was != nil {
			if err := order.Delete(slices.Concat(was, key)); err != nil {
				return err
			}
		}
		if err := once.Put(key, ends); err != nil {
			return err
		}
		if err := order.Put(slices.Concat(ends, key), nil); err != nil {
			return err
		}
		return sweepOnce(tx, now)
	})
	if err != nil {
		return false, fmt.Errorf("embedded store: use a one-time id: %w", err)
	}
	return first, nil
}

func sweepOnce(tx *bolt.Tx, now time.Time) error {
	return sweep(tx, bucketOnceEnds, now, func(key []byte) error { return tx.Bucket(bucketOnce).Delete(key) })
}

// Note implements [broker.Sessions].
func (e *Embedded) Note(ctx context.Context, s broker.Session) error {
	now := e.now()
	if !s.Expires.After(now) {
		return nil
	}
	doc, err := strictjson.Encode(s)
	if err == nil {
		err = e.write(ctx, func(tx *bolt.Tx) error {
			if err := sweepSessions(tx, now); err != nil {
				return err
			}
			key := []byte(digest(s.ID, s.Client))
			if v := tx.Bucket(bucketSessions).Get(key); v != nil {
				was, err := decodeSession(v)
				if err != nil {
					return err
				}
				if was.Expires.After(now) {
					return nil
				}
				if err := dropSession(tx, key, was); err != nil {
					return err
				}
			}
			for bucket, entry := range sessionPlaces(key, s) {
				if err := tx.Bucket([]byte(bucket)).Put(entry, nil); err != nil {
					return err
				}
			}
			return tx.Bucket(bucketSessions).Put(key, doc)
		})
	}
	if err != nil {
		return fmt.Errorf("embedded store: note session: %w", err)
	}
	return nil
}

// sessionPlaces returns the key of a session in each of the buckets that list it.
func sessionPlaces(key []byte, s broker.Session) map[string][]byte {
	places := map[string][]byte{
		string(bucketBegan): stamp(s.First, key),
		string(bucketEnds):  stamp(s.Expires, key),
	}
	if s.Subject != "" {
		places[string(bucketSubjects)] = append([]byte(digest(s.Subject)), stamp(s.First, key)...)
	}
	return places
}

func dropSession(tx *bolt.Tx, key []byte, s broker.Session) error {
	for bucket, entry := range sessionPlaces(key, s) {
		if err := tx.Bucket([]byte(bucket)).Delete(entry); err != nil {
			return err
		}
	}
	return tx.Bucket(bucketSessions).Delete(key)
}

func sweepSessions(tx *bolt.Tx, now time.Time) error {
	return sweep(tx, bucketEnds, now, func(key []byte) error {
		s, err := decodeSession(tx.Bucket(bucketSessions).Get(key))
		if err != nil { // damaged: no reason to stop whoever writes now
			return tx.Bucket(bucketSessions).Delete(key)
		}
		return dropSession(tx, key, s)
	})
}

// Sessions implements [broker.Sessions].
func (e *Embedded) Sessions(ctx context.Context, subject string, limit int) (out []broker.Session, err error) {
	bucket, prefix := bucketBegan, []byte{}
	if subject != "" {
		bucket, prefix = bucketSubjects, []byte(digest(subject))
	}
	now := e.now()
	err = e.view(ctx, func(tx *bolt.Tx) error {
		c := tx.Bucket(bucket).Cursor()
		k, _ := c.Seek(append(bytes.Clone(prefix), 0xff)) // behind every time
		if k == nil {
			k, _ = c.Last()
		} else {
			k, _ = c.Prev()
		}
		for ; k != nil && bytes.HasPrefix(k, prefix) && len(out) < limit; k, _ = c.Prev() {
			v := tx.Bucket(bucketSessions).Get(k[len(k)-digestSize:])
			if v == nil {
				continue
			}
			s, err := decodeSession(v)
			if err != nil {
				return err
			}
			if s.Expires.After(now) {
				out = append(out, s)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("embedded store: list sessions: %w", err)
	}
	newestFirst(out)
	return out, nil
}
