package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/stint-dev/stint/internal/secret"
)

// scramIterations is PostgreSQL's own default and the least that RFC 7677 section
// 4 recommends. A password of 256 random bits cannot be guessed with fewer either,
// and fewer would be faster; but some drivers refuse them.
const scramIterations = 4096

// newPassword returns 256 random bits as 43 letters, digits, hyphens and
// underscores, which no shell, URL or connection string has to quote, and which
// SASLprep (RFC 4013) leaves as they are.
func newPassword() secret.String {
	var b [32]byte
	_, _ = rand.Read(b[:]) // does not fail: see crypto/rand
	return secret.New(base64.RawURLEncoding.EncodeToString(b[:]))
}

// scramVerifier returns what PostgreSQL keeps of a password (RFC 5802 section 3,
// with the form of pg_authid.rolpassword), so that the password itself never
// appears in SQL, in a log or in pg_stat_statements.
func scramVerifier(password secret.String) (secret.String, error) {
	var salt [16]byte
	_, _ = rand.Read(salt[:])
	return scramVerifierWith(password, salt[:], scramIterations)
}

func scramVerifierWith(password secret.String, salt []byte, iterations int) (secret.String, error) {
	salted, err := pbkdf2.Key(sha256.New, password.Reveal(), salt, iterations, sha256.Size)
	if err != nil {
		return secret.String{}, fmt.Errorf("derive key: %w", err)
	}
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return secret.New(fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac("Server Key")))), nil
}
