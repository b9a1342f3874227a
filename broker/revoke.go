package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/internal/secret"
)

// Selector says what a revocation takes. Of the fields that are set, all must
// apply.
type Selector struct {
	// Token is the jti of a token of ours, or ISSUER#JTI of a foreign one.
	Token string `json:"token,omitempty"`
	// Session is a session's id, as `stint audit show` and the ledger name it.
	Session string `json:"session,omitempty"`
	// Subject is ISSUER#SUB, or the id of a client that acts for itself.
	Subject string `json:"subject,omitempty"`
	// Lease is a lease's id.
	Lease string `json:"lease,omitempty"`

	key            string // the id of a signing key of ours: see [Broker.EndWithdrawn]
	client, issuer string // that were turned off: see [Broker.Switch]
	provider       string // at which an account was unlinked: see [Broker.Unlink]
}

// where returns the selector's conditions.
func (s Selector) where() (keys []Key) {
	if s.Token != "" {
		iss, id, foreign := strings.Cut(s.Token, "#")
		if !foreign {
			iss, id = "", s.Token
		}
		keys = append(keys, KeyOf(ByToken, iss, id))
	}
	if s.Lease != "" {
		keys = append(keys, KeyOf(ByLease, s.Lease))
	}
	if s.Session != "" {
		keys = append(keys, KeyOf(BySession, s.Session))
	}
	if s.Subject != "" {
		keys = append(keys, KeyOf(BySubject, s.Subject))
	}
	if s.key != "" {
		keys = append(keys, KeyOf(ByKey, s.key))
	}
	if s.client != "" {
		keys = append(keys, KeyOf(ByClient, s.client))
	}
	if s.issuer != "" {
		keys = append(keys, KeyOf(ByIssuer, s.issuer))
	}
	if s.provider != "" {
		keys = append(keys, KeyOf(ByProvider, s.provider))
	}
	return keys
}

// shown lists the conditions for the record; a person appears as an index.
func (s Selector) shown(index func(string) string) (out []string) {
	for _, c := range [][2]string{{"token", s.Token}, {"session", s.Session}, {"lease", s.Lease}, {"key", s.key}, {"client", s.client}, {"issuer", s.issuer}, {"provider", s.provider}} {
		if c[1] != "" {
			out = append(out, c[0]+"="+c[1])
		}
	}
	if s.Subject != "" {
		out = append(out, "subject="+index(s.Subject))
	}
	return out
}

// Revocation is a request to take something back.
type Revocation struct {
	Selector Selector
	Reason   string
	// Operator names who asks, where it is no client.
	Operator  string
	Client    string
	RequestID string
}

// Receipt is what came of a revocation.
type Receipt struct {
	// Position is the record's place in the feed: whatever it selects and was made
	// before is dead at every replica that has come so far, and none grants
	// anything that has not within Bound.
	Position string    `json:"position"`
	At       time.Time `json:"at"`
	// Bound is by when every replica has refused, acknowledged or not.
	Bound time.Time `json:"bound"`
}

// Revoke takes back what a selector says. When it returns, the revocation is
// durable; leases are ended upstream from then on. Errors: BadRequest for an
// selector that is empty, or that nothing can be called; Unavailable if no durable write was possible.
func (b *Broker) Revoke(ctx context.Context, r Revocation) (*Receipt, error) {
	where := r.Selector.where()
	if len(where) == 0 {
		return nil, Fail(BadRequest, nil, "say what: token, session, subject or lease")
	}
	for _, name := range []string{r.Selector.Token, r.Selector.Subject} {
		if _, id, foreign := strings.Cut(name, "#"); foreign && !Legible(id) {
			return nil, Fail(BadRequest, nil, "no subject or token can be called that: it is too long, or has characters that cannot be printed, such as the end of a line")
		}
	}
	return b.revoke(ctx, r, where, b.now().Add(b.longest()))
}

