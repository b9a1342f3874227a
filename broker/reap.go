package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/audit"
)

// nudge wakes the reaper.
func (b *Broker) nudge() {
	select {
	case b.reap <- struct{}{}:
	default:
	}
}

const (
	reapers     = 16               // leases that are ended at a time
	firstRetry  = time.Second      // after a failed attempt; doubles
	maxRetry    = 5 * time.Minute  //
	stuckAfter  = 10               // attempts
	claimMargin = 10 * time.Second // beyond the timeout, before another may try
)

// reapLoop ends leases: those that ran out, those that were revoked, and intents
// of which nothing was heard.
func (b *Broker) reapLoop(ctx context.Context) {
	for ctx.Err() == nil {
		ids, err := b.ledger.Due(ctx, b.now(), 256)
		if err != nil {
			b.complain(ctx, "look for leases that are due", err)
		}
		var wg sync.WaitGroup
		var moved atomic.Bool // what cannot be read stays due
		slots := make(chan struct{}, reapers)
		for _, id := range ids {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				if err := b.end(ctx, id); err != nil {
					b.complain(ctx, "end lease "+id, err)
					return
				}
				moved.Store(true)
			})
		}
		wg.Wait()
		if moved.Load() && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-b.reap:
		case <-time.After(time.Second):
		}
	}
}

// end takes one lease a step further towards its end. The claim is a
// compare-and-set: of several replicas one gets it.
func (b *Broker) end(ctx context.Context, id string) error {
	l, err := b.ledger.Lease(ctx, id)
	if err != nil || l.State == Closed || l.Next.After(b.now()) {
		return ignore(err, ErrNotFound)
	}
	switch l.State {
	case Intent:
		l.State, l.Why = Closing, "failed" // nobody came back for it
	case Active:
		l.State, l.Why = Closing, "expired"
	}
	l.Next = b.now().Add(b.cfg.RevokeTimeout + claimMargin)
	l.Attempts++
	if err := b.ledger.Update(ctx, l); err != nil {
		return ignore(err, ErrConflict)
	}
	outcome, err := b.revokeUpstream(ctx, l)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return b.settle(ctx, l, outcome, err)
}

func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}

