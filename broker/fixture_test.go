package broker_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/scopes"
	"github.com/stint-dev/stint/scopes/grant"
)

const (
	self = "https://stint.test"
	idp  = "https://idp.test"
	ci   = "https://ci.test"
	mcp  = "https://mcp.test/files"
	api  = "https://api.test/files"
)

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// tokens verifies what it was told of, and what it signed. Its "signature" is
// that the text is known.
type tokens struct {
	mu    sync.Mutex
	clock *clock
	ring  *ring
	known map[string]*broker.Token
	n     int
	down  error
	// signed are the certificates that count as verified, by client.
	signed map[string]*x509.Certificate
}

func (t *tokens) Verify(_ context.Context, raw secret.String) (*broker.Token, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down != nil {
		return nil, broker.Fail(broker.Unavailable, t.down, "keys")
	}
	k, ok := t.known[raw.Reveal()]
	if !ok || !t.clock.Now().Before(k.Expires) {
		return nil, broker.Fail(broker.BadToken, errors.New("unknown or expired"), "no")
	}
	return k, nil
}

func (t *tokens) Assertion(ctx context.Context, id string, raw secret.String) (*broker.Token, error) {
	return t.Verify(ctx, raw)
}

// IssuerOf implements [broker.Tokens].
func (t *tokens) IssuerOf(raw secret.String) string {
	if k := t.known[raw.Reveal()]; k != nil {
		return k.Issuer
	}
	return ""
}

// Certificate implements [broker.Tokens]: those of clients are what the test says.
func (t *tokens) Certificate(_ context.Context, clientID string, chain []*x509.Certificate) error {
	if t.down != nil {
		return broker.Fail(broker.Unavailable, t.down, "keys")
	}
	if t.signed[clientID] == nil || !t.signed[clientID].Equal(chain[0]) {
		return broker.Fail(broker.BadToken, errors.New("signed by nobody"), "no")
	}
	return nil
}

func (t *tokens) put(k *broker.Token) secret.String {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
	text := fmt.Sprintf("token-%d", t.n)
	t.known[text] = k
	return secret.New(text)
}

// ring is our signing keys: which one signs, and which were withdrawn, for all
// replicas that read it.
type ring struct {
	mu        sync.Mutex
	kid       string
	withdrawn []string
	reloads   int
	down      error
}

func (r *ring) Reload(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reloads++
	return r.down
}

func (r *ring) Withdrawn() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.withdrawn)
}

// signs has another key sign from now on, or says which does.
func (r *ring) signs(kid string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if kid != "" {
		r.kid = kid
	}
	return r.kid
}

// read says how often the keys were read.
func (r *ring) read() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reloads
}

func (r *ring) withdraw(kid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.withdrawn = append(r.withdrawn, kid)
}

// Sign remembers the token as it would read back, claim by claim.
func (t *tokens) Sign(_ context.Context, c *broker.Claims) (secret.String, error) {
	data, err := json.Marshal(c.Stint)
	if err != nil {
		return secret.String{}, err
	}
	claim := &broker.StintClaim{}
	if err := json.Unmarshal(data, claim); err != nil {
		return secret.String{}, err
	}
	return t.put(&broker.Token{
		Issuer: c.Issuer, Subject: c.Subject, Ours: true, Use: broker.AccessToken, Type: "at+jwt", Audience: []string{c.Audience},
		ID: c.ID, ClientID: c.ClientID, IssuedAt: c.IssuedAt, Expires: c.Expires, AuthTime: c.AuthTime, Scope: c.Scope,
		Actors: c.Actors, Groups: c.Groups, Stint: claim, Details: c.Details, KeyID: t.ring.signs(""),
	}), nil
}

// record keeps events, and can fail.
type record struct {
	mu     sync.Mutex
	events []audit.Event
	who    []audit.Personal
	frames []audit.Frame
	noted  int // how many of events came by Note
	fail   func(*audit.Event) error
	down   error
	hook   func(step string)
}

