package sample

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// The identity provider's clients: public native ones, which prove themselves by PKCE,
// and are redirected to a path at any port of loopback (RFC 8252 section 7.3).
// StintClient is Stint's own sign-in.
const (
	DesktopClient   = "desktop"
	desktopRedirect = "http://127.0.0.1/callback"
	StintClient     = "stint"
	stintRedirect   = "http://127.0.0.1/login/callback"
	connectRedirect = "http://127.0.0.1/connect/callback"
)

// clients are those that there are.
var clients = map[string]native{
	DesktopClient: {DesktopClient, []string{desktopRedirect}}, StintClient: {StintClient, []string{stintRedirect, connectRedirect}},
}

// User is somebody who can sign in. The password is no secret: it is the same
// everywhere.
type User struct {
	Name, Password, Email string
	Groups                []string
}

func sampleUsers() []User {
	return []User{
		{"alice", "alice-password", "alice@example.com", []string{"engineering"}},
		{"bob", "bob-password", "bob@example.com", []string{}},
		{"carol", "carol-password", "carol@example.com", []string{"engineering", "maintainers"}},
	}
}

// IdPConfig says how the identity provider works.
type IdPConfig struct {
	// Listener is where it listens, on loopback; nil: a free port.
	Listener net.Listener
	// Audience is whom access tokens are for if the request names no resource.
	Audience string
	// Resources are those that a request may name (RFC 8707), next to Audience.
	Resources []string
	// TokenLifetime is how long tokens are good for; 0: 15 minutes.
	TokenLifetime time.Duration
	// Now is the clock; nil: the real one.
	Now func() time.Time
	// Log is told what goes wrong; nil: nobody is. The library that does the
	// protocol logs to slog's default besides, which nothing here can change.
	Log *slog.Logger
}

// IdP is an OpenID Provider: authorization code with PKCE, a page to sign in,
// access tokens by RFC 9068, ID tokens, and nothing else.
type IdP struct{ *server }

