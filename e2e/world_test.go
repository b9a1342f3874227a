//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"text/template"

	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/testbed"
)

// The resources: an MCP server, and the API that it calls.
const (
	mcp = "https://mcp.example/orders"
	api = "https://api.example/orders"
)

// world is two replicas of Stint with all that they need, as an administrator sets
// it up. What the files of the configuration are filled in with is exported.
type world struct {
	Issuer, IdP, RoleID, Dir, Database string
	RedisAddr, VaultAddr               string
	PostgresPort                       int
	Clients, LogLevel, Collector       string
	Drain                              string // an entry of listen

	t     *testing.T // what is started in a part of a test outlives it
	redis *testbed.RedisServer
	vault *testbed.VaultServer
	pg    *testbed.PostgresServer
	idp   *sample.IdP
	a, b  *replica
	// secrets are the clients', and passwords those of Stint at its servers.
	secrets, passwords map[string]string
	// seen is shown every answer, if it is not nil.
	seen func(*answer)
	key  *ecdsa.PrivateKey // of the client orders-jwt
}

// replica is one stint, which may be stopped and started.
type replica struct {
	*job
	t *testing.T // of the world

	Name, Addr, Ops, config, data, logs string
	// Embedded keeps state in a file instead of Redis, TokenFile is for Vault
	// instead of AppRole, and Prefix is where its secrets are there.
	Embedded          bool
	TokenFile, Prefix string
	// binary is what it runs; empty: this version.
	binary string
}

// options are what tests want otherwise than usual.
type options struct {
	level, collector string
	prepare          func(w *world) // before the configuration is written
}

func newWorld(t *testing.T, o options) *world {
	t.Helper()
	if err := look(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "stint-e2e-") // a path that is short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, Dir: dir, LogLevel: o.level, Collector: o.collector, secrets: make(map[string]string), passwords: make(map[string]string)}
	if w.LogLevel == "" {
		w.LogLevel = "info"
	}
	for _, name := range []string{"redis", "warehouse"} {
		w.passwords[name] = rand.Text()
	}
	w.redis = testbed.Redis(t, testbed.RedisOptions{AppendOnly: true, Config: users(t, w.passwords["redis"])})
	w.vault = testbed.StartVault(t, testbed.VaultSetup{Durable: true, Plugins: []string{"postgresql-database-plugin"}})
	w.pg = testbed.Postgres(t)
	w.RedisAddr, w.VaultAddr, w.PostgresPort, w.Database = w.redis.Addr, w.vault.Addr, w.pg.Port, w.pg.Database(t)
	w.a, w.b = w.replica(t, "a"), w.replica(t, "b")
	w.Issuer = "http://" + w.a.Addr
	if w.idp, err = sample.StartIdP(t.Context(), sample.IdPConfig{Audience: w.Issuer}); err != nil {
		t.Fatal(err)
	}
	w.IdP = w.idp.URL()
	w.prepareVault(t)
	w.prepareDatabase(t)
	if o.prepare != nil {
		o.prepare(w)
	}
	w.configure(t)
	for _, r := range w.replicas() {
		r.start(t)
	}
	t.Cleanup(func() {
		for _, r := range w.replicas() {
			if t.Failed() {
				t.Logf("replica %s printed at last:\n%s", r.Name, last(r.logs))
			}
		}
	})
	return w
}

func (w *world) replica(t *testing.T, name string) *replica {
	t.Helper()
	return &replica{
		t: t, Name: name, Addr: address(t), Ops: address(t), config: filepath.Join(w.Dir, name+".yaml"),
		data: filepath.Join(w.Dir, name), logs: filepath.Join(w.Dir, name+".log"), Prefix: "stint",
	}
}

// replicas are those of the installation.
func (w *world) replicas() []*replica {
	if w.b == nil {
		return []*replica{w.a}
	}
	return []*replica{w.a, w.b}
}

// start starts a replica and waits until it is ready.
func (r *replica) start(t *testing.T) {
	t.Helper()
	r.job = launch(r.t, exec.Command(cmp.Or(r.binary, binary), "serve", "--config", r.config), r.logs)
	r.await(t, r.logs, func() error { return okay("http://" + r.Addr + "/readyz") })
}

func (r *replica) stop(t *testing.T) {
	t.Helper()
	r.job.stop(t, r.logs)
}

// log is what a replica has logged, and size how much that is.
func (r *replica) log(t *testing.T, from int) string {
	t.Helper()
	data, err := os.ReadFile(r.logs)
	if err != nil {
		t.Fatal(err)
	}
	return string(data[from:])
}

