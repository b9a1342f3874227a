package upstream_test

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
)

// shelf keeps fields in memory, by compare-and-set.
type shelf struct {
	mu       sync.Mutex
	fields   map[string]map[string]secret.String
	versions map[string]int
	down     error
}

func (s *shelf) Read(_ context.Context, path string) (map[string]secret.String, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil {
		return nil, 0, s.down
	}
	f, ok := s.fields[path]
	if !ok {
		return nil, 0, broker.ErrNotFound
	}
	return maps.Clone(f), s.versions[path], nil
}

func (s *shelf) Write(_ context.Context, path string, fields map[string]secret.String, version int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.versions[path] != version {
		return 0, broker.ErrConflict
	}
	s.fields[path], s.versions[path] = maps.Clone(fields), version+1
	return version + 1, nil
}

type clear struct{}

func (clear) Seal(plain []byte, _ string) ([]byte, error)  { return plain, nil }
func (clear) Open(sealed []byte, _ string) ([]byte, error) { return sealed, nil }

// Of many who begin with the same at once one does; whoever comes later changes nothing of
// what has become of it, unless he begins with something else.
func TestBegin(t *testing.T) {
	store := &shelf{fields: map[string]map[string]secret.String{}, versions: map[string]int{}}
	parents := upstream.NewParents(upstream.ParentConfig{
		Store: store, Sealer: func(context.Context) (broker.Sealer, error) { return clear{}, nil },
		Index: func(context.Context, string) (string, error) { return "", errors.New("it has no subject") }, Now: time.Now,
	})
	key := upstream.ParentKey{Provider: "p"}
	begin := func(seed string) error {
		return parents.Begin(t.Context(), key, &upstream.Parent{Refresh: secret.New(seed), Facts: map[string]string{"seed": seed}},
			func(kept *upstream.Parent) bool { return kept.Facts["seed"] != seed })
	}
	var wait sync.WaitGroup
	for range 16 {
		wait.Go(func() {
			if err := begin("one"); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if v := store.versions["parents/p/own"]; v != 1 {
		t.Fatalf("it was written %d times", v)
	}
	renew := func(_ context.Context, old *upstream.Parent) (*upstream.Parent, error) {
		next := *old
		next.Refresh, next.Access, next.AccessExpires = secret.New("next"), secret.New("access"), time.Now().Add(time.Hour)
		return &next, nil
	}
	if _, err := parents.Fresh(t.Context(), key, time.Now().Add(time.Minute), renew); err != nil {
		t.Fatal(err)
	}
	if err := begin("one"); err != nil {
		t.Fatal(err)
	}
	if p, err := parents.Get(t.Context(), key); err != nil || p.Refresh.Reveal() != "next" {
		t.Errorf("the same beginning: %v, %v", p, err)
	}
	if err := begin("two"); err != nil {
		t.Fatal(err)
	}
	if p, err := parents.Get(t.Context(), key); err != nil || p.Refresh.Reveal() != "two" || !p.Access.Empty() {
		t.Errorf("another beginning: %v, %v", p, err)
	}
	if err := parents.Begin(t.Context(), key, &upstream.Parent{Refresh: secret.New("three")}, nil); err != nil {
		t.Fatal(err)
	}
	if p, err := parents.Get(t.Context(), key); err != nil || p.Refresh.Reveal() != "two" {
		t.Errorf("nothing is stale: %v, %v", p, err)
	}
	if _, err := parents.Forget(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if err := begin("two"); err != nil {
		t.Fatal(err)
	}
	if p, err := parents.Get(t.Context(), key); err != nil || p.Refresh.Reveal() != "two" {
		t.Errorf("after it was forgotten: %v, %v", p, err)
	}
	store.down = errors.New("down")
	if err := begin("two"); !errors.Is(err, store.down) {
		t.Errorf("%v", err)
	}
}
