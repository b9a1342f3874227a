package postgres

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/secret"
)

// TestScramVerifier holds the verifier against the exchange of RFC 7677 section
// 3: with what the server keeps, it has to accept that client's proof and make
// that signature.
func TestScramVerifier(t *testing.T) {
	t.Parallel()
	const (
		salt      = "W22ZaJ0SNY7soEsUEjb6gQ=="
		nonce     = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
		message   = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=" + nonce + ",s=" + salt + ",i=4096,c=biws,r=" + nonce
		proof     = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
		signature = "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
	)
	decode := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	verifier, err := scramVerifierWith(secret.New("pencil"), decode(salt), 4096)
	if err != nil {
		t.Fatal(err)
	}
	head, keys, _ := strings.Cut(strings.TrimPrefix(verifier.Reveal(), "SCRAM-SHA-256$"), "$")
	stored, server, _ := strings.Cut(keys, ":")
	if head != "4096:"+salt {
		t.Errorf("begins %q", head)
	}
	mac := func(key []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(message))
		return h.Sum(nil)
	}
	if got := base64.StdEncoding.EncodeToString(mac(decode(server))); got != signature {
		t.Errorf("the server would sign %s", got)
	}
	clientKey := decode(proof)
	for i, b := range mac(decode(stored)) {
		clientKey[i] ^= b
	}
	if sum := sha256.Sum256(clientKey); base64.StdEncoding.EncodeToString(sum[:]) != stored {
		t.Error("the server would refuse the client's proof")
	}
}

func TestPasswords(t *testing.T) {
	t.Parallel()
	a, b := newPassword(), newPassword()
	if a.Equal(b) || a.Len() != 43 || strings.Trim(a.Reveal(), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		t.Error("a password is 43 letters, digits, hyphens and underscores, each time others")
	}
}
