package vault

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"filippo.io/age"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// A sealed file, version 1, is encrypted with age to one X25519 identity. Inside
// are 32 bytes of HMAC-SHA256 and the JSON of sealedFile that they are of.
//
// age alone says that nobody has read or changed the file, not who wrote it:
// anybody may encrypt to a recipient. The HMAC's key is derived from the
// identity's secret part, so that only who can open the file can have made it.
// An old copy that is put back is not found out.
const (
	sealedVersion = 1
	macInfo       = "stint sealed file 1"
	maxSealed     = 16 << 20
)

type sealedFile struct {
	Version int                     `json:"version"`
	Secrets map[string]sealedSecret `json:"secrets"`
}

type sealedSecret struct {
	Version int               `json:"version"`
	Fields  map[string]string `json:"fields"`
}

// file is a sealed file that is open. Its content is held in memory, and the
// file rewritten with every change. What is secret is a secret.String here too:
// package fmt prints whatever else it can reach.
type file struct {
	path     string
	identity secret.String // as age writes it
	mac      secret.String // the key of the HMAC
	lock     *os.File      // nil: it is open for reading alone

	mu     sync.RWMutex // guards what follows
	held   map[string]entry
	failed error // the last write failed
	closed bool
}

// entry is what is held under a path. It is not changed, but replaced.
type entry struct {
	version int
	fields  Fields
}

// Init makes the identity, for its owner alone, and a sealed file that is empty.
// It replaces nothing that exists: an error wraps [fs.ErrExist] then.
func Init(cfg FileConfig) error {
	for _, path := range []string{cfg.Path, cfg.Identity} {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s: %w", path, fs.ErrExist)
		}
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("make identity: %w", err)
	}
	text := "# opens " + filepath.Base(cfg.Path) + "; keep a copy elsewhere\n# public key: " + id.Recipient().String() + "\n" + id.String() + "\n"
	if err := writeNew(cfg.Identity, []byte(text)); err != nil {
		return fmt.Errorf("make identity: %w", err)
	}
	f, err := newFile(cfg, secret.New(id.String()), false)
	if err != nil {
		return err
	}
	return errors.Join(f.save(nil), f.Close())
}

// newFile takes the lock of a sealed file that id opens, unless it is only to be
// read: a file that is replaced as a whole is whole whenever it is read.
func newFile(cfg FileConfig, id secret.String, readOnly bool) (*file, error) {
	mac, err := hkdf.Key(sha256.New, []byte(id.Reveal()), nil, macInfo, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("sealed file: %w", err)
	}
	f := &file{path: cfg.Path, identity: id, mac: secret.New(string(mac))}
	if readOnly {
		return f, nil
	}
	lock, err := os.OpenFile(cfg.Path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the sealed file: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("sealed file %s: in use by another process", cfg.Path)
	}
	f.lock = lock
	return f, nil
}

// openFile opens a sealed file that exists: one that is gone is not replaced by
// an empty one, as everything that was sealed by its keys would be lost quietly.
func openFile(cfg FileConfig, readOnly bool) (*file, error) {
	id, err := readIdentity(cfg.Identity)
	if err != nil {
		return nil, err
	}
	f, err := newFile(cfg, id, readOnly)
	if err != nil {
		return nil, err
	}
	if f.held, err = f.load(); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("sealed file %s: %w", cfg.Path, err)
	}
	return f, nil
}

func readIdentity(path string) (secret.String, error) {
	data, err := readPrivate(path, 0o027)
	if errors.Is(err, fs.ErrNotExist) {
		return secret.String{}, fmt.Errorf("identity %s: it does not exist: put the copy of it back; nothing else opens the sealed file: %w", path, fs.ErrNotExist)
	}
	if err != nil {
		return secret.String{}, fmt.Errorf("identity: %w", err)
	}
	// The parser's error may quote the line that it could not read.
	ids, err := age.ParseIdentities(bytes.NewReader(data))
	if err == nil && len(ids) == 1 {
		if id, ok := ids[0].(*age.X25519Identity); ok {
			return secret.New(id.String()), nil
		}
	}
	return secret.String{}, fmt.Errorf("identity %s: one line AGE-SECRET-KEY-1... is wanted, as `stint init` and age-keygen write it", path)
}

func (f *file) load() (map[string]entry, error) {
	sealed, err := readPrivate(f.path, 0o022)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("it does not exist: put a copy of it back; if there is none, what was in it is lost: "+
			"move the whole configuration away and run `stint init`: %w", err)
	}
	if err != nil {
		return nil, err
	}
	id, err := age.ParseX25519Identity(f.identity.Reveal())
	if err != nil {
		return nil, errors.New("the identity is none")
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), id)
	if none := (*age.NoIdentityMatchError)(nil); errors.As(err, &none) {
		return nil, errors.New("the identity does not open it: it was sealed to another")
	}
	if err != nil {
		return nil, fmt.Errorf("damaged, or no sealed file: %w", err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("damaged: %w", err)
	}
	if len(plain) < sha256.Size || !hmac.Equal(plain[:sha256.Size], f.sum(plain[sha256.Size:])) {
		return nil, errors.New("not written by whoever holds the identity")
	}
	return parseSealed(plain[sha256.Size:])
}

