package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
)

// leases are the newest frame of each lease in a journal.
func (r *record) leases(t testing.TB) (out []*broker.Lease) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	at := map[string]int{}
	for _, f := range r.frames {
		if f.Type != audit.FrameLease {
			continue
		}
		l := &broker.Lease{}
		if err := json.Unmarshal(f.Payload, l); err != nil {
			t.Fatal(err)
		}
		if i, there := at[l.ID]; there {
			out[i] = l
			continue
		}
		at[l.ID] = len(out)
		out = append(out, l)
	}
	return out
}

// rebuild runs a recovery from a journal and returns what it did, in short.
func (w *world) rebuild(ledger broker.Ledger, leases []*broker.Lease) string {
	w.t.Helper()
	got, err := broker.Rebuild(context.Background(), w.store, ledger, leases, w.clock.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("restored %d ending %d closed %d known %d over %d expired %d", got.Restored, got.Ending, got.Closed, got.Known, got.Over, len(got.Expired))
}

// fresh is a ledger that lost everything.
func (w *world) fresh(kind string) broker.Ledger {
	if kind == "memory" {
		w.store.mu.Lock()
		defer w.store.mu.Unlock()
		w.store.leases, w.store.gone = map[string]broker.Lease{}, map[string]time.Time{}
	}
	return ledgers[kind](w)
}

func TestRebuildWritesWhatIsMissing(t *testing.T) {
	for kind := range ledgers {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			id, revoked := w.login(nil), w.login(nil)
			if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Lease: revoked}}); err != nil {
				t.Fatal(err)
			}
			pos := w.lease(id).Pos
			ledger := w.fresh(kind)
			journal := append(w.record.leases(t),
				&broker.Lease{ID: "intent", State: broker.Intent, Provider: "warehouse", Pos: pos, Expires: w.clock.Now().Add(time.Minute)},
				&broker.Lease{ID: "old", State: broker.Active, Provider: "warehouse", Pos: pos, Expires: w.clock.Now().Add(-time.Hour - time.Second)},
				&broker.Lease{ID: "ran out", State: broker.Active, Provider: "warehouse", Pos: pos, Expires: w.clock.Now().Add(-59 * time.Minute)},
				&broker.Lease{ID: "closed", State: broker.Closed, Provider: "warehouse", Pos: pos, Expires: w.clock.Now().Add(-time.Minute)},
				&broker.Lease{ID: "closed long ago", State: broker.Closed, Provider: "warehouse", Pos: pos, Expires: w.clock.Now().Add(-2 * time.Hour)},
			)
			if got := w.rebuild(ledger, journal); got != "restored 4 ending 2 closed 1 known 0 over 1 expired 1" {
				t.Error(got)
			}
			if got := w.rebuild(ledger, journal); got != "restored 0 ending 0 closed 0 known 5 over 1 expired 1" {
				t.Errorf("a second time: %s", got)
			}
			for id, want := range map[string]string{id: "active ", revoked: "closing revoked", "intent": "closing failed", "ran out": "active ", "closed": "closed "} {
				l, err := ledger.Lease(t.Context(), id)
				if err != nil || string(l.State)+" "+l.Why != want {
					t.Errorf("lease %s: %+v, %v", id, l, err)
				}
			}
			if _, err := ledger.Lease(t.Context(), "old"); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("what ran out long ago: %v", err)
			}
			w.leasing(ledger, time.Second)
			eventually(t, "what was revoked is ended at once", func() bool { return w.upstream.living() == 1 })
			w.clock.move(5 * time.Minute)
			eventually(t, "and all in time after all", func() bool { return w.upstream.living() == 0 })
		})
	}
}

