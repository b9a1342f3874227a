package oauth_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/providers/oauth"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/scopes/grant"
)

// session is a token, as the server's introspection sees it.
type session struct {
	s     *server
	token string
}

func (session) Close() {}

func (x session) Do(_ context.Context, scope string) error {
	got, err := x.s.ask(x.s.inspect, url.Values{"token": {x.token}})
	if err != nil {
		return err
	}
	has, _ := got["scope"].(string)
	if got["active"] != true || !slices.Contains(strings.Fields(has), scope) {
		return fmt.Errorf("%v: %w", got, providertest.ErrRefused)
	}
	return nil
}

// TestProvider runs the contract against oidc-provider.
func TestProvider(t *testing.T) {
	s := newServer(t)
	// Its end of one access token is the end of all that came of the same consent.
	p := s.open(t, func(c *oauth.Config) { c.Revokes = "grant" })
	if d := p.Describe(); d.Class != broker.None || slices.Contains(d.Modes, broker.Vend) {
		t.Fatalf("before it was certified: %+v", d)
	}
	if a := link(t, p); a.ID != "alice" || !slices.Equal(a.Scopes, scopeNames) {
		t.Fatalf("%+v", a)
	}
	if result := certify(t, p, ""); result != "supported" || p.Describe().Class != broker.Coarse {
		t.Fatalf("%s, %s", result, p.Describe().Class)
	}
	h := s.harness(t, p)
	h.Upstream, h.Variant = "oidc-provider 9.13", "refresh"
	providertest.Run(t, h)
}

// harness is that of a server, whose own introspection is the oracle.
func (s *server) harness(t *testing.T, p broker.Provider) providertest.Harness {
	acts := make(map[string]grant.Grant)
	for _, scope := range scopeNames {
		acts[scope] = of(t, p, scope)
	}
	return providertest.Harness{
		Provider: p, Subject: alice, Acts: acts, Rounds: 4, Pairs: 20, Oracle: "the server's introspection",
		Grant: func(r *rand.Rand) grant.Grant {
			n := r.Perm(len(scopeNames))
			var some []string
			for _, i := range n[:1+r.IntN(len(n)-1)] { // never all: a token for all is always too much
				some = append(some, scopeNames[i])
			}
			return of(t, p, some...)
		},
		Inexpressible: []grant.Grant{p.Describe().Schema.Everything()},
		Open: func(ctx context.Context, m *broker.Minted) (providertest.Session, error) {
			got, err := s.ask(s.inspect, url.Values{"token": {m.Token.Reveal()}})
			if err != nil {
				return nil, err
			}
			if got["active"] != true {
				return nil, providertest.ErrRefused
			}
			return session{s, m.Token.Reveal()}, nil
		},
		Ends: func(_ context.Context, m *broker.Minted) (time.Time, error) {
			got, err := s.ask(s.inspect, url.Values{"token": {m.Token.Reveal()}})
			seconds, _ := got["exp"].(float64)
			return time.Unix(int64(seconds), 0), err
		},
		Remains: func(context.Context) ([]string, error) { return s.remains(), nil },
		Within:  s.within(t, p),
	}
}

// within compares what the server says of two tokens.
func (s *server) within(t testing.TB, p broker.Provider) func(context.Context, grant.Grant, grant.Grant) (bool, error) {
	scopes := func(ctx context.Context, g grant.Grant) ([]string, error) {
		rendered, err := p.Render(g)
		if err != nil {
			return nil, err
		}
		m, err := p.Mint(ctx, broker.MintRequest{
			Lease: strings.Repeat("o", 24), Grant: g, Rendered: rendered, Subject: alice, Expires: time.Now().Add(time.Minute), Note: func([]byte) error { return nil },
		})
		if err != nil {
			return nil, err
		}
		got, err := s.ask(s.inspect, url.Values{"token": {m.Token.Reveal()}})
		text, _ := got["scope"].(string)
		_, failed := p.Revoke(ctx, broker.RevokeLease{Lease: strings.Repeat("o", 24), Handle: m.Handle})
		return strings.Fields(text), errors.Join(err, failed)
	}
	return func(ctx context.Context, a, b grant.Grant) (bool, error) {
		x, err1 := scopes(ctx, a)
		y, err2 := scopes(ctx, b)
		for _, scope := range x {
			if !slices.Contains(y, scope) {
				return false, nil
			}
		}
		if err1 != nil {
			return false, err1
		}
		return true, err2
	}
}

// newDouble is a server that ends single tokens, and misbehaves as it is told.
func newDouble(t testing.TB) (*doubles.OAuth, *server) {
	t.Helper()
	o := doubles.NewOAuth()
	t.Cleanup(o.Close)
	o.ClientID, o.Secret, o.Scopes = "stint-at-as", word, scopeNames
	s := newAt(o.URL)
	s.inspect, s.remains = "/introspect", o.Alive
	return o, s
}

func (s *server) named(c *oauth.Config) {
	c.Issuer, c.Token, c.Authorize, c.Revoke, c.Introspect = "", s.issuer+"/token", s.issuer+"/authorize", s.issuer+"/revoke", s.issuer+"/introspect"
	c.ClientSecret, c.Always = "env:SECRET", []string{}
}

