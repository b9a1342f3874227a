package audit

import (
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
}

// LogConfig is what a [Log] goes by.
type LogConfig struct {
	// Replica is the name of this process in every event.
	Replica string
	// IndexKey keys the index of subjects: 32 bytes, the same at every replica.
	IndexKey []byte
	// Now is the clock.
	Now func() time.Time
}

// Log records events in a journal.
type Log struct {
	cfg     LogConfig
	journal *Journal
	keys    SubjectKeys

	mu       sync.Mutex
	subjects map[string]*list.Element // of *subject
	order    list.List                // the latest used first
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
	return &Log{cfg: cfg, journal: journal, keys: keys, subjects: make(map[string]*list.Element)}, nil
}

// Record completes e (version, id, time, replica, the subject's index and the
// encrypted personal data) and makes it durable, together with any further
// frames. An error means that nothing may be granted on the strength of it.
func (l *Log) Record(ctx context.Context, e *Event, p Personal, more ...Frame) error {
	e.Version, e.Replica = SchemaVersion, l.cfg.Replica
	e.Time = l.cfg.Now().UTC().Truncate(time.Microsecond)
	e.ID = newID(e.Time)
	if p.Subject != "" {
		s, err := l.subject(ctx, p.Subject)
		if err != nil {
			return fmt.Errorf("key of the subject: %w", err)
		}
		e.Party.Subject = s.index
		if e.Personal, err = s.encrypt(e.ID, p); err != nil {
			return err
		}
	}
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	return l.journal.Append(append([]Frame{{FrameEvent, data}}, more...)...)
}

// Keep makes frames durable that are no events.
func (l *Log) Keep(frames ...Frame) error { return l.journal.Append(frames...) }

// Failed returns the error that stopped the journal, or nil.
func (l *Log) Failed() error { return l.journal.Failed() }

// Index returns the keyed index of a subject, as events show it: the first 16
// bytes of an HMAC-SHA-256, in hexadecimal.
func (l *Log) Index(name string) string {
	mac := hmac.New(sha256.New, l.cfg.IndexKey)
	mac.Write([]byte(name))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

func (l *Log) subject(ctx context.Context, name string) (*subject, error) {
	l.mu.Lock()
	if el, ok := l.subjects[name]; ok {
		l.order.MoveToFront(el)
		l.mu.Unlock()
		return el.Value.(*subject), nil
	}
	l.mu.Unlock()
	s := &subject{name: name, index: l.Index(name)}
	key, err := l.keys.SubjectKey(ctx, s.index)
	if err != nil {
		return nil, err
	}
	if s.seal, err = newSeal(key); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if el, ok := l.subjects[name]; ok {
		return el.Value.(*subject), nil
	}
	l.subjects[name] = l.order.PushFront(s)
	if l.order.Len() > maxSubjects {
		last := l.order.Back()
		l.order.Remove(last)
		delete(l.subjects, last.Value.(*subject).name)
	}
	return s, nil
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

func (s *subject) encrypt(id string, p Personal) ([]byte, error) {
	plain, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode personal data: %w", err)
	}
	return s.seal.Seal(nil, nil, plain, []byte(id)), nil
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
