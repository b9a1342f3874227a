package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/gateway"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/login"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/internal/vault"
)

// This file puts the parts together. It is the one place that knows them all.

// keyFile keeps the document of signing keys among the secrets.
type keyFile struct{ secrets vault.Store }

const signingPath = "keys/signing"

// subjectsFile keeps the keys of subjects, in the data folder.
const subjectsFile = "subjects.db"

// LoadKeys implements [token.KeyStore].
func (k keyFile) LoadKeys(ctx context.Context) (secret.String, int, error) {
	f, version, err := k.secrets.Read(ctx, signingPath)
	return f["document"], version, err
}

// SaveKeys implements [token.KeyStore].
func (k keyFile) SaveKeys(ctx context.Context, doc secret.String, version int) error {
	_, err := k.secrets.Write(ctx, signingPath, vault.Fields{"document": doc}, version)
	return err
}

// switchFile keeps what is turned off among the secrets, where no loss of the store
// reaches it.
type switchFile struct{ secrets vault.Store }

const switchesPath = "keys/switches"

// LoadSwitches implements [broker.SwitchStore].
func (f switchFile) LoadSwitches(ctx context.Context) (s broker.Switches, version int, err error) {
	fields, version, err := f.secrets.Read(ctx, switchesPath)
	if err == nil {
		err = strictjson.DecodeKnown([]byte(fields["document"].Reveal()), &s)
	}
	return s, version, err
}

// SaveSwitches implements [broker.SwitchStore].
func (f switchFile) SaveSwitches(ctx context.Context, s broker.Switches, version int) error {
	doc, err := json.Marshal(s)
	if err == nil {
		_, err = f.secrets.Write(ctx, switchesPath, vault.Fields{"document": secret.New(string(doc))}, version)
	}
	return err
}

// stateStore is what the broker keeps in Redis or in a file.
type stateStore interface {
	broker.Feed
	broker.Ledger
	broker.Once
	broker.Sessions
	broker.Answers
	// CheckFormat fails if a later version has written what is there; nothing is to be
	// written beside it.
	CheckFormat(ctx context.Context) error
	Ready(ctx context.Context) error
	Close() error
}

// openStore opens the store that the configuration describes.
func openStore(ctx context.Context, cfg *config.Config, resolve func(context.Context, string) (secret.String, error)) (stateStore, error) {
	if cfg.Store.Kind == store.KindEmbedded {
		return store.OpenEmbedded(cfg.Path(cfg.Store.File), time.Now)
	}
	r := *cfg.Store.Redis
	var s store.RedisSecrets
	var err error
	get := func(ref string) secret.String {
		var v secret.String
		if ref != "" && err == nil {
			v, err = resolve(ctx, ref)
		}
		return v
	}
	s.Password = get(r.Password)
	if r.TLS != nil {
		s.CA, s.Certificate, s.Key = get(r.TLS.CA).Reveal(), get(r.TLS.Certificate).Reveal(), get(r.TLS.Key)
	}
	if err != nil {
		return nil, fmt.Errorf("store: redis: %w", err)
	}
	return store.OpenRedis(r, s, time.Now)
}

// server is everything that `stint serve` runs.
type server struct {
	*plan
	log     *slog.Logger
	store   stateStore
	tokens  *token.Service
	journal *audit.Journal
	subject *store.SubjectKeys
	events  *audit.Log
	sealer  *vault.Sealer
	broker  *broker.Broker
	api     *api.Server
	closers []func() error

	newJournal, newSubjects bool // they were not there

	mappings string                 // the state of their folder before they were read
	broken   atomic.Pointer[string] // why the newest mappings are not in force
}

// Close closes what was opened, last first.
func (s *server) Close() error {
	var err error
	for _, c := range slices.Backward(s.closers) {
		err = errors.Join(err, c())
	}
	return err
}

// build opens everything. What it opened before an error is closed.
func build(ctx context.Context, cfg *config.Config, log *slog.Logger, tel *telemetry) (_ *server, err error) {
	s := &server{log: log, mappings: folderState(cfg.Mappings)}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	// What upstreams are asked by outlives the request to stop: requests in flight are
	// finished first.
	open, end := context.WithCancel(context.WithoutCancel(ctx))
	s.closers = append(s.closers, func() error { end(); return nil })
	if s.plan, err = openPlan(open, cfg, vault.Deps{Log: log, Now: time.Now}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.secrets.Close)
	if err := s.openTokens(ctx); err != nil {
		return nil, err
	}
	if s.store, err = openStore(ctx, cfg, vault.Resolver{Store: s.secrets}.Resolve); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.store.Close)
	return s, s.openBroker(ctx, tel)
}