// linkDouble links alice's account there.
func linkDouble(t testing.TB, o *doubles.OAuth, p broker.Provider) {
	t.Helper()
	r := broker.LinkRequest{Subject: alice, Redirect: redirect, State: "s", Verifier: strings.Repeat("v", 43)}
	where, err := p.Describe().Link.Begin(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Describe().Link.Finish(t.Context(), r, o.Code(where)); err != nil {
		t.Fatal(err)
	}
}

// overly has the server misbehave while it mints.
type overly struct {
	broker.Provider
	o   *doubles.OAuth
	way string
}

func (o overly) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	o.o.Over(o.way)
	defer o.o.Over("")
	return o.Provider.Mint(ctx, r)
}

// TestProviderThatEndsTokens runs the contract against a server that can end one token,
// for each of the flows.
func TestProviderThatEndsTokens(t *testing.T) {
	for _, flow := range []string{"refresh", "exchange", "assertion"} {
		t.Run(flow, func(t *testing.T) {
			o, s := newDouble(t)
			s.assert = func(claims map[string]any) (secret.String, error) {
				return secret.New(fmt.Sprint("said:", claims["sub"])), nil
			}
			o.Subject = func(kind string, form url.Values) string {
				if kind == "urn:ietf:params:oauth:grant-type:jwt-bearer" && form.Get("assertion") == "said:alice" ||
					kind == "urn:ietf:params:oauth:grant-type:token-exchange" && form.Get("subject_token") == "alice's" {
					return "alice"
				}
				return ""
			}
			p := s.open(t, func(c *oauth.Config) {
				s.named(c)
				c.Flow = flow
				c.SubjectsOf = map[string]string{"assertion": "https://idp.example"}[flow]
			})
			if flow == "refresh" {
				linkDouble(t, o, p)
			}
			if result := certify(t, p, "alice's"); result != "supported" {
				t.Fatal(result)
			}
			if flow == "exchange" {
				p = shows{p}
			}
			h := s.harness(t, p)
			h.Upstream, h.Variant, h.Overgrants = "our double", flow+"-revocable", map[string]broker.Provider{}
			for _, way := range []string{doubles.OAuthIgnoresScope, doubles.OAuthAddsScope, doubles.OAuthSaysNoScope, doubles.OAuthLastsLonger} {
				h.Overgrants[way] = overly{p, o, way}
			}
			providertest.Run(t, h)
		})
	}
}

// shows has the broker show the subject's own token.
type shows struct{ broker.Provider }

func (s shows) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	r.Assertion = secret.New("alice's")
	return s.Provider.Mint(ctx, r)
}

func TestServersThatDoNotNarrow(t *testing.T) {
	for way, want := range map[string]string{
		"": "supported", doubles.OAuthIgnoresScope: "ignored", doubles.OAuthSaysNoScope: "unsaid", doubles.OAuthShrinks: "shrinks", doubles.OAuthRejectsScope: "rejected",
	} {
		t.Run(want, func(t *testing.T) {
			o, s := newDouble(t)
			p := s.open(t, s.named)
			linkDouble(t, o, p)
			o.Over(way)
			if got := certify(t, p, ""); got != want {
				t.Errorf("%s", got)
			}
			if d := p.Describe(); (d.Class == broker.Coarse) != (want == "supported") {
				t.Errorf("its class is %s", d.Class)
			}
			// Another replica sees it too, and another server of the same name does not.
			if d := s.open(t, s.named).Describe(); (d.Class == broker.Coarse) != (want == "supported") {
				t.Errorf("elsewhere its class is %s", d.Class)
			}
			other := s.open(t, func(c *oauth.Config) { s.named(c); c.Token += "2" })
			if d := other.Describe(); d.Class != broker.None {
				t.Errorf("of another server it is %s", d.Class)
			}
		})
	}
	o, s := newDouble(t)
	p := s.open(t, s.named)
	linkDouble(t, o, p)
	o.Over(doubles.OAuthEndsFamily)
	_, err := p.Describe().Certify(t.Context(), broker.CertifyRequest{Subject: alice, Say: func(string) {}})
	if err == nil || !strings.Contains(err.Error(), "family or grant") {
		t.Errorf("a server that ends more than one token: %v", err)
	}
}

func TestWhatTheServerSaysIsNotRepeated(t *testing.T) {
	for name, c := range map[string]struct {
		way  string
		code broker.Code
	}{
		"a link that is dead":              {"", broker.NeedsLink},
		"a link that is dead, said as 200": {doubles.OAuthErrsWith200, broker.NeedsLink},
		"no answer":                        {doubles.OAuthLosesAnswers, broker.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			o, s := newDouble(t)
			p := s.open(t, s.named)
			linkDouble(t, o, p)
			if c.code == broker.NeedsLink {
				_, _ = s.ask("/revoke", url.Values{"token": {o.Refresh()}}) // which answers nothing
			}
			o.Over(c.way)
			g := of(t, p, "notes:read")
			rendered, err := p.Render(g)
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Mint(t.Context(), broker.MintRequest{
				Lease: strings.Repeat("a", 24), Grant: g, Rendered: rendered, Subject: alice, Expires: time.Now().Add(time.Hour), Note: func([]byte) error { return nil },
			})
			if broker.CodeOf(err) != c.code || strings.Contains(fmt.Sprint(err), "a secret of the server's") {
				t.Errorf("%v", err)
			}
		})
	}
}
