package token

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/stint-dev/stint/broker"
)

// Revoke withdraws a key at once, for one that somebody else may hold: it is
// published no more and verifies nothing. It returns the key that signs from now
// on. If the withdrawn one signed, that is the one that waits, which whoever caches
// our keys knows already, or else a new one.
//
// An error wraps [broker.ErrNotFound] if there is no such key.
func (r *Ring) Revoke(ctx context.Context, kid string) (signs KeyInfo, err error) {
	err = r.change(ctx, func(d *ringDoc) error { return r.withdraw(d, kid) })
	if err != nil {
		return KeyInfo{}, err
	}
	for _, k := range r.Keys() {
		if k.State == "active" {
			signs = k
		}
	}
	return signs, nil
}

// Withdrawn implements [broker.Keys].
func (r *Ring) Withdrawn() (ids []string) {
	for _, k := range r.state.Load().revoked {
		if r.matters(k) {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

// matters reports whether something that was obtained with a revoked key may be
// alive.
func (r *Ring) matters(k revokedKey) bool {
	return r.cfg.Now().Before(time.Unix(k.At, 0).Add(r.cfg.Retain))
}

// forget drops what is remembered of revoked keys that do not matter any more.
func (r *Ring) forget(d *ringDoc) {
	d.Revoked = slices.DeleteFunc(d.Revoked, func(k revokedKey) bool { return !r.matters(k) })
}

// withdraw takes a key out of a document and sees to it that another signs.
func (r *Ring) withdraw(d *ringDoc, kid string) error {
	i := slices.IndexFunc(d.Keys, func(k ringDocKey) bool {
		own, err := ownKeyOf(k)
		return err == nil && own.id == kid
	})
	if i < 0 {
		return fmt.Errorf("there is no signing key %q: %w", printable(kid), broker.ErrNotFound)
	}
	now := r.cfg.Now().Unix()
	signing := 0 // the latest that has begun
	for n, k := range d.Keys {
		if k.Active <= now {
			signing = n
		}
	}
	// The one before retired when this one began, whoever follows now. A key that
	// retired does not come back: it may be published nowhere any more.
	if i > 0 && i <= signing && d.Keys[i-1].Retired == 0 {
		d.Keys[i-1].Retired = d.Keys[i].Active
	}
	d.Keys = slices.Delete(d.Keys, i, i+1)
	r.forget(d)
	d.Revoked = append(d.Revoked, revokedKey{kid, now})
	switch {
	case i != signing:
		return nil
	case i < len(d.Keys):
		d.Keys[i].Active = now
		return nil
	}
	return r.add(d, 0)
}
