package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
)

// people is an installation as the command line meets it: somebody links accounts there,
// and lets it in by the same handover as administrators do theirs.
type people struct {
	*httptest.Server
	mu       sync.Mutex
	accounts []api.LinkedAccount
	token    string // the one that is good
	signIns  int
	ended    bool // tokens are refused
	status   int  // what unlinking is answered, if not by 200
}

func newPeople(t *testing.T) *people {
	t.Helper()
	p := &people{accounts: []api.LinkedAccount{
		{Provider: "github", Kind: "github", Linked: true, Account: "583231", Name: "octo\x1b[2Jcat", Scopes: []string{"repo"}, Since: time.Unix(1_800_000_000, 0)},
		{Provider: "tickets", Kind: "oauth", URL: "https://stint.test/connect/tickets"},
	}}
	mux := http.NewServeMux()
	problem := func(w http.ResponseWriter, status int, code, detail string) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"code": code, "detail": detail, "title": code})
	}
	withToken := func(next http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.token == "" || p.ended || r.Header.Get("Authorization") != "Bearer "+p.token {
				problem(w, http.StatusUnauthorized, "bad_token", "a token is needed")
				return
			}
			next(w, r)
		}
	}
	mux.HandleFunc("GET /connect/v1/accounts", withToken(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(api.LinkedAccounts{Subject: "https://idp.test#alice", Items: p.accounts})
	}))
	mux.HandleFunc("DELETE /connect/v1/accounts/{provider}", withToken(func(w http.ResponseWriter, r *http.Request) {
		if p.status != 0 {
			problem(w, p.status, "bad_target", "no account is linked there")
			return
		}
		_ = json.NewEncoder(w).Encode(api.UnlinkedAccount{Provider: r.PathValue("provider"), Outcome: "revoked"})
	}))
	mux.HandleFunc("POST /connect/token", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if r.FormValue("code") != "good" || len(r.FormValue("code_verifier")) < 43 {
			http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
			return
		}
		p.signIns++
		p.token, p.ended = "token-of-alice", false
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": p.token, "expires_in": 900, "scope": "accounts"})
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// as runs a command with a browser that answers the command line when it asks.
func (p *people) as(t *testing.T, answer url.Values, args ...string) (string, int) {
	t.Helper()
	var out, said lockedBuffer
	done := make(chan error, 1)
	root := newRoot()
	root.SetArgs(append(args, "--issuer", p.URL, "--no-browser"))
	root.SetOut(&out)
	root.SetErr(&said)
	go func() { done <- root.ExecuteContext(t.Context()) }()
	where := regexp.MustCompile(`(http://\S+/connect/cli\S+)`)
	for {
		select {
		case err := <-done:
			if err != nil {
				return out.String() + err.Error(), exitCodeOf(err)
			}
			return out.String(), 0
		case <-time.After(5 * time.Millisecond):
		}
		m := where.FindString(said.String())
		if m == "" || answer == nil {
			continue
		}
		u, err := url.Parse(m)
		if err != nil {
			t.Fatal(err)
		}
		back := url.Values{"state": {u.Query().Get("state")}}
		for name, v := range answer {
			back[name] = v
		}
		answer = nil
		resp, err := http.Get("http://127.0.0.1:" + u.Query().Get("port") + "/?" + back.Encode())
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
}

var letIn = url.Values{"code": {"good"}}

// Somebody lists and unlinks his accounts; a browser is asked once in a quarter of an
// hour, and again when what it gave has ended.
func TestConnectCommands(t *testing.T) {
	home := t.TempDir()
	t.Setenv("STINT_HOME", home)
	t.Setenv("STINT_CONFIG", filepath.Join(t.TempDir(), "none.yaml"))
	p := newPeople(t)
	out, code := p.as(t, letIn, "connect", "list")
	if code != 0 || !strings.Contains(out, "https://idp.test#alice") || !strings.Contains(out, "github") || strings.Contains(out, "\x1b") || !strings.Contains(out, "none: https://stint.test/connect/tickets") {
		t.Fatalf("%d %q", code, out)
	}
	out, code = p.as(t, nil, "connect", "list", "-o", "json")
	var got api.LinkedAccounts
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || len(got.Items) != 2 || got.Items[0].Account != "583231" || p.signIns != 1 {
		t.Errorf("%d %s %v", code, out, p.signIns)
	}
	if got := completions(t, "connect", "--issuer", p.URL, ""); strings.Join(got, " ") != "list unlink github tickets" && strings.Join(got, " ") != "github tickets list unlink" {
		t.Errorf("%q", got)
	}
	if got := completions(t, "connect", "unlink", "--issuer", p.URL, ""); strings.Join(got, " ") != "github tickets" {
		t.Errorf("%q", got)
	}
	out, code = p.as(t, nil, "connect", "unlink", "github")
	if code != 0 || !strings.Contains(out, "unlinked from github") || !strings.Contains(out, "has revoked it") {
		t.Errorf("%d %s", code, out)
	}
	p.ended = true
	out, code = p.as(t, letIn, "connect", "unlink", "github", "-o", "json")
	var done api.UnlinkedAccount
	if err := json.Unmarshal([]byte(out), &done); code != 0 || err != nil || done.Outcome != "revoked" || p.signIns != 2 {
		t.Errorf("%d %s %d", code, out, p.signIns)
	}
	p.status = http.StatusNotFound
	if out, code = p.as(t, nil, "connect", "unlink", "tickets"); code != exitRefused || !strings.Contains(out, "no account is linked") {
		t.Errorf("%d %s", code, out)
	}
	p.status = http.StatusServiceUnavailable
	if out, code = p.as(t, nil, "connect", "unlink", "tickets"); code != exitFailed {
		t.Errorf("%d %s", code, out)
	}
	// It is kept for this user alone, and is no token of an administrator's.
	info, err := os.Stat(filepath.Join(home, "contexts.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if out := runOut(t, 0, "context", "list", "-o", "json"); strings.TrimSpace(string(out)) != "[]" {
		t.Errorf("%s", out)
	}
}

// What cannot be is told, with the code that says which it is.
func TestConnectRefusals(t *testing.T) {
	t.Setenv("STINT_HOME", t.TempDir())
	t.Setenv("STINT_CONFIG", filepath.Join(t.TempDir(), "none.yaml"))
	t.Setenv(envIssuer, "")
	p := newPeople(t)
	if out, code := p.as(t, url.Values{"error": {"access_denied"}}, "connect", "list"); code != exitRefused || !strings.Contains(out, "not let in") {
		t.Errorf("%d %s", code, out)
	}
	if out, code := p.as(t, url.Values{"code": {"bad"}}, "connect", "list"); code != exitRefused {
		t.Errorf("%d %s", code, out)
	}
	if out := runOut(t, 0, "connect", "github", "--issuer", p.URL+"/", "--no-browser", "-o", "json"); !bytes.Contains(out, []byte(p.URL+"/connect/github")) {
		t.Errorf("%s", out)
	}
	if out := runOut(t, 0, "connect", "../login?x", "--issuer", p.URL, "--no-browser"); !bytes.Contains(out, []byte(p.URL+"/connect/..%2Flogin%3Fx")) {
		t.Errorf("%s", out)
	}
	without := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(without.Close)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"connect"}, exitUsage, "--issuer"},
		{[]string{"connect", "list"}, exitUsage, "--issuer"},
		{[]string{"connect", "a", "b", "--issuer", p.URL}, exitUsage, "accepts at most 1"},
		{[]string{"connect", "unlink", "--issuer", p.URL}, exitUsage, "accepts 1 arg"},
		{[]string{"connect", "--issuer", "http://stint.example"}, exitUsage, "https://HOST"},
		{[]string{"connect", "github", "--issuer", without.URL}, exitRefused, "no accounts are linked at"},
		{[]string{"connect", "list", "--issuer", without.URL}, exitRefused, "no accounts are linked at"},
		{[]string{"connect", "list", "--issuer", gone.URL}, exitFailed, "ask the server"},
		{[]string{"connect", "list", "--context", "nowhere"}, exitUsage, "no context is called"},
	} {
		if out := runOut(t, c.code, append(c.args, "--no-browser")...); !bytes.Contains(out, []byte(c.want)) {
			t.Errorf("%v: %s", c.args, out)
		}
	}
	if err := (&exitError{exitRefused, errNotSignedIn}); !errors.Is(err, errNotSignedIn) {
		t.Error("the error is not told")
	}
}
