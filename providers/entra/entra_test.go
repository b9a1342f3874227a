package entra_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	randv2 "math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/outbound"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/entra"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/scopes/grant"
)

const (
	alice  = "https://login.microsoftonline.com/11111111-1111-1111-1111-111111111111/v2.0#alice"
	tenant = "11111111-1111-1111-1111-111111111111"
	graph  = "https://graph.microsoft.com"
	front  = "20000000-0000-0000-0000-000000000000"
)

func id(n int) string { return fmt.Sprintf("30000000-0000-0000-0000-%012d", n) }

// profiles are those of the tests, with the scopes of each.
var profiles = map[string][]string{
	"mail-read":  {"Mail.Read"},
	"mail-write": {"Mail.Read", "Mail.ReadWrite"},
	"mail-all":   {"Mail.Read", "Mail.ReadWrite", "Mail.Send"},
	"files":      {"Files.Read", "openid", "profile"},
	"both":       {"Files.Read", "openid", "profile", "Mail.Read"},
}

// bed is a double with registrations for the profiles, and the settings for them.
type bed struct {
	*doubles.Entra
	cfg  entra.Config
	deps upstream.Deps
	log  strings.Builder
	pem  string
}

func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{Entra: doubles.NewEntra(tenant)}
	t.Cleanup(b.Close)
	t.Cleanup(func() {
		if odd := b.Strange(); len(odd) > 0 && !t.Failed() {
			t.Errorf("Entra was asked what it does not take: %q", odd)
		}
	})
	b.cfg = entra.Config{Tenant: tenant, Login: b.URL, Profiles: map[string]entra.Profile{}, Front: &entra.App{ClientID: front, ClientSecret: "env:FRONT"}}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range profiles {
			if !yield(name) {
				return
			}
		}
	})
	b.Apps[front] = &doubles.EntraApp{Secret: "front secret", URIs: []string{"api://" + front}}
	for i, name := range names {
		app := &doubles.EntraApp{Secret: "secret of " + name, URIs: []string{"api://" + id(i)}, Exposes: []string{front}}
		for _, s := range profiles[name] {
			if s != "openid" && s != "profile" {
				s = graph + "/" + s
			}
			app.Granted = append(app.Granted, s)
		}
		b.Apps[id(i)] = app
		b.cfg.Profiles[name] = entra.Profile{ClientID: id(i), ClientSecret: "env:" + name, Scopes: profiles[name], Reads: name == "mail-read" || name == "files"}
	}
	b.deps = upstream.Deps{
		Now: time.Now, Log: slog.New(slog.NewTextHandler(&b.log, nil)),
		HTTP: func(hosts []string, _ []byte) (*http.Client, error) {
			return outbound.New(outbound.Policy{Hosts: hosts}), nil
		},
		Secret: func(_ context.Context, ref string) (secret.String, error) {
			switch name := strings.TrimPrefix(ref, "env:"); name {
			case "FRONT":
				return secret.New("front secret"), nil
			case "PEM":
				return secret.New(b.pem), nil
			default:
				return secret.New("secret of " + name), nil
			}
		},
	}
	return b
}

// asserting gives each request the subject's token, as the broker does.
type asserting struct {
	broker.Provider
	token func() string
}

func (a asserting) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	r.Assertion = secret.New(a.token())
	return a.Provider.Mint(ctx, r)
}

func (b *bed) open(t testing.TB) broker.Provider {
	t.Helper()
	p, err := entra.Open(t.Context(), "corp", func(v any) error { *v.(*entra.Config) = b.cfg; return nil }, b.deps)
	if err != nil {
		t.Fatal(err)
	}
	return asserting{p, func() string { return b.SignIn("alice", "api://"+front) }}
}

