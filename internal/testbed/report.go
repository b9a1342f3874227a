package testbed

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// Row is a figure of a report: what a test has measured or counted, and whether that is
// what it should be.
type Row struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Target float64 `json:"target"`
	Met    bool    `json:"met"`
}

// Root returns the folder of the module that the test is in.
func Root(t testing.TB) string {
	t.Helper()
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			return root
		}
		up := filepath.Dir(root)
		if up == root {
			t.Fatal("there is no go.mod above")
		}
		root = up
	}
}

// Report writes build/reports/NAME.json, below the root of the module.
func Report(t testing.TB, name string, rows ...Row) {
	t.Helper()
	data, err := json.MarshalIndent(map[string]any{"rows": rows}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(Root(t), "build", "reports")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), append(data, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}
