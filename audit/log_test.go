package audit_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
)

const (
	alice = "https://idp.example#alice"
	bob   = "https://idp.example#bob"
)

// keys keeps subjects' keys in memory. Destroying one is forgetting the person.
type keys struct {
	mu    sync.Mutex
	kept  map[string][]byte
	asked int
	err   error
	size  int // of a new key; 0: 32
}

func (k *keys) SubjectKey(_ context.Context, index string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if k.err != nil {
		return nil, k.err
	}
	if k.kept == nil {
		k.kept = make(map[string][]byte)
	}
	if k.kept[index] == nil {
		key := make([]byte, cmp.Or(k.size, 32))
		_, _ = rand.Read(key)
		k.kept[index] = key
	}
	return k.kept[index], nil
}

func (k *keys) Forget(_ context.Context, index string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.kept, index)
	return k.err
}

func (k *keys) of(index string) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept[index]
}

var noon = time.Date(2030, 1, 2, 12, 0, 0, 123456789, time.FixedZone("there", 7200))

// newLog opens a log on a journal of its own, and returns the journal's folder.
func newLog(t testing.TB, k audit.SubjectKeys) (*audit.Log, *audit.Journal, string) {
	t.Helper()
	dir := t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	l, err := audit.NewLog(audit.LogConfig{Replica: "r1", IndexKey: bytes.Repeat([]byte{7}, 32), Now: func() time.Time { return noon }}, j, k)
	if err != nil {
		t.Fatal(err)
	}
	return l, j, dir
}

func record(t testing.TB, l *audit.Log, p audit.Personal) *audit.Event {
	t.Helper()
	e := &audit.Event{Kind: audit.KindExchange, Outcome: audit.Granted, Party: audit.Party{Client: "desktop"}}
	if err := l.Record(t.Context(), e, p); err != nil {
		t.Fatal(err)
	}
	return e
}

