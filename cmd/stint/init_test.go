package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/stint-dev/stint/internal/config"
)

// stintCLI runs a command line and returns what it printed, the error behind it, and
// its exit code.
func stintCLI(t *testing.T, args ...string) (out string, code int) {
	t.Helper()
	out, code, err := command(t, args...)
	if err != nil {
		out += err.Error()
	}
	return out, code
}

// initialised makes a configuration and returns its folder.
func initialised(t *testing.T, args ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "etc")
	if out, code := stintCLI(t, append([]string{"init", dir}, args...)...); code != 0 {
		t.Fatalf("init: %d: %s", code, out)
	}
	return dir
}

var variants = map[string][]string{
	"embedded":             nil,
	"with its own URL":     {"--issuer", "https://stint.acme.example/", "--trust", "https://login.acme.example/realms/acme"},
	"Redis":                {"--redis", "redis.acme.example:6379"},
	"Redis here":           {"--redis", "[::1]:6379"},
	"Vault":                {"--vault", "https://vault.acme.example:8200"},
	"Redis and Vault here": {"--redis", "localhost:6379", "--vault", "http://127.0.0.1:8200"},
}

func TestWhatInitWritesPassesTheCheck(t *testing.T) {
	for name, args := range variants {
		t.Run(name, func(t *testing.T) {
			dir := initialised(t, args...)
			file := filepath.Join(dir, "stint.yaml")
			// The password of Redis and what opens Vault are not there yet, as init says.
			out, code := stintCLI(t, "check", "--no-secrets", "--config", file)
			warned := strings.Contains(out, "warning: listen: address: the issuer is https")
			if code != 0 || !strings.Contains(out, "is in order: 1 issuer, 1 client, 1 agent, 0 providers; 1 resource with 2 scopes; policy ") ||
				strings.Count(out, "warning") > 1 || strings.Contains(out, "warning") != warned || warned != (name == "with its own URL") {
				t.Errorf("check: %d: %s", code, out)
			}
			for _, yaml := range []string{"stint.yaml", "mappings/example.yaml"} {
				holdAgainstItsSchema(t, filepath.Join(dir, yaml))
			}
		})
	}
}

// holdAgainstItsSchema does what an editor does with the first line of a file.
func holdAgainstItsSchema(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	ref, ok := strings.CutPrefix(first, "# yaml-language-server: $schema=")
	if !ok {
		t.Fatalf("%s begins with %s", file, first)
	}
	s, err := jsonschema.NewCompiler().Compile(filepath.Join(filepath.Dir(file), ref))
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(doc); err != nil {
		t.Errorf("%s: %v", file, err)
	}
}

func TestSecretsThatInitMakesAreTheOwnersAlone(t *testing.T) {
	dir := initialised(t)
	for name, want := range map[string]fs.FileMode{"private": 0o700, "data": 0o700, "private/identity": 0o600, "data/secrets.age": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	for _, name := range []string{"private", "data"} {
		if text, err := os.ReadFile(filepath.Join(dir, name, ".gitignore")); err != nil || string(text) != "*\n" {
			t.Errorf("%s does not keep out of version control: %q, %v", name, text, err)
		}
	}
	vault := initialised(t, "--vault", "https://vault.example")
	if _, err := os.Stat(filepath.Join(vault, "private")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with Vault there is an identity: %v", err)
	}
}

func TestInitReplacesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "mappings"), 0o755); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(dir, "mappings", "example.cedar")
	if err := os.WriteFile(mine, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := stintCLI(t, "init", dir); code != exitRefused || !strings.Contains(out, mine+" exists; --force replaces it") {
		t.Errorf("got %d: %s", code, out)
	}
	if text, _ := os.ReadFile(mine); string(text) != "mine" {
		t.Error("it was replaced")
	}
	if _, err := os.Stat(filepath.Join(dir, "stint.yaml")); err == nil {
		t.Error("something was written all the same")
	}
	if out, code := stintCLI(t, "init", dir, "--force"); code != 0 || !strings.Contains(out, "wrote "+mine) {
		t.Errorf("--force: %d: %s", code, out)
	}
	identity, _ := os.ReadFile(filepath.Join(dir, "private/identity"))
	out, code := stintCLI(t, "init", dir, "--force", "-o", "json")
	var got initOutput
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil {
		t.Fatalf("%d, %v: %s", code, err, out)
	}
	if len(got.Kept) != 2 || slices.Contains(got.Files, filepath.Join(dir, "private/identity")) || got.Secret == "" || got.Client != "notes-mcp" {
		t.Errorf("got %+v", got)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "private/identity")); !bytes.Equal(identity, after) {
		t.Error("--force replaced the identity, and everything sealed is lost")
	}
	if out, code := stintCLI(t, "check", "-c", filepath.Join(dir, "stint.yaml")); code != 0 {
		t.Errorf("check: %d: %s", code, out)
	}
}

