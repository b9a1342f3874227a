package api_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// issuer is somebody who signs tokens.
type issuer struct {
	url string
	key *ecdsa.PrivateKey
}

func newIssuer(t testing.TB, url string) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{url, key}
}

func (i *issuer) jwks(t testing.TB) []byte {
	t.Helper()
	data, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &i.key.PublicKey, KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// sign makes a JWT of a type ("": none) from claims.
func (i *issuer) sign(t testing.TB, typ string, claims map[string]any) string {
	t.Helper()
	o := (&jose.SignerOptions{}).WithHeader("kid", "k")
	if typ != "" {
		o = o.WithType(jose.ContentType(typ))
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.key}, o)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// token returns a token of an issuer: alice's, with changes; nil removes a
// claim, and of the claims that are times a text such as "+5m" is from now.
func (w *world) token(who, typ string, change map[string]any) string {
	w.Helper()
	i := map[string]*issuer{"idp": w.idp, "ci": w.ci, "down": {"https://down.test", w.idp.key}, "stranger": {"https://stranger.test", w.ci.key}}[who]
	if i == nil {
		w.Fatalf("there is no issuer %q", who)
	}
	claims := map[string]any{
		"iss": i.url, "sub": "alice", "aud": w.self, "jti": rand.Text(), "client_id": "desktop-at-idp", "sid": "sid-1",
		"iat": "-1m", "exp": "+1h", "auth_time": "-1h", "groups": []string{"engineering"}, "email": "alice@acme.test",
	}
	return i.sign(w, typ, w.changed(claims, change))
}

// assertion returns a client assertion of the gateway, with changes.
func (w *world) assertion(change map[string]any) string {
	w.Helper()
	typ := "client-authentication+jwt"
	if t, ok := change["typ"].(string); ok {
		typ = t
	}
	return w.gateway.sign(w, typ, w.changed(map[string]any{
		"iss": "gateway", "sub": "gateway", "aud": w.self, "jti": rand.Text(), "iat": "-1s", "exp": "+1m",
	}, change))
}

func (w *world) changed(claims, change map[string]any) map[string]any {
	for name, v := range change {
		if claims[name] = v; v == nil {
			delete(claims, name)
		}
	}
	delete(claims, "typ")
	for _, name := range []string{"iat", "exp", "auth_time", "nbf"} {
		if text, ok := claims[name].(string); ok {
			d, err := time.ParseDuration(text)
			if err != nil {
				w.Fatal(err)
			}
			claims[name] = w.clock.Now().Add(d).Unix()
		}
	}
	return claims
}
