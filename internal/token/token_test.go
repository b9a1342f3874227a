package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

func TestAForeignTokenIsRead(t *testing.T) {
	w := newWorld(t, nil)
	now := w.clock.Now()
	got, err := w.verify(w.compact(accessHeader, claims(now, map[string]any{
		"auth_time": now.Add(-time.Hour).Unix(), "email": "alice@acme.example", "repository": "acme/web", "run": 7, "ok": true,
		"nested": map[string]any{"x": 1}, "other": "unseen", "act": map[string]any{"sub": "desktop", "act": map[string]any{"sub": "older", "iss": idp}},
		"may_act": map[string]any{"sub": "mcp"}, "stint": map[string]any{"v": 1, "pos": "1.1"}, "authorization_details": []any{},
	})))
	if err != nil {
		t.Fatal(err)
	}
	if got.Ours || got.Use != broker.AccessToken || got.Issuer != idp || got.Subject != "alice" || got.ID != "t1" || got.ClientID != "desktop" || got.SessionID != "s1" || got.Email != "alice@acme.example" {
		t.Errorf("got %+v", got)
	}
	if fmt.Sprint(got.Scope, got.Groups, got.Audience) != "[a b] [g] [https://stint.test]" || !got.AuthTime.Equal(now.Add(-time.Hour)) {
		t.Errorf("got %+v", got)
	}
	if fmt.Sprint(got.Actors) != "[{https://idp.test desktop} {https://idp.test older}]" || got.MayAct == nil || got.MayAct.Subject != "mcp" {
		t.Errorf("actors %v, may_act %v", got.Actors, got.MayAct)
	}
	if fmt.Sprint(got.Claims) != "map[ok:true repository:acme/web run:7]" {
		t.Errorf("claims: %v", got.Claims)
	}
	if got.Stint != nil || got.Details != nil {
		t.Error("a foreign issuer wrote claims of ours")
	}
}

