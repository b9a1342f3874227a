package aws

import (
	"context"
	"fmt"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

// handle is what is known of a session.
type handle struct {
	// Nothing says that AWS has refused to make one.
	Nothing bool `json:"nothing"`
	// Made says that there is an answer, by which it exists.
	Made bool `json:"made"`
	// Until is when it ends, in seconds since 1970, or the latest that it could.
	Until int64 `json:"until"`
}

// skew is how much later than asked, by our clock, a session may end whose answer is lost.
const skew = time.Minute

// Revoke implements [broker.Provider].
func (p *provider) Revoke(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if len(r.Handle) == 0 {
		return broker.Outcome{State: broker.AlreadyDead, Note: "AWS was not asked for a session"}, nil
	}
	var h handle
	if err := strictjson.Decode(r.Handle, &h); err != nil {
		return broker.Outcome{}, fmt.Errorf("read handle: %w", err)
	}
	until := time.Unix(h.Until, 0)
	switch {
	case h.Nothing:
		return broker.Outcome{State: broker.AlreadyDead, Note: "AWS made no session"}, nil
	case !p.deps.Now().Before(until):
		return broker.Outcome{State: broker.AlreadyDead, Note: "it has run out"}, nil
	case p.deny != nil:
		return p.deny.revoke(ctx, r.Lease, until)
	}
	if !h.Made {
		return broker.Outcome{State: broker.UnknownUntil, Until: until, Note: "AWS's answer was lost; if there is a session, nobody has its keys"}, nil
	}
	return broker.Outcome{State: broker.NotRevocableUntil, Until: until, Note: "sessions of this role end by themselves"}, nil
}
