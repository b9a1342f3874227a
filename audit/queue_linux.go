package audit

import (
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// queue gives writes to the kernel and is told by the poller when they are done. A
// write that is waited for within its system call holds a thread of its own, and
// costs the runtime as much to get around as a signature. One write at a time.
type queue struct {
	context uintptr // aio_context_t
	told    *os.File
	event   uint32 // told's descriptor
	request request
	list    [1]*request
	result  result
}

// request is struct iocb, result struct io_event: io_submit(2), io_getevents(2).
type (
	request struct {
		_       [2]uint64 // what comes back with the result, and flags
		opcode  uint16
		_       uint16
		file    uint32
		memory  uint64
		bytes   uint64
		at      int64
		_       uint64
		flags   uint32
		eventfd uint32
	}
	result struct {
		_    [2]uint64
		done int64 // bytes, or an error below zero
		_    int64
	}
)

const (
	opWrite     = 1 // IOCB_CMD_PWRITE
	withEventfd = 1 // IOCB_FLAG_RESFD
)

// openQueue returns nil if the system has none to give: then writes are waited for.
func openQueue() *queue {
	q := &queue{}
	q.list[0] = &q.request
	if _, _, errno := syscall.Syscall(syscall.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&q.context)), 0); errno != 0 { //nolint:gosec // the kernel fills it in
		return nil
	}
	fd, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 0, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errno != 0 {
		q.close()
		return nil
	}
	q.event, q.told = uint32(fd), os.NewFile(fd, "eventfd")
	return q
}

// write writes memory, which is not of Go's heap or stays where it is, to f at an
// offset, and returns when that is done. After an error nothing of it is still under
// way, but where the error is the queue's own.
func (q *queue) write(f *os.File, memory []byte, at int64) error {
	if q == nil {
		_, err := f.WriteAt(memory, at)
		return err
	}
	address := uintptr(unsafe.Pointer(unsafe.SliceData(memory))) //nolint:gosec // for the kernel, while memory is held here
	q.request = request{
		opcode: opWrite, file: uint32(f.Fd()), memory: uint64(address), bytes: uint64(len(memory)), at: at,
		flags: withEventfd, eventfd: q.event,
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_IO_SUBMIT, q.context, 1, uintptr(unsafe.Pointer(&q.list[0]))); errno != 0 { //nolint:gosec // of q, which stays
		_, err := f.WriteAt(memory, at) // nothing is under way; it knows why, or can
		return err
	}
	var count [8]byte
	if _, err := io.ReadFull(q.told, count[:]); err != nil {
		return err
	}
	n, _, errno := syscall.Syscall6(syscall.SYS_IO_GETEVENTS, q.context, 1, 1, uintptr(unsafe.Pointer(&q.result)), 0, 0) //nolint:gosec // the kernel fills it in
	runtime.KeepAlive(memory)
	switch done := q.result.done; {
	case errno != 0:
		return errno
	case n != 1:
		return io.ErrUnexpectedEOF
	case done < 0:
		return syscall.Errno(-done)
	case done != int64(len(memory)):
		return io.ErrShortWrite
	}
	return nil
}

// close gives the queue back. Nothing may be under way.
func (q *queue) close() {
	if q == nil {
		return
	}
	if q.told != nil {
		_ = q.told.Close()
	}
	_, _, _ = syscall.Syscall(syscall.SYS_IO_DESTROY, q.context, 0, 0)
}