// revoke appends the record, and then writes the event. A failure of the event
// raises an alarm; it does not undo or delay a revocation.
func (b *Broker) revoke(ctx context.Context, r Revocation, where []Key, expires time.Time) (*Receipt, error) {
	e, err := b.appendRecord(ctx, Record{Where: where, Expires: expires.Truncate(time.Second).Add(time.Second)})
	event := &audit.Event{
		Kind: audit.KindRevocation, Outcome: audit.Done, Request: r.RequestID,
		Party:      audit.Party{Client: r.Client, Operator: r.Operator},
		Revocation: &audit.Revocation{Selector: r.Selector.shown(b.recorder.Index), Reason: r.Reason},
	}
	if err != nil {
		event.Outcome, event.Code, event.Reason = audit.Failed, string(Unavailable), err.Error()
	} else {
		event.Revocation.Position = e.Pos.String()
	}
	if failure := b.recorder.Record(ctx, event, audit.Personal{Subject: r.Selector.Subject}); failure != nil {
		b.log.ErrorContext(ctx, "alarm: a revocation could not be recorded", "error", failure)
	}
	if err != nil {
		return nil, unavailable(err)
	}
	return &Receipt{Position: e.Pos.String(), At: e.At, Bound: b.now().Add(b.cfg.MaxStaleness)}, nil
}

// appendRecord puts a record at the end of the feed, wherever that is by then.
func (b *Broker) appendRecord(ctx context.Context, r Record) (Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*b.cfg.MaxStaleness)
	defer cancel()
	for {
		head := b.index.Head()
		if head == (Head{}) {
			return Entry{}, errors.New("the revocation feed has not been loaded")
		}
		// Rounded up: a foreign token's time has whole seconds, too.
		r.At = b.now().Add(time.Second - 1).Truncate(time.Second)
		e := head.Follow(r, Position{head.Pos.Epoch, head.Pos.Seq + 1})
		err := b.feed.Append(ctx, head, e)
		if err == nil {
			b.take([]Entry{e})
			return e, nil
		}
		if !errors.Is(err, ErrConflict) {
			return Entry{}, fmt.Errorf("append to the revocation feed: %w", err)
		}
		// Somebody else was faster. Read what there is and try behind it.
		if err := b.reach(ctx, head.Pos.Seq+1); err != nil {
			if ctx.Err() != nil {
				return Entry{}, fmt.Errorf("catch up with the revocation feed: %w", err)
			}
			pause(ctx, 20*time.Millisecond) // the store lost something: the heartbeat mends it
		}
	}
}

// RevokeToken is RFC 7009: a client takes back what was issued to it, and
// everything made from it. raw is a token of ours, or the lease id that came with
// a credential. What is neither, or has ended, is nothing to revoke, which is no
// error. Errors: Denied, if it is another client's; Unavailable, if it could not be
// done, so that it must be taken to live.
func (b *Broker) RevokeToken(ctx context.Context, c *Client, raw secret.String, requestID string) error {
	s, until, err := b.owned(ctx, c, raw)
	if err != nil {
		b.RefuseTaking(ctx, audit.KindRevocation, c, requestID, err)
		return err
	}
	if s == (Selector{}) {
		return nil // RFC 7009 section 2.2: nothing to do
	}
	// What was made from it lives no longer than it does.
	_, err = b.revoke(ctx, Revocation{Selector: s, Client: c.ID, RequestID: requestID}, s.where(), until.Add(b.cfg.Skew))
	return err
}

// owned finds what a client wants to take back, and until when it lives.
func (b *Broker) owned(ctx context.Context, c *Client, raw secret.String) (s Selector, until time.Time, err error) {
	if id := raw.Reveal(); isLeaseID(id) {
		l, err := b.ledger.Lease(ctx, id)
		switch {
		case errors.Is(err, ErrNotFound):
			return s, until, nil
		case err != nil:
			return s, until, unavailable(fmt.Errorf("look for a lease: %w", err))
		case l.Client != c.ID:
			return s, until, Fail(Denied, fmt.Errorf("lease %s was given to %s", l.ID, l.Client), "the credential was not issued to this client")
		case l.State == Closing || l.State == Closed:
			return s, until, nil
		}
		return Selector{Lease: l.ID}, l.Expires, nil
	}
	t, err := b.tokens.Verify(ctx, raw)
	switch {
	case CodeOf(err) == Unavailable:
		return s, until, err
	case err != nil || !t.Ours:
		return s, until, nil //nolint:nilerr // what is invalid needs no revocation: RFC 7009 section 2.2
	case t.ClientID != c.ID:
		return s, until, Fail(Denied, fmt.Errorf("token %s was issued to %s", t.ID, t.ClientID), "the token was not issued to this client")
	}
	return Selector{Token: t.ID}, t.Expires, nil
}

