package broker

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/scopes"
)

// Token type identifiers (RFC 8693 section 3), and our own for credentials that
// are no tokens.
const (
	typePrefix     = "urn:ietf:params:oauth:token-type:"
	TypeAccess     = typePrefix + "access_token"
	TypeID         = typePrefix + "id_token"
	TypeJWT        = typePrefix + "jwt"
	TypeCredential = "https://stint.dev/token-type/credential"
)

// ExchangeRequest is a request at the token endpoint. It has been parsed, and
// the client authenticated; nothing else is known of it.
type ExchangeRequest struct {
	GrantType     string
	Client        *Client
	SubjectToken  secret.String
	SubjectType   string
	ActorToken    secret.String
	ActorType     string
	RequestedType string // empty: whatever fits the target
	Resources     []string
	Audiences     []string
	Scope         string
	Details       string // authorization_details, as sent
	// Renew is the id of a lease that is to live longer, where no new credential is
	// wanted.
	Renew string
	// RequestID is shown to the caller and recorded; Trace is the W3C trace id.
	RequestID, Trace string
	// Address is the caller's network address.
	Address string
	// Certificate is the thumbprint of the certificate that the caller's connection was
	// made with; empty without one.
	Certificate string
}

// Issued is what an exchange hands out.
type Issued struct {
	// Token is the access_token: a token, or a credential as a JSON document.
	Token secret.String
	// Type is the issued_token_type, TokenType the token_type: Bearer or N_A.
	Type, TokenType string
	Expires         time.Time
	// Scope is what was granted, and Narrowed says that it is less than asked.
	Scope    []string
	Narrowed bool
	// Details is authorization_details with what was really granted; nil if there
	// is nothing to say.
	Details []byte
	// Lease is the id of the lease of a credential; empty for a token. Document
	// says that Token is a JSON document.
	Lease    string
	Document bool
	// Call is where requests are made with Token, if the credential stays here: followed
	// by host, path and query. Empty: Token is the upstream's.
	Call string
}

// Check reports what is malformed about a request, before anybody is asked who
// he is. The error has the code BadRequest.
func (r *ExchangeRequest) Check() error {
	bad := func(text string) error { return Fail(BadRequest, nil, text) }
	known := func(t string) bool { return t == TypeAccess || t == TypeID || t == TypeJWT }
	switch {
	case r.GrantType == ClientCredentials && (!r.SubjectToken.Empty() || !r.ActorToken.Empty()):
		return bad("client_credentials takes no subject_token and no actor_token")
	case r.GrantType == ClientCredentials:
		return r.checkRequestedType()
	case r.SubjectToken.Empty():
		return bad("subject_token is missing")
	case r.SubjectType == "":
		return bad("subject_token_type is missing")
	case !known(r.SubjectType):
		return bad("subject_token_type is not supported")
	case r.ActorToken.Empty() != (r.ActorType == ""): // RFC 8693 section 2.1
		return bad("actor_token and actor_token_type go together")
	case r.ActorType != "" && !known(r.ActorType):
		return bad("actor_token_type is not supported")
	}
	return r.checkRequestedType()
}

func (r *ExchangeRequest) checkRequestedType() error {
	switch r.RequestedType {
	case "", TypeAccess, TypeJWT, TypeCredential:
		return nil
	}
	return Fail(BadRequest, nil, "requested_token_type is not supported")
}

// exchange is the work on one request. Its fields are filled in order by the
// steps of run.
type exchange struct {
	b   *Broker
	r   *ExchangeRequest
	now time.Time
	// event is recorded whatever the outcome; personal is encrypted in it.
	event    *audit.Event
	personal audit.Personal
	clock    time.Time // when the present step began

	subject *Token // nil if the client acts for itself
	actor   *Token
	by      []Key    // of the actor token, for what is made with it
	pos     Position // of the feed, before anything was checked
	lineage *Lineage // of the subject token
	agent   string
	target  Target
	details details
	asked   []string
	c       Case
	verdict Verdict
	expires time.Time
}

// Exchange issues a token or a credential for a request, or says why not. One
// event is recorded, whatever the outcome; what is issued has been recorded
// durably before Exchange returns. Errors carry one of the codes.
//
// The order of the steps is the order in which a request is refused; it is kept
// in one place, in run, for that reason.
func (b *Broker) Exchange(ctx context.Context, r *ExchangeRequest) (*Issued, error) {
	ctx, end := b.span(ctx, "broker.exchange")
	now := b.now()
	x := &exchange{b: b, r: r, now: now, clock: now, personal: audit.Personal{Address: r.Address}}
	x.event = &audit.Event{
		Kind: audit.KindExchange, Request: r.RequestID, Trace: r.Trace, GrantType: r.GrantType,
		Party: audit.Party{Client: r.Client.ID}, Micros: make(map[string]int64, 4),
	}
	issued, err := x.run(ctx)
	if err != nil {
		err = b.reg.linkAt(err, x.target.Provider)
		b.recordRefusal(ctx, x.event, x.personal, err)
	}
	end(err)
	return issued, err
}

