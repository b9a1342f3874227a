package providertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/scopes/grant"
)

// fakeSession uses a fake's token.
type fakeSession struct {
	fake  *Fake
	token secret.String
}

func (s fakeSession) Close() {}

func (s fakeSession) Do(_ context.Context, act string) error {
	var repository, permission, level string
	if _, err := fmt.Sscan(act, &repository, &permission, &level); err != nil {
		return err
	}
	return s.fake.Use(s.token, repository, permission, level)
}

// harness is that of a fake, or of what wraps it.
func harness(t testing.TB, wrap func(broker.Provider) broker.Provider) Harness {
	t.Helper()
	f := NewFake("main", time.Now)
	parse := func(text string) grant.Grant {
		g, err := FakeSchema.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	repositories := []string{"web", "api", "docs"}
	levels := map[string][]string{"contents": {"none", "read", "write"}, "issues": {"none", "read", "write"}, "settings": {"none", "read", "write", "admin"}}
	acts := make(map[string]grant.Grant)
	for _, repo := range repositories {
		for p, ls := range levels {
			for _, l := range ls[1:] {
				acts[repo+" "+p+" "+l] = parse(fmt.Sprintf(`{"repositories":[%q],"permissions":{%q:%q}}`, repo, p, l))
			}
		}
	}
	over := NewFake("main", time.Now)
	return Harness{
		result: &Result{}, Pairs: 16, Upstream: "memory", Oracle: "acts",
		Overgrants: map[string]broker.Provider{"everything": Over(over), "an hour more": Outlives(over, time.Hour), "no grant": Garbage(over, Evidence)},
		Provider:   wrap(f), Subject: "https://idp.example#alice", Acts: acts, Rounds: 4,
		Inexpressible: []grant.Grant{FakeSchema.Everything()},
		Grant: func(r *rand.Rand) grant.Grant {
			for {
				some := map[string]any{}
				for _, p := range names(levels) {
					some[p] = levels[p][r.IntN(len(levels[p]))]
				}
				var repos []any
				for _, i := range r.Perm(3)[:1+r.IntN(3)] {
					repos = append(repos, repositories[i])
				}
				g, err := FakeSchema.ParseValue(map[string]any{"repositories": repos, "permissions": some})
				if err != nil {
					t.Error(err)
				}
				if !g.IsNothing() {
					return g
				}
			}
		},
		Open: func(_ context.Context, m *broker.Minted) (Session, error) {
			if f.Accepts(m.Token) {
				return fakeSession{f, m.Token}, nil
			}
			return nil, ErrRefused
		},
		Ends: func(_ context.Context, m *broker.Minted) (time.Time, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			for _, l := range f.leases {
				if l.token.Equal(m.Token) {
					return l.expires, nil
				}
			}
			return time.Time{}, errors.New("no such token")
		},
		Remains: func(context.Context) ([]string, error) { return f.Live(), nil },
		Within: func(_ context.Context, a, b grant.Grant) (bool, error) { // by acts, not by Leq of the two
			for _, need := range acts {
				inA, _ := grant.Leq(need, a)
				inB, _ := grant.Leq(need, b)
				if inA && !inB {
					return false, nil
				}
			}
			return true, nil
		},
	}
}

func TestFakeKeepsTheContract(t *testing.T) {
	Run(t, harness(t, func(p broker.Provider) broker.Provider { return p }))
}

// altered is a provider with some methods of its own.
type altered struct {
	broken
	describe func(broker.Description) broker.Description
	render   func(grant.Grant) ([]byte, error)
	parse    func([]byte) (grant.Grant, error)
	resolve  func(context.Context, broker.ResolveRequest) (*broker.Resolved, error)
}

func (a *altered) Describe() broker.Description {
	if a.describe == nil {
		return a.Provider.Describe()
	}
	return a.describe(a.Provider.Describe())
}

func (a *altered) Render(g grant.Grant) ([]byte, error) {
	if a.render == nil {
		return a.Provider.Render(g)
	}
	return a.render(g)
}

func (a *altered) Parse(b []byte) (grant.Grant, error) {
	if a.parse == nil {
		return a.Provider.Parse(b)
	}
	return a.parse(b)
}

func (a *altered) Resolve(ctx context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	if a.resolve == nil {
		return a.Provider.Resolve(ctx, r)
	}
	return a.resolve(ctx, r)
}

// widest mints another grant than it is asked for, and does not say so.
func widest(p broker.Provider, entries string) broker.Provider {
	return &broken{Provider: p, mint: func(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
		asked := r.Grant
		r.Rendered = []byte(entries)
		m, err := p.Mint(ctx, r)
		if err == nil {
			m.Granted = asked
		}
		return m, err
	}}
}

// TestSuiteNotices holds the suite itself to account: every way of breaking the
// contract has to fail it, by the clause that is about it.
func TestSuiteNotices(t *testing.T) {
	for name, c := range map[string]struct {
		breaks string // the clause that must not hold
		wrap   func(broker.Provider) broker.Provider
	}{
		"a grant that is more than asked": {"a credential does", Over},
		"a silently wider credential": {"a credential does", func(p broker.Provider) broker.Provider {
			return widest(p, `{"permissions":{"contents":"write","issues":"write","settings":"admin"},"repositories":["api","docs","web"]}`)
		}},
		"a silently narrower credential": {"a credential does", func(p broker.Provider) broker.Provider {
			return widest(p, `{"permissions":{"contents":"read"},"repositories":["x"]}`)
		}},
		"a credential that outlives":           {"a credential never", func(p broker.Provider) broker.Provider { return Outlives(p, time.Hour) }},
		"an expiry that is not the upstream's": {"a credential never", func(p broker.Provider) broker.Provider { return Outlives(p, -time.Minute) }},
		"no answer":                            {"a credential does", func(p broker.Provider) broker.Provider { return Garbage(p, Answer) }},
		"no grant in the answer":               {"a credential does", func(p broker.Provider) broker.Provider { return Garbage(p, Evidence) }},
		"no credential in the answer":          {"a credential does", func(p broker.Provider) broker.Provider { return Garbage(p, Credential) }},
		"a grant of another kind":              {"a credential does", func(p broker.Provider) broker.Provider { return Garbage(p, Kind) }},
		"no expiry in the answer":              {"a credential never", func(p broker.Provider) broker.Provider { return Garbage(p, Expiry) }},
		"a failure after the effect":           {"a credential does", DiesAfter},
		"a revocation that ends nothing": {"what was minted is ended", func(p broker.Provider) broker.Provider {
			return &broken{Provider: p, revoke: func(context.Context, broker.RevokeLease) (broker.Outcome, error) {
				return broker.Outcome{State: broker.Revoked}, nil
			}}
		}},
		"a revocation that fails on the unknown": {"revoking is idempotent", func(p broker.Provider) broker.Provider { return Stubborn(p, 1) }},
		"an end without a time": {"a credential does", func(p broker.Provider) broker.Provider {
			return &broken{Provider: p, revoke: func(context.Context, broker.RevokeLease) (broker.Outcome, error) {
				return broker.Outcome{State: broker.UnknownUntil}, nil
			}}
		}},
		"a deadline that is ignored": {"whoever gives up", func(p broker.Provider) broker.Provider {
			return &broken{Provider: p, mint: func(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
				return p.Mint(context.WithoutCancel(ctx), r)
			}}
		}},
		"a part that is not rendered": {"no part", func(p broker.Provider) broker.Provider {
			return &altered{broken: broken{Provider: p}, render: func(g grant.Grant) ([]byte, error) {
				b, err := p.Render(g)
				return []byte(strings.ReplaceAll(string(b), `"admin"`, `"write"`)), err
			}, parse: func(b []byte) (grant.Grant, error) {
				return p.Parse(b)
			}}
		}},
		"a part that is not read": {"no part", func(p broker.Provider) broker.Provider {
			return &altered{broken: broken{Provider: p}, parse: func(b []byte) (grant.Grant, error) {
				return p.Parse([]byte(strings.ReplaceAll(string(b), `"webx"`, `"web"`)))
			}}
		}},
		"another grant than meant": {"what is rendered", func(p broker.Provider) broker.Provider {
			return &altered{broken: broken{Provider: p}, render: func(g grant.Grant) ([]byte, error) {
				b, err := p.Render(g)
				return []byte(strings.ReplaceAll(string(b), `"read"`, `"write"`)), err
			}}
		}},
		"everything is rendered": {"nothing, and what", func(p broker.Provider) broker.Provider {
			return &altered{broken: broken{Provider: p}, render: func(g grant.Grant) ([]byte, error) { return []byte("{}"), nil }}
		}},
		"details are ignored": {"resolving", func(p broker.Provider) broker.Provider {
			return &altered{broken: broken{Provider: p}, resolve: func(ctx context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
				r.Details = nil
				return p.Resolve(ctx, r)
			}}
		}},
		"a sweep the wrong way round": {"sweeping", func(p broker.Provider) broker.Provider {
			return &altered{broken: broken{Provider: p}, describe: func(d broker.Description) broker.Description {
				sweep := d.Sweep
				d.Sweep = func(ctx context.Context, keep func(string) bool) ([]string, error) {
					return sweep(ctx, func(id string) bool { return !keep(id) })
				}
				return d
			}}
		}},
		"a sweep that does nothing": {"sweeping", func(p broker.Provider) broker.Provider {
			return &altered{broken: broken{Provider: p}, describe: func(d broker.Description) broker.Description {
				d.Sweep = func(context.Context, func(string) bool) ([]string, error) { return nil, nil }
				return d
			}}
		}},
		"an upstream that gives too much, unnoticed": {"an upstream that gives", func(p broker.Provider) broker.Provider { return quiet{p} }},
		"an upstream that is down": {"it is ready", func(p broker.Provider) broker.Provider {
			p.(*Fake).Break(errors.New("down"))
			return p
		}},
		"a description without a class": {"it says what it is", func(p broker.Provider) broker.Provider {
			return &altered{broken: broken{Provider: p}, describe: func(d broker.Description) broker.Description { d.Class = ""; return d }}
		}},
		"a credential under another lease": {"what was minted is ended", func(p broker.Provider) broker.Provider { return misfiled{p} }},
	} {
		t.Run(name, func(t *testing.T) {
			h := harness(t, c.wrap)
			if p, ok := h.Provider.(quiet); ok {
				h.Overgrants = map[string]broker.Provider{"unsaid": p}
			}
			i := slices.IndexFunc(properties, func(p property) bool { return strings.HasPrefix(p.name, c.breaks) })
			if i < 0 {
				t.Fatalf("there is no clause %q", c.breaks)
			}
			err := properties[i].hold(t.Context(), &h)
			if err == nil {
				t.Fatalf("%q holds", properties[i].name)
			}
			t.Log(err)
		})
	}
}

// quiet gives what it gives, and says that it gave what was asked.
type quiet struct{ broker.Provider }

// misfiled mints under another lease than it was told.
type misfiled struct{ broker.Provider }

func (m misfiled) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	r.Lease = newLease()
	return m.Provider.Mint(ctx, r)
}

