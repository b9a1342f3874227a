package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"
)

// FrameType says what a frame of the journal holds.
type FrameType uint8

// The frame types. Their numbers are part of the file format.
const (
	FrameEvent  FrameType = 1 // an [Event] as JSON
	FrameLease  FrameType = 2 // a lease or intent as the ledger keeps it, its handle sealed
	FrameFeed   FrameType = 3 // an entry of the revocation feed that this replica has applied
	FrameSchema FrameType = 4 // a grant schema, once, before the first certificate that needs it
)

// known reports whether this version can tell what a frame is for. What is passed over
// is not missed by whoever reads leases, revocations or events, and nothing else may
// have a type from passable on; an unknown type below may be what decides.
func (t FrameType) known() bool { return t >= FrameEvent && t <= FrameSchema || t >= passable }

// passable is the first of the types that a reader who does not know them passes over.
const passable FrameType = 128

// Frame is one thing to be made durable.
type Frame struct {
	Type    FrameType
	Payload []byte
}

// MaxFrame is the largest payload of a frame, in bytes.
const MaxFrame = 1 << 20

// The file format, version 1. A journal is a folder of segments named by the
// sequence number of their first frame. A segment is a header of 64 bytes, then
// frames at offsets that are multiples of 8, then zeros. The header:
//
//	 0  "STINTJ01"
//	 8  sequence of the first frame   uint64, little-endian, as all that follow
//	16  batch before the first frame  uint32, then zeros
//	24  length of the file            uint64; 0: not said. Then zeros
//	60  CRC-32C                       uint32, of bytes 0 to 59
//
// A frame:
//
//	 0  length of the payload   uint32; 0 ends the segment
//	 4  batch                   uint32: frames of one sync share a number
//	 8  sequence                uint64: 1 and up, over all segments
//	16  type                    uint8
//	17  flags                   uint8: 1, the next frame is of the same batch; two zero bytes
//	20  CRC-32C                 uint32, of bytes 0 to 19 and the payload
//	24  payload
//
// A frame of batch n shows that every frame of batch n-1 was synced, which is
// how recovery tells a torn write at the end, which nobody was told of, from
// damage further up. The flag says which batch a frame would have been of that
// is not there any more.
const (
	magic         = magicStem + "01"
	magicStem     = "STINTJ"
	headerSize    = 64
	frameOverhead = 24
	align         = 8
	flagMore      = 1
)

// maxBatch bounds the bytes that one sync writes, and so what waits in memory.
const maxBatch = 4 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrDamaged is wrapped by errors that say which file of the journal is damaged
// and where. Such a journal is not opened.
var ErrDamaged = errors.New("journal is damaged")

// ErrLater is wrapped by errors that say that a later version of Stint wrote a journal or
// a part of it. Such a journal is neither opened nor read past that.
var ErrLater = errors.New("a later version of Stint wrote this, which this one cannot read: run that version")

// ErrInUse is wrapped by errors that say that another process has the journal open.
var ErrInUse = errors.New("in use by another process")

// ErrClosed is returned for what is appended after Close.
var ErrClosed = errors.New("journal is closed")

// JournalConfig says where a journal is and how it grows.
type JournalConfig struct {
	// Dir is the folder of the journal. It is made if absent. One process at a
	// time may have it open.
	Dir string
	// SegmentSize is how large a segment file is made, in bytes. The file is
	// zeroed in advance, so that a sync writes data alone. 0 means 64 MiB.
	SegmentSize int64
	// Preamble returns frames that every new segment begins with, so that the
	// last segment alone tells what they say. It must not append to the journal.
	Preamble func() []Frame
	// Last is called for each frame of the last segment while it is opened.
	Last func(Frame)
}

