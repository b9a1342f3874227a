package google_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/upstream"
)

// Ending a lease never ends a grant, however much of Google that would take to say.
func TestALeaseThatEndsLeavesTheGrantAlone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	refresh := b.link(t, "drive", "tasks")
	p := b.open(t, b.settings("user"))
	m, r, err := b.mint(t, p, parse(t, p, `{"scopes":["tasks"]}`))
	if err != nil {
		t.Fatal(err)
	}
	o, err := p.Revoke(t.Context(), broker.RevokeLease{Lease: r.Lease, Handle: m.Handle, Expires: m.Expires})
	if err != nil || o.State != broker.NotRevocableUntil || !o.Until.Equal(m.Expires.Truncate(time.Second)) {
		t.Errorf("%+v, %v", o, err)
	}
	if b.Granted(refresh).Dead || b.Token(m.Token.Reveal()) == nil {
		t.Error("Google was asked to revoke something")
	}
	late := b.deps
	late.Now = func() time.Time { return m.Expires.Add(time.Second) }
	b.deps = late
	if o, err := b.open(t, b.settings("user")).Revoke(t.Context(), broker.RevokeLease{Handle: m.Handle}); err != nil || o.State != broker.AlreadyDead {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := p.Revoke(t.Context(), broker.RevokeLease{Handle: []byte(`{"until":0,"made":true}`)}); err == nil {
		t.Error("a handle that says nothing is read")
	}
}

func TestWhatGoogleRefuses(t *testing.T) {
	t.Parallel()
	oauth := func(code string) string {
		return `{"error":"` + code + `","error_description":"upstream text"}`
	}
	api := func(code string) string {
		return `{"error":{"code":400,"message":"upstream text","status":"` + code + `"}}`
	}
	for name, c := range map[string]struct {
		flow, path string
		status     int
		body       string
		want       broker.Code
	}{
		"a grant that is over":              {"user", "/token", 400, oauth("invalid_grant"), broker.NeedsLink},
		"a session that has to be proven":   {"user", "/token", 400, `{"error":"invalid_grant","error_subtype":"invalid_rapt"}`, broker.NeedsLink},
		"a scope that was not consented to": {"user", "/token", 400, oauth("invalid_scope"), broker.NeedsLink},
		"an administrator who forbids it":   {"user", "/token", 403, oauth("admin_policy_enforced"), broker.BadScope},
		"a client that is not itself":       {"user", "/token", 401, oauth("invalid_client"), broker.Internal},
		"something unheard of":              {"user", "/token", 418, "<html>upstream text</html>", broker.Internal},
		"too many requests":                 {"user", "/token", 429, "", broker.Limited},
		"an answer that is not one":         {"user", "/token", 200, `{"access_token":"x"}`, broker.Internal},
		"an upstream that is down":          {"user", "/token", 503, "upstream text", broker.Unavailable},
		"a pool that trusts somebody else":  {"service_account", "/v1/token", 400, oauth("invalid_grant"), broker.Internal},
		"an account that is not ours":       {"service_account", "/v1/projects/-/serviceAccounts/" + account + ":generateAccessToken", 403, api("PERMISSION_DENIED"), broker.Internal},
		"a quota":                           {"service_account", "/v1/projects/-/serviceAccounts/" + account + ":generateAccessToken", 400, api("RESOURCE_EXHAUSTED"), broker.Limited},
		"a token without an end":            {"service_account", "/v1/projects/-/serviceAccounts/" + account + ":generateAccessToken", 200, `{"accessToken":"x"}`, broker.Internal},
		"a scope the domain does not give":  {"delegation", "/token", 401, oauth("unauthorized_client"), broker.BadScope},
		"nothing that is signed":            {"delegation", "/v1/projects/-/serviceAccounts/" + account + ":signJwt", 200, `{}`, broker.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.link(t, "tasks")
			p := b.open(t, b.settings(c.flow))
			b.Fail(func(path string) (int, string) {
				if path == c.path {
					return c.status, c.body
				}
				return 0, ""
			})
			text := `{"scopes":["tasks"]}`
			if c.flow == "delegation" {
				text = `{"account":"alice@acme.example","scopes":["tasks"]}`
			}
			m, _, err := b.mint(t, p, parse(t, p, text))
			if m != nil || broker.CodeOf(err) != c.want || strings.Contains(err.Error(), "upstream text") {
				t.Errorf("%+v, %v, wanted %s", m, err, c.want)
			}
			_, err = b.deps.Parents.Get(t.Context(), upstream.ParentKey{Provider: "work", Subject: alice})
			if err != nil {
				t.Errorf("what was linked is gone: %v", err)
			}
		})
	}
}

