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
)

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
	return NewReader(dir, from).Read(each)
}

// Reader reads a journal from one place on, and later what was added since. It is
// not safe for concurrent use.
type Reader struct {
	dir  string
	from uint64

	name  string // of the segment it stands in; empty before the first
	at    int64  // behind the last good frame
	seq   uint64 // of the last good frame
	batch uint32 // its batch
	more  bool   // its batch goes on
	ended bool   // what is behind the end of this segment was looked at
	last  int64  // behind the last byte there that is not zero
}

// NewReader returns a reader of the journal in dir that begins with the sequence
// number from.
func NewReader(dir string, from uint64) *Reader { return &Reader{dir: dir, from: from} }

// Read calls each for every frame that no Read of this reader has passed yet, as
// [ReadJournal] does. A frame for which each returned an error counts as passed.
func (r *Reader) Read(each func(f Frame, seq uint64) error) error {
	names, err := segmentNames(r.dir)
	if err != nil {
		return err
	}
	for len(names) > 1 && (names[0] < r.name || names[1] <= segmentName(r.from)) {
		names = names[1:]
	}
	return r.read(names, func(f Frame, seq uint64) error {
		if seq < r.from {
			return nil
		}
		return each(f, seq)
	})
}

func (r *Reader) read(names []string, visit func(Frame, uint64) error) error {
	for i, name := range names {
		f, err := os.Open(filepath.Join(r.dir, name))
		if err != nil {
			return fmt.Errorf("read segment: %w", err)
		}
		if name != r.name {
			err = r.enter(name, f)
		}
		if err == nil {
			err = r.frames(f, i == len(names)-1, visit)
		}
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Reader) damaged(what string) error {
	return fmt.Errorf("%w: %s at byte %d: %s", ErrDamaged, filepath.Join(r.dir, r.name), r.at, what)
}

// unreadable is the error for what a later version wrote.
func (r *Reader) unreadable(what string) error {
	return fmt.Errorf("%s at byte %d: %s: %w", filepath.Join(r.dir, r.name), r.at, what, ErrLater)
}

// enter goes to the beginning of a segment.
func (r *Reader) enter(name string, f *os.File) error {
	r.name, r.at, r.ended = name, 0, false
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(f, header); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read segment: %w", err)
	}
	if !bytes.HasPrefix(header, []byte(magicStem)) {
		return r.damaged("no journal header")
	}
	if crc32.Checksum(header[:headerSize-4], castagnoli) != binary.LittleEndian.Uint32(header[headerSize-4:]) {
		return r.damaged("the header's checksum is wrong")
	}
	if !bytes.HasPrefix(header, []byte(magic)) { // the checksum is where it is in every version
		return r.unreadable("a header of version " + string(header[len(magicStem):len(magic)]))
	}
	first := binary.LittleEndian.Uint64(header[8:])
	switch {
	case segmentName(first) != name:
		return r.damaged("the header has another number than the name")
	case r.seq != 0 && first != r.seq+1:
		return r.damaged(fmt.Sprintf("it begins with frame %d, the one before ended with %d", first, r.seq))
	}
	// A file is as long as it was made, whatever is in it: a shorter one has lost its end.
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("size of segment: %w", err)
	}
	if made := binary.LittleEndian.Uint64(header[24:]); uint64(info.Size()) < made {
		return r.damaged(fmt.Sprintf("the file was cut short: %d of %d bytes are left", info.Size(), made))
	}
	r.seq, r.at, r.batch, r.more = first-1, headerSize, binary.LittleEndian.Uint32(header[16:]), false
	return nil
}

// frames goes through the frames from where the reader stands.
func (r *Reader) frames(f *os.File, last bool, visit func(Frame, uint64) error) error {
	suspect := int64(-1)
	for {
		bad, err := r.good(f, visit)
		if err != nil {
			return err
		}
		if !last {
			if errors.Is(bad, errEnd) {
				return nil // whether something is missing, the next segment shows
			}
			return r.damaged(bad.Error())
		}
		if errors.Is(bad, errEnd) && r.ended && suspect != r.at {
			return nil
		}
		r.ended = true
		if later, err := r.later(f); err != nil || !later {
			return err
		}
		// What is here was written before what is there. It is damage, unless it was
		// being written at the moment when it was read.
		if suspect == r.at {
			return r.damaged(bad.Error())
		}
		suspect = r.at
	}
}

