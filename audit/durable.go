package audit

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// durable is a file that is appended to. Where the file system allows it, what is
// written goes past the page cache and is durable when the write returns: one call
// and one wait, instead of a write and a sync of what the cache made of it.
type durable struct {
	file   *os.File
	direct *os.File // the same file, opened to be written that way; nil where it cannot be
	block  []byte   // what such writes come from: whole blocks, aligned in memory
	held   int      // bytes of the block that was begun, at the front of block
	queue  *queue   // does such writes; nil: they are waited for
}

// blockSize is a multiple of the unit in which disks are written to, in bytes.
const blockSize = 4096

// appendTo makes f, which is named path, ready to be appended to at an offset, by q.
func appendTo(f *os.File, path string, at int64, q *queue) *durable {
	d := &durable{file: f, queue: q}
	d.direct, d.block = openDirect(path)
	if d.direct == nil {
		return d
	}
	d.held = int(at % blockSize)
	if _, err := f.ReadAt(d.block[:d.held], at-int64(d.held)); err != nil {
		d.release()
	}
	return d
}

// append writes data at an offset, which is where the last append ended, and
// returns when it is durable.
func (d *durable) append(data []byte, at int64) error {
	for d.direct != nil && len(data) > 0 {
		n := copy(d.block[d.held:], data)
		end := d.held + n
		whole := (end + blockSize - 1) / blockSize * blockSize
		clear(d.block[end:whole]) // as it is in the file
		err := d.queue.write(d.direct, d.block[:whole], at-int64(d.held))
		if errors.Is(err, syscall.EINVAL) { // the disk wants larger blocks, for instance
			d.release()
			break
		}
		if err != nil {
			return fmt.Errorf("write past the cache: %w", err)
		}
		data, at = data[n:], at+int64(n)
		d.held = copy(d.block, d.block[end/blockSize*blockSize:end])
	}
	if len(data) == 0 {
		return nil
	}
	if _, err := d.file.WriteAt(data, at); err != nil {
		return err
	}
	return syncData(d.file)
}

// release gives up what direct writes need.
func (d *durable) release() {
	if d.direct != nil {
		_ = d.direct.Close() // every write to it was durable
		d.direct = nil
	}
	freeBlocks(d.block)
	d.block = nil
}

// Close closes the file. The queue stays open.
func (d *durable) Close() error {
	d.release()
	return d.file.Close()
}
