package postgres_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
)

var customers = on("app.customers", "SELECT", "*", "*")

// testRevocationComesInSteps holds up a session, as a backend does that is deep
// in work: until it has ended, the role cannot log in and row policies show it
// nothing, and that does not go away again.
func testRevocationComesInSteps(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	l := w.mint(t, on("app.orders", "SELECT", "*", "own"), customers)
	s := l.session(t)
	if got := state(s, `BEGIN; CREATE TEMP TABLE mine (); DECLARE c CURSOR FOR SELECT * FROM app.customers`); got != "" {
		t.Fatal(got)
	}
	pid := int(s.PgConn().PID())
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Skip("cannot hold up a backend: ", err)
	}
	for range 2 {
		if got := w.revoke(t, l.lease); got != broker.DisabledPendingKill {
			t.Errorf("with a session that does not end: %s", got)
		}
		_, err := pgx.Connect(t.Context(), l.url)
		if got := sqlState(err); got != "28000" { // not permitted to log in
			t.Errorf("login: %q", got)
		}
	}
	if got := w.one(t, `SELECT (revoked_at IS NOT NULL)::text || (dropped_at IS NULL)::text || (subject IS NULL)::text FROM stint.lease WHERE id = $1`, l.lease); got != "truetruetrue" {
		t.Error(got)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := w.revoke(t, l.lease); got != broker.Revoked {
		t.Errorf("once it has ended: %s", got)
	}
	if got := w.revoke(t, l.lease); got != broker.AlreadyDead {
		t.Errorf("again: %s", got)
	}
	w.empty(t)
}

// testEndedLeaseShowsNothing is what an open session sees when only the books
// say that its lease has ended.
func testEndedLeaseShowsNothing(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	w.sql(t, `CREATE VIEW app.me AS SELECT stint.sub()`)
	for name, end := range map[string]string{
		"revoked": `UPDATE stint.lease SET revoked_at = now() WHERE id = $1`,
		"expired": `UPDATE stint.lease SET not_after = clock_timestamp() WHERE id = $1`,
	} {
		t.Run(name, func(t *testing.T) {
			l := w.mint(t, on("app.orders", "SELECT,UPDATE", "*", "*"))
			w.sql(t, `GRANT SELECT ON app.me TO "`+l.user+`"`)
			s := l.session(t)
			if n := count(t, s, `SELECT count(*) FROM app.orders`) + count(t, s, `SELECT count(sub) FROM app.me`); n != 3 {
				t.Fatal(n)
			}
			w.Query(t, w.db, end, l.lease)
			if n := count(t, s, `SELECT count(sub) FROM app.me`); n != 0 {
				t.Error("the session has a subject")
			}
			if n := count(t, s, `SELECT count(*) FROM app.orders`); n != 0 {
				t.Errorf("%d rows", n)
			}
			if n := count(t, s, `WITH x AS (UPDATE app.orders SET note = 'x' RETURNING 1) SELECT count(*) FROM x`); n != 0 {
				t.Errorf("%d rows changed", n)
			}
		})
	}
	t.Run("expired, in a transaction that sees the past", func(t *testing.T) {
		l := w.mint(t, on("app.orders", "SELECT", "*", "*"))
		w.Query(t, w.db, `UPDATE stint.lease SET not_after = clock_timestamp() + interval '300 ms' WHERE id = $1`, l.lease)
		s := l.session(t)
		if got := state(s, `BEGIN ISOLATION LEVEL REPEATABLE READ`); got != "" {
			t.Fatal(got)
		}
		before := count(t, s, `SELECT count(*) FROM app.orders`)
		time.Sleep(350 * time.Millisecond) // the database's clock
		if after := count(t, s, `SELECT count(*) FROM app.orders`); before != 2 || after != 0 {
			t.Errorf("%d rows before, %d after", before, after)
		}
	})
}

