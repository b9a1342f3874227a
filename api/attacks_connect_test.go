package api_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

// unlinked fails the test if anybody has an account.
func (w *world) unlinked(what string) {
	w.Helper()
	for _, who := range []string{"alice", "mallory"} {
		if a, ok := w.code.Linked("https://idp.test#" + who); ok {
			w.Errorf("%s: %s has the account %s", what, who, a.ID)
		}
	}
}

// Who finishes is who began, in the same browser and session: neither does a victim's
// account come to an attacker, nor an attacker's to a victim.
func TestAttackLinkOfAnother(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		play func(w *world, mallory, alice *person) *answer
	}{
		{"the victim is led to the upstream by what the attacker began, and comes back", func(_ *world, mallory, alice *person) *answer {
			return alice.goTo("GET", alice.allows(mallory.begins(), "alices"), nil)
		}},
		{"the same, while the victim is at it herself", func(_ *world, mallory, alice *person) *answer {
			alice.begins()
			return alice.goTo("GET", alice.allows(mallory.begins(), "alices"), nil)
		}},
		{"the same, in a browser where nobody is signed in", func(w *world, mallory, alice *person) *answer {
			return w.browse("GET", alice.allows(mallory.begins(), "alices"), nil)
		}},
		{"the attacker's answer is put before the victim", func(_ *world, mallory, alice *person) *answer {
			return alice.goTo("GET", mallory.allows(mallory.begins(), "mallorys"), nil)
		}},
		{"the attacker's code in the victim's answer's place, with the victim's state", func(_ *world, mallory, alice *person) *answer {
			theirs := must(url.Parse(mallory.allows(mallory.begins(), "mallorys")))(mallory).Query()
			q := must(url.Parse(alice.allows(alice.begins(), "alices")))(alice).Query()
			q.Set("code", theirs.Get("code"))
			return alice.goTo("GET", "/connect/code/callback?"+q.Encode(), nil)
		}},
		{"the victim's answer, overheard, in the attacker's browser", func(_ *world, mallory, alice *person) *answer {
			mallory.begins()
			return mallory.goTo("GET", alice.allows(alice.begins(), "alices"), nil)
		}},
		{"the same, with what the victim's browser keeps of the attempt", func(_ *world, mallory, alice *person) *answer {
			back := alice.allows(alice.begins(), "alices")
			mallory.cookies["__Host-stint-link-code"] = alice.cookies["__Host-stint-link-code"]
			return mallory.goTo("GET", back, nil)
		}},
		{"somebody else has signed in meanwhile, in the same browser", func(_ *world, mallory, alice *person) *answer {
			back := alice.allows(alice.begins(), "alices")
			alice.cookies["__Host-stint-connect"] = mallory.cookies["__Host-stint-connect"]
			return alice.goTo("GET", back, nil)
		}},
		{"the same person has signed in anew", func(w *world, _, alice *person) *answer {
			back := alice.allows(alice.begins(), "alices")
			alice.cookies["__Host-stint-connect"] = w.at("alice").cookies["__Host-stint-connect"]
			return alice.goTo("GET", back, nil)
		}},
		{"what the browser keeps is of somebody's making", func(_ *world, _, alice *person) *answer {
			back := alice.allows(alice.begins(), "alices")
			alice.cookies["__Host-stint-link-code"].Value = "e30"
			return alice.goTo("GET", back, nil)
		}},
		{"what it keeps for another purpose", func(_ *world, _, alice *person) *answer {
			back := alice.allows(alice.begins(), "alices")
			alice.cookies["__Host-stint-link-code"].Value = alice.cookies["__Host-stint-connect"].Value
			return alice.goTo("GET", back, nil)
		}},
		{"another attempt has begun since", func(_ *world, _, alice *person) *answer {
			back := alice.allows(alice.begins(), "alices")
			alice.begins()
			return alice.goTo("GET", back, nil)
		}},
		{"too late", func(w *world, _, alice *person) *answer {
			back := alice.allows(alice.begins(), "alices")
			w.clock.move(11 * time.Minute)
			w.settle()
			return alice.goTo("GET", back, nil)
		}},
		{"after a revocation of the person", func(w *world, _, alice *person) *answer {
			back := alice.allows(alice.begins(), "alices")
			if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Subject: "https://idp.test#alice"}}); err != nil {
				w.Fatal(err)
			}
			return alice.goTo("GET", back, nil)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{links: true})
			a := c.play(w, w.at("mallory"), w.at("alice"))
			if a.status < 400 || a.status >= 500 {
				t.Errorf("%d %s %s", a.status, a.header, a.body)
			}
			w.unlinked(c.name)
		})
	}
}

