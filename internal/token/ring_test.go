package token

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

func TestRotation(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	sign := func() string {
		raw, err := w.svc.Sign(ctx, ourClaims(w.clock.Now()))
		if err != nil {
			t.Fatal(err)
		}
		return raw.Reveal()
	}
	first := sign()
	info, err := w.ring.Rotate(ctx, false)
	if err != nil || info.State != "next" {
		t.Fatal(info, err)
	}
	if kid(t, sign()) != kid(t, first) {
		t.Error("the new key signs before others can know it")
	}
	var published struct {
		Keys []map[string]any `json:"keys"`
	}
	if err := json.Unmarshal(w.ring.JWKS(), &published); err != nil || len(published.Keys) != 2 {
		t.Fatalf("published: %s, %v", w.ring.JWKS(), err)
	}
	for _, k := range published.Keys {
		if k["d"] != nil || k["alg"] != "ES256" || k["use"] != "sig" || k["kid"] == "" {
			t.Errorf("published: %v", k)
		}
	}
	w.clock.Move(10 * time.Minute)
	second := sign()
	if kid(t, second) != info.ID {
		t.Error("the new key does not sign after the overlap")
	}
	if _, err := w.verify(first); err == nil {
		t.Error("the first token ran out five minutes ago")
	}
	states := w.ring.Keys()
	if states[0].State != "retired" || states[1].State != "active" || !states[0].Until.Equal(w.clock.Now().Add(time.Hour)) {
		t.Errorf("states: %+v", states)
	}
	old, _ := w.ring.find(joseHeader{kid: kid(t, first)}, w.clock.Now())
	if old == nil {
		t.Error("the old key does not verify what is still alive")
	}
	w.clock.Move(time.Hour)
	if k, _ := w.ring.find(joseHeader{kid: kid(t, first)}, w.clock.Now()); k != nil {
		t.Error("the old key verifies forever")
	}
	at, err := w.ring.Rotate(ctx, true)
	if err != nil || at.State != "active" {
		t.Fatal(at, err)
	}
	if len(w.ring.Keys()) != 2 { // the second has only just retired
		t.Errorf("keys of which nothing is alive are kept: %+v", w.ring.Keys())
	}
}

func kid(t *testing.T, text string) string {
	t.Helper()
	j, err := parseJWS(text)
	if err != nil {
		t.Fatal(err)
	}
	return j.kid
}

