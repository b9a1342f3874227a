package broker_test

import (
	"context"
	"testing"

	"github.com/stint-dev/stint/broker"
)

// A feed that begins late has been trimmed of what ran out, or robbed: whoever knows
// an entry that has not run out puts it back.
func TestAFeedWithoutItsBeginning(t *testing.T) {
	for name, how := range map[string]func(w *world){
		"the newest entry alone is there": func(w *world) {
			w.store.entries = w.store.entries[len(w.store.entries)-1:]
		},
		"a stranger's entry stands for all": func(w *world) {
			h := w.store.entries[len(w.store.entries)-1].Head()
			e := broker.Head{ID: broker.ChainID{1, 2, 3}}.Follow(broker.Record{At: w.clock.Now(), Expires: w.clock.Now()}, broker.Position{Epoch: h.Pos.Epoch, Seq: h.Pos.Seq + 1})
			w.store.entries = []broker.Entry{e}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dead, _ := w.must(nil)
			for _, sub := range []string{"alice", "bob"} {
				if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#" + sub}}); err != nil {
					t.Fatal(err)
				}
			}
			active := func(b *broker.Broker) bool {
				i, err := b.Introspect(context.Background(), w.reg.Clients["files-mcp"], dead.Token, false, "")
				return err != nil || i.Active
			}
			w.store.mu.Lock()
			known := w.store.head()
			how(w)
			w.store.mu.Unlock()
			restarted := w.broker("r2", w.record, known)
			if active(restarted) {
				t.Error("revoked, and active where the journal knows better")
			}
			w.run(w.b)
			w.run(restarted)
			eventually(t, "both follow one chain", func() bool {
				one, other := w.b.Status(context.Background()), restarted.Status(context.Background())
				return one.Current && other.Current && one.Head == other.Head
			})
			if active(w.b) {
				t.Error("revoked, and active at a replica that ran")
			}
			if fresh := w.broker("r3", &record{}, broker.Head{}); active(fresh) {
				t.Error("revoked, and active at a replica that comes after")
			}
		})
	}
}

// What ran out and was trimmed away is not missed.
func TestATrimmedFeedIsNoLoss(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"a", "b"} {
		if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Token: id}}); err != nil {
			t.Fatal(err)
		}
	}
	w.clock.move(1000 * 24 * 60 * 60 * 1e9)
	w.store.mu.Lock()
	known := w.store.head()
	w.store.entries = w.store.entries[len(w.store.entries)-1:]
	w.store.mu.Unlock()
	w.broker("r2", w.record, known)
	if n := len(w.store.all()); n != 1 {
		t.Errorf("%d entries", n)
	}
}
