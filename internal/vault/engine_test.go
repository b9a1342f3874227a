package vault_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
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
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/vault"
)

// withPKI is a Vault that setup.sh has prepared, with an engine that leases what
// it makes: certificates, revoked with their leases. The policy stint-pki-web is
// for its role web, as setup.sh writes it.
func withPKI(t *testing.T, s testbed.VaultSetup) *testbed.VaultServer {
	t.Helper()
	s.IfCached = true
	v := testbed.StartVault(t, s)
	setUp(t, v)
	setUp(t, v, "lease", "pki-web", "pki/issue/web", "update")
	setUp(t, v, "lease", "kv-one", "secret/data/engine/one")
	v.Call(t, http.MethodPost, "sys/mounts/pki", map[string]any{"type": "pki"})
	v.Call(t, http.MethodPost, "pki/root/generate/internal", map[string]any{"common_name": "root.test", "key_type": "ec", "key_bits": 256})
	for _, role := range []string{"web", "other"} {
		v.Call(t, http.MethodPost, "pki/roles/"+role, map[string]any{
			"allow_any_name": true, "generate_lease": true, "key_type": "ec", "key_bits": 256, "max_ttl": "1h",
		})
	}
	v.Call(t, http.MethodPut, "secret/data/engine/one", map[string]any{"data": map[string]string{"x": "y"}})
	return v
}

func child(t *testing.T, e *vault.Engine, policy string, life time.Duration) (secret.String, string) {
	t.Helper()
	token, accessor, err := e.CreateChild(t.Context(), policy, life, "lease-1")
	if err != nil {
		t.Fatal(err)
	}
	return token, accessor
}

var certificate = map[string]any{"common_name": "a.test", "ttl": "30m"}

// issue asks for a certificate, and returns its lease and serial number.
func issue(t *testing.T, e *vault.Engine, token secret.String) (lease, serial string) {
	t.Helper()
	made, lease, life, err := e.Generate(t.Context(), token, "pki/issue/web", certificate)
	if err != nil {
		t.Fatal(err)
	}
	serial = made["serial_number"].Reveal()
	if lease == "" || serial == "" || !strings.Contains(made["private_key"].Reveal(), "PRIVATE KEY") || life < 29*time.Minute || life > 30*time.Minute {
		t.Fatalf("the lease %q for %s of the certificate %q", lease, life, serial)
	}
	return lease, serial
}

// revoked reports whether Vault has revoked a certificate.
func revoked(t *testing.T, v *testbed.VaultServer, serial string) bool {
	t.Helper()
	data := v.Call(t, http.MethodGet, "pki/cert/"+serial, nil)["data"].(map[string]any)
	return data["revocation_time"].(float64) > 0
}

