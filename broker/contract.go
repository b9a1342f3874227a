package broker

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/scopes/grant"
)

// Tokens verifies the tokens that others present, and signs ours.
type Tokens interface {
	// Verify checks a token: form, signature by a key of its issuer, algorithm,
	// type, times. It does not know audiences, consent or revocation. An error
	// with the code BadToken means that the token is not accepted; Unavailable,
	// that the issuer's keys could not be had.
	Verify(ctx context.Context, raw secret.String) (*Token, error)
	// Assertion checks the signature and times of a client's assertion by the keys
	// that the client registered. Without a client id, the claim sub names the
	// client. It does not know audiences or replay. IssuedAt is zero if the
	// assertion has no iat.
	Assertion(ctx context.Context, clientID string, raw secret.String) (*Token, error)
	// IssuerOf returns the issuer that a token names, before anything of it is known
	// to be true; empty if it cannot be read.
	IssuerOf(raw secret.String) string
	// Certificate checks the first of a chain of certificates by what the client
	// registered: authorities that signed it, which count for signing clients'
	// certificates, at this time; or the certificate itself. It does not know names.
	// An error with the code BadToken means that it is not accepted; Unavailable, that
	// what the client registered could not be had.
	Certificate(ctx context.Context, clientID string, chain []*x509.Certificate) error
	// Sign makes a token of ours.
	Sign(ctx context.Context, c *Claims) (secret.String, error)
}

// ClientAlgorithms are those that client assertions may be signed with.
var ClientAlgorithms = []string{"ES256", "ES384", "PS256", "RS256", "EdDSA"}

// Use is what a verified token is, by its type and claims, never by what the
// presenter called it.
type Use string

// The uses of a token.
const (
	AccessToken Use = "access_token"
	IDToken     Use = "id_token"
	OtherJWT    Use = "jwt" // for instance the token of a CI job
)

// Token is a verified token. It may be shared, and is not changed.
type Token struct {
	Issuer, Subject string
	// Ours says that we signed it.
	Ours bool
	Use  Use
	Type string // the header's typ
	// Audience lists whom it is meant for.
	Audience []string
	// ID is the jti, empty if there is none.
	ID string
	// ClientID is client_id, else azp, else the only audience of an ID token, else
	// empty.
	ClientID  string
	SessionID string // sid
	IssuedAt  time.Time
	Expires   time.Time
	AuthTime  time.Time // zero if absent
	// Scope is the scope claim; nil if there is none.
	Scope []string
	// Actors are act, outermost first.
	Actors []Actor
	// MayAct is the party named by may_act, nil if there is none.
	MayAct *Actor
	Groups []string
	Email  string
	// Claims are the other claims that are texts, numbers or truths, as texts.
	Claims map[string]string
	// Certificate is the thumbprint of the certificate that a token of ours is bound
	// to; empty if it is bound to none.
	Certificate string
	// Stint is our own claim, in a token of ours, and KeyID our key that signed it.
	Stint *StintClaim
	KeyID string
	// Details is authorization_details, in a token of ours.
	Details json.RawMessage
}

// Actor is a party that acts.
type Actor struct {
	Issuer  string `json:"iss,omitempty"`
	Subject string `json:"sub"`
}

// Name returns the actor as ISSUER#SUB.
func (a Actor) Name() string { return a.Issuer + "#" + a.Subject }

// Once remembers ids that may be used one time only.
type Once interface {
	// Use reports whether this is the first use of an id for a purpose, at any
	// replica; it is remembered until expires. An error means that it is not
	// known, and the use must be refused.
	Use(ctx context.Context, purpose, id string, expires time.Time) (first bool, err error)
	// Used reports whether an id has been used for a purpose, and uses nothing up.
	// An error means that it is not known.
	Used(ctx context.Context, purpose, id string) (bool, error)
}

// Session is a login, as one client has seen it.
type Session struct {
	ID      string    `json:"id"`      // as SessionID writes it
	Subject string    `json:"subject"` // index of the subject, as in the audit record
	Client  string    `json:"client"`
	Agent   string    `json:"agent,omitempty"`
	First   time.Time `json:"first"`
	// Expires is when the entry is of no more use.
	Expires time.Time `json:"expires"`
}

// Sessions remembers logins, so that they can be listed and ended.
type Sessions interface {
	// Note writes a session, unless there is one of its id and client.
	Note(ctx context.Context, s Session) error
	// Sessions returns the sessions of a subject's index, newest first, at most
	// limit; of everybody if subject is empty.
	Sessions(ctx context.Context, subject string, limit int) ([]Session, error)
}

