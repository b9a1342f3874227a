// Package providertest is the contract of [broker.Provider] as a suite that every
// provider passes, at an upstream that is real or behaves as the real one does;
// a [Fake] provider that keeps the contract in memory; and wrappers that break
// it, each in one way, with which the broker is tested.
package providertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// ErrRefused is what [Harness.Open] and [Session.Do] return, wrapped, where the
// upstream says no. Every other error means that the test itself went wrong.
var ErrRefused = errors.New("refused by the upstream")

// Session is a credential in use.
type Session interface {
	// Do does one of the harness's acts.
	Do(ctx context.Context, act string) error
	Close()
}

// Harness is what the suite has to know of a provider. The upstream is used by
// nobody else meanwhile.
type Harness struct {
	Provider broker.Provider
	// Subject is a subject that the upstream knows, if it knows any, and may do
	// there whatever Grant returns.
	Subject string
	// Grant returns a random grant that the upstream, as it is set up, can give.
	Grant func(r *rand.Rand) grant.Grant
	// Named returns a grant as an administrator writes it, where its ids have names. Nil:
	// they have none.
	Named func(g grant.Grant) grant.Grant
	// Inexpressible are grants that Render has to refuse with
	// [broker.ErrInexpressible].
	Inexpressible []grant.Grant
	// Acts are things to do at the upstream, each with the least grant that allows
	// it.
	Acts map[string]grant.Grant
	// Open begins to use a credential, as its holder would.
	Open func(ctx context.Context, m *broker.Minted) (Session, error)
	// Use takes the place of Open for a provider that injects: it begins to make requests,
	// as the holder of a token for them would.
	Use func(ctx context.Context, calls Calls) (Session, error)
	// Ends returns when the upstream itself will end a credential.
	Ends func(ctx context.Context, m *broker.Minted) (time.Time, error)
	// Remains lists what there is upstream of the provider's making.
	Remains func(ctx context.Context) ([]string, error)
	// Within asks the upstream, or something else that is not ours, whether one
	// grant allows no more than another. Nil: there is no such oracle.
	Within func(ctx context.Context, a, b grant.Grant) (bool, error)
	// Rounds is how many random grants are tried at the upstream. Zero: 8.
	Rounds int
	// Pairs is how many pairs of grants Within is asked about. Zero: 4 a round.
	Pairs int
	// Patience is how long the upstream may take to end what has been disabled. Zero:
	// 2.5 s.
	Patience time.Duration
	// Overgrants are providers of the same settings, by what is wrong with the upstream
	// that each stands before: it gives more than it is asked for.
	Overgrants map[string]broker.Provider
	// Variant tells several harnesses of a kind apart in reports. Upstream says what the
	// provider runs against, such as PostgreSQL 15, and Oracle who Within asks.
	Variant, Upstream, Oracle string

	result *Result
}

// property is one clause of the contract.
type property struct {
	name string
	hold func(ctx context.Context, h *Harness) error
}

// Run tests a provider.
func Run(t *testing.T, h Harness) {
	t.Helper()
	if h.Rounds == 0 {
		h.Rounds = 8
	}
	if h.Patience == 0 {
		h.Patience = 2500 * time.Millisecond
	}
	if h.Pairs == 0 {
		h.Pairs = 4 * h.Rounds
	}
	if h.Use != nil {
		h.Provider = watch(h.Provider)
	}
	d := h.Provider.Describe()
	h.result = &Result{Kind: d.Kind, Variant: h.Variant, Class: d.Class, Upstream: h.Upstream, Oracle: h.Oracle}
	defer func() {
		if !t.Failed() {
			h.result.publish(t)
		}
	}()
	for _, p := range properties {
		t.Run(p.name, func(t *testing.T) {
			if err := p.hold(t.Context(), &h); err != nil {
				t.Fatal(err)
			}
		})
	}
}

var properties = []property{
	{"it says what it is", describes},
	{"it is ready", ready},
	{"what is rendered reads back as what is meant", rendersBack},
	{"no part of a rendered grant can change without being noticed", noticesChanges},
	{"nothing, and what the upstream cannot say, is never rendered", refusesToRender},
	{"a grant is below another only if the upstream agrees", agreesWithOracle},
	{"resolving names and details narrows", resolves},
	{"a credential does what was granted and nothing else, until it is revoked", lives},
	{"a credential never outlives what was asked", expires},
	{"what is renewed lives longer, and ends like the rest", renews},
	{"revoking is idempotent, and no error for what is unknown", revokesTwice},
	{"what was minted is ended when the answer is lost", survivesLostAnswers},
	{"a mint that comes after its revocation leaves nothing", refusesLateMints},
	{"whoever gives up leaves nothing that cannot be ended", survivesCancelling},
	{"an upstream that gives too much is noticed", catchesOvergrants},
	{"sweeping ends the orphans and nothing else", sweeps},
	{"many at once do not get in each other's way", survivesCrowds},
}

