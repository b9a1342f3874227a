package google

import (
	"context"
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
)

// The types of tokens that are exchanged (RFC 8693 section 3).
const (
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantBearer   = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	typeJWT       = "urn:ietf:params:oauth:token-type:jwt"
	typeAccess    = "urn:ietf:params:oauth:token-type:access_token"
	// federationScope is what a federated token needs to impersonate an account. It
	// leaves for nobody else.
	federationScope = scopePrefix + "cloud-platform"
)

// tokenAnswer is what a token endpoint says.
type tokenAnswer struct {
	AccessToken  string  `json:"access_token"`
	TokenType    string  `json:"token_type"`
	ExpiresIn    *int64  `json:"expires_in"`
	Scope        *string `json:"scope"`
	RefreshToken string  `json:"refresh_token"`
	IDToken      string  `json:"id_token"`
	IssuedType   string  `json:"issued_token_type"`
}

// info is what Google says of a token.
type info struct {
	Audience string `json:"aud"`
	Scope    string `json:"scope"`
	Email    string `json:"email"`
}

// refusal is what Google answered instead of what was asked for. Its code is one of
// [codes], or empty: Google's own text is not repeated.
type refusal struct {
	status int
	code   string
}

func (r *refusal) Error() string {
	if r.code == "" {
		return fmt.Sprintf("Google answers %d, for a reason that has no name here", r.status)
	}
	return fmt.Sprintf("Google answers %d, %s", r.status, r.code)
}

// codes are those of OAuth (RFC 6749 section 5.2), with Google's own, and those of its
// APIs.
var codes = []string{
	"invalid_request", "invalid_client", "invalid_grant", "invalid_scope", "invalid_target", "unauthorized_client",
	"unsupported_grant_type", "access_denied", "admin_policy_enforced", "invalid_rapt", "invalid_token",
	"INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "RESOURCE_EXHAUSTED",
}

// ask returns a good answer, unless nothing in it is wanted, or as an error a [*refusal].
func (p *provider) ask(ctx context.Context, r upstream.Request, answer any) error {
	a, err := p.client.Do(ctx, r)
	if err != nil {
		return err
	}
	if a.Status == http.StatusOK && answer == nil {
		return nil
	}
	if a.Status == http.StatusOK {
		return a.JSON(answer)
	}
	var said struct {
		Error   any    `json:"error"`
		Subtype string `json:"error_subtype"`
	}
	out := &refusal{status: a.Status}
	if a.JSON(&said) != nil {
		return out
	}
	code, _ := said.Error.(string)
	if api, ok := said.Error.(map[string]any); ok {
		code, _ = api["status"].(string)
	}
	for _, c := range []string{said.Subtype, code} {
		if out.code == "" && slices.Contains(codes, c) {
			out.code = c
		}
	}
	if out.code == "RESOURCE_EXHAUSTED" {
		e := broker.Fail(broker.Limited, out, "the upstream asks us to wait")
		e.RetryAfter = upstream.RetryAfter(a.Header)
		return e
	}
	return out
}

// codeOf returns the code of a refusal, and the empty text for every other error.
func codeOf(err error) string {
	if r := (*refusal)(nil); errors.As(err, &r) {
		return r.code
	}
	return ""
}

// token asks a token endpoint, and checks that the answer is a bearer token.
func (p *provider) token(ctx context.Context, where string, form url.Values) (*tokenAnswer, error) {
	var a tokenAnswer
	err := p.ask(ctx, upstream.Request{Method: http.MethodPost, URL: where, Form: form}, &a)
	switch {
	case err != nil:
		return nil, err
	case a.AccessToken == "" || !strings.EqualFold(a.TokenType, "Bearer"):
		return nil, errors.New("Google's answer is no bearer token")
	}
	return &a, nil
}

// ends is when a token ends that lives for so many seconds from some time until now.
func (p *provider) ends(a *tokenAnswer) (time.Time, error) {
	if a.ExpiresIn == nil || *a.ExpiresIn <= 0 || *a.ExpiresIn > 24*3600 {
		return time.Time{}, errors.New("Google does not say how long its token lives")
	}
	return p.deps.Now().Add(time.Duration(*a.ExpiresIn) * time.Second), nil
}

