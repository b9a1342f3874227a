package postgres_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
)

const denied = "42501"

// testHolder is what the holder of a credential tries.
func testHolder(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	l := w.mint(t, on("app.orders", "SELECT,UPDATE", "*", "own"), on("app.customers", "SELECT", "id,name", "*"))
	other := w.mintFor(t, bob, on("app.customers", "SELECT,DELETE", "*", "*"))
	group, otherGroup := l.Upstream["group"], other.Upstream["group"]
	c := l.session(t)

	for name, statement := range map[string]string{
		"a later expiry":                      `ALTER ROLE CURRENT_USER VALID UNTIL 'infinity'`,
		"more connections":                    `ALTER ROLE CURRENT_USER CONNECTION LIMIT 100`,
		"the right to make roles":             `ALTER ROLE CURRENT_USER CREATEROLE`,
		"to bypass row security":              `ALTER ROLE CURRENT_USER BYPASSRLS`,
		"another name":                        `ALTER ROLE ` + group + ` RENAME TO harmless`,
		"a member of its own role":            `GRANT ` + l.user + ` TO ` + other.user,
		"the broker as a member of its role":  `GRANT ` + l.user + ` TO stint_broker`,
		"a comment that says another lease":   `COMMENT ON ROLE ` + l.user + ` IS 'stint db=1 '`,
		"a role of its own":                   `CREATE ROLE mine`,
		"to be somebody else for a session":   `SET SESSION AUTHORIZATION ` + other.user,
		"to be the superuser":                 `SET SESSION AUTHORIZATION postgres`,
		"to be another lease":                 `SET ROLE ` + other.user,
		"to be another lease's group":         `SET ROLE ` + otherGroup,
		"to be the ceiling":                   `SET ROLE stint_ceiling`,
		"to be the broker":                    `SET ROLE stint_broker`,
		"a member of its group":               `GRANT ` + group + ` TO ` + other.user,
		"membership of another group":         `GRANT ` + otherGroup + ` TO CURRENT_USER`,
		"the leases":                          `TABLE stint.lease`,
		"a longer lease":                      `UPDATE stint.lease SET not_after = 'infinity'`,
		"another subject":                     `UPDATE stint.lease SET subject = 'x'`,
		"the groups' items":                   `UPDATE stint.item SET rows = '*'`,
		"a lock on the groups":                `DO $$BEGIN LOCK TABLE stint.grp IN ACCESS SHARE MODE; END$$`,
		"a lease by itself":                   `SELECT stint.mint('aaaaaaaaaaaaaaaa', 'x', '{}', 1, now(), 1, '', '{}')`,
		"to revoke another lease":             `SELECT stint.revoke('` + other.lease + `')`,
		"the list of leases":                  `SELECT stint.list()`,
		"the helpers":                         `SELECT stint.kill(10)`,
		"a function that is not granted":      `SELECT stint.furnish('x', '{}')`,
		"passwords":                           `SELECT rolpassword FROM pg_authid`,
		"a table that was not granted":        `TABLE app.hidden`,
		"a column that was not granted":       `SELECT phone FROM app.customers`,
		"a privilege that was not granted":    `DELETE FROM app.orders`,
		"truncation":                          `TRUNCATE app.orders`,
		"a trigger":                           `CREATE TRIGGER x BEFORE UPDATE ON app.orders EXECUTE FUNCTION suppress_redundant_updates_trigger()`,
		"a policy":                            `CREATE POLICY x ON app.orders USING (true)`,
		"row security off for the table":      `ALTER TABLE app.orders DISABLE ROW LEVEL SECURITY`,
		"row security off for the session":    `SET row_security = off; SELECT count(*) FROM app.orders`,
		"a table in public":                   `CREATE TABLE public.x ()`,
		"a schema":                            `CREATE SCHEMA x`,
		"a function that runs as its owner":   `CREATE FUNCTION app.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'`,
		"to read a file of the server":        `SELECT pg_read_file('postgresql.conf')`,
		"to run a program":                    `COPY app.orders TO PROGRAM 'id'`,
		"to end somebody's session":           `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'stint_broker'`,
		"a view of what it may not see":       `CREATE TEMP VIEW v AS SELECT * FROM app.hidden; TABLE v`,
		"an order in somebody else's name":    `UPDATE app.orders SET owner = '` + bob + `'`,
		"a setting that only a superuser has": `SET session_replication_role = replica`,
	} {
		t.Run("does not get "+name, func(t *testing.T) {
			if s := state(c, statement); s != denied {
				t.Errorf("SQLSTATE %q", s)
			}
		})
	}

	t.Run("lends nothing to others", func(t *testing.T) {
		// Without a grant option this is a warning, and no error.
		_ = state(c, `GRANT SELECT (id, name) ON app.customers TO `+other.user)
		_ = state(c, `GRANT SELECT (id, name) ON app.customers TO PUBLIC`)
		if got := w.one(t, `SELECT count(*)::int FROM pg_attribute, aclexplode(attacl) a WHERE attrelid = 'app.customers'::regclass AND a.grantee IN (0, $1::regrole)`, other.user); got != "0" {
			t.Error(got)
		}
	})

	forgeries := map[string]string{
		"nothing":                       ``,
		"a setting called sub":          `SET app.sub = '` + bob + `'; SET stint.sub = '` + bob + `'; SET request.jwt.claims = '{"sub":"` + bob + `"}'`,
		"another application name":      `SET application_name = '` + other.user + `'`,
		"tables of the same names":      `CREATE TEMP TABLE lease (LIKE pg_class); CREATE TEMP TABLE item AS SELECT 'x'::name AS grp, 'app.orders'::regclass::oid AS rel, 'SELECT' AS privilege, '*' AS rows; CREATE TEMP TABLE pg_roles (rolname name)`,
		"its own search path":           `SET search_path = pg_temp, app`,
		"a function of the same name":   `CREATE FUNCTION pg_temp.sub() RETURNS text LANGUAGE sql AS $$SELECT '` + bob + `'::text$$; SET search_path = pg_temp`,
		"an isolation level":            `BEGIN ISOLATION LEVEL SERIALIZABLE`,
		"a role's own default settings": `ALTER ROLE CURRENT_USER SET search_path = pg_temp`,
	}
	if versionOf(t, w) < 160000 { // from 16 on it cannot become its group
		forgeries["its group's role"] = `SET ROLE ` + group
	}
	for name, statement := range forgeries {
		t.Run("sees its own rows only, whatever it sets: "+name, func(t *testing.T) {
			c := l.session(t)
			if s := state(c, statement); s != "" {
				t.Fatal(s)
			}
			if n := count(t, c, `SELECT count(*) FROM app.orders WHERE owner = '`+alice+`'`); n != 1 {
				t.Errorf("%d of her own rows", n)
			}
			if n := count(t, c, `SELECT count(*) FROM app.orders WHERE owner = '`+bob+`'`); n != 0 {
				t.Errorf("%d of another's rows", n)
			}
			_ = c.Close(t.Context())
		})
	}

	t.Run("has as many sessions as it was given", func(t *testing.T) {
		for try := 0; w.one(t, `SELECT count(*)::int FROM pg_stat_activity WHERE usename = $1`, l.user) != "1"; try++ {
			if try == 200 { // those that were closed above take a moment to end
				t.Fatal("sessions do not end")
			}
		}
		for range 3 {
			l.session(t)
		}
		_, err := pgx.Connect(t.Context(), l.url)
		if s := sqlState(err); s != "53300" {
			t.Error(s)
		}
	})
}

