package broker_test

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/store"
)

// ledgers are the fake, and the real store that a single machine has.
var ledgers = map[string]func(w *world) broker.Ledger{
	"memory": func(w *world) broker.Ledger { return w.store },
	"the embedded store": func(w *world) broker.Ledger {
		s, err := store.OpenEmbedded(filepath.Join(w.t.TempDir(), "stint.db"), w.clock.Now)
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = s.Close() })
		return s
	},
}

// leasing makes the world's broker one that keeps its leases in a ledger and gives
// upstreams so much time, and runs it.
func (w *world) leasing(ledger broker.Ledger, timeout time.Duration) {
	w.t.Helper()
	cfg, deps := w.settings()
	cfg.MintTimeout, deps.Ledger = timeout, ledger
	b, err := broker.New(cfg, deps)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := b.Start(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	w.b = b
	w.run(b)
}

func (u *upstream) revive(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.alive[id] = tables.Everything()
}

// What was minted is ended before its answer is there, and what the answer brings
// is alive after all.
func TestAnAnswerThatComesTooLateIsEnded(t *testing.T) {
	for name, open := range ledgers {
		for when, passes := range map[string]time.Duration{
			"while its lease is open": 0, "when its lease is closed": 11 * time.Second, "when nothing is known of its lease any more": 3 * time.Hour,
		} {
			t.Run(name+", "+when, func(t *testing.T) {
				w := newWorld(t)
				ledger := open(w)
				w.leasing(ledger, 100*time.Millisecond)
				first, _ := w.must(nil)
				w.upstream.block = make(chan struct{})
				began := time.Now()
				_, err := w.exchange(w.vend(first.Token, nil))
				if broker.CodeOf(err) != broker.Unavailable || time.Since(began) > 2*time.Second {
					t.Fatalf("%v after %s", err, time.Since(began))
				}
				id := w.upstream.every()[0]
				eventually(t, "the intent is ended, whatever it came to", func() bool { return w.upstream.living() == 0 })
				eventually(t, "its outcome is recorded, though it stays open", func() bool {
					l, err := ledger.Lease(context.Background(), id)
					return err == nil && l.State == broker.Closing && l.Outcome == broker.Revoked && w.record.count(audit.KindLease) == 1
				})
				if passes > 0 {
					w.clock.move(11 * time.Second)
					eventually(t, "it is closed once minting is over", func() bool {
						l, err := ledger.Lease(context.Background(), id)
						return err == nil && l.State == broker.Closed && l.Outcome == broker.Revoked
					})
					w.clock.move(passes)
				}
				events := w.record.count(audit.KindLease)
				w.upstream.revive(id)
				close(w.upstream.block)
				eventually(t, "the late one is ended too", func() bool { return w.upstream.living() == 0 })
				eventually(t, "and that is recorded", func() bool { return w.record.count(audit.KindLease) > events })
				w.clock.move(11 * time.Second)
				eventually(t, "nothing stays open", func() bool { n, err := ledger.Open(context.Background()); return err == nil && n == 0 })
				if e := w.record.last(t, audit.KindLease); e.Lease.ID != id || e.Lease.Outcome != string(broker.Revoked) {
					t.Errorf("event %+v %+v", e, e.Lease)
				}
			})
		}
	}
}

// hasty is an upstream that finds something to note at the very moment at which we
// give up waiting for it.
type hasty struct{ *upstream }

func (u hasty) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	<-ctx.Done()
	u.mu.Lock()
	u.alive[r.Lease], u.minted[r.Lease] = tables.Everything(), true
	u.mu.Unlock()
	return nil, r.Note([]byte("handle of " + r.Lease))
}

