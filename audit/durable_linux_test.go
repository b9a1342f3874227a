package audit

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// That a write is on the disk cannot be seen from here, but that it was asked for.
func TestWritesPastTheCacheAreDurable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "segment")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, block := openDirect(path)
	if f == nil {
		t.Skip("this file system has a cache that cannot be passed")
	}
	defer func() { _ = f.Close() }()
	defer freeBlocks(block)
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_GETFL, 0)
	if errno != 0 || flags&syscall.O_DSYNC == 0 || flags&syscall.O_DIRECT == 0 {
		t.Errorf("opened with %#o, %v", flags, errno)
	}
}

// A process that is being started has all files of its parent open for a moment.
func TestTheLockIsGivenBackWhoeverElseHoldsTheFile(t *testing.T) {
	cfg := JournalConfig{Dir: t.TempDir()}
	for range 2 {
		j, err := OpenJournal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := syscall.Dup(int(j.lock.Fd())) // what a fork does
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Close(fd) }()
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAWriteOfTheQueueThatFailsSaysWhy(t *testing.T) {
	q := openQueue()
	if q == nil {
		t.Skip("this system has no queue to give")
	}
	defer q.close()
	path := filepath.Join(t.TempDir(), "segment")
	if err := os.WriteFile(path, make([]byte, 2*blockSize), 0o600); err != nil {
		t.Fatal(err)
	}
	f, block := openDirect(path)
	if f == nil {
		t.Skip("this file system has a cache that cannot be passed")
	}
	defer freeBlocks(block)
	copy(block, "written")
	if err := q.write(f, block[:blockSize], 7); !errors.Is(err, syscall.EINVAL) { // between two units of the disk
		t.Errorf("out of place: %v", err)
	}
	if err := q.write(f, block[:blockSize], blockSize); err != nil {
		t.Errorf("after an error: %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data[blockSize:blockSize+7]) != "written" {
		t.Errorf("the file holds something else, %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := q.write(f, block[:blockSize], 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("to a closed file: %v", err)
	}
}
