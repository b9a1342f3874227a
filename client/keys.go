package client

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"fmt"
	"math/big"
	"sync"
	"time"
)

const (
	keysFresh   = 5 * time.Minute  // after that the next check reads them again
	keysStale   = time.Hour        // after that nothing is verified with them
	keysPause   = 10 * time.Second // between two attempts, whatever is asked for
	maxKeys     = 64
	fetchBudget = 15 * time.Second
)

// keyCache keeps Stint's public keys.
type keyCache struct {
	client *Client
	flight flight

	mu    sync.Mutex
	keys  map[string]publicKey
	read  time.Time // when they were read; zero: never
	tried time.Time
}

type publicKey struct {
	alg string
	key crypto.PublicKey
}

// find returns the key of an id, and reads the keys when there is reason to: they
// are not known, old, or none has this id. Errors: *Unavailable.
func (k *keyCache) find(ctx context.Context, id string) (key publicKey, ok bool, err error) {
	now := k.client.cfg.Now()
	k.mu.Lock()
	key, ok = k.keys[id]
	age, since := now.Sub(k.read), now.Sub(k.tried)
	never := k.read.IsZero()
	k.mu.Unlock()
	current := !never && age < keysStale && age >= 0
	switch {
	case ok && current && age < keysFresh:
		return key, true, nil
	case !never && since < keysPause && since >= 0:
		if current {
			return key, ok, nil
		}
		return publicKey{}, false, &Unavailable{RetryAfter: keysPause - since, Err: fmt.Errorf("the keys of %s are %v old", k.client.cfg.Issuer, age)}
	}
	err = k.flight.do(ctx, k.load)
	k.mu.Lock()
	defer k.mu.Unlock()
	if key, ok = k.keys[id]; err != nil && !(ok && current) {
		return publicKey{}, false, unavailable(err)
	}
	return key, ok, nil
}

// load reads the keys. The old ones stay if that fails.
func (k *keyCache) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchBudget)
	defer cancel()
	k.mu.Lock()
	k.tried = k.client.cfg.Now()
	k.mu.Unlock()
	meta, err := k.client.metadata(ctx)
	if err != nil {
		return err
	}
	var set struct {
		Keys []jwk `json:"keys"`
	}
	if err := k.client.get(ctx, meta.Keys, &set); err != nil {
		return fmt.Errorf("keys of %s: %w", k.client.cfg.Issuer, err)
	}
	if len(set.Keys) > maxKeys {
		return fmt.Errorf("keys of %s: there are %d of them, more than %d", k.client.cfg.Issuer, len(set.Keys), maxKeys)
	}
	keys := make(map[string]publicKey)
	for _, j := range set.Keys {
		if key, ok := j.public(); ok && j.ID != "" {
			keys[j.ID] = key
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys, k.read = keys, k.client.cfg.Now()
	return nil
}

// jwk is a public key (RFC 7517 section 4).
type jwk struct {
	Type  string `json:"kty"`
	Curve string `json:"crv"`
	ID    string `json:"kid"`
	Use   string `json:"use"`
	X     string `json:"x"`
	Y     string `json:"y"`
}

// public returns the key, if it is of a kind that Stint signs with.
func (j jwk) public() (publicKey, bool) {
	x, err := base64.RawURLEncoding.Strict().DecodeString(j.X)
	if err != nil || len(x) != 32 || j.Use != "" && j.Use != "sig" {
		return publicKey{}, false
	}
	switch {
	case j.Type == "OKP" && j.Curve == "Ed25519":
		return publicKey{"EdDSA", ed25519.PublicKey(x)}, true
	case j.Type == "EC" && j.Curve == "P-256":
		y, err := base64.RawURLEncoding.Strict().DecodeString(j.Y)
		if err != nil || len(y) != 32 {
			return publicKey{}, false
		}
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
		return publicKey{"ES256", key}, err == nil
	}
	return publicKey{}, false
}

// good reports whether a signature is one of the key.
func (p publicKey) good(alg string, signed, signature []byte) bool {
	if alg != p.alg || len(signature) != 64 {
		return false
	}
	switch key := p.key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(key, signed, signature)
	case *ecdsa.PublicKey:
		digest := crypto.SHA256.New()
		digest.Write(signed)
		r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
		return ecdsa.Verify(key, digest.Sum(nil), r, s)
	}
	return false
}
