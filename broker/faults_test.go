package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

var errBroken = errors.New("broken on purpose")

// faulty is the world's store, of which single calls can be made to fail: the
// store of the world fails as a whole.
type faulty struct {
	*memory
	mu    sync.Mutex
	fails map[string]int // how many more calls of a name fail
	calls map[string]int

	refused string // the lease that cannot be updated
}

func newFaulty(m *memory) *faulty {
	return &faulty{memory: m, fails: map[string]int{}, calls: map[string]int{}}
}

// set has the next n calls of a name fail.
func (f *faulty) set(call string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails[call] = n
}

func (f *faulty) called(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}

func (f *faulty) fault(call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[call]++
	if f.fails[call] == 0 {
		return nil
	}
	f.fails[call]--
	return errBroken
}

func (f *faulty) Match(ctx context.Context, k broker.Key) ([]string, error) {
	if err := f.fault("match"); err != nil {
		return nil, err
	}
	return f.memory.Match(ctx, k)
}

func (f *faulty) All(ctx context.Context, each func(*broker.Lease) error) error {
	if err := f.fault("all"); err != nil {
		return err
	}
	return f.memory.All(ctx, each)
}

func (f *faulty) Lease(ctx context.Context, id string) (*broker.Lease, error) {
	if err := f.fault("lease"); err != nil {
		return nil, err
	}
	return f.memory.Lease(ctx, id)
}

// refuse has every update of a lease fail.
func (f *faulty) refuse(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused = id
}

func (f *faulty) Update(ctx context.Context, l *broker.Lease) error {
	if err := f.fault("update"); err != nil {
		return err
	}
	f.mu.Lock()
	refused := l.ID == f.refused
	f.mu.Unlock()
	if refused {
		return errBroken
	}
	return f.memory.Update(ctx, l)
}

func (f *faulty) Note(ctx context.Context, s broker.Session) error {
	if err := f.fault("note"); err != nil {
		return err
	}
	return f.memory.Note(ctx, s)
}

func (f *faulty) Trim(ctx context.Context, upto uint64) error {
	if err := f.fault("trim"); err != nil {
		return err
	}
	return f.memory.Trim(ctx, upto)
}

// Read can keep entries back that the store counts.
func (f *faulty) Read(ctx context.Context, after uint64, limit int, wait time.Duration) ([]broker.Entry, error) {
	if err := f.fault("read"); err != nil {
		return nil, err
	}
	if f.fault("hide") != nil {
		return nil, nil
	}
	return f.memory.Read(ctx, after, limit, wait)
}

func (f *faulty) SaveHead(context.Context, broker.Head) error { return f.fault("anchor") }

func (f *faulty) LoadHead(context.Context) (broker.Head, error) {
	return broker.Head{}, f.fault("anchored")
}

// breakable makes the world's broker one whose store can fail call by call.
func breakable(t testing.TB) (*world, *faulty) {
	t.Helper()
	w := newWorld(t)
	f := newFaulty(w.store)
	w.b = w.onFaulty(f)
	return w, f
}

// onFaulty makes a started replica on a store that can fail.
func (w *world) onFaulty(f *faulty) *broker.Broker {
	w.t.Helper()
	cfg, deps := w.settings()
	deps.Feed, deps.Ledger, deps.Sessions, deps.Anchor = f, f, f, f
	b, err := broker.New(cfg, deps)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := b.Start(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	return b
}

func TestLeasesAreMarkedHoweverOftenTheLedgerFails(t *testing.T) {
	for _, call := range []string{"match", "lease", "update"} {
		t.Run(call, func(t *testing.T) {
			w, f := breakable(t)
			id := w.login(nil)
			w.run(w.b)
			// An entry that selects nothing shows that what there was has been gone through.
			if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Token: "none"}}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "entries are marked one by one", func() bool { return f.called("match") > 0 })
			f.set(call, 2)
			if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#alice"}}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is ended all the same", func() bool { return w.lease(id).State == broker.Closed })
			if l := w.lease(id); l.Why != "revoked" || l.Outcome != broker.Revoked || w.upstream.living() != 0 {
				t.Errorf("%+v", l)
			}
		})
	}
}

