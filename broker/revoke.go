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
	return keys
}

// shown lists the conditions for the record; a person appears as an index.
func (s Selector) shown(index func(string) string) (out []string) {
	for _, c := range [][2]string{{"token", s.Token}, {"session", s.Session}, {"lease", s.Lease}} {
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
// empty selector; Unavailable if no durable write was possible.
func (b *Broker) Revoke(ctx context.Context, r Revocation) (*Receipt, error) {
	where := r.Selector.where()
	if len(where) == 0 {
		return nil, Fail(BadRequest, nil, "say what: token, session, subject or lease")
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

// RevokeToken is RFC 7009: a client takes back a token that was issued to it,
// and everything made from it. A token that is not valid is nothing to revoke,
// which is no error. Errors: Denied, if the token is another client's;
// Unavailable, if it could not be done, so that the token must be taken to live.
func (b *Broker) RevokeToken(ctx context.Context, c *Client, raw secret.String, requestID string) error {
	t, err := b.tokens.Verify(ctx, raw)
	if err != nil {
		if CodeOf(err) == Unavailable {
			return err
		}
		return nil
	}
	if !t.Ours {
		return nil // RFC 7009 section 2.2: none of ours, nothing to do
	}
	if t.ClientID != c.ID {
		return Fail(Denied, fmt.Errorf("token %s was issued to %s", t.ID, t.ClientID), "the token was not issued to this client")
	}
	// What was made from it lives no longer than it does.
	r := Revocation{Selector: Selector{Token: t.ID}, Client: c.ID, RequestID: requestID}
	_, err = b.revoke(ctx, r, r.Selector.where(), t.Expires.Add(b.cfg.Skew))
	return err
}

// Introspection is what a resource learns of a token (RFC 7662 section 2.2).
type Introspection struct {
	Active bool
	Token  *Token
}

// Introspect tells a client whose resource a token is for whether the token is
// good, and with consume uses it up. Errors: Denied, if the token is for
// somebody else; BadRequest, to consume a token that is not for one use;
// Unavailable, if it is not known, which is not the same as inactive.
func (b *Broker) Introspect(ctx context.Context, c *Client, raw secret.String, consume bool, requestID string) (*Introspection, error) {
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
	if c.Resource == "" || !slices.Contains(t.Audience, c.Resource) {
		return nil, Fail(Denied, fmt.Errorf("token %s is for %q", t.ID, t.Audience), "the token is not for this client")
	}
	l, err := lineageOf(t, "")
	if err != nil || b.index.Check(l) != nil {
		return &Introspection{}, nil //nolint:nilerr // what is wrong with a token makes it inactive
	}
	if b.reg.gone(l) {
		return &Introspection{}, nil
	}
	if !consume {
		return &Introspection{Active: true, Token: t}, nil
	}
	return b.consume(ctx, c, t, requestID)
}

func (b *Broker) consume(ctx context.Context, c *Client, t *Token, requestID string) (*Introspection, error) {
	if !t.Stint.Once {
		return nil, Fail(BadRequest, nil, "the token is not for one use: do not consume it")
	}
	first, err := b.once.Use(ctx, "token", t.ID, t.Expires.Add(b.cfg.Skew))
	if err != nil {
		return nil, unavailable(fmt.Errorf("use up token: %w", err))
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

// Recover writes leases that a journal knows and the ledger does not, so that
// they are ended in time: what `stint recover` does after the store lost its
// data. It returns how many there were. Doing it again changes nothing.
func Recover(ctx context.Context, ledger Ledger, leases []*Lease, now time.Time) (restored int, err error) {
	for _, l := range leases {
		if l.State == Closed {
			continue
		}
		if _, err := ledger.Lease(ctx, l.ID); err == nil {
			continue
		} else if !errors.Is(err, ErrNotFound) {
			return restored, fmt.Errorf("look for lease %s: %w", l.ID, err)
		}
		again := *l
		again.Version = 0
		if again.State == Intent {
			again.State, again.Why = Closing, "failed"
		}
		if again.State == Closing || again.Next.IsZero() {
			again.Next = now
		}
		if err := ledger.Create(ctx, &again); err != nil && !errors.Is(err, ErrConflict) {
			return restored, fmt.Errorf("write lease %s: %w", l.ID, err)
		}
		restored++
	}
	return restored, nil
}
