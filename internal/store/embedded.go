package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/stint-dev/stint/broker"
)

var (
	_ broker.Feed     = (*Embedded)(nil)
	_ broker.Ledger   = (*Embedded)(nil)
	_ broker.Once     = (*Embedded)(nil)
	_ broker.Sessions = (*Embedded)(nil)
	_ broker.Answers  = (*Embedded)(nil)
)

// The buckets of the file, format 1. Numbers in keys have 8 bytes, the highest
// first, so that they sort; times are Unix nanoseconds.
var (
	bucketMeta     = []byte("meta")     // format
	bucketFeed     = []byte("feed")     // sequence number -> entry
	bucketReplicas = []byte("replicas") // id -> end of its heartbeat, replica
	bucketLeases   = []byte("leases")   // id -> when it can go (open: 0), lease
	bucketOpen     = []byte("open")     // id of an open lease -> when it is due
	bucketDue      = []byte("due")      // when an open lease is due, id
	bucketFiled    = []byte("filed")    // key of an open lease, id
	bucketGone     = []byte("gone")     // when a closed lease can go, id
	bucketOnce     = []byte("once")     // digest of a one-time id -> when it ends
	bucketOnceEnds = []byte("once ends")
	bucketSessions = []byte("sessions")       // digest -> session
	bucketBegan    = []byte("sessions began") // when, digest
	bucketSubjects = []byte("sessions of")    // digest of the subject, when it began, digest
	bucketEnds     = []byte("sessions ends")  // when, digest
	bucketAnswers  = []byte("answers")        // digest of a name -> when it ends, answer
	bucketAnswered = []byte("answers ends")   // when, digest

	buckets = [][]byte{
		bucketMeta, bucketFeed, bucketReplicas, bucketLeases, bucketOpen, bucketDue, bucketFiled, bucketGone,
		bucketOnce, bucketOnceEnds, bucketSessions, bucketBegan, bucketSubjects, bucketEnds,
		bucketAnswers, bucketAnswered,
	}
)

const embeddedFormat = "stint store 1"

// swept is how many entries that have run out one write takes with it.
const swept = 8

// Embedded keeps state in one file, for a single machine. Nothing is acknowledged
// before it is synced to disk; writes that come while another is synced share the
// next sync. It is safe for concurrent use.
type Embedded struct {
	db  *bolt.DB
	now func() time.Time

	mu     sync.Mutex // guards what follows
	open   *group     // takes writes
	news   chan struct{}
	ended  chan struct{}
	closed bool
	failed error // a write or sync failed: what is on disk is unknown

	disk sync.Mutex // held by whoever writes; guards what follows
	busy bool       // the last group had company: worth waiting for some
}

// group is what one transaction writes.
type group struct {
	writes []*write
	done   chan struct{}
}

type write struct {
	do  func(*bolt.Tx) error
	err error
}

// OpenEmbedded opens or makes a store. now is its clock. A file that another
// process has open is refused.
func OpenEmbedded(path string, now func() time.Time) (*Embedded, error) {
	if path == "" || now == nil {
		return nil, errors.New("embedded store: it needs a file and a clock")
	}
	db, _, err := openBolt(path, embeddedFormat, buckets...)
	if err != nil {
		return nil, fmt.Errorf("embedded store %s: %w", path, err)
	}
	return &Embedded{db: db, now: now, open: newGroup(), news: make(chan struct{}), ended: make(chan struct{})}, nil
}

func newGroup() *group { return &group{done: make(chan struct{})} }

// openBolt opens or makes a file of a format, durably, with its buckets.
func openBolt(path, format string, buckets ...[]byte) (db *bolt.DB, file *os.File, err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make its folder: %w", err)
	}
	db, err = bolt.Open(path, 0o600, &bolt.Options{
		Timeout:         200 * time.Millisecond,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: 64 << 20, // growing it would have to wait for readers
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, mode)
			file = f
			return f, err
		},
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, nil, errors.New("in use by another process")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: if it is damaged, put back a copy or move it away; docs/rough-edges.md says what is lost", err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if meta != nil {
			if err := checkFormat(string(meta.Get([]byte("format"))), format); err != nil {
				return err
			}
		}
		for _, name := range append([][]byte{bucketMeta}, buckets...) {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put([]byte("format"), []byte(format))
	})
	if err == nil {
		err = syncDir(dir) // the file's name is to survive as well
	}
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, file, nil
}