func TestInitListensWhereItsIssuerSays(t *testing.T) {
	for issuer, want := range map[string]string{
		"http://localhost:18080": "127.0.0.1:18080", "http://127.0.0.2": "127.0.0.2:80", "http://[::1]:9": "[::1]:9", "https://stint.example": "127.0.0.1:8080",
	} {
		dir := initialised(t, "--issuer", issuer)
		cfg, err := config.Load(filepath.Join(dir, theConfig))
		if err != nil || cfg.Listen.Address != want {
			t.Errorf("%s: %v, %v", issuer, cfg, err)
		}
	}
}

func TestInitRefusesWhatWouldNotBeAConfiguration(t *testing.T) {
	for name, args := range map[string][]string{
		"http over a network":      {"--issuer", "http://stint.example"},
		"another scheme":           {"--issuer", "ftp://stint.example"},
		"an issuer with a query":   {"--issuer", "https://stint.example/a?c"},
		"an issuer with a user":    {"--issuer", "https://u:p@stint.example"},
		"trust over clear http":    {"--trust", "http://idp.example"},
		"trust with a query":       {"--trust", "https://idp.example/?q"},
		"trust in itself":          {"--issuer", "https://stint.example/", "--trust", "https://stint.example"},
		"a Vault over clear http":  {"--vault", "http://vault.example:8200"},
		"the operators' address":   {"--issuer", "http://localhost:9464"},
		"no URL":                   {"--issuer", "stint.example"},
		"a URL that is YAML":       {"--trust", "https://x.example/\nversion: 2"},
		"a Vault that is no URL":   {"--vault", "vault:8200"},
		"a Redis without a port":   {"--redis", "redis.example"},
		"a Redis that is YAML":     {"--redis", "x:1}\na: {b:1"},
		"a login without a Vault":  {"--vault-role-id", "x"},
		"a secret id in clear":     {"--vault", "https://vault.example", "--vault-secret-id", "5bd8e5b0"},
		"a role id that is YAML":   {"--vault", "https://vault.example", "--vault-role-id", "x\n  a: b"},
		"two folders":              {"a", "b"},
		"a flag that is not there": {"--database", "x"},
	} {
		dir := filepath.Join(t.TempDir(), "etc")
		if out, code := stintCLI(t, append([]string{"init", dir}, args...)...); code != exitUsage && name != "two folders" || code == 0 || strings.HasPrefix(args[0], "--") && !strings.Contains(out, args[len(args)-2]) {
			t.Errorf("%s: %d: %s", name, code, out)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: something was written", name)
		}
	}
}

// serving runs a server on free ports until the test ends, and returns its address.
func serving(t *testing.T, file string) (address string) {
	t.Helper()
	return servingAt(t, file, "127.0.0.1:0")
}

// servingAt is [serving] where clients expect it.
func servingAt(t *testing.T, file, at string) (address string) {
	t.Helper()
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listen.Address, cfg.Listen.Ops = at, "127.0.0.1:0"
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- serve(ctx, cfg, io.Discard, func(_ *server, public, _ string) { ready <- public })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	select {
	case address = <-ready:
	case err := <-done:
		done <- nil
		t.Fatalf("serve: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the server is not ready")
	}
	return address
}

// shortSocket puts the socket where its path is short enough for every system.
func shortSocket(t *testing.T, file string) {
	t.Helper()
	run, err := os.MkdirTemp("", "stint")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	edit(t, file, "  ops:", "  socket: "+filepath.Join(run, "s")+"\n  ops:")
}

func TestAServerStartsWithWhatInitWrote(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	out, code := stintCLI(t, "init", dir, "-o", "json")
	var made initOutput
	if err := json.Unmarshal([]byte(out), &made); code != 0 || err != nil {
		t.Fatalf("%d, %v: %s", code, err, out)
	}
	shortSocket(t, filepath.Join(dir, "stint.yaml"))
	address := serving(t, filepath.Join(dir, "stint.yaml"))
	// The example's client is who it says, and its token is not accepted: the one
	// is invalid_client, the other invalid_request.
	for secret, want := range map[string]string{made.Secret: "invalid_request", "another": "invalid_client"} {
		form := url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {"x"},
			"subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"}, "resource": {"https://api.example/notes"}, "scope": {"notes:read"},
		}
		req, err := http.NewRequest(http.MethodPost, "http://"+address+"/oauth2/token", strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth(made.Client, secret)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if !strings.Contains(string(body), want) {
			t.Errorf("got %d %s, want %s", resp.StatusCode, body, want)
		}
	}
}
