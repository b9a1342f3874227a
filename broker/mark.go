package broker

import (
	"context"
	"errors"
	"sync"
	"time"
)

// toMark queues the marking of the leases that entries select.
func (b *Broker) toMark(entries []Entry) {
	jobs := make([]markJob, 0, len(entries))
	for _, e := range entries {
		if len(e.Where) > 0 {
			jobs = append(jobs, markJob{entry: e})
		}
	}
	b.marking.add(jobs...)
	b.wakeMarker()
}

func (b *Broker) wakeMarker() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// markJob is an entry whose leases are to be marked.
type markJob struct {
	entry  Entry
	failed int // times
}

// markQueue holds what is still to be marked.
type markQueue struct {
	mu   sync.Mutex
	jobs []markJob
}

func (q *markQueue) add(jobs ...markJob) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.jobs = append(q.jobs, jobs...)
}

func (q *markQueue) take() []markJob {
	q.mu.Lock()
	defer q.mu.Unlock()
	jobs := q.jobs
	q.jobs = nil
	return jobs
}

// anyEntry has every lease held against the index, for revocations that nobody lived
// to mark, and against the configuration, which may trust fewer since the start.
var anyEntry = Entry{Record: Record{Where: []Key{KeyOf(ByEverything)}}}

// again is an entry that is gone through a second time: a replica that did not
// know of it yet may have written an intent after the first.
type again struct {
	entry Entry
	at    time.Time
}

// markLoop marks leases and intents that were revoked, those of before this replica
// started first. Every replica does it for every entry; whoever comes second finds
// nothing to do.
func (b *Broker) markLoop(ctx context.Context) {
	var second []again
	b.marking.add(markJob{entry: anyEntry})
	for ctx.Err() == nil {
		for _, j := range b.marking.take() {
			if b.tryMark(ctx, j) {
				second = append(second, again{j.entry, b.now().Add(2 * b.cfg.MaxStaleness)})
			}
		}
		for len(second) > 0 && !second[0].at.After(b.now()) {
			b.tryMark(ctx, markJob{entry: second[0].entry})
			second = second[1:]
		}
		select {
		case <-ctx.Done():
		case <-b.wake:
		case <-time.After(b.cfg.MaxStaleness / 2):
		}
	}
}

const (
	firstMarkRetry = 100 * time.Millisecond // after a failure; doubles
	maxMarkRetry   = 10 * time.Second
	markFailures   = 10 // leases of one entry, before the others have to wait
)

// tryMark marks the leases of an entry. If that fails it comes again, until it
// succeeds.
func (b *Broker) tryMark(ctx context.Context, j markJob) bool {
	err := b.mark(ctx, j.entry)
	if err == nil {
		return true
	}
	b.complain(ctx, "mark leases that were revoked", err)
	wait := min(firstMarkRetry<<min(j.failed, 20), maxMarkRetry)
	j.failed++
	time.AfterFunc(wait, func() { b.marking.add(j); b.wakeMarker() })
	return false
}

// mark marks the leases that one entry selects. One that fails does not keep the
// others from being marked.
func (b *Broker) mark(ctx context.Context, e Entry) error {
	var failures []error
	trusted := b.reg.trustedKeys()
	one := func(l *Lease, err error) error {
		if err == nil {
			keys, pos, bad := l.selected()
			if bad != nil || b.index.Selects(keys, pos) || distrusted(keys, trusted) {
				err = b.closeLease(ctx, l.ID, "revoked")
			}
		}
		if err = ignore(err, ErrNotFound); err != nil {
			failures = append(failures, err)
		}
		if len(failures) == markFailures {
			return errors.Join(failures...)
		}
		return nil
	}
	if k := e.Where[0]; len(e.Where) > 1 || k.Kind != ByEverything {
		ids, err := b.ledger.Match(ctx, k)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := one(b.ledger.Lease(ctx, id)); err != nil {
				return err
			}
		}
		return errors.Join(failures...)
	}
	if err := b.ledger.All(ctx, func(l *Lease) error { return one(l, nil) }); err != nil {
		return err
	}
	return errors.Join(failures...)
}

// selected returns what a revocation selects a lease by.
func (l *Lease) selected() (keys []Key, pos Position, err error) {
	for _, s := range l.Keys {
		k, err := parseKey(s)
		if err != nil {
			return nil, pos, err
		}
		keys = append(keys, k)
	}
	pos, err = ParsePosition(l.Pos)
	return keys, pos, err
}

// closeLease marks a lease to be ended, whatever it is doing.
func (b *Broker) closeLease(ctx context.Context, id, why string) error {
	for {
		l, err := b.ledger.Lease(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if l.State == Closing || l.State == Closed {
			return nil
		}
		l.State, l.Why, l.Next, l.Attempts = Closing, why, b.now(), 0
		err = b.ledger.Update(ctx, l)
		if errors.Is(err, ErrConflict) {
			continue
		}
		if err == nil {
			b.nudge()
		}
		return err
	}
}
