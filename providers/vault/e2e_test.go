//go:build e2e

package vault_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	vaultstore "github.com/stint-dev/stint/internal/vault"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/providers/vault"
)

// TestProvider runs what can share one Vault, one after the other: each looks for
// what is left.
func TestProvider(t *testing.T) {
	w := newShop(t)
	t.Run("contract", func(t *testing.T) {
		h := w.harness(t)
		h.Upstream = "Vault 1.21, on PostgreSQL 15"
		h.Overgrants = map[string]broker.Provider{}
		only := map[string]vault.Role{"orders-reader": shelf["orders-reader"].Role, "orders-writer": shelf["orders-writer"].Role}
		for name, e := range map[string]vault.Engine{"a lease of another role": elsewhere{w.engine}, "a token that lives longer": longer{w.engine}} {
			h.Overgrants[name] = open(t, only, deps{Engine: e, Now: time.Now})
		}
		providertest.Run(t, h)
	})
	for _, test := range []struct {
		name string
		run  func(*testing.T, *shop)
	}{
		{"an upstream that does not let go is told of, and tried again", testStuckUpstream},
		{"a credential ends with its child", testExpiry},
		{"a lease that ends before its child is told of", testShortLease},
		{"what was lost on the way ends with its token", testLostAnswer},
		{"what is made while its token is ended can be ended", testRevokedMeanwhile},
		{"what the policy does not allow is not made", testForbidden},
		{"what the engine could not make leaves nothing", testBroken},
		{"what nobody leases is said to last", testUnleased},
		{"a leased certificate is revoked", testLeasedCertificate},
		{"what is not leased is not vended as if it were", testMisread},
		{"a grant chooses", testChoices},
		{"a Vault that is sealed", testSealed}, // the last: it stays so
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, w)
			if t.Failed() || test.name == "a Vault that is sealed" {
				return
			}
			if left := w.remains(t); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func testStuckUpstream(t *testing.T, w *shop) {
	r, m := w.mint(t, "orders-reader", 10*time.Minute)
	login := read(t, m).Fields["username"]
	// Another database depends on the role: DROP ROLE fails, and all with it.
	other := w.pg.Database(t)
	w.sql(t, fmt.Sprintf(`GRANT CONNECT ON DATABASE %s TO %q`, other, login))
	w.pg.Exec(t, other, fmt.Sprintf(`CREATE TABLE theirs (id integer); GRANT SELECT ON theirs TO %q`, login))
	for range 2 {
		o, err := r.tryRevoke(t, w.provider)
		if err == nil || broker.CodeOf(err) != broker.Internal || !strings.Contains(err.Error(), "400") {
			t.Fatalf("%+v, %v", o, err)
		}
		if !w.works(t, m) {
			t.Fatal("it is not alive after all: this shows nothing")
		}
	}
	past := *r
	past.Expires = time.Now().Add(-time.Second)
	if o, err := past.tryRevoke(t, w.provider); err != nil || o.State != broker.Stuck {
		t.Errorf("past its time: %+v, %v", o, err)
	}
	w.pg.Exec(t, other, fmt.Sprintf(`DROP OWNED BY %q`, login))
	if o := r.revoke(t, w.provider); o.State != broker.Revoked || w.works(t, m) {
		t.Errorf("%+v", o)
	}
	if o := r.revoke(t, w.provider); o.State != broker.AlreadyDead {
		t.Errorf("%+v", o)
	}
}

func testExpiry(t *testing.T, w *shop) {
	r, m := w.mint(t, "orders-reader", 6*time.Second)
	if !w.works(t, m) {
		t.Fatal("a fresh login does not work")
	}
	eventually(t, "the login ends with its token", func() bool { return len(w.remains(t)) == 0 })
	if late := time.Since(r.Expires); late > 3*time.Second || w.works(t, m) {
		t.Errorf("ended %s after what was asked", late)
	}
	if o := r.revoke(t, w.provider); o.State != broker.AlreadyDead {
		t.Errorf("%+v", o)
	}
}

func testShortLease(t *testing.T, w *shop) {
	r, m := w.mint(t, "orders-short", 10*time.Minute)
	if ends := w.ends(t, m); ends.Sub(m.Expires).Abs() > 2*time.Second || time.Until(m.Expires) > 30*time.Second {
		t.Errorf("says until %s, Vault until %s", m.Expires, ends)
	}
	if o := r.revoke(t, w.provider); o.State != broker.Revoked {
		t.Errorf("%+v", o)
	}
}

// lossy is a Vault whose answers to Generate are lost on the way.
type lossy struct{ *vaultstore.Engine }

func (l lossy) Generate(ctx context.Context, token secret.String, path string, params map[string]any) (map[string]secret.String, string, time.Duration, error) {
	if _, _, _, err := l.Engine.Generate(ctx, token, path, params); err != nil {
		return nil, "", 0, err
	}
	return nil, "", 0, broker.Fail(broker.Unavailable, nil, "connection reset by peer")
}

func testLostAnswer(t *testing.T, w *shop) {
	p := open(t, map[string]vault.Role{"orders-reader": shelf["orders-reader"].Role}, deps{Engine: lossy{w.engine}, Now: time.Now})
	r := w.ask(t, "orders-reader", 10*time.Minute)
	if _, err := p.Mint(t.Context(), r.MintRequest); broker.CodeOf(err) != broker.Unavailable {
		t.Fatal(err)
	}
	if len(w.users(t)) != 1 {
		t.Fatalf("there are %q: this shows nothing", w.users(t))
	}
	for range 2 {
		if o := r.revoke(t, p); o.State != broker.UnknownUntil || !o.Until.Equal(r.Expires) {
			t.Errorf("%+v", o)
		}
	}
	eventually(t, "the login ends with its token", func() bool { return len(w.remains(t)) == 0 })
}

// elsewhere is a Vault that leases by another role than it was asked for.
type elsewhere struct{ *vaultstore.Engine }

func (e elsewhere) Generate(ctx context.Context, token secret.String, path string, params map[string]any) (map[string]secret.String, string, time.Duration, error) {
	made, lease, life, err := e.Engine.Generate(ctx, token, path, params)
	return made, strings.Replace(lease, "/orders-", "/all-orders-", 1), life, err
}

// longer is a Vault whose tokens live longer than was asked.
type longer struct{ *vaultstore.Engine }

func (l longer) LookupChild(ctx context.Context, accessor string) (time.Time, error) {
	ends, err := l.Engine.LookupChild(ctx, accessor)
	return ends.Add(time.Hour), err
}

func testRevokedMeanwhile(t *testing.T, w *shop) {
	r := w.ask(t, "orders-slow", 10*time.Minute)
	noted := make(chan []byte, 2)
	r.Note = func(handle []byte) error { noted <- handle; return nil }
	type answer struct {
		*broker.Minted
		error
	}
	answered := make(chan answer, 1)
	go func() { m, err := w.provider.Mint(t.Context(), r.MintRequest); answered <- answer{m, err} }()
	r.noted = <-noted
	eventually(t, "Vault is at it", func() bool {
		return len(w.pg.Query(t, w.db, `SELECT pid FROM pg_stat_activity WHERE query ~ 'pg_sleep' AND pid <> pg_backend_pid()`)) > 0
	})
	o := r.revoke(t, w.provider)
	if o.State != broker.UnknownUntil {
		t.Errorf("%+v", o)
	}
	a := <-answered
	r.noted = <-noted
	// Vault has leased it all the same, for as long as the engine likes.
	if users := w.users(t); len(users) != 1 || !errors.Is(a.error, broker.ErrNotFound) {
		t.Fatalf("%+v, %v, there are %q", a.Minted, a.error, users)
	}
	if o := r.revoke(t, w.provider); o.State != broker.Revoked {
		t.Errorf("%+v", o)
	}
}

func testForbidden(t *testing.T, w *shop) {
	r := w.ask(t, "orders-forbidden", time.Minute)
	if _, err := w.provider.Mint(t.Context(), r.MintRequest); err == nil || !strings.Contains(err.Error(), "403") || broker.CodeOf(err) != broker.Internal {
		t.Errorf("%v", err)
	}
	if o := r.revoke(t, w.provider); o.State != broker.UnknownUntil {
		t.Errorf("%+v", o)
	}
}

func testBroken(t *testing.T, w *shop) {
	r := w.ask(t, "orders-broken", time.Minute)
	if _, err := w.provider.Mint(t.Context(), r.MintRequest); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("%v", err)
	}
	r.revoke(t, w.provider)
}

