package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
)

// vault is a store of secrets by compare-and-set that fails as it is told: before it has
// done anything, or after.
type vault struct {
	mu    sync.Mutex
	docs  map[string]map[string]secret.String
	at    map[string]int
	fault func(op string) (before, after error)
}

func newVault() *vault {
	return &vault{docs: map[string]map[string]secret.String{}, at: map[string]int{}, fault: func(string) (error, error) { return nil, nil }}
}

func (v *vault) Read(_ context.Context, path string) (map[string]secret.String, int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if before, _ := v.fault("read"); before != nil {
		return nil, 0, before
	}
	if v.at[path] == 0 {
		return nil, 0, broker.ErrNotFound
	}
	return v.docs[path], v.at[path], nil
}

func (v *vault) Write(_ context.Context, path string, f map[string]secret.String, version int) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	before, after := v.fault("write")
	if before != nil {
		return 0, before
	}
	if v.at[path] != version {
		return 0, broker.ErrConflict
	}
	v.docs[path] = f
	v.at[path]++
	return v.at[path], after
}

// binding seals by remembering what to.
type binding struct{}

func (binding) Seal(plain []byte, context string) ([]byte, error) {
	return []byte(context + "\x00" + string(plain)), nil
}

func (binding) Open(sealed []byte, context string) ([]byte, error) {
	plain, ok := strings.CutPrefix(string(sealed), context+"\x00")
	if !ok {
		return nil, errors.New("sealed for something else")
	}
	return []byte(plain), nil
}

// thief is an upstream that replaces a refresh token with each use, and takes the second
// use of one for theft.
type thief struct {
	mu     sync.Mutex
	now    string
	used   map[string]bool
	n      int
	reuses int
	dead   bool
}

func newThief() *thief { return &thief{now: "r0", used: map[string]bool{}} }

func (u *thief) renew(old *upstream.Parent) (*upstream.Parent, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	text := old.Refresh.Reveal()
	if u.used[text] {
		u.reuses++
		u.dead = true
	}
	if u.dead || text != u.now {
		return nil, upstream.ErrDead
	}
	u.used[text] = true
	u.n++
	u.now = fmt.Sprint("r", u.n)
	next := *old
	next.Refresh, next.Access = secret.New(u.now), secret.New(fmt.Sprint("a", u.n))
	return &next, nil
}

var ofAlice = upstream.ParentKey{Provider: "main", Subject: "https://idp.example#alice"}

func keeper(v *vault, now func() time.Time) *upstream.Parents {
	return upstream.NewParents(upstream.ParentConfig{
		Store: v, Now: now, Sealer: func(context.Context) (broker.Sealer, error) { return binding{}, nil },
		Index: func(_ context.Context, s string) (string, error) { return fmt.Sprintf("%x", s), nil },
	})
}

