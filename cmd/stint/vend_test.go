package main

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const salesOrders = "postgres://warehouse/sales.orders"

// What is shown as an example is run as it is typed, with what there is in place of
// what is not.
func TestExamplesOfTheShell(t *testing.T) {
	s := withWarehouse(t)
	dir := t.TempDir()
	t.Setenv("ALICE", s.signedIn("alice"))
	call := kept(t, dir, "call.jwt", s.forCall("orders:read reports:read"))
	places := strings.NewReplacer("http://localhost:8080", s.Stint, "https://mcp.example/notes", s.MCP, "https://api.example/notes", s.API, "notes:read", "orders:read",
		"file:/run/user/alice.jwt", kept(t, dir, "alice.jwt", os.Getenv("ALICE")), "file:/run/user/call.jwt", call,
		"--client-key file:/etc/stint/desktop.pem", "--client-secret env:DESKTOP_SECRET", // see TestExchangeByAKey
		"call.json", strings.TrimPrefix(kept(t, dir, "call.json", `[{"type":"mcp_tool_call","tool":"list_orders","arguments":{}}]`), "file:"))
	ran := 0
	for name, as := range map[string][2]string{"exchange": {"desktop", s.DesktopSecret.Reveal()}, "vend": {"orders-mcp", s.MCPSecret.Reveal()}} {
		c, _, err := newRoot().Find([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv(envClient, as[0])
		t.Setenv(envSecret, as[1])
		for _, line := range commandLines(c.Example) {
			ran++
			if _, rest, ok := strings.Cut(line, "| "); ok { // stint dev sign-in alice |
				line = rest
			}
			out, said, code := typedAt(t, os.Getenv("ALICE"), typed(t, places.Replace(line))...)
			if code != 0 || out == "" || said != "" {
				t.Errorf("%s\n%d: %s", line, code, said)
			}
		}
	}
	if ran != 7 {
		t.Errorf("%d examples were run", ran)
	}
}

// roles are the logins that there are at the database.
func (s *shop) roles() (out []string) {
	s.t.Helper()
	c, err := pgx.Connect(s.t.Context(), s.warehouse.DSN("warehouse").Reveal())
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = c.Close(s.t.Context()) }()
	rows, err := c.Query(s.t.Context(), "SELECT rolname::text FROM pg_roles WHERE rolcanlogin AND rolname NOT IN ('postgres', 'stint_broker')")
	if err != nil {
		s.t.Fatal(err)
	}
	if out, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		s.t.Fatal(err)
	}
	return out
}

// gone waits until no login is left: what was given back is ended upstream soon.
func (s *shop) gone() {
	s.t.Helper()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		left := s.roles()
		if len(left) == 0 {
			return
		}
		if time.Since(began) > 20*time.Second {
			s.t.Fatalf("there are still %q", left)
		}
	}
}

// vend is the program as it is built, with a command.
func (s *shop) vend(bin, resource, scope string, more ...string) *exec.Cmd {
	return exec.Command(bin, append(append([]string{"vend"}, asMCP(resource, scope)...), more...)...)
}