func testExpiry(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	r := request(t, w.provider, w.grant(t, customers))
	r.Expires = time.Now().Add(1500 * time.Millisecond)
	m, err := w.provider.Mint(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	l := read(t, r.Lease, m)
	s := l.session(t)
	time.Sleep(time.Until(r.Expires) + 50*time.Millisecond) // the database's clock
	_, err = pgx.Connect(t.Context(), l.url)
	if got := sqlState(err); got != "28P01" {
		t.Errorf("login: %q", got)
	}
	// Nothing ends an open session but the reaper, and that is what it is for.
	if got := w.revoke(t, l.lease); got != broker.Revoked || state(s, `SELECT 1`) == "" {
		t.Error(got)
	}

	t.Run("the database has a limit of its own", func(t *testing.T) {
		w.sql(t, `UPDATE stint.setting SET max_ttl = '5 minutes', max_connections = 2`)
		r := request(t, w.provider, w.grant(t, customers))
		m, err := w.provider.Mint(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(m.Expires); left > 5*time.Minute || left < 4*time.Minute {
			t.Errorf("lives for %s", left)
		}
		if got := w.one(t, `SELECT (rolvaliduntil <= now() + interval '5 minutes')::text || rolconnlimit FROM pg_roles WHERE rolname = $1`, m.Upstream["role"]); got != "true2" {
			t.Error(got)
		}
		w.revoke(t, r.Lease)
	})
	t.Run("what is over is not begun", func(t *testing.T) {
		r := request(t, w.provider, w.grant(t, customers))
		r.Expires = time.Now().Add(-time.Second)
		if _, err := w.provider.Mint(t.Context(), r); broker.CodeOf(err) != broker.Unavailable {
			t.Error(err)
		}
		w.revoke(t, r.Lease)
	})
	w.empty(t)
}

// testRevocationOvertakes is a revocation while the mint is on its way, and
// before it.
func testRevocationOvertakes(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	mint := func(lease string) string {
		return fmt.Sprintf(`SELECT stint.mint('%s', '%s', '%s', 600, now() + interval '1 hour', 1, 's', '{}')`, lease,
			`SCRAM-SHA-256$4096:AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=`,
			`{"tables":[{"schema":"app","table":"customers","privilege":"SELECT","columns":"*","rows":"*"}]}`)
	}
	slow, err := pgx.Connect(t.Context(), w.DSN(w.db))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Close(context.Background()) }()

	t.Run("a mint that has not committed is waited for", func(t *testing.T) {
		lease := newLease()
		if got := state(slow, `BEGIN; `+mint(lease)); got != "" {
			t.Fatal(got)
		}
		if o, err := w.provider.Revoke(t.Context(), broker.RevokeLease{Lease: lease}); err == nil {
			t.Errorf("%s, while nobody can know", o.State)
		}
		if got := state(slow, `COMMIT`); got != "" {
			t.Fatal(got)
		}
		if got := w.revoke(t, lease); got != broker.Revoked {
			t.Error(got)
		}
	})
	t.Run("a mint that never comes is no matter", func(t *testing.T) {
		lease := newLease()
		if got := state(slow, `BEGIN; `+mint(lease)+`; ROLLBACK`); got != "" {
			t.Fatal(got)
		}
		if got := w.revoke(t, lease); got != broker.AlreadyDead {
			t.Error(got)
		}
	})
	t.Run("a mint that comes too late fails", func(t *testing.T) {
		r := request(t, w.provider, w.grant(t, customers))
		if got := w.revoke(t, r.Lease); got != broker.AlreadyDead {
			t.Error(got)
		}
		_, err := w.provider.Mint(t.Context(), r)
		if e := broker.AsError(err); err == nil || e.Code != broker.Unavailable {
			t.Errorf("minted: %v", err)
		}
		if got := state(slow, mint(r.Lease)); got != "ST004" {
			t.Error(got)
		}
	})
	t.Run("a lease is minted once", func(t *testing.T) {
		l := w.mint(t, customers)
		r := request(t, w.provider, w.grant(t, customers))
		r.Lease = l.lease
		if _, err := w.provider.Mint(t.Context(), r); err == nil {
			t.Error("minted twice")
		}
		if n := count(t, l.session(t), `SELECT count(*) FROM app.customers`); n != 2 {
			t.Error("the first is broken")
		}
		w.revoke(t, l.lease)
	})
	t.Run("many revoke one lease at once", func(t *testing.T) {
		l := w.mint(t, customers)
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				for range 20 {
					o, err := w.provider.Revoke(t.Context(), broker.RevokeLease{Lease: l.lease})
					if err == nil && o.State.Final() {
						return
					}
				}
				t.Error("it does not end")
			})
		}
		wg.Wait()
	})
	w.empty(t)
}

