package token

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// countingStore counts how often the document is read, and fails if it is told to.
type countingStore struct {
	KeyStore
	reads atomic.Int32
	down  atomic.Bool
}

func (s *countingStore) LoadKeys(ctx context.Context) (secret.String, int, error) {
	s.reads.Add(1)
	if s.down.Load() {
		return secret.String{}, 0, errors.New("sealed")
	}
	return s.KeyStore.LoadKeys(ctx)
}

// stuckStore answers when it is let go.
type stuckStore struct {
	KeyStore
	asked, goOn chan struct{}
}

func (s *stuckStore) LoadKeys(ctx context.Context) (secret.String, int, error) {
	s.asked <- struct{}{}
	<-s.goOn
	return s.KeyStore.LoadKeys(ctx)
}

// Each who waits for a key holds a place of the server: there are only so many.
func TestOnlySoManyWaitForAKeyOfOurs(t *testing.T) {
	w := newWorld(t, nil)
	store := &stuckStore{KeyStore: w.store, asked: make(chan struct{}, 1), goOn: make(chan struct{})}
	w.ring.store = store
	unknown := joseHeader{kid: "unknown", alg: "ES256"}
	done := make(chan struct{})
	look := func() {
		_, _, _ = w.ring.look(t.Context(), unknown)
		done <- struct{}{}
	}
	go look()
	<-store.asked
	for range maxWaiting - 1 {
		go look()
	}
	for w.ring.lookers.Load() < maxWaiting {
		runtime.Gosched()
	}
	if _, _, err := w.ring.look(t.Context(), unknown); !errors.Is(err, errKeys) || !strings.Contains(err.Error(), "too many wait") {
		t.Errorf("one more: %v", err)
	}
	close(store.goOn)
	for range maxWaiting {
		<-done
	}
}

func TestAKeyThatAnotherReplicaHasBegunIsKnownAtOnce(t *testing.T) {
	w := newWorld(t, nil)
	store := &countingStore{KeyStore: w.store}
	w.ring.store = store
	other := newWorld(t, nil)
	other.clock, other.store = w.clock, w.store
	ring, err := OpenRing(t.Context(), w.ring.cfg, w.store)
	if err != nil {
		t.Fatal(err)
	}
	other.svc.ring = ring
	minted := func() string {
		t.Helper()
		if _, err := ring.Rotate(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		raw, err := other.svc.Sign(t.Context(), ourClaims(w.clock.Now()))
		if err != nil {
			t.Fatal(err)
		}
		return raw.Reveal()
	}

	if _, err := w.verify(minted()); err != nil {
		t.Errorf("a token of the new key: %v", err)
	}
	// Anybody can name keys that there are not.
	raw := minted()
	for n := range 100 {
		forged := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"alg":"ES256","typ":"at+jwt","kid":"forged-%d"}`, n)) + raw[strings.IndexByte(raw, '.'):]
		if _, err := w.verify(forged); broker.CodeOf(err) != broker.BadToken {
			t.Fatalf("a key that there is not: %v", err)
		}
	}
	if n := store.reads.Load(); n != 1 {
		t.Errorf("the document was read %d times", n)
	}
	w.clock.Move(lookEvery)
	if _, err := w.verify(raw); err != nil {
		t.Errorf("a token of the newest key: %v", err)
	}

	// Where the keys cannot be read it is not known whether a token is good.
	w.clock.Move(lookEvery)
	store.down.Store(true)
	raw = minted()
	for range 2 {
		if _, err := w.verify(raw); broker.CodeOf(err) != broker.Unavailable {
			t.Errorf("while the keys cannot be read: %v", err)
		}
	}
	w.clock.Move(lookEvery)
	store.down.Store(false)
	if _, err := w.verify(raw); err != nil {
		t.Errorf("when they can be read again: %v", err)
	}
	// A key that was withdrawn is no reason to look.
	all := w.ring.Keys()
	if _, err := w.ring.Revoke(t.Context(), all[len(all)-1].ID); err != nil {
		t.Fatal(err)
	}
	w.clock.Move(lookEvery)
	reads := store.reads.Load()
	if _, err := w.verify(raw); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("a token of a withdrawn key: %v", err)
	}
	if n := store.reads.Load() - reads; n != 0 {
		t.Errorf("the document was read %d times for it", n)
	}
}
