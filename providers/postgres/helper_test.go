package postgres_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/postgres"
	"github.com/stint-dev/stint/scopes/grant"
)

const brokerPassword = "the broker's own password"

// shop is a database with data, as a DBA would have set it up.
type shop struct {
	*testbed.PostgresServer
	db       string
	provider broker.Provider
	cfg      postgres.Config
}

// tables are what every shop has: two owners' orders, under row policies that
// ask stint, customers without, and names that need quotes.
const tables = `
CREATE SCHEMA app;
CREATE TABLE app.orders (id serial PRIMARY KEY, owner text NOT NULL, region text NOT NULL DEFAULT 'north', total integer, note text);
INSERT INTO app.orders (owner, total, note) VALUES ('https://idp.example#alice', 10, 'hers'), ('https://idp.example#bob', 20, 'his');
CREATE TABLE app.customers (id integer PRIMARY KEY, name text, phone text);
INSERT INTO app.customers VALUES (1, 'Ann', '1234'), (2, 'Ben', '5678');
CREATE VIEW app.totals AS SELECT sum(total) AS total FROM app.orders;
CREATE TABLE app."Odd.Name ""x""" (id integer, "Col. ""umn" text);
INSERT INTO app."Odd.Name ""x""" VALUES (1, 'odd');
CREATE TABLE app.hidden (id integer);
INSERT INTO app.hidden VALUES (1);

ALTER TABLE app.orders ENABLE ROW LEVEL SECURITY;
CREATE POLICY stint_r ON app.orders FOR SELECT USING (CASE (SELECT stint.rows('app.orders', 'SELECT'))
	WHEN '*' THEN true WHEN 'region' THEN region = 'north' WHEN 'own' THEN owner = (SELECT stint.sub()) END);
CREATE POLICY stint_a ON app.orders FOR INSERT WITH CHECK (CASE stint.rows('app.orders', 'INSERT') WHEN '*' THEN true WHEN 'own' THEN owner = stint.sub() END);
CREATE POLICY stint_w ON app.orders FOR UPDATE USING (CASE stint.rows('app.orders', 'UPDATE') WHEN '*' THEN true WHEN 'own' THEN owner = stint.sub() END);
CREATE POLICY stint_d ON app.orders FOR DELETE USING (CASE stint.rows('app.orders', 'DELETE') WHEN '*' THEN true WHEN 'own' THEN owner = stint.sub() END);

GRANT USAGE ON SCHEMA app TO stint_ceiling WITH GRANT OPTION;
GRANT SELECT, INSERT, UPDATE, DELETE ON app.orders, app.customers, app."Odd.Name ""x""" TO stint_ceiling WITH GRANT OPTION;
GRANT SELECT ON app.totals TO stint_ceiling WITH GRANT OPTION;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA app TO stint_ceiling WITH GRANT OPTION;
`

// newShop makes a database with tables, installs Stint and opens a provider.
func newShop(t testing.TB, s *testbed.PostgresServer, change ...func(*postgres.Config)) *shop {
	t.Helper()
	w := &shop{PostgresServer: s, db: s.Database(t)}
	w.install(t)
	w.sql(t, tables)
	w.cfg = postgres.Config{
		Host: s.Host, Port: s.Port, Database: w.db, Password: "secret:broker", Entitlement: "none",
		Rows:       map[string]postgres.RowPolicy{"region": {}, "own": {Entitled: true}},
		IdleGroups: upstream.Duration{Duration: time.Nanosecond},
	}
	for _, c := range change {
		c(&w.cfg)
	}
	w.provider = w.open(t, w.cfg)
	return w
}

// installing keeps installations apart: they change the same roles.
var installing sync.Mutex

func (w *shop) install(t testing.TB) {
	t.Helper()
	installing.Lock()
	defer installing.Unlock()
	err := postgres.Install(t.Context(), secret.New(w.DSN(w.db)), postgres.Roles{}, secret.New(brokerPassword))
	if err != nil {
		t.Fatal(err)
	}
}

