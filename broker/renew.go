package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/scopes/grant"
)

// renew lets a credential that is out live longer, if everything that it may do would be
// granted now, by the whole decision. The credential stays what it is: what is granted
// is what its lease holds, and no more.
//
// The lease stays filed under what it was made with. What it lives on for is a lease
// beside it, filed under what it was renewed with: whichever of the two is revoked ends
// the credential. Whatever fails on the way, the credential ends when it would have.
func (x *exchange) renew(ctx context.Context) (*Issued, error) {
	b := x.b
	p := b.reg.Providers[x.target.Provider]
	d := p.Describe()
	if d.Renew == nil {
		return nil, Fail(BadRequest, nil, "the credentials of this upstream cannot be renewed; ask for another")
	}
	l, err := x.renewable(ctx)
	if err != nil {
		return nil, err
	}
	if err := x.holdTo(p, l); err != nil {
		return nil, err
	}
	x.event.Lease = &audit.Lease{ID: l.ID, Provider: l.Provider, Class: string(d.Class), State: string(l.State), Expires: l.Expires.Unix()}
	x.certify(d)
	m, err := x.prolong(ctx, d, l)
	if err != nil {
		return nil, err
	}
	// From here on the caller may be gone; the upstream has done it.
	ctx = context.WithoutCancel(ctx)
	if err := x.hold(d, m); err != nil {
		b.abandon(ctx, *l, nil)
		b.alarm(ctx, fmt.Sprintf("upstream %s let a credential live longer, or do more, than was asked: lease %s", l.Provider, l.ID), x.pos)
		return nil, err
	}
	x.lap("renew")
	if err := x.extend(ctx, l, m); err != nil {
		return nil, err
	}
	out := &Issued{TokenType: d.TokenType, Expires: m.Expires, Scope: x.verdict.Decision.Granted, Lease: l.ID}
	out.Details, err = x.said(d, m)
	return out, err
}

// renewable finds the lease: an active one of the same client, subject and provider,
// that nothing has been revoked of. What is another's is not there.
func (x *exchange) renewable(ctx context.Context) (*Lease, error) {
	b := x.b
	missing := func(why string) error {
		return Fail(BadRequest, errors.New("lease to be renewed: "+why), "lease_id: there is no such lease that could be renewed")
	}
	if !isLeaseID(x.r.Renew) {
		return nil, missing("no id of a lease")
	}
	l, err := b.ledger.Lease(ctx, x.r.Renew)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, missing("not found")
	case err != nil:
		return nil, unavailable(fmt.Errorf("look for the lease to be renewed: %w", err))
	}
	subject := l.Client
	if x.subject != nil {
		subject = b.recorder.Index(x.subject.name())
	}
	keys, pos, err := l.selected()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read lease %s: %w", l.ID, err)
	case l.State != Active || l.Of != "":
		return nil, missing("it is " + string(l.State) + ", or beside another")
	case l.Client != x.r.Client.ID || l.Provider != x.target.Provider || l.Subject != subject || l.Resource != x.target.Resource:
		return nil, missing("it is another's")
	case !x.now.Before(l.Expires) || b.index.Selects(keys, pos):
		return nil, missing("it has run out, or is revoked")
	case !x.expires.After(l.Expires):
		return nil, Fail(BadRequest, fmt.Errorf("it lives until %s, what is asked now may until %s", l.Expires, x.expires), "lease_id: it lives as long as it may already")
	}
	return l, nil
}

// holdTo puts what a lease holds in the place of what would be granted now, of which it
// must be a part.
func (x *exchange) holdTo(p Provider, l *Lease) error {
	n := *x.verdict.Narrowed
	held, err := p.Describe().Schema.Parse(l.Grant)
	if err != nil {
		return fmt.Errorf("read the grant of lease %s: %w", l.ID, err)
	}
	if within, diffs := grant.Leq(held, n.Grant); !within {
		return notGranted("the lease holds what is not granted now: %v", diffs)
	}
	n.Grant = held
	if n.Rendered, err = p.Render(held); err != nil {
		return fmt.Errorf("render grant: %w", err)
	}
	if n.Parsed, err = p.Parse(n.Rendered); err != nil || !n.Parsed.Equal(held) {
		return fmt.Errorf("what would be renewed is %s, what is held %s: %w", n.Parsed, held, err)
	}
	x.verdict.Narrowed = &n
	return nil
}

