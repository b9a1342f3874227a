package testbed

import (
	"sync"
	"time"
)

// Clock is a clock that tests move. The zero value goes on as the machine's does;
// one of [NewClock] stands still. It is safe for concurrent use.
type Clock struct {
	mu    sync.Mutex
	at    time.Time // where it stands; zero: it goes
	moved time.Duration
}

// NewClock returns a clock that stands at a time until it is moved.
func NewClock(at time.Time) *Clock { return &Clock{at: at} }

// Now is the time that the clock shows.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.IsZero() {
		return time.Now().Add(c.moved)
	}
	return c.at.Add(c.moved)
}

// Move moves the clock, backwards if d is negative.
func (c *Clock) Move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moved += d
}
