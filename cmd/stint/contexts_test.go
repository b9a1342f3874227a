package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// keptContexts writes a file of contexts, and returns its path.
func keptContexts(t *testing.T, in *contexts) string {
	t.Helper()
	t.Setenv("STINT_HOME", filepath.Join(t.TempDir(), "home"))
	known, err := readContexts()
	if err != nil {
		t.Fatal(err)
	}
	in.path = known.path
	if err := in.write(); err != nil {
		t.Fatal(err)
	}
	return known.path
}

// What stint login keeps is for its owner, and shows no token.
func TestContexts(t *testing.T) {
	path := keptContexts(t, &contexts{Current: "test", Known: map[string]installation{
		"test":       {Issuer: "https://stint.test.example", Token: "hunter2", Scope: "read", Expires: time.Now().Add(time.Hour)},
		"production": {Issuer: "https://stint.example", Token: "hunter3", Scope: "read", Expires: time.Now().Add(-time.Hour)},
	}})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	for _, format := range []string{"text", "json", "yaml"} {
		if out := string(runOut(t, 0, "context", "list", "-o", format)); strings.Contains(out, "hunter") || !strings.Contains(out, "production") {
			t.Errorf("%s: %s", format, out)
		}
	}
	runOut(t, 0, "context", "use", "production")
	t.Setenv("STINT_CONFIG", filepath.Join(t.TempDir(), "none.yaml"))
	if out := runOut(t, exitRefused, "status"); !bytes.Contains(out, []byte("stint login https://stint.example")) {
		t.Errorf("a token that has run out: %s", out)
	}
	if out := runOut(t, exitUsage, "status", "--context", "staging"); !bytes.Contains(out, []byte("production, test")) {
		t.Errorf("%s", out)
	}
	runOut(t, exitUsage, "context", "use", "staging")
	runOut(t, 0, "context", "remove", "production")
	if out := runOut(t, 0, "context", "list"); bytes.Contains(out, []byte("production")) {
		t.Errorf("%s", out)
	}
	if out := runOut(t, exitRefused, "status"); !bytes.Contains(out, []byte("stint login")) {
		t.Errorf("signed in nowhere: %s", out)
	}
	runOut(t, exitUsage, "logout")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if out := runOut(t, exitRefused, "context", "list"); !bytes.Contains(out, []byte("chmod 600")) {
		t.Errorf("others may read it: %s", out)
	}
}
