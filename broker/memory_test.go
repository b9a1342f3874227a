package broker_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
)

// memory is a store that keeps everything in maps, as the contracts say. It can
// be made to fail, to lose what it has, and to call a hook at every step.
type memory struct {
	mu       sync.Mutex
	now      func() time.Time
	entries  []broker.Entry
	added    chan struct{} // closed when entries are added
	leases   map[string]broker.Lease
	once     map[string]time.Time
	sessions map[[2]string]broker.Session
	replicas map[string]broker.Replica
	ends     map[string]time.Time
	down     error
	offset   time.Duration // of the store's clock
	hook     func(step string)
}

func newMemory(now func() time.Time) *memory {
	return &memory{
		now: now, added: make(chan struct{}), leases: map[string]broker.Lease{}, once: map[string]time.Time{},
		sessions: map[[2]string]broker.Session{}, replicas: map[string]broker.Replica{}, ends: map[string]time.Time{},
	}
}

func (m *memory) at(step string) {
	if m.hook != nil {
		m.hook(step)
	}
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = err
}

// lose drops all entries behind the first keep.
func (m *memory) lose(keep int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = slices.Clone(m.entries[:keep])
}

func (m *memory) all() []broker.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.entries)
}

func (m *memory) head() broker.Head {
	if len(m.entries) == 0 {
		return broker.Head{}
	}
	return m.entries[len(m.entries)-1].Head()
}

func (m *memory) Append(_ context.Context, after broker.Head, entries ...broker.Entry) error {
	m.at("append")
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return m.down
	}
	if m.head() != after {
		return fmt.Errorf("append: %w", broker.ErrConflict)
	}
	for _, e := range entries { // as bytes, so that nothing is kept that the format does not
		again, err := broker.DecodeEntry(e.Encode())
		if err != nil {
			return err
		}
		m.entries = append(m.entries, again)
	}
	close(m.added)
	m.added = make(chan struct{})
	return nil
}

func (m *memory) Read(ctx context.Context, after uint64, limit int, wait time.Duration) ([]broker.Entry, error) {
	for {
		m.mu.Lock()
		if m.down != nil {
			m.mu.Unlock()
			return nil, m.down
		}
		i := slices.IndexFunc(m.entries, func(e broker.Entry) bool { return e.Pos.Seq > after })
		added := m.added
		if i >= 0 {
			out := slices.Clone(m.entries[i:min(len(m.entries), i+limit)])
			m.mu.Unlock()
			return out, nil
		}
		m.mu.Unlock()
		if wait <= 0 {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-added:
		case <-time.After(wait):
			return nil, nil
		}
	}
}

func (m *memory) Trim(_ context.Context, upto uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.entries) > 1 && m.entries[0].Pos.Seq <= upto {
		m.entries = m.entries[1:]
	}
	return m.down
}

func (m *memory) Beat(_ context.Context, r broker.Replica, life time.Duration) (broker.Beat, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return broker.Beat{}, m.down
	}
	now := m.now().Add(m.offset)
	m.replicas[r.ID], m.ends[r.ID] = r, now.Add(life)
	maps.DeleteFunc(m.replicas, func(id string, _ broker.Replica) bool { return m.ends[id].Before(now) })
	return broker.Beat{Now: now, Head: m.head(), Replicas: slices.Collect(maps.Values(m.replicas))}, nil
}

func (m *memory) Leave(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.replicas, id)
	return m.down
}

func (m *memory) Create(_ context.Context, l *broker.Lease) error {
	m.at("create")
	defer m.at("created")
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, there := m.leases[l.ID]; there {
		return broker.ErrConflict
	}
	if m.down == nil {
		l.Version = 1
		m.leases[l.ID] = *l
	}
	return m.down
}

func (m *memory) Lease(_ context.Context, id string) (*broker.Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, ok := m.leases[id]
	if !ok {
		return nil, cmp.Or(m.down, broker.ErrNotFound)
	}
	return &l, m.down
}

func (m *memory) Update(_ context.Context, l *broker.Lease) error {
	m.at("update " + string(l.State))
	defer m.at("updated " + string(l.State))
	m.mu.Lock()
	defer m.mu.Unlock()
	old, ok := m.leases[l.ID]
	switch {
	case m.down != nil:
		return m.down
	case !ok:
		return broker.ErrNotFound
	case old.Version != l.Version:
		return broker.ErrConflict
	}
	l.Version++
	m.leases[l.ID] = *l
	return nil
}

func (m *memory) Match(_ context.Context, k broker.Key) (ids []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, l := range m.leases {
		if l.State != broker.Closed && slices.Contains(l.Keys, k.String()) {
			ids = append(ids, id)
		}
	}
	return ids, m.down
}

func (m *memory) Due(_ context.Context, now time.Time, limit int) (ids []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, l := range m.leases {
		if l.State != broker.Closed && !l.Next.After(now) && len(ids) < limit {
			ids = append(ids, id)
		}
	}
	return ids, m.down
}

func (m *memory) All(_ context.Context, each func(*broker.Lease) error) error {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.leases))
	err := m.down
	m.mu.Unlock()
	for _, l := range all {
		if l.State != broker.Closed {
			err = errors.Join(err, each(&l))
		}
	}
	return err
}

func (m *memory) Open(context.Context) (n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.leases {
		if l.State != broker.Closed {
			n++
		}
	}
	return n, m.down
}

func (m *memory) Use(_ context.Context, purpose, id string, expires time.Time) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return false, m.down
	}
	key := purpose + "\x00" + id
	if at, used := m.once[key]; used && at.After(m.now()) {
		return false, nil
	}
	m.once[key] = expires
	return true, nil
}

func (m *memory) Note(_ context.Context, s broker.Session) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, there := m.sessions[[2]string{s.ID, s.Client}]; !there && m.down == nil {
		m.sessions[[2]string{s.ID, s.Client}] = s
	}
	return m.down
}

func (m *memory) Sessions(_ context.Context, subject string, _ int) (out []broker.Session, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sessions {
		if subject == "" || s.Subject == subject {
			out = append(out, s)
		}
	}
	return out, m.down
}

// anchor remembers a head.
type anchor struct {
	mu   sync.Mutex
	head broker.Head
}

func (a *anchor) LoadHead(context.Context) (broker.Head, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.head, nil
}

func (a *anchor) SaveHead(_ context.Context, h broker.Head) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.head = h
	return nil
}
