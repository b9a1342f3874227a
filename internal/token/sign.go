package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strconv"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// Sign implements [broker.Tokens]. The payload is assembled by hand: it is on
// the path of every exchange, and has one form.
func (s *Service) Sign(_ context.Context, c *broker.Claims) (secret.String, error) {
	b := make([]byte, 0, 1024)
	b = append(b, `{"iss":`...)
	b = strictjson.AppendString(b, c.Issuer)
	b = member(b, "sub", c.Subject)
	b = member(b, "aud", c.Audience)
	b = member(b, "client_id", c.ClientID)
	b = member(b, "jti", c.ID)
	b = number(b, "iat", c.IssuedAt.Unix())
	b = number(b, "exp", c.Expires.Unix())
	if !c.AuthTime.IsZero() {
		b = number(b, "auth_time", c.AuthTime.Unix())
	}
	if len(c.Scope) > 0 {
		b = append(b, `,"scope":"`...)
		for i, scope := range c.Scope { // scope tokens need no escapes (RFC 6749 section 3.3)
			if i > 0 {
				b = append(b, ' ')
			}
			b = append(b, scope...)
		}
		b = append(b, '"')
	}
	if len(c.Groups) > 0 {
		b = append(b, `,"groups":[`...)
		for i, g := range c.Groups {
			if i > 0 {
				b = append(b, ',')
			}
			b = strictjson.AppendString(b, g)
		}
		b = append(b, ']')
	}
	b = act(b, c.Actors)
	if len(c.Details) > 0 {
		b = append(append(b, `,"authorization_details":`...), c.Details...)
	}
	if c.Certificate != "" { // RFC 8705 section 3.1
		b = append(append(append(b, `,"cnf":{"x5t#S256":"`...), c.Certificate...), `"}`...)
	}
	b, err := appendStint(append(b, `,"stint":`...), &c.Stint)
	if err != nil {
		return secret.String{}, fmt.Errorf("encode claims: %w", err)
	}
	b = append(b, '}')
	if n := len(b)*4/3 + 256; n > MaxSize {
		return secret.String{}, fmt.Errorf("a token of more than %d bytes", MaxSize)
	}
	text, err := s.ring.sign(b)
	return secret.New(text), err
}

// appendStint writes our own claim. What few tokens have is left to the encoder.
func appendStint(b []byte, c *broker.StintClaim) ([]byte, error) {
	if c.Once || c.By != nil || c.Via != nil || c.Claims != nil || c.Call != nil {
		claim, err := json.Marshal(c)
		return append(b, claim...), err
	}
	b = strconv.AppendInt(append(b, `{"v":`...), int64(c.Version), 10)
	b = member(b, "pos", c.Pos)
	for _, m := range [...]struct{ name, value string }{
		{"pol", c.Policy}, {"ses", c.Session}, {"agt", c.Agent}, {"tool", c.Tool}, {"args", c.Arguments},
	} {
		if m.value != "" {
			b = member(b, m.name, m.value)
		}
	}
	if r := c.Root; r != nil {
		b = append(b, `,"root":{"iss":`...)
		b = strictjson.AppendString(b, r.Issuer)
		b = member(b, "jti", r.ID)
		if r.Agent != "" {
			b = member(b, "agt", r.Agent)
		}
		b = append(number(b, "at", r.Time), '}')
	}
	return append(b, '}'), nil
}

func member(b []byte, name, value string) []byte {
	b = append(append(append(b, `,"`...), name...), `":`...)
	return strictjson.AppendString(b, value)
}

func number(b []byte, name string, n int64) []byte {
	b = append(append(append(b, `,"`...), name...), `":`...)
	return strconv.AppendInt(b, n, 10)
}

// act nests the actors, the present one outermost (RFC 8693 section 4.1).
func act(b []byte, chain []broker.Actor) []byte {
	for _, a := range chain {
		b = append(b, `,"act":{"iss":`...)
		b = strictjson.AppendString(b, a.Issuer)
		b = member(b, "sub", a.Subject)
	}
	for range chain {
		b = append(b, '}')
	}
	return b
}

// signES256 signs with the nonce that key and digest determine (RFC 6979): no
// random number can be bad, and it takes three quarters of the time.
func signES256(key *ecdsa.PrivateKey, digest [sha256.Size]byte) (x, y *big.Int, err error) {
	der, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, nil, err
	}
	var inner cryptobyte.String
	x, y = new(big.Int), new(big.Int)
	input := cryptobyte.String(der)
	if !input.ReadASN1(&inner, asn1.SEQUENCE) || !inner.ReadASN1Integer(x) || !inner.ReadASN1Integer(y) {
		return nil, nil, errors.New("a signature that is none")
	}
	return x, y, nil
}
