package entra

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// Resolve implements [broker.Provider]. Profiles go by the names that the settings give
// them, and are ids of registrations in what is sent. What the subject may do Entra and
// the API see to themselves: a delegated token never reaches further.
func (p *provider) Resolve(_ context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	out := &broker.Resolved{
		Request: p.schema.Everything(), Entitlement: p.schema.Everything(),
		Basis: "a token on behalf of the subject reaches no further than the subject does",
	}
	names := make(map[string]string)
	for _, g := range r.Grants {
		g = p.pin(g)
		if _, name := named(g); name != "" {
			names[name] = p.cfg.Profiles[name].ClientID
		}
		out.Grants = append(out.Grants, g)
	}
	if len(names) > 0 {
		out.Names = names
	}
	for i, uri := range r.Resources {
		part, err := p.part(uri)
		if err == nil && i > 0 && !part.Equal(out.Request) {
			err = errors.New("a token has one profile: name one resource at a time")
		}
		if err != nil {
			return nil, broker.Fail(broker.BadTarget, err, err.Error())
		}
		out.Parts, out.Request = append(out.Parts, part), part
	}
	for i, d := range r.Details {
		wanted, err := p.wanted(d)
		if err == nil && i > 0 && !wanted.Equal(*out.Wanted) {
			err = errors.New("a token has one profile: one object is wanted")
		}
		if err == nil && len(out.Parts) > 0 && !wanted.Equal(out.Parts[0]) {
			err = errors.New("resource and details name different profiles")
		}
		if err != nil {
			return nil, broker.Fail(broker.BadDetails, err, "authorization_details: "+err.Error())
		}
		out.Wanted, out.Request = &wanted, wanted
	}
	return out, nil
}

// named returns the one tenant and the one profile that a grant names; empty where it
// names none, or all.
func named(g grant.Grant) (tenant, profile string) {
	if _, atoms := g.Dimension("tenant"); len(atoms) == 1 {
		tenant = atoms[0][0]
	}
	if _, atoms := g.Dimension("profile"); len(atoms) == 1 {
		profile = atoms[0][0]
	}
	return tenant, profile
}

// pin writes the tenant beside the profile of a grant that leaves it open: there is one,
// so that nothing is lost by it.
func (p *provider) pin(g grant.Grant) grant.Grant {
	_, name := named(g)
	if _, known := p.cfg.Profiles[name]; !known {
		return g
	}
	if open, _ := g.Dimension("tenant"); !open {
		return g
	}
	pinned, err := p.grantOf(name)
	if err != nil {
		return g // and then it cannot be rendered
	}
	return pinned
}

// grantOf is the grant of a profile.
func (p *provider) grantOf(name string) (grant.Grant, error) {
	return p.schema.ParseValue(map[string]any{"tenant": p.cfg.Tenant, "profile": name})
}

// part is what a resource URI names. There is one spelling for one profile. The error
// may be shown.
func (p *provider) part(uri string) (grant.Grant, error) {
	name, ours := strings.CutPrefix(uri, "entra://"+p.name+"/")
	if _, known := p.cfg.Profiles[name]; !ours || !known {
		return grant.Grant{}, fmt.Errorf("name a profile that there is, as entra://%s/profile", p.name)
	}
	return p.grantOf(name)
}

// wanted is what an object of the authorization details asks for. The error may be
// shown.
func (p *provider) wanted(d map[string]any) (grant.Grant, error) {
	given := make(map[string]any, len(d))
	for k, v := range d {
		if k != "provider" {
			given[k] = v
		} else if v != p.name {
			return grant.Grant{}, fmt.Errorf("provider is not %s", p.name)
		}
	}
	g, err := p.schema.ParseValue(given)
	if err != nil {
		return grant.Grant{}, err
	}
	g = p.pin(g)
	if tenant, name := named(g); name == "" || tenant != p.cfg.Tenant {
		return grant.Grant{}, errors.New("name one profile, with its tenant or \"*\"")
	}
	return g, nil
}
