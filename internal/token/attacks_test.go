package token

import (
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
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

// A server of keys that sends a byte at a time, or nothing, holds up no request for
// longer than the wait, however many come.
func TestAttackSlowKeyServer(t *testing.T) {
	t.Parallel()
	for name, handle := range map[string]func(w http.ResponseWriter, release <-chan struct{}){
		"says nothing": func(_ http.ResponseWriter, release <-chan struct{}) { <-release },
		"a byte at a time": func(w http.ResponseWriter, release <-chan struct{}) {
			for {
				_, _ = w.Write([]byte(" "))
				w.(http.Flusher).Flush()
				select {
				case <-release:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRemote(t, false)
			release := make(chan struct{})
			t.Cleanup(func() { close(release) })
			r.serve(func(w http.ResponseWriter, _ *http.Request) { handle(w, release) })
			text := r.token("r")
			began := time.Now()
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if _, err := r.verify(text); broker.CodeOf(err) != broker.Unavailable {
						t.Errorf("got %v", err)
					}
				})
			}
			wg.Wait()
			if took := time.Since(began); took >= fetchTime { // which is when the fetch is given up
				t.Errorf("they were held up for %s", took)
			}
			if n := r.asked.Load(); n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

// While a server of keys is slow, and while it answers with rubbish, the keys that
// are known go on: nobody who has a good token waits.
func TestAttackKeyServerThatTurnsBad(t *testing.T) {
	t.Parallel()
	r := newRemote(t, false)
	if _, err := r.verify(r.token("r")); err != nil {
		t.Fatal(err)
	}
	for name, handle := range map[string]http.HandlerFunc{
		"rubbish":          func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"no keys":          func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[]}`)) },
		"a redirect":       func(w http.ResponseWriter, req *http.Request) { http.Redirect(w, req, req.URL.Path, http.StatusFound) },
		"a closed door":    func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) },
		"an unpacked bomb": bomb,
		"symmetric keys": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"keys":[{"kty":"oct","k":"AAAA","kid":"r","alg":"HS256"}]}`))
		},
		"keys of two texts": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(append(r.keys(), r.keys()...)) },
	} {
		r.serve(handle)
		r.clock.Move(maxFresh + minInterval)
		began := time.Now()
		text := r.compact(accessHeader, claims(r.clock.Now(), map[string]any{"iss": r.server.URL, "jti": name}))
		if _, err := r.verify(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took > waitTime {
			t.Errorf("%s: waited %s", name, took)
		}
		src := r.svc.issuers[r.server.URL].keys
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			src.mu.Lock()
			done, failure := src.running == nil, src.failure
			src.mu.Unlock()
			if done && failure != nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the fetch did not fail", name)
			}
		}
		r.publish(r.keys()) // and it is well again in between
		r.clock.Move(maxFresh + minInterval)
		if _, err := r.verify(r.compact(accessHeader, claims(r.clock.Now(), map[string]any{"iss": r.server.URL, "jti": name + " again"}))); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
		for deadline := time.Now().Add(30 * time.Second); r.svc.Ready()[r.server.URL] != ""; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after %s: %s", name, r.svc.Ready()[r.server.URL])
			}
		}
	}
}

// bomb answers with little that unpacks to 100 MB.
func bomb(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Encoding", "gzip")
	z := gzip.NewWriter(w)
	_, _ = z.Write([]byte(`{"keys":[],"x":"`))
	for range 100 {
		_, _ = z.Write([]byte(strings.Repeat("x", 1<<20)))
	}
	_ = z.Close()
}

// Of an answer without end no more is read than a set of keys may have.
func TestAttackKeysWithoutEnd(t *testing.T) {
	t.Parallel()
	r := newRemote(t, false)
	sent := make(chan int, 1)
	r.serve(func(w http.ResponseWriter, _ *http.Request) {
		n, piece := 0, []byte(strings.Repeat(" ", 64<<10))
		for n < 512<<20 {
			if _, err := w.Write(piece); err != nil {
				break
			}
			n += len(piece)
		}
		sent <- n
	})
	if _, err := r.verify(r.token("r")); broker.CodeOf(err) != broker.Unavailable || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
	if n := <-sent; n > 32<<20 { // what lies between us counts
		t.Errorf("%d bytes were sent", n)
	}
}

// A certificate that nobody vouches for is no issuer's.
func TestAttackKeyServerOfAStranger(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1) }))
	t.Cleanup(s.Close)
	w := newWorld(t, func(c *Config) {
		c.Issuers[0].JWKSURI, c.IssuerKeys = s.URL, nil
	})
	if _, err := w.verify(w.compact(accessHeader, claims(w.clock.Now(), nil))); broker.CodeOf(err) != broker.Unavailable || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v", err)
	}
	if asked.Load() != 0 {
		t.Error("it was asked")
	}
}

