package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// abandon queues the end of whatever minting came to: also of a lease that was ended
// meanwhile, when nothing was to be found upstream yet. handle is what the provider
// answered with, nil if it did not. The first attempt is made by the reaper, at once.
//
// Until an intent's deadline its record is open (see settle), and takes the handle.
// After that it is closed, and stays so: what came even later gets a record of its own.
// So does a handle that the ledger could not be given.
func (b *Broker) abandon(ctx context.Context, l Lease, handle []byte) {
	for try := 0; ; try++ {
		err := b.giveUp(ctx, l.ID, handle)
		switch {
		case err == nil:
			b.nudge()
			return
		case errors.Is(err, errLeaseClosed) || errors.Is(err, ErrNotFound):
		case errors.Is(err, ErrConflict) && try < 10:
			continue
		default:
			// The deadline of the intent comes, and then the reaper finds it.
			b.log.ErrorContext(ctx, "close an abandoned lease", "lease", l.ID, "error", err)
		}
		if handle != nil {
			b.endLate(ctx, l, handle)
		}
		return
	}
}

var errLeaseClosed = errors.New("the lease is closed")

// giveUp has the reaper end a lease, by the handle if there is one.
func (b *Broker) giveUp(ctx context.Context, id string, handle []byte) error {
	l, err := b.ledger.Lease(ctx, id)
	if err != nil {
		return err
	}
	if l.State == Closed {
		return errLeaseClosed
	}
	if l.State != Closing {
		l.Why = "failed"
	}
	if handle != nil {
		if l.Handle, err = b.sealer.Seal(handle, handleContext(l)); err != nil {
			return fmt.Errorf("seal handle: %w", err)
		}
	}
	// The deadline stays: a request that failed here may still take effect there.
	l.State, l.Next, l.Attempts, l.Outcome = Closing, b.now(), 0, ""
	frame, err := leaseFrame(l)
	if err != nil {
		return err
	}
	if err := b.recorder.Keep(frame); err != nil {
		b.log.ErrorContext(ctx, "journal an abandoned lease", "lease", id, "error", err)
	}
	return b.ledger.Update(ctx, l)
}

// endLate has the reaper end what a lease minted whose own record takes no handle any
// more: by a lease beside it, which is closing from the first. It is in the journal
// before anything else, so that `stint recover` finds it should this process end
// while the store is away.
func (b *Broker) endLate(ctx context.Context, l Lease, handle []byte) {
	late := l
	late.ID, late.Of, late.Version = newLeaseID(), l.mintedAs(), 0
	late.State, late.Why, late.Next, late.Deadline = Closing, "failed", b.now(), time.Time{}
	late.Attempts, late.Outcome, late.Until, late.Note = 0, "", time.Time{}, "its answer came late"
	err := func() (err error) {
		if late.Handle, err = b.sealer.Seal(handle, handleContext(&late)); err != nil {
			return err
		}
		frame, err := leaseFrame(&late)
		if err != nil {
			return err
		}
		return b.recorder.Keep(frame)
	}()
	if err != nil {
		b.log.ErrorContext(ctx, "journal what came late", "lease", l.ID, "error", err)
	}
	go b.createLate(ctx, &late)
}

// createLate writes the record of what came late, as soon as the ledger takes it.
func (b *Broker) createLate(ctx context.Context, late *Lease) {
	for try := 1; ; try++ {
		err := b.ledger.Create(ctx, late)
		if err == nil || errors.Is(err, ErrConflict) { // a try of which we heard nothing had succeeded
			b.nudge()
			return
		}
		b.log.WarnContext(ctx, "what came late could not be written down", "lease", late.Of, "attempt", try, "error", err)
		if try == stuckAfter {
			b.alarm(ctx, fmt.Sprintf("a credential of upstream %s came late and the store cannot be told: lease %s; stint recover brings it back", late.Provider, late.Of), b.index.Head().Pos)
			return
		}
		pause(ctx, min(firstRetry<<(try-1), maxRetry))
	}
}
