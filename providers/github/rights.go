package github

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
)

// login returns who a subject is at GitHub: its name, as the settings say, else # and the
// id of the account that it has linked. Errors: NeedsLink, if neither is known.
func (p *provider) login(ctx context.Context, subject string) (string, error) {
	if login := p.cfg.Logins[subject]; login != "" {
		return login, nil
	}
	unknown := func(err error) (string, error) {
		return "", broker.Fail(broker.NeedsLink, err, "it is not known who the subject is at GitHub: an account has to be linked")
	}
	if p.about.Link == nil {
		return unknown(errors.New("the subject is not among the logins, and accounts cannot be linked"))
	}
	account, err := p.about.Link.Linked(ctx, subject)
	switch {
	case errors.Is(err, broker.ErrNotFound):
		return unknown(err)
	case err != nil:
		return "", err
	}
	return "#" + account.ID, nil
}

// permission returns a user's permission on a repository, OWNER/NAME: none, read, write
// or admin. A yes is remembered for a minute, a no for five seconds.
func (p *provider) permission(ctx context.Context, login, name string) (string, error) {
	return p.rights.Get(ctx, [2]string{strings.ToLower(login), strings.ToLower(name)}, func(ctx context.Context) (string, bool, error) {
		permission, err := p.askPermission(ctx, login, name)
		return permission, err == nil && permission != "none", err
	})
}

func (p *provider) askPermission(ctx context.Context, login, name string) (string, error) {
	who, _, _ := strings.Cut(name, "/")
	o, err := p.owner(ctx, who)
	if err != nil {
		return "", err
	}
	for _, in := range o.installations {
		token, err := p.reader(ctx, in)
		if err != nil {
			return "", err
		}
		user, err := p.userName(ctx, token, login)
		if err != nil {
			return "", err
		}
		a, err := p.call(ctx, upstream.Request{Method: http.MethodGet, URL: p.cfg.URL + "/repos/" + name + "/collaborators/" + user + "/permission", Bearer: token})
		if err != nil {
			return "", err
		}
		switch a.Status {
		case http.StatusOK:
		case http.StatusNotFound: // no such user, or not of this App's repositories
			continue
		default:
			return "", broker.Fail(broker.Unavailable, fmt.Errorf("ask for a user's permission: GitHub answers %d", a.Status), "the upstream does not say what the subject may do")
		}
		var got struct {
			Permission string `json:"permission"`
		}
		if err := a.JSON(&got); err != nil {
			return "", err
		}
		if rank(got.Permission) < 0 {
			return "", fmt.Errorf("no permission is called %q", got.Permission)
		}
		return got.Permission, nil
	}
	return "none", nil
}

// userName is the name that an account has now: names can be changed, and given to others.
func (p *provider) userName(ctx context.Context, token secret.String, login string) (string, error) {
	id, byID := strings.CutPrefix(login, "#")
	if !byID {
		return login, nil
	}
	a, err := p.call(ctx, upstream.Request{Method: http.MethodGet, URL: p.cfg.URL + "/user/" + id, Bearer: token})
	if err != nil {
		return "", err
	}
	var got struct {
		ID    int64  `json:"id"`
		Login string `json:"login"`
	}
	if err := a.JSON(&got); err != nil || a.Status != http.StatusOK || strconv.FormatInt(got.ID, 10) != id || !isName(got.Login) {
		return "", broker.Fail(broker.Unavailable, fmt.Errorf("ask for a user by id: GitHub answers %d: %w", a.Status, err), "the upstream does not say what the subject may do")
	}
	return got.Login, nil
}
