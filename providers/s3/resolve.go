package s3

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// Resolve implements [broker.Provider]. Buckets and keys are what the store itself
// decides by: there are no other ids.
func (p *provider) Resolve(_ context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	out := &broker.Resolved{
		Request: schema.Everything(), Entitlement: schema.Everything(), Grants: r.Grants,
		Basis: "the store does not know the subject: the user of its keys is the limit",
	}
	named := []any{}
	for _, uri := range r.Resources {
		part, entries, err := p.part(uri)
		if err != nil {
			return nil, broker.Fail(broker.BadTarget, err, err.Error())
		}
		named = append(named, entries)
		out.Parts = append(out.Parts, part)
	}
	if len(named) > 0 {
		all, err := schema.ParseValue(map[string]any{"objects": named})
		if err != nil {
			return nil, broker.Fail(broker.BadTarget, err, err.Error())
		}
		out.Request = all
	}
	if len(r.Details) > 0 {
		wanted, err := p.wanted(r.Details)
		if err == nil {
			err = agree(wanted, out)
		}
		if err != nil {
			return nil, broker.Fail(broker.BadDetails, err, "authorization_details: "+err.Error())
		}
		out.Wanted, out.Request = &wanted, grant.Meet(out.Request, wanted)
	}
	return out, nil
}

// claims reports whether a URI names a bucket that is this provider's.
func (p *provider) claims(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && u.Scheme == "s3" && slices.Contains(p.cfg.Buckets, u.Host)
}

// part is what a resource URI names: every verb at an object, or below a prefix. The
// error may be shown.
func (p *provider) part(uri string) (g grant.Grant, entry any, err error) {
	u, err := url.Parse(uri)
	own := err == nil && u.Host == p.name
	if err != nil || u.Scheme != "s3" || !own && !p.claims(uri) || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil {
		return g, nil, fmt.Errorf("name an object as s3://%s/bucket/key, or a prefix as s3://%s/bucket/prefix/", p.name, p.name)
	}
	resource := strings.TrimPrefix(u.Path, "/")
	if !own {
		resource = u.Host + "/" + resource
	}
	list := []any{"get", "put", "delete"}
	if strings.HasSuffix(resource, "/") && p.cfg.STS != "none" {
		list = append(list, "list")
	}
	entry = map[string]any{"actions": list, "resource": resource}
	g, err = schema.ParseValue(map[string]any{"objects": []any{entry}})
	if err == nil {
		err = p.check(g)
	}
	return g, entry, err
}

// wanted is what authorization details ask for, all of them together. The error
// may be shown.
func (p *provider) wanted(details []map[string]any) (grant.Grant, error) {
	total := schema.Nothing()
	for i, d := range details {
		given := make(map[string]any, len(d))
		for k, v := range d {
			if k != "provider" {
				given[k] = v
			} else if v != p.name {
				return total, fmt.Errorf("provider is not %s", p.name)
			}
		}
		g, err := schema.ParseValue(given)
		if err == nil {
			err = p.check(g)
		}
		if err == nil && g.IsNothing() {
			err = errors.New("nothing is asked for")
		}
		if err != nil {
			return total, err
		}
		if i == 0 {
			total = g
			continue
		}
		both, ok := grant.Union(total, g)
		if !ok {
			return total, errors.New("there are too many objects")
		}
		total = both
	}
	return total, nil
}

// agree holds details and resources to each other.
func agree(wanted grant.Grant, out *broker.Resolved) error {
	if len(out.Parts) == 0 {
		return nil
	}
	if ok, diffs := grant.Leq(wanted, out.Request); !ok {
		return fmt.Errorf("no resource names %s", diffs[0].Excess)
	}
	for i, part := range out.Parts {
		if grant.Meet(part, wanted).IsNothing() {
			return fmt.Errorf("nothing of resource %d is asked for", i+1)
		}
	}
	return nil
}
