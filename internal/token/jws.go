// Package token verifies the JWTs that others present, and signs ours.
//
// Signatures are verified with the standard library over bytes that were read
// one strict way: base64url without padding, spare bits or line breaks, a header
// without anything that would choose the key for us, and the algorithm that the
// key is for. go-jose reads and writes keys. The package decides nothing: whose
// tokens count for what is the broker's.
package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes of RS256 to ES512
	_ "crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/stint-dev/stint/internal/strictjson"
)

// MaxSize is the largest token that is looked at, in bytes.
const MaxSize = 16 << 10

// joseHeader is what a JOSE header may say to us.
type joseHeader struct {
	alg, kid, typ string
}

// jws is a JWS in compact serialisation, taken apart and not yet verified.
type jws struct {
	joseHeader
	input     string // what was signed
	payload   []byte
	signature []byte
}

// encoding refuses spare bits; line breaks, which it would skip, are refused
// before it.
var encoding = base64.RawURLEncoding.Strict()

func segment(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("a segment has a line break")
	}
	return encoding.DecodeString(s)
}

// parseJWS takes a token apart. Every spelling but the canonical one is an error:
// a token has one text, except that of two signatures of one ECDSA key both may
// verify.
func parseJWS(text string) (*jws, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("more than %d bytes", MaxSize)
	}
	if n := strings.Count(text, "."); n != 2 {
		return nil, fmt.Errorf("%d segments: no JWS in compact serialisation", n+1)
	}
	first, rest, _ := strings.Cut(text, ".")
	second, third, _ := strings.Cut(rest, ".")
	head, err := segment(first)
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	t := &jws{input: text[:len(first)+1+len(second)]}
	if t.joseHeader, err = parseHeader(head); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if t.payload, err = segment(second); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	if t.signature, err = segment(third); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return t, nil
}

// parseHeader reads a header. Parameters that bring or point to keys, that ask
// for extensions (RFC 7515 section 4.1.11), or that change how the payload is
// read are refused, never obeyed.
func parseHeader(data []byte) (h joseHeader, err error) {
	err = strictjson.Members(data, func(name string, value []byte) error {
		var to *string
		switch name {
		case "alg":
			to = &h.alg
		case "kid":
			to = &h.kid
		case "typ":
			to = &h.typ
		case "crit", "b64", "zip", "cty", "jwk", "jku", "x5u", "x5c", "enc", "p2c", "p2s", "epk":
			return fmt.Errorf("parameter %s is not accepted", name)
		default:
			return nil
		}
		text, ok := strictjson.Text(value)
		if !ok || len(text) > 256 {
			return fmt.Errorf("parameter %s is no text of at most 256 bytes", name)
		}
		*to = text
		return nil
	})
	if err == nil && h.alg == "" {
		err = errors.New("no alg")
	}
	return h, err
}

// algorithm is a signature algorithm (RFC 7518 section 3.1, RFC 8037).
type algorithm struct {
	hash  crypto.Hash
	kty   string // RSA, the name of a curve, or Ed25519
	pss   bool
	bytes int // of each half of an ECDSA signature
}

var algorithms = map[string]algorithm{
	"RS256": {crypto.SHA256, "RSA", false, 0},
	"RS384": {crypto.SHA384, "RSA", false, 0},
	"RS512": {crypto.SHA512, "RSA", false, 0},
	"PS256": {crypto.SHA256, "RSA", true, 0},
	"PS384": {crypto.SHA384, "RSA", true, 0},
	"PS512": {crypto.SHA512, "RSA", true, 0},
	"ES256": {crypto.SHA256, "P-256", false, 32},
	"ES384": {crypto.SHA384, "P-384", false, 48},
	"ES512": {crypto.SHA512, "P-521", false, 66},
	"EdDSA": {0, "Ed25519", false, 0},
}

var errSignature = errors.New("the signature does not verify")

// verify checks the signature with a key. The algorithm is the key's, and the
// header only has to agree.
func (t *jws) verify(k *Key) error {
	if t.alg != k.alg {
		return fmt.Errorf("signed by %q, the key is for %s", t.alg, k.alg)
	}
	a := algorithms[k.alg]
	input := []byte(t.input)
	if pub, ok := k.public.(ed25519.PublicKey); ok {
		if !ed25519.Verify(pub, input, t.signature) {
			return errSignature
		}
		return nil
	}
	h := a.hash.New()
	h.Write(input)
	digest := h.Sum(nil)
	switch pub := k.public.(type) {
	case *rsa.PublicKey:
		if a.pss {
			return wrong(rsa.VerifyPSS(pub, a.hash, digest, t.signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
		}
		return wrong(rsa.VerifyPKCS1v15(pub, a.hash, digest, t.signature))
	case *ecdsa.PublicKey:
		return verifyECDSA(pub, a.bytes, digest, t.signature, k.lowS)
	}
	return errSignature
}

func wrong(err error) error {
	if err != nil {
		return errSignature
	}
	return nil
}

// verifyECDSA checks a signature of two halves. (r, s) and (r, n-s) are both
// signatures of one message; lowS accepts one of them only.
func verifyECDSA(pub *ecdsa.PublicKey, n int, digest, sig []byte, lowS bool) error {
	if len(sig) != 2*n {
		return errSignature
	}
	r, s := new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])
	if lowS && isHigh(pub, s) {
		return errors.New("the signature is the other of two spellings")
	}
	if !ecdsa.Verify(pub, digest, r, s) {
		return errSignature
	}
	return nil
}

func isHigh(pub *ecdsa.PublicKey, s *big.Int) bool {
	return new(big.Int).Lsh(s, 1).Cmp(pub.Params().N) > 0
}
