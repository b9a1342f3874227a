// Package storetest is the contract of a store as a suite. Every implementation
// passes it; it is imported by tests alone.
package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

// Store is what a store is to whoever opens one.
type Store interface {
	broker.Feed
	broker.Ledger
	broker.Once
	broker.Sessions
	broker.Answers
	Ready(ctx context.Context) error
	Close() error
}

// Bed is an empty store under test.
type Bed struct {
	Store Store
	// Now is the store's clock.
	Now func() time.Time
	// Forward lets time pass: by moving the clock, or by waiting where the clock is
	// somebody else's. It is asked for less than a second.
	Forward func(time.Duration)
	// Reopen ends the store as roughly as it can be ended, and returns it opened
	// again.
	Reopen func() Store
}

type suite []struct {
	name string
	test func(t *testing.T, b *Bed)
}

// Run runs the suite. open is called for each test, and cleans up by itself.
func Run(t *testing.T, open func(t *testing.T) *Bed) {
	for _, part := range []struct {
		name string
		of   suite
	}{
		{"feed", feedSuite}, {"heartbeats", beatSuite}, {"leases", ledgerSuite}, {"one-time ids", onceSuite}, {"sessions", sessionSuite},
		{"answers", answerSuite},
	} {
		t.Run(part.name, func(t *testing.T) {
			for _, c := range part.of {
				t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
			}
		})
	}
}

// must fails the test for an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func get[T any](t testing.TB) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// soon is a context for what must not take long.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// together runs n at the same time and returns when all have ended.
func together(n int, do func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() { <-start; do(i) })
	}
	close(start)
	wg.Wait()
}

// spread runs do for 0 to n-1, 32 at a time: stores that sync share their syncs.
func spread(n int, do func(i int)) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(n, 32) {
		wg.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

func id(format string, args ...any) string { return fmt.Sprintf(format, args...) }
