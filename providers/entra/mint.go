package entra

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

const (
	grantBearer   = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	// maxAssertion is how long a token of Entra's can be.
	maxAssertion = 32 << 10
)

// Mint implements [broker.Provider]. Nothing that is made can be revoked, so that what
// is noted before says no more than until when it may live.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	if err := ctx.Err(); err != nil {
		return nil, broker.Fail(broker.Unavailable, err, "no time was left to ask Entra")
	}
	name, o, err := p.read(r.Rendered)
	if err != nil {
		return nil, fmt.Errorf("read rendered grant: %w", err)
	}
	profile := p.cfg.Profiles[name]
	assertion, err := p.assertion(ctx, r.Assertion, profile)
	if err != nil {
		return nil, err
	}
	h, err := strictjson.Encode(handle{Until: r.Expires.Unix()})
	if err == nil {
		err = r.Note(h)
	}
	if err != nil {
		return nil, fmt.Errorf("note the handle: %w", err)
	}
	a, err := p.onBehalf(ctx, profile.app(), assertion, o.Scope)
	if err != nil {
		return nil, err
	}
	if a.ExpiresIn <= 0 || a.ExpiresIn > 48*3600 {
		return nil, errors.New("Entra does not say how long its token lives")
	}
	expires := p.deps.Now().Add(time.Duration(a.ExpiresIn) * time.Second)
	granted, err := p.granted(ctx, name, a.Scope)
	if err != nil {
		return nil, err
	}
	done, err := strictjson.Encode(handle{Until: expires.Unix(), Made: true})
	if err != nil {
		return nil, err
	}
	return &broker.Minted{
		Token: secret.New(a.AccessToken), Granted: granted, Evidence: broker.Attested, Expires: expires, Handle: done,
		Upstream: map[string]string{"tenant": p.cfg.Tenant, "client_id": profile.ClientID},
	}, nil
}

// granted is what an answer names: the profile, if it is all of that and no more; else
// everything, which is more than anybody asked for.
func (p *provider) granted(ctx context.Context, name, scope string) (grant.Grant, error) {
	profile := p.cfg.Profiles[name]
	left := make(map[string]bool)
	for _, s := range profile.Scopes {
		left[strings.ToLower(s)] = true
	}
	beyond := 0
	fields := strings.Fields(scope)
	for _, s := range fields {
		// The API's permissions come with its name before them, or without.
		s = strings.ToLower(strings.TrimPrefix(s, p.cfg.API+"/"))
		if _, listed := left[s]; !listed {
			beyond++
		}
		left[s] = false
	}
	missing := 0
	for _, s := range profile.Scopes {
		// What is for signing in is there or not, as Entra likes.
		if left[strings.ToLower(s)] && !slices.Contains(signIn, s) {
			missing++
		}
	}
	switch {
	case beyond > 0:
		p.deps.Log.ErrorContext(ctx, "profile over-consented: its registration was granted more than the settings list", "provider", p.name, "profile", name, "beyond", beyond)
		return p.schema.Everything(), nil
	case len(fields) == 0:
		return grant.Grant{}, errors.New("Entra does not say what its token is good for")
	case missing > 0:
		return grant.Grant{}, broker.Fail(broker.BadScope, fmt.Errorf("the token lacks %d scopes of the profile %s", missing, name), "the upstream grants less than this profile")
	}
	return p.grantOf(name)
}

// assertion is the token that a profile's registration can show: the subject's own, if it
// is for that, or what front gets for it.
func (p *provider) assertion(ctx context.Context, own secret.String, profile Profile) (secret.String, error) {
	audience, err := p.audience(own)
	if err != nil {
		return secret.String{}, broker.Fail(broker.BadToken, err, "the subject token is none that this upstream takes")
	}
	app := profile.app()
	switch {
	case slices.Contains(app.audiences(), audience):
		return own, nil
	case p.cfg.Front == nil || !slices.Contains(p.cfg.Front.audiences(), audience):
		return secret.String{}, broker.Fail(broker.BadToken, errors.New("the subject token is for another audience than the profile's registration"), "the subject token is for another audience than this upstream needs")
	}
	uri := app.audiences()[1]
	a, err := p.onBehalf(ctx, *p.cfg.Front, own, uri+"/.default")
	if err != nil {
		return secret.String{}, err
	}
	return secret.New(a.AccessToken), nil
}

