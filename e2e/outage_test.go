//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"syscall"
	"testing"
	"time"
)

// fault is a way in which Redis is of no use, and how it ends.
type fault struct {
	name     string
	do, undo func(w *world)
}

var redisFaults = []fault{
	{"stopped", func(w *world) { w.redis.Process.Kill() }, func(w *world) { w.redis.Restart() }},
	{"silent", func(w *world) { w.redis.Process.Signal(syscall.SIGSTOP) }, func(w *world) { w.redis.Process.Signal(syscall.SIGCONT) }},
	{"without memory", func(w *world) { w.redis.Do("CONFIG", "SET", "maxmemory", "1") }, func(w *world) { w.redis.Do("CONFIG", "SET", "maxmemory", "0") }},
	{"without the user", func(w *world) {
		w.redis.Do("ACL", "SETUSER", "stint", "off")
		w.redis.Do("CLIENT", "KILL", "USER", "stint")
	}, func(w *world) { w.redis.Do("ACL", "SETUSER", "stint", "on") }},
	{"without a right", func(w *world) { w.redis.Do("ACL", "SETUSER", "stint", "-xadd", "-set", "-evalsha", "-eval") },
		func(w *world) { w.redis.Do("ACL", "SETUSER", "stint", "+xadd", "+set", "+evalsha", "+eval") }},
}

func testRedisFaults(t *testing.T, w *world) {
	for _, f := range redisFaults {
		ok := t.Run(f.name, func(t *testing.T) {
			token, more := w.alice(t, w.a, everyScope), w.alice(t, w.b, everyScope)
			began := time.Now()
			f.do(w)
			over := false
			defer func() {
				if !over {
					f.undo(w)
				}
			}()
			once := w.atOnce(t, token)
			w.goesOn(t, token, began)
			once()
			w.unavailable(t, token)
			f.undo(w)
			over = true
			w.serves(t, token)
			// What could not be taken back can be now.
			eventually(t, 10*time.Second, "revocation works", func() error {
				if a := w.ask(t, w.a, "/oauth2/revoke", "desktop", url.Values{"token": {more}}); a.Status != http.StatusOK {
					return fmt.Errorf("%s", a)
				}
				return nil
			})
			w.deadBy(t, time.Now().Add(2*time.Second), more)
			eventually(t, 10*time.Second, "assertions are taken", func() error {
				if a := w.byAssertion(t, w.b, token); a.Status != http.StatusOK {
					return fmt.Errorf("%s", a)
				}
				return nil
			})
			w.signOff(t, token)
		})
		if !ok {
			break
		}
	}
}