// Answers remembers what a request with an idempotency key was answered, so that it is
// not carried out twice. It encrypts nothing: answers come sealed.
type Answers interface {
	// Claim keeps data under a name until expires, unless something is kept there: that
	// is returned then. Of several at once, at any replica, one claims.
	Claim(ctx context.Context, name string, data []byte, expires time.Time) (was []byte, err error)
	// Answer replaces what is kept under a name; without data it is forgotten.
	Answer(ctx context.Context, name string, data []byte, expires time.Time) error
}

// Recorder makes events and what belongs to them durable.
type Recorder interface {
	// Record completes and keeps an event, together with frames. Nothing may be
	// granted on the strength of an event that returned an error.
	Record(ctx context.Context, e *audit.Event, p audit.Personal, more ...audit.Frame) error
	// Note completes and keeps an event about somebody who is not known, on which
	// nothing depends. It does not wait, and of many in a short time it keeps only
	// the number. An error is no reason to do anything else.
	Note(ctx context.Context, e *audit.Event, p audit.Personal) error
	// Keep makes frames durable that are no events.
	Keep(frames ...audit.Frame) error
	// Index returns the keyed index of a subject.
	Index(subject string) string
	// Failed returns what stopped the record, or nil.
	Failed() error
}

// Sealer encrypts what is kept outside this process.
type Sealer interface {
	// Seal encrypts plain and binds it to a context: it opens only with the same.
	Seal(plain []byte, context string) ([]byte, error)
	Open(sealed []byte, context string) ([]byte, error)
}

// Class says how well an upstream narrows.
type Class string

// The classes.
const (
	Exact   Class = "exact"   // the upstream enforces precisely the grant
	Coarse  Class = "coarse"  // scope strings only
	Profile Class = "profile" // only to a pre-made identity
	Object  Class = "object"  // one object, one method
	None    Class = "none"    // the credential carries everything: never vended
)

// Evidence is how it is known what an upstream granted.
type Evidence string

// The kinds of evidence, best first.
const (
	Attested Evidence = "attested" // the upstream's answer or catalogue names it
	Echoed   Evidence = "echoed"   // its answer repeats the request
	Asserted Evidence = "asserted" // it says nothing
)

// Mode is how a credential comes to be used.
type Mode string

// The modes.
const (
	// Vend: it is handed to whoever asked for it.
	Vend Mode = "vend"
	// Inject: it stays here. Whoever asked is given a token of ours, with which Stint
	// makes the requests that the grant allows, and puts the credential into them.
	Inject Mode = "inject"
)

// Description is what a provider says of itself: its abilities are fields, not
// interfaces to be found by assertion.
type Description struct {
	Kind  string
	About string
	Class Class
	// Modes are how its credentials are used, the usual one first. A class that is none
	// is never vended.
	Modes []Mode
	// Schema is the shape of its grants.
	Schema *grant.Schema
	// Scheme is that of resource URIs which name something at the upstream:
	// SCHEME://PROVIDER/... Details is the type of authorization details that
	// hold a grant.
	Scheme, Details string
	// Claims reports whether a URI of another form names something at this provider, such
	// as https://api.github.com/repos/acme/web. Nil: none does. What several providers
	// claim is nobody's.
	Claims func(uri string) bool
	// TokenType is Bearer, or N_A for a structured credential.
	TokenType string
	// MinLifetime and MaxLifetime bound a credential's life; zero MaxLifetime: no
	// bound of its own. Settable says that the upstream honours a shorter life
	// than its own; where it does not, and a single credential can be revoked, that is
	// done when the time is over that was asked for.
	MinLifetime, MaxLifetime time.Duration
	Settable                 bool
	// Outlives says that an administrator accepts that credentials end later than the
	// tokens they were made from: of an upstream that gives none for less time and takes
	// none back. Every other bound stands.
	Outlives bool
	// Revokes says what ends when one credential is revoked: token, family, grant,
	// principal or none.
	Revokes string
	// Evidence is the best that its answers give.
	Evidence Evidence
	// Identity lists where the upstream's own log names user, agent or lease.
	Identity []string
	// Reads says by which version of which table it is known what only reads.
	Reads string
	// Sweeps says that providers of the kind can list what is alive upstream by lease:
	// an opened one then has Sweep.
	Sweeps bool
	// Assertion says that Mint needs the subject's own token.
	Assertion bool
	// Check says what is wrong with a grant of a mapping or a ceiling that this provider,
	// as it is configured, can never be asked for; nil: nothing can be. The grant is as
	// the administrator wrote it, with names. Nil: the schema says it all.
	Check func(g grant.Grant) error
	// Links says that subjects link accounts of their own at providers of the kind: an
	// opened one then has Link.
	Links bool
	Link  *Link
	// Renews says that credentials of the kind can be let live longer: an opened provider
	// then has Renew. It is called for a credential that is out, may be called again, and
	// answers what Mint would, but for the credential: an error means that nothing has
	// changed, or that the credential may live longer than its lease, which ends it.
	Renews bool
	Renew  func(ctx context.Context, r RenewRequest) (*Minted, error)
	// Certify finds out, at the upstream, whether it narrows as it should, and keeps the
	// result, without which the class is none. Nil: there is nothing to find out.
	Certify func(ctx context.Context, r CertifyRequest) (result string, err error)
	// Inject holds one request to a grant, and says what is put into it: of providers whose
	// first mode is Inject. It asks the upstream for nothing but the credential itself, and
	// is not told how the request ends. Errors: BadScope, if the grant does not allow the
	// request; BadRequest, if it cannot be told what the request is for; NeedsLink, Limited,
	// Unavailable. Nothing of the request is in their public texts.
	Inject func(ctx context.Context, r InjectRequest) (*Injection, error)
	// Origins are where such requests may go and nowhere else, as https://HOST or
	// https://HOST:PORT; http for loopback alone.
	Origins []string
	// Sweep lists and ends what is alive upstream for leases that keep says nothing
	// is known of; nil if the upstream cannot list. It returns the leases that it ended
	// itself, not those that somebody else ended meanwhile.
	Sweep func(ctx context.Context, keep func(lease string) bool) ([]string, error)
	// Ready reports, without side effects, whether the upstream can be used.
	Ready func(ctx context.Context) error
}

