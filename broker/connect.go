package broker

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/audit"
)

// This file is how subjects link accounts of their own at upstreams, and unlink them.
// The providers do it; here is who may, what is recorded, and what ends with it.

// ConnectPath is where subjects link accounts, below the issuer; both together are the
// identifier of the resource that it is. /PROVIDER behind it is one upstream's page.
const ConnectPath = "/connect"

// The actions that the record knows.
const (
	linkBegin  = "begin"
	linkFinish = "finish"
	linkUnlink = "unlink"
)

// Linking is what somebody does about an account of his own at a provider.
type Linking struct {
	// Person is his token for [ConnectPath], as [Broker.Admit] returned it.
	Person   *Token
	Provider string
	// RequestID, Trace and Address are those of the request.
	RequestID, Trace, Address string
}

// LinkAnswer is what came back from an upstream by the browser.
type LinkAnswer struct {
	// Redirect, State and Verifier are those that it was sent there with.
	Redirect, State, Verifier string
	// Issuer is the parameter iss (RFC 9207), empty if there was none.
	Issuer, Code string
	// Ends is until when the state is good.
	Ends time.Time
}

// Linkable is an upstream at which accounts can be linked, and the one that is.
type Linkable struct {
	Provider, Kind, About string
	// Account is nil where none is linked.
	Account *Account
	// Problem says why it is not known; empty: it is.
	Problem string
}

// LinkOffer is what linking an account would come to.
type LinkOffer struct {
	Linkable
	// Site is the upstream's host, and Scopes what it is asked for there.
	Site   string
	Scopes []string
}

// link returns how accounts are linked at a provider; nil if they are not.
func (r *Registry) link(provider string) *Link {
	p := r.Providers[provider]
	if p == nil {
		return nil
	}
	return p.Describe().Link
}

// Links are the names of the providers at which subjects link accounts, sorted.
func (r *Registry) Links() (names []string) {
	for name := range r.Providers {
		if r.link(name) != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// linkAt puts into an error for want of an account where to link one.
func (r *Registry) linkAt(err error, provider string) error {
	e := (*Error)(nil)
	if !errors.As(err, &e) || e.Code != NeedsLink || e.URL != "" || r.link(provider) == nil {
		return err
	}
	told := *e
	told.URL = r.Self + ConnectPath + "/" + provider
	if error(e) != err { //nolint:errorlint // identity: what it was wrapped in is for the record
		told.Err = err
	}
	return &told
}

// linkFailed is the error for an upstream that did not do its part in linking. What a
// provider says by a code is for the caller; of the rest nothing is.
func linkFailed(provider string, err error) error {
	if e := AsError(err); e.Code != Internal {
		return err
	}
	e := Fail(Unavailable, fmt.Errorf("link an account at %s: %w", provider, err), "the upstream cannot be asked; try again")
	e.RetryAfter = 5 * time.Second
	return e
}

// person checks that somebody is a person, who has neither been revoked nor frozen, and
// that there is something to link at. A freeze ends what was made before it, too.
func (b *Broker) person(l Linking) (*Link, error) {
	if err := b.current(b.now()); err != nil {
		return nil, err
	}
	const which = "access token"
	if l.Person == nil || !l.Person.Ours || !strings.Contains(l.Person.Subject, "#") {
		return nil, refused(which, "a client has no accounts of its own")
	}
	from, err := ancestry(which, l.Person, "")
	if err != nil {
		return nil, err
	}
	if b.reg.gone(from) || b.index.Check(from) != nil {
		return nil, refused(which, "it is revoked, or somebody on its way is turned off")
	}
	link := b.reg.link(l.Provider)
	if link == nil {
		return nil, Fail(BadTarget, fmt.Errorf("no accounts are linked at %s", printable(l.Provider)), "there is nothing of this name at which accounts are linked")
	}
	return link, nil
}

// event begins the event of a step.
func (l *Linking) event(action string) (*audit.Event, audit.Personal) {
	e := &audit.Event{
		Kind: audit.KindLink, Outcome: audit.Done, Request: l.RequestID, Trace: l.Trace,
		Link: &audit.Link{Provider: l.Provider, Action: action}, Target: audit.Target{Provider: l.Provider},
	}
	p := audit.Personal{Address: l.Address}
	if t := l.Person; t != nil {
		e.Party.Client, p.Subject = t.ClientID, t.Subject
		if t.Stint != nil {
			e.Party.Session = t.Stint.Session
		}
	}
	return e, p
}

// RefuseLink records that an account was not linked, for a reason that shows before an
// upstream is asked.
func (b *Broker) RefuseLink(ctx context.Context, l Linking, err error) {
	if b.reg.link(l.Provider) == nil { // a stranger's word has no place in the record
		l.Provider = ""
	}
	e, p := l.event(linkFinish)
	b.recordRefusal(ctx, e, p, err)
}

// Accounts returns at which upstreams a subject can link accounts, and which are
// linked. Errors: as [Broker.OfferLink], but for BadTarget.
func (b *Broker) Accounts(ctx context.Context, l Linking) (out []Linkable, err error) {
	for _, name := range b.reg.Links() {
		l.Provider = name
		link, err := b.person(l)
		if err != nil {
			return nil, err
		}
		out = append(out, b.linkable(ctx, link, l))
	}
	return out, nil
}

func (b *Broker) linkable(ctx context.Context, link *Link, l Linking) Linkable {
	d := b.reg.Providers[l.Provider].Describe()
	out := Linkable{Provider: l.Provider, Kind: d.Kind, About: d.About}
	a, err := b.linked(ctx, link, l)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		out.Problem = "it cannot be told now; try again"
		b.log.WarnContext(ctx, "look for a linked account", "provider", l.Provider, "error", AsError(err).Reason())
	default:
		out.Account = a
	}
	return out
}

// linked returns the account that is linked.
func (b *Broker) linked(ctx context.Context, link *Link, l Linking) (*Account, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.MintTimeout)
	defer cancel()
	a, err := safely(func() (*Account, error) { return link.Linked(ctx, l.Person.Subject) })
	if err == nil && a == nil {
		err = errors.New("the provider answered with nothing")
	}
	return a, err
}

