package api_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/outbound"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/internal/vault"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/scopes"
)

// The parts are the real ones, put together as the command does it: tokens with
// real keys, the embedded store, the journal, a sealed file for secrets, a
// compiled policy. Only upstreams are fakes, and the clock is moved by hand.

// clock is a clock that tests move.
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

// logs is what the server has logged.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// options are what a test wants otherwise.
type options struct {
	issuer string // ours; self if empty
	limits api.Limits
	listen func(*api.Listen)
	wrap   func(api.Broker) api.Broker
	config func(*api.Config)
	grace  time.Duration
	calls  bool // there are credentials that stay here
	links  bool // accounts are linked at the provider code
	// issuers and clients are further entries, and tokens changes how they are verified.
	issuers, clients string
	tokens           func(*token.Config)
	roots            *x509.CertPool // of those who publish keys; nil: the system's
}

// world is a server with everything around it.
type world struct {
	testing.TB
	self    string
	dir     string
	clock   *clock
	logs    *logs
	idp     *issuer
	ci      *issuer
	gateway *issuer // the client's keys
	secret  secret.String
	secrets vault.Store
	store   *store.Embedded
	journal *audit.Journal
	events  *audit.Log
	// subjects are the keys of persons.
	subjects *store.SubjectKeys
	ring     *token.Ring
	tokens   *token.Service
	code     *troubled
	db       documents
	reg      *broker.Registry
	b        *broker.Broker
	server   *api.Server
	problem  string // of the policy
	mappings []*scopes.Mapping
	switches *switches
	sealer   broker.Sealer
	signIn   *signIn
	doc      *document

	public, ops, socket string
	http                *http.Client // of the public listener
	local               *http.Client // of the socket
	stop                func() error
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// newWorld makes a server that serves.
func newWorld(t testing.TB, o options) *world {
	t.Helper()
	if o.issuer == "" {
		o.issuer = self
	}
	// Not t.TempDir: the path of a socket has about 100 bytes at most.
	dir := must(os.MkdirTemp("", "stint"))(t)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{
		TB: t, self: o.issuer, dir: dir, logs: &logs{}, clock: &clock{now: time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)},
		idp: newIssuer(t, "https://idp.test"), ci: newIssuer(t, "https://ci.test"), gateway: newIssuer(t, "gateway"),
	}
	w.switches, w.signIn = &switches{}, &signIn{w: w}
	w.code = &troubled{Fake: providertest.NewFake("code", w.clock.Now)}
	if o.links {
		w.code.Site("https://code.test")
	}
	w.db = documents{providertest.NewFake("db", w.clock.Now)}
	log := slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.openSecrets(log)
	w.openTokens(o)
	w.openBroker(log, o)
	w.serve(o)
	return w
}

// upstreamCall stands for the gateway: it answers what it was asked, with the status that
// the last segment is.
func (w *world) upstreamCall(out http.ResponseWriter, r *http.Request) {
	status, err := strconv.Atoi(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
	if err != nil {
		status = http.StatusOK
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		status = http.StatusRequestEntityTooLarge
	}
	out.Header().Set("Content-Type", "text/plain")
	out.Header().Set("Stint-Lease", "stub")
	out.WriteHeader(status)
	_, _ = fmt.Fprintf(out, "%s %s from %s with %d", r.Method, r.RequestURI, r.RemoteAddr, len(body))
}

// signingKeys keeps the document of signing keys among the secrets.
type signingKeys struct{ secrets vault.Store }

// LoadKeys implements [token.KeyStore].
func (k signingKeys) LoadKeys(ctx context.Context) (secret.String, int, error) {
	f, version, err := k.secrets.Read(ctx, "keys/signing")
	return f["document"], version, err
}

// SaveKeys implements [token.KeyStore].
func (k signingKeys) SaveKeys(ctx context.Context, doc secret.String, version int) error {
	_, err := k.secrets.Write(ctx, "keys/signing", vault.Fields{"document": doc}, version)
	return err
}

func (w *world) openSecrets(log *slog.Logger) {
	w.Helper()
	file := vault.FileConfig{Path: filepath.Join(w.dir, "sealed"), Identity: filepath.Join(w.dir, "identity")}
	if err := vault.Init(file); err != nil {
		w.Fatal(err)
	}
	var err error
	if w.secrets, _, err = vault.Open(vault.Config{Kind: vault.KindFile, File: &file}, vault.Deps{Log: log, Now: w.clock.Now}); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = w.secrets.Close() })
}

