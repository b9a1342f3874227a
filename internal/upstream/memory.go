package upstream

import (
	"context"
	"sync"
	"time"
)

// How long an upstream's word for what a subject may do is repeated.
const (
	yesFor = time.Minute
	noFor  = 5 * time.Second
	// maxKnown is how many answers are remembered at a time.
	maxKnown = 10_000
)

// Memory remembers what an upstream said of subjects: yes for a minute, no for five
// seconds. An answer that is older is never used to allow anything. It is safe for
// concurrent use; of several who ask for the same at once, one does.
type Memory[K comparable, V any] struct {
	now func() time.Time

	mu    sync.Mutex
	known map[K]*known[V]
}

type known[V any] struct {
	asked chan struct{} // closed when the answer is there
	value V
	err   error
	until time.Time // zero while somebody asks
}

// NewMemory returns an empty memory.
func NewMemory[K comparable, V any](now func() time.Time) *Memory[K, V] {
	return &Memory[K, V]{now: now, known: make(map[K]*known[V])}
}

// Get returns the answer for a key: a remembered one, or else that of ask, which says
// besides whether it allows anything. An error is nobody's but of who asked: whoever waited
// for him asks himself.
func (m *Memory[K, V]) Get(ctx context.Context, key K, ask func(ctx context.Context) (v V, allows bool, err error)) (V, error) {
	for {
		k, mine := m.claim(key)
		if mine {
			return m.ask(ctx, key, k, ask)
		}
		select {
		case <-k.asked:
			if k.err == nil {
				return k.value, nil
			}
		case <-ctx.Done():
			var none V
			return none, ctx.Err()
		}
	}
}

// claim returns the answer for a key, or the place for one, which is then the caller's to
// fill.
func (m *Memory[K, V]) claim(key K) (k *known[V], mine bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k = m.known[key]
	if k != nil && (k.until.IsZero() || m.now().Before(k.until)) {
		return k, false
	}
	if len(m.known) >= maxKnown {
		clear(m.known)
	}
	k = &known[V]{asked: make(chan struct{})}
	m.known[key] = k
	return k, true
}

func (m *Memory[K, V]) ask(ctx context.Context, key K, k *known[V], ask func(ctx context.Context) (V, bool, error)) (v V, err error) {
	allows, answered := false, false
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		k.value, k.err, k.until = v, err, m.now().Add(noFor)
		switch {
		case err != nil || !answered: // or it panicked
			if k.err == nil {
				k.err = context.Canceled
			}
			if m.known[key] == k {
				delete(m.known, key)
			}
		case allows:
			k.until = m.now().Add(yesFor)
		}
		close(k.asked)
	}()
	v, allows, err = ask(ctx)
	answered = true
	return v, err
}

// Forget makes the next who asks for a key ask the upstream.
func (m *Memory[K, V]) Forget(key K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.known, key)
}
