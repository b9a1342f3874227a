// Package login is Stint as a relying party: it sends people to their organisation's
// provider (OpenID Connect Core, the code flow with PKCE) and gets an ID token for the
// code that they come back with. It verifies no signature: the token goes to an exchange,
// which does.
package login

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// Config says at which provider people sign in, and as which client of it.
type Config struct {
	// Issuer is the provider's issuer identifier.
	Issuer string
	// ClientID and Secret are ours there. Without a secret we are a public client.
	ClientID string
	Secret   secret.String
	// Redirect is our redirect URI.
	Redirect string
	// Scopes are asked for. Nil: openid, profile, email.
	Scopes []string
	// MaxAge is how long ago somebody may have signed in there; 0: any time.
	MaxAge time.Duration
	// Client asks the provider: which addresses may be asked is for it to say.
	Client *http.Client
	Now    func() time.Time
}

// Provider is the organisation's provider.
type Provider struct {
	cfg Config

	mu   sync.Mutex
	meta *metadata // nil before it was read
	read time.Time
}

// metadata is what of a provider's metadata is needed (OpenID Connect Discovery section
// 3, RFC 9207 section 3).
type metadata struct {
	Issuer        string   `json:"issuer"`
	Authorization string   `json:"authorization_endpoint"`
	Token         string   `json:"token_endpoint"`
	SaysIssuer    bool     `json:"authorization_response_iss_parameter_supported"`
	Methods       []string `json:"token_endpoint_auth_methods_supported"`
	PKCE          []string `json:"code_challenge_methods_supported"`
}

const (
	// metadataFor is how long metadata is used before it is read again.
	metadataFor = time.Hour
	maxMetadata = 1 << 20
	askTimeout  = 10 * time.Second
)

// New returns a provider. It asks nobody anything yet.
func New(cfg Config) (*Provider, error) {
	if cfg.Issuer == "" || cfg.ClientID == "" || cfg.Redirect == "" || cfg.Client == nil || cfg.Now == nil {
		return nil, errors.New("sign-in: an issuer, a client id, a redirect URI, an HTTP client and a clock are needed")
	}
	if cfg.Scopes == nil {
		cfg.Scopes = []string{"openid", "profile", "email"}
	}
	return &Provider{cfg: cfg}, nil
}

func unavailable(err error) error {
	e := broker.Fail(broker.Unavailable, fmt.Errorf("sign-in: %w", err), "the provider at which people sign in cannot be asked")
	e.RetryAfter = 5 * time.Second
	return e
}

func refused(format string, args ...any) error {
	return broker.Fail(broker.BadToken, fmt.Errorf("sign-in: "+format, args...), "the provider's answer is not accepted; try again, and ask whoever runs Stint to look into its record")
}

// about returns the provider's metadata.
func (p *Provider) about(ctx context.Context) (*metadata, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.cfg.Now()
	if p.meta != nil && now.Sub(p.read).Abs() < metadataFor {
		return p.meta, nil
	}
	m, err := p.fetch(ctx)
	switch {
	case err == nil:
		p.meta, p.read = m, now
	case p.meta == nil:
		return nil, unavailable(err)
	} // metadata that cannot be read again is used as it was
	return p.meta, nil
}

func (p *Provider) fetch(ctx context.Context) (*metadata, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(p.cfg.Issuer, "/")+"/.well-known/openid-configuration", nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.cfg.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := readBounded(resp, maxMetadata)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("its metadata: status %d", resp.StatusCode)
	}
	m := &metadata{}
	if err := strictjson.DecodeKnown(data, m); err != nil {
		return nil, fmt.Errorf("its metadata: %w", err)
	}
	switch { // OpenID Connect Discovery section 4.3
	case m.Issuer != p.cfg.Issuer:
		return nil, fmt.Errorf("its metadata is of the issuer %q", m.Issuer)
	case !absolute(m.Authorization) || !absolute(m.Token):
		return nil, errors.New("its metadata has no authorization_endpoint or no token_endpoint")
	case m.PKCE != nil && !slices.Contains(m.PKCE, "S256"):
		return nil, errors.New("it does not do PKCE with S256")
	}
	return m, nil
}