func of(t testing.TB, p broker.Provider, tenant, profile string) grant.Grant {
	t.Helper()
	g, err := p.Describe().Schema.ParseValue(map[string]any{"tenant": tenant, "profile": profile})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func mint(t testing.TB, p broker.Provider, profile string) (*broker.Minted, error) {
	t.Helper()
	g := of(t, p, tenant, profile)
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	return p.Mint(t.Context(), broker.MintRequest{
		Lease: "abcdefghijklmnop12345678", Grant: g, Rendered: rendered, Subject: alice, Pseudonym: "pseudonym",
		Expires: time.Now().Add(p.Describe().MaxLifetime), Note: func([]byte) error { return nil },
	})
}

// session uses a token for what its scopes allow.
type session struct {
	b     *bed
	token string
}

func (session) Close() {}

func (s session) Do(_ context.Context, act string) error {
	t := s.b.Token(s.token)
	if t != nil && t.Subject == "alice" && t.Audience == graph && slices.Contains(t.Scopes, act) {
		return nil
	}
	return fmt.Errorf("%s: %w", act, providertest.ErrRefused)
}

func TestProvider(t *testing.T) {
	b := newBed(t)
	p := b.open(t)
	names := []string{"mail-read", "mail-write", "mail-all", "files", "both"}
	h := providertest.Harness{
		Provider: p, Subject: alice, Upstream: "our double", Oracle: "sets of our double", Rounds: 16,
		Grant: func(r *randv2.Rand) grant.Grant { return of(t, p, tenant, names[r.IntN(len(names))]) },
		Inexpressible: []grant.Grant{
			p.Describe().Schema.Everything(), of(t, p, "*", "files"), of(t, p, tenant, "*"),
			of(t, p, "99999999-1111-1111-1111-111111111111", "files"),
		},
		Acts: map[string]grant.Grant{
			"Mail.Read": of(t, p, tenant, "mail-read"), "Mail.ReadWrite": of(t, p, tenant, "mail-write"),
			"Mail.Send": of(t, p, tenant, "mail-all"), "Files.Read": of(t, p, tenant, "files"),
		},
		Open: func(_ context.Context, m *broker.Minted) (providertest.Session, error) {
			if b.Token(m.Token.Reveal()) == nil {
				return nil, providertest.ErrRefused
			}
			return session{b, m.Token.Reveal()}, nil
		},
		Ends: func(_ context.Context, m *broker.Minted) (time.Time, error) {
			return b.Token(m.Token.Reveal()).Ends, nil
		},
		Remains: func(context.Context) ([]string, error) { return nil, nil },
		// What the registrations were granted, as the double has it.
		Within: func(_ context.Context, x, y grant.Grant) (bool, error) {
			granted := func(g grant.Grant) []string {
				_, atoms := g.Dimension("profile")
				return b.Apps[b.cfg.Profiles[atoms[0][0]].ClientID].Granted
			}
			for _, s := range granted(x) {
				if !slices.Contains(granted(y), s) {
					return false, nil
				}
			}
			return true, nil
		},
		Overgrants: map[string]broker.Provider{},
	}
	for _, how := range []string{doubles.EntraOverGrants, doubles.EntraLastsLonger, doubles.EntraSaysNoScope, doubles.EntraGivesLess} {
		bad := newBed(t)
		bad.Over(how)
		h.Overgrants[how] = bad.open(t)
	}
	// A registration that was granted more than its profile says: the usual mistake.
	loose := newBed(t)
	for _, app := range loose.Apps {
		if len(app.Granted) > 0 {
			app.Granted = append(app.Granted, graph+"/Directory.Read.All")
		}
	}
	h.Overgrants["a registration that was granted more than its profile"] = loose.open(t)
	providertest.Run(t, h)
	if !strings.Contains(loose.log.String(), "profile over-consented") || strings.Contains(loose.log.String(), "Directory") {
		t.Errorf("logged is %q", loose.log.String())
	}
}

func TestAProfileIsARegistrationOfItsOwn(t *testing.T) {
	t.Parallel()
	one := func(change func(*entra.Profile)) func(*entra.Config) {
		return func(c *entra.Config) {
			p := c.Profiles["files"]
			change(&p)
			c.Profiles["files"] = p
		}
	}
	for name, c := range map[string]struct {
		change func(*entra.Config)
		wants  string
	}{
		"settings that are enough":          {func(*entra.Config) {}, ""},
		"no profiles":                       {func(c *entra.Config) { c.Profiles = nil }, "there are none"},
		"a tenant by name":                  {func(c *entra.Config) { c.Tenant = "acme.onmicrosoft.com" }, "tenant"},
		"the tenant of everybody":           {func(c *entra.Config) { c.Tenant = "common" }, "tenant"},
		"a registration twice":              {one(func(p *entra.Profile) { p.ClientID = id(0) }), "one registration"},
		"two profiles with the same scopes": {one(func(p *entra.Profile) { p.Scopes = []string{"mail.read"} }), "same scopes"},
		"everything there is":               {one(func(p *entra.Profile) { p.Scopes = []string{".default"} }), "no permission"},
		"a token to be refreshed":           {one(func(p *entra.Profile) { p.Scopes = []string{"Files.Read", "offline_access"} }), "no permission"},
		"another API's permission":          {one(func(p *entra.Profile) { p.Scopes = []string{"https://vault.azure.net/user_impersonation"} }), "no permission"},
		"scopes for signing in alone":       {one(func(p *entra.Profile) { p.Scopes = []string{"openid"} }), "no permission of the API"},
		"a scope twice":                     {one(func(p *entra.Profile) { p.Scopes = []string{"Files.Read", "files.read"} }), "twice"},
		"no credential":                     {one(func(p *entra.Profile) { p.ClientSecret = "" }), "either"},
		"two credentials":                   {one(func(p *entra.Profile) { p.Certificate = "env:PEM" }), "either"},
		"an id in upper case":               {one(func(p *entra.Profile) { p.ClientID = "3000000A-0000-0000-0000-000000000000" }), "application id"},
		"a front that is a profile":         {one(func(p *entra.Profile) { p.ClientID = front }), "front is another"},
		"a name that is none":               {func(c *entra.Config) { c.Profiles["Files/1"] = c.Profiles["files"] }, "lower-case"},
		"a life beyond any policy":          {func(c *entra.Config) { c.TokenLifetime.Duration = 48 * time.Hour }, "token_lifetime"},
		"an order that is no lattice": {func(c *entra.Config) {
			for i, s := range [][]string{{"A", "B", "C"}, {"A", "B", "D"}, {"A"}, {"B"}} {
				c.Profiles[fmt.Sprint("x", i)] = entra.Profile{ClientID: id(100 + i), ClientSecret: "env:X", Scopes: s}
			}
		}, "no single greatest"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			c.change(&b.cfg)
			_, err := entra.Open(t.Context(), "corp", func(v any) error { *v.(*entra.Config) = b.cfg; return nil }, b.deps)
			if (err == nil) != (c.wants == "") || err != nil && !strings.Contains(err.Error(), c.wants) {
				t.Errorf("%v, wanted %q", err, c.wants)
			}
		})
	}
	b := newBed(t)
	p := b.open(t)
	if m := grant.Meet(of(t, p, tenant, "mail-all"), of(t, p, tenant, "both")); !m.Equal(of(t, p, tenant, "mail-read")) {
		t.Errorf("what two profiles have in common is %s", m)
	}
	if !of(t, p, tenant, "files").ReadOnly() || of(t, p, tenant, "both").ReadOnly() {
		t.Error("what only reads is not what the settings say")
	}
}

