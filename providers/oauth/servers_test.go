package oauth_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/providers/oauth"
)

// mint mints one token for scopes.
func mint(t testing.TB, p broker.Provider, scopes ...string) (*broker.Minted, error) {
	t.Helper()
	g := of(t, p, scopes...)
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	return p.Mint(t.Context(), broker.MintRequest{
		Lease: strings.Repeat("m", 24), Grant: g, Rendered: rendered, Subject: alice, Expires: time.Now().Add(time.Hour), Note: func([]byte) error { return nil },
	})
}

// Whoever links an account again, in the same browser and for the same client, ends what
// was linked before, and not what has just been linked.
func TestAnAccountIsLinkedAgain(t *testing.T) {
	s := newServer(t)
	p := s.open(t, func(c *oauth.Config) { c.Revokes = "grant" })
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		linkIn(t, p, jar)
	}
	if _, err := mint(t, p, "notes:read"); err != nil {
		t.Error(err)
	}
}

// A client that has no secret shows what it has signed: with our keys, which oidc-provider
// verifies, for this server, and as ourselves.
func TestClientsByKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString
	s := newServer(t, fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"k","x":%q,"y":%q}]}`, text(point[1:33]), text(point[33:])))
	s.assert = func(claims map[string]any) (secret.String, error) {
		claims["iss"], claims["iat"] = "https://stint.example", time.Now().Unix()
		body, err := json.Marshal(claims)
		if err != nil {
			return secret.String{}, err
		}
		signed := text([]byte(`{"alg":"ES256","kid":"k","typ":"JWT"}`)) + "." + text(body)
		sum := sha256.Sum256([]byte(signed))
		a, b, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			return secret.String{}, err
		}
		return secret.New(signed + "." + text(append(a.FillBytes(make([]byte, 32)), b.FillBytes(make([]byte, 32))...))), nil
	}
	p := s.open(t, func(c *oauth.Config) {
		c.ClientID, c.ClientSecret, c.ClientAuth, c.Revokes = "https://stint.example", "", "private_key_jwt", "grant"
	})
	link(t, p)
	if result := certify(t, p, ""); result != "supported" {
		t.Error(result)
	}
	if _, err := mint(t, p, "notes:read"); err != nil {
		t.Error(err)
	}
}

// Who says what a subject is called says it of one issuer's: another's of the same name is
// somebody else.
func TestSubjectsOfAnotherIssuer(t *testing.T) {
	o, s := newDouble(t)
	s.assert = func(claims map[string]any) (secret.String, error) { return secret.New(fmt.Sprint(claims["sub"])), nil }
	o.Subject = func(_ string, form url.Values) string { return form.Get("assertion") }
	p := s.open(t, func(c *oauth.Config) { s.named(c); c.Flow, c.SubjectsOf = "assertion", "https://other.example" })
	if m, err := mint(t, p, "notes:read"); broker.CodeOf(err) != broker.BadTarget || len(o.Alive()) > 0 {
		t.Errorf("%+v, %v", m, err)
	}
}

// Linear, as emulate has it, passes over the scope of a refresh: so it is class none.
func TestLinear(t *testing.T) {
	at := testbed.Emulate(t, "linear", map[string]any{
		"users": []any{map[string]any{"name": "alice", "email": "alice@acme.test"}},
		"oauth_apps": []any{map[string]any{
			"client_id": "stint-at-as", "client_secret": word, "name": "Stint", "redirect_uris": []any{redirect}, "scopes": []any{"read", "write", "issues:create"},
		}},
	})
	s := newAt(at)
	p := s.open(t, func(c *oauth.Config) {
		*c = oauth.Config{
			Preset: "linear", ClientID: c.ClientID, ClientSecret: c.ClientSecret, Scopes: []string{"issues:create", "read", "write"},
			Authorize: at + "/oauth/authorize", Token: at + "/oauth/token", Revoke: at + "/oauth/revoke",
		}
	})
	r := broker.LinkRequest{Subject: alice, Redirect: redirect, State: "s", Verifier: strings.Repeat("v", 43)}
	where, err := p.Describe().Link.Begin(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	account, err := p.Describe().Link.Finish(t.Context(), r, installed(t, at, where))
	if err != nil || strings.Join(account.Scopes, " ") != "issues:create read write" {
		t.Fatalf("%+v, %v", account, err)
	}
	if result := certify(t, p, ""); result != "ignored" || p.Describe().Class != broker.None {
		t.Errorf("%s, %s", result, p.Describe().Class)
	}
	if out, err := p.Describe().Link.Unlink(t.Context(), alice); err != nil || out.State != broker.Revoked {
		t.Errorf("%+v, %v", out, err)
	}
}

// installed presses the button of emulate's page, and returns the code.
func installed(t *testing.T, at, where string) string {
	t.Helper()
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	form := u.Query()
	form.Set("scope", strings.ReplaceAll(form.Get("scope"), ",", " ")) // as its page writes it
	client := &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.PostForm(at+"/oauth/authorize/callback", form)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	to, err := resp.Location()
	if err != nil || to.Query().Get("code") == "" {
		t.Fatalf("%s, %v", resp.Status, err)
	}
	return to.Query().Get("code")
}

// Every preset opens with scopes of its server, and none of them narrows by itself.
func TestPresets(t *testing.T) {
	for preset, scopes := range map[string][]string{
		"atlassian": {"read:jira-work", "write:jira-work"}, "salesforce": {"api", "id"}, "notion": {"everything"}, "linear": {"read", "issues:create"},
	} {
		t.Run(preset, func(t *testing.T) {
			s := newAt("")
			p := s.open(t, func(c *oauth.Config) {
				*c = oauth.Config{Preset: preset, ClientID: c.ClientID, ClientSecret: c.ClientSecret, Scopes: scopes}
			})
			if d := p.Describe(); d.Class != broker.None || d.Link == nil {
				t.Errorf("%+v", d)
			}
			of(t, p, scopes...)
			where, err := p.Describe().Link.Begin(t.Context(), broker.LinkRequest{Subject: alice, Redirect: redirect, State: "s", Verifier: strings.Repeat("v", 43)})
			if err != nil || !strings.HasPrefix(where, "https://") {
				t.Errorf("%s, %v", where, err)
			}
		})
	}
}

// What is unlinked while it is renewed leaves nothing behind at the server.
func TestUnlinkingDuringARenewal(t *testing.T) {
	o, s := newDouble(t)
	o.SparesFamily = true
	p := s.open(t, s.named)
	linkDouble(t, o, p)
	certify(t, p, "")
	o.Renewing = func() {
		o.Renewing = nil
		if _, err := p.Describe().Link.Unlink(t.Context(), alice); err != nil {
			t.Error(err)
		}
	}
	if _, err := mint(t, p, "notes:read"); broker.CodeOf(err) != broker.NeedsLink {
		t.Errorf("%v", err)
	}
	if left, alive := o.Refresh(), o.Alive(); left != "" || len(alive) > 0 {
		t.Errorf("left are %q and %q", left, alive)
	}
}

func TestTokensThatAreNotForUs(t *testing.T) {
	for _, way := range []string{doubles.OAuthAnotherType, doubles.OAuthIssuesAnother, doubles.OAuthIssuesJWT} {
		t.Run(way, func(t *testing.T) {
			o, s := newDouble(t)
			o.Subject = func(string, url.Values) string { return "alice" }
			p := shows{s.open(t, func(c *oauth.Config) { s.named(c); c.Flow = "exchange" })}
			if result := certify(t, p, "alice's"); result != "supported" {
				t.Fatal(result)
			}
			o.Over(way)
			if m, err := mint(t, p, "notes:read"); err == nil || len(o.Alive()) > 0 {
				t.Errorf("%+v, %v, alive are %v", m, err, o.Alive())
			}
		})
	}
}

// Whoever can write metadata cannot have the client's secret sent in the clear.
func TestMetadataCannotLeaveTheIssuersScheme(t *testing.T) {
	var s *httptest.Server
	s = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(`{"issuer":"` + s.URL + `","token_endpoint":"` + strings.Replace(s.URL, "https", "http", 1) + `/token","authorization_endpoint":"` + s.URL + `/a"}`))
	}))
	t.Cleanup(s.Close)
	p := newAt(s.URL).openWith(t, s.Client(), nil)
	if err := p.Describe().Ready(context.Background()); err == nil || !strings.Contains(err.Error(), "token_endpoint") {
		t.Errorf("%v", err)
	}
}
