package sample

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/html"

	"github.com/stint-dev/stint/internal/secret"
)

// ErrPassword says that the identity provider did not take user and password.
var ErrPassword = errors.New("user and password do not fit")

// Tokens are what a sign-in brings.
type Tokens struct {
	Access, ID secret.String
	TokenType  string
	Scope      []string
	ExpiresIn  time.Duration
}

// SignIn is somebody who signs in, and where.
type SignIn struct {
	// Issuer is the identity provider, and ClientID the application there.
	Issuer, ClientID string
	User, Password   string
	// Resource is whom the access token shall be for (RFC 8707); empty: whom the
	// provider says.
	Resource string
}

// SignIn signs a user in as a browser and a native application would together:
// authorization code with PKCE, the form on the page filled in, the redirect to
// loopback read instead of listened for. Errors: ErrPassword, a [Refusal] of the
// provider, or what in its answers cannot be trusted.
func (a Agent) SignIn(ctx context.Context, in SignIn) (*Tokens, error) {
	f, err := newFlow(ctx, in.Issuer, in.ClientID, in.Resource)
	if err != nil {
		return nil, fmt.Errorf("sign in: %w", err)
	}
	defer f.http.CloseIdleConnections()
	f.trace = a.Trace
	code, err := f.authorize(ctx, in.User, in.Password)
	if err != nil {
		return nil, fmt.Errorf("sign in: %w", err)
	}
	tokens, err := f.redeem(ctx, code)
	if err != nil {
		return nil, fmt.Errorf("sign in: %w", err)
	}
	return tokens, nil
}

// flow is one authorization code flow.
type flow struct {
	http                                 *http.Client
	meta                                 *metadata
	issuer, clientID, resource, redirect string
	state, nonce, verifier               string
	trace                                trace
}

func newFlow(ctx context.Context, issuer, clientID, resource string) (*flow, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	f := &flow{
		http: newClient(), issuer: issuer, clientID: clientID, resource: resource, redirect: desktopRedirect,
		state: rand.Text(), nonce: rand.Text(), verifier: rand.Text() + rand.Text(), // 52 characters (RFC 7636 section 4.1)
	}
	f.http.Jar, f.http.CheckRedirect = jar, f.follow
	f.meta, err = fetchMetadata(ctx, f.http, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", issuer)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(f.meta.ChallengeMethods, "S256") {
		return nil, errors.New("the identity provider has no PKCE with S256")
	}
	return f, nil
}

// follow follows redirects within the provider, and stops at the one to the
// application.
func (f *flow) follow(next *http.Request, before []*http.Request) error {
	switch {
	case strings.HasPrefix(next.URL.String(), f.redirect):
		return http.ErrUseLastResponse
	case len(before) >= 5:
		return errors.New("too many redirects")
	case !f.own(next.URL):
		return fmt.Errorf("the identity provider leads to %s", next.URL.Host)
	}
	return nil
}

// own reports whether an address is of the provider: passwords go nowhere else.
func (f *flow) own(u *url.URL) bool {
	home, err := url.Parse(f.issuer)
	return err == nil && u.Scheme == home.Scheme && u.Host == home.Host
}

// authorize goes from the authorization request to the code.
func (f *flow) authorize(ctx context.Context, user, password string) (string, error) {
	start, err := url.Parse(f.meta.AuthorizationEndpoint)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(f.verifier))
	pairs := []string{
		"response_type", "code", "client_id", f.clientID, "redirect_uri", f.redirect, "scope", "openid", "state", f.state,
		"nonce", f.nonce, "code_challenge", base64.RawURLEncoding.EncodeToString(sum[:]), "code_challenge_method", "S256",
	}
	if f.resource != "" {
		pairs = append(pairs, "resource", f.resource)
	}
	resp, body, err := f.send(ctx, "ask to sign in", http.MethodGet, withQuery(start, pairs...), nil)
	if err != nil {
		return "", err
	}
	if to := resp.Header.Get("Location"); to != "" { // sent back at once: an error
		return f.response(to)
	}
	if resp.StatusCode != http.StatusOK {
		return "", refusal(resp, body)
	}
	action, fields, err := readForm(body)
	if err != nil {
		return "", err
	}
	target, err := resp.Request.URL.Parse(action)
	if err != nil || !f.own(target) {
		return "", fmt.Errorf("the form goes to %q, which is not the identity provider", action)
	}
	fields.Set("user", user)
	fields.Set("password", password)
	if resp, body, err = f.send(ctx, "fill in the form", http.MethodPost, target.String(), fields); err != nil {
		return "", err
	}
	switch to := resp.Header.Get("Location"); {
	case to != "":
		return f.response(to)
	case resp.StatusCode == http.StatusForbidden:
		return "", ErrPassword
	}
	return "", refusal(resp, body)
}