// An answer is good once, also where the cookie is put back.
func TestAttackLinkReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{links: true})
	alice := w.at("alice")
	where := alice.begins()
	kept := *alice.cookies["__Host-stint-link-code"]
	if a := alice.goTo("GET", alice.allows(where, "one"), nil); a.status != http.StatusSeeOther || alice.cookies["__Host-stint-link-code"] != nil {
		t.Fatalf("%d %s", a.status, a.body)
	}
	again := alice.allows(where, "two") // a good code for the same state
	if a := alice.goTo("GET", again, nil); a.status != http.StatusBadRequest {
		t.Errorf("%d", a.status)
	}
	alice.cookies[kept.Name] = &kept
	if a := alice.goTo("GET", again, nil); a.status != http.StatusUnauthorized {
		t.Errorf("the state is good twice: %d %s", a.status, a.body)
	}
	if got, _ := w.code.Linked("https://idp.test#alice"); got.ID != "one" {
		t.Errorf("%+v", got)
	}
}

// Mix-up: what is answered for one upstream is not taken for another's, nor of another
// issuer than the one that was asked.
func TestAttackLinkMixUp(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(q url.Values) string{
		"of another issuer":         func(q url.Values) string { q.Set("iss", "https://evil.test"); return "code" },
		"an issuer with a slash":    func(q url.Values) string { q.Set("iss", "https://code.test/"); return "code" },
		"two issuers":               func(q url.Values) string { q.Add("iss", "https://evil.test"); return "code" },
		"two codes":                 func(q url.Values) string { q.Add("code", "x"); return "code" },
		"two states":                func(q url.Values) string { q.Add("state", "x"); return "code" },
		"at another upstream":       func(url.Values) string { return "db" },
		"at one that there is not":  func(url.Values) string { return "nothing" },
		"a code of somebody's make": func(q url.Values) string { q.Set("code", "x"); return "code" },
		"no code":                   func(q url.Values) string { q.Del("code"); return "code" },
		"no state":                  func(q url.Values) string { q.Del("state"); return "code" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{links: true})
			alice := w.at("alice")
			q := must(url.Parse(alice.allows(alice.begins(), "alices")))(t).Query()
			at := change(q)
			if a := alice.goTo("GET", "/connect/"+at+"/callback?"+q.Encode(), nil); a.status < 400 || a.status >= 500 {
				t.Errorf("%d %s", a.status, a.body)
			}
			w.unlinked(name)
			if !strings.Contains(w.journalled(), `"action":"finish"`) {
				t.Error("it is not in the record")
			}
		})
	}
}

