package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// Resolve implements [broker.Provider]. Namespaces go by their names, which is what RBAC
// goes by; the uids of those that will be granted are for the record. A Role is in its
// namespace: one that is made anew under the same name has nothing of the lease.
func (p *provider) Resolve(ctx context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	out := &broker.Resolved{Request: p.schema.Everything(), Grants: r.Grants, Entitlement: p.schema.Everything()}
	for _, g := range r.Grants {
		if err := p.check(g); err != nil {
			return nil, fmt.Errorf("a grant of the configuration: %w", err)
		}
	}
	for i, uri := range r.Resources {
		part, err := p.part(uri)
		if err == nil && i > 0 {
			out.Request, err = p.union(out.Request, part)
		} else {
			out.Request = part
		}
		if err != nil {
			return nil, broker.Fail(broker.BadTarget, err, err.Error())
		}
		out.Parts = append(out.Parts, part)
	}
	for i, d := range r.Details {
		wanted, err := p.wanted(d)
		if err == nil && i > 0 {
			wanted, err = p.union(*out.Wanted, wanted)
		}
		if err != nil {
			return nil, broker.Fail(broker.BadDetails, err, "authorization_details: "+err.Error())
		}
		out.Wanted = &wanted
	}
	if err := agree(out); err != nil {
		return nil, broker.Fail(broker.BadDetails, err, "authorization_details: "+err.Error())
	}
	return out, p.entitle(ctx, r, out)
}

// agree holds details and resources to each other: every resource is meant, and nothing
// besides.
func agree(out *broker.Resolved) error {
	if out.Wanted == nil {
		return nil
	}
	for _, part := range out.Parts {
		if grant.Meet(part, *out.Wanted).IsNothing() {
			return errors.New("a resource is named of which the details want nothing")
		}
	}
	if ok, _ := grant.Leq(*out.Wanted, out.Request); !ok {
		return errors.New("the details want something that no resource names")
	}
	out.Request = *out.Wanted
	return nil
}

// union is both of two grants, where a token can have both. The error may be shown.
func (p *provider) union(a, b grant.Grant) (grant.Grant, error) {
	u, ok := grant.Union(a, b)
	switch {
	case ok:
		return u, nil
	case p.cfg.Accounts == profiles:
		return u, errors.New("a token has one account: name one profile")
	}
	return u, errors.New("the same rules hold in all namespaces of a token: ask for one thing at a time")
}

// part is what a resource URI names: a namespace, or a profile. There is one spelling for
// each. The error may be shown.
func (p *provider) part(uri string) (grant.Grant, error) {
	name, ours := strings.CutPrefix(uri, "k8s://"+p.name+"/")
	if p.cfg.Accounts == profiles {
		if _, known := p.cfg.Profiles[name]; !ours || !known {
			return grant.Grant{}, fmt.Errorf("name a profile that there is, as k8s://%s/profile", p.name)
		}
		return p.schema.ParseValue(map[string]any{"profile": name})
	}
	if !ours || !dnsLabel(name) || name == p.cfg.Namespace {
		return grant.Grant{}, fmt.Errorf("name a namespace, as k8s://%s/namespace", p.name)
	}
	return p.schema.ParseValue(map[string]any{"namespaces": []any{name}, "rules": star, "cluster": []any{}})
}

// wanted is what an object of the authorization details asks for. What it does not say of
// the cluster it does not want. The error may be shown.
func (p *provider) wanted(d map[string]any) (grant.Grant, error) {
	given := make(map[string]any, len(d))
	if p.cfg.Accounts != profiles {
		given["cluster"] = []any{}
	}
	for k, v := range d {
		if k != "provider" {
			given[k] = v
		} else if v != p.name {
			return grant.Grant{}, fmt.Errorf("provider is not %s", p.name)
		}
	}
	g, err := p.schema.ParseValue(given)
	switch {
	case err != nil:
		return g, err
	case g.IsNothing():
		return g, errors.New("nothing is asked for")
	}
	if every, _ := g.Dimension("profile"); p.cfg.Accounts == profiles && every {
		return g, errors.New("name one profile")
	}
	return g, p.check(g)
}

// likely is what will be granted, unless the subject's own rights are less.
func likely(out *broker.Resolved) grant.Grant {
	g := out.Request
	for _, in := range out.Grants {
		g = grant.Meet(g, in)
	}
	return g
}

// identify looks up the uids of namespaces. One that is not there is an error: it cannot
// be granted.
func (p *provider) identify(ctx context.Context, namespaces []string) (map[string]string, error) {
	ids := make(map[string]string, len(namespaces))
	for _, name := range namespaces {
		var m meta
		err := p.ask(ctx, call{method: http.MethodGet, path: core + name, into: &m})
		switch {
		case isReason(err, notFound):
			return nil, broker.Fail(broker.BadTarget, fmt.Errorf("there is no namespace %s", name), "a namespace that was asked for is not there")
		case isReason(err, forbidden): // then nothing is recorded of it
			continue
		case err != nil:
			return nil, err
		}
		ids["namespace "+name] = m.Metadata.UID
	}
	return ids, nil
}
