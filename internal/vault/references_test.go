package vault_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stint-dev/stint/internal/vault"
)

func TestAFileIsReadWithoutOneLineEnd(t *testing.T) {
	for text, want := range map[string]string{
		"s3cret": "s3cret", "s3cret\n": "s3cret", "s3cret\r\n": "s3cret", "s3cret\n\n": "s3cret\n", " s3cret ": " s3cret ",
		"a\nb\n": "a\nb", "s3cret\r": "s3cret\r",
	} {
		got, err := vault.Resolver{}.Resolve(t.Context(), "file:"+write(t, "x", text))
		if err != nil || got.Reveal() != want {
			t.Errorf("%q is read as %q, %v", text, got.Reveal(), err)
		}
	}
}

func TestAVariableIsReadAsItIs(t *testing.T) {
	t.Setenv("STINT_TEST_SECRET", "s3cret\n")
	if got, err := (vault.Resolver{}).Resolve(t.Context(), "env:STINT_TEST_SECRET"); err != nil || got.Reveal() != "s3cret\n" {
		t.Fatalf("%q, %v", got.Reveal(), err)
	}
}

func TestASecretThatIsWrittenOutIsRefusedAndNotRepeated(t *testing.T) {
	for _, text := range []string{
		"", "hunter2hunter2", "ghp_hunter2", "env:hunter2-hunter2", "env:", "env:2hunter2", "env:hunter2=x", "file:hunter2", "file:",
		"vault:hvs.hunter2", "vault:v1:hunter2", "vault:a/b", "vault:a/b#", "vault:#hunter2", "vault:../hunter2#x", "vault:/hunter2#x",
		"FILE:/hunter2", "https://hunter2", "file:/hunter2\x00",
	} {
		if err := vault.CheckReference(text); err == nil {
			t.Errorf("%q: taken", text)
		}
		_, err := vault.Resolver{}.Resolve(t.Context(), text)
		wantText(t, err, "a secret is not written here, but named: file:/PATH, env:NAME or vault:PATH#FIELD")
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: repeated", text)
		}
	}
	for _, text := range []string{"file:/a b/c", "env:_A9z", "vault:a/b#c d", "vault:a#b#c"} {
		if err := vault.CheckReference(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestWhatAReferenceNamesMustBeThere(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for ref, says := range map[string]string{
		"file:" + dir:                     "is no file",
		"file:" + pipe:                    "is no file",
		"file:" + dir + "/none":           "no such file",
		"file:" + write(t, "empty", ""):   "there is nothing there",
		"file:" + write(t, "empty", "\n"): "there is nothing there",
		"file:" + write(t, "long", strings.Repeat("x", vault.MaxSize+1)): "more than",
		"env:STINT_TEST_NOT_SET": "there is nothing there",
		"vault:a/b#c":            "before the store is open",
	} {
		_, err := vault.Resolver{}.Resolve(t.Context(), ref)
		wantText(t, err, says)
	}
}

func TestAFileThatOthersMayWriteIsRefused(t *testing.T) {
	path := write(t, "x", "s3cret")
	for mode, taken := range map[os.FileMode]bool{
		0o400: true, 0o600: true, 0o640: true, 0o644: true, 0o444: true, 0o660: false, 0o602: false, 0o622: false, 0o666: false,
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := (vault.Resolver{}).Resolve(t.Context(), "file:"+path); (err == nil) != taken {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
}
