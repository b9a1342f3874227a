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
		b.abandon(ctx, *l, nil)
		return nil, err
	}
	if err := x.hold(d, m); err != nil {
		x.event.Certificate.Granted, x.event.Certificate.Evidence = m.Granted.Canonical(), string(m.Evidence)
		b.abandon(ctx, *l, m.Handle)
		b.alarm(ctx, fmt.Sprintf("upstream %s granted more than was asked: lease %s", l.Provider, l.ID), x.pos)
		return nil, err
	}
	x.lap("mint")
	if d.injects() {
		if err := x.standIn(ctx, l, m); err != nil {
			b.abandon(ctx, *l, m.Handle)
			return nil, err
		}
	}
	if err := x.activate(ctx, l, m); err != nil {
		b.abandon(ctx, *l, m.Handle)
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

// leased is the lineage of the credential that is made for a lease.
func (x *exchange) leased(id string) *Lineage {
	l := x.lineage.with(x.hop(id))
	l.Lease, l.Provider = id, x.target.Provider
	return l
}

// intend writes down, durably and before anything is minted, what is about to
// be: in the journal, so that it can be found without the store, and in the
// ledger, so that a revocation finds it.
func (x *exchange) intend(ctx context.Context) (*Lease, error) {
	b := x.b
	id := newLeaseID()
	lineage := x.leased(id)
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
		Granted: json.RawMessage("null"), Names: n.Names,
	}
	for _, in := range n.Inputs {
		c.Inputs = append(c.Inputs, audit.Input{Name: in.Name, Grant: in.Grant.Canonical()})
	}
	x.event.Certificate = c
}

// hold compares what the upstream says it granted with what was asked for.
func (x *exchange) hold(d Description, m *Minted) error {
	n := x.verdict.Narrowed
	if d.injects() {
		switch {
		case !m.Token.Empty() || !m.Document.Empty():
			return errors.New("the provider would hand out what stays here")
		case !m.Granted.Equal(n.Grant):
			return fmt.Errorf("the provider holds requests to %s, and is to hold them to %s", m.Granted, n.Grant)
		}
	}
	if m.Granted.IsNothing() {
		return fmt.Errorf("the provider does not say what was granted")
	}
	if ok, diffs := grant.Leq(m.Granted, n.Grant); !ok {
		return fmt.Errorf("the upstream granted more than was asked: %v", diffs)
	}
	// A second's grace: upstreams round, and clocks differ by less.
	latest := x.expires
	if d.endsEarly() {
		latest = x.b.now().Add(d.MaxLifetime)
	}
	if m.Expires.IsZero() || m.Expires.After(latest.Add(time.Second)) {
		return fmt.Errorf("the upstream's credential lives until %s, asked was %s", m.Expires, latest)
	}
	c := x.event.Certificate
	c.Granted, c.Evidence, c.Given = m.Granted.Canonical(), string(m.Evidence), x.ends(m).Unix()
	return nil
}

// ends is when a credential ends: by itself, or because its lease does.
func (x *exchange) ends(m *Minted) time.Time {
	// What lives a second too long by its upstream's clock is let be.
	if m.Expires.After(x.expires.Add(time.Second)) {
		return x.expires
	}
	return m.Expires
}

// standIn signs what is handed out in place of a credential that stays here: a token of
// ours, whose id is the lease's. It is worth nothing before the lease is active, nor when
// it is so no more.
func (x *exchange) standIn(ctx context.Context, l *Lease, m *Minted) error {
	c, _, err := x.claims(l.ID)
	if err != nil {
		return err
	}
	c.Audience, c.Expires, c.Details, c.Stint.Once = x.b.reg.Self+callPath, x.ends(m).Truncate(time.Second), nil, false
	c.Stint.Call = &CallClaim{
		Provider: x.target.Provider, Grant: x.verdict.Narrowed.Grant.Hash(), Resource: x.target.Resource,
	}
	if m.Token, err = x.b.tokens.Sign(ctx, c); err != nil {
		return fmt.Errorf("sign token: %w", err)
	}
	x.lap("sign")
	return nil
}

// activate records the grant and then makes the intent a lease, unless a
// revocation has marked it meanwhile.
func (x *exchange) activate(ctx context.Context, l *Lease, m *Minted) error {
	b := x.b
	next := *l
	next.State, next.Expires, next.Next, next.Deadline = Active, m.Expires, x.ends(m), time.Time{}
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
	if err := b.index.Check(x.leased(l.ID)); err != nil {
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

// handOut writes the answer for a credential.
func (x *exchange) handOut(d Description, l *Lease, m *Minted) (*Issued, error) {
	granted := x.verdict.Decision.Granted
	out := &Issued{
		Token: m.Token, Type: TypeAccess, TokenType: d.TokenType, Expires: x.ends(m), Scope: granted,
		Narrowed: len(granted) < len(x.verdict.Decision.Asked) || len(x.asked) == 0, Lease: l.ID,
	}
	if d.injects() {
		out.Call = x.b.reg.Self + callPath + "/" + x.target.Provider + "/"
	}
	if m.Token.Empty() {
		out.Token, out.Document, out.Type = m.Document, true, TypeCredential
	}
	var err error
	out.Details, err = x.said(d, m)
	return out, err
}

// said is authorization_details with what was granted.
func (x *exchange) said(d Description, m *Minted) ([]byte, error) {
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
	return strictjson.Encode(answer)
}