// recordRefusal records a request that came to nothing.
func (b *Broker) recordRefusal(ctx context.Context, e *audit.Event, p audit.Personal, err error) {
	p.Detail = ended(e, err)
	if err := b.recorder.Record(ctx, e, p); err != nil {
		b.log.ErrorContext(ctx, "record refusal", "error", err)
	}
}

// ended notes in an event what a request came to, and returns what may name a person.
func ended(e *audit.Event, err error) (personal string) {
	failure := AsError(err)
	e.Outcome, e.Code, e.Reason = audit.Refused, string(failure.Code), failure.Reason()
	if failure.Code == Internal || failure.Code == Unavailable {
		e.Outcome = audit.Failed
	}
	return failure.Personal
}

// Refuse records a request that was refused before it came to an exchange: it
// was malformed, or its client could not be authenticated. Anybody can have that
// happen as often as he likes, so it is not waited for, and not each is kept.
func (b *Broker) Refuse(ctx context.Context, r *ExchangeRequest, clientID string, err error) {
	e := &audit.Event{
		Kind: audit.KindExchange, Request: r.RequestID, Trace: r.Trace, GrantType: printable(r.GrantType),
	}
	if clientID != "" {
		e.Party.Client = b.reg.clientNamed(clientID)
	}
	p := audit.Personal{Address: r.Address, Detail: ended(e, err)}
	if err := b.recorder.Note(ctx, e, p); err != nil {
		b.log.ErrorContext(ctx, "record refusal", "error", err)
	}
}

func (x *exchange) run(ctx context.Context) (*Issued, error) {
	b := x.b
	if err := b.current(x.now); err != nil {
		return nil, err
	}
	if err := x.r.Client.registered(x.r.GrantType); err != nil {
		return nil, err
	}
	x.pos = b.index.Head().Pos
	if err := x.parties(ctx); err != nil {
		return nil, err
	}
	x.lap("verify")
	var err error
	if x.target, err = b.judge.Target(x.r.Client, x.r.Resources, x.r.Audiences); err != nil {
		return nil, err
	}
	x.event.Target.Resource, x.event.Target.Provider = x.target.Resource, x.target.Provider
	x.details, err = b.reg.readDetails(x.r.Details, x.target, x.subject)
	x.event.Target.Tool, x.event.Target.Once, x.event.Target.Arguments = x.details.tool, x.details.once, x.details.digest
	if err != nil {
		return nil, err
	}
	if x.asked, err = scopes.Parse(x.r.Scope); err != nil {
		return nil, Fail(BadScope, err, "scope is malformed")
	}
	x.event.Target.Scopes = x.asked
	if err := x.decide(ctx); err != nil {
		return nil, err
	}
	x.lap("decide")
	if err := x.lifetime(); err != nil {
		return nil, err
	}
	if err := x.suits(); err != nil {
		return nil, err
	}
	if x.target.Provider != "" {
		if err := x.useUp(ctx); err != nil {
			return nil, err
		}
		if x.r.Renew != "" {
			return x.renew(ctx)
		}
		return x.vend(ctx)
	}
	if x.r.Renew != "" {
		return nil, Fail(BadTarget, nil, "what is renewed is a credential of an upstream: name that as resource or audience")
	}
	c, lineage, err := x.claims(newTokenID())
	if err != nil {
		return nil, err
	}
	if err := x.useUp(ctx); err != nil {
		return nil, err
	}
	return x.sign(ctx, c, lineage)
}

// lap notes how long a step took.
func (x *exchange) lap(step string) {
	now := x.b.now()
	x.event.Micros[step] = now.Sub(x.clock).Microseconds()
	x.clock = now
}

// refused is the error for a token that is not accepted, for whatever reason:
// RFC 8693 section 2.2.2 has one error for all of them, and the caller is not
// told which it is.
func refused(which string, format string, args ...any) *Error {
	return Fail(BadToken, fmt.Errorf(which+": "+format, args...), which+" is not accepted")
}

// parties verifies the subject and actor tokens and finds out who takes part.
func (x *exchange) parties(ctx context.Context) error {
	if x.r.GrantType == ClientCredentials {
		return x.itself()
	}
	var err error
	if x.subject, err = x.verify(ctx, "subject token", x.r.SubjectToken, x.r.SubjectType); err != nil {
		return err
	}
	x.note()
	if x.agent, err = x.b.reg.agent(x.subject); err != nil {
		return err
	}
	if x.lineage, err = ancestry("subject token", x.subject, x.agent); err != nil {
		return err
	}
	x.event.Party.Session, x.event.Party.Agent = x.lineage.Session, x.agent
	if err := x.alive("subject token", x.lineage); err != nil {
		return err
	}
	if err := x.unused(ctx, "subject token", x.subject); err != nil {
		return err
	}
	if err := x.b.reg.consents("subject token", x.r.Client, x.subject); err != nil {
		return err
	}
	if !x.r.ActorToken.Empty() {
		return x.actorToken(ctx)
	}
	return nil
}