// One replica minted and another closed: neither order of their recoveries brings
// the lease back.
func TestRebuildDoesNotBringBackWhatAnotherReplicaClosed(t *testing.T) {
	for kind := range ledgers {
		for name, minterFirst := range map[string]bool{"the minter first": true, "the closer first": false} {
			t.Run(kind+", "+name, func(t *testing.T) {
				w := newWorld(t)
				id := w.login(nil)
				closer := &record{}
				other := w.broker("r2", closer, broker.Head{})
				w.run(other)
				w.clock.move(5 * time.Minute)
				eventually(t, "the other has closed it", func() bool { return w.lease(id).State == broker.Closed })
				ledger := w.fresh(kind)
				mine, theirs := w.record.leases(t), closer.leases(t)
				want := []string{"restored 1 ending 0 closed 0 known 0 over 0 expired 0", "restored 0 ending 0 closed 1 known 0 over 0 expired 0"}
				order := [][]*broker.Lease{mine, theirs}
				if !minterFirst {
					want = []string{"restored 0 ending 0 closed 1 known 0 over 0 expired 0", "restored 0 ending 0 closed 0 known 1 over 0 expired 0"}
					order = [][]*broker.Lease{theirs, mine}
				}
				for i, journal := range order {
					if got := w.rebuild(ledger, journal); got != want[i] {
						t.Errorf("recovery %d: %s", i+1, got)
					}
				}
				l, err := ledger.Lease(t.Context(), id)
				if err != nil || l.State != broker.Closed || l.Outcome != broker.Revoked {
					t.Errorf("%+v, %v", l, err)
				}
				if n, err := ledger.Open(t.Context()); err != nil || n != 0 {
					t.Errorf("%d are open, %v", n, err)
				}
				w.clock.move(2 * time.Hour) // and the store has forgotten it again
				for _, journal := range order {
					if got, err := broker.Rebuild(t.Context(), w.store, ledger, journal, w.clock.Now()); err != nil || got.Restored+got.Closed != 0 {
						t.Errorf("hours later: %+v, %v", got, err)
					}
				}
			})
		}
	}
}

// An answer came late while the replica recorded that its lease was closed.
func TestRebuildLeavesWhatIsNewerInTheStore(t *testing.T) {
	w := newWorld(t)
	now := w.clock.Now()
	newer := &broker.Lease{ID: "one", Version: 4, State: broker.Closing, Pos: "1.1", Handle: []byte("late"), Expires: now.Add(time.Minute)}
	if err := w.store.Create(t.Context(), newer); err != nil {
		t.Fatal(err)
	}
	closed := &broker.Lease{ID: "one", Version: 3, State: broker.Closed, Pos: "1.1", Expires: now.Add(time.Minute)}
	if got := w.rebuild(w.store, []*broker.Lease{closed}); got != "restored 0 ending 0 closed 0 known 1 over 0 expired 0" || w.lease("one").State != broker.Closing {
		t.Errorf("%s: %+v", got, w.lease("one"))
	}
	closed.Version = 4
	if got := w.rebuild(w.store, []*broker.Lease{closed}); got != "restored 0 ending 0 closed 1 known 0 over 0 expired 0" || w.lease("one").State != broker.Closed {
		t.Errorf("%s: %+v", got, w.lease("one"))
	}
}

func TestRebuildSaysWhatTheStoreSays(t *testing.T) {
	w, f := breakable(t)
	active := &broker.Lease{ID: "one", State: broker.Active, Pos: "1.1", Expires: w.clock.Now().Add(time.Minute)}
	closed := &broker.Lease{ID: "two", State: broker.Closed, Pos: "1.1", Expires: w.clock.Now().Add(time.Minute)}
	for _, call := range []string{"lease", "read"} {
		for _, l := range []*broker.Lease{active, closed} {
			f.set(call, 1)
			if got, err := broker.Rebuild(t.Context(), f, f, []*broker.Lease{l}, w.clock.Now()); !errors.Is(err, errBroken) || got.Restored+got.Closed != 0 {
				t.Errorf("%s of %s: %+v, %v", call, l.ID, got, err)
			}
		}
	}
	// A feed that lost everything says nothing yet; whoever starts settles that.
	w.store.lose(0)
	if got := w.rebuild(w.store, []*broker.Lease{active}); got != "restored 1 ending 0 closed 0 known 0 over 0 expired 0" {
		t.Error(got)
	}
}