// StartIdP starts an identity provider and returns when it listens. It ends with
// ctx, or when it is closed. An error says what is missing in cfg, or why it
// cannot listen.
func StartIdP(ctx context.Context, cfg IdPConfig) (*IdP, error) {
	if cfg.Audience == "" {
		return nil, errors.New("identity provider: the audience is missing")
	}
	if cfg.TokenLifetime == 0 {
		cfg.TokenLifetime = 15 * time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	key, err := newSigningKey()
	if err != nil {
		return nil, fmt.Errorf("identity provider: %w", err)
	}
	l, err := listen(cfg.Listener)
	if err != nil {
		return nil, fmt.Errorf("identity provider: %w", err)
	}
	p := &provider{
		cfg: cfg, issuer: "http://" + l.Addr().String(), key: key,
		users: sampleUsers(), waiting: newWaiting(cfg.Now), form: newForm(),
	}
	return &IdP{serve(ctx, l, p.handler(), orDiscard(cfg.Log))}, nil
}

// URL is the issuer identifier: http://127.0.0.1:PORT.
func (i *IdP) URL() string { return i.base }

// Users are those who can sign in.
func (i *IdP) Users() []User { return sampleUsers() }

// provider is the part of the protocol that the library leaves to its user: whom
// it knows, what it remembers, and what its tokens say.
type provider struct {
	op.UnimplementedServer
	cfg     IdPConfig
	issuer  string
	key     *signingKey
	users   []User
	waiting *waiting
	form    *template.Template
}

var _ op.Server = (*provider)(nil)

// handler routes to the library what the provider has, and nothing else.
func (p *provider) handler() http.Handler {
	protocol := op.RegisterServer(p, op.Endpoints{
		Authorization: op.NewEndpoint("authorize"), Token: op.NewEndpoint("oauth/token"), JwksURI: op.NewEndpoint("keys"),
	}, op.WithServerCORSOptions(nil))
	mux := http.NewServeMux()
	mux.Handle("GET "+oidc.DiscoveryEndpoint, protocol)
	mux.Handle("GET /keys", protocol)
	mux.Handle("GET /authorize", p.namingIssuer(protocol))
	mux.Handle("POST /authorize", p.namingIssuer(protocol))
	mux.Handle("POST /oauth/token", protocol)
	mux.HandleFunc("GET "+signInPath, p.showForm)
	mux.HandleFunc("POST "+signInPath, p.takeForm)
	return mux
}

// discovery is the library's document, and what it has no member for.
type discovery struct {
	*oidc.DiscoveryConfiguration
	IssParameter bool `json:"authorization_response_iss_parameter_supported"` // RFC 9207 section 3
}

// Discovery implements [op.Server].
func (p *provider) Discovery(context.Context, *op.Request[struct{}]) (*op.Response, error) {
	return op.NewResponse(discovery{&oidc.DiscoveryConfiguration{
		Issuer: p.issuer, AuthorizationEndpoint: p.issuer + "/authorize", TokenEndpoint: p.issuer + "/oauth/token",
		JwksURI: p.issuer + "/keys", ScopesSupported: []string{oidc.ScopeOpenID},
		ResponseTypesSupported: []string{string(oidc.ResponseTypeCode)}, ResponseModesSupported: []string{string(oidc.ResponseModeQuery)},
		GrantTypesSupported: []oidc.GrantType{oidc.GrantTypeCode}, SubjectTypesSupported: []string{"public"},
		IDTokenSigningAlgValuesSupported:  []string{signingAlgorithm},
		TokenEndpointAuthMethodsSupported: []oidc.AuthMethod{oidc.AuthMethodNone},
		CodeChallengeMethodsSupported:     []oidc.CodeChallengeMethod{oidc.CodeChallengeMethodS256},
		ClaimsSupported:                   []string{"iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "amr", "azp", "at_hash", "sid", "email", "groups"},
	}, true}), nil
}

// Keys implements [op.Server].
func (p *provider) Keys(context.Context, *op.Request[struct{}]) (*op.Response, error) {
	return op.NewResponse(p.key.set()), nil
}

// VerifyAuthRequest implements [op.Server]: what it refuses is shown in the
// browser, because nothing is known yet of where to send it.
func (p *provider) VerifyAuthRequest(_ context.Context, r *op.Request[oidc.AuthRequest]) (*op.ClientRequest[oidc.AuthRequest], error) {
	switch m := r.Data.ResponseMode; {
	case clients[r.Data.ClientID].id == "":
		return nil, oidc.ErrInvalidRequest().WithDescription("client_id is unknown")
	case m != "" && m != oidc.ResponseModeQuery:
		return nil, oidc.ErrInvalidRequest().WithDescription("response_mode is not supported")
	}
	return &op.ClientRequest[oidc.AuthRequest]{Request: r, Client: clients[r.Data.ClientID]}, nil
}

// Authorize implements [op.Server]: the library has checked the redirect URI, and
// sends there what is refused here. Who is let through is sent to the page to
// sign in, with a cookie that ties the page to this browser.
func (p *provider) Authorize(_ context.Context, r *op.ClientRequest[oidc.AuthRequest]) (*op.Redirect, error) {
	in := r.Data
	switch {
	case in.RequestParam != "":
		return nil, oidc.ErrRequestNotSupported()
	case !slices.Contains(in.Scopes, oidc.ScopeOpenID):
		return nil, oidc.ErrInvalidScope().WithDescription("scope has to name openid")
	case in.CodeChallenge == "" || in.CodeChallengeMethod != oidc.CodeChallengeMethodS256: // RFC 9700 section 2.1.1
		return nil, oidc.ErrInvalidRequest().WithDescription("PKCE with S256 is required")
	case slices.Contains(in.Prompt, oidc.PromptNone): // everybody signs in each time
		return nil, oidc.ErrLoginRequired()
	}
	audience, err := p.audience(r.Form["resource"])
	if err != nil {
		return nil, err
	}
	a := &attempt{
		id: rand.Text(), browser: rand.Text(), client: in.ClientID, redirect: in.RedirectURI, state: in.State, nonce: in.Nonce,
		audience: audience, challenge: oidc.CodeChallenge{Challenge: in.CodeChallenge, Method: in.CodeChallengeMethod},
	}
	if !p.waiting.begin(a) {
		return nil, oidc.ErrServerError().WithDescription("too many are signing in")
	}
	out := op.NewRedirect(r.Client.LoginURL(a.id))
	out.Header.Set("Set-Cookie", a.cookie().String())
	return out, nil
}

// audience returns whom an access token shall be for, of what the request names
// (RFC 8707 section 2).
func (p *provider) audience(named []string) (string, error) {
	switch {
	case len(named) == 0:
		return p.cfg.Audience, nil
	case len(named) > 1 || named[0] != p.cfg.Audience && !slices.Contains(p.cfg.Resources, named[0]):
		return "", oidc.ErrInvalidTarget().WithDescription("resource is unknown, or there is more than one")
	}
	return named[0], nil
}

// VerifyClient implements [op.Server]. A public client has nothing to prove
// itself with but PKCE.
func (p *provider) VerifyClient(_ context.Context, r *op.Request[op.ClientCredentials]) (op.Client, error) {
	if clients[r.Data.ClientID].id == "" || r.Data.ClientSecret != "" || r.Data.ClientAssertion != "" {
		return nil, oidc.ErrInvalidClient()
	}
	return clients[r.Data.ClientID], nil
}

// CodeExchange implements [op.Server]. A code that was shown once is used up,
// whatever comes of it (RFC 6749 section 4.1.2).
func (p *provider) CodeExchange(_ context.Context, r *op.ClientRequest[oidc.AccessTokenRequest]) (*op.Response, error) {
	s := p.waiting.redeem(r.Data.Code)
	if s == nil || s.client != r.Client.GetID() || s.redirect != r.Data.RedirectURI {
		return nil, oidc.ErrInvalidGrant().WithDescription("the code is not good, or not for this")
	}
	if err := op.AuthorizeCodeChallenge(r.Data.CodeVerifier, &s.challenge); err != nil {
		return nil, err
	}
	// RFC 8707 section 2.2: no other than that of the authorization request.
	if named := r.Form["resource"]; len(named) > 0 {
		if audience, err := p.audience(named); err != nil || audience != s.audience {
			return nil, oidc.ErrInvalidTarget().WithDescription("resource is not that of the authorization request")
		}
	}
	answer, err := p.tokens(s)
	if err != nil {
		return nil, err
	}
	out := op.NewResponse(answer)
	out.Header.Set("Cache-Control", "no-store") // RFC 6749 section 5.1
	return out, nil
}

// namingIssuer adds the issuer to what leaves for a client (RFC 9207 section 2),
// good or bad: the library has no parameter for it.
func (p *provider) namingIssuer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(&namingWriter{w, p.issuer}, r)
	})
}

