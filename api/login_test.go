package api_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
)

func session(token string) *http.Cookie { return &http.Cookie{Name: "__Host-stint", Value: token} }

// hidden returns the value of a hidden field of a page.
func hidden(t testing.TB, page *answer, name string) string {
	t.Helper()
	m := regexp.MustCompile(`name="` + name + `" value="([^"]*)"`).FindSubmatch(page.body)
	if m == nil {
		t.Fatalf("the page has no field %s: %s", name, page.body)
	}
	return string(m[1])
}

// Cookies are for this origin alone, over TLS, and for no script.
func TestSignInCookies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	state, kept := w.begin("")
	a := w.browse("GET", "/login/callback?"+url.Values{"state": {state}, "code": {"alice"}}.Encode(), nil, kept)
	for _, c := range []*http.Cookie{kept, cookieOf(a, "__Host-stint")} {
		if !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" || c.Value == "" || c.MaxAge <= 0 {
			t.Errorf("%+v", c)
		}
	}
	if c := cookieOf(a, "__Host-stint-sign-in"); c.MaxAge >= 0 {
		t.Errorf("what was kept for the sign-in stays: %+v", c)
	}
	page := w.browse("GET", "/login", nil, cookieOf(a, "__Host-stint"))
	if page.status != 200 || !strings.Contains(string(page.body), "https://idp.test#alice") || !strings.Contains(string(page.body), "<code>read</code>") {
		t.Errorf("%d %s", page.status, page.body)
	}
	csp := page.header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} {
		if !strings.Contains(csp, want) {
			t.Errorf("the policy has no %s: %s", want, csp)
		}
	}
	if strings.Contains(csp, "script-src") || strings.Contains(string(page.body), "<script") || strings.Contains(csp, "unsafe") {
		t.Errorf("scripts: %s", csp)
	}
}

// A sign-in ends in the browser that began it, in time, once, and with what it was for.
func TestSignInIsBound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	state, kept := w.begin("")
	_, other := w.begin("")
	back := func(state string, cookies ...*http.Cookie) *answer {
		return w.browse("GET", "/login/callback?"+url.Values{"state": {state}, "code": {"alice"}}.Encode(), nil, cookies...)
	}
	refused := func(what string, a *answer) {
		t.Helper()
		if a.status < 400 || cookieOf(a, "__Host-stint").Value != "" {
			t.Errorf("%s: %d %s", what, a.status, a.header)
		}
	}
	refused("without the cookie", back(state))
	refused("with the cookie of another", back(state, other))
	refused("with another state", back("x"+state, kept))
	refused("with no state", back("", kept))
	refused("with a cookie of somebody's making", back(state, &http.Cookie{Name: kept.Name, Value: "e30"}))
	refused("with an error", w.browse("GET", "/login/callback?error=access_denied&state="+state, nil, kept))
	// A session that somebody else put into the browser is not what it goes on with.
	planted := w.signedIn("bob")
	a := back(state, kept, session(planted))
	if got := cookieOf(a, "__Host-stint").Value; got == "" || got == planted {
		t.Errorf("the session is %.20q", got)
	}
	w.clock.move(11 * time.Minute)
	w.settle()
	refused("too late", back(state, kept))
	w.signIn.err = broker.Fail(broker.Unavailable, errors.New(inside), "the provider is out")
	a = w.browse("GET", "/login/start", nil)
	if a.status != 503 || strings.Contains(string(a.body), "10.0.0.7") {
		t.Errorf("the provider is out: %d %s", a.status, a.body)
	}
}

// Who has no rights is told so, and gets nothing.
func TestSignInWithoutRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.signIn.groups = []string{"sales"}
	state, kept := w.begin("")
	a := w.browse("GET", "/login/callback?"+url.Values{"state": {state}, "code": {"mallory"}}.Encode(), nil, kept)
	if a.status != http.StatusForbidden || cookieOf(a, "__Host-stint").Value != "" || !strings.Contains(string(a.body), "no rule lets you") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if !strings.Contains(w.journalled(), `"client":"stint-admin"`) {
		t.Error("it is not in the record")
	}
}