// Keys belong to their issuer. An id that two issuers use, and a key that one of
// them has, say nothing for the other.
func TestAttackKeysOfAnotherIssuer(t *testing.T) {
	t.Parallel()
	const second = "https://second.test"
	other := newForeign(t)
	w := newWorld(t, func(c *Config) {
		c.Issuers = append(c.Issuers, Issuer{ID: second, Algorithms: []string{"RS256", "ES256"}})
		c.IssuerKeys[second] = jwks(t, // the same ids; one more, and one the other way round
			jose.JSONWebKey{Key: &other.rsa.PublicKey, KeyID: "r", Algorithm: "RS256"}, jose.JSONWebKey{Key: &other.ec.PublicKey, KeyID: "e", Algorithm: "ES256"},
			jose.JSONWebKey{Key: &other.client.PublicKey, KeyID: "only", Algorithm: "ES256"})
	})
	now := w.clock.Now()
	signers := map[string]*foreign{idp: w.foreign, second: other}
	for iss, own := range signers {
		for who, by := range signers {
			for _, kid := range []string{"r", "e"} {
				head := header(map[string]any{"kid": kid, "alg": map[string]string{"r": "RS256", "e": "ES256"}[kid]})
				_, err := w.verify(by.compact(head, claims(now, map[string]any{"iss": iss})))
				if good := own == by; good != (err == nil) {
					t.Errorf("a token of %s by %s's key %s: %v", iss, who, kid, err)
				}
			}
		}
	}
	if _, err := w.verify(w.compact(header(map[string]any{"kid": "only", "alg": "ES256"}), claims(now, nil))); err == nil {
		t.Error("a key id that the other issuer alone has")
	}
	// Nor do the keys of clients, or ours, sign for an issuer, and the other way round.
	if _, err := w.verify(w.compact(header(map[string]any{"kid": "c", "alg": "ES256"}), claims(now, nil))); err == nil {
		t.Error("a client's key signs for an issuer")
	}
	own := w.ring.state.Load().keys[0].id
	if _, err := w.verify(w.compact(header(map[string]any{"kid": own, "alg": "ES256"}), claims(now, map[string]any{"iss": self}))); err == nil {
		t.Error("an issuer's key signs for us by our key's name")
	}
	if _, err := w.svc.Assertion(context.Background(), "mcp", secret.New(w.compact(header(map[string]any{"kid": "e", "alg": "ES256"}), claims(now, map[string]any{"iss": "mcp", "sub": "mcp"})))); err == nil {
		t.Error("an issuer's key signs for a client")
	}
}

// A key without alg is for the one algorithm of its issuer that fits it, and no
// other of the same family; what fits none is no key at all.
func TestAttackKeysThatSayNoAlgorithm(t *testing.T) {
	t.Parallel()
	large, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := newForeign(t)
	set, err := ParseKeys(jwks(t, jose.JSONWebKey{Key: &f.rsa.PublicKey, KeyID: "r"}, jose.JSONWebKey{Key: &large.PublicKey, KeyID: "e"}), []string{"RS256", "ES256"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if k := set.find(header0("RS256", "r")); k == nil || k.alg != "RS256" {
		t.Errorf("got %+v", k)
	}
	if k := set.find(header0("ES256", "e")); k != nil {
		t.Errorf("a key of P-384 for ES256: %+v", k)
	}
	for _, alg := range []string{"PS256", "RS384", "RS512", "HS256", "none", ""} {
		j, err := parseJWS(f.compact(map[string]any{"alg": alg, "kid": "r"}, "{}"))
		if err != nil {
			continue
		}
		if k := set.find(j.joseHeader); k != nil && j.verify(k) == nil {
			t.Errorf("it verifies by %q", alg)
		}
	}
}

// Waiting for a slow server of keys holds up the server's own work: of those who name
// an unknown key only so many wait, and the others are told at once to come again.
func TestAttackManyWaitForASlowKeyServer(t *testing.T) {
	t.Parallel()
	r := newRemote(t, false)
	if _, err := r.verify(r.token("r")); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	r.serve(func(http.ResponseWriter, *http.Request) { <-hold; panic(http.ErrAbortHandler) })
	r.clock.Move(minInterval + time.Second)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(hold)
	src := r.svc.issuers[r.server.URL].keys
	unknown := func() joseHeader { return joseHeader{alg: "RS256", kid: "unknown"} }
	for range maxWaiting {
		wg.Go(func() { _, _, _ = src.find(t.Context(), unknown()) })
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		src.mu.Lock()
		n := src.waiting
		src.mu.Unlock()
		if n == maxWaiting {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d wait", n)
		}
	}
	if _, _, err := src.find(t.Context(), unknown()); !errors.Is(err, errKeys) || !strings.Contains(err.Error(), "too many wait") {
		t.Errorf("one more: %v", err)
	}
}
