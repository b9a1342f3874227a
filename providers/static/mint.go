package static

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/scopes/grant"
)

// Mint implements [broker.Provider]. Nothing is made: the lease is all there is. But a
// secret that is not there is noticed now.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	g, err := p.Parse(r.Rendered)
	if err != nil {
		return nil, fmt.Errorf("read rendered grant: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, broker.Fail(broker.Unavailable, err, "there was no time")
	}
	if _, _, err := p.secret(ctx); err != nil {
		return nil, err
	}
	return &broker.Minted{Granted: g, Evidence: broker.Asserted, Expires: r.Expires}, nil
}

// Revoke implements [broker.Provider]. Who has the lease has nothing of the upstream's, and
// makes no request any more: that is as revoked as can be.
func (p *provider) Revoke(_ context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if p.deps.Now().After(r.Expires) {
		return broker.Outcome{State: broker.AlreadyDead, Note: "it has run out"}, nil
	}
	return broker.Outcome{State: broker.Revoked, Note: "the secret was never handed out"}, nil
}

// inject is Inject of [broker.Description].
func (p *provider) inject(ctx context.Context, r broker.InjectRequest) (*broker.Injection, error) {
	need, err := schema.ParseValue(map[string]any{"calls": []any{map[string]any{
		"verbs": []any{r.Method}, "bucket": r.Host, "prefix": placeOf(r.Path),
	}}})
	if err != nil {
		return nil, broker.Fail(broker.BadRequest, err, "no grant could have this request")
	}
	if ok, diffs := grant.Leq(need, r.Grant); !ok || need.IsNothing() {
		return nil, broker.Fail(broker.BadScope, fmt.Errorf("not granted: %v", diffs), "the grant does not allow this request")
	}
	s, ca, err := p.secret(ctx)
	if err != nil {
		return nil, err
	}
	in := &broker.Injection{Pass: p.cfg.Headers, Scrub: []secret.String{s}, Roots: ca}
	switch {
	case p.cfg.Query != "":
		in.Query = []broker.Injected{{Name: p.cfg.Query, Value: s}}
	case p.cfg.User != "":
		pair := base64.StdEncoding.EncodeToString([]byte(p.cfg.User + ":" + s.Reveal()))
		in.Header = []broker.Injected{{Name: "Authorization", Value: secret.New("Basic " + pair)}}
	default:
		name, value, _ := strings.Cut(p.cfg.Header, ":")
		value = strings.Replace(strings.TrimSpace(value), place, s.Reveal(), 1)
		in.Header = []broker.Injected{{Name: name, Value: secret.New(value)}}
	}
	return in, nil
}

// maxPrefix is the longest prefix that a grant can have.
const maxPrefix = 512

// placeOf is the prefix that a path is, as the least grant for it would have it. What is
// longer than any prefix is cut to one that is above it: a grant that has the one has the
// other, as none has a longer one.
func placeOf(path string) string {
	p := strings.TrimPrefix(path, "/")
	if p != "" && !strings.HasSuffix(p, "/") {
		p += "/"
	}
	for len(p) > maxPrefix {
		p = p[:strings.LastIndexByte(p[:len(p)-1], '/')+1]
	}
	return p
}
