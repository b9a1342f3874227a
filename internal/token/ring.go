package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
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
}

// ringState is what one version of the document says.
type ringState struct {
	version int
	keys    []*ownKey // oldest first
	jwks    []byte    // as published
}

// ownKey is one signing key.
type ownKey struct {
	Key
	private crypto.Signer
	header  string // encoded, with the dot
	created time.Time
	active  time.Time // when it begins to sign
	retired time.Time // when the next one began; zero if none did
}

// ringDoc is the document, version 1.
type ringDoc struct {
	Version int          `json:"v"`
	Keys    []ringDocKey `json:"keys"`
}

type ringDocKey struct {
	Created int64           `json:"created"`
	Active  int64           `json:"active"`
	JWK     json.RawMessage `json:"jwk"` // private
}

// OpenRing loads our keys, making the first one if there is none.
func OpenRing(ctx context.Context, cfg RingConfig, store KeyStore) (*Ring, error) {
	if cfg.Algorithm != "ES256" && cfg.Algorithm != "EdDSA" || cfg.Overlap < 0 || cfg.Retain <= 0 || cfg.Now == nil {
		return nil, errors.New("signing keys: ES256 or EdDSA, an overlap, a time to retain and a clock are needed")
	}
	r := &Ring{cfg: cfg, store: store}
	err := r.Reload(ctx)
	if errors.Is(err, broker.ErrNotFound) {
		if err = r.add(ctx, &ringDoc{Version: 1}, 0, 0); errors.Is(err, broker.ErrConflict) {
			err = r.Reload(ctx) // another replica was first
		}
	}
	if err != nil {
		return nil, fmt.Errorf("signing keys: %w", err)
	}
	return r, nil
}

// Reload reads the document again, so that what another replica did takes effect
// here. Call it every minute.
func (r *Ring) Reload(ctx context.Context) error {
	doc, version, err := r.store.LoadKeys(ctx)
	if err != nil {
		return err
	}
	if s := r.state.Load(); s != nil && s.version == version {
		return nil
	}
	var d ringDoc
	if err := strictjson.Decode([]byte(doc.Reveal()), &d); err != nil {
		return fmt.Errorf("document of signing keys: %w", err)
	}
	return r.use(&d, version)
}

// use puts a document in force.
func (r *Ring) use(d *ringDoc, version int) error {
	if d.Version != 1 || len(d.Keys) == 0 {
		return fmt.Errorf("document of signing keys: version %d with %d keys is not of this version", d.Version, len(d.Keys))
	}
	s := &ringState{version: version}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for i, k := range d.Keys {
		key, public, err := ownKeyOf(k)
		if err != nil {
			return fmt.Errorf("signing key %d: %w", i+1, err)
		}
		s.keys = append(s.keys, key)
		set.Keys = append(set.Keys, public)
		if i > 0 {
			s.keys[i-1].retired = key.active
		}
	}
	var err error
	if s.jwks, err = json.Marshal(set); err != nil {
		return fmt.Errorf("publish keys: %w", err)
	}
	r.state.Store(s)
	return nil
}

func ownKeyOf(k ringDocKey) (*ownKey, jose.JSONWebKey, error) {
	var j jose.JSONWebKey
	if err := j.UnmarshalJSON(k.JWK); err != nil {
		return nil, j, fmt.Errorf("jwk: %w", err)
	}
	signer, ok := j.Key.(crypto.Signer)
	if !ok {
		return nil, j, errors.New("it cannot sign")
	}
	public := j.Public()
	head, err := json.Marshal(struct {
		Alg string `json:"alg"`
		Typ string `json:"typ"`
		Kid string `json:"kid"`
	}{j.Algorithm, "at+jwt", j.KeyID})
	if err != nil {
		return nil, j, err
	}
	return &ownKey{
		Key:     Key{id: j.KeyID, alg: j.Algorithm, public: public.Key, lowS: true},
		private: signer, header: base64.RawURLEncoding.EncodeToString(head) + ".",
		created: time.Unix(k.Created, 0), active: time.Unix(k.Active, 0),
	}, public, nil
}

