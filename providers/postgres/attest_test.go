package postgres_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/providers/postgres"
	"github.com/stint-dev/stint/scopes/grant"
)

// TestOverGrants are databases that give more than was asked. What a grant can
// say comes back as the grant, which the broker holds against what it asked for;
// what none can say is an error.
func TestOverGrants(t *testing.T) {
	t.Parallel()
	w := newShop(t, testbed.Postgres(t))
	asked := []string{on("app.customers", "SELECT", "id,name", "*"), on("app.orders", "SELECT", "*", "own")}
	for name, c := range map[string]struct {
		widen, undo string
		// excess is what Leq has to complain of, or reason what the error says.
		excess, reason string
	}{
		"a table that everybody may read": {
			`GRANT SELECT ON app.hidden TO PUBLIC`, `REVOKE SELECT ON app.hidden FROM PUBLIC`, "app.hidden SELECT * *", ""},
		"a table that everybody may read in a schema that few may use": {
			`CREATE SCHEMA far; CREATE TABLE far.t (); GRANT SELECT ON far.t TO PUBLIC`, `DROP SCHEMA far CASCADE`, "far.t SELECT * *", ""},
		"a column that everybody may write": {
			`GRANT UPDATE (phone) ON app.customers TO PUBLIC`, `REVOKE UPDATE (phone) ON app.customers FROM PUBLIC`, "app.customers UPDATE phone *", ""},
		"the whole table, not some columns": {
			`GRANT SELECT ON app.customers TO PUBLIC`, `REVOKE SELECT ON app.customers FROM PUBLIC`, "app.customers SELECT * *", ""},
		"another privilege on the same table": {
			`GRANT DELETE ON app.orders TO PUBLIC`, `REVOKE DELETE ON app.orders FROM PUBLIC`, "app.orders DELETE * *", ""},
		"something given to the group by hand": {
			`GRANT INSERT ON app.hidden TO GROUP_ROLE`, `REVOKE INSERT ON app.hidden FROM GROUP_ROLE`, "app.hidden INSERT * *", ""},
		"a view with a quoted name": {
			`CREATE VIEW app."V.1" AS SELECT 1; GRANT SELECT ON app."V.1" TO PUBLIC`, `DROP VIEW app."V.1"`, `app."V.1" SELECT * *`, ""},
		"truncation": {
			`GRANT TRUNCATE ON app.hidden TO PUBLIC`, `REVOKE TRUNCATE ON app.hidden FROM PUBLIC`, "", "has TRUNCATE on app.hidden"},
		"references to a column": {
			`GRANT REFERENCES (id) ON app.hidden TO PUBLIC`, `REVOKE REFERENCES (id) ON app.hidden FROM PUBLIC`, "", "has REFERENCES on app.hidden"},
		"a name that no grant holds": {
			`CREATE TABLE app."a*b" (); GRANT SELECT ON app."a*b" TO PUBLIC`, `DROP TABLE app."a*b"`, "", `has SELECT on app."a*b"`},
		"membership of another role": {
			`CREATE ROLE more; GRANT more TO GROUP_ROLE`, `DROP ROLE more`, "", "is a member of more"},
		"an attribute of the group": {
			`ALTER ROLE GROUP_ROLE CREATEDB`, `ALTER ROLE GROUP_ROLE NOCREATEDB`, "", "an attribute"},
		"a predefined role that reads everything": {
			`GRANT pg_read_all_data TO GROUP_ROLE`, `REVOKE pg_read_all_data FROM GROUP_ROLE`, "", "is a member of pg_read_all_data"},
		"tables in public": {
			`GRANT CREATE ON SCHEMA public TO PUBLIC`, `REVOKE CREATE ON SCHEMA public FROM PUBLIC`, "", "may create in schema public"},
		"schemas": {
			`GRANT CREATE ON DATABASE THIS_ONE TO PUBLIC`, `REVOKE CREATE ON DATABASE THIS_ONE FROM PUBLIC`, "", "may create in database"},
		"a function that runs as its owner": {
			`CREATE FUNCTION app.peek() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM app.hidden'`, `DROP FUNCTION app.peek()`, "", "may call app.peek() as its owner"},
		"a function that reads the server's files": {
			`GRANT EXECUTE ON FUNCTION pg_read_file(text) TO PUBLIC`, `REVOKE EXECUTE ON FUNCTION pg_read_file(text) FROM PUBLIC`, "", "may call pg_read_file"},
		"everybody's passwords": {
			`GRANT SELECT ON pg_authid TO PUBLIC`, `REVOKE SELECT ON pg_authid FROM PUBLIC`, "", "may read pg_authid"},
		"a sequence": {
			`GRANT USAGE ON SEQUENCE app.orders_id_seq TO PUBLIC`, `REVOKE USAGE ON SEQUENCE app.orders_id_seq FROM PUBLIC`, "", "may use sequence app.orders_id_seq"},
		"a foreign server": {
			`CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA WRAPPER w; GRANT USAGE ON FOREIGN SERVER far TO PUBLIC`, `DROP FOREIGN DATA WRAPPER w CASCADE`, "", "may use foreign server far"},
		"a foreign-data wrapper": {
			`CREATE FOREIGN DATA WRAPPER w; GRANT USAGE ON FOREIGN DATA WRAPPER w TO PUBLIC`, `DROP FOREIGN DATA WRAPPER w`, "", "may use foreign-data wrapper w"},
		"a large object": {
			`SELECT lo_create(4242); GRANT SELECT ON LARGE OBJECT 4242 TO PUBLIC`, `SELECT lo_unlink(4242)`, "", "may use large object 4242"},
		"a large object that the group was given": {
			`SELECT lo_create(4242); GRANT UPDATE ON LARGE OBJECT 4242 TO GROUP_ROLE`, `SELECT lo_unlink(4242)`, "", "may use large object 4242"},
		"a parameter of superusers": {
			`GRANT SET ON PARAMETER session_replication_role TO PUBLIC`, `REVOKE SET ON PARAMETER session_replication_role FROM PUBLIC`, "", "may set parameter session_replication_role"},
	} {
		t.Run(name, func(t *testing.T) {
			l := w.mint(t, asked...) // so that there is a group, and to show that all is well before
			fill := strings.NewReplacer("GROUP_ROLE", l.Upstream["group"], "THIS_ONE", w.db).Replace
			w.sql(t, fill(c.widen))
			r := request(t, w.provider, w.grant(t, asked...))
			m, err := w.provider.Mint(t.Context(), r)
			w.sql(t, fill(c.undo))
			switch {
			case c.reason != "" && (err == nil || !strings.Contains(err.Error(), c.reason)):
				t.Errorf("granted %v, %v", m, err)
			case c.reason == "" && err != nil:
				t.Error(err)
			case c.reason == "":
				if ok, diffs := grant.Leq(m.Granted, r.Grant); ok || diffs[0].Excess != c.excess {
					t.Errorf("granted %s, in excess %v", m.Granted, diffs)
				}
			}
			w.revoke(t, r.Lease)
			w.revoke(t, l.lease)
			w.empty(t)
		})
	}
}

