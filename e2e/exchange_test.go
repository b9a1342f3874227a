//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
)

// Everything that Stint is for, once through, at two replicas of one installation.
func TestExchange(t *testing.T) {
	w := newWorld(t, options{})
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"alice's agent gets a token for what it asked, and never more", testNarrow},
		{"a login that is vended opens its table and no other", testLogins},
		{"a session that is revoked is dead at every replica, and its logins upstream", testRevoke},
		{"bob is refused, and explain names the group that he lacks", testBob},
		{"a client's assertion is good once", testAssertionReplay},
		{"a token for one call is good once", testOnce},
		{"revocations and leases survive a replica that is killed", testKill},
		{"leases end when a replica dies right after it took them back", testKillAfterRevoking},
	} {
		if !t.Run(test.name, func(t *testing.T) { test.run(t, w) }) {
			break
		}
	}
}

func testNarrow(t *testing.T, w *world) {
	signIn := w.signIn(t, "alice")
	a := w.exchange(t, w.b, "desktop", signIn, mcp, "orders:read").want(t, http.StatusOK, "")
	c := claims(t, a.Token)
	if c["aud"] != mcp || c["sub"] != w.IdP+"#alice" || c["iss"] != w.Issuer || c["scope"] != "orders:read" || a.Scope != "orders:read" {
		t.Errorf("got %v", c)
	}
	// A token of one replica is good at the other.
	if i := w.introspect(t, w.a, a.Token); !i.Active {
		t.Errorf("introspection: %s", i)
	}
	down := w.exchange(t, w.a, "orders-mcp", a.Token, api, "orders:read").want(t, http.StatusOK, "")
	if i := w.introspect(t, w.b, down.Token); !i.Active || claims(t, down.Token)["aud"] != api {
		t.Errorf("introspection: %s", i)
	}
	for _, tt := range []struct {
		name, as, subject, target, scope, word string
	}{
		{"a scope that no rule gives her", "desktop", signIn, mcp, "orders:write", "invalid_scope"},
		{"the one that she may have and one that she may not", "desktop", signIn, mcp, "orders:read orders:write", "invalid_scope"},
		{"a scope that there is not", "desktop", signIn, mcp, "orders:delete", "invalid_scope"},
		{"no scope", "desktop", signIn, mcp, "", "invalid_scope"},
		{"more at the API than the token holds", "orders-mcp", a.Token, api, "orders:write", "invalid_scope"},
		{"a login for which the token has no scope", "orders-mcp", a.Token, "warehouse", "reports:read", "invalid_scope"},
		{"a resource that is not the client's", "desktop", signIn, api, "orders:read", "invalid_target"},
		{"a token that is for somebody else", "desktop", down.Token, mcp, "orders:read", "invalid_request"},
		{"a token that nobody signed", "desktop", signIn[:len(signIn)-8] + "AAAAAAAA", mcp, "orders:read", "invalid_request"},
	} {
		for _, r := range []*replica{w.a, w.b} {
			if got := w.exchange(t, r, tt.as, tt.subject, tt.target, tt.scope); got.Status != http.StatusBadRequest || got.Error != tt.word {
				t.Errorf("%s: got %s, want 400 %s", tt.name, got, tt.word)
			}
		}
	}
}

func testLogins(t *testing.T, w *world) {
	token := w.alice(t, w.a, everyScope)
	for _, provider := range []string{"warehouse", "stock"} {
		for _, r := range []*replica{w.a, w.b} {
			l := w.vend(t, r, token, provider)
			c, err := l.open(t.Context())
			if err != nil {
				t.Fatalf("%s: %v", provider, err)
			}
			if err := l.reads(t.Context(), c, l.table); err != nil {
				t.Errorf("%s: its own table: %v", provider, err)
			}
			for _, table := range []string{"sales.orders", "sales.stock", "sales.salaries"} {
				if table == l.table {
					continue
				}
				if err := l.reads(t.Context(), c, table); !forbidden(err) {
					t.Errorf("%s: %s: %v", provider, table, err)
				}
			}
			for _, statement := range []string{"DELETE FROM ", "INSERT INTO ", "DROP TABLE "} {
				if statement == "INSERT INTO " {
					statement += l.table + " VALUES (9)"
				} else {
					statement += l.table
				}
				if _, err := c.Exec(t.Context(), statement); !forbidden(err) {
					t.Errorf("%s: %s: %v", provider, statement, err)
				}
			}
			_ = c.Close(context.Background())
		}
	}
}

