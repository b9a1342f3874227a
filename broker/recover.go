package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ClosedLeaseKept is how long a ledger can still say that a lease is closed, after
// it was closed and after it ran out, whatever is later.
const ClosedLeaseKept = time.Hour

// Rebuilt is what [Rebuild] did, and what it left alone.
type Rebuilt struct {
	// Restored is how many leases were written back, and Ending how many of these are
	// to be ended at once: intents, what was being ended, and what is revoked.
	Restored, Ending int
	// Closed is how many leases the store did not know to be closed, and now does.
	Closed int
	// Known is how many the store has, as new as the journal or newer, and Over how
	// many were closed so long ago that nobody asks for them.
	Known, Over int
	// Expired are leases that nobody closed in this journal and that the store does
	// not have, but that ran out so long ago that another replica may have closed
	// them. What they minted has run out as well, or is found by the next sweep.
	Expired []*Lease
}

// Rebuild brings a store that lost its data up to what a replica's journal knows of
// leases: those that are missing are written, so that they are ended in time, and
// those that this replica closed are closed. leases are the newest frame of each.
//
// Every replica has its own journal, and a lease that one minted another may have
// closed. So what is closed is written as well, if a later run at another replica
// could bring it back, and what an earlier run brought back is closed again. Doing
// it twice changes nothing.
//
// Errors are those of the store; what was done before is in the result.
func Rebuild(ctx context.Context, feed Feed, ledger Ledger, leases []*Lease, now time.Time) (r Rebuilt, err error) {
	revoked, err := known(ctx, feed)
	if err != nil {
		return r, fmt.Errorf("read the revocation feed: %w", err)
	}
	for _, l := range leases {
		if l.State == Closed {
			err = r.closed(ctx, ledger, l, now)
		} else {
			err = r.open(ctx, ledger, l, revoked, now)
		}
		if err != nil {
			return r, fmt.Errorf("lease %s: %w", l.ID, err)
		}
	}
	return r, nil
}

// known returns what the feed says of leases. A feed that is empty says nothing: a
// replica that starts settles that, and marks what it finds then.
func known(ctx context.Context, feed Feed) (revoked func(*Lease) bool, err error) {
	x := NewIndex(0)
	for {
		entries, err := feed.Read(ctx, x.Head().Pos.Seq, readBatch, 0)
		if err != nil {
			return nil, err
		}
		if n := x.Apply(entries...); n == 0 || n < len(entries) {
			break // the end, or the end of what fits together
		}
	}
	if x.Head() == (Head{}) {
		return func(*Lease) bool { return false }, nil
	}
	return func(l *Lease) bool {
		keys, pos, err := l.selected()
		return err != nil || x.Selects(keys, pos)
	}, nil
}

// closed has the store know that a lease is closed.
func (r *Rebuilt) closed(ctx context.Context, ledger Ledger, l *Lease, now time.Time) error {
	for {
		there, err := ledger.Lease(ctx, l.ID)
		switch {
		case errors.Is(err, ErrNotFound) && now.After(l.Expires.Add(ClosedLeaseKept)):
			r.Over++ // nobody restores it either: see open
			return nil
		case errors.Is(err, ErrNotFound):
			again := *l
			if err = ledger.Create(ctx, &again); err == nil {
				r.Closed++
				return nil
			}
		case err == nil && (there.State == Closed || there.Version > l.Version):
			// What is newer was written after this, for instance for an answer that came late.
			r.Known++
			return nil
		case err == nil:
			there.State, there.Why, there.Outcome, there.Until, there.Note = Closed, l.Why, l.Outcome, l.Until, l.Note
			if err = ledger.Update(ctx, there); err == nil {
				r.Closed++
				return nil
			}
		}
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// open writes a lease that the store does not have.
func (r *Rebuilt) open(ctx context.Context, ledger Ledger, l *Lease, revoked func(*Lease) bool, now time.Time) error {
	switch _, err := ledger.Lease(ctx, l.ID); {
	case err == nil:
		r.Known++
		return nil
	case !errors.Is(err, ErrNotFound):
		return err
	}
	if now.After(l.Expires.Add(ClosedLeaseKept)) {
		r.Expired = append(r.Expired, l)
		return nil
	}
	again := *l // and of the same version, by which closed tells what is newer
	switch {
	case again.State == Intent:
		again.State, again.Why = Closing, "failed"
	case again.State == Active && revoked(l):
		again.State, again.Why = Closing, "revoked"
	}
	if again.State == Closing || again.Next.IsZero() {
		again.Next = now
	}
	err := ledger.Create(ctx, &again)
	if errors.Is(err, ErrConflict) {
		r.Known++ // another replica was quicker
		return nil
	}
	if err != nil {
		return err
	}
	r.Restored++
	if again.State == Closing {
		r.Ending++
	}
	return nil
}