// isLeaseID reports whether a text has the form of a lease's id, which no token has.
func isLeaseID(s string) bool {
	return len(s) == 24 && !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '2' || r > '7') })
}

// RefuseTaking records that a client was refused a revocation or an introspection.
// What failed for want of something that is down is no refusal, and leaves no event.
func (b *Broker) RefuseTaking(ctx context.Context, kind audit.Kind, c *Client, requestID string, err error) {
	if CodeOf(err) == Unavailable {
		return
	}
	e := &audit.Event{Kind: kind, Request: requestID, Party: audit.Party{Client: c.ID}}
	b.recordRefusal(ctx, e, audit.Personal{}, err)
}

// Introspection is what a resource learns of a token (RFC 7662 section 2.2).
type Introspection struct {
	Active bool
	Token  *Token
}

// Introspect tells a client whose resource a token is for whether the token is
// good, and with consume uses it up. To others it is not active (RFC 7662 section
// 2.2), and the record says why. Errors: Denied, if the client is no resource;
// BadRequest, to consume a token that is not for one use; Unavailable, if it is
// not known, which is not the same as inactive.
func (b *Broker) Introspect(ctx context.Context, c *Client, raw secret.String, consume bool, requestID string) (*Introspection, error) {
	refuse := func(err error) error {
		b.RefuseTaking(ctx, audit.KindIntrospect, c, requestID, err)
		return err
	}
	if c.Resource == "" { // whatever the token is: the answer tells nothing of it
		return nil, refuse(Fail(Denied, fmt.Errorf("client %s is no resource", c.ID), "this client is no resource"))
	}
	if err := b.current(b.now()); err != nil {
		return nil, err
	}
	t, err := b.tokens.Verify(ctx, raw)
	if err != nil {
		if CodeOf(err) == Unavailable {
			return nil, err
		}
		return &Introspection{}, nil
	}
	if !t.Ours {
		return &Introspection{}, nil
	}
	if !slices.Contains(t.Audience, c.Resource) {
		_ = refuse(Fail(Denied, fmt.Errorf("token %s is for %q, not for %s", t.ID, t.Audience, c.Resource), "the token is not for this client"))
		return &Introspection{}, nil
	}
	l, err := ancestry("token", t, "")
	if CodeOf(err) == Unavailable {
		return nil, err
	}
	if err != nil || b.index.Check(l) != nil {
		return &Introspection{}, nil //nolint:nilerr // what is wrong with a token makes it inactive
	}
	if b.reg.gone(l) {
		return &Introspection{}, nil
	}
	if !consume {
		used, err := b.used(ctx, t)
		if err != nil || used {
			return &Introspection{}, err
		}
		return &Introspection{Active: true, Token: t}, nil
	}
	if !t.forOneUse() {
		return nil, refuse(Fail(BadRequest, nil, "the token is not for one use: do not consume it"))
	}
	return b.consume(ctx, c, t, requestID)
}

func (b *Broker) consume(ctx context.Context, c *Client, t *Token, requestID string) (*Introspection, error) {
	first, err := b.useUp(ctx, t)
	if err != nil {
		return nil, err
	}
	e := &audit.Event{
		Kind: audit.KindIntrospect, Outcome: audit.Done, Request: requestID,
		Party:  audit.Party{Client: c.ID, Session: t.Stint.Session},
		Target: audit.Target{Resource: c.Resource, Tool: t.Stint.Tool, Arguments: t.Stint.Arguments, Once: true},
		Token:  &audit.Token{ID: t.ID, Issuer: t.Issuer, Expires: t.Expires.Unix()},
	}
	if !first {
		e.Outcome, e.Reason = audit.Refused, "used before"
	}
	if err := b.recorder.Record(ctx, e, audit.Personal{Subject: t.Subject}); err != nil {
		return nil, unavailable(fmt.Errorf("record use: %w", err))
	}
	return &Introspection{Active: first, Token: t}, nil
}