func TestTokensThatAreRefused(t *testing.T) {
	w := newWorld(t, nil)
	now := w.clock.Now()
	good := claims(now, nil)
	with := func(change map[string]any) string { return w.compact(accessHeader, claims(now, change)) }
	head := func(change map[string]any) string { return w.compact(header(change), good) }
	parts := strings.Split(w.compact(accessHeader, good), ".")
	deepAct := map[string]any{"sub": "a"}
	for range 10 {
		deepAct = map[string]any{"sub": "a", "act": deepAct}
	}
	publicPEM := func() []byte {
		der, err := x509.MarshalPKIXPublicKey(&w.rsa.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}()
	hs256 := func() string {
		h := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","kid":"r","typ":"at+jwt"}`))
		mac := hmac.New(sha256.New, publicPEM)
		mac.Write([]byte(h + "." + parts[1]))
		return h + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	}()
	for name, text := range map[string]string{
		"nothing":                      "",
		"no JWT":                       "hello",
		"two segments":                 parts[0] + "." + parts[1],
		"a JWE of five segments":       strings.Repeat("eyJhIjoxfQ.", 4) + "eyJhIjoxfQ",
		"a thousand dots":              strings.Repeat(".", 1000),
		"a JSON serialisation":         `{"payload":"` + parts[1] + `","signatures":[{"protected":"` + parts[0] + `","signature":"` + parts[2] + `"}]}`,
		"a token of 17 kB":             with(map[string]any{"x": strings.Repeat("x", 17<<10)}),
		"an empty signature":           parts[0] + "." + parts[1] + ".",
		"alg none":                     head(map[string]any{"alg": "none"}),
		"alg None":                     head(map[string]any{"alg": "None"}),
		"alg nOnE without a signature": strings.Join(strings.Split(head(map[string]any{"alg": "nOnE"}), ".")[:2], ".") + ".",
		"HS256 with the public key as the secret":   hs256,
		"an RS256 key with a PS256 header":          head(map[string]any{"alg": "PS256"}),
		"an RS256 key with an RS512 header":         head(map[string]any{"alg": "RS512"}),
		"no alg":                                    head(map[string]any{"alg": nil}),
		"an alg that is a list":                     head(map[string]any{"alg": []string{"RS256"}}),
		"a psychic signature":                       strings.Join(strings.Split(head(map[string]any{"alg": "ES256", "kid": "e"}), ".")[:2], ".") + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)),
		"an ES256 signature in DER":                 strings.Join(strings.Split(head(map[string]any{"alg": "ES256", "kid": "e"}), ".")[:2], ".") + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 70)),
		"a key in the header":                       head(map[string]any{"jwk": map[string]any{"kty": "RSA"}}),
		"an address of keys in the header":          head(map[string]any{"jku": "https://evil.example/keys"}),
		"an address of a certificate in the header": head(map[string]any{"x5u": "https://evil.example/cert"}),
		"a certificate in the header":               head(map[string]any{"x5c": []string{"MII"}}),
		"a critical extension":                      head(map[string]any{"crit": []string{"exp"}}),
		"an unencoded payload":                      head(map[string]any{"b64": false, "crit": []string{"b64"}}),
		"compression":                               head(map[string]any{"zip": "DEF"}),
		"a nested JWT":                              head(map[string]any{"cty": "JWT"}),
		"a key id that is a path":                   head(map[string]any{"kid": "../../etc/passwd"}),
		"a key id with SQL":                         head(map[string]any{"kid": "' or 1=1"}),
		"a key id with NUL":                         head(map[string]any{"kid": "r\x00"}),
		"a key id of 100 kB":                        head(map[string]any{"kid": strings.Repeat("r", 100<<10)}),
		"a key id of 300 bytes":                     head(map[string]any{"kid": strings.Repeat("r", 300)}),
		"a key id that is a number":                 head(map[string]any{"kid": 1}),
		"no key id where several keys could be":     w.compact(map[string]any{"alg": "PS256", "typ": "at+jwt"}, good),
		"another type":                              head(map[string]any{"typ": "logout+jwt"}),
		"an identity assertion":                     head(map[string]any{"typ": "oauth-id-jag+jwt"}),
		"a changed payload":                         parts[0] + "." + strings.Split(with(map[string]any{"sub": "bob"}), ".")[1] + "." + parts[2],
		"an unknown issuer":                         with(map[string]any{"iss": "https://evil.example"}),
		"an issuer with a slash behind":             with(map[string]any{"iss": idp + "/"}),
		"an issuer in capitals":                     with(map[string]any{"iss": strings.ToUpper(idp)}),
		"no issuer":                                 with(map[string]any{"iss": nil}),
		"an issuer that is a list":                  with(map[string]any{"iss": []string{idp}}),
		"our issuer, signed by another":             with(map[string]any{"iss": self}),
		"bound to a key for DPoP":                   with(map[string]any{"cnf": map[string]any{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}),
		"bound to a certificate":                    with(map[string]any{"cnf": map[string]any{"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}}),
		"no audience":                               with(map[string]any{"aud": nil}),
		"an audience that is an object":             with(map[string]any{"aud": map[string]any{"a": 1}}),
		"an audience that is a number":              with(map[string]any{"aud": 7}),
		"an audience with a number in it":           with(map[string]any{"aud": []any{"a", 7}}),
		"twenty audiences":                          with(map[string]any{"aud": strings.Split(strings.Repeat("a ", 20)+"b", " ")}),
		"an empty list of audiences":                with(map[string]any{"aud": []any{}}),
		"expired":                                   with(map[string]any{"exp": now.Add(-31 * time.Second).Unix()}),
		"no expiry":                                 with(map[string]any{"exp": nil}),
		"an expiry in milliseconds":                 with(map[string]any{"exp": now.Add(time.Hour).UnixMilli()}),
		"an expiry in ten years":                    with(map[string]any{"exp": now.Add(10 * 365 * 24 * time.Hour).Unix()}),
		"an expiry that is a text":                  with(map[string]any{"exp": fmt.Sprint(now.Add(time.Hour).Unix())}),
		"a negative expiry":                         with(map[string]any{"exp": -1}),
		"an expiry of 1e300":                        w.compact(accessHeader, strings.Replace(mustJSON(t, claims(now, map[string]any{"exp": 12345})), "12345", "1e300", 1)),
		"an expiry with an exponent":                w.compact(accessHeader, strings.Replace(mustJSON(t, claims(now, map[string]any{"exp": 12345})), "12345", "1.8e9", 1)),
		"no time of issue":                          with(map[string]any{"iat": nil}),
		"issued in the future":                      with(map[string]any{"iat": now.Add(31 * time.Second).Unix()}),
		"not valid yet":                             with(map[string]any{"nbf": now.Add(31 * time.Second).Unix()}),
		"expired before it was issued":              with(map[string]any{"iat": now.Add(10 * time.Second).Unix(), "exp": now.Add(5 * time.Second).Unix()}),
		"signed in after it was issued":             with(map[string]any{"auth_time": now.Unix()}),
		"a subject that is a number":                with(map[string]any{"sub": 1}),
		"a subject of 600 bytes":                    with(map[string]any{"sub": strings.Repeat("x", 600)}),
		"an actor that is a text":                   with(map[string]any{"act": "mcp"}),
		"an actor that is a list":                   with(map[string]any{"act": []any{map[string]any{"sub": "x"}}}),
		"an actor without a subject":                with(map[string]any{"act": map[string]any{"iss": idp}}),
		"eleven actors":                             with(map[string]any{"act": deepAct}),
		"an actor of 9 kB":                          with(map[string]any{"act": map[string]any{"sub": "x", "pad": strings.Repeat("x", 9<<10)}}),
		"an actor that is said to be ours":          with(map[string]any{"act": map[string]any{"iss": self, "sub": "mcp"}}),
		"an actor of a third issuer":                with(map[string]any{"act": map[string]any{"iss": "https://other.test", "sub": "x"}}),
		"may_act that names nobody":                 with(map[string]any{"may_act": map[string]any{}}),
		"may_act with a condition we do not know":   with(map[string]any{"may_act": map[string]any{"sub": "x", "aud": "y"}}),
		"may_act that names two":                    with(map[string]any{"may_act": map[string]any{"sub": "x", "client_id": "y"}}),
		"scopes with a tab":                         with(map[string]any{"scope": "a\tb"}),
		"scopes with two spaces":                    with(map[string]any{"scope": "a  b"}),
		"a scope twice":                             with(map[string]any{"scope": "a a"}),
		"scopes that are a number":                  with(map[string]any{"scope": 7}),
		"scopes in a list with a space":             with(map[string]any{"scope": []string{"a b"}}),
		"groups that are an object":                 with(map[string]any{"groups": map[string]any{}}),
		"an ID token as an access token":            with(map[string]any{"nonce": "n"}),
		"an ID token by its hash":                   with(map[string]any{"at_hash": "h"}),
		"a claim twice":                             w.compact(accessHeader, strings.Replace(mustJSON(t, good), `"sub":"alice"`, `"sub":"bob","sub":"alice"`, 1)),
		"an issuer twice":                           w.compact(accessHeader, strings.Replace(mustJSON(t, good), `{`, `{"iss":"https://evil.example",`, 1)),
		"a claim twice by an escape":                w.compact(accessHeader, strings.Replace(mustJSON(t, good), `"sub":"alice"`, `"\u0073ub":"bob","sub":"alice"`, 1)),
		"broken UTF-8":                              w.compact(accessHeader, strings.Replace(mustJSON(t, good), "alice", "\xff", 1)),
		"data behind the claims":                    w.compact(accessHeader, mustJSON(t, good)+"{}"),
		"a list of claims":                          w.compact(accessHeader, "["+mustJSON(t, good)+"]"),
		"deep claims":                               with(map[string]any{"x": deep(40)}),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := w.verify(text)
			if err == nil {
				t.Fatalf("accepted: %+v", got)
			}
			if broker.CodeOf(err) != broker.BadToken {
				t.Errorf("refused with the code %s: %v", broker.CodeOf(err), err)
			}
			if len(parts[2]) > 0 && strings.Contains(err.Error(), parts[2]) {
				t.Error("the error shows the signature")
			}
		})
	}
	if _, err := w.verify(strings.Join(parts, ".")); err != nil {
		t.Errorf("the good token that they were made of is refused: %v", err)
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func deep(n int) any {
	var v any = 1
	for range n {
		v = []any{v}
	}
	return v
}

func TestTimesWithinTheSkewAreAccepted(t *testing.T) {
	w := newWorld(t, nil)
	now := w.clock.Now()
	for name, change := range map[string]map[string]any{
		"just expired":             {"exp": now.Add(-29 * time.Second).Unix()},
		"issued in a moment":       {"iat": now.Add(29 * time.Second).Unix()},
		"valid in a moment":        {"nbf": now.Add(29 * time.Second).Unix()},
		"a fraction of a second":   {"exp": float64(now.Add(time.Hour).Unix()) + 0.5},
		"several audiences":        {"aud": []string{"a", "b"}},
		"no scope, groups or jti":  {"scope": nil, "groups": nil, "jti": nil},
		"groups that are one text": {"groups": "g"},
		"scopes in a list":         {"scope": []string{"a", "b"}},
	} {
		if _, err := w.verify(w.compact(accessHeader, claims(now, change))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// One ES256 signature has two spellings, and base64 and line breaks give more.
// Ours has exactly one. A foreign issuer may sign either way, so both of its
// signatures are accepted; they are one token to everything that is decided.
func TestSpellingsOfOneToken(t *testing.T) {
	w := newWorld(t, nil)
	now := w.clock.Now()
	ours, err := w.svc.Sign(context.Background(), ourClaims(now))
	if err != nil {
		t.Fatal(err)
	}
	theirs := w.compact(header(map[string]any{"alg": "ES256", "kid": "e"}), claims(now, nil))
	for name, tc := range map[string]struct {
		text string
		high bool // whether the other s is accepted
	}{"ours": {ours.Reveal(), false}, "theirs": {theirs, true}} {
		first, err := w.verify(tc.text)
		if err != nil {
			t.Fatal(name, err)
		}
		for spelling, text := range map[string]string{"other s": otherS(t, tc.text), "spare bits": spareBits(tc.text), "line break": tc.text[:10] + "\n" + tc.text[10:], "line break at the end": tc.text + "\n", "padding": tc.text + "=", "space": tc.text + " "} {
			got, err := w.verify(text)
			if spelling == "other s" && tc.high {
				if err != nil || broker.SessionID(got) != broker.SessionID(first) || got.ID != first.ID {
					t.Errorf("%s, %s: %v: not the same token to us", name, spelling, err)
				}
				continue
			}
			if err == nil {
				t.Errorf("%s: the spelling with %s is accepted", name, spelling)
			}
		}
	}
}

func otherS(t *testing.T, text string) string {
	t.Helper()
	i := strings.LastIndex(text, ".")
	sig, err := base64.RawURLEncoding.DecodeString(text[i+1:])
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).SetBytes(sig[32:])
	s.Sub(elliptic.P256().Params().N, s)
	return text[:i+1] + base64.RawURLEncoding.EncodeToString(append(sig[:32:32], s.FillBytes(make([]byte, 32))...))
}

// spareBits sets bits of the last letter that no byte uses.
func spareBits(text string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(text) - 1
	i := strings.IndexByte(alphabet, text[last])
	return text[:last] + string(alphabet[i|1])
}

func ourClaims(now time.Time) *broker.Claims {
	return &broker.Claims{
		Issuer: self, Subject: idp + "#alice", Audience: "https://mcp.test", ClientID: "desktop", ID: "o1",
		IssuedAt: now, Expires: now.Add(5 * time.Minute), Scope: []string{"files:read", "files:list"},
		Actors: []broker.Actor{{Issuer: self, Subject: "mcp"}, {Issuer: self, Subject: "desktop"}}, AuthTime: now.Add(-time.Hour),
		Groups: []string{"a\"b"}, Details: []byte(`[{"type":"mcp_tool_call","tool":"x"}]`),
		Stint: broker.StintClaim{Version: 1, Pos: "1.2", Policy: "p", Session: "s", Claims: map[string]string{"repository": "acme/web"}},
	}
}

func TestOurTokensReadBack(t *testing.T) {
	for _, alg := range []string{"ES256", "EdDSA"} {
		w := newWorld(t, nil)
		w.store = &memory{}
		var err error
		w.ring, err = OpenRing(context.Background(), RingConfig{Algorithm: alg, Retain: time.Hour, Now: w.clock.Now}, w.store)
		if err != nil {
			t.Fatal(err)
		}
		w.svc.ring = w.ring
		for range 20 { // of ES256, high and low signatures come up at random
			raw, err := w.svc.Sign(context.Background(), ourClaims(w.clock.Now()))
			if err != nil {
				t.Fatal(err)
			}
			got, err := w.verify(raw.Reveal())
			if err != nil {
				t.Fatal(alg, err)
			}
			if !got.Ours || got.Use != broker.AccessToken || got.Subject != idp+"#alice" || got.ClientID != "desktop" || fmt.Sprint(got.Scope) != "[files:read files:list]" {
				t.Fatalf("got %+v", got)
			}
			if fmt.Sprint(got.Actors) != "[{https://stint.test mcp} {https://stint.test desktop}]" || got.Groups[0] != `a"b` || got.Stint.Pos != "1.2" || got.Stint.Claims["repository"] != "acme/web" || string(got.Details) != `[{"type":"mcp_tool_call","tool":"x"}]` {
				t.Fatalf("got %+v %+v", got, got.Stint)
			}
			var jws *jose.JSONWebSignature // a second reading, by go-jose
			if jws, err = jose.ParseSignedCompact(raw.Reveal(), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg)}); err != nil {
				t.Fatal(err)
			}
			if jws.Signatures[0].Header.ExtraHeaders["typ"] != "at+jwt" {
				t.Errorf("typ: %v", jws.Signatures[0].Header.ExtraHeaders)
			}
		}
	}
}

func TestTokensOfOursOfAnotherKindAreRefused(t *testing.T) {
	w := newWorld(t, nil)
	now := w.clock.Now()
	key := w.ring.state.Load().keys[0]
	sign := func(typ, payload string) string {
		old := key.header
		defer func() { key.header = old }()
		key.header = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"`+typ+`","kid":"`+key.id+`"}`)) + "."
		text, err := w.ring.sign([]byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	body := func(change map[string]any) string {
		c := claims(now, map[string]any{"iss": self, "stint": map[string]any{"v": 1, "pos": "1.1"}})
		for k, v := range change {
			if c[k] = v; v == nil {
				delete(c, k)
			}
		}
		return mustJSON(t, c)
	}
	if _, err := w.verify(sign("at+jwt", body(nil))); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"another type":     sign("JWT", body(nil)),
		"no claim of ours": sign("at+jwt", body(map[string]any{"stint": nil})),
		"no jti":           sign("at+jwt", body(map[string]any{"jti": nil})),
		"no client":        sign("at+jwt", body(map[string]any{"client_id": nil})),
		"two audiences":    sign("at+jwt", body(map[string]any{"aud": []string{"a", "b"}})),
		"no subject":       sign("at+jwt", body(map[string]any{"sub": nil})),
	} {
		if _, err := w.verify(text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestWhatATokenIsGoesByItsType(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Issuers[0].Types = map[string][]string{"access_token": {"application/at+jwt"}, "id_token": {"JWT"}, "jwt": {"ci+jwt"}}
	})
	now := w.clock.Now()
	for typ, want := range map[any]broker.Use{"at+jwt": broker.AccessToken, "AT+JWT": broker.AccessToken, "application/at+jwt": broker.AccessToken, "JWT": broker.IDToken, nil: broker.IDToken, "ci+jwt": broker.OtherJWT} {
		got, err := w.verify(w.compact(header(map[string]any{"typ": typ}), claims(now, nil)))
		if err != nil || got.Use != want {
			t.Errorf("typ %v: %v, %v", typ, got, err)
		}
	}
	if got, err := w.verify(w.compact(header(map[string]any{"typ": "JWT"}), claims(now, map[string]any{"nonce": "n"}))); err != nil || got.Use != broker.IDToken {
		t.Error("an ID token with a nonce:", got, err)
	}
	if _, err := w.verify(w.compact(header(map[string]any{"typ": "ci+jwt"}), claims(now, map[string]any{"c_hash": "n"}))); err == nil {
		t.Error("an ID token passes for another")
	}
	// Without azp, an ID token's only audience is the client it was issued to, and so
	// is held to that client's ceiling. An access token's audience is no client.
	for typ, want := range map[string]string{"JWT": "desktop-at-idp", "at+jwt": ""} {
		got, err := w.verify(w.compact(header(map[string]any{"typ": typ}), claims(now, map[string]any{"client_id": nil, "aud": "desktop-at-idp"})))
		if err != nil || got.ClientID != want {
			t.Errorf("typ %s for one audience: client %q, %v", typ, got.ClientID, err)
		}
	}
	if got, err := w.verify(w.compact(header(map[string]any{"typ": "JWT"}), claims(now, map[string]any{"client_id": nil, "aud": []string{"a", "b"}}))); err != nil || got.ClientID != "" {
		t.Error("an ID token for two:", got, err)
	}
}

func TestClaimsOfOtherNames(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Issuers[0].SubjectClaim, c.Issuers[0].GroupsClaim, c.Issuers[0].ScopeClaim, c.Issuers[0].EmailClaim = "oid", "/realm_access/roles", "scp", "/a~1b"
	})
	got, err := w.verify(w.compact(accessHeader, claims(w.clock.Now(), map[string]any{
		"oid": "o-1", "realm_access": map[string]any{"roles": []string{"x", "y"}}, "scp": []string{"p"}, "a/b": "e@x", "groups": 7,
	})))
	if err != nil || got.Subject != "o-1" || fmt.Sprint(got.Groups, got.Scope)+got.Email != "[x y] [p]e@x" {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = w.verify(w.compact(accessHeader, claims(w.clock.Now(), map[string]any{"oid": "o-2", "realm_access": "none"})))
	if err != nil || got.Groups != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err = w.verify(w.compact(accessHeader, claims(w.clock.Now(), map[string]any{"realm_access": map[string]any{"roles": 7}}))); err == nil {
		t.Error("roles that are a number")
	}
}

func TestAssertions(t *testing.T) {
	w := newWorld(t, nil)
	now := w.clock.Now()
	head := map[string]any{"alg": "ES256", "kid": "c", "typ": "client-authentication+jwt"}
	body := func(change map[string]any) map[string]any {
		return claims(now, change)
	}
	base := map[string]any{"iss": "mcp", "sub": "mcp", "aud": self, "iat": nil}
	with := func(k string, v any) map[string]any {
		m := map[string]any{k: v}
		for n, x := range base {
			if n != k {
				m[n] = x
			}
		}
		return body(m)
	}
	assert := func(id, text string) (*broker.Token, error) {
		return w.svc.Assertion(context.Background(), id, secret.New(text))
	}
	for _, id := range []string{"", "mcp"} {
		got, err := assert(id, w.compact(head, body(base)))
		if err != nil || got.Subject != "mcp" || got.Type != "client-authentication+jwt" || got.Ours {
			t.Errorf("client %q: %+v, %v", id, got, err)
		}
	}
	for name, tc := range map[string]struct{ id, text string }{
		"a client without keys":       {"other", w.compact(head, with("sub", "other"))},
		"another client's name":       {"", w.compact(head, with("sub", "other"))},
		"another client's assertion":  {"mcp", w.compact(head, with("sub", "other"))},
		"the key of an issuer":        {"mcp", w.compact(map[string]any{"alg": "ES256", "kid": "e"}, body(base))},
		"an algorithm of another key": {"mcp", w.compact(map[string]any{"alg": "RS256", "kid": "c"}, body(base))},
		"a changed signature":         {"mcp", w.compact(head, body(base))[:200] + "AAAA"},
		"expired":                     {"mcp", w.compact(head, with("exp", now.Add(-time.Minute).Unix()))},
		"no expiry":                   {"mcp", w.compact(head, with("exp", nil))},
		"nothing":                     {"mcp", ""},
		"no claims":                   {"mcp", w.compact(head, "[]")},
	} {
		if got, err := assert(tc.id, tc.text); err == nil || broker.CodeOf(err) != broker.BadToken {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestKeySets(t *testing.T) {
	f := newForeign(t)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip("no small key can be made here:", err)
	}
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	algs := []string{"RS256", "ES256"}
	key := func(k any, id, alg string) jose.JSONWebKey { return jose.JSONWebKey{Key: k, KeyID: id, Algorithm: alg} }
	good := key(&f.rsa.PublicKey, "g", "RS256")
	raw := func(s string) []byte { return []byte(`{"keys":[` + s + `]}`) }
	one, _ := good.MarshalJSON()
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"no JSON":                           {[]byte("x"), "key set"},
		"no keys":                           {[]byte("{}"), "without a key"},
		"a small RSA key":                   {jwks(t, key(&small.PublicKey, "s", "RS256")), "1024 bits"},
		"a curve that no algorithm fits":    {jwks(t, key(&p384.PublicKey, "s", "")), "fits its type"},
		"an algorithm that is not accepted": {jwks(t, key(&f.rsa.PublicKey, "s", "RS512")), "not accepted"},
		"an algorithm of another type":      {jwks(t, key(&f.rsa.PublicKey, "s", "ES256")), "not accepted"},
		"a symmetric key":                   {raw(`{"kty":"oct","k":"AAAA","alg":"HS256"}`), "symmetric"},
		"a private key":                     {jwks(t, key(f.rsa, "s", "RS256")), "private"},
		"a key for encryption":              {raw(strings.Replace(string(one), `{`, `{"use":"enc",`, 1)), "use is"},
		"a key for other operations":        {raw(strings.Replace(string(one), `{`, `{"key_ops":["sign"],`, 1)), "key_ops"},
		"a key id of 300 bytes":             {raw(strings.Replace(string(one), `"g"`, `"`+strings.Repeat("g", 300)+`"`, 1)), "256 bytes"},
		"a key that is broken":              {raw(`{"kty":"RSA","n":"","e":""}`), "jwk"},
		"a key that is a text":              {raw(`"x"`), "fit here"},
		"two keys of one id":                {jwks(t, good, key(&f.ec.PublicKey, "g", "ES256")), "two keys"},
		"too many keys":                     {raw(strings.Repeat(string(one)+",", 100) + string(one)), "more than 100"},
		"too many bytes":                    {make([]byte, 600<<10), "bytes"},
	} {
		if _, err := ParseKeys(tc.data, algs, true); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, tc.want)
		}
	}
	if _, err := ParseKeys(jwks(t, key(&f.rsa.PublicKey, "a", "")), []string{"RS256", "PS256"}, true); err == nil || !strings.Contains(err.Error(), "several would fit") {
		t.Errorf("a key that two algorithms fit: %v", err)
	}
	// Leniently, what is of no use is left out, and of two keys with one id both.
	s, err := ParseKeys(jwks(t, good, key(&p384.PublicKey, "x", ""), key(&f.ec.PublicKey, "d", "ES256"), key(&f.rsa.PublicKey, "d", "RS256"), key(&f.ec.PublicKey, "d", "ES256")), algs, false)
	if err != nil || len(s.keys) != 1 || s.byID["d"] != nil || s.byID["g"] == nil {
		t.Errorf("got %+v, %v", s, err)
	}
	if s.find(header0("RS256", "")) == nil || s.find(header0("ES256", "")) != nil || s.find(header0("RS256", "x")) != nil {
		t.Error("find is wrong")
	}
	two, err := ParseKeys(jwks(t, good, key(&f.rsa.PublicKey, "h", "RS256")), algs, false)
	if err != nil || two.find(header0("RS256", "")) != nil {
		t.Error("of two keys one was guessed:", err)
	}
}

func header0(alg, kid string) joseHeader { return joseHeader{alg: alg, kid: kid} }

func TestBoundTokensAreAcceptedOfIssuersThatSaySo(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Issuers[0].BoundTokens = true })
	raw := w.compact(accessHeader, mustJSON(t, claims(w.clock.Now(), map[string]any{"cnf": map[string]any{"jkt": "x"}})))
	if _, err := w.verify(raw); err != nil {
		t.Error(err)
	}
}
