package testbed

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// coversSource is part of what the oracle is built from: its version.
const coversSource = 1

var coversBuilt = built{dir: "kube-apiserver", from: []any{"covers", coversSource}, takes: "2 minutes"}

// Covers returns Kubernetes' own word on whether some RBAC rules, as Roles have them,
// cover others. It is a program of its own, so that nothing of Kubernetes is linked.
func Covers(t testing.TB) func(owner, servant any) (bool, error) {
	t.Helper()
	cmd := exec.Command(coversBuilt.program(t, "covers", "./covers"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	answers := bufio.NewReader(out)
	var mu sync.Mutex
	return func(owner, servant any) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		line, err := json.Marshal(map[string]any{"owner": owner, "servant": servant})
		if err != nil {
			return false, err
		}
		if _, err := fmt.Fprintf(in, "%s\n", line); err != nil {
			return false, err
		}
		answer, err := answers.ReadString('\n')
		if answer = strings.TrimSpace(answer); err != nil || answer != "true" && answer != "false" {
			return false, fmt.Errorf("the oracle says %q: %w", answer, err)
		}
		return answer == "true", nil
	}
}
