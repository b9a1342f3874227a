package github

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
)

// How long what a name means is remembered: it can be given away.
const (
	nameFor   = time.Minute
	noNameFor = 10 * time.Second
	lookupFor = 30 * time.Minute
	maxNames  = 10_000
)

// owner is an account at which Apps are installed.
type owner struct {
	id            string
	installations []*installation
	until         time.Time
}

// installation is an App at an owner.
type installation struct {
	app *app
	id  int64
	// whole says that the App has all of the owner's repositories.
	whole bool
}

// repository is what a name means; an empty id is that it means nothing.
type repository struct {
	id, owner string
	until     time.Time
}

// lookup is a token of ours for looking things up at an installation: it can read
// metadata, and nothing else, and is given to nobody.
type lookup struct {
	token secret.String
	until time.Time
}

// full is OWNER/NAME by ids.
func (r *repository) full() string { return r.owner + "/" + r.id }

// installed is what GitHub says of an installation.
type installed struct {
	ID      int64 `json:"id"`
	Account struct {
		ID int64 `json:"id"`
	} `json:"account"`
	Selection string `json:"repository_selection"`
	Suspended string `json:"suspended_at"`
}

// owner finds an account by its name, and the Apps that are installed there. ErrNotFound
// if there are none.
func (p *provider) owner(ctx context.Context, name string) (*owner, error) {
	key := strings.ToLower(name)
	now := p.deps.Now()
	p.mu.Lock()
	o := p.owners[key]
	p.mu.Unlock()
	if o == nil || now.After(o.until) {
		found := &owner{until: now.Add(nameFor)}
		for _, a := range p.apps {
			in, err := p.installed(ctx, a, name)
			switch {
			case errors.Is(err, broker.ErrNotFound):
				continue
			case err != nil:
				return nil, err
			}
			id := strconv.FormatInt(in.Account.ID, 10)
			if found.id != "" && found.id != id {
				return nil, fmt.Errorf("the owner %s changed while it was looked up", name)
			}
			found.id = id
			found.installations = append(found.installations, &installation{a, in.ID, in.Selection == "all"})
		}
		if found.id == "" {
			found.until = now.Add(noNameFor)
		}
		o = found
		p.mu.Lock()
		if len(p.owners) > maxNames {
			clear(p.owners)
		}
		p.owners[key] = o
		if o.id != "" {
			p.byID[o.id] = o
		}
		p.mu.Unlock()
	}
	if o.id == "" {
		return nil, fmt.Errorf("no App is installed at %s: %w", name, broker.ErrNotFound)
	}
	return o, nil
}

func (p *provider) installed(ctx context.Context, a *app, name string) (in installed, err error) {
	for _, kind := range []string{"/orgs/", "/users/"} {
		answer, err := p.asApp(ctx, a, http.MethodGet, kind+name+"/installation", nil)
		if err != nil {
			return in, err
		}
		switch {
		case answer.Status == http.StatusNotFound:
			continue
		case answer.Status != http.StatusOK:
			return in, refused("look for the installation", answer)
		}
		if err := answer.JSON(&in); err != nil {
			return in, err
		}
		if in.ID <= 0 || in.Account.ID <= 0 {
			return in, errors.New("an installation without ids")
		}
		if in.Suspended == "" {
			return in, nil
		}
	}
	return in, broker.ErrNotFound
}

// reader returns a token with which an installation's repositories can be looked up.
func (p *provider) reader(ctx context.Context, in *installation) (secret.String, error) {
	now := p.deps.Now()
	p.mu.Lock()
	l, ok := p.lookups[in]
	p.mu.Unlock()
	if ok && now.Before(l.until) {
		return l.token, nil
	}
	answer, err := p.asApp(ctx, in.app, http.MethodPost, fmt.Sprintf("/app/installations/%d/access_tokens", in.id), map[string]any{
		"permissions": map[string]string{"metadata": "read"},
	})
	if err != nil {
		return secret.String{}, err
	}
	if answer.Status != http.StatusCreated {
		return secret.String{}, refused("look things up", answer)
	}
	var made made
	if err := answer.JSON(&made); err != nil || made.Token == "" {
		return secret.String{}, errors.Join(errors.New("no token to look things up"), err)
	}
	l = lookup{secret.New(made.Token), now.Add(lookupFor)}
	p.mu.Lock()
	if len(p.lookups) > maxNames {
		clear(p.lookups)
	}
	p.lookups[in] = l
	p.mu.Unlock()
	return l.token, nil
}

