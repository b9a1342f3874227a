package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// vend issues a credential of an upstream. What came before has met the grant,
// checked it against every input and rendered it; here it is minted, held
// against what the upstream says it granted, recorded, activated and handed out,
// or ended.
func (x *exchange) vend(ctx context.Context) (*Issued, error) {
	b := x.b
	p := b.reg.Providers[x.target.Provider]
	d := p.Describe()
	if err := x.fits(d); err != nil {
		return nil, err
	}
	l, err := x.intend(ctx)
	if err != nil {
		return nil, err
	}
	x.event.Lease = &audit.Lease{ID: l.ID, Provider: l.Provider, Class: string(d.Class), State: string(l.State)}
	x.certify(d)
	m, err := x.mint(ctx, p, l)
	// From here on the caller may be gone; the credential must not be forgotten.
	ctx = context.WithoutCancel(ctx)
	if err != nil {
		b.abandon(ctx, l.ID, nil)
		return nil, err
	}
	if err := x.hold(m); err != nil {
		x.event.Certificate.Granted, x.event.Certificate.Evidence = m.Granted.Canonical(), string(m.Evidence)
		b.abandon(ctx, l.ID, m.Handle)
		b.alarm(ctx, fmt.Sprintf("upstream %s granted more than was asked: lease %s", l.Provider, l.ID), x.pos)
		return nil, err
	}
	x.lap("mint")
	if err := x.activate(ctx, l, m); err != nil {
		b.abandon(ctx, l.ID, m.Handle)
		return nil, err
	}
	return x.handOut(d, l, m)
}

// fits refuses what the provider cannot do at all.
func (x *exchange) fits(d Description) error {
	if left := x.expires.Sub(x.now); left < d.MinLifetime {
		return refused("subject token", "%s are left, %s lends for at least %s", left, x.target.Provider, d.MinLifetime)
	}
	switch x.r.RequestedType {
	case TypeJWT:
		return Fail(BadRequest, nil, "this target has credentials, no tokens of ours")
	case TypeAccess:
		if d.TokenType != "Bearer" {
			return Fail(BadRequest, nil, "this target's credential is no access token")
		}
	case TypeCredential:
		if d.TokenType == "Bearer" {
			return Fail(BadRequest, nil, "this target's credential is an access token")
		}
	}
	return nil
}

// intend writes down, durably and before anything is minted, what is about to
// be: in the journal, so that it can be found without the store, and in the
// ledger, so that a revocation finds it.
func (x *exchange) intend(ctx context.Context) (*Lease, error) {
	b := x.b
	id := newLeaseID()
	lineage := x.lineage.with(x.hop(id))
	lineage.Lease, lineage.Provider = id, x.target.Provider
	l := &Lease{
		ID: id, State: Intent, Provider: x.target.Provider, Pos: x.pos.String(),
		Session: lineage.Session, Client: x.r.Client.ID, Agent: x.agent, Resource: x.target.Resource,
		Grant: json.RawMessage(x.verdict.Narrowed.Grant.Canonical()), Created: x.now, Expires: x.expires,
		Deadline: x.now.Add(b.cfg.MintTimeout + claimMargin),
	}
	l.Next = l.Deadline
	l.Subject = l.Client
	if x.subject != nil {
		l.Subject = b.recorder.Index(x.subject.name())
	}
	for _, k := range lineage.AllKeys() {
		l.Keys = append(l.Keys, k.String())
	}
	frame, err := leaseFrame(l)
	if err != nil {
		return nil, err
	}
	if err := b.recorder.Keep(frame); err != nil {
		return nil, unavailable(fmt.Errorf("journal intent: %w", err))
	}
	if err := b.ledger.Create(ctx, l); err != nil {
		return nil, unavailable(fmt.Errorf("write intent: %w", err))
	}
	return l, nil
}

// newLeaseID returns 120 random bits as 24 lower-case letters and digits, which
// is what role names at upstreams can hold.
func newLeaseID() string {
	var b [24]byte
	randomText(b[:])
	return string(b[:])
}

// certify starts the certificate: what was met, what came of it, what is sent.
func (x *exchange) certify(d Description) {
	n := x.verdict.Narrowed
	c := &audit.Certificate{
		Kind: d.Schema.Kind(), Schema: d.Schema.Hash(),
		Grant: n.Grant.Canonical(), Rendered: n.Parsed.Canonical(), Asked: x.expires.Unix(),
		Granted: json.RawMessage("null"),
	}
	for _, in := range n.Inputs {
		c.Inputs = append(c.Inputs, audit.Input{Name: in.Name, Grant: in.Grant.Canonical()})
	}
	x.event.Certificate = c
}

