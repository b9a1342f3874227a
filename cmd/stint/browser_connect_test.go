package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/testbed/doubles"
)

// noDescription is a description of an API that has nothing in it: what is asked here is
// held against GitHub's own where the provider is tested.
const noDescription = `{"openapi":"3.0.3","info":{"title":"none","version":"1"},"paths":{}}`

// newGitHubSite is GitHub as a browser meets it, with a page that asks octocat whether
// he allows it, before the double that does the rest.
func newGitHubSite(t *testing.T) (*doubles.GitHub, *httptest.Server) {
	t.Helper()
	hub, err := doubles.NewGitHub("http://127.0.0.1:1", []byte(noDescription))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hub.Close)
	hub.ClientID, hub.Secret = "Iv23liStint", "secret-of-the-app"
	hub.Users["octocat"] = &doubles.GitHubUser{ID: 583231}
	mux := http.NewServeMux()
	mux.Handle("/", hub.Config.Handler)
	mux.HandleFunc("GET /login/oauth/authorize", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `<!doctype html><main><p>octocat, allow it?</p><form method="post" action="/allow?%s"><button id="allow">Allow</button></form></main>`, html.EscapeString(r.URL.RawQuery))
	})
	mux.HandleFunc("POST /allow", func(w http.ResponseWriter, r *http.Request) {
		code, err := hub.Code("octocat", "https://github.test/login/oauth/authorize?"+r.URL.RawQuery)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		q := r.URL.Query()
		http.Redirect(w, r, q.Get("redirect_uri")+"?"+url.Values{"code": {code}, "state": {q.Get("state")}}.Encode(), http.StatusSeeOther)
	})
	site := httptest.NewServer(mux)
	t.Cleanup(site.Close)
	return hub, site
}

