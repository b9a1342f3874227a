package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

// A token that a replica of a later version made is not known to be good, and not known
// to be bad either: whoever holds it keeps it. It can be taken back all the same.
func TestATokenOfALaterVersionIsNeitherGoodNorBad(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	made, tok := w.must(nil)
	tok.Stint = &broker.StintClaim{Version: broker.ClaimVersion + 1}
	mcpServer := w.reg.Clients["files-mcp"]
	if _, err := w.exchange(w.on(made.Token)); broker.CodeOf(err) != broker.Unavailable || !errors.Is(err, broker.ErrLater) {
		t.Errorf("exchanged: %v", err)
	}
	if i, err := w.b.Introspect(ctx, mcpServer, made.Token, false, "r"); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("introspected: %+v, %v", i, err)
	}
	if _, err := w.b.Admit(ctx, made.Token, mcp, ""); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("admitted: %v", err)
	}
	before := len(w.store.all())
	if err := w.b.RevokeToken(ctx, w.reg.Clients["desktop"], made.Token, "r"); err != nil {
		t.Fatal(err)
	}
	all := w.store.all()
	want := broker.KeyOf(broker.ByToken, "", tok.ID)
	if len(all) != before+1 || len(all[before].Where) != 1 || all[before].Where[0] != want {
		t.Errorf("what was revoked: %+v", all[before:])
	}
	tok.Stint = &broker.StintClaim{} // no version at all: none of ours ever was so
	if _, err := w.exchange(w.on(made.Token)); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("without a version: %v", err)
	}
}

// An entry is read as a whole or not at all, and what a later version wrote says so,
// whatever else is in it.
func TestEntriesOfALaterVersion(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	e := broker.Head{}.Follow(broker.Record{Where: []broker.Key{broker.KeyOf(broker.ByClient, "c")}, At: now, Expires: now}, broker.Position{Epoch: 1, Seq: 1})
	text := string(e.Encode())
	for name, c := range map[string]struct {
		old, new string
		later    bool
	}{
		"a higher number alone":           {`"v":1`, `"v":2`, true},
		"with a member that is new":       {`"v":1`, `"v":3,"new":[1]`, true},
		"with a member of another type":   {`"v":1,"e":1`, `"v":2,"e":"1"`, true},
		"a new member without a number":   {`"v":1`, `"v":1,"new":[1]`, false},
		"a kind that is not of version 1": {`"k:`, `"z:`, false},
		"no version":                      {`"v":1,`, ``, false},
		"a version that is no number":     {`"v":1`, `"v":"2"`, false},
	} {
		changed := strings.Replace(text, c.old, c.new, 1)
		if changed == text {
			t.Fatalf("%s: nothing to change in %s", name, text)
		}
		if _, err := broker.DecodeEntry([]byte(changed)); err == nil || errors.Is(err, broker.ErrLater) != c.later {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Leases had no version at first. One of a later version is not read: whoever wrote it
// back would leave out what he does not know.
func TestLeasesOfOtherVersions(t *testing.T) {
	l := &broker.Lease{ID: "one", State: broker.Active, Provider: "db", Grant: json.RawMessage(`{"a":1}`)}
	doc, err := broker.EncodeLease(l)
	if err != nil || !strings.Contains(string(doc), `"v":1`) {
		t.Fatalf("%s, %v", doc, err)
	}
	for name, c := range map[string]struct {
		new   string
		later bool
	}{
		"as it is":                          {`"v":1`, false},
		"of before there were versions":     {`"w":1`, false},
		"with a member that is new":         {`"new":{"a":[1]},"v":1`, false},
		"of a later version":                {`"v":2`, true},
		"of one with a member of new types": {`"created":{},"v":2`, true},
	} {
		text := strings.Replace(string(doc), `"v":1`, c.new, 1)
		if strings.Contains(c.new, "created") {
			text = strings.Replace(text, `"created":"0001-01-01T00:00:00Z",`, "", 1)
		}
		got, err := broker.DecodeLease([]byte(text))
		if errors.Is(err, broker.ErrLater) != c.later || !c.later && (err != nil || got.ID != "one" || string(got.Grant) != `{"a":1}`) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// unreadable is a store with a lease that it cannot read, which counts how often that is
// tried.
type unreadable struct {
	*memory
	id    string
	tries atomic.Int64
}

func (u *unreadable) Lease(ctx context.Context, id string) (*broker.Lease, error) {
	if id == u.id {
		u.tries.Add(1)
		return nil, broker.ErrLater
	}
	return u.memory.Lease(ctx, id)
}

// A lease that is due and that this version cannot read is for another replica to end:
// it is neither written over nor tried again and again without a pause, and does not keep
// others from being ended.
func TestALeaseOfALaterVersionIsForOthersToEnd(t *testing.T) {
	w := newWorld(t)
	due := func(id string) *broker.Lease {
		now := w.clock.Now()
		return &broker.Lease{ID: id, State: broker.Active, Provider: "warehouse", Pos: "1.1", Next: now.Add(-time.Minute), Expires: now.Add(time.Hour)}
	}
	u := &unreadable{memory: w.store, id: "later"}
	for _, id := range []string{"later", "ours"} {
		if err := w.store.Create(t.Context(), due(id)); err != nil {
			t.Fatal(err)
		}
	}
	w.ledger = u
	w.run(w.broker("r2", w.record, broker.Head{}))
	eventually(t, "the other lease is ended", func() bool {
		l, err := w.store.Lease(t.Context(), "ours")
		return err == nil && l.State != broker.Active
	})
	eventually(t, "the lease is tried", func() bool { return u.tries.Load() > 0 })
	before := u.tries.Load()
	time.Sleep(300 * time.Millisecond) // the reaper pauses for a second
	if n := u.tries.Load() - before; n > 20 {
		t.Errorf("tried %d times in a moment", n)
	}
	if l, err := w.store.Lease(t.Context(), "later"); err != nil || l.State != broker.Active || l.Attempts != 0 {
		t.Errorf("it was written over: %+v, %v", l, err)
	}
}
