package audit_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/audit"
)

// batches makes a closed journal of syncs of so many frames each, numbered through
// from 1, and returns its only segment.
func batches(t testing.TB, sizes ...int) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	n := 0
	for _, size := range sizes {
		var together []audit.Frame
		for range size {
			n++
			together = append(together, text(fmt.Sprintf("<%d>", n)))
		}
		mustAppend(t, j, together...)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, segments(t, dir)[0]
}

// wipeHead zeroes what stands before the payload of a frame, so that the segment
// seems to end there.
func wipeHead(t testing.TB, path string, frame int) {
	t.Helper()
	edit(t, path, func(b []byte) []byte {
		i := bytes.Index(b, fmt.Appendf(nil, "<%d>", frame))
		clear(b[i-24 : i])
		return b
	})
}

func TestFramesBehindAWipedHeadAreNotCutOff(t *testing.T) {
	ones := slices.Repeat([]int{1}, 10)
	for name, c := range map[string]struct {
		sizes []int
		frame int
		kept  int // -1: it is damage
	}{
		"the fourth of ten":                          {ones, 4, -1},
		"the first of ten":                           {ones, 1, -1},
		"the last but one":                           {ones, 9, -1},
		"within a batch that others follow":          {[]int{3, 3, 3}, 5, -1},
		"within the last batch but one":              {[]int{3, 3, 1}, 5, -1},
		"the end of the last batch but one":          {[]int{3, 3, 1}, 6, -1},
		"the beginning of the last batch but one":    {[]int{3, 2, 1}, 4, -1},
		"the last one, which may be a torn write":    {ones, 10, 9},
		"within the last batch, which may be one":    {[]int{3, 3, 3}, 8, 7},
		"the beginning of the last, which may be so": {[]int{3, 3, 3}, 7, 6},
		"the beginning of the only one":              {[]int{3}, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir, path := batches(t, c.sizes...)
			wipeHead(t, path, c.frame)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			j, err := audit.OpenJournal(audit.JournalConfig{Dir: dir, SegmentSize: segment})
			if c.kept < 0 {
				if !errors.Is(err, audit.ErrDamaged) || !strings.Contains(err.Error(), path) {
					t.Errorf("opened, or refused without saying where: %v", err)
				}
				if err := audit.ReadJournal(dir, 1, func(audit.Frame, uint64) error { return nil }); !errors.Is(err, audit.ErrDamaged) {
					t.Errorf("read: %v", err)
				}
				if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
					t.Error("what is left was written over")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = j.Close() }()
			if got := read(t, dir, 1); len(got) != c.kept {
				t.Errorf("%d frames: %q", len(got), got)
			}
		})
	}
}

// A batch that is the first of its segment is torn like any other: what stood
// before it is in the segment before.
func TestATornWriteAtTheBeginningOfASegmentIsCutOff(t *testing.T) {
	dir := t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	for range 5 {
		mustAppend(t, j, text(strings.Repeat("x", 400<<10)))
	}
	mustAppend(t, j, text("<1>"+strings.Repeat("x", 200<<10)), text("<2>"))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	all := segments(t, dir)
	if len(all) != 2 {
		t.Fatalf("%d segments", len(all))
	}
	wipeHead(t, all[1], 1)
	j = open(t, audit.JournalConfig{Dir: dir})
	mustAppend(t, j, text("after"))
	if got := read(t, dir, 6); len(got) != 1 || got[0] != "6:1:after" {
		t.Errorf("%q", got)
	}
}

func TestAReaderGoesOnWhereItStopped(t *testing.T) {
	dir := t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	r := audit.NewReader(dir, 2)
	next := func() (out []string) {
		t.Helper()
		err := r.Read(func(f audit.Frame, seq uint64) error {
			out = append(out, fmt.Sprintf("%d:%.6s", seq, f.Payload))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for i := range 3 { // each beyond the block that the next append writes again
		mustAppend(t, j, text(fmt.Sprintf("<%d>", i+1)+strings.Repeat("x", 5000)))
	}
	if got := next(); !slices.Equal(got, []string{"2:<2>xxx", "3:<3>xxx"}) {
		t.Errorf("at first: %q", got)
	}
	if got := next(); got != nil {
		t.Errorf("nothing new: %q", got)
	}
	// Whoever reads this again comes upon damage.
	first := segments(t, dir)[0]
	wipeHead(t, first, 2)
	mustAppend(t, j, text("<4>"), text("<5>"))
	if got := next(); !slices.Equal(got, []string{"4:<4>", "5:<5>"}) {
		t.Errorf("then: %q", got)
	}
	if err := audit.ReadJournal(dir, 1, func(audit.Frame, uint64) error { return nil }); !errors.Is(err, audit.ErrDamaged) {
		t.Fatalf("the damage was not seen by a reader from the beginning: %v", err)
	}
	// It goes on in later segments.
	big := strings.Repeat("x", 900<<10)
	var want []string
	for i := range 6 {
		mustAppend(t, j, text(fmt.Sprintf("<%d>%s", i+6, big)))
		want = append(want, fmt.Sprintf("%d:%.6s", i+6, fmt.Sprintf("<%d>xxxxx", i+6)))
	}
	if got := next(); !slices.Equal(got, want) {
		t.Errorf("over segments: %q", got)
	}
	all := segments(t, dir)
	mustAppend(t, j, text("unread")) // in the segment where it stands
	for range 6 {
		mustAppend(t, j, text(big))
	}
	if err := os.Remove(all[len(all)-1]); err != nil {
		t.Fatal(err)
	}
	if err := r.Read(func(audit.Frame, uint64) error { return nil }); !errors.Is(err, audit.ErrDamaged) {
		t.Errorf("a segment went that was not read to its end: %v", err)
	}
}

// What a reader meets while it is being written is no damage, however the reading
// and the writing fall together.
func TestReadingBesideTheWriterSeesNoDamage(t *testing.T) {
	dir := t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	const many = 3000
	done := make(chan error, 1)
	go func() {
		for i := range many {
			if err := j.Append(text(strings.Repeat("x", 1+i%3000)), text("y")); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	r, seen, ended := audit.NewReader(dir, 1), uint64(0), false
	for seen < 2*many {
		if ended {
			t.Fatalf("%d of %d frames", seen, 2*many)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			ended = true
		default:
		}
		for _, from := range []*audit.Reader{r, audit.NewReader(dir, seen+1)} {
			if err := from.Read(func(_ audit.Frame, seq uint64) error { seen = max(seen, seq); return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// lastBatch walks the frames by hand.
func lastBatch(b []byte) (batch uint32) {
	for at := 64; ; {
		n := binary.LittleEndian.Uint32(b[at:])
		if n == 0 {
			return batch
		}
		batch = binary.LittleEndian.Uint32(b[at+4:])
		at += int(24+n+7) &^ 7
	}
}
