package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/stint-dev/stint/audit"
)

// FinishLink links the account for which a code came back, once. What was linked has
// been recorded durably before it returns; an account in the place of another ends what
// was made from that. Errors: BadToken, if the subject or the upstream's answer is not
// accepted; BadTarget; Unavailable.
func (b *Broker) FinishLink(ctx context.Context, l Linking, a LinkAnswer) (*Account, error) {
	e, p := l.event(linkFinish)
	link, err := b.person(l)
	var was, got *Account
	if err == nil {
		was, got, err = b.finish(ctx, link, l, a)
	}
	if err != nil {
		b.recordRefusal(ctx, e, p, err)
		return nil, err
	}
	// From here on the browser may be gone; what is linked must not be forgotten.
	ctx = context.WithoutCancel(ctx)
	e.Link.Scopes, p.Account = got.Scopes, accountName(got)
	if _, err := b.person(l); err != nil {
		err = refused("access token", "revoked while the account was linked: %w", err)
		b.takeBack(ctx, link, l)
		b.recordRefusal(ctx, e, p, err)
		return nil, err
	}
	if err := b.recorder.Record(ctx, e, p); err != nil {
		b.takeBack(ctx, link, l)
		return nil, unavailable(fmt.Errorf("record that an account was linked: %w", err))
	}
	if was != nil && was.ID != got.ID {
		if err := b.endMade(ctx, l, "another account was linked at "+l.Provider); err != nil {
			return nil, err
		}
	}
	return got, nil
}

// accountName is an account as the record seals it.
func accountName(a *Account) string { return strings.TrimSpace(a.ID + " " + a.Name) }

// finish uses up the state and has the provider exchange the code.
func (b *Broker) finish(ctx context.Context, link *Link, l Linking, a LinkAnswer) (was, got *Account, err error) {
	first, err := b.once.Use(ctx, "link", a.State, a.Ends.Add(b.cfg.Skew))
	switch {
	case err != nil:
		return nil, nil, unavailable(fmt.Errorf("remember the state of a link: %w", err))
	case !first:
		return nil, nil, linkRefused("the state was used before")
	case a.Issuer != "" && link.Issuer != "" && a.Issuer != link.Issuer: // RFC 9207 section 2.4
		return nil, nil, linkRefused("the answer is of the issuer %q, not of %s", printable(a.Issuer), link.Issuer)
	case a.Code == "" || len(a.Code) > maxCode:
		return nil, nil, linkRefused("there is no code, or one of more than %d bytes", maxCode)
	}
	if was, err = b.linked(ctx, link, l); err != nil && !errors.Is(err, ErrNotFound) {
		return nil, nil, linkFailed(l.Provider, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.cfg.MintTimeout)
	defer cancel()
	got, err = safely(func() (*Account, error) {
		return link.Finish(ctx, LinkRequest{Subject: l.Person.Subject, Redirect: a.Redirect, State: a.State, Verifier: a.Verifier}, a.Code)
	})
	if err == nil && got == nil {
		err = errors.New("the provider answered with nothing")
	}
	if err != nil {
		return nil, nil, linkFailed(l.Provider, err)
	}
	return was, got, nil
}

// maxCode bounds an authorization code, in bytes.
const maxCode = 4096

// linkRefused is the error for an answer that is not accepted, for whatever reason.
func linkRefused(format string, args ...any) error {
	return Fail(BadToken, fmt.Errorf("link: "+format, args...), "the upstream's answer is not accepted; begin again")
}

// takeBack unlinks what may not stay linked. What cannot be is for an alarm.
func (b *Broker) takeBack(ctx context.Context, link *Link, l Linking) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.RevokeTimeout)
	defer cancel()
	_, err := safely(func() (Outcome, error) { return link.Unlink(ctx, l.Person.Subject) })
	if ignore(err, ErrNotFound) != nil {
		b.log.ErrorContext(ctx, "alarm: an account that could not be recorded stays linked", "provider", l.Provider, "error", AsError(err).Reason())
	}
}

// Unlink forgets the account of a subject at a provider, revokes upstream what can be,
// and ends the credentials that were made from it. Taking away waits for no record: one
// that fails raises an alarm. Errors: BadToken; BadTarget, if none is linked;
// Unavailable, if not all of it could be done.
func (b *Broker) Unlink(ctx context.Context, l Linking) (Outcome, error) {
	e, p := l.event(linkUnlink)
	out, err := b.unlink(ctx, l, &p)
	if err != nil {
		b.recordRefusal(ctx, e, p, err)
		return Outcome{}, err
	}
	e.Link.Outcome = string(out.State)
	if !out.Until.IsZero() {
		e.Link.Until = out.Until.Unix()
	}
	if err := b.recorder.Record(context.WithoutCancel(ctx), e, p); err != nil {
		b.log.ErrorContext(ctx, "alarm: that an account was unlinked could not be recorded", "error", err)
	}
	return out, nil
}

func (b *Broker) unlink(ctx context.Context, l Linking, p *audit.Personal) (Outcome, error) {
	link, err := b.person(l)
	if err != nil {
		return Outcome{}, err
	}
	if a, err := b.linked(ctx, link, l); err == nil {
		p.Account = accountName(a)
	}
	ctx = context.WithoutCancel(ctx)
	bounded, cancel := context.WithTimeout(ctx, b.cfg.RevokeTimeout)
	defer cancel()
	out, failure := safely(func() (Outcome, error) { return link.Unlink(bounded, l.Person.Subject) })
	if errors.Is(failure, ErrNotFound) {
		// The account may have been forgotten before, and what was made from it not ended.
		made, err := b.made(ctx, l)
		switch {
		case err != nil:
			return out, err
		case !made:
			return out, Fail(BadTarget, failure, "no account is linked there")
		}
		out, failure = Outcome{State: AlreadyDead}, nil
	}
	// Behind the forgetting: what is made meanwhile was begun before, and dies with this.
	err = b.endMade(ctx, l, "the account at "+l.Provider+" was unlinked")
	switch {
	case failure == nil:
	case out.State == "": // it is not forgotten
		return out, linkFailed(l.Provider, failure)
	default: // it is, and the upstream was not told
		b.log.WarnContext(ctx, "an account was forgotten, and could not be revoked upstream", "provider", l.Provider, "outcome", out.State, "error", AsError(failure).Reason())
	}
	return out, err
}

// endMade ends the credentials that a subject has of a provider.
func (b *Broker) endMade(ctx context.Context, l Linking, why string) error {
	s := Selector{Subject: l.Person.Subject, provider: l.Provider}
	_, err := b.revoke(ctx, Revocation{
		Selector: s, Reason: why, Operator: b.recorder.Index(l.Person.Subject), RequestID: l.RequestID,
	}, s.where(), b.now().Add(b.longest()))
	return err
}

// made reports whether a subject has credentials of a provider.
func (b *Broker) made(ctx context.Context, l Linking) (bool, error) {
	ids, err := b.ledger.Match(ctx, KeyOf(BySubject, l.Person.Subject))
	if err != nil {
		return false, unavailable(fmt.Errorf("look for leases: %w", err))
	}
	for _, id := range ids {
		lease, err := b.ledger.Lease(ctx, id)
		if ignore(err, ErrNotFound) != nil {
			return false, unavailable(fmt.Errorf("look for a lease: %w", err))
		}
		if err == nil && lease.Provider == l.Provider && (lease.State == Intent || lease.State == Active) {
			return true, nil
		}
	}
	return false, nil
}
