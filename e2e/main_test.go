//go:build e2e

// Package e2e runs stint as it is built, against the servers that it is made for:
// Redis with the user of deploy/redis.acl, Vault as deploy/vault/setup.sh prepares
// it, PostgreSQL, and the sample identity provider. Nothing of it is in this
// process but that provider.
package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/testbed"
)

// binary is stint, built.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		slog.SetDefault(slog.New(slog.DiscardHandler)) // the sample provider's library logs there
		dir, err := os.MkdirTemp("", "stint-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		binary = filepath.Join(dir, "stint")
		build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-o", binary, "./cmd/stint")
		build.Dir = ".."
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build stint: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// look goes through every folder of sources. The program is run and not imported:
// without this, go test would not know that it has changed, and repeat an old
// result.
var look = sync.OnceValue(func() error {
	return filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		name := d.Name()
		if err == nil && d.IsDir() && path != ".." && (name[0] == '.' || slices.Contains([]string{"node_modules", "bin", "build"}, name)) {
			return filepath.SkipDir
		}
		return err
	})
})

// client asks on loopback, and keeps no connection: a server that was killed and
// started again is another one.
var client = &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// okay returns nil if a GET is answered 200.
func okay(url string) error {
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

// eventually waits until something is so. It is for what happens elsewhere, by
// clocks that no test can move.
func eventually(t *testing.T, within time.Duration, what string, done func() error) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s: %v", within, what, err)
		}
	}
}

// job is a program that was started, with all that it ever prints in a file.
type job struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// launch starts a program in the background. It ends with the test.
func launch(t *testing.T, cmd *exec.Cmd, logs string) *job {
	t.Helper()
	out, err := os.OpenFile(logs, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // should the test itself be killed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	j := &job{cmd: cmd, done: make(chan struct{})}
	go func() { j.err = cmd.Wait(); close(j.done) }()
	t.Cleanup(j.kill)
	return j
}

// await waits until it is ready, and fails the test if it ends before.
func (j *job) await(t *testing.T, logs string, ready func() error) {
	t.Helper()
	for deadline := time.Now().Add(40 * time.Second); ; {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-j.done:
			t.Fatalf("%s ended: %v\n%s", j.cmd.Args, j.err, last(logs))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready: %v\n%s", j.cmd.Args, err, last(logs))
		}
	}
}

// kill ends it as if the power failed.
func (j *job) kill() {
	_ = j.cmd.Process.Kill()
	<-j.done
}

// stop asks it to end, which has to be without a failure.
func (j *job) stop(t *testing.T, logs string) {
	t.Helper()
	if err := j.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("%s: %v\n%s", j.cmd.Args, errors.Join(err, j.err), last(logs))
	}
	select {
	case <-j.done:
	case <-time.After(30 * time.Second):
		j.kill()
		t.Fatalf("%s does not end\n%s", j.cmd.Args, last(logs))
	}
	if j.err != nil {
		t.Fatalf("%s: %v\n%s", j.cmd.Args, j.err, last(logs))
	}
}

// last is the end of a log, for people.
func last(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// stint runs a command and returns what it printed on both, and its exit code.
func stint(t *testing.T, args ...string) (out, text string, code int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ended := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// must is stint where nothing is to go wrong.
func must(t *testing.T, args ...string) string {
	t.Helper()
	out, text, code := stint(t, args...)
	if code != 0 {
		t.Fatalf("stint %s: %d\n%s%s", strings.Join(args, " "), code, out, text)
	}
	return out
}

func address(t *testing.T) string { return fmt.Sprintf("127.0.0.1:%d", testbed.FreePort(t)) }