// endsEarly reports whether a credential may live longer upstream than was asked, because
// its lease ends it in time.
func (d *Description) endsEarly() bool {
	return !d.Settable && d.Revokes == "token" && d.MaxLifetime > 0
}

// Provider mints credentials at one upstream. Implementations are safe for
// concurrent use and never retry a call that may have taken effect.
type Provider interface {
	Describe() Description
	// Resolve turns what was asked into grants of the provider's schema, names
	// into immutable ids, and asks for the subject's own rights where the upstream
	// does not enforce them itself. Errors: BadTarget, BadDetails, Unavailable.
	Resolve(ctx context.Context, r ResolveRequest) (*Resolved, error)
	// Render writes the part of the upstream request that says what is granted.
	// ErrInexpressible if the upstream cannot be asked for exactly this.
	Render(g grant.Grant) ([]byte, error)
	// Parse reads what Render wrote, without Render's code.
	Parse(rendered []byte) (grant.Grant, error)
	// Mint creates the credential. Whatever happens, Revoke is called for the
	// lease if Mint errs.
	Mint(ctx context.Context, r MintRequest) (*Minted, error)
	// Revoke ends what a lease minted, also if it is not known whether it minted
	// anything, and says how far it got. It may be called again at any time. An
	// error means to try again later.
	Revoke(ctx context.Context, r RevokeLease) (Outcome, error)
}

// ResolveRequest is what a provider is asked to resolve.
type ResolveRequest struct {
	// Subject is the subject as ISSUER#SUB.
	Subject string
	// Resources are URIs of the provider's scheme that the request names, and
	// Details the objects of its details type. Either narrows; both must agree.
	Resources []string
	Details   []map[string]any
	// Grants are to be rewritten from names to ids.
	Grants []grant.Grant
	// Live asks the upstream for entitlements; otherwise they are assumed.
	Live bool
}

// Resolved is what it answers.
type Resolved struct {
	// Request is what was asked, as a grant: everything where nothing was named.
	Request grant.Grant
	// Parts are what each of the resources names, one by one: something of each
	// has to be granted. Wanted is what the details ask for, all of which has to
	// be; nil without details.
	Parts  []grant.Grant
	Wanted *grant.Grant
	// Grants are those of the request, with ids.
	Grants []grant.Grant
	// Entitlement is what the subject may do by itself; everything where the
	// upstream enforces that, or has no notion of the subject. Basis says which.
	Entitlement grant.Grant
	Basis       string
	// Names are the immutable ids that names were resolved to, by name, for the record;
	// nil where names are all there is.
	Names map[string]string
}

