package api_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/audit"
)

// entry is a place where somebody's JWT comes in.
type entry struct {
	typ    string // of the header
	claims map[string]any
	key    *ecdsa.PrivateKey // that signs there
	send   func(token string) *answer
	want   func(reason string) refusal // nil: nothing is said of what is wrong
}

// entries are all the places.
func (w *target) entries(t testing.TB) map[string]*entry {
	t.Helper()
	good := func(change map[string]any) map[string]any {
		return w.changed(map[string]any{
			"iss": "https://idp.test", "sub": "alice", "aud": self, "jti": rand.Text(), "client_id": "desktop-at-idp", "sid": "sid-1",
			"iat": "-1m", "exp": "+1h", "auth_time": "-1h", "groups": []string{"engineering"},
		}, change)
	}
	ours := map[string]any{
		"iss": self, "sub": "https://idp.test#alice", "aud": mcp, "jti": rand.Text(), "client_id": "desktop", "iat": "-1m", "exp": "+5m",
		"scope": "files:read", "stint": map[string]any{"v": 1, "pos": w.b.Status(t.Context()).Head.String()},
	}
	own := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t) // an attacker's: ours never leaves
	return map[string]*entry{
		"subject token": {"at+jwt", good(nil), w.idp.key, w.exchange, badSubject},
		"actor token": {"at+jwt", good(map[string]any{"sub": "robot", "jti": rand.Text()}), w.idp.key, func(token string) *answer {
			return w.exchangeAs("desktop", w.token("idp", "at+jwt", nil), "access_token", url.Values{"actor_token": {token}, "actor_token_type": {access}})
		}, badActor},
		"client assertion": {"client-authentication+jwt", w.changed(map[string]any{
			"iss": "gateway", "sub": "gateway", "aud": self, "jti": rand.Text(), "iat": "-1s", "exp": "+1m",
		}, nil), w.gateway.key, w.asserted, badLogin},
		"subject token of ours":    {"at+jwt", w.changed(ours, nil), own, func(token string) *answer { return w.exchangeAs("files-mcp", token, "access_token", nil) }, badSubject},
		"token to be introspected": {"at+jwt", w.changed(ours, nil), own, func(token string) *answer { return w.introspect("files-mcp", token) }, nil},
		"token to be revoked": {"at+jwt", w.changed(ours, nil), own, func(token string) *answer {
			return w.send("/oauth2/revoke", formType, url.Values{"token": {token}}.Encode(), nil)
		}, nil},
	}
}

func (e *entry) honest(t testing.TB) string {
	return forge(t, map[string]any{"alg": "ES256", "kid": "k", "typ": e.typ}, e.claims, es256(t, e.key))
}

// held checks that a token came to nothing at an entry.
func (w *target) held(t testing.TB, what string, e *entry, token, reason string) {
	t.Helper()
	a := e.send(token)
	if e.want != nil {
		w.refused(t, what, a, e.want(reason))
		return
	}
	if text := strings.TrimSpace(string(a.body)); a.status != 200 || text != "" && text != `{"active":false}` {
		t.Errorf("%s: %d %s", what, a.status, a.body)
	}
	if events := w.recorded(a); len(events) != 0 {
		t.Errorf("%s: something was done: %+v", what, events)
	}
}

// mac signs with a public key as if it were a shared secret.
func mac(secret []byte) func(string) []byte {
	return func(input string) []byte {
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(input))
		return h.Sum(nil)
	}
}

func fixed(b []byte) func(string) []byte { return func(string) []byte { return b } }

// published are the texts of a public key that an attacker can have, and take for
// a shared secret.
func published(t testing.TB, key *ecdsa.PrivateKey) map[string][]byte {
	t.Helper()
	der := must(x509.MarshalPKIXPublicKey(&key.PublicKey))(t)
	jwk := must((&jose.JSONWebKey{Key: &key.PublicKey, KeyID: "k", Algorithm: "ES256", Use: "sig"}).MarshalJSON())(t)
	point := must(key.PublicKey.ECDH())(t).Bytes()
	return map[string][]byte{
		"PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "DER": der, "JWK": jwk, "JWK set": []byte(`{"keys":[` + string(jwk) + `]}`), "point": point, "nothing": {},
	}
}

// The algorithm is the key's, whatever the header says, at every door where a JWT
// comes in.
func TestAttackAlgorithms(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	large := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	order := elliptic.P256().Params().N.Bytes()
	zero := make([]byte, 64)
	for where, e := range w.entries(t) {
		head := func(alg any) map[string]any { return map[string]any{"alg": alg, "kid": "k", "typ": e.typ} }
		real := es256(t, e.key)
		attacks := map[string]string{}
		for _, none := range []string{"none", "None", "NONE", "nOnE", ""} {
			attacks["alg "+none+" unsigned"] = forge(t, head(none), e.claims, fixed(nil))
			attacks["alg "+none+" signed"] = forge(t, head(none), e.claims, real)
		}
		for name, secret := range published(t, e.key) {
			attacks["HS256 by the public key as "+name] = forge(t, head("HS256"), e.claims, mac(secret))
		}
		for _, alg := range []any{"RS256", "PS256", "ES384", "ES512", "EdDSA", "ES256K", "es256", "ES256 ", "HS512", "dir", nil, 7, []string{"ES256"}, map[string]any{"a": "ES256"}} {
			attacks["a header of "+string(must(json.Marshal(alg))(t))] = forge(t, head(alg), e.claims, real)
		}
		attacks["by a key of P-384"] = forge(t, head("ES256"), e.claims, es256(t, large))
		attacks["r and s of zero"] = forge(t, head("ES256"), e.claims, fixed(zero))
		attacks["r and s of the order"] = forge(t, head("ES256"), e.claims, fixed(append(append([]byte{}, order...), order...)))
		attacks["r and s of one"] = forge(t, head("ES256"), e.claims, fixed(append(append(make([]byte, 31), 1), append(make([]byte, 31), 1)...)))
		attacks["no signature"] = forge(t, head("ES256"), e.claims, fixed(nil))
		attacks["half a signature"] = forge(t, head("ES256"), e.claims, func(in string) []byte { return real(in)[:32] })
		attacks["a signature with a zero before each half"] = forge(t, head("ES256"), e.claims, func(in string) []byte {
			s := real(in)
			return append(append([]byte{0}, s[:32]...), append([]byte{0}, s[32:]...)...)
		})
		attacks["a signature in DER"] = forge(t, head("ES256"), e.claims, func(in string) []byte {
			sum := sha256.Sum256([]byte(in))
			return must(ecdsa.SignASN1(rand.Reader, e.key, sum[:]))(t)
		})
		for name, token := range attacks {
			w.held(t, where+": "+name, e, token, "token")
		}
	}
	w.honestPass(t)
}

// honestPass checks that what the attacks were made of is accepted as it is.
func (w *target) honestPass(t testing.TB) {
	t.Helper()
	for where, e := range w.entries(t) {
		if e.want != nil && where != "subject token of ours" {
			w.granted(t, where, e.send(e.honest(t)))
		}
	}
}

// A header chooses no key and asks for nothing: it can name one of the keys that
// its issuer has, and that is all. Nothing is fetched for it.
func TestAttackHeaders(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	var fetches atomic.Int64
	mine := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	jwk := jose.JSONWebKey{Key: &mine.PublicKey, KeyID: "k", Algorithm: "ES256"}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { // at an address that may be asked
		fetches.Add(1)
		_ = json.NewEncoder(out).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{jwk}})
	}))
	t.Cleanup(elsewhere.Close)
	for where, e := range w.entries(t) {
		head := func(more map[string]any) map[string]any {
			h := map[string]any{"alg": "ES256", "kid": "k", "typ": e.typ}
			for name, v := range more {
				h[name] = v
			}
			return h
		}
		for name, more := range map[string]map[string]any{
			"a key":                      {"jwk": jwk},
			"an address of keys":         {"jku": elsewhere.URL},
			"an address of certificates": {"x5u": elsewhere.URL},
			"a certificate":              {"x5c": []string{"MIIB"}},
			"a critical extension":       {"crit": []string{"exp"}, "exp": 1},
			"an unencoded payload":       {"b64": false, "crit": []string{"b64"}},
			"an unencoded payload alone": {"b64": false},
			"compression":                {"zip": "DEF"},
			"a nested JWT":               {"cty": "JWT"},
			"a password's iterations":    {"p2c": 2147483647, "p2s": "c2FsdA"},
			"an ephemeral key":           {"epk": jwk},
			"encryption":                 {"enc": "A256GCM"},
		} {
			for who, key := range map[string]*ecdsa.PrivateKey{"the attacker's": mine, "the issuer's": e.key} {
				w.held(t, where+": "+name+", signed by "+who+" key", e, forge(t, head(more), e.claims, es256(t, key)), "header")
			}
		}
		w.keyIDs(t, where, e, head)
		w.serialisations(t, where, e)
	}
	if n := fetches.Load(); n != 0 {
		t.Errorf("%d fetches for what a header said", n)
	}
	w.honestPass(t)
}