func TestVendRunsACommandWithALogin(t *testing.T) {
	s, bin := withWarehouse(t), buildStint(t)
	call := s.forCall("reports:read orders:read")
	t.Setenv("CALL", call)
	secrets := []string{call, s.MCPSecret.Reveal(), s.DesktopSecret.Reveal()}

	t.Run("psql finds its way, and the login is gone after it", func(t *testing.T) {
		// Each of these would lead psql elsewhere.
		cmd := s.vend(bin, salesOrders, "reports:read", "--", "psql", "-XAtc", "SELECT current_user", "-c", "SELECT count(*) FROM sales.orders")
		cmd.Env = append(os.Environ(), "PGSERVICE=nowhere", "PGHOSTADDR=192.0.2.1", "PGUSER=postgres")
		out, said, code := built(t, cmd)
		name, count, _ := strings.Cut(strings.TrimSpace(out), "\n")
		if code != 0 || said != "" || !strings.HasPrefix(name, "stint") || count == "" || count == "0" {
			t.Fatalf("%d: %q %s", code, out, said)
		}
		s.gone()
	})
	t.Run("and by a variable of another name", func(t *testing.T) {
		cmd := s.vend(bin, salesOrders, "reports:read", "--env", "DATABASE_URL=url", "--", "sh", "-c", `psql -XAt "$DATABASE_URL" -c 'SELECT 1'; echo "${PGPASSWORD-none}"`)
		cmd.Env = append(os.Environ(), "PGHOSTADDR=192.0.2.1", "PGCONNECT_TIMEOUT=2")
		if out, said, code := built(t, cmd); code != 0 || out != "1\nnone\n" {
			t.Errorf("%d: %q %s", code, out, said)
		}
		s.gone()
	})
	t.Run("its exit code is the command's, and the login goes all the same", func(t *testing.T) {
		out, said, code := built(t, s.vend(bin, salesOrders, "reports:read", "psql", "-XAtc", "SELECT * FROM sales.salaries"))
		if code != 1 || out != "" || !strings.Contains(said, "permission denied") || strings.Contains(said, "stint:") {
			t.Errorf("%d: %s%s", code, out, said)
		}
		for script, want := range map[string]int{"exit 7": 7, "kill -KILL $$": 128 + 9, "exit 0": 0} {
			if _, said, code := built(t, s.vend(bin, salesOrders, "reports:read", "--", "sh", "-c", script)); code != want || said != "" {
				t.Errorf("%s: %d: %s", script, code, said)
			}
		}
		s.gone()
	})
	t.Run("what it was asked with is not handed on, and what was vended is not shown", func(t *testing.T) { notHandedOn(t, s, bin, secrets) })
	t.Run("a signal is passed on", func(t *testing.T) { passedToTheCommand(t, s, bin) })
	t.Run("it is printed as programs want it", func(t *testing.T) { asProgramsWantIt(t, s, bin) })
	t.Run("what cannot be run is not asked for", func(t *testing.T) {
		script := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(script, []byte("exit 0"), 0o600); err != nil {
			t.Fatal(err)
		}
		events := len(eventsOf(t, s))
		for name, want := range map[string]int{"no-such-command": 127, script: 126, "/no/such/command": 127} {
			if _, said, code := built(t, s.vend(bin, salesOrders, "reports:read", "--", name)); code != want || !strings.Contains(said, name) {
				t.Errorf("%s: %d: %s", name, code, said)
			}
		}
		if now := len(eventsOf(t, s)); now != events {
			t.Errorf("there are %d events, and were %d", now, events)
		}
	})
	t.Run("what is not granted runs nothing", func(t *testing.T) {
		ran := filepath.Join(t.TempDir(), "ran")
		_, said, code := built(t, s.vend(bin, salesOrders, "orders:write", "--", "touch", ran))
		if _, err := os.Stat(ran); code != exitRefused || !strings.Contains(said, "refused: ") || err == nil {
			t.Errorf("%d: %s, %v", code, said, err)
		}
	})
	t.Run("a token is gone as well", func(t *testing.T) { aTokenIsGone(t, s, bin) })
	t.Run("what cannot be given back is said", func(t *testing.T) { notGivenBack(t, s, bin, secrets) }) // the last: it ends the server
}

func eventsOf(t *testing.T, s *shop) []string {
	t.Helper()
	out, code := stintCLI(t, "audit", "tail", "-n", "1000", "--config", s.Config)
	if code != 0 {
		t.Fatal(out)
	}
	return strings.Split(out, "\n")
}

