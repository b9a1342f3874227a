package api_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

// vended posts for a credential of the upstream code, by files-mcp.
func (w *target) vended(token string) *answer {
	w.t.Helper()
	return w.exchangeAs("files-mcp", token, "access_token", url.Values{"resource": {"fake://code/web"}})
}

// Who acts says so by a token of its own, for us, that is good.
func TestAttackActors(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	robot := func(change map[string]any) string {
		all := map[string]any{"sub": "robot", "sid": "robots"}
		for name, v := range change {
			all[name] = v
		}
		return w.token("idp", "at+jwt", all)
	}
	alice := w.token("idp", "at+jwt", nil)
	as := func(subject, actor, typ string) *answer {
		return w.exchangeAs("desktop", subject, "access_token", url.Values{"actor_token": {actor}, "actor_token_type": {tokenType(typ)}})
	}
	own := w.granted(t, "a client's own token", w.itself())
	hers := w.granted(t, "a token of alice's", w.exchange(alice))
	good := robot(nil)
	for name, tc := range map[string]struct{ actor, typ, reason string }{
		"another client's own token":     {own, "access_token", "not of the client desktop itself"},
		"a person's token of ours":       {hers, "access_token", "not of the client desktop itself"},
		"the subject's own token":        {alice, "access_token", "is no actor"},
		"another person's":               {robot(map[string]any{"sub": "bob"}), "access_token", "is no actor"},
		"of an issuer that has none":     {w.token("ci", "JWT", map[string]any{"sub": "robot"}), "jwt", "is no actor"},
		"of an issuer that nobody knows": {w.token("stranger", "at+jwt", map[string]any{"sub": "robot"}), "access_token", "is not trusted"},
		"expired":                        {robot(map[string]any{"exp": "-31s"}), "access_token", "expired"},
		"an ID token":                    {w.token("idp", "JWT", map[string]any{"sub": "robot", "aud": "desktop-at-idp", "nonce": "n"}), "access_token", "declared access_token"},
		"an access token as an ID token": {good, "id_token", "declared id_token"},
		"for others":                     {robot(map[string]any{"aud": "https://other.test"}), "access_token", "audience"},
		"of nobody":                      {robot(map[string]any{"sub": nil}), "access_token", "no subject"},
		"no token":                       {"x", "access_token", "segments"},
	} {
		w.refused(t, name, as(alice, tc.actor, tc.typ), badActor(tc.reason))
	}
	w.refused(t, "the subject as its own actor", as(robot(map[string]any{"sid": "other"}), good, "access_token"), badActor("of the subject itself"))
	untyped := url.Values{"actor_token": {good}}
	w.refused(t, "without a type", w.exchangeAs("desktop", alice, "access_token", untyped), badForm("actor_token and actor_token_type go together"))
	untyped = url.Values{"actor_token_type": {access}}
	w.refused(t, "a type without a token", w.exchangeAs("desktop", alice, "access_token", untyped), badForm("actor_token and actor_token_type go together"))

	made := w.granted(t, "the robot", as(alice, good, "access_token"))
	got := claimsOf(t, made)
	if want := `{"iss":"https://stint.test","sub":"desktop","act":{"iss":"https://idp.test","sub":"robot"}}`; string(got.Act) != want || got.Stint.Agent != "helper" {
		t.Errorf("act %s, agent %s", got.Act, got.Stint.Agent)
	}
	w.reg.Agents["helper"].Disabled = true
	w.refused(t, "a disabled one", as(alice, good, "access_token"), badActor("unknown or disabled"))
	w.reg.Agents["helper"].Disabled = false
	w.granted(t, "the robot again", as(alice, good, "access_token"))
	next := w.granted(t, "what comes of it", w.exchangeAs("files-mcp", made, "access_token", nil))
	w.active(t, "before it is revoked", "files-mcp", next, true)
	w.operate(t, map[string]string{"subject": "https://idp.test#robot"})
	w.refused(t, "a revoked one", as(alice, good, "access_token"), badActor("revoked"))
	w.refused(t, "what it made before", w.exchangeAs("files-mcp", made, "access_token", nil), badSubject("revoked"))
	w.active(t, "what it made before", "files-mcp", made, false)
	w.active(t, "what came of that", "files-mcp", next, false)
	w.active(t, "what it had no part in", "files-mcp", hers, true)
}