func (r *record) Record(_ context.Context, e *audit.Event, p audit.Personal, more ...audit.Frame) error {
	if r.hook != nil {
		r.hook("record")
		defer r.hook("recorded")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down != nil {
		return r.down
	}
	if r.fail != nil {
		if err := r.fail(e); err != nil {
			return err
		}
	}
	if p.Subject != "" {
		e.Party.Subject = r.Index(p.Subject)
	}
	r.events = append(r.events, *e)
	r.who = append(r.who, p)
	r.frames = append(r.frames, more...)
	return nil
}

func (r *record) Note(ctx context.Context, e *audit.Event, p audit.Personal) error {
	if err := r.Record(ctx, e, audit.Personal{}); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.who[len(r.who)-1], r.noted = p, r.noted+1
	return nil
}

func (r *record) Keep(frames ...audit.Frame) error {
	if r.hook != nil {
		r.hook("keep")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down == nil {
		r.frames = append(r.frames, frames...)
	}
	return r.down
}

func (r *record) Index(s string) string {
	sum := sha256.Sum256([]byte("key" + s))
	return hex.EncodeToString(sum[:8])
}

func (r *record) Failed() error { return r.down }

// last returns the newest event of a kind.
func (r *record) last(t testing.TB, kind audit.Kind) audit.Event {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.events) - 1; i >= 0; i-- {
		if r.events[i].Kind == kind {
			return r.events[i]
		}
	}
	t.Fatalf("no event of kind %s", kind)
	return audit.Event{}
}

func (r *record) count(kind audit.Kind) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// history returns the feed entries in the journal.
func (r *record) history(after uint64) (out []broker.Entry, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.frames {
		if f.Type == audit.FrameFeed {
			e, err := broker.DecodeEntry(f.Payload)
			if err != nil {
				return nil, err
			}
			if e.Pos.Seq > after {
				out = append(out, e)
			}
		}
	}
	return out, nil
}

// seals binds by remembering.
type seals struct{}

func (seals) Seal(plain []byte, context string) ([]byte, error) {
	return []byte(context + "\x00" + string(plain)), nil
}

func (seals) Open(sealed []byte, context string) ([]byte, error) {
	plain, ok := strings.CutPrefix(string(sealed), context+"\x00")
	if !ok {
		return nil, errors.New("sealed for another context")
	}
	return []byte(plain), nil
}

var tables = grant.MustSchema("warehouse", 1, grant.Dimension{
	Name: "privileges", Type: grant.PrivSet, Values: []string{"SELECT", "INSERT"}, Reads: []string{"SELECT"},
})

// upstream is a provider that keeps what it minted, and misbehaves as told.
type upstream struct {
	mu       sync.Mutex
	class    broker.Class
	alive    map[string]grant.Grant
	minted   map[string]bool
	expires  map[string]time.Time
	entitled *grant.Grant
	grants   func(grant.Grant) grant.Grant // what it says it granted
	late     time.Duration                 // added to the expiry
	mintErr  error                         // after it has taken effect
	block    chan struct{}                 // Mint waits for it
	revokes  int
	revErr   error
	pending  int // revocations that only disable
	final    broker.OutcomeState
	least    time.Duration
	nothing  bool // Mint answers nil
	noExpiry bool
	mangle   bool          // Render writes something else
	rigid    bool          // nothing can be renewed
	unlisted bool          // what it made cannot be listed
	fixed    time.Duration // how long what it makes lives, whatever is asked
	claims   func(string) bool
	outlives bool
	hook     func(step string)
	// inject makes it one whose credential stays here; leaks has it hand that out.
	inject func(context.Context, broker.InjectRequest) (*broker.Injection, error)
	leaks  bool
	modes  []broker.Mode
	link   *broker.Link
	needs  error // Resolve's, if it asks
}

func newUpstream() *upstream {
	return &upstream{class: broker.Exact, alive: map[string]grant.Grant{}, minted: map[string]bool{}, expires: map[string]time.Time{}, final: broker.Revoked}
}

func (u *upstream) Describe() broker.Description {
	renew := u.renew
	if u.rigid {
		renew = nil
	}
	if u.inject != nil {
		return broker.Description{
			Kind: "warehouse", Class: broker.None, Modes: []broker.Mode{broker.Inject}, Schema: tables, Scheme: "postgres", Details: "postgres",
			TokenType: "Bearer", Evidence: broker.Asserted, Inject: u.inject, Origins: []string{"https://up.test", "https://up.test:8443"},
		}
	}
	d := broker.Description{
		Claims: u.claims, Renews: !u.rigid, Renew: renew, Kind: "warehouse", Class: u.class, Schema: tables, Scheme: "postgres", Details: "postgres", TokenType: "N_A",
		Evidence: broker.Attested, MinLifetime: u.least, Outlives: u.outlives, Sweep: u.sweep, Ready: func(context.Context) error { return u.revErr },
		Links: u.link != nil, Link: u.link,
	}
	d.Modes = u.modes
	if u.unlisted {
		d.Sweep = nil
	}
	if u.fixed > 0 {
		d.MaxLifetime, d.Revokes = u.fixed, "token"
	}
	return d
}

func (u *upstream) Resolve(_ context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	out := &broker.Resolved{Request: tables.Everything(), Grants: r.Grants, Entitlement: tables.Everything(), Basis: "none"}
	if u.needs != nil && r.Live {
		return nil, u.needs
	}
	if u.entitled != nil {
		out.Entitlement, out.Basis = *u.entitled, "asked"
	}
	for i, uri := range r.Resources {
		table := uri[strings.LastIndex(uri, "/")+1:]
		part, err := tables.ParseValue(map[string]any{"privileges": []any{map[string]any{"object": table, "privileges": []any{"SELECT", "INSERT"}, "columns": "*", "rows": "*"}}})
		if err != nil {
			return nil, broker.Fail(broker.BadTarget, err, "no such table")
		}
		out.Parts = append(out.Parts, part)
		if i == 0 {
			out.Request = part
		} else if out.Request, _ = grant.Union(out.Request, part); out.Request.IsNothing() {
			return nil, broker.Fail(broker.BadTarget, nil, "cannot be one")
		}
	}
	for _, d := range r.Details {
		delete(d, "provider")
		want, err := tables.ParseValue(d)
		if err != nil {
			return nil, broker.Fail(broker.BadDetails, err, err.Error())
		}
		out.Wanted = &want
		out.Request = grant.Meet(out.Request, want)
	}
	return out, nil
}

func (u *upstream) Render(g grant.Grant) ([]byte, error) {
	if u.class == broker.Profile {
		return nil, fmt.Errorf("profiles only: %w", broker.ErrInexpressible)
	}
	if u.mangle {
		return tables.Everything().Canonical(), nil
	}
	return g.Canonical(), nil
}

func (u *upstream) Parse(b []byte) (grant.Grant, error) { return tables.Parse(b) }

func (u *upstream) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	if u.hook != nil {
		u.hook("mint")
		defer u.hook("minted")
	}
	if err := r.Note([]byte("handle of " + r.Lease)); err != nil {
		return nil, err
	}
	g, err := u.Parse(r.Rendered)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	u.alive[r.Lease], u.minted[r.Lease], u.expires[r.Lease] = g, true, r.Expires
	block, failure, nothing := u.block, u.mintErr, u.nothing
	u.mu.Unlock()
	if block != nil {
		<-block
	}
	if failure != nil || nothing {
		return nil, failure
	}
	said := g
	if u.grants != nil {
		said = u.grants(g)
	}
	m := &broker.Minted{
		Document: secret.New(`{"password":"pw-` + r.Lease + `"}`), Granted: said, Evidence: broker.Attested,
		Expires: r.Expires.Add(u.late), Handle: []byte("handle of " + r.Lease), Upstream: map[string]string{"role": "r_" + r.Lease},
	}
	if u.fixed > 0 {
		m.Expires = m.Expires.Add(u.fixed / 2)
	}
	if u.inject != nil && !u.leaks {
		m.Document = secret.String{}
	}
	if u.noExpiry {
		m.Expires = time.Time{}
	}
	return m, nil
}

