package token

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/secret"
)

// slowStore keeps one reader of the document waiting with what it has read.
type slowStore struct {
	KeyStore
	slow       atomic.Bool
	read, goOn chan struct{}
}

func (s *slowStore) LoadKeys(ctx context.Context) (secret.String, int, error) {
	doc, version, err := s.KeyStore.LoadKeys(ctx)
	if s.slow.CompareAndSwap(true, false) {
		close(s.read)
		<-s.goOn
	}
	return doc, version, err
}

func TestAReloadBringsNoRevokedKeyBack(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	st := &slowStore{KeyStore: w.store, read: make(chan struct{}), goOn: make(chan struct{})}
	w.ring.store = st
	raw, err := w.svc.Sign(ctx, ourClaims(w.clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	old := w.ring.Keys()[0].ID
	other, err := OpenRing(ctx, w.ring.cfg, w.store) // so that the reload has something to do
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Rotate(ctx, false); err != nil {
		t.Fatal(err)
	}
	st.slow.Store(true)
	reloaded, revoked := make(chan error, 1), make(chan error, 1)
	go func() { reloaded <- w.ring.Reload(ctx) }()
	<-st.read
	go func() { _, err := w.ring.Revoke(ctx, old); revoked <- err }()
	select { // it waits for the reload, or is over before it
	case err := <-revoked:
		revoked <- err
	case <-time.After(50 * time.Millisecond):
	}
	close(st.goOn)
	for _, done := range []chan error{reloaded, revoked} {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.svc.Verify(ctx, raw); err == nil {
		t.Error("a token of the revoked key is accepted")
	}
}