func (r *replica) size(t *testing.T) int { t.Helper(); return len(r.log(t, 0)) }

// write writes a file of the world, for nobody else to read.
func (w *world) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(w.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// setUp runs deploy/vault/setup.sh.
func (w *world) setUp(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("../deploy/vault/setup.sh", args...)
	cmd.Env = w.vault.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("setup.sh %v: %v\n%s", args, err, out)
	}
}

// prepareVault makes what an administrator of Vault makes: Stint's policy and
// login, its passwords, and an engine for logins to the database.
func (w *world) prepareVault(t *testing.T) {
	t.Helper()
	w.setUp(t)
	w.setUp(t, "lease", "stock-reader", "database/creds/stock-reader")
	for name, password := range w.passwords {
		w.vault.Call(t, http.MethodPost, "secret/data/stint/"+name, map[string]any{"data": map[string]string{"password": password}})
	}
	data := func(method, path string) map[string]any {
		return w.vault.Call(t, method, path, nil)["data"].(map[string]any)
	}
	w.RoleID = data(http.MethodGet, "auth/approle/role/stint/role-id")["role_id"].(string)
	w.passwords["secret-id"] = data(http.MethodPut, "auth/approle/role/stint/secret-id")["secret_id"].(string)
	w.write(t, "secret-id", w.passwords["secret-id"])
	w.vault.Call(t, http.MethodPost, "sys/mounts/database", map[string]any{"type": "database"})
	w.vault.Call(t, http.MethodPost, "database/config/shop", map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": "postgres", "password": w.pg.Password,
		"connection_url":          fmt.Sprintf("postgresql://{{username}}:{{password}}@%s:%d/%s?sslmode=disable", w.pg.Host, w.pg.Port, w.Database),
		"password_authentication": "scram-sha-256",
	})
	w.vault.Call(t, http.MethodPost, "database/roles/stock-reader", map[string]any{
		"db_name": "shop", "max_ttl": "1h",
		"creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; ` +
			`GRANT USAGE ON SCHEMA sales TO "{{name}}"; GRANT SELECT ON sales.stock TO "{{name}}";`,
		"revocation_statements": `ALTER ROLE "{{name}}" NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{{name}}'; ` +
			`DROP OWNED BY "{{name}}"; DROP ROLE "{{name}}";`,
	})
}

// prepareDatabase makes what a DBA makes.
func (w *world) prepareDatabase(t *testing.T) {
	t.Helper()
	mine, broker := w.write(t, "dba-password", w.pg.Password), w.write(t, "warehouse-password", w.passwords["warehouse"])
	database := fmt.Sprintf("postgres://postgres@%s:%d/%s?sslmode=disable", w.pg.Host, w.pg.Port, w.Database)
	must(t, "postgres", "install", "--database", database, "--password", "file:"+mine, "--broker-password", "file:"+broker)
	w.pg.Exec(t, w.Database, `CREATE SCHEMA sales;
		CREATE TABLE sales.orders (id integer); INSERT INTO sales.orders VALUES (1), (2);
		CREATE TABLE sales.stock (id integer); INSERT INTO sales.stock VALUES (1), (2), (3);
		CREATE TABLE sales.salaries (id integer);
		GRANT USAGE ON SCHEMA sales TO stint_ceiling WITH GRANT OPTION;
		GRANT SELECT ON sales.orders TO stint_ceiling WITH GRANT OPTION;
		REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC`)
}

// configure writes the configuration, and has `stint clients add` make the clients'
// entries.
func (w *world) configure(t *testing.T) {
	t.Helper()
	w.write(t, "mappings/mcp.yaml", mcpMapping)
	w.write(t, "mappings/api.yaml", apiMapping)
	w.writeConfig(t, w.a)
	w.add(t, "desktop", fmt.Sprintf("    identities: {%q: %s}\n", w.IdP, sample.DesktopClient), "--target", mcp)
	w.add(t, "orders-mcp", "", "--resource", mcp, "--target", api, "--target", "warehouse", "--target", "stock")
	w.add(t, "orders-api", "", "--resource", api, "--method", "client_secret_post")
	w.makeKey(t)
	w.add(t, "orders-jwt", "", "--resource", mcp, "--target", api, "--method", "private_key_jwt")
	for _, r := range w.replicas() {
		w.writeConfig(t, r)
		must(t, "check", "--config", r.config)
	}
}

