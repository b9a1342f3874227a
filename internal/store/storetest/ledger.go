package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

func key(value string) broker.Key { return broker.KeyOf(broker.BySession, value) }

// lease returns an intent that is filed under the given values, and due in an
// hour.
func lease(b *Bed, name string, values ...string) *broker.Lease {
	now := b.Now().UTC()
	l := &broker.Lease{
		ID: name, State: broker.Intent, Provider: "github", Pos: "1.2", Subject: "subject", Client: "client",
		Grant: json.RawMessage(`{"a":["<&>","é"],"n":1}`), Handle: []byte{0, 1, 2, 255},
		Created: now, Expires: now.Add(time.Hour), Next: now.Add(time.Hour),
	}
	for _, v := range values {
		l.Keys = append(l.Keys, key(v).String())
	}
	return l
}

// equal compares leases as their readers see them.
func equal(t testing.TB, got, want *broker.Lease) {
	t.Helper()
	plain := func(l *broker.Lease) broker.Lease {
		out := *l
		for _, at := range []*time.Time{&out.Created, &out.Expires, &out.Next, &out.Until} {
			*at = at.UTC()
		}
		out.Grant, out.Keys = nil, append([]string{}, out.Keys...)
		return out
	}
	if a, b := plain(got), plain(want); !reflect.DeepEqual(a, b) {
		t.Errorf("got  %+v\nwant %+v", a, b)
	}
	if !bytes.Equal(got.Grant, want.Grant) {
		t.Errorf("grant %s, not %s", got.Grant, want.Grant)
	}
}

// found is what the four ways to find leases say.
func found(t testing.TB, b *Bed, k broker.Key, id string) (match, due, all bool, open int) {
	t.Helper()
	match = slices.Contains(get[[]string](t)(b.Store.Match(soon(t), k)), id)
	due = slices.Contains(get[[]string](t)(b.Store.Due(soon(t), b.Now(), 1000)), id)
	must(t, b.Store.All(soon(t), func(l *broker.Lease) error {
		if l.ID == id {
			if all {
				t.Errorf("lease %s came twice", id)
			}
			all = true
		}
		return nil
	}))
	return match, due, all, get[int](t)(b.Store.Open(soon(t)))
}

