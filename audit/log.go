package audit

import (
	"cmp"
	"container/list"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// SubjectKeys keeps one key for each subject. The key is what makes personal
// data readable: destroying it forgets the person.
type SubjectKeys interface {
	// SubjectKey returns the 32-byte key kept under index, having made one and
	// made it durable if there was none.
	SubjectKey(ctx context.Context, index string) ([]byte, error)
	// Forget destroys the key kept under index. After an error it may still exist.
	Forget(ctx context.Context, index string) error
}

// LogConfig is what a [Log] goes by.
type LogConfig struct {
	// Replica is the name of this process in every event.
	Replica string
	// IndexKey keys the index of subjects: 32 bytes, the same at every replica.
	IndexKey []byte
	// Now is the clock.
	Now func() time.Time
	// NoteRate is how many of the events given to [Log.Note] in a second are kept
	// for long, and NoteBurst how many at once; the others are counted. Zero means
	// 1 and 60.
	NoteRate  float64
	NoteBurst int
}

// Log records events in a journal.
type Log struct {
	cfg     LogConfig
	journal *Journal
	keys    SubjectKeys

	mu        sync.Mutex
	subjects  map[string]*list.Element // of *subject
	order     list.List                // the latest used first
	forgotten int                      // how often one was forgotten

	notes notes
}

// subject is what is remembered of one whose key has been fetched.
type subject struct {
	name, index string
	seal        cipher.AEAD
}

// maxSubjects bounds how many are remembered.
const maxSubjects = 4096

// NewLog returns a log on an open journal.
func NewLog(cfg LogConfig, journal *Journal, keys SubjectKeys) (*Log, error) {
	if cfg.Replica == "" || len(cfg.IndexKey) != 32 || cfg.Now == nil || journal == nil || keys == nil {
		return nil, errors.New("audit log: replica, 32-byte index key, clock, journal and subject keys are needed")
	}
	if cfg.NoteRate < 0 || cfg.NoteBurst < 0 {
		return nil, errors.New("audit log: the rate and burst of notes are not negative")
	}
	cfg.NoteRate, cfg.NoteBurst = cmp.Or(cfg.NoteRate, 1), cmp.Or(cfg.NoteBurst, 60)
	l := &Log{cfg: cfg, journal: journal, keys: keys, subjects: make(map[string]*list.Element)}
	l.notes.tokens, l.notes.filled = float64(cfg.NoteBurst), cfg.Now()
	return l, nil
}

// buffers are what events and personal data are written in on their way.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Record completes e (version, id, time, replica, the subject's index and the
// encrypted personal data) and makes it durable, together with any further
// frames. An error means that nothing may be granted on the strength of it.
func (l *Log) Record(ctx context.Context, e *Event, p Personal, more ...Frame) error {
	if err := l.complete(ctx, e, p); err != nil {
		return err
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf) // the journal has copied it when Append returns
	data, err := e.appendJSON((*buf)[:0])
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	*buf = data
	var few [4]Frame
	return l.journal.Append(append(append(few[:0], Frame{FrameEvent, data}), more...)...)
}

// complete fills in what every event has.
func (l *Log) complete(ctx context.Context, e *Event, p Personal) error {
	e.Version, e.Replica = SchemaVersion, l.cfg.Replica
	e.Time = l.cfg.Now().UTC().Truncate(time.Microsecond)
	e.ID = newID(e.Time)
	if p.Subject == "" {
		return nil
	}
	s, err := l.subject(ctx, p.Subject)
	if err != nil {
		return fmt.Errorf("key of the subject: %w", err)
	}
	e.Party.Subject, e.Personal = s.index, s.encrypt(e.ID, &p)
	return nil
}

// Keep makes frames durable that are no events.
func (l *Log) Keep(frames ...Frame) error { return l.journal.Append(frames...) }

// Failed returns the error that stopped the journal, or nil.
func (l *Log) Failed() error { return l.journal.Failed() }

// Index returns the keyed index of a subject, as events show it.
func (l *Log) Index(name string) string { return Index(l.cfg.IndexKey, name) }

// Index returns the index of a subject under a key: the first 16 bytes of an
// HMAC-SHA-256, in hexadecimal.
func Index(key []byte, name string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(name))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// Forget destroys the key of a subject, here and where it is kept: what events say
// of the person can no more be read by anybody. An event of the subject that comes
// later gets a new key. After an error the key may still be kept.
func (l *Log) Forget(ctx context.Context, name string) error {
	err := l.keys.Forget(ctx, l.Index(name))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgotten++
	if el, ok := l.subjects[name]; ok {
		l.order.Remove(el)
		delete(l.subjects, name)
	}
	if err != nil {
		return fmt.Errorf("forget a subject: %w", err)
	}
	return nil
}

func (l *Log) subject(ctx context.Context, name string) (*subject, error) {
	for {
		l.mu.Lock()
		if el, ok := l.subjects[name]; ok {
			l.order.MoveToFront(el)
			l.mu.Unlock()
			return el.Value.(*subject), nil
		}
		forgotten := l.forgotten
		l.mu.Unlock()
		s := &subject{name: name, index: l.Index(name)}
		key, err := l.keys.SubjectKey(ctx, s.index)
		if err != nil {
			return nil, err
		}
		if s.seal, err = newSeal(key); err != nil {
			return nil, err
		}
		if s = l.remember(s, forgotten); s != nil {
			return s, nil
		}
	}
}

// remember keeps a subject and returns it, or the one that another was faster to
// keep; nil if somebody was forgotten meanwhile, who may be this one.
func (l *Log) remember(s *subject, forgotten int) *subject {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.forgotten != forgotten {
		return nil
	}
	if el, ok := l.subjects[s.name]; ok {
		return el.Value.(*subject)
	}
	l.subjects[s.name] = l.order.PushFront(s)
	if l.order.Len() > maxSubjects {
		last := l.order.Back()
		l.order.Remove(last)
		delete(l.subjects, last.Value.(*subject).name)
	}
	return s
}

func newSeal(key []byte) (cipher.AEAD, error) {
	if len(key) != 32 {
		return nil, errors.New("a subject's key has 32 bytes")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("subject's key: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (s *subject) encrypt(id string, p *Personal) []byte {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	plain := p.appendJSON((*buf)[:0])
	n := len(plain)
	*buf = append(plain, id...) // and the id is bound in
	return s.seal.Seal(nil, nil, (*buf)[:n], (*buf)[n:])
}

// Reveal decrypts the personal data of e with the key of its subject.
func Reveal(e *Event, key []byte) (Personal, error) {
	seal, err := newSeal(key)
	if err != nil {
		return Personal{}, err
	}
	plain, err := seal.Open(nil, nil, e.Personal, []byte(e.ID))
	if err != nil {
		return Personal{}, errors.New("personal data does not open: wrong key, or data of another event")
	}
	var p Personal
	if err := json.Unmarshal(plain, &p); err != nil {
		return Personal{}, fmt.Errorf("personal data: %w", err)
	}
	return p, nil
}

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// newID returns 48 bits of milliseconds and 80 random bits, in 26 characters
// that sort by time.
func newID(t time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(t.UnixMilli())<<16)
	_, _ = rand.Read(b[6:]) // never fails
	return idEncoding.EncodeToString(b[:])
}
