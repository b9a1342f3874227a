package github_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/github"
	"github.com/stint-dev/stint/scopes/grant"
)

const (
	alice = "https://idp.example#alice"
	appID = "12345"
)

// hub is a GitHub with an App that is installed at acme.
type hub struct {
	*doubles.GitHub
	emulate string
	key     *rsa.PrivateKey
	parents *upstream.Parents
	vault   *memoryStore
	now     func() time.Time
}

func newHub(t testing.TB) *hub {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	h := &hub{key: key, vault: newStore(), now: time.Now}
	private := map[string]string{"metadata": "read", "contents": "write", "issues": "write", "pull_requests": "write"}
	h.emulate = testbed.Emulate(t, "github", map[string]any{
		"users": []any{map[string]any{"login": "alice"}},
		"orgs":  []any{map[string]any{"login": "acme"}},
		"repos": []any{
			map[string]any{"owner": "acme", "name": "web", "private": true, "auto_init": true},
			map[string]any{"owner": "acme", "name": "api", "private": true, "auto_init": true},
			map[string]any{"owner": "acme", "name": "docs", "private": true, "auto_init": true},
		},
		"apps": []any{map[string]any{
			"app_id": 12345, "slug": "stint", "name": "Stint", "permissions": private,
			"private_key":   h.pem(),
			"installations": []any{map[string]any{"installation_id": 100, "account": "acme", "repository_selection": "all", "permissions": private}},
		}},
	})
	description, err := os.ReadFile("testdata/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if h.GitHub, err = doubles.NewGitHub(h.emulate, description); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	h.ClientID, h.Secret = appID, "client secret"
	h.App = func(permissions map[string]string, ids []int64) (string, map[string]any) {
		return h.mint(t, map[string]any{"permissions": permissions, "repository_ids": ids})
	}
	token, _ := h.mint(t, map[string]any{"permissions": map[string]string{"metadata": "read"}})
	for _, name := range []string{"web", "api", "docs"} {
		var got struct {
			ID    int64
			Owner struct{ ID int64 }
		}
		h.get(t, "/repos/acme/"+name, token, &got)
		h.Repositories[name], h.Owner = got.ID, got.Owner.ID
	}
	h.Users["alice"] = &doubles.GitHubUser{ID: 77, Rights: map[string]string{"web": "write", "api": "read"}}
	t.Cleanup(func() {
		if wrong := h.Strange(); len(wrong) > 0 {
			t.Errorf("GitHub's own description does not have: %q", wrong)
		}
	})
	return h
}

func (h *hub) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(h.key)}))
}

// mint asks emulate itself for a token.
func (h *hub) mint(t testing.TB, body map[string]any) (string, map[string]any) {
	t.Helper()
	claims := fmt.Sprintf(`{"iss":%q,"iat":%d,"exp":%d}`, appID, time.Now().Unix()-30, time.Now().Unix()+300)
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"RS256"}`)) + "." + encode([]byte(claims))
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, h.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	data, _ := json.Marshal(body)
	status, answer := h.do(t, h.emulate, http.MethodPost, "/app/installations/100/access_tokens", text+"."+encode(signature), string(data))
	var out map[string]any
	if err := json.Unmarshal([]byte(answer), &out); err != nil || status != http.StatusCreated {
		t.Fatalf("emulate answers %d %s", status, answer)
	}
	return out["token"].(string), out
}

func (h *hub) get(t testing.TB, path, token string, into any) {
	t.Helper()
	status, answer := h.do(t, h.emulate, http.MethodGet, path, token, "")
	if status != http.StatusOK {
		t.Fatalf("%s: %d %s", path, status, answer)
	}
	if err := json.Unmarshal([]byte(answer), into); err != nil {
		t.Fatal(err)
	}
}

func (h *hub) do(t testing.TB, base, method, path, token, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

// open makes a provider called main.
func (h *hub) open(t testing.TB, change func(*github.Config)) broker.Provider {
	t.Helper()
	h.parents = upstream.NewParents(upstream.ParentConfig{
		Store: h.vault, Sealer: func(context.Context) (broker.Sealer, error) { return seals{}, nil },
		Index: func(_ context.Context, s string) (string, error) {
			return fmt.Sprintf("%x", sha256.Sum256([]byte(s))), nil
		}, Now: h.now,
	})
	cfg := github.Config{
		URL: h.URL, Web: h.URL, Entitlement: "none",
		Apps: []github.App{{ClientID: appID, PrivateKey: "env:KEY", ClientSecret: "env:SECRET"}},
	}
	if change != nil {
		change(&cfg)
	}
	p, err := github.On(nil)(t.Context(), "main", func(v any) error { *v.(*github.Config) = cfg; return nil }, upstream.Deps{
		Self: "https://stint.example", Now: h.now, Log: slog.New(slog.DiscardHandler), Parents: h.parents,
		Secret: func(_ context.Context, ref string) (secret.String, error) {
			return secret.New(map[string]string{"env:KEY": h.pem(), "env:SECRET": h.Secret}[ref]), nil
		},
		HTTP: func([]string, []byte) (*http.Client, error) {
			return &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// warm has a provider know where the App is installed, as a request does.
func warm(t testing.TB, p broker.Provider) {
	t.Helper()
	if _, err := p.Resolve(t.Context(), broker.ResolveRequest{Resources: []string{"github://main/acme/web"}, Live: true}); err != nil {
		t.Fatal(err)
	}
}

// of is a grant on repositories of acme's, by their names.
func (h *hub) of(t testing.TB, p broker.Provider, permissions map[string]any, names ...string) grant.Grant {
	t.Helper()
	list := make([]any, len(names))
	for i, name := range names {
		list[i] = fmt.Sprintf("%d/%d", h.Owner, h.Repositories[name])
		if name == "*" {
			list[i] = fmt.Sprintf("%d/*", h.Owner)
		}
	}
	g, err := p.Describe().Schema.ParseValue(map[string]any{"repositories": list, "permissions": permissions, "account": map[string]any{}})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// link links alice's account.
func (h *hub) link(t testing.TB, p broker.Provider) *broker.Account {
	t.Helper()
	l := p.Describe().Link
	r := broker.LinkRequest{Subject: alice, Redirect: "https://stint.example/connect/callback", State: "state", Verifier: strings.Repeat("v", 43)}
	where, err := l.Begin(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	code, err := h.Code("alice", where)
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Finish(t.Context(), r, code)
	if err != nil {
		t.Fatal(err)
	}
	return a
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