func wantRevoked(t *testing.T, v *testbed.VaultServer, e *vault.Engine, lease, serial string) {
	t.Helper()
	eventually(t, "the lease ends", func() error {
		if _, err := e.LookupLease(t.Context(), lease); !errors.Is(err, broker.ErrNotFound) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
	if !revoked(t, v, serial) {
		t.Error("the certificate still holds")
	}
}

func TestAChildCanDoOneThing(t *testing.T) {
	t.Parallel()
	v := withPKI(t, testbed.VaultSetup{})
	_, e, _ := open(t, asStint(t, v))
	ctx := t.Context()
	token, accessor := child(t, e, "stint-kv-one", time.Minute)
	made, lease, _, err := e.Generate(ctx, token, "secret/data/engine/one", nil)
	if err != nil || lease != "" || made["data"].Reveal() != `{"x":"y"}` {
		t.Fatalf("%v %q %v", shown(made), lease, err)
	}
	data := v.Call(t, http.MethodPost, "auth/token/lookup-accessor", map[string]any{"accessor": accessor})["data"].(map[string]any)
	for name, want := range map[string]any{
		"policies": "[stint-kv-one]", "orphan": true, "renewable": false, "num_uses": 1, "explicit_max_ttl": 60, "type": "service",
		"meta": "map[lease:lease-1]", "entity_id": "", "role": "stint", "display_name": "token-lease-1",
	} {
		if got := fmt.Sprint(data[name]); got != fmt.Sprint(want) {
			t.Errorf("%s is %s, not %v", name, got, want)
		}
	}
	for path, params := range map[string]map[string]any{
		"secret/data/engine/two": nil, "secret/data/stint/keys/sealing": nil, "pki/issue/web": certificate, "secret/metadata/engine/one": nil,
	} {
		token, _ := child(t, e, "stint-kv-one", time.Minute)
		_, _, _, err := e.Generate(ctx, token, path, params)
		wantText(t, err, "vault answers 403")
		wantCode(t, err, broker.Internal)
	}
	token, _ = child(t, e, "stint-pki-web", time.Minute)
	_, _, _, err = e.Generate(ctx, token, "pki/issue/other", certificate)
	wantText(t, err, "vault answers 403")
}

func TestNoChildHasAPolicyThatIsNotForCredentials(t *testing.T) {
	t.Parallel()
	v := withPKI(t, testbed.VaultSetup{})
	_, e, _ := open(t, asStint(t, v))
	before := len(accessors(t, v))
	for _, policy := range []string{"stint", "root", "default", "other", "xstint-kv-one"} {
		_, _, err := e.CreateChild(t.Context(), policy, time.Minute, "lease-1")
		wantText(t, err, "vault answers 400")
		wantCode(t, err, broker.Internal)
	}
	for _, policy := range []string{"", "stint-a/b", "../x", "stint-*", "stint-a,root"} {
		_, _, err := e.CreateChild(t.Context(), policy, time.Minute, "lease-1")
		wantText(t, err, "no token with the policy")
	}
	_, _, err := e.CreateChild(t.Context(), "stint-kv-one", 0, "lease-1")
	wantText(t, err, "no token with the policy")
	if n := len(accessors(t, v)); n != before+1 { // our own
		t.Errorf("%d tokens were made", n-before-1)
	}
}

func TestRevokingTheChildEndsWhatItLeased(t *testing.T) {
	t.Parallel()
	v := withPKI(t, testbed.VaultSetup{})
	_, e, _ := open(t, asStint(t, v))
	token, accessor := child(t, e, "stint-pki-web", 10*time.Minute)
	lease, serial := issue(t, e, token)
	expires, err := e.LookupChild(t.Context(), accessor)
	if left := time.Until(expires); err != nil || left > 10*time.Minute || left < 9*time.Minute {
		t.Errorf("the child lives for %s, %v", left, err)
	}
	expires, err = e.LookupLease(t.Context(), lease)
	if left := time.Until(expires); err != nil || left > 31*time.Minute || left < 29*time.Minute {
		t.Errorf("the lease is for %s, %v", left, err)
	}
	if revoked(t, v, serial) {
		t.Fatal("revoked before its time")
	}
	began := time.Now()
	if err := e.RevokeChild(t.Context(), accessor); err != nil {
		t.Fatal(err)
	}
	wantRevoked(t, v, e, lease, serial)
	t.Logf("revoked after %s", time.Since(began))
	wantError(t, e.RevokeChild(t.Context(), accessor), broker.ErrNotFound)
	_, err = e.LookupChild(t.Context(), accessor)
	wantError(t, err, broker.ErrNotFound)
	_, _, _, err = e.Generate(t.Context(), token, "pki/issue/web", certificate)
	wantText(t, err, "vault answers 403")
	if err := e.RevokeLease(t.Context(), lease); err != nil {
		t.Errorf("a lease that has ended: %v", err)
	}
}

func TestRevokingALeaseIsDoneWhenItReturns(t *testing.T) {
	t.Parallel()
	v := withPKI(t, testbed.VaultSetup{})
	_, e, _ := open(t, asStint(t, v))
	token, accessor := child(t, e, "stint-pki-web", 10*time.Minute)
	lease, serial := issue(t, e, token)
	if err := e.RevokeLease(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	if !revoked(t, v, serial) {
		t.Error("the certificate still holds")
	}
	_, err := e.LookupLease(t.Context(), lease)
	wantError(t, err, broker.ErrNotFound)
	if err := e.RevokeChild(t.Context(), accessor); err != nil {
		t.Error(err)
	}
	for _, err := range []error{e.RevokeLease(t.Context(), ""), e.RevokeChild(t.Context(), "")} {
		wantText(t, err, "which?")
	}
}

func TestAChildEndsWithItsTimeAndWhatItLeasedToo(t *testing.T) {
	t.Parallel()
	v := withPKI(t, testbed.VaultSetup{})
	_, e, _ := open(t, asStint(t, v))
	token, accessor := child(t, e, "stint-pki-web", 2*time.Second)
	lease, serial := issue(t, e, token)
	wantRevoked(t, v, e, lease, serial)
	_, err := e.LookupChild(t.Context(), accessor)
	wantError(t, err, broker.ErrNotFound)
}

func TestAChildThatIsUsedAgainEndsWithItsCredential(t *testing.T) {
	t.Parallel()
	v := withPKI(t, testbed.VaultSetup{})
	_, e, _ := open(t, asStint(t, v))
	token, _ := child(t, e, "stint-pki-web", 10*time.Minute)
	lease, serial := issue(t, e, token)
	if _, _, _, err := e.Generate(t.Context(), token, "pki/issue/web", certificate); err == nil {
		t.Error("one child made two credentials")
	}
	wantRevoked(t, v, e, lease, serial)
}

func TestCredentialsOutliveTheLoginThatMadeThem(t *testing.T) {
	t.Parallel()
	v := withPKI(t, testbed.VaultSetup{})
	cfg := asStint(t, v)
	s, e, d := open(t, cfg)
	token, accessor := child(t, e, "stint-pki-web", 10*time.Minute)
	lease, serial := issue(t, e, token)
	endTokens := func() { // ours, and not the child
		for _, a := range accessors(t, v) {
			data := v.Call(t, http.MethodPost, "auth/token/lookup-accessor", map[string]any{"accessor": a})["data"].(map[string]any)
			if data["display_name"] == "approle" {
				v.Call(t, http.MethodPost, "auth/token/revoke-accessor", map[string]any{"accessor": a})
			}
		}
	}
	endTokens()
	d.clock.Move(2 * time.Second)
	if _, err := e.LookupLease(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, again, _ := open(t, cfg)
	if _, err := again.LookupChild(t.Context(), accessor); err != nil {
		t.Fatal(err)
	}
	if revoked(t, v, serial) {
		t.Error("the certificate ended with the login")
	}
	if err := again.RevokeChild(t.Context(), accessor); err != nil { // by another replica
		t.Fatal(err)
	}
	wantRevoked(t, v, again, lease, serial)
}

func TestATokenRoleThatIsNotAsItShouldBeIsFoundOut(t *testing.T) {
	t.Parallel()
	v := withPKI(t, testbed.VaultSetup{})
	_, e, _ := open(t, asStint(t, v))
	child(t, e, "stint-kv-one", time.Minute)
	before := len(accessors(t, v))
	for what, c := range map[string]struct {
		role map[string]any
		says string // empty: it is no matter
	}{
		"children that have the default policy": {map[string]any{"token_no_default_policy": false}, ""},
		"children that may be renewed":          {map[string]any{"renewable": true}, ""},
		"children that end with the login":      {map[string]any{"orphan": false}, "it is no orphan"},
		"children that are batch tokens":        {map[string]any{"token_type": "batch", "token_explicit_max_ttl": "0"}, "vault answers 400"},
		"children with fewer uses":              {map[string]any{"token_num_uses": 1}, "it may be used 1 times"},
	} {
		t.Run(what, func(t *testing.T) {
			role := map[string]any{
				"allowed_policies_glob": "stint-*", "orphan": true, "renewable": false, "token_no_default_policy": true,
				"token_type": "service", "token_num_uses": 0,
			}
			for name, value := range c.role {
				role[name] = value
			}
			v.Call(t, http.MethodPost, "auth/token/roles/stint", role)
			_, accessor, err := e.CreateChild(t.Context(), "stint-kv-one", time.Minute, "lease-1")
			if c.says == "" {
				if err := errors.Join(err, e.RevokeChild(t.Context(), accessor)); err != nil {
					t.Fatal(err)
				}
			} else {
				wantText(t, err, c.says)
			}
			if n := len(accessors(t, v)); n != before {
				t.Errorf("%d tokens are left", n-before)
			}
		})
	}
}

func TestOnlyEnginesAreAskedForCredentials(t *testing.T) {
	_, e, _ := hostile(t, func(http.ResponseWriter, *http.Request) { t.Error("asked") })
	for _, path := range append([]string{
		"sys/policy", "auth/token/create", "identity/entity", "cubbyhole/x", "sys", "db/creds/../../sys/seal", "db/creds/.x",
	}, badPaths...) {
		if path == "A" || path == "a.b" || strings.HasPrefix(path, "aa") && len(path) < 256 {
			continue // mounts may be so named
		}
		if _, _, _, err := e.Generate(t.Context(), secret.New("hvs.child"), path, nil); err == nil || broker.CodeOf(err) != broker.Internal {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestWhatAnEngineAnswersIsTold(t *testing.T) {
	for text, c := range map[string]struct {
		status int
		code   broker.Code
	}{
		"unknown role: x":             {http.StatusBadRequest, broker.Internal},
		"permission denied":           {http.StatusForbidden, broker.Internal},
		"no handler for route":        {http.StatusNotFound, broker.Internal},
		"a rate limit":                {http.StatusTooManyRequests, broker.Unavailable},
		"a standby":                   {http.StatusPreconditionFailed, broker.Unavailable},
		"a standby of another":        {473, broker.Unavailable},
		"failed to connect to the db": {http.StatusInternalServerError, broker.Unavailable},
		"Vault is sealed":             {http.StatusServiceUnavailable, broker.Unavailable},
	} {
		_, e, _ := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			_, _ = fmt.Fprintf(w, `{"errors":[%q]}`, text)
		})
		_, _, _, err1 := e.Generate(t.Context(), secret.New("hvs.child"), "db/creds/x", nil)
		_, _, err2 := e.CreateChild(t.Context(), "stint-x", time.Minute, "lease-1")
		_, err3 := e.LookupChild(t.Context(), "a")
		_, err4 := e.LookupLease(t.Context(), "a")
		for _, err := range []error{err1, err2, e.RevokeLease(t.Context(), "a"), e.RevokeChild(t.Context(), "a"), err3, err4} {
			wantCode(t, err, c.code)
			wantText(t, err, text)
			if errors.Is(err, broker.ErrNotFound) {
				t.Errorf("%s: taken for gone", text)
			}
		}
	}
	_, e, _ := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"errors":[]}`))
	})
	_, _, _, err := e.Generate(t.Context(), secret.New("hvs.child"), "db/creds/x", nil)
	wantError(t, err, broker.ErrNotFound)
}

func TestEndingCredentialsWaitsForASealedVaultAndThenWorks(t *testing.T) {
	t.Parallel()
	v := withPKI(t, testbed.VaultSetup{Durable: true})
	_, e, _ := open(t, asStint(t, v))
	token, accessor := child(t, e, "stint-pki-web", 10*time.Minute)
	lease, serial := issue(t, e, token)
	v.Seal(t)
	for _, err := range []error{e.RevokeLease(t.Context(), lease), e.RevokeChild(t.Context(), accessor)} {
		wantCode(t, err, broker.Unavailable)
	}
	v.Unseal(t)
	eventually(t, "the child is revoked", func() error { return e.RevokeChild(context.WithoutCancel(t.Context()), accessor) })
	wantRevoked(t, v, e, lease, serial)
}

func TestAKeySignsWithoutLeavingVault(t *testing.T) {
	v := withPKI(t, testbed.VaultSetup{})
	_, e, _ := open(t, asStint(t, v))
	v.Call(t, http.MethodPost, "sys/mounts/transit", map[string]any{"type": "transit"})
	v.Call(t, http.MethodPost, "transit/keys/app", map[string]any{"type": "rsa-2048", "exportable": false})
	data := v.Call(t, http.MethodGet, "transit/keys/app", nil)["data"].(map[string]any)
	text := data["keys"].(map[string]any)["1"].(map[string]any)["public_key"].(string)
	block, _ := pem.Decode([]byte(text))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("header.claims")
	signature, err := e.Sign(t.Context(), "app", message)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(message)
	if err := rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), crypto.SHA256, sum[:], signature); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"none", "../../sys", "a/b", "", "app/../app"} {
		if s, err := e.Sign(t.Context(), key, message); err == nil {
			t.Errorf("%q signs %x", key, s)
		}
	}
}