// Journal is an append-only file of frames, with group commit: whoever appends
// while a sync runs shares the next one.
type Journal struct {
	dir  string
	size int64
	lock *os.File
	// queue is used by whoever holds disk.
	queue *queue

	preamble func() []Frame
	last     func(Frame)

	mu     sync.Mutex // guards what follows
	open   *batch     // takes frames
	closed bool

	disk     sync.Mutex // held by whoever writes; guards what follows
	seg      *durable
	name     string      // of its file
	file     os.FileInfo // what stood there when it was opened
	looked   time.Time   // when it was last seen there
	at       int64       // where the next frame goes
	seq      uint64
	batches  uint32
	buf      []byte
	idle     *batch // one that nobody else knows, to be used again
	failed   error  // a write or sync failed: what is on disk is unknown
	spare    chan spare
	prepared bool // a spare is on its way
}

// batch is what one sync makes durable. Whoever puts the first frame in is its
// leader, who writes it; the others wait.
type batch struct {
	frames []Frame
	bytes  int
	done   chan struct{} // closed when it is over; nil while nobody waits
	err    error
}

// wait returns what is closed when the batch is over. It is called with the
// journal's mu held, while the batch is open.
func (b *batch) wait() <-chan struct{} {
	if b.done == nil {
		b.done = make(chan struct{})
	}
	return b.done
}

// OpenJournal opens or makes the journal and returns it ready to append. A torn
// write at the end is cut off. Damage anywhere else is an error that wraps
// [ErrDamaged].
func OpenJournal(cfg JournalConfig) (*Journal, error) {
	if cfg.SegmentSize == 0 {
		cfg.SegmentSize = 64 << 20
	}
	if cfg.SegmentSize < 2*MaxFrame {
		return nil, fmt.Errorf("journal segments have at least %d bytes", 2*MaxFrame)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make journal folder: %w", err)
	}
	lock, err := lockFile(filepath.Join(cfg.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", cfg.Dir, err)
	}
	j := &Journal{dir: cfg.Dir, size: cfg.SegmentSize, lock: lock, queue: openQueue(), open: &batch{}, spare: make(chan spare, 1),
		preamble: cfg.Preamble, last: cfg.Last}
	if err := j.recover(); err != nil {
		j.queue.close()
		_ = unlock(lock)
		return nil, err
	}
	return j, nil
}

// Append makes frames durable, together, and returns when they are. An error
// means that they may or may not be on disk; whatever was to follow from them
// must not happen.
func (j *Journal) Append(frames ...Frame) error {
	n := 0
	for _, f := range frames {
		if len(f.Payload) == 0 || len(f.Payload) > MaxFrame {
			return fmt.Errorf("a frame holds 1 to %d bytes, not %d", MaxFrame, len(f.Payload))
		}
		n += frameSize(len(f.Payload))
	}
	if n > maxBatch {
		return fmt.Errorf("more than %d bytes to be made durable at once", maxBatch)
	}
	for {
		j.mu.Lock()
		if j.closed {
			j.mu.Unlock()
			return ErrClosed
		}
		b := j.open
		if b.bytes+n > maxBatch {
			full := b.wait()
			j.mu.Unlock()
			<-full // its leader is about to write it
			continue
		}
		leader := len(b.frames) == 0
		b.frames = append(b.frames, frames...)
		b.bytes += n
		if leader {
			j.mu.Unlock()
			return j.commit(b)
		}
		done := b.wait()
		j.mu.Unlock()
		<-done
		return b.err
	}
}

// commit writes and syncs b, by its leader: for a single writer nothing is handed
// to another goroutine.
func (j *Journal) commit(b *batch) error {
	j.disk.Lock()
	defer j.disk.Unlock()
	// Whoever can run now, for instance those whom the last sync woke, may want to
	// append: they go first, once, before the door is shut. With one processor they
	// would hardly ever come to it otherwise. When there is nobody it costs nothing
	// beside a sync.
	runtime.Gosched()
	next := j.idle
	if j.idle = nil; next == nil {
		next = &batch{}
	}
	j.mu.Lock()
	j.open = next
	j.mu.Unlock()
	err := j.write(b)
	if b.done != nil {
		b.err = err
		close(b.done)
		return err
	}
	clear(b.frames)
	b.frames, b.bytes = b.frames[:0], 0
	j.idle = b
	return err
}

func (j *Journal) write(b *batch) error {
	if j.failed != nil {
		return fmt.Errorf("journal failed earlier: %w", j.failed)
	}
	if j.at+int64(b.bytes) > j.size {
		if err := j.rotate(int64(b.bytes)); err != nil {
			return fmt.Errorf("next journal segment: %w", err)
		}
	}
	return j.put(b.frames)
}

// put writes a batch to the present segment and syncs it.
func (j *Journal) put(frames []Frame) error {
	j.batches++
	buf := j.buf[:0]
	for i, f := range frames {
		j.seq++
		buf = appendFrame(buf, f, j.batches, j.seq, i < len(frames)-1)
	}
	err := j.seg.append(buf, j.at)
	if now := time.Now(); err == nil && now.Sub(j.looked) >= lookEvery {
		j.looked, err = now, j.gone()
	}
	if err != nil {
		// After a failed sync nobody knows what the disk holds, and asking again
		// would be answered with success.
		j.failed = fmt.Errorf("write journal: %w", err)
		return j.failed
	}
	j.buf = buf
	j.at += int64(len(buf))
	if !j.prepared && j.at > j.size/2 {
		j.prepared = true
		go j.prepare()
	}
	return nil
}

func frameSize(payload int) int { return (frameOverhead + payload + align - 1) &^ (align - 1) }

func appendFrame(buf []byte, f Frame, batch uint32, seq uint64, more bool) []byte {
	start := len(buf)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(f.Payload)))
	buf = binary.LittleEndian.AppendUint32(buf, batch)
	buf = binary.LittleEndian.AppendUint64(buf, seq)
	flags := byte(0)
	if more {
		flags = flagMore
	}
	buf = append(buf, byte(f.Type), flags, 0, 0)
	sum := crc32.Update(crc32.Checksum(buf[start:], castagnoli), castagnoli, f.Payload)
	buf = binary.LittleEndian.AppendUint32(buf, sum)
	buf = append(buf, f.Payload...)
	for len(buf)%align != 0 {
		buf = append(buf, 0)
	}
	return buf
}