// MintRequest is what a provider is asked to mint.
type MintRequest struct {
	Lease string
	Grant grant.Grant
	// Rendered is what Render made of Grant; it is sent as it is.
	Rendered []byte
	// Expires is the latest that the credential may live.
	Expires time.Time
	// Subject is the subject as ISSUER#SUB; Pseudonym an index of it that may
	// appear in the upstream's log; Actor and Client are software.
	Subject, Pseudonym, Actor, Client string
	// Assertion is the subject's own token, as it was presented; empty unless the
	// description asks for it.
	Assertion secret.String
	// Note replaces the handle of the intent, durably, before Mint goes on: call it
	// as soon as something exists that Revoke will need to know of.
	Note func(handle []byte) error
}

// Minted is a new credential.
type Minted struct {
	// Token is a bearer token, or Document a structured credential as JSON with
	// the given secrets in it. Of a provider that injects both are empty: what it has is
	// not handed out.
	Token    secret.String
	Document secret.String
	// Granted is what the upstream says it granted, and Evidence how it says so.
	Granted  grant.Grant
	Evidence Evidence
	// Expires is the upstream's own expiry.
	Expires time.Time
	// Handle is what Revoke needs; it is sealed before it is kept.
	Handle []byte
	// Upstream are ids by which the upstream's log names the credential.
	Upstream map[string]string
}

// CertifyRequest is whom an upstream is tried with.
type CertifyRequest struct {
	// Subject is a subject, as ISSUER#SUB, that has linked an account, and Assertion its
	// own token, where that is needed.
	Subject   string
	Assertion secret.String
	// Say is told what is being done.
	Say func(what string)
}

// Link is how a subject's own account at an upstream is linked: by the code flow of
// OAuth, in the subject's browser. What is kept is the parent of credentials, and never
// leaves. Subjects are ISSUER#SUB.
type Link struct {
	// Issuer is the upstream's issuer identifier: an answer that names another is not
	// taken (RFC 9207). Empty: it is not known, and its redirect URI tells an answer from
	// those of others (RFC 9700 section 4.4.2.2).
	Issuer string
	// Begin returns where the browser has to go (RFC 6749 section 4.1.1), with PKCE by a
	// verifier (RFC 7636). It is also called to see where that is, and has no effect.
	Begin func(ctx context.Context, r LinkRequest) (where string, err error)
	// Finish exchanges the code that came back and keeps what it is worth, in place of
	// what was linked before. Errors: BadToken, if the upstream refuses; Unavailable.
	Finish func(ctx context.Context, r LinkRequest, code string) (*Account, error)
	// Linked returns the account that is linked. Errors: ErrNotFound, Unavailable.
	Linked func(ctx context.Context, subject string) (*Account, error)
	// Unlink forgets the account at once, and revokes upstream what can be; the outcome
	// says how far that got, also beside an error. Without one the account is not
	// forgotten. ErrNotFound if there was none.
	Unlink func(ctx context.Context, subject string) (Outcome, error)
}

// LinkRequest is one attempt to link an account.
type LinkRequest struct {
	Subject string
	// Redirect is our redirect URI, State comes back with the code, and Verifier is the
	// secret of PKCE.
	Redirect, State, Verifier string
}

// Account is an account at an upstream.
type Account struct {
	// ID is the upstream's immutable id of it, and Name what people call it.
	ID, Name string
	// Scopes are those that its owner has consented to; nil where there are none.
	Scopes []string
	// Since is when it was linked. Expires is when the link ends by itself; zero: never.
	Since, Expires time.Time
	// Broken says why it cannot be used until it is linked again; empty: it can.
	Broken string
}

// InjectRequest is one request that somebody wants made by a lease. What names the
// request is as it will be sent, letter by letter.
type InjectRequest struct {
	Lease string
	// Grant is what the lease allows, and Handle what Mint left with it; nil: nothing.
	Grant  grant.Grant
	Handle []byte
	// Method is one of [Methods]. Host is that of one of the origins, with the port if that
	// has one; Path begins with a slash and is canonical (see [NotCanonical]); Query has no
	// question mark.
	Method, Host, Path, Query string
	// Header holds what came along, by canonical names, without what is the hop's own or
	// could be a credential.
	Header map[string][]string
	Body   []byte
}

// Methods are those of requests that can be made by a lease. The first two only read.
var Methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}

// Injection is what is put into a request.
type Injection struct {
	// Header and Query take the place of whatever the request had by these names; a name
	// of Query that the request has already is refused.
	Header, Query []Injected
	// Pass are names of headers of the request, besides the usual ones, that the upstream
	// gets: those by which its API is told versions and the like.
	Pass []string
	// Scrub is what must not come back in the answer, in any spelling: the secret itself,
	// where what is injected is made of more than that. What is injected is scrubbed too.
	Scrub []secret.String
	// Roots are certificates in PEM to verify the upstream by; nil: the system's.
	Roots []byte
	// What says in a word for the record what the request does, such as the method of an
	// API that has one path for each; empty: method and path say it.
	What string
}

