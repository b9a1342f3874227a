package store_test

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/store/storetest"
)

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Unix(1_800_000_000, 123_456_789)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) Forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func openEmbedded(t testing.TB, path string, c *clock) *store.Embedded {
	t.Helper()
	s, err := store.OpenEmbedded(path, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func embeddedBed(t testing.TB) *storetest.Bed {
	c, path := newClock(), filepath.Join(t.TempDir(), "folder", "stint.db")
	s := openEmbedded(t, path, c)
	return &storetest.Bed{Store: s, Now: c.Now, Forward: c.Forward, Reopen: func() storetest.Store {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openEmbedded(t, path, c)
		return s
	}}
}

func TestEmbedded(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *storetest.Bed { return embeddedBed(t) })
}