// lease is a mint of the suite's, with what the broker would have kept of it.
type lease struct {
	req    broker.MintRequest
	minted *broker.Minted
	noted  []byte
}

// asked makes a request for a grant.
func (h *Harness) asked(g grant.Grant) (*lease, error) {
	rendered, err := h.Provider.Render(g)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", g, err)
	}
	l := &lease{}
	l.req = broker.MintRequest{
		Lease: newLease(), Grant: g, Rendered: rendered, Expires: time.Now().Add(h.life()).Truncate(time.Second),
		Subject: h.Subject, Pseudonym: "pseudonym", Actor: "agent", Client: "client",
		Note: func(handle []byte) error { l.noted = slices.Clone(handle); return nil },
	}
	return l, nil
}

// life is a lifetime that the provider has.
func (h *Harness) life() time.Duration {
	d := h.Provider.Describe()
	life := max(15*time.Minute, d.MinLifetime)
	if d.MaxLifetime > 0 {
		life = min(life, d.MaxLifetime)
	}
	return life
}

// mint mints a grant, and holds the answer to what every answer has to have.
func (h *Harness) mint(ctx context.Context, g grant.Grant) (*lease, error) {
	l, err := h.asked(g)
	if err != nil {
		return nil, err
	}
	if l.minted, err = h.Provider.Mint(ctx, l.req); err != nil {
		return nil, fmt.Errorf("mint %s: %w", g, err)
	}
	d := h.Provider.Describe()
	m, bearer := l.minted, d.TokenType == "Bearer"
	switch {
	case m != nil && injects(d) && !(m.Token.Empty() && m.Document.Empty()):
		return nil, errors.New("what stays here is handed out")
	case m == nil:
		return nil, errors.New("minted nothing, without an error")
	case !injects(d) && (bearer == m.Token.Empty() || bearer != m.Document.Empty()):
		return nil, errors.New("a bearer credential is a token, any other a document, and never both")
	case m.Evidence != broker.Attested && m.Evidence != broker.Echoed && m.Evidence != broker.Asserted:
		return nil, fmt.Errorf("no evidence is called %q", m.Evidence)
	case m.Granted.IsNothing():
		return nil, errors.New("it does not say what was granted")
	}
	if ok, diffs := grant.Leq(m.Granted, g); !ok {
		return nil, fmt.Errorf("granted more than was asked: %v", diffs)
	}
	if m.Handle != nil {
		l.noted = m.Handle
	}
	return l, nil
}

// end revokes a lease with what the broker would know of it, until that is
// final.
func (h *Harness) end(ctx context.Context, l *lease) (broker.Outcome, error) {
	const tries = 50
	for range tries {
		o, err := h.Provider.Revoke(ctx, broker.RevokeLease{Lease: l.req.Lease, Handle: l.noted, Expires: l.req.Expires})
		if err == nil && o.State.Final() {
			return o, nil
		}
		if err != nil && ctx.Err() != nil {
			return o, err
		}
		time.Sleep(max(h.Patience/tries, time.Millisecond)) // the upstream's time, not a clock of ours
	}
	return broker.Outcome{}, fmt.Errorf("lease %s does not end", l.req.Lease)
}

// dead checks that a credential is not accepted.
func (h *Harness) dead(ctx context.Context, m *broker.Minted) error {
	s, err := h.open(ctx, m)
	switch {
	case err == nil:
		s.Close()
		return errors.New("the credential is still accepted")
	case !errors.Is(err, ErrRefused):
		return fmt.Errorf("use a credential that has ended: %w", err)
	}
	return nil
}

// clean checks that nothing is left upstream, after a sweep that keeps nothing
// waiting.
func (h *Harness) clean(ctx context.Context) error {
	if sweep := h.Provider.Describe().Sweep; sweep != nil {
		if ended, err := sweep(ctx, func(string) bool { return true }); err != nil || len(ended) > 0 {
			return fmt.Errorf("a sweep that keeps everything ended %q: %v", ended, err)
		}
	}
	left, err := h.Remains(ctx)
	if err != nil {
		return fmt.Errorf("look for remains: %w", err)
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind: %q", left)
	}
	return nil
}

// random returns the suite's source of chance: the same in every run.
func random(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 8693)) }

// newLease returns a lease id of the broker's form.
func newLease() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	var b [24]byte
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b[:])
}

func names[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