// Injected is one thing that is put into a request.
type Injected struct {
	Name  string
	Value secret.String
}

// RevokeLease names what is to be ended.
type RevokeLease struct {
	Lease   string
	Handle  []byte // as noted or returned by Mint; may be empty for an intent
	Expires time.Time
}

// Outcome says how far a revocation upstream got.
type Outcome struct {
	State OutcomeState
	// Until is when it ends by itself, for those that cannot be revoked.
	Until time.Time
	// Note is a word for the record, without secrets.
	Note string
}

// OutcomeState is the state of a lease upstream.
type OutcomeState string

// The outcomes.
const (
	Revoked             OutcomeState = "revoked"
	AlreadyDead         OutcomeState = "already_dead"
	DisabledPendingKill OutcomeState = "disabled_pending_kill" // no new use; open sessions are still being ended
	NotRevocableUntil   OutcomeState = "not_revocable_until"
	UnknownUntil        OutcomeState = "unknown_until"
	Stuck               OutcomeState = "stuck"
)

// Final reports whether nothing more can be done.
func (s OutcomeState) Final() bool {
	return s == Revoked || s == AlreadyDead || s == NotRevocableUntil || s == UnknownUntil
}

// Ledger keeps leases and the intents that come before them.
type Ledger interface {
	// Create writes a new lease and files it under its keys, before anything is
	// minted. ErrConflict if the id exists.
	Create(ctx context.Context, l *Lease) error
	// Lease returns a lease; ErrNotFound.
	Lease(ctx context.Context, id string) (*Lease, error)
	// Update replaces a lease if its Version is still the one that l carries, and
	// raises l.Version. ErrConflict if it is not.
	Update(ctx context.Context, l *Lease) error
	// Match returns the ids of leases filed under a key.
	Match(ctx context.Context, k Key) ([]string, error)
	// Due returns the ids of leases whose Next has come, earliest first.
	Due(ctx context.Context, now time.Time, limit int) ([]string, error)
	// All calls each for every lease that is not closed, in no order, until each
	// returns an error, which is returned.
	All(ctx context.Context, each func(*Lease) error) error
	// Open returns the number of leases that are not closed.
	Open(ctx context.Context) (int, error)
}

// LeaseState is where a lease is in its life.
type LeaseState string

// The states of a lease.
const (
	Intent  LeaseState = "intent"  // about to be minted
	Active  LeaseState = "active"  // minted, and given out
	Closing LeaseState = "closing" // to be ended upstream
	Closed  LeaseState = "closed"  // ended, or beyond ending: see the outcome
)

// Lease is the record of one vended credential. Handle is sealed.
type Lease struct {
	ID string `json:"id"`
	// Of is the lease for which the credential was minted, if that is another: one
	// whose record was closed before the answer came.
	Of       string     `json:"of,omitempty"`
	Version  int        `json:"version"`
	State    LeaseState `json:"state"`
	Provider string     `json:"provider"`
	// Keys are those of the lineage, by which a revocation finds the lease, and Pos
	// the feed position when it was made.
	Keys []string `json:"keys"`
	Pos  string   `json:"pos"`
	// Subject is the audit record's index; the others name software.
	Subject  string `json:"subject,omitempty"`
	Session  string `json:"session,omitempty"`
	Client   string `json:"client,omitempty"`
	Agent    string `json:"agent,omitempty"`
	Resource string `json:"resource,omitempty"`
	// Grant is what was granted, in canonical form.
	Grant json.RawMessage `json:"grant,omitempty"`
	// Handle is what its provider needs to end it, sealed with the lease's id and
	// provider bound in.
	Handle  []byte    `json:"handle,omitempty"`
	Created time.Time `json:"created"`
	// Expires is when the credential ends upstream by itself, or, of an intent, the
	// latest that it could.
	Expires time.Time `json:"expires"`
	// Deadline is by when minting is over, one way or another; zero when it is.
	// Until then nothing to be found upstream does not mean that nothing will be.
	Deadline time.Time `json:"deadline,omitzero"`
	// Next is when the reaper has to look at it.
	Next     time.Time `json:"next"`
	Attempts int       `json:"attempts,omitzero"`
	// Why says what ended it: expired, revoked, failed.
	Why     string       `json:"why,omitempty"`
	Outcome OutcomeState `json:"outcome,omitempty"`
	Until   time.Time    `json:"until,omitzero"`
	Note    string       `json:"note,omitempty"`
}
