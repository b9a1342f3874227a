package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
)

const (
	self = "https://stint.test"
	idp  = "https://idp.test"
)

// newClock returns a clock that stands at noon.
func newClock() *testbed.Clock {
	return testbed.NewClock(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
}

// memory is a key store that keeps what it is given.
type memory struct {
	mu      sync.Mutex
	doc     secret.String
	version int
}

func (m *memory) LoadKeys(context.Context) (secret.String, int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.version == 0 {
		return secret.String{}, 0, fmt.Errorf("keys: %w", broker.ErrNotFound)
	}
	return m.doc, m.version, nil
}

func (m *memory) SaveKeys(_ context.Context, doc secret.String, version int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if version != m.version {
		return fmt.Errorf("keys: %w", broker.ErrConflict)
	}
	m.doc, m.version = doc, version+1
	return nil
}

// foreign signs tokens of another issuer.
type foreign struct {
	t      testing.TB
	rsa    *rsa.PrivateKey
	ec     *ecdsa.PrivateKey
	client *ecdsa.PrivateKey
}

func newForeign(t testing.TB) *foreign {
	t.Helper()
	f := &foreign{t: t}
	var err error
	if f.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	if f.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if f.client, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	return f
}

func jwks(t testing.TB, keys ...jose.JSONWebKey) []byte {
	t.Helper()
	data, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (f *foreign) keys() []byte {
	return jwks(f.t,
		jose.JSONWebKey{Key: &f.rsa.PublicKey, KeyID: "r", Algorithm: "RS256", Use: "sig"},
		jose.JSONWebKey{Key: &f.ec.PublicKey, KeyID: "e", Algorithm: "ES256", Use: "sig"})
}

// compact signs by hand, so that anything can be signed.
func (f *foreign) compact(header map[string]any, payload any) string {
	f.t.Helper()
	text, ok := payload.(string)
	if !ok {
		data, err := json.Marshal(payload)
		if err != nil {
			f.t.Fatal(err)
		}
		text = string(data)
	}
	head, err := json.Marshal(header)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.sign(base64.RawURLEncoding.EncodeToString(head)+"."+base64.RawURLEncoding.EncodeToString([]byte(text)), header)
}

func (f *foreign) sign(input string, header map[string]any) string {
	f.t.Helper()
	digest := crypto.SHA256.New()
	digest.Write([]byte(input))
	sum := digest.Sum(nil)
	var sig []byte
	if alg, _ := header["alg"].(string); strings.HasPrefix(alg, "ES") {
		key := f.ec
		if header["kid"] == "c" {
			key = f.client
		}
		r, s, err := ecdsa.Sign(rand.Reader, key, sum)
		if err != nil {
			f.t.Fatal(err)
		}
		sig = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	} else {
		var err error
		if sig, err = rsa.SignPKCS1v15(rand.Reader, f.rsa, crypto.SHA256, sum); err != nil {
			f.t.Fatal(err)
		}
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// claims are those of a good access token, with changes; nil removes one.
func claims(now time.Time, change map[string]any) map[string]any {
	c := map[string]any{
		"iss": idp, "sub": "alice", "aud": "https://stint.test", "jti": "t1", "client_id": "desktop", "sid": "s1",
		"iat": now.Add(-time.Minute).Unix(), "exp": now.Add(time.Hour).Unix(), "scope": "a b", "groups": []string{"g"},
	}
	maps.Copy(c, change)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

var accessHeader = map[string]any{"alg": "RS256", "kid": "r", "typ": "at+jwt"}

func header(change map[string]any) map[string]any {
	h := maps.Clone(accessHeader)
	maps.Copy(h, change)
	maps.DeleteFunc(h, func(_ string, v any) bool { return v == nil })
	return h
}

// world is a service with one foreign issuer, whose keys are fixed.
type world struct {
	*foreign
	clock *testbed.Clock
	store *memory
	ring  *Ring
	svc   *Service
}

func newWorld(t testing.TB, change func(*Config)) *world {
	t.Helper()
	w := &world{foreign: newForeign(t), clock: newClock(), store: &memory{}}
	var err error
	w.ring, err = OpenRing(context.Background(), RingConfig{Algorithm: "ES256", Overlap: 10 * time.Minute, Retain: time.Hour, Now: w.clock.Now}, w.store)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Self: self, Skew: 30 * time.Second, CacheSize: 16, Now: w.clock.Now,
		Issuers:    []Issuer{{ID: idp, Algorithms: []string{"RS256", "ES256"}, Claims: []string{"repository", "run", "ok", "nested", "sub"}}},
		IssuerKeys: map[string][]byte{idp: w.keys()},
		Clients:    map[string]ClientKeys{"mcp": {JWKS: jwks(t, jose.JSONWebKey{Key: &w.client.PublicKey, KeyID: "c", Algorithm: "ES256"})}},
	}
	if change != nil {
		change(&cfg)
	}
	if w.svc, err = New(cfg, w.ring, http.DefaultClient); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) verify(text string) (*broker.Token, error) {
	return w.svc.Verify(context.Background(), secret.New(text))
}

// server serves a JWK set and counts how often it is asked.
func server(t testing.TB, handle http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(handle)
	t.Cleanup(s.Close)
	return s
}