// deadBy fails the test if a token is active at any replica for somebody who asks
// after a moment. Before, it may be.
func (w *world) deadBy(t *testing.T, bound time.Time, token string) {
	t.Helper()
	for _, r := range []*replica{w.a, w.b} {
		for {
			asked := time.Now()
			i := w.introspect(t, r, token).want(t, http.StatusOK, "")
			if !i.Active {
				break
			}
			if asked.After(bound) {
				t.Fatalf("replica %s takes the token for good %s after the bound", r.Name, asked.Sub(bound))
			}
		}
		as, target := "orders-mcp", api
		if got := w.exchange(t, r, as, token, target, "orders:read"); got.Status != http.StatusBadRequest || got.Error != "invalid_request" {
			t.Errorf("replica %s exchanges it: %s", r.Name, got)
		}
	}
}

func testRevoke(t *testing.T, w *world) {
	token, other := w.alice(t, w.a, everyScope), w.alice(t, w.b, everyScope)
	own, lent, spared := w.vend(t, w.a, token, "warehouse"), w.vend(t, w.b, token, "stock"), w.vend(t, w.a, other, "warehouse")
	c, err := own.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	got := w.revoke(t, w.a, "--session", w.session(t, token))
	if wait := time.Until(got.Bound); wait > 2*time.Second { // max_staleness
		t.Errorf("the bound is %s away", wait)
	}
	w.deadBy(t, got.Bound, token)
	w.gone(t, own, lent)
	if err := own.reads(t.Context(), c, own.table); err == nil {
		t.Error("a connection that was open goes on")
	}
	for _, l := range []*login{own, lent} {
		eventually(t, 5*time.Second, "the outcome is in the record", func() error {
			if e := w.outcome(t, l); e == nil || e.Lease.Outcome != string(broker.Revoked) || e.Reason != "revoked" {
				return fmt.Errorf("it is %+v", e)
			}
			return nil
		})
	}
	e := w.find(t, func(e audit.Event) bool {
		return e.Kind == audit.KindRevocation && e.Revocation.Position == got.Position
	})
	if e == nil || e.Outcome != audit.Done || e.Revocation.Reason != "test" || e.Party.Operator == "" {
		t.Errorf("the record has %+v", e)
	}
	// Alice's other session has nothing to do with it.
	if i := w.introspect(t, w.b, other); !i.Active {
		t.Errorf("another session: %s", i)
	}
	if err := spared.works(t.Context()); err != nil {
		t.Errorf("another session's login: %v", err)
	}
	w.signOff(t, other)
	w.gone(t, spared)
}

// signOff revokes a token as its client does, by RFC 7009.
func (w *world) signOff(t *testing.T, token string) {
	t.Helper()
	if a := w.ask(t, w.b, "/oauth2/revoke", "desktop", url.Values{"token": {token}}); a.Status != http.StatusOK {
		t.Fatalf("revoke: %s", a)
	}
}

// outcome is what became of a lease, as either replica has it on record.
func (w *world) outcome(t *testing.T, l *login) *audit.Event {
	t.Helper()
	return w.find(t, func(e audit.Event) bool {
		return e.Kind == audit.KindLease && e.Lease.ID == l.lease && e.Lease.Outcome != ""
	})
}