func (w *world) writeConfig(t *testing.T, r *replica) {
	t.Helper()
	var b bytes.Buffer
	in := struct {
		*world
		R *replica
	}{w, r}
	if err := template.Must(template.New("stint.yaml").Parse(configuration)).Execute(&b, in); err != nil {
		t.Fatal(err)
	}
	w.write(t, filepath.Base(r.config), b.String())
}

var shownOnce = regexp.MustCompile(`(?m)^# The secret of .*, shown this once: (\S+)$`)

// add makes a client. What the command prints is what stands in the configuration.
func (w *world) add(t *testing.T, id, more string, args ...string) {
	t.Helper()
	entry := must(t, append([]string{"client", "add", id, "--config", w.a.config}, args...)...)
	if m := shownOnce.FindStringSubmatch(entry); m != nil {
		w.secrets[id] = m[1]
		entry = strings.Replace(entry, m[0]+"\n", "", 1)
	}
	if w.Clients == "" {
		w.Clients = "clients:\n"
	}
	if id != "orders-api" { // more than read access, as the command's help says
		entry = strings.Replace(entry, "ceiling: {access: read", "ceiling: {access: write", 1)
	}
	w.Clients += entry + more
}

// makeKey makes the key of the client that signs assertions, and publishes it
// where the entry of `stint clients add` says.
func (w *world) makeKey(t *testing.T) {
	t.Helper()
	var err error
	if w.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	point, err := w.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	set, err := json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "kid": "one", "alg": "ES256", "use": "sig", "x": b64(point[1:33]), "y": b64(point[33:]),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	w.write(t, "orders-jwt.jwks.json", string(set))
}

const configuration = `version: 1
issuer: {{.Issuer}}
replica: {{.R.Name}}
data: {{.R.Name}}
mappings: mappings
listen: { {{- .Drain}}address: "{{.R.Addr}}", ops: "{{.R.Ops}}"}
{{- if .R.Embedded}}
store: {kind: embedded, file: {{.R.Name}}/store.db}
{{- else}}
store: {kind: redis, redis: {address: "{{.RedisAddr}}", username: stint, password: "vault:redis#password"}}
{{- end}}
secrets:
  kind: vault
  vault:
    address: {{.VaultAddr}}
    prefix: {{.R.Prefix}}
{{- if .R.TokenFile}}
    auth: {method: token, token_file: {{.R.TokenFile}}}
{{- else}}
    auth: {method: approle, role_id: {{.RoleID}}, secret_id: "file:{{.Dir}}/secret-id"}
{{- end}}
issuers:
  - issuer: {{.IdP}}
    algorithms: [RS256]
    accept: [access_token]
    audiences: ["{{.Issuer}}"]
    max_subject_age: 1h
    scopes: identity-only
    groups: [engineering, maintainers]
providers:
  - name: warehouse
    kind: postgres
    settings: {host: 127.0.0.1, port: {{.PostgresPort}}, database: {{.Database}}, password: "vault:warehouse#password", entitlement: none}
  - name: stock
    kind: vault
    settings:
      roles:
        stock-reader: {mount: database, path: creds/stock-reader, policy: stint-stock-reader, reads: true}
revocation: {clock_skew: 1s}
log: {level: {{.LogLevel}}, format: json}
{{- if .Collector}}
telemetry: {endpoint: "{{.Collector}}"}
{{- end}}
{{.Clients}}`

const mcpMapping = `resource: ` + mcp + `
scopes:
  orders:read: {access: read, forward: {"` + api + `": [orders:read]}}
  orders:write: {access: write, forward: {"` + api + `": [orders:read, orders:write]}}
  reports:read:
    access: read
    vend: {warehouse: {privileges: [{object: sales.orders, privileges: SELECT, columns: "*", rows: "*"}]}}
  stock:read:
    access: read
    vend: {stock: {mount: database, role: stock-reader}}
rules:
  - allow: ["*"]
    to: {groups: [engineering], agents: [desktop]}
  - allow: [orders:write]
    to: {groups: [maintainers], agents: [desktop]}
`

const apiMapping = `resource: ` + api + `
scopes:
  orders:read: {access: read}
  orders:write: {access: write}
tools:
  list_orders: {scopes: [orders:read]}
rules:
  - allow: [orders:read]
    to: {groups: [engineering], clients: [orders-mcp, orders-jwt]}
  - allow: [orders:write]
    to: {groups: [maintainers], clients: [orders-mcp, orders-jwt]}
`
