//go:build e2e

package vault_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	vaultstore "github.com/stint-dev/stint/internal/vault"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/providers/vault"
	"github.com/stint-dev/stint/scopes/grant"
)

// shop is a real Vault, prepared by deploy/vault/setup.sh and logged in to by
// AppRole, with its database engine on a real PostgreSQL, and a certificate
// authority.
type shop struct {
	*testbed.VaultServer
	pg       *testbed.PostgresServer
	db       string
	engine   *vaultstore.Engine
	provider broker.Provider
	// logins is a provider of database logins alone, all of which can be revoked.
	logins broker.Provider
}

// drop ends sessions first: Vault's own statements leave them open.
const drop = `ALTER ROLE "{{name}}" NOLOGIN;
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{{name}}';
DROP OWNED BY "{{name}}";
DROP ROLE "{{name}}";`

// shelf are the roles that the shop has, with what Vault is told of them.
var shelf = map[string]struct {
	vault.Role
	path     string // of the engine's own role
	settings map[string]any
}{
	"orders-reader": {
		vault.Role{Mount: "database", Path: "creds/orders-reader", Policy: "stint-orders-reader", Reads: true}, "database/roles/orders-reader",
		map[string]any{"creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT SELECT ON orders TO "{{name}}";`},
	},
	"orders-writer": {
		vault.Role{Mount: "database", Path: "creds/orders-writer", Policy: "stint-orders-writer"}, "database/roles/orders-writer",
		map[string]any{"creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT INSERT ON orders TO "{{name}}";`},
	},
	// For 30 s, whatever is asked.
	"orders-short": {
		vault.Role{Mount: "database", Path: "creds/orders-short", Policy: "stint-orders-short", Reads: true}, "database/roles/orders-short",
		map[string]any{"creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}'; GRANT SELECT ON orders TO "{{name}}";`, "default_ttl": "30s", "max_ttl": "30s"},
	},
	// It allows what is not its own.
	"orders-forbidden": {
		vault.Role{Mount: "database", Path: "creds/orders-forbidden", Policy: "stint-orders-reader"}, "database/roles/orders-forbidden",
		map[string]any{"creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}';`},
	},
	// It takes its time.
	"orders-slow": {
		vault.Role{Mount: "database", Path: "creds/orders-slow", Policy: "stint-orders-slow"}, "database/roles/orders-slow",
		map[string]any{"creation_statements": `SELECT pg_sleep(1); CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}';`},
	},
	"orders-broken": {
		vault.Role{Mount: "database", Path: "creds/orders-broken", Policy: "stint-orders-broken"}, "database/roles/orders-broken",
		map[string]any{"creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}'; GRANT SELECT ON nowhere TO "{{name}}";`},
	},
	"web": {
		vault.Role{
			Mount: "pki", Path: "issue/web", Policy: "stint-web", Method: "write", Params: map[string]string{"common_name": "web.test"},
			LifetimeParam: "ttl", Revoke: "none", Ends: "expiration",
		}, "pki/roles/web", map[string]any{"allow_any_name": true, "key_type": "ec", "key_bits": 256, "max_ttl": "1h"},
	},
	"web-leased": {
		vault.Role{
			Mount: "pki", Path: "issue/leased", Policy: "stint-web-leased", Method: "write", Params: map[string]string{"common_name": "web.test"}, LifetimeParam: "ttl",
		}, "pki/roles/leased", map[string]any{"allow_any_name": true, "key_type": "ec", "key_bits": 256, "max_ttl": "1h", "generate_lease": true},
	},
	// Its settings take it for one that is leased.
	"web-misread": {
		vault.Role{
			Mount: "pki", Path: "issue/misread", Policy: "stint-web-misread", Method: "write", Params: map[string]string{"common_name": "web.test"}, LifetimeParam: "ttl",
		}, "pki/roles/misread", map[string]any{"allow_any_name": true, "key_type": "ec", "key_bits": 256, "max_ttl": "1h"},
	},
}

func newShop(t *testing.T) *shop {
	t.Helper()
	w := &shop{pg: testbed.Postgres(t)}
	w.VaultServer = testbed.StartVault(t, testbed.VaultSetup{Plugins: []string{"postgresql-database-plugin"}})
	w.db = w.pg.Database(t)
	w.sql(t, `CREATE TABLE orders (id integer); INSERT INTO orders VALUES (1); CREATE TABLE other (id integer)`)
	w.Call(t, http.MethodPost, "sys/mounts/database", map[string]any{"type": "database"})
	w.Call(t, http.MethodPost, "database/config/shop", map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": "postgres", "password": w.pg.Password,
		"connection_url":          fmt.Sprintf("postgresql://{{username}}:{{password}}@%s:%d/%s?sslmode=disable", w.pg.Host, w.pg.Port, w.db),
		"password_authentication": "scram-sha-256",
	})
	w.Call(t, http.MethodPost, "sys/mounts/pki", map[string]any{"type": "pki"})
	w.Call(t, http.MethodPost, "pki/root/generate/internal", map[string]any{"common_name": "root.test", "key_type": "ec", "key_bits": 256, "ttl": "24h"})
	w.setUp(t)
	roles, logins := make(map[string]vault.Role), make(map[string]vault.Role)
	for name, s := range shelf {
		roles[name] = s.Role
		if s.Mount == "database" {
			logins[name] = s.Role
			s.settings["db_name"], s.settings["revocation_statements"] = "shop", drop
		}
		w.Call(t, http.MethodPost, s.path, s.settings)
		if s.Policy != "stint-"+name {
			continue
		}
		capability := "read"
		if s.Method == "write" {
			capability = "update"
		}
		w.setUp(t, "lease", name, s.Mount+"/"+s.Path, capability)
	}
	w.engine = w.login(t)
	d := deps{Engine: w.engine, Now: time.Now}
	w.provider, w.logins = open(t, roles, d), open(t, logins, d)
	return w
}

// setUp runs deploy/vault/setup.sh.
func (w *shop) setUp(t *testing.T, args ...string) {
	t.Helper()
	script, err := filepath.Abs("../../deploy/vault/setup.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(script, args...)
	cmd.Env, cmd.Dir = w.Env(), t.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("setup.sh %v: %v\n%s", args, err, out)
	}
}

// login logs in as Stint does, by the AppRole and with the policy of setup.sh.
func (w *shop) login(t *testing.T) *vaultstore.Engine {
	t.Helper()
	role := w.data(t, http.MethodGet, "auth/approle/role/stint/role-id", nil)["role_id"].(string)
	id := w.data(t, http.MethodPut, "auth/approle/role/stint/secret-id", nil)["secret_id"].(string)
	file := filepath.Join(t.TempDir(), "secret-id")
	if err := os.WriteFile(file, []byte(id), 0o600); err != nil {
		t.Fatal(err)
	}
	store, engine, err := vaultstore.Open(vaultstore.Config{Kind: vaultstore.KindVault, Vault: &vaultstore.ServerConfig{
		Address: w.Addr, CA: w.CA, Auth: vaultstore.AuthConfig{Method: "approle", RoleID: role, SecretID: "file:" + file},
	}}, vaultstore.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return engine
}

func (w *shop) data(t testing.TB, method, path string, body any) map[string]any {
	t.Helper()
	data, _ := w.Call(t, method, path, body)["data"].(map[string]any)
	return data
}

func (w *shop) sql(t testing.TB, script string) {
	t.Helper()
	w.pg.Exec(t, w.db, script)
}

func (w *shop) ask(t testing.TB, role string, life time.Duration) *minting {
	t.Helper()
	m := ask(t, w.provider, shelf[role].Mount, role, time.Now().Add(life).Truncate(time.Second))
	const letters = "abcdefghijklmnopqrstuvwxyz"
	id := make([]byte, 24)
	for i := range id {
		id[i] = letters[rand.IntN(len(letters))]
	}
	m.Lease = string(id)
	return m
}

func (w *shop) mint(t testing.TB, role string, life time.Duration) (*minting, *broker.Minted) {
	t.Helper()
	r := w.ask(t, role, life)
	m, err := w.provider.Mint(t.Context(), r.MintRequest)
	if err != nil {
		t.Fatal(err)
	}
	return r, m
}

// connect opens a session with a database login.
func (w *shop) connect(ctx context.Context, t testing.TB, m *broker.Minted) (*pgx.Conn, error) {
	t.Helper()
	d := read(t, m)
	return pgx.Connect(ctx, w.pg.UserDSN(d.Fields["username"], d.Fields["password"], w.db))
}

func (w *shop) works(t testing.TB, m *broker.Minted) bool {
	t.Helper()
	c, err := w.connect(t.Context(), t, m)
	if err == nil {
		_ = c.Close(context.Background())
	} else if !errors.Is(refused(err), providertest.ErrRefused) {
		t.Fatal(err)
	}
	return err == nil
}

// refusals are the SQLSTATEs by which PostgreSQL says no: privileges, logins,
// and ended sessions.
var refusals = []string{"42501", "28P01", "28000", "57P01"}

func refused(err error) error {
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && slices.Contains(refusals, pg.Code) {
		return fmt.Errorf("SQLSTATE %s: %w", pg.Code, providertest.ErrRefused)
	}
	return err
}

// acts are statements, each with the role that is there for it.
var acts = map[string]struct{ role, statement string }{
	"read orders":  {"orders-reader", `SELECT id FROM orders`},
	"write orders": {"orders-writer", `INSERT INTO orders VALUES (2)`},
}

type session struct{ c *pgx.Conn }

func (s session) Close() { _ = s.c.Close(context.Background()) }

func (s session) Do(ctx context.Context, act string) error {
	if s.c.IsClosed() {
		return fmt.Errorf("the session was ended: %w", providertest.ErrRefused)
	}
	_, err := s.c.Exec(ctx, acts[act].statement)
	return refused(err)
}

// children lists the tokens that the provider has made and that are alive.
func (w *shop) children(t testing.TB) (leases []string) {
	t.Helper()
	for _, a := range w.data(t, "LIST", "auth/token/accessors", nil)["keys"].([]any) {
		out, err := w.Try(http.MethodPost, "auth/token/lookup-accessor", map[string]any{"accessor": a})
		if err != nil {
			if strings.Contains(err.Error(), "invalid accessor") { // it ended since it was listed
				continue
			}
			t.Fatal(err)
		}
		data, _ := out["data"].(map[string]any)
		if meta, _ := data["meta"].(map[string]any); meta["lease"] != nil {
			leases = append(leases, fmt.Sprint("token of ", meta["lease"]))
		}
	}
	return leases
}

// users lists the roles that Vault has made in the database.
func (w *shop) users(t testing.TB) []string {
	t.Helper()
	return w.pg.Query(t, w.db, `SELECT rolname FROM pg_roles WHERE rolname ~ '^v-' ORDER BY 1`)
}

func (w *shop) remains(t testing.TB) []string { return append(w.children(t), w.users(t)...) }

// ends is when Vault will end a credential: with its lease or with its child.
func (w *shop) ends(t testing.TB, m *broker.Minted) time.Time {
	t.Helper()
	var h struct{ Accessor, Lease string }
	if err := json.Unmarshal(m.Handle, &h); err != nil {
		t.Fatal(err)
	}
	when := func(data map[string]any) time.Time {
		at, err := time.Parse(time.RFC3339, data["expire_time"].(string))
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	child := when(w.data(t, http.MethodPost, "auth/token/lookup-accessor", map[string]any{"accessor": h.Accessor}))
	if lease := when(w.data(t, http.MethodPut, "sys/leases/lookup", map[string]any{"lease_id": h.Lease})); lease.Before(child) {
		return lease
	}
	return child
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(50 * time.Millisecond) { // Vault's time, not a clock of ours
		if time.Now().After(deadline) {
			t.Fatalf("not so: %s", what)
		}
	}
}

func (w *shop) harness(t testing.TB) providertest.Harness {
	s := w.logins.Describe().Schema
	parse := func(mount, role string) grant.Grant {
		g, err := s.ParseValue(map[string]any{"mount": mount, "role": role})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	needs := make(map[string]grant.Grant)
	for name, a := range acts {
		needs[name] = parse("database", a.role)
	}
	return providertest.Harness{
		Provider: w.logins, Subject: "https://idp.example#alice", Acts: needs,
		Grant: func(r *rand.Rand) grant.Grant {
			return parse("database", []string{"orders-reader", "orders-writer"}[r.IntN(2)])
		},
		Inexpressible: []grant.Grant{s.Everything(), parse("database", "*"), parse("*", "orders-reader"), parse("pki", "orders-reader")},
		Open: func(ctx context.Context, m *broker.Minted) (providertest.Session, error) {
			c, err := w.connect(ctx, t, m)
			if err != nil {
				return nil, refused(err)
			}
			return session{c}, nil
		},
		Ends:    func(_ context.Context, m *broker.Minted) (time.Time, error) { return w.ends(t, m), nil },
		Remains: func(context.Context) ([]string, error) { return w.remains(t), nil },
	}
}