func testBob(t *testing.T, w *world) {
	signIn := w.signIn(t, "bob")
	for _, r := range []*replica{w.a, w.b} {
		a := w.exchange(t, r, "desktop", signIn, mcp, "orders:read").want(t, http.StatusBadRequest, "invalid_scope")
		if strings.Contains(string(a.Body), "engineering") {
			t.Errorf("he is told which group he lacks: %s", a)
		}
	}
	file := w.write(t, "bob.jwt", signIn)
	var said broker.Explanation
	explain := func(more ...string) int {
		t.Helper()
		out, text, code := stint(t, append([]string{
			"explain", "-o", "json", "--config", w.a.config, "--client", "desktop", "--resource", mcp, "--scope", "orders:read",
		}, more...)...)
		said = broker.Explanation{}
		if err := json.Unmarshal([]byte(out), &said); err != nil {
			t.Fatalf("%v: %s%s", err, out, text)
		}
		return code
	}
	if code := explain("--token", file); code != 3 || said.Allowed || said.Code != broker.BadScope || said.Subject != w.IdP+"#bob" {
		t.Errorf("%d: %+v", code, said)
	}
	if !slices.ContainsFunc(said.Nearest, func(s string) bool { return strings.Contains(s, "engineering") }) {
		t.Errorf("what would have helped is %q", said.Nearest)
	}
	// What it names is what helps.
	if code := explain("--subject", w.IdP+"#bob", "--group", "engineering", "--agent", "desktop"); code != 0 || !said.Allowed {
		t.Errorf("with the group: %d: %+v", code, said)
	}
}

func testKill(t *testing.T, w *world) {
	token, dead := w.alice(t, w.a, everyScope), w.alice(t, w.a, everyScope)
	own, lent := w.vend(t, w.a, token, "warehouse"), w.vend(t, w.a, token, "stock")
	w.deadBy(t, w.revoke(t, w.a, "--session", w.session(t, dead)).Bound, dead)
	w.a.kill()
	if i := w.introspect(t, w.b, token); !i.Active {
		t.Errorf("at the other replica: %s", i)
	}
	if i := w.introspect(t, w.b, dead); i.Active {
		t.Errorf("what was revoked at the one that died is good: %s", i)
	}
	w.a.start(t)
	w.deadBy(t, time.Time{}, dead) // from the first answer on
	if i := w.introspect(t, w.a, token); !i.Active {
		t.Errorf("after the start: %s", i)
	}
	for _, l := range []*login{own, lent} {
		if err := l.works(t.Context()); err != nil {
			t.Errorf("%s after the start: %v", l.user, err)
		}
		w.revoke(t, w.a, "--lease", l.lease)
	}
	w.gone(t, own, lent)
}

func testKillAfterRevoking(t *testing.T, w *world) {
	token := w.alice(t, w.a, everyScope)
	own, lent := w.vend(t, w.a, token, "warehouse"), w.vend(t, w.a, token, "stock")
	got := w.revoke(t, w.a, "--session", w.session(t, token))
	w.a.kill()
	w.gone(t, own, lent)
	w.a.start(t)
	w.deadBy(t, got.Bound, token)
	var wrong error
	for _, l := range []*login{own, lent} {
		eventually(t, 30*time.Second, "the outcome is in the record", func() error {
			if w.outcome(t, l) == nil {
				return errors.New("there is none")
			}
			return nil
		})
		if e := w.outcome(t, l); e.Lease.Outcome != string(broker.Revoked) && e.Lease.Outcome != string(broker.AlreadyDead) {
			wrong = errors.Join(wrong, fmt.Errorf("%s: %+v", l.user, e.Lease))
		}
	}
	if wrong != nil {
		t.Error(wrong)
	}
	// What is printed for people is there, too.
	if out := must(t, "audit", "tail", "--config", w.a.config); !strings.Contains(out, "server started") {
		t.Errorf("the record: %s", out)
	}
	if _, err := os.Stat(filepath.Join(w.a.data, "stint.sock")); err != nil {
		t.Error(err)
	}
}
