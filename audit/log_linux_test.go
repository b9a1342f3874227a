package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stint-dev/stint/audit"
)

// breakDisk puts a device that is always full in the place of every segment that
// this process has open below a folder.
func breakDisk(t testing.TB, dir string) {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = full.Close() })
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	broken := 0
	for _, fd := range fds {
		n, _ := strconv.Atoi(fd.Name())
		path, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		if filepath.Dir(path) == dir && strings.Contains(filepath.Base(path), "0001") {
			if err := syscall.Dup3(int(full.Fd()), n, syscall.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			broken++
		}
	}
	if broken == 0 || broken > 2 { // one for each way to write
		t.Fatalf("one segment is open %d times", broken)
	}
}

func TestAFailureOfTheDiskIsReturnedAndRemembered(t *testing.T) {
	k := &keys{}
	l, _, dir := newLog(t, k)
	record(t, l, audit.Personal{Subject: alice})
	if err := l.Failed(); err != nil {
		t.Fatal(err)
	}
	breakDisk(t, dir)
	if err := l.Record(t.Context(), &audit.Event{Reason: "lost"}, audit.Personal{Subject: alice}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("recorded: %v", err)
	}
	// What failed once is not asked again: success would mean nothing.
	for range 2 {
		if err := l.Failed(); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("remembered: %v", err)
		}
		if err := l.Keep(audit.Frame{Type: audit.FrameFeed, Payload: []byte("x")}); err == nil || !strings.Contains(err.Error(), "failed earlier") {
			t.Errorf("kept: %v", err)
		}
	}
	if got := frames(t, dir); len(got) != 1 {
		t.Errorf("%d frames", len(got))
	}
}
