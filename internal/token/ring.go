package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// KeyStore keeps the document of our signing keys, sealed, for all replicas.
type KeyStore interface {
	// LoadKeys returns the document and its version; an error that wraps
	// [broker.ErrNotFound] if there is none.
	LoadKeys(ctx context.Context) (doc secret.String, version int, err error)
	// SaveKeys writes the document if its version is still the given one, 0 for
	// none; otherwise an error that wraps [broker.ErrConflict].
	SaveKeys(ctx context.Context, doc secret.String, version int) error
}

// RingConfig says how our keys live.
type RingConfig struct {
	// Algorithm is that of new keys: ES256 or EdDSA.
	Algorithm string
	// Overlap is how long a new key is published before it signs, so that whoever
	// caches our keys knows it by then.
	Overlap time.Duration
	// Retain is how long a key is published after it signed last: the life of the
	// longest-lived token.
	Retain time.Duration
	Now    func() time.Time
}

// Ring holds our signing keys.
type Ring struct {
	cfg   RingConfig
	store KeyStore
	state atomic.Pointer[ringState]
	// mu is held from reading the document until it is in force: of two at work the
	// one that read first would else bring back what the other took away.
	mu sync.Mutex

	lookers atomic.Int32 // how many want to look for a key
	looking sync.Mutex   // held by who does; guards what follows
	looked  time.Time
	unread  error // why the document could not be read then
}

// Looking for a key that is not known: how often at most, because anybody can ask for
// one, and how long it may take.
const (
	lookEvery   = 2 * time.Second
	lookTimeout = 5 * time.Second
)

// ringState is what one version of the document says.
type ringState struct {
	version int
	keys    []*ownKey // oldest first
	revoked []revokedKey
}

// ownKey is one signing key.
type ownKey struct {
	Key
	private crypto.Signer
	jwk     []byte // as published
	header  string // of a token of ours, encoded, with the dot
	plain   string // of what is for others
	created time.Time
	active  time.Time // when it begins to sign
	retired time.Time // when another took its place; zero if none did
}

// alive reports whether a token of the key may be.
func (k *ownKey) alive(now time.Time, retain time.Duration) bool {
	return k.retired.IsZero() || now.Before(k.retired.Add(retain))
}

// OpenRing loads our keys, making the first one if there is none.
func OpenRing(ctx context.Context, cfg RingConfig, store KeyStore) (*Ring, error) {
	if cfg.Algorithm != "ES256" && cfg.Algorithm != "EdDSA" || cfg.Overlap < 0 || cfg.Retain <= 0 || cfg.Now == nil {
		return nil, errors.New("signing keys: ES256 or EdDSA, an overlap, a time to retain and a clock are needed")
	}
	r := &Ring{cfg: cfg, store: store}
	err := r.Reload(ctx)
	if errors.Is(err, broker.ErrNotFound) {
		if err = r.first(ctx); errors.Is(err, broker.ErrConflict) {
			err = r.Reload(ctx) // another replica was first
		}
	}
	if err != nil {
		return nil, fmt.Errorf("signing keys: %w", err)
	}
	return r, nil
}

// first makes the document, with one key that signs at once.
func (r *Ring) first(ctx context.Context) error {
	d := &ringDoc{Version: ringVersion}
	if err := r.add(d, 0); err != nil {
		return err
	}
	return r.save(ctx, d, 0)
}

// Reload reads the document again, so that what another replica did takes effect
// here. Call it every minute.
func (r *Ring) Reload(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	doc, version, err := r.store.LoadKeys(ctx)
	if err != nil {
		return err
	}
	if s := r.state.Load(); s != nil && s.version == version {
		return nil
	}
	d, err := readDoc(doc)
	if err != nil {
		return err
	}
	return r.use(d, version)
}

// use puts a document in force.
func (r *Ring) use(d *ringDoc, version int) error {
	if d.Version != ringVersion || len(d.Keys) == 0 {
		return fmt.Errorf("document of signing keys: version %d with %d keys is not of this version", d.Version, len(d.Keys))
	}
	s := &ringState{version: version, revoked: slices.Clone(d.Revoked)}
	for i, k := range d.Keys {
		key, err := ownKeyOf(k)
		if err != nil {
			return fmt.Errorf("signing key %d: %w", i+1, err)
		}
		key.retired = d.retired(i)
		s.keys = append(s.keys, key)
	}
	r.state.Store(s)
	return nil
}

