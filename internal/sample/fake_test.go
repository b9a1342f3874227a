package sample

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/secret"
)

// stintFake is as much of Stint as the sample servers see: RFC 8414, RFC 8693 and
// RFC 7662 on the wire, strict about what is sent, with a simple idea of who may
// have what.
type stintFake struct {
	t   *testing.T
	srv *httptest.Server

	key     *ecdsa.PrivateKey
	mu      sync.Mutex
	clients map[string]fakeClient
	tokens  map[string]*fakeToken
	login   map[string]any // what is lent for postgres://
	down    bool
	// bend changes good answers of a path before they leave.
	bend func(path string, body map[string]any)
	// asked are the forms that were sent, by path.
	asked map[string][]url.Values
}

type fakeClient struct {
	secret   string
	resource string
	targets  []string
}

type fakeToken struct {
	aud, sub, client string
	scope, actors    []string
	once, used, gone bool
	// claims are changes to those that the token has.
	claims map[string]any
}

func newStint(t *testing.T) *stintFake {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &stintFake{
		t: t, key: key, tokens: make(map[string]*fakeToken), asked: make(map[string][]url.Values),
		clients: make(map[string]fakeClient),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/oauth-authorization-server", f.metadata)
	mux.HandleFunc("GET /oauth2/jwks", f.jwks)
	mux.HandleFunc("POST /oauth2/token", f.endpoint(f.exchange))
	mux.HandleFunc("POST /oauth2/introspect", f.endpoint(f.introspect))
	f.srv = httptest.NewServer(mux)
	t.Cleanup(f.srv.Close)
	return f
}

// config is how a client asks the fake.
func (f *stintFake) config(id string) StintConfig {
	f.mu.Lock()
	defer f.mu.Unlock()
	return StintConfig{Issuer: f.srv.URL, ClientID: id, Secret: secret.New(f.clients[id].secret)}
}

// issue makes a token without being asked.
func (f *stintFake) issue(tok fakeToken) secret.String {
	f.mu.Lock()
	defer f.mu.Unlock()
	return secret.New(f.sign(&tok))
}

// sign makes a token as Stint does (RFC 9068), and remembers it.
func (f *stintFake) sign(tok *fakeToken) string {
	now := time.Now()
	claims := map[string]any{
		"iss": f.srv.URL, "sub": tok.sub, "aud": tok.aud, "client_id": tok.client, "jti": rand.Text(), "scope": strings.Join(tok.scope, " "),
		"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "stint": map[string]any{"v": 1, "once": tok.once},
	}
	var act map[string]any
	for _, a := range slices.Backward(tok.actors) {
		next := map[string]any{"iss": f.srv.URL, "sub": a}
		if act != nil {
			next["act"] = act
		}
		act = next
	}
	if act != nil {
		claims["act"] = act
	}
	for name, v := range tok.claims {
		if claims[name] = v; v == nil {
			delete(claims, name)
		}
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		f.t.Fatal(err)
	}
	b64 := base64.RawURLEncoding
	text := b64.EncodeToString([]byte(`{"alg":"ES256","typ":"at+jwt","kid":"`+fakeKey+`"}`)) + "." + b64.EncodeToString(payload)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, f.key, sum[:])
	if err != nil {
		f.t.Fatal(err)
	}
	raw := text + "." + b64.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	f.tokens[raw] = tok
	return raw
}

const fakeKey = "fake-key"

func (f *stintFake) jwks(w http.ResponseWriter, _ *http.Request) {
	point, err := f.key.PublicKey.Bytes()
	if err != nil {
		f.t.Error(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	writeJSON(w, http.StatusOK, map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "kid": fakeKey, "alg": "ES256", "use": "sig", "x": b64(point[1:33]), "y": b64(point[33:]),
	}}})
}

func (f *stintFake) set(change func(f *stintFake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// forms returns what was sent to a path.
func (f *stintFake) forms(path string) []url.Values {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked[path])
}

func (f *stintFake) metadata(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer": f.srv.URL, "token_endpoint": f.srv.URL + "/oauth2/token", "introspection_endpoint": f.srv.URL + "/oauth2/introspect",
		"revocation_endpoint": f.srv.URL + "/oauth2/revoke", "jwks_uri": f.srv.URL + "/oauth2/jwks",
	})
}

// problem is an error answer.
type problem struct {
	status int
	code   string
}

