package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onTerminal starts a command on a new terminal, its controlling one, and returns the
// end that a person sits at: it can be read until the command has ended.
func onTerminal(t *testing.T, cmd *exec.Cmd) *os.File {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("there are no terminals here")
	}
	t.Cleanup(func() { _ = person.Close() })
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return person
}

// What Ctrl-C sends to all in the foreground comes to the command once.
func TestCtrlCComesOnce(t *testing.T) {
	s, dir := startSlow(t), t.TempDir()
	close(s.answer)
	const script = `trap 'echo x >> "$1/caught"; sleep 0.3; exit 9' INT; touch "$1/ready"; for i in $(seq 600); do sleep 0.05; done`
	cmd := exec.Command(buildStint(t), "vend", "--issuer", s.URL, "--client", "x", "--self", "--resource", "https://api.example/", "--", "sh", "-c", script, "sh", dir)
	cmd.Env = append(os.Environ(), envSecret+"=x")
	person := onTerminal(t, cmd)
	go func() { _, _ = io.Copy(io.Discard, person) }()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "ready")); err == nil {
			break
		}
		if time.Since(began) > 30*time.Second {
			t.Fatal("it does not run")
		}
	}
	if _, err := person.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	caught, _ := os.ReadFile(filepath.Join(dir, "caught"))
	if cmd.ProcessState.ExitCode() != 9 || string(caught) != "x\n" || s.returned.Load() != 1 {
		t.Errorf("%d, caught %q, given back %d times", cmd.ProcessState.ExitCode(), caught, s.returned.Load())
	}
}

// A terminal keeps what it shows.
func TestSecretsAreNotPrintedOnATerminal(t *testing.T) {
	bin, s := buildStint(t), startSlow(t)
	close(s.answer)
	for name, tc := range map[string]struct {
		args  []string
		shown bool
	}{
		"exchange": {[]string{"exchange"}, false}, "a format": {[]string{"vend", "--format", "json"}, false},
		"exchange, all the same": {[]string{"exchange", "--show"}, true}, "a format, all the same": {[]string{"vend", "--format", "env", "--show"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(bin, append(tc.args, "--issuer", s.URL, "--client", "x", "--self", "--resource", "https://api.example/")...)
			cmd.Env = append(os.Environ(), envSecret+"=x")
			person := onTerminal(t, cmd)
			var out bytes.Buffer
			_, _ = io.Copy(&out, person) // ends with an error, and with the command
			_ = cmd.Wait()
			if shown := strings.Contains(out.String(), "of the lease"); shown != tc.shown || !shown && !strings.Contains(out.String(), "--show") {
				t.Errorf("it shows %q", out.String())
			}
			if code := cmd.ProcessState.ExitCode(); (code == 0) != tc.shown || !tc.shown && code != exitUsage {
				t.Errorf("it ends with %d", code)
			}
			if !tc.shown && len(s.asked) > 0 {
				t.Error("and it was asked for")
			}
			for len(s.asked) > 0 {
				<-s.asked
			}
		})
	}
}