// Rotate adds a key. It begins to sign after the overlap, or at once: then
// whoever caches our keys refuses its tokens until he fetches them again.
func (r *Ring) Rotate(ctx context.Context, atOnce bool) (KeyInfo, error) {
	overlap := r.cfg.Overlap
	if atOnce {
		overlap = 0
	}
	err := r.change(ctx, func(d *ringDoc) error {
		r.prune(d)
		if atOnce { // one that waits begins as well: it would hold the new one up
			for i := range d.Keys {
				d.Keys[i].Active = min(d.Keys[i].Active, r.cfg.Now().Unix())
			}
		}
		return r.add(d, overlap)
	})
	if err != nil {
		return KeyInfo{}, err
	}
	all := r.Keys()
	return all[len(all)-1], nil
}

// change makes a change to the document and puts the result in force. Where
// another replica changed it meanwhile, the change is made anew.
func (r *Ring) change(ctx context.Context, how func(*ringDoc) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		doc, version, err := r.store.LoadKeys(ctx)
		if err != nil {
			return err
		}
		d, err := readDoc(doc)
		if err != nil {
			return err
		}
		// A change whose answer was lost may have been made: then this is the news.
		if err := r.use(d, version); err != nil {
			return err
		}
		if err := how(d); err != nil {
			return err
		}
		if err := r.save(ctx, d, version); !errors.Is(err, broker.ErrConflict) {
			return err
		}
	}
}

// prune drops keys of which no token is alive.
func (r *Ring) prune(d *ringDoc) {
	r.forget(d)
	now := r.cfg.Now()
	for len(d.Keys) > 1 && !now.Before(d.retired(0).Add(r.cfg.Retain)) {
		d.Keys = d.Keys[1:]
	}
}

// add adds a key to a document.
func (r *Ring) add(d *ringDoc, overlap time.Duration) error {
	k, err := newKey(r.cfg.Algorithm, r.cfg.Now(), overlap)
	if err != nil {
		return err
	}
	if n := len(d.Keys); n > 0 { // never before the one that is waiting
		k.Active = max(k.Active, d.Keys[n-1].Active)
	}
	d.Keys = append(d.Keys, k)
	return nil
}

// save writes a document over the one of a version and puts it in force.
func (r *Ring) save(ctx context.Context, d *ringDoc, version int) error {
	doc, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode keys: %w", err)
	}
	if err := r.store.SaveKeys(ctx, secret.New(string(doc)), version); err != nil {
		return err
	}
	return r.use(d, version+1)
}

// KeyInfo describes one of our keys.
type KeyInfo struct {
	ID        string    `json:"kid"`
	Algorithm string    `json:"alg"`
	State     string    `json:"state"` // next, active, retired
	Created   time.Time `json:"created"`
	// Active is when it begins or began to sign, and Until when it is no longer
	// published; zero: as long as it signs.
	Active time.Time `json:"active"`
	Until  time.Time `json:"until,omitzero"`
}

// Keys describes our keys, oldest first.
func (r *Ring) Keys() (out []KeyInfo) {
	now := r.cfg.Now()
	s := r.state.Load()
	signing := s.signing(now)
	for _, k := range s.keys {
		info := KeyInfo{ID: k.id, Algorithm: k.alg, State: "retired", Created: k.created, Active: k.active}
		switch {
		case k == signing:
			info.State = "active"
		case k.active.After(now):
			info.State = "next"
		}
		if !k.retired.IsZero() {
			info.Until = k.retired.Add(r.cfg.Retain)
		}
		out = append(out, info)
	}
	return out
}

// JWKS returns our public keys as a JWK set, those that will sign included, and
// those of which no token can be alive any more left out.
func (r *Ring) JWKS() []byte {
	out := []byte(`{"keys":[`)
	for i, k := range r.alive() {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, k.jwk...)
	}
	return append(out, `]}`...)
}

