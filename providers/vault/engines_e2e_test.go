//go:build e2e

package vault_test

import (
	"crypto/ed25519"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/providers/vault"
)

// testChoices mints what grants choose, of real engines.
func testChoices(t *testing.T, w *shop) {
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	w.Call(t, http.MethodPost, "sys/mounts/ssh", map[string]any{"type": "ssh"})
	w.Call(t, http.MethodPost, "ssh/config/ca", map[string]any{"generate_signing_key": true})
	w.Call(t, http.MethodPost, "ssh/roles/ops", map[string]any{"key_type": "ca", "allow_user_certificates": true, "allowed_users": "*", "max_ttl": "1h"})
	w.Call(t, http.MethodPost, "ssh/roles/once", map[string]any{"key_type": "otp", "default_user": "ops", "cidr_list": "127.0.0.0/8"})
	w.Call(t, http.MethodPost, "pki/roles/names", map[string]any{"allow_any_name": true, "key_type": "ec", "key_bits": 256, "max_ttl": "1h", "generate_lease": true})
	roles := map[string]vault.Role{
		"ops": {
			Engine: "ssh", Mount: "ssh", Path: "sign/ops", Policy: "stint-ops", Method: "write", Revoke: "none", LifetimeParam: "ttl",
			Params: map[string]string{"public_key": string(ssh.MarshalAuthorizedKey(key))}, Choose: map[string][]string{"valid_principals": {"alice", "bob"}},
		},
		"once": {
			Engine: "ssh", Mount: "ssh", Path: "creds/once", Policy: "stint-once", Method: "write",
			Choose: map[string][]string{"ip": {"127.0.0.1", "127.0.0.2"}},
		},
		"names": {
			Engine: "pki", Mount: "pki", Path: "issue/names", Policy: "stint-names", Method: "write", Revoke: "lease", LifetimeParam: "ttl",
			Choose: map[string][]string{"common_name": {"a.test", "b.test"}},
		},
	}
	for name, r := range roles {
		w.setUp(t, "lease", name, r.Mount+"/"+r.Path, "update")
	}
	p := open(t, roles, deps{Engine: w.engine, Now: time.Now})
	mint := func(role, choice string) (*minting, *broker.Minted) {
		t.Helper()
		m := w.ask(t, "web", 10*time.Minute) // for its lease
		g, err := p.Describe().Schema.ParseValue(map[string]any{"mount": roles[role].Mount, "role": role, "params": []any{choice}})
		if err != nil {
			t.Fatal(err)
		}
		if m.Rendered, err = p.Render(g); err != nil {
			t.Fatal(err)
		}
		m.Grant = g
		made, err := p.Mint(t.Context(), m.MintRequest)
		if err != nil {
			t.Fatal(err)
		}
		return m, made
	}

	r, m := mint("ops", "valid_principals=bob")
	out, _, _, _, err := ssh.ParseAuthorizedKey([]byte(read(t, m).Fields["signed_key"]))
	if err != nil {
		t.Fatal(err)
	}
	c := out.(*ssh.Certificate)
	if strings.Join(c.ValidPrincipals, ",") != "bob" || !time.Unix(int64(c.ValidBefore), 0).Equal(m.Expires) || m.Expires.After(r.Expires) {
		t.Errorf("for %v until %d, said is until %s", c.ValidPrincipals, c.ValidBefore, m.Expires)
	}
	if o := r.revoke(t, p); o.State != broker.NotRevocableUntil || !o.Until.Equal(m.Expires) {
		t.Errorf("a signed key: %+v", o)
	}

	r, m = mint("once", "ip=127.0.0.2")
	password := read(t, m).Fields["key"]
	if password == "" || read(t, m).Fields["ip"] != "127.0.0.2" {
		t.Fatalf("%v", read(t, m).Fields)
	}
	if o := r.revoke(t, p); o.State != broker.Revoked {
		t.Errorf("a one-time password: %+v", o)
	}

	r, m = mint("names", "common_name=b.test")
	if cn := certificate(t, m).Subject.CommonName; cn != "b.test" {
		t.Errorf("a certificate for %s", cn)
	}
	if o := r.revoke(t, p); o.State != broker.Revoked {
		t.Errorf("a leased certificate: %+v", o)
	}
}
