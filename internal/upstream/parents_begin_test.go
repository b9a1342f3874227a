package upstream_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
)

// shelf is a store of secrets in memory.
type shelf struct {
	mu      sync.Mutex
	fields  map[string]secret.String
	version int
}

func (s *shelf) Read(context.Context, string) (map[string]secret.String, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.version == 0 {
		return nil, 0, broker.ErrNotFound
	}
	return s.fields, s.version, nil
}

func (s *shelf) Write(_ context.Context, _ string, fields map[string]secret.String, version int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version != s.version {
		return 0, broker.ErrConflict
	}
	s.fields = fields
	s.version++
	return s.version, nil
}

type plain struct{}

func (plain) Seal(p []byte, _ string) ([]byte, error) { return p, nil }
func (plain) Open(s []byte, _ string) ([]byte, error) { return s, nil }

// What several begin at once, nobody begins anew.
func TestBeginKeepsWhatThereIs(t *testing.T) {
	p := upstream.NewParents(upstream.ParentConfig{
		Store: &shelf{}, Now: time.Now, Sealer: func(context.Context) (broker.Sealer, error) { return plain{}, nil },
		Index: func(context.Context, string) (string, error) { return "x", nil },
	})
	key := upstream.ParentKey{Provider: "cloud"}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := p.Begin(t.Context(), key, &upstream.Parent{Facts: map[string]string{"n": "0"}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := p.Put(t.Context(), key, &upstream.Parent{Facts: map[string]string{"n": "1"}}); err != nil {
		t.Fatal(err)
	}
	if err := p.Begin(t.Context(), key, &upstream.Parent{Facts: map[string]string{"n": "2"}}); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Get(t.Context(), key); err != nil || got.Facts["n"] != "1" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := p.Forget(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if err := p.Begin(t.Context(), key, &upstream.Parent{Facts: map[string]string{"n": "3"}}); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Get(t.Context(), key); err != nil || got.Facts["n"] != "3" {
		t.Errorf("after it was forgotten: %+v, %v", got, err)
	}
}