// checkFormat fails if a file or a Redis is of another format than ours, which a number
// ends. Errors: ErrLater, if the number is higher.
func checkFormat(found, ours string) error {
	if found == ours {
		return nil
	}
	end := strings.LastIndexByte(ours, ' ') + 1
	if text, same := strings.CutPrefix(found, ours[:end]); same {
		n, err1 := strconv.Atoi(text)
		known, err2 := strconv.Atoi(ours[end:])
		if err1 == nil && err2 == nil && n > known {
			return fmt.Errorf("its format is %q: %w", found, broker.ErrLater)
		}
	}
	return fmt.Errorf("its format is %q, not %q", found, ours)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Close waits for what is being written and closes the file. Waiting reads end.
func (e *Embedded) Close() error {
	e.mu.Lock()
	again := e.closed
	e.closed = true
	if !again {
		close(e.ended)
	}
	e.mu.Unlock()
	e.disk.Lock()
	defer e.disk.Unlock()
	return e.db.Close()
}

// CheckFormat returns nil: a file of another format is not opened.
func (e *Embedded) CheckFormat(context.Context) error { return nil }

// Ready returns nil if the store can be read and nothing has stopped it from being
// written.
func (e *Embedded) Ready(ctx context.Context) error {
	if err := e.state(); err != nil {
		return fmt.Errorf("embedded store: %w", err)
	}
	return e.view(ctx, func(*bolt.Tx) error { return nil })
}

func (e *Embedded) state() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errClosed
	}
	return e.failed
}

// view reads.
func (e *Embedded) view(ctx context.Context, do func(*bolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := e.db.View(do)
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return errClosed
	}
	return err
}

// write returns when what do writes is durable. do may be called more than once:
// if it, or another of its group, errs, nothing of that round is written.
func (e *Embedded) write(ctx context.Context, do func(*bolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w := &write{do: do, err: errors.New("it was not written")}
	e.mu.Lock()
	g := e.open
	leader := len(g.writes) == 0
	g.writes = append(g.writes, w)
	e.mu.Unlock()
	if leader {
		e.commit(g)
	} else {
		<-g.done
	}
	return w.err
}

// commit writes a group. Whoever put the first write in does it.
func (e *Embedded) commit(g *group) {
	e.disk.Lock()
	defer e.disk.Unlock()
	defer close(g.done)
	if e.busy {
		// Others were waiting last time. Those who were woken by that sync may want to
		// write again: let them run before the door is shut.
		runtime.Gosched()
	}
	e.mu.Lock()
	e.open = newGroup()
	e.mu.Unlock()
	e.busy = len(g.writes) > 1
	for writes := g.writes; len(writes) > 0; {
		bad, err := e.apply(writes)
		if bad < 0 {
			for _, w := range writes {
				w.err = err
			}
			return
		}
		writes[bad].err = err
		writes = slices.Delete(slices.Clone(writes), bad, bad+1) // the others once more, without it
	}
}

// apply writes in one transaction. bad is the write that erred, -1 if none did.
func (e *Embedded) apply(writes []*write) (bad int, err error) {
	if err := e.state(); err != nil {
		return -1, err
	}
	bad = -1
	err = e.db.Update(func(tx *bolt.Tx) error {
		for i, w := range writes {
			if err := w.do(tx); err != nil {
				bad = i
				return err
			}
		}
		return nil
	})
	if err != nil && bad < 0 && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		// After a failed sync nobody knows what the disk holds, and asking again would
		// be answered with success. Having no room is not the end.
		e.mu.Lock()
		e.failed = fmt.Errorf("it failed earlier, and has to be opened again: %w", err)
		e.mu.Unlock()
	}
	return bad, err
}

// number returns a number as part of a key.
func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// stamp returns a time as part of a key, and what is behind it.
func stamp(t time.Time, rest ...[]byte) []byte {
	return append(number(uint64(nanos(t))), bytes.Join(rest, nil)...)
}

// cutStamp splits what [stamp] made; ok is false for other keys.
func cutStamp(key []byte) (ns int64, rest []byte, ok bool) {
	if len(key) < 8 {
		return 0, nil, false
	}
	return int64(binary.BigEndian.Uint64(key)), key[8:], true
}

// sweep takes some entries out of a bucket whose keys are stamps that have
// come, earliest first, and calls forget with the rest of each key.
func sweep(tx *bolt.Tx, bucket []byte, now time.Time, forget func(rest []byte) error) error {
	b := tx.Bucket(bucket)
	var old [][]byte
	c := b.Cursor()
	for k, _ := c.First(); k != nil && len(old) < swept; k, _ = c.Next() {
		if ns, _, ok := cutStamp(k); !ok || ns > nanos(now) {
			break
		}
		old = append(old, bytes.Clone(k)) // bbolt's own memory changes with the deletion
	}
	for _, k := range old {
		if err := forget(k[8:]); err != nil {
			return err
		}
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}
