// Package entra vends Microsoft Entra's access tokens on behalf of the subject, by the
// on-behalf-of flow.
//
// Entra does not narrow. Whatever scope a request names, the token has every permission
// that the app registration was ever granted for the subject. So each profile is an app
// registration of its own, to which an administrator has granted what the profile is for
// and nothing else:
//
//	tenant: 11111111-1111-1111-1111-111111111111
//	profiles:
//	  mail-read: {client_id: ..., client_secret: vault:entra#mail-read, scopes: [Mail.Read], reads: true}
//	  mail-send: {client_id: ..., client_secret: vault:entra#mail-send, scopes: [Mail.Read, Mail.Send]}
//
// A profile is below another if its scopes are among the other's. What Entra's answer
// names beyond the profile's list is refused, whoever it was that granted it.
//
// The subject token has to be the subject's own, from Entra, for the profile's
// registration: Entra takes no other. Where clients have tokens for one API and there are
// several profiles, front is that API's registration: it asks for a token for the
// profile's, which then asks for the one that is vended.
//
// Entra has no request that ends an access token, and none for how long it lives: an hour
// to an hour and a half, unless the tenant has a policy. A lease needs that much time, or
// the settings have to say that tokens may outlive what they were made from (outlives).
package entra

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

type provider struct {
	name   string
	cfg    Config
	deps   upstream.Deps
	client *upstream.Client
	schema *grant.Schema
	about  broker.Description
}

var _ broker.Provider = (*provider)(nil)

// delay is what requests may take, so that a token which begins late is in time.
const delay = 30 * time.Second

// Describe is what all providers of this kind say of themselves, with the schema as it is
// without profiles.
func Describe() broker.Description {
	s, err := newSchema(nil)
	if err != nil {
		panic("entra: " + err.Error()) // written in code
	}
	return broker.Description{
		Kind: "entra", About: "access tokens of Microsoft Entra on behalf of the subject, one app registration a profile",
		Class: broker.Profile, Modes: []broker.Mode{broker.Vend}, Schema: s, Scheme: "entra", Details: "entra", TokenType: "Bearer",
		MinLifetime: usualLife + delay, MaxLifetime: usualLife + 2*delay, Revokes: "none", Evidence: broker.Attested, Assertion: true,
		Identity: []string{
			"the token's oid and tid, and so the upstream's own log: the subject",
			"Entra's sign-in log: the profile's app registration, on behalf of the subject",
		},
		Reads: "the settings",
	}
}

// newSchema returns the schema of grants. The profiles there are, their order, and which
// of them only read, are part of it.
func newSchema(profiles map[string]Profile) (*grant.Schema, error) {
	d := grant.Dimension{
		Name: "profile", Type: grant.Profile, Values: slices.Sorted(maps.Keys(profiles)), Below: make(map[string][]string),
		About: "An app registration. Whoever is granted it has all that was granted to it; one is below another if its scopes are.",
	}
	for _, above := range d.Values {
		if profiles[above].Reads {
			d.Reads = append(d.Reads, above)
		}
		for _, below := range d.Values {
			if above != below && profiles[below].within(profiles[above]) {
				d.Below[above] = append(d.Below[above], below)
			}
		}
	}
	return grant.NewSchema("entra", 1, d, grant.Dimension{
		Name: "tenant", Type: grant.Exact, About: "The directory that the profiles are in. A provider has one.",
	})
}

// Open makes a provider of its settings. It asks Entra for nothing: that waits for the
// first use.
func Open(_ context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	p := &provider{name: name, deps: d}
	if err := decode(&p.cfg); err != nil {
		return nil, err
	}
	if err := p.cfg.Check(); err != nil {
		return nil, err
	}
	var err error
	if p.schema, err = newSchema(p.cfg.Profiles); err != nil {
		return nil, fmt.Errorf("profiles: %w", err)
	}
	u, err := url.Parse(p.cfg.Login)
	if err != nil {
		return nil, fmt.Errorf("login: what stands there is no URL")
	}
	h, err := d.HTTP([]string{u.Hostname()}, nil)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	p.client = upstream.NewClient("Entra", h)
	p.about = Describe()
	p.about.Schema, p.about.Ready, p.about.Outlives = p.schema, p.ready, p.cfg.Outlives
	p.about.MinLifetime, p.about.MaxLifetime = p.cfg.TokenLifetime.Duration+delay, p.cfg.TokenLifetime.Duration+2*delay
	return p, nil
}

// Describe implements [broker.Provider].
func (p *provider) Describe() broker.Description { return p.about }

// tokenURL is the token endpoint of the tenant.
func (p *provider) tokenURL() string { return p.cfg.Login + "/" + p.cfg.Tenant + "/oauth2/v2.0/token" }

// ready asks for the tenant's metadata.
func (p *provider) ready(ctx context.Context) error {
	a, err := p.client.Do(ctx, upstream.Request{
		Method: http.MethodGet, URL: p.cfg.Login + "/" + p.cfg.Tenant + "/v2.0/.well-known/openid-configuration",
	})
	if err == nil && a.Status != http.StatusOK {
		err = broker.Fail(broker.Unavailable, fmt.Errorf("Entra answers %d for the metadata of the tenant", a.Status), "the upstream cannot be used")
	}
	return err
}