// audience reads whom a token is for, and refuses what is certainly no user's access
// token of the tenant. Whether it is genuine the broker has seen to, and Entra will.
func (p *provider) audience(token secret.String) (string, error) {
	text := token.Reveal()
	parts := strings.Split(text, ".")
	if len(text) > maxAssertion || len(parts) != 3 {
		return "", errors.New("the subject token is no JWT that Entra could have made")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", errors.New("the subject token cannot be read")
	}
	var c struct {
		Audience string `json:"aud"`
		Tenant   string `json:"tid"`
		Scopes   string `json:"scp"`
		Kind     string `json:"idtyp"`
	}
	switch err := strictjson.DecodeKnown(payload, &c); {
	case err != nil:
		return "", errors.New("the subject token cannot be read")
	case c.Tenant != p.cfg.Tenant:
		return "", errors.New("the subject token is of another directory")
	case c.Scopes == "" || c.Kind == "app":
		return "", errors.New("the subject token is an ID token, or an application's own")
	}
	return c.Audience, nil
}

// answer is what the token endpoint says. A refresh token is not even read.
type answer struct {
	TokenType   string `json:"token_type"`
	Scope       string `json:"scope"`
	ExpiresIn   int64  `json:"expires_in"`
	AccessToken string `json:"access_token"`
}

// onBehalf asks for a token on behalf of whom an assertion is about.
func (p *provider) onBehalf(ctx context.Context, by App, assertion secret.String, scope string) (*answer, error) {
	form := url.Values{
		"grant_type": {grantBearer}, "requested_token_use": {"on_behalf_of"}, "client_id": {by.ClientID},
		"assertion": {assertion.Reveal()}, "scope": {scope},
	}
	if err := p.authenticate(ctx, by, form); err != nil {
		return nil, err
	}
	a, err := p.client.Do(ctx, upstream.Request{Method: http.MethodPost, URL: p.tokenURL(), Form: form})
	if err != nil {
		return nil, err
	}
	if a.Status != http.StatusOK {
		return nil, refusal(a)
	}
	var out answer
	if err := a.JSON(&out); err != nil {
		return nil, err
	}
	if out.AccessToken == "" || !strings.EqualFold(out.TokenType, "Bearer") {
		return nil, errors.New("Entra's answer is no bearer token")
	}
	return &out, nil
}

// codes are the errors that are told apart: RFC 6749 section 5.2, and Entra's own. Its
// numbers and texts are not to be relied on, and are not repeated.
var codes = []string{
	"invalid_request", "invalid_grant", "invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
	"invalid_resource", "interaction_required", "consent_required", "temporarily_unavailable",
}

// maxClaims bounds what is passed on of a step-up.
const maxClaims = 4 << 10

// refusal is the error for what Entra answered instead of a token.
func refusal(a *upstream.Answer) error {
	var said struct {
		Error  string `json:"error"`
		Claims string `json:"claims"`
	}
	if a.JSON(&said) != nil || !slices.Contains(codes, said.Error) {
		return fmt.Errorf("Entra answers %d, for a reason that has no name here", a.Status)
	}
	err := fmt.Errorf("Entra answers %d, %s", a.Status, said.Error)
	switch said.Error {
	case "interaction_required", "consent_required":
		e := broker.Fail(broker.NeedsLink, err, "the subject has to sign in again at this upstream")
		e.Claims = claims(said.Claims)
		return e
	case "invalid_grant":
		// The token is over or taken back, or consent is missing. Conditional access says
		// what it wants here too.
		if want := claims(said.Claims); want != "" {
			e := broker.Fail(broker.NeedsLink, err, "the subject has to sign in again at this upstream")
			e.Claims = want
			return e
		}
		return broker.Fail(broker.NeedsLink, err, "the upstream does not accept the subject's sign-in")
	case "invalid_scope", "invalid_resource":
		return broker.Fail(broker.BadScope, err, "the upstream does not give out this profile")
	case "temporarily_unavailable":
		e := broker.Fail(broker.Unavailable, err, "the upstream asks us to wait")
		e.RetryAfter = upstream.RetryAfter(a.Header)
		return e
	}
	return err
}

// claims returns a claims parameter (OpenID Connect Core section 5.5) in canonical form:
// JSON, and so no text of the upstream's that could be anything; empty if it is none.
func claims(text string) string {
	if text == "" || len(text) > maxClaims {
		return ""
	}
	var v map[string]any
	if strictjson.Decode([]byte(text), &v) != nil {
		return ""
	}
	out, err := strictjson.Encode(v)
	if err != nil {
		return ""
	}
	return string(out)
}
