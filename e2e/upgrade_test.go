//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/testbed"
)

// errNoHistory says that there is nothing to build the version before from.
var errNoHistory = errors.New("the history is not here: fetch it (git fetch --unshallow), or have e2e/previous name the subject of a commit that there is")

// previous builds the version before this one: the newest tag, or without one the commit
// whose subject the file previous has.
var previous = sync.OnceValues(func() (string, error) {
	git := func(args ...string) (string, error) {
		// The checkout may be another user's.
		out, err := exec.Command("git", append([]string{"-c", "safe.directory=*", "-C", ".."}, args...)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	rev, err := git("describe", "--tags", "--abbrev=0", "HEAD^")
	if err != nil {
		subject, err := os.ReadFile("previous")
		if err != nil {
			return "", err
		}
		list, err := git("log", "--format=%H %s")
		if err != nil {
			return "", fmt.Errorf("%w: %w", errNoHistory, err)
		}
		for line := range strings.Lines(list) {
			if hash, text, _ := strings.Cut(strings.TrimSpace(line), " "); text == strings.TrimSpace(string(subject)) {
				rev = hash
				break
			}
		}
	}
	if rev == "" {
		return "", errNoHistory
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	made := filepath.Join(cache, "stint-testbed", "previous-"+rev[:min(len(rev), 16)], "stint")
	if _, err := os.Stat(made); err == nil {
		return made, nil
	}
	dir, err := os.MkdirTemp("", "stint-previous-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if _, err := git("archive", "--output", filepath.Join(dir, "source.tar"), rev); err != nil {
		return "", fmt.Errorf("take the version before out of the history: %w", err)
	}
	for _, step := range [][]string{
		{"tar", "-xf", "source.tar"},
		{"go", "build", "-buildvcs=false", "-trimpath", "-o", made + ".new", "./cmd/stint"},
		{"mv", made + ".new", made},
	} {
		cmd := exec.Command(step[0], step[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%v: %w\n%s", step, err, out)
		}
	}
	return made, nil
})

// mixed are combinations of versions that worked.
type mixed struct {
	passed []string
	all    int
}

func (m *mixed) run(t *testing.T, what string, test func(t *testing.T)) {
	t.Helper()
	m.all++
	if t.Run(what, test) {
		m.passed = append(m.passed, what)
	}
}

// The version before and this one work with one another's state, both ways.
func TestUpgrade(t *testing.T) {
	before, err := previous()
	if errors.Is(err, errNoHistory) {
		t.Skip(err) // a copy of the sources alone is worth testing otherwise
	}
	if err != nil {
		t.Fatal(err)
	}
	m := &mixed{}
	w := newWorld(t, options{prepare: func(w *world) { w.Drain, w.a.binary = "drain: 1s, ", before }})
	m.run(t, "a: before, b: this: what one makes the other knows", func(t *testing.T) { eachOther(t, w) })
	m.run(t, "a: before, b: this: what one takes back is dead at the other", func(t *testing.T) { takenBack(t, w) })
	m.run(t, "rolling, under load: up, down and up again", func(t *testing.T) { rolling(t, w, before) })
	m.run(t, "both this: what is left of before", func(t *testing.T) { eachOther(t, w); takenBack(t, w) })
	one := newWorld(t, options{prepare: func(w *world) {
		w.a.Embedded, w.a.binary = true, before
		w.b = nil
	}})
	m.run(t, "files: before, then this, then before", func(t *testing.T) { sameFiles(t, one, before) })
	testbed.Report(t, "upgrade", testbed.Row{Name: "upgrade combinations passed", Value: float64(len(m.passed)), Unit: "combinations", Target: float64(m.all), Met: len(m.passed) == m.all})
}

// eachOther makes tokens and leases at one replica and uses them at the other.
func eachOther(t *testing.T, w *world) {
	t.Helper()
	for _, pair := range [][2]*replica{{w.a, w.b}, {w.b, w.a}} {
		token := w.alice(t, pair[0], everyScope)
		if i := w.introspect(t, pair[1], token); !i.Active {
			t.Errorf("%s made, %s asked: %s", pair[0].Name, pair[1].Name, i)
		}
		down := w.exchange(t, pair[1], "orders-mcp", token, api, "orders:read").want(t, http.StatusOK, "")
		if i := w.introspect(t, pair[0], down.Token); !i.Active {
			t.Errorf("%s made, %s asked: %s", pair[1].Name, pair[0].Name, i)
		}
		for _, provider := range []string{"warehouse", "stock"} {
			l := w.vend(t, pair[0], token, provider)
			w.ask(t, pair[1], "/oauth2/revoke", "orders-mcp", url.Values{"token": {l.lease}}).want(t, http.StatusOK, "")
			eventually(t, 10*time.Second, "the login ends", func() error { return ended(t, l) })
		}
	}
}

// takenBack revokes at one replica what was made at the other.
func takenBack(t *testing.T, w *world) {
	t.Helper()
	for _, pair := range [][2]*replica{{w.a, w.b}, {w.b, w.a}} {
		token := w.alice(t, pair[0], everyScope)
		down := w.exchange(t, pair[1], "orders-mcp", token, api, "orders:read").want(t, http.StatusOK, "")
		w.ask(t, pair[1], "/oauth2/revoke", "desktop", url.Values{"token": {token}}).want(t, http.StatusOK, "")
		w.deadBy(t, time.Now().Add(2*time.Second), token)
		w.deadBy(t, time.Now(), down.Token)
	}
}

// rolling restarts one replica after the other with the other version, under load.
func rolling(t *testing.T, w *world, before string) {
	t.Helper()
	// The version before refuses logins to a database while it stops: without them.
	l := startLoad(t, w, false)
	for _, version := range []string{binary, before, binary} {
		for _, r := range w.replicas() {
			time.Sleep(500 * time.Millisecond)
			r.stop(t)
			r.binary = version
			r.start(t)
		}
	}
	time.Sleep(time.Second)
	l.stop()
	if len(l.refused) > 0 || l.asked.Load() < 200 {
		t.Errorf("of %d requests: %s", l.asked.Load(), strings.Join(l.refused, "\n"))
	}
	t.Logf("%d requests, none refused", l.asked.Load())
}

// sameFiles runs one version after the other on the same files.
func sameFiles(t *testing.T, w *world, before string) {
	t.Helper()
	kept, revoked := w.alice(t, w.a, everyScope), w.alice(t, w.a, everyScope)
	w.ask(t, w.a, "/oauth2/revoke", "desktop", url.Values{"token": {revoked}}).want(t, http.StatusOK, "")
	lease := w.vend(t, w.a, kept, "warehouse")
	for i, version := range []string{binary, before, binary} {
		w.a.stop(t)
		w.a.binary = version
		w.a.start(t)
		if i := w.introspect(t, w.a, kept); !i.Active {
			t.Errorf("a good token of before: %s", i)
		}
		if i := w.introspect(t, w.a, revoked); i.Active {
			t.Error("a revoked token lives again")
		}
		w.ask(t, w.a, "/oauth2/revoke", "orders-mcp", url.Values{"token": {lease.lease}}).want(t, http.StatusOK, "")
		eventually(t, 10*time.Second, "the login of before ends", func() error { return ended(t, lease) })
		lease = w.vend(t, w.a, kept, "warehouse")
		revoked = w.alice(t, w.a, everyScope)
		w.ask(t, w.a, "/oauth2/revoke", "desktop", url.Values{"token": {revoked}}).want(t, http.StatusOK, "")
		// Either reads the record that both have written.
		for _, program := range []string{before, binary} {
			out, err := exec.Command(program, "audit", "tail", "--config", w.a.config, "-o", "json", "-n", "10000").CombinedOutput()
			if n := strings.Count(string(out), "server started"); err != nil || n != i+2 {
				t.Errorf("%s reads the record: %d starts, want %d: %v", filepath.Base(filepath.Dir(program)), n, i+2, err)
			}
		}
	}
}

// ended returns nil if a login does not work any more.
func ended(t *testing.T, l *login) error {
	if l.works(t.Context()) == nil {
		return errors.New("it still works")
	}
	return nil
}