func notHandedOn(t *testing.T, s *shop, bin string, secrets []string) {
	t.Setenv(envSecret, s.MCPSecret.Reveal())
	dir := t.TempDir()
	// The command writes down its environment and the command lines of all processes.
	script := `cd "$1"; env > env; cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' > lines; ls -lR /proc/self/fd > fds`
	out, said, code := built(t, s.vend(bin, salesOrders, "reports:read", "--", "sh", "-c", script, "sh", dir))
	if code != 0 || out+said != "" {
		t.Fatalf("%d: %s%s", code, out, said)
	}
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	env, password := read("env"), ""
	for line := range strings.Lines(env) {
		if value, ok := strings.CutPrefix(line, "PGPASSWORD="); ok {
			password = strings.TrimSpace(value)
		}
		for _, name := range []string{"CALL=", "ORDERS_MCP_SECRET=", envSecret + "="} {
			if strings.HasPrefix(line, name) {
				t.Errorf("the command has %s", name)
			}
		}
	}
	if len(password) < 16 {
		t.Fatalf("there is no password in %s", env)
	}
	silentOn(t, env, secrets[:2]...)
	if lines := read("lines"); !strings.Contains(lines, "reports:read") {
		t.Errorf("the command lines are %s", lines)
	} else {
		silentOn(t, lines, append(secrets, password)...)
	}
	// On the disk it is where the command has put it, and nowhere else.
	found, _ := exec.Command("grep", "-rlF", "--exclude-dir=postgres", "-e", password, s.dir).Output()
	if strings.TrimSpace(string(found)) != filepath.Join(dir, "env") {
		t.Errorf("the password is in %s", found)
	}
}

// running starts a vend whose command says when it runs, by a file.
func running(t *testing.T, cmd *exec.Cmd, ready string) (said *strings.Builder, ended func() int) {
	t.Helper()
	said = &strings.Builder{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	done := make(chan int, 1)
	go func() {
		_ = cmd.Wait()
		done <- cmd.ProcessState.ExitCode()
	}()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(ready); err == nil {
			break
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("it does not run: %s", said)
		}
	}
	return said, func() int {
		t.Helper()
		select {
		case code := <-done:
			return code
		case <-time.After(60 * time.Second):
			t.Fatalf("it does not end")
			return -1
		}
	}
}

func passedToTheCommand(t *testing.T, s *shop, bin string) {
	for name, tc := range map[string]struct {
		sig    syscall.Signal
		script string
		code   int
		prints string
	}{
		"it ends by it":             {syscall.SIGTERM, `touch "$1"; exec sleep 60`, 128 + 15, ""},
		"it deals with it":          {syscall.SIGTERM, `trap 'echo cleaned; exit 5' TERM; touch "$1"; for i in $(seq 600); do sleep 0.05; done`, 5, "cleaned\n"},
		"it is interrupted":         {syscall.SIGINT, `trap 'echo cleaned; exit 6' INT; touch "$1"; for i in $(seq 600); do sleep 0.05; done`, 6, "cleaned\n"},
		"a terminal hangs up":       {syscall.SIGHUP, `touch "$1"; exec sleep 60`, 128 + 1, ""},
		"a signal that ends no-one": {syscall.SIGUSR1, `trap 'echo one; exit 0' USR1; touch "$1"; for i in $(seq 600); do sleep 0.05; done`, 0, "one\n"},
	} {
		t.Run(name, func(t *testing.T) {
			ready := filepath.Join(t.TempDir(), "ready")
			cmd := s.vend(bin, salesOrders, "reports:read", "--", "sh", "-c", tc.script, "sh", ready)
			said, ended := running(t, cmd, ready)
			if len(s.roles()) != 1 {
				t.Errorf("there are %q", s.roles())
			}
			if err := cmd.Process.Signal(tc.sig); err != nil {
				t.Fatal(err)
			}
			if code := ended(); code != tc.code || said.String() != tc.prints {
				t.Errorf("%d: %q", code, said)
			}
			s.gone()
		})
	}
}

