package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/config"
)

// serverLog is what a server logs while it runs.
type serverLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *serverLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *serverLog) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// followed is a running server whose mappings are edited.
type followed struct {
	file, mapping, folder string
	ops                   string
	log                   *serverLog
}

func following(t *testing.T) *followed {
	t.Helper()
	dir := initialised(t)
	f := &followed{file: filepath.Join(dir, theConfig), mapping: filepath.Join(dir, theMapping), folder: filepath.Join(dir, "mappings"), log: &serverLog{}}
	shortSocket(t, f.file)
	cfg, err := config.Load(f.file)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listen.Address, cfg.Listen.Ops = "127.0.0.1:0", "127.0.0.1:0"
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- serve(ctx, cfg, f.log, func(_ *server, _, ops string) { ready <- ops })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	select {
	case f.ops = <-ready:
	case err := <-done:
		done <- nil
		t.Fatalf("serve: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the server is not ready")
	}
	return f
}

// health is what /readyz says of the policy to operators.
type health struct {
	Ready   bool   `json:"ready"`
	Policy  string `json:"policy"`
	Problem string `json:"policy_problem"`
}

func (f *followed) health(t *testing.T) (h health) {
	t.Helper()
	resp, err := http.Get("http://" + f.ops + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil || json.Unmarshal(data, &h) != nil || !h.Ready {
		t.Fatalf("%v: %s", err, data)
	}
	return h
}

// await waits until the health is as it should become.
func (f *followed) await(t *testing.T, what string, is func(health) bool) (h health) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if h = f.health(t); is(h) {
			return h
		}
	}
	t.Fatalf("%s: not so; it is %+v", what, h)
	return h
}

// events returns the lines of the record about the policy.
func (f *followed) events(t *testing.T, outcome string) (lines []string) {
	t.Helper()
	for line := range strings.Lines(audited(t, f.file, 0, "tail", "-n", "1000")) {
		if strings.Contains(line, " config ") && strings.Contains(line, " "+outcome+" ") {
			lines = append(lines, line)
		}
	}
	return lines
}

const (
	saysKept  = `"msg":"the mappings cannot be used as they are now; the version in force stays"`
	saysFresh = `"msg":"new mappings are in force"`
	saysAgain = `"msg":"the mappings can be used again, and are what is in force"`
)

func TestABrokenEditOfAMappingKeepsTheVersionInForceAndSaysSo(t *testing.T) {
	f := following(t)
	first := f.health(t)
	if first.Policy == "" || first.Problem != "" {
		t.Fatalf("at first: %+v", first)
	}
	edit(t, f.mapping, "[editors]", "[authors]")
	const why = `example.yaml:37:19: to: no group of a configured issuer is called "authors"`
	broken := f.await(t, "broken", func(h health) bool { return h.Problem != "" })
	if broken.Policy != first.Policy || !strings.Contains(broken.Problem, why) {
		t.Errorf("broken: %+v", broken)
	}
	if got := f.events(t, "refused"); len(got) != 1 || !strings.Contains(got[0], "before="+first.Policy) || !strings.Contains(got[0], `is called \"authors\"`) {
		t.Errorf("the record: %q", got)
	}
	// Mended otherwise than it was: a new version.
	edit(t, f.mapping, "[authors]", "[editors]", "hour >= 6", "hour >= 7")
	mended := f.await(t, "mended", func(h health) bool { return h.Policy != first.Policy })
	if mended.Problem != "" {
		t.Errorf("mended: %+v", mended)
	}
	if got := f.events(t, "done"); len(got) != 1 || !strings.Contains(got[0], "before="+first.Policy+" after="+mended.Policy) {
		t.Errorf("the record: %q", got)
	}
	// Broken and put back as it was: no new version, and it is said all the same.
	edit(t, f.mapping, "[editors]", "[authors]")
	f.await(t, "broken again", func(h health) bool { return h.Problem != "" })
	edit(t, f.mapping, "[authors]", "[editors]")
	if h := f.await(t, "put back", func(h health) bool { return h.Problem == "" }); h.Policy != mended.Policy {
		t.Errorf("put back: %+v", h)
	}
	for text, want := range map[string]int{saysKept: 2, saysFresh: 1, saysAgain: 1} {
		if got := f.log.count(text); got != want {
			t.Errorf("%s is in the log %d times, not %d", text, got, want)
		}
	}
}