func testTolerated(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg, func(c *postgres.Config) { c.Tolerate = []string{"app.hidden", "app.peek()"} })
	w.sql(t, `GRANT SELECT ON app.hidden TO PUBLIC; CREATE FUNCTION app.peek() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM app.hidden';
		CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN NEW; END'`)
	w.mint(t, on("app.customers", "SELECT", "*", "*"))
	for name, widen := range map[string]string{
		"more than reading of a tolerated table": `GRANT DELETE ON app.hidden TO PUBLIC`,
		"another table":                          `GRANT SELECT ON app.orders TO PUBLIC`,
		"another function":                       `CREATE FUNCTION app.poke() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'`,
	} {
		t.Run("not "+name, func(t *testing.T) {
			w.sql(t, widen)
			r := request(t, w.provider, w.grant(t, on("app.customers", "SELECT", "*", "*")))
			if m, err := w.provider.Mint(t.Context(), r); err == nil && m.Granted.Equal(r.Grant) {
				t.Error("granted as if nothing were")
			}
		})
	}
	// Everybody may read the whole table: that is tolerated of one that has nothing to do
	// with the grant, and not of one of which the grant has a column.
	t.Run("not a table that the grant names", func(t *testing.T) {
		w := newShop(t, pg, func(c *postgres.Config) { c.Tolerate = []string{"app.customers"} })
		w.sql(t, `GRANT SELECT ON app.customers TO PUBLIC`)
		r := request(t, w.provider, w.grant(t, on("app.customers", "SELECT", "id", "*"), on("app.orders", "SELECT", "*", "*")))
		m, err := w.provider.Mint(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if ok, _ := grant.Leq(m.Granted, r.Grant); ok {
			t.Errorf("granted %s, as if that were all", m.Granted)
		}
	})
}

