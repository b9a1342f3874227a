package testbed

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Emulate starts one service of emulate (GitHub, Slack, Google, Microsoft, Linear) with
// what is seeded there, and returns its URL. What it does otherwise than the real one is
// pinned by the tests that use it.
func Emulate(t testing.TB, service string, seed any) string {
	t.Helper()
	modules := filepath.Join(Root(t), "interop", "node_modules")
	program := filepath.Join(modules, "emulate", "dist", "index.js")
	if _, err := os.Stat(program); err != nil {
		Missing(t, "emulate is not installed: make node")
	}
	node := Find(t, "install Node.js 22.15 or newer, or run make node", filepath.Join(modules, ".newer", "node"), "node")
	text, err := json.Marshal(map[string]any{service: seed})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "seed.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	port := FreePort(t)
	cmd := exec.Command(node, program, "start", "--service", service, "--seed", file, "--port", fmt.Sprint(port))
	cmd.Dir = t.TempDir()
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	asker := &http.Client{Timeout: time.Second}
	Start(t, cmd, func() error {
		resp, err := asker.Get(url + "/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return url
}