func versionOf(t testing.TB, w *shop) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(w.one(t, `SHOW server_version_num`), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// testHolderAgainstRevocation is what a holder does to keep what it has.
func testHolderAgainstRevocation(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	old := versionOf(t, w) < 160000
	for name, c := range map[string]struct {
		statement string
		only15    bool
	}{
		"being idle":                           {``, false},
		"an open transaction with a cursor":    {`BEGIN; DECLARE c CURSOR FOR SELECT * FROM app.orders; FETCH c`, false},
		"a temporary table":                    {`CREATE TEMP TABLE mine AS SELECT 1`, false},
		"a prepared statement":                 {`PREPARE p AS SELECT * FROM app.orders`, false},
		"a lock on a table":                    {`BEGIN; LOCK TABLE app.orders IN ROW EXCLUSIVE MODE`, false},
		"every advisory lock":                  {`SELECT count(pg_advisory_lock(n)) FROM generate_series(1, 2000) n`, false},
		"its own role, locked":                 {`BEGIN; ALTER ROLE CURRENT_USER PASSWORD 'mine'`, false},
		"its own role's settings, locked":      {`BEGIN; ALTER ROLE CURRENT_USER SET work_mem = '1MB'`, false},
		"a password of its own":                {`ALTER ROLE CURRENT_USER PASSWORD 'mine'`, false},
		"a large object":                       {`SELECT lo_create(0)`, false},
		"default privileges":                   {`ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC`, false},
		"its group's role":                     {`SET ROLE GROUP`, true},
		"its group's role, and a locked group": {`SET ROLE GROUP; BEGIN; ALTER ROLE GROUP PASSWORD 'x'; ALTER ROLE GROUP SET work_mem = '1MB'`, true},
		"what its group owns":                  {`SET ROLE GROUP; SELECT lo_create(0); ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC`, true},
	} {
		if c.only15 && !old {
			continue
		}
		t.Run("it ends in spite of "+name, func(t *testing.T) {
			l := w.mint(t, on("app.orders", "SELECT,INSERT", "*", "*"))
			s := l.session(t)
			statement := strings.ReplaceAll(c.statement, "GROUP", l.Upstream["group"])
			if got := state(s, statement); got != "" {
				t.Fatal(got)
			}
			// Others are not kept from the same grant meanwhile.
			again := w.mint(t, on("app.orders", "SELECT,INSERT", "*", "*"))
			start := time.Now()
			for range 3 {
				if got := w.revoke(t, l.lease); got == broker.Revoked {
					break
				} else if got != broker.DisabledPendingKill {
					t.Fatal(got)
				}
			}
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("it took %s", took)
			}
			if got := state(s, `SELECT 1`); got == "" {
				t.Error("the session lives")
			}
			if got := w.one(t, `SELECT count(*)::int FROM pg_stat_activity WHERE usesysid = (SELECT role FROM stint.lease WHERE id = $1)`, l.lease); got != "0" {
				t.Error(got, "sessions")
			}
			for _, password := range []string{l.password, "mine"} {
				_, err := pgx.Connect(t.Context(), w.UserDSN(l.user, password, w.db))
				if got := sqlState(err); got != "28P01" && got != "28000" {
					t.Errorf("login: %q", got)
				}
			}
			if got := w.revoke(t, again.lease); got != broker.Revoked {
				t.Error(got)
			}
			w.empty(t)
		})
	}
}