// OfferLink says what linking an account at a provider would come to, by what the
// upstream would be asked. Errors: BadToken, if the subject may not; BadTarget, if no
// accounts are linked there; Unavailable.
func (b *Broker) OfferLink(ctx context.Context, l Linking, redirect string) (*LinkOffer, error) {
	link, err := b.person(l)
	if err != nil {
		return nil, err
	}
	out := &LinkOffer{Linkable: b.linkable(ctx, link, l)}
	where, err := b.linkWhere(ctx, link, l, LinkAnswer{Redirect: redirect, State: "none", Verifier: strings.Repeat("0", 43)})
	if err != nil {
		return nil, err
	}
	out.Site, out.Scopes = where.Host, strings.Fields(where.Query().Get("scope"))
	return out, nil
}

// linkWhere asks the provider where to go.
func (b *Broker) linkWhere(ctx context.Context, link *Link, l Linking, a LinkAnswer) (*url.URL, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.MintTimeout)
	defer cancel()
	where, err := safely(func() (string, error) {
		return link.Begin(ctx, LinkRequest{Subject: l.Person.Subject, Redirect: a.Redirect, State: a.State, Verifier: a.Verifier})
	})
	if err != nil {
		return nil, linkFailed(l.Provider, err)
	}
	u, err := url.Parse(where)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil {
		return nil, linkFailed(l.Provider, errors.New("what the provider says is no address of a site"))
	}
	return u, nil
}

// BeginLink returns where a browser has to go to link an account, and records that it
// was sent there. Errors: as [Broker.OfferLink].
func (b *Broker) BeginLink(ctx context.Context, l Linking, a LinkAnswer) (where string, err error) {
	e, p := l.event(linkBegin)
	link, err := b.person(l)
	var u *url.URL
	if err == nil {
		u, err = b.linkWhere(ctx, link, l, a)
	}
	if err != nil {
		b.recordRefusal(ctx, e, p, err)
		return "", err
	}
	if err := b.recorder.Record(ctx, e, p); err != nil {
		return "", unavailable(fmt.Errorf("record that an account is to be linked: %w", err))
	}
	return u.String(), nil
}
