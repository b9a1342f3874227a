package audit

import (
	"os"
	"syscall"
)

// syncData makes what was written to f durable. The file's size does not change,
// so that its metadata need not be written.
func syncData(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }
