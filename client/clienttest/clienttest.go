// Package clienttest is a Stint for the tests of an MCP server. It runs within the
// test, signs tokens, and refuses what the real one refuses, in the same order and
// words of the protocol; the suite of this module runs against both. It decides by a
// table, where the real one has mappings: it is no place to test policy.
package clienttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/client"
)

// Config says what the broker knows.
type Config struct {
	// Resource is the MCP server under test; empty: https://mcp.test/mcp.
	Resource string
	// Scopes are those of what the server may ask for, by resource. Its own are at
	// Resource.
	Scopes map[string][]string
	// Tools are the scopes that a call of a tool needs, by resource and tool.
	Tools map[string]map[string][]string
	// Documents are the credentials that are no access tokens, by resource: what is
	// vended there.
	Documents map[string]json.RawMessage
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Broker is a Stint for one test.
type Broker struct {
	cfg    Config
	server *httptest.Server
	key    *ecdsa.PrivateKey
	secret string

	mu      sync.Mutex
	used    map[string]bool // jti of tokens for one call
	revoked map[string]bool // jti, or lease
	parent  map[string]string
	leases  map[string]bool // that were given out
	fail    []answer
	calls   []Call
}

// Call is a request for a credential that was granted.
type Call struct {
	Subject, Resource, Tool string
	Scopes                  []string
	Arguments               json.RawMessage
	Once                    bool
}

const (
	clientID = "server-under-test"
	lifetime = 5 * time.Minute
)

// Start starts a broker, which ends with the test.
func Start(t testing.TB, cfg Config) *Broker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Resource == "" {
		cfg.Resource = "https://mcp.test/mcp"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	b := &Broker{
		cfg: cfg, key: key, secret: rand.Text(),
		used: make(map[string]bool), revoked: make(map[string]bool), parent: make(map[string]string), leases: make(map[string]bool),
	}
	b.server = httptest.NewServer(b.routes())
	t.Cleanup(b.server.Close)
	return b
}

// Client returns the configuration of the server under test.
func (b *Broker) Client() client.Config {
	return client.Config{
		Issuer: b.server.URL, Resource: b.cfg.Resource, ID: clientID, Secret: client.NewSecret(b.secret), Now: b.cfg.Now,
	}
}

// TokenOptions say what a caller's token is.
type TokenOptions struct {
	Subject string // empty: https://idp.test#alice
	Scopes  []string
	// Resource is whom it is for; empty: the server under test.
	Resource string
	Tool     string
	Once     bool
	// Expires is when it ends; zero: in five minutes.
	Expires time.Time
}

// Token makes a token as a caller shows it.
func (b *Broker) Token(o TokenOptions) string {
	if o.Subject == "" {
		o.Subject = "https://idp.test#alice"
	}
	if o.Resource == "" {
		o.Resource = b.cfg.Resource
	}
	if o.Expires.IsZero() {
		o.Expires = b.cfg.Now().Add(lifetime)
	}
	return b.sign(o, "desktop", rand.Text())
}

// Forge makes a token like that of o, with members of its header and claims changed, or
// left out where they are nil: for tests that it is refused. The signature is good.
func (b *Broker) Forge(o TokenOptions, header, claims map[string]any) string {
	part := strings.Split(b.Token(o), ".")
	h, c := read(part[0]), read(part[1])
	for into, changes := range map[*map[string]any]map[string]any{&h: header, &c: claims} {
		maps.Copy(*into, changes)
		maps.DeleteFunc(*into, func(_ string, v any) bool { return v == nil })
	}
	return b.compact(h, c)
}

func read(part string) (out map[string]any) {
	data, err := base64.RawURLEncoding.DecodeString(part)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		panic(err) // it was made here
	}
	return out
}

func (b *Broker) sign(o TokenOptions, client, id string) string {
	stint := map[string]any{"v": 1, "pos": "1.1", "ses": "session-of-" + o.Subject}
	if o.Tool != "" {
		stint["tool"] = o.Tool
	}
	if o.Once {
		stint["once"] = true
	}
	claims := map[string]any{
		"iss": b.server.URL, "sub": o.Subject, "aud": o.Resource, "client_id": client, "jti": id,
		"iat": b.cfg.Now().Unix(), "exp": o.Expires.Unix(), "scope": strings.Join(o.Scopes, " "),
		"act": map[string]any{"iss": b.server.URL, "sub": client}, "stint": stint,
	}
	return b.compact(map[string]any{"alg": "ES256", "typ": "at+jwt", "kid": "test"}, claims)
}

// compact signs: RFC 7515 section 7.1.
func (b *Broker) compact(header, claims map[string]any) string {
	head, err1 := json.Marshal(header)
	payload, err2 := json.Marshal(claims)
	if err := errors.Join(err1, err2); err != nil {
		panic(err) // of a test that asks for what is no JSON
	}
	signed := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(payload)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, b.key, digest[:])
	if err != nil {
		panic(err) // the system has no random numbers
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// Calls returns the requests that were granted so far.
func (b *Broker) Calls() []Call {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.calls)
}

// Revoke ends everything of a subject, as an administrator does.
func (b *Broker) Revoke(subject string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.revoked["subject "+subject] = true
}

// Fail makes the next requests for a credential fail, one after the other: with
// *client.NeedsApproval, *client.NeedsLink, *client.Unavailable or *client.Refused.
func (b *Broker) Fail(errs ...error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, err := range errs {
		b.fail = append(b.fail, failure(err))
	}
}

// next takes the next failure that was asked for.
func (b *Broker) next() (answer, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.fail) == 0 {
		return answer{}, false
	}
	a := b.fail[0]
	b.fail = b.fail[1:]
	return a, true
}

func (b *Broker) targets() []string { return slices.Sorted(maps.Keys(b.cfg.Scopes)) }

func (b *Broker) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/oauth-authorization-server", b.metadata)
	mux.HandleFunc("GET /oauth2/jwks", b.keys)
	mux.HandleFunc("POST /oauth2/token", b.authenticated(b.token))
	mux.HandleFunc("POST /oauth2/renew", b.authenticated(b.renew))
	mux.HandleFunc("POST /oauth2/introspect", b.authenticated(b.introspect))
	mux.HandleFunc("POST /oauth2/revoke", b.authenticated(b.revokeToken))
	return mux
}
