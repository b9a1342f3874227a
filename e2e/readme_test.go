//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/testbed"
)

// byItself are the lines that are not run here: each is a target of the Makefile,
// and .ci/run runs those of them that need nothing installed.
var byItself = map[string]bool{"make demo": true, "make test": true, "make demo-postgres": false}

var (
	blocks = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	inline = regexp.MustCompile("`(bin/stint [^`]+)`")
)

// readmeLines are the commands of README.md, in the order in which they stand
// there: those of its blocks, and those between two `marks`.
func readmeLines(t *testing.T) (lines []string) {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for rest := string(text); ; {
		at, in := blocks.FindStringSubmatchIndex(rest), inline.FindStringSubmatchIndex(rest)
		switch {
		case at == nil && in == nil:
			return lines
		case at == nil || in != nil && in[0] < at[0]:
			lines, rest = append(lines, rest[in[2]:in[3]]), rest[in[1]:]
		default:
			lines, rest = append(lines, strings.Split(strings.TrimSpace(rest[at[2]:at[3]]), "\n")...), rest[at[1]:]
		}
	}
}

// A newcomer does what README.md says, line by line, in a fresh checkout.
func TestTheReadmeWorksAsWritten(t *testing.T) {
	if err := look(); err != nil {
		t.Fatal(err)
	}
	lines := readmeLines(t)
	for line, everyTime := range byItself {
		if !slices.Contains(lines, line) {
			t.Errorf("README.md does not say %q any more", line)
		}
		holds(t, "../Makefile", "\n"+strings.TrimPrefix(line, "make ")+":")
		if everyTime {
			holds(t, "../.ci/run", "\n"+line+"\n")
		}
	}
	for _, a := range []string{"127.0.0.1:8080", "127.0.0.1:9464", "127.0.0.1:8790", "127.0.0.1:8794"} {
		l, err := net.Listen("tcp", a)
		if err != nil {
			t.Fatalf("README.md serves at %s, and somebody else listens there: stop that and try again", a)
		}
		_ = l.Close()
	}
	dir := checkout(t)
	env := readmeEnv(t)
	ran, sourced := 0, ""
	for _, line := range lines {
		if _, elsewhere := byItself[line]; elsewhere {
			continue
		}
		ran++
		if strings.HasPrefix(line, ". ") { // in the shell of the lines after it
			sourced = line + "\n"
			continue
		}
		if ready := readyAt(line); ready != nil {
			serveLine(t, dir, env, line, ready)
			continue
		}
		runLine(t, dir, env, sourced+line)
	}
	if ran < 12 {
		t.Errorf("only %d lines were run of %q", ran, lines)
	}
	all := len(lines) - len(byItself)
	testbed.Report(t, "readme", testbed.Row{Name: "lines of README.md run", Value: float64(ran), Unit: "lines", Target: float64(all), Met: ran == all})
}

func runLine(t *testing.T, dir string, env []string, line string) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-euc", line)
	cmd.Dir, cmd.Env = dir, env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s\n%v\n%s", line, err, out)
	}
	t.Logf("%5.1fs %s", time.Since(began).Seconds(), line)
}

func holds(t *testing.T, file, text string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(data), text) {
		t.Errorf("%s does not hold %q: %v", file, text, err)
	}
}

// readyAt is where the servers that a line starts say that they are ready; nothing
// for a line that ends by itself.
func readyAt(line string) []string {
	switch {
	case strings.HasPrefix(line, "bin/stint serve "):
		return []string{"http://127.0.0.1:8080/readyz", "http://127.0.0.1:9464/metrics"}
	case line == "bin/stint dev", strings.HasPrefix(line, "bin/stint dev --dir "):
		return []string{"http://127.0.0.1:8790/readyz", "http://127.0.0.1:8794/metrics"}
	}
	return nil
}

// serveLine runs a server until it is ready, and ends it; one that goes on in the
// background is ended with the test.
func serveLine(t *testing.T, dir string, env []string, line string, ready []string) {
	t.Helper()
	logs := filepath.Join(dir, "build", "serve.log")
	line, background := strings.CutSuffix(line, " &")
	cmd := exec.Command("sh", "-euc", "exec "+line)
	cmd.Dir, cmd.Env = dir, env
	j := launch(t, cmd, logs)
	j.await(t, logs, func() error {
		var wrong []error
		for _, url := range ready {
			wrong = append(wrong, okay(url))
		}
		return errors.Join(wrong...)
	})
	if background {
		t.Cleanup(func() { j.stop(t, logs) })
		return
	}
	j.stop(t, logs)
}

// checkout copies the sources to a folder, without what was built there.
func checkout(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "stint-readme-") // a path that is short enough for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil { // for root, PostgreSQL runs as another user
		t.Fatal(err)
	}
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel("..", path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "bin", "build", "interop/node_modules"}, rel):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(dir, rel), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, rel), data, info.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "build"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// readmeEnv starts what README.md takes to be there, and returns the variables
// that it names.
func readmeEnv(t *testing.T) []string {
	t.Helper()
	const password = "of the user stint"
	vault := testbed.Vault(t)
	redis := testbed.Redis(t, testbed.RedisOptions{AppendOnly: true, Config: users(t, password)})
	idp, err := sample.StartIdP(t.Context(), sample.IdPConfig{Audience: "https://mcp.example/notes"})
	if err != nil {
		t.Fatal(err)
	}
	// Where Go keeps what it has built is found by HOME.
	return append(vault.Env(), "HOME="+os.Getenv("HOME"), "REDIS="+redis.Addr, "REDIS_PASSWORD="+password, "IDP="+idp.URL())
}

// users are those of deploy/redis.acl.
func users(t *testing.T, password string) string {
	t.Helper()
	text, err := os.ReadFile("../deploy/redis.acl")
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "STINT_PASSWORD_SHA256", fmt.Sprintf("%x", sha256.Sum256([]byte(password))))
}
