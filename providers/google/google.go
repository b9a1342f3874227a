// Package google vends access tokens for Google's APIs: a user's own, by what he linked;
// a service account's, by workload identity federation; and, for one service account
// and all of a domain's users, by domain-wide delegation. No key of Google's is kept for
// any of them but the client secret of the first.
//
// Each entry of the settings has one flow:
//
//	flow: user             # the subject's own account, linked; grants are scopes
//	flow: service_account  # one service account; grants are scopes
//	flow: storage          # one service account within a Credential Access Boundary:
//	                       # grants are verbs at buckets, below prefixes
//	flow: delegation       # the subject's account in a Workspace domain; grants are scopes
//
// The flows differ in what can be narrowed. Scopes are all that Google's tokens know
// (class coarse), but for Cloud Storage: a boundary is enforced there, object by object
// (class exact), and a token within a boundary is good for nothing else.
//
// They differ in how long a token lives. A service account's lives as long as was asked.
// A user's lives for an hour, always. None can be taken back: Google's revocation ends
// everything that a user ever granted to the client, all other leases included, and is
// kept for unlinking. So a lease of a user's token needs an hour that is left to it, or
// settings that accept that it outlives what it was made from (outlives).
//
// They differ in whom Google's own log names. By federation it is the service account,
// on behalf of a principal whose name is a pseudonym of the subject.
package google

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
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

const (
	// fixedLife is how long a user's token lives, whatever is asked for.
	fixedLife = time.Hour
	// delay is what a request may take, so that a token which begins late is in time.
	delay = 30 * time.Second
	// minLifetime is the shortest life that a service account's token is asked for.
	minLifetime = time.Minute
)

// Describe is what all providers of this kind say of themselves. The schema has the
// dimensions of all flows; an entry has those of its own.
func Describe() broker.Description {
	return broker.Description{
		Kind: "google", About: "access tokens for Google's APIs: of users, service accounts, and within boundaries at Cloud Storage",
		Class: broker.Coarse, Modes: []broker.Mode{broker.Vend}, Schema: schemaOf(""),
		Scheme: "google", Details: "google", TokenType: "Bearer",
		MinLifetime: minLifetime, MaxLifetime: fixedLife, Revokes: "none", Evidence: broker.Attested, Links: true,
		Identity: []string{
			"Cloud Audit Logs, serviceAccountDelegationInfo.principalSubject: a pseudonym of the subject (service_account, storage)",
			"logs of Workspace, actor: the subject's own account (user, delegation)",
		},
		Reads: "scopes: " + readsVersion + "; storage: get and list",
	}
}

// schemaOf returns the schema of a flow's grants; that of all flows, if it is empty.
func schemaOf(flow string) *grant.Schema {
	scopes := grant.Dimension{
		Name: "scopes", Type: grant.ScopeSet, Optional: flow == "", Below: implied, Reads: reads,
		About: "OAuth scopes, without https://www.googleapis.com/auth/ before them; https://mail.google.com/ is mail.google.com.",
	}
	account := grant.Dimension{
		Name: "account", Type: grant.Exact, Optional: flow == "",
		About: "Flow delegation: the account that the token is for. It is the subject's own, which \"*\" becomes.",
	}
	storage := grant.Dimension{
		Name: "storage", Type: grant.PrefixSet, Optional: flow == "", Values: verbs, Reads: []string{"get", "list"},
		About: "Flow storage: get, list, put and delete of objects of a bucket below a prefix. To replace an object takes delete and put.",
	}
	switch flow {
	case "":
		return grant.MustSchema("google", 1, scopes, account, storage)
	case flowDelegation:
		return grant.MustSchema("google", 1, scopes, account)
	case flowStorage:
		return grant.MustSchema("google", 1, storage)
	}
	return grant.MustSchema("google", 1, scopes)
}

// Open makes a provider of its settings. It asks Google for nothing: that waits for the
// first use.
func Open(ctx context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	p := &provider{name: name, deps: d}
	if err := decode(&p.cfg); err != nil {
		return nil, err
	}
	if err := p.cfg.Check(); err != nil {
		return nil, err
	}
	hosts, err := p.cfg.Endpoints.hosts()
	if err != nil {
		return nil, err
	}
	h, err := d.HTTP(hosts, nil)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	p.client = upstream.NewClient("Google", h)
	p.schema = schemaOf(p.cfg.Flow)
	p.about = p.describe()
	return p, nil
}

// describe says what is true of the flow.
func (p *provider) describe() broker.Description {
	d := Describe()
	d.Schema, d.Ready, d.Check, d.Links = p.schema, p.ready, p.check, false
	switch p.cfg.Flow {
	case flowUser:
		d.Identity = d.Identity[1:]
		d.Links, d.Link = true, p.link()
	case flowDelegation:
		d.Identity = d.Identity[1:]
	case flowStorage:
		d.Class, d.Scheme = broker.Exact, "gs"
		d.Claims = func(uri string) bool { _, ok := claimed(uri); return ok }
		d.Identity, d.Reads = d.Identity[:1], "get and list"
	default:
		d.Identity = d.Identity[:1]
	}
	if p.cfg.fixed() {
		d.MinLifetime, d.MaxLifetime, d.Outlives = fixedLife+delay, fixedLife+2*delay, p.cfg.Outlives
	} else {
		d.MaxLifetime, d.Settable = p.cfg.MaxLifetime.Duration, true
	}
	d.Evidence = broker.Asserted
	switch {
	case p.cfg.Attest:
		d.Evidence = broker.Attested
	case p.cfg.Flow == flowUser:
		d.Evidence = broker.Echoed
	}
	return d
}

// Describe implements [broker.Provider].
func (p *provider) Describe() broker.Description { return p.about }

// check refuses grants of a mapping that can never be asked for.
func (p *provider) check(g grant.Grant) error {
	if g.IsNothing() {
		return nil
	}
	if all, atoms := g.Dimension("scopes"); !all {
		for _, a := range atoms {
			if _, ok := full(a[0]); !ok {
				return fmt.Errorf("%q is no scope of Google's; they are written without https://www.googleapis.com/auth/", a[0])
			}
		}
	}
	if all, atoms := g.Dimension("storage"); !all {
		for _, a := range atoms {
			if err := checkPlace(a[1], a[2]); err != nil {
				return err
			}
		}
	}
	return nil
}

// ready asks for the endpoint that tokens come from. It answers that this is not how it
// is asked, which is enough.
func (p *provider) ready(ctx context.Context) error {
	where := p.cfg.Endpoints.STS
	if p.cfg.Flow == flowUser {
		where = p.cfg.Endpoints.Token
	}
	_, err := p.client.Do(ctx, upstream.Request{Method: http.MethodGet, URL: where})
	return err
}

// hosts are those of all endpoints.
func (e *Endpoints) hosts() ([]string, error) {
	var out []string
	for _, text := range []string{e.Token, e.Revoke, e.TokenInfo, e.STS, e.IAMCredentials} {
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" {
			return nil, errors.New("endpoints: what stands there is no URL")
		}
		out = append(out, u.Hostname())
	}
	return out, nil
}
