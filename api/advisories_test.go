package api_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
)

// Each of these repeats what went wrong elsewhere; docs/attacks.md lists them.

// Dex: the handler of token exchange did not look at the connectors that a client
// may use, which all the others did. What is true of a client or an issuer is true
// in every grant type.
func TestAdvisory_GHSA_7qjx_gp9h_65qj_Dex(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	mine := w.granted(t, "a token", w.exchange(w.token("idp", "at+jwt", nil)))
	grants := map[string]func() *answer{
		"for itself":          w.itself,
		"by a token of ours":  func() *answer { return w.exchangeAs("files-mcp", mine, "access_token", nil) },
		"by a foreign token":  func() *answer { return w.exchangeAs("files-mcp", w.job(), "jwt", nil) },
		"with an actor token": func() *answer { return w.actingItself(t, mine) },
	}
	c := w.reg.Clients["files-mcp"]
	for name, policy := range map[string]struct {
		change func() (undo func())
		want   func(grant string) refusal
	}{
		"disabled": {func() func() { c.Disabled = true; return func() { c.Disabled = false } }, func(string) refusal { return badLogin("is disabled") }},
		"without the grant type": {func() func() {
			old := c.GrantTypes
			c.GrantTypes = nil
			return func() { c.GrantTypes = old }
		}, func(string) refusal {
			return refusal{400, "unauthorized_client", "this grant type is not registered for the client", "not registered"}
		}},
		"with a ceiling of nothing": {func() func() {
			c.Ceiling.Everything = false
			return func() { c.Ceiling.Everything = true }
		}, func(string) refusal { return badScope("above_ceiling") }},
	} {
		for grant, through := range grants {
			w.granted(t, grant, through())
			undo := policy.change()
			// Its own token, by which it says that it acts, cannot be had any more either.
			if grant != "with an actor token" {
				w.refused(t, name+": "+grant, through(), policy.want(grant))
			}
			undo()
		}
	}
	issuer := w.reg.Issuers["https://ci.test"]
	issuer.Delegates = nil
	w.refused(t, "no delegate any more", grants["by a foreign token"](), badSubject("no consent"))
}

// job is the token of a CI job.
func (w *target) job() string {
	w.t.Helper()
	return w.token("ci", "JWT", map[string]any{"sub": "job", "client_id": nil, "groups": nil, "auth_time": nil, "sid": nil, "repository": "acme/web", "scope": "ci:read"})
}

func (w *target) actingItself(t testing.TB, subject string) *answer {
	t.Helper()
	return w.exchangeAs("files-mcp", subject, "access_token", url.Values{"actor_token": {w.granted(t, "its own token", w.itself())}, "actor_token_type": {access}})
}

// targets are the client and the target of every row of the default-deny matrix:
// what is not named is refused, for every client and everything there is.
func (w *target) everyTarget(t testing.TB, try func(client, target string) *answer) {
	t.Helper()
	allowed := map[string][]string{
		"desktop": {mcp}, "files-mcp": {mcp, "https://api.test/files", "fake://code/web", "fake://db/web"}, "files-api": {}, "gateway": {mcp},
	}
	for client, may := range allowed {
		for _, resource := range []string{mcp, "https://api.test/files", "fake://code/web", "fake://db/web", self, "https://nowhere.test/"} {
			a := try(client, resource)
			var got struct {
				Error string `json:"error"`
			}
			_ = json.Unmarshal(a.body, &got)
			named := strings.Contains(" "+strings.Join(may, " ")+" ", " "+resource+" ")
			if named == (got.Error == "invalid_target") {
				t.Errorf("%s asks for %s: %d %s", client, resource, a.status, a.body)
			}
			if !named {
				w.refused(t, client+" asks for "+resource, a, refusal{400, "invalid_target", "unknown target", "t"})
			}
		}
	}
}

// tryTarget has a client ask for a target with a token that it may exchange.
func (w *target) tryTarget(t testing.TB, mine, apis string) func(client, resource string) *answer {
	return func(client, resource string) *answer {
		t.Helper()
		scope := map[string]string{"https://api.test/files": "read"}[resource]
		if scope == "" {
			scope = "files:read"
		}
		change := url.Values{"resource": {resource}, "scope": {scope}}
		switch client {
		case "files-mcp":
			return w.exchangeAs(client, mine, "access_token", change)
		case "files-api":
			return w.exchangeAs(client, apis, "access_token", change)
		case "gateway":
			form := w.assertedForm(w.assertion(nil))
			form["resource"], form["scope"] = change["resource"], change["scope"]
			return w.send("/oauth2/token", formType, form.Encode(), func(r *http.Request) { r.Header.Del("Authorization") })
		}
		return w.exchangeAs(client, w.token("idp", "at+jwt", nil), "access_token", change)
	}
}

