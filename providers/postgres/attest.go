package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// evidence is what stint.attest answers.
type evidence struct {
	Tables []term `json:"tables"`
	// Functions run as their owner.
	Functions []struct {
		Schema string `json:"schema"`
		Name   string `json:"name"`
		Call   string `json:"call"`
	} `json:"functions"`
	// Beyond are things that no grant can say, in words.
	Beyond []string `json:"beyond"`
}

// attest reads back what the role of a lease can really do. An error says that
// it is something which a grant cannot say.
func (p *provider) attest(ctx context.Context, lease string, asked grant.Grant) (grant.Grant, error) {
	var answer string
	if err := p.pool.QueryRow(ctx, `SELECT stint.attest($1)::text`, lease).Scan(&answer); err != nil {
		return grant.Grant{}, fault("attest", err)
	}
	var e evidence
	if err := strictjson.Decode([]byte(answer), &e); err != nil {
		return grant.Grant{}, fmt.Errorf("read evidence: %w", err)
	}
	beyond := e.Beyond
	for _, f := range e.Functions {
		if !p.tolerated[object{f.Schema, f.Name}.String()+"()"] {
			beyond = append(beyond, "may call "+f.Call+" as its owner")
		}
	}
	named := make(map[string]bool)
	_, atoms := asked.Dimension("privileges")
	for _, a := range atoms {
		named[a[0]] = true
	}
	var held []term
	for _, t := range e.Tables {
		name := object{t.Schema, t.Table}.String()
		if t.Privilege == "SELECT" && p.tolerated[name] && !named[name] {
			continue
		}
		held = append(held, t)
	}
	g, odd, err := p.grantOf(held)
	if beyond = append(beyond, odd...); err == nil && len(beyond) > 0 {
		err = fmt.Errorf("the role can do what no grant says: it %s; take it from PUBLIC, or list it under tolerate", strings.Join(beyond, "; "))
	}
	return g, err
}

// grantOf turns what the catalogue says into a grant. odd is what a grant cannot
// say, in words.
func (p *provider) grantOf(tables []term) (g grant.Grant, odd []string, err error) {
	list := make([]any, 0, len(tables))
	for _, t := range tables {
		o := object{t.Schema, t.Table}
		_, bad := parseObject(o.String())
		columns, listed := t.Columns.([]any)
		for _, c := range columns {
			if name, ok := c.(string); !ok || checkName(name) != nil {
				bad = fmt.Errorf("column %v", c)
			}
		}
		if bad != nil || !listed && t.Columns != all || !slices.Contains(privileges, t.Privilege) {
			odd = append(odd, fmt.Sprintf("has %s on %s", t.Privilege, o))
			continue
		}
		list = append(list, map[string]any{"object": o.String(), "privileges": t.Privilege, "columns": t.Columns, "rows": t.Rows})
	}
	g, err = p.schema.ParseValue(map[string]any{"privileges": list})
	if err != nil {
		return g, odd, fmt.Errorf("read privileges: %w", err)
	}
	return g, odd, nil
}
