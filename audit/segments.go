package audit

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	segmentSuffix = ".journal"
	spareName     = "spare.new"
)

// spare is a segment file that has been zeroed in advance.
type spare struct {
	file *os.File
	err  error
}

// prepare makes the next segment's file while the present one is in use.
func (j *Journal) prepare() {
	f, err := zeroed(filepath.Join(j.dir, spareName), j.size)
	j.spare <- spare{f, err}
}

// zeroed makes a file of size bytes, written out and synced.
func zeroed(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make segment: %w", err)
	}
	zeros := make([]byte, 1<<20)
	for n := int64(0); n < size; n += int64(len(zeros)) {
		if _, err = f.Write(zeros[:min(int64(len(zeros)), size-n)]); err != nil {
			break
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("zero segment: %w", err), f.Close(), os.Remove(path))
	}
	return f, nil
}

// rotate starts the next segment. Without one nothing is appended, but a later
// try may succeed, for instance when there is room on the disk again.
func (j *Journal) rotate(need int64) error {
	size := max(j.size, headerSize+need)
	if !j.prepared {
		j.prepare()
	}
	s := <-j.spare
	j.prepared = false
	if s.err == nil && size > j.size {
		_ = s.file.Close()
		s.file, s.err = zeroed(filepath.Join(j.dir, spareName), size)
	}
	if s.err != nil {
		return s.err
	}
	if err := j.adopt(s.file, j.seq+1); err != nil {
		return errors.Join(err, s.file.Close())
	}
	return j.begin()
}

// begin writes the frames that every segment begins with.
func (j *Journal) begin() error {
	if j.preamble == nil {
		return nil
	}
	b := newBatch()
	for _, f := range j.preamble() {
		b.frames, b.bytes = append(b.frames, f), b.bytes+frameSize(len(f.Payload))
	}
	return j.put(b)
}

// adopt gives a zeroed file its header and its name, and appends to it from now
// on.
func (j *Journal) adopt(f *os.File, first uint64) error {
	header := make([]byte, headerSize)
	copy(header, magic)
	binary.LittleEndian.PutUint64(header[8:], first)
	binary.LittleEndian.PutUint32(header[headerSize-4:], crc32.Checksum(header[:headerSize-4], castagnoli))
	if _, err := f.WriteAt(header, 0); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	if err := syncData(f); err != nil {
		return fmt.Errorf("sync header: %w", err)
	}
	if err := os.Rename(f.Name(), filepath.Join(j.dir, segmentName(first))); err != nil {
		return fmt.Errorf("name segment: %w", err)
	}
	if err := syncDir(j.dir); err != nil {
		return err
	}
	if j.seg != nil {
		_ = j.seg.Close() // synced long ago
	}
	j.seg, j.at = f, headerSize
	return nil
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, segmentSuffix) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open folder: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockFile takes the advisory lock that keeps a second process out.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, errors.New("in use by another process")
	}
	return f, nil
}

// recover finds the end of the journal and makes it ready to append.
func (j *Journal) recover() error {
	names, err := segmentNames(j.dir)
	if err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(j.dir, spareName))
	if len(names) == 0 {
		f, err := zeroed(filepath.Join(j.dir, spareName), j.size)
		if err != nil {
			return err
		}
		if err := j.adopt(f, 1); err != nil {
			return errors.Join(err, f.Close())
		}
		return j.begin()
	}
	// Earlier segments were complete before the last one was begun.
	r := reader{dir: j.dir, names: names[len(names)-1:], visit: func(f Frame, _ uint64) error {
		if j.last != nil {
			j.last(f)
		}
		return nil
	}}
	if err := r.run(); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(j.dir, names[len(names)-1]), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open last segment: %w", err)
	}
	if r.torn > r.at {
		if _, err := f.WriteAt(make([]byte, r.torn-r.at), r.at); err != nil {
			return errors.Join(fmt.Errorf("cut torn write: %w", err), f.Close())
		}
		if err := f.Sync(); err != nil {
			return errors.Join(fmt.Errorf("cut torn write: %w", err), f.Close())
		}
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("size of last segment: %w", err), f.Close())
	}
	j.seg, j.at, j.seq, j.batches = f, r.at, r.seq, r.batch
	j.size = max(j.size, info.Size())
	if info.Size() < j.size { // the configured size grew, or the file was copied without its zeros
		return j.rotate(0)
	}
	return nil
}

func segmentNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read journal folder: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), segmentSuffix) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// ReadJournal calls each for every frame of the journal in dir, oldest first,
// beginning with the sequence number from. It may run beside the process that
// appends, and then sees what had been written when it got there. An error of
// each ends the reading and is returned.
func ReadJournal(dir string, from uint64, each func(f Frame, seq uint64) error) error {
	names, err := segmentNames(dir)
	if err != nil {
		return err
	}
	for len(names) > 1 && names[1] <= segmentName(from) {
		names = names[1:]
	}
	r := reader{dir: dir, names: names, visit: func(f Frame, seq uint64) error {
		if seq < from {
			return nil
		}
		return each(f, seq)
	}}
	return r.run()
}