// Of what is noted when nobody waits any more, the handle is not lost.
func TestANoteThatComesWhenTimeIsUpIsTaken(t *testing.T) {
	w := newWorld(t)
	ledger := ledgers["memory"](w)
	w.reg.Providers["warehouse"] = hasty{w.upstream}
	w.leasing(ledger, 2*time.Millisecond)
	first, _ := w.must(nil)
	for range 25 {
		if _, err := w.exchange(w.vend(first.Token, nil)); broker.CodeOf(err) != broker.Unavailable {
			t.Fatal(err)
		}
	}
	eventually(t, "all came to something", func() bool { return len(w.upstream.every()) == 25 })
	eventually(t, "every handle is there", func() bool {
		n := 0
		err := ledger.All(context.Background(), func(l *broker.Lease) error {
			if len(l.Handle) > 0 {
				n++
			}
			return nil
		})
		return err == nil && n == 25
	})
	w.clock.move(11 * time.Second)
	eventually(t, "all are ended", func() bool { return w.upstream.living() == 0 })
}

// slow is an upstream whose note is still being written when we give up waiting.
type slow struct {
	*upstream
	until atomic.Pointer[context.Context]
}

func (u *slow) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	u.until.Store(&ctx)
	return u.upstream.Mint(ctx, r)
}

// Whoever gives up reads the lease at the moment at which it is noted: for the race
// detector.
func TestALeaseIsNotedWhileOthersReadIt(t *testing.T) {
	w := newWorld(t)
	u := &slow{upstream: w.upstream}
	w.reg.Providers["warehouse"] = u
	w.leasing(w.store, 5*time.Millisecond)
	first, _ := w.must(nil)
	w.store.hook = func(step string) {
		if step == "updated intent" {
			<-(*u.until.Load()).Done()
		}
	}
	w.upstream.block = make(chan struct{}) // until we have given up
	if _, err := w.exchange(w.vend(first.Token, nil)); broker.CodeOf(err) != broker.Unavailable {
		t.Fatal(err)
	}
	close(w.upstream.block)
	w.clock.move(time.Hour)
	eventually(t, "it is ended", func() bool { return len(w.upstream.every()) == 1 && w.upstream.living() == 0 })
}

func (u *upstream) every() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Collect(maps.Keys(u.minted))
}

// What comes late is written down before anything is done about it: any replica ends
// it, also if the one that got the answer is no more, or if the store is away.
func TestWhatComesLateIsARecordOfItsOwn(t *testing.T) {
	for name, away := range map[string]bool{"at once": false, "when the store is back": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			first, _ := w.must(nil)
			cfg, deps := w.settings()
			cfg.MintTimeout = 10 * time.Millisecond
			b, err := broker.New(cfg, deps) // its loops never run
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Start(context.Background()); err != nil {
				t.Fatal(err)
			}
			w.b, w.upstream.block = b, make(chan struct{})
			if _, err := w.exchange(w.vend(first.Token, nil)); broker.CodeOf(err) != broker.Unavailable {
				t.Fatal(err)
			}
			id := w.upstream.every()[0]
			theirs := &record{}
			other := w.broker("r2", theirs, broker.Head{})
			w.run(other)
			eventually(t, "it is ended", func() bool { return w.lease(id).Outcome == broker.Revoked })
			w.clock.move(11 * time.Second)
			eventually(t, "it is closed", func() bool { return w.lease(id).State == broker.Closed })
			if away {
				w.store.fail(errors.New("gone"))
			}
			events := theirs.count(audit.KindLease)
			w.upstream.revive(id)
			close(w.upstream.block)
			eventually(t, "the journal has what came", func() bool {
				return slices.ContainsFunc(w.record.leases(t), func(l *broker.Lease) bool {
					return l.Of == id && l.State == broker.Closing && strings.Contains(string(l.Handle), "handle of "+id)
				})
			})
			if w.store.fail(nil); w.upstream.living() != 1 && away {
				t.Error("it was ended while the store was away")
			}
			eventually(t, "the other ends it", func() bool { return w.upstream.living() == 0 })
			eventually(t, "and records it", func() bool { return theirs.count(audit.KindLease) > events })
			if e := theirs.last(t, audit.KindLease); e.Lease.ID != id || e.Lease.Outcome != string(broker.Revoked) {
				t.Errorf("event %+v", e.Lease)
			}
			eventually(t, "nothing stays open", func() bool { n, err := w.store.Open(context.Background()); return err == nil && n == 0 })
		})
	}
}