func absolute(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != ""
}

// oauth returns the client of a provider.
func (p *Provider) oauth(m *metadata) *oauth2.Config {
	c := &oauth2.Config{
		ClientID: p.cfg.ClientID, ClientSecret: p.cfg.Secret.Reveal(), RedirectURL: p.cfg.Redirect, Scopes: p.cfg.Scopes,
		Endpoint: oauth2.Endpoint{AuthURL: m.Authorization, TokenURL: m.Token, AuthStyle: oauth2.AuthStyleInHeader},
	}
	// OpenID Connect Discovery section 3: absent means client_secret_basic.
	if p.cfg.Secret.Empty() || m.Methods != nil && !slices.Contains(m.Methods, "client_secret_basic") {
		c.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	return c
}

// Begin returns where a browser has to go to sign in. The error is Unavailable.
func (p *Provider) Begin(ctx context.Context, state, nonce, verifier string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	m, err := p.about(ctx)
	if err != nil {
		return "", err
	}
	options := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("nonce", nonce)}
	if p.cfg.MaxAge > 0 { // with it, auth_time has to be in the ID token (OpenID Connect Core section 3.1.2.1)
		options = append(options, oauth2.SetAuthURLParam("max_age", fmt.Sprint(int(p.cfg.MaxAge.Seconds()))))
	}
	return p.oauth(m).AuthCodeURL(state, options...), nil
}

// Finish exchanges a code for an ID token, and checks its nonce. iss is what came with
// the code. Errors: BadToken, if the provider refuses, or is not the one that was asked;
// Unavailable.
func (p *Provider) Finish(ctx context.Context, iss, code, verifier, nonce string) (secret.String, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var none secret.String
	m, err := p.about(ctx)
	switch {
	case err != nil:
		return none, err
	case iss != "" && iss != p.cfg.Issuer, iss == "" && m.SaysIssuer: // RFC 9207 section 2.4
		return none, refused("the answer is not of the issuer that was asked")
	case code == "" || len(code) > 4096:
		return none, refused("there is no code")
	}
	t, err := p.oauth(m).Exchange(context.WithValue(ctx, oauth2.HTTPClient, p.cfg.Client), code, oauth2.VerifierOption(verifier))
	if e := (*oauth2.RetrieveError)(nil); errors.As(err, &e) && e.Response.StatusCode < http.StatusInternalServerError {
		return none, refused("the code is refused: status %d, %.64q", e.Response.StatusCode, e.ErrorCode)
	}
	if err != nil {
		return none, unavailable(errors.New("the code cannot be exchanged"))
	}
	raw, _ := t.Extra("id_token").(string)
	if raw == "" {
		return none, refused("there is no ID token")
	}
	return secret.New(raw), checkNonce(raw, nonce)
}

// checkNonce checks that an ID token is for this sign-in (OpenID Connect Core section
// 3.1.3.7). It came from the provider itself; that it is signed by it is still to be
// verified, and nothing else is believed of it here.
func checkNonce(raw, nonce string) error {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return refused("the ID token is no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Nonce string `json:"nonce"`
	}
	if err != nil || strictjson.DecodeKnown(payload, &claims) != nil {
		return refused("the ID token is no JWT")
	}
	if nonce == "" || subtle.ConstantTimeCompare([]byte(claims.Nonce), []byte(nonce)) != 1 {
		return refused("the ID token is for another sign-in")
	}
	return nil
}

// readBounded reads a body of at most so many bytes.
func readBounded(resp *http.Response, most int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err == nil && int64(len(data)) > most {
		err = errors.New("it is too long")
	}
	return data, err
}