// A subject is who its issuer says, of that issuer: no name makes it somebody else,
// nor a client.
func TestAttackSubjectsThatCollide(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	job := func(sub string) *answer {
		return w.exchangeAs("files-mcp", w.token("ci", "JWT", map[string]any{
			"sub": sub, "client_id": nil, "groups": nil, "auth_time": nil, "sid": nil, "repository": "acme/web", "scope": "ci:read",
		}), "jwt", nil)
	}
	own := w.granted(t, "the client itself", w.itself())
	alice := w.granted(t, "alice", w.exchange(w.token("idp", "at+jwt", nil)))
	// By the name of a client nobody has the client's rights.
	posing := w.token("ci", "JWT", map[string]any{"sub": "files-mcp", "client_id": nil, "groups": nil, "auth_time": nil, "sid": nil, "scope": "ci:read"})
	w.refused(t, "posing as a client", w.exchangeAs("files-mcp", posing, "jwt", nil), badScope("no_rule"))
	for sub, want := range map[string]string{
		"files-mcp": "https://ci.test#files-mcp", "alice": "https://ci.test#alice", "https://idp.test#alice": "https://ci.test#https://idp.test#alice",
		"https://stint.test#files-mcp": "https://ci.test#https://stint.test#files-mcp", "#alice": "https://ci.test##alice",
	} {
		token := w.granted(t, sub, job(sub))
		if got := claimsOf(t, token).Subject; got != want {
			t.Errorf("%s became %s, want %s", sub, got, want)
		}
		// Taking that one back takes nobody else.
		w.operate(t, map[string]string{"subject": want})
		w.active(t, "the revoked "+want, "files-mcp", token, false)
		w.active(t, "the client after "+want, "files-mcp", own, true)
		w.active(t, "alice after "+want, "files-mcp", alice, true)
	}
	for name, iss := range map[string]string{"as us": self, "as us with a slash": self + "/", "as the other issuer": "https://idp.test"} {
		w.refused(t, name, w.exchangeAs("files-mcp", w.token("ci", "JWT", map[string]any{"iss": iss, "sub": "files-mcp"}), "jwt", nil), badSubject("token"))
	}
	w.operate(t, map[string]string{"subject": "https://idp.test#alice"})
	w.active(t, "alice", "files-mcp", alice, false)
	w.granted(t, "a job that is called alice elsewhere", job("alice-two"))
}

