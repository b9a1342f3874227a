package s3

import (
	"context"
	"fmt"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

// handle is what is known of keys or of a URL.
type handle struct {
	// Nothing says that the store has refused to make any.
	Nothing bool `json:"nothing"`
	// Made says that there is an answer, by which it exists.
	Made bool `json:"made"`
	// Until is when they end, in seconds since 1970, or the latest that they could.
	Until int64 `json:"until"`
}

// skew is how much later than asked, by our clock, keys may end whose answer is lost.
const skew = time.Minute

// Revoke implements [broker.Provider]. There is nothing to call: what could be ended by
// itself, no store offers, and what stores offer ends other leases too.
func (p *provider) Revoke(_ context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if len(r.Handle) == 0 {
		return broker.Outcome{State: broker.AlreadyDead, Note: "nothing was made"}, nil
	}
	var h handle
	if err := strictjson.Decode(r.Handle, &h); err != nil {
		return broker.Outcome{}, fmt.Errorf("read handle: %w", err)
	}
	until := time.Unix(h.Until, 0)
	switch {
	case h.Nothing:
		return broker.Outcome{State: broker.AlreadyDead, Note: "the store made no keys"}, nil
	case !p.deps.Now().Before(until):
		return broker.Outcome{State: broker.AlreadyDead, Note: "it has run out"}, nil
	case !h.Made:
		return broker.Outcome{State: broker.UnknownUntil, Until: until, Note: "the store's answer was lost; if there are keys, nobody has them"}, nil
	}
	return broker.Outcome{State: broker.NotRevocableUntil, Until: until, Note: "keys and URLs of this store end by themselves"}, nil
}
