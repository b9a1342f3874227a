package google

import (
	"context"
	"crypto/sha256"
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
)

func (p *provider) link() *broker.Link {
	l := &broker.Link{Begin: p.begin, Finish: p.finish, Linked: p.linked, Unlink: p.unlink}
	if strings.HasPrefix(p.cfg.Endpoints.Authorization, "https://accounts.google.com/") {
		l.Issuer = "https://accounts.google.com" // which it says in answers, RFC 9207
	}
	return l
}

// linkScopes are those of the settings, and the two that say whose account it is.
func (p *provider) linkScopes() string {
	list := []string{"openid", scopePrefix + "userinfo.email"}
	for _, name := range p.cfg.Scopes {
		if s, _ := full(name); !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return strings.Join(list, " ")
}

// begin sends the browser to Google's consent. Without prompt there is a refresh token
// the first time only.
func (p *provider) begin(_ context.Context, r broker.LinkRequest) (string, error) {
	u, err := url.Parse(p.cfg.Endpoints.Authorization)
	if err != nil {
		return "", errors.New("endpoints: authorization is no URL")
	}
	challenge := sha256.Sum256([]byte(r.Verifier)) // RFC 7636 section 4.2
	u.RawQuery = url.Values{
		"response_type": {"code"}, "client_id": {p.cfg.ClientID}, "redirect_uri": {r.Redirect}, "scope": {p.linkScopes()},
		"state": {r.State}, "code_challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])}, "code_challenge_method": {"S256"},
		"access_type": {"offline"}, "prompt": {"consent"}, "include_granted_scopes": {"false"},
	}.Encode()
	return u.String(), nil
}

// finish keeps the refresh token that a code is worth. The access token that comes with
// it is dropped: it is good for everything.
func (p *provider) finish(ctx context.Context, r broker.LinkRequest, code string) (*broker.Account, error) {
	key, err := p.deps.Secret(ctx, p.cfg.ClientSecret)
	if err != nil {
		return nil, fmt.Errorf("read client_secret: %w", err)
	}
	a, err := p.token(ctx, p.cfg.Endpoints.Token, url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {r.Redirect}, "code_verifier": {r.Verifier},
		"client_id": {p.cfg.ClientID}, "client_secret": {key.Reveal()},
	})
	refused := (*refusal)(nil)
	switch {
	case errors.As(err, &refused):
		return nil, broker.Fail(broker.BadToken, err, "the upstream does not accept this")
	case err != nil:
		return nil, err
	case a.RefreshToken == "" || a.Scope == nil:
		return nil, broker.Fail(broker.BadToken, errors.New("Google gave no refresh token, or does not say for what"), "the upstream gave nothing that could be kept")
	}
	account, err := p.whose(a.IDToken)
	if err != nil {
		return nil, broker.Fail(broker.BadToken, err, "the upstream does not say whose account it is")
	}
	account.Since = p.deps.Now().UTC().Truncate(time.Second)
	for _, name := range shorts(*a.Scope) {
		account.Scopes = append(account.Scopes, name.(string)) // of texts
	}
	was, err := p.deps.Parents.Put(ctx, p.key(r.Subject), &upstream.Parent{Account: *account, Refresh: secret.New(a.RefreshToken)})
	if err != nil {
		return nil, err
	}
	// What was linked before is of no more use. Of the same account, to revoke it would
	// take the new one along.
	if was != nil && was.Account.ID != account.ID {
		_ = p.revoke(ctx, was.Refresh)
	}
	return account, nil
}

// whose reads an ID token that came from Google's own endpoint over TLS, which stands
// for its signature (OpenID Connect Core section 3.1.3.7, 6).
func (p *provider) whose(idToken string) (*broker.Account, error) {
	parts := strings.Split(idToken, ".")
	if len(parts) != 3 {
		return nil, errors.New("Google gave no ID token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, errors.New("Google's ID token cannot be read")
	}
	var c struct {
		Audience string `json:"aud"`
		Subject  string `json:"sub"`
		Email    string `json:"email"`
		Expires  int64  `json:"exp"`
	}
	switch err := strictjson.DecodeKnown(payload, &c); {
	case err != nil:
		return nil, errors.New("Google's ID token cannot be read")
	case c.Audience != p.cfg.ClientID:
		return nil, errors.New("Google's ID token is for another client")
	case c.Subject == "" || !p.deps.Now().Before(time.Unix(c.Expires, 0)):
		return nil, errors.New("Google's ID token names nobody, or is over")
	}
	return &broker.Account{ID: c.Subject, Name: c.Email}, nil
}

func (p *provider) linked(ctx context.Context, subject string) (*broker.Account, error) {
	parent, err := p.deps.Parents.Get(ctx, p.key(subject))
	if err != nil {
		return nil, err
	}
	return &parent.Account, nil
}

// unlink forgets the account and revokes the grant, and with it every token that was
// ever made by it.
func (p *provider) unlink(ctx context.Context, subject string) (broker.Outcome, error) {
	was, err := p.deps.Parents.Forget(ctx, p.key(subject))
	if err != nil {
		return broker.Outcome{}, err
	}
	switch err := p.revoke(ctx, was.Refresh); {
	case err == nil:
		return broker.Outcome{State: broker.Revoked, Note: "the whole grant"}, nil
	case codeOf(err) == "invalid_token", codeOf(err) == "invalid_grant":
		return broker.Outcome{State: broker.AlreadyDead}, nil
	}
	return broker.Outcome{State: broker.Stuck, Note: "it is forgotten here; that Google ended it is not known"}, nil
}

// revoke ends a grant (RFC 7009).
func (p *provider) revoke(ctx context.Context, token secret.String) error {
	return p.ask(ctx, upstream.Request{
		Method: http.MethodPost, URL: p.cfg.Endpoints.Revoke, Form: url.Values{"token": {token.Reveal()}},
	}, nil)
}