// testGroupRaces hold the group of a grant between two leases: one that has just
// ended, and one that is about to begin.
func testGroupRaces(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg)
	verifier := `SCRAM-SHA-256$4096:AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=`
	terms := `{"tables":[{"schema":"app","table":"customers","privilege":"SELECT","columns":"*","rows":"*"}]}`
	mint := func() string {
		return fmt.Sprintf(`SELECT stint.mint('%s', '%s', '%s', 600, now() + interval '1 hour', 1, 's', '{}')`, newLease(), verifier, terms)
	}
	open := func() *pgx.Conn {
		c, err := pgx.Connect(t.Context(), w.DSN(w.db))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close(context.Background()) })
		return c
	}
	a, b := open(), open()
	idle := func() {
		for _, id := range w.query(t, `SELECT lease FROM stint.list()`) {
			w.revoke(t, id)
		}
	}
	groups := func() string {
		return w.one(t, `SELECT count(*)::int FROM pg_roles WHERE stint.role_oid(rolname) = oid AND rolname LIKE 'stint\_g\_%'`)
	}
	members := func() string {
		return w.one(t, `SELECT count(*)::int FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles l ON l.oid = m.member WHERE stint.role_oid(g.rolname) = g.oid AND g.rolname LIKE 'stint\_g\_%' AND l.rolname LIKE 'stint\_v\_%'`)
	}

	t.Run("a group that a mint is about to use is not collected", func(t *testing.T) {
		if got := state(a, mint()); got != "" {
			t.Fatal(got)
		}
		idle()
		if got := state(a, `BEGIN; `+mint()); got != "" {
			t.Fatal(got)
		}
		if got := count(t, b, `SELECT collected FROM stint.tidy('0')`); got != 0 {
			t.Error("it was collected")
		}
		if got := state(a, `COMMIT`); got != "" || groups() != "1" || members() != "1" {
			t.Error(got, groups(), members())
		}
		if got := count(t, b, `SELECT collected FROM stint.tidy('0')`); got != 0 || groups() != "1" {
			t.Error("a group in use was collected")
		}
	})
	t.Run("a mint waits for the collector, and makes the group again", func(t *testing.T) {
		idle()
		if got := state(b, `BEGIN; SELECT stint.tidy('0')`); got != "" || groups() != "1" {
			t.Fatal(got, groups())
		}
		done := make(chan string)
		go func() { done <- state(a, mint()) }()
		select {
		case got := <-done:
			t.Fatalf("the mint did not wait: %q", got)
		case <-time.After(100 * time.Millisecond):
		}
		if got := state(b, `COMMIT`); got != "" {
			t.Fatal(got)
		}
		if got := <-done; got != "" || groups() != "1" || members() != "1" {
			t.Error(got, groups(), members())
		}
	})
	t.Run("two mints of a new grant make one group", func(t *testing.T) {
		idle()
		w.empty(t)
		if got := state(a, `BEGIN; `+mint()); got != "" {
			t.Fatal(got)
		}
		done := make(chan string)
		go func() { done <- state(b, mint()) }()
		select {
		case got := <-done:
			t.Fatalf("the second did not wait: %q", got)
		case <-time.After(100 * time.Millisecond):
		}
		if got := state(a, `COMMIT`); got != "" {
			t.Fatal(got)
		}
		if got := <-done; got != "" || groups() != "1" || members() != "2" {
			t.Error(got, groups(), members())
		}
	})
	t.Run("grants that differ in rows alone have groups of their own", func(t *testing.T) {
		everything, own := w.mint(t, on("app.orders", "SELECT", "*", "*")), w.mint(t, on("app.orders", "SELECT", "*", "own"))
		if everything.Upstream["group"] == own.Upstream["group"] {
			t.Error("one group for both")
		}
		if all, hers := count(t, everything.session(t), `SELECT count(*) FROM app.orders`), count(t, own.session(t), `SELECT count(*) FROM app.orders`); all != 2 || hers != 1 {
			t.Errorf("%d and %d rows", all, hers)
		}
		idle()
		w.empty(t)
		w.revoke(t, w.mint(t, customers).lease)
	})
	t.Run("a group is kept for a while", func(t *testing.T) {
		idle()
		if got := count(t, b, `SELECT collected FROM stint.tidy('1 hour')`); got != 0 || groups() != "1" {
			t.Error(got, groups())
		}
	})
	w.empty(t)
}

