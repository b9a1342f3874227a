package github

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

// made is what GitHub answers when it has made an installation token.
type made struct {
	Token        string            `json:"token"`
	Expires      time.Time         `json:"expires_at"`
	Permissions  map[string]string `json:"permissions"`
	Selection    string            `json:"repository_selection"`
	Repositories []listed          `json:"repositories"`
}

// listed is a repository in an answer.
type listed struct {
	ID    int64 `json:"id"`
	Owner struct {
		ID int64 `json:"id"`
	} `json:"owner"`
}

// handle is what is needed to end a token.
type handle struct {
	Mode  string `json:"mode"`
	App   string `json:"app"` // its client id
	Token string `json:"token"`
}

// Mint implements [broker.Provider]. There is nothing to note before the answer: a token
// can be ended by itself alone, and GitHub lists none.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	o, err := parseOrder(r.Rendered)
	if err != nil {
		return nil, fmt.Errorf("read rendered grant: %w", err)
	}
	if len(o.Body.Names) > 0 {
		return nil, errors.New("repositories are asked for by their ids")
	}
	text, err := o.Body.encode()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, broker.Fail(broker.Unavailable, err, "no time was left to ask GitHub")
	}
	if p.cfg.Mode == modeUser {
		return p.mintUser(ctx, r, o)
	}
	in, err := p.at(o.Owner)
	if err != nil {
		return nil, err
	}
	jwt, err := p.token(ctx, in.app)
	if err != nil {
		return nil, err
	}
	// What has been sent takes effect, whoever goes away: the answer is needed to end it.
	answer, err := p.call(context.WithoutCancel(ctx), upstream.Request{
		Method: http.MethodPost, URL: fmt.Sprintf("%s/app/installations/%d/access_tokens", p.cfg.URL, in.id), Bearer: jwt, Body: text,
	})
	if err != nil {
		return nil, err
	}
	p.noteLimit(in.app, answer.Header)
	if answer.Status != http.StatusCreated {
		return nil, refused("make a token", answer)
	}
	var m made
	if err := answer.JSON(&m); err != nil || m.Token == "" {
		return nil, errors.Join(errors.New("make a token: there is none in the answer"), err)
	}
	token := secret.New(m.Token)
	out, err := p.minted(r, token, handle{modeApp, in.app.ClientID, m.Token}, m.Expires)
	if err != nil {
		return nil, err
	}
	out.Upstream["app"], out.Upstream["installation"] = in.app.ClientID, strconv.FormatInt(in.id, 10)
	out.Granted, err = granted(o, m.Permissions, m.Selection, m.Repositories)
	return p.held(r, out, err)
}

// minted is the answer but for what was granted.
func (p *provider) minted(r broker.MintRequest, token secret.String, h handle, expires time.Time) (*broker.Minted, error) {
	encoded, err := strictjson.Encode(h)
	if err != nil {
		return nil, fmt.Errorf("encode handle: %w", err)
	}
	if err := r.Note(encoded); err != nil {
		// Nobody else will know of it.
		_, failed := p.end(context.Background(), h)
		return nil, errors.Join(fmt.Errorf("note the handle: %w", err), failed)
	}
	return &broker.Minted{
		Token: token, Evidence: broker.Attested, Expires: expires, Handle: encoded,
		Upstream: map[string]string{"hashed_token": digestBase64(token)},
	}, nil
}

// held ends a token of which it cannot be said what it is for, or that is for less than
// was asked.
func (p *provider) held(r broker.MintRequest, out *broker.Minted, err error) (*broker.Minted, error) {
	if err == nil {
		if below, _ := grant.Leq(out.Granted, r.Grant); below && !out.Granted.Equal(r.Grant) {
			_, missing := grant.Leq(r.Grant, out.Granted)
			err = fmt.Errorf("GitHub grants less than was asked: without %v", missing)
		}
	}
	if err == nil && out.Expires.IsZero() {
		err = errors.New("GitHub does not say when the token ends")
	}
	if err != nil {
		return nil, err // its handle is noted
	}
	return out, nil
}

// granted is what GitHub says that a token is for. metadata: read comes with every token
// on a repository, asked or not.
func granted(o order, permissions map[string]string, selection string, repositories []listed) (grant.Grant, error) {
	said := make(map[string]string, len(permissions))
	for key, level := range permissions {
		if key == "metadata" && level == "read" && o.Body.Permissions[key] == "" {
			continue
		}
		said[key] = level
	}
	var list []any
	switch selection {
	case "all":
		list = []any{o.Owner + "/*"}
	case "selected":
		for _, r := range repositories {
			list = append(list, fmt.Sprintf("%d/%d", r.Owner.ID, r.ID))
		}
	default:
		return grant.Grant{}, fmt.Errorf("a selection of repositories that is called %q", selection)
	}
	if len(list) == 0 {
		return grant.Grant{}, errors.New("GitHub does not say which repositories")
	}
	return grantOf(list, said)
}