// Keycloak: any client could exchange a token for one of another client.
func TestAdvisory_CVE_2022_1245_Keycloak(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	mine := w.granted(t, "a token", w.exchange(w.token("idp", "at+jwt", nil)))
	apis := w.granted(t, "onward", w.exchangeAs("files-mcp", mine, "access_token", url.Values{"resource": {"https://api.test/files"}, "scope": {"read"}}))
	w.everyTarget(t, w.tryTarget(t, mine, apis))
	// And with a token of another client there is nothing at all.
	w.refused(t, "another client's token", w.exchangeAs("files-api", mine, "access_token", nil), badSubject("not to or for client files-api"))
	w.refused(t, "another client's user", w.exchangeAs("files-mcp", w.token("idp", "at+jwt", nil), "access_token", nil), badSubject("no consent"))
}

// Keycloak: the second edition of the exchange forgot a check that the first had.
// Every way to name a target is one way: as resource, as audience, as both, and for
// whatever type.
func TestAdvisory_Issue_48104_Keycloak(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	mine := w.granted(t, "a token", w.exchange(w.token("idp", "at+jwt", nil)))
	for _, resource := range []string{mcp, "https://api.test/files", "fake://code/web", self} {
		scope := map[string]string{"https://api.test/files": "read"}[resource]
		if scope == "" {
			scope = "files:read"
		}
		for _, client := range []string{"desktop", "files-mcp"} {
			subject := map[string]string{"desktop": w.token("idp", "at+jwt", nil), "files-mcp": mine}[client]
			var statuses []int
			for _, way := range []url.Values{
				{"resource": {resource}}, {"resource": nil, "audience": {resource}}, {"resource": {resource}, "audience": {resource}},
				{"resource": {resource, resource}}, {"resource": {resource}, "requested_token_type": {access}},
				{"resource": {resource}, "subject_token_type": {tokenType("jwt")}},
			} {
				way["scope"] = []string{scope}
				statuses = append(statuses, w.exchangeAs(client, subject, "access_token", way).status)
			}
			for _, s := range statuses[1:] {
				if s != statuses[0] {
					t.Errorf("%s asks for %s in six ways: %v", client, resource, statuses)
				}
			}
		}
	}
}

// Keycloak: an assertion of a disabled identity provider was accepted.
func TestAdvisory_CVE_2026_1486_Keycloak(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	for who, through := range map[string]func() *answer{
		"https://idp.test": func() *answer { return w.exchange(w.token("idp", "at+jwt", nil)) },
		"https://ci.test":  func() *answer { return w.exchangeAs("files-mcp", w.job(), "jwt", nil) },
	} {
		made := w.granted(t, who, through())
		w.reg.Issuers[who].Disabled = true
		w.refused(t, who+", disabled", through(), badSubject("unknown or disabled"))
		w.refused(t, "what was made of it", w.exchangeAs("files-mcp", made, "access_token", nil), badSubject("unknown or disabled"))
		w.active(t, "what was made of it", "files-mcp", made, false)
		w.reg.Issuers[who].Disabled = false
	}
}

// Keycloak: the algorithm of an assertion was taken from where it had no business.
func TestAdvisory_CVE_2026_11800_Keycloak(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	mine := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	for where, e := range w.entries(t) {
		for _, alg := range []string{"none", "HS256", "RS256", "PS256", "EdDSA", "ES384"} {
			for name, sign := range map[string]func(string) []byte{"unsigned": fixed(nil), "by a stranger": es256(t, mine), "by the public key": mac(published(t, e.key)["JWK"])} {
				w.held(t, where+" "+alg+" "+name, e, forge(t, map[string]any{"alg": alg, "kid": "k", "typ": e.typ}, e.claims, sign), "token")
			}
		}
	}
}

