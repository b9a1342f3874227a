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
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/postgres"
)

// testHardenedDatabase is a database that took CONNECT from PUBLIC, as it should:
// roles are of the whole cluster.
func testHardenedDatabase(t *testing.T, pg *testbed.PostgresServer) {
	other := newShop(t, pg)
	w := &shop{PostgresServer: pg, db: pg.Database(t)}
	w.sql(t, `REVOKE ALL ON DATABASE `+w.db+` FROM PUBLIC`)
	w.install(t)
	w.sql(t, tables)
	w.provider = w.open(t, postgres.Config{
		Host: pg.Host, Port: pg.Port, Database: w.db, Password: "secret:broker", Entitlement: "none", IdleGroups: upstream.Duration{Duration: time.Nanosecond},
	})
	l := w.mint(t, customers)
	s := l.session(t)
	if n := count(t, s, `SELECT count(*) FROM app.customers`); n != 2 {
		t.Error(n)
	}
	t.Run("nobody makes temporary tables", func(t *testing.T) {
		if got := state(s, `CREATE TEMP TABLE mine ()`); got != denied {
			t.Errorf("SQLSTATE %q", got)
		}
	})
	t.Run("a lease of another database does not get in", func(t *testing.T) {
		theirs := other.mint(t, customers)
		_, err := pgx.Connect(t.Context(), w.UserDSN(theirs.user, theirs.password, w.db))
		if got := sqlState(err); got != denied {
			t.Errorf("SQLSTATE %q", got)
		}
		other.revoke(t, theirs.lease)
		other.empty(t)
	})
	t.Run("the ceiling covers the database itself", func(t *testing.T) {
		w.sql(t, `REVOKE CONNECT ON DATABASE `+w.db+` FROM stint_ceiling CASCADE`)
		_, err := w.provider.Mint(t.Context(), request(t, w.provider, w.grant(t, customers)))
		if e := broker.AsError(err); err == nil || e.Code != broker.BadScope || !strings.Contains(e.Reason(), "CONNECT on database") {
			t.Error(err)
		}
		w.install(t)
		again := w.mint(t, customers) // the old group, furnished again
		again.session(t)
		w.revoke(t, again.lease)
	})
	w.revoke(t, l.lease)
	w.empty(t)
	if got := w.query(t, `SELECT a.grantee::regrole::text FROM pg_database, aclexplode(datacl) a WHERE datname = current_database() AND a.privilege_type = 'CONNECT' ORDER BY 1`); fmt.Sprint(got) != "[postgres stint_broker stint_ceiling]" {
		t.Errorf("CONNECT is granted to %q", got)
	}
}

// testFullAccessList is a table with so many grantees that its access list comes
// near to one page: beyond that, nobody could be granted anything any more.
func testFullAccessList(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	before := w.mint(t, customers)
	w.sql(t, `DO $$BEGIN FOR i IN 1..400 LOOP
		EXECUTE format('CREATE ROLE filler_%s', i); EXECUTE format('GRANT SELECT ON app.customers TO filler_%s', i);
	END LOOP; END$$`)
	t.Run("a new grant is refused for now", func(t *testing.T) {
		r := request(t, w.provider, w.grant(t, on("app.customers", "SELECT,DELETE", "*", "*")))
		_, err := w.provider.Mint(t.Context(), r)
		if e := broker.AsError(err); err == nil || e.Code != broker.Unavailable || !strings.Contains(e.Reason(), "too many different grants") {
			t.Error(err)
		}
		if got := w.revoke(t, r.Lease); got != broker.AlreadyDead {
			t.Error(got)
		}
	})
	t.Run("one that has its group goes on", func(t *testing.T) {
		again := w.mint(t, customers)
		if again.Upstream["group"] != before.Upstream["group"] {
			t.Error("another group")
		}
		w.revoke(t, again.lease)
	})
	w.sql(t, `DO $$BEGIN FOR i IN 1..400 LOOP
		EXECUTE format('DROP OWNED BY filler_%s', i); EXECUTE format('DROP ROLE filler_%s', i);
	END LOOP; END$$`)
	t.Run("and once there is room, it is granted", func(t *testing.T) {
		w.revoke(t, w.mint(t, on("app.customers", "SELECT,DELETE", "*", "*")).lease)
	})
	w.revoke(t, before.lease)
	w.empty(t)
}