// Rotate adds a key. It begins to sign after the overlap, or at once: then
// whoever caches our keys refuses its tokens until he fetches them again.
func (r *Ring) Rotate(ctx context.Context, atOnce bool) (KeyInfo, error) {
	overlap := r.cfg.Overlap
	if atOnce {
		overlap = 0
	}
	for {
		doc, version, err := r.store.LoadKeys(ctx)
		if err != nil {
			return KeyInfo{}, err
		}
		var d ringDoc
		if err := strictjson.Decode([]byte(doc.Reveal()), &d); err != nil {
			return KeyInfo{}, fmt.Errorf("document of signing keys: %w", err)
		}
		r.prune(&d)
		if atOnce { // one that waits begins as well: it would hold the new one up
			for i := range d.Keys {
				d.Keys[i].Active = min(d.Keys[i].Active, r.cfg.Now().Unix())
			}
		}
		err = r.add(ctx, &d, version, overlap)
		if errors.Is(err, broker.ErrConflict) {
			continue
		}
		if err != nil {
			return KeyInfo{}, err
		}
		all := r.Keys()
		return all[len(all)-1], nil
	}
}

// prune drops keys of which no token is alive.
func (r *Ring) prune(d *ringDoc) {
	now := r.cfg.Now()
	for len(d.Keys) > 1 && !now.Before(time.Unix(d.Keys[1].Active, 0).Add(r.cfg.Retain)) {
		d.Keys = d.Keys[1:]
	}
}

func (r *Ring) add(ctx context.Context, d *ringDoc, version int, overlap time.Duration) error {
	k, err := newKey(r.cfg.Algorithm, r.cfg.Now(), overlap)
	if err != nil {
		return err
	}
	if n := len(d.Keys); n > 0 { // never before the one that is waiting
		k.Active = max(k.Active, d.Keys[n-1].Active)
	}
	d.Keys = append(d.Keys, k)
	doc, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode keys: %w", err)
	}
	if err := r.store.SaveKeys(ctx, secret.New(string(doc)), version); err != nil {
		return err
	}
	return r.use(d, version+1)
}

func newKey(alg string, now time.Time, overlap time.Duration) (k ringDocKey, err error) {
	j := jose.JSONWebKey{Algorithm: alg, Use: "sig"}
	if alg == "EdDSA" {
		_, j.Key, err = ed25519.GenerateKey(rand.Reader)
	} else {
		j.Key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return k, fmt.Errorf("make key: %w", err)
	}
	print, err := j.Thumbprint(crypto.SHA256) // RFC 7638
	if err != nil {
		return k, fmt.Errorf("name key: %w", err)
	}
	j.KeyID = base64.RawURLEncoding.EncodeToString(print)
	if k.JWK, err = j.MarshalJSON(); err != nil {
		return k, fmt.Errorf("encode key: %w", err)
	}
	k.Created, k.Active = now.Unix(), now.Add(overlap).Unix()
	return k, nil
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

// JWKS returns our public keys as a JWK set, those that will sign included.
func (r *Ring) JWKS() []byte { return slices.Clone(r.state.Load().jwks) }

// Algorithms returns the algorithms that our tokens may be signed with.
func (r *Ring) Algorithms() (algs []string) {
	for _, k := range r.state.Load().keys {
		if !slices.Contains(algs, k.alg) {
			algs = append(algs, k.alg)
		}
	}
	return algs
}

// signing returns the key that signs now.
func (s *ringState) signing(now time.Time) *ownKey {
	for i := len(s.keys) - 1; i > 0; i-- {
		if !s.keys[i].active.After(now) {
			return s.keys[i]
		}
	}
	return s.keys[0]
}

// find returns one of our keys for verifying. A key that is not to sign any more
// verifies until the last of its tokens has run out.
func (r *Ring) find(h joseHeader, now time.Time) *Key {
	for _, k := range r.state.Load().keys {
		if k.id == h.kid && (k.retired.IsZero() || now.Before(k.retired.Add(r.cfg.Retain))) {
			return &k.Key
		}
	}
	return nil
}

// sign makes a JWS of a payload with the key that signs now.
func (r *Ring) sign(payload []byte) (string, error) {
	k := r.state.Load().signing(r.cfg.Now())
	n := base64.RawURLEncoding.EncodedLen(len(payload))
	out := make([]byte, 0, len(k.header)+n+1+90)
	out = append(out, k.header...)
	out = base64.RawURLEncoding.AppendEncode(out, payload)
	var sig []byte
	switch key := k.private.(type) {
	case ed25519.PrivateKey:
		sig = ed25519.Sign(key, out)
	case *ecdsa.PrivateKey:
		digest := sha256.Sum256(out)
		x, y, err := ecdsa.Sign(rand.Reader, key, digest[:])
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
