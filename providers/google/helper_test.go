package google_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/outbound"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/google"
	"github.com/stint-dev/stint/scopes/grant"
)

const (
	alice   = "https://idp.example#alice"
	account = "vendor@acme.iam.gserviceaccount.com"
	pool    = "//iam.googleapis.com/projects/117/locations/global/workloadIdentityPools/stint/providers/stint"
	self    = "https://stint.example"
)

// store keeps parents in memory.
type store struct {
	mu sync.Mutex
	at map[string]map[string]secret.String
	v  map[string]int
}

func (s *store) Read(_ context.Context, path string) (map[string]secret.String, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.v[path] == 0 {
		return nil, 0, broker.ErrNotFound
	}
	return s.at[path], s.v[path], nil
}

func (s *store) Write(_ context.Context, path string, fields map[string]secret.String, version int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.v[path] != version {
		return 0, broker.ErrConflict
	}
	s.at[path] = fields
	s.v[path]++
	return s.v[path], nil
}

// sealer writes the context in front, and takes it off again.
type sealer struct{}

func (sealer) Seal(plain []byte, context string) ([]byte, error) {
	return append([]byte(context+"\x00"), plain...), nil
}

func (sealer) Open(sealed []byte, context string) ([]byte, error) {
	plain, ok := bytes.CutPrefix(sealed, []byte(context+"\x00"))
	if !ok {
		return nil, errors.New("sealed for something else")
	}
	return plain, nil
}

// bed is a double, with what a provider is handed beside it.
type bed struct {
	*doubles.Google
	deps upstream.Deps
	seen []map[string]any // claims that were signed
}

// newBed starts a double. Unless bare is said, it is held against Google's own
// description.
func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{Google: doubles.NewGoogle()}
	t.Cleanup(b.Close)
	dir := testbed.GoogleAPIs(t)
	var err1, err2 error
	b.STS, err1 = doubles.ReadDiscovery(filepath.Join(dir, "sts", "v1", "sts-api.json"))
	b.IAM, err2 = doubles.ReadDiscovery(filepath.Join(dir, "iamcredentials", "v1", "iamcredentials-api.json"))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	b.Account, b.Provider = account, pool
	b.Assertion = verified
	var mu sync.Mutex
	b.deps = upstream.Deps{
		Self: self, Now: time.Now,
		Secret: func(_ context.Context, ref string) (secret.String, error) {
			if ref != "env:GOOGLE_SECRET" {
				return secret.String{}, broker.ErrNotFound
			}
			return secret.New(b.Secret), nil
		},
		HTTP: func(hosts []string, _ []byte) (*http.Client, error) {
			return outbound.New(outbound.Policy{Hosts: hosts}), nil
		},
		Assert: func(_ context.Context, claims map[string]any) (secret.String, error) {
			mu.Lock()
			b.seen = append(b.seen, claims)
			mu.Unlock()
			data, err := json.Marshal(claims)
			text := base64.RawURLEncoding.EncodeToString(data)
			return secret.New(text + "." + signature(text)), err
		},
		Parents: upstream.NewParents(upstream.ParentConfig{
			Store:  &store{at: map[string]map[string]secret.String{}, v: map[string]int{}},
			Sealer: func(context.Context) (broker.Sealer, error) { return sealer{}, nil },
			Index: func(_ context.Context, subject string) (string, error) {
				sum := sha256.Sum256([]byte(subject))
				return base64.RawURLEncoding.EncodeToString(sum[:9]), nil
			},
			Now: time.Now,
		}),
	}
	t.Cleanup(func() {
		if odd := b.Strange(); len(odd) > 0 && !t.Failed() {
			t.Errorf("Google was asked what it does not take: %q", odd)
		}
	})
	return b
}

