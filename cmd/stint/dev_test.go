package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/testbed"
)

// buildStint builds the command itself.
func buildStint(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "stint")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// devRun is a running `stint dev`.
type devRun struct {
	t     *testing.T
	bin   string
	cmd   *exec.Cmd
	out   bytes.Buffer // of standard error
	guide devGuide
}

// startDev starts `stint dev`, and returns when it has said what to try.
func startDev(t *testing.T, bin string, args ...string) *devRun {
	t.Helper()
	d := &devRun{t: t, bin: bin, cmd: exec.Command(bin, append([]string{"dev", "-o", "json"}, args...)...)}
	d.cmd.Stderr = &d.out
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.cmd.Process.Kill() })
	read := make(chan error, 1)
	go func() { read <- json.NewDecoder(stdout).Decode(&d.guide) }()
	select {
	case err = <-read:
	case <-time.After(60 * time.Second):
		err = errors.New("it says nothing")
	}
	if err != nil {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
		t.Fatalf("stint dev: %v\n%s", err, d.out.String())
	}
	return d
}

// stop stops it by a signal, and looks for what is left.
func (d *devRun) stop(sig syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- d.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil && sig != syscall.SIGKILL {
			d.t.Errorf("it ended with %v\n%s", err, d.out.String())
		}
	case <-time.After(30 * time.Second):
		d.t.Error("it does not end")
		_ = d.cmd.Process.Kill()
	}
	for _, u := range []string{d.guide.IdP, d.guide.Stint, d.guide.Ops, d.guide.MCP, d.guide.API, "http://" + d.guide.Warehouse} {
		if u != "http://" {
			d.silent(hostOf(u))
		}
	}
}

// silent waits until nobody listens at an address any more.
func (d *devRun) silent(address string) {
	d.t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return
		}
		_ = c.Close()
		if time.Since(began) > 10*time.Second {
			d.t.Errorf("somebody listens still at %s", address)
			return
		}
	}
}

// shell runs commands in one shell and returns what each of them printed.
func (d *devRun) shell(commands ...string) []string {
	d.t.Helper()
	const mark = "-----next-----"
	var script strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&script, "%s\necho; echo %s\n", c, mark)
	}
	sh := exec.Command("sh", "-s")
	sh.Stdin = strings.NewReader(script.String())
	out, err := sh.CombinedOutput()
	parts := strings.Split(string(out), mark+"\n")
	if err != nil || len(parts) != len(commands)+1 {
		d.t.Fatalf("%v\n%s", err, out)
	}
	return parts[:len(commands)]
}

func TestDev(t *testing.T) {
	bin := buildStint(t)
	for name, test := range map[string]func(*testing.T, string){
		"what it says to try works":                       whatDevSaysToTry,
		"it goes on with its folder":                      devWithAFolder,
		"the database ends with a process that is killed": devThatIsKilled,
	} {
		t.Run(name, func(t *testing.T) { test(t, bin) })
	}
}

func whatDevSaysToTry(t *testing.T, bin string) {
	testbed.Find(t, "apt-get install curl", "curl")
	for _, mode := range postgresModes(t) {
		t.Run("with PostgreSQL "+mode, func(t *testing.T) {
			dir := place(t)
			d := startDev(t, bin, "--port", "0", "--postgres", mode)
			var texts []string
			want := map[string][]string{ // by what a command is said to do: what it prints
				"and calls a tool.":               {"green tea", "coffee"},
				"That token opens nothing":        {"401", "invalid_token"},
				"Why may Bob not?":                {"REFUSED", "the group engineering", "orders-mcp.yaml"},
				"Take back everything of Alice's": {"revoked, at position", "401", "invalid token"},
				"What happened.":                  {"laptop stolen", "list_orders"},
			}
			if _, err := exec.LookPath("psql"); err == nil && mode != postgresOff {
				want["which reads one table"] = []string{"green tea", "permission denied for table salaries"}
				want["The same without seeing the login"] = []string{"stint_", "green tea"}
			}
			for _, c := range d.guide.Commands {
				texts = append(texts, c.Text)
			}
			out := d.shell(texts...)
			for about, words := range want {
				found := false
				for i, c := range d.guide.Commands {
					if !strings.HasPrefix(c.About, about) {
						continue
					}
					found = true
					for _, w := range words {
						if !strings.Contains(out[i], w) {
							t.Errorf("%s\n%s\nprints no %q, but\n%s", c.About, c.Text, w, out[i])
						}
					}
				}
				if !found {
					t.Errorf("there is no command: %s", about)
				}
			}
			d.stop(syscall.SIGTERM)
			empty(t, dir)
		})
	}
}