func TestWhatTheSubjectTokenIsFor(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p := b.open(t).(asserting)
	for name, c := range map[string]struct {
		token string
		hops  int // 0: refused
	}{
		"for front":                      {b.SignIn("alice", "api://"+front), 2},
		"for front, by its id":           {b.SignIn("alice", front), 2},
		"for the profile's registration": {b.SignIn("alice", b.cfg.Profiles["files"].ClientID), 1},
		"for another profile's":          {b.SignIn("alice", b.cfg.Profiles["both"].ClientID), 0},
		"for Graph itself":               {b.SignIn("alice", graph), 0},
		"no JWT":                         {"opaque", 0},
		"of another directory":           {"e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"aud":"`+front+`","tid":"x","scp":"a"}`)) + ".x", 0},
		"an ID token":                    {"e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"aud":"`+front+`","tid":"`+tenant+`"}`)) + ".x", 0},
		"an application's own":           {"e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"aud":"`+front+`","tid":"`+tenant+`","scp":"a","idtyp":"app"}`)) + ".x", 0},
		"none":                           {"", 0},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(b.Asked())
			p.token = func() string { return c.token }
			m, err := mint(t, p, "files")
			asked := b.Asked()[before:]
			if c.hops == 0 {
				if broker.CodeOf(err) != broker.BadToken || len(asked) > 0 {
					t.Errorf("%v after %d requests", err, len(asked))
				}
				return
			}
			if err != nil || len(asked) != c.hops {
				t.Fatalf("%v after %d requests", err, len(asked))
			}
			last := asked[len(asked)-1]
			if last.Get("scope") != graph+"/Files.Read" || strings.Contains(fmt.Sprint(asked), "offline_access") || strings.Contains(last.Get("scope"), "openid") {
				t.Errorf("asked for %q", last.Get("scope"))
			}
			if got := b.Token(m.Token.Reveal()); got.Subject != "alice" || got.Client != b.cfg.Profiles["files"].ClientID {
				t.Errorf("%+v", got)
			}
			if strings.Contains(string(m.Handle)+fmt.Sprint(m.Upstream), "refresh") {
				t.Error("something of the refresh token is kept")
			}
		})
	}
}

func TestWhatEntraRefuses(t *testing.T) {
	t.Parallel()
	for how, want := range map[string]broker.Code{
		doubles.EntraStepsUp: broker.NeedsLink, doubles.EntraRefuses: broker.NeedsLink, doubles.EntraGivesLess: broker.BadScope,
	} {
		b := newBed(t)
		b.Over(how)
		_, err := mint(t, b.open(t), "mail-all")
		e := broker.AsError(err)
		if e.Code != want || strings.Contains(err.Error(), "AADSTS") || strings.Contains(err.Error(), "upstream text") {
			t.Errorf("%s: %v", how, err)
		}
		if (e.Claims == `{"access_token":{"acrs":{"essential":true,"value":"c1"}}}`) != (how == doubles.EntraStepsUp) {
			t.Errorf("%s: claims are %q", how, e.Claims)
		}
	}
	b := newBed(t)
	for _, app := range b.Apps {
		app.Secret = "another"
	}
	if _, err := mint(t, b.open(t), "files"); broker.CodeOf(err) != broker.Internal {
		t.Errorf("a secret that is wrong: %v", err)
	}
}

// A profile whose registration has a certificate, in place of a secret.
func TestCertificates(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stint"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(key)
	whole := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	b := newBed(t)
	b.pem = whole
	sum := sha256.Sum256(der)
	files := b.cfg.Profiles["files"]
	files.ClientSecret, files.Certificate = "", "env:PEM"
	b.cfg.Profiles["files"] = files
	app := b.Apps[files.ClientID]
	app.Secret, app.Public, app.Digest = "", &key.PublicKey, base64.RawURLEncoding.EncodeToString(sum[:])
	p := b.open(t)
	if _, err := mint(t, p, "files"); err != nil {
		t.Fatal(err)
	}
	other, _ := rsa.GenerateKey(rand.Reader, 2048)
	pkcs8, _ = x509.MarshalPKCS8PrivateKey(other)
	for name, text := range map[string]string{
		"without a key":   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		"another's key":   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
		"not even PEM":    "x",
		"no certificates": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
	} {
		b.pem = text
		if _, err := mint(t, p, "files"); err == nil || errors.Is(err, broker.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
