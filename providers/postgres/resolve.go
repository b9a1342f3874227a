package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// Resolve implements [broker.Provider]. Tables go by their names: what a name
// means is found when a lease is minted, and is part of its group.
func (p *provider) Resolve(ctx context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	out := &broker.Resolved{Request: p.schema.Everything(), Grants: r.Grants, Entitlement: p.schema.Everything()}
	for _, g := range r.Grants {
		if err := p.check(g); err != nil {
			return nil, fmt.Errorf("a grant of the configuration: %w", err)
		}
	}
	named := p.schema.Nothing()
	for _, uri := range r.Resources {
		part, err := p.part(uri)
		if err != nil {
			return nil, broker.Fail(broker.BadTarget, err, err.Error())
		}
		out.Parts = append(out.Parts, part)
		if named, err = union(named, part); err != nil {
			return nil, broker.Fail(broker.BadTarget, err, err.Error())
		}
	}
	if len(out.Parts) > 0 {
		out.Request = named
	}
	if len(r.Details) > 0 {
		wanted, err := p.wanted(r.Details)
		if err == nil {
			err = agree(wanted, out)
		}
		if err != nil {
			return nil, broker.Fail(broker.BadDetails, err, "authorization_details: "+err.Error())
		}
		out.Wanted, out.Request = &wanted, wanted
	}
	return out, p.entitle(ctx, r, out)
}

// union is [grant.Union] of grants that have one dimension, so that there is one
// unless it grows too large.
func union(a, b grant.Grant) (grant.Grant, error) {
	u, ok := grant.Union(a, b)
	if !ok {
		return u, errors.New("too much is named at once")
	}
	return u, nil
}

// part is what a resource URI names: everything on one table. The error may be
// shown.
func (p *provider) part(uri string) (grant.Grant, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return grant.Grant{}, errors.New("the resource is no URI")
	}
	path, rooted := strings.CutPrefix(u.Path, "/")
	if u.Scheme != "postgres" || u.Host != p.name || !rooted || path == "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil {
		return grant.Grant{}, fmt.Errorf("name a table as postgres://%s/schema.table", p.name)
	}
	o, err := parseObject(path)
	if err != nil {
		return grant.Grant{}, err
	}
	list := make([]any, len(privileges))
	for i, v := range privileges {
		list[i] = v
	}
	return p.schema.ParseValue(map[string]any{"privileges": []any{
		map[string]any{"object": o.String(), "privileges": list, "columns": all, "rows": all},
	}})
}

// wanted is what authorization details ask for, all of them together. The error
// may be shown.
func (p *provider) wanted(details []map[string]any) (grant.Grant, error) {
	total := p.schema.Nothing()
	for _, d := range details {
		given := make(map[string]any, len(d))
		for k, v := range d {
			if k != "provider" {
				given[k] = v
			} else if v != p.name {
				return total, fmt.Errorf("provider is not %s", p.name)
			}
		}
		g, err := p.schema.ParseValue(given)
		if err == nil {
			err = p.check(g)
		}
		if err == nil && g.IsNothing() {
			err = errors.New("nothing is asked for")
		}
		if err == nil {
			total, err = union(total, g)
		}
		if err != nil {
			return total, err
		}
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

// entitle finds what the subject may do by itself.
func (p *provider) entitle(ctx context.Context, r broker.ResolveRequest, out *broker.Resolved) error {
	switch {
	case p.cfg.Entitlement == "none":
		out.Basis = "this database does not know the subject"
		return nil
	case !r.Live:
		out.Basis = "assumed"
		return nil
	}
	question := out.Request
	for _, g := range r.Grants {
		question = grant.Meet(question, g)
	}
	if question.IsNothing() {
		out.Basis = "not asked: nothing would be left in any case"
		return nil
	}
	held, known, err := p.own(ctx, r.Subject, question)
	if err != nil {
		return err
	}
	out.Entitlement, out.Basis = held, "live: privileges of the subject's role, by stint.subject_role"
	if !known {
		out.Basis = "live: stint.subject_role names no role for the subject, or one that is gone or expired"
	}
	return nil
}

// own reads the subject's own privileges on the tables in question.
func (p *provider) own(ctx context.Context, subject string, question grant.Grant) (g grant.Grant, known bool, err error) {
	var tables *string // nil: all there are
	if everything, atoms := question.Dimension("privileges"); !everything {
		var list []map[string]string
		for _, a := range atoms {
			o, err := parseObject(a[0])
			if err != nil {
				return g, false, err
			}
			list = append(list, map[string]string{"schema": o.schema, "table": o.table})
		}
		encoded, err := strictjson.Encode(list)
		if err != nil {
			return g, false, fmt.Errorf("encode question: %w", err)
		}
		text := string(encoded)
		tables = &text
	}
	ctx, cancel := p.within(ctx)
	defer cancel()
	var answer string
	if err := p.pool.QueryRow(ctx, `SELECT stint.entitlement($1, $2::text::jsonb)::text`, subject, tables).Scan(&answer); err != nil {
		return g, false, fault("ask for the subject's own privileges", err)
	}
	var e struct {
		Known  bool   `json:"known"`
		Tables []term `json:"tables"`
	}
	if err := strictjson.Decode([]byte(answer), &e); err != nil {
		return g, false, fmt.Errorf("read entitlement: %w", err)
	}
	var terms []term
	for _, t := range e.Tables {
		if t.Rows == all {
			terms = append(terms, t)
			continue
		}
		// Under row-level security of its own: what the role sees is not known, but
		// a policy that shows nobody else's rows is within it.
		for _, name := range p.cfg.entitled() {
			t.Rows = name
			terms = append(terms, t)
		}
	}
	g, _, err = p.grantOf(terms)
	return g, e.Known, err
}