var ledgerSuite = suite{
	{"a lease is read back as it was written", func(t *testing.T, b *Bed) {
		l := lease(b, "one", "a", "b")
		l.Until, l.Note, l.Attempts, l.Why = b.Now().Add(time.Minute).UTC(), "a note", 3, "expired"
		must(t, b.Store.Create(soon(t), l))
		equal(t, get[*broker.Lease](t)(b.Store.Lease(soon(t), "one")), l)
		bare := &broker.Lease{ID: "bare", State: broker.Intent}
		must(t, b.Store.Create(soon(t), bare))
		equal(t, get[*broker.Lease](t)(b.Store.Lease(soon(t), "bare")), bare)
		for _, unknown := range []string{"two", "", "on", "one ", "{one}"} {
			if _, err := b.Store.Lease(soon(t), unknown); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("lease %q: %v", unknown, err)
			}
		}
	}},
	{"a lease without an id or a state is refused", func(t *testing.T, b *Bed) {
		nameless, stateless := lease(b, ""), lease(b, "one")
		stateless.State = ""
		for _, l := range []*broker.Lease{nameless, stateless} {
			if err := b.Store.Create(soon(t), l); err == nil || errors.Is(err, broker.ErrConflict) {
				t.Errorf("created: %v", err)
			}
		}
		if n := get[int](t)(b.Store.Open(soon(t))); n != 0 {
			t.Errorf("%d leases are open", n)
		}
	}},
	{"an id is created once", func(t *testing.T, b *Bed) {
		l := lease(b, "one", "a")
		must(t, b.Store.Create(soon(t), l))
		other := lease(b, "one", "b")
		other.Provider = "another"
		if err := b.Store.Create(soon(t), other); !errors.Is(err, broker.ErrConflict) {
			t.Errorf("created twice: %v", err)
		}
		equal(t, get[*broker.Lease](t)(b.Store.Lease(soon(t), "one")), l)
		var created atomic.Int64
		together(50, func(int) {
			if err := b.Store.Create(soon(t), lease(b, "two", "a")); err == nil {
				created.Add(1)
			} else if !errors.Is(err, broker.ErrConflict) {
				t.Error(err)
			}
		})
		if created.Load() != 1 {
			t.Errorf("created %d times at once", created.Load())
		}
	}},
	{"an update replaces the version it was made from, and no other", func(t *testing.T, b *Bed) {
		l := lease(b, "one", "a")
		l.Version = 7 // whatever it is created with
		must(t, b.Store.Create(soon(t), l))
		mine, theirs := *l, *l
		mine.State, mine.Handle = broker.Active, []byte("new")
		must(t, b.Store.Update(soon(t), &mine))
		if mine.Version != 8 {
			t.Errorf("version %d after an update of 7", mine.Version)
		}
		equal(t, get[*broker.Lease](t)(b.Store.Lease(soon(t), "one")), &mine)
		theirs.State = broker.Closing
		if err := b.Store.Update(soon(t), &theirs); !errors.Is(err, broker.ErrConflict) || theirs.Version != 7 {
			t.Errorf("of a version that is gone: %v, and version %d", err, theirs.Version)
		}
		ahead := mine
		ahead.Version = 9
		if err := b.Store.Update(soon(t), &ahead); !errors.Is(err, broker.ErrConflict) {
			t.Errorf("of a version that is not there yet: %v", err)
		}
		equal(t, get[*broker.Lease](t)(b.Store.Lease(soon(t), "one")), &mine)
		if err := b.Store.Update(soon(t), lease(b, "nobody")); !errors.Is(err, broker.ErrConflict) {
			t.Errorf("of a lease that is not there: %v", err)
		}
		if _, err := b.Store.Lease(soon(t), "nobody"); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("a failed update left something: %v", err)
		}
	}},
	{"of a hundred updates from one version, one wins", func(t *testing.T, b *Bed) {
		must(t, b.Store.Create(soon(t), lease(b, "one", "a")))
		for range 5 {
			before := get[*broker.Lease](t)(b.Store.Lease(soon(t), "one"))
			var won, lost atomic.Int64
			var winner atomic.Value
			together(100, func(i int) {
				l := *before
				l.Note = id("by %d", i)
				switch err := b.Store.Update(soon(t), &l); {
				case err == nil:
					won.Add(1)
					winner.Store(l)
				case errors.Is(err, broker.ErrConflict):
					lost.Add(1)
				default:
					t.Error(err)
				}
			})
			if won.Load() != 1 || lost.Load() != 99 {
				t.Fatalf("%d won and %d lost", won.Load(), lost.Load())
			}
			l := winner.Load().(broker.Lease)
			equal(t, get[*broker.Lease](t)(b.Store.Lease(soon(t), "one")), &l)
		}
	}},
	{"the keys of a lease do not change, and a closed lease does not open again", func(t *testing.T, b *Bed) {
		l := lease(b, "one", "a", "b")
		must(t, b.Store.Create(soon(t), l))
		other := *l
		other.Keys = []string{key("c").String()}
		if err := b.Store.Update(soon(t), &other); err == nil || errors.Is(err, broker.ErrConflict) {
			t.Errorf("other keys: %v", err)
		}
		other.Keys = []string{l.Keys[1], l.Keys[0], l.Keys[1]} // the same, in another order
		other.State = broker.Closed
		must(t, b.Store.Update(soon(t), &other))
		for _, state := range []broker.LeaseState{broker.Intent, broker.Active, broker.Closing} {
			again := other
			again.State = state
			if err := b.Store.Update(soon(t), &again); err == nil || errors.Is(err, broker.ErrConflict) {
				t.Errorf("closed, then %s: %v", state, err)
			}
		}
		other.Note = "still closed"
		must(t, b.Store.Update(soon(t), &other))
		if match, due, all, open := found(t, b, key("a"), "one"); match || due || all || open != 0 {
			t.Errorf("closed twice: match %t, due %t, all %t, open %d", match, due, all, open)
		}
	}},
	{"in every state of its life a lease is found where it belongs", lifeOfALease},
	{"leases are due in order, to the nanosecond, and up to a limit", dueInOrder},
	{"every lease of a key is matched, and no other", matchMany},
	{"all open leases are gone through once, though they change meanwhile", allOnce},
	{"whoever goes through leases can stop", func(t *testing.T, b *Bed) {
		spread(20, func(i int) {
			if err := b.Store.Create(soon(t), lease(b, id("lease %d", i))); err != nil {
				t.Error(err)
			}
		})
		stop, n := errors.New("enough"), 0
		err := b.Store.All(soon(t), func(*broker.Lease) error {
			if n++; n == 7 {
				return stop
			}
			return nil
		})
		if !errors.Is(err, stop) || n != 7 {
			t.Errorf("after %d: %v", n, err)
		}
	}},
	{"leases survive reopening", func(t *testing.T, b *Bed) {
		open, closed := lease(b, "open", "a"), lease(b, "closed", "a")
		open.Next = b.Now().Add(-time.Second).UTC()
		must(t, b.Store.Create(soon(t), open))
		must(t, b.Store.Create(soon(t), closed))
		open.State, closed.State = broker.Active, broker.Closed
		must(t, b.Store.Update(soon(t), open))
		must(t, b.Store.Update(soon(t), closed))
		b.Store = b.Reopen()
		equal(t, get[*broker.Lease](t)(b.Store.Lease(soon(t), "open")), open)
		equal(t, get[*broker.Lease](t)(b.Store.Lease(soon(t), "closed")), closed)
		if match, due, all, n := found(t, b, key("a"), "open"); !match || !due || !all || n != 1 {
			t.Errorf("open: match %t, due %t, all %t, open %d", match, due, all, n)
		}
	}},
}