// minting is what came of a call upstream.
type minting struct {
	minted *Minted
	err    error
}

// mint calls the provider, within the time for it. An answer that comes later is
// not lost: what it brings is ended.
func (x *exchange) mint(ctx context.Context, p Provider, l *Lease) (*Minted, error) {
	b := x.b
	ctx, end := b.span(ctx, "provider.mint")
	bounded, cancel := context.WithTimeout(ctx, b.cfg.MintTimeout)
	n := x.verdict.Narrowed
	req := MintRequest{
		Lease: l.ID, Grant: n.Grant, Rendered: n.Rendered, Expires: x.expires,
		Subject: x.lineage.Subject, Pseudonym: l.Subject, Actor: x.agent, Client: x.r.Client.ID,
		Note: func(handle []byte) error { return b.noteHandle(context.WithoutCancel(ctx), l, handle) },
	}
	answer := make(chan minting, 1)
	go func() {
		m, err := safely(func() (*Minted, error) { return p.Mint(bounded, req) })
		answer <- minting{m, err}
		cancel() // not before: the answer counts, however close it was
	}()
	select {
	case a := <-answer:
		end(a.err)
		return x.minted(a)
	case <-bounded.Done():
		if len(answer) > 0 {
			return x.minted(<-answer)
		}
		go func() { // the late answer
			if a := <-answer; a.minted != nil {
				b.abandon(context.WithoutCancel(ctx), l.ID, a.minted.Handle)
			}
		}()
		end(bounded.Err())
		return nil, unavailable(fmt.Errorf("upstream %s did not answer in time: %w", l.Provider, bounded.Err()))
	}
}

// safely calls a provider. One that panics has failed, and the process lives on: what
// it may have done upstream is ended like everything whose answer is lost. What it
// panicked with may hold a secret, and is not repeated.
func safely[T any](call func() (T, error)) (out T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the provider panicked with a %T", p)
		}
	}()
	return call()
}

// minted checks that a provider's answer is one. Of an error the code is kept;
// an upstream's own text never reaches the caller.
func (x *exchange) minted(a minting) (*Minted, error) {
	switch {
	case a.err == nil && a.minted == nil:
		return nil, unavailable(errors.New("mint: the provider answered with nothing"))
	case a.err == nil:
		return a.minted, nil
	}
	if e := AsError(a.err); e.Code != Internal {
		return nil, e
	}
	return nil, unavailable(fmt.Errorf("mint: %w", a.err))
}

// noteHandle replaces an intent's handle, durably, in the middle of minting.
func (b *Broker) noteHandle(ctx context.Context, l *Lease, handle []byte) error {
	sealed, err := b.sealer.Seal(handle, handleContext(l))
	if err != nil {
		return fmt.Errorf("seal handle: %w", err)
	}
	next := *l
	next.Handle = sealed
	frame, err := leaseFrame(&next)
	if err != nil {
		return err
	}
	if err := b.recorder.Keep(frame); err != nil {
		return unavailable(fmt.Errorf("journal handle: %w", err))
	}
	if err := b.ledger.Update(ctx, &next); err != nil {
		return unavailable(fmt.Errorf("write handle: %w", err))
	}
	*l = next
	return nil
}

// hold compares what the upstream says it granted with what was asked for.
func (x *exchange) hold(m *Minted) error {
	n := x.verdict.Narrowed
	if m.Granted.IsNothing() {
		return fmt.Errorf("the provider does not say what was granted")
	}
	if ok, diffs := grant.Leq(m.Granted, n.Grant); !ok {
		return fmt.Errorf("the upstream granted more than was asked: %v", diffs)
	}
	// A second's grace: upstreams round, and clocks differ by less.
	if m.Expires.IsZero() || m.Expires.After(x.expires.Add(time.Second)) {
		return fmt.Errorf("the upstream's credential lives until %s, asked was %s", m.Expires, x.expires)
	}
	c := x.event.Certificate
	c.Granted, c.Evidence, c.Given = m.Granted.Canonical(), string(m.Evidence), m.Expires.Unix()
	return nil
}