func (w *world) openTokens(o options) {
	w.Helper()
	var err error
	w.ring, err = token.OpenRing(context.Background(), token.RingConfig{
		Algorithm: "ES256", Overlap: 10 * time.Minute, Retain: time.Hour, Now: w.clock.Now,
	}, signingKeys{w.secrets})
	if err != nil {
		w.Fatal(err)
	}
	keys := w.idp.jwks(w)
	published := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/idp" {
			http.Error(out, "down", http.StatusInternalServerError)
			return
		}
		_, _ = out.Write(keys)
	}))
	w.Cleanup(published.Close)
	cfg := token.Config{
		Self: w.self, Skew: 30 * time.Second, CacheSize: 64, Now: w.clock.Now,
		Issuers: []token.Issuer{
			{ID: w.idp.url, Algorithms: []string{"ES256"}, JWKSURI: published.URL + "/idp"},
			{ID: w.ci.url, Algorithms: []string{"ES256"}, Types: map[string][]string{"jwt": {"JWT"}}, Claims: []string{"repository"}},
			{ID: "https://down.test", Algorithms: []string{"ES256"}, JWKSURI: published.URL + "/down"},
		},
		IssuerKeys: map[string][]byte{w.ci.url: w.ci.jwks(w)},
		Clients:    map[string]token.ClientKeys{"gateway": {JWKS: w.gateway.jwks(w)}},
	}
	if o.tokens != nil {
		o.tokens(&cfg)
	}
	if w.tokens, err = token.New(cfg, w.ring, outbound.New(outbound.Policy{Hosts: []string{"127.0.0.1"}, Roots: o.roots})); err != nil {
		w.Fatal(err)
	}
}

func decode(t testing.TB, text string, v any) {
	t.Helper()
	if err := strictyaml.Decode("test.yaml", []byte(text), v); err != nil {
		t.Fatal(err)
	}
}

// policy compiles mappings.
func (w *world) policy(texts ...string) *scopes.Policy {
	w.Helper()
	var all []*scopes.Mapping
	for _, text := range texts {
		m := &scopes.Mapping{Content: [][]byte{[]byte(text)}}
		decode(w, text, m)
		all = append(all, m)
	}
	w.mappings = all
	return must(scopes.Compile(all, w.reg.World()))(w)
}

