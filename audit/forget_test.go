package audit_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/stint-dev/stint/audit"
)

// reentrant answers only when another event of the same subject has been recorded.
type reentrant struct {
	keys
	meanwhile, after func()
}

func (r *reentrant) SubjectKey(ctx context.Context, index string) ([]byte, error) {
	if f := r.meanwhile; f != nil {
		r.meanwhile = nil
		f()
	}
	key, err := r.keys.SubjectKey(ctx, index)
	if f := r.after; f != nil {
		r.after = nil
		f()
	}
	return key, err
}

func TestAForgottenSubjectCannotBeRead(t *testing.T) {
	k := &keys{}
	l, _, dir := newLog(t, k)
	e := record(t, l, audit.Personal{Subject: alice})
	index := l.Index(alice)
	if err := l.Forget(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Reveal(e, k.of(index)); err == nil {
		t.Error("what was forgotten is read")
	}
	// The event itself stays, and says the same of her as before.
	if got := event(t, frames(t, dir)[0]); got.Party.Subject != index || got.ID != e.ID {
		t.Errorf("%+v", got)
	}
	// A key made anew, as after she came back, opens nothing of before.
	fresh, err := k.SubjectKey(t.Context(), index)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Reveal(e, fresh); err == nil {
		t.Error("a new key opens old data")
	}
}

// What is remembered of a subject goes with its key, whatever is under way.
func TestForgettingASubjectLeavesNoKeyInMemory(t *testing.T) {
	t.Run("remembered", func(t *testing.T) {
		k := &keys{}
		l, _, _ := newLog(t, k)
		before := record(t, l, audit.Personal{Subject: alice})
		other := record(t, l, audit.Personal{Subject: bob})
		old := k.of(l.Index(alice))
		if err := l.Forget(t.Context(), alice); err != nil {
			t.Fatal(err)
		}
		if _, err := audit.Reveal(record(t, l, audit.Personal{Subject: alice}), old); err == nil {
			t.Error("what comes later opens with the key that was destroyed")
		}
		if _, err := audit.Reveal(before, k.of(l.Index(alice))); err == nil {
			t.Error("what came before opens with the new key")
		}
		if _, err := audit.Reveal(other, k.of(l.Index(bob))); err != nil {
			t.Error("somebody else was forgotten:", err)
		}
	})
	t.Run("just being fetched", func(t *testing.T) {
		k := &reentrant{}
		l, _, _ := newLog(t, k)
		fresh, err := k.SubjectKey(t.Context(), l.Index(alice))
		old := bytes.Clone(fresh)
		k.after = func() { // the old key has been read, and not been returned yet
			err = errors.Join(err, l.Forget(t.Context(), alice))
		}
		e := record(t, l, audit.Personal{Subject: alice})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.Reveal(e, old); err == nil {
			t.Error("it is sealed with the key that was destroyed")
		}
		if _, err := audit.Reveal(record(t, l, audit.Personal{Subject: alice}), old); err == nil {
			t.Error("the key that was destroyed is remembered")
		}
	})
	t.Run("the key cannot be destroyed", func(t *testing.T) {
		k := &keys{}
		l, _, _ := newLog(t, k)
		record(t, l, audit.Personal{Subject: alice})
		k.err = errors.New("the disk is full")
		if err := l.Forget(t.Context(), alice); !errors.Is(err, k.err) {
			t.Error("forgotten:", err)
		}
	})
}
