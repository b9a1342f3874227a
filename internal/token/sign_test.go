package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"math/big"
	"strings"
	"testing"
	"time"
)

// RFC 6979 appendix A.2.5: P-256, SHA-256.
func TestSignaturesAreThoseOfTheirVectors(t *testing.T) {
	number := func(text string) []byte {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), number("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721"))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []struct{ message, r, s string }{
		{"sample", "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716", "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"},
		{"test", "F1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367", "019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083"},
	} {
		r, s, err := signES256(key, sha256.Sum256([]byte(v.message)))
		if err != nil {
			t.Fatal(err)
		}
		if r.Cmp(new(big.Int).SetBytes(number(v.r))) != 0 || s.Cmp(new(big.Int).SetBytes(number(v.s))) != 0 {
			t.Errorf("%s: r, s = %X, %X", v.message, r, s)
		}
	}
}

// Of the two signatures that each message has, ours are always the lower.
func TestSignaturesAreTheLowerOfTwo(t *testing.T) {
	w := newWorld(t, nil)
	half := new(big.Int).Rsh(elliptic.P256().Params().N, 1)
	for i := range 32 { // by chance alone: one in four thousand million
		raw, err := w.svc.Sign(t.Context(), ourClaims(w.clock.Now().Add(time.Duration(i)*time.Second)))
		if err != nil {
			t.Fatal(err)
		}
		text := raw.Reveal()
		sig, err := base64.RawURLEncoding.DecodeString(text[strings.LastIndexByte(text, '.')+1:])
		if err != nil || len(sig) != 64 {
			t.Fatalf("a signature of %d bytes, %v", len(sig), err)
		}
		if new(big.Int).SetBytes(sig[32:]).Cmp(half) > 0 {
			t.Fatal("a signature is the higher of the two")
		}
	}
}
