package slack

import (
	"context"
	"errors"
	"fmt"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// terms are what requests will be held to, as the record has it. Nothing is sent upstream
// before there is a request. "*" alone is all.
type terms struct {
	Call []string `json:"call"`
	In   []string `json:"in"`
}

// Render implements [broker.Provider].
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	if g.IsNothing() {
		return nil, fmt.Errorf("nothing: %w", broker.ErrInexpressible)
	}
	if err := check(g); err != nil {
		return nil, fmt.Errorf("%w: %w", err, broker.ErrInexpressible)
	}
	return strictjson.Encode(terms{listed(g, "methods"), listed(g, "channels")})
}

func listed(g grant.Grant, dimension string) (out []string) {
	all, atoms := g.Dimension(dimension)
	if all {
		return []string{"*"}
	}
	for _, a := range atoms {
		out = append(out, a[0])
	}
	return out
}

// Parse implements [broker.Provider].
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	var t terms
	if err := strictjson.Decode(rendered, &t); err != nil {
		return grant.Grant{}, err
	}
	value := func(list []string) any {
		if len(list) == 1 && list[0] == "*" {
			return "*"
		}
		out := make([]any, len(list))
		for i, s := range list {
			out[i] = s
		}
		return out
	}
	g, err := schema.ParseValue(map[string]any{"methods": value(t.Call), "channels": value(t.In)})
	if err == nil && g.IsNothing() {
		err = errors.New("nothing")
	}
	return g, err
}

// Mint implements [broker.Provider]. Nothing is made: the lease is all there is. But a
// token that cannot be had is noticed now.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	g, err := p.Parse(r.Rendered)
	if err != nil {
		return nil, fmt.Errorf("read rendered grant: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, broker.Fail(broker.Unavailable, err, "there was no time")
	}
	_, channels := g.Dimension("channels")
	for _, c := range channels {
		if !isChannel(c[0]) {
			return nil, fmt.Errorf("channel %q was not resolved", c[0])
		}
	}
	if _, err := p.token(ctx); err != nil {
		return nil, err
	}
	return &broker.Minted{Granted: g, Evidence: broker.Asserted, Expires: r.Expires}, nil
}

// Revoke implements [broker.Provider]. Who has the lease has nothing of Slack's, and makes
// no request any more. The token is everybody's: auth.revoke would take the bot out of all
// its channels, and is never called.
func (p *provider) Revoke(_ context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if p.deps.Now().After(r.Expires) {
		return broker.Outcome{State: broker.AlreadyDead, Note: "it has run out"}, nil
	}
	return broker.Outcome{State: broker.Revoked, Note: "the bot's token was never handed out"}, nil
}
