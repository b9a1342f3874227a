package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	bolt "go.etcd.io/bbolt"

	"github.com/stint-dev/stint/broker"
)

const subjectKeysFormat = "stint subject keys 1"

var bucketKeys = []byte("keys") // index of a subject -> its key, sealed

// subjectKeySize is the length of a key in bytes.
const subjectKeySize = 32

// SubjectKeys keeps a key for each subject, by which personal data in the audit
// record is encrypted, so that it can be forgotten by destroying the key. Keys are
// sealed, and each is bound to its subject. It is safe for concurrent use.
type SubjectKeys struct {
	seal broker.Sealer
	path string

	mu sync.RWMutex // held for writing while the file is replaced
	db *bolt.DB
}

// OpenSubjectKeys opens or makes the file. A file that another process has open
// is refused.
func OpenSubjectKeys(path string, seal broker.Sealer) (*SubjectKeys, error) {
	if path == "" || seal == nil {
		return nil, errors.New("subject keys: a file and a sealer are needed")
	}
	db, file, err := openBolt(path, subjectKeysFormat, bucketKeys)
	if err == nil {
		// Forget replaces the file. Whoever had the old one open while it waited for
		// the lock would go on with what is to be forgotten.
		if err = stillThere(path, file); err != nil {
			err = errors.Join(err, db.Close())
		}
	}
	if err == nil {
		if err = os.Remove(path + newSuffix); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("subject keys %s: %w", path, err)
	}
	return &SubjectKeys{seal: seal, path: path, db: db}, nil
}

// newSuffix is that of the file that is about to replace the present one.
const newSuffix = ".new"

func stillThere(path string, file *os.File) error {
	opened, err := file.Stat()
	if err != nil {
		return err
	}
	present, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(opened, present) {
		return errors.New("it was replaced by another process")
	}
	return nil
}

func subjectContext(index string) string { return "subject key " + index }

// SubjectKey returns the key of a subject's index, 32 bytes, which is made the
// first time, and durable when it is returned.
func (s *SubjectKeys) SubjectKey(ctx context.Context, index string) ([]byte, error) {
	return s.key(ctx, index, s.make)
}

// Find returns the key of a subject's index and makes none: [broker.ErrNotFound]
// if there never was one, or it was destroyed.
func (s *SubjectKeys) Find(ctx context.Context, index string) ([]byte, error) {
	return s.key(ctx, index, func(string) ([]byte, error) { return nil, broker.ErrNotFound })
}

// key returns a key that is there, or what missing makes.
func (s *SubjectKeys) key(ctx context.Context, index string, missing func(string) ([]byte, error)) ([]byte, error) {
	if index == "" {
		return nil, errors.New("subject key: an index is needed")
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("subject key: %w", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return nil, fmt.Errorf("subject key: %w", errClosed)
	}
	sealed, err := s.find(index)
	if err == nil && sealed == nil {
		sealed, err = missing(index)
	}
	if err != nil {
		return nil, fmt.Errorf("subject key: %w", err)
	}
	key, err := s.seal.Open(sealed, subjectContext(index))
	if err != nil {
		return nil, fmt.Errorf("open subject key: %w", err)
	}
	if len(key) != subjectKeySize {
		return nil, fmt.Errorf("subject key: %d bytes, not %d", len(key), subjectKeySize)
	}
	return key, nil
}

func (s *SubjectKeys) find(index string) (sealed []byte, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		sealed = bytes.Clone(tx.Bucket(bucketKeys).Get([]byte(index)))
		return nil
	})
	return sealed, err
}

// make returns the key that is in the file in the end: this one, or that of
// somebody who was faster.
func (s *SubjectKeys) make(index string) (sealed []byte, err error) {
	key := make([]byte, subjectKeySize)
	_, _ = rand.Read(key) // never fails
	fresh, err := s.seal.Seal(key, subjectContext(index))
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketKeys)
		if was := b.Get([]byte(index)); was != nil {
			sealed = bytes.Clone(was)
			return nil
		}
		sealed = fresh
		return b.Put([]byte(index), fresh)
	})
	return sealed, err
}

// Forget destroys the key of a subject. When it returns nil, the file holds the
// key in no form; after an error it may still. The file is written anew without
// it, since deleting would leave it in pages that are no longer used. What the
// medium keeps of the old file is beyond this: the key in there is sealed.
func (s *SubjectKeys) Forget(ctx context.Context, index string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return fmt.Errorf("forget subject key: %w", errClosed)
	}
	fresh, err := s.without(ctx, index)
	if err == nil {
		// The new file is locked already: at no time is there one to be opened.
		if err = os.Rename(s.path+newSuffix, s.path); err != nil {
			err = errors.Join(err, fresh.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("forget subject key: %w", err)
	}
	old := s.db
	s.db = fresh
	if err := errors.Join(old.Close(), syncDir(filepath.Dir(s.path))); err != nil {
		return fmt.Errorf("forget subject key: %w", err)
	}
	return nil
}

// copyStep is how many keys one transaction copies.
const copyStep = 10_000

// without writes a new file that holds every key but one.
func (s *SubjectKeys) without(ctx context.Context, index string) (*bolt.DB, error) {
	if err := os.Remove(s.path + newSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	fresh, _, err := openBolt(s.path+newSuffix, subjectKeysFormat, bucketKeys)
	if err != nil {
		return nil, err
	}
	err = s.db.View(func(from *bolt.Tx) error {
		c := from.Bucket(bucketKeys).Cursor()
		k, v := c.First()
		for k != nil {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := fresh.Update(func(to *bolt.Tx) error {
				b := to.Bucket(bucketKeys)
				b.FillPercent = 0.95 // they come in order
				for n := 0; k != nil && n < copyStep; n++ {
					if string(k) != index {
						if err := b.Put(k, v); err != nil {
							return err
						}
					}
					k, v = c.Next()
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, fresh.Close(), os.Remove(s.path+newSuffix))
	}
	return fresh, nil
}

// Close closes the file.
func (s *SubjectKeys) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return nil
	}
	db := s.db
	s.db = nil
	return db.Close()
}
