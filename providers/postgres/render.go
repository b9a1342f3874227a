package postgres

import (
	"errors"
	"fmt"
	"slices"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// terms are what stint.mint is told to grant.
type terms struct {
	Tables []term `json:"tables"`
}

// term is one privilege on one table.
type term struct {
	Schema    string `json:"schema"`
	Table     string `json:"table"`
	Privilege string `json:"privilege"`
	// Columns is "*", which is the whole table, or a list of names.
	Columns any    `json:"columns"`
	Rows    string `json:"rows"`
}

const all = "*"

// check refuses names that no table, column or row policy can have. The error
// may be shown to whoever wrote the grant.
func (p *provider) check(g grant.Grant) error {
	_, atoms := g.Dimension("privileges")
	for _, a := range atoms {
		if _, err := parseObject(a[0]); err != nil {
			return err
		}
		if a[2] != all {
			if err := checkName(a[2]); err != nil {
				return fmt.Errorf("%s: column: %w", a[0], err)
			}
		}
		if a[1] == "DELETE" && a[2] != all {
			return fmt.Errorf("%s: rows are deleted, not columns: DELETE goes with all columns, \"*\"", a[0])
		}
		if _, known := p.cfg.Rows[a[3]]; a[3] != all && !known {
			return fmt.Errorf("%s: there is no row policy %q", a[0], a[3])
		}
	}
	return nil
}

// Render implements [broker.Provider]: the terms as RFC 8785 has it.
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	everything, atoms := g.Dimension("privileges")
	switch {
	case g.IsNothing():
		return nil, errors.New("nothing is never asked for")
	case everything:
		return nil, fmt.Errorf("all privileges on everything: %w", broker.ErrInexpressible)
	}
	if err := p.check(g); err != nil {
		return nil, fmt.Errorf("%w: %w", err, broker.ErrInexpressible)
	}
	var out terms
	for _, a := range atoms { // sorted: by table, privilege, column
		o, _ := parseObject(a[0]) // checked
		t := term{Schema: o.schema, Table: o.table, Privilege: a[1], Columns: []string{a[2]}, Rows: a[3]}
		if a[2] == all {
			t.Columns = all
		}
		last := len(out.Tables) - 1
		if last < 0 || out.Tables[last].Schema != t.Schema || out.Tables[last].Table != t.Table || out.Tables[last].Privilege != t.Privilege {
			out.Tables = append(out.Tables, t)
			continue
		}
		// Row-level security knows the command, not the columns.
		before, listed := out.Tables[last].Columns.([]string)
		if !listed || a[2] == all || out.Tables[last].Rows != t.Rows {
			return nil, fmt.Errorf("%s on %s with other rows for other columns: %w", a[1], a[0], broker.ErrInexpressible)
		}
		out.Tables[last].Columns = append(before, a[2])
	}
	return strictjson.Encode(out)
}

// Parse implements [broker.Provider].
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	var in terms
	if err := strictjson.Decode(rendered, &in); err != nil {
		return grant.Grant{}, err
	}
	seen := make(map[[3]string]bool)
	list := make([]any, 0, len(in.Tables))
	for _, t := range in.Tables {
		key := [3]string{t.Schema, t.Table, t.Privilege}
		if seen[key] {
			return grant.Grant{}, fmt.Errorf("%s on %s.%s is there twice", t.Privilege, t.Schema, t.Table)
		}
		seen[key] = true
		if columns, ok := t.Columns.([]any); ok && slices.Contains(columns, any(all)) {
			return grant.Grant{}, errors.New(`a list of columns cannot hold "*"`)
		}
		list = append(list, map[string]any{
			"object": object{t.Schema, t.Table}.String(), "privileges": t.Privilege, "columns": t.Columns, "rows": t.Rows,
		})
	}
	g, err := p.schema.ParseValue(map[string]any{"privileges": list})
	if err != nil {
		return grant.Grant{}, err
	}
	if g.IsNothing() {
		return grant.Grant{}, errors.New("the terms grant nothing")
	}
	return g, p.check(g)
}