// Trust that ends between issue and use has ended at every door: for the token
// that was brought, for what was made of it before, and for credentials.
func TestAttackDisabledTrust(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	helpers := func() *answer { // by the gateway, which is left out of what it gets
		form := url.Values{
			"grant_type": {exchange}, "subject_token": {w.token("idp", "at+jwt", map[string]any{"client_id": "helper-at-idp"})}, "subject_token_type": {access},
			"resource": {mcp}, "scope": {"files:read"}, "client_assertion_type": {assertionType}, "client_assertion": {w.assertion(nil)},
		}
		return w.send("/oauth2/token", formType, form.Encode(), func(r *http.Request) { r.Header.Del("Authorization") })
	}
	viaDesktop := w.granted(t, "by desktop", w.exchange(w.token("idp", "at+jwt", nil)))
	viaGateway := w.granted(t, "by the gateway", helpers())
	own := w.granted(t, "of a client itself", w.itself())
	onward := w.granted(t, "onward", w.exchangeAs("files-mcp", viaDesktop, "access_token", url.Values{"resource": {"https://api.test/files"}, "scope": {"read"}}))
	doors := map[string]func(token string) *answer{
		"exchanged on": func(token string) *answer {
			return w.exchangeAs("files-mcp", token, "access_token", url.Values{"resource": {"https://api.test/files"}, "scope": {"read"}})
		},
		"exchanged for a credential": w.vended,
	}
	check := func(who string, alive bool, tokens ...string) {
		t.Helper()
		for _, token := range tokens {
			w.active(t, who+": introspected", "files-mcp", token, alive)
			for door, through := range doors {
				if alive {
					w.granted(t, who+" re-enabled: "+door, through(token))
				} else {
					w.refused(t, who+" disabled: "+door, through(token), badSubject("unknown or disabled"))
				}
			}
		}
	}
	issuer := w.reg.Issuers["https://idp.test"]
	check("nobody", true, viaDesktop, viaGateway)
	issuer.Disabled = true
	w.refused(t, "a token of a disabled issuer", w.exchange(w.token("idp", "at+jwt", nil)), badSubject("unknown or disabled"))
	w.refused(t, "by a gateway", helpers(), badSubject("unknown or disabled"))
	check("the issuer", false, viaDesktop, viaGateway)
	w.active(t, "two hops on", "files-api", onward, false)
	w.active(t, "what has nothing to do with it", "files-mcp", own, true)
	issuer.Disabled = false
	delete(w.reg.Issuers, issuer.Issuer)
	check("an issuer that is gone", false, viaDesktop, viaGateway)
	w.reg.Issuers[issuer.Issuer] = issuer

	agent := w.reg.Agents["helper"]
	agent.Disabled = true
	check("the agent", false, viaGateway)
	w.refused(t, "of a disabled agent", helpers(), badSubject("unknown or disabled"))
	w.active(t, "of another agent", "files-mcp", viaDesktop, true)
	agent.Disabled = false

	desktop := w.reg.Clients["desktop"]
	desktop.Disabled = true
	check("a client on the way", false, viaDesktop)
	w.active(t, "two hops on", "files-api", onward, false)
	w.refused(t, "a disabled client", w.exchange(w.token("idp", "at+jwt", nil)), badLogin("is disabled"))
	for _, path := range []string{"/oauth2/revoke", "/oauth2/introspect"} {
		w.refused(t, path, w.send(path, formType, url.Values{"token": {viaDesktop}}.Encode(), nil), badLogin(""))
	}
	desktop.Disabled = false

	gateway := w.reg.Clients["gateway"]
	gateway.Disabled = true
	check("a client that was left out", false, viaGateway)
	w.refused(t, "a disabled client's assertion", helpers(), badLogin("is disabled"))
	gateway.Disabled = false

	mine := w.reg.Clients["files-mcp"]
	mine.Disabled = true
	w.refused(t, "a disabled client for itself", w.itself(), badLogin("is disabled"))
	w.active(t, "two hops on", "files-api", onward, false)
	mine.Disabled = false
	check("nobody any more", true, viaDesktop, viaGateway)
}

// bare is an answer without what differs from one answer to the next.
func bare(a *answer) string {
	h := a.header.Clone()
	h.Del("X-Request-Id")
	h.Del("Date")
	text := strings.TrimSpace(string(a.body)) + "\n"
	data, _ := json.Marshal(h)
	return text + string(data)
}

// same checks that answers are one answer: whoever asks learns nothing by asking.
func same(t testing.TB, what string, answers map[string]*answer) {
	t.Helper()
	var first, name string
	for n, a := range answers {
		got := http.StatusText(a.status) + " " + bare(a)
		if first == "" {
			first, name = got, n
		}
		if got != first {
			t.Errorf("%s: %s is told apart from %s:\n%s\n%s", what, n, name, got, first)
		}
	}
}

