// Package audit records what happened, durably, before anybody is answered.
//
// An [Event] is written for every exchange, revocation, lease outcome and
// configuration change, whatever came of it. The [Journal] is the file behind
// it: append-only, group commit, recovered after a crash. A [Log] joins the two
// and encrypts personal data under a key per subject, so that a person can be
// forgotten by destroying a key. No field of an event can hold a secret:
// credentials appear as digests and ids. The package is a leaf; it does not
// decide, and it does not know HTTP, Redis or any provider.
package audit

import (
	"encoding/json"
	"time"
)

// SchemaVersion is the version of the event schema. Fields may be added within
// it; none changes its meaning or goes away.
const SchemaVersion = 1

// Kind says what an event is about.
type Kind string

// The kinds of event.
const (
	KindExchange   Kind = "exchange"      // a request at the token endpoint, whatever its outcome
	KindRevocation Kind = "revocation"    // something was asked to be taken back
	KindLease      Kind = "lease"         // what became of a lease upstream
	KindIntrospect Kind = "introspection" // a token for one call was used up, or a question about a token was refused
	KindCall       Kind = "call"          // a request was made by a lease whose credential stays here, or was refused
	KindConfig     Kind = "config"        // policy or configuration took effect, or was refused
	KindKey        Kind = "key"           // a signing key was made, rotated, revoked or retired
	KindLink       Kind = "link"          // a subject linked an account at an upstream, or unlinked it
	KindService    Kind = "service"       // the server started, stopped, or lost or regained something it needs
	KindRefusals   Kind = "refusals"      // requests of unknown clients that have no event each; see Count
)

// Outcome says how it ended.
type Outcome string

// The outcomes of an event.
const (
	Granted Outcome = "granted" // a token or credential was issued
	Refused Outcome = "refused" // the request was not entitled to what it asked
	Failed  Outcome = "failed"  // something of ours, or upstream, did not work
	Done    Outcome = "done"    // what was to be done is done
)

// Event is one entry of the record. Its JSON is a format that others read; see
// [SchemaVersion].
type Event struct {
	// Version is [SchemaVersion].
	Version int `json:"v"`
	// ID is unique and sorts by time: 26 characters.
	ID string `json:"id"`
	// Time is when the event was recorded, by this replica's clock.
	Time time.Time `json:"time"`
	// Replica is the name of the process that recorded it.
	Replica string  `json:"replica"`
	Kind    Kind    `json:"kind"`
	Outcome Outcome `json:"outcome"`
	// Code is the kind of refusal or failure; empty if there was none.
	Code string `json:"code,omitempty"`
	// Reason says why in full. It is for operators: callers are told less.
	Reason string `json:"reason,omitempty"`
	// Request is the id that the caller was given for this request.
	Request string `json:"request,omitempty"`
	// Count is how many requests an event of the kind refusals stands for. What else
	// it says is of one of them, from the address that most came from.
	Count int `json:"count,omitzero"`
	// Trace is the W3C trace id, where tracing is on.
	Trace string `json:"trace,omitempty"`
	// GrantType is the OAuth grant type of an exchange.
	GrantType string `json:"grant_type,omitempty"`
	Party     Party  `json:"party,omitzero"`
	Target    Target `json:"target,omitzero"`
	// Decision is what policy said.
	Decision *Decision `json:"decision,omitempty"`
	// Token is the token that was issued, or the one an event is about.
	Token *Token `json:"token,omitempty"`
	// Lease is the vended credential that was issued, or the one an event is about.
	Lease *Lease `json:"lease,omitempty"`
	// Certificate shows that what was granted is within every limit.
	Certificate *Certificate `json:"certificate,omitempty"`
	Revocation  *Revocation  `json:"revocation,omitempty"`
	// Call is a request that was made through Stint.
	Call *Call `json:"call,omitempty"`
	// Link is what was done about an account of the subject's at an upstream.
	Link   *Link   `json:"link,omitempty"`
	Change *Change `json:"change,omitempty"`
	// Micros are durations of steps, in microseconds.
	Micros map[string]int64 `json:"micros,omitempty"`
	// Personal is [Personal] as JSON, encrypted under the subject's key with the
	// event's id bound in; base64. It becomes unreadable when the key is destroyed.
	Personal []byte `json:"personal,omitempty"`
}

// Party is who took part. Software is named; a person is an index.
type Party struct {
	// Client is the OAuth client that authenticated.
	Client string `json:"client,omitempty"`
	// Agent is the software that the subject was using.
	Agent string `json:"agent,omitempty"`
	// Subject is a keyed index of the subject: equal for equal subjects, and
	// telling nothing to whoever lacks the key. Workloads are indexed too.
	Subject string `json:"subject,omitempty"`
	// Session is the login that the request descends from, as a digest.
	Session string `json:"session,omitempty"`
	// Actors are those who act for the subject, the present one first.
	Actors []string `json:"actors,omitempty"`
	// Operator is who acted on the local socket or the admin API.
	Operator string `json:"operator,omitempty"`
}

// Target is what a request was aimed at.
type Target struct {
	// Resource is the resource that a token was asked for, or through whose
	// mapping a credential was.
	Resource string `json:"resource,omitempty"`
	// Provider is the upstream that a credential was asked for.
	Provider string `json:"provider,omitempty"`
	// Tool and Arguments (a SHA-256 over the canonical form) are the tool call.
	Tool      string `json:"tool,omitempty"`
	Arguments string `json:"arguments,omitempty"`
	Once      bool   `json:"once,omitzero"`
	// Scopes are those asked for.
	Scopes []string `json:"scopes,omitempty"`
}

