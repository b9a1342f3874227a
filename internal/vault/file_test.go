package vault_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/vault"
)

// refuse opens a sealed file that must not open.
func refuse(t *testing.T, cfg vault.Config, says string) {
	t.Helper()
	s, _, err := vault.Open(cfg, new(deps).deps())
	if err == nil {
		_ = s.Close()
	}
	wantText(t, err, says)
}

// filled is a sealed file with something in it, closed.
func filled(t *testing.T) vault.Config {
	t.Helper()
	cfg := sealed(t)
	s, _, _ := open(t, cfg)
	mustWrite(t, s, "a", fields("x", "c4nary"), 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestInitReplacesNothing(t *testing.T) {
	cfg := filled(t).File
	before, err := os.ReadFile(cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, vault.Init(*cfg), fs.ErrExist)
	wantError(t, vault.Init(vault.FileConfig{Path: cfg.Path + "2", Identity: cfg.Identity}), fs.ErrExist)
	wantError(t, vault.Init(vault.FileConfig{Path: cfg.Path, Identity: cfg.Identity + "2"}), fs.ErrExist)
	if after, err := os.ReadFile(cfg.Path); err != nil || !bytes.Equal(before, after) {
		t.Fatalf("the file has changed, or %v", err)
	}
	if _, err := os.Stat(cfg.Identity + "2"); err == nil {
		t.Error("an identity was made for nothing")
	}
}

func TestTheFilesAreForTheirOwnerAlone(t *testing.T) {
	cfg := filled(t).File
	entries, err := os.ReadDir(filepath.Dir(cfg.Path))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		info, err := e.Info()
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if got := strings.Join(names, " "); got != "identity secrets.age secrets.age.lock" {
		t.Errorf("there are %s", got)
	}
	text, err := os.ReadFile(cfg.Path)
	if err != nil || bytes.Contains(text, []byte("c4nary")) {
		t.Errorf("the file is not sealed, or %v", err)
	}
}

func TestAnotherIdentityDoesNotOpenIt(t *testing.T) {
	cfg := filled(t)
	cfg.File.Identity = sealed(t).File.Identity
	refuse(t, cfg, "the identity does not open it: it was sealed to another")
}

func TestAFileThatIsGoneIsNotReplaced(t *testing.T) {
	cfg := filled(t)
	if err := os.Remove(cfg.File.Path); err != nil {
		t.Fatal(err)
	}
	refuse(t, cfg, "does not exist: put a copy of it back; if there is none, what was in it is lost: move the whole configuration away and run `stint init`")
	if _, err := os.Stat(cfg.File.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it was made")
	}
}

func TestAFileThatWasChangedOrCutIsRefused(t *testing.T) {
	cfg := filled(t)
	whole, err := os.ReadFile(cfg.File.Path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, i int, data []byte) {
		t.Helper()
		if err := os.WriteFile(cfg.File.Path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, _, err := vault.Open(cfg, new(deps).deps()); err == nil {
			_ = s.Close()
			t.Errorf("%s at %d of %d: opened", what, i, len(whole))
		}
	}
	for i := range whole {
		changed := bytes.Clone(whole)
		changed[i] ^= 1
		try("changed", i, changed)
		try("cut", i, whole[:i])
	}
	try("longer", len(whole), append(bytes.Clone(whole), 'x'))
	if err := os.WriteFile(cfg.File.Path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _, _ := open(t, cfg)
	wantRead(t, s, "a", fields("x", "c4nary"), 1)
}

// forge seals text to whoever can open the file, as anybody can who has seen the
// public key.
func forge(t *testing.T, cfg vault.Config, text string) {
	t.Helper()
	key, err := os.ReadFile(cfg.File.Identity)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := age.ParseIdentities(bytes.NewReader(key))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, ids[0].(*age.X25519Identity).Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), os.WriteFile(cfg.File.Path, out.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestAFileSealedByWhoHasThePublicKeyAloneIsRefused(t *testing.T) {
	cfg := sealed(t)
	for _, text := range []string{"", `{"version":1,"secrets":{}}`, strings.Repeat("\x00", 32) + `{"version":1,"secrets":{}}`} {
		forge(t, cfg, text)
		refuse(t, cfg, "not written by whoever holds the identity")
	}
}

func TestOneProcessAtATimeHasIt(t *testing.T) {
	cfg := sealed(t)
	s, _, _ := open(t, cfg)
	refuse(t, cfg, "in use by another process")
	mustWrite(t, s, "a", fields("x", "1"), 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, _, _ = open(t, cfg)
	wantRead(t, s, "a", fields("x", "1"), 1)
}

func TestWhoOnlyReadsNeedNotWait(t *testing.T) {
	cfg := sealed(t)
	s, _, _ := open(t, cfg)
	mustWrite(t, s, "a", fields("x", "1"), 0)
	toRead := new(deps).deps()
	toRead.ReadOnly = true
	reader, _, err := vault.Open(cfg, toRead)
	if err != nil {
		t.Fatal(err)
	}
	wantRead(t, reader, "a", fields("x", "1"), 1)
	if _, err := reader.Write(t.Context(), "a", fields("x", "2"), 1); err == nil {
		t.Error("it wrote")
	}
	if err := reader.Delete(t.Context(), "a"); err == nil {
		t.Error("it deleted")
	}
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
	mustWrite(t, s, "a", fields("x", "3"), 1) // the lock is still its holder's
	refuse(t, cfg, "in use by another process")
}

func TestAWriteThatFailsIsSaidAndForgotten(t *testing.T) {
	cfg := sealed(t)
	s, _, _ := open(t, cfg)
	mustWrite(t, s, "a", fields("x", "1"), 0)
	// A folder in the place of the new file stops it, for root too.
	blocked := cfg.File.Path + ".new"
	if err := os.MkdirAll(filepath.Join(blocked, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := s.Write(t.Context(), "a", fields("x", "2"), 1)
	wantCode(t, err, broker.Unavailable)
	wantCode(t, s.Ready(t.Context()), broker.Unavailable)
	wantRead(t, s, "a", fields("x", "1"), 1)
	if err := os.RemoveAll(blocked); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, "a", fields("x", "3"), 1)
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAHalfWrittenFileOfACrashIsNoHindrance(t *testing.T) {
	cfg := filled(t)
	if err := os.WriteFile(cfg.File.Path+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _, _ := open(t, cfg)
	wantRead(t, s, "a", fields("x", "c4nary"), 1)
	mustWrite(t, s, "a", fields("x", "2"), 1)
}

func TestAnIdentityThatOthersMayReadOrThatIsNoneIsRefused(t *testing.T) {
	cfg := filled(t)
	for mode, taken := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o440: true, 0o640: true, 0o660: false, 0o644: false, 0o604: false} {
		if err := os.Chmod(cfg.File.Identity, mode); err != nil {
			t.Fatal(err)
		}
		s, _, err := vault.Open(cfg, new(deps).deps())
		if err == nil {
			_ = s.Close()
		}
		if (err == nil) != taken {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	key, err := os.ReadFile(cfg.File.Identity)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty": "", "noise": "c4nary", "a public key": "age1qyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqs3290gq",
		"a damaged key": strings.Replace(string(key), "AGE-SECRET-KEY-1", "AGE-SECRET-KEY-1Q", 1), "two": string(key) + string(key),
	} {
		cfg.File.Identity = write(t, "identity", text)
		refuse(t, cfg, "one line AGE-SECRET-KEY-1... is wanted")
		if _, _, err := vault.Open(cfg, new(deps).deps()); strings.Contains(err.Error(), "c4nary") {
			t.Errorf("%s: repeated", name)
		}
	}
}

func TestAnIdentityThatOthersMayReadIsToBeTheOwnersAlone(t *testing.T) {
	for mode, want := range map[fs.FileMode]string{0o644: "mode 0644, which lets others at it: chmod 0600", 0o660: "mode 0660, which lets others at it: chmod 0600", 0o640: ""} {
		cfg := filled(t)
		if err := os.Chmod(cfg.File.Identity, mode); err != nil {
			t.Fatal(err)
		}
		if want != "" {
			refuse(t, cfg, want)
			continue
		}
		s, _, err := vault.Open(cfg, new(deps).deps())
		if err != nil {
			t.Fatalf("%04o: %v", mode, err)
		}
		_ = s.Close()
	}
}

func TestAnIdentityThatIsGoneIsSaidToBe(t *testing.T) {
	cfg := filled(t)
	if err := os.Remove(cfg.File.Identity); err != nil {
		t.Fatal(err)
	}
	refuse(t, cfg, "identity "+cfg.File.Identity+": it does not exist: put the copy of it back")
}

func TestASealedFileThatOthersMayWriteIsRefused(t *testing.T) {
	cfg := filled(t)
	if err := os.Chmod(cfg.File.Path, 0o622); err != nil {
		t.Fatal(err)
	}
	refuse(t, cfg, "chmod 0600")
}

func BenchmarkFileWrite(b *testing.B) {
	s, _, _ := open(b, sealed(b))
	version := 0
	for b.Loop() {
		var err error
		if version, err = s.Write(b.Context(), "a", fields("x", "y"), version); err != nil {
			b.Fatal(err)
		}
	}
}