func (u *upstream) renew(_ context.Context, r broker.RenewRequest) (*broker.Minted, error) {
	if u.hook != nil {
		u.hook("renew")
		defer u.hook("renewed")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	g, ok := u.alive[r.Lease]
	if !ok || string(r.Handle) != "handle of "+r.Lease {
		return nil, errors.New("there is no such login")
	}
	if u.mintErr != nil {
		return nil, u.mintErr
	}
	u.expires[r.Lease] = r.Expires
	if u.grants != nil {
		g = u.grants(g)
	}
	return &broker.Minted{Granted: g, Evidence: broker.Attested, Expires: r.Expires.Add(u.late)}, nil
}

func (u *upstream) Revoke(_ context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.revokes++
	if len(r.Handle) > 0 && string(r.Handle) != "handle of "+r.Lease {
		return broker.Outcome{}, errors.New("another lease's handle")
	}
	if u.revErr != nil {
		return broker.Outcome{}, u.revErr
	}
	if u.pending > 0 {
		u.pending--
		return broker.Outcome{State: broker.DisabledPendingKill}, nil
	}
	if _, ok := u.alive[r.Lease]; !ok {
		return broker.Outcome{State: broker.AlreadyDead}, nil
	}
	delete(u.alive, r.Lease)
	return broker.Outcome{State: u.final, Until: r.Expires}, nil
}

func (u *upstream) sweep(_ context.Context, keep func(string) bool) (ended []string, err error) {
	u.mu.Lock()
	ids := slices.Collect(maps.Keys(u.alive))
	u.mu.Unlock()
	for _, id := range ids {
		if !keep(id) {
			u.mu.Lock()
			if _, still := u.alive[id]; still { // the reaper may have been quicker
				delete(u.alive, id)
				ended = append(ended, id)
			}
			u.mu.Unlock()
		}
	}
	return ended, nil
}

func (u *upstream) living() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.alive)
}

