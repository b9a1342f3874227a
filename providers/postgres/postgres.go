// Package postgres vends database logins: for each lease a role of its own, with
// a password of its own, that is a member of one group role, which has the
// privileges of exactly the grant.
//
// Everything is done by functions in the schema stint, which run as their owner,
// the ceiling role; `stint postgres install` makes both. What the ceiling holds
// with grant option is the most that is ever handed out, and it is PostgreSQL
// that enforces this: nobody can grant what he does not hold, and what a DBA
// takes from the ceiling with CASCADE goes from whoever had it through it. The
// broker's own login may call the functions and do nothing else. The ceiling
// needs CREATEROLE, which up to PostgreSQL 15 is close to superuser; so it cannot
// log in, nobody is a member of it, and its functions take no text into dynamic
// SQL unchecked.
//
// A grant names tables as they are in the catalogue: app.orders, or with double
// quotes app."Orders" where SQL needs them. Columns are written without quotes.
// "*" for columns is the whole table. INSERT brings the use of sequences that
// belong to serial columns.
//
// rows is "*" or the name of a row policy. To the database it is what
// stint.rows(table, command) returns to the lease's session, next to stint.sub(),
// which returns the subject:
//
//	ALTER TABLE app.orders ENABLE ROW LEVEL SECURITY;
//	CREATE POLICY stint_read ON app.orders FOR SELECT USING (
//		CASE (SELECT stint.rows('app.orders', 'SELECT'))
//			WHEN '*' THEN true
//			WHEN 'own' THEN owner = (SELECT stint.sub())
//		END);
//
// Both go by the role that the session logged in as and by the lease's row, which
// no SET, SET ROLE or SET SESSION AUTHORIZATION changes; once the lease has ended
// they return NULL, in sessions that are open as well. A name that the policies of
// a table do not ask for in this way is refused: the policy would have no effect.
//
// After minting, the privileges of the new role on all tables are read back from
// the catalogue, those of PUBLIC among them. What is more than the grant is
// refused and ended. This is about one database: roles are of the whole cluster,
// so that CONNECT on the others should be taken from PUBLIC. Where it is taken
// from PUBLIC here, a lease has it of the ceiling.
//
// What a holder can do whatever the grant: change its own password (not its
// expiry), fill temporary tables, run functions that are everybody's, and learn
// from foreign keys and unique indexes that a row exists which it may not see. A
// transaction that it prepared (max_prepared_transactions > 0) outlives it, and
// has to be rolled back by hand.
package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

type provider struct {
	name   string
	cfg    Config
	deps   upstream.Deps
	pool   *pgxpool.Pool
	schema *grant.Schema
	about  broker.Description
	// tolerated are the names of cfg.Tolerate.
	tolerated map[string]bool
}

var _ broker.Provider = (*provider)(nil)

// privileges are those that a grant can have. REFERENCES, TRIGGER and TRUNCATE
// are for owners: they reach beyond the rows and columns of a grant.
var privileges = []string{"SELECT", "INSERT", "UPDATE", "DELETE"}

// Describe is what all providers of this kind say of themselves, with the schema
// as it is without row policies, and without a connection.
func Describe() broker.Description {
	s, err := newSchema(nil)
	if err != nil {
		panic("postgres: " + err.Error()) // written in code
	}
	return broker.Description{
		Kind: "postgres", About: "PostgreSQL logins: a role for each lease, in a group with exactly the privileges granted",
		Class: broker.Exact, Modes: []broker.Mode{broker.Vend}, Sweeps: true, Renews: true, Reads: "SELECT, by the schema", Schema: s, Scheme: "postgres", Details: "postgres", TokenType: "N_A",
		MinLifetime: time.Second, MaxLifetime: time.Hour, Settable: true, Revokes: "token", Evidence: broker.Attested,
		Identity: []string{"role name: the lease", "role comment: lease, pseudonym of the subject, agent, client"},
	}
}

// newSchema returns the schema of grants; the order of row policies is part of it.
func newSchema(rows map[string]RowPolicy) (*grant.Schema, error) {
	below := make(map[string][]string)
	for name, r := range rows {
		if len(r.Shows) > 0 {
			below[name] = r.Shows
		}
	}
	s, err := grant.NewSchema("postgres", 1, grant.Dimension{
		Name: "privileges", Type: grant.PrivSet, Values: privileges, Reads: []string{"SELECT"}, Below: below,
		About: "Privileges on tables and views, by columns, and by rows where row-level security policies ask for it.",
	})
	if err != nil {
		return nil, fmt.Errorf("rows: %w", err)
	}
	return s, nil
}

// Open makes a provider of its settings. It connects to nothing: that waits for
// the first use. The connections are closed when ctx ends.
func Open(ctx context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	p := &provider{name: name, deps: d, tolerated: make(map[string]bool)}
	if err := decode(&p.cfg); err != nil {
		return nil, err
	}
	if err := p.cfg.Check(); err != nil {
		return nil, err
	}
	for _, t := range p.cfg.Tolerate {
		p.tolerated[t] = true
	}
	var err error
	if p.schema, err = newSchema(p.cfg.Rows); err != nil {
		return nil, err
	}
	if p.pool, err = p.newPool(); err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, p.pool.Close)
	p.about = Describe()
	p.about.Schema, p.about.MaxLifetime = p.schema, p.cfg.MaxLifetime.Duration
	p.about.Sweep, p.about.Renew, p.about.Ready, p.about.Check = p.sweep, p.renew, p.ready, p.check
	return p, nil
}

// Describe implements [broker.Provider].
func (p *provider) Describe() broker.Description { return p.about }