// repository finds out what OWNER/NAME is. ErrNotFound if there is no such thing, or no
// App may see it.
func (p *provider) repository(ctx context.Context, name string) (*repository, error) {
	key := strings.ToLower(name)
	p.mu.Lock()
	r := p.known[key]
	p.mu.Unlock()
	if now := p.deps.Now(); r == nil || now.After(r.until) {
		var err error
		if r, err = p.find(ctx, name); err != nil {
			return nil, err
		}
		p.mu.Lock()
		if len(p.known) > maxNames {
			clear(p.known)
		}
		p.known[key] = r
		p.mu.Unlock()
	}
	if r.id == "" {
		return nil, fmt.Errorf("there is no repository %s that an App may see: %w", name, broker.ErrNotFound)
	}
	return r, nil
}

func (p *provider) find(ctx context.Context, name string) (*repository, error) {
	now := p.deps.Now()
	nothing := &repository{until: now.Add(noNameFor)}
	who, _, _ := strings.Cut(name, "/")
	o, err := p.owner(ctx, who)
	if errors.Is(err, broker.ErrNotFound) {
		return nothing, nil
	}
	if err != nil {
		return nil, err
	}
	for _, in := range o.installations {
		token, err := p.reader(ctx, in)
		if err != nil {
			return nil, err
		}
		answer, err := p.call(ctx, upstream.Request{Method: http.MethodGet, URL: p.cfg.URL + "/repos/" + name, Bearer: token})
		if err != nil {
			return nil, err
		}
		if answer.Status == http.StatusUnauthorized {
			p.mu.Lock()
			delete(p.lookups, in)
			p.mu.Unlock()
			return nil, broker.Fail(broker.Unavailable, errors.New("GitHub does not take the token to look things up with any more"), "the upstream does not answer")
		}
		if answer.Status != http.StatusOK {
			continue // also what was renamed: whoever means it says its name
		}
		var got struct {
			ID    int64 `json:"id"`
			Owner struct {
				ID int64 `json:"id"`
			} `json:"owner"`
		}
		if err := answer.JSON(&got); err != nil {
			return nil, err
		}
		if id := strconv.FormatInt(got.Owner.ID, 10); got.ID > 0 && id == o.id {
			return &repository{strconv.FormatInt(got.ID, 10), id, now.Add(nameFor)}, nil
		}
	}
	return nothing, nil
}

// at returns the installation by which a token for an owner is made: of those that there
// are, the one whose App has most left of its rate limit. Errors: BadTarget; Limited, if
// all is used up.
func (p *provider) at(id string) (*installation, error) {
	p.mu.Lock()
	o := p.byID[id]
	p.mu.Unlock()
	if o == nil {
		return nil, broker.Fail(broker.BadTarget, fmt.Errorf("no App is known to be installed at the account %s", id), "there is no such repository, or the App is not installed there")
	}
	now := p.deps.Now()
	best := slices.MaxFunc(o.installations, func(a, b *installation) int { return a.app.quota(now) - b.app.quota(now) })
	if best.app.quota(now) > 0 {
		return best, nil
	}
	e := broker.Fail(broker.Limited, errors.New("the rate limits of all Apps are used up"), "the upstream asks us to wait")
	e.RetryAfter = time.Hour
	for _, in := range o.installations {
		in.app.mu.Lock()
		e.RetryAfter = min(e.RetryAfter, max(in.app.reset.Sub(now), time.Second))
		in.app.mu.Unlock()
	}
	return nil, e
}
