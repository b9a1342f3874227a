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
	asking chan struct{} // closed when the answer is there
	value  V
	err    error
	until  time.Time
}

// NewMemory returns an empty memory.
func NewMemory[K comparable, V any](now func() time.Time) *Memory[K, V] {
	return &Memory[K, V]{now: now, known: make(map[K]*known[V])}
}

// Get returns the answer for a key: a remembered one, or else that of ask, which says
// besides whether it allows anything. An error is not remembered.
func (m *Memory[K, V]) Get(ctx context.Context, key K, ask func(ctx context.Context) (v V, allows bool, err error)) (V, error) {
	m.mu.Lock()
	k := m.known[key]
	if k != nil && (k.until.IsZero() || m.now().Before(k.until)) {
		m.mu.Unlock()
		select {
		case <-k.asking:
			return k.value, k.err
		case <-ctx.Done():
			var none V
			return none, ctx.Err()
		}
	}
	if len(m.known) >= maxKnown {
		clear(m.known)
	}
	k = &known[V]{asking: make(chan struct{})}
	m.known[key] = k
	m.mu.Unlock()

	v, allows, err := ask(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	k.value, k.err = v, err
	switch {
	case err != nil:
		if m.known[key] == k {
			delete(m.known, key)
		}
	case allows:
		k.until = m.now().Add(yesFor)
	default:
		k.until = m.now().Add(noFor)
	}
	close(k.asking)
	return v, err
}

// Forget makes the next who asks for a key ask the upstream.
func (m *Memory[K, V]) Forget(key K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.known, key)
}