// reader goes through segments and keeps where it stands.
type reader struct {
	dir   string
	names []string
	visit func(f Frame, seq uint64) error // the payload is good until it returns

	seq   uint64 // of the last good frame
	batch uint32
	at    int64 // behind the last good frame, in the last segment
	torn  int64 // behind the last byte that is not zero, in the last segment
}

func (r *reader) run() error {
	for i, name := range r.names {
		f, err := os.Open(filepath.Join(r.dir, name))
		if err != nil {
			return fmt.Errorf("read segment: %w", err)
		}
		err = r.segment(name, f, i == len(r.names)-1)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) segment(name string, f *os.File, last bool) error {
	damaged := func(what string) error {
		return fmt.Errorf("%w: %s at byte %d: %s", ErrDamaged, filepath.Join(r.dir, name), r.at, what)
	}
	in := bufio.NewReaderSize(f, 64<<10)
	r.at = 0
	first, err := readHeader(in)
	switch {
	case err != nil:
		return damaged(err.Error())
	case segmentName(first) != name:
		return damaged("the header has another number than the name")
	case r.seq != 0 && first != r.seq+1:
		return damaged(fmt.Sprintf("it begins with frame %d, the one before ended with %d", first, r.seq))
	}
	r.seq, r.at = first-1, headerSize
	for {
		frame, batch, seq, err := readFrame(in)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && seq != r.seq+1 {
			err = fmt.Errorf("frame %d where %d belongs", seq, r.seq+1)
		}
		if err != nil {
			if !last || laterBatch(f, r.at, r.batch) {
				return damaged(err.Error())
			}
			break
		}
		r.seq, r.batch = seq, batch
		r.at += int64(frameSize(len(frame.Payload)))
		if err := r.visit(frame, seq); err != nil {
			return err
		}
	}
	if last {
		r.torn, err = lastByte(f, r.at)
	}
	return err
}

func readHeader(in io.Reader) (first uint64, err error) {
	data := make([]byte, headerSize)
	_, err = io.ReadFull(in, data)
	switch {
	case err != nil || !bytes.HasPrefix(data, []byte(magic)):
		return 0, errors.New("no journal header of version 1")
	case crc32.Checksum(data[:headerSize-4], castagnoli) != binary.LittleEndian.Uint32(data[headerSize-4:]):
		return 0, errors.New("the header's checksum is wrong")
	}
	return binary.LittleEndian.Uint64(data[8:]), nil
}

// readFrame reads the next frame; io.EOF where none begins.
func readFrame(in io.Reader) (f Frame, batch uint32, seq uint64, err error) {
	head := make([]byte, frameOverhead)
	if _, err := io.ReadFull(in, head); err != nil || allZero(head) {
		return Frame{}, 0, 0, io.EOF
	}
	n := binary.LittleEndian.Uint32(head)
	if n == 0 || n > MaxFrame {
		return Frame{}, 0, 0, fmt.Errorf("a frame of %d bytes", n)
	}
	payload := make([]byte, frameSize(int(n))-frameOverhead)
	if _, err := io.ReadFull(in, payload); err != nil {
		return Frame{}, 0, 0, errors.New("the file ends within a frame")
	}
	payload = payload[:n]
	if crc32.Update(crc32.Checksum(head[:20], castagnoli), castagnoli, payload) != binary.LittleEndian.Uint32(head[20:]) {
		return Frame{}, 0, 0, errors.New("the checksum of a frame is wrong")
	}
	return Frame{FrameType(head[16]), payload}, binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint64(head[8:]), nil
}

func allZero(b []byte) bool { return len(bytes.TrimRight(b, "\x00")) == 0 }

// laterBatch reports whether f has, behind from, a good frame of a batch after
// the next one: then the bad frame had been synced, and is no torn write.
func laterBatch(f *os.File, from int64, batch uint32) bool {
	data, err := io.ReadAll(io.NewSectionReader(f, from, 1<<62))
	if err != nil {
		return true // cannot be told: treat it as damage
	}
	for at := 0; at+frameOverhead < len(data); at += align {
		if allZero(data[at : at+align]) {
			continue
		}
		_, b, _, err := readFrame(bytes.NewReader(data[at:]))
		if err == nil && int32(b-batch) > 1 { // batches wrap around
			return true
		}
	}
	return false
}

// lastByte returns the offset behind the last byte of f that is not zero, at
// least from.
func lastByte(f *os.File, from int64) (int64, error) {
	buf := make([]byte, 64<<10)
	last := from
	for at := from; ; {
		n, err := f.ReadAt(buf, at)
		if k := len(bytes.TrimRight(buf[:n], "\x00")); k > 0 {
			last = at + int64(k)
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read segment: %w", err)
		}
	}
}