// keyIDs tries ids of keys that are more than names.
func (w *target) keyIDs(t testing.TB, where string, e *entry, head func(map[string]any) map[string]any) {
	t.Helper()
	for name, kid := range map[string]any{
		"a path": "../../../../dev/null", "SQL": "' or 1=1 --", "NUL": "k\x00", "another case": "K", "a space behind": "k ", "300 bytes": strings.Repeat("k", 300),
		"20 kB": strings.Repeat("k", 20<<10), "a number": 0, "a list": []string{"k"}, "an address": "https://idp.test/keys#k", "an object": map[string]any{"kid": "k"},
	} {
		w.held(t, where+": a key id: "+name, e, forge(t, head(map[string]any{"kid": kid}), e.claims, es256(t, e.key)), "token")
	}
	// Every issuer here calls its key k: an id means something with its issuer only.
	for who, key := range map[string]*ecdsa.PrivateKey{"idp": w.idp.key, "ci": w.ci.key, "the gateway": w.gateway.key} {
		if key != e.key {
			w.held(t, where+": the key of that id of "+who, e, forge(t, head(nil), e.claims, es256(t, key)), "token")
		}
	}
}

// serialisations tries what else a JWS or JWE can look like.
func (w *target) serialisations(t testing.TB, where string, e *entry) {
	t.Helper()
	text := e.honest(t)
	p := strings.Split(text, ".")
	twice := strings.Replace(`{"alg":"none","alg":"ES256","kid":"k","typ":"TYP"}`, "TYP", e.typ, 1)
	escaped := strings.Replace(`{"\u0061lg":"none","alg":"ES256","kid":"k","typ":"TYP"}`, "TYP", e.typ, 1)
	jwe := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"c2FsdA","kid":"k"}`))
	for name, token := range map[string]string{
		"JSON":                        `{"payload":"` + p[1] + `","protected":"` + p[0] + `","signature":"` + p[2] + `"}`,
		"JSON of two signatures":      `{"payload":"` + p[1] + `","signatures":[{"protected":"e30","signature":""},{"protected":"` + p[0] + `","signature":"` + p[2] + `"}]}`,
		"a JWE of five parts":         jwe + ".AAAA.AAAA.AAAA.AAAA",
		"a header of a JWE":           jwe + "." + p[1] + "." + p[2],
		"two signatures behind":       text + "." + p[2],
		"another token behind":        text + "~" + text,
		"only a header":               p[0],
		"no signature and no dot":     p[0] + "." + p[1],
		"dots":                        strings.Repeat(".", 16<<10),
		"an empty payload":            p[0] + ".." + p[2],
		"alg twice":                   forge(t, twice, e.claims, es256(t, e.key)),
		"alg twice, escaped":          forge(t, escaped, e.claims, es256(t, e.key)),
		"a header that is no object":  forge(t, `"ES256"`, e.claims, es256(t, e.key)),
		"a header of many brackets":   forge(t, strings.Repeat("[", 5000), e.claims, es256(t, e.key)),
		"claims that are no object":   forge(t, map[string]any{"alg": "ES256", "kid": "k", "typ": e.typ}, "[]", es256(t, e.key)),
		"claims behind the claims":    forge(t, map[string]any{"alg": "ES256", "kid": "k", "typ": e.typ}, string(must(json.Marshal(e.claims))(t))+"{}", es256(t, e.key)),
		"claims of 20 kB":             forge(t, map[string]any{"alg": "ES256", "kid": "k", "typ": e.typ}, map[string]any{"x": strings.Repeat("x", 20<<10)}, es256(t, e.key)),
		"a scheme before":             "Bearer " + text,
		"a line break within":         text[:20] + "\n" + text[20:],
		"a carriage return behind":    text + "\r\n",
		"a tab before":                "\t" + text,
		"padding":                     p[0] + "==." + p[1] + "." + p[2],
		"padding behind":              text + "==",
		"the other base64":            strings.Replace(p[0], "J", "+", 1) + "." + p[1] + "." + p[2],
		"spare bits in the signature": spare(text),
	} {
		w.held(t, where+": "+name, e, token, "token")
	}
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// spare sets bits of the last letter that stand for nothing: 64 bytes leave four.
func spare(text string) string {
	last := len(text) - 1
	return text[:last] + string(alphabet[strings.IndexByte(alphabet, text[last])|1])
}

// mirrored is the other signature that the key has for the same text: n-s.
func mirrored(t testing.TB, text string) string {
	t.Helper()
	at := strings.LastIndex(text, ".") + 1
	sig := must(base64.RawURLEncoding.DecodeString(text[at:]))(t)
	s := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(sig[32:]))
	return text[:at] + base64.RawURLEncoding.EncodeToString(append(sig[:32:32], s.FillBytes(make([]byte, 32))...))
}

// One token has several texts. Those that are not the one way to write it are no
// tokens; the one that a foreign issuer may have written, n-s, is the same token
// to everything: its session, its lineage, and whatever takes it back.
func TestAttackSpellings(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	foreign := w.token("idp", "at+jwt", map[string]any{"sid": nil, "auth_time": nil})
	first := w.granted(t, "the token", w.exchange(foreign))
	second := w.granted(t, "its twin", w.exchange(mirrored(t, foreign)))
	if a, b := stintOf(t, first), stintOf(t, second); a.Session != b.Session || a.Root.ID != b.Root.ID {
		t.Fatalf("two sessions of one token: %+v, %+v", a, b)
	}
	for name, text := range map[string]string{"spare bits": spare(foreign), "a line break": foreign[:30] + "\n" + foreign[30:], "a line break behind": foreign + "\n"} {
		w.refused(t, name, w.exchange(text), badSubject("token"))
	}
	// Of ours there is one text.
	for name, text := range map[string]string{"n-s": mirrored(t, first), "spare bits": spare(first), "a line break": first[:30] + "\n" + first[30:]} {
		w.active(t, "of ours, "+name, "files-mcp", text, false)
		w.refused(t, "of ours, "+name, w.exchangeAs("files-mcp", text, "access_token", nil), badSubject("token"))
	}
	w.active(t, "of ours", "files-mcp", first, true)

	// Taking the foreign token back by one spelling takes both, and what came of them.
	root := stintOf(t, first).Root
	w.operate(t, map[string]string{"token": root.Issuer + "#" + root.ID})
	w.refused(t, "the token", w.exchange(foreign), badSubject("revoked"))
	w.refused(t, "its twin", w.exchange(mirrored(t, foreign)), badSubject("revoked"))
	w.active(t, "what came of it", "files-mcp", first, false)
	w.active(t, "what came of its twin", "files-mcp", second, false)
}

// A jti is used up by whichever spelling of an assertion comes first.
func TestAttackReplayInAnotherSpelling(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	assertion := w.assertion(nil)
	w.granted(t, "an assertion", w.asserted(assertion))
	w.refused(t, "again", w.asserted(assertion), badLogin("used before"))
	w.refused(t, "n-s", w.asserted(mirrored(t, assertion)), badLogin("used before"))
	w.refused(t, "signed anew", w.asserted(forge(t, headerOf(t, assertion), payloadOf(t, assertion), es256(t, w.gateway.key))), badLogin("used before"))
	w.refused(t, "spare bits", w.asserted(spare(assertion)), badLogin("signature"))
}

// part returns a part of a JWT as text.
func part(t testing.TB, token string, i int) string {
	t.Helper()
	return string(must(base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[i]))(t))
}

func headerOf(t testing.TB, token string) string  { t.Helper(); return part(t, token, 0) }
func payloadOf(t testing.TB, token string) string { t.Helper(); return part(t, token, 1) }

// operate takes back by a selector, on the local socket.
func (w *target) operate(t testing.TB, selector map[string]string) {
	t.Helper()
	req := must(http.NewRequest(http.MethodPost, "http://stint/admin/v1/revocations", strings.NewReader(string(must(json.Marshal(selector))(t)))))(t)
	req.Header.Set("Content-Type", "application/json")
	a := w.doRequest(w.local, req)
	if events := w.recorded(a); a.status != 201 || len(events) != 1 || events[0].Kind != audit.KindRevocation {
		t.Fatalf("revoke %v: %d %s, recorded %+v", selector, a.status, a.body, events)
	}
}
