// Package paste vends tokens of a paste server, each for some of its pastes.
package paste

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

// Config is what the configuration says of one paste server.
type Config struct {
	// URL is where the server is.
	URL string `yaml:"url" check:"required,https"`
	// Key is a reference to Stint's own key there.
	Key string `yaml:"key" check:"required,reference"`
}

// schema is the shape of grants: everything that a token can do, in dimensions.
var schema = grant.MustSchema("paste", 1, grant.Dimension{
	Name: "pastes", Type: grant.LevelMap, Reads: []string{"read"}, About: "Pastes by their ids, and whether each can be read or written.",
})

type provider struct {
	name  string
	cfg   Config
	deps  upstream.Deps
	ask   *upstream.Client
	about broker.Description
}

// Describe is what all providers of this kind say of themselves.
func Describe() broker.Description {
	return broker.Description{
		Kind: "paste", About: "tokens of a paste server, each for some pastes", Class: broker.Exact, Modes: []broker.Mode{broker.Vend},
		Schema: schema, Scheme: "paste", Details: "paste", TokenType: "Bearer", MinLifetime: time.Second, MaxLifetime: time.Hour, Settable: true,
		Revokes: "token", Evidence: broker.Attested, Reads: "the level read", Identity: []string{"the token's name: the lease"},
	}
}

// Open makes a provider of its settings. It asks nobody anything yet.
func Open(_ context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	p := &provider{name: name, deps: d, about: Describe()}
	if err := decode(&p.cfg); err != nil {
		return nil, err
	}
	u, err := url.Parse(p.cfg.URL)
	if err != nil {
		return nil, errors.New("url: it is no URL")
	}
	client, err := d.HTTP([]string{u.Hostname()}, nil)
	if err != nil {
		return nil, err
	}
	p.ask = upstream.NewClient(name, client)
	p.about.Ready = p.ready
	return p, nil
}

// Describe implements [broker.Provider].
func (p *provider) Describe() broker.Description { return p.about }

// Resolve implements [broker.Provider]: pastes have no names but their ids.
func (p *provider) Resolve(_ context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	out := &broker.Resolved{
		Request: schema.Everything(), Grants: r.Grants, Entitlement: schema.Everything(), Basis: "the server does not know subjects",
	}
	named := map[string]any{}
	for _, uri := range r.Resources {
		id, ours := strings.CutPrefix(uri, "paste://"+p.name+"/")
		part, err := schema.ParseValue(map[string]any{"pastes": map[string]any{id: "write"}})
		if !ours || err != nil || strings.ContainsAny(id, "/*?") {
			return nil, broker.Fail(broker.BadTarget, err, "name a paste as paste://"+p.name+"/ID")
		}
		named[id], out.Parts = "write", append(out.Parts, part)
		if out.Request, err = schema.ParseValue(map[string]any{"pastes": named}); err != nil {
			return nil, broker.Fail(broker.BadTarget, err, err.Error())
		}
	}
	for _, d := range r.Details {
		delete(d, "provider")
		wanted, err := schema.ParseValue(d)
		if err != nil || out.Wanted != nil {
			return nil, broker.Fail(broker.BadDetails, err, "authorization_details: one object with pastes is wanted")
		}
		out.Wanted, out.Request = &wanted, grant.Meet(out.Request, wanted)
	}
	return out, nil
}

// Render implements [broker.Provider]: the levels, as the server is told them.
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	everything, atoms := g.Dimension("pastes")
	if everything || g.IsNothing() {
		return nil, fmt.Errorf("all pastes, or none: %w", broker.ErrInexpressible)
	}
	levels := make(map[string]string, len(atoms))
	for _, a := range atoms {
		if levels[a[0]] = a[1]; a[1] == "admin" {
			return nil, fmt.Errorf("%s: there is no more than write: %w", a[0], broker.ErrInexpressible)
		}
	}
	return strictjson.Encode(map[string]any{"pastes": levels})
}

// Parse implements [broker.Provider].
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	var r struct {
		Pastes map[string]any `json:"pastes"`
	}
	if err := strictjson.Decode(rendered, &r); err != nil {
		return grant.Grant{}, err
	}
	g, err := schema.ParseValue(map[string]any{"pastes": r.Pastes})
	if err == nil && g.IsNothing() {
		err = errors.New("nothing is never asked for")
	}
	return g, err
}

// Mint implements [broker.Provider]. A token is named by its lease, so that there is no
// handle to note.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	var asked struct {
		Pastes map[string]string `json:"pastes"`
	}
	if err := strictjson.Decode(r.Rendered, &asked); err != nil {
		return nil, err
	}
	a, err := p.do(ctx, http.MethodPut, "/tokens/"+r.Lease, map[string]any{"pastes": asked.Pastes, "until": r.Expires.Unix()})
	if err != nil {
		return nil, err
	}
	var got struct {
		Token  string         `json:"token"`
		Pastes map[string]any `json:"pastes"`
		Until  int64          `json:"until"`
	}
	if err := a.JSON(&got); err != nil || a.Status != http.StatusOK {
		return nil, fmt.Errorf("make a token: status %d: %w", a.Status, err)
	}
	granted, err := schema.ParseValue(map[string]any{"pastes": got.Pastes})
	if err != nil {
		return nil, fmt.Errorf("what was granted: %w", err)
	}
	return &broker.Minted{
		Token: secret.New(got.Token), Granted: granted, Evidence: broker.Attested, Expires: time.Unix(got.Until, 0),
		Upstream: map[string]string{"token": r.Lease},
	}, nil
}

// Revoke implements [broker.Provider].
func (p *provider) Revoke(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if !slices.ContainsFunc([]byte(r.Lease), func(b byte) bool { return b < '0' || b > 'z' }) && r.Lease != "" {
		a, err := p.do(ctx, http.MethodDelete, "/tokens/"+r.Lease, nil)
		if err != nil {
			return broker.Outcome{}, err
		}
		if a.Status == http.StatusNoContent {
			return broker.Outcome{State: broker.Revoked}, nil
		}
	}
	return broker.Outcome{State: broker.AlreadyDead}, nil
}

func (p *provider) ready(ctx context.Context) error {
	_, err := p.do(ctx, http.MethodGet, "/tokens/", nil)
	return err
}

func (p *provider) do(ctx context.Context, method, path string, body any) (*upstream.Answer, error) {
	key, err := p.deps.Secret(ctx, p.cfg.Key)
	if err != nil {
		return nil, err
	}
	return p.ask.Do(ctx, upstream.Request{Method: method, URL: p.cfg.URL + path, Bearer: key, JSON: body})
}