// signature is ours, of text, and verified reads what has it.
func signature(text string) string {
	mac := hmac.New(sha256.New, []byte("our key"))
	mac.Write([]byte(text))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func verified(raw string) (map[string]any, error) {
	text, mac, _ := strings.Cut(raw, ".")
	data, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || signature(text) != mac {
		return nil, errors.New("it is not signed by us")
	}
	var claims map[string]any
	return claims, json.Unmarshal(data, &claims)
}

// settings are those of a flow at the double.
func (b *bed) settings(flow string) google.Config {
	c := google.Config{Flow: flow, Endpoints: google.Endpoints{
		Authorization: b.URL + "/auth", Token: b.URL + "/token", Revoke: b.URL + "/revoke", TokenInfo: b.URL + "/tokeninfo",
		STS: b.URL + "/v1/token", IAMCredentials: b.URL,
	}}
	switch flow {
	case "user":
		c.ClientID, c.ClientSecret, c.Scopes = b.ClientID, "env:GOOGLE_SECRET", []string{"drive", "gmail.modify", "calendar"}
	case "delegation":
		c.Users = map[string]string{alice: "alice@acme.example"}
		c.Never = []string{"root@acme.example"}
		fallthrough
	default:
		c.Provider, c.ServiceAccount = pool, account
	}
	return c
}

// open makes a provider called work.
func (b *bed) open(t testing.TB, c google.Config) broker.Provider {
	t.Helper()
	p, err := google.Open(t.Context(), "work", func(v any) error { *v.(*google.Config) = c; return nil }, b.deps)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const prefix = "https://www.googleapis.com/auth/"

func full(name string) string {
	switch name {
	case "openid":
		return name
	case "mail.google.com":
		return "https://mail.google.com/"
	}
	return prefix + name
}

// link links an account of alice's that has consented to scopes, and returns the refresh
// token.
func (b *bed) link(t testing.TB, scopes ...string) string {
	t.Helper()
	var list []string
	for _, s := range scopes {
		list = append(list, full(s))
	}
	refresh := b.Grant(doubles.GoogleGrant{Account: "1001", Email: "alice@gmail.example", Scopes: list})
	_, err := b.deps.Parents.Put(t.Context(), upstream.ParentKey{Provider: "work", Subject: alice}, &upstream.Parent{
		Account: broker.Account{ID: "1001", Name: "alice@gmail.example", Scopes: scopes}, Refresh: secret.New(refresh),
	})
	if err != nil {
		t.Fatal(err)
	}
	return refresh
}

func parse(t testing.TB, p broker.Provider, text string) grant.Grant {
	t.Helper()
	g, err := p.Describe().Schema.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// mint asks for a grant for as long as it can be had.
func (b *bed) mint(t testing.TB, p broker.Provider, g grant.Grant) (*broker.Minted, broker.MintRequest, error) {
	t.Helper()
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	r := broker.MintRequest{
		Lease: "abcdefghijklmnop12345678", Grant: g, Rendered: rendered, Subject: alice, Pseudonym: "pseudonym-of-alice",
		Expires: b.deps.Now().Add(p.Describe().MaxLifetime).Truncate(time.Second), Note: func([]byte) error { return nil },
	}
	m, err := p.Mint(t.Context(), r)
	return m, r, err
}

// described are the methods that each scope is enough for, by Google's own description
// of all its APIs: the method, and how it is called over HTTP.
var described struct {
	once sync.Once
	err  error
	by   map[string]map[string]string
}

func methods(t testing.TB) map[string]map[string]string {
	t.Helper()
	dir := testbed.GoogleAPIs(t)
	described.once.Do(func() { described.by, described.err = readMethods(dir) })
	if described.err != nil {
		t.Fatal(described.err)
	}
	return described.by
}

// part is a discovery document, or a part of one.
type part struct {
	Methods map[string]struct {
		ID, HTTPMethod string
		Scopes         []string
	}
	Resources map[string]*part
}

func (p *part) read(out map[string]map[string]string) {
	for _, m := range p.Methods {
		for _, s := range m.Scopes {
			if out[s] == nil {
				out[s] = make(map[string]string)
			}
			out[s][m.ID] = m.HTTPMethod
		}
	}
	for _, below := range p.Resources {
		below.read(out)
	}
}

func readMethods(dir string) (map[string]map[string]string, error) {
	out := make(map[string]map[string]string)
	return out, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "-api.json") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var p part
		if err := json.Unmarshal(data, &p); err != nil {
			return err
		}
		p.read(out)
		return nil
	})
}
