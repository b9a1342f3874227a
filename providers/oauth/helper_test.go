package oauth_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/oauth"
	"github.com/stint-dev/stint/scopes/grant"
)

const (
	alice    = "https://idp.example#alice"
	redirect = "https://stint.example/connect/callback"
	word     = "a secret of the client that is long enough"
)

var scopeNames = []string{"mail:read", "notes:read", "notes:write"}

// server is an authorization server, and a provider's place at it.
type server struct {
	issuer  string
	parents *upstream.Parents
	assert  func(map[string]any) (secret.String, error)
	now     func() time.Time
	secret  string          // the client's
	inspect string          // the path of its introspection
	remains func() []string // what it has made that is good
}

// newServer is oidc-provider. What it makes ends by itself.
func newServer(t testing.TB, keys ...string) *server {
	t.Helper()
	s := newAt(testbed.Node(t, "as.mjs", "/.well-known/openid-configuration", append([]string{redirect}, keys...)...))
	s.inspect, s.remains = "/token/introspection", func() []string { return nil }
	return s
}

func newAt(issuer string) *server {
	s := &server{issuer: issuer, now: time.Now, secret: word}
	s.parents = upstream.NewParents(upstream.ParentConfig{
		Store: newStore(), Sealer: func(context.Context) (broker.Sealer, error) { return seals{}, nil },
		Index: func(_ context.Context, s string) (string, error) {
			return fmt.Sprintf("%x", sha256.Sum256([]byte(s))), nil
		},
		Now: func() time.Time { return s.now() },
	})
	return s
}

// open makes a provider called main.
func (s *server) open(t testing.TB, change func(*oauth.Config)) broker.Provider {
	t.Helper()
	return s.openWith(t, &http.Client{Timeout: 10 * time.Second}, change)
}

// openWith has it ask by a client.
func (s *server) openWith(t testing.TB, client *http.Client, change func(*oauth.Config)) broker.Provider {
	t.Helper()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	cfg := oauth.Config{
		Issuer: s.issuer, ClientID: "stint-at-as", ClientSecret: "env:SECRET", Scopes: scopeNames, Reads: []string{"mail:read", "notes:read"},
		Always: []string{"openid", "offline_access"}, AuthorizeParams: map[string]string{"prompt": "consent"}, Revokes: "token",
	}
	cfg.Lifetime.Duration = 10 * time.Minute
	if change != nil {
		change(&cfg)
	}
	p, err := oauth.Open(t.Context(), "main", func(v any) error { *v.(*oauth.Config) = cfg; return nil }, upstream.Deps{
		Self: "https://stint.example", Now: func() time.Time { return s.now() }, Log: slog.New(slog.DiscardHandler), Parents: s.parents,
		Secret: func(context.Context, string) (secret.String, error) { return secret.New(s.secret), nil },
		Assert: func(_ context.Context, claims map[string]any) (secret.String, error) { return s.assert(claims) },
		HTTP:   func([]string, []byte) (*http.Client, error) { return client, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// certify certifies a provider, which has to narrow.
func certify(t testing.TB, p broker.Provider, assertion string) string {
	t.Helper()
	result, err := p.Describe().Certify(t.Context(), broker.CertifyRequest{Subject: alice, Assertion: secret.New(assertion), Say: func(string) {}})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func of(t testing.TB, p broker.Provider, scopes ...string) grant.Grant {
	t.Helper()
	list := make([]any, len(scopes))
	for i, s := range scopes {
		list[i] = s
	}
	g, err := p.Describe().Schema.ParseValue(map[string]any{"scopes": list})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// link links alice's account, as her browser would.
func link(t testing.TB, p broker.Provider) *broker.Account {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return linkIn(t, p, jar)
}

// linkIn links it in a browser that has been there before.
func linkIn(t testing.TB, p broker.Provider, jar http.CookieJar) *broker.Account {
	t.Helper()
	r := broker.LinkRequest{Subject: alice, Redirect: redirect, State: "state-" + t.Name(), Verifier: strings.Repeat("v", 43)}
	where, err := p.Describe().Link.Begin(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	back := browse(t, jar, where)
	if back.Get("state") != r.State || back.Get("code") == "" {
		t.Fatalf("came back with %v", back)
	}
	a, err := p.Describe().Link.Finish(t.Context(), r, back.Get("code"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var (
	formAction = regexp.MustCompile(`<form [^>]*action="([^"]+)"`)
	formPrompt = regexp.MustCompile(`name="prompt" value="([a-z]+)"`)
)

// browse goes where it is led, fills in every form, and returns what it comes back with.
func browse(t testing.TB, jar http.CookieJar, start string) url.Values {
	t.Helper()
	browser := &http.Client{Jar: jar, Timeout: 10 * time.Second, CheckRedirect: func(next *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(next.URL.String(), redirect) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	resp, err := browser.Get(start)
	for range 4 {
		if err != nil {
			t.Fatal(err)
		}
		page, readErr := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if readErr != nil {
			t.Fatal(readErr)
		}
		if to, err := resp.Location(); err == nil {
			return to.Query()
		}
		action, prompt := formAction.FindSubmatch(page), formPrompt.FindSubmatch(page)
		if action == nil || prompt == nil {
			t.Fatalf("%s: %s: no form\n%s", resp.Request.URL, resp.Status, page)
		}
		resp, err = browser.PostForm(html.UnescapeString(string(action[1])), url.Values{"prompt": {string(prompt[1])}, "login": {"alice"}, "password": {"any"}})
	}
	t.Fatal("one form after another")
	return nil
}

// ask asks an endpoint of the server as the client.
func (s *server) ask(path string, form url.Values) (map[string]any, error) {
	req, err := http.NewRequest(http.MethodPost, s.issuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("stint-at-as", url.QueryEscape(word))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var out map[string]any
	err = json.NewDecoder(resp.Body).Decode(&out)
	return out, err
}

// memoryStore is a store of secrets with compare-and-set.
type memoryStore struct {
	mu   sync.Mutex
	docs map[string]map[string]secret.String
	at   map[string]int
}

func newStore() *memoryStore {
	return &memoryStore{docs: map[string]map[string]secret.String{}, at: map[string]int{}}
}

func (s *memoryStore) Read(_ context.Context, path string) (map[string]secret.String, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at[path] == 0 {
		return nil, 0, broker.ErrNotFound
	}
	return s.docs[path], s.at[path], nil
}

func (s *memoryStore) Write(_ context.Context, path string, f map[string]secret.String, version int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at[path] != version {
		return 0, broker.ErrConflict
	}
	s.docs[path] = f
	s.at[path]++
	return s.at[path], nil
}

// seals binds by remembering.
type seals struct{}

func (seals) Seal(plain []byte, context string) ([]byte, error) {
	return []byte(context + "\x00" + string(plain)), nil
}

func (seals) Open(sealed []byte, context string) ([]byte, error) {
	plain, ok := strings.CutPrefix(string(sealed), context+"\x00")
	if !ok {
		return nil, fmt.Errorf("sealed for another context")
	}
	return []byte(plain), nil
}