// endpoint checks what all requests have in common: RFC 6749 sections 2.3.1 and
// 3.2.
func (f *stintFake) endpoint(serve func(client string, form url.Values) (map[string]any, *problem)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.down {
			w.Header().Set("Retry-After", "1")
			f.refuse(w, &problem{http.StatusServiceUnavailable, "temporarily_unavailable"})
			return
		}
		form, why := readStrictly(r)
		if why != "" {
			f.t.Errorf("%s: %s", r.URL.Path, why)
			f.refuse(w, &problem{http.StatusBadRequest, "invalid_request"})
			return
		}
		f.asked[r.URL.Path] = append(f.asked[r.URL.Path], form)
		id, pass, ok := r.BasicAuth()
		id, err1 := url.QueryUnescape(id)
		pass, err2 := url.QueryUnescape(pass)
		if c, known := f.clients[id]; !ok || err1 != nil || err2 != nil || !known || c.secret != pass {
			f.refuse(w, &problem{http.StatusUnauthorized, "invalid_client"})
			return
		}
		body, p := serve(id, form)
		if p != nil {
			f.refuse(w, p)
			return
		}
		if f.bend != nil {
			f.bend(r.URL.Path, body)
		}
		w.Header().Set("Cache-Control", "no-store")
		writeJSON(w, http.StatusOK, body)
	}
}

func (f *stintFake) refuse(w http.ResponseWriter, p *problem) {
	writeJSON(w, p.status, map[string]string{"error": p.code, "error_description": "the fake says no"})
}

func readStrictly(r *http.Request) (form url.Values, why string) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/x-www-form-urlencoded" || r.URL.RawQuery != "" {
		return nil, fmt.Sprintf("the body is %q, the query %q", kind, r.URL.RawQuery)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err.Error()
	}
	if form, err = url.ParseQuery(string(body)); err != nil {
		return nil, err.Error()
	}
	for name, list := range form {
		if len(list) != 1 || list[0] == "" {
			return nil, fmt.Sprintf("parameter %s is %q", name, list)
		}
	}
	return form, ""
}

// only reports parameters that should not be there, and those that are missing.
func (f *stintFake) only(form url.Values, wanted ...string) bool {
	names := make([]string, 0, len(form))
	for name := range form {
		names = append(names, name)
	}
	slices.Sort(names)
	slices.Sort(wanted)
	if !slices.Equal(names, wanted) {
		f.t.Errorf("the parameters are %q, not %q", names, wanted)
		return false
	}
	return true
}

// exchange is RFC 8693 section 2.1.
func (f *stintFake) exchange(id string, form url.Values) (map[string]any, *problem) {
	c := f.clients[id]
	bad := func(code string) (map[string]any, *problem) { return nil, &problem{http.StatusBadRequest, code} }
	wanted := []string{"grant_type", "subject_token", "subject_token_type", "resource", "scope"}
	if form.Has("authorization_details") {
		wanted = append(wanted, "authorization_details")
	}
	if !f.only(form, wanted...) {
		return bad("invalid_request")
	}
	if form.Get("grant_type") != "urn:ietf:params:oauth:grant-type:token-exchange" {
		return bad("unsupported_grant_type")
	}
	tok := f.tokens[form.Get("subject_token")]
	if tok == nil || tok.gone || tok.once && tok.used || form.Get("subject_token_type") != "urn:ietf:params:oauth:token-type:access_token" ||
		tok.client != id && (c.resource == "" || tok.aud != c.resource) {
		return bad("invalid_request")
	}
	if !slices.Contains(c.targets, form.Get("resource")) {
		return bad("invalid_target")
	}
	scope := strings.Fields(form.Get("scope"))
	for _, s := range scope {
		if !slices.Contains(tok.scope, s) {
			return bad("invalid_scope")
		}
	}
	tok.used = true // which is of interest if it is for one use
	out := map[string]any{"issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "expires_in": 300, "scope": form.Get("scope")}
	switch {
	case !strings.HasPrefix(form.Get("resource"), "postgres:"):
		out["access_token"], out["token_type"] = f.sign(&fakeToken{
			aud: form.Get("resource"), sub: tok.sub, client: id, scope: scope, actors: append([]string{id}, tok.actors...),
			once: tok.once || strings.Contains(form.Get("authorization_details"), `"once":true`),
		}), "Bearer"
	default:
		out["issued_token_type"] = "https://stint.dev/token-type/credential"
		if f.login == nil {
			return bad("invalid_target")
		}
		doc, err := json.Marshal(f.login)
		if err != nil {
			f.t.Error(err)
		}
		out["access_token"], out["token_type"], out["credential"] = string(doc), "N_A", f.login
		out["lease_id"], out["expires_at"] = "lease-1", time.Now().Add(5*time.Minute).UTC().Format(time.RFC3339)
		delete(out, "scope") // as Stint may: it is what was asked for
	}
	return out, nil
}

// introspect is RFC 7662 section 2.1, with Stint's consume.
func (f *stintFake) introspect(id string, form url.Values) (map[string]any, *problem) {
	wanted := []string{"token"}
	if form.Has("consume") {
		wanted = append(wanted, "consume")
	}
	if !f.only(form, wanted...) {
		return nil, &problem{http.StatusBadRequest, "invalid_request"}
	}
	tok := f.tokens[form.Get("token")]
	if tok == nil {
		return map[string]any{"active": false}, nil
	}
	if c := f.clients[id]; c.resource == "" || c.resource != tok.aud {
		return nil, &problem{http.StatusForbidden, "unauthorized_client"}
	}
	if tok.gone || tok.once && tok.used {
		return map[string]any{"active": false}, nil
	}
	if form.Get("consume") == "true" {
		if !tok.once {
			f.t.Error("a token that is not for one use is consumed")
			return nil, &problem{http.StatusBadRequest, "invalid_request"}
		}
		if tok.used {
			return map[string]any{"active": false}, nil
		}
		tok.used = true
	}
	out := map[string]any{
		"active": true, "iss": f.srv.URL, "sub": tok.sub, "aud": tok.aud, "client_id": tok.client, "token_type": "Bearer",
		"scope": strings.Join(tok.scope, " "), "exp": time.Now().Add(5 * time.Minute).Unix(), "iat": time.Now().Unix(),
	}
	if tok.once {
		out["once"] = true
	}
	return out, nil
}

// steps collects what the servers say they did.
type steps struct {
	mu  sync.Mutex
	all []Step
}

func (s *steps) add(step Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, step)
}