func devWithAFolder(t *testing.T, bin string) {
	modes := postgresModes(t)
	dir := filepath.Join(place(t), "it's mine") // a name that a shell would not take as it is
	d := startDev(t, bin, "--port", "0", "--postgres", modes[len(modes)-1], "--dir", dir)
	first := d.guide
	env := ". " + shellQuote(filepath.Join(dir, sandboxEnv)) + "\n"
	bob := env + bin + ` dev sign-in bob | ` + bin + ` explain --client desktop --token - --resource $MCP --scope orders:read`

	t.Run("an edited mapping is in force soon", func(t *testing.T) {
		path := filepath.Join(dir, "mappings", "orders-mcp.yaml")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		before := d.policy()
		if err := os.WriteFile(path, bytes.Replace(text, []byte("groups: [engineering]"), []byte(`groups: ["*"]`), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); d.policy() == before; time.Sleep(50 * time.Millisecond) {
			if time.Since(began) > 20*time.Second {
				t.Fatal("the old one is still in force")
			}
		}
		if out := d.shell(bob)[0]; !strings.Contains(out, "ALLOWED") {
			t.Errorf("it is\n%s", out)
		}
	})
	d.shell(env + bin + ` revoke --subject "$IDP#alice" --reason "the first time"`)
	d.stop(syscall.SIGINT)

	d = startDev(t, bin, "--dir", dir, "--port", portOf(t, first.Stint))
	if d.guide.Stint != first.Stint || d.guide.MCP != first.MCP || d.guide.Warehouse != first.Warehouse {
		t.Errorf("it is elsewhere now: %+v, before %+v", d.guide, first)
	}
	out := d.shell(env+bin+" audit tail", bob)
	if !strings.Contains(out[0], "the first time") || !strings.Contains(out[1], "ALLOWED") {
		t.Errorf("it has forgotten: %q", out)
	}
	d.stop(syscall.SIGTERM)

	if err := exec.Command(bin, "dev", "--dir", dir, "--port", "9000").Run(); exitCode(err) != exitUsage {
		t.Errorf("with other ports: %v", err)
	}
}

func exitCode(err error) int {
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		return e.ExitCode()
	}
	return 0
}

// policy is the version of the mappings that are in force.
func (d *devRun) policy() string {
	d.t.Helper()
	resp, err := (&http.Client{Timeout: 5 * time.Second}).Get(d.guide.Ops + "/readyz")
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	var ready struct {
		Policy string `json:"policy"`
	}
	if err := json.Unmarshal(body, &ready); err != nil || ready.Policy == "" {
		d.t.Fatalf("%v: %s", err, body)
	}
	return ready.Policy
}

func TestDevWhosePortsAreTakenSaysSo(t *testing.T) {
	dir := place(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	err = runStint(t.Context(), io.Discard, "dev", "--port", port, "--postgres", "off")
	if err == nil || !strings.Contains(err.Error(), ":"+port) || !strings.Contains(err.Error(), "--port") {
		t.Errorf("the error is %v", err)
	}
	empty(t, dir)
}

func TestAFolderWithSomethingElseInItIsLeftAlone(t *testing.T) {
	dir := place(t)
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := runStint(t.Context(), io.Discard, "dev", "--port", "0", "--postgres", "off", "--dir", dir)
	if e := (*exitError)(nil); !errors.As(err, &e) || e.code != exitUsage || !strings.Contains(err.Error(), "thesis.txt") {
		t.Errorf("the error is %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("it holds %v now, %v", entries, err)
	}
}

func devThatIsKilled(t *testing.T, bin string) {
	if runtime.GOOS != "linux" {
		t.Skip("this system has no way to end a process with another")
	}
	modes := postgresModes(t)
	if modes[len(modes)-1] == postgresOff {
		testbed.Missing(t, "PostgreSQL is not installed")
	}
	place(t)
	d := startDev(t, bin, "--port", "0", "--postgres", postgresRequire)
	d.stop(syscall.SIGKILL)
}

// portOf returns the port of a URL.
func portOf(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Port()
}