func testSweep(t *testing.T, pg *testbed.PostgresServer) {
	w, other := newShop(t, pg), newShop(t, pg)
	sweep := func(w *shop, keep func(string) bool) []string {
		t.Helper()
		ended, err := w.provider.Describe().Sweep(t.Context(), keep)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(ended)
		return ended
	}
	nothing := func(string) bool { return false }

	t.Run("another database of the cluster is left alone", func(t *testing.T) {
		mine, theirs := w.mint(t, customers), other.mint(t, customers)
		if mine.Upstream["group"] == theirs.Upstream["group"] {
			t.Error("two databases share a group: a lease of one would have the privileges of the other")
		}
		if got := sweep(w, nothing); !slices.Equal(got, []string{mine.lease}) {
			t.Error(got)
		}
		if got := w.revoke(t, theirs.lease); got != broker.AlreadyDead {
			t.Errorf("a lease of another database: %s", got)
		}
		if n := count(t, theirs.session(t), `SELECT count(*) FROM app.customers`); n != 2 {
			t.Error(n)
		}
		other.revoke(t, theirs.lease)
		sweep(other, nothing)
	})
	t.Run("a role that is not in the books is found", func(t *testing.T) {
		l := w.mint(t, customers)
		s := l.session(t)
		w.sql(t, `TRUNCATE stint.lease, stint.grp CASCADE`) // as if an older state had been restored
		if got := sweep(w, nothing); !slices.Equal(got, []string{l.lease}) {
			t.Error(got)
		}
		if state(s, `SELECT 1`) == "" {
			t.Error("its session lives")
		}
		// Its group is in no book either; the next lease of this grant finds it.
		l = w.mint(t, customers)
		w.revoke(t, l.lease)
		w.empty(t)
	})
	t.Run("a role that somebody dropped under its session is found", func(t *testing.T) {
		l := w.mint(t, customers)
		s := l.session(t)
		_ = state(s, `SET ROLE `+l.Upstream["group"]) // as 15 lets it
		w.sql(t, `DROP ROLE `+l.user)
		if got := w.revoke(t, l.lease); got != broker.AlreadyDead {
			t.Error(got)
		}
		if got := state(s, `SELECT 1`); got == "" {
			t.Error("its session lives")
		}
		w.empty(t)
	})
	t.Run("a session of somebody else's dropped role is left alone", func(t *testing.T) {
		w.sql(t, `CREATE ROLE passerby LOGIN PASSWORD 'x'`)
		c, err := pgx.Connect(t.Context(), w.UserDSN("passerby", "x", w.db))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close(context.Background()) }()
		w.sql(t, `DROP ROLE passerby`)
		sweep(w, nothing)
		if got := state(c, `SELECT 1`); got != "" {
			t.Error(got)
		}
	})
	t.Run("what cannot be ended does not stop the rest", func(t *testing.T) {
		first, second := w.mint(t, customers), w.mint(t, customers)
		owner, free := first, second
		if second.lease < first.lease {
			owner, free = second, first
		}
		// Something in another database that depends on the role.
		other.sql(t, `CREATE TABLE app.theirs (); ALTER TABLE app.theirs OWNER TO `+owner.user)
		ended, err := w.provider.Describe().Sweep(t.Context(), nothing)
		if err == nil || !slices.Equal(ended, []string{free.lease}) {
			t.Error(ended, err)
		}
		_, err = pgx.Connect(t.Context(), owner.url)
		if got := sqlState(err); got != "28000" {
			t.Errorf("login: %q", got)
		}
		other.sql(t, `DROP TABLE app.theirs`)
		if got := sweep(w, nothing); !slices.Equal(got, []string{owner.lease}) {
			t.Error(got)
		}
		w.empty(t)
	})
	t.Run("leases that ended are forgotten after a day", func(t *testing.T) {
		w.sql(t, `UPDATE stint.lease SET dropped_at = dropped_at - interval '25 hours'`)
		sweep(w, nothing)
		if got := w.one(t, `SELECT count(*)::int FROM stint.lease`); got != "0" {
			t.Error(got)
		}
	})
}