// activate records the grant and then makes the intent a lease, unless a
// revocation has marked it meanwhile.
func (x *exchange) activate(ctx context.Context, l *Lease, m *Minted) error {
	b := x.b
	next := *l
	next.State, next.Expires, next.Next, next.Deadline = Active, m.Expires, m.Expires, time.Time{}
	if m.Handle != nil {
		sealed, err := b.sealer.Seal(m.Handle, handleContext(l))
		if err != nil {
			return fmt.Errorf("seal handle: %w", err)
		}
		next.Handle = sealed
	}
	frame, err := leaseFrame(&next)
	if err != nil {
		return err
	}
	secretText := m.Token
	if secretText.Empty() {
		secretText = m.Document
	}
	x.event.Outcome = audit.Granted
	x.event.Token = &audit.Token{Parent: x.parent(), Position: x.pos.String(), Hops: len(x.lineage.Hops)}
	e := x.event.Lease
	e.State, e.Expires, e.Digest, e.Upstream = string(Active), m.Expires.Unix(), secretText.Digest(), m.Upstream
	if err := b.recorder.Record(ctx, x.event, x.personal, frame); err != nil {
		x.forget()
		return unavailable(fmt.Errorf("record exchange: %w", err))
	}
	if err := b.index.Check(x.lineage); err != nil {
		return x.overtaken(refused("subject token", "revoked while the credential was made: %w", err))
	}
	if err := b.current(b.now()); err != nil {
		return x.overtaken(err)
	}
	err = b.ledger.Update(ctx, &next)
	if errors.Is(err, ErrConflict) {
		return x.overtaken(refused("subject token", "revoked while the credential was made"))
	}
	if err != nil {
		return x.overtaken(unavailable(fmt.Errorf("activate lease: %w", err)))
	}
	*l = next
	b.noteSession(x.lineage, x)
	return nil
}

func (x *exchange) parent() string {
	if x.subject == nil {
		return ""
	}
	return tokenID(x.subject)
}

// forget takes back from the event what did not come to be.
func (x *exchange) forget() {
	x.event.Token, x.event.Lease.Digest, x.event.Lease.Upstream = nil, "", nil
	x.event.Lease.State = string(Closing)
}

// overtaken prepares a second event for a grant that was recorded and then not
// handed out.
func (x *exchange) overtaken(err error) error {
	again := *x.event
	x.event = &again
	lease := *again.Lease
	x.event.Lease = &lease
	x.forget()
	return err
}

// abandon queues the end of whatever minting came to: also of a lease that was
// ended meanwhile, when there was nothing to be found upstream yet. handle is what the provider answered with, nil if it did not. The first
// attempt is made by the reaper, at once.
func (b *Broker) abandon(ctx context.Context, id string, handle []byte) {
	for try := 0; ; try++ {
		err := b.reopen(ctx, id, handle)
		if err == nil {
			b.nudge()
			return
		}
		if !errors.Is(err, ErrConflict) || try == 10 {
			// The deadline of the intent comes, and then the reaper finds it.
			b.log.ErrorContext(ctx, "close an abandoned lease", "lease", id, "error", err)
			return
		}
	}
}

func (b *Broker) reopen(ctx context.Context, id string, handle []byte) error {
	l, err := b.ledger.Lease(ctx, id)
	if err != nil {
		return err
	}
	if l.State != Closing && l.State != Closed {
		l.Why = "failed"
	}
	if handle != nil {
		if l.Handle, err = b.sealer.Seal(handle, handleContext(l)); err != nil {
			return fmt.Errorf("seal handle: %w", err)
		}
	}
	// The deadline stays: a request that failed here may still take effect there.
	l.State, l.Next, l.Attempts, l.Outcome = Closing, b.now(), 0, ""
	frame, err := leaseFrame(l)
	if err != nil {
		return err
	}
	if err := b.recorder.Keep(frame); err != nil {
		b.log.ErrorContext(ctx, "journal an abandoned lease", "lease", id, "error", err)
	}
	return b.ledger.Update(ctx, l)
}

// handOut writes the answer for a credential.
func (x *exchange) handOut(d Description, l *Lease, m *Minted) (*Issued, error) {
	granted := x.verdict.Decision.Granted
	out := &Issued{
		Token: m.Token, Type: TypeAccess, TokenType: d.TokenType, Expires: m.Expires, Scope: granted,
		Narrowed: len(granted) < len(x.verdict.Decision.Asked) || len(x.asked) == 0, Lease: l.ID,
	}
	if m.Token.Empty() {
		out.Token, out.Document, out.Type = m.Document, true, TypeCredential
	}
	var said map[string]any
	if err := strictjson.Decode(m.Granted.Canonical(), &said); err != nil {
		return nil, fmt.Errorf("say what was granted: %w", err)
	}
	said["type"], said["provider"] = d.Details, x.target.Provider
	answer := []any{said}
	if x.details.answer != nil {
		var call []any
		if err := strictjson.Decode(x.details.answer, &call); err != nil {
			return nil, fmt.Errorf("say what was granted: %w", err)
		}
		answer = append(answer, call...)
	}
	encoded, err := strictjson.Encode(answer)
	out.Details = encoded
	return out, err
}