func asProgramsWantIt(t *testing.T, s *shop, bin string) {
	dir := t.TempDir()
	print := func(format string) string {
		t.Helper()
		out, said, code := built(t, s.vend(bin, salesOrders, "reports:read", "--format", format))
		if code != 0 || said != "" {
			t.Fatalf("%s: %d: %s", format, code, said)
		}
		return out
	}
	const count = "SELECT count(*) > 0 FROM sales.orders"
	t.Run("a password file", func(t *testing.T) {
		line := print("pgpass")
		file := strings.TrimPrefix(kept(t, dir, "pgpass", line), "file:")
		cmd := exec.Command("psql", "-XAtc", count)
		part := strings.Split(line, ":")
		cmd.Env = append(os.Environ(), "PGPASSFILE="+file, "PGHOST="+part[0], "PGPORT="+part[1], "PGDATABASE="+part[2], "PGUSER="+part[3], "PGSSLMODE=disable")
		if out, said, code := built(t, cmd); code != 0 || out != "t\n" {
			t.Errorf("%d: %s%s", code, out, said)
		}
	})
	t.Run("lines for a shell", func(t *testing.T) {
		cmd := exec.Command("sh", "-euc", `. "$1"; psql -XAtc "$2"`, "sh", strings.TrimPrefix(kept(t, dir, "env", print("env")), "file:"), count)
		cmd.Env = append(os.Environ(), "PGSERVICE=nowhere", "PGHOSTADDR=192.0.2.1")
		if out, said, code := built(t, cmd); code != 0 || out != "t\n" {
			t.Errorf("%d: %s%s", code, out, said)
		}
	})
	t.Run("JSON", func(t *testing.T) {
		var got struct {
			Lease      string `json:"lease_id"`
			Credential struct{ URL string }
		}
		if err := json.Unmarshal([]byte(print("json")), &got); err != nil || got.Lease == "" {
			t.Fatal(err)
		}
		c, err := pgx.Connect(t.Context(), got.Credential.URL)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close(t.Context())
		// It is the caller's: nothing takes it back but this.
		if out, code := stintCLI(t, "revoke", "--lease", got.Lease, "--config", s.Config); code != 0 {
			t.Error(out)
		}
	})
	t.Run("what it is not is refused, and given back", func(t *testing.T) {
		before := s.roles()
		_, said, code := built(t, s.vend(bin, salesOrders, "reports:read", "--format", "credential-process"))
		if code != exitRefused || !strings.Contains(said, "for AWS keys") {
			t.Errorf("%d: %s", code, said)
		}
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			if now := s.roles(); !slices.ContainsFunc(now, func(r string) bool { return !slices.Contains(before, r) }) {
				break
			} else if time.Since(began) > 20*time.Second {
				t.Fatalf("%q, and before %q", now, before)
			}
		}
	})
	for _, role := range s.roles() {
		if out, code := stintCLI(t, "revoke", "--lease", role[strings.LastIndexByte(role, '_')+1:], "--config", s.Config); code != 0 {
			t.Error(out)
		}
	}
	s.gone()
}

// aTokenIsGone has a command write down its token.
func aTokenIsGone(t *testing.T, s *shop, bin string) {
	t.Setenv("CALL", s.forCall("orders:read"))
	file := filepath.Join(t.TempDir(), "token")
	script := `printf %s "$API_TOKEN" > "$1"; curl -s -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $API_TOKEN" "$2/orders"`
	out, said, code := built(t, s.vend(bin, s.API, "orders:read", "--env", "API_TOKEN", "--", "sh", "-c", script, "sh", file, s.API))
	if code != 0 || out != "200" || said != "" {
		t.Fatalf("%d: %s%s", code, out, said)
	}
	token, err := os.ReadFile(file)
	if err != nil || len(token) < 100 {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.API+"/orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+string(token))
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("it is still good: %s", resp.Status)
	}
	if _, said, code := built(t, s.vend(bin, s.API, "orders:read", "--env", "A=url", "--", "true")); code != exitRefused || !strings.Contains(said, "has no fields") {
		t.Errorf("%d: %s", code, said)
	}
}

func notGivenBack(t *testing.T, s *shop, bin string, secrets []string) {
	t.Setenv("CALL", s.forCall("reports:read"))
	dir := t.TempDir()
	ready := filepath.Join(dir, "ready")
	cmd := s.vend(bin, salesOrders, "reports:read", "--", "sh", "-c", `touch "$1"; for i in $(seq 600); do [ -e "$1.go" ] && exit 4; sleep 0.05; done`, "sh", ready)
	said, ended := running(t, cmd, ready)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ready+".go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	code := ended()
	for _, want := range []string{"stint: the credential was not given back, and lives until ", "\nstint: an administrator ends it now by: stint revoke --lease "} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("%q is not in %s", want, said)
		}
	}
	if code != 4 {
		t.Errorf("it ended with %d: %s", code, said)
	}
	silentOn(t, said.String(), append(secrets, os.Getenv("CALL"))...)
}
