package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

const ordersRead = `{"privileges":[{"columns":"*","object":"sales.orders","privileges":["SELECT"],"rows":"*"}]}`

func TestACredentialIsVended(t *testing.T) {
	w := newWorld(t)
	first, parent := w.must(nil)
	got, _ := w.must(w.vend(first.Token, nil))
	if got.TokenType != "N_A" || got.Type != broker.TypeCredential || !got.Document || len(got.Lease) != 24 || !got.Expires.Equal(parent.Expires) {
		t.Errorf("issued %+v", got)
	}
	if string(got.Details) != `[{"privileges":[{"columns":"*","object":"sales.orders","privileges":["SELECT"],"rows":"*"}],"provider":"warehouse","type":"postgres"}]` {
		t.Errorf("details %s", got.Details)
	}
	l, err := w.store.Lease(context.Background(), got.Lease)
	if err != nil || l.State != broker.Active || l.Client != "files-mcp" || l.Agent != "desktop" || string(l.Grant) != ordersRead || len(l.Handle) == 0 {
		t.Errorf("lease %+v, %v", l, err)
	}
	e := w.record.last(t, audit.KindExchange)
	c := e.Certificate
	if e.Outcome != audit.Granted || e.Lease.ID != got.Lease || e.Lease.Class != "exact" || len(e.Lease.Digest) != 64 || e.Lease.Upstream["role"] == "" || c == nil {
		t.Fatalf("event %+v", e)
	}
	if string(c.Grant) != ordersRead || string(c.Rendered) != ordersRead || string(c.Granted) != ordersRead || c.Evidence != "attested" || c.Schema != tables.Hash() || c.Given > c.Asked {
		t.Errorf("certificate %+v", c)
	}
	var names []string
	for _, in := range c.Inputs {
		names = append(names, in.Name)
		g, err := tables.Parse(in.Grant)
		if err != nil {
			t.Fatal(err)
		}
		out, _ := tables.Parse(c.Grant)
		if ok, diffs := grant.Leq(out, g); !ok {
			t.Errorf("the certificate does not hold: above %s: %v", in.Name, diffs)
		}
	}
	if strings.Join(names, ",") != "subject token,mapping,entitlement,ceilings,request" {
		t.Errorf("inputs %v", names)
	}
	if data, _ := json.Marshal(w.record.events); strings.Contains(string(data), "pw-") {
		t.Error("the record shows the password")
	}
	// The intent was durable before anything was minted, and the lease with the event.
	var states []string
	for _, f := range w.record.frames {
		if f.Type == audit.FrameLease {
			var l broker.Lease
			if err := json.Unmarshal(f.Payload, &l); err != nil {
				t.Fatal(err)
			}
			states = append(states, string(l.State))
		}
	}
	if strings.Join(states, ",") != "intent,intent,active" {
		t.Errorf("the journal saw %v", states)
	}
}

func TestVendsThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(*world)
		change  func(*broker.ExchangeRequest)
		code    broker.Code
		reason  string
	}{
		"a table beyond the scope": {nil, func(r *broker.ExchangeRequest) { r.Resources = []string{"postgres://warehouse/sales.customers"} }, broker.BadScope, "request leaves nothing"},
		"one table of two": {nil, func(r *broker.ExchangeRequest) {
			r.Resources = append(r.Resources, "postgres://warehouse/sales.customers")
		}, broker.BadScope, "nothing of resource 2"},
		"details beyond the scope": {nil, func(r *broker.ExchangeRequest) {
			r.Details = `[{"type":"postgres","privileges":[{"object":"sales.orders","privileges":["SELECT","INSERT"],"columns":"*","rows":"*"}]}]`
		}, broker.BadScope, "less than the details ask"},
		"details that mean nothing":     {nil, func(r *broker.ExchangeRequest) { r.Details = `[{"type":"postgres","privileges":[]}]` }, broker.BadScope, "request leaves nothing"},
		"details that lack a dimension": {nil, func(r *broker.ExchangeRequest) { r.Details = `[{"type":"postgres"}]` }, broker.BadDetails, "privileges is missing"},
		"a token as the answer":         {nil, func(r *broker.ExchangeRequest) { r.RequestedType = broker.TypeJWT }, broker.BadRequest, "no tokens of ours"},
		"an access token as the answer": {nil, func(r *broker.ExchangeRequest) { r.RequestedType = broker.TypeAccess }, broker.BadRequest, "no access token"},
		"an argument that is missing": {nil, func(r *broker.ExchangeRequest) {
			r.Scope, r.Details = "", `[{"type":"mcp_tool_call","tool":"my_table"}]`
		}, broker.BadScope, "not_in_token"},
		"an upstream that cannot narrow":  {func(w *world) { w.upstream.class = broker.Profile }, nil, broker.BadScope, "profiles only"},
		"an upstream that is all or none": {func(w *world) { w.upstream.class = broker.None }, nil, broker.BadTarget, "carry everything"},
		"a subject who may nothing there": {func(w *world) { g := tables.Nothing(); w.upstream.entitled = &g }, nil, broker.BadScope, "entitlement leaves nothing"},
		"a subject who may less": {func(w *world) {
			g := parse(w.t, `{"privileges":[{"object":"sales.orders","privileges":"SELECT","columns":["id"],"rows":"*"}]}`)
			w.upstream.entitled = &g
		}, nil, broker.BadScope, "less than asked"},
		"a life that is too short for it":    {func(w *world) { w.upstream.least = time.Hour }, nil, broker.BadToken, "lends for at least"},
		"a renderer that says another thing": {func(w *world) { w.upstream.mangle = true }, nil, broker.Internal, "what would be sent"},
		"a ceiling without the provider":     {func(w *world) { w.ceiling("desktop", `{access: admin, scopes: "*", vend: {}}`) }, nil, broker.BadScope, "ceilings leaves nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tc.prepare != nil {
				tc.prepare(w)
			}
			first, _ := w.must(nil)
			_, err := w.exchange(w.vend(first.Token, tc.change))
			if broker.CodeOf(err) != tc.code || !strings.Contains(fmt.Sprint(err), tc.reason) {
				t.Fatalf("got %v, want %s with %q", err, tc.code, tc.reason)
			}
			if len(w.upstream.minted) > 0 {
				t.Error("something was minted")
			}
		})
	}
}