// testCeiling asks for what the ceiling does not hold.
func testCeiling(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	w.sql(t, `
		CREATE TABLE app.part (a int, b int, c int); GRANT SELECT (a, b), DELETE ON app.part TO stint_ceiling WITH GRANT OPTION;
		CREATE TABLE app.lent (a int); GRANT SELECT ON app.lent TO stint_ceiling; -- without grant option
		CREATE TABLE app.open (a int); GRANT SELECT ON app.open TO PUBLIC;
		CREATE SCHEMA shut; CREATE TABLE shut.t (a int); GRANT SELECT ON shut.t TO stint_ceiling WITH GRANT OPTION`)
	refusedBy := func(t *testing.T, reason string, entries ...string) {
		t.Helper()
		r := request(t, w.provider, w.grant(t, entries...))
		m, err := w.provider.Mint(t.Context(), r)
		if err == nil {
			t.Fatalf("granted %s", m.Granted)
		}
		e := broker.AsError(err)
		if e.Code != broker.BadScope || !strings.Contains(e.Reason(), reason) || strings.Contains(e.Public, "app.") {
			t.Errorf("%s: %q, told %q", e.Code, e.Reason(), e.Public)
		}
		if got := w.revoke(t, r.Lease); got != broker.AlreadyDead {
			t.Errorf("there was something: %s", got)
		}
	}
	for name, c := range map[string]struct{ reason, entry string }{
		"a table that it has nothing of":              {"outside the ceiling", on("app.hidden", "SELECT", "*", "*")},
		"a whole table of which it has columns":       {"outside the ceiling", on("app.part", "SELECT", "*", "*")},
		"a column that it does not have":              {"outside the ceiling", on("app.part", "SELECT", "a,c", "*")},
		"a privilege that it does not have":           {"outside the ceiling", on("app.totals", "DELETE", "*", "*")},
		"one privilege it has, and one it has not":    {"outside the ceiling", on("app.part", "SELECT,DELETE", "*", "*")},
		"what it has without grant option":            {"outside the ceiling", on("app.lent", "SELECT", "*", "*")},
		"what everybody has and it has not":           {"outside the ceiling", on("app.open", "SELECT", "*", "*")},
		"a table in a schema that it may not pass on": {"outside the ceiling", on("shut.t", "SELECT", "*", "*")},
		"a table that does not exist":                 {"no table", on("app.nothing", "SELECT", "*", "*")},
		"a table by its name in another case":         {"no table", on(`app."Orders"`, "SELECT", "*", "*")},
		"a schema that does not exist":                {"no table", on("nowhere.orders", "SELECT", "*", "*")},
		"a column that does not exist":                {"not all of the columns", on("app.orders", "SELECT", "id,nothing", "*")},
		"a system column":                             {"not all of the columns", on("app.orders", "SELECT", "ctid", "*")},
		"an index":                                    {"no table", on("app.orders_pkey", "SELECT", "*", "*")},
		"a sequence":                                  {"no table", on("app.orders_id_seq", "SELECT", "*", "*")},
		"row policies of a table without":             {"no effect", on("app.customers", "SELECT", "*", "own")},
		"row policies of a view":                      {"no effect", on("app.totals", "SELECT", "*", "own")},
		"a row policy that the table does not know":   {"no effect", on("app.orders", "DELETE", "*", "region")},
	} {
		t.Run(name, func(t *testing.T) { refusedBy(t, c.reason, c.entry) })
	}
	w.sql(t, `DROP TABLE app.open`)
	t.Run("columns of which it has grant option", func(t *testing.T) {
		l := w.mint(t, on("app.part", "SELECT", "a,b", "*"), on("app.part", "DELETE", "*", "*"))
		if s := state(l.session(t), `SELECT a, b FROM app.part; DELETE FROM app.part`); s != "" {
			t.Error(s)
		}
		w.revoke(t, l.lease)
		w.empty(t)
	})
	t.Run("what was taken from it is gone at once, and not granted again", func(t *testing.T) {
		w.sql(t, `GRANT SELECT ON app.hidden TO stint_ceiling WITH GRANT OPTION`)
		l := w.mint(t, on("app.hidden", "SELECT", "*", "*"))
		s := l.session(t)
		if n := count(t, s, `SELECT count(*) FROM app.hidden`); n != 1 {
			t.Error(n)
		}
		w.sql(t, `REVOKE SELECT ON app.hidden FROM stint_ceiling CASCADE`)
		if got := state(s, `TABLE app.hidden`); got != denied {
			t.Errorf("SQLSTATE %q", got)
		}
		refusedBy(t, "outside the ceiling", on("app.hidden", "SELECT", "*", "*"))
		w.sql(t, `GRANT SELECT ON app.hidden TO stint_ceiling WITH GRANT OPTION`)
		w.mint(t, on("app.hidden", "SELECT", "*", "*")) // the old group, furnished again
	})
}