func parseSealed(plain []byte) (map[string]entry, error) {
	var wire sealedFile
	if err := strictjson.Decode(plain, &wire); err != nil || wire.Version != sealedVersion {
		if v, later := strictjson.Later(plain, "version", sealedVersion); later {
			return nil, fmt.Errorf("version %d: %w", v, broker.ErrLater)
		}
		return nil, fmt.Errorf("version %d: not of this version of Stint", wire.Version)
	}
	held := make(map[string]entry, len(wire.Secrets))
	for path, s := range wire.Secrets {
		e := entry{version: s.Version, fields: make(Fields, len(s.Fields))}
		for name, text := range s.Fields {
			e.fields[name] = secret.New(text)
		}
		held[path] = e
	}
	return held, nil
}

func (f *file) sum(data []byte) []byte {
	h := hmac.New(sha256.New, []byte(f.mac.Reveal()))
	h.Write(data)
	return h.Sum(nil)
}

// save seals what is to be held and puts it in the file's place: after a crash
// there is the old file or the new one.
func (f *file) save(held map[string]entry) error {
	wire := sealedFile{Version: sealedVersion, Secrets: make(map[string]sealedSecret, len(held))}
	for path, e := range held {
		s := sealedSecret{Version: e.version, Fields: make(map[string]string, len(e.fields))}
		for name, value := range e.fields {
			s.Fields[name] = value.Reveal()
		}
		wire.Secrets[path] = s
	}
	plain, err1 := strictjson.Encode(wire)
	id, err2 := age.ParseX25519Identity(f.identity.Reveal())
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, id.Recipient())
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	_, err1 = w.Write(f.sum(plain))
	_, err2 = w.Write(plain)
	if err := errors.Join(err1, err2, w.Close()); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if sealed.Len() > maxSealed {
		return fmt.Errorf("a sealed file of %d bytes: %d are the most", sealed.Len(), maxSealed)
	}
	fresh := f.path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeNew(fresh, sealed.Bytes()); err != nil {
		return err
	}
	if err := os.Rename(fresh, f.path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(f.path))
}

func (f *file) Read(_ context.Context, path string) (Fields, int, error) {
	if err := checkPath(path); err != nil {
		return nil, 0, err
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	e, found := f.held[path]
	switch {
	case f.closed:
		return nil, 0, errClosed
	case !found:
		return nil, 0, fmt.Errorf("%s: %w", path, broker.ErrNotFound)
	}
	return maps.Clone(e.fields), e.version, nil
}

var (
	errClosed   = errors.New("the sealed file is closed")
	errReadOnly = errors.New("the sealed file is open for reading alone")
)

func (f *file) Write(_ context.Context, path string, fields Fields, cas int) (int, error) {
	if err := errors.Join(checkPath(path), checkFields(fields)); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if version := f.held[path].version; version != cas {
		return 0, fmt.Errorf("%s is at version %d, not %d: %w", path, version, cas, broker.ErrConflict)
	}
	e := entry{version: cas + 1, fields: maps.Clone(fields)}
	if err := f.change(func(held map[string]entry) { held[path] = e }); err != nil {
		return 0, err
	}
	return e.version, nil
}

func (f *file) Delete(_ context.Context, path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, found := f.held[path]; !found && !f.closed {
		return nil
	}
	return f.change(func(held map[string]entry) { delete(held, path) })
}

// change edits a copy, saves it and makes it what is held. f.mu is locked.
func (f *file) change(edit func(map[string]entry)) error {
	if f.closed {
		return errClosed
	}
	if f.lock == nil {
		return errReadOnly
	}
	next := maps.Clone(f.held)
	edit(next)
	if f.failed = f.save(next); f.failed != nil {
		// Whether the file is the old one or the new is not known: ask it.
		if held, err := f.load(); err == nil {
			f.held = held
		}
		return unavailable(fmt.Errorf("write the sealed file: %w", f.failed))
	}
	f.held = next
	return nil
}

func (f *file) List(_ context.Context, path string) ([]string, error) {
	if path != "" {
		if err := checkPath(path); err != nil {
			return nil, err
		}
		path += "/"
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return nil, errClosed
	}
	names := make(map[string]bool)
	for p := range f.held {
		if rest, under := strings.CutPrefix(p, path); under {
			name, _, deeper := strings.Cut(rest, "/")
			if deeper {
				name += "/"
			}
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

func (f *file) Ready(context.Context) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	switch {
	case f.closed:
		return errClosed
	case f.failed != nil:
		return unavailable(fmt.Errorf("write the sealed file: %w", f.failed))
	}
	return nil
}

func (f *file) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	if f.lock == nil {
		return nil
	}
	// In words: a process that is being started may hold the file for a moment longer,
	// and the lock with it.
	return errors.Join(syscall.Flock(int(f.lock.Fd()), syscall.LOCK_UN), f.lock.Close())
}

// readPrivate reads a file that must have none of the permissions in refused.
func readPrivate(path string, refused fs.FileMode) ([]byte, error) {
	// Not blocking, so that a pipe is refused below rather than waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file", path)
	case info.Mode().Perm()&refused != 0:
		mode := info.Mode().Perm() &^ refused
		if refused&0o004 != 0 {
			mode = 0o600 // as `stint init` makes it; a group may read it where it has to
		}
		return nil, fmt.Errorf("%s has mode %04o, which lets others at it: chmod %04o", path, info.Mode().Perm(), mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSealed+1))
	if err == nil && len(data) > maxSealed {
		err = fmt.Errorf("%s has more than %d bytes", path, maxSealed)
	}
	return data, err
}

// writeNew writes a file that must not exist, for its owner alone, durably.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close(), syncDir(filepath.Dir(path)))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

var _ Store = (*file)(nil)
