package testbed

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Node starts a script of interop/node, whose first argument is the port, and waits until
// a path of it is answered 200. It returns its URL.
func Node(t testing.TB, script, ready string, args ...string) string {
	t.Helper()
	dir := filepath.Join(Root(t), "interop")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", ".package-lock.json")); err != nil {
		Missing(t, "interop/node_modules is missing: make node")
	}
	node := Find(t, "install Node.js 22.15 or newer, or run make node", filepath.Join(dir, "node_modules", ".newer", "node"), "node")
	port := fmt.Sprint(FreePort(t))
	cmd := exec.Command(node, append([]string{filepath.Join("node", script), port}, args...)...)
	cmd.Dir = dir
	url := "http://127.0.0.1:" + port
	asker := &http.Client{Timeout: 2 * time.Second}
	Start(t, cmd, func() error {
		resp, err := asker.Get(url + ready)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return nil
	})
	return url
}
