package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/audit"
)

// noting opens a log whose clock is that of the bubble.
func noting(t *testing.T, k audit.SubjectKeys, cfg audit.LogConfig) (*audit.Log, string) {
	t.Helper()
	dir := t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	cfg.Replica, cfg.IndexKey, cfg.Now = "r1", make([]byte, 32), time.Now
	l, err := audit.NewLog(cfg, j, k)
	if err != nil {
		t.Fatal(err)
	}
	return l, dir
}

func refused(request string) *audit.Event {
	return &audit.Event{
		Kind: audit.KindExchange, Outcome: audit.Refused, Code: "bad_client", Reason: "wrong secret", Request: request,
		Party: audit.Party{Client: "desktop"},
	}
}

// note notes a refusal of somebody at an address.
func note(t *testing.T, l *audit.Log, request, address string) {
	t.Helper()
	if err := l.Note(t.Context(), refused(request), audit.Personal{Address: address}); err != nil {
		t.Fatal(err)
	}
}

// events reads the events of a journal.
func events(t testing.TB, dir string) (out []*audit.Event) {
	t.Helper()
	for _, f := range frames(t, dir) {
		out = append(out, event(t, f))
	}
	return out
}

func TestWhatIsNotedIsWrittenWithinAMomentWithOneSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keys{}
		l, dir := noting(t, k, audit.LogConfig{})
		for i := range 20 {
			note(t, l, fmt.Sprint(i), "203.0.113.7")
		}
		if got := events(t, dir); len(got) != 0 {
			t.Errorf("%d events: somebody waited", len(got))
		}
		time.Sleep(150 * time.Millisecond)
		got := events(t, dir)
		if len(got) != 20 {
			t.Fatalf("%d events", len(got))
		}
		data, err := os.ReadFile(segments(t, dir)[0])
		if err != nil || lastBatch(data) != 1 {
			t.Errorf("%d syncs, %v", lastBatch(data), err)
		}
		e := got[7]
		if e.Request != "7" || e.Version != audit.SchemaVersion || len(e.ID) != 26 || e.Party.Client != "desktop" || e.Count != 0 || e.Kind != audit.KindExchange {
			t.Errorf("%+v", e)
		}
		if p, err := audit.Reveal(e, k.of(l.Index(audit.Strangers))); err != nil || p.Address != "203.0.113.7" || e.Party.Subject != l.Index(audit.Strangers) {
			t.Errorf("%+v, %v", p, err)
		}
		if strings.Contains(string(data), "203.0.113.7") {
			t.Error("the address is in the journal in clear")
		}
	})
}

// Of those that come at once as many are kept as the burst says, to the one.
func TestABurstIsAsLargeAsItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, dir := noting(t, &keys{}, audit.LogConfig{NoteRate: 1, NoteBurst: 3})
		for i := range 10 {
			note(t, l, fmt.Sprint(i), "")
		}
		if err := l.Flush(); err != nil {
			t.Fatal(err)
		}
		all := events(t, dir)
		if last := all[len(all)-1]; len(all) != 4 || last.Kind != audit.KindRefusals || last.Count != 7 {
			t.Errorf("%d events, the last %+v", len(all), last)
		}
	})
}

func TestAStrangerFillsTheRecordAtTheRateAllowedAndNoFaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keys{}
		l, dir := noting(t, k, audit.LogConfig{NoteRate: 2, NoteBurst: 5})
		const seconds, each = 60, 50
		for i := range seconds * each {
			address := "203.0.113.7"
			if i%3 == 0 {
				address = fmt.Sprint("192.0.2.", i%200)
			}
			note(t, l, fmt.Sprint(i), address)
			time.Sleep(time.Second / each)
		}
		if err := l.Flush(); err != nil {
			t.Fatal(err)
		}
		own, counted, summaries := 0, 0, 0
		for _, e := range events(t, dir) {
			if e.Kind != audit.KindRefusals {
				own++
				continue
			}
			counted += e.Count
			summaries++
			p, err := audit.Reveal(e, k.of(e.Party.Subject))
			if err != nil || p.Address != "203.0.113.7" || e.Outcome != audit.Refused || e.Code != "bad_client" || e.Party.Client != "desktop" || e.Request == "" {
				t.Errorf("%+v, %+v, %v", e, p, err)
			}
		}
		if want := 5 + 2*seconds; own < want-1 || own > want {
			t.Errorf("%d events, want %d", own, want)
		}
		if own+counted != seconds*each {
			t.Errorf("%d events and %d counted of %d", own, counted, seconds*each)
		}
		if summaries < 6 || summaries > 7 {
			t.Errorf("%d summaries in a minute", summaries)
		}
		syncs, err := os.ReadFile(segments(t, dir)[0])
		if n := lastBatch(syncs); err != nil || n > 140 {
			t.Errorf("%d requests took %d syncs: %v", seconds*each, n, err)
		}
		// With nobody coming, nothing is written.
		before := len(events(t, dir))
		time.Sleep(time.Hour)
		if after := len(events(t, dir)); after != before {
			t.Errorf("%d events came by themselves", after-before)
		}
	})
}

