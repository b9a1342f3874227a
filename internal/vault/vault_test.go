package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/vault"
)

// journal is a log that is kept, to be searched for what must not be in it.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// deps are a store's dependencies that a test can look into.
type deps struct {
	log   journal
	clock testbed.Clock
}

func (d *deps) deps() vault.Deps {
	h := slog.NewTextHandler(&d.log, &slog.HandlerOptions{Level: slog.LevelDebug})
	return vault.Deps{Log: slog.New(h), Now: d.clock.Now}
}

func open(t testing.TB, cfg vault.Config) (vault.Store, *vault.Engine, *deps) {
	t.Helper()
	d := new(deps)
	s, e, err := vault.Open(cfg, d.deps())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, e, d
}

// asRoot is the configuration of a store in v that may do everything, under a
// prefix.
func asRoot(t testing.TB, v *testbed.VaultServer, prefix string) vault.Config {
	t.Helper()
	return vault.Config{Kind: vault.KindVault, Vault: &vault.ServerConfig{
		Address: v.Addr, CA: v.CA, Prefix: prefix,
		Auth: vault.AuthConfig{Method: "token", TokenFile: write(t, "token", v.RootToken+"\n")},
	}}
}

// sealed is the configuration of a new sealed file.
func sealed(t testing.TB) vault.Config {
	t.Helper()
	dir := t.TempDir()
	cfg := vault.FileConfig{Path: filepath.Join(dir, "secrets.age"), Identity: filepath.Join(dir, "identity")}
	if err := vault.Init(cfg); err != nil {
		t.Fatal(err)
	}
	return vault.Config{Kind: vault.KindFile, File: &cfg}
}

// write makes a file in a folder of its own.
func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for something that another process does.
func eventually(t testing.TB, what string, ready func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func fields(pairs ...string) vault.Fields {
	f := vault.Fields{}
	for i := 0; i < len(pairs); i += 2 {
		f[pairs[i]] = secret.New(pairs[i+1])
	}
	return f
}

// shown is the fields as text, for comparing.
func shown(f vault.Fields) string {
	m := make(map[string]string, len(f))
	for name, value := range f {
		m[name] = value.Reveal()
	}
	return fmt.Sprint(m)
}

func mustWrite(t testing.TB, s vault.Store, path string, f vault.Fields, cas int) {
	t.Helper()
	version, err := s.Write(t.Context(), path, f, cas)
	if err != nil {
		t.Fatal(err)
	}
	if version != cas+1 {
		t.Fatalf("%s is at version %d, not %d", path, version, cas+1)
	}
}

func wantRead(t testing.TB, s vault.Store, path string, want vault.Fields, version int) {
	t.Helper()
	got, at, err := s.Read(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if shown(got) != shown(want) || at != version {
		t.Fatalf("%s holds %s at %d, not %s at %d", path, shown(got), at, shown(want), version)
	}
}

func wantError(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%v, not %v", err, target)
	}
}

func wantCode(t testing.TB, err error, code broker.Code) {
	t.Helper()
	if broker.CodeOf(err) != code {
		t.Fatalf("%v has the code %q, not %q", err, broker.CodeOf(err), code)
	}
}

func wantText(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Fatalf("%v does not say %q", err, text)
	}
}
