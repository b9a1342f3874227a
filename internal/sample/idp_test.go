package sample

import (
	"context"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/zitadel/oidc/v3/pkg/client/rp"
	"github.com/zitadel/oidc/v3/pkg/oidc"

	"github.com/stint-dev/stint/internal/testbed"
)

const (
	stintAudience = "https://stint.example"
	mcpAudience   = "https://mcp.example/orders"
)

func startIdP(t *testing.T) (*IdP, *testbed.Clock) {
	t.Helper()
	c := &testbed.Clock{}
	idp, err := StartIdP(t.Context(), IdPConfig{Audience: stintAudience, Resources: []string{mcpAudience}, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := idp.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return idp, c
}

func signIn(t *testing.T, idp *IdP, user, resource string) *Tokens {
	t.Helper()
	tokens, err := (Agent{}).SignIn(t.Context(), SignIn{idp.URL(), DesktopClient, user, user + "-password", resource})
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// verifyAccess verifies an access token with an implementation of JOSE that had no
// part in making it, by the keys that the provider publishes.
func verifyAccess(t *testing.T, idp *IdP, raw string) *jwt.Token {
	t.Helper()
	resp, err := http.Get(idp.URL() + "/keys")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var set struct {
		Keys []map[string]string `json:"keys"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("keys: %v, %v", set, err)
	}
	k := set.Keys[0]
	number := func(s string) *big.Int {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return new(big.Int).SetBytes(b)
	}
	if k["kty"] != "RSA" || k["use"] != "sig" || k["alg"] != "RS256" || len(k) != 6 {
		t.Fatalf("the key is %v", k)
	}
	token, err := jwt.Parse(raw, func(tok *jwt.Token) (any, error) {
		if tok.Header["kid"] != k["kid"] {
			return nil, errors.New("the token names another key")
		}
		return &rsa.PublicKey{N: number(k["n"]), E: int(number(k["e"]).Int64())}, nil
	}, jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(idp.URL()), jwt.WithExpirationRequired(), jwt.WithIssuedAt())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestAnAccessTokenSaysWhatRFC9068Wants(t *testing.T) {
	idp, _ := startIdP(t)
	for user, groups := range map[string][]any{
		"alice": {"engineering"}, "bob": {}, "carol": {"engineering", "maintainers"},
	} {
		token := verifyAccess(t, idp, signIn(t, idp, user, "").Access.Reveal())
		if h := token.Header; h["typ"] != "at+jwt" || h["alg"] != "RS256" || len(h) != 3 {
			t.Errorf("the header is %v", h)
		}
		claims := token.Claims.(jwt.MapClaims)
		got, ok := claims["groups"].([]any)
		if !ok || !slices.Equal(got, groups) {
			t.Errorf("the groups of %s are %v", user, claims["groups"])
		}
		aud, err := claims.GetAudience()
		if err != nil || !slices.Equal(aud, []string{stintAudience}) {
			t.Errorf("the audience is %v", aud)
		}
		for name, want := range map[string]any{"sub": user, "client_id": DesktopClient, "scope": "openid", "email": user + "@example.com"} {
			if claims[name] != want {
				t.Errorf("claim %s is %v, not %v", name, claims[name], want)
			}
		}
		for _, name := range []string{"jti", "sid", "auth_time", "iat", "exp"} {
			if claims[name] == nil {
				t.Errorf("there is no claim %s", name)
			}
		}
		if claims["nonce"] != nil || claims["at_hash"] != nil {
			t.Error("an access token has claims of an ID token")
		}
		t.Logf("%s: %v %v", user, token.Header, claims)
	}
}

func TestResourceIsTheAudience(t *testing.T) {
	idp, _ := startIdP(t)
	claims := verifyAccess(t, idp, signIn(t, idp, "alice", mcpAudience).Access.Reveal()).Claims
	if aud, err := claims.GetAudience(); err != nil || !slices.Equal(aud, []string{mcpAudience}) {
		t.Errorf("the audience is %v", aud)
	}
}

func TestAnotherImplementationTakesTheIDToken(t *testing.T) {
	idp, _ := startIdP(t)
	f, err := newFlow(t.Context(), idp.URL(), DesktopClient, "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.http.CloseIdleConnections()
	code, err := f.authorize(t.Context(), "carol", "carol-password")
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := f.redeem(t.Context(), code)
	if err != nil {
		t.Fatal(err)
	}
	v := rp.NewIDTokenVerifier(idp.URL(), DesktopClient, rp.NewRemoteKeySet(f.http, idp.URL()+"/keys"),
		rp.WithNonce(func(context.Context) string { return f.nonce }), rp.WithAuthTimeMaxAge(time.Minute))
	claims, err := rp.VerifyTokens[*oidc.IDTokenClaims](t.Context(), tokens.Access.Reveal(), tokens.ID.Reveal(), v)
	if err != nil {
		t.Fatal(err)
	}
	if claims.SessionID == "" || claims.Subject != "carol" || claims.AccessTokenHash == "" || len(claims.Claims["groups"].([]any)) != 2 {
		t.Errorf("the claims are %+v", claims)
	}
	header, _, _ := strings.Cut(tokens.ID.Reveal(), ".")
	if h, _ := base64.RawURLEncoding.DecodeString(header); !strings.Contains(string(h), `"typ":"JWT"`) {
		t.Errorf("the header is %s", h)
	}
	if sid := verifyAccess(t, idp, tokens.Access.Reveal()).Claims.(jwt.MapClaims)["sid"]; sid != claims.SessionID {
		t.Errorf("the sessions are %v and %s", sid, claims.SessionID)
	}
	payload, _ := base64.RawURLEncoding.DecodeString(strings.Split(tokens.ID.Reveal(), ".")[1])
	t.Logf("%s", payload)
}

func TestEachSignInIsASessionOfItsOwn(t *testing.T) {
	idp, _ := startIdP(t)
	sid := func() any {
		return verifyAccess(t, idp, signIn(t, idp, "alice", "").Access.Reveal()).Claims.(jwt.MapClaims)["sid"]
	}
	if a, b := sid(), sid(); a == b {
		t.Errorf("both are %v", a)
	}
}

// bend changes the authorization request that a flow makes.
func bend(f *flow, change func(url.Values)) {
	f.http.Transport = rewrite{f.http.Transport, func(r *http.Request) {
		if r.URL.Path == "/authorize" {
			q := r.URL.Query()
			change(q)
			r.URL.RawQuery = q.Encode()
		}
	}, nil}
}

// rewrite changes requests and answers on their way.
type rewrite struct {
	next    http.RoundTripper
	request func(*http.Request)
	answer  func(*http.Response)
}

func (w rewrite) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if w.request != nil {
		w.request(r)
	}
	resp, err := w.next.RoundTrip(r)
	if err == nil && w.answer != nil {
		w.answer(resp)
	}
	return resp, err
}

func TestWhatAnAuthorizationRequestIsRefusedFor(t *testing.T) {
	idp, _ := startIdP(t)
	tests := map[string]struct {
		change func(url.Values)
		code   string // error, in the redirect
		status int    // or of the page, where nothing may be redirected
	}{
		"an unknown client is not redirected":       {func(q url.Values) { q.Set("client_id", "other") }, "", 400},
		"another redirect URI is not redirected to": {func(q url.Values) { q.Set("redirect_uri", "https://evil.example/callback") }, "", 400},
		"another path on loopback is not either":    {func(q url.Values) { q.Set("redirect_uri", "http://127.0.0.1/other") }, "", 400},
		"an unknown response mode":                  {func(q url.Values) { q.Set("response_mode", "fragment") }, "", 400},
		"no PKCE":                                   {func(q url.Values) { q.Del("code_challenge"); q.Del("code_challenge_method") }, "invalid_request", 0},
		"PKCE without a method":                     {func(q url.Values) { q.Del("code_challenge_method") }, "invalid_request", 0},
		"plain PKCE":                                {func(q url.Values) { q.Set("code_challenge_method", "plain") }, "invalid_request", 0},
		"no openid":                                 {func(q url.Values) { q.Set("scope", "profile") }, "invalid_scope", 0},
		"another response type":                     {func(q url.Values) { q.Set("response_type", "token") }, "unauthorized_client", 0},
		"a sign-in without a page":                  {func(q url.Values) { q.Set("prompt", "none") }, "login_required", 0},
		"a request object":                          {func(q url.Values) { q.Set("request", "e30.e30.") }, "request_not_supported", 0},
		"an unknown resource":                       {func(q url.Values) { q.Set("resource", "https://other.example") }, "invalid_target", 0},
		"two resources":                             {func(q url.Values) { q.Add("resource", mcpAudience); q.Add("resource", stintAudience) }, "invalid_target", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, err := newFlow(t.Context(), idp.URL(), DesktopClient, "")
			if err != nil {
				t.Fatal(err)
			}
			inner := f.http.Transport.(*http.Transport)
			defer inner.CloseIdleConnections()
			bend(f, tt.change)
			_, err = f.authorize(t.Context(), "alice", "alice-password")
			if r := (*Refusal)(nil); !errors.As(err, &r) || r.Status != tt.status || tt.code != "" && r.Code != tt.code {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestANativeClientChoosesItsPort(t *testing.T) {
	idp, _ := startIdP(t)
	f, err := newFlow(t.Context(), idp.URL(), DesktopClient, "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.http.CloseIdleConnections()
	f.redirect = "http://127.0.0.1:51004/callback" // RFC 8252 section 7.3
	code, err := f.authorize(t.Context(), "alice", "alice-password")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.redeem(t.Context(), code); err != nil {
		t.Error(err)
	}
}

func TestWhatACodeIsRefusedFor(t *testing.T) {
	idp, c := startIdP(t)
	tests := map[string]struct {
		change func(f *flow, code *string)
		want   string
	}{
		"another verifier":                {func(f *flow, _ *string) { f.verifier = strings.Repeat("a", 52) }, "invalid_grant"},
		"no verifier":                     {func(f *flow, _ *string) { f.verifier = "" }, "invalid_request"},
		"the challenge in place of it":    {func(f *flow, _ *string) { f.verifier = oidc.NewSHACodeChallenge(f.verifier) }, "invalid_grant"},
		"another redirect URI":            {func(f *flow, _ *string) { f.redirect = "http://127.0.0.1:1/callback" }, "invalid_grant"},
		"another client":                  {func(f *flow, _ *string) { f.clientID = "other" }, "invalid_client"},
		"another code":                    {func(_ *flow, code *string) { *code = "other" }, "invalid_grant"},
		"too late":                        {func(*flow, *string) { c.Move(codeTime) }, "invalid_grant"},
		"another resource than was asked": {func(f *flow, _ *string) { f.resource = mcpAudience }, "invalid_target"},
		"a second time":                   {func(f *flow, code *string) { _, _ = f.redeem(context.Background(), *code) }, "invalid_grant"},
		"a second time, after a wrong first": {func(f *flow, code *string) {
			right := f.verifier
			f.verifier = strings.Repeat("a", 52)
			_, _ = f.redeem(context.Background(), *code)
			f.verifier = right
		}, "invalid_grant"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, err := newFlow(t.Context(), idp.URL(), DesktopClient, "")
			if err != nil {
				t.Fatal(err)
			}
			defer f.http.CloseIdleConnections()
			code, err := f.authorize(t.Context(), "alice", "alice-password")
			if err != nil {
				t.Fatal(err)
			}
			tt.change(f, &code)
			_, err = f.redeem(t.Context(), code)
			if r := (*Refusal)(nil); !errors.As(err, &r) || r.Code != tt.want {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestTheFormIsForOneBrowserAndFewAttempts(t *testing.T) {
	idp, c := startIdP(t)
	begin := func(t *testing.T) (*flow, *http.Response) {
		t.Helper()
		f, err := newFlow(t.Context(), idp.URL(), DesktopClient, "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.http.CloseIdleConnections)
		u, _ := url.Parse(f.meta.AuthorizationEndpoint)
		resp, _, err := f.send(t.Context(), "", http.MethodGet, withQuery(u, "response_type", "code", "client_id", DesktopClient,
			"redirect_uri", desktopRedirect, "scope", "openid", "code_challenge", strings.Repeat("a", 43), "code_challenge_method", "S256"), nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("the form: %v, %v", resp, err)
		}
		return f, resp
	}
	form := func(resp *http.Response, password string) url.Values {
		return url.Values{"id": {resp.Request.URL.Query().Get("id")}, "user": {"alice"}, "password": {password}}
	}
	post := func(t *testing.T, f *flow, form url.Values) int {
		t.Helper()
		resp, _, err := f.send(t.Context(), "", http.MethodPost, idp.URL()+signInPath, form)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	t.Run("another browser is not signed in", func(t *testing.T) {
		f, page := begin(t)
		f.http.Jar, _ = cookiejar.New(nil)
		if got := post(t, f, form(page, "alice-password")); got != http.StatusBadRequest {
			t.Errorf("the status is %d", got)
		}
	})
	t.Run("the form is not shown to another browser", func(t *testing.T) {
		f, page := begin(t)
		f.http.Jar, _ = cookiejar.New(nil)
		if resp, _, err := f.send(t.Context(), "", http.MethodGet, page.Request.URL.String(), nil); err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%v, %v", resp, err)
		}
	})
	t.Run("after five failures the right password is too late", func(t *testing.T) {
		f, page := begin(t)
		for range maxFailures {
			if got := post(t, f, form(page, "wrong")); got != http.StatusForbidden {
				t.Fatalf("the status is %d", got)
			}
		}
		if got := post(t, f, form(page, "alice-password")); got != http.StatusBadRequest {
			t.Errorf("the status is %d", got)
		}
	})
	t.Run("the form is good for one sign-in", func(t *testing.T) {
		f, page := begin(t)
		if got := post(t, f, form(page, "alice-password")); got != http.StatusSeeOther {
			t.Fatalf("the status is %d", got)
		}
		if got := post(t, f, form(page, "alice-password")); got != http.StatusBadRequest {
			t.Errorf("the status is %d", got)
		}
	})
	t.Run("the form ends", func(t *testing.T) {
		f, page := begin(t)
		c.Move(signInTime)
		if got := post(t, f, form(page, "alice-password")); got != http.StatusBadRequest {
			t.Errorf("the status is %d", got)
		}
	})
	t.Run("a page of somebody else cannot frame it", func(t *testing.T) {
		_, page := begin(t)
		if csp := page.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "frame-ancestors 'none'") || !strings.Contains(csp, "default-src 'none'") {
			t.Errorf("the policy is %q", csp)
		}
	})
}

func TestSoManyCanSignInAtATime(t *testing.T) {
	c := &testbed.Clock{}
	w := newWaiting(c.Now)
	for i := range maxWaiting {
		if !w.begin(&attempt{id: string(rune('a' + i))}) {
			t.Fatalf("attempt %d is refused", i)
		}
	}
	if w.begin(&attempt{id: "one more"}) {
		t.Error("one more is taken")
	}
	c.Move(signInTime)
	if !w.begin(&attempt{id: "later"}) {
		t.Error("later ones are refused")
	}
}

func TestTheProviderHasNothingThatItDoesNotSay(t *testing.T) {
	idp, _ := startIdP(t)
	resp, err := http.Get(idp.URL() + "/.well-known/openid-configuration")
	if err != nil {
		t.Fatal(err)
	}
	body, err := readBody(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{"issuer": idp.URL(), "authorization_response_iss_parameter_supported": true} {
		if doc[name] != want {
			t.Errorf("%s is %v", name, doc[name])
		}
	}
	for _, name := range []string{"userinfo_endpoint", "introspection_endpoint", "revocation_endpoint", "end_session_endpoint", "device_authorization_endpoint"} {
		if doc[name] != nil {
			t.Errorf("%s is %v", name, doc[name])
		}
	}
	for _, path := range []string{"/userinfo", "/oauth/introspect", "/revoke", "/end_session", "/device_authorization", "/authorize/callback", "/healthz"} {
		resp, err := http.Get(idp.URL() + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s answers %d", path, resp.StatusCode)
		}
	}
	t.Logf("%s", body)
}