func TestBrokenUpstreams(t *testing.T) {
	now := time.Now
	g, err := FakeSchema.Parse([]byte(`{"repositories":["web"],"permissions":{"issues":"read"}}`))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(p broker.Provider, ctx context.Context) (*broker.Minted, error) {
		rendered, err := p.Render(g)
		if err != nil {
			t.Fatal(err)
		}
		return p.Mint(ctx, broker.MintRequest{Lease: newLease(), Grant: g, Rendered: rendered, Expires: now().Add(time.Minute)})
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	open := make(chan struct{})
	close(open)

	t.Run("a slow one that runs out of time has done nothing", func(t *testing.T) {
		f := NewFake("main", now)
		if m, err := ask(Slow(f, make(chan struct{})), gone); err == nil || m != nil || len(f.Live()) != 0 {
			t.Error(m, err, f.Live())
		}
	})
	t.Run("a slow one that is let go does as it is told", func(t *testing.T) {
		f := NewFake("main", now)
		if _, err := ask(Slow(f, open), t.Context()); err != nil || len(f.Live()) != 1 {
			t.Error(err, f.Live())
		}
	})
	t.Run("a late one has done it before it answers", func(t *testing.T) {
		f, until, done := NewFake("main", now), make(chan struct{}), make(chan error)
		go func() { _, err := ask(Late(f, until), gone); done <- err }()
		for f.Mints() == 0 {
			time.Sleep(time.Millisecond)
		}
		select {
		case <-done:
			t.Fatal("it answered too early")
		default:
		}
		close(until)
		if err := <-done; err != nil || len(f.Live()) != 1 {
			t.Error(err, f.Live())
		}
	})
	t.Run("a late mint happens after the deadline", func(t *testing.T) {
		f := NewFake("main", now)
		if _, err := ask(LateMint(f, open), gone); err != nil || f.Mints() != 1 {
			t.Error(err, f.Mints())
		}
	})
	t.Run("one that dies has left something", func(t *testing.T) {
		f := NewFake("main", now)
		if m, err := ask(DiesAfter(f), t.Context()); err == nil || m != nil || len(f.Live()) != 1 {
			t.Error(m, err, f.Live())
		}
	})
	t.Run("revocations fail, linger, or cannot be", func(t *testing.T) {
		f := NewFake("main", now)
		if _, err := ask(f, t.Context()); err != nil {
			t.Fatal(err)
		}
		r := broker.RevokeLease{Lease: f.Live()[0], Expires: now().Add(time.Minute)}
		if o, err := Irrevocable(f).Revoke(t.Context(), r); err != nil || o.State != broker.NotRevocableUntil || !o.Until.Equal(r.Expires) {
			t.Error(o, err)
		}
		p := Stubborn(Lingering(f, 1), 2)
		for i, want := range []broker.OutcomeState{"", "", broker.DisabledPendingKill, broker.Revoked, broker.AlreadyDead} {
			if o, err := p.Revoke(t.Context(), r); o.State != want || (err != nil) != (want == "") {
				t.Error(i, o, err)
			}
		}
	})
	t.Run("the fake's clock ends its credentials", func(t *testing.T) {
		at := time.Unix(1_000_000, 0)
		f := NewFake("main", func() time.Time { return at })
		rendered, _ := f.Render(g)
		m, err := f.Mint(t.Context(), broker.MintRequest{Lease: newLease(), Grant: g, Rendered: rendered, Expires: at.Add(time.Minute)})
		if err != nil || f.Use(m.Token, "web", "issues", "read") != nil {
			t.Fatal(err)
		}
		at = at.Add(time.Minute)
		if err := f.Use(m.Token, "web", "issues", "read"); !errors.Is(err, ErrRefused) {
			t.Error(err)
		}
	})
}