func (w *world) openBroker(log *slog.Logger, o options) {
	w.Helper()
	ctx := context.Background()
	clientKey := []byte(must(vault.Key(ctx, w.secrets, vault.PathClientSecrets))(w).Reveal())
	made, hash := broker.NewClientSecret(clientKey)
	w.secret = made
	var in struct {
		Issuers []*broker.Issuer `yaml:"issuers"`
		Agents  []*broker.Agent  `yaml:"agents"`
		Clients []*broker.Client `yaml:"clients"`
	}
	decode(w, strings.NewReplacer("HASH", `"`+hash+`"`, self, w.self).Replace(strings.Replace(registryYAML, "agents:\n", o.issuers+"agents:\n", 1)+o.clients), &in)
	signInClient := &broker.Client{
		ID: "stint-admin", GrantTypes: []string{exchange}, Targets: []string{w.self + "/admin/v1"}, Ceiling: &scopes.Ceiling{Everything: true},
		AcceptLess: true, Identities: map[string]string{w.idp.url: "stint-at-idp"}, Session: time.Hour,
	}
	in.Clients = append(in.Clients, signInClient)
	connect, linking := (*api.Door)(nil), []string(nil)
	if o.links {
		signInClient.Targets = append(signInClient.Targets, w.self+"/connect")
		connect = &api.Door{Resource: w.self + "/connect", Issuer: w.idp.url, Client: signInClient, SignIn: w.signIn}
		linking = []string{strings.ReplaceAll(connectYAML, "SELF", w.self)}
	}
	w.reg = must(broker.NewRegistry(w.self, in.Clients, in.Agents, in.Issuers, map[string]broker.Provider{"code": w.code, "db": w.db}))(w)
	w.store = must(store.OpenEmbedded(filepath.Join(w.dir, "store.db"), w.clock.Now))(w)
	w.Cleanup(func() { _ = w.store.Close() })
	w.journal = must(audit.OpenJournal(audit.JournalConfig{Dir: filepath.Join(w.dir, "journal"), SegmentSize: 2 * audit.MaxFrame}))(w)
	w.Cleanup(func() { _ = w.journal.Close() })
	w.sealer = must(vault.NewSealer(ctx, w.secrets, w.clock.Now))(w)
	w.subjects = must(store.OpenSubjectKeys(filepath.Join(w.dir, "subjects.db"), w.sealer))(w)
	w.Cleanup(func() { _ = w.subjects.Close() })
	indexKey := must(vault.Key(ctx, w.secrets, vault.PathAuditIndex))(w)
	w.events = must(audit.NewLog(audit.LogConfig{Replica: "r1", IndexKey: []byte(indexKey.Reveal()), Now: w.clock.Now, NoteBurst: 1 << 20}, w.journal, w.subjects))(w)
	metrics := api.NewMetrics("test", func(ctx context.Context) broker.Status { return w.b.Status(ctx) })
	w.b = must(broker.New(broker.Config{
		Replica: "r1", TokenLifetime: 5 * time.Minute, CredentialLifetime: 15 * time.Minute, Skew: 30 * time.Second,
		MaxStaleness: 2 * time.Second, MaxClockOffset: time.Second, MintTimeout: 5 * time.Second, RevokeTimeout: 5 * time.Second,
		ClientSecretKey: clientKey,
	}, broker.Deps{
		Tokens: w.tokens, Keys: w.ring, Feed: w.store, Anchor: vault.NewAnchor(w.secrets), Ledger: w.store, Once: w.store, Sessions: w.store,
		Recorder: metrics.Counting(w.events), Sealer: w.sealer, Switches: w.switches, Judge: broker.NewJudge(w.reg, w.policy(append(linking, strings.ReplaceAll(filesYAML, `"`+self+`"`, `"`+w.self+`"`), apiYAML, strings.ReplaceAll(adminYAML, "SELF", w.self))...)), Log: log, Now: w.clock.Now,
	}))(w)
	if err := w.b.Start(ctx); err != nil {
		w.Fatal(err)
	}
	cfg := api.Config{
		Issuer: w.self, Limits: o.limits, Keys: w.ring, DetailsTypes: []string{"fake", broker.ToolCall}, IssuerHealth: w.tokens.Ready,
		Operations: w, Answers: w.store, Sealer: w.sealer, Metrics: metrics,
		Admin: &api.Door{Resource: w.self + "/admin/v1", Issuer: w.idp.url, Client: signInClient, SignIn: w.signIn}, Connect: connect, Log: log, Now: w.clock.Now,
	}
	if o.calls {
		cfg.Calls = http.HandlerFunc(w.upstreamCall)
	}
	if o.config != nil {
		o.config(&cfg)
	}
	var b api.Broker = w.b
	if o.wrap != nil {
		b = o.wrap(b)
	}
	w.server = must(api.New(cfg, b))(w)
}

// serve runs the broker and serves until the test ends, or stop is called.
func (w *world) serve(o options) {
	w.Helper()
	background, cancel := context.WithCancel(context.Background())
	brokerDone := make(chan struct{})
	go func() { defer close(brokerDone); w.b.Run(background) }()
	w.Cleanup(func() { cancel(); <-brokerDone })
	l := api.Listen{Address: "127.0.0.1:0", Ops: "127.0.0.1:0", Socket: filepath.Join(w.dir, "s")}
	if o.listen != nil {
		o.listen(&l)
	}
	if o.grace == 0 {
		o.grace = 5 * time.Second
	}
	ctx, stop := context.WithCancel(context.Background())
	ready, served := make(chan struct{}), make(chan error, 1)
	go func() {
		served <- w.server.Serve(ctx, l, o.grace, func(public, ops string) {
			w.public, w.ops, w.socket = public, ops, l.Socket
			close(ready)
		})
	}()
	select {
	case <-ready:
	case err := <-served:
		stop()
		w.Fatal(err)
	}
	w.http = &http.Client{Transport: &http.Transport{DisableCompression: true}, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	w.local = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", w.socket)
	}}}
	w.stop = sync.OnceValue(func() error {
		w.http.CloseIdleConnections()
		w.local.CloseIdleConnections()
		stop()
		return <-served
	})
	w.Cleanup(func() { _ = w.stop() })
}