// world is a broker with everything around it.
type world struct {
	t        testing.TB
	clock    *clock
	tokens   *tokens
	keys     *ring
	store    *memory
	ledger   broker.Ledger // instead of store, if set
	anchor   *anchor
	record   *record
	upstream *upstream
	reg      *broker.Registry
	judge    *broker.Judge
	b        *broker.Broker
	n        int
}

const registryYAML = `
issuers:
  - issuer: https://idp.test
    accept: [access_token, id_token]
    audiences: [https://stint.test]
    max_subject_age: 1h
    scopes: identity-only
    groups: [engineering, maintainers]
    delegates: [gateway]
    may_act: true
    actors: {robot: helper}
  - issuer: https://ci.test
    accept: [jwt]
    audiences: [https://stint.test]
    max_subject_age: 10m
    scopes: {mapped: {"ci:read": {"https://mcp.test/files": [files:read]}}}
    delegates: [files-mcp]
    any_agent: true
  - issuer: https://old.test
    disabled: true
    accept: [access_token]
    audiences: [https://stint.test]
    max_subject_age: 1h
    scopes: ours
    delegates: [gateway]
agents:
  - {name: helper, identities: {"https://idp.test": helper-at-idp}, ceiling: {access: read, scopes: "*", vend: "*"}}
  - {name: gone, identities: {"https://idp.test": gone-at-idp}, ceiling: "*", disabled: true}
clients:
  - id: desktop
    auth: {method: client_secret_basic, secret_hashes: [HASH]}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    targets: [https://mcp.test/files]
    ceiling: "*"
    identities: {"https://idp.test": desktop-at-idp}
  - id: files-mcp
    auth: {method: client_secret_post, secret_hashes: [HASH]}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange", client_credentials]
    resource: https://mcp.test/files
    targets: [https://api.test/files, warehouse, https://mcp.test/files]
    ceiling: "*"
  - id: gateway
    auth: {method: private_key_jwt, jwks_file: keys.json}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    targets: [https://mcp.test/files, https://api.test/files]
    ceiling: "*"
    impersonation: true
    accept_less: true
  - id: files-api
    auth: {method: client_secret_basic, secret_hashes: [HASH]}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    resource: https://api.test/files
    targets: []
    ceiling: "*"
  - id: off
    auth: {method: client_secret_basic, secret_hashes: [HASH]}
    grant_types: [client_credentials]
    targets: [https://mcp.test/files]
    ceiling: "*"
    disabled: true
`