// Nobody is sent anywhere but to the organisation's provider, to our own pages, and to
// the upstream; what an upstream says is shown as it may be.
func TestAttackLinkRedirects(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{links: true})
	alice := w.at("alice")
	for _, name := range []string{"to", "next", "return", "redirect_uri", "url"} {
		for _, value := range []string{"https://evil.test", "//evil.test", `\\evil.test`, "../../evil", "code/../../x", "code?x", "%2f%2fevil.test", "javascript:alert(1)", "CODE", strings.Repeat("a", 64)} {
			q := "?" + url.Values{name: {value}}.Encode()
			p := &person{w, "alice", map[string]*http.Cookie{}}
			if a := p.signIn(p.goTo("GET", "/connect/start"+q, nil)); a.header.Get("Location") != "/connect" {
				t.Errorf("%s=%s: %s", name, value, a.header.Get("Location"))
			}
			if a := alice.goTo("GET", "/connect/code"+q, nil); a.status != http.StatusOK || strings.Contains(string(a.body), "evil") {
				t.Errorf("%s=%s: %d", name, value, a.status)
			}
		}
	}
	for _, path := range []string{"/connect/https:%2f%2fevil.test", "/connect/%2e%2e%2flogin", `/connect/"><script>`, "/connect/x%0d%0aX:y"} {
		p := &person{w, "alice", map[string]*http.Cookie{}}
		a := p.goTo("GET", path, nil)
		if a.status == http.StatusSeeOther {
			a = p.signIn(p.goTo("GET", strings.TrimPrefix(a.header.Get("Location"), self), nil))
		}
		if to := a.header.Get("Location"); to != "" && to != "/connect" || strings.Contains(string(a.body), "<script>") {
			t.Errorf("%s: %s %s", path, to, a.body)
		}
	}
	for _, text := range []string{`<script>alert(1)</script>`, `"onload="x`, "access_denied"} {
		where := must(url.Parse(alice.begins()))(t)
		q := url.Values{"state": {where.Query().Get("state")}, "error": {text}, "error_description": {"from the upstream"}, "code": {"x"}}
		a := alice.goTo("GET", "/connect/code/callback?"+q.Encode(), nil)
		if a.status != http.StatusForbidden || strings.Contains(string(a.body), "<script>") || strings.Contains(string(a.body), `"onload`) || strings.Contains(string(a.body), "from the upstream") {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	w.unlinked("after errors")
}

// A form of another site, or one that was made for somebody else, links and unlinks
// nothing; and the pages are in no frame and run no script.
func TestAttackLinkForms(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{links: true})
	alice, mallory := w.at("alice"), w.at("mallory")
	alice.links("alices")
	good, theirs := alice.csrf("/connect"), mallory.csrf("/connect")
	admins := url.Values{"csrf": {hidden(t, w.browse("GET", "/login", nil, session(w.signedIn("root"))), "csrf")}}
	send := func(path string, form url.Values, change func(*http.Request)) int {
		req := must(http.NewRequest(http.MethodPost, "http://"+w.public+path, strings.NewReader(form.Encode())))(t)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.AddCookie(alice.cookies["__Host-stint-connect"])
		change(req)
		return w.doRequest(w.http, req).status
	}
	as := func(*http.Request) {}
	for _, path := range []string{"/connect/code", "/connect/code/unlink", "/connect/end", "/connect/cli"} {
		for what, status := range map[string]int{
			"without the token":       send(path, url.Values{"a": {"b"}}, as),
			"with another's":          send(path, theirs, as),
			"with an administrator's": send(path, admins, as),
			"of somebody's make":      send(path, url.Values{"csrf": {"e30"}}, as),
			"from another origin":     send(path, good, func(r *http.Request) { r.Header.Set("Origin", "https://evil.test") }),
			"from another site":       send(path, good, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }),
			"without the session":     send(path, good, func(r *http.Request) { r.Header.Del("Cookie") }),
		} {
			if status != http.StatusForbidden && (path != "/connect/end" || status != http.StatusSeeOther || what != "without the session") {
				t.Errorf("%s: %s: %d", path, what, status)
			}
		}
	}
	for _, path := range []string{"/connect/code", "/connect/code/unlink", "/connect/cli"} {
		if a := alice.goTo("POST", path, theirs); a.status != http.StatusForbidden {
			t.Errorf("%s: %d", path, a.status)
		}
	}
	if _, ok := w.code.Linked("https://idp.test#alice"); !ok {
		t.Error("a stranger's form unlinked alice's account")
	}
	for _, path := range []string{"/connect", "/connect/code"} {
		a := alice.goTo("GET", path, nil)
		csp := a.header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: the policy has no %s: %s", path, want, csp)
			}
		}
		if strings.Contains(csp, "script-src") || strings.Contains(string(a.body), "<script") || strings.Contains(csp, "unsafe") || a.header.Get("X-Frame-Options") != "DENY" || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s", path, a.header)
		}
	}
	// GET changes nothing.
	for _, path := range []string{"/connect/code/unlink", "/connect/end"} {
		if a := alice.goTo("GET", path, nil); a.status != http.StatusMethodNotAllowed && a.status != http.StatusNotFound {
			t.Errorf("%s: %d", path, a.status)
		}
	}
}

// Login CSRF and fixation: a sign-in ends in the browser that began it, and a session that
// somebody planted is not what its owner goes on with.
func TestAttackConnectSignIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{links: true})
	mallory := w.at("mallory")
	planted := mallory.cookies["__Host-stint-connect"].Value
	alice := &person{w, "alice", map[string]*http.Cookie{"__Host-stint-connect": {Name: "__Host-stint-connect", Value: planted}}}
	// The page says whose session it is before anything is linked.
	if offer := string(alice.goTo("GET", "/connect/code", nil).body); !strings.Contains(offer, "https://idp.test#mallory") {
		t.Errorf("%s", offer)
	}
	alice.signIn(alice.goTo("GET", "/connect/start", nil))
	if got := alice.cookies["__Host-stint-connect"].Value; got == planted {
		t.Error("the session is the planted one")
	}
	// A sign-in that another browser began, at this door or at the other.
	stranger := &person{w, "mallory", map[string]*http.Cookie{}}
	to := must(url.Parse(stranger.goTo("GET", "/connect/start", nil).header.Get("Location")))(t)
	state, admins := w.begin("")
	for what, c := range map[string]struct {
		state   string
		cookies []*http.Cookie
	}{
		"of another browser":      {to.Query().Get("state"), nil},
		"begun for the admin API": {state, []*http.Cookie{admins}},
		"the same, renamed":       {state, []*http.Cookie{{Name: "__Host-stint-connect-sign-in", Value: admins.Value}}},
	} {
		a := w.browse("GET", "/connect/callback?"+url.Values{"state": {c.state}, "code": {"mallory"}}.Encode(), nil, c.cookies...)
		if a.status != http.StatusBadRequest || cookieOf(a, "__Host-stint-connect").Value != "" {
			t.Errorf("%s: %d %s", what, a.status, a.header)
		}
	}
}
