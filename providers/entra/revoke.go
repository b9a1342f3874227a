package entra

import (
	"context"
	"errors"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

// handle is all that there is to know of a token that nobody can take back.
type handle struct {
	// Until is when it is over at the latest, in seconds since 1970.
	Until int64 `json:"until"`
	// Made says that there is one; otherwise there may be.
	Made bool `json:"made"`
}

// Revoke implements [broker.Provider]. Entra has no request that ends an access token: to
// revoke a user's sessions ends what is refreshed, of every application of his.
func (p *provider) Revoke(_ context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if len(r.Handle) == 0 {
		return broker.Outcome{State: broker.AlreadyDead, Note: "nothing was asked of Entra"}, nil
	}
	var h handle
	if err := strictjson.Decode(r.Handle, &h); err != nil || h.Until <= 0 {
		return broker.Outcome{}, errors.Join(errors.New("read handle"), err)
	}
	until := time.Unix(h.Until, 0)
	switch {
	case !p.deps.Now().Before(until):
		return broker.Outcome{State: broker.AlreadyDead, Note: "it has run out"}, nil
	case !h.Made:
		return broker.Outcome{State: broker.UnknownUntil, Until: until, Note: "Entra's answer was lost: there may be a token that nobody has"}, nil
	}
	return broker.Outcome{State: broker.NotRevocableUntil, Until: until, Note: "Entra takes no access token back"}, nil
}
