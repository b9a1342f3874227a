package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// remote is a world whose issuer publishes its keys, and may misbehave.
type remote struct {
	*world
	server *httptest.Server
	asked  atomic.Int64
	handle atomic.Pointer[http.HandlerFunc]
}

func newRemote(t *testing.T, discovery bool) *remote {
	t.Helper()
	r := &remote{}
	r.server = server(t, func(w http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, "/keys") {
			r.asked.Add(1)
		}
		(*r.handle.Load())(w, req)
	})
	r.world = newWorld(t, func(c *Config) {
		c.Issuers[0].ID = r.server.URL
		c.IssuerKeys = nil
		if !discovery {
			c.Issuers[0].JWKSURI = r.server.URL + "/keys"
		}
	})
	r.publish(r.keys())
	return r
}

// publish serves metadata and these keys.
func (r *remote) publish(keys []byte) {
	r.serve(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/.well-known/openid-configuration":
			_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, r.server.URL, r.server.URL+"/keys")
		case "/keys":
			_, _ = w.Write(keys)
		default:
			http.NotFound(w, req)
		}
	})
}

func (r *remote) serve(h http.HandlerFunc) { r.handle.Store(&h) }

func (r *remote) token(kid string) string {
	return r.compact(header(map[string]any{"kid": kid}), claims(r.clock.Now(), map[string]any{"iss": r.server.URL, "jti": kid}))
}

func TestKeysAreFoundByDiscovery(t *testing.T) {
	r := newRemote(t, true)
	if _, err := r.verify(r.token("r")); err != nil {
		t.Fatal(err)
	}
	if r.svc.Ready()[r.server.URL] != "" {
		t.Error(r.svc.Ready())
	}
}

func TestMetadataThatCannotBeTrusted(t *testing.T) {
	for name, body := range map[string]string{
		"of another issuer":         `{"issuer":"https://evil.example","jwks_uri":"%[1]s/keys"}`,
		"with a slash behind":       `{"issuer":"%[1]s/","jwks_uri":"%[1]s/keys"}`,
		"without an issuer":         `{"jwks_uri":"%[1]s/keys"}`,
		"with an issuer twice":      `{"issuer":"x","issuer":"%[1]s","jwks_uri":"%[1]s/keys"}`,
		"without keys":              `{"issuer":"%[1]s"}`,
		"with keys in a file":       `{"issuer":"%[1]s","jwks_uri":"file:///etc/passwd"}`,
		"that is no JSON":           `<html>`,
		"that is longer than it is": `{"issuer":"%[1]s","jwks_uri":"%[1]s/keys","x":"` + strings.Repeat("x", 300<<10) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRemote(t, true)
			r.serve(func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/keys" {
					_, _ = w.Write(r.keys())
					return
				}
				_, _ = fmt.Fprintf(w, body, r.server.URL)
			})
			_, err := r.verify(r.token("r"))
			if broker.CodeOf(err) != broker.Unavailable {
				t.Errorf("got %v", err)
			}
			if r.svc.Ready()[r.server.URL] == "" {
				t.Error("nothing is said of the issuer")
			}
		})
	}
}

func TestADeadEndpointIsAskedOnceInAWhile(t *testing.T) {
	r := newRemote(t, false)
	r.serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	for range 20 {
		if _, err := r.verify(r.token("r")); broker.CodeOf(err) != broker.Unavailable {
			t.Fatal(err)
		}
	}
	if n := r.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	r.publish(r.keys())
	r.clock.Move(minInterval + time.Second)
	if _, err := r.verify(r.token("r")); err != nil {
		t.Errorf("after it came back: %v", err)
	}
}

func TestARequestWaitsOnlySoLong(t *testing.T) {
	r := newRemote(t, false)
	release := make(chan struct{})
	r.serve(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		_, _ = w.Write(r.keys())
	})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.svc.Verify(ctx, secret.New(r.token("r"))); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("got %v", err)
	}
	close(release)
	if _, err := r.verify(r.token("r")); err != nil {
		t.Errorf("once it answers: %v", err)
	}
}

