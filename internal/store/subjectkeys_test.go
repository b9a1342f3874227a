package store_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/store"
)

// plainSealer seals nothing.
type plainSealer struct{}

func (plainSealer) Seal(plain []byte, _ string) ([]byte, error)  { return plain, nil }
func (plainSealer) Open(sealed []byte, _ string) ([]byte, error) { return sealed, nil }

// gcm seals, and remembers what it sealed and opened.
type gcm struct {
	aead cipher.AEAD
	mu   sync.Mutex
	seen map[string][][]byte // by context: everything sealed
	fail error
}

func newGCM(t testing.TB) *gcm {
	t.Helper()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	must(t, err)
	aead, err := cipher.NewGCM(block)
	must(t, err)
	return &gcm{aead: aead, seen: make(map[string][][]byte)}
}

func (g *gcm) Seal(plain []byte, ctx string) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fail != nil {
		return nil, g.fail
	}
	nonce := make([]byte, g.aead.NonceSize())
	_, _ = rand.Read(nonce)
	sealed := g.aead.Seal(nonce, nonce, plain, []byte(ctx))
	g.seen[ctx] = append(g.seen[ctx], sealed)
	return bytes.Clone(sealed), nil
}

func (g *gcm) Open(sealed []byte, ctx string) ([]byte, error) {
	if g.fail != nil {
		return nil, g.fail
	}
	n := g.aead.NonceSize()
	if len(sealed) < n {
		return nil, errors.New("too short")
	}
	return g.aead.Open(nil, sealed[:n], sealed[n:], []byte(ctx))
}