// Keycloak: introspection told clients of tokens that were not for them.
func TestAdvisory_CVE_2026_37979_Keycloak(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	mine := w.granted(t, "a token", w.exchange(w.token("idp", "at+jwt", nil)))
	for token, what := range map[string]string{mine: "another's token", "x": "no token"} { // to whoever is no resource all are alike
		a := w.introspect("desktop", token)
		w.mustBe(t, a, refusal{403, "unauthorized_client", "this client is no resource", ""})
		w.recordedAs(t, what, a, audit.KindIntrospect, "client desktop is no resource")
	}
	w.active(t, "another resource", "files-api", mine, false)
	w.recordedAs(t, "another resource", w.introspect("files-api", mine), audit.KindIntrospect, "not for https://api.test/files")
	w.active(t, "its resource", "files-mcp", mine, true)
}

// Keycloak: a watermark of the realm was not looked at once the client had one of
// its own. Here every record counts, whatever the others say.
func TestAdvisory_CVE_2026_8922_Keycloak(t *testing.T) {
	t.Parallel()
	subject, session := "https://idp.test#alice", broker.SessionID(&broker.Token{Issuer: "https://idp.test", SessionID: "s1"})
	for name, selectors := range map[string][]map[string]string{
		"the wide one first":  {{"subject": subject}, {"token": "another"}, {"session": "another"}},
		"the wide one last":   {{"token": "another"}, {"session": "another"}, {"subject": subject}},
		"only the narrow one": {{"subject": "https://idp.test#bob"}, {"session": session}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTarget(t, options{})
			old := w.token("idp", "at+jwt", map[string]any{"sid": "s1"})
			made := w.granted(t, "before", w.exchange(old))
			for _, s := range selectors {
				w.operate(t, s)
			}
			w.active(t, "made before", "files-mcp", made, false)
			w.refused(t, "issued before", w.exchange(old), badSubject("revoked"))
		})
	}
}

// Keycloak: after a restart, revoked refresh tokens could be used again.
func TestAdvisory_CVE_2026_9802_Keycloak(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	foreign := w.token("idp", "at+jwt", nil)
	made, kept := w.granted(t, "a token", w.exchange(foreign)), w.granted(t, "another", w.exchange(w.token("idp", "at+jwt", map[string]any{"sub": "bob", "sid": "b"})))
	w.operate(t, map[string]string{"subject": "https://idp.test#alice"})
	server := w.restarted(t, "r2")
	for token, want := range map[string]string{made: `{"active":false}`, kept: `"active":true`} {
		if a := w.sendTo(t, server, "/oauth2/introspect", w.asFilesMCP(url.Values{"token": {token}})); a.status != 200 || !strings.Contains(string(a.body), want) {
			t.Errorf("after the restart: %d %s, want %s", a.status, a.body, want)
		}
	}
	form := w.assertedForm(w.assertion(nil))
	form.Set("subject_token", foreign)
	w.refused(t, "after the restart", w.sendTo(t, server, "/oauth2/token", form), badSubject("revoked"))
}

// Fosite: the jti of an assertion was not looked at.
func TestAdvisory_CVE_2020_15222_Fosite(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	assertion := w.assertion(nil)
	w.granted(t, "once", w.asserted(assertion))
	w.refused(t, "twice", w.asserted(assertion), badLogin("used before"))
	w.refused(t, "without an id", w.asserted(w.assertion(map[string]any{"jti": nil})), badLogin("without a jti"))
	w.refused(t, "with an empty id", w.asserted(w.assertion(map[string]any{"jti": ""})), badLogin("without a jti"))
	// At the other endpoints it counts as well.
	for _, path := range []string{"/oauth2/revoke", "/oauth2/introspect"} {
		form := url.Values{"token": {"x"}, "client_assertion_type": {assertionType}, "client_assertion": {assertion}}
		a := w.send(path, formType, form.Encode(), func(r *http.Request) { r.Header.Del("Authorization") })
		w.refused(t, path, a, badLogin(""))
	}
}

// Fosite: a revocation that the store refused was answered as if it had been done.
func TestAdvisory_CVE_2020_15223_Fosite(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	made := w.granted(t, "a token", w.exchange(w.token("idp", "at+jwt", nil)))
	_ = w.store.Close()
	a := w.send("/oauth2/revoke", formType, url.Values{"token": {made}}.Encode(), nil)
	w.mustBe(t, a, refusal{503, "temporarily_unavailable", "something that is needed is unavailable; try again, with a new client assertion if there was one", ""})
	if a.header.Get("Retry-After") == "" {
		t.Error("not told to come again")
	}
	if events := w.recorded(a); len(events) != 1 || events[0].Outcome != "failed" {
		t.Errorf("recorded: %+v", events)
	}
}