// An upstream that gives nothing for less than three minutes, and takes nothing back, is of use only to whoever accepts that a credential outlives the token it was made
// from. What else bounds its life stands.
func TestACredentialOutlivesItsTokenOnlyWhereThatIsAccepted(t *testing.T) {
	open := func(r *broker.ExchangeRequest) { r.Client.MaxLifetime.Duration = 0 }
	for name, tc := range map[string]struct {
		outlives bool
		change   func(*broker.ExchangeRequest)
		life     time.Duration // 0: refused
	}{
		"where it is not accepted":          {false, open, 0},
		"where it is, within the mapping's": {true, open, 4 * time.Minute},
		"but not what a client may": {true, func(r *broker.ExchangeRequest) {
			r.Client.MaxLifetime.Duration = time.Minute
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.upstream.least, w.upstream.outlives = 3*time.Minute, tc.outlives
			first, _ := w.must(func(r *broker.ExchangeRequest) { r.Client.MaxLifetime.Duration = 2 * time.Minute })
			got, err := w.exchange(w.vend(first.Token, tc.change))
			if tc.life == 0 {
				if broker.CodeOf(err) != broker.BadToken || len(w.upstream.minted) > 0 {
					t.Fatalf("got %+v, %v", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if left := got.Expires.Sub(w.clock.Now()); left > tc.life || left < tc.life-time.Second {
				t.Errorf("it lives for %s, wanted %s", left, tc.life)
			}
		})
	}
}

// ceiling replaces a client's, and compiles the policy anew with it.
func (w *world) ceiling(client, text string) {
	w.t.Helper()
	c := w.reg.Clients[client]
	c.Ceiling.Everything = false
	decode(w.t, text, c.Ceiling)
	w.judge.SetPolicy(w.policy(filesYAML, apiYAML))
}

func parse(t testing.TB, text string) grant.Grant {
	t.Helper()
	g, err := tables.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestAToolNarrowsByItsArguments(t *testing.T) {
	w := newWorld(t)
	first, _ := w.must(func(r *broker.ExchangeRequest) { r.Scope = "files:mine" })
	vend := func(table string) (*broker.Issued, error) {
		return w.exchange(w.vend(first.Token, func(r *broker.ExchangeRequest) {
			r.Resources, r.Audiences, r.Scope = nil, []string{"warehouse"}, ""
			r.Details = `[{"type":"mcp_tool_call","tool":"my_table","arguments":{"table":` + table + `}}]`
		}))
	}
	got, err := vend(`"returns"`)
	if err != nil || !strings.Contains(string(got.Details), "sales.returns") || !strings.Contains(string(got.Details), `"tool":"my_table"`) {
		t.Fatalf("%s, %v", got.Details, err)
	}
	for _, evil := range []string{`"*"`, `"a b"`, `"../x"`, `""`, `["x"]`, `null`} {
		if got, err := vend(evil); broker.CodeOf(err) != broker.BadScope {
			t.Errorf("argument %s: %+v, %v", evil, got, err)
		}
	}
}

func TestOverGrantsAreTakenBackAtOnce(t *testing.T) {
	for name, prepare := range map[string]func(*upstream){
		"another privilege":       func(u *upstream) { u.grants = func(grant.Grant) grant.Grant { return tables.Everything() } },
		"a longer life":           func(u *upstream) { u.late = 2 * time.Second },
		"nothing is said":         func(u *upstream) { u.grants = func(grant.Grant) grant.Grant { return tables.Nothing() } },
		"no expiry is said":       func(u *upstream) { u.noExpiry = true },
		"an error after the fact": func(u *upstream) { u.mintErr = errors.New("connection reset") },
		"nothing is answered":     func(u *upstream) { u.nothing = true },
		"a panic":                 func(u *upstream) { u.grants = func(grant.Grant) grant.Grant { panic("of the provider") } },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.run(w.b)
			first, _ := w.must(nil)
			prepare(w.upstream)
			got, err := w.exchange(w.vend(first.Token, nil))
			if err == nil {
				t.Fatalf("granted %+v", got)
			}
			eventually(t, "it is ended upstream", func() bool { return w.upstream.living() == 0 && len(w.upstream.minted) == 1 })
			w.clock.move(15 * time.Second)
			eventually(t, "the lease is closed", func() bool { n, _ := w.store.Open(context.Background()); return n == 0 })
			if e := w.record.last(t, audit.KindExchange); e.Outcome != audit.Failed || e.Lease == nil || e.Lease.Digest != "" {
				t.Errorf("event %+v", e)
			}
		})
	}
}

func TestWithoutARecordThereIsNoCredential(t *testing.T) {
	for name, prepare := range map[string]func(w *world){
		"the intent cannot be journalled": func(w *world) {
			w.record.hook = func(s string) {
				if s == "keep" {
					w.record.down = errors.New("disk full")
				}
			}
		},
		"the grant cannot be recorded": func(w *world) {
			w.record.fail = func(e *audit.Event) error {
				if e.Outcome == audit.Granted {
					return errors.New("disk full")
				}
				return nil
			}
		},
		"the intent cannot be written": func(w *world) {
			w.store.hook = func(s string) {
				if s == "create" {
					w.store.fail(errors.New("gone"))
				}
			}
		},
		"the lease cannot be activated": func(w *world) {
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
			first, _ := w.must(nil)
			prepare(w)
			got, err := w.exchange(w.vend(first.Token, nil))
			if broker.CodeOf(err) != broker.Unavailable {
				t.Fatalf("granted %+v, %v", got, err)
			}
			w.record.hook, w.record.fail, w.record.down, w.store.hook = nil, nil, nil, nil
			w.store.fail(nil)
			w.run(w.b)
			w.clock.move(0)
			eventually(t, "nothing is alive", func() bool { return w.upstream.living() == 0 })
		})
	}
}

// What happens while a credential is made is looked at when it is there, not only
// when somebody has come to mark its lease.
func TestWhatHappensWhileACredentialIsMade(t *testing.T) {
	for name, tc := range map[string]struct {
		then func(w *world)
		want broker.Code
	}{
		"its subject is revoked, and nobody marks the lease": {func(w *world) {
			if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#alice"}}); err != nil {
				w.t.Error(err)
			}
		}, broker.BadToken},
		"the replica stops being current": {func(w *world) { w.clock.move(time.Second) }, broker.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t) // whose loops do not run
			first, _ := w.must(nil)
			done := false
			w.record.hook = func(at string) {
				if at == "record" && !done {
					done = true
					tc.then(w)
				}
			}
			got, err := w.exchange(w.vend(first.Token, nil))
			if !done || broker.CodeOf(err) != tc.want {
				t.Errorf("handed out %+v, %v", got, err)
			}
		})
	}
}