// Algorithms returns the algorithms that our tokens may be signed with.
func (r *Ring) Algorithms() (algs []string) {
	for _, k := range r.alive() {
		if !slices.Contains(algs, k.alg) {
			algs = append(algs, k.alg)
		}
	}
	return algs
}

// alive returns the keys of which a token is or will be alive.
func (r *Ring) alive() (keys []*ownKey) {
	now := r.cfg.Now()
	for _, k := range r.state.Load().keys {
		if k.alive(now, r.cfg.Retain) {
			keys = append(keys, k)
		}
	}
	return keys
}

// generation changes when the keys do: what was verified by those before may have
// to be refused.
func (r *Ring) generation() uint64 { return uint64(r.state.Load().version) }

// signing returns the key that signs now.
func (s *ringState) signing(now time.Time) *ownKey {
	for i := len(s.keys) - 1; i > 0; i-- {
		if !s.keys[i].active.After(now) {
			return s.keys[i]
		}
	}
	return s.keys[0]
}

// find returns one of our keys for verifying, and the generation that it is of. A
// key that is not to sign any more verifies until the last of its tokens has run out.
func (r *Ring) find(h joseHeader, now time.Time) (*Key, uint64) {
	s := r.state.Load()
	for _, k := range s.keys {
		if k.id == h.kid && k.alive(now, r.cfg.Retain) {
			return &k.Key, uint64(s.version)
		}
	}
	return nil, 0
}

// look is find, and reads the document again for a key that is not known: another
// replica may have begun it. The error wraps errKeys: it is not known whether there is
// such a key.
func (r *Ring) look(ctx context.Context, h joseHeader) (*Key, uint64, error) {
	k, generation := r.find(h, r.cfg.Now())
	if k != nil || r.state.Load().knows(h.kid) {
		return k, generation, nil
	}
	defer r.lookers.Add(-1)
	if r.lookers.Add(1) > maxWaiting {
		return nil, 0, fmt.Errorf("%w: too many wait for them", errKeys)
	}
	r.looking.Lock()
	defer r.looking.Unlock()
	now := r.cfg.Now()
	if d := now.Sub(r.looked); d >= lookEvery || d < 0 {
		ctx, cancel := context.WithTimeout(ctx, lookTimeout)
		defer cancel()
		r.unread = r.Reload(ctx)
		now = r.cfg.Now()
		r.looked = now
	}
	if k, generation = r.find(h, now); k == nil && r.unread != nil {
		return nil, 0, fmt.Errorf("%w of ours: %w", errKeys, r.unread)
	}
	return k, generation, nil
}

// knows reports whether there is or was a key.
func (s *ringState) knows(kid string) bool {
	return slices.ContainsFunc(s.keys, func(k *ownKey) bool { return k.id == kid }) ||
		slices.ContainsFunc(s.revoked, func(k revokedKey) bool { return k.ID == kid })
}

// sign makes a JWS of a payload with the key that signs now.
func (r *Ring) sign(payload []byte) (string, error) {
	k := r.state.Load().signing(r.cfg.Now())
	return k.sign(k.header, payload)
}

func (k *ownKey) sign(header string, payload []byte) (string, error) {
	n := base64.RawURLEncoding.EncodedLen(len(payload))
	out := make([]byte, 0, len(header)+n+1+86)
	out = append(out, header...)
	out = base64.RawURLEncoding.AppendEncode(out, payload)
	var sig []byte
	switch key := k.private.(type) {
	case ed25519.PrivateKey:
		sig = ed25519.Sign(key, out)
	case *ecdsa.PrivateKey:
		x, y, err := signES256(key, sha256.Sum256(out))
		if err != nil {
			return "", fmt.Errorf("sign: %w", err)
		}
		if isHigh(&key.PublicKey, y) { // of the two signatures there are, always the lower
			y.Sub(key.Params().N, y)
		}
		sig = append(x.FillBytes(make([]byte, 32)), y.FillBytes(make([]byte, 32))...)
	default:
		return "", fmt.Errorf("sign with a %T", key)
	}
	out = append(out, '.')
	return string(base64.RawURLEncoding.AppendEncode(out, sig)), nil
}
