package vault

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// The sealed form, version 1:
//
//	0  version, 1
//	1  id of the key, 4 bytes
//	5  nonce, 12 random bytes
//	17 ciphertext of AES-256-GCM, and its tag of 16 bytes
//
// What is authenticated besides is the first 5 bytes and the context. With random
// nonces a key may seal 2^32 times (NIST SP 800-38D section 8.3), 136 years of
// one each second; [Sealer.Rotate] begins a new key.
const (
	sealVersion  = 1
	keyIDSize    = 4
	sealHeader   = 1 + keyIDSize
	sealOverhead = sealHeader + 12 + 16
)

// Reloads of the ring for a key id that is not known: how often at most, as
// anybody who can write to the store could ask for them, and how long one takes.
const (
	reloadEvery   = 2 * time.Second
	reloadTimeout = 5 * time.Second
)

// Sealer seals by keys that are kept in a store. It is safe for concurrent use,
// and so are several on one store.
type Sealer struct {
	store Store
	now   func() time.Time
	ring  atomic.Pointer[ring]

	mu     sync.Mutex // held by whoever reloads or rotates; guards what follows
	looked time.Time  // when an unknown id last made us look
}

// ring is the keys that open, and the one that seals.
type ring struct {
	version int
	active  [keyIDSize]byte
	keys    map[[keyIDSize]byte]cipher.AEAD // with random nonces
	fields  Fields
}

// NewSealer loads the ring of keys, making it on first use.
func NewSealer(ctx context.Context, s Store, now func() time.Time) (*Sealer, error) {
	sealer := &Sealer{store: s, now: now}
	load := func() error { return sealer.Reload(ctx) }
	create := func() error { return sealer.add(ctx, &ring{fields: Fields{}}) }
	if err := firstUse(ctx, load, create); err != nil {
		return nil, fmt.Errorf("the keys that seal: %w", err)
	}
	return sealer, nil
}

// Seal encrypts plain and binds it to a context, which must not be empty.
func (s *Sealer) Seal(plain []byte, context string) ([]byte, error) {
	if context == "" {
		return nil, errors.New("seal: nothing to bind it to")
	}
	r := s.ring.Load()
	out := make([]byte, 0, len(plain)+sealOverhead)
	out = append(append(out, sealVersion), r.active[:]...)
	return r.keys[r.active].Seal(out, nil, plain, sealedData(out, context)), nil
}

// Open decrypts what Seal made with the same context. What was sealed by a key
// that is not known makes it look for new keys, but not too often: then the
// error has the code Unavailable.
func (s *Sealer) Open(sealed []byte, context string) ([]byte, error) {
	if len(sealed) > 0 && sealed[0] > sealVersion {
		return nil, fmt.Errorf("open: sealed in the form %d: %w", sealed[0], broker.ErrLater)
	}
	if len(sealed) < sealOverhead || sealed[0] != sealVersion {
		return nil, errors.New("open: not sealed by this version of Stint")
	}
	id := [keyIDSize]byte(sealed[1:sealHeader])
	key := s.ring.Load().keys[id]
	if key == nil {
		var err error
		if key, err = s.find(id); err != nil {
			return nil, fmt.Errorf("open: key %x: %w", id, err)
		}
	}
	plain, err := key.Open(nil, nil, sealed[sealHeader:], sealedData(sealed[:sealHeader], context))
	if err != nil {
		return nil, errors.New("open: changed, or sealed for something else")
	}
	return plain, nil
}

// sealedData is what is authenticated besides the text. The header's size is
// fixed, so that no other header and context make the same.
func sealedData(header []byte, context string) []byte {
	return append(append(make([]byte, 0, len(header)+len(context)), header...), context...)
}

// find looks for a key in the store.
func (s *Sealer) find(id [keyIDSize]byte) (cipher.AEAD, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key := s.ring.Load().keys[id]; key != nil {
		return key, nil // somebody else has looked meanwhile
	}
	now := s.now()
	if now.Sub(s.looked) < reloadEvery {
		return nil, unavailable(errors.New("not known, and looked for a moment ago"))
	}
	s.looked = now
	ctx, cancel := context.WithTimeout(context.Background(), reloadTimeout)
	defer cancel()
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	if key := s.ring.Load().keys[id]; key != nil {
		return key, nil
	}
	return nil, errors.New("there is no such key")
}

// Reload reads the ring anew, so that a key that another replica has begun is
// used for sealing too.
func (s *Sealer) Reload(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.load(ctx)
}

// load replaces the ring by the store's. s.mu is locked.
func (s *Sealer) load(ctx context.Context) error {
	f, version, err := s.store.Read(ctx, pathSealing)
	if err != nil {
		return err
	}
	r, err := parseRing(f, version)
	if err != nil {
		return fmt.Errorf("%s: %w", pathSealing, err)
	}
	s.ring.Store(r)
	return nil
}

// Rotate begins a new key for sealing and returns its id. Old keys go on opening.
// If another replica rotates at the same time, theirs is taken.
func (s *Sealer) Rotate(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.load(ctx)
	if err == nil {
		err = s.add(ctx, s.ring.Load())
	}
	if errors.Is(err, broker.ErrConflict) {
		err = s.load(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("rotate the keys that seal: %w", err)
	}
	active := s.ring.Load().active
	return hex.EncodeToString(active[:]), nil
}

// add writes old with a new active key, and takes it. ErrConflict if the store
// has another ring by now.
func (s *Sealer) add(ctx context.Context, old *ring) error {
	id := make([]byte, keyIDSize)
	for {
		_, _ = rand.Read(id)
		if _, taken := old.fields[hex.EncodeToString(id)]; !taken {
			break
		}
	}
	fields := maps.Clone(old.fields)
	fields[hex.EncodeToString(id)] = encodeKey(newKey())
	fields["active"] = secret.New(hex.EncodeToString(id))
	r, err := parseRing(fields, old.version+1)
	if err != nil {
		return err
	}
	if _, err := s.store.Write(ctx, pathSealing, fields, old.version); err != nil {
		return err
	}
	s.ring.Store(r)
	return nil
}

// parseRing reads a ring: keys by the hexadecimal of their ids, and under active
// the id of the one that seals.
func parseRing(f Fields, version int) (*ring, error) {
	r := &ring{version: version, keys: make(map[[keyIDSize]byte]cipher.AEAD, len(f)), fields: f}
	for name, text := range f {
		if name == "active" {
			continue
		}
		id, err := keyID(name)
		if err != nil {
			return nil, err
		}
		key, err := decodeKey(text)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", name, err)
		}
		block, err := aes.NewCipher([]byte(key.Reveal()))
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", name, err)
		}
		if r.keys[id], err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return nil, fmt.Errorf("key %s: %w", name, err)
		}
	}
	active, err := keyID(f["active"].Reveal())
	if err != nil || r.keys[active] == nil {
		return nil, errors.New("none of the keys is the active one")
	}
	r.active = active
	return r, nil
}

// keyID reads the name of a key in the ring.
func keyID(name string) (id [keyIDSize]byte, err error) {
	b, err := hex.DecodeString(name)
	if err != nil || len(b) != keyIDSize || hex.EncodeToString(b) != name {
		return id, errors.New("the name of a key is not 8 hexadecimal digits")
	}
	return [keyIDSize]byte(b), nil
}

var _ broker.Sealer = (*Sealer)(nil)
