package vault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

// handle is what is needed to end a credential.
type handle struct {
	// Accessor is that of the child.
	Accessor string `json:"accessor"`
	// Lease is empty until the engine has answered, and if it leases nothing.
	Lease string `json:"lease"`
	// Lasts says that there is a credential that cannot be taken back. Ends is when
	// it is over, in seconds since 1970; 0: nobody says.
	Lasts bool  `json:"lasts"`
	Ends  int64 `json:"ends"`
}

// with returns the handle of what was made.
func (h handle) with(m made, r Role) handle {
	h.Lease = m.lease
	h.Lasts = r.lasts() || m.lease == "" || m.lasting(r)
	if ends := m.ends(r); h.Lasts && !ends.IsZero() {
		h.Ends = ends.Unix()
	}
	return h
}

// Revoke implements [broker.Provider].
func (p *provider) Revoke(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if len(r.Handle) == 0 {
		// Nothing is made before its token is noted, so that there is no credential.
		// But a token there may be, and Vault cannot be asked for it.
		return broker.Outcome{
			State: broker.UnknownUntil, Until: r.Expires,
			Note: "nothing was asked of an engine; there may be a token that nobody has",
		}, nil
	}
	var h handle
	if err := strictjson.Decode(r.Handle, &h); err != nil || h.Accessor == "" {
		return broker.Outcome{}, errors.Join(errors.New("read handle"), err)
	}
	return p.end(ctx, h, r.Expires)
}

// end ends what there is by a handle: the lease, and when that is done, the child.
// In the other order Vault would try to end the lease by itself, and say nothing
// of whether it could.
func (p *provider) end(ctx context.Context, h handle, expires time.Time) (broker.Outcome, error) {
	out := broker.Outcome{
		State: broker.UnknownUntil, Until: expires,
		Note: "Vault's answer was lost: if there is a lease, Vault ends it with its token, which is ended",
	}
	switch {
	case h.Lasts:
		out = p.lasting(h, expires)
	case h.Lease != "":
		var err error
		if out, err = p.endLease(ctx, h.Lease, expires); err != nil || !out.State.Final() {
			return out, err
		}
	}
	if err := p.engine.RevokeChild(ctx, h.Accessor); err != nil && !errors.Is(err, broker.ErrNotFound) {
		return broker.Outcome{}, err
	}
	return out, nil
}

// lasting is the outcome of what cannot be taken back.
func (p *provider) lasting(h handle, expires time.Time) broker.Outcome {
	ends := time.Unix(h.Ends, 0)
	switch {
	case h.Ends == 0:
		return broker.Outcome{
			State: broker.UnknownUntil, Until: expires,
			Note: "it cannot be revoked, and nothing says when it ends; it was given to nobody",
		}
	case p.deps.Now().Before(ends):
		return broker.Outcome{State: broker.NotRevocableUntil, Until: ends, Note: "this role's credentials end by themselves"}
	}
	return broker.Outcome{State: broker.AlreadyDead, Note: "it has run out"}
}

// endLease ends a lease upstream. That there is none is looked up before: to
// revoke one is no error either way.
func (p *provider) endLease(ctx context.Context, lease string, expires time.Time) (broker.Outcome, error) {
	switch _, err := p.engine.LookupLease(ctx, lease); {
	case errors.Is(err, broker.ErrNotFound):
		return broker.Outcome{State: broker.AlreadyDead, Note: "Vault has no such lease"}, nil
	case err != nil:
		return broker.Outcome{}, err
	}
	err := p.engine.RevokeLease(ctx, lease)
	switch {
	case err == nil:
		return broker.Outcome{State: broker.Revoked}, nil
	case broker.CodeOf(err) == broker.Unavailable || !p.deps.Now().After(expires):
		return broker.Outcome{}, fmt.Errorf("it may be alive upstream: %w", err)
	}
	// Its time is over, and Vault still has it, because it cannot end it: somebody
	// has to look. That it ran out by itself is not to be said.
	return broker.Outcome{State: broker.Stuck, Note: "its time is over, and Vault cannot end it upstream"}, nil
}
