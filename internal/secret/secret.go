// Package secret holds a string that cannot be printed.
//
// Tokens, keys and passwords are [String] from the moment they are read to the
// moment they are used. The package does not encrypt, and does not wipe memory:
// it only makes sure that no log, error, metric or JSON document shows the value
// unless somebody wrote Reveal on that line.
package secret

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"log/slog"
)

// redacted is what every way of printing a String shows.
const redacted = "[secret]"

// String is a secret value. The zero value is the empty secret.
//
// The text is held behind a pointer: package fmt cannot call methods on values
// in unexported fields, and then prints an address instead of the text.
type String struct{ p *string }

// New makes a secret of s.
func New(s string) String {
	if s == "" {
		return String{}
	}
	return String{p: &s}
}

// Reveal returns the text. Call it on the line that needs it, and nowhere else.
func (s String) Reveal() string {
	if s.p == nil {
		return ""
	}
	return *s.p
}

// Empty reports whether there is no text.
func (s String) Empty() bool { return s.p == nil }

// Len returns the length of the text in bytes.
func (s String) Len() int { return len(s.Reveal()) }

// Digest returns the lower-case hexadecimal SHA-256 of the text, which may be
// logged and recorded. It is no protection for a secret that can be guessed.
func (s String) Digest() string {
	sum := sha256.Sum256([]byte(s.Reveal()))
	return hex.EncodeToString(sum[:])
}

// Equal compares two secrets in time that depends only on their lengths.
func (s String) Equal(t String) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(t.Reveal())) == 1
}

// String implements [fmt.Stringer] without the text.
func (s String) String() string { return redacted }

// Format implements [fmt.Formatter] without the text, for every verb and flag.
func (s String) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue implements [slog.LogValuer] without the text.
func (s String) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements [encoding.TextMarshaler] without the text. It serves
// JSON and YAML too: a secret that must travel is revealed by hand.
func (s String) MarshalText() ([]byte, error) { return []byte(redacted), nil }