func openKeys(t testing.TB, path string, g *gcm) *store.SubjectKeys {
	t.Helper()
	s, err := store.OpenSubjectKeys(path, g)
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func subjectKey(t testing.TB, s *store.SubjectKeys, index string) []byte {
	t.Helper()
	key, err := s.SubjectKey(background, index)
	must(t, err)
	if len(key) != 32 {
		t.Fatalf("a key of %d bytes", len(key))
	}
	return key
}

func TestASubjectHasOneKeyOfItsOwn(t *testing.T) {
	g, path := newGCM(t), filepath.Join(t.TempDir(), "keys.db")
	s := openKeys(t, path, g)
	alice, bob := subjectKey(t, s, "alice"), subjectKey(t, s, "bob")
	if bytes.Equal(alice, bob) {
		t.Error("two subjects have one key")
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	carol := make(map[string]bool)
	for range 50 {
		wg.Go(func() {
			key, err := s.SubjectKey(background, "carol")
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			carol[string(key)] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(carol) != 1 {
		t.Errorf("those who asked at once got %d keys", len(carol))
	}
	must(t, s.Close())
	s = openKeys(t, path, g)
	if !bytes.Equal(subjectKey(t, s, "alice"), alice) || !bytes.Equal(subjectKey(t, s, "bob"), bob) || !carol[string(subjectKey(t, s, "carol"))] {
		t.Error("keys changed when the file was opened again")
	}
	must(t, s.Close())
	data, err := os.ReadFile(path)
	must(t, err)
	if bytes.Contains(data, alice) {
		t.Error("the file holds a key in the clear")
	}
	for ctx := range g.seen {
		if ctx != "subject key alice" && ctx != "subject key bob" && ctx != "subject key carol" {
			t.Errorf("sealed with the context %q", ctx)
		}
	}
}

func TestAForgottenKeyIsNowhereInTheFile(t *testing.T) {
	g, path := newGCM(t), filepath.Join(t.TempDir(), "keys.db")
	s := openKeys(t, path, g)
	keys := make(map[string][]byte)
	for i := range 500 {
		index := fmt.Sprint("subject ", i)
		keys[index] = subjectKey(t, s, index)
	}
	holds := func(index string) bool {
		data, err := os.ReadFile(path)
		must(t, err)
		for _, sealed := range g.seen["subject key "+index] {
			if bytes.Contains(data, sealed) || bytes.Contains(data, sealed[:16]) || bytes.Contains(data, sealed[len(sealed)-16:]) {
				return true
			}
		}
		return false
	}
	for _, index := range []string{"subject 0", "subject 250", "subject 499"} {
		if !holds(index) {
			t.Fatalf("the test does not find %s where it is", index)
		}
		must(t, s.Forget(background, index))
		must(t, s.Forget(background, index)) // as somebody would who did not hear the first answer
		if holds(index) {
			t.Errorf("%s is still in the file", index)
		}
		if again := subjectKey(t, s, index); bytes.Equal(again, keys[index]) {
			t.Errorf("%s has its old key", index)
		} else {
			keys[index] = again
		}
	}
	must(t, s.Forget(background, "nobody"))
	for i := range 2 {
		for index, key := range keys {
			if !bytes.Equal(subjectKey(t, s, index), key) {
				t.Errorf("the key of %s changed", index)
			}
		}
		if i == 0 {
			must(t, s.Close())
			s = openKeys(t, path, g)
		}
	}
	if left, err := filepath.Glob(path + "*"); err != nil || len(left) != 1 {
		t.Errorf("files: %q, %v", left, err)
	}
}

func TestFindingAKeyMakesNone(t *testing.T) {
	s := openKeys(t, filepath.Join(t.TempDir(), "keys.db"), newGCM(t))
	for _, step := range []string{"never made", "destroyed"} {
		for range 2 {
			if key, err := s.Find(background, "alice"); key != nil || !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("%s: %x, %v", step, key, err)
			}
		}
		made := subjectKey(t, s, "alice")
		if key, err := s.Find(background, "alice"); err != nil || !bytes.Equal(key, made) {
			t.Errorf("found %x, %v; made %x", key, err, made)
		}
		must(t, s.Forget(background, "alice"))
	}
}

func TestForgettingDisturbsNobody(t *testing.T) {
	g, path := newGCM(t), filepath.Join(t.TempDir(), "keys.db")
	s := openKeys(t, path, g)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 20 {
				index := fmt.Sprint(w, "/", i)
				a, err := s.SubjectKey(background, index)
				if err != nil {
					t.Error(err)
					return
				}
				if b, err := s.SubjectKey(background, index); err != nil || !bytes.Equal(a, b) {
					t.Errorf("%s: another key, %v", index, err)
				}
				if i%5 == 4 {
					if err := s.Forget(background, fmt.Sprint(w, "/", i-1)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestAKeyThatIsNotTheSubjectsDoesNotOpen(t *testing.T) {
	g, path := newGCM(t), filepath.Join(t.TempDir(), "keys.db")
	s := openKeys(t, path, g)
	subjectKey(t, s, "alice")
	subjectKey(t, s, "bob")
	must(t, s.Close())
	db, err := bolt.Open(path, 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("keys"))
		return errors.Join(b.Put([]byte("alice"), bytes.Clone(b.Get([]byte("bob")))), b.Put([]byte("bob"), []byte("short")))
	}))
	must(t, db.Close())
	s = openKeys(t, path, g)
	for _, index := range []string{"alice", "bob"} {
		if _, err := s.SubjectKey(background, index); err == nil {
			t.Errorf("%s has a key", index)
		}
	}
}

func TestSubjectKeysRefuseWhatTheyCannotDo(t *testing.T) {
	g, path := newGCM(t), filepath.Join(t.TempDir(), "keys.db")
	s := openKeys(t, path, g)
	if _, err := store.OpenSubjectKeys(path, g); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("opened twice: %v", err)
	}
	must(t, s.Forget(background, "nobody")) // with the new file as well
	if _, err := store.OpenSubjectKeys(path, g); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("opened twice, after the file was replaced: %v", err)
	}
	if _, err := s.SubjectKey(background, ""); err == nil {
		t.Error("nobody has a key")
	}
	ended, cancel := context.WithCancel(background)
	cancel()
	if _, err := s.SubjectKey(ended, "alice"); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	g.fail = errors.New("Vault is sealed")
	if _, err := s.SubjectKey(background, "alice"); !errors.Is(err, g.fail) {
		t.Errorf("without a sealer: %v", err)
	}
	g.fail = nil
	subjectKey(t, s, "alice")
	if err := s.Forget(ended, "alice"); !errors.Is(err, context.Canceled) {
		t.Errorf("forget with an ended context: %v", err)
	}
	subjectKey(t, s, "alice")
	if left, err := filepath.Glob(path + "*"); err != nil || len(left) != 1 {
		t.Errorf("files: %q, %v", left, err)
	}
	must(t, s.Close())
	must(t, s.Close())
	if _, err := s.SubjectKey(background, "alice"); err == nil {
		t.Error("a closed file has keys")
	}
	if err := s.Forget(background, "alice"); err == nil {
		t.Error("a closed file forgets")
	}
	if _, err := store.OpenSubjectKeys(path, nil); err == nil {
		t.Error("opened without a sealer")
	}
}

// Whoever waited for the lock of the old file must not go on with it.
func TestAFileThatWasReplacedMeanwhileIsNotOpened(t *testing.T) {
	g, path := newGCM(t), filepath.Join(t.TempDir(), "keys.db")
	s := openKeys(t, path, g)
	subjectKey(t, s, "alice")
	opened := make(chan error, 1)
	go func() {
		other, err := store.OpenSubjectKeys(path, g)
		if err == nil {
			_ = other.Close()
		}
		opened <- err
	}()
	time.Sleep(30 * time.Millisecond) // it has the old file open by now, and waits
	must(t, s.Forget(background, "alice"))
	err := <-opened
	if err == nil {
		t.Fatal("the old file was opened")
	}
	t.Log(err)
	subjectKey(t, s, "alice")
}

func TestWhatACrashLeftOfANewFileIsRemoved(t *testing.T) {
	g, path := newGCM(t), filepath.Join(t.TempDir(), "keys.db")
	must(t, os.WriteFile(path+".new", []byte("half a file"), 0o600))
	s := openKeys(t, path, g)
	if _, err := os.Stat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	must(t, os.WriteFile(path+".new", []byte("half a file"), 0o600))
	must(t, s.Forget(background, "alice"))
}