// good passes good frames, and returns why it stopped: what is wrong with the next
// one (errEnd: there is none), or an error that ends the reading.
func (r *Reader) good(f *os.File, visit func(Frame, uint64) error) (bad, err error) {
	if _, err := f.Seek(r.at, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read segment: %w", err)
	}
	in := bufio.NewReaderSize(f, 64<<10)
	for {
		data, bad, err := readFrame(in)
		if err != nil {
			return nil, err
		}
		h := parseHead(data)
		if bad == nil && h.seq != r.seq+1 {
			bad = fmt.Errorf("frame %d where %d belongs", h.seq, r.seq+1)
		}
		if bad != nil {
			return bad, nil
		}
		if !h.kind.known() {
			return nil, r.unreadable(fmt.Sprintf("frame %d of type %d", h.seq, h.kind))
		}
		r.seq, r.batch, r.more = h.seq, h.batch, h.more
		r.at += int64(len(data))
		if err := visit(Frame{h.kind, data[frameOverhead : frameOverhead+h.size]}, h.seq); err != nil {
			return nil, err
		}
	}
}

// errEnd says that no frame begins here.
var errEnd = errors.New("no frame where one belongs")

// head is what stands before a frame's payload.
type head struct {
	size  int
	batch uint32
	seq   uint64
	kind  FrameType
	more  bool
	sum   uint32
}

// parseHead reads the head of a frame; a short one is no head.
func parseHead(b []byte) head {
	if len(b) < frameOverhead {
		return head{}
	}
	return head{
		int(binary.LittleEndian.Uint32(b)), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint64(b[8:]),
		FrameType(b[16]), b[17]&flagMore != 0, binary.LittleEndian.Uint32(b[20:]),
	}
}

// checkFrame says what is wrong with the frame that data begins with.
func checkFrame(data []byte, h head) error {
	switch {
	case h.size == 0 || h.size > MaxFrame:
		return fmt.Errorf("a frame of %d bytes", h.size)
	case len(data) < frameSize(h.size):
		return errors.New("the file ends within a frame")
	case crc32.Update(crc32.Checksum(data[:20], castagnoli), castagnoli, data[frameOverhead:frameOverhead+h.size]) != h.sum:
		return errors.New("the checksum of a frame is wrong")
	}
	return nil
}

// readFrame reads the next frame with all that belongs to it. bad is what is wrong
// with it, err why it could not be read.
func readFrame(in io.Reader) (data []byte, bad, err error) {
	data = make([]byte, frameOverhead, 2048)
	n, err := readUpTo(in, data)
	if err != nil || n < frameOverhead || allZero(data) {
		return nil, errEnd, err
	}
	h := parseHead(data)
	if h.size > 0 && h.size <= MaxFrame {
		data = slices.Grow(data, frameSize(h.size)-frameOverhead)[:frameSize(h.size)]
		if n, err = readUpTo(in, data[frameOverhead:]); err != nil {
			return nil, nil, err
		}
		data = data[:frameOverhead+n]
	}
	return data, checkFrame(data, h), nil
}

// readUpTo fills b as far as the file goes.
func readUpTo(in io.Reader, b []byte) (int, error) {
	n, err := io.ReadFull(in, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("read segment: %w", err)
	}
	return n, err
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// later reports whether there is, behind where the reader stands, a good frame of
// a batch which shows that the next one had been synced: then what stands there is
// no torn write.
func (r *Reader) later(f *os.File) (bool, error) {
	end, err := lastByte(f, r.at)
	if r.last = end; err != nil || end == r.at {
		return false, err
	}
	data := make([]byte, end-r.at+MaxFrame) // a payload may end with zeros
	n, err := readUpTo(io.NewSectionReader(f, r.at, 1<<62), data)
	if err != nil {
		return false, err
	}
	data = data[:n]
	next := r.batch + 1 // the batch that may be torn
	if r.more {
		next = r.batch
	}
	for at := 0; at < int(end-r.at); at += align {
		h := parseHead(data[at:])
		if int32(h.batch-next) > 0 && h.seq > r.seq && checkFrame(data[at:], h) == nil { // batches wrap around
			return true, nil
		}
	}
	return false, nil
}

// lastByte returns the offset behind the last byte of f that is not zero, at
// least from.
func lastByte(f *os.File, from int64) (int64, error) {
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	last := from
	for at := from; ; {
		n, err := f.ReadAt(buf, at)
		if !bytes.Equal(buf[:n], zeros[:n]) {
			last = at + int64(len(bytes.TrimRight(buf[:n], "\x00")))
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