// federated returns a token of the pool's, for a principal named by a pseudonym: it may
// do no more than impersonate.
func (p *provider) federated(ctx context.Context, pseudonym, lease string) (secret.String, error) {
	var none secret.String
	if pseudonym == "" || len(pseudonym) > 127 { // as google.subject has it
		return none, errors.New("there is no pseudonym to name the subject by")
	}
	assertion, err := p.deps.Assert(ctx, map[string]any{
		"aud": "https:" + p.cfg.Provider, "sub": pseudonym, "jti": lease, "exp": p.deps.Now().Add(5 * time.Minute).Unix(),
	})
	if err != nil {
		return none, fmt.Errorf("sign an assertion: %w", err)
	}
	a, err := p.token(ctx, p.cfg.Endpoints.STS, url.Values{
		"grant_type": {grantExchange}, "audience": {p.cfg.Provider}, "scope": {federationScope}, "requested_token_type": {typeAccess},
		"subject_token_type": {typeJWT}, "subject_token": {assertion.Reveal()},
	})
	if err != nil {
		return none, fmt.Errorf("exchange the assertion: %w", err)
	}
	return secret.New(a.AccessToken), nil
}

// impersonating is a request to the service account's own resource.
func (p *provider) impersonating(method string, as secret.String, body map[string]any) upstream.Request {
	delegates := make([]string, len(p.cfg.Delegates))
	for i, d := range p.cfg.Delegates {
		delegates[i] = "projects/-/serviceAccounts/" + d
	}
	if len(delegates) > 0 {
		body["delegates"] = delegates
	}
	return upstream.Request{
		Method: http.MethodPost, Bearer: as, JSON: body,
		URL: p.cfg.Endpoints.IAMCredentials + "/v1/projects/-/serviceAccounts/" + url.PathEscape(p.cfg.ServiceAccount) + ":" + method,
	}
}

// accessToken makes a token of the service account.
func (p *provider) accessToken(ctx context.Context, as secret.String, scopes []string, life time.Duration) (secret.String, time.Time, error) {
	var a struct {
		AccessToken string    `json:"accessToken"`
		ExpireTime  time.Time `json:"expireTime"`
	}
	err := p.ask(ctx, p.impersonating("generateAccessToken", as, map[string]any{
		"scope": scopes, "lifetime": fmt.Sprintf("%ds", life/time.Second),
	}), &a)
	switch {
	case err != nil:
		return secret.String{}, time.Time{}, fmt.Errorf("make a token of the service account: %w", err)
	case a.AccessToken == "" || a.ExpireTime.IsZero():
		return secret.String{}, time.Time{}, errors.New("Google's answer has no token, or no time at which it ends")
	}
	return secret.New(a.AccessToken), a.ExpireTime, nil
}

// signed has Google sign claims as the service account.
func (p *provider) signed(ctx context.Context, as secret.String, claims map[string]any) (secret.String, error) {
	payload, err := strictjson.Encode(claims)
	if err != nil {
		return secret.String{}, err
	}
	var a struct {
		SignedJWT string `json:"signedJwt"`
	}
	if err := p.ask(ctx, p.impersonating("signJwt", as, map[string]any{"payload": string(payload)}), &a); err != nil {
		return secret.String{}, fmt.Errorf("sign as the service account: %w", err)
	}
	if a.SignedJWT == "" {
		return secret.String{}, errors.New("Google's answer has no signed assertion")
	}
	return secret.New(a.SignedJWT), nil
}

// tokenInfo has Google say what a token is good for. The token is in a header: addresses
// are written into logs.
func (p *provider) tokenInfo(ctx context.Context, token secret.String) (*info, error) {
	var i info
	err := p.ask(ctx, upstream.Request{
		Method: http.MethodPost, URL: p.cfg.Endpoints.TokenInfo, Bearer: token, Form: url.Values{},
	}, &i)
	if err != nil {
		return nil, fmt.Errorf("ask what the token is good for: %w", err)
	}
	return &i, nil
}
