package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
)

func (p *provider) key(subject string) upstream.ParentKey {
	return upstream.ParentKey{Provider: p.name, Subject: subject}
}

func (p *provider) begin(ctx context.Context, r broker.LinkRequest) (string, error) {
	m, err := p.endpoints(ctx)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(m.Authorize)
	if err != nil || m.Authorize == "" {
		return "", errNoEndpoint
	}
	challenge := sha256.Sum256([]byte(r.Verifier))
	q := u.Query()
	for _, name := range slices.Sorted(maps.Keys(p.cfg.AuthorizeParams)) {
		q.Set(name, p.cfg.AuthorizeParams[name])
	}
	if p.cfg.Resource != "" {
		q.Set("resource", p.cfg.Resource)
	}
	for name, v := range map[string]string{
		"response_type": "code", "client_id": p.cfg.ClientID, "redirect_uri": r.Redirect, "state": r.State, "scope": p.join(p.cfg.Scopes),
		"code_challenge": base64.RawURLEncoding.EncodeToString(challenge[:]), "code_challenge_method": "S256",
	} {
		q.Set(name, v)
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

func (p *provider) finish(ctx context.Context, r broker.LinkRequest, code string) (*broker.Account, error) {
	got, err := p.token(ctx, url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {r.Redirect}, "code_verifier": {r.Verifier},
	})
	if errors.Is(err, upstream.ErrDead) {
		return nil, broker.Fail(broker.BadToken, err, "the upstream does not accept this sign-in; try again")
	}
	if err != nil {
		return nil, err
	}
	if got.Refresh == "" {
		return nil, errors.New("the server gave no refresh token: see always and authorize_params in the settings")
	}
	account := broker.Account{Since: p.deps.Now(), Scopes: p.cfg.Scopes}
	if got.Scope != nil {
		account.Scopes = p.said(*got.Scope)
	}
	if account.ID, account.Name, err = p.who(ctx, secret.New(got.Access)); err != nil {
		return nil, err
	}
	// Nobody uses the access token that came with it, which has every scope.
	if p.cfg.Revokes == "token" {
		if _, err := p.end(ctx, handle{Token: got.Access}); err != nil {
			p.deps.Log.WarnContext(ctx, "the access token of a new link could not be ended", "provider", p.name, "error", err)
		}
	}
	was, err := p.deps.Parents.Put(ctx, p.key(r.Subject), &upstream.Parent{Account: account, Refresh: secret.New(got.Refresh)})
	if err != nil {
		return nil, err
	}
	p.replaced(ctx, was, &account)
	return &account, nil
}

// replaced revokes what was linked before, if that was another account. Of the same one it
// is left to itself: many servers keep one consent for a user and a client, and to revoke
// the old refresh token would end the new one.
func (p *provider) replaced(ctx context.Context, was *upstream.Parent, by *broker.Account) {
	if was == nil || was.Account.ID == "" || by.ID == "" || was.Account.ID == by.ID {
		return
	}
	if _, err := p.forget(ctx, was); err != nil {
		p.deps.Log.WarnContext(ctx, "an account that was linked before could not be revoked", "provider", p.name, "error", err)
	}
}

// who asks the server whose a token is; empty, if it does not say.
func (p *provider) who(ctx context.Context, token secret.String) (id, name string, err error) {
	m, err := p.endpoints(ctx)
	if err != nil || m.UserInfo == "" {
		return "", "", err
	}
	a, err := p.ask.Do(ctx, upstream.Request{Method: http.MethodGet, URL: m.UserInfo, Bearer: token})
	if err != nil {
		return "", "", err
	}
	var got map[string]json.RawMessage
	if a.Status == http.StatusOK {
		_ = a.JSON(&got)
	}
	if got == nil {
		return "", "", nil // the token may be for something else, and the account is linked all the same
	}
	text := func(names ...string) string {
		for _, name := range names {
			var s string
			var n json.Number
			if json.Unmarshal(got[name], &s) == nil && s != "" {
				return s
			}
			if json.Unmarshal(got[name], &n) == nil && n != "" {
				return n.String()
			}
		}
		return ""
	}
	return text("sub", "id", "account_id", "user_id"), text("preferred_username", "email", "name"), nil
}

func (p *provider) linked(ctx context.Context, subject string) (*broker.Account, error) {
	parent, err := p.deps.Parents.Get(ctx, p.key(subject))
	if err != nil {
		return nil, err
	}
	return &parent.Account, nil
}

func (p *provider) unlink(ctx context.Context, subject string) (broker.Outcome, error) {
	parent, err := p.deps.Parents.Forget(ctx, p.key(subject))
	if err != nil {
		return broker.Outcome{}, err
	}
	return p.forget(ctx, parent)
}

// forget revokes a refresh token, and with it what was made from it (RFC 7009 section
// 2.1).
func (p *provider) forget(ctx context.Context, parent *upstream.Parent) (broker.Outcome, error) {
	m, err := p.endpoints(ctx)
	if err != nil {
		return broker.Outcome{State: broker.Stuck}, err
	}
	a, err := p.post(ctx, m.Revoke, url.Values{"token": {parent.Refresh.Reveal()}, "token_type_hint": {"refresh_token"}})
	switch {
	case errors.Is(err, errNoEndpoint):
		return broker.Outcome{State: broker.UnknownUntil, Until: parent.Account.Expires, Note: "the server cannot be told; the user can, in its settings"}, nil
	case err != nil:
		return broker.Outcome{State: broker.Stuck}, err
	case a.Status == http.StatusOK || a.Status == http.StatusNoContent:
		return broker.Outcome{State: broker.Revoked}, nil
	}
	return broker.Outcome{State: broker.Stuck}, fmt.Errorf("the revocation endpoint answers %d", a.Status)
}

// refreshed uses a subject's refresh token for some scopes, and returns what came of it.
// What replaces the token is kept before this returns.
func (p *provider) refreshed(ctx context.Context, subject string, scopes []string) (*tokens, *upstream.Parent, error) {
	var made *tokens
	never := time.Unix(1<<40, 0) // no access token is kept: each is narrowed anew
	parent, err := p.deps.Parents.Fresh(ctx, p.key(subject), never, func(ctx context.Context, old *upstream.Parent) (*upstream.Parent, error) {
		if made != nil { // what it came with was kept after all, by an answer that was lost
			_, _ = p.end(ctx, handle{Token: made.Access})
			made = nil
		}
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {old.Refresh.Reveal()}}
		if scopes != nil {
			form.Set("scope", p.join(scopes))
		}
		got, err := p.token(ctx, form)
		if err != nil {
			return nil, err
		}
		made = got
		next := *old
		if got.Refresh != "" {
			next.Refresh = secret.New(got.Refresh)
		}
		return &next, nil
	})
	if err != nil && made != nil {
		err = errors.Join(err, p.nobodys(context.WithoutCancel(ctx), made, errors.Is(err, broker.ErrNotFound)))
	}
	if errors.Is(err, upstream.ErrDead) || errors.Is(err, broker.ErrNotFound) {
		return nil, nil, broker.Fail(broker.NeedsLink, err, "an account has to be linked there")
	}
	if err != nil {
		return nil, nil, err
	}
	return made, parent, nil
}

// nobodys ends what was made and could not be kept. If that is because the account has been
// unlinked meanwhile, that includes the refresh token: whoever unlinked it knew an older one.
func (p *provider) nobodys(ctx context.Context, made *tokens, unlinked bool) error {
	_, err := p.end(ctx, handle{Token: made.Access})
	if !unlinked || made.Refresh == "" {
		return err
	}
	_, failed := p.forget(ctx, &upstream.Parent{Refresh: secret.New(made.Refresh)})
	return errors.Join(err, failed)
}

// inScopes reports whether an answer is for scopes at all.
func inScopes(list []string, of map[string]bool) bool {
	return len(list) > 0 && !slices.ContainsFunc(list, func(s string) bool { return !of[s] || strings.TrimSpace(s) == "" })
}
