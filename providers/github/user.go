package github

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

// The App that accounts are linked by is the first.
func (p *provider) linking() *app { return p.apps[0] }

func (p *provider) key(subject string) upstream.ParentKey {
	return upstream.ParentKey{Provider: p.name, Subject: subject}
}

// link is how subjects link their accounts.
func (p *provider) link() *broker.Link {
	return &broker.Link{Begin: p.begin, Finish: p.finish, Linked: p.linked, Unlink: p.unlink}
}

func (p *provider) begin(_ context.Context, r broker.LinkRequest) (string, error) {
	challenge := sha256.Sum256([]byte(r.Verifier))
	return p.cfg.Web + "/login/oauth/authorize?" + url.Values{
		"client_id": {p.linking().ClientID}, "redirect_uri": {r.Redirect}, "state": {r.State}, "response_type": {"code"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])}, "code_challenge_method": {"S256"},
	}.Encode(), nil
}

// pair is what GitHub answers to whoever signs in or renews. An error comes with status
// 200.
type pair struct {
	Access    string `json:"access_token"`
	ExpiresIn int64  `json:"expires_in"`
	Refresh   string `json:"refresh_token"`
	RefreshIn int64  `json:"refresh_token_expires_in"`
	Type      string `json:"token_type"`
	Error     string `json:"error"`
}

// obtain asks for tokens of a user. An error that wraps [upstream.ErrDead] says that GitHub
// does not take what it was shown.
func (p *provider) obtain(ctx context.Context, form url.Values) (*pair, error) {
	word, err := p.deps.Secret(ctx, p.linking().ClientSecret)
	if err != nil {
		return nil, err
	}
	form.Set("client_id", p.linking().ClientID)
	form.Set("client_secret", word.Reveal())
	a, err := p.ask.Do(ctx, upstream.Request{Method: http.MethodPost, URL: p.cfg.Web + "/login/oauth/access_token", Form: form})
	if err != nil {
		return nil, err
	}
	var got pair
	if err := a.JSON(&got); err != nil {
		return nil, fmt.Errorf("%w: %w", err, upstream.ErrUncertain)
	}
	switch {
	case got.Error == "bad_refresh_token" || got.Error == "bad_verification_code" || got.Error == "invalid_grant":
		return nil, fmt.Errorf("GitHub says %s: %w", got.Error, upstream.ErrDead)
	case got.Error != "" || a.Status != http.StatusOK:
		return nil, fmt.Errorf("ask for a user's tokens: GitHub answers %d %.40q", a.Status, got.Error)
	case got.Access == "" || got.Refresh == "" || got.ExpiresIn <= 0:
		return nil, errors.New("the App's user tokens do not expire: switch that on in its settings")
	}
	return &got, nil
}

// parent is what is kept of an account.
func (p *provider) parent(got *pair, account broker.Account) *upstream.Parent {
	now := p.deps.Now()
	account.Broken = ""
	if got.RefreshIn > 0 {
		account.Expires = now.Add(time.Duration(got.RefreshIn) * time.Second)
	}
	return &upstream.Parent{
		Account: account, Refresh: secret.New(got.Refresh), Access: secret.New(got.Access),
		AccessExpires: now.Add(time.Duration(got.ExpiresIn) * time.Second),
	}
}

func (p *provider) finish(ctx context.Context, r broker.LinkRequest, code string) (*broker.Account, error) {
	got, err := p.obtain(ctx, url.Values{"code": {code}, "redirect_uri": {r.Redirect}, "code_verifier": {r.Verifier}})
	if errors.Is(err, upstream.ErrDead) {
		return nil, broker.Fail(broker.BadToken, err, "GitHub does not accept this sign-in; try again")
	}
	if err != nil {
		return nil, err
	}
	a, err := p.call(ctx, upstream.Request{Method: http.MethodGet, URL: p.cfg.URL + "/user", Bearer: secret.New(got.Access)})
	if err != nil {
		return nil, err
	}
	var user struct {
		ID    int64  `json:"id"`
		Login string `json:"login"`
	}
	if err := a.JSON(&user); err != nil || a.Status != http.StatusOK || user.ID <= 0 {
		return nil, fmt.Errorf("ask who signed in: GitHub answers %d: %w", a.Status, err)
	}
	parent := p.parent(got, broker.Account{ID: strconv.FormatInt(user.ID, 10), Name: user.Login, Since: p.deps.Now()})
	was, err := p.deps.Parents.Put(ctx, p.key(r.Subject), parent)
	if err != nil {
		return nil, err
	}
	if was != nil && was.Account.ID != parent.Account.ID {
		// Of another account: its tokens end. Those of the same one are its own.
		if _, err := p.forget(ctx, was); err != nil {
			p.deps.Log.WarnContext(ctx, "an account that was linked before could not be revoked", "provider", p.name, "error", err)
		}
	}
	return &parent.Account, nil
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

// forget takes the App's authorization from a user: every token of the two ends.
func (p *provider) forget(ctx context.Context, parent *upstream.Parent) (broker.Outcome, error) {
	a, err := p.withSecret(ctx, http.MethodDelete, "/grant", map[string]any{"access_token": parent.Access.Reveal()})
	switch {
	case err != nil:
		return broker.Outcome{State: broker.Stuck, Note: "GitHub was not told; the user can revoke the App in its settings"}, err
	case a.Status == http.StatusNoContent:
		return broker.Outcome{State: broker.Revoked}, nil
	case a.Status == http.StatusNotFound || a.Status == http.StatusUnprocessableEntity:
		return broker.Outcome{State: broker.UnknownUntil, Until: parent.Account.Expires, Note: "GitHub does not know the token; the user can revoke the App in its settings"}, nil
	}
	return broker.Outcome{State: broker.Stuck}, fmt.Errorf("revoke an authorization: GitHub answers %d", a.Status)
}

// withSecret asks about tokens of the App's users, as the App by its client secret.
func (p *provider) withSecret(ctx context.Context, method, path string, body any) (*upstream.Answer, error) {
	word, err := p.deps.Secret(ctx, p.linking().ClientSecret)
	if err != nil {
		return nil, err
	}
	id := p.linking().ClientID
	return p.call(ctx, upstream.Request{Method: method, URL: p.cfg.URL + "/applications/" + id + path, User: id, Password: word, JSON: body})
}

// fresh returns a user's own token, renewed if it would end before a time.
func (p *provider) fresh(ctx context.Context, subject string, until time.Time) (*upstream.Parent, error) {
	parent, err := p.deps.Parents.Fresh(ctx, p.key(subject), until, func(ctx context.Context, old *upstream.Parent) (*upstream.Parent, error) {
		got, err := p.obtain(ctx, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {old.Refresh.Reveal()}})
		if err != nil {
			return nil, err
		}
		return p.parent(got, old.Account), nil
	})
	if errors.Is(err, upstream.ErrDead) || errors.Is(err, broker.ErrNotFound) {
		return nil, broker.Fail(broker.NeedsLink, err, "an account at GitHub has to be linked")
	}
	return parent, err
}

