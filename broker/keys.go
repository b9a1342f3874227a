package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Keys are our signing keys, as the replicas share them.
type Keys interface {
	// Reload reads them again, so that what another replica did takes effect here.
	Reload(ctx context.Context) error
	// Withdrawn returns the ids of those that were revoked, as long as something
	// that was obtained with one of them may be alive.
	Withdrawn() []string
}

// KeysEvery is how often a replica reads the signing keys again. When one is
// revoked it does at once, as soon as the revocation feed says so.
const KeysEvery = time.Minute

// keysRetry is how soon, after keys could not be read.
const keysRetry = 5 * time.Second

// keyLoop follows what other replicas do to the signing keys and switches. A revoked
// key, or who was turned off, of which this one cannot read is refused all the same:
// the feed names it.
func (b *Broker) keyLoop(ctx context.Context) {
	for ctx.Err() == nil {
		wait := KeysEvery
		if err := b.reloadSwitches(ctx); err != nil {
			b.complain(ctx, "those known stay off", err)
		}
		err := b.keys.Reload(ctx)
		if err = errors.Join(err, b.EndWithdrawn(ctx, "")); err != nil {
			b.complain(ctx, "signing keys cannot be read again, or what was obtained with a revoked one cannot be ended; those known stay in use", err)
			wait = keysRetry
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-b.unkeyed:
		}
		t.Stop()
	}
}

// EndWithdrawn revokes what was obtained with signing keys that were revoked: the
// tokens that they signed, those made from these, and what was leased with any of
// them. What the feed has already is not said again. Errors: Unavailable, if no
// durable write was possible; it is tried again every few seconds.
func (b *Broker) EndWithdrawn(ctx context.Context, operator string) error {
	for _, kid := range b.keys.Withdrawn() {
		s := Selector{key: kid}
		if b.index.Selects(s.where(), b.index.Head().Pos) {
			continue
		}
		r := Revocation{Selector: s, Operator: operator, Reason: "the signing key was revoked"}
		if _, err := b.revoke(ctx, r, s.where(), b.now().Add(b.longest())); err != nil {
			return fmt.Errorf("what was obtained with signing key %s: %w", kid, err)
		}
	}
	return nil
}

// toReload has the signing keys and switches read again if an entry says that a key
// was revoked, or somebody turned off.
func (b *Broker) toReload(entries []Entry) {
	again := b.switches != nil && b.doubtSwitched(entries)
	for _, e := range entries {
		for _, k := range e.Where {
			again = again || k.Kind == ByKey
		}
	}
	if again {
		select {
		case b.unkeyed <- struct{}{}:
		default:
		}
	}
}
