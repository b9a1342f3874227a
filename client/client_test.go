package client_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/client/clienttest"
)

const api = "https://api.test/orders"

func broker(t *testing.T) *clienttest.Broker {
	t.Helper()
	return clienttest.Start(t, clienttest.Config{
		Scopes:    map[string][]string{api: {"orders:read"}, "postgres://warehouse/orders": {"reports:read"}},
		Tools:     map[string]map[string][]string{api: {"list_orders": {"orders:read"}}},
		Documents: map[string]json.RawMessage{"postgres://warehouse/orders": json.RawMessage(`{"user":"lent","password":"of the lease"}`)},
	})
}

func new(t *testing.T, b *clienttest.Broker, change func(*client.Config)) *client.Client {
	t.Helper()
	cfg := b.Client()
	if change != nil {
		change(&cfg)
	}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The suite passes against the fake; against the real Stint it runs where that is.
func TestTheFakePassesTheSuite(t *testing.T) {
	b := broker(t)
	clienttest.Run(t, clienttest.World{
		Client: b.Client(), Scope: "notes:read", API: api, Read: "orders:read", Tool: "list_orders",
		Token: func(_ testing.TB, once bool, scopes ...string) string {
			return b.Token(clienttest.TokenOptions{Scopes: scopes, Once: once})
		},
		Revoke: func(t testing.TB, raw string) { b.RevokeToken(raw) },
	})
}

func TestErrorsHaveTypes(t *testing.T) {
	b := broker(t)
	c := new(t, b, func(cfg *client.Config) { cfg.Retry = -1 })
	tok, err := c.Verify(t.Context(), b.Token(clienttest.TokenOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	vend := func() error {
		_, err := c.Vend(t.Context(), client.Call{Token: tok, Resource: api, Scopes: []string{"orders:read"}})
		return err
	}
	b.Fail(&client.NeedsApproval{URL: "https://stint.test/approve/1"}, &client.NeedsLink{URL: "https://stint.test/connect/github"}, &client.Unavailable{RetryAfter: 7 * time.Second})
	approval, link, down := (*client.NeedsApproval)(nil), (*client.NeedsLink)(nil), (*client.Unavailable)(nil)
	if err := vend(); !errors.As(err, &approval) || approval.URL != "https://stint.test/approve/1" {
		t.Error(err)
	}
	if err := vend(); !errors.As(err, &link) || link.URL != "https://stint.test/connect/github" {
		t.Error(err)
	}
	if err := vend(); !errors.As(err, &down) || down.RetryAfter != 7*time.Second {
		t.Error(err)
	}
	if err := vend(); err != nil {
		t.Error(err)
	}
}

func TestItTriesAgainWhileStintIsNotAvailable(t *testing.T) {
	b := broker(t)
	c := new(t, b, nil)
	tok, err := c.Verify(t.Context(), b.Token(clienttest.TokenOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	b.Fail(&client.Unavailable{}, &client.Unavailable{})
	if _, err := c.Vend(t.Context(), client.Call{Token: tok, Resource: api, Scopes: []string{"orders:read"}}); err != nil {
		t.Error(err)
	}
	b.Fail(&client.Unavailable{RetryAfter: time.Minute}) // longer than it waits
	began := time.Now()
	if _, err := c.Vend(t.Context(), client.Call{Token: tok, Resource: api, Scopes: []string{"orders:read"}}); err == nil || time.Since(began) > 4*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestADocumentIsDecodedAndGivenBack(t *testing.T) {
	b := broker(t)
	c := new(t, b, nil)
	raw := b.Token(clienttest.TokenOptions{})
	tok, err := c.Verify(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	cred, err := c.Vend(client.WithToken(t.Context(), tok), client.Call{Resource: "postgres://warehouse/orders", Scopes: []string{"reports:read"}})
	if err != nil {
		t.Fatal(err)
	}
	var login struct{ User, Password string }
	if err := cred.Decode(&login); err != nil || login.User != "lent" || login.Password != "of the lease" || cred.Bearer || cred.Lease == "" {
		t.Errorf("%+v %+v %v", cred, login, err)
	}
	for _, text := range []string{fmt.Sprint(cred), fmt.Sprintf("%+v %#v", *cred, *cred), fmt.Sprintf("%+v", b.Client()), fmt.Sprintf("%+v %#v", *tok, *tok), fmt.Sprintf("%+v", c)} {
		if strings.Contains(text, "of the lease") || strings.Contains(text, raw) || strings.Contains(text, b.Client().Secret.Reveal()) {
			t.Errorf("it prints the secret: %s", text)
		}
	}
	if data, err := json.Marshal(cred); err != nil || strings.Contains(string(data), "of the lease") {
		t.Errorf("JSON has the secret: %s %v", data, err)
	}
	if !b.Alive(cred) {
		t.Error("it is dead already")
	}
	again := client.Call{Token: tok, Resource: "postgres://warehouse/orders", Scopes: []string{"reports:read"}}
	if ends, err := c.Renew(t.Context(), again, cred.Lease); err != nil || time.Until(ends) < 4*time.Minute {
		t.Errorf("renewed until %s, %v", ends, err)
	}
	again.Scopes = []string{"reports:write"}
	if _, err := c.Renew(t.Context(), again, cred.Lease); !isRefused(err) {
		t.Errorf("renewed with what is not granted: %v", err)
	}
	if err := c.Return(t.Context(), cred); err != nil || b.Alive(cred) {
		t.Errorf("it was not given back: %v", err)
	}
	again.Scopes = []string{"reports:read"}
	if _, err := c.Renew(t.Context(), again, cred.Lease); !isRefused(err) {
		t.Errorf("what was given back is renewed: %v", err)
	}
}

func TestConfigurationsThatCannotBeRight(t *testing.T) {
	good := client.Config{Issuer: "https://stint.example", Resource: "https://mcp.example/", ID: "a", Secret: client.NewSecret("b")}
	if _, err := client.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*client.Config){
		"no issuer":                  func(c *client.Config) { c.Issuer = "" },
		"an issuer in clear":         func(c *client.Config) { c.Issuer = "http://stint.example" },
		"an issuer with a slash":     func(c *client.Config) { c.Issuer += "/" },
		"an issuer with a user":      func(c *client.Config) { c.Issuer = "https://u:p@stint.example" },
		"a resource that is none":    func(c *client.Config) { c.Resource = "orders" },
		"a resource with a fragment": func(c *client.Config) { c.Resource += "#a" },
		"an id without a secret":     func(c *client.Config) { c.Secret = client.Secret{} },
		"a secret without an id":     func(c *client.Config) { c.ID = "" },
	} {
		cfg := good
		change(&cfg)
		if _, err := client.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// bending changes what comes from the token endpoint.
type bending func(map[string]any)

func (b bending) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil || r.URL.Path != "/oauth2/token" {
		return resp, err
	}
	var body map[string]any
	err = json.NewDecoder(resp.Body).Decode(&body)
	_ = resp.Body.Close()
	b(body)
	text, _ := json.Marshal(body)
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	return resp, err
}

// What is given is not good for more than was asked for.
func TestAnswersThatAreNotTaken(t *testing.T) {
	b := broker(t)
	for name, tc := range map[string]struct {
		member string
		value  any
		taken  bool
	}{
		"what was asked for":        {"scope", "orders:read", true},
		"less of it":                {"scope", "", true},
		"no word of it":             {"scope", nil, true},
		"more of it":                {"scope", "orders:read orders:write", false},
		"something else":            {"scope", "orders:write", false},
		"no token":                  {"access_token", "", false},
		"neither token nor login":   {"token_type", "N_A", false},
		"a token that has expired":  {"expires_in", 0, false},
		"one that never ends":       {"expires_in", nil, false},
		"a lifetime that is a text": {"expires_in", "300", false},
	} {
		t.Run(name, func(t *testing.T) {
			c := new(t, b, func(cfg *client.Config) {
				cfg.HTTP = &http.Client{Transport: bending(func(body map[string]any) {
					if body[tc.member] = tc.value; tc.value == nil {
						delete(body, tc.member)
					}
				})}
			})
			tok, err := c.Verify(t.Context(), b.Token(clienttest.TokenOptions{}))
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Vend(t.Context(), client.Call{Token: tok, Resource: api, Scopes: []string{"orders:read"}})
			if down := (*client.Unavailable)(nil); tc.taken != (err == nil) || err != nil && !errors.As(err, &down) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// Whoever answers in Stint's place, or is slow, or says too much, is not believed.
func TestHostileEndpoints(t *testing.T) {
	b := broker(t)
	raw := b.Token(clienttest.TokenOptions{})
	for name, serve := range map[string]http.HandlerFunc{
		"metadata of another issuer": func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, `{"issuer":"https://evil.example","token_endpoint":"https://evil.example/t","introspection_endpoint":"https://evil.example/i","revocation_endpoint":"https://evil.example/r","jwks_uri":"https://evil.example/k"}`)
		},
		"keys in clear elsewhere": func(w http.ResponseWriter, r *http.Request) {
			at := "http://" + r.Host
			_, _ = fmt.Fprintf(w, `{"issuer":%q,"token_endpoint":"%s/t","introspection_endpoint":"%s/i","revocation_endpoint":"%s/r","jwks_uri":"http://evil.example/k"}`, at, at, at, at)
		},
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, b.Client().Issuer+r.URL.Path, http.StatusFound)
		},
		"a megabyte": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"a":"` + strings.Repeat("x", 1<<20) + `"}`))
		},
		"no JSON":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"an error": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusInternalServerError) },
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(serve)
			defer server.Close()
			c := new(t, b, func(cfg *client.Config) { cfg.Issuer, cfg.Retry = server.URL, -1 })
			_, err := c.Verify(t.Context(), raw)
			if down := (*client.Unavailable)(nil); !errors.As(err, &down) {
				t.Errorf("verified: %v", err)
			}
			out := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
			r.Header.Set("Authorization", "Bearer "+raw)
			c.Protect(http.NotFoundHandler()).ServeHTTP(out, r)
			if out.Code != http.StatusServiceUnavailable || out.Header().Get("Retry-After") == "" {
				t.Errorf("protected: %d", out.Code)
			}
		})
	}
}

func TestTokensThatAreRefused(t *testing.T) {
	b := broker(t)
	c := new(t, b, nil)
	now := time.Now()
	head := func(change map[string]any) string { return b.Forge(clienttest.TokenOptions{}, change, nil) }
	with := func(change map[string]any) string { return b.Forge(clienttest.TokenOptions{}, nil, change) }
	if _, err := c.Verify(t.Context(), with(nil)); err != nil {
		t.Fatal(err)
	}
	raw := with(nil)
	part := strings.Split(raw, ".")
	var via []any
	for range 10 {
		via = append(via, map[string]string{"jti": "x"})
	}
	deep := map[string]any{"sub": "a"}
	for range 10 {
		deep = map[string]any{"sub": "a", "act": deep}
	}
	for name, text := range map[string]string{
		"no signature":                part[0] + "." + part[1] + ".",
		"two parts":                   part[0] + "." + part[1],
		"four parts":                  raw + ".x",
		"padding":                     raw + "==",
		"another payload":             part[0] + "." + strings.Split(with(map[string]any{"sub": "bob"}), ".")[1] + "." + part[2],
		"17 kB":                       with(map[string]any{"x": strings.Repeat("x", 17<<10)}),
		"alg none":                    head(map[string]any{"alg": "none"}),
		"HS256":                       head(map[string]any{"alg": "HS256"}),
		"another alg than the key's":  head(map[string]any{"alg": "EdDSA"}),
		"no alg":                      head(map[string]any{"alg": nil}),
		"an ID token":                 head(map[string]any{"typ": "JWT"}),
		"no type":                     head(map[string]any{"typ": nil}),
		"a critical extension":        head(map[string]any{"crit": []string{"exp"}}),
		"another key":                 head(map[string]any{"kid": "other"}),
		"no key":                      head(map[string]any{"kid": nil}),
		"another issuer":              with(map[string]any{"iss": "https://evil.example"}),
		"another audience":            with(map[string]any{"aud": "https://other.test/mcp"}),
		"several audiences":           with(map[string]any{"aud": []string{b.Client().Resource, "https://other.test/mcp"}}),
		"no audience":                 with(map[string]any{"aud": nil}),
		"expired":                     with(map[string]any{"exp": now.Add(-31 * time.Second).Unix()}),
		"no expiry":                   with(map[string]any{"exp": nil}),
		"issued in the future":        with(map[string]any{"iat": now.Add(time.Minute).Unix()}),
		"not good yet":                with(map[string]any{"nbf": now.Add(time.Minute).Unix()}),
		"no subject":                  with(map[string]any{"sub": nil}),
		"no id":                       with(map[string]any{"jti": nil}),
		"no client":                   with(map[string]any{"client_id": nil}),
		"no lineage":                  with(map[string]any{"stint": nil}),
		"a lineage of another kind":   with(map[string]any{"stint": map[string]any{"v": 2, "pos": "1.1"}}),
		"a lineage that is too long":  with(map[string]any{"stint": map[string]any{"v": 1, "pos": "1.1", "via": via}}),
		"a lineage that is too large": with(map[string]any{"stint": map[string]any{"v": 1, "pos": strings.Repeat("1", 4<<10)}}),
		"too many actors":             with(map[string]any{"act": deep}),
	} {
		_, err := c.Verify(t.Context(), text)
		if bad := (*client.InvalidToken)(nil); !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A redirect is not followed with the client's secret and the caller's token.
func TestSecretsAreNotRedirected(t *testing.T) {
	b := broker(t)
	var stolen atomic.Int32
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stolen.Add(1) }))
	defer thief.Close()
	var at string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = fmt.Fprintf(w, `{"issuer":%q,"token_endpoint":"%s/t","introspection_endpoint":"%s/i","revocation_endpoint":"%s/r","jwks_uri":"%s/k"}`, at, at, at, at, at)
			return
		}
		http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect) // which repeats the body
	}))
	defer server.Close()
	at = server.URL
	c := new(t, b, func(cfg *client.Config) { cfg.Issuer, cfg.Retry = at, -1 })
	if _, err := c.Vend(t.Context(), client.Call{Self: true, Resource: api, Scopes: []string{"orders:read"}}); err == nil {
		t.Error("vended")
	}
	if stolen.Load() > 0 {
		t.Error("what was sent went elsewhere")
	}
}

// Anybody can show tokens of keys that there are not: the keys are not read for each.
func TestUnknownKeysAreLookedForSeldom(t *testing.T) {
	b := broker(t)
	var asked atomic.Int32
	c := new(t, b, func(cfg *client.Config) {
		cfg.HTTP = &http.Client{Transport: counting{&asked}}
	})
	raw := b.Token(clienttest.TokenOptions{})
	if _, err := c.Verify(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	before := asked.Load()
	for n := range 100 {
		forged := b.Forge(clienttest.TokenOptions{}, map[string]any{"kid": fmt.Sprint("forged-", n)}, nil)
		if _, err := c.Verify(t.Context(), forged); err == nil {
			t.Fatal("verified")
		}
	}
	if n := asked.Load() - before; n > 1 {
		t.Errorf("the keys were asked for %d times", n)
	}
}

type counting struct{ n *atomic.Int32 }

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return http.DefaultTransport.RoundTrip(r)
}

func TestMetadataSaysWhereTokensComeFrom(t *testing.T) {
	b := broker(t)
	c := new(t, b, nil)
	if c.MetadataPath() != "/.well-known/oauth-protected-resource/mcp" || c.MetadataURL() != "https://mcp.test/.well-known/oauth-protected-resource/mcp" {
		t.Error(c.MetadataPath(), c.MetadataURL())
	}
	out := httptest.NewRecorder()
	c.Metadata("Notes", "notes:read").ServeHTTP(out, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	var doc struct {
		Resource string   `json:"resource"`
		Servers  []string `json:"authorization_servers"`
		Scopes   []string `json:"scopes_supported"`
	}
	if err := json.Unmarshal(out.Body.Bytes(), &doc); err != nil || doc.Resource != "https://mcp.test/mcp" || len(doc.Servers) != 1 || doc.Servers[0] != b.Client().Issuer || len(doc.Scopes) != 1 {
		t.Errorf("%s %v", out.Body, err)
	}
}

// While Stint is away, its keys are good for an hour.
func TestKeysOutliveAnOutageAndNoMore(t *testing.T) {
	var now atomic.Pointer[time.Time]
	move := func(to time.Time) { now.Store(&to) }
	began := time.Now()
	move(began)
	b := clienttest.Start(t, clienttest.Config{Now: func() time.Time { return *now.Load() }})
	var down atomic.Bool
	c := new(t, b, func(cfg *client.Config) { cfg.HTTP = &http.Client{Transport: outage{&down}} })
	raw := b.Token(clienttest.TokenOptions{Expires: began.Add(3 * time.Hour)})
	verify := func() error {
		_, err := c.Verify(t.Context(), raw)
		return err
	}
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	down.Store(true)
	move(began.Add(59 * time.Minute))
	if err := verify(); err != nil {
		t.Errorf("within the hour: %v", err)
	}
	move(began.Add(61 * time.Minute))
	for range 2 {
		if unknown := (*client.Unavailable)(nil); !errors.As(verify(), &unknown) {
			t.Errorf("after it: %v", verify())
		}
	}
	down.Store(false)
	move(began.Add(62 * time.Minute))
	if err := verify(); err != nil {
		t.Errorf("when it is back: %v", err)
	}
}

type outage struct{ down *atomic.Bool }

func (o outage) RoundTrip(r *http.Request) (*http.Response, error) {
	if o.down.Load() {
		return nil, errors.New("nobody is there")
	}
	return http.DefaultTransport.RoundTrip(r)
}

func isRefused(err error) bool {
	refused := (*client.Refused)(nil)
	return errors.As(err, &refused)
}