func lifeOfALease(t *testing.T, b *Bed) {
	l := lease(b, "one", "a", "b")
	must(t, b.Store.Create(soon(t), lease(b, "bystander", "b")))
	past, future := b.Now().Add(-time.Minute).UTC(), b.Now().Add(time.Minute).UTC()
	for i, step := range []struct {
		state      broker.LeaseState
		next       time.Time
		match, due bool
	}{
		{broker.Intent, future, true, false},
		{broker.Intent, past, true, true}, // nobody came back for it
		{broker.Active, future, true, false},
		{broker.Active, past, true, true}, // it ran out
		{broker.Closing, past, true, true},
		{broker.Closing, future, true, false}, // claimed by a reaper
		{broker.Closing, time.Time{}, true, true},
		{broker.Closed, past, false, false},
	} {
		l.State, l.Next = step.state, step.next
		if i == 0 {
			must(t, b.Store.Create(soon(t), l))
		} else {
			must(t, b.Store.Update(soon(t), l))
		}
		for _, k := range []string{"a", "b"} {
			open := 2
			if step.state == broker.Closed {
				open = 1
			}
			match, due, all, n := found(t, b, key(k), "one")
			if match != step.match || due != step.due || all != step.match || n != open {
				t.Errorf("step %d (%s), key %s: match %t, due %t, all %t, open %d", i, step.state, k, match, due, all, n)
			}
		}
	}
	equal(t, get[*broker.Lease](t)(b.Store.Lease(soon(t), "one")), l)
	if match, _, all, _ := found(t, b, key("b"), "bystander"); !match || !all {
		t.Error("the other lease of the key is gone as well")
	}
}

