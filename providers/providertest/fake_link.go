package providertest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"

	"github.com/stint-dev/stint/broker"
)

// fakeSite is a fake's own authorization server: it knows what it was asked, and gives
// codes.
type fakeSite struct {
	issuer  string
	linked  map[string]broker.Account // by subject
	codes   map[string]fakeCode
	revoked []string // accounts
	outcome broker.Outcome
}

type fakeCode struct {
	redirect, challenge string
	account             broker.Account
}

// Site has subjects link accounts of their own, at an authorization server of this
// issuer: without one, what is asked for live needs a link.
func (f *Fake) Site(issuer string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.site = &fakeSite{
		issuer: issuer, linked: make(map[string]broker.Account), codes: make(map[string]fakeCode), outcome: broker.Outcome{State: broker.Revoked},
	}
}

// Revokes sets what unlinking comes to upstream.
func (f *Fake) Revokes(o broker.Outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.site.outcome = o
}

// Allow is the owner of an account who was sent to the site, and allows what is asked
// there: it returns where the site sends the browser.
func (f *Fake) Allow(where string, account broker.Account) (back string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u, err := url.Parse(where)
	if err != nil {
		return "", err
	}
	q := u.Query()
	to, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" || q.Get("state") == "" {
		return "", fmt.Errorf("no authorization request: %s: %w", where, err)
	}
	code := rand.Text()
	f.site.codes[code] = fakeCode{q.Get("redirect_uri"), q.Get("code_challenge"), account}
	to.RawQuery = url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {f.site.issuer}}.Encode()
	return to.String(), nil
}

// Linked returns the account of a subject.
func (f *Fake) Linked(subject string) (broker.Account, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.site.linked[subject]
	return a, ok
}

// Revoked are the accounts whose links were revoked, by id.
func (f *Fake) Revoked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.site.revoked...)
}

// needsLink is the error for a subject that has linked nothing; called with the lock held.
func (f *Fake) needsLink(subject string) error {
	if f.site == nil {
		return nil
	}
	if _, ok := f.site.linked[subject]; ok {
		return nil
	}
	return broker.Fail(broker.NeedsLink, errors.New("no account is linked"), "link an account first")
}

// link is the description's; nil without a site.
func (f *Fake) link() *broker.Link {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.site == nil {
		return nil
	}
	return &broker.Link{Issuer: f.site.issuer, Begin: f.linkBegin, Finish: f.linkFinish, Linked: f.linkLinked, Unlink: f.linkUnlink}
}

func (f *Fake) linkBegin(ctx context.Context, r broker.LinkRequest) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.check(ctx); err != nil {
		return "", err
	}
	return f.site.issuer + "/authorize?" + url.Values{
		"response_type": {"code"}, "client_id": {"stint"}, "redirect_uri": {r.Redirect}, "state": {r.State}, "scope": {"repo read:user"},
		"code_challenge": {challengeOf(r.Verifier)}, "code_challenge_method": {"S256"},
	}.Encode(), nil
}

// challengeOf is S256 of RFC 7636 section 4.2.
func challengeOf(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (f *Fake) linkFinish(ctx context.Context, r broker.LinkRequest, code string) (*broker.Account, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.check(ctx); err != nil {
		return nil, err
	}
	c, ok := f.site.codes[code]
	delete(f.site.codes, code)
	if !ok || c.redirect != r.Redirect || c.challenge != challengeOf(r.Verifier) {
		return nil, broker.Fail(broker.BadToken, errors.New("code, redirect URI or verifier"), "the upstream refuses the code; begin again")
	}
	a := c.account
	a.Since = f.now()
	f.site.linked[r.Subject] = a
	return &a, nil
}

func (f *Fake) linkLinked(ctx context.Context, subject string) (*broker.Account, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.check(ctx); err != nil {
		return nil, err
	}
	a, ok := f.site.linked[subject]
	if !ok {
		return nil, broker.ErrNotFound
	}
	return &a, nil
}

func (f *Fake) linkUnlink(ctx context.Context, subject string) (broker.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.check(ctx); err != nil {
		return broker.Outcome{}, err
	}
	a, ok := f.site.linked[subject]
	if !ok {
		return broker.Outcome{}, broker.ErrNotFound
	}
	delete(f.site.linked, subject)
	f.site.revoked = append(f.site.revoked, a.ID)
	return f.site.outcome, nil
}
