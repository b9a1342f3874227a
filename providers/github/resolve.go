package github

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// maxNamed is how many repositories one request may have looked up.
const maxNamed = 100

// resolving is the work on one request: names, and what they are.
type resolving struct {
	p     *provider
	live  bool
	names map[string]string // ids by name
	asked int
}

// Resolve implements [broker.Provider]. Names that mean nothing grant nothing; to ask for
// one is an error.
func (p *provider) Resolve(ctx context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	w := &resolving{p: p, live: r.Live, names: make(map[string]string)}
	out := &broker.Resolved{Request: schema.Everything(), Entitlement: schema.Everything()}
	if err := w.request(ctx, r, out); err != nil {
		return nil, err
	}
	for _, g := range r.Grants {
		resolved, err := w.grant(ctx, g, false)
		if err != nil {
			return nil, err
		}
		out.Grants = append(out.Grants, resolved)
	}
	out.Names = w.names
	return out, w.entitle(ctx, r, out)
}

// request reads what is asked for by resources and details.
func (w *resolving) request(ctx context.Context, r broker.ResolveRequest, out *broker.Resolved) error {
	var named []any
	for _, uri := range r.Resources {
		name, err := w.p.named(uri)
		if err != nil {
			return broker.Fail(broker.BadTarget, err, err.Error())
		}
		id, err := w.id(ctx, name, true)
		if err != nil {
			return err
		}
		part, err := schema.Limit(map[string]any{"repositories": []any{id}})
		if err != nil {
			return broker.Fail(broker.BadTarget, err, err.Error())
		}
		named, out.Parts = append(named, id), append(out.Parts, part)
	}
	if len(named) > 0 {
		all, err := schema.Limit(map[string]any{"repositories": named})
		if err != nil {
			return broker.Fail(broker.BadTarget, err, err.Error())
		}
		out.Request = all
	}
	for i, d := range r.Details {
		wanted, err := w.wanted(ctx, d)
		if err == nil && i > 0 {
			err = errors.New("a token is one grant: one object is wanted")
		}
		if err == nil && len(out.Parts) > 0 {
			if below, _ := grant.Leq(wanted, out.Request); !below {
				err = errors.New("resource and details name different repositories")
			}
		}
		if err != nil {
			if e := (*broker.Error)(nil); errors.As(err, &e) {
				return err
			}
			return broker.Fail(broker.BadDetails, err, "authorization_details: "+err.Error())
		}
		out.Wanted, out.Request = &wanted, wanted
	}
	return nil
}

// named returns what a URI names, as OWNER/NAME or OWNER/*. The error may be shown.
func (p *provider) named(uri string) (string, error) {
	path, ours := strings.CutPrefix(uri, "github://"+p.name+"/")
	if !ours {
		path, ours = strings.CutPrefix(uri, p.cfg.URL+"/repos/")
	}
	who, name, one := strings.Cut(path, "/")
	switch {
	case ours && !one && isName(who):
		return who + "/*", nil
	case ours && one && isName(who) && isName(name):
		return path, nil
	}
	return "", fmt.Errorf("name a repository as github://%s/OWNER/NAME or %s/repos/OWNER/NAME, or an owner as github://%[1]s/OWNER", p.name, p.cfg.URL)
}

// wanted is what an object of the authorization details asks for.
func (w *resolving) wanted(ctx context.Context, d map[string]any) (grant.Grant, error) {
	given := maps.Clone(d)
	if name, there := given["provider"]; there && name != w.p.name {
		return grant.Grant{}, fmt.Errorf("provider is not %s", w.p.name)
	}
	delete(given, "provider")
	g, err := schema.ParseValue(given)
	if err != nil {
		return g, err
	}
	return w.grant(ctx, g, true)
}

// grant rewrites a grant from names to ids. What does not exist is left out, unless it
// is asked for.
func (w *resolving) grant(ctx context.Context, g grant.Grant, asked bool) (grant.Grant, error) {
	all, atoms := g.Dimension("repositories")
	if all || g.IsNothing() {
		return g, nil
	}
	ids := make([]any, 0, len(atoms))
	for _, a := range atoms {
		id, err := w.id(ctx, a[0], asked)
		if err != nil {
			return g, err
		}
		if id != "" {
			ids = append(ids, id)
		}
	}
	limit, err := schema.Limit(map[string]any{"repositories": ids})
	if err != nil {
		return g, err
	}
	return grant.Meet(replaced(g), limit), nil
}