// lookEvery is how often who writes looks whether the file is where it was.
const lookEvery = time.Second

// gone returns an error if the present segment is not under its name any more: what is
// written then is lost with the last process that has it open.
func (j *Journal) gone() error {
	info, err := os.Stat(j.name)
	if err == nil && os.SameFile(info, j.file) {
		return nil
	}
	return fmt.Errorf("%s is not there any more, or is another file: stop the server, put the journal's folder back or let a new one begin, and start again", j.name)
}

// Failed returns the error that stopped the journal, or nil.
func (j *Journal) Failed() error {
	j.disk.Lock()
	defer j.disk.Unlock()
	if j.failed == nil {
		j.failed = j.gone()
	}
	return j.failed
}

// HoldJournal keeps others from opening the journal in dir until release is called. An
// error wraps [ErrInUse] if somebody has it open.
func HoldJournal(dir string) (release func() error, err error) {
	lock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", dir, err)
	}
	return func() error { return unlock(lock) }, nil
}

// Close waits for what is being written and closes the files. Closing again does
// nothing.
func (j *Journal) Close() error {
	j.mu.Lock()
	again := j.closed
	j.closed = true
	j.mu.Unlock()
	if again {
		return nil
	}
	j.disk.Lock()
	defer j.disk.Unlock()
	if j.prepared {
		if s := <-j.spare; s.file != nil {
			_ = s.file.Close()
		}
	}
	err := errors.Join(j.seg.Close(), unlock(j.lock))
	j.queue.close()
	return err
}
