package postgres_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/providers/postgres"
)

func testInstall(t *testing.T, pg *testbed.PostgresServer) {
	t.Run("twice changes nothing, and ends no lease", func(t *testing.T) {
		w := newShop(t, pg)
		w.sql(t, `UPDATE stint.setting SET max_ttl = '20 minutes'; INSERT INTO stint.subject_role VALUES ('x', 'y')`)
		l := w.mint(t, on("app.orders", "SELECT", "*", "own"))
		catalogue := func() string {
			return w.one(t, `SELECT c.relname, c.relacl::text, c.relowner::regrole::text, (SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)
				FROM pg_class c WHERE relnamespace = 'stint'::regnamespace ORDER BY 1`) + w.one(t, `SELECT p.oid::regprocedure::text, p.proacl::text, p.prosecdef, p.proowner::regrole::text, p.proconfig::text, p.prosrc FROM pg_proc p WHERE pronamespace = 'stint'::regnamespace ORDER BY 1`)
		}
		before := catalogue()
		w.install(t)
		if after := catalogue(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if got := w.one(t, `SELECT max_ttl::text, (SELECT count(*) FROM stint.subject_role)::int, (SELECT count(*) FROM stint.migration)::int FROM stint.setting`); got != "00:20:00|1|1" {
			t.Error(got)
		}
		if n := count(t, l.session(t), `SELECT count(*) FROM app.orders`); n != 1 {
			t.Error(n)
		}
		w.revoke(t, l.lease)
		w.empty(t)
	})
	t.Run("every function is bound to its catalogue, and nobody may call more than he needs", func(t *testing.T) {
		w := newShop(t, pg)
		if got := w.query(t, `SELECT p.oid::regprocedure FROM pg_proc p WHERE pronamespace = 'stint'::regnamespace AND NOT coalesce(proconfig @> '{"search_path=pg_catalog, pg_temp"}', false)`); len(got) > 0 {
			t.Errorf("without a search_path: %q", got)
		}
		if got := w.one(t, `SELECT string_agg(proname, ' ' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'stint'::regnamespace AND has_function_privilege('pg_monitor', oid, 'EXECUTE')`); got != "rows sub" {
			t.Errorf("everybody may call %s", got)
		}
		if got := w.one(t, `SELECT string_agg(proname, ' ' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'stint'::regnamespace AND has_function_privilege('stint_broker', oid, 'EXECUTE')`); got != "attest entitlement list mint reap renew revoke rows standing strays sub tidy version" {
			t.Errorf("the broker may call %s", got)
		}
		if got := w.one(t, `SELECT string_agg(proname, ' ' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'stint'::regnamespace AND prosecdef`); got != "attest entitlement list mint reap renew revoke rows standing strays sub tidy" {
			t.Errorf("run as the ceiling: %s", got)
		}
		if got := w.query(t, `SELECT c.relname FROM pg_class c WHERE relnamespace = 'stint'::regnamespace AND relkind = 'r' AND (has_table_privilege('stint_broker', oid, 'SELECT, INSERT, UPDATE, DELETE') OR has_table_privilege('pg_monitor', oid, 'SELECT'))`); len(got) > 0 {
			t.Errorf("open tables: %q", got)
		}
	})
	t.Run("nobody's functions stand in for the catalogue's", func(t *testing.T) {
		// Whoever may create in public makes functions that fit better than the
		// catalogue's (CVE-2018-1058), and waits for a superuser.
		db := pg.Database(t)
		evil := `CREATE TABLE public.canary ();`
		for _, f := range []string{
			"pg_has_role(text, text, text)", "pg_has_role(name, text, text)", "format(text, text)", "format(text, text, text)", "format(text, name)", "format(text, name, regclass)",
			"current_setting(character varying)", "has_database_privilege(text, text, text)", "has_database_privilege(text, name, text)",
			"has_schema_privilege(text, oid, text)", "has_table_privilege(text, oid, text)", "has_column_privilege(text, oid, smallint, text)", "quote_ident(name)", "aclexplode(anyarray)",
		} {
			evil += "CREATE FUNCTION public." + f + " RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'ours is called: " + f + "'; END$$;\n"
		}
		evil += `CREATE FUNCTION public.same(name, text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'our operator is called'; END$$;
			CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = public.same)`
		pg.Exec(t, db, evil)
		dsn, roles := secret.New(pg.DSN(db)), postgres.Roles{Ceiling: "evil_ceiling", Broker: "evil_broker"}
		for range 2 {
			if err := postgres.Install(t.Context(), dsn, roles, secret.New("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := postgres.Look(t.Context(), dsn, roles); err != nil {
				t.Fatal(err)
			}
		}
		if err := postgres.Uninstall(t.Context(), dsn, roles); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("the script is plain SQL", func(t *testing.T) {
		psql, err := exec.LookPath("psql")
		if err != nil {
			t.Skip("psql is not installed")
		}
		db := pg.Database(t)
		script, err := postgres.InstallSQL(postgres.Roles{})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", pg.DSN(db))
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got := pg.Query(t, db, `SELECT stint.version()`); got[0] != "1" {
			t.Error(got)
		}
	})
	t.Run("roles may have any names", func(t *testing.T) {
		db := pg.Database(t)
		roles := postgres.Roles{Ceiling: `The "Ceiling's"`, Broker: `{ceiling} \ ; --`}
		for range 2 {
			if err := postgres.Install(t.Context(), secret.New(pg.DSN(db)), roles, secret.New("x")); err != nil {
				t.Fatal(err)
			}
		}
		c, err := pgx.Connect(t.Context(), pg.UserDSN(roles.Broker, "x", db))
		if err != nil {
			t.Fatal(err)
		}
		if n := count(t, c, `SELECT version FROM stint.standing()`); n != postgres.Version {
			t.Error(n)
		}
		_ = c.Close(context.Background())
		if err := postgres.Uninstall(t.Context(), secret.New(pg.DSN(db)), roles); err != nil {
			t.Fatal(err)
		}
		if got := pg.Query(t, db, `SELECT rolname FROM pg_roles WHERE rolname = $1 OR rolname = $2`, roles.Ceiling, roles.Broker); len(got) > 0 {
			t.Error(got)
		}
	})
	for name, c := range map[string]struct{ set, reason string }{
		"a ceiling that is a superuser":  {`CREATE ROLE c SUPERUSER CREATEROLE`, "NOLOGIN CREATEROLE"},
		"a ceiling that can log in":      {`CREATE ROLE c LOGIN CREATEROLE`, "NOLOGIN CREATEROLE"},
		"a broker that is a superuser":   {`CREATE ROLE b LOGIN SUPERUSER`, "must be neither"},
		"a broker that can make roles":   {`CREATE ROLE b LOGIN CREATEROLE`, "must be neither"},
		"a broker in the ceiling":        {`CREATE ROLE c CREATEROLE; CREATE ROLE b LOGIN IN ROLE c`, "must be neither"},
		"a schema that is somebody's":    {`CREATE SCHEMA stint`, "there is a schema stint"},
		"something newer, which it left": {`CREATE ROLE c CREATEROLE; CREATE SCHEMA stint AUTHORIZATION c; CREATE TABLE stint.migration (version int, at timestamptz); ALTER TABLE stint.migration OWNER TO c; INSERT INTO stint.migration VALUES (99)`, "newer"},
	} {
		t.Run("it refuses "+name, func(t *testing.T) {
			db := pg.Database(t)
			pg.Exec(t, db, c.set)
			err := postgres.Install(t.Context(), secret.New(pg.DSN(db)), postgres.Roles{Ceiling: "c", Broker: "b"}, secret.String{})
			if err == nil || !strings.Contains(err.Error(), c.reason) {
				t.Error(err)
			}
			pg.Exec(t, db, `DROP SCHEMA IF EXISTS stint CASCADE; DROP ROLE IF EXISTS c; DROP ROLE IF EXISTS b`)
		})
	}
	for _, bad := range []postgres.Roles{{Ceiling: "a", Broker: "a"}, {Ceiling: strings.Repeat("x", 64)}, {Broker: "stint_v_x"}, {Ceiling: "a\x00b"}} {
		if _, err := postgres.InstallSQL(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
		if _, err := postgres.UninstallSQL(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestInstallWithoutSuperuser is a DBA as cloud providers have them.
func TestInstallWithoutSuperuser(t *testing.T) {
	t.Parallel()
	pg := testbed.Postgres(t)
	db := pg.Database(t)
	pg.Exec(t, db, `CREATE ROLE dba LOGIN CREATEROLE PASSWORD 'x'; ALTER DATABASE `+db+` OWNER TO dba; GRANT pg_signal_backend TO dba WITH ADMIN OPTION`)
	dsn := secret.New(pg.UserDSN("dba", "x", db))
	for range 2 {
		if err := postgres.Install(t.Context(), dsn, postgres.Roles{}, secret.New(brokerPassword)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := pgx.Connect(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	if s := state(c, `CREATE SCHEMA app; CREATE TABLE app.customers (id int); GRANT USAGE ON SCHEMA app TO stint_ceiling WITH GRANT OPTION; GRANT SELECT ON app.customers TO stint_ceiling WITH GRANT OPTION`); s != "" {
		t.Fatal(s)
	}
	w := &shop{PostgresServer: pg, db: db}
	w.provider = w.open(t, postgres.Config{Host: pg.Host, Port: pg.Port, Database: db, Password: "secret:broker", Entitlement: "none"})
	l := w.mint(t, customers)
	if n := count(t, l.session(t), `SELECT count(*) FROM app.customers`); n != 0 {
		t.Error(n)
	}
	w.revoke(t, l.lease)
	if err := postgres.Uninstall(t.Context(), dsn, postgres.Roles{}); err != nil {
		t.Fatal(err)
	}
}

func TestUninstall(t *testing.T) {
	t.Parallel()
	pg := testbed.Postgres(t)
	w, other := newShop(t, pg), newShop(t, pg)
	l, theirs := w.mint(t, customers), other.mint(t, customers)
	s := l.session(t)
	uninstall := func() error {
		return postgres.Uninstall(t.Context(), secret.New(w.DSN(w.db)), postgres.Roles{})
	}
	if err := uninstall(); err == nil || !strings.Contains(err.Error(), "stint_r on app.orders") {
		t.Errorf("with row policies that ask: %v", err)
	}
	if n := count(t, s, `SELECT count(*) FROM app.customers`); n != 2 {
		t.Error("a refused uninstallation ended a lease")
	}
	w.sql(t, `DROP POLICY stint_r ON app.orders; DROP POLICY stint_a ON app.orders; DROP POLICY stint_w ON app.orders; DROP POLICY stint_d ON app.orders`)
	if err := uninstall(); err != nil {
		t.Fatal(err)
	}
	if state(s, `SELECT 1`) == "" {
		t.Error("a session lives")
	}
	if got := w.one(t, `SELECT count(*)::int FROM pg_namespace WHERE nspname = 'stint'`); got != "0" {
		t.Error(got)
	}
	if got := w.query(t, `SELECT a.grantee::regrole::text FROM pg_class c, aclexplode(relacl) a WHERE relnamespace = 'app'::regnamespace AND a.grantee <> 'postgres'::regrole`); len(got) > 0 {
		t.Errorf("still granted to %q", got)
	}
	if got := w.query(t, `SELECT nspname FROM pg_namespace, aclexplode(nspacl) a WHERE a.grantee IN ('stint_ceiling'::regrole, 'stint_broker'::regrole)`); len(got) > 0 {
		t.Errorf("schemas still granted: %q", got)
	}
	// The other database of the cluster goes on.
	if n := count(t, theirs.session(t), `SELECT count(*) FROM app.customers`); n != 2 {
		t.Error(n)
	}
	other.revoke(t, theirs.lease)
	other.empty(t)
}

func TestReady(t *testing.T) {
	t.Parallel()
	pg := testbed.Postgres(t)
	w := newShop(t, pg)
	for name, c := range map[string]struct{ set, undo, reason string }{
		"all is well":                    {`SELECT 1`, `SELECT 1`, ""},
		"a superuser for a login":        {`ALTER ROLE stint_broker SUPERUSER`, `ALTER ROLE stint_broker NOSUPERUSER`, "no superuser"},
		"a login that can make roles":    {`ALTER ROLE stint_broker CREATEROLE`, `ALTER ROLE stint_broker NOCREATEROLE`, "CREATEROLE"},
		"a login that is in the ceiling": {`GRANT stint_ceiling TO stint_broker`, `REVOKE stint_ceiling FROM stint_broker`, "can do more"},
		"another version":                {`CREATE OR REPLACE FUNCTION stint.version() RETURNS integer LANGUAGE sql AS 'SELECT 7'`, `CREATE OR REPLACE FUNCTION stint.version() RETURNS integer LANGUAGE sql AS 'SELECT 1'`, "version 7"},
	} {
		t.Run(name, func(t *testing.T) {
			w.sql(t, c.set)
			err := w.provider.Describe().Ready(t.Context())
			w.sql(t, c.undo)
			if (err == nil) != (c.reason == "") || err != nil && !strings.Contains(err.Error(), c.reason) {
				t.Error(err)
			}
		})
	}
	t.Run("nothing is installed", func(t *testing.T) {
		cfg := w.cfg
		cfg.Database = pg.Database(t)
		if err := w.open(t, cfg).Describe().Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "stint postgres install") {
			t.Error(err)
		}
	})
	t.Run("a wrong password", func(t *testing.T) {
		cfg := w.cfg
		cfg.User = "postgres"
		err := w.open(t, cfg).Describe().Ready(t.Context())
		if err == nil || !strings.Contains(err.Error(), "28P01") || strings.Contains(err.Error(), brokerPassword) || strings.Contains(err.Error(), "postgres") {
			t.Error(err)
		}
	})
	t.Run("a secret that is not there", func(t *testing.T) {
		cfg := w.cfg
		cfg.Password = "secret:other"
		if err := w.open(t, cfg).Describe().Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "no secret") {
			t.Error(err)
		}
	})
}

func TestTLS(t *testing.T) {
	t.Parallel()
	pg, another := testbed.StartPostgres(t, testbed.PostgresOptions{TLS: true}), testbed.StartPostgres(t, testbed.PostgresOptions{TLS: true})
	w := &shop{PostgresServer: pg, db: pg.Database(t)}
	w.install(t)
	d := deps
	d.Secret = func(ctx context.Context, ref string) (secret.String, error) {
		switch ref {
		case "secret:ca":
			return secret.New(pg.CA), nil
		case "secret:other":
			return secret.New(another.CA), nil
		case "secret:garbage":
			return secret.New("no certificate"), nil
		}
		return deps.Secret(ctx, ref)
	}
	for name, c := range map[string]struct {
		ca, host string
		ok       bool
	}{
		"its own authority":                {"secret:ca", pg.Host, true},
		"another authority":                {"secret:other", pg.Host, false},
		"the right one under a wrong name": {"secret:ca", "localhost", false},
		"no certificate at all":            {"secret:garbage", pg.Host, false},
		"no TLS, where TLS is wanted":      {"", pg.Host, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := postgres.Config{Host: c.host, Port: pg.Port, Database: w.db, Password: "secret:broker", CA: c.ca, Entitlement: "none"}
			p, err := postgres.Open(t.Context(), "main", func(v any) error { *v.(*postgres.Config) = cfg; return nil }, d)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Describe().Ready(t.Context()); (err == nil) != c.ok {
				t.Error(err)
			}
		})
	}
}

// TestSecretsStayOutOfTheLog has the server log all it can.
func TestSecretsStayOutOfTheLog(t *testing.T) {
	t.Parallel()
	pg := testbed.StartPostgres(t, testbed.PostgresOptions{Settings: map[string]string{
		"log_statement": "all", "log_min_duration_statement": "0", "log_parameter_max_length": "-1", "log_min_error_statement": "info",
	}})
	w := newShop(t, pg)
	l := w.mint(t, customers)
	r := request(t, w.provider, w.grant(t, customers))
	r.Lease = l.lease
	_, err := w.provider.Mint(t.Context(), r) // fails
	if err == nil || strings.Contains(err.Error(), "SCRAM") {
		t.Error(err)
	}
	w.revoke(t, l.lease)
	if out := pg.Process.Output(); !strings.Contains(out, l.lease) || strings.Contains(out, l.password) || strings.Contains(out, brokerPassword) {
		t.Error("the log has no statements, or a password")
	}
}