// The replica that took a revocation died before it had marked anything.
func TestLeasesThatWereRevokedBeforeAreMarkedHoweverOftenTheLedgerFails(t *testing.T) {
	for _, call := range []string{"all", "lease", "update"} {
		t.Run(call, func(t *testing.T) {
			w, f := breakable(t)
			id, other := w.login(nil), w.login(nil)
			if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Lease: id}}); err != nil {
				t.Fatal(err)
			}
			b := w.onFaulty(f)
			f.set(call, 2)
			w.run(b)
			eventually(t, "it is ended all the same", func() bool { return w.lease(id).State == broker.Closed })
			if l := w.lease(other); l.State != broker.Active {
				t.Errorf("another is %s", l.State)
			}
		})
	}
}

// A lease that cannot be written keeps no others from being marked.
func TestALeaseThatCannotBeMarkedDoesNotStopTheOthers(t *testing.T) {
	w, f := breakable(t)
	var ids []string
	for range 5 {
		ids = append(ids, w.login(nil))
	}
	stuck := slices.Min(ids)
	f.refuse(stuck)
	w.run(w.b)
	if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#alice"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the others are ended", func() bool { return w.upstream.living() == 1 })
	f.refuse("")
	eventually(t, "and this one as soon as it can be", func() bool { return w.lease(stuck).State == broker.Closed })
}

// What was lost for good takes every lease with it.
func TestLeasesOfALostEpochAreEnded(t *testing.T) {
	w := newWorld(t)
	id := w.login(nil)
	if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Token: "lost"}}); err != nil {
		t.Fatal(err)
	}
	cfg, deps := w.settings()
	deps.Recorder, deps.History = &record{}, nil
	deps.Known = w.store.all()[1].Head()
	w.store.lose(1)
	b, err := broker.New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.run(b)
	eventually(t, "the lease is ended", func() bool { return w.lease(id).State == broker.Closed })
	if all := w.store.all(); len(all) != 2 || all[0].Pos.Epoch == all[1].Pos.Epoch {
		t.Fatalf("no new epoch: %v", all)
	}
	// The new epoch survives the next loss: this replica holds it.
	if _, err := b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Token: "x"}}); err != nil {
		t.Fatal(err)
	}
	before := w.store.all()
	w.store.lose(0)
	eventually(t, "it is all back", func() bool { return len(w.store.all()) >= len(before) })
	for i, e := range w.store.all()[:len(before)] {
		if e.Pos != before[i].Pos {
			t.Errorf("entry %d is at %s, was at %s", i, e.Pos, before[i].Pos)
		}
	}
}

// Another replica went on from where the store was restored to, faster than this
// one could notice.
func TestAChainThatWentOnDifferentlyIsMended(t *testing.T) {
	w, f := breakable(t)
	w.run(w.b)
	for _, id := range []string{"a", "b"} {
		if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Token: id}}); err != nil {
			t.Fatal(err)
		}
	}
	w.store.mu.Lock()
	w.store.entries = w.store.entries[:1]
	at := w.store.head()
	for _, id := range []string{"c", "d", "e", "f"} {
		e := at.Follow(broker.Record{Where: []broker.Key{broker.KeyOf(broker.ByToken, "", id)}, At: w.clock.Now(), Expires: w.clock.Now().Add(time.Hour)},
			broker.Position{Epoch: at.Pos.Epoch, Seq: at.Pos.Seq + 1})
		w.store.entries = append(w.store.entries, e)
		at = e.Head()
	}
	close(w.store.added)
	w.store.added = make(chan struct{})
	w.store.mu.Unlock()
	f.set("read", 1) // and the store hiccups while it is mended
	holds := func(id string) bool {
		return slices.ContainsFunc(w.store.all(), func(e broker.Entry) bool {
			return slices.Contains(e.Where, broker.KeyOf(broker.ByToken, "", id))
		})
	}
	eventually(t, "everything is in one chain", func() bool {
		return !slices.ContainsFunc([]string{"a", "b", "c", "d", "e", "f"}, func(id string) bool { return !holds(id) })
	})
	eventually(t, "the replica is current again", func() bool { return w.b.Status(context.Background()).Current })
}

