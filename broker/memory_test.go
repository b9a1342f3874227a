package broker_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/store/storetest"
)

// memory is a store that keeps everything in maps. It passes the suite of the real
// ones (see TestMemoryIsAStore): what they refuse, it refuses. It can be made to
// fail, to lose what it has, and to call a hook at every step.
type memory struct {
	mu       sync.Mutex
	now      func() time.Time
	entries  []broker.Entry
	added    chan struct{} // closed when entries are added
	leases   map[string]broker.Lease
	once     map[string]time.Time
	sessions map[[2]string]broker.Session
	answers  map[string]kept
	replicas map[string]broker.Replica
	ends     map[string]time.Time
	gone     map[string]time.Time // when a closed lease cannot be read any more
	down     error
	offset   time.Duration // of the store's clock
	hook     func(step string)
}

func newMemory(now func() time.Time) *memory {
	return &memory{
		now: now, added: make(chan struct{}), leases: map[string]broker.Lease{}, once: map[string]time.Time{},
		sessions: map[[2]string]broker.Session{}, replicas: map[string]broker.Replica{}, ends: map[string]time.Time{},
		gone: map[string]time.Time{},
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
	kept, err := piece(after, entries)
	if err != nil {
		return err
	}
	if m.head() != after {
		return fmt.Errorf("append: %w", broker.ErrConflict)
	}
	m.entries = append(m.entries, kept...)
	close(m.added)
	m.added = make(chan struct{})
	return nil
}

// piece returns entries as they come back from bytes, so that nothing is kept that
// the format does not, if they can follow a head.
func piece(after broker.Head, entries []broker.Entry) (kept []broker.Entry, err error) {
	if len(entries) == 0 {
		return nil, errors.New("no entries to append")
	}
	for _, e := range entries {
		again, err := broker.DecodeEntry(e.Encode())
		if err != nil {
			return nil, err
		}
		if e.Pos.Seq <= after.Pos.Seq || after != (broker.Head{}) && e.Prev != after.ID || again.ID != e.ID {
			return nil, fmt.Errorf("entry %s does not follow %s", e.Pos, after.Pos)
		}
		kept, after = append(kept, again), again.Head()
	}
	return kept, nil
}

func (m *memory) Read(ctx context.Context, after uint64, limit int, wait time.Duration) ([]broker.Entry, error) {
	if limit < 1 {
		return nil, errors.New("read nothing")
	}
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
	if r.ID == "" || life <= 0 {
		return broker.Beat{}, errors.New("a heartbeat has a name and a life")
	}
	now := m.now().Add(m.offset)
	m.replicas[r.ID], m.ends[r.ID] = r, now.Add(life)
	maps.DeleteFunc(m.replicas, func(id string, _ broker.Replica) bool { return m.ends[id].Before(now) })
	byID := func(a, b broker.Replica) int { return strings.Compare(a.ID, b.ID) }
	return broker.Beat{Now: now, Head: m.head(), Replicas: slices.SortedFunc(maps.Values(m.replicas), byID)}, nil
}

func (m *memory) Leave(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.replicas, id)
	return m.down
}

// lease returns a lease, unless it was closed long ago.
func (m *memory) lease(id string) (broker.Lease, bool) {
	l, ok := m.leases[id]
	if at, closed := m.gone[id]; closed && !at.After(m.now()) {
		return broker.Lease{}, false
	}
	return l, ok
}

// put keeps a lease, and nothing that its writer could still change.
func (m *memory) put(l *broker.Lease) {
	kept := *l
	kept.Keys, kept.Grant, kept.Handle = slices.Clone(l.Keys), slices.Clone(l.Grant), slices.Clone(l.Handle)
	m.leases[l.ID] = kept
	delete(m.gone, l.ID)
	if l.State != broker.Closed {
		return
	}
	last := l.Expires
	if now := m.now(); last.Before(now) {
		last = now
	}
	m.gone[l.ID] = last.Add(broker.ClosedLeaseKept)
}