type namingWriter struct {
	http.ResponseWriter
	issuer string
}

// WriteHeader implements [http.ResponseWriter].
func (w *namingWriter) WriteHeader(status int) {
	to := w.Header().Get("Location")
	if u, err := url.Parse(to); to != "" && !strings.HasPrefix(to, "/") && err == nil {
		w.Header().Set("Location", withQuery(u, "iss", w.issuer))
	}
	w.ResponseWriter.WriteHeader(status)
}

// withQuery adds parameters, name by value, to an address.
func withQuery(u *url.URL, pairs ...string) string {
	q := u.Query()
	for i := 0; i+1 < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	out := *u
	out.RawQuery = q.Encode()
	return out.String()
}

// native is a client as the library wants to see it.
type native struct {
	id        string
	redirects []string
}

var _ op.Client = native{}

func (c native) GetID() string                      { return c.id }
func (c native) RedirectURIs() []string             { return c.redirects }
func (native) PostLogoutRedirectURIs() []string     { return nil }
func (native) ApplicationType() op.ApplicationType  { return op.ApplicationTypeNative }
func (native) AuthMethod() oidc.AuthMethod          { return oidc.AuthMethodNone }
func (native) ResponseTypes() []oidc.ResponseType   { return []oidc.ResponseType{oidc.ResponseTypeCode} }
func (native) GrantTypes() []oidc.GrantType         { return []oidc.GrantType{oidc.GrantTypeCode} }
func (native) LoginURL(id string) string            { return signInPath + "?id=" + url.QueryEscape(id) }
func (native) AccessTokenType() op.AccessTokenType  { return op.AccessTokenTypeJWT }
func (native) IDTokenLifetime() time.Duration       { return 0 } // CodeExchange says
func (native) DevMode() bool                        { return false }
func (native) IsScopeAllowed(string) bool           { return false }
func (native) IDTokenUserinfoClaimsAssertion() bool { return true }
func (native) ClockSkew() time.Duration             { return 0 }
func (native) RestrictAdditionalIdTokenScopes() func([]string) []string {
	return func(s []string) []string { return s }
}
func (native) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return func(s []string) []string { return s }
}