// scoped is what GitHub answers when it has narrowed a user's token.
type scoped struct {
	Token        string     `json:"token"`
	Expires      *time.Time `json:"expires_at"`
	Installation *struct {
		Permissions map[string]string `json:"permissions"`
		Selection   string            `json:"repository_selection"`
		Account     struct {
			ID int64 `json:"id"`
		} `json:"account"`
	} `json:"installation"`
}

// mintUser narrows the subject's own token. The subject's token itself never leaves.
func (p *provider) mintUser(ctx context.Context, r broker.MintRequest, o order) (*broker.Minted, error) {
	parent, err := p.fresh(ctx, r.Subject, r.Expires)
	if err != nil {
		return nil, err
	}
	owner, err := strconv.ParseInt(o.Owner, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("the owner is %q", o.Owner)
	}
	body := map[string]any{"access_token": parent.Access.Reveal(), "target_id": owner, "permissions": o.Body.Permissions}
	if !o.All {
		body["repository_ids"] = o.Body.Repositories
	}
	ctx = context.WithoutCancel(ctx)
	answer, err := p.withSecret(ctx, http.MethodPost, "/token/scoped", body)
	if err != nil {
		return nil, err
	}
	if answer.Status != http.StatusOK {
		return nil, refused("narrow a user's token", answer)
	}
	var s scoped
	if err := answer.JSON(&s); err != nil || s.Token == "" {
		return nil, errors.Join(errors.New("narrow a user's token: there is none in the answer"), err)
	}
	expires := parent.AccessExpires // a narrowed token lives as long as what it was made from
	if s.Expires != nil {
		expires = *s.Expires
	}
	token := secret.New(s.Token)
	out, err := p.minted(r, token, handle{modeUser, p.linking().ClientID, s.Token}, expires)
	if err != nil {
		return nil, err
	}
	out.Upstream["user"], out.Upstream["app"] = parent.Account.ID, p.linking().ClientID
	out.Granted, err = p.scopedGrant(ctx, o, &s, token)
	return p.held(r, out, err)
}

// scopedGrant asks the new token itself which repositories it has: the answer does not
// list them.
func (p *provider) scopedGrant(ctx context.Context, o order, s *scoped, token secret.String) (grant.Grant, error) {
	if s.Installation == nil {
		return grant.Grant{}, errors.New("GitHub does not say what the token is for")
	}
	if id := strconv.FormatInt(s.Installation.Account.ID, 10); id != o.Owner {
		return grant.Grant{}, fmt.Errorf("the token is of the account %s, asked was %s", id, o.Owner)
	}
	if s.Installation.Selection == "all" {
		return granted(o, s.Installation.Permissions, "all", nil)
	}
	list, err := p.visible(ctx, o, token)
	if err != nil {
		return grant.Grant{}, err
	}
	return granted(o, s.Installation.Permissions, s.Installation.Selection, list)
}

// visible lists the repositories that a user's token has at an owner.
func (p *provider) visible(ctx context.Context, o order, token secret.String) (all []listed, err error) {
	get := func(path string, into any) error {
		a, err := p.call(ctx, upstream.Request{Method: http.MethodGet, URL: p.cfg.URL + path, Bearer: token})
		if err == nil && a.Status != http.StatusOK {
			err = fmt.Errorf("look at what a token has: GitHub answers %d", a.Status)
		}
		if err != nil {
			return err
		}
		return a.JSON(into)
	}
	var found struct {
		Installations []installed `json:"installations"`
	}
	if err := get("/user/installations?per_page=100", &found); err != nil {
		return nil, err
	}
	for _, in := range found.Installations {
		if strconv.FormatInt(in.Account.ID, 10) != o.Owner {
			continue
		}
		for page := 1; ; page++ {
			var part struct {
				Total        int      `json:"total_count"`
				Repositories []listed `json:"repositories"`
			}
			if err := get(fmt.Sprintf("/user/installations/%d/repositories?per_page=100&page=%d", in.ID, page), &part); err != nil {
				return nil, err
			}
			all = append(all, part.Repositories...)
			if len(part.Repositories) == 0 || len(all) >= part.Total {
				return all, nil
			}
			if len(all) > maxRepositories {
				return nil, fmt.Errorf("the token has more than %d repositories", maxRepositories)
			}
		}
	}
	return nil, errors.New("the token is of no installation")
}
