package static

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// Resolve implements [broker.Provider]. Hosts and paths are all the names there are, and
// the upstream knows no subjects: what each may do is what the mapping says.
func (p *provider) Resolve(_ context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	out := &broker.Resolved{
		Request: schema.Everything(), Grants: r.Grants, Entitlement: schema.Everything(),
		Basis: "the upstream knows no subjects, only the secret",
	}
	for i, uri := range r.Resources {
		part, err := p.part(uri)
		if err != nil {
			return nil, broker.Fail(broker.BadTarget, err, err.Error())
		}
		out.Parts = append(out.Parts, part)
		if i > 0 {
			whole, ok := grant.Union(out.Request, part)
			if !ok {
				return nil, broker.Fail(broker.BadTarget, nil, "too many resources")
			}
			part = whole
		}
		out.Request = part
	}
	for _, d := range r.Details {
		wanted, err := p.wanted(d)
		if err != nil {
			return nil, broker.Fail(broker.BadDetails, err, "authorization_details: "+err.Error())
		}
		if out.Wanted != nil {
			whole, ok := grant.Union(*out.Wanted, wanted)
			if !ok {
				return nil, broker.Fail(broker.BadDetails, nil, "authorization_details: too many")
			}
			wanted = whole
		}
		out.Wanted = &wanted
	}
	if out.Wanted != nil {
		out.Request = grant.Meet(out.Request, *out.Wanted)
	}
	return out, nil
}

// part is what static://PROVIDER/HOST/PATH/ names: whatever can be asked there. The error
// may be shown.
func (p *provider) part(uri string) (grant.Grant, error) {
	rest, ours := strings.CutPrefix(uri, "static://"+p.name+"/")
	host, prefix, whole := strings.Cut(rest, "/")
	if !ours || !whole {
		return grant.Grant{}, fmt.Errorf("name a place as static://%s/HOST/PATH/, or a whole host as static://%s/HOST/", p.name, p.name)
	}
	verbs := make([]any, len(broker.Methods))
	for i, m := range broker.Methods {
		verbs[i] = m
	}
	g, err := schema.ParseValue(map[string]any{"calls": []any{map[string]any{"verbs": verbs, "bucket": host, "prefix": prefix}}})
	if err != nil {
		return g, err
	}
	return g, p.check(g)
}

// wanted is what an object of the authorization details asks for. The error may be shown.
func (p *provider) wanted(d map[string]any) (grant.Grant, error) {
	given := make(map[string]any, len(d))
	for k, v := range d {
		if k != "provider" {
			given[k] = v
		} else if v != p.name {
			return grant.Grant{}, fmt.Errorf("provider is not %s", p.name)
		}
	}
	g, err := schema.ParseValue(given)
	switch {
	case err != nil:
		return g, err
	case g.IsNothing():
		return g, errors.New("calls: at least one is needed")
	}
	return g, p.check(g)
}

// check says what is wrong with a grant that this provider can never be asked for. The
// error may be shown.
func (p *provider) check(g grant.Grant) error {
	_, calls := g.Dimension("calls")
	for _, c := range calls {
		if !slices.Contains(p.cfg.hosts(), c[1]) {
			return fmt.Errorf("calls: this provider has no host %q", c[1])
		}
		// What is no canonical path is in no request that is let through.
		if why := broker.NotCanonical("/" + c[2]); why != "" {
			return fmt.Errorf("calls: prefix %q: %s", c[2], why)
		}
	}
	return nil
}
