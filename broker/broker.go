// Package broker is the heart of Stint: it verifies who asks, decides what they
// may have, mints it, remembers it, and takes it back.
//
// It knows nothing of HTTP, Redis, Vault or any upstream. What it needs it
// declares, small and apart: [Tokens], [Keys], [Ledger], [Feed], [Anchor], [Once],
// [Sessions], [Recorder], [Sealer] and [Provider]. Policy is in scopes, and is
// pure; this package brings it the facts.
//
// Granting fails closed: a replica that is not current refuses, and nothing
// leaves before its record is durable. Taking away waits for nothing but one
// durable write.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/scopes"
)

// Config is what a broker goes by.
type Config struct {
	// Replica names this process in the feed and the record.
	Replica string
	// TokenLifetime and CredentialLifetime are the longest that we give anything.
	TokenLifetime, CredentialLifetime time.Duration
	// Skew is how far other clocks may be off when we look at their times.
	Skew time.Duration
	// MaxStaleness is how old the last confirmed heartbeat may be for this replica
	// to grant anything, and MaxClockOffset how far its clock may be from the
	// store's.
	MaxStaleness, MaxClockOffset time.Duration
	// MintTimeout bounds a provider's Mint, and RevokeTimeout its Revoke.
	MintTimeout, RevokeTimeout time.Duration
	// ClientSecretKey keys the hashes of client secrets: 32 bytes.
	ClientSecretKey []byte
}

// Deps are the broker's collaborators.
type Deps struct {
	Tokens   Tokens
	Keys     Keys
	Feed     Feed
	Anchor   Anchor
	Ledger   Ledger
	Once     Once
	Sessions Sessions
	Recorder Recorder
	Sealer   Sealer
	// Switches may be nil: then nobody can be turned off.
	Switches SwitchStore
	Judge    *Judge
	Log      *slog.Logger
	Now      func() time.Time
	// History returns the entries of the feed that this replica's journal holds
	// behind a sequence number, oldest first: what a store that lost them is given
	// back. Nil if there is no journal.
	History func(after uint64) ([]Entry, error)
	// Known is the newest head in this replica's journal; zero if none.
	Known Head
	// Span starts a span of a trace; the function that it returns ends it. Nil: no
	// tracing.
	Span func(ctx context.Context, name string) (context.Context, func(error))
}

// Broker decides, mints, remembers and takes back.
type Broker struct {
	cfg      Config
	tokens   Tokens
	keys     Keys
	feed     Feed
	anchor   Anchor
	ledger   Ledger
	once     Once
	sessions Sessions
	recorder Recorder
	sealer   Sealer
	switches SwitchStore
	judge    *Judge
	reg      *Registry
	log      *slog.Logger
	now      func() time.Time
	history  func(uint64) ([]Entry, error)
	known    Head
	span     func(context.Context, string) (context.Context, func(error))

	index    *Index
	currency currency
	repair   sync.Mutex // held by whoever mends the chain

	marking  markQueue
	wake     chan struct{} // there is something to mark
	reap     chan struct{} // there is something to end
	unkeyed  chan struct{} // a signing key was revoked
	noted    notedSessions
	anchored atomic.Pointer[Head] // the newest head that the anchor has
	joined   int64                // when this replica joined, in Unix seconds
}

// New checks configuration and collaborators and returns a broker. It grants
// nothing before [Broker.Start].
func New(cfg Config, d Deps) (*Broker, error) {
	switch {
	case cfg.Replica == "" || len(cfg.ClientSecretKey) != 32:
		return nil, errors.New("broker: a replica's name and a 32-byte key for client secrets are needed")
	case cfg.TokenLifetime <= 0 || cfg.CredentialLifetime <= 0 || cfg.Skew < 0 || cfg.MaxStaleness <= 0 ||
		cfg.MaxClockOffset <= 0 || cfg.MintTimeout <= 0 || cfg.RevokeTimeout <= 0:
		return nil, errors.New("broker: lifetimes, bounds and timeouts must be positive")
	case d.Tokens == nil || d.Keys == nil || d.Feed == nil || d.Anchor == nil || d.Ledger == nil || d.Once == nil || d.Sessions == nil ||
		d.Recorder == nil || d.Sealer == nil || d.Judge == nil || d.Log == nil || d.Now == nil:
		return nil, errors.New("broker: a collaborator is missing")
	}
	if d.Span == nil {
		d.Span = func(ctx context.Context, _ string) (context.Context, func(error)) { return ctx, func(error) {} }
	}
	if d.History == nil {
		d.History = func(uint64) ([]Entry, error) { return nil, nil }
	}
	b := &Broker{
		cfg: cfg, tokens: d.Tokens, keys: d.Keys, feed: d.Feed, anchor: d.Anchor, ledger: d.Ledger, once: d.Once,
		sessions: d.Sessions, recorder: d.Recorder, sealer: d.Sealer, switches: d.Switches, judge: d.Judge, reg: d.Judge.Registry,
		log: d.Log, now: d.Now, history: d.History, known: d.Known, span: d.Span,
		index: NewIndex(cfg.Skew), wake: make(chan struct{}, 1), reap: make(chan struct{}, 1), unkeyed: make(chan struct{}, 1),
	}
	b.noted.init()
	return b, nil
}

// Judge returns what decides.
func (b *Broker) Judge() *Judge { return b.judge }

// NewClientSecret makes a secret for a client, and the hash for its entry.
func (b *Broker) NewClientSecret() (s secret.String, hash string) {
	return NewClientSecret(b.cfg.ClientSecretKey)
}

// SetPolicy puts a policy in force, and records that it did.
func (b *Broker) SetPolicy(ctx context.Context, p *scopes.Policy) error {
	before := b.judge.Policy().Version()
	e := &audit.Event{Kind: audit.KindConfig, Outcome: audit.Done, Change: &audit.Change{What: "mappings", Before: before, After: p.Version()}}
	if err := b.recorder.Record(ctx, e, audit.Personal{}); err != nil {
		return fmt.Errorf("record change of policy: %w", err)
	}
	b.judge.SetPolicy(p)
	return nil
}

// Status is how the broker is.
type Status struct {
	Replica string
	// Current says that it may grant; Behind is the age of the last confirmation,
	// Why what keeps it from being current.
	Current bool
	Behind  time.Duration
	Why     string
	Head    Position
	Records int
	// OpenLeases is -1 if the ledger could not be asked.
	OpenLeases int
	// Record is what stopped the audit record; empty if nothing did.
	Record   string
	Policy   string
	Policies map[string]string
	// Providers says of each upstream what keeps it from being used; empty: nothing.
	Providers map[string]string
}

// Status asks around, each upstream within the context's time.
func (b *Broker) Status(ctx context.Context) Status {
	now := b.now()
	s := Status{Replica: b.cfg.Replica, Head: b.index.Head().Pos, Records: b.index.Len(), OpenLeases: -1, Providers: map[string]string{}}
	s.Behind, s.Why = b.currency.state(now)
	s.Current = b.current(now) == nil
	if n, err := b.ledger.Open(ctx); err == nil {
		s.OpenLeases = n
	}
	if err := b.recorder.Failed(); err != nil {
		s.Record = err.Error()
	}
	p := b.judge.Policy()
	s.Policy, s.Policies = p.Version(), p.Versions()
	for name, provider := range b.reg.Providers {
		s.Providers[name] = ""
		if ready := provider.Describe().Ready; ready != nil {
			if err := ready(ctx); err != nil {
				s.Providers[name] = err.Error()
			}
		}
	}
	return s
}