// A revocation at any step between request and answer: either nothing is handed
// out, or what was handed out is ended. The steps are found by counting them.
func TestRevokeRacesMintAtEveryStep(t *testing.T) {
	for _, by := range []string{"token", "session", "subject", "actor"} {
		steps := 0
		for step := 0; step <= steps; step++ {
			t.Run(fmt.Sprintf("%s at step %d", by, step), func(t *testing.T) {
				w := newWorld(t)
				first, parent := w.must(nil)
				own, actor := w.must(func(r *broker.ExchangeRequest) {
					*r = broker.ExchangeRequest{GrantType: broker.ClientCredentials, Client: w.reg.Clients["files-mcp"], Resources: []string{mcp}, Scope: "files:read"}
				})
				other := w.broker("r2", &record{}, broker.Head{}) // the revocation comes to another replica
				w.run(w.b)
				w.run(other)
				sel := map[string]broker.Selector{
					"token": {Token: parent.ID}, "session": {Session: parent.Stint.Session}, "subject": {Subject: idp + "#alice"}, "actor": {Token: actor.ID},
				}[by]
				act := func(r *broker.ExchangeRequest) {
					if by == "actor" {
						r.ActorToken, r.ActorType = own.Token, broker.TypeAccess
					}
				}
				n, fired := 0, ""
				hook := func(at string) {
					if strings.HasPrefix(at, "append") || fired != "" {
						return
					}
					if n++; n == step {
						fired = at
						if _, err := other.Revoke(context.Background(), broker.Revocation{Selector: sel}); err != nil {
							t.Error(err)
						}
					}
				}
				w.store.hook, w.record.hook, w.upstream.hook = hook, hook, hook
				got, err := w.exchange(w.vend(first.Token, act))
				if step == 0 {
					steps = n
				}
				if step == 0 {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				if fired == "" {
					t.Fatalf("no step %d", step)
				}
				eventually(t, fmt.Sprintf("after a revocation at %q nothing is alive (answer %v, %v)", fired, got != nil, err), func() bool { return w.upstream.living() == 0 })
				w.clock.move(15 * time.Second) // the deadline of the intent
				eventually(t, "the lease is closed", func() bool { open, _ := w.store.Open(context.Background()); return open == 0 })
				eventually(t, "the token is dead", func() bool {
					_, err := w.exchange(w.vend(first.Token, act))
					return broker.CodeOf(err) == broker.BadToken
				})
			})
		}
		if steps < 8 {
			t.Errorf("only %d steps were found", steps)
		}
	}
}

// A reload of the policy at any step: a decision is by the old or the new one.
func TestAReloadRacesADecision(t *testing.T) {
	w := newWorld(t)
	first, _ := w.must(nil)
	old, next := w.judge.Policy(), w.policy(strings.Replace(filesYAML, "object: sales.orders, privileges: SELECT", "object: sales.archive, privileges: SELECT", 1), apiYAML)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if i%2 == 0 {
				w.judge.SetPolicy(next)
			} else {
				w.judge.SetPolicy(old)
			}
		}
	}()
	for range 200 {
		got, err := w.exchange(w.vend(first.Token, func(r *broker.ExchangeRequest) { r.Resources, r.Audiences = nil, []string{"warehouse"} }))
		if err != nil {
			t.Fatal(err)
		}
		e := w.record.last(t, audit.KindExchange)
		version := e.Decision.Policy
		table := map[string]string{old.Versions()[mcp]: "sales.orders", next.Versions()[mcp]: "sales.archive"}[version]
		if table == "" || !strings.Contains(string(got.Details), table) {
			t.Fatalf("version %s granted %s", version, got.Details)
		}
	}
	close(stop)
	<-done
}