// What is wrong with a token, with a client or with its secret is in the record,
// and in no answer.
func TestAttackOracles(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	revoked := w.granted(t, "to be revoked", w.exchange(w.token("idp", "at+jwt", nil)))
	if a := w.send("/oauth2/revoke", formType, url.Values{"token": {revoked}}.Encode(), nil); a.status != 200 || len(a.body) != 0 {
		t.Fatalf("revoke: %d %s", a.status, a.body)
	}
	w.operate(t, map[string]string{"session": broker.SessionID(&broker.Token{Issuer: "https://idp.test", SessionID: "dead"})})
	alive := w.granted(t, "alive", w.exchange(w.token("idp", "at+jwt", nil)))
	others := w.granted(t, "for somebody else", w.exchangeAs("files-mcp", alive, "access_token", url.Values{"resource": {"https://api.test/files"}, "scope": {"read"}}))
	w.clock.move(time.Second)
	w.settle()
	try := func(change map[string]any) *answer { return w.exchange(w.token("idp", "at+jwt", change)) }
	same(t, "a subject token", map[string]*answer{
		"no token": w.exchange("x"), "unknown": w.exchange(w.token("stranger", "at+jwt", nil)), "forged": w.exchange(w.token("ci", "JWT", map[string]any{"iss": "https://idp.test"})),
		"expired": try(map[string]any{"exp": "-31s"}), "not yet": try(map[string]any{"nbf": "+31s"}), "old": try(map[string]any{"iat": "-61m", "auth_time": nil}),
		"of a session that ended": try(map[string]any{"sid": "dead"}), "for others": try(map[string]any{"aud": "https://x.test"}), "of an agent that is unknown": try(map[string]any{"client_id": "x"}),
		"of another client": w.exchange(others), "for another by may_act": try(map[string]any{"may_act": map[string]any{"sub": "x"}}), "revoked": w.exchange(revoked),
		"too long": w.exchange(strings.Repeat("x", 17<<10)), "an ID token": w.exchange(w.token("idp", "JWT", map[string]any{"nonce": "n"})),
	})
	login := func(user, pass string) *answer {
		return w.send("/oauth2/token", formType, w.form().Encode(), func(r *http.Request) { r.SetBasicAuth(user, pass) })
	}
	good := w.secret.Reveal()
	posted := func(id, pass string) *answer {
		form := w.form()
		form.Set("client_id", id)
		form.Set("client_secret", pass)
		return w.send("/oauth2/token", formType, form.Encode(), func(r *http.Request) { r.Header.Del("Authorization") })
	}
	same(t, "a client", map[string]*answer{
		"a wrong secret": login("desktop", "wrong"), "no secret": login("desktop", ""), "nobody": login("nobody", good), "no name": login("", good), "disabled": login("off", good),
		"disabled, a wrong secret": login("off", "wrong"), "of another way": login("files-mcp", good), "with keys": login("gateway", good), "a prefix of the secret": login("desktop", good[:len(good)-1]),
		"more than the secret": login("desktop", good+"x"), "in another case": login("Desktop", good), "broken escapes": login("desktop", "%zz"),
		"posted for nobody": posted("nobody", good), "posted for another way": posted("desktop", good), "posted and wrong": posted("files-mcp", "wrong"),
		"of nobody's assertion": w.asserted(w.assertion(map[string]any{"sub": "nobody", "iss": "nobody"})), "of a client without keys": w.asserted(w.assertion(map[string]any{"sub": "desktop", "iss": "desktop"})),
		"no assertion": w.asserted("x"), "a late one": w.asserted(w.assertion(map[string]any{"exp": "-31s"})), "nobody at all": w.send("/oauth2/token", formType, w.form().Encode(), func(r *http.Request) { r.Header.Del("Authorization") }),
	})
	w.reg.Issuers["https://ci.test"].Disabled = true
	same(t, "introspection", map[string]*answer{
		"no token": w.introspect("files-mcp", "x"), "revoked": w.introspect("files-mcp", revoked), "foreign": w.introspect("files-mcp", w.token("idp", "at+jwt", map[string]any{"aud": mcp})),
		"forged": w.introspect("files-mcp", w.token("ci", "JWT", map[string]any{"iss": self})), "of a stranger": w.introspect("files-mcp", w.token("stranger", "at+jwt", nil)),
	})
	same(t, "a token of others", map[string]*answer{"alive": w.introspect("files-api", alive), "revoked": w.introspect("files-api", revoked)})
	revoke := func(token string) *answer {
		return w.send("/oauth2/revoke", formType, url.Values{"token": {token}}.Encode(), nil)
	}
	same(t, "revocation", map[string]*answer{"alive": revoke(alive), "revoked": revoke(revoked), "no token": revoke("x"), "foreign": revoke(w.token("idp", "at+jwt", nil)), "of a stranger": revoke(w.token("stranger", "at+jwt", nil))})
}

