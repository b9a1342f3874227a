package vault

import (
	"path/filepath"
	"syscall"
	"testing"
)

// A process that is being started has all files of its parent open for a moment.
func TestTheLockIsGivenBackWhoeverElseHoldsTheFile(t *testing.T) {
	dir := t.TempDir()
	cfg := FileConfig{Path: filepath.Join(dir, "sealed"), Identity: filepath.Join(dir, "identity")}
	if err := Init(cfg); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		f, err := openFile(cfg, false)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := syscall.Dup(int(f.lock.Fd())) // what a fork does
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Close(fd) }()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