func certificate(t testing.TB, m *broker.Minted) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(read(t, m).Fields["certificate"]))
	if block == nil {
		t.Fatal("no certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func testUnleased(t *testing.T, w *shop) {
	r, m := w.mint(t, "web", 10*time.Minute)
	c := certificate(t, m)
	if !c.NotAfter.Equal(m.Expires) || c.NotAfter.After(r.Expires) || time.Until(c.NotAfter) < 9*time.Minute || c.Subject.CommonName != "web.test" {
		t.Errorf("until %s, says %s, asked was %s", c.NotAfter, m.Expires, r.Expires)
	}
	if m.Evidence != broker.Asserted || read(t, m).Revocable || !strings.Contains(read(t, m).Fields["private_key"], "PRIVATE KEY") {
		t.Errorf("%+v", m)
	}
	for range 2 {
		if o := r.revoke(t, w.provider); o.State != broker.NotRevocableUntil || !o.Until.Equal(c.NotAfter) {
			t.Errorf("%+v", o)
		}
	}
}

func testLeasedCertificate(t *testing.T, w *shop) {
	r, m := w.mint(t, "web-leased", 10*time.Minute)
	serial := read(t, m).Fields["serial_number"]
	if m.Evidence != broker.Echoed || !strings.HasPrefix(m.Upstream["lease"], "pki/issue/leased/") {
		t.Errorf("%+v", m)
	}
	if o := r.revoke(t, w.provider); o.State != broker.Revoked {
		t.Errorf("%+v", o)
	}
	if at := w.data(t, http.MethodGet, "pki/cert/"+serial, nil)["revocation_time"]; at == 0.0 {
		t.Error("the certificate still holds")
	}
}

func testMisread(t *testing.T, w *shop) {
	r := w.ask(t, "web-misread", time.Minute)
	if _, err := w.provider.Mint(t.Context(), r.MintRequest); err == nil || !strings.Contains(err.Error(), "revoke: none") {
		t.Errorf("%v", err)
	}
	if o := r.revoke(t, w.provider); o.State != broker.UnknownUntil {
		t.Errorf("%+v", o)
	}
}

func testSealed(t *testing.T, w *shop) {
	r, _ := w.mint(t, "orders-reader", time.Minute)
	w.Seal(t)
	if err := w.provider.Describe().Ready(t.Context()); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("ready: %v", err)
	}
	if o, err := r.tryRevoke(t, w.provider); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := w.provider.Mint(t.Context(), w.ask(t, "orders-reader", time.Minute).MintRequest); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("mint: %v", err)
	}
}
