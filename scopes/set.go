package scopes

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	maxScopes    = 256
	maxScopeSize = 128 // bytes of one scope
)

// Parse reads a scope parameter or claim: scope tokens with single spaces
// between them (RFC 6749 section 3.3), no token twice. The empty text is no
// scopes.
func Parse(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	list := strings.Split(text, " ")
	if len(list) > maxScopes {
		return nil, fmt.Errorf("more than %d scopes", maxScopes)
	}
	for i, s := range list {
		if err := CheckToken(s); err != nil {
			return nil, err
		}
		if slices.Contains(list[:i], s) {
			return nil, fmt.Errorf("scope %q is there twice", s)
		}
	}
	return list, nil
}

// CheckToken reports whether s can be a scope token.
func CheckToken(s string) error {
	if s == "" {
		return errors.New("an empty scope, or more than one space between scopes")
	}
	if len(s) > maxScopeSize {
		return fmt.Errorf("a scope of more than %d bytes", maxScopeSize)
	}
	for i := range len(s) {
		// RFC 6749 section 3.3: %x21 / %x23-5B / %x5D-7E.
		if c := s[i]; c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return fmt.Errorf("scope %q has a character that no scope has", s)
		}
	}
	return nil
}
