package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// later moves the clock, and waits until the replica is current again.
func (w *world) later(d time.Duration) {
	w.t.Helper()
	w.clock.move(d)
	eventually(w.t, "it is current again", func() bool { return w.b.Status(context.Background()).Current })
}

// renewing is the request for a lease to be renewed, by a token that was got just now.
func (w *world) renewing(lease string, change func(*broker.ExchangeRequest)) (func(*broker.ExchangeRequest), *broker.Token) {
	w.t.Helper()
	first, parent := w.must(nil)
	return w.vend(first.Token, func(r *broker.ExchangeRequest) {
		r.Renew = lease
		if change != nil {
			change(r)
		}
	}), parent
}

func TestALeaseLivesOn(t *testing.T) {
	w := newWorld(t)
	w.run(w.b)
	id := w.login(nil)
	before := w.lease(id)
	w.later(2 * time.Minute)
	ask, parent := w.renewing(id, nil)
	got, err := w.exchange(ask)
	if err != nil {
		t.Fatal(err)
	}
	if got.Lease != id || !got.Token.Empty() || !got.Expires.Equal(parent.Expires) || !got.Expires.After(before.Expires) || !strings.Contains(string(got.Details), "sales.orders") {
		t.Errorf("%+v", got)
	}
	after := w.lease(id)
	if after.State != broker.Active || !after.Expires.Equal(got.Expires) || strings.Join(after.Keys, " ") != strings.Join(before.Keys, " ") || after.Pos != before.Pos {
		t.Errorf("%+v", after)
	}
	e := w.record.last(t, audit.KindExchange)
	if e.Outcome != audit.Granted || e.Lease.ID != id || e.Lease.Digest != "" || e.Certificate == nil || string(e.Certificate.Granted) != ordersRead || e.Lease.Expires != got.Expires.Unix() {
		t.Errorf("event %+v %+v", e, e.Lease)
	}
	if n := len(w.upstream.minted); n != 1 {
		t.Errorf("%d credentials were made", n)
	}
	w.later(before.Expires.Sub(w.clock.Now()) + time.Second)
	time.Sleep(50 * time.Millisecond) // for a reaper that is wrong
	if w.upstream.living() != 1 {
		t.Error("it ended when it would have")
	}
	w.later(2 * time.Minute)
	eventually(t, "it ends when it was renewed for", func() bool { return w.upstream.living() == 0 })
	eventually(t, "its records are closed", func() bool { n, _ := w.store.Open(context.Background()); return n == 0 })
}

// A renewed credential ends with what it was made with, and with what it was renewed
// with.
func TestWhatWasRenewedIsTakenBack(t *testing.T) {
	for name, by := range map[string]func(id string, first, second *broker.Token) broker.Selector{
		"by its lease":                     func(id string, _, _ *broker.Token) broker.Selector { return broker.Selector{Lease: id} },
		"by the token it was renewed with": func(_ string, _, second *broker.Token) broker.Selector { return broker.Selector{Token: second.ID} },
		"by the token it was made with":    func(_ string, first, _ *broker.Token) broker.Selector { return broker.Selector{Token: first.ID} },
		"by the subject": func(string, *broker.Token, *broker.Token) broker.Selector {
			return broker.Selector{Subject: idp + "#alice"}
		},
		"by the session of both": func(_ string, first, _ *broker.Token) broker.Selector {
			return broker.Selector{Session: first.Stint.Session}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.run(w.b)
			made, first := w.must(nil)
			got, _ := w.must(w.vend(made.Token, nil))
			w.later(2 * time.Minute)
			ask, second := w.renewing(got.Lease, nil)
			if _, err := w.exchange(ask); err != nil {
				t.Fatal(err)
			}
			if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: by(got.Lease, first, second)}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is ended", func() bool { return w.upstream.living() == 0 })
		})
	}
}

func TestRenewalsThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(w *world, id string)
		change  func(*broker.ExchangeRequest)
		subject string // who asks, if not alice
		code    broker.Code
		reason  string
	}{
		"a lease that there is not":  {nil, func(r *broker.ExchangeRequest) { r.Renew = strings.Repeat("a", 24) }, "", broker.BadRequest, "not found"},
		"something that is no lease": {nil, func(r *broker.ExchangeRequest) { r.Renew = "../../x" }, "", broker.BadRequest, "no id"},
		"a lease that was revoked": {func(w *world, id string) {
			if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Lease: id}}); err != nil {
				w.t.Fatal(err)
			}
		}, nil, "", broker.BadRequest, "lease to be renewed"},
		"a lease that has run out":             {func(w *world, _ string) { w.later(5 * time.Minute) }, nil, "", broker.BadRequest, "lease to be renewed"},
		"a lease that lives as long as it may": {nil, func(r *broker.ExchangeRequest) { r.Client.MaxLifetime.Duration = time.Minute }, "", broker.BadRequest, "it lives until"},
		"another subject's":                    {nil, nil, "bob", broker.BadRequest, "another's"},
		"an upstream that cannot":              {func(w *world, _ string) { w.upstream.rigid = true }, nil, "", broker.BadRequest, "cannot be renewed"},
		"a token is no credential":             {nil, func(r *broker.ExchangeRequest) { r.Resources, r.Scope = []string{"https://api.test/files"}, "read" }, "", broker.BadTarget, "credential of an upstream"},
		"what is held is not granted any more": {func(w *world, _ string) {
			w.judge.SetPolicy(w.policy(strings.Replace(filesYAML, `object: sales.orders, privileges: SELECT, columns: "*"`, `object: sales.orders, privileges: SELECT, columns: [id]`, 1), apiYAML))
		}, nil, "", broker.BadScope, "not granted now"},
		"who may do it no more":  {func(w *world, _ string) { g := tables.Nothing(); w.upstream.entitled = &g }, nil, "", broker.BadScope, "entitlement leaves nothing"},
		"an upstream that fails": {func(w *world, _ string) { w.upstream.mintErr = errors.New("down") }, nil, "", broker.Unavailable, "down"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.run(w.b)
			id := w.login(nil)
			ends := w.lease(id).Expires
			w.later(2 * time.Minute)
			if tc.prepare != nil {
				tc.prepare(w, id)
			}
			ask, _ := w.renewing(id, tc.change)
			if tc.subject != "" {
				first, _ := w.must(func(r *broker.ExchangeRequest) {
					r.SubjectToken = w.tokens.put(w.token(func(t *broker.Token) { t.Subject, t.SessionID = tc.subject, "sid-2" }))
				})
				ask = w.vend(first.Token, func(r *broker.ExchangeRequest) { r.Renew = id })
			}
			got, err := w.exchange(ask)
			if broker.CodeOf(err) != tc.code || !strings.Contains(fmt.Sprint(err), tc.reason) {
				t.Fatalf("%+v, %v, want %s with %q", got, err, tc.code, tc.reason)
			}
			if l := w.lease(id); !l.Expires.Equal(ends) {
				t.Errorf("it lives until %s, not %s", l.Expires, ends)
			}
		})
	}
}

func TestARenewalThatGivesMoreIsAnAlarm(t *testing.T) {
	for name, prepare := range map[string]func(w *world){
		"more than was asked":   func(w *world) { w.upstream.grants = func(grant.Grant) grant.Grant { return tables.Everything() } },
		"longer than was asked": func(w *world) { w.upstream.late = time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.run(w.b)
			id := w.login(nil)
			w.later(2 * time.Minute)
			prepare(w)
			ask, _ := w.renewing(id, nil)
			if got, err := w.exchange(ask); err == nil {
				t.Fatalf("%+v", got)
			}
			eventually(t, "it is ended", func() bool { return w.upstream.living() == 0 })
			if w.record.count(audit.KindService) == 0 {
				t.Error("nobody is told")
			}
		})
	}
}

// A revocation at any step of a renewal: whatever the answer, the credential ends.
func TestRevokeRacesRenewalAtEveryStep(t *testing.T) {
	steps := 0
	for step := 0; step <= steps; step++ {
		t.Run(fmt.Sprint("step ", step), func(t *testing.T) {
			w := newWorld(t)
			other := w.broker("r2", &record{}, broker.Head{})
			w.run(w.b)
			w.run(other)
			id := w.login(nil)
			w.later(2 * time.Minute)
			ask, second := w.renewing(id, nil)
			n, fired := 0, ""
			hook := func(at string) {
				if strings.HasPrefix(at, "append") || fired != "" {
					return
				}
				if n++; n == step {
					fired = at
					if _, err := other.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Token: second.ID}}); err != nil {
						t.Error(err)
					}
					time.Sleep(50 * time.Millisecond) // both know of it, and have looked for what it ends
				}
			}
			w.store.hook, w.record.hook, w.upstream.hook = hook, hook, hook
			got, err := w.exchange(ask)
			if step == 0 {
				if steps = n; err != nil {
					t.Fatal(err)
				}
				return
			}
			if fired == "" {
				t.Fatalf("no step %d", step)
			}
			if err != nil { // it ends when it would have, or now
				w.clock.move(3 * time.Minute)
			}
			eventually(t, fmt.Sprintf("after a revocation at %q nothing is alive (answer %v, %v)", fired, got != nil, err), func() bool { return w.upstream.living() == 0 })
		})
	}
	if steps < 5 {
		t.Errorf("only %d steps were found", steps)
	}
}

// What cannot be written down does not live on.
func TestARenewalThatIsNotWrittenDown(t *testing.T) {
	for name, prepare := range map[string]func(w *world){
		"not in the record": func(w *world) {
			w.record.fail = func(e *audit.Event) error {
				if e.Outcome == audit.Granted {
					return errors.New("disk full")
				}
				return nil
			}
		},
		"not beside the lease": func(w *world) {
			w.store.hook = func(s string) {
				if s == "create" {
					w.store.fail(errors.New("gone"))
				}
			}
		},
		"not in the lease": func(w *world) {
			w.store.hook = func(s string) {
				switch s {
				case "update active":
					w.store.fail(errors.New("gone"))
				case "updated active":
					w.store.fail(nil)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.run(w.b)
			id := w.login(nil)
			ends := w.lease(id).Expires
			w.later(2 * time.Minute)
			ask, _ := w.renewing(id, nil)
			prepare(w)
			if got, err := w.exchange(ask); broker.CodeOf(err) != broker.Unavailable {
				t.Fatalf("%+v, %v", got, err)
			}
			w.record.fail, w.store.hook = nil, nil
			w.store.fail(nil)
			w.later(ends.Sub(w.clock.Now()) + time.Second)
			eventually(t, "it ended when it would have", func() bool { return w.upstream.living() == 0 })
		})
	}
}
