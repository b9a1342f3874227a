package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/providers/postgres"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/scopes/grant"
)

// acts are statements, each with the least grant that allows it. They run in a
// transaction that is rolled back.
var acts = map[string]struct{ entry, statement string }{
	"read a column of customers":    {on("app.customers", "SELECT", "name", "*"), `SELECT name FROM app.customers`},
	"read another column":           {on("app.customers", "SELECT", "phone", "*"), `SELECT phone FROM app.customers`},
	"read whole customers":          {on("app.customers", "SELECT", "*", "*"), `SELECT ctid, * FROM app.customers`},
	"insert a customer":             {on("app.customers", "INSERT", "id,name", "*"), `INSERT INTO app.customers (id, name) VALUES (9, 'x')`},
	"update a phone":                {on("app.customers", "UPDATE", "phone", "*"), `UPDATE app.customers SET phone = '0'`},
	"delete customers":              {on("app.customers", "DELETE", "*", "*"), `DELETE FROM app.customers`},
	"count one's own orders":        {on("app.orders", "SELECT", "id", "own"), `SELECT 1 / count(id) FROM app.orders`},
	"count all orders":              {on("app.orders", "SELECT", "id", "*"), `SELECT 1 / (count(id) - 1) FROM app.orders`},
	"insert one's own order":        {on("app.orders", "INSERT", "owner", "own"), `INSERT INTO app.orders (owner) VALUES ('` + alice + `')`},
	"insert another's order":        {on("app.orders", "INSERT", "owner", "*"), `INSERT INTO app.orders (owner) VALUES ('` + bob + `')`},
	"update one's own order, blind": {on("app.orders", "UPDATE", "note", "own"), `UPDATE app.orders SET note = 'x'`},
	"read a view":                   {on("app.totals", "SELECT", "total", "*"), `TABLE app.totals`},
	"read odd names":                {on(`app."Odd.Name ""x"""`, "SELECT", "id", "*"), `SELECT id FROM app."Odd.Name ""x"""`},
}

// refusals are the SQLSTATEs by which PostgreSQL says no: privileges, row
// policies (which divide by zero above), logins, and ended sessions.
var refusals = []string{"42501", "22012", "28P01", "28000", "57P01"}

func refused(err error) error {
	if err == nil {
		return nil
	}
	if slices.Contains(refusals, sqlState(err)) {
		return fmt.Errorf("SQLSTATE %s: %w", sqlState(err), providertest.ErrRefused)
	}
	return err
}

type session struct{ c *pgx.Conn }

func (s session) Close() { _ = s.c.Close(context.Background()) }

