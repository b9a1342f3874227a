package broker

import (
	"context"
	"errors"
	"fmt"
)

// abandon queues the end of whatever minting came to: also of a lease that was ended
// meanwhile, when nothing was to be found upstream yet. handle is what the provider
// answered with, nil if it did not. The first attempt is made by the reaper, at once.
//
// Until an intent's deadline its record is open (see settle), and takes the handle.
// After that it is closed, and stays so: what came even later is ended from here.
func (b *Broker) abandon(ctx context.Context, l Lease, handle []byte) {
	for try := 0; ; try++ {
		err := b.giveUp(ctx, l.ID, handle)
		switch {
		case err == nil:
			b.nudge()
			return
		case errors.Is(err, errLeaseClosed) || errors.Is(err, ErrNotFound):
			if handle != nil {
				go b.endClosed(ctx, l, handle)
			}
			return
		case !errors.Is(err, ErrConflict) || try == 10:
			// The deadline of the intent comes, and then the reaper finds it.
			b.log.ErrorContext(ctx, "close an abandoned lease", "lease", l.ID, "error", err)
			return
		}
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

// endClosed ends what a lease minted whose record is closed. No reaper looks at it
// again, so it is tried from here until it is ended, has run out, or is given up
// with an alarm.
func (b *Broker) endClosed(ctx context.Context, l Lease, handle []byte) {
	sealed, err := b.sealer.Seal(handle, handleContext(&l))
	if err != nil {
		b.log.ErrorContext(ctx, "seal handle", "lease", l.ID, "error", err)
		return
	}
	l.State, l.Why, l.Handle = Closed, "failed", sealed
	for try := 1; ; try++ {
		o, err := b.revokeUpstream(ctx, &l)
		if err == nil && o.State.Final() {
			l.Outcome, l.Until, l.Note = o.State, o.Until, o.Note
			break
		}
		b.log.WarnContext(ctx, "what came too late could not be ended", "lease", l.ID, "provider", l.Provider, "attempt", try, "error", err)
		if try == stuckAfter {
			l.Outcome, l.Note = Stuck, "it came after its lease was closed"
			b.alarm(ctx, fmt.Sprintf("a credential of upstream %s came too late and could not be ended: lease %s", l.Provider, l.ID), b.index.Head().Pos)
			break
		}
		pause(ctx, min(firstRetry<<(try-1), maxRetry))
	}
	if err := b.recordLease(ctx, &l); err != nil {
		b.complain(ctx, "record the outcome of a lease", err)
	}
}