// testCeilingUnderAttack takes the ceiling away and gives it back while leases
// are minted. Each mint either gets exactly what it asked for, or fails.
func testCeilingUnderAttack(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	stop := make(chan struct{})
	var dba sync.WaitGroup
	dba.Go(func() {
		c, err := pgx.Connect(context.Background(), w.DSN(w.db))
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = c.Close(context.Background()) }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = state(c, `REVOKE UPDATE ON app.customers FROM stint_ceiling CASCADE`)
			time.Sleep(time.Millisecond)
			_ = state(c, `GRANT UPDATE ON app.customers TO stint_ceiling WITH GRANT OPTION`)
			time.Sleep(3 * time.Millisecond)
		}
	})
	var good, bad int
	for i := range 80 {
		entries := []string{on("app.customers", "SELECT,UPDATE", "*", "*")}
		if i%2 == 0 { // each time another group
			entries = append(entries, on("app.orders", "SELECT", []string{"id", "owner", "total", "note"}[i/2%4], "*"), on("app.totals", "SELECT", "*", "*"))
		}
		r := request(t, w.provider, w.grant(t, entries...))
		m, err := w.provider.Mint(t.Context(), r)
		if err != nil {
			bad++
		} else if good++; !m.Granted.Equal(r.Grant) {
			t.Errorf("asked for %s, granted %s", r.Grant, m.Granted)
		}
		w.revoke(t, r.Lease)
		if i%5 == 0 {
			if _, err := w.provider.Describe().Sweep(t.Context(), func(string) bool { return true }); err != nil {
				t.Error(err)
			}
		}
	}
	close(stop)
	dba.Wait()
	t.Logf("%d minted, %d refused", good, bad)
	if good == 0 || bad == 0 {
		t.Errorf("%d minted, %d refused: that shows nothing", good, bad)
	}
	w.sql(t, `REVOKE UPDATE ON app.customers FROM stint_ceiling CASCADE`)
	if got := w.query(t, `SELECT a.grantee::regrole::text FROM pg_class, aclexplode(relacl) a WHERE oid = 'app.customers'::regclass AND a.privilege_type = 'UPDATE' AND a.grantee <> 'postgres'::regrole`); len(got) > 0 {
		t.Errorf("still granted to %q", got)
	}
	w.empty(t)
}