// empty checks that a sweep leaves nothing.
func (w *shop) empty(t testing.TB) {
	t.Helper()
	if _, err := w.provider.Describe().Sweep(t.Context(), func(string) bool { return true }); err != nil {
		t.Error(err)
	}
	if left := w.left(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// testNamesThatAreCode are names that would be SQL if they were let.
func testNamesThatAreCode(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	w.sql(t, `CREATE TABLE canary ()`)
	evil := []string{
		`'; DROP TABLE canary; --`, `"; DROP TABLE canary; --`, `$$; DROP TABLE canary; --`, `\'; DROP TABLE canary; --`,
		`%s %I %L`, "line\nbreak", "nul\x00byte", "\xff\xfe", strings.Repeat("x", 5000), `'||(SELECT rolpassword FROM pg_authid LIMIT 1)||'`,
		`*/ DROP TABLE canary; /*`, `€ "quoted" 'name'`, "",
	}
	r := request(t, w.provider, w.grant(t, on("app.customers", "SELECT", "*", "*")))
	for _, e := range evil {
		t.Run(fmt.Sprintf("as pseudonym, agent and client: %.20q", e), func(t *testing.T) {
			r := r
			r.Lease, r.Pseudonym, r.Actor, r.Client = newLease(), e, e, e
			m, err := w.provider.Mint(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if n := count(t, read(t, r.Lease, m).session(t), `SELECT count(*) FROM app.customers`); n != 2 {
				t.Error(n)
			}
			comment := w.one(t, `SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = 'stint_v_' || $1`, r.Lease)
			if !strings.Contains(comment, r.Lease) || strings.Contains(comment, alice) || len(comment) > 2000 {
				t.Error(comment)
			}
			w.revoke(t, r.Lease)
		})
		t.Run(fmt.Sprintf("as lease: %.20q", e), func(t *testing.T) {
			r := r
			r.Lease = e
			if _, err := w.provider.Mint(t.Context(), r); err == nil {
				t.Error("minted")
			}
		})
		t.Run(fmt.Sprintf("as subject: %.20q", e), func(t *testing.T) {
			r := r
			r.Lease, r.Subject = newLease(), e
			if _, err := w.provider.Mint(t.Context(), r); err != nil && !strings.ContainsAny(e, "\x00\xff") {
				t.Error(err)
			}
			w.revoke(t, r.Lease)
		})
	}
	// What the functions are given without the provider in front, by a broker
	// that was taken over.
	c, err := pgx.Connect(t.Context(), w.UserDSN("stint_broker", brokerPassword, w.db))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	verifier := `SCRAM-SHA-256$4096:AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=`
	terms := `{"tables":[{"schema":"app","table":"customers","privilege":"SELECT","columns":"*","rows":"*"}]}`
	mint := func(lease, verifier, terms string, ttl float64, connections int) string {
		_, err := c.Exec(t.Context(), `SELECT stint.mint($1, $2, $3, $4, now() + interval '1 hour', $5, 's', '{}')`, lease, verifier, terms, ttl, connections)
		return sqlState(err)
	}
	entry := func(key, value string) string {
		e := map[string]string{"schema": `"app"`, "table": `"customers"`, "privilege": `"SELECT"`, "columns": `"*"`, "rows": `"*"`}
		e[key] = value
		return fmt.Sprintf(`{"tables":[{"schema":%s,"table":%s,"privilege":%s,"columns":%s,"rows":%s}]}`, e["schema"], e["table"], e["privilege"], e["columns"], e["rows"])
	}
	for name, try := range map[string]func() string{
		"a lease that is code":      func() string { return mint(`aaaaaaaaaaaaaaaa" SUPERUSER; --`, verifier, terms, 60, 1) },
		"a lease with a newline":    func() string { return mint("aaaaaaaaaaaaaaaa\n", verifier, terms, 60, 1) },
		"a lease that is too short": func() string { return mint("aaaa", verifier, terms, 60, 1) },
		"a password in clear":       func() string { return mint(newLease(), "secret", terms, 60, 1) },
		"a verifier that is code":   func() string { return mint(newLease(), verifier+"' SUPERUSER --", terms, 60, 1) },
		"no connections":            func() string { return mint(newLease(), verifier, terms, 60, 0) },
		"no time":                   func() string { return mint(newLease(), verifier, terms, 0, 1) },
		"no tables":                 func() string { return mint(newLease(), verifier, `{"tables":[]}`, 60, 1) },
		"nothing at all":            func() string { return mint(newLease(), verifier, `null`, 60, 1) },
		"a privilege that is code": func() string {
			return mint(newLease(), verifier, entry("privilege", `"SELECT ON ALL TABLES IN SCHEMA app TO PUBLIC; --"`), 60, 1)
		},
		"a privilege that is not lent": func() string { return mint(newLease(), verifier, entry("privilege", `"TRUNCATE"`), 60, 1) },
		"all privileges":               func() string { return mint(newLease(), verifier, entry("privilege", `"ALL"`), 60, 1) },
		"a table that is code":         func() string { return mint(newLease(), verifier, entry("table", `"customers TO PUBLIC; --"`), 60, 1) },
		"a column that is code": func() string {
			return mint(newLease(), verifier, entry("columns", `["id) ON app.hidden TO PUBLIC; --"]`), 60, 1)
		},
		"no columns":                      func() string { return mint(newLease(), verifier, entry("columns", `[]`), 60, 1) },
		"columns by another name for all": func() string { return mint(newLease(), verifier, entry("columns", `null`), 60, 1) },
		"columns of DELETE": func() string {
			return mint(newLease(), verifier, strings.Replace(entry("columns", `["id"]`), "SELECT", "DELETE", 1), 60, 1)
		},
		"rows without a name":       func() string { return mint(newLease(), verifier, entry("rows", `null`), 60, 1) },
		"a row policy that is code": func() string { return mint(newLease(), verifier, entry("rows", `"x' OR true"`), 60, 1) },
		"a catalogue": func() string {
			return mint(newLease(), verifier, strings.NewReplacer(`"app"`, `"pg_catalog"`, `"customers"`, `"pg_authid"`).Replace(terms), 60, 1)
		},
		"the leases": func() string {
			return mint(newLease(), verifier, strings.NewReplacer(`"app"`, `"stint"`, `"customers"`, `"lease"`).Replace(terms), 60, 1)
		},
		"a table outside the ceiling":      func() string { return mint(newLease(), verifier, entry("table", `"hidden"`), 60, 1) },
		"a group role as the lease to end": func() string { _, err := c.Exec(t.Context(), `SELECT stint.revoke('g_x')`); return sqlState(err) },
		"another's role as the lease": func() string {
			_, err := c.Exec(t.Context(), `SELECT stint.reap($1)`, `../postgres`)
			return sqlState(err)
		},
	} {
		t.Run("the functions refuse "+name, func(t *testing.T) {
			if s := try(); !strings.HasPrefix(s, "ST00") {
				t.Errorf("SQLSTATE %q", s)
			}
		})
	}
	for name, statement := range map[string]string{
		"data": `TABLE app.customers`, "the leases": `TABLE stint.lease`, "passwords": `TABLE pg_authid`, "roles": `CREATE ROLE x`,
		"the ceiling": `SET ROLE stint_ceiling`, "helpers": `SELECT stint.group_for('{}')`, "settings": `UPDATE stint.setting SET max_ttl = '1 year'`,
		"who is who": `INSERT INTO stint.subject_role VALUES ('x', 'postgres')`, "row names": `UPDATE stint.item SET rows = '*'`,
		"a member": `GRANT stint_ceiling TO stint_broker`, "a grant": `GRANT SELECT ON app.customers TO stint_broker`,
	} {
		t.Run("the broker's login has no access to "+name, func(t *testing.T) {
			if s := state(c, statement); s != denied {
				t.Errorf("SQLSTATE %q", s)
			}
		})
	}
	if got := w.one(t, `SELECT to_regclass('public.canary')::text`); got != "canary" {
		t.Error("the canary is gone")
	}
	w.empty(t)
}