// Many replicas want a token at the same time, again and again: no refresh token is used
// twice, and everybody gets one.
func TestOneReplicaRenewsAtATime(t *testing.T) {
	v, u := newVault(), newThief()
	var mu sync.Mutex
	now := time.Unix(1_000_000, 0)
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	if _, err := keeper(v, clock).Put(t.Context(), ofAlice, &upstream.Parent{Refresh: secret.New("r0")}); err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		var wg sync.WaitGroup
		for range 8 {
			p := keeper(v, clock)
			wg.Go(func() {
				got, err := p.Fresh(t.Context(), ofAlice, clock().Add(time.Minute), func(_ context.Context, old *upstream.Parent) (*upstream.Parent, error) {
					next, err := u.renew(old)
					if err == nil {
						next.AccessExpires = clock().Add(time.Hour)
					}
					return next, err
				})
				if err != nil || got.Access.Empty() {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		mu.Lock()
		now = now.Add(2 * time.Hour)
		mu.Unlock()
	}
	if u.reuses != 0 || u.n != 5 {
		t.Errorf("renewed %d times, and %d times with an old token", u.n, u.reuses)
	}
}

// Whatever goes wrong with the store while it is renewed, no token is used twice unless
// what replaced it was lost with its only holder.
func TestFaultsOfTheStore(t *testing.T) {
	down := broker.Fail(broker.Unavailable, nil, "down")
	for seed := range uint64(24) {
		r := rand.New(rand.NewPCG(seed, 1))
		v, u := newVault(), newThief()
		now := time.Unix(1_000_000, 0)
		clock := func() time.Time { return now }
		p := keeper(v, clock)
		if _, err := p.Put(t.Context(), ofAlice, &upstream.Parent{Refresh: secret.New("r0")}); err != nil {
			t.Fatal(err)
		}
		faults := 3 // in a row at most: fewer than it is tried
		v.fault = func(op string) (error, error) {
			if faults == 0 {
				faults = 3
				return nil, nil
			}
			switch r.IntN(4) {
			case 0:
				faults--
				return down, nil
			case 1:
				if op == "write" {
					faults--
					return nil, down
				}
			}
			return nil, nil
		}
		for range 12 {
			_, err := p.Fresh(t.Context(), ofAlice, now.Add(time.Minute), func(_ context.Context, old *upstream.Parent) (*upstream.Parent, error) {
				next, err := u.renew(old)
				if err == nil {
					next.AccessExpires = now.Add(time.Hour)
				}
				return next, err
			})
			if errors.Is(err, upstream.ErrDead) {
				t.Fatalf("seed %d: the link is dead: %v", seed, err)
			}
			now = now.Add(2 * time.Hour) // also past a lock that was left
		}
		if u.reuses != 0 {
			t.Fatalf("seed %d: %d tokens were used twice", seed, u.reuses)
		}
	}
}

func TestARenewalThatIsNotHeardOf(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	v := newVault()
	p := keeper(v, func() time.Time { return now })
	if _, err := p.Put(t.Context(), ofAlice, &upstream.Parent{Refresh: secret.New("r0")}); err != nil {
		t.Fatal(err)
	}
	asked := 0
	lost := func(context.Context, *upstream.Parent) (*upstream.Parent, error) {
		asked++
		return nil, broker.Fail(broker.Unavailable, upstream.ErrUncertain, "no answer")
	}
	if _, err := p.Fresh(t.Context(), ofAlice, now, lost); !errors.Is(err, upstream.ErrUncertain) || asked != 1 {
		t.Fatalf("%v, asked %d times", err, asked)
	}
	// While an answer may be under way, nobody else asks.
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := p.Fresh(short, ofAlice, now, lost); broker.CodeOf(err) != broker.Unavailable || asked != 1 {
		t.Errorf("%v, asked %d times", err, asked)
	}
	// After that, once: and if the upstream refuses, the account has to be linked again.
	now = now.Add(31 * time.Second)
	refused := func(_ context.Context, old *upstream.Parent) (*upstream.Parent, error) {
		if asked++; old.Refresh.Reveal() != "r0" {
			t.Errorf("asked with %q", old.Refresh.Reveal())
		}
		return nil, upstream.ErrDead
	}
	if _, err := p.Fresh(t.Context(), ofAlice, now, refused); !errors.Is(err, upstream.ErrDead) || asked != 2 {
		t.Errorf("%v, asked %d times", err, asked)
	}
	if _, err := p.Fresh(t.Context(), ofAlice, now, lost); !errors.Is(err, upstream.ErrDead) || asked != 2 {
		t.Errorf("what is dead is asked for again: %v", err)
	}
	if a, err := p.Get(t.Context(), ofAlice); err != nil || a.Account.Broken == "" || a.Refresh.Empty() {
		t.Errorf("%+v, %v", a, err)
	}
	// Linked again, it is whole.
	if was, err := p.Put(t.Context(), ofAlice, &upstream.Parent{Refresh: secret.New("new")}); err != nil || was.Refresh.Reveal() != "r0" {
		t.Errorf("%+v, %v", was, err)
	}
	if _, err := p.Fresh(t.Context(), ofAlice, now, func(_ context.Context, old *upstream.Parent) (*upstream.Parent, error) { return old, nil }); err != nil {
		t.Error(err)
	}
}

// Who links anew or unlinks while it is renewed is not overwritten.
func TestLinkingDuringARenewal(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for name, meanwhile := range map[string]func(*upstream.Parents) error{
		"linked anew": func(p *upstream.Parents) error {
			_, err := p.Put(t.Context(), ofAlice, &upstream.Parent{Refresh: secret.New("another"), Access: secret.New("x"), AccessExpires: now.Add(time.Hour)})
			return err
		},
		"forgotten": func(p *upstream.Parents) error { _, err := p.Forget(t.Context(), ofAlice); return err },
	} {
		t.Run(name, func(t *testing.T) {
			p := keeper(newVault(), func() time.Time { return now })
			if _, err := p.Put(t.Context(), ofAlice, &upstream.Parent{Refresh: secret.New("r0")}); err != nil {
				t.Fatal(err)
			}
			got, err := p.Fresh(t.Context(), ofAlice, now, func(context.Context, *upstream.Parent) (*upstream.Parent, error) {
				if err := meanwhile(p); err != nil {
					t.Error(err)
				}
				return &upstream.Parent{Refresh: secret.New("r1"), Access: secret.New("a1"), AccessExpires: now.Add(time.Hour)}, nil
			})
			if name == "forgotten" {
				if !errors.Is(err, broker.ErrNotFound) {
					t.Errorf("%+v, %v", got, err)
				}
				if _, err := p.Get(t.Context(), ofAlice); !errors.Is(err, broker.ErrNotFound) {
					t.Errorf("it is back: %v", err)
				}
				return
			}
			if err != nil || got.Refresh.Reveal() != "another" {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestWhatIsKeptCannotBeMoved(t *testing.T) {
	v := newVault()
	p := keeper(v, time.Now)
	bob := upstream.ParentKey{Provider: "main", Subject: "https://idp.example#bob"}
	for _, k := range []upstream.ParentKey{ofAlice, bob} {
		if _, err := p.Put(t.Context(), k, &upstream.Parent{Refresh: secret.New("of " + k.Subject)}); err != nil {
			t.Fatal(err)
		}
	}
	var paths []string
	for path := range v.docs {
		paths = append(paths, path)
	}
	v.docs[paths[0]], v.docs[paths[1]] = v.docs[paths[1]], v.docs[paths[0]]
	for _, k := range []upstream.ParentKey{ofAlice, bob} {
		if got, err := p.Get(t.Context(), k); err == nil {
			t.Errorf("%s has what is %s", k.Subject, got.Refresh.Reveal())
		}
	}
	if _, err := p.Forget(t.Context(), upstream.ParentKey{Provider: "main", Subject: "nobody"}); !errors.Is(err, broker.ErrNotFound) {
		t.Error(err)
	}
}