// itself makes the client its own subject.
func (x *exchange) itself() error {
	c := x.r.Client
	x.lineage = &Lineage{Subject: c.ID}
	x.event.Party.Subject = c.ID
	x.agent = c.ID
	if until, frozen := x.b.index.Frozen(x.lineage, x.now); frozen {
		return Fail(Denied, fmt.Errorf("frozen until %s", until), "the client is not accepted")
	}
	return nil
}

// verify checks a token by itself, and that it is what it is said to be.
func (x *exchange) verify(ctx context.Context, which string, raw secret.String, declared string) (*Token, error) {
	t, err := x.b.tokens.Verify(ctx, raw)
	if err != nil {
		if CodeOf(err) == Unavailable {
			return nil, err
		}
		return nil, refused(which, "%w", err)
	}
	if t.forCalls() {
		return nil, refused(which, "it is for requests through Stint")
	}
	// The declared type only narrows: "jwt" says no more than that it is one.
	if declared == TypeAccess && t.Use != AccessToken || declared == TypeID && t.Use != IDToken {
		return nil, refused(which, "declared %s, but is %s", strings.TrimPrefix(declared, typePrefix), t.Use)
	}
	if err := x.b.reg.accepts(which, t, x.now); err != nil {
		return nil, err
	}
	if !t.shown(x.r) {
		return nil, refused(which, "it is bound to another certificate than that of the connection")
	}
	return t, nil
}

// note puts the subject into the event.
func (x *exchange) note() {
	t := x.subject
	x.personal.Subject, x.personal.Email = t.name(), t.Email
	for _, a := range t.Actors {
		x.event.Party.Actors = append(x.event.Party.Actors, x.shown(a))
	}
}

// alive checks that a token has not been revoked, nor anything before it, and that
// everybody on its way is still trusted.
func (x *exchange) alive(which string, l *Lineage) error {
	if x.b.reg.gone(l) {
		return refused(which, "its issuer, or a client or agent on its way, is unknown or disabled")
	}
	if err := x.b.index.Check(l); err != nil {
		return refused(which, "%w", err)
	}
	if until, frozen := x.b.index.Frozen(l, x.now); frozen {
		return refused(which, "new grants are frozen until %s", until)
	}
	return nil
}

// suits refuses a type of token that the target does not have.
func (x *exchange) suits() error {
	if x.target.Provider != "" {
		return x.fits(x.b.reg.Providers[x.target.Provider].Describe())
	}
	if x.r.RequestedType == TypeCredential {
		return Fail(BadRequest, nil, "this target has tokens, no credentials")
	}
	return nil
}

// decide asks the judge.
func (x *exchange) decide(ctx context.Context) error {
	x.c = Case{
		Client: x.r.Client, Name: x.lineage.Subject, Agent: x.agent, Others: x.lineage.holders(), Held: x.b.reg.held(x.subject, x.target),
		Target: x.target, Scopes: x.asked, Tool: x.details.tool, Arguments: x.details.arguments,
		Details: x.details.provider, Now: x.now, Live: true,
	}
	x.c.Subject = x.b.reg.subject(x.r.Client, x.subject)
	var err error
	x.verdict, err = x.b.judge.Decide(ctx, &x.c)
	d := x.verdict.Decision
	x.event.Decision = &audit.Decision{Policy: d.Policy, Granted: d.Granted, Rules: d.Rules}
	if len(x.event.Target.Scopes) == 0 {
		x.event.Target.Scopes = d.Asked
	}
	return err
}

// lifetime finds how long what is issued may live: never longer than what it
// came from, but for a session of our own, and for an upstream of which an administrator
// has said that he accepts it.
func (x *exchange) lifetime() error {
	life, from := x.b.cfg.TokenLifetime, []*Token{x.subject, x.actor}
	if own := x.r.Client.Session; own > 0 && x.subject != nil {
		life = own
		if x.subject.Use == IDToken && !x.subject.Ours {
			from = from[1:]
		}
	}
	if x.target.Provider != "" {
		life = x.b.cfg.CredentialLifetime
		d := x.b.reg.Providers[x.target.Provider].Describe()
		if d.MaxLifetime > 0 {
			life = min(life, d.MaxLifetime)
		}
		if d.Outlives {
			from = nil
		}
	}
	for _, most := range []time.Duration{x.r.Client.MaxLifetime.Duration, x.verdict.Decision.MaxLifetime} {
		if most > 0 {
			life = min(life, most)
		}
	}
	x.expires = x.now.Add(life)
	for _, t := range from {
		if t != nil && t.Expires.Before(x.expires) {
			x.expires = t.Expires
		}
	}
	x.expires = x.expires.Truncate(time.Second)
	if x.expires.Sub(x.b.now()) < time.Second {
		return refused("subject token", "it expires now")
	}
	return nil
}