// open opens a provider called main.
func (w *shop) open(t testing.TB, cfg postgres.Config) broker.Provider {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	p, err := postgres.Open(ctx, "main", func(v any) error { *v.(*postgres.Config) = cfg; return nil }, deps)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var deps = upstream.Deps{
	Secret: func(_ context.Context, ref string) (secret.String, error) {
		if ref != "secret:broker" {
			return secret.String{}, fmt.Errorf("no secret %q", ref)
		}
		return secret.New(brokerPassword), nil
	},
	Now: time.Now, Log: slog.New(slog.DiscardHandler),
}

func (w *shop) sql(t testing.TB, script string) {
	t.Helper()
	w.Exec(t, w.db, script)
}

func (w *shop) query(t testing.TB, query string, args ...any) []string {
	t.Helper()
	return w.Query(t, w.db, query, args...)
}

func (w *shop) one(t testing.TB, query string, args ...any) string {
	t.Helper()
	return strings.Join(w.query(t, query, args...), "\n")
}

// grant reads a grant from entries such as {"object":"app.orders",...}.
func (w *shop) grant(t testing.TB, entries ...string) grant.Grant {
	t.Helper()
	return parse(t, w.provider, entries...)
}

func parse(t testing.TB, p broker.Provider, entries ...string) grant.Grant {
	t.Helper()
	g, err := p.Describe().Schema.Parse([]byte(`{"privileges":[` + strings.Join(entries, ",") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// on writes an entry of a grant.
func on(object, privileges, columns, rows string) string {
	list := func(s string) any {
		if s == "*" {
			return s
		}
		return strings.Split(s, ",")
	}
	b, _ := json.Marshal(map[string]any{"object": object, "privileges": list(privileges), "columns": list(columns), "rows": rows})
	return string(b)
}

const (
	alice = "https://idp.example#alice"
	bob   = "https://idp.example#bob"
)

func newLease() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	var b [24]byte
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b[:])
}

// request is what the broker would ask for.
func request(t testing.TB, p broker.Provider, g grant.Grant) broker.MintRequest {
	t.Helper()
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	return broker.MintRequest{
		Lease: newLease(), Grant: g, Rendered: rendered, Expires: time.Now().Add(10 * time.Minute).Truncate(time.Second),
		Subject: alice, Pseudonym: "ps-1", Actor: "claude", Client: "shop-mcp", Note: func([]byte) error { return nil },
	}
}

// login is a credential in use.
type login struct {
	*broker.Minted
	lease    string
	user     string
	password string
	url      string
}

func (w *shop) mint(t testing.TB, entries ...string) login {
	t.Helper()
	return w.mintFor(t, alice, entries...)
}

func (w *shop) mintFor(t testing.TB, subject string, entries ...string) login {
	t.Helper()
	r := request(t, w.provider, w.grant(t, entries...))
	r.Subject = subject
	m, err := w.provider.Mint(t.Context(), r)
	if err != nil {
		t.Fatalf("mint %v: %v", entries, err)
	}
	if !m.Granted.Equal(r.Grant) {
		t.Fatalf("asked for %s, granted %s", r.Grant, m.Granted)
	}
	return read(t, r.Lease, m)
}

func read(t testing.TB, lease string, m *broker.Minted) login {
	t.Helper()
	var doc struct{ User, Password, URL string }
	if err := json.Unmarshal([]byte(m.Document.Reveal()), &doc); err != nil {
		t.Fatal(err)
	}
	return login{m, lease, doc.User, doc.Password, doc.URL}
}

// session opens a session with a credential.
func (l login) session(t testing.TB) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(context.Background(), l.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// state returns the SQLSTATE of a statement's failure, or nothing.
func state(c *pgx.Conn, statement string) string {
	_, err := c.PgConn().Exec(context.Background(), statement).ReadAll()
	return sqlState(err)
}

func sqlState(err error) string {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &pg):
		return pg.Code
	}
	return err.Error()
}

// count returns a query's one number.
func count(t testing.TB, c *pgx.Conn, query string) (n int) {
	t.Helper()
	if err := c.QueryRow(context.Background(), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func (w *shop) revoke(t testing.TB, lease string) broker.OutcomeState {
	t.Helper()
	o, err := w.provider.Revoke(t.Context(), broker.RevokeLease{Lease: lease})
	if err != nil {
		t.Fatal(err)
	}
	return o.State
}

// left lists the roles that Stint has made for this database and not dropped.
func (w *shop) left(t testing.TB) []string {
	t.Helper()
	return w.query(t, `SELECT rolname FROM pg_roles WHERE rolname ~ '^stint_[vg]_' AND starts_with(shobj_description(oid, 'pg_authid'), stint.mark()) ORDER BY 1`)
}
