package vault_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/vault"
)

// fake is a Vault for what a real one does not do on demand: answers that are
// lost, or are none. Its state is what a real one's would be: leases end with
// their child, though not if the upstream does not let them.
type fake struct {
	now      time.Time
	children map[string]time.Time // by accessor
	leases   map[string]string    // accessor by lease
	asked    []string             // calls that change something, in order

	lease  string            // the beginning of leases; empty: nothing is leased
	life   time.Duration     // of leases
	made   map[string]string // fields
	late   time.Duration     // how much longer children live than is asked
	blank  bool              // whether it does not say when they end
	slow   time.Duration     // how long each call takes
	lost   error             // what Generate returns after its effect
	stuck  error             // what RevokeLease returns instead of its effect
	down   error             // what every call returns
	undead error             // what RevokeChild returns instead of its effect
	params map[string]any    // of the last call of Generate
	during func(what string) // what happens while a call is under way
}

func newFake() *fake {
	return &fake{
		now: time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC), children: map[string]time.Time{}, leases: map[string]string{},
		lease: "database/creds/reader/", life: time.Hour, made: map[string]string{"username": "v-1", "password": "hidden"},
	}
}

func (f *fake) call(what string) error {
	f.asked = append(f.asked, what)
	f.now = f.now.Add(f.slow)
	if f.during != nil {
		f.during(what)
	}
	return f.down
}

func (f *fake) CreateChild(ctx context.Context, policy string, life time.Duration, lease string) (secret.String, string, error) {
	if err := errors.Join(ctx.Err(), f.call("create "+policy)); err != nil {
		return secret.String{}, "", err
	}
	accessor := "accessor of " + lease
	f.children[accessor] = f.now.Add(life + f.late)
	return secret.New(accessor), accessor, ctx.Err() // too late for the effect
}

func (f *fake) Generate(ctx context.Context, token secret.String, path string, params map[string]any) (map[string]secret.String, string, time.Duration, error) {
	if err := errors.Join(ctx.Err(), f.call("generate "+path)); err != nil {
		return nil, "", 0, err
	}
	f.params = params
	made := map[string]secret.String{}
	for k, v := range f.made {
		made[k] = secret.New(v)
	}
	if f.lease == "" {
		return made, "", 0, f.lost
	}
	lease := f.lease + "x1"
	f.leases[lease] = token.Reveal()
	if err := errors.Join(f.lost, ctx.Err()); err != nil {
		return nil, "", 0, err
	}
	return made, lease, f.life, nil
}

func (f *fake) RevokeLease(_ context.Context, lease string) error {
	if err := errors.Join(f.call("revoke lease"), f.stuck); err != nil {
		return err
	}
	delete(f.leases, lease)
	return nil
}

func (f *fake) RevokeChild(ctx context.Context, accessor string) error {
	if err := errors.Join(ctx.Err(), f.call("revoke child"), f.undead); err != nil {
		return err
	}
	if _, ok := f.children[accessor]; !ok {
		return fmt.Errorf("no token: %w", broker.ErrNotFound)
	}
	delete(f.children, accessor)
	for l, a := range f.leases {
		if a == accessor && f.stuck == nil {
			delete(f.leases, l)
		}
	}
	return nil
}

func (f *fake) LookupChild(ctx context.Context, accessor string) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, broker.Fail(broker.Unavailable, err, "no answer")
	}
	if f.down != nil {
		return time.Time{}, f.down
	}
	ends, ok := f.children[accessor]
	if !ok {
		return ends, broker.ErrNotFound
	}
	if f.blank {
		return time.Time{}, nil
	}
	return ends, nil
}

func (f *fake) LookupLease(_ context.Context, lease string) (time.Time, error) {
	if f.down != nil {
		return time.Time{}, f.down
	}
	if _, ok := f.leases[lease]; !ok {
		return time.Time{}, broker.ErrNotFound
	}
	return f.now.Add(f.life), nil
}

// roles are those of the provider that stands on a fake.
func roles() map[string]vault.Role {
	return map[string]vault.Role{
		"reader": {Mount: "database", Path: "creds/reader", Policy: "stint-reader", Reads: true},
		"writer": {Mount: "database", Path: "creds/writer", Policy: "stint-writer"},
		"web": {
			Mount: "pki", Path: "issue/web", Policy: "stint-web", Method: "write", Params: map[string]string{"common_name": "web.test"},
			LifetimeParam: "ttl", Revoke: "none", Ends: "expiration",
		},
		"web-too": {
			Mount: "pki", Path: "issue/web", Policy: "stint-web", Method: "write", Params: map[string]string{"common_name": "too.test"},
			LifetimeParam: "ttl", Revoke: "none", Ends: "expiration",
		},
		"sts": {Mount: "aws/prod", Path: "sts/deploy", Policy: "stint-sts", Method: "write", Revoke: "none", LifetimeParam: "ttl"},
	}
}

// on opens a provider called main with a fake.
func on(t testing.TB, f *fake) broker.Provider {
	t.Helper()
	return open(t, roles(), deps{Engine: f, Now: func() time.Time { return f.now }})
}

// deps are what a provider stands on here.
type deps struct {
	Engine vault.Engine
	Now    func() time.Time
}

func (d deps) open(t testing.TB, decode func(any) error) (broker.Provider, error) {
	return vault.On(d.Engine)(t.Context(), "main", decode, upstream.Deps{Now: d.Now})
}

func open(t testing.TB, r map[string]vault.Role, d deps) broker.Provider {
	t.Helper()
	p, err := d.open(t, func(v any) error { v.(*vault.Config).Roles = r; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// minting is a mint of a test's, with what the broker would have kept of it.
type minting struct {
	broker.MintRequest
	noted []byte
	notes int
	err   error // what Note returns from the refuse-th on
	from  int
}

const lease = "abcdefghijklmnopqrstuvwx"

func ask(t testing.TB, p broker.Provider, mount, role string, expires time.Time) *minting {
	t.Helper()
	g, err := p.Describe().Schema.ParseValue(map[string]any{"mount": mount, "role": role})
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	m := &minting{from: 1}
	m.MintRequest = broker.MintRequest{Lease: lease, Grant: g, Rendered: rendered, Expires: expires, Note: func(handle []byte) error {
		if m.notes++; m.err != nil && m.notes >= m.from {
			return m.err
		}
		m.noted = handle
		return nil
	}}
	return m
}

func (m *minting) revoke(t testing.TB, p broker.Provider) broker.Outcome {
	t.Helper()
	o, err := m.tryRevoke(t, p)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (m *minting) tryRevoke(t testing.TB, p broker.Provider) (broker.Outcome, error) {
	t.Helper()
	return p.Revoke(t.Context(), broker.RevokeLease{Lease: m.Lease, Handle: m.noted, Expires: m.Expires})
}

// document is a credential as its holder reads it.
type document struct {
	Role, Mount, Path string
	Fields            map[string]string
	Revocable         bool
	ExpiresAt         time.Time `json:"expires_at"`
}

func read(t testing.TB, m *broker.Minted) (d document) {
	t.Helper()
	if err := json.Unmarshal([]byte(m.Document.Reveal()), &d); err != nil {
		t.Fatal(err)
	}
	return d
}