func (m *memory) Create(_ context.Context, l *broker.Lease) error {
	m.at("create")
	defer m.at("created")
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return m.down
	}
	if l.ID == "" || l.State == "" {
		return errors.New("a lease has an id and a state")
	}
	if _, there := m.lease(l.ID); there {
		return broker.ErrConflict
	}
	m.put(l)
	return nil
}

func (m *memory) Lease(_ context.Context, id string) (*broker.Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, ok := m.lease(id)
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
	old, ok := m.lease(l.ID)
	switch {
	case m.down != nil:
		return m.down
	case !ok || old.Version != l.Version:
		return broker.ErrConflict
	case !slices.Equal(distinct(old.Keys), distinct(l.Keys)):
		return errors.New("the keys of a lease do not change")
	case old.State == broker.Closed && l.State != broker.Closed:
		return errors.New("a closed lease stays closed")
	}
	next := *l
	next.Version++
	m.put(&next)
	l.Version++
	return nil
}

func distinct(keys []string) []string { return slices.Compact(slices.Sorted(slices.Values(keys))) }

func (m *memory) Match(_ context.Context, k broker.Key) (ids []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, l := range m.leases {
		if l.State != broker.Closed && slices.Contains(l.Keys, k.String()) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, m.down
}

func (m *memory) Due(_ context.Context, now time.Time, limit int) (ids []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, l := range m.leases {
		if l.State != broker.Closed && !l.Next.After(now) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b string) int { return m.leases[a].Next.Compare(m.leases[b].Next) })
	return ids[:min(len(ids), max(limit, 0))], m.down
}

func (m *memory) All(_ context.Context, each func(*broker.Lease) error) error {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.leases))
	err := m.down
	m.mu.Unlock()
	slices.SortFunc(all, func(a, b broker.Lease) int { return strings.Compare(a.ID, b.ID) })
	for _, l := range all {
		if err == nil && l.State != broker.Closed {
			err = each(&l)
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

// onceMargin is how much longer than asked an id is remembered.
const onceMargin = time.Minute

func (m *memory) Use(_ context.Context, purpose, id string, expires time.Time) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return false, m.down
	}
	key, now := purpose+"\x00"+id, m.now()
	if at, used := m.once[key]; used && at.After(now) {
		return false, nil
	}
	if expires.Before(now) {
		expires = now
	}
	m.once[key] = expires.Add(onceMargin)
	return true, nil
}

func (m *memory) Note(_ context.Context, s broker.Session) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	key, now := [2]string{s.ID, s.Client}, m.now()
	if old, there := m.sessions[key]; m.down == nil && s.Expires.After(now) && !(there && old.Expires.After(now)) {
		m.sessions[key] = s
	}
	return m.down
}

func (m *memory) Sessions(_ context.Context, subject string, limit int) (out []broker.Session, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sessions {
		if (subject == "" || s.Subject == subject) && s.Expires.After(m.now()) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b broker.Session) int { return b.First.Compare(a.First) })
	return out[:min(len(out), max(limit, 0))], m.down
}

func (m *memory) Claim(_ context.Context, name string, data []byte, expires time.Time) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if was, ok := m.answers[name]; ok && was.ends.After(m.now()) {
		return was.data, m.down
	}
	if m.answers == nil {
		m.answers = make(map[string]kept)
	}
	m.answers[name] = kept{data, expires}
	return nil, m.down
}

func (m *memory) Answer(_ context.Context, name string, data []byte, expires time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.answers, name)
	if data != nil {
		m.answers[name] = kept{data, expires}
	}
	return m.down
}

// kept is an answer.
type kept struct {
	data []byte
	ends time.Time
}

// Ready and Close make it a whole store.
func (m *memory) Ready(context.Context) error { return nil }
func (m *memory) Close() error                { return nil }

// What a fake allows and the stores refuse makes tests of the broker pass wrongly.
func TestMemoryIsAStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) *storetest.Bed {
		c := &clock{now: time.Unix(1_800_000_000, 123_456_789)}
		m := newMemory(c.Now)
		return &storetest.Bed{Store: m, Now: c.Now, Forward: c.move, Reopen: func() storetest.Store { return m }}
	})
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
