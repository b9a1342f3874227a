// Package interop lets software that we did not write deal with Stint as it is
// built: an identity provider, and clients. What a standard says is what both of
// us read out of it.
package interop

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/template"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/vault"
)

// The resources that alice's requests are about: an MCP server, and the API that
// it calls for her.
const (
	mcp = "https://mcp.example/orders"
	api = "https://api.example/orders"
)

// binary is stint, built.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "stint-interop-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		binary = filepath.Join(dir, "stint")
		build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "./cmd/stint")
		build.Dir = ".."
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build stint: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// look goes through every folder of sources. The program and the scripts are run
// and not imported: without this, go test would not know that they have changed,
// and repeat an old result.
var look = sync.OnceValue(func() error {
	return filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		name := d.Name()
		if err == nil && d.IsDir() && path != ".." && (name[0] == '.' || slices.Contains([]string{"node_modules", "bin", "build", "docs"}, name)) {
			return filepath.SkipDir
		}
		return err
	})
})

// client asks on loopback.
var client = &http.Client{Timeout: 10 * time.Second}

// world is Stint and an identity provider, running, with alice signed in. It is
// what the scripts in node read, as JSON.
type world struct {
	Stint   string            `json:"stint"` // the program
	Config  string            `json:"config"`
	Issuer  string            `json:"issuer"`
	IdP     string            `json:"idp"`
	MCP     string            `json:"mcp"`
	API     string            `json:"api"`
	Secrets map[string]string `json:"secrets"` // by client
	Key     map[string]string `json:"key"`     // of orders-jwt, a private JWK
	Alice   string            `json:"alice"`   // an access token for MCP

	Hashes  map[string]string `json:"-"`
	Public  string            `json:"-"` // of Key, a JWKS
	Address string            `json:"-"`
	Ops     string            `json:"-"`

	node    string
	idToken string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if err := look(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	addr := func() string { return "127.0.0.1:" + strconv.Itoa(testbed.FreePort(t)) }
	w := &world{
		Stint: binary, Config: filepath.Join(dir, "stint.yaml"), MCP: mcp, API: api, Address: addr(), Ops: addr(),
		Secrets: make(map[string]string), Hashes: make(map[string]string), node: findNode(t),
	}
	w.Issuer = "http://" + w.Address
	w.startIdP(t)
	w.makeKey(t)
	w.makeSecrets(t, dir)
	w.write(t, filepath.Join("mappings", "mcp.yaml"), mcpMapping)
	w.write(t, filepath.Join("mappings", "api.yaml"), apiMapping)
	w.write(t, "stint.yaml", configuration)
	testbed.Start(t, exec.Command(binary, "serve", "--config", w.Config), func() error { return okay(w.Issuer + "/readyz") })
	tokens := w.signIn(t, mcp)
	w.Alice, w.idToken = tokens.AccessToken, tokens.Extra("id_token").(string)
	return w
}

// findNode returns node, with the packages installed.
func findNode(t *testing.T) string {
	t.Helper()
	// What `make node` installed, where the machine has none that is new enough.
	node := testbed.Find(t, "install Node.js 20.19 or newer", "./node_modules/.newer/node", "node")
	out, err := exec.Command(node, "--version").Output()
	var major, minor int
	if _, scan := fmt.Sscanf(string(out), "v%d.%d", &major, &minor); err != nil || scan != nil || major < 20 || major == 20 && minor < 19 {
		testbed.Missing(t, fmt.Sprintf("node is %s: install Node.js 20.19 or newer", bytes.TrimSpace(out)))
	}
	if _, err := os.Stat(filepath.Join("node_modules", ".package-lock.json")); err != nil {
		testbed.Missing(t, "interop/node_modules is missing: make node")
	}
	return node
}

// startIdP runs the identity provider.
func (w *world) startIdP(t *testing.T) {
	t.Helper()
	port := strconv.Itoa(testbed.FreePort(t))
	w.IdP = "http://127.0.0.1:" + port
	testbed.Start(t, exec.Command(w.node, filepath.Join("node", "idp.mjs"), port, mcp), func() error {
		return okay(w.IdP + "/.well-known/openid-configuration")
	})
}

// okay returns nil if a GET is answered 200.
func okay(url string) error {
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

// makeKey makes the key of the client that has one.
func (w *world) makeKey(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	w.Key = map[string]string{"kty": "EC", "crv": "P-256", "kid": "one", "x": b64(point[1:33]), "y": b64(point[33:])}
	public, err := json.Marshal(map[string]any{"keys": []any{w.Key}})
	if err != nil {
		t.Fatal(err)
	}
	w.Public = string(public)
	w.Key["d"] = b64(scalar)
}

// makeSecrets makes the sealed secrets, and with them those of the clients.
func (w *world) makeSecrets(t *testing.T, dir string) {
	t.Helper()
	files := vault.FileConfig{Path: filepath.Join(dir, "secrets.age"), Identity: filepath.Join(dir, "identity")}
	if err := vault.Init(files); err != nil {
		t.Fatal(err)
	}
	store, _, err := vault.Open(vault.Config{Kind: vault.KindFile, File: &files}, vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	key, err := vault.Key(t.Context(), store, vault.PathClientSecrets)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"desktop", "orders-basic", "orders-post", "orders-api", "batch"} {
		var made secret.String
		made, w.Hashes[id] = broker.NewClientSecret([]byte(key.Reveal()))
		w.Secrets[id] = made.Reveal()
	}
}

// write fills in a file of the configuration.
func (w *world) write(t *testing.T, name, text string) {
	t.Helper()
	var b bytes.Buffer
	if err := template.Must(template.New(name).Parse(text)).Execute(&b, w); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(w.Config), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tapLine is the outcome of one test of a script.
var tapLine = regexp.MustCompile(`(?m)^(ok|not ok) \d+ - (.*)$`)

// script runs a script of tests, each of them as a test here.
func (w *world) script(t *testing.T, name string) {
	t.Helper()
	text, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.node, "--test-reporter=tap", filepath.Join("node", name))
	cmd.Env = append(os.Environ(), "WORLD="+string(text))
	out, err := cmd.CombinedOutput()
	tests := tapLine.FindAllSubmatch(out, -1)
	for _, test := range tests {
		t.Run(strings.ReplaceAll(string(test[2]), "/", "|"), func(t *testing.T) {
			if string(test[1]) != "ok" {
				t.Fail()
			}
		})
	}
	if err != nil || t.Failed() || len(tests) == 0 {
		t.Errorf("%s: %v\n%s", name, err, out)
	}
}

const configuration = `version: 1
issuer: {{.Issuer}}
replica: interop
data: data
listen: {address: "{{.Address}}", ops: "{{.Ops}}"}
store: {kind: embedded, file: stint.db}
secrets: {kind: file, file: {path: secrets.age, identity: identity}}
mappings: mappings
issuers:
  - issuer: {{.IdP}} # its keys are where its metadata says
    algorithms: [RS256]
    accept: [access_token, id_token]
    audiences: ["{{.MCP}}"]
    max_subject_age: 1h
    scopes: identity-only
    groups: [engineering, maintainers]
clients:
  - id: desktop
    auth: {method: client_secret_post, secret_hashes: ["{{index .Hashes "desktop"}}"]}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    identities: {"{{.IdP}}": desktop-at-idp}
    targets: ["{{.MCP}}"]
    ceiling: "*"
  - id: orders-basic
    auth: {method: client_secret_basic, secret_hashes: ["{{index .Hashes "orders-basic"}}"]}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    resource: {{.MCP}}
    targets: ["{{.API}}"]
    ceiling: "*"
  - id: orders-post
    auth: {method: client_secret_post, secret_hashes: ["{{index .Hashes "orders-post"}}"]}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    resource: {{.MCP}}
    targets: ["{{.API}}"]
    ceiling: "*"
  - id: orders-jwt
    auth: {method: private_key_jwt, jwks: {{.Public}}}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    resource: {{.MCP}}
    targets: ["{{.API}}"]
    ceiling: "*"
  - id: orders-api
    auth: {method: client_secret_basic, secret_hashes: ["{{index .Hashes "orders-api"}}"]}
    grant_types: []
    resource: {{.API}}
    targets: []
    ceiling: "*"
  - id: batch
    auth: {method: client_secret_basic, secret_hashes: ["{{index .Hashes "batch"}}"]}
    grant_types: [client_credentials]
    targets: ["{{.API}}"]
    ceiling: "*"
`

const mcpMapping = `resource: {{.MCP}}
scopes:
  orders:read: {access: read, forward: {"{{.API}}": [orders:read]}}
tools:
  list_orders: {scopes: [orders:read], arguments: {id: string}}
rules:
  - allow: [orders:read]
    to: {groups: [engineering], agents: [desktop]}
`

const apiMapping = `resource: {{.API}}
scopes:
  orders:read: {access: read}
  orders:write: {access: write}
tools:
  list_orders: {scopes: [orders:read], arguments: {id: string}}
rules:
  - allow: [orders:read]
    to: {groups: [engineering], clients: [orders-basic, orders-post, orders-jwt]}
  - allow: [orders:write]
    to: {groups: [maintainers], clients: [orders-basic, orders-post, orders-jwt]}
  - allow: [orders:read]
    to: {clients: [batch]}
`
