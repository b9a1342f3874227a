package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
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

// Our claim is written by hand as the encoder would write it, field by field: one
// that is new and forgotten here would be missing from every token.
func TestOurClaimIsWhatTheEncoderWrites(t *testing.T) {
	full := broker.StintClaim{
		Version: 1, Pos: "1.2", Policy: `p"<é`, Session: "s", Agent: "a\n", Tool: "t", Arguments: "x", Once: true, By: []string{"t:x"},
		Root: &broker.RootClaim{Issuer: "https://idp.test", ID: "j", Agent: "g", Time: 7}, Via: []broker.HopClaim{{ID: "h"}}, Claims: map[string]string{"c": "v"},
		Call: &broker.CallClaim{Provider: "p", Grant: "g", Resource: "r"},
	}
	check := func(what string, c broker.StintClaim) {
		t.Helper()
		got, err := appendStint(nil, &c)
		if err != nil {
			t.Fatal(err)
		}
		var back broker.StintClaim
		if err := json.Unmarshal(got, &back); err != nil || !reflect.DeepEqual(back, c) {
			t.Errorf("%s: %s reads back as %+v, %v", what, got, back, err)
		}
	}
	check("nothing", broker.StintClaim{})
	check("all", full)
	seldom := map[string]bool{"Once": true, "By": true, "Via": true, "Claims": true, "Call": true}
	common := broker.StintClaim{}
	for i := range reflect.TypeFor[broker.StintClaim]().NumField() {
		f := reflect.TypeFor[broker.StintClaim]().Field(i)
		value := reflect.ValueOf(full).Field(i)
		if value.IsZero() {
			t.Errorf("the test has no value for %s", f.Name)
		}
		var one broker.StintClaim
		reflect.ValueOf(&one).Elem().Field(i).Set(value)
		check(f.Name, one)
		if !seldom[f.Name] {
			reflect.ValueOf(&common).Elem().Field(i).Set(value)
		}
	}
	check("what is written by hand", common)
	common.Root = &broker.RootClaim{Issuer: "i", ID: "j"}
	check("a root without an agent", common)
}
