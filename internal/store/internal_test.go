package store

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

func newEmbedded(t testing.TB) *Embedded {
	t.Helper()
	e, err := OpenEmbedded(filepath.Join(t.TempDir(), "stint.db"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func put(bucket []byte, key string) func(*bolt.Tx) error {
	return func(tx *bolt.Tx) error { return tx.Bucket(bucket).Put([]byte(key), []byte("x")) }
}

func has(t testing.TB, e *Embedded, bucket []byte, key string) (found bool) {
	t.Helper()
	err := e.view(t.Context(), func(tx *bolt.Tx) error {
		found = tx.Bucket(bucket).Get([]byte(key)) != nil
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestWritersShareSyncs(t *testing.T) {
	e := newEmbedded(t)
	const writers, each = 64, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := e.write(t.Context(), put(bucketOnce, fmt.Sprint(w, "/", i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var id int
	_ = e.db.View(func(tx *bolt.Tx) error { id = tx.ID(); return nil })
	if id > writers*each/2 {
		t.Errorf("%d writes took %d transactions", writers*each, id)
	}
	for w := range writers {
		for i := range each {
			if !has(t, e, bucketOnce, fmt.Sprint(w, "/", i)) {
				t.Fatalf("write %d of %d is not there", i, w)
			}
		}
	}
}

// That a sync happens cannot be seen from here, since the kernel shows what was
// written to whoever reads. That it was not turned off can.
func TestEveryTransactionIsSynced(t *testing.T) {
	if db := newEmbedded(t).db; db.NoSync || db.NoGrowSync {
		t.Error("the file is not synced")
	}
}

func TestAWriteThatErrsTakesNobodyWithIt(t *testing.T) {
	e := newEmbedded(t)
	mine := errors.New("mine")
	var wg sync.WaitGroup
	e.disk.Lock() // so that they come together
	for i := range 30 {
		wg.Go(func() {
			key := fmt.Sprint(i)
			err := e.write(t.Context(), func(tx *bolt.Tx) error {
				if err := put(bucketOnce, key)(tx); err != nil || i%3 != 0 {
					return err
				}
				return mine
			})
			if i%3 == 0 && err != mine || i%3 != 0 && err != nil {
				t.Errorf("write %d: %v", i, err)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	e.disk.Unlock()
	wg.Wait()
	for i := range 30 {
		if there := has(t, e, bucketOnce, fmt.Sprint(i)); there != (i%3 != 0) {
			t.Errorf("write %d is there: %t", i, there)
		}
	}
	if err := e.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAfterAFailedSyncNothingIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stint.db")
	db, file, err := openBolt(path, embeddedFormat, buckets...)
	if err != nil {
		t.Fatal(err)
	}
	e := &Embedded{db: db, now: time.Now, open: newGroup(), news: make(chan struct{}), ended: make(chan struct{})}
	if err := e.write(t.Context(), put(bucketOnce, "before")); err != nil {
		t.Fatal(err)
	}
	_ = file.Close() // the disk is gone
	for i := range 3 {
		if err := e.write(t.Context(), put(bucketOnce, "after")); err == nil {
			t.Fatal("written without a disk")
		} else if i > 0 && !strings.Contains(err.Error(), "failed earlier") {
			t.Errorf("write %d: %v", i, err)
		}
	}
	if first, err := e.Use(t.Context(), "jti", "one", time.Now().Add(time.Minute)); err == nil || first {
		t.Errorf("use: first %t, %v", first, err)
	}
	if err := e.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "failed earlier") {
		t.Errorf("ready: %v", err)
	}
	_ = e.Close()
	again, err := OpenEmbedded(path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if !has(t, again, bucketOnce, "before") {
		t.Error("what was acknowledged is gone")
	}
}

func TestADamagedEmbeddedLeaseHidesNoOther(t *testing.T) {
	e := newEmbedded(t)
	for i := range 600 {
		l := &broker.Lease{ID: fmt.Sprintf("lease %03d", i), State: broker.Intent}
		if err := e.Create(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	for _, damage := range [][]byte{{1}, append(number(0), '{'), append(number(0), `{"id":"another"}`...)} {
		if err := e.write(t.Context(), func(tx *bolt.Tx) error { return tx.Bucket(bucketLeases).Put([]byte("lease 255"), damage) }); err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := e.All(t.Context(), func(*broker.Lease) error { n++; return nil }); err == nil || n != 599 {
			t.Errorf("%d leases, %v", n, err)
		}
		if _, err := e.Lease(t.Context(), "lease 255"); err == nil || errors.Is(err, broker.ErrNotFound) {
			t.Errorf("the damaged one: %v", err)
		}
	}
}

func TestDamagedEntriesOfTheEmbeddedFeedAreErrors(t *testing.T) {
	e := newEmbedded(t)
	if err := e.write(t.Context(), put(bucketFeed, string(number(1)))); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Read(t.Context(), 0, 1, 0); err == nil {
		t.Error("read")
	}
	if _, err := e.Beat(t.Context(), broker.Replica{ID: "one"}, time.Minute); err == nil {
		t.Error("a heartbeat was answered")
	}
}

func TestADamagedSessionStopsNobody(t *testing.T) {
	e := newEmbedded(t)
	s := broker.Session{ID: "s", Subject: "a", Client: "c", First: time.Now(), Expires: time.Now().Add(30 * time.Millisecond)}
	if err := e.Note(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := e.write(t.Context(), put(bucketSessions, digest("s", "c"))); err != nil {
		t.Fatal(err)
	}
	time.Sleep(40 * time.Millisecond)
	if _, err := e.Beat(t.Context(), broker.Replica{ID: "one"}, time.Minute); err != nil {
		t.Error("heartbeat:", err)
	}
	if got, err := e.Sessions(t.Context(), "", 10); err != nil || len(got) != 0 {
		t.Errorf("%d sessions, %v", len(got), err)
	}
}

func TestTimesAtTheEndsOfTheScale(t *testing.T) {
	for _, c := range []struct {
		at            time.Time
		millis, nanos int64
	}{
		{time.Time{}, 0, 0},
		{time.Unix(-1, 999_999_999), 999, 0},
		{time.Unix(0, 0), 0, 0},
		{time.Unix(1, 2_999_999), 1002, 1_002_999_999},
		{time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC), 10413792000000, 1<<63 - 1},
		{time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC), lastMilli - 999, 1<<63 - 1},
		{time.Unix(1<<62, 0), lastMilli - 999, 1<<63 - 1},
	} {
		if m, n := millis(c.at), nanos(c.at); m != c.millis || n != c.nanos {
			t.Errorf("%s: %d ms, %d ns; not %d, %d", c.at, m, n, c.millis, c.nanos)
		}
	}
}

func TestDigestsDoNotRunTogether(t *testing.T) {
	seen := make(map[string]string)
	for _, parts := range [][]string{{}, {""}, {"", ""}, {"a"}, {"a", ""}, {"", "a"}, {"a", "b"}, {"ab"}, {"a\x00b"}} {
		d := digest(parts...)
		if len(d) != digestSize {
			t.Errorf("%q: %d bytes", parts, len(d))
		}
		if other, ok := seen[d]; ok {
			t.Errorf("%q and %s", parts, other)
		}
		seen[d] = fmt.Sprintf("%q", parts)
	}
}

// FuzzStored feeds what a store could hold, damaged in any way, to whatever reads
// it: nothing panics, and what is read is written the same again.
func FuzzStored(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	l := &broker.Lease{ID: "one", State: broker.Active, Grant: []byte(`{"a":1}`), Keys: []string{"s:x"}, Expires: now}
	doc, _ := encodeLease(l, 3)
	replica, _ := encodeReplica(broker.Replica{ID: "one", Since: 3}, now)
	session, _ := strictjson.Encode(broker.Session{ID: "one", First: now})
	entry := broker.Head{}.Follow(broker.Record{At: now, Expires: now}, broker.Position{Epoch: 1, Seq: 1})
	for _, data := range [][]byte{doc, []byte(replica), session, entry.Encode(), nil, []byte("{}"), []byte(" {}"), []byte("9 null")} {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, err := decodeLease("one", data); err == nil && l.State != "" {
			doc, err := encodeLease(l, l.Version)
			if err != nil {
				t.Fatalf("a lease that was read cannot be written: %v", err)
			}
			again, err := decodeLease("one", doc)
			if err != nil || !reflect.DeepEqual(times(l), times(again)) {
				t.Fatalf("a lease changes: %+v, then %+v, %v", l, again, err)
			}
		}
		if r, live, err := decodeReplica("one", string(data), now); err == nil {
			if r.ID != "one" {
				t.Fatalf("replica %q", r.ID)
			}
			text, err := encodeReplica(r, now.Add(time.Second))
			if again, _, err2 := decodeReplica("one", text, now); err != nil || err2 != nil || again != r {
				t.Fatalf("a replica changes (live %t): %+v, then %+v, %v %v", live, r, again, err, err2)
			}
		}
		if s, err := decodeSession(data); err == nil {
			if _, err := strictjson.Encode(s); err != nil {
				t.Fatalf("a session that was read cannot be written: %v", err)
			}
		}
		if e, err := decodeEntry(1, data); err == nil && e.Pos.Seq != 1 {
			t.Fatalf("entry %s under 1", e.Pos)
		}
		if _, rest, ok := cutStamp(data); ok && !bytes.Equal(rest, data[8:]) {
			t.Fatal("the rest of a key")
		}
	})
}

// times makes leases comparable: equal times may have different zones.
func times(l *broker.Lease) broker.Lease {
	out := *l
	for _, at := range []*time.Time{&out.Created, &out.Expires, &out.Next, &out.Until} {
		*at = at.UTC()
	}
	out.Keys, out.Handle, out.Grant = slices.Clip(append([]string{}, l.Keys...)), append([]byte{}, l.Handle...), nil
	return out
}
