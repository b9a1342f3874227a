package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
)

const segment = 2 << 20 // the smallest

func open(t testing.TB, cfg audit.JournalConfig) *audit.Journal {
	t.Helper()
	if cfg.SegmentSize == 0 {
		cfg.SegmentSize = segment
	}
	j, err := audit.OpenJournal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func text(s string) audit.Frame { return audit.Frame{Type: audit.FrameEvent, Payload: []byte(s)} }

func mustAppend(t testing.TB, j *audit.Journal, frames ...audit.Frame) {
	t.Helper()
	if err := j.Append(frames...); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, dir string, from uint64) []string {
	t.Helper()
	var out []string
	err := audit.ReadJournal(dir, from, func(f audit.Frame, seq uint64) error {
		out = append(out, fmt.Sprintf("%d:%d:%s", seq, f.Type, f.Payload))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestWhatIsAppendedIsReadAfterReopening(t *testing.T) {
	dir := t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	mustAppend(t, j, text("a"))
	mustAppend(t, j, text("b"), audit.Frame{Type: audit.FrameLease, Payload: []byte("l")})
	if got, want := read(t, dir, 1), []string{"1:1:a", "2:1:b", "3:2:l"}; !slices.Equal(got, want) {
		t.Errorf("while open: %q", got)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(text("x")); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	j = open(t, audit.JournalConfig{Dir: dir})
	mustAppend(t, j, text("c"))
	if got, want := read(t, dir, 2), []string{"2:1:b", "3:2:l", "4:1:c"}; !slices.Equal(got, want) {
		t.Errorf("after reopening: %q", got)
	}
}

func TestASecondProcessIsKeptOut(t *testing.T) {
	dir := t.TempDir()
	open(t, audit.JournalConfig{Dir: dir})
	if _, err := audit.OpenJournal(audit.JournalConfig{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second journal on one folder: %v", err)
	}
}

func TestSegmentsFollowEachOther(t *testing.T) {
	dir := t.TempDir()
	began := 0
	cfg := audit.JournalConfig{Dir: dir, Preamble: func() []audit.Frame {
		began++
		return []audit.Frame{{Type: audit.FrameFeed, Payload: fmt.Appendf(nil, "anchor %d", began)}}
	}}
	j := open(t, cfg)
	big := strings.Repeat("x", 300<<10)
	for i := range 40 {
		mustAppend(t, j, text(fmt.Sprint(i, big)))
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if began < 5 {
		t.Fatalf("12 MB in segments of 2 MiB began %d", began)
	}
	var order []string
	for _, s := range read(t, dir, 1) {
		if !strings.Contains(s, "anchor") {
			order = append(order, strings.TrimRight(strings.SplitN(s, ":", 3)[2], "x"))
		}
	}
	if len(order) != 40 || order[0] != "0" || order[39] != "39" {
		t.Errorf("order: %q", order)
	}
	// Only the last segment is read at opening, and it begins with the preamble.
	var last []string
	cfg.Last = func(f audit.Frame) { last = append(last, string(f.Payload[:min(8, len(f.Payload))])) }
	open(t, cfg)
	if len(last) == 0 || len(last) > 8 || last[0] != "anchor "+fmt.Sprint(began) {
		t.Errorf("frames of the last segment: %q", last)
	}
	if from := read(t, dir, 30); !strings.HasPrefix(from[0], "30:") {
		t.Errorf("reading from 30 begins with %.10s", from[0])
	}
}

func TestFramesThatCannotBe(t *testing.T) {
	j := open(t, audit.JournalConfig{Dir: t.TempDir()})
	for name, frames := range map[string][]audit.Frame{
		"an empty payload": {text("")},
		"a huge payload":   {text(strings.Repeat("x", audit.MaxFrame+1))},
		"a huge batch":     slices.Repeat([]audit.Frame{text(strings.Repeat("x", audit.MaxFrame))}, 5),
	} {
		if err := j.Append(frames...); err == nil {
			t.Errorf("%s was appended", name)
		}
	}
	if _, err := audit.OpenJournal(audit.JournalConfig{Dir: t.TempDir(), SegmentSize: 4096}); err == nil {
		t.Error("a tiny segment was accepted")
	}
}

// segments returns the paths of the journal's files, in order.
func segments(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.journal"))
	if err != nil || len(names) == 0 {
		t.Fatal("no segments", err)
	}
	slices.Sort(names)
	return names
}

func edit(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// filled makes a closed journal of three syncs and returns its only segment.
func filled(t testing.TB) (dir, path string) {
	dir = t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	for _, s := range []string{"first", "second", "third"} {
		mustAppend(t, j, text(s))
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, segments(t, dir)[0]
}

func TestATornWriteIsCutOff(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"half of the last frame":      func(b []byte) []byte { i := bytes.Index(b, []byte("third")); clear(b[i+2:]); return b },
		"only its header was written": func(b []byte) []byte { i := bytes.Index(b, []byte("third")); clear(b[i:]); return b },
		"only its payload":            func(b []byte) []byte { i := bytes.Index(b, []byte("third")); clear(b[i-24 : i]); return b },
		"garbage in its place": func(b []byte) []byte {
			i := bytes.Index(b, []byte("third"))
			copy(b[i-24:], bytes.Repeat([]byte{0xa5}, 100))
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, path := filled(t)
			edit(t, path, change)
			j := open(t, audit.JournalConfig{Dir: dir})
			mustAppend(t, j, text("fourth"))
			if got, want := read(t, dir, 1), []string{"1:1:first", "2:1:second", "3:1:fourth"}; !slices.Equal(got, want) {
				t.Errorf("got %q", got)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			open(t, audit.JournalConfig{Dir: dir}) // nothing of the torn write is left to confuse
		})
	}
}

// Of a torn batch nothing comes back: also not its second frame, whole as it is, when
// another has taken the place of the first.
func TestTheRestOfATornBatchDoesNotComeBack(t *testing.T) {
	dir, path := filled(t)
	j := open(t, audit.JournalConfig{Dir: dir})
	mustAppend(t, j, text("torn1"), text("whole"))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	edit(t, path, func(b []byte) []byte { b[bytes.Index(b, []byte("torn1"))]++; return b })
	j = open(t, audit.JournalConfig{Dir: dir})
	mustAppend(t, j, text("other"))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, dir, 1), []string{"1:1:first", "2:1:second", "3:1:third", "4:1:other"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestDamageIsNotTakenForATornWrite(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"a changed byte in a synced frame": func(b []byte) []byte { b[bytes.Index(b, []byte("first"))]++; return b },
		"a synced frame wiped": func(b []byte) []byte {
			i := bytes.Index(b, []byte("first"))
			copy(b[i-24:i+5], bytes.Repeat([]byte{0xff}, 29))
			return b
		},
		"a length that leads astray": func(b []byte) []byte { b[bytes.Index(b, []byte("first"))-24] = 200; return b },
		"a changed header":           func(b []byte) []byte { b[9]++; return b },
		"another file":               func([]byte) []byte { return []byte("not a journal") },
		"another number": func(b []byte) []byte {
			return append([]byte("STINTJ02"), b[8:]...)
		},
		"a file that ends within a frame":   func(b []byte) []byte { return b[:bytes.Index(b, []byte("third"))+2] },
		"a file without its last frames":    func(b []byte) []byte { return b[:bytes.Index(b, []byte("second"))-24] },
		"a file without its last zero byte": func(b []byte) []byte { return b[:len(b)-1] },
	} {
		t.Run(name, func(t *testing.T) {
			dir, path := filled(t)
			edit(t, path, change)
			_, err := audit.OpenJournal(audit.JournalConfig{Dir: dir, SegmentSize: segment})
			if !errors.Is(err, audit.ErrDamaged) || !strings.Contains(err.Error(), path) {
				t.Errorf("opened, or refused without saying where: %v", err)
			}
			if err := audit.ReadJournal(dir, 1, func(audit.Frame, uint64) error { return nil }); !errors.Is(err, audit.ErrDamaged) {
				t.Errorf("read: %v", err)
			}
		})
	}
}

func TestSegmentsThatDoNotFollowAreDamage(t *testing.T) {
	dir := t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	for range 12 {
		mustAppend(t, j, text(strings.Repeat("x", 900<<10)))
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	all := segments(t, dir)
	if err := os.Remove(all[1]); err != nil {
		t.Fatal(err)
	}
	if err := audit.ReadJournal(dir, 1, func(audit.Frame, uint64) error { return nil }); !errors.Is(err, audit.ErrDamaged) {
		t.Errorf("a missing segment: %v", err)
	}
	if err := os.Rename(all[0], strings.Replace(all[0], "1.journal", "7.journal", 1)); err != nil {
		t.Fatal(err)
	}
	if err := audit.ReadJournal(dir, 1, func(audit.Frame, uint64) error { return nil }); !errors.Is(err, audit.ErrDamaged) {
		t.Errorf("a renamed segment: %v", err)
	}
}

func TestManyWritersShareSyncsAndLoseNothing(t *testing.T) {
	for _, processors := range []int{1, runtime.GOMAXPROCS(0)} {
		t.Run(fmt.Sprint(processors, " processors"), func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
			manyWriters(t)
		})
	}
}

func manyWriters(t *testing.T) {
	dir := t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	const writers, each = 64, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := j.Append(text(fmt.Sprintf("%d/%d", w, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	next := make([]int, writers)
	for _, s := range read(t, dir, 1) {
		var seq, typ, w, i int
		if _, err := fmt.Sscanf(s, "%d:%d:%d/%d", &seq, &typ, &w, &i); err != nil {
			t.Fatal(s, err)
		}
		if next[w] != i {
			t.Fatalf("writer %d: %d where %d belongs", w, i, next[w])
		}
		next[w]++
	}
	for w, n := range next {
		if n != each {
			t.Errorf("writer %d has %d of %d", w, n, each)
		}
	}
	data, _ := os.ReadFile(segments(t, dir)[0])
	if last := lastBatch(data); last > writers*each/2 {
		t.Errorf("%d frames took %d syncs", writers*each, last)
	}
}

func TestWithoutRoomNothingIsAppendedUntilThereIsRoom(t *testing.T) {
	dir := t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	// A folder in the place of the next segment's file: it cannot be made.
	block := filepath.Join(dir, "spare.new")
	if err := os.Mkdir(block, 0o700); err != nil {
		t.Fatal(err)
	}
	big := text(strings.Repeat("x", 900<<10))
	mustAppend(t, j, big)
	mustAppend(t, j, big)
	for range 2 {
		if err := j.Append(big); err == nil {
			t.Fatal("appended where there was no room")
		}
	}
	if j.Failed() != nil {
		t.Error("having no room is not the end:", j.Failed())
	}
	if err := os.Remove(block); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, j, big)
	if got := read(t, dir, 1); len(got) != 3 {
		t.Errorf("%d frames, want 3", len(got))
	}
}

func FuzzRecovery(f *testing.F) {
	_, path := filled(f)
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	good = bytes.TrimRight(good, "\x00")
	f.Add(good, 0, byte(0))
	f.Add(good, 70, byte(1))
	f.Add(good[:100], 0, byte(0))
	f.Fuzz(func(t *testing.T, data []byte, at int, flip byte) {
		data = slices.Clone(data)
		if len(data) > 0 && at >= 0 {
			data[at%len(data)] ^= flip
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), data, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := audit.OpenJournal(audit.JournalConfig{Dir: dir, SegmentSize: segment})
		if err != nil {
			if !errors.Is(err, audit.ErrDamaged) {
				t.Fatalf("neither opened nor called damaged: %v", err)
			}
			return
		}
		defer func() { _ = j.Close() }()
		before := len(read(t, dir, 1))
		if err := j.Append(text("after")); err != nil {
			t.Fatal(err)
		}
		if got := read(t, dir, 1); len(got) != before+1 || !strings.HasSuffix(got[before], ":after") {
			t.Fatalf("%d frames before, %q after", before, got)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	payload := text(strings.Repeat("x", 1200))
	for _, writers := range []int{1, 16, 128} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			j := open(b, audit.JournalConfig{Dir: b.TempDir(), SegmentSize: 256 << 20})
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for i := w; i < b.N; i += writers {
						if err := j.Append(payload); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// BenchmarkGrouping has each writer work for about 100 us between appends, as a
// server does, on one processor, and reports how many records share a sync and
// what CPU time an append takes with its share of the system's.
func BenchmarkGrouping(b *testing.B) {
	spin := func(n int) (x uint64) {
		for range n {
			x = x*6364136223846793005 + 1442695040888963407
		}
		return x
	}
	began, sum := time.Now(), spin(10_000_000)
	rounds := int(10_000_000 * 100 * time.Microsecond / time.Since(began))
	for _, work := range []int{0, rounds} {
		for _, writers := range []int{1, 16} {
			b.Run(fmt.Sprintf("work=%v/writers=%d", work > 0, writers), func(b *testing.B) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
				dir := b.TempDir()
				j := open(b, audit.JournalConfig{Dir: dir, SegmentSize: 256 << 20})
				payload, before := text(strings.Repeat("x", 1000)), cpuTime(b)
				b.ResetTimer()
				var wg sync.WaitGroup
				for w := range writers {
					wg.Go(func() {
						for i := w; i < b.N; i += writers {
							runtime.KeepAlive(sum + spin(work))
							if err := j.Append(payload); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
				data, err := os.ReadFile(segments(b, dir)[0])
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(b.N)/float64(lastBatch(data)), "records/sync")
			})
		}
	}
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// What is written to a file that has lost its name is lost with the process.
func TestAJournalThatVanishesIsNoticed(t *testing.T) {
	for name, vanish := range map[string]func(dir string) error{
		"its folder is removed": os.RemoveAll,
		"its folder is moved":   func(dir string) error { return os.Rename(dir, dir+".old") },
		"its file is replaced": func(dir string) error {
			path := segments(t, dir)[0]
			data, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path+".copy", data, 0o600)
			}
			return errors.Join(err, os.Rename(path+".copy", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "journal")
			j := open(t, audit.JournalConfig{Dir: dir})
			idle := open(t, audit.JournalConfig{Dir: dir + "-idle"})
			mustAppend(t, j, text("a"))
			if j.Failed() != nil || idle.Failed() != nil {
				t.Fatal(j.Failed(), idle.Failed())
			}
			if err := errors.Join(vanish(dir), vanish(dir+"-idle")); err != nil {
				t.Fatal(err)
			}
			if err := idle.Failed(); err == nil || !strings.Contains(err.Error(), "not there any more") {
				t.Errorf("of a journal in which nobody writes: %v", err)
			}
			var err error
			for began := time.Now(); err == nil && time.Since(began) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
				err = j.Append(text("b"))
			}
			if err == nil || !strings.Contains(err.Error(), "not there any more") {
				t.Errorf("of one in which somebody does: %v", err)
			}
			if err := j.Append(text("c")); err == nil {
				t.Error("and then it goes on")
			}
		})
	}
}

func TestAJournalThatIsHeldIsNotOpened(t *testing.T) {
	dir := t.TempDir()
	open(t, audit.JournalConfig{Dir: dir})
	if _, err := audit.HoldJournal(dir); !errors.Is(err, audit.ErrInUse) {
		t.Errorf("held although it is open: %v", err)
	}
	if _, err := audit.HoldJournal(filepath.Join(dir, "nowhere")); err == nil || errors.Is(err, audit.ErrInUse) {
		t.Errorf("one that there is not: %v", err)
	}
	other := t.TempDir()
	release, err := audit.HoldJournal(other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.OpenJournal(audit.JournalConfig{Dir: other}); err == nil {
		t.Error("opened although it is held")
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	open(t, audit.JournalConfig{Dir: other})
}
