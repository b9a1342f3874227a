package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/stint-dev/stint/broker"
)

// getLease returns a lease; nil if there is none, or none any more.
func getLease(tx *bolt.Tx, id string, now time.Time) (*broker.Lease, error) {
	v := tx.Bucket(bucketLeases).Get([]byte(id))
	if v == nil {
		return nil, nil
	}
	gone, doc, ok := cutStamp(v)
	if !ok {
		return nil, fmt.Errorf("lease %s: too short", id)
	}
	if gone != 0 && gone <= nanos(now) {
		return nil, nil
	}
	return decodeLease(id, doc)
}

// filedUnder is where a lease stands under a key.
func filedUnder(key, id string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(key)))
	return append(append(b, key...), id...)
}

// putLease writes a lease and its places, in exchange for those that it had.
func putLease(tx *bolt.Tx, l *broker.Lease, doc []byte, now time.Time) error {
	keys, _ := fileKeys(l)
	id := []byte(l.ID)
	leases, open, due, filed := tx.Bucket(bucketLeases), tx.Bucket(bucketOpen), tx.Bucket(bucketDue), tx.Bucket(bucketFiled)
	var err error
	try := func(e error) { err = errors.Join(err, e) }
	wasOpen := false
	if at := open.Get(id); at != nil {
		wasOpen = true
		try(due.Delete(slices.Concat(at, id)))
	}
	if v := leases.Get(id); v != nil && !wasOpen {
		try(tx.Bucket(bucketGone).Delete(slices.Concat(v[:8], id)))
	}
	if l.State != broker.Closed {
		at := stamp(l.Next)
		try(leases.Put(id, append(number(0), doc...)))
		try(open.Put(id, at))
		try(due.Put(slices.Concat(at, id), nil))
		for _, k := range keys {
			if !wasOpen {
				try(filed.Put(filedUnder(k, l.ID), nil))
			}
		}
		return err
	}
	gone := l.Expires
	if gone.Before(now) {
		gone = now
	}
	at := stamp(gone.Add(retention))
	try(leases.Put(id, slices.Concat(at, doc)))
	try(tx.Bucket(bucketGone).Put(slices.Concat(at, id), nil))
	try(open.Delete(id))
	for _, k := range keys {
		try(filed.Delete(filedUnder(k, l.ID)))
	}
	return err
}

func sweepLeases(tx *bolt.Tx, now time.Time) error {
	return sweep(tx, bucketGone, now, func(id []byte) error { return tx.Bucket(bucketLeases).Delete(id) })
}

// Create implements [broker.Ledger].
func (e *Embedded) Create(ctx context.Context, l *broker.Lease) error {
	doc, err := encodeLease(l, l.Version)
	if err == nil {
		now, conflict := e.now(), false
		err = e.write(ctx, func(tx *bolt.Tx) error {
			was, err := getLease(tx, l.ID, now)
			if conflict = was != nil; err != nil || conflict {
				return err
			}
			return putLease(tx, l, doc, now)
		})
		if err == nil && conflict {
			err = broker.ErrConflict
		}
	}
	if err != nil {
		return fmt.Errorf("embedded store: create lease %s: %w", l.ID, err)
	}
	return nil
}

// Update implements [broker.Ledger]. A lease that is gone has changed as well:
// ErrConflict. The keys of a lease do not change, and a closed one does not open
// again.
func (e *Embedded) Update(ctx context.Context, l *broker.Lease) error {
	doc, err := encodeLease(l, l.Version+1)
	if err == nil {
		var refused error
		now := e.now()
		_, keys := fileKeys(l)
		err = e.write(ctx, func(tx *bolt.Tx) error {
			was, err := getLease(tx, l.ID, now)
			if err != nil {
				return err
			}
			if refused = mayReplace(was, l, keys); refused != nil {
				return nil //nolint:nilerr // the others of the group are written all the same
			}
			return errors.Join(putLease(tx, l, doc, now), sweepLeases(tx, now))
		})
		err = errors.Join(err, refused)
	}
	if err != nil {
		return fmt.Errorf("embedded store: update lease %s: %w", l.ID, err)
	}
	l.Version++
	return nil
}

// mayReplace says what keeps a lease from being replaced.
func mayReplace(was, by *broker.Lease, keys string) error {
	if was == nil || was.Version != by.Version {
		return broker.ErrConflict
	}
	if _, before := fileKeys(was); before != keys {
		return errKeysChanged
	}
	if was.State == broker.Closed && by.State != broker.Closed {
		return errReopened
	}
	return nil
}

// Lease implements [broker.Ledger]. A closed lease can be read for another hour,
// and for an hour after it ran out.
func (e *Embedded) Lease(ctx context.Context, id string) (l *broker.Lease, err error) {
	err = e.view(ctx, func(tx *bolt.Tx) error {
		l, err = getLease(tx, id, e.now())
		return err
	})
	if err == nil && l == nil {
		err = fmt.Errorf("lease %s: %w", id, broker.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("embedded store: %w", err)
	}
	return l, nil
}

// Match implements [broker.Ledger]. It returns the open leases.
func (e *Embedded) Match(ctx context.Context, k broker.Key) (ids []string, err error) {
	prefix := filedUnder(k.String(), "")
	err = e.view(ctx, func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketFiled).Cursor()
		for key, _ := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, _ = c.Next() {
			ids = append(ids, string(key[len(prefix):]))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("embedded store: match leases: %w", err)
	}
	return ids, nil
}

// Due implements [broker.Ledger].
func (e *Embedded) Due(ctx context.Context, now time.Time, limit int) (ids []string, err error) {
	err = e.view(ctx, func(tx *bolt.Tx) error {
		for c, k := firstKey(tx.Bucket(bucketDue)); k != nil && len(ids) < limit; k, _ = c.Next() {
			at, id, ok := cutStamp(k)
			if !ok || at > nanos(now) {
				break
			}
			ids = append(ids, string(id))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("embedded store: look for leases that are due: %w", err)
	}
	return ids, nil
}

// All implements [broker.Ledger]. A lease that cannot be read is passed over and
// reported at the end. each may write to the store: nothing is held while it runs.
func (e *Embedded) All(ctx context.Context, each func(*broker.Lease) error) error {
	var damaged error
	for from := []byte{}; from != nil; {
		var leases []*broker.Lease
		err := e.view(ctx, func(tx *bolt.Tx) error {
			c := tx.Bucket(bucketOpen).Cursor()
			id, _ := c.Seek(from)
			for n := 0; id != nil && n < page/4; n++ {
				l, err := getLease(tx, string(id), e.now())
				if err != nil {
					damaged = errors.Join(damaged, err)
				} else if l != nil {
					leases = append(leases, l)
				}
				id, _ = c.Next()
			}
			from = bytes.Clone(id)
			return nil
		})
		if err != nil {
			return fmt.Errorf("embedded store: go through leases: %w", err)
		}
		for _, l := range leases {
			if err := each(l); err != nil {
				return err
			}
		}
	}
	return damaged
}

// Open implements [broker.Ledger].
func (e *Embedded) Open(ctx context.Context) (n int, err error) {
	err = e.view(ctx, func(tx *bolt.Tx) error {
		n = tx.Bucket(bucketOpen).Stats().KeyN
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("embedded store: count leases: %w", err)
	}
	return n, nil
}
