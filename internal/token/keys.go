package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/internal/strictjson"
)

// Bounds of a key set.
const (
	maxKeySet  = 512 << 10 // bytes
	maxKeys    = 100
	minRSABits = 2048
	maxRSABits = 8192
)

// Key is a public key with the one algorithm that it is for.
type Key struct {
	id     string
	alg    string
	public crypto.PublicKey
	lowS   bool // of two spellings of an ECDSA signature take one

	certificate *x509.Certificate // in place of public: what a client shows, or one of roots
	roots       *x509.CertPool    // authorities, all of a set
}

// Set is a set of keys of one party.
type Set struct {
	keys []*Key
	byID map[string]*Key
	all  *Key // found whatever is asked for
}

// find returns the key that a header names. Without a name there must be only
// one key for the algorithm.
func (s *Set) find(h joseHeader) *Key {
	if s.all != nil {
		return s.all
	}
	if h.kid != "" {
		return s.byID[h.kid]
	}
	var found *Key
	for _, k := range s.keys {
		if k.alg == h.alg {
			if found != nil {
				return nil
			}
			found = k
		}
	}
	return found
}

// jwkUse is what a JWK says of what it is for.
type jwkUse struct {
	Kty    string   `json:"kty"`
	Use    string   `json:"use"`
	KeyOps []string `json:"key_ops"`
	Alg    string   `json:"alg"`
	Kid    string   `json:"kid"`
	D      string   `json:"d"`
	K      string   `json:"k"`
}

// ParseKeys reads a JWK set (RFC 7517 section 5) for verifying. algs are the
// algorithms that are accepted; a key is for the one that it names, else for the
// one of them that fits it.
//
// Strictly, any key that is of no use is an error: so for what an administrator
// wrote. Otherwise such keys are left out, as issuers publish keys for other
// purposes too. Of keys that share an id none is taken.
func ParseKeys(data []byte, algs []string, strict bool) (*Set, error) {
	return parseSet(data, strict, func(raw []byte) (*Key, error) { return parseKeyFor(raw, "sig", algs) })
}

// parseSet reads a JWK set, each key by parse. Those that are for another use are left
// out, also strictly.
func parseSet(data []byte, strict bool, parse func(raw []byte) (*Key, error)) (*Set, error) {
	if len(data) > maxKeySet {
		return nil, fmt.Errorf("key set of more than %d bytes", maxKeySet)
	}
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := strictjson.DecodeKnown(data, &doc); err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	if len(doc.Keys) > maxKeys {
		return nil, fmt.Errorf("key set of more than %d keys", maxKeys)
	}
	s := &Set{byID: make(map[string]*Key)}
	taken := make(map[string]bool)
	for i, raw := range doc.Keys {
		k, err := parse(raw)
		if errors.Is(err, errOther) {
			continue
		}
		if err == nil && k.id != "" && taken[k.id] {
			delete(s.byID, k.id)
			s.keys = slices.DeleteFunc(s.keys, func(o *Key) bool { return o.id == k.id })
			err = fmt.Errorf("two keys with the id %q", k.id)
		}
		if err != nil {
			if strict {
				return nil, fmt.Errorf("key %d: %w", i+1, err)
			}
			continue
		}
		if k.id != "" {
			taken[k.id] = true
			s.byID[k.id] = k
		}
		s.keys = append(s.keys, k)
	}
	if len(s.keys) == 0 {
		return nil, errors.New("key set without a key that can be used")
	}
	return s, nil
}

func parseKeyFor(raw []byte, purpose string, algs []string) (*Key, error) {
	var use jwkUse
	if err := strictjson.DecodeKnown(raw, &use); err != nil {
		return nil, err
	}
	switch {
	case use.Kty == "oct" || use.K != "":
		return nil, errors.New("a symmetric key cannot tell who signed")
	case use.D != "":
		return nil, errors.New("a private key where a public one belongs")
	case use.Use != "" && use.Use != purpose:
		return nil, fmt.Errorf("its use is %q", use.Use)
	case use.KeyOps != nil && !slices.Contains(use.KeyOps, "verify"):
		return nil, errors.New("its key_ops do not include verify")
	case len(use.Kid) > 256:
		return nil, errors.New("an id of more than 256 bytes")
	}
	var j jose.JSONWebKey
	if err := j.UnmarshalJSON(raw); err != nil {
		return nil, fmt.Errorf("jwk: %w", err)
	}
	kty, err := checkKey(j.Key)
	if err != nil {
		return nil, err
	}
	k := &Key{id: use.Kid, public: j.Key}
	k.alg, err = pinAlgorithm(use.Alg, kty, algs)
	return k, err
}

// checkKey returns the type of a key that is fit for use.
func checkKey(key any) (kty string, err error) {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < minRSABits || n > maxRSABits || key.E < 3 || key.E%2 == 0 {
			return "", fmt.Errorf("an RSA key of %d bits and exponent %d", n, key.E)
		}
		return "RSA", nil
	case *ecdsa.PublicKey:
		return key.Params().Name, nil
	case ed25519.PublicKey:
		return "Ed25519", nil
	}
	return "", fmt.Errorf("a key of another kind: %T", key)
}

// pinAlgorithm finds the one algorithm that a key is for.
func pinAlgorithm(named, kty string, algs []string) (string, error) {
	var fit []string
	for _, a := range algs {
		if algorithms[a].kty == kty && (named == "" || named == a) {
			fit = append(fit, a)
		}
	}
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case len(fit) > 1:
		return "", fmt.Errorf("it names no algorithm, and of %v several would fit: name one", algs)
	case named != "":
		return "", fmt.Errorf("its algorithm %q is not accepted for its type", named)
	}
	return "", fmt.Errorf("none of the algorithms %v fits its type %s", algs, kty)
}

// checkAlgorithms reports an algorithm that does not exist, or must not be used.
func checkAlgorithms(algs []string) error {
	if len(algs) == 0 {
		return errors.New("algorithms: name at least one")
	}
	for _, a := range algs {
		if _, ok := algorithms[a]; !ok {
			return fmt.Errorf("algorithms: %q is none of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA", a)
		}
	}
	return nil
}
