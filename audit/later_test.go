package audit_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/stint-dev/stint/audit"
)

// A journal of a later version is not damaged, and is left as it is.
func TestAJournalOfALaterVersionIsNotOpened(t *testing.T) {
	dir := t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	mustAppend(t, j, text("a"))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "00000000000000000001.journal")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	copy(data, "STINTJ02")
	sum := crc32.Checksum(data[:60], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(data[60:], sum)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	wantLater(t, dir)
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, data) {
		t.Errorf("it was changed, or is gone: %v", err)
	}
	data[60]++
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := audit.ReadJournal(dir, 0, nil); !errors.Is(err, audit.ErrDamaged) {
		t.Errorf("a header whose checksum is wrong may say anything: %v", err)
	}
}

func wantLater(t *testing.T, dir string) {
	t.Helper()
	nothing := func(audit.Frame, uint64) error { return nil }
	if err := audit.ReadJournal(dir, 0, nothing); !errors.Is(err, audit.ErrLater) || errors.Is(err, audit.ErrDamaged) {
		t.Errorf("read: %v", err)
	}
	if j, err := audit.OpenJournal(audit.JournalConfig{Dir: dir, SegmentSize: segment}); !errors.Is(err, audit.ErrLater) {
		if err == nil {
			_ = j.Close()
		}
		t.Errorf("opened: %v", err)
	}
}

// A frame of a type that is not known may be a lease or a revocation in a new form, and
// is not passed over; types from 128 on never are.
func TestFramesOfTypesThatAreNotKnown(t *testing.T) {
	dir := t.TempDir()
	j := open(t, audit.JournalConfig{Dir: dir})
	mustAppend(t, j, text("a"), audit.Frame{Type: 128, Payload: []byte("for those who know it")}, text("b"))
	if got := read(t, dir, 0); len(got) != 3 {
		t.Errorf("read: %q", got)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, audit.JournalConfig{Dir: dir})
	mustAppend(t, j, audit.Frame{Type: audit.FrameSchema + 1, Payload: []byte("x")}, text("c"))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	wantLater(t, dir)
}
