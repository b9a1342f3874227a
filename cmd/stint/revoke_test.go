package main

import (
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
)

const (
	anID    = "3q2-7wAAAAAAAAAAAAAAAA"
	aLease  = "abcdefghijklmnopqrstuvwx"
	anOwner = "https://idp.example#alice"
)

// A slip of the hand is not answered with success: it would be taken for a
// revocation.
func TestSelectorsThatCanTakeNothingAreRefused(t *testing.T) {
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	shortSocket(t, file)
	serving(t, file)
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"nothing":                       {nil, exitUsage, "say what"},
		"a token in person":             {[]string{"--token", "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"}, exitUsage, "not the token itself"},
		"a jti that is cut off":         {[]string{"--token", anID[:20]}, exitUsage, "22 characters"},
		"a jti with a slip":             {[]string{"--token", "3q2-7wAAAAAAAAAAAAAAA!"}, exitUsage, "22 characters"},
		"a jti of no 128 bits":          {[]string{"--token", "3q2-7wAAAAAAAAAAAAAAAB"}, exitUsage, "22 characters"},
		"a foreign token without a jti": {[]string{"--token", "https://idp.example#"}, exitUsage, "one half is missing"},
		"a token of an issuer there is not": {[]string{"--token", "https://ipd.example#x"}, exitRefused,
			"https://ipd.example is no configured issuer; there are https://idp.example; if it was configured once, --force"},
		"a token of ours as if foreign":      {[]string{"--token", "http://localhost:8080#" + anID}, exitRefused, "named by its jti alone: " + anID},
		"a session that is cut off":          {[]string{"--session", "abc"}, exitUsage, "--session is the id"},
		"a subject without a name":           {[]string{"--subject", "https://idp.example#"}, exitUsage, "one half is missing"},
		"a subject with the end of a line":   {[]string{"--subject", "https://idp.example#alice\n"}, exitUsage, "no subject or token can be called that"},
		"a subject that is too long":         {[]string{"--subject", "https://idp.example#" + strings.Repeat("a", 600)}, exitUsage, "no subject or token can be called that"},
		"a token with the end of a line":     {[]string{"--token", "https://idp.example#t\n"}, exitUsage, "no subject or token can be called that"},
		"a client as if foreign":             {[]string{"--subject", "http://localhost:8080#notes-mcp"}, exitRefused, "named by its id alone: notes-mcp"},
		"a subject without an issuer":        {[]string{"--subject", "#alice"}, exitUsage, "one half is missing"},
		"an issuer for a subject":            {[]string{"--subject", "https://idp.example"}, exitUsage, "whom of that issuer?"},
		"a subject of an issuer with a slip": {[]string{"--subject", "https://idp.example/#alice"}, exitRefused, "https://idp.example/ is no configured issuer"},
		"a client that there is not":         {[]string{"--subject", "notes-mpc"}, exitRefused, `no client is called "notes-mpc"`},
		"an address of mail":                 {[]string{"--subject", "alice@example.org"}, exitRefused, "others are written ISSUER#SUB"},
		"a lease that is cut off":            {[]string{"--lease", aLease[1:]}, exitUsage, "24 lower-case letters"},
		"one of two":                         {[]string{"--session", anID, "--lease", "x"}, exitUsage, "--lease is the id"},
		"force makes no name":                {[]string{"--lease", "x", "--force"}, exitUsage, "--lease is the id"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := stintCLI(t, append([]string{"revoke", "-c", file}, tc.args...)...)
			if code != tc.code || !strings.Contains(out, tc.want) {
				t.Errorf("got %d: %s", code, out)
			}
			if strings.Contains(out, "eyJ") {
				t.Errorf("it repeats a token: %s", out)
			}
		})
	}
	for name, args := range map[string][]string{
		"a token of ours":                 {"--token", anID},
		"a foreign token":                 {"--token", "https://idp.example#a#b c"},
		"a session":                       {"--session", anID},
		"a subject":                       {"--subject", anOwner},
		"a client that acts for itself":   {"--subject", "notes-mcp"},
		"a lease":                         {"--lease", aLease},
		"all of it":                       {"--session", anID, "--subject", anOwner, "--reason", "laptop stolen"},
		"an issuer that was removed":      {"--subject", "https://old.example#alice", "--force"},
		"a client that has been removed":  {"--subject", "old-mcp", "--force"},
		"a token of an issuer that was":   {"--token", "https://old.example#x", "--force"},
		"names that need not be asserted": {"--lease", aLease, "--force"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code, err := command(t, append([]string{"revoke", "-c", file, "-o", "json"}, args...)...)
			var got broker.Receipt
			if code != 0 || json.Unmarshal([]byte(out), &got) != nil || got.Position == "" {
				t.Errorf("got %d, %v: %s", code, err, out)
			}
		})
	}
}

// The exit code tells what was refused from what failed and may be tried again.
func TestRevocationsThatFail(t *testing.T) {
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	shortSocket(t, file)
	if out, code := stintCLI(t, "revoke", "--session", anID, "-c", file); code != exitFailed || !strings.Contains(out, "no server is running here") {
		t.Errorf("without a server: %d: %s", code, out)
	}
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", cfg.Listen.Socket)
	if err != nil {
		t.Fatal(err)
	}
	status := http.StatusServiceUnavailable
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	for answer, want := range map[int]int{503: exitFailed, 500: exitFailed, 429: exitFailed, 400: exitRefused, 403: exitRefused} {
		status = answer
		if out, code := stintCLI(t, "revoke", "--session", anID, "-c", file); code != want {
			t.Errorf("%d: %d: %s", answer, code, out)
		}
	}
}
