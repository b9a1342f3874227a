package client

import (
	"context"
	"sync"
)

// flight does something once for all who want it at the same time. Each of them
// waits for it as long as its own context allows.
type flight struct {
	mu   sync.Mutex
	call *call
}

type call struct {
	done chan struct{}
	err  error
}

// do starts f, unless it runs already, and waits for it. f is not ended by the
// context of the one who happened to be first: it needs a time limit of its own.
func (f *flight) do(ctx context.Context, what func(context.Context) error) error {
	f.mu.Lock()
	c := f.call
	if c == nil {
		c = &call{done: make(chan struct{})}
		f.call = c
		go func() {
			c.err = what(context.WithoutCancel(ctx))
			f.mu.Lock()
			f.call = nil
			f.mu.Unlock()
			close(c.done)
		}()
	}
	f.mu.Unlock()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