func TestManyRequestsMakeOneFetch(t *testing.T) {
	r := newRemote(t, false)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := r.verify(r.token("r")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := r.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestUnknownKeyIDsDoNotMakeFetches(t *testing.T) {
	r := newRemote(t, false)
	if _, err := r.verify(r.token("r")); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if _, err := r.verify(r.token(fmt.Sprint("random", i))); broker.CodeOf(err) != broker.BadToken {
			t.Fatal(err)
		}
	}
	if n := r.asked.Load(); n > 1 {
		t.Errorf("asked %d times within the interval", n)
	}
	r.clock.Move(minInterval + time.Second)
	for range 20 {
		if _, err := r.verify(r.token("random0")); broker.CodeOf(err) != broker.BadToken {
			t.Fatal(err)
		}
	}
	if n := r.asked.Load(); n > 2 {
		t.Errorf("asked %d times for one unknown key", n)
	}
	for i := range 2 * maxUnknown {
		r.clock.Move(minInterval + time.Second)
		if _, err := r.verify(r.token(fmt.Sprint("more", i))); broker.CodeOf(err) != broker.BadToken {
			t.Fatal(err)
		}
		if i == 50 {
			break // each is a fetch: enough
		}
	}
}

func TestANewKeyIsFoundWithoutARestart(t *testing.T) {
	r := newRemote(t, false)
	if _, err := r.verify(r.token("r")); err != nil {
		t.Fatal(err)
	}
	r.publish(jwks(t, jose.JSONWebKey{Key: &r.rsa.PublicKey, KeyID: "new", Algorithm: "RS256"}))
	r.clock.Move(minInterval + time.Second)
	if _, err := r.verify(r.token("new")); err != nil {
		t.Fatal(err)
	}
	// And the old one is gone, also from what was remembered.
	if _, err := r.verify(r.token("r")); err == nil {
		t.Error("a key that was withdrawn still counts")
	}
}

func TestAWithdrawnKeyIsForgottenByTheCache(t *testing.T) {
	r := newRemote(t, false)
	text := r.token("r")
	if _, err := r.verify(text); err != nil {
		t.Fatal(err)
	}
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	r.publish(jwks(t, jose.JSONWebKey{Key: &other.PublicKey, KeyID: "r2", Algorithm: "ES256"}))
	r.clock.Move(maxFresh)
	deadline := time.Now().Add(30 * time.Second)
	text = r.compact(accessHeader, claims(r.clock.Now(), map[string]any{"iss": r.server.URL}))
	for { // the renewal is in the background
		if _, err := r.verify(text); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a token in constant use keeps its old key alive")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestKeysAreUsedForAWhileWhenTheyCannotBeRenewed(t *testing.T) {
	r := newRemote(t, false)
	if _, err := r.verify(r.token("r")); err != nil {
		t.Fatal(err)
	}
	r.serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	r.clock.Move(staleFor - time.Minute)
	if _, err := r.verify(r.token("r")); err != nil {
		t.Errorf("within the window: %v", err)
	}
	r.clock.Move(2 * time.Minute)
	if _, err := r.verify(r.token("r")); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("beyond it: %v", err)
	}
}

func TestKeySetsThatAreTooMuch(t *testing.T) {
	for name, handle := range map[string]http.HandlerFunc{
		"10 MB": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"keys":[],"x":"` + strings.Repeat("x", 10<<20) + `"}`))
		},
		"10,000 keys": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"keys":[` + strings.Repeat(`{"kty":"x"},`, 10000) + `{}]}`))
		},
		"no content": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"a redirect to nowhere": func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, "http://127.0.0.1:1/", http.StatusFound)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRemote(t, false)
			r.serve(handle)
			if _, err := r.verify(r.token("r")); broker.CodeOf(err) != broker.Unavailable {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestFreshness(t *testing.T) {
	for control, want := range map[string]time.Duration{
		"": minFresh, "max-age=1": minFresh, "public, max-age=1200": 20 * time.Minute, "max-age=999999": maxFresh, "Max-Age=x": minFresh, "no-store": minFresh,
	} {
		if got := freshness(control); got != want {
			t.Errorf("%q: %s", control, got)
		}
	}
}

func TestIssuersWithPaths(t *testing.T) {
	var paths []string
	s := server(t, func(w http.ResponseWriter, req *http.Request) {
		paths = append(paths, req.URL.Path)
		http.NotFound(w, req)
	})
	src := &source{issuer: s.URL + "/realms/acme", algs: []string{"RS256"}, client: s.Client(), now: time.Now}
	if _, err := src.discover(context.Background()); err == nil {
		t.Fatal("found nowhere")
	}
	if got := strings.Join(paths, " "); got != "/realms/acme/.well-known/openid-configuration /.well-known/oauth-authorization-server/realms/acme" {
		t.Errorf("looked at %s", got)
	}
	if checkJWKSURI("http://x/keys", "https") == nil || checkJWKSURI("https://x/keys", "https") != nil || checkJWKSURI("gopher://x", "http") == nil {
		t.Error("addresses of keys are held to the wrong scheme")
	}
}

func TestKeysOfClientsMayBeFetched(t *testing.T) {
	f := newForeign(t)
	s := server(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(jwks(t, jose.JSONWebKey{Key: &f.client.PublicKey, KeyID: "c", Algorithm: "ES256"}))
	})
	w := newWorld(t, func(c *Config) { c.Clients = map[string]ClientKeys{"mcp": {JWKSURI: s.URL}} })
	w.client = f.client
	text := w.compact(map[string]any{"alg": "ES256", "kid": "c"}, claims(w.clock.Now(), map[string]any{"iss": "mcp", "sub": "mcp"}))
	if _, err := w.svc.Assertion(context.Background(), "mcp", secret.New(text)); err != nil {
		t.Error(err)
	}
	s.Close()
	w = newWorld(t, func(c *Config) { c.Clients = map[string]ClientKeys{"mcp": {JWKSURI: s.URL}} })
	if _, err := w.svc.Assertion(context.Background(), "mcp", secret.New(text)); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("keys that cannot be had: %v", err)
	}
}
