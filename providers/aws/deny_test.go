package aws_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/aws"
)

// revoker is a provider that denies, on a clock, with leases of its own.
type revoker struct {
	a   *doubles.AWS
	p   broker.Provider
	now time.Time
	mu  sync.Mutex
	d   upstream.Deps
	c   aws.Config
}

func newRevoker(t *testing.T, settle time.Duration) *revoker {
	t.Helper()
	i := newIssuer(t)
	r := &revoker{a: cloud(t, i), now: time.Now()}
	clock := func() time.Time { r.mu.Lock(); defer r.mu.Unlock(); return r.now }
	r.a.Now = clock
	r.c, r.d = denying(byKeys(r.a.URL)), deps(i, clock)
	r.c.Deny.Settle.Duration = settle
	r.p = opened(t, r.c, r.d)
	return r
}

func (r *revoker) pass(d time.Duration) { r.mu.Lock(); defer r.mu.Unlock(); r.now = r.now.Add(d) }

// lease mints one of a name, and returns how to revoke it and whether it works.
func (r *revoker) lease(t *testing.T, id string) (revoke broker.RevokeLease, works func() bool) {
	t.Helper()
	ask := asked(t, r.p, reading(t))
	ask.Lease, ask.Expires = id, r.d.Now().Add(20*time.Minute)
	m, err := r.p.Mint(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	d, err := read(m)
	if err != nil {
		t.Fatal(err)
	}
	return broker.RevokeLease{Lease: id, Handle: m.Handle, Expires: m.Expires}, func() bool {
		ok, err := r.a.Allowed(d.SessionToken, "s3:GetObject", "warehouse", "a/k", nil)
		if err != nil {
			t.Error(err)
		}
		return ok
	}
}

func (r *revoker) revoke(t *testing.T, p broker.Provider, l broker.RevokeLease, want broker.OutcomeState) {
	t.Helper()
	if o, err := p.Revoke(t.Context(), l); err != nil || o.State != want {
		t.Errorf("%+v, %v: expected %s", o, err, want)
	}
}

func TestARevokedSessionIsDeniedAndNoOther(t *testing.T) {
	r := newRevoker(t, time.Minute)
	one, oneWorks := r.lease(t, "lease-one")
	_, twoWorks := r.lease(t, "lease-one-too")
	if !oneWorks() || !twoWorks() {
		t.Fatal("fresh sessions do not work")
	}
	r.revoke(t, r.p, one, broker.DisabledPendingKill)
	if oneWorks() || !twoWorks() {
		t.Errorf("the revoked works: %v, the other: %v", oneWorks(), twoWorks())
	}
	r.revoke(t, r.p, one, broker.DisabledPendingKill) // AWS may not know everywhere yet
	r.pass(time.Minute)
	r.revoke(t, r.p, one, broker.Revoked)
	r.revoke(t, r.p, one, broker.AlreadyDead)
	if _, puts := r.a.Inline("stint-data", "stint-deny"); puts != 1 {
		t.Errorf("the policy was written %d times", puts)
	}
	r.pass(time.Hour)
	r.revoke(t, r.p, one, broker.AlreadyDead)
}

func TestSessionsThatHaveEndedLeaveThePolicy(t *testing.T) {
	r := newRevoker(t, time.Minute)
	old, _ := r.lease(t, "lease-old")
	r.revoke(t, r.p, old, broker.DisabledPendingKill)
	r.pass(30 * time.Minute)
	young, works := r.lease(t, "lease-young")
	r.revoke(t, r.p, young, broker.DisabledPendingKill)
	if doc, _ := r.a.Inline("stint-data", "stint-deny"); strings.Contains(doc, "lease-old") || !strings.Contains(doc, `"*:lease-young"`) || works() {
		t.Errorf("the policy is %s", doc)
	}
}

// A role's inline policies have so much room and no more. What does not fit is tried
// again, and the policy stays what IAM takes.
func TestThePolicyHasRoomForSoMany(t *testing.T) {
	r := newRevoker(t, time.Minute)
	failed := 0
	for n := range 170 {
		l, _ := r.lease(t, fmt.Sprintf("lease0123456789abcdefg%03d", n))
		o, err := r.p.Revoke(t.Context(), l)
		switch {
		case err != nil:
			failed++
		case o.State != broker.DisabledPendingKill:
			t.Fatalf("%+v", o)
		}
	}
	doc, _ := r.a.Inline("stint-data", "stint-deny")
	if failed != 10 || len(doc) > 10240/2 {
		t.Errorf("%d were not denied, the policy has %d characters", failed, len(doc))
	}
	r.pass(30 * time.Minute)
	l, works := r.lease(t, "lease-after")
	if r.revoke(t, r.p, l, broker.DisabledPendingKill); works() {
		t.Error("there is no room where there was some")
	}
}

// IAM has no compare-and-set: replicas must not undo each other's denials.
func TestReplicasDoNotUndoEachOther(t *testing.T) {
	r := newRevoker(t, time.Minute)
	replicas := []broker.Provider{r.p, opened(t, r.c, r.d), opened(t, r.c, r.d)}
	var all []broker.RevokeLease
	var works []func() bool
	for n := range 12 {
		l, w := r.lease(t, fmt.Sprintf("lease-number-%d", n))
		all, works = append(all, l), append(works, w)
	}
	var wg sync.WaitGroup
	for n, l := range all {
		wg.Go(func() { r.revoke(t, replicas[n%len(replicas)], l, broker.DisabledPendingKill) })
	}
	wg.Wait()
	for n, w := range works {
		if w() {
			t.Errorf("session %d works", n)
		}
	}
}

// A denial that failed is not remembered as one.
func TestADenialThatFailsIsTriedAgain(t *testing.T) {
	r := newRevoker(t, time.Minute)
	l, works := r.lease(t, "lease-one")
	r.a.Refuse = "LimitExceeded"
	if o, err := r.p.Revoke(t.Context(), l); err == nil || !works() {
		t.Errorf("%+v, %v", o, err)
	}
	r.a.Refuse = ""
	if r.revoke(t, r.p, l, broker.DisabledPendingKill); works() {
		t.Error("it works still")
	}
}

// Whoever wrote the policy and does not know whether it arrived may still have it under
// way: nobody else writes until it can be no more, or it would undo what they wrote.
func TestAPolicyThatMayBeUnderWayIsWaitedFor(t *testing.T) {
	r := newRevoker(t, time.Minute)
	one, _ := r.lease(t, "lease-one")
	two, works := r.lease(t, "lease-two")
	r.a.Lose = true
	if o, err := r.p.Revoke(t.Context(), one); !errors.Is(err, upstream.ErrUncertain) {
		t.Fatalf("%+v, %v", o, err)
	}
	r.a.Lose = false
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if o, err := opened(t, r.c, r.d).Revoke(short, two); broker.CodeOf(err) != broker.Unavailable || !works() {
		t.Errorf("written meanwhile: %+v, %v", o, err)
	}
	r.pass(time.Minute)
	r.revoke(t, r.p, two, broker.DisabledPendingKill)
	r.revoke(t, r.p, one, broker.DisabledPendingKill)
	if doc, puts := r.a.Inline("stint-data", "stint-deny"); !strings.Contains(doc, "lease-one") || !strings.Contains(doc, "lease-two") || puts != 3 {
		t.Errorf("%d, %s", puts, doc)
	}
}