// TestUpstreamDown is a database that goes away and comes back.
func TestUpstreamDown(t *testing.T) {
	t.Parallel()
	w := newShop(t, testbed.Postgres(t))
	l := w.mint(t, customers)
	w.Process.Kill()
	r := request(t, w.provider, w.grant(t, customers))
	if _, err := w.provider.Mint(t.Context(), r); broker.CodeOf(err) != broker.Unavailable {
		t.Error(err)
	}
	if o, err := w.provider.Revoke(t.Context(), broker.RevokeLease{Lease: l.lease}); err == nil {
		t.Error(o)
	}
	if _, err := w.provider.Describe().Sweep(t.Context(), func(string) bool { return true }); err == nil {
		t.Error("swept")
	}
	if err := w.provider.Describe().Ready(t.Context()); err == nil {
		t.Error("ready")
	}
	w.Restart()
	for range 20 { // connections of before are found broken one by one
		if err := w.provider.Describe().Ready(t.Context()); err == nil {
			break
		}
	}
	if got := w.revoke(t, l.lease); got != broker.Revoked {
		t.Error(got)
	}
	w.empty(t)
}

// TestThousandsOfLeases is one grant for very many: the access list of the table
// has one entry for all of them.
func TestThousandsOfLeases(t *testing.T) {
	t.Parallel()
	w := newShop(t, testbed.Postgres(t))
	const many = 3000
	// With one iteration: CREATE ROLE goes through all of them to see that the
	// password is not empty, and that is most of its work.
	w.Query(t, w.db, `SELECT count(m) FROM generate_series(1, $1::int) i, LATERAL stint.mint('lease' || lpad(i::text, 16, '0'),
		'SCRAM-SHA-256$0001:AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=',
		'{"tables":[{"columns":"*","privilege":"SELECT","rows":"*","schema":"app","table":"customers"}]}', 600, now() + interval '1 hour', 1, 's', '{}') m`, many)
	start := time.Now()
	l := w.mint(t, customers)
	t.Logf("the next mint took %s", time.Since(start))
	if n := count(t, l.session(t), `SELECT count(*) FROM app.customers`); n != 2 {
		t.Error(n)
	}
	if got := w.one(t, `SELECT cardinality(relacl) FROM pg_class WHERE oid = 'app.customers'::regclass`); got != "3" {
		t.Errorf("%s entries in the access list", got)
	}
	start = time.Now()
	if got := w.one(t, `SELECT count(*)::int FROM stint.list()`); got != fmt.Sprint(many+1) {
		t.Error(got)
	}
	t.Logf("listing them took %s", time.Since(start))
	start = time.Now()
	ended, err := w.provider.Describe().Sweep(t.Context(), func(id string) bool { return id == l.lease || id > "lease0000000000000100" })
	if err != nil || len(ended) != 100 {
		t.Error(len(ended), err)
	}
	t.Logf("ending 100 took %s", time.Since(start))
}
