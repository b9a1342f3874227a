package github

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/upstream"
)

// Revoke implements [broker.Provider]. Without the token there is no way to end it: what
// GitHub made when its answer was lost lives until it ends by itself, which is not when
// its lease does: GitHub's time is fixed, and begins at the latest when the lease ends.
func (p *provider) Revoke(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if len(r.Handle) == 0 {
		return broker.Outcome{
			State: broker.UnknownUntil, Until: r.Expires.Add(p.about.MaxLifetime), Note: "GitHub lists no tokens: if it made one, nobody has it",
		}, nil
	}
	var h handle
	if err := strictjson.Decode(r.Handle, &h); err != nil || h.Token == "" {
		return broker.Outcome{}, errors.Join(errors.New("read handle"), err)
	}
	return p.end(ctx, h)
}

// end ends one token, and nothing else of the same App or user.
func (p *provider) end(ctx context.Context, h handle) (broker.Outcome, error) {
	var a *upstream.Answer
	var err error
	if h.Mode == modeUser {
		a, err = p.withSecret(ctx, http.MethodDelete, "/token", map[string]any{"access_token": h.Token})
	} else {
		a, err = p.call(ctx, upstream.Request{Method: http.MethodDelete, URL: p.cfg.URL + "/installation/token", Bearer: secret.New(h.Token)})
	}
	if err != nil {
		return broker.Outcome{}, err
	}
	switch {
	case a.Status == http.StatusNoContent:
		return broker.Outcome{State: broker.Revoked}, nil
	// GitHub takes it for nobody's: it has ended.
	case a.Status == http.StatusUnauthorized && h.Mode == modeApp, h.Mode == modeUser && (a.Status == http.StatusNotFound || a.Status == http.StatusUnprocessableEntity):
		return broker.Outcome{State: broker.AlreadyDead}, nil
	}
	return broker.Outcome{}, fmt.Errorf("end a token: GitHub answers %d", a.Status)
}
