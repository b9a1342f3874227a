package aws

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

// Resolve implements [broker.Provider]. Buckets, keys and ARNs are what AWS itself
// decides by: there are no other ids.
func (p *provider) Resolve(_ context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	out := &broker.Resolved{
		Request: schema.Everything(), Entitlement: schema.Everything(), Grants: r.Grants,
		Basis: "AWS does not know the subject: the role is the limit",
	}
	for i, uri := range r.Resources {
		part, err := p.part(uri, r.Grants)
		if err == nil && i == 0 {
			out.Request = part
		} else if err == nil {
			out.Request, err = p.union(out.Request, part)
		}
		if err != nil {
			return nil, broker.Fail(broker.BadTarget, err, err.Error())
		}
		out.Parts = append(out.Parts, part)
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

// claims reports whether a URI names a bucket that is this provider's, or is an ARN of
// the role's account.
func (p *provider) claims(uri string) bool {
	if parts := strings.SplitN(uri, ":", 6); parts[0] == "arn" {
		return len(parts) == 6 && parts[1] == p.parts[1] && parts[4] == p.parts[4]
	}
	u, err := url.Parse(uri)
	return err == nil && u.Scheme == "s3" && slices.Contains(p.cfg.Buckets, u.Host)
}

// part is what a resource URI names: aws://NAME/s3/bucket/prefix/ and s3://bucket/prefix/
// are every verb there, and aws://NAME/arn:... and arn:... every action at the ARN that
// the grants name at all. The error may be shown.
func (p *provider) part(uri string, grants []grant.Grant) (grant.Grant, error) {
	wrong := fmt.Errorf("name a bucket and a prefix as aws://%s/s3/bucket/prefix/, or an ARN as aws://%s/arn:...", p.name, p.name)
	u, err := url.Parse(uri)
	if err != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil {
		return grant.Grant{}, wrong
	}
	path := strings.TrimPrefix(u.Path, "/")
	own := u.Scheme == "aws" && u.Host == p.name
	if !own && !p.claims(uri) {
		return grant.Grant{}, wrong
	}
	if u.Scheme == "arn" {
		path = uri
	}
	if strings.HasPrefix(path, "arn:") {
		return p.atARN(path, grants)
	}
	where, ok := strings.CutPrefix(path, "s3/")
	if !own {
		where, ok = u.Host+"/"+path, true
	}
	bucket, prefix, slash := strings.Cut(where, "/")
	if !ok || !slash {
		return grant.Grant{}, wrong
	}
	all := []any{"get", "put", "delete", "list"}
	g, err := schema.ParseValue(map[string]any{"actions": []any{}, "s3": []any{map[string]any{"verbs": all, "bucket": bucket, "prefix": prefix}}})
	if err == nil {
		err = p.check(g)
	}
	return g, err
}

// atARN is every action at an ARN that one of the grants names somewhere.
func (p *provider) atARN(arn string, grants []grant.Grant) (grant.Grant, error) {
	list := []any{}
	for _, g := range grants {
		_, atoms := g.Dimension("actions")
		for _, a := range atoms {
			list = append(list, map[string]any{"actions": a[0], "resource": arn})
		}
	}
	if len(list) == 0 {
		return grant.Grant{}, errors.New("an ARN is named, and no action is granted: ask for what is wanted by authorization_details")
	}
	g, err := schema.ParseValue(map[string]any{"s3": []any{}, "actions": list})
	if err == nil {
		err = p.check(g)
	}
	return g, err
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
		if err == nil && i > 0 {
			g, err = p.union(total, g)
		}
		if err != nil {
			return total, err
		}
		total = g
	}
	return total, nil
}

// union is exact: the dimensions add to each other, so that what is allowed by two
// grants is allowed by one with the elements of both.
func (p *provider) union(a, b grant.Grant) (grant.Grant, error) {
	both := map[string]any{}
	for _, d := range schema.Dimensions() {
		list := []any{}
		for _, g := range []grant.Grant{a, b} {
			all, atoms := g.Dimension(d.Name)
			if all {
				return g, errors.New("all of a dimension is asked for, and more")
			}
			for _, x := range atoms {
				if d.Name == "s3" {
					list = append(list, map[string]any{"verbs": x[0], "bucket": x[1], "prefix": x[2]})
				} else {
					list = append(list, map[string]any{"actions": x[0], "resource": x[1]})
				}
			}
		}
		both[d.Name] = list
	}
	return schema.ParseValue(both)
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
