package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/testbed"
)

// shop is a sandbox for those who ask it from a shell.
type shop struct {
	*sandbox
	t   *testing.T
	dir string
}

// openShop starts a sandbox, on files that may be changed before.
func openShop(t *testing.T, postgres string, edits ...string) *shop {
	t.Helper()
	s := &shop{t: t, dir: place(t)}
	opts := sandboxOptions{Dir: filepath.Join(s.dir, "s"), Postgres: postgres}
	open := func() {
		t.Helper()
		var err error
		if s.sandbox, err = openSandbox(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
	}
	open()
	t.Cleanup(func() { _ = s.Close() })
	if len(edits) > 0 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		edit(t, s.Config, append([]string{s.DesktopHash, "HASH"}, edits...)...)
		open()
	}
	t.Setenv(envIssuer, s.Stint)
	t.Setenv(envClient, "")
	t.Setenv(envSecret, "")
	t.Setenv("DESKTOP_SECRET", s.DesktopSecret.Reveal())
	t.Setenv("ORDERS_MCP_SECRET", s.MCPSecret.Reveal())
	return s
}

// withWarehouse is a sandbox with a database, and psql.
func withWarehouse(t *testing.T) *shop {
	t.Helper()
	testbed.Find(t, "apt-get install postgresql-client", "psql")
	if modes := postgresModes(t); modes[len(modes)-1] == postgresOff {
		testbed.Missing(t, sample.ErrNoPostgres.Error())
	}
	return openShop(t, postgresRequire)
}

// signedIn is the token of a user who signed in.
func (s *shop) signedIn(name string) string {
	s.t.Helper()
	u := s.user(name)
	tokens, err := (sample.Agent{}).SignIn(s.t.Context(), sample.SignIn{Issuer: s.IdP, ClientID: sample.DesktopClient, User: u.Name, Password: u.Password})
	if err != nil {
		s.t.Fatal(err)
	}
	return tokens.Access.Reveal()
}

// typedAt runs a command line with something on its standard input.
func typedAt(t *testing.T, stdin string, args ...string) (out, said string, code int) {
	t.Helper()
	var b, more bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&b)
	root.SetErr(&more)
	err := root.ExecuteContext(t.Context())
	if err == nil {
		return b.String(), more.String(), 0
	}
	return b.String(), more.String() + err.Error(), exitCodeOf(err)
}

// asDesktop are the flags of an exchange by the agent, for its user.
func (s *shop) asDesktop(more ...string) []string {
	return append([]string{"exchange", "--client", "desktop", "--client-secret", "env:DESKTOP_SECRET", "--subject-token", "-", "--resource", s.MCP}, more...)
}

// forCall is a token of alice's for the MCP server, by way of the program.
func (s *shop) forCall(scope string) string {
	s.t.Helper()
	out, said, code := typedAt(s.t, s.signedIn("alice"), s.asDesktop("--scope", scope)...)
	if code != 0 {
		s.t.Fatalf("%d: %s", code, said)
	}
	return strings.TrimSpace(out)
}

// asMCP are flags by which the MCP server asks, with the token in CALL.
func asMCP(resource, scope string) []string {
	return []string{"--client", "orders-mcp", "--client-secret", "env:ORDERS_MCP_SECRET", "--subject-token", "env:CALL", "--resource", resource, "--scope", scope}
}

// built runs the program as it is built, and returns what it printed on both, apart.
func built(t *testing.T, cmd *exec.Cmd) (out, said string, code int) {
	t.Helper()
	var b, more bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &more
	err := cmd.Run()
	if ended := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return b.String(), more.String(), cmd.ProcessState.ExitCode()
}

// kept writes a secret to a file for its owner alone, and returns a reference.
func kept(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return "file:" + path
}

// silentOn fails if a text has one of the secrets in it.
func silentOn(t *testing.T, text string, secrets ...string) {
	t.Helper()
	for _, s := range secrets {
		if s != "" && strings.Contains(text, s) {
			t.Errorf("a secret is in: %s", strings.ReplaceAll(text, s, "<here>"))
		}
	}
}