// replaced is a grant with its repositories left open.
func replaced(g grant.Grant) grant.Grant {
	limit := map[string]any{}
	for _, name := range []string{"permissions", "account"} {
		if all, atoms := g.Dimension(name); !all {
			levels := make(map[string]any, len(atoms))
			for _, a := range atoms {
				levels[a[0]] = a[1]
			}
			limit[name] = levels
		}
	}
	out, err := schema.Limit(limit)
	if err != nil {
		return schema.Nothing() // what was parsed parses
	}
	return out
}

// id returns the ids of OWNER/NAME or OWNER/*; empty if there is no such thing, which is
// an error if it was asked for.
func (w *resolving) id(ctx context.Context, name string, asked bool) (string, error) {
	if id, done := w.names[name]; done {
		return id, nil
	}
	if !w.live {
		return name, nil // as good as an id, for whoever asks what would be
	}
	if w.asked++; w.asked > maxNamed {
		return "", broker.Fail(broker.BadTarget, nil, fmt.Sprintf("more than %d repositories at a time", maxNamed))
	}
	who, what, _ := strings.Cut(name, "/")
	if !isName(who) || what != "*" && !isName(what) {
		return "", broker.Fail(broker.BadDetails, nil, fmt.Sprintf("%q is no name of a repository", name))
	}
	id, err := w.look(ctx, who, what)
	switch {
	case errors.Is(err, broker.ErrNotFound) && asked:
		return "", broker.Fail(broker.BadTarget, err, "there is no such repository, or the App is not installed there")
	case errors.Is(err, broker.ErrNotFound):
		return "", nil
	case err != nil:
		return "", err
	}
	w.names[name] = id
	return id, nil
}

func (w *resolving) look(ctx context.Context, who, what string) (string, error) {
	if what == "*" {
		o, err := w.p.owner(ctx, who)
		if err != nil {
			return "", err
		}
		return o.id + "/*", nil
	}
	r, err := w.p.repository(ctx, who+"/"+what)
	if err != nil {
		return "", err
	}
	return r.full(), nil
}

// entitle finds out what the subject may do by itself, at the repositories that the
// configuration and the request leave.
func (w *resolving) entitle(ctx context.Context, r broker.ResolveRequest, out *broker.Resolved) error {
	switch {
	case w.p.cfg.Mode == modeUser:
		out.Basis = "GitHub holds a user's token to the user's rights"
		return nil
	case w.p.cfg.Entitlement == "none":
		out.Basis = "not asked: Apps act for everybody alike"
		return nil
	case !strings.Contains(r.Subject, "#"):
		out.Basis = "a client that acts for itself"
		return nil
	case !r.Live:
		out.Basis = "assumed: as a collaborator with every right"
		return nil
	}
	left := out.Request
	for _, g := range out.Grants {
		left = grant.Meet(left, g)
	}
	login, err := w.p.login(ctx, r.Subject)
	if err != nil {
		return err
	}
	out.Entitlement, out.Basis = schema.Nothing(), "collaborator permission, by "+roleTable
	if left.IsNothing() {
		return nil
	}
	return w.collaborator(ctx, login, left, out)
}

// collaborator sets the entitlement to what a user's permissions on repositories are
// worth: those on which it has any, at the least that it has on one of them.
func (w *resolving) collaborator(ctx context.Context, login string, left grant.Grant, out *broker.Resolved) error {
	all, atoms := left.Dimension("repositories")
	if all || slices.ContainsFunc(atoms, func(a grant.Atom) bool { return strings.HasSuffix(a[0], "/*") }) {
		out.Basis += ": it is asked of single repositories, and all of an owner's were named"
		return nil
	}
	byID := make(map[string]string, len(w.names))
	for name, id := range w.names {
		byID[id] = name
	}
	least := ""
	var ids []any
	for _, a := range atoms {
		name := byID[a[0]]
		if name == "" {
			continue // nobody named it
		}
		permission, err := w.p.permission(ctx, login, name)
		if err != nil {
			return err
		}
		if permission == "none" {
			continue
		}
		ids = append(ids, a[0])
		if least == "" || rank(permission) < rank(least) {
			least = permission
		}
	}
	var err error
	out.Entitlement, err = schema.ParseValue(map[string]any{"repositories": ids, "permissions": entitled(least), "account": map[string]any{}})
	return err
}

func rank(permission string) int {
	return slices.Index([]string{"none", "read", "write", "admin"}, permission)
}
