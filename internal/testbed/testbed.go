// Package testbed starts the real servers that tests run against: on free
// loopback ports, in temporary directories, stopped by process id when the test
// ends. It is imported by tests alone.
//
// A server that is not installed skips the test, and says what to install;
// `make test` installs everything and sets STINT_REQUIRE_SERVERS, with which a
// missing server is a failure.
package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Find returns the path of a program, or skips the test. hint says how to
// install it.
func Find(t testing.TB, hint string, names ...string) string {
	t.Helper()
	for _, n := range names {
		if path, err := exec.LookPath(n); err == nil {
			return path
		}
	}
	Missing(t, fmt.Sprintf("%s is not installed: %s", names[len(names)-1], hint))
	return ""
}

// Missing skips the test for want of something, or fails it where everything has
// to be there.
func Missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("STINT_REQUIRE_SERVERS") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// FreePort returns a loopback port that was free a moment ago. It is none that the
// system gives to whoever connects or asks for any: between now and the server's
// start, other tests do so a thousand times a second.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 20_000 + rand.IntN(12_000)
		if l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// Process is a server that was started.
type Process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	out  buffer
	done chan struct{}
	err  error
}

// buffer keeps the last of what a server prints.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.b.Len() > 1<<20 {
		b.b.Reset()
	}
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Start runs a server and waits until ready returns nil. The server ends with
// the test; what it printed is shown if the test fails.
func Start(t testing.TB, cmd *exec.Cmd, ready func() error) *Process {
	t.Helper()
	p := &Process{t: t, name: cmd.Args[0], cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // should the test itself be killed
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", p.name, err)
	}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			t.Logf("%s printed:\n%s", strings.Join(cmd.Args, " "), p.Output())
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := ready()
		if err == nil {
			return p
		}
		select {
		case <-p.done:
			t.Fatalf("%s ended: %v\n%s", p.name, p.err, p.Output())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready: %v\n%s", p.name, err, p.Output())
		}
	}
}

// Output returns what the server printed.
func (p *Process) Output() string { return p.out.String() }

// Signal sends a signal to the server.
func (p *Process) Signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("signal %s: %v", p.name, err)
	}
}

// Stop asks the server to end, waits, and kills it if it does not.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.Kill()
	}
}

// Kill ends the server at once.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Done is closed when the server has ended.
func (p *Process) Done() <-chan struct{} { return p.done }