func TestLeasesEndInTime(t *testing.T) {
	w := newWorld(t)
	first, _ := w.must(nil)
	got, _ := w.must(w.vend(first.Token, nil))
	w.run(w.b)
	w.clock.move(5 * time.Minute)
	eventually(t, "it is ended when it ran out", func() bool { return w.upstream.living() == 0 })
	eventually(t, "its outcome is recorded", func() bool { return w.record.count(audit.KindLease) == 1 })
	e := w.record.last(t, audit.KindLease)
	if e.Reason != "expired" || e.Lease.ID != got.Lease || e.Lease.Outcome != string(broker.Revoked) {
		t.Errorf("event %+v %+v", e, e.Lease)
	}
}

func TestOutcomesOfRevocation(t *testing.T) {
	lease := func(w *world, id string) *broker.Lease {
		l, err := w.store.Lease(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	vend := func(w *world) string {
		first, _ := w.must(nil)
		got, _ := w.must(w.vend(first.Token, nil))
		return got.Lease
	}
	revoke := func(w *world, id string) {
		if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Lease: id}}); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("in phases", func(t *testing.T) {
		w := newWorld(t)
		id := vend(w)
		w.upstream.pending = 1
		w.run(w.b)
		revoke(w, id)
		eventually(t, "it is disabled first", func() bool { return lease(w, id).Outcome == broker.DisabledPendingKill })
		w.clock.move(3 * time.Second)
		eventually(t, "and then gone", func() bool { return lease(w, id).State == broker.Closed })
		if l := lease(w, id); l.Outcome != broker.Revoked || l.Why != "revoked" {
			t.Errorf("lease %+v", l)
		}
	})
	t.Run("not revocable", func(t *testing.T) {
		w := newWorld(t)
		id := vend(w)
		w.upstream.final = broker.NotRevocableUntil
		w.run(w.b)
		revoke(w, id)
		eventually(t, "it is said until when it lives", func() bool {
			l := lease(w, id)
			return l.State == broker.Closed && l.Outcome == broker.NotRevocableUntil && !l.Until.IsZero()
		})
	})
	t.Run("an upstream that is down", func(t *testing.T) {
		w := newWorld(t)
		id := vend(w)
		w.upstream.revErr = errors.New("down")
		w.run(w.b)
		revoke(w, id)
		for range 12 {
			w.clock.move(6 * time.Minute)
			before := w.upstream.tries()
			eventually(t, "it is tried again", func() bool { return w.upstream.tries() > before })
		}
		eventually(t, "somebody is told", func() bool { return lease(w, id).Outcome == broker.Stuck })
		w.upstream.mu.Lock()
		w.upstream.revErr = nil
		w.upstream.mu.Unlock()
		w.clock.move(6 * time.Minute)
		eventually(t, "it is ended once the upstream is back", func() bool { return lease(w, id).State == broker.Closed && w.upstream.living() == 0 })
	})
}

func (u *upstream) tries() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.revokes
}

func TestTwoReplicasEndALeaseOnce(t *testing.T) {
	w := newWorld(t)
	first, _ := w.must(nil)
	var ids []string
	for range 20 {
		got, _ := w.must(w.vend(first.Token, nil))
		ids = append(ids, got.Lease)
	}
	other := w.broker("r2", &record{}, broker.Head{})
	w.run(w.b)
	w.run(other)
	if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#alice"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are ended", func() bool { return w.upstream.living() == 0 })
	eventually(t, "all are closed", func() bool { n, _ := w.store.Open(context.Background()); return n == 0 })
	if n := w.upstream.tries(); n != len(ids) {
		t.Errorf("%d attempts for %d leases", n, len(ids))
	}
}