// That a signature was good is remembered; whose token it is, for whom, and
// whether it still counts is decided for every request anew.
func TestAttackCacheIsNoPermission(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	alice := w.token("idp", "at+jwt", nil)
	first := w.granted(t, "its client", w.exchange(alice))
	w.refused(t, "another client", w.exchangeAs("files-mcp", alice, "access_token", nil), badSubject("no consent"))
	w.refused(t, "another type", w.exchangeAs("desktop", alice, "id_token", nil), badSubject("declared id_token"))
	w.refused(t, "another scope", w.exchangeAs("desktop", alice, "access_token", url.Values{"scope": {"files:write"}}), badScope("files:write"))
	w.active(t, "its resource", "files-mcp", first, true)
	w.active(t, "another resource", "files-api", first, false)
	// The same name of a subject, a key and a token at two issuers.
	twin := map[string]any{"jti": "twin", "sid": "twin", "sub": "twin"}
	w.granted(t, "of one issuer", w.exchange(w.token("idp", "at+jwt", twin)))
	w.operate(t, map[string]string{"token": "https://idp.test#twin"})
	w.refused(t, "of one issuer, revoked", w.exchange(w.token("idp", "at+jwt", twin)), badSubject("revoked"))
	elsewhere := w.token("ci", "JWT", map[string]any{"jti": "twin", "sid": "twin", "sub": "twin", "client_id": nil, "groups": nil, "repository": "acme/web", "scope": "ci:read"})
	w.granted(t, "of the other", w.exchangeAs("files-mcp", elsewhere, "jwt", nil))
}

// What a stolen signing key was used for is over with the key: its tokens, what
// they were exchanged for under the next key, and the login that was vended.
func TestWhatAStolenSigningKeyObtained(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	alice := w.token("idp", "at+jwt", nil)
	stolen := w.ring.Keys()[0].ID
	first := w.granted(t, "by the key", w.exchange(alice))
	if _, err := w.ring.Rotate(context.Background(), true); err != nil {
		t.Fatal(err)
	}
	derived := w.granted(t, "made from it under the next key", w.exchangeAs("files-mcp", first, "access_token", nil))
	clean := w.granted(t, "by the next key", w.exchange(alice))
	if a := w.vended(derived); a.status != 200 {
		t.Fatalf("a login: %d %s", a.status, a.body)
	}
	open := func() int { return w.b.Status(context.Background()).OpenLeases }
	if n := open(); n != 1 {
		t.Fatalf("%d leases", n)
	}
	if _, err := w.RevokeKey(context.Background(), "", stolen); err != nil {
		t.Fatal(err)
	}
	w.active(t, "by the key", "files-mcp", first, false)
	w.active(t, "made from it", "files-mcp", derived, false)
	w.active(t, "by the next key", "files-mcp", clean, true)
	eventually(t, "the login is ended", func() bool { return open() == 0 })
}
