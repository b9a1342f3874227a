package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server under measurement, on a core of its own.
type process struct {
	cmd  *exec.Cmd
	name string
	logs string
}

func canPin() bool {
	_, err := exec.LookPath("taskset")
	return err == nil && runtime.NumCPU() > 1
}

// pinSelf moves this process, all threads of it, to a core.
func pinSelf(core int) {
	if canPin() {
		_ = exec.Command("taskset", "-a", "-p", "-c", strconv.Itoa(core), strconv.Itoa(os.Getpid())).Run()
	}
}

// start runs a server on core 0 and waits until url answers. It returns how long
// that took.
func start(ctx context.Context, dir, name, url string, env []string, args ...string) (*process, time.Duration, error) {
	if canPin() {
		args = append([]string{"taskset", "-c", "0"}, args...)
	}
	p := &process{name: name, logs: filepath.Join(dir, name+".log")}
	logs, err := os.Create(p.logs)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = logs.Close() }()
	p.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	p.cmd.Env = append(append(os.Environ(), "GOMAXPROCS=1"), env...)
	p.cmd.Stdout, p.cmd.Stderr = logs, logs
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, 0, err
	}
	for time.Since(began) < 2*time.Minute {
		if ready(url) {
			return p, time.Since(began), nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	p.stop()
	text, _ := os.ReadFile(p.logs)
	return nil, 0, fmt.Errorf("%s does not get ready: %s", name, text)
}

func ready(url string) bool {
	if addr, ok := strings.CutPrefix(url, "tcp://"); ok {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	resp, err := http.Get(url)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
}

// cpu returns the time that the process has run, by the scheduler's accounting.
func (p *process) cpu() (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var total int64
	for _, path := range tasks {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that ended
		}
		first, _, _ := strings.Cut(string(data), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		total += n
	}
	if total == 0 {
		return 0, fmt.Errorf("%s: no accounting of its time", p.name)
	}
	return time.Duration(total), nil
}

// memory returns what /proc says of the process's memory, in MiB: VmRSS is all that
// is resident, RssAnon its own, without pages of files that it has mapped.
func (p *process) memory(what string) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, what+":"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("%s: no %s", p.name, what)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}
