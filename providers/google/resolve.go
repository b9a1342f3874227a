package google

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

// Resolve implements [broker.Provider]. Scopes and buckets have no other ids than their
// names. What the subject may do is what he consented to; or whatever his account may,
// which Google sees to; or nothing that Google knows, where it is a service account's.
func (p *provider) Resolve(ctx context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	out := &broker.Resolved{Request: p.schema.Everything()}
	own := p.schema.Everything()
	var err error
	switch p.cfg.Flow {
	case flowUser:
		out.Entitlement, out.Basis, err = p.consented(ctx, r)
	case flowDelegation:
		own, err = p.account(r.Subject)
		out.Entitlement, out.Basis = own, "the settings say which account is the subject's, and Google what it may do"
	default:
		out.Entitlement, out.Basis = own, "Google does not know the subject: the service account's rights are its own"
	}
	if err != nil {
		return nil, err
	}
	for _, g := range r.Grants {
		// An account that is not named is the subject's: nothing is lost by saying so.
		if all, _ := g.Dimension("scopes"); p.cfg.Flow == flowDelegation && !all {
			g = grant.Meet(g, own)
		}
		out.Grants = append(out.Grants, g)
	}
	if err := p.named(r, out); err != nil {
		return nil, err
	}
	if err := p.detailed(r, own, out); err != nil {
		return nil, err
	}
	if err := p.linkable(r, out); err != nil {
		return nil, err
	}
	return out, nil
}

// linkable reports that the subject has to link his account again, where he has consented
// to nothing of what is asked, and would be asked to.
func (p *provider) linkable(r broker.ResolveRequest, out *broker.Resolved) error {
	if p.cfg.Flow != flowUser || !r.Live || len(out.Grants) == 0 {
		return nil
	}
	list := make([]any, len(p.cfg.Scopes))
	for i, s := range p.cfg.Scopes {
		list[i] = s
	}
	offered, err := p.schema.ParseValue(map[string]any{"scopes": list})
	if err != nil {
		return fmt.Errorf("scopes: %w", err)
	}
	asked := out.Request
	for _, g := range out.Grants {
		asked = grant.Meet(asked, g)
	}
	if grant.Meet(asked, out.Entitlement).IsNothing() && !grant.Meet(asked, offered).IsNothing() {
		return needsLink(errors.New("the linked account's owner has consented to nothing of this"))
	}
	return nil
}

// named reads the resources of a request.
func (p *provider) named(r broker.ResolveRequest, out *broker.Resolved) error {
	for i, uri := range r.Resources {
		part, err := p.part(uri)
		if err != nil {
			return broker.Fail(broker.BadTarget, err, err.Error())
		}
		out.Parts = append(out.Parts, part)
		if i == 0 {
			out.Request = part
			continue
		}
		all, ok := grant.Union(out.Request, part)
		if !ok {
			return broker.Fail(broker.BadTarget, nil, "these resources are too many for one credential")
		}
		out.Request = all
	}
	return nil
}

// detailed reads the details of a request.
func (p *provider) detailed(r broker.ResolveRequest, own grant.Grant, out *broker.Resolved) error {
	bad := func(err error) error {
		return broker.Fail(broker.BadDetails, err, "authorization_details: "+err.Error())
	}
	for _, d := range r.Details {
		g, err := p.wanted(d)
		if err != nil {
			return bad(err)
		}
		if g = grant.Meet(g, own); g.IsNothing() {
			return bad(errors.New("name something, of the subject's own account"))
		}
		if out.Wanted != nil {
			all, ok := grant.Union(*out.Wanted, g)
			if !ok {
				return bad(errors.New("these are too many for one credential"))
			}
			g = all
		}
		out.Wanted = &g
	}
	if out.Wanted == nil {
		return nil
	}
	if ok, _ := grant.Leq(*out.Wanted, out.Request); !ok {
		return bad(errors.New("resource and details do not agree"))
	}
	out.Request = *out.Wanted
	return nil
}

