package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
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
	size = (size + blockSize - 1) / blockSize * blockSize
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
	frames := j.preamble()
	if len(frames) == 0 {
		return nil // a batch without frames would leave a gap in the numbers
	}
	return j.put(frames)
}

// adopt gives a zeroed file its header and its name, and appends to it from now
// on.
func (j *Journal) adopt(f *os.File, first uint64) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("size of segment: %w", err)
	}
	header := make([]byte, headerSize)
	copy(header, magic)
	binary.LittleEndian.PutUint64(header[8:], first)
	binary.LittleEndian.PutUint32(header[16:], j.batches)
	binary.LittleEndian.PutUint64(header[24:], uint64(info.Size()))
	binary.LittleEndian.PutUint32(header[headerSize-4:], crc32.Checksum(header[:headerSize-4], castagnoli))
	if _, err := f.WriteAt(header, 0); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	if err := syncData(f); err != nil {
		return fmt.Errorf("sync header: %w", err)
	}
	path := filepath.Join(j.dir, segmentName(first))
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("name segment: %w", err)
	}
	if err := syncDir(j.dir); err != nil {
		return err
	}
	if j.seg != nil {
		_ = j.seg.Close() // synced long ago
	}
	j.seg, j.at = appendTo(f, path, headerSize, j.queue), headerSize
	j.name, j.file = path, info
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
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

// unlock gives the lock back, in words: a process that is being started may hold the
// file for a moment longer, and the lock with it.
func unlock(f *os.File) error {
	return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
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
	newest := names[len(names)-1]
	r := NewReader(j.dir, 0)
	err = r.read([]string{newest}, func(f Frame, _ uint64) error {
		if j.last != nil {
			j.last(f)
		}
		return nil
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(j.dir, newest), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open last segment: %w", err)
	}
	if err := cutTorn(f, r.at, r.last); err != nil {
		return errors.Join(err, f.Close())
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("size of last segment: %w", err), f.Close())
	}
	j.seg, j.at, j.seq, j.batches = appendTo(f, f.Name(), r.at, j.queue), r.at, r.seq, r.batch
	j.name, j.file = f.Name(), info
	j.size = max(j.size, info.Size())
	if info.Size() < j.size { // the configured size grew
		return j.rotate(0)
	}
	return nil
}

// cutTorn zeroes what is left of a torn write behind the last good frame, up to end.
func cutTorn(f *os.File, at, end int64) error {
	if end <= at {
		return nil
	}
	_, err := f.WriteAt(make([]byte, end-at), at)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("cut torn write: %w", err)
	}
	return nil
}
