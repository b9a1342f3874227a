// Package vault vends what Vault's dynamic secrets engines make: database logins,
// certificates, cloud keys, whatever is read from or written to a path of an
// engine and leased.
//
// The settings list the credentials that may be vended, each under a name, which
// is the role of a grant:
//
//	roles:
//	  orders-readonly:
//	    mount: database
//	    path: creds/orders-readonly
//	    policy: stint-orders-readonly
//	    reads: true
//	  web-certificate:
//	    mount: pki
//	    path: issue/web
//	    method: write
//	    params: {common_name: web.example}
//	    lifetime_param: ttl
//	    policy: stint-web-certificate
//
// A role is an identity that was made beforehand: what it may do is written in
// Vault, in creation statements and the like, which this package neither reads nor
// can narrow. Whoever is granted a role has all of it.
//
// Each credential is asked for with a token of its own, a child, which has the
// role's policy and nothing else. The child's accessor is noted before anything
// is made, and the lease as soon as there is one; Vault ends the lease with the
// child, so that a credential lives no longer than was asked, whatever the engine
// says. That is for Vault to do: one that is sealed or down when the time comes
// does it later. The engine's own limit (default_ttl, max_ttl) is the second line,
// for an answer that is lost while its child is being ended: it should not be much
// longer than max_lifetime.
//
// A role can leave some parameters of its engine for grants to choose (choose), each
// from a list: a certificate's name, a namespace. Nothing that a caller sends reaches an
// engine in any other way.
//
// Not everything that Vault leases it can take back. A lease on an AWS STS or a
// GCP access token is a note in a book, and a certificate without generate_lease
// has none. Such roles say `revoke: none`, have to end in time by themselves, and
// are never said to be revoked.
package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

// Engine is what is needed of Vault. broker.ErrNotFound says that there is no
// such thing; the code Unavailable, that it may help to try again.
type Engine interface {
	// CreateChild makes a token that has one policy and ends after life, with what
	// was leased by it.
	CreateChild(ctx context.Context, policy string, life time.Duration, lease string) (token secret.String, accessor string, err error)
	// Generate has a child read path, or write params to it if they are not nil. It
	// is never idempotent. lease is empty where the engine leases nothing.
	Generate(ctx context.Context, token secret.String, path string, params map[string]any) (made map[string]secret.String, lease string, life time.Duration, err error)
	// RevokeLease returns when a lease has ended upstream; nil if there is none.
	RevokeLease(ctx context.Context, lease string) error
	// RevokeChild ends a child, and only begins to end what it leased. ErrNotFound.
	RevokeChild(ctx context.Context, accessor string) error
	// LookupChild and LookupLease return when it ends. ErrNotFound if it has.
	LookupChild(ctx context.Context, accessor string) (time.Time, error)
	LookupLease(ctx context.Context, lease string) (time.Time, error)
}

type provider struct {
	name   string
	cfg    Config
	deps   upstream.Deps
	engine Engine
	// chooses says that grants have the dimension params.
	chooses bool
	schema  *grant.Schema
	about   broker.Description
}

var _ broker.Provider = (*provider)(nil)

// Describe is what all providers of this kind say of themselves, with the schema
// as it is without roles.
func Describe() broker.Description {
	s, err := newSchema(nil)
	if err != nil {
		panic("vault: " + err.Error()) // written in code
	}
	return broker.Description{
		Kind: "vault", About: "credentials of Vault's dynamic secrets engines, each by a role that was made beforehand",
		Class: broker.Profile, Modes: []broker.Mode{broker.Vend}, Reads: "the settings", Schema: s, Scheme: "vault", Details: "vault", TokenType: "N_A",
		MinLifetime: minLifetime, MaxLifetime: time.Hour, Settable: true, Revokes: "token", Evidence: broker.Echoed,
		Identity: []string{
			"Vault's audit log, auth.metadata.lease and auth.display_name: the lease",
			"names that an engine makes of the display name, such as database users: the lease's beginning",
		},
	}
}

// newSchema returns the schema of grants. The roles there are, and which of them
// only read, are part of it.
func newSchema(roles map[string]Role) (*grant.Schema, error) {
	role := grant.Dimension{
		Name: "role", Type: grant.Profile, Values: slices.Sorted(maps.Keys(roles)),
		About: "An identity that was made beforehand. What it may do is written in Vault; nothing narrower than all of it can be granted.",
	}
	for _, name := range role.Values {
		if roles[name].Reads {
			role.Reads = append(role.Reads, name)
		}
	}
	dims := []grant.Dimension{role, {
		Name: "mount", Type: grant.Exact, About: "Where in Vault the role's secrets engine is mounted. A role has one mount.",
	}}
	if all := choices(roles); len(all) > 0 {
		dims = append(dims, grant.Dimension{
			Name: "params", Type: grant.IDSet, Optional: true, Values: all,
			About: "What a role lets a grant choose, as parameter=value. A credential has one value of each.",
		})
	}
	return grant.NewSchema("vault", 1, dims...)
}

// choices are all that some role lets a grant choose, as parameter=value.
func choices(roles map[string]Role) (all []string) {
	for _, r := range roles {
		for name, values := range r.Choose {
			for _, v := range values {
				all = append(all, name+"="+v)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// On returns what makes a provider on a Vault of its settings. It asks Vault for
// nothing: that waits for the first use.
func On(e Engine) func(ctx context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	return func(_ context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
		return open(e, name, decode, d)
	}
}

func open(e Engine, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	if e == nil {
		return nil, errors.New("credentials of Vault's engines need a Vault: secrets are kept in a file here (secrets.kind)")
	}
	p := &provider{name: name, deps: d, engine: e}
	if err := decode(&p.cfg); err != nil {
		return nil, err
	}
	if err := p.cfg.Check(); err != nil {
		return nil, err
	}
	var err error
	if p.schema, err = newSchema(p.cfg.Roles); err != nil {
		return nil, fmt.Errorf("roles: %w", err)
	}
	p.chooses = len(choices(p.cfg.Roles)) > 0
	p.about = Describe()
	p.about.Schema, p.about.MaxLifetime, p.about.Ready, p.about.Check = p.schema, p.cfg.MaxLifetime.Duration, p.ready, p.check
	for _, r := range p.cfg.Roles {
		// The least that is true of all roles: an outcome says more.
		if r.lasts() {
			p.about.Revokes = "none"
		}
		if r.lasts() && r.LifetimeParam == "" {
			p.about.Settable = false
		}
	}
	// No Sweep: to list leases takes sudo in Vault, which Stint's policy does not
	// have. Nothing needs it: what is forgotten ends with its child.
	return p, nil
}

// Describe implements [broker.Provider].
func (p *provider) Describe() broker.Description { return p.about }

// ready looks for a lease that there is not: Vault has to be there, unsealed, and
// take us for somebody who may ask.
func (p *provider) ready(ctx context.Context) error {
	first := slices.Min(slices.Collect(maps.Keys(p.cfg.Roles)))
	_, err := p.engine.LookupLease(ctx, p.cfg.Roles[first].where()+"/none")
	if errors.Is(err, broker.ErrNotFound) {
		return nil
	}
	return err
}