// SigningKeys implements [api.Operations].
func (w *world) SigningKeys() (out []api.SigningKey) {
	for _, k := range w.ring.Keys() {
		out = append(out, api.SigningKey(k))
	}
	return out
}

// RotateKey implements [api.Operations].
func (w *world) RotateKey(ctx context.Context, operator string, atOnce bool) (api.SigningKey, error) {
	k, err := w.ring.Rotate(ctx, atOnce)
	e := &audit.Event{Kind: audit.KindKey, Outcome: audit.Done, Party: audit.Party{Operator: operator}, Change: &audit.Change{What: "signing key", After: k.ID}}
	return api.SigningKey(k), errors.Join(err, w.events.Record(ctx, e, audit.Personal{}))
}

// RotateSealingKey implements [api.Operations].
func (w *world) RotateSealingKey(ctx context.Context, operator string) (string, error) {
	id, err := w.sealer.(*vault.Sealer).Rotate(ctx)
	e := &audit.Event{Kind: audit.KindKey, Outcome: audit.Done, Party: audit.Party{Operator: operator}, Change: &audit.Change{What: "sealing key", After: id}}
	return id, errors.Join(err, w.events.Record(ctx, e, audit.Personal{}))
}

// RevokeKey implements [api.Operations].
func (w *world) RevokeKey(ctx context.Context, _, kid string) (api.RevokedKey, error) {
	k, err := w.ring.Revoke(ctx, kid)
	if err == nil {
		err = w.b.EndWithdrawn(ctx, "")
	}
	return api.RevokedKey{Revoked: kid, Signs: api.SigningKey(k), New: true, Within: 60}, err
}

// NewClientSecret implements [api.Operations].
func (w *world) NewClientSecret(context.Context, string) (s secret.String, hash string, err error) {
	s, hash = w.b.NewClientSecret()
	return s, hash, nil
}

// Mappings implements [api.Operations].
func (w *world) Mappings() []*scopes.Mapping { return w.mappings }

// PolicyProblem implements [api.Operations].
func (w *world) PolicyProblem() string { return w.problem }

var _ api.Operations = (*world)(nil)

// switches are kept in memory.
type switches struct {
	mu      sync.Mutex
	doc     broker.Switches
	version int
	down    error
}

// LoadSwitches implements [broker.SwitchStore].
func (s *switches) LoadSwitches(context.Context) (broker.Switches, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down == nil && s.version == 0 {
		return broker.Switches{}, 0, broker.ErrNotFound
	}
	return s.doc, s.version, s.down
}

// SaveSwitches implements [broker.SwitchStore].
func (s *switches) SaveSwitches(_ context.Context, doc broker.Switches, version int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version != s.version {
		return broker.ErrConflict
	}
	s.doc, s.version = doc, version+1
	return s.down
}

// signIn signs in whoever the code names, of these groups.
type signIn struct {
	w      *world
	at     string // where; empty: at the issuer itself
	groups []string
	err    error
}

// Begin implements [api.SignIn].
func (s *signIn) Begin(_ context.Context, state, nonce, _ string) (string, error) {
	return cmp.Or(s.at, s.w.idp.url) + "/authorize?state=" + state + "&nonce=" + nonce, s.err
}

// Finish implements [api.SignIn].
func (s *signIn) Finish(_ context.Context, _, code, _, _ string) (secret.String, error) {
	return secret.New(s.w.idToken(code, s.groups...)), s.err
}

// settle waits until the broker is current by a clock that was moved.
func (w *world) settle() {
	w.Helper()
	eventually(w, "the broker is current", func() bool { return w.b.Status(context.Background()).Current })
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not come to be: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// flush has everything written that the record was told of.
func (w *world) flush() {
	w.Helper()
	if err := w.events.Flush(); err != nil {
		w.Fatal(err)
	}
}

// journalled returns everything that the journal holds, as text.
func (w *world) journalled() string {
	w.Helper()
	w.flush()
	var b strings.Builder
	err := audit.ReadJournal(filepath.Join(w.dir, "journal"), 1, func(f audit.Frame, _ uint64) error {
		fmt.Fprintf(&b, "%s\n", f.Payload)
		return nil
	})
	if err != nil {
		w.Fatal(err)
	}
	return b.String()
}
