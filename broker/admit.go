package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stint-dev/stint/internal/secret"
)

// Admit checks a token that somebody presents at a resource of our own: that we
// signed it, for this resource, that it has neither run out nor been revoked nor
// used up, and that nobody on its way is turned off. One that is bound to a certificate
// has to come over a connection with that: certificate is its thumbprint. Errors:
// BadToken, whatever was wrong with it; Unavailable, if that is not known.
func (b *Broker) Admit(ctx context.Context, raw secret.String, resource, certificate string) (*Token, error) {
	const which = "access token"
	if err := b.current(b.now()); err != nil {
		return nil, err
	}
	t, err := b.tokens.Verify(ctx, raw)
	switch {
	case CodeOf(err) == Unavailable:
		return nil, err
	case err != nil:
		return nil, refused(which, "%w", err)
	case !t.Ours || t.Use != AccessToken || len(t.Audience) != 1 || t.Audience[0] != resource:
		return nil, refused(which, "it is not for %s", resource)
	case t.forOneUse():
		return nil, refused(which, "it is for one call of a tool")
	case t.Certificate != "" && t.Certificate != certificate:
		return nil, refused(which, "it is bound to another certificate than that of the connection")
	}
	l, err := ancestry(which, t, "")
	if err != nil {
		return nil, err
	}
	if b.index.Check(l) != nil || b.reg.gone(l) {
		return nil, refused(which, "it is revoked, or somebody on its way is turned off")
	}
	return t, nil
}

// SessionFilter says which sessions are asked for. Empty fields are any.
type SessionFilter struct {
	Subject string // as ISSUER#SUB
	Client  string
}

// maxListed is how many sessions or leases are gone through for one answer.
const maxListed = 20000

// Sessions returns logins that have been seen, newest first: at most limit of those
// that come after the one at which an earlier answer ended, and where this one ends;
// empty, if that was all. Errors: BadRequest for a cursor that is none; Unavailable.
func (b *Broker) Sessions(ctx context.Context, f SessionFilter, after string, limit int) (page []Session, next string, err error) {
	index := ""
	if f.Subject != "" {
		index = b.recorder.Index(f.Subject)
	}
	all, err := b.sessions.Sessions(ctx, index, maxListed)
	if err != nil {
		return nil, "", unavailable(err)
	}
	place := func(s Session) string { return s.ID + " " + s.Client }
	if after != "" {
		at := slices.IndexFunc(all, func(s Session) bool { return place(s) == after })
		if at < 0 {
			return nil, "", Fail(BadRequest, nil, "the session at which the page before ended is gone: begin again without cursor")
		}
		all = all[at+1:]
	}
	for _, s := range all {
		if f.Client != "" && s.Client != f.Client || b.ended(s) {
			continue
		}
		if len(page) == limit {
			return page, place(page[limit-1]), nil
		}
		page = append(page, s)
	}
	return page, "", nil
}

// ended reports whether a session has been revoked: whatever was issued in it before
// is dead.
func (b *Broker) ended(s Session) bool {
	return b.index.Selects([]Key{KeyOf(BySession, s.ID)}, b.index.Head().Pos)
}

// LeaseFilter says which leases are asked for. Empty fields are any.
type LeaseFilter struct {
	Subject                                    string // as ISSUER#SUB
	Client, Agent, Provider, Session, Resource string
	State                                      LeaseState
}

func (f *LeaseFilter) matches(l *Lease, index string) bool {
	same := func(want, got string) bool { return want == "" || want == got }
	return same(index, l.Subject) && same(f.Client, l.Client) && same(f.Agent, l.Agent) && same(f.Provider, l.Provider) &&
		same(f.Session, l.Session) && same(f.Resource, l.Resource) && same(string(f.State), string(l.State))
}

// Leases returns leases that are not closed, in the order of their ids: at most limit
// of those after an id, and the id to go on after; empty, if that was all. Handles are
// left out. The error is Unavailable.
func (b *Broker) Leases(ctx context.Context, f LeaseFilter, after string, limit int) (page []*Lease, next string, err error) {
	index := ""
	if f.Subject != "" {
		index = b.recorder.Index(f.Subject)
	}
	// Of all of them the first ones are wanted: they are sorted out now and then.
	cut := func() {
		slices.SortFunc(page, func(a, b *Lease) int { return cmp.Compare(a.ID, b.ID) })
		page = slices.CompactFunc(page, func(a, b *Lease) bool { return a.ID == b.ID })
		page = page[:min(len(page), limit+1)]
	}
	err = b.ledger.All(ctx, func(l *Lease) error {
		if l.ID <= after || !f.matches(l, index) {
			return nil
		}
		shown := *l
		shown.Handle = nil
		if page = append(page, &shown); len(page) > 2*limit+64 {
			cut()
		}
		return nil
	})
	if err != nil {
		return nil, "", unavailable(err)
	}
	if cut(); len(page) > limit {
		page = page[:limit]
		next = page[limit-1].ID
	}
	return page, next, nil
}

// Lease returns one lease, without its handle, also when it is closed, for as long as
// that is remembered. Errors: BadTarget, if there is none; Unavailable.
func (b *Broker) Lease(ctx context.Context, id string) (*Lease, error) {
	if !isLeaseID(id) {
		return nil, Fail(BadTarget, nil, "there is no such lease")
	}
	l, err := b.ledger.Lease(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, Fail(BadTarget, err, "there is no such lease")
	case err != nil:
		return nil, unavailable(fmt.Errorf("look for a lease: %w", err))
	}
	shown := *l
	shown.Handle = nil
	return &shown, nil
}

// Person returns how the record and the lists name somebody: an index of the subject
// ISSUER#SUB, or the id of a client that acts for itself.
func (b *Broker) Person(subject string) string {
	if !strings.Contains(subject, "#") {
		return subject
	}
	return b.recorder.Index(subject)
}