// hop is what is being made, as part of the lineage.
func (x *exchange) hop(id string) Hop {
	d := x.verdict.Decision
	return Hop{
		ID: id, Pos: x.pos, Client: x.r.Client.ID, Agent: x.agent, Resource: x.target.Resource,
		Tool: x.details.tool, Scopes: d.Granted, Policy: d.Policy, By: x.by,
	}
}

// claims writes what a token of ours says, or refuses what it would not hold.
func (x *exchange) claims(id string) (c *Claims, lineage *Lineage, err error) {
	c = &Claims{
		Issuer: x.b.reg.Self, Audience: x.target.Resource, ClientID: x.r.Client.ID, ID: id,
		IssuedAt: x.now.Truncate(time.Second), Expires: x.expires, Scope: x.verdict.Decision.Granted, Details: x.details.answer,
	}
	if x.r.Client.BoundTokens { // to what was shown with this request, never to what a token before was bound to
		if c.Certificate = x.r.Certificate; c.Certificate == "" {
			return nil, nil, errors.New("a client with bound tokens, and no certificate")
		}
	}
	lineage = x.lineage.with(x.hop(c.ID))
	if lineage.Session == "" { // a client for itself: the token is its own session
		lineage.Session = SessionID(&Token{Issuer: c.Issuer, ID: c.ID})
	}
	c.Subject = lineage.Subject
	c.Stint.Arguments, c.Stint.Once = x.details.digest, x.details.once
	if t := x.subject; t != nil {
		c.AuthTime = t.AuthTime
		c.Groups = x.verdict.Policy.KnownGroups(x.c.Subject.Groups)
		c.Stint.Claims = x.verdict.Policy.KnownClaims(x.c.Subject.Claims)
	}
	if err := lineage.claim(&c.Stint); err != nil {
		return nil, nil, refused("subject token", "%w", err)
	}
	c.Actors, err = x.actors()
	return c, lineage, err
}

// sign issues a token of ours.
func (x *exchange) sign(ctx context.Context, c *Claims, lineage *Lineage) (*Issued, error) {
	d := x.verdict.Decision
	raw, err := x.b.tokens.Sign(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("sign token: %w", err)
	}
	x.lap("sign")
	x.event.Outcome = audit.Granted
	x.event.Token = &audit.Token{
		ID: c.ID, Type: "at+jwt", Issuer: c.Issuer, Position: x.pos.String(), Hops: len(lineage.Hops) - 1, Expires: c.Expires.Unix(),
	}
	x.event.Party.Session = lineage.Session
	if x.subject != nil {
		x.event.Token.Parent = tokenID(x.subject)
	}
	if lineage.Root != nil {
		x.event.Token.Root = lineage.Root.ID
	}
	if err := x.b.recorder.Record(ctx, x.event, x.personal); err != nil {
		x.event.Token, x.event.Decision.Granted = nil, nil
		return nil, unavailable(fmt.Errorf("record exchange: %w", err))
	}
	x.b.noteSession(lineage, x)
	issued := &Issued{
		Token: raw, Type: TypeAccess, TokenType: "Bearer", Expires: c.Expires, Scope: d.Granted,
		Narrowed: len(d.Granted) < len(d.Asked) || len(x.asked) == 0, Details: x.details.answer,
	}
	if x.r.RequestedType == TypeJWT {
		issued.Type = TypeJWT
	}
	return issued, nil
}

// actors returns the new token's chain of actors, rebuilt: the present one in
// front. A client that impersonates is left out.
func (x *exchange) actors() ([]Actor, error) {
	if x.subject == nil {
		return nil, nil
	}
	chain := x.subject.Actors
	if x.actor != nil {
		a := Actor{x.actor.Issuer, x.actor.Subject}
		if x.actor.Ours {
			a.Issuer = x.b.reg.Self
		}
		chain = append([]Actor{a}, chain...)
	}
	self := Actor{x.b.reg.Self, x.r.Client.ID}
	if !x.r.Client.Impersonation && (len(chain) == 0 || chain[0] != self) {
		chain = append([]Actor{self}, chain...)
	}
	if len(chain) > MaxHops {
		return nil, refused("subject token", "a chain of more than %d actors", MaxHops)
	}
	return chain, nil
}

// newTokenID returns 128 random bits in 22 characters.
func newTokenID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}