// response reads the authorization response from the redirect: RFC 6749 section
// 4.1.2, and RFC 9207 section 2.4, without which a provider could pass off
// another's code as its own.
func (f *flow) response(to string) (code string, err error) {
	u, err := url.Parse(to)
	if err != nil {
		return "", fmt.Errorf("authorization response: %w", err)
	}
	q := u.Query()
	switch u.RawQuery = ""; {
	case u.String() != f.redirect:
		return "", fmt.Errorf("authorization response: it goes to %s", u)
	case q.Get("state") != f.state:
		return "", errors.New("authorization response: the state is not ours")
	case f.meta.IssParameter && q.Get("iss") != f.issuer, q.Has("iss") && q.Get("iss") != f.issuer:
		return "", fmt.Errorf("authorization response: it is of the issuer %q", q.Get("iss"))
	case q.Get("error") != "":
		return "", &Refusal{Code: q.Get("error"), Description: q.Get("error_description")}
	case q.Get("code") == "":
		return "", errors.New("authorization response: there is no code")
	}
	return q.Get("code"), nil
}

// redeem exchanges the code for tokens.
func (f *flow) redeem(ctx context.Context, code string) (*Tokens, error) {
	form := url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {f.redirect},
		"client_id": {f.clientID}, "code_verifier": {f.verifier},
	}
	if f.resource != "" {
		form.Set("resource", f.resource)
	}
	resp, body, err := f.send(ctx, "redeem the code for tokens", http.MethodPost, f.meta.TokenEndpoint, form)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(resp, body)
	}
	var in struct {
		Access    string `json:"access_token"`
		ID        string `json:"id_token"`
		TokenType string `json:"token_type"`
		Scope     string `json:"scope"`
		ExpiresIn int64  `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("token response: %w", err)
	}
	if in.Access == "" || !strings.EqualFold(in.TokenType, "Bearer") {
		return nil, fmt.Errorf("token response: no access token, or the token_type %q", in.TokenType)
	}
	if err := f.checkID(in.ID); err != nil {
		return nil, fmt.Errorf("ID token: %w", err)
	}
	return &Tokens{
		Access: secret.New(in.Access), ID: secret.New(in.ID), TokenType: in.TokenType,
		Scope: strings.Fields(in.Scope), ExpiresIn: time.Duration(in.ExpiresIn) * time.Second,
	}, nil
}

// checkID checks what an ID token says. It came straight from the provider, so
// that its signature need not be verified (OpenID Connect Core section 3.1.3.7,
// number 6).
func (f *flow) checkID(token string) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return errors.New("it is no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return err
	}
	var claims struct {
		Issuer   string   `json:"iss"`
		Audience audience `json:"aud"`
		Nonce    string   `json:"nonce"`
		Expires  int64    `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return err
	}
	switch {
	case claims.Issuer != f.issuer:
		return fmt.Errorf("it is of the issuer %q", claims.Issuer)
	case !slices.Equal(claims.Audience, audience{f.clientID}):
		return fmt.Errorf("it is for %q", claims.Audience)
	case claims.Nonce != f.nonce:
		return errors.New("it answers another request")
	case !time.Now().Before(time.Unix(claims.Expires, 0)):
		return errors.New("it has expired")
	}
	return nil
}

// send sends a request, with a form if there is one, and reads the answer. why is
// the text of the step.
func (f *flow) send(ctx context.Context, why, method, address string, form url.Values) (resp *http.Response, body []byte, err error) {
	step := Step{Server: "agent", Text: why, Method: method, URL: address, Began: time.Now()}
	defer func() {
		if resp == nil {
			step.Err = err
		}
		f.trace.step(step)
	}()
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, nil, err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	base, query, _ := strings.Cut(address, "?")
	step.URL, step.Request = base, slices.Concat(formFields(query), formFields(form.Encode()))
	if resp, err = f.http.Do(req); err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err = readBody(resp.Body)
	step.Status = resp.StatusCode
	if to, query, ok := strings.Cut(resp.Header.Get("Location"), "?"); ok {
		step.Answer = append([]Field{{Name: "Location", Value: to}}, formFields(query)...)
	} else if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		step.Answer = answerFields(body)
	}
	return resp, body, err
}

// readForm finds the form on a page, where it goes, and what it holds already.
func readForm(body []byte) (action string, fields url.Values, err error) {
	z := html.NewTokenizer(bytes.NewReader(body))
	for kind := z.Next(); kind != html.ErrorToken; kind = z.Next() {
		if kind != html.StartTagToken && kind != html.SelfClosingTagToken {
			continue
		}
		tag := z.Token()
		attributes := make(map[string]string, len(tag.Attr))
		for _, a := range tag.Attr {
			attributes[a.Key] = a.Val
		}
		switch {
		case tag.Data == "form" && fields == nil && strings.EqualFold(attributes["method"], "post"):
			action, fields = attributes["action"], make(url.Values)
		case tag.Data == "input" && fields != nil && attributes["name"] != "":
			fields.Set(attributes["name"], attributes["value"])
		}
	}
	if !fields.Has("user") || !fields.Has("password") {
		return "", nil, errors.New("the page has no form for user and password")
	}
	return action, fields, nil
}
