// Package oauth vends access tokens of any server that speaks OAuth, narrowed to some of
// its scopes.
//
// How a token comes about is the flow of the entry:
//
//	refresh    from an account that the subject has linked: its refresh token is used for
//	           fewer scopes than it has (RFC 6749 section 6)
//	exchange   from the subject's own token, by RFC 8693
//	assertion  from what Stint says of the subject in a JWT, by RFC 7523
//
// Many servers take a list of scopes and give what they like: the answer leaves it out, or
// the token has everything. So an entry vends nothing until `stint providers certify` has
// seen that its server narrows; the result is kept with the secrets. Without it the class
// is none.
//
// A refresh token is used by one replica at a time, and what replaces it is kept before
// anything is vended: see [upstream.Parents].
package oauth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

type provider struct {
	name   string
	cfg    Config
	deps   upstream.Deps
	ask    *upstream.Client
	schema *grant.Schema
	about  broker.Description

	mu     sync.Mutex
	record certified
	asking bool
	meta   *metadata
	read   time.Time
}

var _ broker.Provider = (*provider)(nil)

// Describe is what all providers of this kind say of themselves, as one that was certified.
func Describe() broker.Description {
	s, err := newSchema(Config{})
	if err != nil {
		panic("oauth: " + err.Error()) // written in code
	}
	return broker.Description{
		Kind: "oauth", About: "access tokens of any OAuth server that narrows by scope, once that was certified",
		Class: broker.Coarse, Modes: []broker.Mode{broker.Vend}, Schema: s, Scheme: "oauth", Details: "oauth", TokenType: "Bearer",
		MinLifetime: time.Second, MaxLifetime: time.Hour, Revokes: "token", Evidence: broker.Attested, Links: true,
		Reads: "the settings", Identity: []string{"the user, where the flow is refresh or exchange: the token is the user's own"},
	}
}

// newSchema returns the schema of grants: the scopes there are, and what they imply.
func newSchema(c Config) (*grant.Schema, error) {
	return grant.NewSchema("oauth", 1, grant.Dimension{
		Name: "scopes", Type: grant.ScopeSet, Values: slices.Sorted(maps.Keys(c.all())), Below: c.Implies, Reads: c.Reads,
		About: "Scopes of the server. What one implies stands in the settings.",
	})
}

// Open makes a provider of its settings. It asks nobody anything yet.
func Open(ctx context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	p := &provider{name: name, deps: d}
	if err := decode(&p.cfg); err != nil {
		return nil, err
	}
	if err := p.cfg.Check(); err != nil {
		return nil, err
	}
	if p.cfg.ClientAuth == authByKey && p.cfg.ClientID != d.Self {
		// Stint signs as itself, and such an assertion is of the client (RFC 7523 section 3).
		return nil, fmt.Errorf("client_id: with client_auth: private_key_jwt it is %s", d.Self)
	}
	var err error
	if p.schema, err = newSchema(p.cfg); err != nil {
		return nil, fmt.Errorf("implies: %w", err)
	}
	var roots []byte
	if p.cfg.CA != "" {
		pem, err := d.Secret(ctx, p.cfg.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		roots = []byte(pem.Reveal())
	}
	client, err := d.HTTP(p.cfg.hosts(), roots)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	p.ask = upstream.NewClient(name, client)
	p.about = Describe()
	p.about.Schema, p.about.Ready, p.about.Certify = p.schema, p.ready, p.certify
	p.about.MaxLifetime, p.about.Revokes = p.cfg.Lifetime.Duration, p.cfg.Revokes
	if p.about.Revokes != "token" {
		// It lives as long as the server likes, and nothing ends it sooner.
		p.about.MinLifetime = p.about.MaxLifetime
	}
	p.about.Assertion = p.cfg.Flow == flowExchange
	if p.about.Links = p.cfg.Flow == flowRefresh; p.about.Links {
		p.about.Link = &broker.Link{Issuer: p.cfg.Issuer, Begin: p.begin, Finish: p.finish, Linked: p.linked, Unlink: p.unlink}
	}
	return p, nil
}

// Describe implements [broker.Provider]. The class is none unless it was certified.
func (p *provider) Describe() broker.Description {
	d := p.about
	if !p.narrows() {
		d.Class, d.Modes = broker.None, []broker.Mode{broker.Inject}
	}
	return d
}

// ready reads the server's metadata, where there is any.
func (p *provider) ready(ctx context.Context) error {
	_, err := p.endpoints(ctx)
	return err
}

// hosts are those that the settings name.
func (c *Config) hosts() (hosts []string) {
	for _, text := range []string{c.Issuer, c.Authorize, c.Token, c.Revoke, c.Introspect, c.UserInfo} {
		if u, err := url.Parse(text); err == nil && text != "" {
			hosts = append(hosts, u.Hostname())
		}
	}
	return hosts
}

var errNoEndpoint = errors.New("the server has no such endpoint")