// Decision is what policy said.
type Decision struct {
	// Policy is the version of the mapping that decided: a content hash.
	Policy string `json:"policy,omitempty"`
	// Granted are the scopes that were granted.
	Granted []string `json:"granted,omitempty"`
	// Rules are those that spoke, by file and line, each with what it said.
	Rules []string `json:"rules,omitempty"`
}

// Token identifies a token without being one.
type Token struct {
	ID       string `json:"jti"`
	Type     string `json:"type,omitempty"`
	Issuer   string `json:"iss,omitempty"`
	Parent   string `json:"parent,omitempty"`   // jti of the token it was exchanged for
	Root     string `json:"root,omitempty"`     // jti of the token at the beginning, or a digest
	Position string `json:"position,omitempty"` // feed position when it was made
	Hops     int    `json:"hops,omitzero"`      // tokens of ours before it
	Expires  int64  `json:"exp,omitzero"`       // Unix seconds
}

// Lease describes a vended credential without being one.
type Lease struct {
	ID       string `json:"id"`
	Provider string `json:"provider"`
	Class    string `json:"class,omitempty"`
	State    string `json:"state,omitempty"`
	Expires  int64  `json:"exp,omitzero"` // Unix seconds, the upstream's own
	// Digest is the SHA-256 of the credential, in hexadecimal.
	Digest string `json:"digest,omitempty"`
	// Upstream holds the ids by which the upstream's own log names it.
	Upstream map[string]string `json:"upstream,omitempty"`
	// Outcome is what became of it; Until is when it ends, in Unix seconds, where
	// it could not be revoked.
	Outcome string `json:"outcome,omitempty"`
	Until   int64  `json:"until,omitzero"`
}

// Certificate holds what must compare for a grant to be within bounds. With the
// schema of the given hash, anyone can repeat every comparison.
type Certificate struct {
	// Kind and Schema name the grant schema: its kind and its SHA-256.
	Kind   string `json:"kind"`
	Schema string `json:"schema"`
	// Inputs are what was met, in order: subject token, mapping, entitlement,
	// ceilings, request.
	Inputs []Input `json:"inputs"`
	// Grant is the meet. Rendered is what the upstream was asked for, read back
	// from the request as sent; it equals Grant. Granted is what the upstream
	// says that it granted; it is no more than Grant.
	Grant    json.RawMessage `json:"grant"`
	Rendered json.RawMessage `json:"rendered"`
	Granted  json.RawMessage `json:"granted"`
	// Evidence is how Granted is known: attested (the upstream's answer or
	// catalogue names it), echoed (its answer repeats the request) or asserted (it
	// says nothing, and Granted is what was asked).
	Evidence string `json:"evidence"`
	// Names are the immutable ids that names of the request and the mapping were
	// resolved to, by name.
	Names map[string]string `json:"names,omitempty"`
	// Asked and Given are the latest expiry asked for and the one given, in Unix
	// seconds.
	Asked int64 `json:"asked_exp"`
	Given int64 `json:"given_exp"`
}

// Input is one of the grants that a certificate met.
type Input struct {
	Name  string          `json:"name"`
	Grant json.RawMessage `json:"grant"`
}

// Revocation is a record in the revocation feed, or what was asked of it.
type Revocation struct {
	Position string `json:"position,omitempty"`
	// Selector lists the conditions; persons appear as an index.
	Selector []string `json:"selector"`
	Reason   string   `json:"reason,omitempty"`
	// Leases is how many leases and intents were marked so far.
	Leases int `json:"leases,omitzero"`
}

// Call is a request that was made, or was to be made, through Stint.
type Call struct {
	Method string `json:"method"`
	Host   string `json:"host"`
	// Path is the SHA-256 of the path, in hexadecimal: it may name a person.
	Path string `json:"path"`
	// What names what was asked of an upstream that has one path for much.
	What string `json:"what,omitempty"`
	// Status is that of the upstream's answer; zero if there was none.
	Status int `json:"status,omitzero"`
}

// Link is what was done about an account of a subject's at an upstream. Which account
// it is stands in [Personal].
type Link struct {
	Provider string `json:"provider"`
	// Action is begin, finish or unlink.
	Action string `json:"action"`
	// Scopes are those that its owner has consented to.
	Scopes []string `json:"scopes,omitempty"`
	// Outcome is what became upstream of what was unlinked; Until is when it ends, in
	// Unix seconds, where it could not be revoked.
	Outcome string `json:"outcome,omitempty"`
	Until   int64  `json:"until,omitzero"`
}

// Change is a change to what the server goes by.
type Change struct {
	What   string `json:"what"`
	Before string `json:"before,omitempty"` // a version or digest
	After  string `json:"after,omitempty"`
}

// Personal is the data of a person in an event. It is never written in clear.
type Personal struct {
	Subject string `json:"sub,omitempty"`   // issuer and sub
	Email   string `json:"email,omitempty"` // as the token had it
	Address string `json:"addr,omitempty"`  // network address of the caller
	// Account is the id and name of an account at an upstream.
	Account string `json:"account,omitempty"`
	// Detail is the part of [Event.Reason] that may name a person.
	Detail string `json:"detail,omitempty"`
}