// summary is one line a step: who, what, and how it went.
func (s *steps) summary() (lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, step := range s.all {
		lines = append(lines, fmt.Sprintf("%s: %s: %d", step.Server, step.Text, step.Status))
	}
	return lines
}

// find returns the first step with this text.
func (s *steps) find(t *testing.T, text string) Step {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, step := range s.all {
		if strings.Contains(step.Text, text) {
			return step
		}
	}
	t.Fatalf("no step %q", text)
	return Step{}
}

func (s Step) get(name string) Field {
	for _, f := range slices.Concat(s.Request, s.Answer) {
		if f.Name == name {
			return f
		}
	}
	return Field{}
}

// world is a fake Stint with an API and an MCP server around it.
type world struct {
	*stintFake
	api   *API
	mcp   *MCPServer
	steps *steps
}

const warehouse = "postgres://warehouse/sales.orders"

func newWorld(t *testing.T, database *Database) *world {
	t.Helper()
	w := &world{stintFake: newStint(t), steps: &steps{}}
	w.set(func(f *stintFake) {
		f.clients["orders-api"] = fakeClient{secret: "api secret: 100%+"}
		f.clients["orders-mcp"] = fakeClient{secret: "mcp/secret&=" + rand.Text()}
	})
	cfg := w.config("orders-api")
	cfg.Trace = w.steps.add
	var err error
	if w.api, err = StartAPI(t.Context(), APIConfig{Stint: cfg, Orders: []Order{{ID: 1, Item: "tea", Quantity: 2}}}); err != nil {
		t.Fatal(err)
	}
	cfg = w.config("orders-mcp")
	cfg.Trace = w.steps.add
	if w.mcp, err = StartMCP(t.Context(), MCPConfig{Stint: cfg, API: w.api.URL(), Database: database}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []io.Closer{w.mcp, w.api} {
			if err := c.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
	w.set(func(f *stintFake) {
		a, m := f.clients["orders-api"], f.clients["orders-mcp"]
		a.resource, m.resource, m.targets = w.api.Resource(), w.mcp.Resource(), []string{w.api.Resource(), warehouse}
		f.clients["orders-api"], f.clients["orders-mcp"] = a, m
	})
	return w
}

// alice is a token of Alice's for the MCP server, which her agent holds.
func (w *world) alice(scope ...string) fakeToken {
	return fakeToken{aud: w.mcp.Resource(), sub: "https://idp.example#alice", client: "desktop-agent", scope: scope, actors: []string{"desktop-agent"}}
}

// has changes a token of the fake.
func (w *world) has(raw secret.String, change func(*fakeToken)) {
	w.set(func(f *stintFake) { change(f.tokens[raw.Reveal()]) })
}