// inSandboxWithGitHub is a sandbox at whose GitHub people link accounts.
func inSandboxWithGitHub(t *testing.T) (*sandbox, *doubles.GitHub) {
	t.Helper()
	hub, site := newGitHubSite(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TEST_GITHUB_KEY", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	t.Setenv("TEST_GITHUB_SECRET", hub.Secret)
	return inSandboxWith(t, func(*sandbox) string {
		return fmt.Sprintf(`
providers:
  - name: github
    kind: github
    settings:
      mode: user
      url: %s
      web: %s
      apps: [{client_id: %s, private_key: "env:TEST_GITHUB_KEY", client_secret: "env:TEST_GITHUB_SECRET"}]
`, hub.URL, site.URL, hub.ClientID)
	}), hub
}

// inSandboxWith is a sandbox whose configuration goes on with more.
func inSandboxWith(t *testing.T, more func(*sandbox) string) *sandbox {
	t.Helper()
	options := sandboxOptions{Dir: filepath.Join(place(t), "box"), Postgres: postgresOff}
	box, err := openSandbox(t.Context(), options)
	if err == nil {
		err = box.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(box.Config)
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, more(box)...)
	if err := os.WriteFile(box.Config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if box, err = openSandbox(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return box
}

// People link an account with the built server, at GitHub's own flow, in a browser; see it
// from the command line, which the browser lets in; and unlink it, which GitHub is told.
func TestBrowserConnectsAnAccount(t *testing.T) {
	b := newBrowser(t)
	box, hub := inSandboxWithGitHub(t)
	t.Setenv("STINT_HOME", filepath.Join(t.TempDir(), "home"))
	t.Setenv("STINT_CONFIG", box.Config)
	if out := runOut(t, 0, "check"); bytes.Contains(out, []byte("mistake")) {
		t.Errorf("%s", out)
	}
	if got := completions(t, "connect", "-c", box.Config, "unlink", ""); strings.Join(got, " ") != "github" {
		t.Errorf("%q", got)
	}
	out := runOut(t, 0, "connect", "github", "--no-browser")
	page := regexp.MustCompile(`http://\S+/connect/github`).FindString(string(out))
	if page != box.Stint+"/connect/github" {
		t.Fatalf("%s", out)
	}
	// Bob has no rights of an administrator's, and needs none.
	b.do(chromedp.Navigate(page), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery))
	b.signIn(box, "bob")
	if said := b.text(); b.at() != page || !strings.Contains(said, box.IdP+"#bob") || !strings.Contains(said, "which is called github here") {
		t.Fatalf("%s: %s", b.at(), said)
	}
	b.picture("6-link-an-account")
	b.do(chromedp.Click(`button`, chromedp.ByQuery), chromedp.WaitVisible(`#allow`, chromedp.ByQuery), chromedp.Click(`#allow`, chromedp.ByQuery), chromedp.WaitVisible(`ul.each`, chromedp.ByQuery))
	if said := b.text(); b.at() != box.Stint+"/connect" || !strings.Contains(said, "octocat") || !strings.Contains(said, "583231") {
		t.Fatalf("%s: %s", b.at(), said)
	}
	b.picture("7-linked-account")
	var list api.LinkedAccounts
	if err := json.Unmarshal(b.letsIn("connect", "list", "-o", "json"), &list); err != nil || len(list.Items) != 1 || list.Items[0].Name != "octocat" || list.Subject != box.IdP+"#bob" {
		t.Fatalf("%+v %v", list, err)
	}
	if out := runOut(t, 0, "connect", "unlink", "github"); !bytes.Contains(out, []byte("has revoked it")) {
		t.Errorf("%s", out)
	}
	if out := runOut(t, exitRefused, "connect", "unlink", "github"); !bytes.Contains(out, []byte("no account is linked")) {
		t.Errorf("%s", out)
	}
	if out := runOut(t, 0, "connect", "list"); !bytes.Contains(out, []byte("none: "+page)) {
		t.Errorf("%s", out)
	}
	if live := hub.Alive(); len(live) != 0 {
		t.Errorf("tokens are alive at GitHub: %q", live)
	}
	log, err := os.ReadFile(filepath.Join(box.Dir, sandboxLog))
	if err != nil || bytes.Contains(log, []byte("octocat")) || bytes.Contains(log, []byte("ghr_")) || bytes.Contains(log, []byte("code-")) {
		t.Errorf("%v: the log names what it must not: %s", err, log)
	}
}

// letsIn runs a command that asks the browser, which lets it in, and returns what it said.
func (b *browser) letsIn(args ...string) []byte {
	b.Helper()
	var out, said lockedBuffer
	done := make(chan error, 1)
	go func() {
		root := newRoot()
		root.SetArgs(append(args, "--no-browser"))
		root.SetOut(&out)
		root.SetErr(&said)
		done <- root.ExecuteContext(b.ctx)
	}()
	var address []string
	for range 500 {
		if address = regexp.MustCompile(`(http://\S+/connect/cli\S+)[^$]*the code (\S+)`).FindStringSubmatch(said.String()); address != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if address == nil {
		b.Fatalf("it said %s", said.String())
	}
	b.do(chromedp.Navigate(address[1]), chromedp.WaitVisible(`button[value=allow]`, chromedp.ByQuery))
	if text := b.text(); !strings.Contains(text, address[2]) || !strings.Contains(text, "see and unlink the accounts") {
		b.Fatalf("the page does not show %s: %s", address[2], text)
	}
	b.picture("8-command-line-of-a-person")
	b.do(chromedp.Click(`button[value=allow]`, chromedp.ByQuery), chromedp.WaitVisible(`body`, chromedp.ByQuery))
	select {
	case err := <-done:
		if err != nil {
			b.Fatalf("%v: %s", err, said.String())
		}
	case <-time.After(20 * time.Second):
		b.Fatalf("it waits still: %s", said.String())
	}
	return []byte(out.String())
}

// The same at a server that others wrote, which says what it is in its answer: its own
// pages, its own way of asking.
func TestBrowserConnectsAtAnOAuthServer(t *testing.T) {
	b := newBrowser(t)
	t.Setenv("TEST_OAUTH_SECRET", "a secret of the client that is long enough")
	var as string
	box := inSandboxWith(t, func(box *sandbox) string {
		as = testbed.Node(t, "as.mjs", "/.well-known/openid-configuration", box.Stint+"/connect/tickets/callback")
		return fmt.Sprintf(`
providers:
  - name: tickets
    kind: oauth
    settings:
      issuer: %s
      client_id: stint-at-as
      client_secret: "env:TEST_OAUTH_SECRET"
      scopes: ["mail:read", "notes:read"]
      always: [openid, offline_access]
      authorize_params: {prompt: consent}
      lifetime: 10m
      revokes: none
`, as)
	})
	b.do(chromedp.Navigate(box.Stint+"/connect/tickets"), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery))
	b.signIn(box, "bob")
	if said := b.text(); !strings.Contains(said, "mail:read") || !strings.Contains(said, "offline_access") {
		t.Fatalf("%s", said)
	}
	b.do(chromedp.Click(`button`, chromedp.ByQuery), chromedp.WaitVisible(`input[name=login]`, chromedp.ByQuery))
	if !strings.HasPrefix(b.at(), as) {
		t.Fatalf("at %s", b.at())
	}
	b.do(chromedp.SendKeys(`input[name=login]`, "robert", chromedp.ByQuery), chromedp.SendKeys(`input[name=password]`, "any", chromedp.ByQuery),
		chromedp.Submit(`form`, chromedp.ByQuery), chromedp.WaitVisible(`input[name=prompt][value=consent] ~ button, form button`, chromedp.ByQuery), chromedp.WaitNotPresent(`input[name=login]`, chromedp.ByQuery),
		chromedp.Submit(`form`, chromedp.ByQuery), chromedp.WaitVisible(`ul.each`, chromedp.ByQuery))
	if said := b.text(); b.at() != box.Stint+"/connect" || !strings.Contains(said, "robert") {
		t.Fatalf("%s: %s", b.at(), said)
	}
	b.do(chromedp.Click(`form[action$="/unlink"] button`, chromedp.ByQuery), chromedp.WaitNotPresent(`ul.each`, chromedp.ByQuery), chromedp.WaitVisible(`h1`, chromedp.ByQuery))
	if said := b.text(); !strings.Contains(said, "Unlinked") {
		t.Errorf("%s", said)
	}
}