const filesYAML = `
resource: https://mcp.test/files
max_lifetime: 4m
scopes:
  files:read:
    access: read
    forward: {"https://api.test/files": [read]}
    vend: {warehouse: {privileges: [{object: sales.orders, privileges: SELECT, columns: "*", rows: "*"}]}}
  files:list:
    access: read
    vend: {warehouse: {privileges: [{object: sales.customers, privileges: SELECT, columns: "*", rows: "*"}]}}
  files:write:
    access: write
    forward: {"https://api.test/files": [read, write]}
    vend: {warehouse: {privileges: [{object: sales.orders, privileges: [SELECT, INSERT], columns: "*", rows: "*"}]}}
  files:mine:
    access: read
    vend: {warehouse: {privileges: [{object: "sales.{args.table}", privileges: SELECT, columns: "*", rows: "*"}]}}
tools:
  read_file: {scopes: [files:read]}
  my_table: {scopes: [files:mine]}
  write_file: {scopes: [files:write]}
rules:
  - allow: ["*"]
    to: {groups: [engineering]}
  - allow: [files:write]
    to: {groups: [maintainers]}
  - allow: [files:read]
    to: {claims: {iss: "https://ci.test", repository: acme/web}}
  - allow: [files:read]
    to: {clients: [files-mcp], claims: {iss: "https://stint.test", sub: files-mcp}}
  - allow: [files:list]
    to: {groups: [maintainers]}
    approval: required
`

const apiYAML = `
resource: https://api.test/files
scopes:
  read: {access: read}
  write: {access: write}
rules:
  - allow: [read, write]
    to: {groups: [engineering, maintainers]}
`

var secretKey = []byte(strings.Repeat("k", 32))

// goodSecret is the secret of every client that has one.
var goodSecret, goodHash = broker.NewClientSecret(secretKey)

func decode(t testing.TB, text string, v any) {
	t.Helper()
	if err := strictyaml.Decode("test.yaml", []byte(text), v); err != nil {
		t.Fatal(err)
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}, anchor: &anchor{}, record: &record{}, upstream: newUpstream()}
	w.keys = &ring{kid: "first"}
	w.tokens = &tokens{clock: w.clock, ring: w.keys, known: map[string]*broker.Token{}}
	w.store = newMemory(w.clock.Now)
	var in struct {
		Issuers []*broker.Issuer `yaml:"issuers"`
		Agents  []*broker.Agent  `yaml:"agents"`
		Clients []*broker.Client `yaml:"clients"`
	}
	decode(t, strings.ReplaceAll(registryYAML, "HASH", `"`+goodHash+`"`), &in)
	var err error
	w.reg, err = broker.NewRegistry(self, in.Clients, in.Agents, in.Issuers, map[string]broker.Provider{"warehouse": w.upstream})
	if err != nil {
		t.Fatal(err)
	}
	w.judge = broker.NewJudge(w.reg, w.policy(filesYAML, apiYAML))
	w.b = w.broker("r1", w.record, broker.Head{})
	return w
}