func TestAnExchangeIsRecordedHoweverManyWereRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, dir := noting(t, &keys{}, audit.LogConfig{NoteRate: 1, NoteBurst: 1})
		for i := range 1000 {
			note(t, l, fmt.Sprint(i), "")
			if i%100 == 0 {
				record(t, l, audit.Personal{Subject: alice})
			}
		}
		if got := events(t, dir); len(got) != 10 {
			t.Errorf("%d events are durable when Record has returned", len(got))
		}
		if err := l.Flush(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWhatCannotBeWrittenYetIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, dir := noting(t, &keys{}, audit.LogConfig{NoteRate: 1, NoteBurst: 3})
		block := filepath.Join(dir, "spare.new") // as in TestWithoutRoomNothingIsAppendedUntilThereIsRoom
		if err := os.Mkdir(block, 0o700); err != nil {
			t.Fatal(err)
		}
		big := audit.Frame{Type: audit.FrameFeed, Payload: make([]byte, 1<<20-200)}
		for range 2 {
			if err := l.Keep(big); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 5 {
			note(t, l, fmt.Sprint(i), "203.0.113.7")
		}
		if err := l.Flush(); err == nil {
			t.Fatal("written where there was no room")
		}
		if err := os.Remove(block); err != nil {
			t.Fatal(err)
		}
		// The next one is told of it, once.
		if err := l.Note(t.Context(), refused("5"), audit.Personal{}); err == nil || !strings.Contains(err.Error(), "what was noted") {
			t.Errorf("nobody hears of it: %v", err)
		}
		note(t, l, "6", "")
		time.Sleep(11 * time.Second)
		sum := 0
		for _, f := range frames(t, dir) {
			if f.Type == audit.FrameEvent {
				sum += max(event(t, f).Count, 1)
			}
		}
		if sum != 7 {
			t.Errorf("%d of 7 are accounted for", sum)
		}
	})
}

func TestWithoutAKeyForAddressesWhatIsNotedIsKeptWithoutThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keys{err: errors.New("vault is sealed")}
		l, dir := noting(t, k, audit.LogConfig{})
		if err := l.Note(t.Context(), refused("1"), audit.Personal{Address: "203.0.113.7", Subject: alice}); !errors.Is(err, k.err) {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if got := events(t, dir); len(got) != 1 || got[0].Request != "1" || got[0].Personal != nil || got[0].Party.Subject != "" {
			t.Errorf("%+v", got)
		}
	})
}

// What is noted while the log closes is lost at most, and disturbs nobody.
func TestNotingAfterTheJournalIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		j := open(t, audit.JournalConfig{Dir: dir})
		l, err := audit.NewLog(audit.LogConfig{Replica: "r", IndexKey: make([]byte, 32), Now: time.Now}, j, &keys{})
		if err != nil {
			t.Fatal(err)
		}
		note(t, l, "1", "")
		if err := errors.Join(l.Flush(), j.Close()); err != nil {
			t.Fatal(err)
		}
		note(t, l, "2", "")
		time.Sleep(time.Minute)
		if err := l.Note(context.Background(), refused("3"), audit.Personal{}); !errors.Is(err, audit.ErrClosed) {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if got := events(t, dir); len(got) != 1 {
			t.Errorf("%d events", len(got))
		}
	})
}