// prolong asks the provider, within the time for it. An answer that is late changes
// nothing: the lease ends when it would have, and the credential with it.
func (x *exchange) prolong(ctx context.Context, d Description, l *Lease) (*Minted, error) {
	b := x.b
	r := RenewRequest{Lease: l.mintedAs(), Grant: x.verdict.Narrowed.Grant, Expires: x.expires}
	if len(l.Handle) > 0 {
		var err error
		if r.Handle, err = b.sealer.Open(l.Handle, handleContext(l)); err != nil {
			return nil, fmt.Errorf("open handle: %w", err)
		}
	}
	ctx, end := b.span(ctx, "provider.renew")
	bounded, cancel := context.WithTimeout(ctx, b.cfg.MintTimeout)
	answer := make(chan minting, 1)
	go func() {
		m, err := safely(func() (*Minted, error) { return d.Renew(bounded, r) })
		answer <- minting{m, err}
		cancel()
	}()
	var a minting
	select {
	case a = <-answer:
	case <-bounded.Done():
		if len(answer) == 0 {
			end(bounded.Err())
			return nil, unavailable(fmt.Errorf("upstream %s did not answer in time: %w", l.Provider, bounded.Err()))
		}
		a = <-answer
	}
	end(a.err)
	return x.minted(a)
}

// extend records that a lease lives on, and then has it do so.
func (x *exchange) extend(ctx context.Context, l *Lease, m *Minted) error {
	b := x.b
	next, beside := *l, *l
	next.Expires, next.Next = m.Expires, m.Expires
	beside.ID, beside.Of, beside.Version = newLeaseID(), l.mintedAs(), 0
	beside.Pos, beside.Created, beside.Expires, beside.Next = x.pos.String(), x.now, m.Expires, m.Expires
	beside.Keys, beside.Note = nil, "the renewal of "+l.ID
	lineage := x.leased(beside.ID)
	beside.Session, beside.Agent = lineage.Session, x.agent
	for _, k := range lineage.AllKeys() {
		beside.Keys = append(beside.Keys, k.String())
	}
	if l.Handle != nil {
		handle, err := b.sealer.Open(l.Handle, handleContext(l))
		if err == nil {
			beside.Handle, err = b.sealer.Seal(handle, handleContext(&beside))
		}
		if err != nil {
			return fmt.Errorf("seal handle: %w", err)
		}
	}
	one, err1 := leaseFrame(&next)
	two, err2 := leaseFrame(&beside)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	x.event.Outcome = audit.Granted
	x.event.Token = &audit.Token{Parent: x.parent(), Position: x.pos.String(), Hops: len(x.lineage.Hops)}
	x.event.Lease.Expires, x.event.Lease.Upstream = m.Expires.Unix(), m.Upstream
	if err := b.recorder.Record(ctx, x.event, x.personal, one, two); err != nil {
		x.forget()
		return unavailable(fmt.Errorf("record renewal: %w", err))
	}
	if err := b.index.Check(lineage); err != nil {
		return x.overtaken(refused("subject token", "revoked while the credential was renewed: %w", err))
	}
	if err := b.current(b.now()); err != nil {
		return x.overtaken(err)
	}
	// The one beside first: while the lease has its old end, nothing lives on.
	if err := b.ledger.Create(ctx, &beside); err != nil {
		return x.overtaken(unavailable(fmt.Errorf("write the renewal: %w", err)))
	}
	err := b.ledger.Update(ctx, &next)
	if errors.Is(err, ErrConflict) {
		return x.overtaken(refused("subject token", "the lease was ended while it was renewed"))
	}
	if err != nil {
		return x.overtaken(unavailable(fmt.Errorf("write the renewed lease: %w", err)))
	}
	// Whoever marked leases between the check and the writing did not find the one beside.
	if err := b.index.Check(lineage); err != nil {
		if failed := b.closeLease(ctx, beside.ID, "revoked"); failed != nil { // the second pass of the revocation does it
			b.complain(ctx, "end a renewal that was revoked", failed)
		}
		return x.overtaken(refused("subject token", "revoked while the credential was renewed: %w", err))
	}
	*l = next
	b.noteSession(x.lineage, x)
	return nil
}

// RenewRequest is what a provider is asked to let live longer.
type RenewRequest struct {
	Lease  string
	Handle []byte // as noted or returned by Mint
	// Grant is what the lease holds, and Expires the latest that it may live.
	Grant   grant.Grant
	Expires time.Time
}