// An edit that changes neither size nor time is not seen by looking: by asking it is.
func TestMappingsAreReadAgainOnSIGHUP(t *testing.T) {
	safe := make(chan os.Signal, 8) // without the server's own the signal would end the test
	signal.Notify(safe, syscall.SIGHUP)
	defer signal.Stop(safe)
	f := following(t)
	first := f.health(t)
	info, err := os.Stat(f.mapping)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(was, is string) {
		t.Helper()
		edit(t, f.mapping, was, is)
		if err := os.Chtimes(f.mapping, time.Time{}, info.ModTime()); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	ask("[editors]", "[authors]")
	f.await(t, "broken", func(h health) bool { return h.Policy == first.Policy && strings.Contains(h.Problem, "authors") })
	ask("[authors]", "[editors]")
	f.await(t, "put back", func(h health) bool { return h.Policy == first.Policy && h.Problem == "" })
	ask("hour >= 6", "hour >= 7")
	f.await(t, "changed", func(h health) bool { return h.Policy != first.Policy && h.Problem == "" })
	if got := f.events(t, "refused"); len(got) != 1 {
		t.Errorf("the record: %q", got)
	}
}

func TestAFolderOfMappingsThatIsGoneIsAProblemUntilItIsBack(t *testing.T) {
	f := following(t)
	first := f.health(t)
	away := f.folder + ".away"
	if err := os.Rename(f.folder, away); err != nil {
		t.Fatal(err)
	}
	gone := f.await(t, "gone", func(h health) bool { return h.Problem != "" })
	if gone.Policy != first.Policy || !strings.Contains(gone.Problem, "no such file or directory") {
		t.Errorf("gone: %+v", gone)
	}
	if got := f.events(t, "refused"); len(got) != 1 || !strings.Contains(got[0], "no such file or directory") {
		t.Errorf("the record: %q", got)
	}
	if err := os.Rename(away, f.folder); err != nil {
		t.Fatal(err)
	}
	if h := f.await(t, "back", func(h health) bool { return h.Problem == "" }); h.Policy != first.Policy {
		t.Errorf("back: %+v", h)
	}
	for text, want := range map[string]int{saysKept: 1, saysFresh: 0, saysAgain: 1} {
		if got := f.log.count(text); got != want {
			t.Errorf("%s is in the log %d times, not %d", text, got, want)
		}
	}
}

// looked is a server that is not served, looked at by hand.
func looked(t *testing.T) (f *follower, mapping string, log *serverLog) {
	t.Helper()
	s, file := unserved(t)
	log = &serverLog{}
	s.log = slog.New(slog.NewJSONHandler(log, nil))
	return &follower{server: s, tried: s.mappings}, filepath.Join(filepath.Dir(file), theMapping), log
}

func TestWhyTheMappingsCannotBeUsedIsSaidOnceUntilItIsAnotherReason(t *testing.T) {
	f, mapping, log := looked(t)
	looks := func(n, kept int) {
		t.Helper()
		for range n {
			f.look(t.Context(), false)
		}
		if got := log.count(saysKept); got != kept {
			t.Errorf("it was said %d times, not %d", got, kept)
		}
	}
	looks(3, 0)
	edit(t, mapping, "[editors]", "[authors]")
	looks(2*againAfter, 1)
	edit(t, mapping, "", "# another edit, the same mistake\n")
	looks(3, 1)
	edit(t, mapping, "[authors]", "[writers]")
	looks(3, 2)
	const nothing = `"msg":"the mappings were read again: nothing is new"`
	if f.look(t.Context(), true); log.count(saysKept) != 2 || log.count(nothing) != 1 || log.count(`"problem":"`+mapping+`:37:19: to: no group`) != 1 {
		t.Errorf("who asks is told nothing: %s", log.b.String())
	}
}

// What kept them from being used may have been around them: a disk that was full.
func TestMappingsThatCannotBeUsedAreTriedAgainAsTheyAre(t *testing.T) {
	f, _, log := looked(t)
	why := "record change of policy: no space left on device"
	f.broken.Store(&why)
	for range againAfter - 1 {
		f.look(t.Context(), false)
	}
	if f.PolicyProblem() != why {
		t.Error("they are tried with every look")
	}
	if f.look(t.Context(), false); f.PolicyProblem() != "" || log.count(saysAgain) != 1 {
		t.Errorf("got %q: %s", f.PolicyProblem(), log.b.String())
	}
}

// What an editor leaves beside the file that it has open is no mapping.
func TestAnEditorsLinkIsNoChangeOfTheMappings(t *testing.T) {
	f, mapping, log := looked(t)
	if err := os.Symlink("somebody@host.1234", filepath.Join(filepath.Dir(mapping), ".#example.yaml")); err != nil {
		t.Fatal(err)
	}
	f.look(t.Context(), false)
	edit(t, mapping, "hour >= 6", "hour >= 7")
	f.look(t.Context(), false)
	if f.PolicyProblem() != "" || log.count(saysFresh) != 1 || log.count(saysKept) != 0 {
		t.Errorf("got %q: %s", f.PolicyProblem(), log.b.String())
	}
}
