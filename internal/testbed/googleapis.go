package testbed

import (
	"encoding/json"
	"path/filepath"
	"testing"
)

// GoogleAPIs returns the folder with the discovery documents of Google's APIs, in which
// Google says what its APIs take and answer: those of a Go module of its own, at the
// version that googleapis/go.mod names.
func GoogleAPIs(t testing.TB) string {
	t.Helper()
	out, err := goCommand(filepath.Join(Root(t), "internal", "testbed", "googleapis"), "mod", "download", "-json", "google.golang.org/api")
	if err != nil {
		Missing(t, "the discovery documents of Google's APIs cannot be had: "+err.Error())
	}
	var got struct{ Dir string }
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	return got.Dir
}