func dueInOrder(t *testing.T, b *Bed) {
	const n = 120
	now := b.Now().Truncate(time.Millisecond).Add(500 * time.Nanosecond)
	order := rand.Perm(n)
	spread(n, func(i int) {
		l := lease(b, id("lease %03d", order[i]))
		l.Next = now.Add(time.Duration(order[i]-100) * time.Millisecond) // the 101st is due now
		if err := b.Store.Create(soon(t), l); err != nil {
			t.Error(err)
		}
	})
	far := lease(b, "in the year 9000")
	far.Next = time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC)
	must(t, b.Store.Create(soon(t), far))
	var want []string
	for i := range 101 {
		want = append(want, id("lease %03d", i))
	}
	for _, limit := range []int{1, 7, 101, 1000} {
		got := get[[]string](t)(b.Store.Due(soon(t), now, limit))
		if !slices.Equal(got, want[:min(limit, 101)]) {
			t.Errorf("limit %d: %d ids: %.100q", limit, len(got), got)
		}
	}
	for _, limit := range []int{0, -1} {
		if got := get[[]string](t)(b.Store.Due(soon(t), now, limit)); len(got) != 0 {
			t.Errorf("limit %d: %d ids", limit, len(got))
		}
	}
	late := lease(b, "in a nanosecond")
	late.Next = now.Add(1)
	must(t, b.Store.Create(soon(t), late))
	if got := get[[]string](t)(b.Store.Due(soon(t), now, 1000)); !slices.Equal(got, want) {
		t.Errorf("with one that is due in a nanosecond: %d ids", len(got))
	}
	if got := get[[]string](t)(b.Store.Due(soon(t), now.Add(1), 1000)); !slices.Contains(got, "in a nanosecond") {
		t.Error("a nanosecond later it is not due")
	}
	if got := get[[]string](t)(b.Store.Due(soon(t), now.Add(-200*time.Millisecond), 1000)); len(got) != 0 {
		t.Errorf("earlier, %d are due", len(got))
	}
}

func matchMany(t *testing.T, b *Bed) {
	const n = 2500
	spread(n, func(i int) {
		if err := b.Store.Create(soon(t), lease(b, id("lease %d", i), "everybody", id("parity %d", i%2), id("only %d", i))); err != nil {
			t.Error(err)
		}
	})
	for value, want := range map[string]int{"everybody": n, "parity 0": n / 2, "only 17": 1, "nobody": 0} {
		got := get[[]string](t)(b.Store.Match(soon(t), key(value)))
		slices.Sort(got)
		if len(got) != want || len(slices.Compact(got)) != want {
			t.Errorf("%s: %d leases, not %d", value, len(got), want)
		}
	}
	if open := get[int](t)(b.Store.Open(soon(t))); open != n {
		t.Errorf("%d are open, not %d", open, n)
	}
	// Another kind of the same value is another key.
	if got := get[[]string](t)(b.Store.Match(soon(t), broker.KeyOf(broker.BySubject, "everybody"))); len(got) != 0 {
		t.Errorf("another kind: %d leases", len(got))
	}
}

func allOnce(t *testing.T, b *Bed) {
	const n = 700
	spread(n, func(i int) {
		if err := b.Store.Create(soon(t), lease(b, id("lease %d", i), "a")); err != nil {
			t.Error(err)
		}
	})
	ctx, seen := soon(t), make(map[string]int)
	changed := make(chan struct{})
	go func() { // others change and come while we go through
		defer close(changed)
		for i := range n / 4 {
			l, err := b.Store.Lease(ctx, id("lease %d", i))
			if err == nil && l.State == broker.Intent {
				l.Next = l.Next.Add(-time.Duration(i) * time.Second)
				err = b.Store.Update(ctx, l)
			}
			if err != nil && !errors.Is(err, broker.ErrConflict) {
				t.Error(err)
			}
			if err := b.Store.Create(ctx, lease(b, id("late %d", i))); err != nil {
				t.Error(err)
			}
		}
	}()
	err := b.Store.All(ctx, func(l *broker.Lease) error {
		seen[l.ID]++
		closeIt(ctx, t, b, l.ID) // as markLoop does
		return nil
	})
	<-changed
	must(t, err)
	for i := range n {
		if c := seen[id("lease %d", i)]; c != 1 {
			t.Errorf("lease %d came %d times", i, c)
		}
	}
	for i := range n {
		l := get[*broker.Lease](t)(b.Store.Lease(ctx, id("lease %d", i)))
		if l.State != broker.Closed {
			t.Fatalf("lease %d is %s", i, l.State)
		}
	}
}

func closeIt(ctx context.Context, t testing.TB, b *Bed, id string) {
	for {
		l, err := b.Store.Lease(ctx, id)
		if err == nil {
			l.State = broker.Closed
			err = b.Store.Update(ctx, l)
		}
		if errors.Is(err, broker.ErrConflict) {
			continue
		}
		if err != nil {
			t.Error(err)
		}
		return
	}
}
