package audit

import (
	"os"
	"syscall"
)

// syncData makes what was written to f durable. The file's size does not change,
// so that its metadata need not be written.
func syncData(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }

// openDirect opens a file to be written to past the page cache, each write durable
// when it returns, with memory that such writes may come from; nil if the file
// system has no such thing.
func openDirect(path string) (*os.File, []byte) {
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_DIRECT|syscall.O_DSYNC, 0)
	if err != nil {
		return nil, nil
	}
	block, err := syscall.Mmap(-1, 0, 64*blockSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE) // aligned to a page
	if err != nil {
		_ = f.Close()
		return nil, nil
	}
	return f, block
}

func freeBlocks(block []byte) {
	if block != nil {
		_ = syscall.Munmap(block)
	}
}