// inFolder makes the paths of the secrets' configuration those that it means.
func inFolder(cfg *config.Config) vault.Config {
	out := cfg.Secrets
	if out.File != nil {
		f := *out.File
		f.Path, f.Identity = cfg.Path(f.Path), cfg.Path(f.Identity)
		out.File = &f
	}
	if out.Vault != nil {
		v := *out.Vault
		v.CA, v.Auth.TokenFile = cfg.Path(v.CA), cfg.Path(v.Auth.TokenFile)
		out.Vault = &v
	}
	return out
}

// ringConfig says how signing keys live: each is published until the last token
// that it signed has run out, wherever they are looked at from.
func ringConfig(cfg *config.Config) token.RingConfig {
	longest := max(cfg.Lifetimes.Token.Duration, cfg.Lifetimes.Credential.Duration)
	if cfg.Admin != nil {
		longest = max(longest, cfg.Admin.SignIn.Lifetime.Duration)
	}
	if cfg.ConnectSignIn() != nil {
		longest = max(longest, config.ConnectLifetime)
	}
	longest += cfg.Revocation.ClockSkew.Duration
	return token.RingConfig{Algorithm: cfg.Keys.Algorithm, Overlap: cfg.Keys.Overlap.Duration, Retain: longest, Now: time.Now}
}

func (s *server) openTokens(ctx context.Context) (err error) {
	s.ring, err = token.OpenRing(ctx, ringConfig(s.cfg), keyFile{s.secrets})
	if err != nil {
		return err
	}
	cfg, err := s.tokenConfig()
	if err != nil {
		return err
	}
	s.askClients(cfg.Certificates)
	client, err := s.fetcher()
	if err != nil {
		return err
	}
	s.tokens, err = token.New(cfg, s.ring, client)
	return err
}

// lastFeed remembers the newest entry of the revocation feed in the journal, so
// that each segment of it begins with one.
type lastFeed struct {
	broker.Recorder
	payload atomic.Pointer[[]byte]
}

// Keep implements [broker.Recorder].
func (l *lastFeed) Keep(frames ...audit.Frame) error {
	l.see(frames...)
	return l.Recorder.Keep(frames...)
}

func (l *lastFeed) see(frames ...audit.Frame) {
	for _, f := range slices.Backward(frames) {
		if f.Type == audit.FrameFeed {
			l.payload.Store(&f.Payload)
			return
		}
	}
}

func (l *lastFeed) frame() []audit.Frame {
	if p := l.payload.Load(); p != nil {
		return []audit.Frame{{Type: audit.FrameFeed, Payload: *p}}
	}
	return nil
}

// holds reports whether a folder has a file whose name ends in a certain way.
func holds(dir, end string) bool {
	files, _ := os.ReadDir(dir)
	return slices.ContainsFunc(files, func(f os.DirEntry) bool { return strings.HasSuffix(f.Name(), end) })
}

func (s *server) openBroker(ctx context.Context, tel *telemetry) error {
	feed := &lastFeed{}
	var err error
	s.newJournal = !holds(s.cfg.Journal(), ".journal")
	s.newSubjects = !holds(s.cfg.Data, subjectsFile)
	s.journal, err = audit.OpenJournal(audit.JournalConfig{
		Dir: s.cfg.Journal(), Preamble: feed.frame,
		Last: func(f audit.Frame) { feed.see(f) },
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, s.journal.Close)
	if s.sealer, err = vault.NewSealer(ctx, s.secrets, time.Now); err != nil {
		return err
	}
	if s.subject, err = store.OpenSubjectKeys(filepath.Join(s.cfg.Data, subjectsFile), s.sealer); err != nil {
		return err
	}
	s.closers = append(s.closers, s.subject.Close)
	indexKey, err := vault.Key(ctx, s.secrets, vault.PathAuditIndex)
	if err != nil {
		return err
	}
	clientKey, err := vault.Key(ctx, s.secrets, vault.PathClientSecrets)
	if err != nil {
		return err
	}
	s.events, err = audit.NewLog(audit.LogConfig{Replica: s.cfg.Replica, IndexKey: []byte(indexKey.Reveal()), Now: time.Now}, s.journal, s.subject)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, s.events.Flush)
	metrics := api.NewMetrics(version(), func(ctx context.Context) broker.Status { return s.broker.Status(ctx) })
	feed.Recorder = metrics.Counting(s.events)
	known, err := knownHead(feed)
	if err != nil {
		return err
	}
	s.broker, err = broker.New(broker.Config{
		Replica: s.cfg.Replica, TokenLifetime: s.cfg.Lifetimes.Token.Duration, CredentialLifetime: s.cfg.Lifetimes.Credential.Duration,
		Skew: s.cfg.Revocation.ClockSkew.Duration, MaxStaleness: s.cfg.Revocation.MaxStaleness.Duration,
		MaxClockOffset: s.cfg.Revocation.MaxClockOffset.Duration, MintTimeout: 10 * time.Second, RevokeTimeout: 10 * time.Second,
		ClientSecretKey: []byte(clientKey.Reveal()),
	}, broker.Deps{
		Tokens: s.tokens, Keys: s.ring, Feed: s.store, Anchor: vault.NewAnchor(s.secrets), Ledger: s.store, Once: s.store, Sessions: s.store,
		Recorder: feed, Sealer: s.sealer, Switches: switchFile{s.secrets}, Judge: broker.NewJudge(s.registry, s.policy), Log: s.log, Now: time.Now,
		History: s.history, Known: known, Span: tel.span,
	})
	if err != nil {
		return err
	}
	return s.openAPI(ctx, metrics, tel)
}

// openAPI puts the endpoints before the broker.
func (s *server) openAPI(ctx context.Context, metrics *api.Metrics, tel *telemetry) error {
	admin, err := s.admin(ctx)
	if err != nil {
		return err
	}
	calls, err := s.openGateway()
	if err != nil {
		return err
	}
	connect, err := s.people(ctx)
	if err != nil {
		return err
	}
	s.api, err = api.New(api.Config{
		Issuer: s.cfg.Issuer, Limits: s.cfg.Limits, Keys: s.ring, DetailsTypes: s.detailsTypes(),
		AuthMethods: s.registry.AuthMethods(), BoundTokens: s.registry.BindsTokens(), IssuerHealth: s.tokens.Ready,
		Metrics: metrics, Log: s.log, Now: time.Now, Span: tel.request,
		Calls: calls, Operations: s, Admin: admin, Connect: connect, Answers: s.store, Sealer: s.sealer,
	}, s.broker)
	return err
}

// openGateway returns what makes requests with credentials that stay here; nil if none do.
func (s *server) openGateway() (http.Handler, error) {
	for _, p := range s.registry.Providers {
		if p.Describe().Inject == nil {
			continue
		}
		return gateway.New(gateway.Config{
			Issuer: s.cfg.Issuer, HTTP: upstreamClient, Trace: api.TraceID, Log: s.log,
			Allow: func(client string) (time.Duration, bool) { return s.api.AllowCall(client) },
		}, s.broker)
	}
	return nil, nil
}

// admin is how administrators get in over the network; nil if they do not.
func (s *server) admin(ctx context.Context) (*api.Door, error) {
	if s.cfg.Admin == nil {
		return nil, nil
	}
	return s.door(ctx, "admin", &s.cfg.Admin.SignIn, api.Door{Resource: s.cfg.AdminResource(), Client: s.registry.Clients[config.AdminClient]}, "/login/callback")
}

// people is how people sign in to link accounts; nil if there are none to link.
func (s *server) people(ctx context.Context) (*api.Door, error) {
	if len(s.cfg.Links()) == 0 {
		return nil, nil
	}
	return s.door(ctx, "connect", s.cfg.ConnectSignIn(), api.Door{
		Resource: s.cfg.ConnectResource(), Client: s.registry.Clients[s.cfg.ConnectClientID()],
	}, broker.ConnectPath+"/callback")
}

// door fills in where people sign in, and as which client of ours.
func (s *server) door(ctx context.Context, section string, in *config.SignIn, out api.Door, back string) (*api.Door, error) {
	out.Issuer = in.Issuer
	cfg := login.Config{
		Issuer: in.Issuer, ClientID: in.ClientID, Redirect: s.cfg.Issuer + back, Scopes: in.Scopes,
		MaxAge: s.registry.Issuers[in.Issuer].MaxSessionAge.Duration, Now: time.Now,
	}
	var err error
	if in.ClientSecret != "" {
		if cfg.Secret, err = (vault.Resolver{Store: s.secrets}).Resolve(ctx, in.ClientSecret); err != nil {
			return nil, fmt.Errorf("%s: sign_in: client_secret: %w", section, err)
		}
	}
	if cfg.Client, err = s.fetcher(); err != nil {
		return nil, err
	}
	out.SignIn, err = login.New(cfg)
	return &out, err
}

// knownHead is the end of the feed as the journal has it.
func knownHead(l *lastFeed) (broker.Head, error) {
	p := l.payload.Load()
	if p == nil {
		return broker.Head{}, nil
	}
	e, err := broker.DecodeEntry(*p)
	if err != nil {
		return broker.Head{}, fmt.Errorf("journal: %w", err)
	}
	return e.Head(), nil
}

// history returns the entries of the feed that the journal holds.
func (s *server) history(after uint64) (out []broker.Entry, err error) {
	err = audit.ReadJournal(s.cfg.Journal(), 1, func(f audit.Frame, _ uint64) error {
		if f.Type != audit.FrameFeed {
			return nil
		}
		e, err := broker.DecodeEntry(f.Payload)
		if err == nil && e.Pos.Seq > after {
			out = append(out, e)
		}
		return err
	})
	return out, err
}
