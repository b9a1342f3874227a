package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
)

// unserved opens a server with a configuration of its own, and does not serve.
func unserved(t *testing.T) (s *server, file string) {
	t.Helper()
	file = filepath.Join(initialised(t), theConfig)
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = build(t.Context(), cfg, slog.New(slog.DiscardHandler), &telemetry{shutdown: func() {}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, file
}

// recorded records an exchange of a person and returns the event.
func recorded(t *testing.T, s *server, change func(*audit.Event), p audit.Personal) *audit.Event {
	t.Helper()
	e := &audit.Event{Kind: audit.KindExchange, Outcome: audit.Refused, Party: audit.Party{Client: "notes-mcp"}}
	if change != nil {
		change(e)
	}
	if err := s.events.Record(t.Context(), e, p); err != nil {
		t.Fatal(err)
	}
	return e
}

// audited runs a command about the record.
func audited(t *testing.T, file string, want int, args ...string) string {
	t.Helper()
	out, code := stintCLI(t, append([]string{"audit", "-c", file}, args...)...)
	if code != want {
		t.Fatalf("audit %q: %d: %s", args, code, out)
	}
	return out
}

const aliceAtIdP = "https://idp.example#alice"

// What strangers sent is shown, and neither obeyed by a terminal nor taken for
// another line or field.
func TestHostileTextInTheRecordIsShownInert(t *testing.T) {
	const hostile = "x\x1b]0;owned\x07\x1b[2J\r\n2030-01-01 fake granted client=bank\u009b31m\u202egnp\U000e0041\u2028\x7f"
	s, file := unserved(t)
	e := recorded(t, s, func(e *audit.Event) {
		e.Code, e.Reason, e.GrantType = hostile, hostile, hostile
		e.Party = audit.Party{Client: hostile, Agent: hostile, Operator: hostile, Session: hostile, Actors: []string{hostile}}
		e.Target = audit.Target{Resource: hostile, Provider: hostile, Tool: hostile, Scopes: []string{hostile}}
		e.Token, e.Change = &audit.Token{ID: hostile}, &audit.Change{What: hostile, After: hostile}
		e.Lease = &audit.Lease{ID: hostile, Outcome: hostile, Upstream: map[string]string{hostile: hostile}}
		e.Revocation = &audit.Revocation{Selector: []string{hostile}, Reason: hostile}
	}, audit.Personal{Subject: hostile, Email: hostile, Address: hostile, Detail: hostile})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"tail": {"tail"}, "tail in JSON": {"tail", "-o", "json"}, "tail revealed": {"tail", "--reveal"}, "tail in JSON revealed": {"tail", "-o", "json", "--reveal"},
		"show": {"show", e.ID}, "show in JSON": {"show", e.ID, "-o", "json"}, "show revealed": {"show", e.ID, "--reveal"},
	} {
		t.Run(name, func(t *testing.T) {
			out := audited(t, file, 0, args...)
			for _, r := range out {
				if r < ' ' && r != '\n' || r >= 0x7f {
					t.Fatalf("%U is in %q", r, out)
				}
			}
			if !strings.Contains(out, "owned") {
				t.Errorf("it is not shown: %s", out)
			}
			if strings.Contains(name, "JSON") || strings.Contains(name, "show") {
				var got shownEvent
				if err := json.Unmarshal([]byte(out), &got); err != nil || got.Party.Client != hostile || got.Revealed != nil && got.Revealed.Email != hostile {
					t.Errorf("it means something else now: %v, %q", err, out)
				}
				return
			}
			if strings.Count(out, "\n") != 1 || strings.Contains(out, " client=bank") && !strings.Contains(out, `client="x`) {
				t.Errorf("%q", out)
			}
		})
	}
}

func TestPersonsInTheRecordAreRevealedToWhoeverHoldsTheKeys(t *testing.T) {
	s, file := unserved(t)
	hers := audit.Personal{Subject: aliceAtIdP, Email: "alice@acme.example", Address: "203.0.113.7", Detail: "of alice"}
	alice := recorded(t, s, nil, hers)
	bob := recorded(t, s, nil, audit.Personal{Subject: "https://idp.example#bob", Email: "bob@acme.example"})
	nobody := recorded(t, s, nil, audit.Personal{})
	if out := audited(t, file, exitFailed, "show", alice.ID, "--reveal"); !strings.Contains(out, "in use by another process") {
		t.Errorf("beside the server: %s", out)
	}
	if err := s.events.Forget(t.Context(), "https://idp.example#bob"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	show := func(id string, args ...string) (e shownEvent) {
		t.Helper()
		out := audited(t, file, 0, append([]string{"show", id}, args...)...)
		if err := json.Unmarshal([]byte(out), &e); err != nil || e.ID != id {
			t.Fatalf("%v: %s", err, out)
		}
		return e
	}
	if e := show(alice.ID, "--reveal"); e.Revealed == nil || *e.Revealed != hers || e.Unreadable != "" {
		t.Errorf("%+v", e)
	}
	if e := show(alice.ID); e.Revealed != nil || e.Unreadable != "" {
		t.Errorf("nobody asked: %+v", e)
	}
	for range 2 { // looking makes no key in the place of the one that was destroyed
		if e := show(bob.ID, "--reveal"); e.Revealed != nil || !strings.Contains(e.Unreadable, "destroyed") {
			t.Errorf("forgotten: %+v, %q", e.Revealed, e.Unreadable)
		}
	}
	if e := show(nobody.ID, "--reveal"); e.Revealed != nil || e.Unreadable != "" {
		t.Errorf("nobody: %+v", e)
	}
	out := audited(t, file, 0, "tail", "--reveal")
	for _, want := range []string{"person=" + aliceAtIdP, "email=alice@acme.example", "address=203.0.113.7", `detail="of alice"`, `unreadable="the subject's key`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if strings.Contains(out+audited(t, file, 0, "tail", "-o", "json"), "bob@acme") {
		t.Error("who was forgotten is shown")
	}
	if err := os.Remove(filepath.Join(s.cfg.Data, subjectsFile)); err != nil {
		t.Fatal(err)
	}
	if out := audited(t, file, exitFailed, "tail", "--reveal"); !strings.Contains(out, "no keys of subjects") {
		t.Error(out)
	}
	if _, err := os.Stat(filepath.Join(s.cfg.Data, subjectsFile)); err == nil {
		t.Error("reading made the file")
	}
}

func TestEventsOfOneSubject(t *testing.T) {
	s, file := unserved(t)
	for range 3 {
		recorded(t, s, nil, audit.Personal{Subject: aliceAtIdP})
		recorded(t, s, nil, audit.Personal{Subject: "https://idp.example#bob"})
	}
	recorded(t, s, func(e *audit.Event) { e.Reason = "names " + s.events.Index(aliceAtIdP) }, audit.Personal{})
	if err := s.events.Note(t.Context(), &audit.Event{Kind: audit.KindExchange}, audit.Personal{Address: "203.0.113.7"}); err != nil {
		t.Fatal(err)
	}
	if err := s.events.Flush(); err != nil {
		t.Fatal(err)
	}
	index := s.events.Index(aliceAtIdP)
	for subject, want := range map[string]int{
		aliceAtIdP: 3, index: 3, index[:12]: 3, index[:8]: 3, "https://idp.example#bob": 3, "https://idp.example#carol": 0, audit.Strangers: 1, "": 8,
	} {
		// The server is running: it is read beside it.
		if out := audited(t, file, 0, "tail", "--subject", subject); strings.Count(out, "\n") != want {
			t.Errorf("%q: want %d\n%s", subject, want, out)
		}
	}
	if out := audited(t, file, 0, "tail", "--subject", aliceAtIdP, "-n", "2"); strings.Count(out, "\n") != 2 {
		t.Error(out)
	}
	for _, wrong := range []string{"alice", index[:7], "X" + index[1:]} {
		audited(t, file, exitUsage, "tail", "--subject", wrong)
	}
}

// Whoever cannot say who he is has events at a rate that does not depend on his,
// and the server writes what it was told of before it stops.
func TestStrangersDoNotFillTheRecord(t *testing.T) {
	s, file := unserved(t)
	began := time.Now()
	const many = 5000
	for range many {
		s.broker.Refuse(t.Context(), &broker.ExchangeRequest{Address: "203.0.113.7"}, "desktop", broker.Fail(broker.BadClient, nil, "no"))
	}
	took := time.Since(began)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	own, counted := 0, 0
	for line := range strings.Lines(audited(t, file, 0, "tail", "-n", "9999", "-o", "json", "--reveal")) {
		var e shownEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Revealed == nil || e.Revealed.Address != "203.0.113.7" || e.Outcome != audit.Refused || e.Code != "bad_client" {
			t.Fatalf("%v: %s", err, line)
		}
		if counted += e.Count; e.Kind == audit.KindExchange {
			own++
		}
	}
	if allowed := 60 + int(took/time.Second) + 1; own < 60 || own > allowed || own+counted != many {
		t.Errorf("%d events and %d counted, of %d in %s", own, counted, many, took)
	}
}

func TestTailShowsTheNewestInOrder(t *testing.T) {
	s, file := unserved(t)
	for i := range 7 {
		recorded(t, s, func(e *audit.Event) { e.Reason = string(rune('a' + i)) }, audit.Personal{})
	}
	for n, want := range map[string]string{"0": "", "1": "g", "3": "efg", "7": "abcdefg", "9": "abcdefg"} {
		var got strings.Builder
		for line := range strings.Lines(audited(t, file, 0, "tail", "-n", n)) {
			got.WriteString(strings.TrimSpace(line[strings.Index(line, "reason=")+len("reason="):]))
		}
		if got.String() != want {
			t.Errorf("-n %s: %q, want %q", n, got.String(), want)
		}
	}
	audited(t, file, exitUsage, "tail", "-n", "-1")
	audited(t, file, exitFailed, "show", "nothing")
}

// wipeFirstFrame damages a journal of one segment.
func wipeFirstFrame(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.journal"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	f, err := os.OpenFile(names[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 64), 64); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// What tail has passed it does not read again: what happens to it there is not
// noticed.
func TestFollowingDoesNotReadTheRecordAgain(t *testing.T) {
	dir := t.TempDir()
	j, err := audit.OpenJournal(audit.JournalConfig{Dir: dir, SegmentSize: 2 * audit.MaxFrame})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	add := func(id string) {
		t.Helper()
		// Of a size that no later append writes the same block again.
		if err := j.Append(audit.Frame{Type: audit.FrameEvent, Payload: []byte(`{"v":1,"id":"` + id + `","reason":"` + strings.Repeat("x", 5000) + `"}`)}); err != nil {
			t.Fatal(err)
		}
	}
	add("first")
	add("second")
	var mu sync.Mutex
	var seen []string
	sees := func(want string) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			mu.Lock()
			got := strings.Join(seen, " ")
			mu.Unlock()
			if got == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("saw %q, want %q", got, want)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- (&tail{from: audit.NewReader(dir, 1), lines: 5, follow: true, print: func(e *audit.Event) error {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, e.ID)
			return nil
		}}).run(ctx)
	}()
	sees("first second")
	wipeFirstFrame(t, dir)
	add("third")
	sees("first second third")
	add("fourth")
	sees("first second third fourth")
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := readEvents(dir, 1, func(*audit.Event, uint64) {}); err == nil {
		t.Error("who reads from the beginning does not notice either: this shows nothing")
	}
}