// testRowPolicies are the ways in which a row policy can have no effect.
func testRowPolicies(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	const head = `DROP TABLE IF EXISTS app.notes; CREATE TABLE app.notes (owner text, note text); GRANT SELECT, INSERT, UPDATE, DELETE ON app.notes TO stint_ceiling WITH GRANT OPTION;
		INSERT INTO app.notes VALUES ('` + alice + `', 'hers'), ('` + bob + `', 'his'); `
	const rls = head + `ALTER TABLE app.notes ENABLE ROW LEVEL SECURITY; `
	own := func(command string) string {
		return `(SELECT stint.rows('app.notes', '` + command + `')) = 'own' AND owner = stint.sub()`
	}
	for name, c := range map[string]struct {
		set        string
		privileges string
		ok         bool
	}{
		"a policy that asks":                          {rls + `CREATE POLICY p ON app.notes FOR SELECT USING (` + own("SELECT") + `)`, "SELECT", true},
		"a policy that asks, and row security is off": {head + `CREATE POLICY p ON app.notes FOR SELECT USING (` + own("SELECT") + `)`, "SELECT", false},
		"no policy": {rls, "SELECT", false},
		"a policy that asks, and another that does not": {rls + `CREATE POLICY p ON app.notes FOR SELECT USING (` + own("SELECT") + `); CREATE POLICY q ON app.notes USING (true)`, "SELECT", false},
		"another policy that is not for us":             {rls + `CREATE POLICY p ON app.notes FOR SELECT USING (` + own("SELECT") + `); CREATE POLICY q ON app.notes TO postgres USING (true)`, "SELECT", true},
		"another policy for another command":            {rls + `CREATE POLICY p ON app.notes FOR SELECT USING (` + own("SELECT") + `); CREATE POLICY q ON app.notes FOR DELETE USING (true)`, "SELECT", true},
		"a restrictive policy that asks":                {rls + `CREATE POLICY p ON app.notes AS RESTRICTIVE FOR SELECT USING (` + own("SELECT") + `); CREATE POLICY q ON app.notes USING (true)`, "SELECT", true},
		"a policy about another command":                {rls + `CREATE POLICY p ON app.notes FOR SELECT USING (` + own("UPDATE") + `)`, "SELECT", false},
		"a policy about another table":                  {rls + `CREATE POLICY p ON app.notes FOR SELECT USING (stint.rows('app.orders', 'SELECT') = 'own')`, "SELECT", false},
		"a policy that does not know the name":          {rls + `CREATE POLICY p ON app.notes FOR SELECT USING (stint.rows('app.notes', 'SELECT') = 'ownership')`, "SELECT", false},
		"a policy with a setting in place of the lease": {rls + `CREATE POLICY p ON app.notes USING (owner = current_setting('app.sub', true))`, "SELECT", false},
		"inserting, checked":                            {rls + `CREATE POLICY p ON app.notes FOR INSERT WITH CHECK (` + own("INSERT") + `)`, "INSERT", true},
		"inserting, with a check that is always true":   {rls + `CREATE POLICY p ON app.notes USING (` + own("INSERT") + `) WITH CHECK (true)`, "INSERT", false},
		"updating, by one expression":                   {rls + `CREATE POLICY p ON app.notes FOR UPDATE USING (` + own("UPDATE") + `)`, "UPDATE", true},
		"updating, with a check that is always true":    {rls + `CREATE POLICY p ON app.notes FOR UPDATE USING (` + own("UPDATE") + `) WITH CHECK (true)`, "UPDATE", false},
		"updating anything into one's own":              {rls + `CREATE POLICY p ON app.notes FOR UPDATE USING (true) WITH CHECK (` + own("UPDATE") + `)`, "UPDATE", false},
		"deleting":                                      {rls + `CREATE POLICY p ON app.notes FOR DELETE USING (` + own("DELETE") + `)`, "DELETE", true},
		"two privileges, of which one is covered":       {rls + `CREATE POLICY p ON app.notes FOR SELECT USING (` + own("SELECT") + `)`, "SELECT,DELETE", false},
	} {
		t.Run(name, func(t *testing.T) {
			w.sql(t, c.set)
			r := request(t, w.provider, w.grant(t, on("app.notes", c.privileges, "*", "own")))
			m, err := w.provider.Mint(t.Context(), r)
			if (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "has no effect") {
				t.Fatal(err)
			}
			if c.ok && c.privileges == "SELECT" {
				if n := count(t, read(t, r.Lease, m).session(t), `SELECT count(*) FROM app.notes WHERE owner <> '`+alice+`'`); n != 0 {
					t.Errorf("%d of another's rows", n)
				}
			}
		})
	}
	t.Run("what is attested does not depend on what was refused", func(t *testing.T) {
		l := w.mint(t, on("app.orders", "SELECT", "*", "own"))
		attested := func() string { return w.one(t, `SELECT (stint.attest($1)->'tables'->0->>'rows')`, l.lease) }
		if got := attested(); got != "own" {
			t.Error(got)
		}
		w.sql(t, `ALTER TABLE app.orders DISABLE ROW LEVEL SECURITY`)
		if got := attested(); got != "*" {
			t.Error(got)
		}
		// A group that is there already is looked at again.
		r := request(t, w.provider, w.grant(t, on("app.orders", "SELECT", "*", "own")))
		if _, err := w.provider.Mint(t.Context(), r); err == nil || !strings.Contains(err.Error(), "has no effect") {
			t.Error(err)
		}
	})
}