// frames reads what a journal holds.
func frames(t testing.TB, dir string) (out []audit.Frame) {
	t.Helper()
	err := audit.ReadJournal(dir, 0, func(f audit.Frame, _ uint64) error {
		f.Payload = bytes.Clone(f.Payload)
		out = append(out, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// event reads the event in a frame.
func event(t testing.TB, f audit.Frame) *audit.Event {
	t.Helper()
	e := &audit.Event{}
	if err := json.Unmarshal(f.Payload, e); err != nil || f.Type != audit.FrameEvent {
		t.Fatalf("type %d, %v", f.Type, err)
	}
	return e
}

func TestALogIsGivenAllItNeeds(t *testing.T) {
	j := open(t, audit.JournalConfig{Dir: t.TempDir()})
	good := audit.LogConfig{Replica: "r1", IndexKey: make([]byte, 32), Now: time.Now}
	for name, change := range map[string]func(*audit.LogConfig, **audit.Journal, *audit.SubjectKeys){
		"no replica":           func(c *audit.LogConfig, _ **audit.Journal, _ *audit.SubjectKeys) { c.Replica = "" },
		"no index key":         func(c *audit.LogConfig, _ **audit.Journal, _ *audit.SubjectKeys) { c.IndexKey = nil },
		"an index key too few": func(c *audit.LogConfig, _ **audit.Journal, _ *audit.SubjectKeys) { c.IndexKey = make([]byte, 31) },
		"no clock":             func(c *audit.LogConfig, _ **audit.Journal, _ *audit.SubjectKeys) { c.Now = nil },
		"no journal":           func(_ *audit.LogConfig, j **audit.Journal, _ *audit.SubjectKeys) { *j = nil },
		"no keys":              func(_ *audit.LogConfig, _ **audit.Journal, k *audit.SubjectKeys) { *k = nil },
	} {
		t.Run(name, func(t *testing.T) {
			cfg, journal, k := good, j, audit.SubjectKeys(&keys{})
			if _, err := audit.NewLog(cfg, journal, k); err != nil {
				t.Fatal(err)
			}
			change(&cfg, &journal, &k)
			if _, err := audit.NewLog(cfg, journal, k); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestAnEventIsCompletedAndKeptWithItsFrames(t *testing.T) {
	l, _, dir := newLog(t, &keys{})
	e := &audit.Event{Kind: audit.KindExchange, Outcome: audit.Granted, Version: 99, Replica: "forged", ID: "forged"}
	lease := audit.Frame{Type: audit.FrameLease, Payload: []byte(`{"id":"l"}`)}
	if err := l.Record(t.Context(), e, audit.Personal{Subject: alice, Email: "alice@acme.example"}, lease); err != nil {
		t.Fatal(err)
	}
	if err := l.Keep(audit.Frame{Type: audit.FrameFeed, Payload: []byte("entry")}); err != nil {
		t.Fatal(err)
	}
	record(t, l, audit.Personal{})
	got := frames(t, dir)
	if len(got) != 4 || got[1].Type != audit.FrameLease || !bytes.Equal(got[1].Payload, lease.Payload) || got[2].Type != audit.FrameFeed {
		t.Fatalf("%d frames: %+v", len(got), got)
	}
	first, second := event(t, got[0]), event(t, got[3])
	if first.Version != audit.SchemaVersion || first.Replica != "r1" || len(first.ID) != 26 || first.ID != e.ID {
		t.Errorf("%+v", first)
	}
	if want := noon.UTC().Truncate(time.Microsecond); !first.Time.Equal(want) || first.Time.Location() != time.UTC {
		t.Errorf("at %s, not %s", first.Time, want)
	}
	if first.Party.Subject != l.Index(alice) || second.Party.Subject != "" {
		t.Errorf("subjects %q and %q", first.Party.Subject, second.Party.Subject)
	}
	if len(first.Personal) == 0 || len(second.Personal) != 0 {
		t.Error("personal data without a person, or a person without")
	}
}

func TestIdsSortByTimeAndDiffer(t *testing.T) {
	now := noon
	j := open(t, audit.JournalConfig{Dir: t.TempDir()})
	l, err := audit.NewLog(audit.LogConfig{Replica: "r", IndexKey: make([]byte, 32), Now: func() time.Time { return now }}, j, &keys{})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	before := ""
	for range 50 {
		a, b := record(t, l, audit.Personal{}), record(t, l, audit.Personal{})
		if a.ID <= before || b.ID <= before || a.ID == b.ID || seen[a.ID] || seen[b.ID] {
			t.Fatalf("%s and %s after %s", a.ID, b.ID, before)
		}
		seen[a.ID], seen[b.ID], before = true, true, max(a.ID, b.ID)
		now = now.Add(time.Millisecond)
	}
}

func TestTheIndexTellsSubjectsApartAndNothingElse(t *testing.T) {
	l, _, _ := newLog(t, &keys{})
	j := open(t, audit.JournalConfig{Dir: t.TempDir()})
	other, err := audit.NewLog(audit.LogConfig{Replica: "r2", IndexKey: bytes.Repeat([]byte{8}, 32), Now: time.Now}, j, &keys{})
	if err != nil {
		t.Fatal(err)
	}
	if l.Index(alice) != l.Index(alice) || l.Index(alice) == l.Index(bob) || len(l.Index(alice)) != 32 {
		t.Errorf("%s and %s", l.Index(alice), l.Index(bob))
	}
	if l.Index(alice) == other.Index(alice) {
		t.Error("it can be computed without the key")
	}
	// HMAC-SHA-256 by another implementation: openssl dgst -mac HMAC.
	if got := l.Index(alice); got != "d31a92eca0b5daa9acda4d938ad14e46" {
		t.Error(got)
	}
}

func TestPersonalDataOpensWithItsSubjectsKeyOnly(t *testing.T) {
	k := &keys{}
	l, _, _ := newLog(t, k)
	hers := audit.Personal{Subject: alice, Email: "alice@acme.example", Address: "203.0.113.7"}
	his := audit.Personal{Subject: bob, Email: "bob@acme.example"}
	a, again, b := record(t, l, hers), record(t, l, hers), record(t, l, his)
	if got, err := audit.Reveal(a, k.of(l.Index(alice))); err != nil || got != hers {
		t.Fatalf("%+v, %v", got, err)
	}
	if bytes.Equal(a.Personal, again.Personal) {
		t.Error("two events of one person look alike")
	}
	swapped := func(e, personal *audit.Event) *audit.Event {
		c := *e
		c.Personal = personal.Personal
		return &c
	}
	flipped := *a
	flipped.Personal = bytes.Clone(a.Personal)
	flipped.Personal[len(flipped.Personal)-1] ^= 1
	another := *a
	another.ID = again.ID
	for name, c := range map[string]struct {
		e   *audit.Event
		key []byte
	}{
		"another subject's key":            {a, k.of(l.Index(bob))},
		"another subject's data":           {swapped(a, b), k.of(l.Index(alice))},
		"another subject's data and key":   {swapped(a, b), k.of(l.Index(bob))}, // his data, in her event
		"data of her own other event":      {swapped(a, again), k.of(l.Index(alice))},
		"another id":                       {&another, k.of(l.Index(alice))},
		"one bit changed":                  {&flipped, k.of(l.Index(alice))},
		"no data":                          {&audit.Event{ID: a.ID}, k.of(l.Index(alice))},
		"no key":                           {a, nil},
		"a key that is too short":          {a, k.of(l.Index(alice))[:16]},
		"a key that was made in its place": {a, bytes.Repeat([]byte{1}, 32)},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := audit.Reveal(c.e, c.key); err == nil || got != (audit.Personal{}) || strings.Contains(err.Error(), "alice") {
				t.Errorf("it opens: %+v, %v", got, err)
			}
		})
	}
}

// TestWhatOpensAndIsNoPersonalData is data that somebody with the key wrote.
func TestWhatOpensAndIsNoPersonalData(t *testing.T) {
	key := bytes.Repeat([]byte{5}, 32)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	for plain, ok := range map[string]bool{`{"sub":"x"}`: true, `["x"]`: false, ``: false} {
		e := &audit.Event{ID: "an id", Personal: seal.Seal(nil, nil, []byte(plain), []byte("an id"))}
		if got, err := audit.Reveal(e, key); (err == nil) != ok || ok != (got.Subject == "x") {
			t.Errorf("%s: %+v, %v", plain, got, err)
		}
	}
}

// TestNoPersonalDataIsInTheJournal looks for what nobody may find, in every file.
func TestNoPersonalDataIsInTheJournal(t *testing.T) {
	k := &keys{}
	l, j, dir := newLog(t, k)
	canaries := []string{"canary-subject", "canary-mail@acme.example", "198.51.100.77"}
	for range 3 {
		record(t, l, audit.Personal{Subject: "https://idp.example#" + canaries[0], Email: canaries[1], Address: canaries[2]})
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	found := false
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, c := range canaries {
			if bytes.Contains(data, []byte(c)) {
				t.Errorf("%s is in %s", c, d.Name())
			}
		}
		found = found || bytes.Contains(data, []byte(l.Index("https://idp.example#"+canaries[0])))
		return err
	})
	if err != nil || !found {
		t.Errorf("the events were not looked at: %v", err)
	}
}

func TestWithoutAKeyNothingIsRecorded(t *testing.T) {
	down := errors.New("vault is sealed")
	for name, k := range map[string]*keys{"the keys cannot be had": {err: down}, "the key is no key": {size: 16}} {
		t.Run(name, func(t *testing.T) {
			l, _, dir := newLog(t, k)
			err := l.Record(t.Context(), &audit.Event{}, audit.Personal{Subject: alice})
			if err == nil || k.err != nil && !errors.Is(err, down) {
				t.Error(err)
			}
			if got := frames(t, dir); len(got) != 0 {
				t.Errorf("%d frames", len(got))
			}
			if l.Failed() != nil {
				t.Error("the journal is said to have failed")
			}
			record(t, l, audit.Personal{}) // what is nobody's goes on
		})
	}
	t.Run("and once it can be had, it goes on", func(t *testing.T) {
		k := &keys{err: down}
		l, _, _ := newLog(t, k)
		if err := l.Record(t.Context(), &audit.Event{}, audit.Personal{Subject: alice}); err == nil {
			t.Error("recorded")
		}
		k.err = nil
		record(t, l, audit.Personal{Subject: alice})
	})
}

func TestAClosedJournalTakesNothing(t *testing.T) {
	l, j, _ := newLog(t, &keys{})
	record(t, l, audit.Personal{})
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Record(t.Context(), &audit.Event{}, audit.Personal{}); !errors.Is(err, audit.ErrClosed) {
		t.Error(err)
	}
	if err := l.Keep(audit.Frame{Type: audit.FrameFeed, Payload: []byte("x")}); !errors.Is(err, audit.ErrClosed) {
		t.Error(err)
	}
}

func TestWhatCannotBeWrittenIsRefused(t *testing.T) {
	l, _, dir := newLog(t, &keys{})
	for name, e := range map[string]*audit.Event{
		"a certificate that is no JSON": {Certificate: &audit.Certificate{Grant: json.RawMessage("{")}},
		"an event beyond a frame":       {Reason: strings.Repeat("x", audit.MaxFrame)},
	} {
		if err := l.Record(t.Context(), e, audit.Personal{}); err == nil {
			t.Errorf("%s is recorded", name)
		}
	}
	record(t, l, audit.Personal{})
	if got := frames(t, dir); len(got) != 1 {
		t.Errorf("%d frames", len(got))
	}
}

// TestKeysAreRemembered counts how often they are asked for: not again for those
// who were seen lately, and again for those who were pushed out.
func TestKeysAreRemembered(t *testing.T) {
	k := &keys{}
	l, _, _ := newLog(t, k)
	for range 3 {
		record(t, l, audit.Personal{Subject: alice})
		record(t, l, audit.Personal{Subject: bob})
	}
	if k.asked != 2 {
		t.Errorf("asked %d times for two", k.asked)
	}
	var wg sync.WaitGroup
	for w := range 16 { // many at a time, so that they share syncs
		wg.Go(func() {
			for i := range 4096 / 16 {
				if i%64 == 0 { // she is seen all the time
					record(t, l, audit.Personal{Subject: alice})
				}
				record(t, l, audit.Personal{Subject: fmt.Sprintf("other %d of %d", i, w)})
			}
		})
	}
	wg.Wait()
	asked := k.asked
	record(t, l, audit.Personal{Subject: alice})
	if k.asked != asked {
		t.Error("she is asked for again")
	}
	e := record(t, l, audit.Personal{Subject: bob})
	if k.asked != asked+1 {
		t.Error("who was not seen for long is still remembered")
	}
	if got, err := audit.Reveal(e, k.of(l.Index(bob))); err != nil || got.Subject != bob {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTwoAskForOneKeyAtOnce(t *testing.T) {
	k := &reentrant{}
	l, _, dir := newLog(t, k)
	k.meanwhile = func() { record(t, l, audit.Personal{Subject: alice, Email: "inner"}) }
	record(t, l, audit.Personal{Subject: alice, Email: "outer"})
	record(t, l, audit.Personal{Subject: alice, Email: "later"})
	if k.asked != 2 {
		t.Errorf("asked %d times", k.asked)
	}
	var got []string
	for _, f := range frames(t, dir) {
		p, err := audit.Reveal(event(t, f), k.of(l.Index(alice)))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p.Email)
	}
	if strings.Join(got, " ") != "inner outer later" {
		t.Error(got)
	}
}

func TestManyRecordAtOnce(t *testing.T) {
	k := &keys{}
	l, _, dir := newLog(t, k)
	const writers, each = 8, 40
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				who := fmt.Sprintf("person %d", i%5) // the same ones, by all
				e := &audit.Event{Kind: audit.KindExchange, Request: fmt.Sprintf("%d-%d", w, i)}
				if err := l.Record(context.Background(), e, audit.Personal{Subject: who}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	requests, ids := make(map[string]bool), make(map[string]bool)
	for _, f := range frames(t, dir) {
		e := event(t, f)
		requests[e.Request], ids[e.ID] = true, true
		got, err := audit.Reveal(e, k.of(e.Party.Subject))
		if err != nil || l.Index(got.Subject) != e.Party.Subject {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if len(requests) != writers*each || len(ids) != writers*each {
		t.Errorf("%d requests, %d ids", len(requests), len(ids))
	}
}

func BenchmarkRecord(b *testing.B) {
	l, _, _ := newLog(b, &keys{})
	p := audit.Personal{Subject: alice, Email: "alice@acme.example", Address: "203.0.113.7"}
	b.ReportAllocs()
	for b.Loop() {
		e := audit.Event{
			Kind: audit.KindExchange, Outcome: audit.Granted, Party: audit.Party{Client: "files-mcp", Agent: "desktop"},
			Target: audit.Target{Resource: "https://api.example/files"}, Micros: map[string]int64{"verify": 61, "decide": 3, "sign": 28},
		}
		if err := l.Record(b.Context(), &e, p); err != nil {
			b.Fatal(err)
		}
	}
}