// A grant that Google ended is not tried again until it is linked anew.
func TestADeadGrantIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.link(t, "tasks")
	p := b.open(t, b.settings("user"))
	asked := 0
	b.Fail(func(path string) (int, string) {
		if path == "/token" {
			asked++
			return 400, `{"error":"invalid_grant"}`
		}
		return 0, ""
	})
	for range 3 {
		if _, _, err := b.mint(t, p, parse(t, p, `{"scopes":["tasks"]}`)); broker.CodeOf(err) != broker.NeedsLink {
			t.Fatal(err)
		}
	}
	if _, err := p.Resolve(t.Context(), broker.ResolveRequest{Subject: alice, Live: true}); broker.CodeOf(err) != broker.NeedsLink || asked != 1 {
		t.Errorf("%v after %d requests", err, asked)
	}
	b.Fail(nil)
	b.link(t, "tasks")
	if _, _, err := b.mint(t, p, parse(t, p, `{"scopes":["tasks"]}`)); err != nil {
		t.Errorf("after it was linked anew: %v", err)
	}
}

// What Google's log names of the subject is a pseudonym, and the assertion is for the
// pool alone.
func TestWhomGooglesLogNames(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p := b.open(t, b.settings("storage"))
	m, r, err := b.mint(t, p, stored(t, p, at("sales", "a/", "get")))
	if err != nil {
		t.Fatal(err)
	}
	c := b.seen[0]
	if c["sub"] != r.Pseudonym || c["aud"] != "https:"+pool || c["jti"] != r.Lease || strings.Contains(m.Upstream["principal"], "alice@") {
		t.Errorf("%v, %v", c, m.Upstream)
	}
	if exp := c["exp"].(int64); exp > time.Now().Add(5*time.Minute).Unix() {
		t.Error("the assertion lives for longer than it is needed")
	}
	if token := b.Token(m.Token.Reveal()); token.Account != account || len(token.Boundary) != 1 {
		t.Errorf("%+v", token)
	}
}

// A delegated token is for the subject's own account, whatever has been rendered.
func TestDelegationIsForTheSubjectAlone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.Allowed = []string{full("tasks")}
	cfg := b.settings("delegation")
	bob := "https://idp.example#bob"
	cfg.Users[bob] = "bob@acme.example"
	p := b.open(t, cfg)
	g := parse(t, p, `{"account":"bob@acme.example","scopes":["tasks"]}`)
	if m, _, err := b.mint(t, p, g); m != nil || err == nil {
		t.Errorf("alice has a token for bob: %+v", m)
	}
	for _, mail := range []string{"root@acme.example", "carol@acme.example"} {
		g := parse(t, p, `{"account":"`+mail+`","scopes":["tasks"]}`)
		if sent, err := p.Render(g); err == nil {
			t.Errorf("rendered: %s", sent)
		}
		if g, err := p.Parse([]byte(`{"scope":"` + full("tasks") + `","sub":"` + mail + `"}`)); err == nil {
			t.Errorf("read: %s", g)
		}
	}
	g = parse(t, p, `{"account":"alice@acme.example","scopes":["tasks"]}`)
	m, _, err := b.mint(t, p, g)
	if err != nil || b.Token(m.Token.Reveal()).Account != "alice@acme.example" || m.Evidence != broker.Asserted {
		t.Errorf("%+v, %v", m, err)
	}
}