// testTablesThatChange are names that come to mean something else.
func testTablesThatChange(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	const give = `GRANT SELECT ON app.moving TO stint_ceiling WITH GRANT OPTION`
	w.sql(t, `CREATE TABLE app.moving (a int, b int); INSERT INTO app.moving VALUES (1, 1); `+give)
	old := w.mint(t, on("app.moving", "SELECT", "a", "*"))
	s := old.session(t)

	w.sql(t, `DROP TABLE app.moving; CREATE TABLE app.moving (a int, b int); INSERT INTO app.moving VALUES (2, 2); `+give)
	if got := state(s, `SELECT a FROM app.moving`); got != denied {
		t.Errorf("a lease on a table that was dropped reads the next of that name: %q", got)
	}
	next := w.mint(t, on("app.moving", "SELECT", "a", "*"))
	if next.Upstream["group"] == old.Upstream["group"] {
		t.Error("two tables of one name have one group")
	}
	if got := count(t, next.session(t), `SELECT a FROM app.moving`); got != 2 {
		t.Error(got)
	}
	if got := state(s, `SELECT a FROM app.moving`); got != denied {
		t.Errorf("the older lease was given the new table: %q", got)
	}

	w.sql(t, `ALTER TABLE app.moving RENAME TO moved; CREATE TABLE app.moving (a int); INSERT INTO app.moving VALUES (3); `+give)
	third := w.mint(t, on("app.moving", "SELECT", "a", "*"))
	if got := count(t, third.session(t), `SELECT a FROM app.moving`); got != 3 {
		t.Error(got)
	}
	if got := state(third.session(t), `SELECT a FROM app.moved`); got != denied {
		t.Errorf("the newer lease reads the table that had the name: %q", got)
	}

	w.sql(t, `ALTER TABLE app.moving DROP COLUMN a; ALTER TABLE app.moving ADD COLUMN a int DEFAULT 4`)
	fourth := w.mint(t, on("app.moving", "SELECT", "a", "*"))
	if fourth.Upstream["group"] == third.Upstream["group"] {
		t.Error("two columns of one name have one group")
	}
	for _, l := range []login{old, next, third, fourth} {
		if got := w.revoke(t, l.lease); got != broker.Revoked {
			t.Error(got)
		}
	}
	w.empty(t)
}

func testSerialAndIdentityColumns(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	w.sql(t, `CREATE TABLE app.ids (id integer GENERATED ALWAYS AS IDENTITY, x int); GRANT INSERT ON app.ids TO stint_ceiling WITH GRANT OPTION;
		CREATE SEQUENCE app.free; GRANT USAGE ON SEQUENCE app.free TO stint_ceiling WITH GRANT OPTION`)
	l := w.mint(t, on("app.ids", "INSERT", "x", "*"), on("app.orders", "INSERT", "owner", "own"))
	c := l.session(t)
	if s := state(c, `INSERT INTO app.ids (x) VALUES (1); INSERT INTO app.orders (owner) VALUES ('`+alice+`')`); s != "" {
		t.Error(s)
	}
	for name, statement := range map[string]string{
		"set the sequence":                  `SELECT setval('app.orders_id_seq', 1)`,
		"read the sequence":                 `TABLE app.orders_id_seq`,
		"use a sequence that is not its":    `SELECT nextval('app.free')`,
		"insert an order in another's name": `INSERT INTO app.orders (owner) VALUES ('` + bob + `')`,
	} {
		if s := state(c, statement); s != denied {
			t.Errorf("may %s: %q", name, s)
		}
	}
}
