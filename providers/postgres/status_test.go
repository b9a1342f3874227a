package postgres_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/providers/postgres"
)

func (w *shop) look(t testing.TB) *postgres.Standing {
	t.Helper()
	s, err := postgres.Look(t.Context(), secret.New(w.DSN(w.db)), postgres.Roles{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testLook(t *testing.T, pg *testbed.PostgresServer) {
	t.Run("at a database without Stint", func(t *testing.T) {
		s, err := postgres.Look(t.Context(), secret.New(pg.DSN(pg.Database(t))), postgres.Roles{Ceiling: "top", Broker: "agent"})
		if err != nil || s.Version != 0 || !slices.Equal(s.Missing, []string{"top", "agent"}) || s.Open != 0 {
			t.Errorf("%+v, %v", s, err)
		}
	})
	w := newShop(t, pg)
	t.Run("at what the ceiling lends", func(t *testing.T) {
		w.sql(t, `CREATE TABLE app.part (a int, "B" int, c int); GRANT SELECT (a, "B"), DELETE ON app.part TO stint_ceiling WITH GRANT OPTION;
			GRANT SELECT ON app.hidden TO stint_ceiling; CREATE SCHEMA "Shut"; CREATE TABLE "Shut".t (); GRANT SELECT ON "Shut".t TO stint_ceiling WITH GRANT OPTION`)
		s := w.look(t)
		if s.Version != postgres.Version || s.Ceiling != "stint_ceiling" || s.Broker != "stint_broker" || len(s.Missing) > 0 || s.MaxLifetime != 3600 || s.MaxConnections != 16 || s.Since.IsZero() {
			t.Errorf("%+v", s)
		}
		const whole = "SELECT, INSERT, UPDATE, DELETE"
		want := `app."Odd.Name ""x""": ` + whole + `; app.customers: ` + whole + `; app.orders: ` + whole + `; app.part: SELECT (a, "B"), DELETE; app.totals: SELECT`
		var got []string
		for _, l := range s.Lends {
			got = append(got, l.Object+": "+strings.Join(l.Privileges, ", "))
		}
		if strings.Join(got, "; ") != want {
			t.Errorf("got  %s\nwant %s", strings.Join(got, "; "), want)
		}
		if !slices.ContainsFunc(s.Warnings, func(w string) bool {
			return strings.Contains(w, `GRANT USAGE ON SCHEMA "Shut" TO stint_ceiling WITH GRANT OPTION`)
		}) {
			t.Errorf("%q", s.Warnings)
		}
	})
	t.Run("at leases, and not at whose they are", func(t *testing.T) {
		l := w.mint(t, customers)
		l.session(t)
		s := w.look(t)
		if s.Open != 1 || s.Groups != 1 || len(s.Leases) != 1 {
			t.Fatalf("%+v", s)
		}
		if got := s.Leases[0]; got.Lease != l.lease || got.Group != l.Upstream["group"] || got.State != "open" || got.Sessions != 1 || time.Until(got.Until) < 9*time.Minute {
			t.Errorf("%+v", got)
		}
		if strings.Contains(fmt.Sprintf("%+v", s), alice) {
			t.Error("it names the subject")
		}
		for _, c := range [][2]string{{"not_after = now()", "expired"}, {"revoked_at = now()", "revoked"}} {
			w.sql(t, `UPDATE stint.lease SET `+c[0])
			if got := w.look(t).Leases[0].State; got != c[1] {
				t.Errorf("%s, after %s", got, c[0])
			}
		}
		w.revoke(t, l.lease)
		w.empty(t)
		if s := w.look(t); s.Open != 0 || s.Groups != 0 {
			t.Errorf("%+v", s)
		}
	})
	for name, c := range map[string]struct{ set, undo, warning string }{
		"a table that is everybody's":    {`GRANT SELECT, INSERT (id) ON app.hidden TO PUBLIC`, `REVOKE ALL ON app.hidden FROM PUBLIC`, "everybody has INSERT, SELECT on app.hidden"},
		"a function that is everybody's": {`CREATE FUNCTION app.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'`, `DROP FUNCTION app.f()`, "everybody may call app.f() as its owner"},
		"a schema that is everybody's":   {`GRANT CREATE ON SCHEMA app TO PUBLIC`, `REVOKE CREATE ON SCHEMA app FROM PUBLIC`, "everybody may create in schema app"},
		"a database that is everybody's": {`SELECT 1`, `REVOKE CONNECT ON DATABASE THIS_ONE FROM PUBLIC`, "REVOKE CONNECT, TEMPORARY ON DATABASE THIS_ONE FROM PUBLIC"},
		"a ceiling without anything":     {`REVOKE ALL ON ALL TABLES IN SCHEMA app FROM stint_ceiling CASCADE`, `GRANT SELECT ON app.customers TO stint_ceiling WITH GRANT OPTION`, "holds nothing with grant option"},
		"another version":                {`CREATE OR REPLACE FUNCTION stint.version() RETURNS integer LANGUAGE sql AS 'SELECT 7'`, `CREATE OR REPLACE FUNCTION stint.version() RETURNS integer LANGUAGE sql AS 'SELECT 1'`, "version 7 is installed, this is 1"},
	} {
		t.Run("and warns of "+name, func(t *testing.T) {
			fill := strings.NewReplacer("THIS_ONE", w.db).Replace
			warned := func() bool {
				return slices.ContainsFunc(w.look(t).Warnings, func(s string) bool { return strings.Contains(s, fill(c.warning)) })
			}
			w.sql(t, fill(c.set))
			if !warned() {
				t.Errorf("it does not: %q", w.look(t).Warnings)
			}
			w.sql(t, fill(c.undo))
			if warned() {
				t.Errorf("it does, without reason: %q", w.look(t).Warnings)
			}
		})
	}
	t.Run("not for everybody", func(t *testing.T) {
		w.sql(t, `CREATE ROLE curious LOGIN PASSWORD 'x'; GRANT CONNECT ON DATABASE `+w.db+` TO curious`)
		_, err := postgres.Look(t.Context(), secret.New(pg.UserDSN("curious", "x", w.db)), postgres.Roles{})
		if err == nil || !strings.Contains(err.Error(), "a member of stint_ceiling") {
			t.Error(err)
		}
		w.sql(t, `DROP OWNED BY curious; DROP ROLE curious`)
	})
	t.Run("at a broker that can do more than it should", func(t *testing.T) {
		db := pg.Database(t)
		roles := postgres.Roles{Ceiling: "look_ceiling", Broker: "look_broker"}
		dsn := secret.New(pg.DSN(db))
		if err := postgres.Install(t.Context(), dsn, roles, secret.String{}); err != nil {
			t.Fatal(err)
		}
		pg.Exec(t, db, `ALTER ROLE look_broker CREATEROLE`)
		s, err := postgres.Look(t.Context(), dsn, postgres.Roles{}) // the names are found
		if err != nil || s.Ceiling != roles.Ceiling || s.Broker != roles.Broker || !slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "role look_broker can do more") }) {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

func testRehearse(t *testing.T, pg *testbed.PostgresServer) {
	db := pg.Database(t)
	dsn, roles := secret.New(pg.DSN(db)), postgres.Roles{Ceiling: "try_ceiling", Broker: "try_broker"}
	if err := postgres.Rehearse(t.Context(), dsn, roles); err != nil {
		t.Fatal(err)
	}
	if got := pg.Query(t, db, `SELECT rolname FROM pg_roles WHERE rolname LIKE 'try\_%' UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = 'stint'`); len(got) > 0 {
		t.Errorf("it left %q", got)
	}
	pg.Exec(t, db, `CREATE SCHEMA stint`)
	if err := postgres.Rehearse(t.Context(), dsn, roles); err == nil || !strings.Contains(err.Error(), "there is a schema stint") {
		t.Error(err)
	}
}

func TestDSN(t *testing.T) {
	for name, c := range map[string]struct{ text, wants string }{
		"a URI":                            {"postgres://ann@db.example:6543/sales?sslmode=disable", "ann@db.example:6543/sales"},
		"keywords":                         {"host=db.example user=ann dbname=sales port=6543 sslmode=disable", "ann@db.example:6543/sales"},
		"a password in a URI":              {"postgres://ann:hunter2@db.example/sales", ""},
		"a password among keywords":        {"host=db.example password=hunter2", ""},
		"a password as a parameter":        {"postgres://db.example/sales?password=hunter2", ""},
		"a password file":                  {"host=db.example passfile=/etc/passwd", ""},
		"a key's password":                 {"host=db.example sslpassword=hunter2", ""},
		"something that is neither":        {"db.example", ""},
		"a port that may be half a secret": {"postgres://ann:hun:ter2@db.example:x/sales", ""},
	} {
		t.Run(name, func(t *testing.T) {
			const password = `it's a \"p&ss=w%rd`
			dsn, err := postgres.DSN(c.text, secret.New(password))
			if (err == nil) != (c.wants != "") || err != nil && strings.Contains(err.Error(), "ter2") {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			cfg, err := pgx.ParseConfig(dsn.Reveal())
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%s@%s:%d/%s", cfg.User, cfg.Host, cfg.Port, cfg.Database); got != c.wants || cfg.Password != password {
				t.Errorf("%s with %q", got, cfg.Password)
			}
			if dsn, err := postgres.DSN(c.text, secret.String{}); err != nil || dsn.Reveal() != c.text {
				t.Errorf("without a password: %v", err)
			}
		})
	}
	t.Run("what is absent is the environment's", func(t *testing.T) {
		t.Setenv("PGHOST", "env.example")
		t.Setenv("PGPASSWORD", "from there")
		t.Setenv("PGSSLMODE", "disable")
		for text, password := range map[string]string{"": "from there", "dbname=sales": "mine"} {
			given := secret.String{}
			if password == "mine" {
				given = secret.New(password)
			}
			dsn, err := postgres.DSN(text, given)
			if err != nil {
				t.Fatal(err)
			}
			if cfg, err := pgx.ParseConfig(dsn.Reveal()); err != nil || cfg.Host != "env.example" || cfg.Password != password {
				t.Errorf("%q: %s %q, %v", text, cfg.Host, cfg.Password, err)
			}
		}
	})
	t.Run("nobody is reached", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := postgres.Look(ctx, secret.New(fmt.Sprintf("postgres://u:hunter2@127.0.0.1:%d/x?sslmode=disable", testbed.FreePort(t))), postgres.Roles{}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Error(err)
		}
	})
}