// The store says that there are revocations, and does not give them: what they
// take is not known, and nothing is granted.
func TestRevocationsThatAreHeldBackStopEverything(t *testing.T) {
	w, f := breakable(t)
	w.must(nil)
	f.set("hide", -1)
	other := w.broker("r2", &record{}, broker.Head{})
	if _, err := other.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#bob"}}); err != nil {
		t.Fatal(err)
	}
	w.clock.move(time.Second) // beyond the staleness
	w.run(w.b)
	eventually(t, "a heartbeat has been tried", func() bool { return f.called("hide") > 3 })
	if _, err := w.exchange(nil); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("granted: %v", err)
	}
	f.set("hide", 0)
	eventually(t, "it goes on", func() bool { _, err := w.exchange(nil); return err == nil })
}

func TestASessionThatCouldNotBeWrittenIsWrittenTheNextTime(t *testing.T) {
	w, f := breakable(t)
	f.set("note", 1)
	w.must(nil) // not held up by it
	eventually(t, "it was tried", func() bool { return f.called("note") == 1 })
	eventually(t, "it is tried again", func() bool { w.must(nil); return f.called("note") > 1 })
	eventually(t, "it is there", func() bool {
		s, err := w.store.Sessions(context.Background(), w.record.Index(idp+"#alice"), 10)
		return err == nil && len(s) == 1 && s[0].Client == "desktop"
	})
	n := f.called("note")
	w.must(nil)
	w.must(nil)
	if f.called("note") != n {
		t.Error("it is written each time")
	}
}

// What was granted too widely is ended even if nobody could write that down at
// that moment: the intent has a deadline.
func TestAnAbandonedLeaseThatCannotBeWrittenIsEndedByItsDeadline(t *testing.T) {
	w, f := breakable(t)
	first, _ := w.must(nil)
	w.upstream.grants = func(grant.Grant) grant.Grant { f.set("update", -1); return tables.Everything() }
	if _, err := w.exchange(w.vend(first.Token, nil)); err == nil {
		t.Fatal("an over-grant is handed out")
	}
	if w.upstream.living() != 1 {
		t.Fatal("there is nothing to end")
	}
	f.set("update", 0)
	w.run(w.b)
	w.clock.move(11 * time.Second)
	eventually(t, "it is ended", func() bool { return w.upstream.living() == 0 })
}

// The feed is trimmed when its records have run out, and again if that failed;
// its head is kept outside the store, also if that failed.
func TestTheFeedIsTrimmedAndItsHeadKept(t *testing.T) {
	t.Parallel() // it waits for the upkeep, which comes every second
	w, f := breakable(t)
	const many = 20_000 // the index forgets thousands at a time
	w.store.mu.Lock()
	for i := range many {
		at := w.store.head()
		w.store.entries = append(w.store.entries, at.Follow(broker.Record{
			Where: []broker.Key{broker.KeyOf(broker.ByToken, "", fmt.Sprint(i))}, At: w.clock.Now(), Expires: w.clock.Now().Add(time.Hour),
		}, broker.Position{Epoch: at.Pos.Epoch, Seq: at.Pos.Seq + 1}))
	}
	w.store.mu.Unlock()
	f.set("trim", 1)
	f.set("anchor", 1)
	w.clock.move(2 * time.Hour)
	w.run(w.b)
	eventually(t, "it is trimmed in spite of a failure", func() bool { return f.called("trim") > 1 && len(w.store.all()) < many })
	eventually(t, "its head is kept in spite of a failure", func() bool { return f.called("anchor") > 1 })
	eventually(t, "and the replica is current", func() bool { _, err := w.exchange(nil); return err == nil })
}