// consented is what the owner of the linked account consented to.
func (p *provider) consented(ctx context.Context, r broker.ResolveRequest) (grant.Grant, string, error) {
	if !r.Live {
		return p.schema.Everything(), "assumed: nobody was asked what the subject has linked", nil
	}
	parent, err := p.parent(ctx, r.Subject)
	if err != nil {
		return grant.Grant{}, "", err
	}
	list := make([]any, len(parent.Account.Scopes))
	for i, s := range parent.Account.Scopes {
		list[i] = s
	}
	g, err := p.schema.ParseValue(map[string]any{"scopes": list})
	if err != nil {
		return g, "", fmt.Errorf("read what was consented to: %w", err)
	}
	return g, "what the owner of the linked account consented to", nil
}

// parent is what a subject has linked. The error has the code NeedsLink if there is
// nothing that can be used.
func (p *provider) parent(ctx context.Context, subject string) (*upstream.Parent, error) {
	parent, err := p.deps.Parents.Get(ctx, p.key(subject))
	switch {
	case errors.Is(err, broker.ErrNotFound):
		return nil, needsLink(err)
	case err != nil:
		return nil, err
	case parent.Account.Broken != "":
		return nil, needsLink(errors.New("the linked account is broken: " + parent.Account.Broken))
	}
	return parent, nil
}

func (p *provider) key(subject string) upstream.ParentKey {
	return upstream.ParentKey{Provider: p.name, Subject: subject}
}

func needsLink(err error) error {
	return broker.Fail(broker.NeedsLink, err, "the subject has to link an account at this upstream")
}

// account is the grant of everything at the subject's own account.
func (p *provider) account(subject string) (grant.Grant, error) {
	mail, known := p.cfg.Users[subject]
	if !known {
		return grant.Grant{}, broker.Fail(broker.BadTarget, errors.New("the settings name no account of the subject's"), "the subject has no account at this upstream")
	}
	return p.schema.ParseValue(map[string]any{"account": mail, "scopes": "*"})
}

// part is what a resource URI names: a scope, or a bucket with a prefix. There is one
// spelling for each. The error may be shown.
func (p *provider) part(uri string) (grant.Grant, error) {
	rest, ours := strings.CutPrefix(uri, p.about.Scheme+"://"+p.name+"/")
	if p.cfg.Flow != flowStorage {
		if _, ok := full(rest); !ours || !ok {
			return grant.Grant{}, fmt.Errorf("name a scope, as google://%s/drive.readonly", p.name)
		}
		return p.schema.Limit(map[string]any{"scopes": []any{rest}})
	}
	wrong := fmt.Errorf("name a bucket, and a prefix that is empty or ends in /, as gs://%s/bucket/prefix/", p.name)
	at, ok := placeOf(rest)
	if !ours {
		at, ok = claimed(uri)
	}
	if !ok {
		return grant.Grant{}, wrong
	}
	all := make([]any, len(verbs))
	for i, v := range verbs {
		all[i] = v
	}
	g, err := p.schema.ParseValue(map[string]any{"storage": []any{map[string]any{"verbs": all, "bucket": at.bucket, "prefix": at.prefix}}})
	if err != nil {
		return g, wrong
	}
	return g, nil
}

// placeOf reads a bucket with a prefix, in its one spelling.
func placeOf(text string) (place, bool) {
	bucket, prefix, _ := strings.Cut(text, "/")
	return place{bucket, prefix}, !strings.ContainsAny(text, "%?#") && checkPlace(bucket, prefix) == nil
}

// claimed reads a URI as Google's own tools write it: gs://bucket/prefix/.
func claimed(uri string) (place, bool) {
	rest, ok := strings.CutPrefix(uri, "gs://")
	if !ok {
		return place{}, false
	}
	return placeOf(rest)
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
		return g, err
	}
	return g, p.check(g)
}