func TestAnIntentOfWhichNothingWasHeardIsEnded(t *testing.T) {
	w := newWorld(t)
	l := &broker.Lease{ID: "orphan", State: broker.Intent, Provider: "warehouse", Pos: "1.1", Created: w.clock.Now(), Expires: w.clock.Now().Add(time.Minute), Next: w.clock.Now().Add(time.Second)}
	if err := w.store.Create(context.Background(), l); err != nil {
		t.Fatal(err)
	}
	w.upstream.alive["orphan"] = tables.Everything() // its replica died after the upstream had answered
	w.run(w.b)
	w.clock.move(time.Second)
	eventually(t, "it is ended", func() bool { return w.upstream.living() == 0 })
}

// The replica that mints dies between the upstream's answer and everything else,
// and a revocation has come before: nothing was to be found then.
func TestARevokedIntentIsLookedAtAgainWhenMintingIsOver(t *testing.T) {
	w := newWorld(t)
	now := w.clock.Now()
	l := &broker.Lease{ID: "late", State: broker.Closing, Why: "revoked", Provider: "warehouse", Pos: "1.1", Created: now, Expires: now.Add(time.Minute), Next: now, Deadline: now.Add(10 * time.Second)}
	if err := w.store.Create(context.Background(), l); err != nil {
		t.Fatal(err)
	}
	w.run(w.b)
	eventually(t, "nothing is found yet", func() bool { return w.upstream.tries() == 1 })
	w.upstream.mu.Lock()
	w.upstream.alive["late"] = tables.Everything()
	w.upstream.mu.Unlock()
	w.clock.move(10 * time.Second)
	eventually(t, "it is ended", func() bool { return w.upstream.living() == 0 })
}

func TestSweepEndsOnlyWhatNobodyKnows(t *testing.T) {
	w := newWorld(t)
	first, _ := w.must(nil)
	w.must(w.vend(first.Token, nil))
	w.upstream.alive["stray"] = tables.Everything()
	n, err := w.b.Sweep(context.Background())
	if err != nil || n != 1 || w.upstream.living() != 1 {
		t.Errorf("%d swept, %d alive, %v", n, w.upstream.living(), err)
	}
	// What is found alive after its lease was closed is ended, and the journal goes on
	// knowing the lease: `stint recover` would else bring it back.
	id := w.login(nil)
	l := w.lease(id)
	l.State = broker.Closed
	if err := w.store.Update(context.Background(), l); err != nil {
		t.Fatal(err)
	}
	if n, err := w.b.Sweep(context.Background()); err != nil || n != 1 {
		t.Errorf("closed and alive: %d swept, %v", n, err)
	}
	for _, known := range w.record.leases(t) {
		if known.ID == id && known.Expires.IsZero() {
			t.Errorf("the journal has %+v", known)
		}
	}
	w.store.fail(errors.New("gone"))
	w.upstream.alive["stray"] = tables.Everything()
	if n, _ := w.b.Sweep(context.Background()); n != 0 {
		t.Error("what could not be looked up was ended")
	}
}

func TestExpiryIsTheTokensAtMost(t *testing.T) {
	w := newWorld(t)
	for name, tc := range map[string]struct {
		left time.Duration
		want time.Duration
	}{"the mapping's": {time.Hour, 4 * time.Minute}, "the subject token's": {90 * time.Second, 90 * time.Second}} {
		_, tok := w.must(func(r *broker.ExchangeRequest) {
			r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.Expires = w.clock.Now().Add(tc.left) }))
		})
		if got := tok.Expires.Sub(w.clock.Now()); got != tc.want {
			t.Errorf("%s: %s", name, got)
		}
	}
	_, err := w.exchange(func(r *broker.ExchangeRequest) {
		r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.Expires = w.clock.Now().Add(900 * time.Millisecond) }))
	})
	if broker.CodeOf(err) != broker.BadToken {
		t.Errorf("a token that ends now: %v", err)
	}
}