// Nobody else's page signs anybody out, or lets a command line in.
func TestFormsAreOurs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	mine, theirs := w.signedIn("root"), w.signedIn("bob")
	page := w.browse("GET", "/login", nil, session(mine))
	good := url.Values{"csrf": {hidden(t, page, "csrf")}}
	foreign := url.Values{"csrf": {hidden(t, w.browse("GET", "/login", nil, session(theirs)), "csrf")}}
	send := func(form url.Values, change func(*http.Request)) *answer {
		req := must(http.NewRequest(http.MethodPost, "http://"+w.public+"/login/end", strings.NewReader(form.Encode())))(t)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.AddCookie(session(mine))
		change(req)
		a := w.doRequest(w.http, req)
		if err := w.document().check(req, []byte(form.Encode()), a); err != nil {
			t.Error(err)
		}
		return a
	}
	for what, a := range map[string]*answer{
		"without the token":          send(url.Values{"a": {"b"}}, func(*http.Request) {}),
		"with a token of another":    send(foreign, func(*http.Request) {}),
		"from another origin":        send(good, func(r *http.Request) { r.Header.Set("Origin", "https://evil.test") }),
		"from another site":          send(good, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }),
		"with a token of one's make": send(url.Values{"csrf": {"e30"}}, func(*http.Request) {}),
	} {
		if a.status != http.StatusForbidden {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	if a, _ := w.ask(mine, "GET", "/status", nil); a.status != 200 {
		t.Fatalf("signed out by a stranger: %d", a.status)
	}
	if a := send(good, func(*http.Request) {}); a.status != http.StatusSeeOther || cookieOf(a, "__Host-stint").MaxAge >= 0 {
		t.Errorf("sign out: %d %s", a.status, a.body)
	}
	if a, _ := w.ask(mine, "GET", "/status", nil); a.status != http.StatusUnauthorized {
		t.Errorf("the token lives after signing out: %d", a.status)
	}
	if a := w.browse("GET", "/login", nil, session(mine)); !strings.Contains(string(a.body), "Sign in at") {
		t.Errorf("the page goes on as if: %s", a.body)
	}
}

// A command line gets a token of its own, once, for a code that a person let it have; the
// code is of no use to anybody else, and the token ends with the person's.
func TestCommandLineSignsIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	browser := w.signedIn("root")
	verifier := strings.Repeat("v", 43)
	challenge := challengeOf(verifier)
	query := url.Values{"port": {"4711"}, "code_challenge": {challenge}, "state": {strings.Repeat("s", 22)}}
	page := w.browse("GET", "/login/cli?"+query.Encode(), nil, session(browser))
	if page.status != 200 || !strings.Contains(string(page.body), api.HandoverCode(challenge)) {
		t.Fatalf("%d %s", page.status, page.body)
	}
	form := url.Values{"csrf": {hidden(t, page, "csrf")}, "answer": {"allow"}}
	for name := range query {
		form[name] = []string{hidden(t, page, name)}
	}
	code := func() string {
		a := w.browse("POST", "/login/cli", form, session(browser))
		to := must(url.Parse(a.header.Get("Location")))(t)
		if a.status != http.StatusSeeOther || to.Host != "127.0.0.1:4711" || to.Query().Get("state") != query.Get("state") {
			t.Fatalf("%d %s", a.status, a.header)
		}
		return to.Query().Get("code")
	}
	redeem := func(code, verifier string) *answer {
		return w.browse("POST", "/login/token", url.Values{"code": {code}, "code_verifier": {verifier}})
	}
	stale := code()
	w.clock.move(61 * time.Second)
	w.settle()
	one := code()
	for what, a := range map[string]*answer{"too late": redeem(stale, verifier), "without the verifier": redeem(one, strings.Repeat("x", 43)), "of no code": redeem("e30", verifier)} {
		if name, _, _ := errorOf(t, a); a.status != 400 || name != "invalid_grant" {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	var got struct {
		Token   string `json:"access_token"`
		Expires int    `json:"expires_in"`
		Scope   string `json:"scope"`
	}
	a := redeem(one, verifier)
	if err := json.Unmarshal(a.body, &got); err != nil || got.Token == "" || got.Expires < 3000 || got.Scope != "read operate administer approve" && len(strings.Fields(got.Scope)) != 4 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := redeem(one, verifier); a.status != 400 {
		t.Errorf("the code is good twice: %d", a.status)
	}
	if a, _ := w.ask(got.Token, "GET", "/status", nil); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	end := w.browse("POST", "/login/end", url.Values{"csrf": {hidden(t, w.browse("GET", "/login", nil, session(browser)), "csrf")}}, session(browser))
	if end.status != http.StatusSeeOther {
		t.Fatalf("%d %s", end.status, end.body)
	}
	if a, _ := w.ask(got.Token, "GET", "/status", nil); a.status != http.StatusUnauthorized {
		t.Errorf("the command line's token lives on: %d", a.status)
	}
}

// Nobody is sent anywhere but to the provider, to our own pages, or to a command line on
// the same computer.
func TestNoOpenRedirects(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	token := w.signedIn("root")
	challenge := strings.Repeat("A", 43)
	for what, q := range map[string]url.Values{
		"a host as a port":      {"port": {"1@evil.test"}, "code_challenge": {challenge}, "state": {strings.Repeat("s", 22)}},
		"a port out of bounds":  {"port": {"70000"}, "code_challenge": {challenge}, "state": {strings.Repeat("s", 22)}},
		"a path":                {"port": {"80/../x"}, "code_challenge": {challenge}, "state": {strings.Repeat("s", 22)}},
		"no challenge":          {"port": {"80"}, "state": {strings.Repeat("s", 22)}},
		"a state with a line":   {"port": {"80"}, "code_challenge": {challenge}, "state": {strings.Repeat("s", 22) + "\r\nX: y"}},
		"a state with a script": {"port": {"80"}, "code_challenge": {challenge}, "state": {`"><script>alert(1)</script>`}},
	} {
		for _, path := range []string{"/login/cli?", "/login/start?"} {
			if a := w.browse("GET", path+q.Encode(), nil, session(token)); a.status != 400 || a.header.Get("Location") != "" {
				t.Errorf("%s: %s: %d %s", what, path, a.status, a.header)
			}
		}
	}
	for _, name := range []string{"next", "return", "redirect_uri", "url"} {
		a := w.browse("GET", "/login/start?"+name+"=https://evil.test", nil)
		if !strings.HasPrefix(a.header.Get("Location"), w.idp.url) || strings.Contains(a.header.Get("Location"), "evil") {
			t.Errorf("%s: %s", name, a.header.Get("Location"))
		}
	}
	for _, text := range []string{`<script>alert(1)</script>`, `"onload="x`} {
		state, kept := w.begin("")
		a := w.browse("GET", "/login/callback?"+url.Values{"state": {state}, "error": {text}}.Encode(), nil, kept)
		if strings.Contains(string(a.body), text) {
			t.Errorf("a stranger's text is in the page: %s", a.body)
		}
	}
}

// A command line signs out with its token.
func TestCommandLineSignsOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	token := w.signedIn("root")
	req := must(http.NewRequest(http.MethodPost, "http://"+w.public+"/login/end", nil))(t)
	req.Header.Set("Authorization", "Bearer "+token)
	for _, want := range []int{http.StatusNoContent, http.StatusUnauthorized} {
		a := w.doRequest(w.http, req)
		if err := w.document().check(req, nil, a); a.status != want || err != nil {
			t.Errorf("%d %s, want %d: %v", a.status, a.body, want, err)
		}
	}
}

// challengeOf is the S256 of a verifier (RFC 7636 section 4.2).
func challengeOf(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