// revokeUpstream asks the provider to end a lease.
func (b *Broker) revokeUpstream(ctx context.Context, l *Lease) (Outcome, error) {
	p := b.reg.Providers[l.Provider]
	if p == nil {
		return Outcome{}, fmt.Errorf("provider %s is not configured any more", l.Provider)
	}
	var handle []byte
	if len(l.Handle) > 0 {
		var err error
		if handle, err = b.sealer.Open(l.Handle, handleContext(l)); err != nil {
			return Outcome{}, fmt.Errorf("open handle: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.RevokeTimeout)
	defer cancel()
	return safely(func() (Outcome, error) {
		return p.Revoke(ctx, RevokeLease{Lease: l.mintedAs(), Handle: handle, Expires: l.Expires})
	})
}

func handleContext(l *Lease) string { return "lease " + l.ID + " at " + l.Provider }

// settle writes down what an attempt came to. A final outcome closes the lease, but
// not before minting is over; otherwise there is another attempt, until what was
// minted has run out.
func (b *Broker) settle(ctx context.Context, l *Lease, o Outcome, failure error) error {
	now := b.now()
	before, minting := l.Outcome, now.Before(l.Deadline)
	wait := min(firstRetry<<min(l.Attempts-1, 20), maxRetry)
	switch {
	case failure == nil && o.State.Final() && minting:
		// It may yet be minted, or an answer bring a handle, which an open record takes.
		l.Next = l.Deadline
		if o.State != AlreadyDead {
			l.Outcome, l.Until, l.Note = o.State, o.Until, o.Note
		}
	case failure == nil && o.State == AlreadyDead && before == Revoked:
		l.State = Closed // by an attempt before the deadline
	case failure == nil && o.State.Final():
		l.State, l.Outcome, l.Until, l.Note = Closed, o.State, o.Until, o.Note
	case failure != nil && !minting && now.After(b.latest(l).Add(b.cfg.Skew)) && !b.endsByHand(l):
		// What cannot be asked about has run out by its own terms.
		l.State, l.Outcome, l.Until, l.Note = Closed, UnknownUntil, b.latest(l), "not confirmed before it ran out"
	case failure == nil && o.State == Stuck:
		l.Outcome, l.Note, l.Next = o.State, o.Note, now.Add(wait)
	case failure == nil:
		l.Outcome, l.Note, l.Next = o.State, o.Note, now.Add(min(wait, 2*time.Second))
	case l.Attempts >= stuckAfter:
		l.Outcome, l.Note, l.Next = Stuck, "attempts keep failing", now.Add(wait)
	default:
		l.Next = now.Add(wait)
	}
	if failure != nil {
		b.log.WarnContext(ctx, "lease could not be ended", "lease", l.ID, "provider", l.Provider, "attempt", l.Attempts, "error", failure)
	}
	if l.State != Closed && l.Outcome == before {
		return ignore(b.ledger.Update(ctx, l), ErrConflict)
	}
	// The outcome is recorded first: if the ledger then fails, it is found again.
	if err := b.recordLease(ctx, l); err != nil {
		b.complain(ctx, "record the outcome of a lease", err)
	}
	return ignore(b.ledger.Update(ctx, l), ErrConflict)
}

// latest is when a credential ends by itself, at the latest: of an upstream that fixes how
// long it lives, an answer that was never heard may have made one that outlives its lease.
func (b *Broker) latest(l *Lease) time.Time {
	if p := b.reg.Providers[l.Provider]; p != nil {
		if d := p.Describe(); d.endsEarly() {
			return l.Expires.Add(d.MaxLifetime)
		}
	}
	return l.Expires
}

// endsByHand reports whether what a lease minted stays until somebody removes it,
// such as a database role.
func (b *Broker) endsByHand(l *Lease) bool {
	p := b.reg.Providers[l.Provider]
	return p != nil && p.Describe().Sweep != nil && l.Attempts < 10*stuckAfter
}

// recordLease records what became of a lease.
func (b *Broker) recordLease(ctx context.Context, l *Lease) error {
	frame, err := leaseFrame(l)
	if err != nil {
		return err
	}
	return b.recorder.Record(ctx, leaseEvent(l), audit.Personal{}, frame)
}

// leaseEvent says what became of a lease.
func leaseEvent(l *Lease) *audit.Event {
	e := &audit.Event{
		Kind: audit.KindLease, Outcome: audit.Done,
		Party:  audit.Party{Client: l.Client, Agent: l.Agent, Subject: l.Subject, Session: l.Session},
		Target: audit.Target{Resource: l.Resource, Provider: l.Provider},
		Lease: &audit.Lease{
			ID: l.mintedAs(), Provider: l.Provider, State: string(l.State), Expires: l.Expires.Unix(), Outcome: string(l.Outcome),
		},
		Reason: l.Why,
	}
	if !l.Until.IsZero() {
		e.Lease.Until = l.Until.Unix()
	}
	if l.Outcome == Stuck || l.Outcome == UnknownUntil {
		e.Outcome = audit.Failed
	}
	return e
}

// mintedAs is the id by which the upstream knows what a lease is of.
func (l *Lease) mintedAs() string {
	if l.Of != "" {
		return l.Of
	}
	return l.ID
}

// sweepEvery is how often upstreams are asked what is alive there.
const sweepEvery = 10 * time.Minute

func (b *Broker) sweepLoop(ctx context.Context) {
	for ctx.Err() == nil {
		if n, err := b.Sweep(ctx); err != nil {
			b.complain(ctx, "sweep upstreams", err)
		} else if n > 0 {
			b.log.WarnContext(ctx, "ended credentials that no lease knew of", "count", n)
		}
		pause(ctx, sweepEvery)
	}
}

// Sweep asks the providers that can list what is alive for credentials that no
// lease knows of, and has them ended. It returns how many there were.
func (b *Broker) Sweep(ctx context.Context) (total int, err error) {
	for name, p := range b.reg.Providers {
		sweep := p.Describe().Sweep
		if sweep == nil {
			continue
		}
		ended, failure := sweep(ctx, func(id string) bool {
			l, err := b.ledger.Lease(ctx, id)
			// Not knowing is no reason to end anything.
			return err == nil && l.State != Closed || err != nil && !errors.Is(err, ErrNotFound)
		})
		total += len(ended)
		for _, id := range ended {
			// No frame: what is known of the lease, if anything, stays in the journal.
			orphan := leaseEvent(&Lease{ID: id, Provider: name, State: Closed, Outcome: Revoked, Why: "orphan"})
			err = errors.Join(err, b.recorder.Record(ctx, orphan, audit.Personal{}))
		}
		if failure != nil {
			err = errors.Join(err, fmt.Errorf("sweep %s: %w", name, failure))
		}
	}
	return total, err
}