func TestReplicasAgreeOnKeys(t *testing.T) {
	store, c := &memory{}, newClock()
	cfg := RingConfig{Algorithm: "ES256", Overlap: time.Minute, Retain: time.Hour, Now: c.Now}
	rings := make([]*Ring, 8)
	var wg sync.WaitGroup
	for i := range rings {
		wg.Go(func() {
			var err error
			if rings[i], err = OpenRing(context.Background(), cfg, store); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, r := range rings {
		if string(r.JWKS()) != string(rings[0].JWKS()) {
			t.Fatal("two replicas have different keys")
		}
	}
	for _, r := range rings { // all at once
		wg.Go(func() {
			if _, err := r.Rotate(context.Background(), false); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, r := range rings {
		if err := r.Reload(context.Background()); err != nil {
			t.Fatal(err)
		}
		if len(r.Keys()) != 9 || string(r.JWKS()) != string(rings[0].JWKS()) {
			t.Errorf("%d keys", len(r.Keys()))
		}
	}
}

// A change that fails brings what others changed all the same.
func TestAFailedChangeBringsTheNews(t *testing.T) {
	store, c := &memory{}, newClock()
	cfg := RingConfig{Algorithm: "ES256", Retain: time.Hour, Now: c.Now}
	var rings [2]*Ring
	for i := range rings {
		var err error
		if rings[i], err = OpenRing(context.Background(), cfg, store); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := rings[0].Rotate(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	if _, err := rings[1].Revoke(context.Background(), "unknown"); err == nil {
		t.Error("a key that is not there was revoked")
	}
	if n := len(rings[1].Keys()); n != 2 {
		t.Errorf("%d keys", n)
	}
}

func TestDocumentsOfKeysThatCannotBe(t *testing.T) {
	c := newClock()
	cfg := RingConfig{Algorithm: "ES256", Retain: time.Hour, Now: c.Now}
	for name, doc := range map[string]string{
		"no JSON":            "x",
		"another version":    `{"v":2,"keys":[{"created":1,"active":1,"jwk":{}}]}`,
		"no keys":            `{"v":1,"keys":[]}`,
		"a key that is none": `{"v":1,"keys":[{"created":1,"active":1,"jwk":{"kty":"x"}}]}`,
		"a public key":       `{"v":1,"keys":[{"created":1,"active":1,"jwk":{"kty":"EC","crv":"P-256","x":"04N0xi21hshyvBp7I167sbE_bXqyqkAPfefdklMO7wY","y":"UI8exy-C06a7DUnjIdENkxeFtHM4-l_41LqEw9nVgmw"}}]}`,
	} {
		store := &memory{doc: secret.New(doc), version: 1}
		if _, err := OpenRing(context.Background(), cfg, store); err == nil {
			t.Errorf("%s: opened", name)
		} else if strings.Contains(err.Error(), doc) && len(doc) > 1 {
			t.Errorf("%s: the error shows the document", name)
		}
	}
	for name, bad := range map[string]RingConfig{
		"no algorithm": {Retain: 1, Now: c.Now}, "RS256": {Algorithm: "RS256", Retain: 1, Now: c.Now},
		"nothing retained": {Algorithm: "ES256", Now: c.Now}, "no clock": {Algorithm: "ES256", Retain: 1},
	} {
		if _, err := OpenRing(context.Background(), bad, &memory{}); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func TestTheCacheRemembersSignaturesOnly(t *testing.T) {
	w := newWorld(t, nil)
	text := w.compact(accessHeader, claims(w.clock.Now(), nil))
	first, err := w.verify(text)
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.verify(text)
	if err != nil || again != first {
		t.Error("a token that was just verified is verified again:", err)
	}
	w.clock.Move(time.Hour) // its expiry, skew left out
	if got, err := w.verify(text); err != nil || got == first {
		t.Errorf("within the skew it is looked at again: %v", err)
	}
	w.clock.Move(time.Minute)
	if _, err := w.verify(text); err == nil {
		t.Error("a token lives longer in the cache than by itself")
	}
	for i := range 100 {
		if _, err := w.verify(w.compact(accessHeader, claims(w.clock.Now(), map[string]any{"jti": string(rune('a' + i%26)), "x": i}))); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(w.svc.cache.known); n != 16 || w.svc.cache.order.Len() != 16 {
		t.Errorf("%d tokens remembered, 16 are allowed", n)
	}
}

func TestConfigurationsThatCannotBe(t *testing.T) {
	for name, i := range map[string]Issuer{
		"no algorithms":          {},
		"alg none":               {Algorithms: []string{"none"}},
		"HS256":                  {Algorithms: []string{"HS256"}},
		"two sources of keys":    {Algorithms: []string{"ES256"}, JWKSURI: "https://x", JWKSFile: "y"},
		"a use that is none":     {Algorithms: []string{"ES256"}, Types: map[string][]string{"saml": {"x"}}},
		"a type of two meanings": {Algorithms: []string{"ES256"}, Types: map[string][]string{"access_token": {"JWT"}, "id_token": {"application/jwt"}}},
	} {
		if err := i.Check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	w := newWorld(t, nil)
	if _, err := New(Config{}, w.ring, nil); err == nil {
		t.Error("a service of nothing")
	}
	if broker.CodeOf(keyError(errKeys)) != broker.Unavailable {
		t.Error("keys that cannot be had are a bad token")
	}
}

func FuzzVerify(f *testing.F) {
	w := newWorld(f, nil)
	good := w.compact(accessHeader, claims(w.clock.Now(), nil))
	ours, err := w.svc.Sign(context.Background(), ourClaims(w.clock.Now()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(ours.Reveal())
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := w.verify(text)
		if err == nil && text != good && text != ours.Reveal() {
			t.Fatalf("accepted a token that nobody signed: %+v", got)
		}
		if err != nil && broker.CodeOf(err) != broker.BadToken {
			t.Fatalf("refused with %v", err)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte(`{"alg":"RS256","kid":"r","typ":"at+jwt"}`))
	f.Add([]byte(`{"alg":"none","crit":["x"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := parseHeader(data)
		if err == nil && (h.alg == "" || len(h.kid) > 256 || len(h.typ) > 256 || strings.Contains(string(data), `"crit"`) && json.Valid(data) && hasTop(data, "crit")) {
			t.Fatalf("accepted %s as %+v", data, h)
		}
	})
}

func hasTop(data []byte, name string) bool {
	var m map[string]json.RawMessage
	return json.Unmarshal(data, &m) == nil && m[name] != nil
}

func BenchmarkVerify(b *testing.B) {
	w := newWorld(b, func(c *Config) { c.CacheSize = 0 })
	text := secret.New(w.compact(accessHeader, claims(time.Now(), nil)))
	w.clock.Move(time.Until(w.clock.Now()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.svc.Verify(context.Background(), text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	w := newWorld(b, nil)
	c := ourClaims(time.Now())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.svc.Sign(context.Background(), c); err != nil {
			b.Fatal(err)
		}
	}
}