// goesOn exchanges from the beginning of an outage until that is refused: while a
// replica is current, and no longer.
func (w *world) goesOn(t *testing.T, token string, began time.Time) {
	t.Helper()
	const staleness = 2 * time.Second
	for _, r := range []*replica{w.a, w.b} {
		if a := w.exchange(t, r, "orders-mcp", token, api, "orders:read"); a.Status != http.StatusOK && time.Since(began) < time.Second {
			t.Errorf("replica %s does not go on while it is current: %s", r.Name, a)
		}
	}
	for _, r := range []*replica{w.a, w.b} {
		for {
			asked := time.Now()
			a := w.exchange(t, r, "orders-mcp", token, api, "orders:read")
			if a.Status != http.StatusOK {
				a.want(t, http.StatusServiceUnavailable, "temporarily_unavailable")
				break
			}
			// A heartbeat that was on its way may have been confirmed a little later.
			if late := asked.Sub(began); late > staleness+staleness/2 {
				t.Fatalf("replica %s exchanges %s after the store was gone", r.Name, late)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// atOnce has a client that signs assertions ask at the very beginning of an outage,
// while replicas are still current: whether an assertion was used before cannot be
// known, and so it is not taken. It returns what checks that, once there are
// answers.
func (w *world) atOnce(t *testing.T, token string) (check func()) {
	t.Helper()
	type outcome struct {
		a   *answer
		err error
	}
	outcomes := make(chan outcome, 2)
	for _, r := range []*replica{w.a, w.b} {
		form := w.assertionForm(t, token)
		go func() {
			a, err := w.try(t.Context(), r, "/oauth2/token", "", form)
			outcomes <- outcome{a, err}
		}()
	}
	return func() {
		t.Helper()
		for range cap(outcomes) {
			o := <-outcomes
			if o.err != nil {
				t.Fatal(o.err)
			}
			o.a.want(t, http.StatusServiceUnavailable, "temporarily_unavailable")
		}
	}
}

// unavailable checks that nothing is granted, nothing is called inactive, and no
// revocation is swallowed.
func (w *world) unavailable(t *testing.T, token string) {
	t.Helper()
	for _, r := range []*replica{w.a, w.b} {
		const status, word = http.StatusServiceUnavailable, "temporarily_unavailable"
		w.introspect(t, r, token).want(t, status, word)
		w.exchange(t, r, "orders-mcp", token, "warehouse", "reports:read").want(t, status, word)
		w.ask(t, r, "/oauth2/revoke", "desktop", url.Values{"token": {token}}).want(t, status, word)
		w.byAssertion(t, r, token).want(t, status, word)
		if _, text, code := stint(t, "revoke", "--subject", w.IdP+"#nobody", "--config", r.config); code != 1 {
			t.Errorf("stint revoke: %d %s", code, text)
		}
		if err := okay("http://" + r.Addr + "/readyz"); err == nil {
			t.Errorf("replica %s is ready", r.Name)
		}
		if err := okay("http://" + r.Addr + "/livez"); err != nil {
			t.Errorf("replica %s: %v", r.Name, err)
		}
	}
}

// byAssertion exchanges as the client that signs assertions.
func (w *world) byAssertion(t *testing.T, r *replica, token string) *answer {
	t.Helper()
	return w.ask(t, r, "/oauth2/token", "", w.assertionForm(t, token))
}

func (w *world) assertionForm(t *testing.T, token string) url.Values {
	t.Helper()
	form := exchangeForm(token, api, "orders:read")
	form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	form.Set("client_assertion", w.assertion(t))
	return form
}

func testVaultSealed(t *testing.T, w *world) {
	w.withoutVault(t, func() { w.vault.Seal(t) }, func() { w.vault.Unseal(t) })
}

func testVaultStopped(t *testing.T, w *world) {
	w.withoutVault(t, w.vault.Stop, func() {
		w.vault.Restart(w.t)
		w.vault.Unseal(t)
	})
}

// withoutVault: tokens are exchanged, Vault's logins are not vended, and what was
// revoked meanwhile ends when Vault is back.
func (w *world) withoutVault(t *testing.T, do, undo func()) {
	t.Helper()
	token := w.alice(t, w.a, everyScope)
	before, own := w.vend(t, w.b, token, "stock"), w.vend(t, w.b, token, "warehouse")
	do()
	over := false
	defer func() {
		if !over {
			undo()
		}
	}()
	for _, r := range []*replica{w.a, w.b} {
		w.exchange(t, r, "orders-mcp", token, api, "orders:read").want(t, http.StatusOK, "")
		w.exchange(t, r, "desktop", w.signIn(t, "alice"), mcp, "orders:read").want(t, http.StatusOK, "")
		w.exchange(t, r, "orders-mcp", token, "stock", "stock:read").want(t, http.StatusServiceUnavailable, "temporarily_unavailable")
	}
	w.revoke(t, w.a, "--lease", before.lease)
	w.revoke(t, w.a, "--lease", own.lease)
	w.gone(t, own) // the database needs no Vault
	if err := before.works(t.Context()); err != nil {
		t.Errorf("who ended it, without Vault? %v", err)
	}
	undo()
	over = true
	eventually(t, 40*time.Second, "Vault's logins are vended again", func() error {
		var wrong error
		for _, r := range []*replica{w.a, w.b} {
			if a := w.exchange(t, r, "orders-mcp", token, "stock", "stock:read"); a.Status != http.StatusOK {
				wrong = errors.Join(wrong, fmt.Errorf("replica %s: %s", r.Name, a))
			}
		}
		return wrong
	})
	w.gone(t, before)
	w.signOff(t, token)
}
