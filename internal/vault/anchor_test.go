package vault_test

import (
	"sync"
	"testing"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/vault"
)

func head(epoch, seq uint64, id byte) broker.Head {
	return broker.Head{Pos: broker.Position{Epoch: epoch, Seq: seq}, ID: broker.ChainID{id}}
}

func testAnchor(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	a := vault.NewAnchor(s)
	want := func(h broker.Head) {
		t.Helper()
		got, err := a.LoadHead(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got != h {
			t.Fatalf("the anchor is at %v, not %v", got, h)
		}
	}
	want(broker.Head{})
	for _, step := range []struct {
		what       string
		save, then broker.Head
	}{
		{"no head is not saved", broker.Head{}, broker.Head{}},
		{"the first is", head(2, 5, 1), head(2, 5, 1)},
		{"the same again changes nothing", head(2, 5, 1), head(2, 5, 1)},
		{"one further on is taken", head(2, 9, 2), head(2, 9, 2)},
		{"one before is not", head(2, 8, 3), head(2, 9, 2)},
		{"one of an older epoch is not, however far", head(1, 100, 4), head(2, 9, 2)},
		{"no head does not remove it", broker.Head{}, head(2, 9, 2)},
		{"one of a later epoch is, however near", head(3, 1, 5), head(3, 1, 5)},
	} {
		if err := a.SaveHead(t.Context(), step.save); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		t.Log(step.what)
		want(step.then)
	}
	wantError(t, a.SaveHead(t.Context(), head(3, 1, 6)), broker.ErrConflict) // a fork
	want(head(3, 1, 5))
}

func testAnchorRace(t *testing.T, p place) {
	stores := beside(t, p, 6)
	var all sync.WaitGroup
	for i, s := range stores {
		all.Go(func() {
			a := vault.NewAnchor(s)
			for n := range 8 {
				seq := uint64(1 + n*len(stores) + i)
				if err := a.SaveHead(t.Context(), head(1, seq, byte(seq))); err != nil {
					t.Error(err)
				}
				if got, err := a.LoadHead(t.Context()); err != nil || got.Pos.Seq < seq {
					t.Errorf("after %d the anchor is at %v, %v", seq, got, err)
				}
			}
		})
	}
	all.Wait()
	if got, err := vault.NewAnchor(stores[0]).LoadHead(t.Context()); err != nil || got != head(1, 48, 48) {
		t.Fatalf("the anchor is at %v, %v", got, err)
	}
}

func TestADamagedAnchorIsAnError(t *testing.T) {
	for name, f := range map[string]vault.Fields{
		"no position":       fields("id", "AQAAAAAAAAAAAAAAAAAAAA"),
		"a position of one": fields("position", "1", "id", "AQAAAAAAAAAAAAAAAAAAAA"),
		"a short id":        fields("position", "1.1", "id", "AQAA"),
		"no id":             fields("position", "1.1"),
	} {
		s, _, _ := open(t, sealed(t))
		mustWrite(t, s, "feed/anchor", f, 0)
		a := vault.NewAnchor(s)
		if _, err := a.LoadHead(t.Context()); err == nil {
			t.Errorf("%s: read", name)
		}
		if err := a.SaveHead(t.Context(), head(9, 9, 9)); err == nil {
			t.Errorf("%s: replaced", name)
		}
	}
}