// What lives as long as its upstream likes is ended when its lease is over.
func TestALeaseIsShorterThanItsCredential(t *testing.T) {
	w := newWorld(t)
	w.upstream.fixed = time.Hour
	first, parent := w.must(nil)
	got, _ := w.must(w.vend(first.Token, nil))
	if !got.Expires.Equal(parent.Expires) {
		t.Errorf("handed out until %s, asked was %s", got.Expires, parent.Expires)
	}
	l := w.lease(got.Lease)
	if !l.Next.Equal(got.Expires) || l.Expires.Sub(got.Expires) != 30*time.Minute {
		t.Errorf("the lease is looked at %s, the credential ends %s", l.Next, l.Expires)
	}
	e := w.record.last(t, audit.KindExchange)
	if c := e.Certificate; c.Given > c.Asked || e.Lease.Expires != l.Expires.Unix() {
		t.Errorf("event %+v %+v", e.Certificate, e.Lease)
	}
	w.run(w.b)
	w.later(got.Expires.Sub(w.clock.Now()) + time.Second)
	eventually(t, "it is ended", func() bool { return w.upstream.living() == 0 })
	if e := w.record.last(t, audit.KindLease); e.Lease.Outcome != string(broker.Revoked) {
		t.Errorf("%+v", e.Lease)
	}

	w.upstream.late = time.Hour // beyond what any of its credentials may
	again, _ := w.must(nil)
	if got, err := w.exchange(w.vend(again.Token, nil)); err == nil {
		t.Errorf("handed out %+v", got)
	}
}

// What may have been made by an answer that nobody heard is ended for as long as it may
// live upstream, not for as long as was asked.
func TestWhatWasNotHeardOfIsEndedForAsLongAsItMayLive(t *testing.T) {
	w := newWorld(t)
	w.upstream.fixed, w.upstream.unlisted = time.Hour, true
	w.upstream.mintErr, w.upstream.revErr = errors.New("no answer"), errors.New("down")
	first, _ := w.must(nil)
	got, err := w.exchange(w.vend(first.Token, nil))
	if err == nil {
		t.Fatalf("handed out %+v", got)
	}
	id := w.record.last(t, audit.KindExchange).Lease.ID
	w.run(w.b)
	for range 5 { // far beyond what was asked
		w.clock.move(6 * time.Minute)
		before := w.upstream.tries()
		eventually(t, "it is tried again", func() bool { return w.upstream.tries() > before })
	}
	if l := w.lease(id); l.State == broker.Closed {
		t.Fatalf("it is let be: %s until %s", l.Outcome, l.Until)
	}
	for range 6 { // beyond what it can live
		w.clock.move(6 * time.Minute)
		time.Sleep(20 * time.Millisecond)
	}
	eventually(t, "it has run out", func() bool {
		w.clock.move(time.Minute)
		l := w.lease(id)
		return l.State == broker.Closed && l.Outcome == broker.UnknownUntil && !l.Until.Before(l.Created.Add(time.Hour))
	})
}

func TestAProviderClaimsURIsOfItsOwn(t *testing.T) {
	w := newWorld(t)
	ask := func() error {
		first, _ := w.must(nil)
		_, err := w.exchange(w.vend(first.Token, func(r *broker.ExchangeRequest) { r.Resources = []string{"https://db.test/sales.orders"} }))
		return err
	}
	if err := ask(); broker.CodeOf(err) != broker.BadTarget {
		t.Errorf("claimed by nobody: %v", err)
	}
	w.upstream.claims = func(uri string) bool { return strings.HasPrefix(uri, "https://db.test/") }
	if err := ask(); err != nil {
		t.Error(err)
	}
	w.reg.Providers["second"] = w.upstream
	if err := ask(); broker.CodeOf(err) != broker.BadTarget || !strings.Contains(err.Error(), "second, warehouse") {
		t.Errorf("claimed by two: %v", err)
	}
}