func (s session) Do(ctx context.Context, act string) error {
	if s.c.IsClosed() {
		return fmt.Errorf("the session was ended: %w", providertest.ErrRefused)
	}
	tx, err := s.c.Begin(ctx)
	if err != nil {
		return refused(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	_, err = tx.Exec(ctx, acts[act].statement)
	return refused(err)
}

// randomGrant returns a grant that the shop's ceiling allows, and that stint and
// row policies can express.
func randomGrant(t testing.TB, p broker.Provider, r *rand.Rand) grant.Grant {
	some := func(from ...string) string {
		r.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
		return strings.Join(from[:1+r.IntN(len(from))], ",")
	}
	var entries []string
	for _, table := range []struct {
		name, privileges, columns string
		rows                      []string
	}{
		{"app.orders", "SELECT,INSERT,UPDATE,DELETE", "id,owner,total,note", []string{"*", "own"}},
		{"app.customers", "SELECT,INSERT,UPDATE,DELETE", "id,name,phone", []string{"*"}},
		{"app.totals", "SELECT", "total", []string{"*"}},
		{`app."Odd.Name ""x"""`, "SELECT,UPDATE", "id,Col. \"umn", []string{"*"}},
	} {
		if r.IntN(2) == 0 {
			continue
		}
		for _, privilege := range strings.Split(some(strings.Split(table.privileges, ",")...), ",") {
			columns := "*"
			if privilege != "DELETE" && r.IntN(2) == 0 {
				columns = some(strings.Split(table.columns, ",")...)
			}
			entries = append(entries, on(table.name, privilege, columns, table.rows[r.IntN(len(table.rows))]))
		}
	}
	if len(entries) == 0 {
		return randomGrant(t, p, r)
	}
	return parse(t, p, entries...)
}

// harness is that of a shop.
func (w *shop) harness(t testing.TB) providertest.Harness {
	needs := make(map[string]grant.Grant)
	for name, a := range acts {
		needs[name] = w.grant(t, a.entry)
	}
	return providertest.Harness{
		Provider: w.provider, Subject: alice, Acts: needs,
		Grant: func(r *rand.Rand) grant.Grant { return randomGrant(t, w.provider, r) },
		Inexpressible: []grant.Grant{
			w.provider.Describe().Schema.Everything(),
			w.grant(t, on("app.orders", "SELECT", "id", "own"), on("app.orders", "SELECT", "total", "*")),
			w.grant(t, on("app.orders", "DELETE", "id", "*")),
			w.grant(t, on("app.orders", "SELECT", "*", "undeclared")),
			w.grant(t, on("App.Orders", "SELECT", "*", "*")),
			w.grant(t, on("pg_catalog.pg_authid", "SELECT", "*", "*")),
		},
		Open: func(ctx context.Context, m *broker.Minted) (providertest.Session, error) {
			c, err := pgx.Connect(ctx, read(t, "", m).url)
			if err != nil {
				return nil, refused(err)
			}
			return session{c}, nil
		},
		Ends: func(ctx context.Context, m *broker.Minted) (ends time.Time, err error) {
			text := w.one(t, `SELECT extract(epoch FROM rolvaliduntil)::float8::text FROM pg_roles WHERE rolname = $1`, read(t, "", m).user)
			var seconds float64
			_, err = fmt.Sscan(text, &seconds)
			return time.UnixMicro(int64(seconds * 1e6)), err
		},
		Remains: func(context.Context) ([]string, error) {
			return append(w.left(t), w.query(t, `SELECT name FROM stint.grp UNION ALL SELECT id FROM stint.lease WHERE dropped_at IS NULL`)...), nil
		},
		Within: w.within(t),
	}
}

// within asks PostgreSQL whether one grant is within another: two roles are
// granted what the grants say, by SQL of this test's own, and what one has is
// looked for in the other. Row policies are compared by their own order.
func (w *shop) within(t testing.TB) func(context.Context, grant.Grant, grant.Grant) (bool, error) {
	w.sql(t, `CREATE ROLE oracle_a; CREATE ROLE oracle_b`)
	return func(_ context.Context, a, b grant.Grant) (bool, error) {
		var script strings.Builder
		rows := make(map[string]string)
		for role, g := range map[string]grant.Grant{"oracle_a": a, "oracle_b": b} {
			fmt.Fprintf(&script, "DROP OWNED BY %s;\n", role)
			_, atoms := g.Dimension("privileges")
			for _, x := range atoms {
				column := ""
				if x[2] != "*" {
					column = "(" + pgx.Identifier{x[2]}.Sanitize() + ")"
				}
				fmt.Fprintf(&script, "GRANT %s %s ON %s TO %s;\n", x[1], column, x[0], role)
				rows[role+x[0]+x[1]] = x[3]
			}
		}
		w.sql(t, script.String())
		for key, shown := range rows {
			if other := rows["oracle_b"+strings.TrimPrefix(key, "oracle_a")]; strings.HasPrefix(key, "oracle_a") && other != "*" && other != shown {
				return false, nil
			}
		}
		excess := w.query(t, `
			SELECT c.oid::regclass, p FROM pg_class c, unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) p
			WHERE c.relnamespace = 'app'::regnamespace AND c.relkind IN ('r', 'v') AND has_table_privilege('oracle_a', c.oid, p) AND NOT has_table_privilege('oracle_b', c.oid, p)
			UNION ALL
			SELECT c.oid::regclass, p || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped, unnest('{SELECT,INSERT,UPDATE}'::text[]) p
			WHERE c.relnamespace = 'app'::regnamespace AND c.relkind IN ('r', 'v') AND has_column_privilege('oracle_a', c.oid, a.attnum, p) AND NOT has_column_privilege('oracle_b', c.oid, a.attnum, p)`)
		return len(excess) == 0, nil
	}
}

func testContract(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	h := w.harness(t)
	h.Upstream, h.Oracle = "PostgreSQL "+w.one(t, `SELECT split_part(current_setting('server_version'), '.', 1)`), "has_*_privilege"
	h.Pairs = 200
	h.Overgrants = make(map[string]broker.Provider, len(openDoors))
	for name, script := range openDoors {
		over := newShop(t, pg)
		over.sql(t, script)
		h.Overgrants[name] = over.provider
	}
	providertest.Run(t, h)
}

// openDoors let every role of a database do more than a grant says.
var openDoors = map[string]string{
	"a table that is open to PUBLIC":     `GRANT SELECT ON app.hidden TO PUBLIC`,
	"a column that is open to PUBLIC":    `GRANT UPDATE (id) ON app.hidden TO PUBLIC`,
	"a function that runs as an owner":   `CREATE FUNCTION app.peek() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM app.hidden'`,
	"a schema that PUBLIC may create in": `GRANT CREATE ON SCHEMA app TO PUBLIC`,
}

// TestProvider runs what can share one server: each test has databases of its
// own, and looks at the roles of those alone.
func TestProvider(t *testing.T) {
	t.Parallel()
	pg := testbed.Postgres(t)
	for name, test := range map[string]func(*testing.T, *testbed.PostgresServer){
		"contract":                    testContract,
		"holder":                      testHolder,
		"holder against revocation":   testHolderAgainstRevocation,
		"names that are code":         testNamesThatAreCode,
		"tolerated":                   testTolerated,
		"ceiling":                     testCeiling,
		"ceiling under attack":        testCeilingUnderAttack,
		"row policies":                testRowPolicies,
		"tables that change":          testTablesThatChange,
		"serial and identity columns": testSerialAndIdentityColumns,
		"revocation comes in steps":   testRevocationComesInSteps,
		"ended lease shows nothing":   testEndedLeaseShowsNothing,
		"expiry":                      testExpiry,
		"revocation overtakes":        testRevocationOvertakes,
		"group races":                 testGroupRaces,
		"sweep":                       testSweep,
		"install":                     testInstall,
		"entitlement":                 testEntitlement,
		"hardened database":           testHardenedDatabase,
		"look":                        testLook,
		"rehearse":                    testRehearse,
		"full access list":            testFullAccessList,
		"many columns":                testManyColumns,
		"cloned database":             testClonedDatabase,
		"clocks that are off":         testClocksThatAreOff,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, pg)
		})
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	valid := postgres.Config{Host: "db.example", Database: "shop", Password: "secret:broker", Entitlement: "none"}
	for name, c := range map[string]struct {
		change func(*postgres.Config)
		wants  string
	}{
		"settings that are enough": {func(*postgres.Config) {}, ""},
		"a circle of row policies": {func(c *postgres.Config) {
			c.Rows = map[string]postgres.RowPolicy{"a": {Shows: []string{"b"}}, "b": {Shows: []string{"a"}}}
		}, "below itself"},
		"a row policy that nobody declared":   {func(c *postgres.Config) { c.Rows = map[string]postgres.RowPolicy{"a": {Shows: []string{"b"}}} }, "no row policy"},
		"a row policy with an odd name":       {func(c *postgres.Config) { c.Rows = map[string]postgres.RowPolicy{"O'wn": {}} }, "lower-case"},
		"a lifetime of less than a second":    {func(c *postgres.Config) { c.MaxLifetime.Duration = time.Millisecond }, "max_lifetime"},
		"a tolerated name that is no table":   {func(c *postgres.Config) { c.Tolerate = []string{"public"} }, "schema.table"},
		"a CA where there is no TLS":          {func(c *postgres.Config) { c.InsecurePlaintext, c.CA = true, "secret:ca" }, "ca:"},
		"a database name longer than a name":  {func(c *postgres.Config) { c.Database = strings.Repeat("x", 64) }, "63 bytes"},
		"a decoder that finds something odd":  {nil, "odd"},
		"a user with a NUL":                   {func(c *postgres.Config) { c.User = "a\x00b" }, "characters"},
		"a tolerated function with its marks": {func(c *postgres.Config) { c.Tolerate = []string{"app.next()", "app.t"} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := postgres.Open(t.Context(), "main", func(v any) error {
				if c.change == nil {
					return errors.New("something odd")
				}
				cfg := valid
				c.change(&cfg)
				*v.(*postgres.Config) = cfg
				return nil
			}, deps)
			if (err == nil) != (c.wants == "") || err != nil && !strings.Contains(err.Error(), c.wants) {
				t.Errorf("%v, wanted %q", err, c.wants)
			}
		})
	}
}