func (w *world) policy(texts ...string) *scopes.Policy {
	w.t.Helper()
	var all []*scopes.Mapping
	for i, text := range texts {
		m := &scopes.Mapping{Content: [][]byte{[]byte(text)}}
		if err := strictyaml.Decode(fmt.Sprintf("m%d.yaml", i), []byte(text), m); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, m)
	}
	p, err := scopes.Compile(all, w.reg.World())
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// broker makes a started replica on the world's store.
func (w *world) broker(replica string, r *record, known broker.Head) *broker.Broker {
	w.t.Helper()
	b := w.unstarted(replica, r, known)
	if err := b.Start(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) unstarted(replica string, r *record, known broker.Head) *broker.Broker {
	w.t.Helper()
	var ledger broker.Ledger = w.store
	if w.ledger != nil {
		ledger = w.ledger
	}
	b, err := broker.New(broker.Config{
		Replica: replica, TokenLifetime: 5 * time.Minute, CredentialLifetime: 15 * time.Minute, Skew: 30 * time.Second,
		MaxStaleness: 200 * time.Millisecond, MaxClockOffset: time.Second, MintTimeout: 200 * time.Millisecond, RevokeTimeout: time.Second,
		ClientSecretKey: secretKey,
	}, broker.Deps{
		Tokens: w.tokens, Keys: w.keys, Feed: w.store, Anchor: w.anchor, Ledger: ledger, Once: w.store, Sessions: w.store, Recorder: r, Sealer: seals{},
		Judge: w.judge, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: w.clock.Now, History: r.history, Known: known,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// run runs a replica's loops until the test ends.
func (w *world) run(b *broker.Broker) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); b.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); <-done })
}

// token returns a token of the identity provider.
func (w *world) token(change func(*broker.Token)) *broker.Token {
	w.n++
	now := w.clock.Now()
	t := &broker.Token{
		Issuer: idp, Subject: "alice", Use: broker.AccessToken, Type: "at+jwt", Audience: []string{self}, ID: fmt.Sprintf("idp-%d", w.n),
		ClientID: "desktop-at-idp", SessionID: "sid-1", IssuedAt: now.Add(-time.Minute), Expires: now.Add(time.Hour), AuthTime: now.Add(-time.Hour),
		Groups: []string{"engineering"}, Email: "alice@acme.test",
	}
	if change != nil {
		change(t)
	}
	return t
}

// request is the desktop agent exchanging alice's token for one for the MCP
// server.
func (w *world) request(change func(*broker.ExchangeRequest)) *broker.ExchangeRequest {
	r := &broker.ExchangeRequest{
		GrantType: broker.TokenExchange, Client: w.reg.Clients["desktop"], SubjectToken: w.tokens.put(w.token(nil)),
		SubjectType: broker.TypeAccess, Resources: []string{mcp}, Scope: "files:read", RequestID: "req",
	}
	if change != nil {
		change(r)
	}
	return r
}

func (w *world) exchange(change func(*broker.ExchangeRequest)) (*broker.Issued, error) {
	return w.b.Exchange(context.Background(), w.request(change))
}

// must returns what was issued, read back.
func (w *world) must(change func(*broker.ExchangeRequest)) (*broker.Issued, *broker.Token) {
	w.t.Helper()
	got, err := w.exchange(change)
	if err != nil {
		w.t.Fatal(err)
	}
	if got.Lease != "" {
		return got, nil
	}
	t, err := w.tokens.Verify(context.Background(), got.Token)
	if err != nil {
		w.t.Fatal(err)
	}
	return got, t
}

// vend is the MCP server asking for a database login with the agent's token.
func (w *world) vend(subject secret.String, change func(*broker.ExchangeRequest)) func(*broker.ExchangeRequest) {
	return func(r *broker.ExchangeRequest) {
		r.Client, r.SubjectToken = w.reg.Clients["files-mcp"], subject
		r.Resources = []string{"postgres://warehouse/sales.orders"}
		if change != nil {
			change(r)
		}
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not come to be: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
