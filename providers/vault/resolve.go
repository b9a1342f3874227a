package vault

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// Resolve implements [broker.Provider]. Roles go by the names that the settings
// give them.
func (p *provider) Resolve(_ context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	out := &broker.Resolved{
		Request: p.schema.Everything(), Entitlement: p.schema.Everything(),
		Basis: "Vault's engines do not know the subject",
	}
	for _, g := range r.Grants {
		out.Grants = append(out.Grants, p.pin(g))
	}
	for i, uri := range r.Resources {
		part, err := p.part(uri)
		if err == nil && i > 0 && !part.Equal(out.Request) {
			err = errors.New("a credential has one role: name one resource at a time")
		}
		if err != nil {
			return nil, broker.Fail(broker.BadTarget, err, err.Error())
		}
		out.Parts, out.Request = append(out.Parts, part), part
	}
	for i, d := range r.Details {
		wanted, err := p.wanted(d)
		if err == nil && i > 0 && !wanted.Equal(*out.Wanted) {
			err = errors.New("a credential has one role: one object is wanted")
		}
		if err == nil && len(out.Parts) > 0 {
			if below, _ := grant.Leq(wanted, out.Parts[0]); !below {
				err = errors.New("resource and details name different roles")
			}
		}
		if err != nil {
			return nil, broker.Fail(broker.BadDetails, err, "authorization_details: "+err.Error())
		}
		out.Wanted, out.Request = &wanted, wanted
	}
	return out, nil
}

// pin writes the mount beside the role of a grant that leaves the mount open: a
// role has one, so that nothing is lost by it.
func (p *provider) pin(g grant.Grant) grant.Grant {
	_, name := named(g)
	if _, known := p.cfg.Roles[name]; !known {
		return g
	}
	pinned, err := p.grantOf(name, "*")
	if err != nil {
		return g // and then it cannot be rendered
	}
	// What is open closes: what is not, stays as it is.
	if below := grant.Meet(g, pinned); !below.IsNothing() {
		return below
	}
	return g
}

// part is what a resource URI names. There is one spelling for one role. The
// error may be shown.
func (p *provider) part(uri string) (grant.Grant, error) {
	name, ours := strings.CutPrefix(uri, "vault://"+p.name+"/")
	if _, known := p.cfg.Roles[name]; !ours || !known {
		return grant.Grant{}, fmt.Errorf("name a role that there is, as vault://%s/role", p.name)
	}
	return p.grantOf(name, "*")
}

// wanted is what an object of the authorization details asks for. The error may
// be shown.
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
	if err == nil {
		err = p.check(g)
	}
	if err != nil {
		return grant.Grant{}, err
	}
	g = p.pin(g)
	mount, name := named(g)
	if r, known := p.cfg.Roles[name]; !known || mount != r.Mount {
		return grant.Grant{}, errors.New("name one role, with its mount or \"*\"")
	}
	return g, nil
}
