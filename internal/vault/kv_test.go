package vault_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/vault"
)

func TestSeveralThingsThatAreNotKVVersionTwo(t *testing.T) {
	t.Parallel()
	v := testbed.VaultIfCached(t)
	v.Call(t, http.MethodPost, "sys/mounts/old", map[string]any{"type": "kv", "options": map[string]string{"version": "1"}})
	v.Call(t, http.MethodPut, "old/data/stint/a", map[string]any{"x": "y"})
	for mount, says := range map[string]string{"old": "old is not KV version 2", "none": "no handler for route"} {
		cfg := asRoot(t, v, "stint")
		cfg.Vault.Mount = mount
		s, _, _ := open(t, cfg)
		_, _, err := s.Read(t.Context(), "a")
		wantText(t, err, says)
		if errors.Is(err, broker.ErrNotFound) {
			t.Errorf("%s: taken for an empty store: %v", mount, err)
		}
	}
}

func TestWhatAnAdministratorDeletedInVaultIsNotMadeAnew(t *testing.T) {
	t.Parallel()
	v := testbed.VaultIfCached(t)
	s, _, _ := open(t, asRoot(t, v, "stint"))
	key, err := vault.Key(t.Context(), s, vault.PathAuditIndex)
	if err != nil {
		t.Fatal(err)
	}
	v.Call(t, http.MethodDelete, "secret/data/stint/keys/audit-index", nil)
	_, _, err = s.Read(t.Context(), vault.PathAuditIndex)
	wantError(t, err, broker.ErrNotFound)
	wantText(t, err, "version 1 was deleted: undelete it")
	_, err = vault.Key(t.Context(), s, vault.PathAuditIndex)
	wantCode(t, err, broker.Unavailable)
	wantText(t, err, "version 1 was deleted: undelete it")
	v.Call(t, http.MethodPut, "secret/undelete/stint/keys/audit-index", map[string]any{"versions": []int{1}})
	if again, err := vault.Key(t.Context(), s, vault.PathAuditIndex); err != nil || !again.Equal(key) {
		t.Fatalf("another key, or %v", err)
	}
}

func TestVaultIsVerified(t *testing.T) {
	t.Parallel()
	v := testbed.StartVault(t, testbed.VaultSetup{IfCached: true, TLS: true})
	for name, c := range map[string]struct {
		change func(*vault.ServerConfig)
		says   string
	}{
		"by its authority":          {func(*vault.ServerConfig) {}, ""},
		"by another name that fits": {func(c *vault.ServerConfig) { c.ServerName = "vault.test" }, ""},
		"not by the system's":       {func(c *vault.ServerConfig) { c.CA = "" }, "certificate"},
		"not by another name":       {func(c *vault.ServerConfig) { c.ServerName = "vault.example" }, "certificate"},
		"not in clear":              {func(c *vault.ServerConfig) { c.Address = strings.Replace(c.Address, "https", "http", 1) }, "what answers is not Vault"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := asRoot(t, v, "stint")
			c.change(cfg.Vault)
			s, _, _ := open(t, cfg)
			err := s.Ready(t.Context())
			if c.says == "" && err != nil {
				t.Fatal(err)
			}
			if c.says != "" {
				wantCode(t, err, broker.Unavailable)
				wantText(t, err, c.says)
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	v := testbed.VaultIfCached(b)
	s, _, _ := open(b, asRoot(b, v, "stint"))
	if _, err := s.Write(b.Context(), "a", fields("x", "y"), 0); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, err := s.Read(b.Context(), "a"); err != nil {
			b.Fatal(err)
		}
	}
}