// testClonedDatabase is a copy of a database on the same server, as a staging
// database is made: the books of the copy name leases that are not its own, and
// tables have the same ids in both.
func testClonedDatabase(t *testing.T, pg *testbed.PostgresServer) {
	w := &shop{PostgresServer: pg, db: pg.Database(t)}
	w.install(t)
	w.sql(t, tables)
	cfg := postgres.Config{
		Host: pg.Host, Port: pg.Port, Database: w.db, Password: "secret:broker", Entitlement: "none", IdleGroups: upstream.Duration{Duration: time.Nanosecond},
	}
	ctx, cancel := context.WithCancel(t.Context())
	p, err := postgres.Open(ctx, "main", func(v any) error { *v.(*postgres.Config) = cfg; return nil }, deps)
	if err != nil {
		t.Fatal(err)
	}
	w.provider = p
	l := w.mint(t, customers)
	cancel() // its connections would keep the database from being copied
	clone := &shop{PostgresServer: pg, db: w.db + "_clone"}
	pg.Exec(t, "postgres", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '`+w.db+`'`)
	for try := 0; ; try++ {
		c, err := pgx.Connect(t.Context(), pg.DSN("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		got := state(c, `CREATE DATABASE `+clone.db+` TEMPLATE `+w.db)
		_ = c.Close(context.Background())
		if got == "" {
			break
		}
		if got != "55006" || try == 50 { // still in use
			t.Fatal(got)
		}
	}
	w.provider = w.open(t, cfg)
	cfg.Database = clone.db
	clone.provider = clone.open(t, cfg)
	if ended, err := clone.provider.Describe().Sweep(t.Context(), func(string) bool { return false }); err != nil || len(ended) > 0 {
		t.Errorf("the copy ended %q, %v", ended, err)
	}
	if got := clone.revoke(t, l.lease); got != broker.AlreadyDead {
		t.Error(got)
	}
	s := l.session(t)
	if n := count(t, s, `SELECT count(*) FROM app.customers`); n != 2 {
		t.Error(n)
	}
	there := clone.mint(t, customers)
	if there.Upstream["group"] == l.Upstream["group"] {
		t.Error("the copy and its original share a group")
	}
	clone.revoke(t, there.lease)
	clone.empty(t)
	if got := clone.query(t, `SELECT a.grantee::regrole::text FROM pg_class, aclexplode(relacl) a WHERE oid = 'app.customers'::regclass AND a.grantee::regrole::text LIKE 'stint\_g\_%'`); len(got) > 0 {
		t.Errorf("in the copy the original's groups have privileges: %q", got)
	}
	if n := count(t, s, `SELECT count(*) FROM app.customers`); n != 2 {
		t.Error(n)
	}
	w.revoke(t, l.lease)
	w.empty(t)
}

// testManyColumns is a grant of most of a very wide table.
func testManyColumns(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	w.sql(t, `DO $$BEGIN EXECUTE 'CREATE TABLE app.wide (' || (SELECT string_agg(format('c%s int', i), ', ') FROM generate_series(1, 1200) i) || ')'; END$$;
		GRANT SELECT ON app.wide TO stint_ceiling WITH GRANT OPTION; INSERT INTO app.wide (c1) VALUES (1)`)
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprintf("c%d", i+1)
	}
	start := time.Now()
	l := w.mint(t, on("app.wide", "SELECT", strings.Join(names, ","), "*"))
	t.Logf("minting 1000 columns took %s", time.Since(start))
	s := l.session(t)
	if n := count(t, s, `SELECT c1 + coalesce(c1000, 0) FROM app.wide`); n != 1 {
		t.Error(n)
	}
	for _, beyond := range []string{`SELECT c1001 FROM app.wide`, `TABLE app.wide`, `SELECT count(c1200) FROM app.wide`} {
		if got := state(s, beyond); got != denied {
			t.Errorf("%s: SQLSTATE %q", beyond, got)
		}
	}
	w.revoke(t, l.lease)
	w.empty(t)
}

// testClocksThatAreOff is a broker whose clock and the database's differ: that
// may shorten a life, and never lengthens it.
func testClocksThatAreOff(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	at := func(off time.Duration) broker.Provider {
		d := deps
		d.Now = func() time.Time { return time.Now().Add(off) }
		p, err := postgres.Open(t.Context(), "main", func(v any) error { *v.(*postgres.Config) = w.cfg; return nil }, d)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	t.Run("the broker's is two hours ahead", func(t *testing.T) {
		p := at(2 * time.Hour)
		r := request(t, p, parse(t, p, customers))
		r.Expires = r.Expires.Add(2 * time.Hour)
		m, err := p.Mint(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.one(t, `SELECT rolvaliduntil BETWEEN now() + interval '9 minutes' AND now() + interval '10 minutes' FROM pg_roles WHERE rolname = $1`, m.Upstream["role"]); got != "true" {
			t.Error("it does not end ten minutes from now by the database's clock")
		}
		if m.Expires.After(r.Expires) || m.Expires.Before(r.Expires.Add(-time.Minute)) {
			t.Errorf("by the broker's clock it ends at %s, not %s", m.Expires, r.Expires)
		}
		w.revoke(t, r.Lease)
	})
	t.Run("the broker's is two hours behind", func(t *testing.T) {
		p := at(-2 * time.Hour)
		r := request(t, p, parse(t, p, customers))
		r.Expires = r.Expires.Add(-2 * time.Hour)
		_, err := p.Mint(t.Context(), r)
		if e := broker.AsError(err); err == nil || e.Code != broker.Unavailable || !strings.Contains(e.Reason(), "ago by this clock") {
			t.Error(err)
		}
		w.revoke(t, r.Lease)
	})
	t.Run("the broker's is five minutes behind", func(t *testing.T) {
		p := at(-5 * time.Minute)
		r := request(t, p, parse(t, p, customers))
		r.Expires = r.Expires.Add(-5 * time.Minute)
		m, err := p.Mint(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.one(t, `SELECT rolvaliduntil <= now() + interval '5 minutes' FROM pg_roles WHERE rolname = $1`, m.Upstream["role"]); got != "true" {
			t.Error("it lives longer than was asked")
		}
		w.revoke(t, r.Lease)
	})
	w.empty(t)
}
