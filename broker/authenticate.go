package broker

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/stint-dev/stint/internal/secret"
)

// Credentials are what a client presented to prove who it is.
type Credentials struct {
	// Method is client_secret_basic or client_secret_post, private_key_jwt for any
	// assertion of RFC 7523, spiffe_jwt for one of SPIFFE, or [ByTLS].
	Method string
	// ID is the client_id; with an assertion it may be empty. Of a client with a
	// SPIFFE ID it may be that.
	ID        string
	Secret    secret.String
	Assertion secret.String
	// Chain is the certificate that the caller's connection was made with, whose key
	// has been proven, and those that came with it. Nothing else of it is known.
	Chain []*x509.Certificate
}

// ByTLS is the method of who presents nothing in the request, but has a certificate.
// Which of those methods it comes to is the client's registration to say.
const ByTLS = "tls"

// secretPrefix names how a client's secret is hashed. Secrets are 256 random
// bits, so that one keyed hash is enough: there is nothing to guess, and a slow
// hash would be a lever for whoever wants to keep us busy.
const secretPrefix = "hmac-sha256:"

// secretLen is the length of a secret that we make: 256 bits in base64url.
const secretLen = 43

// NewClientSecret makes a secret for a client, of 256 random bits, and its hash
// for the configuration. key is the installation's key for client secrets.
func NewClientSecret(key []byte) (s secret.String, hash string) {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	text := base64.RawURLEncoding.EncodeToString(raw[:])
	return secret.New(text), secretPrefix + base64.RawURLEncoding.EncodeToString(secretHash(key, text))
}

func secretHash(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

func parseSecretHash(text string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(text, secretPrefix)
	hash, err := base64.RawURLEncoding.DecodeString(encoded)
	if !ok || err != nil || len(hash) != sha256.Size {
		// It is not repeated: it may be the secret itself.
		return nil, errors.New("what stands there is no hash; `stint clients add` makes one")
	}
	return hash, nil
}

// badClient is the one thing that whoever fails to authenticate is told.
func badClient(format string, args ...any) *Error {
	return Fail(BadClient, fmt.Errorf(format, args...), "client authentication failed")
}

// AuthenticateClient checks a client's credentials. Errors: BadClient, whatever
// was wrong; Unavailable, if keys or the memory of used assertions could not be
// had.
func (b *Broker) AuthenticateClient(ctx context.Context, c Credentials) (*Client, error) {
	switch c.Method {
	case methodKeyJWT:
		return b.authenticateAssertion(ctx, c)
	case methodSPIFFEJWT:
		return b.authenticateSVID(ctx, c)
	case ByTLS:
		return b.authenticateCertificate(ctx, c)
	}
	client := b.reg.Clients[c.ID]
	got := secretHash(b.cfg.ClientSecretKey, c.Secret.Reveal()) // always, so that time tells nothing
	switch {
	case client == nil:
		return nil, badClient("there is no client %s", b.reg.clientNamed(c.ID))
	case b.reg.clientOff(client):
		return nil, badClient("client %s is disabled", client.ID)
	case client.Auth.Method != c.Method:
		return nil, badClient("client %s authenticates by %s, not %s", client.ID, client.Auth.Method, c.Method)
	}
	for _, h := range client.Auth.SecretHashes {
		if want, err := parseSecretHash(h); err == nil && hmac.Equal(got, want) {
			return client, nil
		}
	}
	return nil, badClient("client %s: wrong secret", client.ID)
}

// clientNamed is how a log and the record show what somebody gave as a client_id:
// a client's own as it is, and of others a digest of whatever could be a secret.
// Who has the two the wrong way round sends the secret in the id's place.
func (r *Registry) clientNamed(id string) string {
	switch {
	case id == "":
		return "(none)"
	case r.Clients[id] != nil, checkID(id) == nil && !looksSecret(id):
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "unknown:" + hex.EncodeToString(sum[:8])
}

// looksSecret reports whether a text could be a secret rather than a name: it is
// as long as those that we make, or is long and all of one piece, or mixes
// capitals, small letters and digits.
func looksSecret(s string) bool {
	if len(s) >= secretLen || len(s) >= 32 && !strings.ContainsAny(s, "-._") {
		return true
	}
	has := func(from, to byte) bool {
		return strings.ContainsFunc(s, func(r rune) bool { return r >= rune(from) && r <= rune(to) })
	}
	return len(s) >= 16 && has('0', '9') && has('a', 'z') && has('A', 'Z')
}

// maxAssertionLife is how long a client assertion may be valid, from now.
const maxAssertionLife = 10 * time.Minute

// authenticateAssertion checks an assertion of RFC 7523 section 3, and of its
// revision that the audience is our issuer identifier and nothing else.
func (b *Broker) authenticateAssertion(ctx context.Context, c Credentials) (*Client, error) {
	client := b.reg.Clients[c.ID]
	if c.ID != "" && (client == nil || client.Auth.Method != c.Method && client.Auth.Method != methodKubernetes) {
		return nil, badClient("no client %s that authenticates by %s", b.reg.clientNamed(c.ID), c.Method)
	}
	// By whose keys is for the registration to say, and only without a client_id for
	// the assertion: an issuer is a URL, which no client's id is.
	if client != nil && client.Auth.Method == methodKubernetes || client == nil && b.reg.Issuers[b.tokens.IssuerOf(c.Assertion)] != nil {
		return b.authenticateWorkload(ctx, c)
	}
	t, err := b.tokens.Assertion(ctx, c.ID, c.Assertion)
	if err != nil {
		return nil, b.badAssertion(c.ID, err)
	}
	client = b.reg.Clients[t.Subject]
	switch {
	case client == nil || client.Auth.Method != c.Method:
		return nil, badClient("no client %s that authenticates by %s", b.reg.clientNamed(t.Subject), c.Method)
	case b.reg.clientOff(client):
		return nil, badClient("client %s is disabled", client.ID)
	case t.Issuer != client.ID || c.ID != "" && c.ID != client.ID:
		return nil, badClient("client %s: assertion of issuer %s for client %s", client.ID, b.reg.clientNamed(t.Issuer), b.reg.clientNamed(c.ID))
	case len(t.Audience) != 1 || t.Audience[0] != b.reg.Self:
		return nil, badClient("client %s: assertion for %q, not for %s alone", client.ID, t.Audience, b.reg.Self)
	case t.Type != "" && !strings.EqualFold(t.Type, "JWT") && t.Type != "client-authentication+jwt":
		return nil, badClient("client %s: assertion of type %q", client.ID, printable(t.Type))
	case t.ID == "" || len(t.ID) > 256:
		return nil, badClient("client %s: assertion without a jti of 1 to 256 bytes", client.ID)
	case t.Expires.After(b.now().Add(maxAssertionLife)):
		return nil, badClient("client %s: assertion valid for more than %s", client.ID, maxAssertionLife)
	}
	if b.mayBeUsed(t) {
		return nil, unavailable(fmt.Errorf("client %s: assertion of before the store lost data, so that nobody knows whether it was used", client.ID))
	}
	// Last of all: an assertion that is refused for another reason is not used up.
	first, err := b.once.Use(ctx, "client-assertion", client.ID+"\x00"+t.ID, t.Expires.Add(b.cfg.Skew))
	if err != nil {
		return nil, unavailable(fmt.Errorf("remember assertion: %w", err))
	}
	if !first {
		return nil, badClient("client %s: assertion used before", client.ID)
	}
	return client, nil
}

// badAssertion is the error for an assertion that is not what it should be.
func (b *Broker) badAssertion(id string, err error) error {
	if CodeOf(err) == Unavailable {
		return err
	}
	return badClient("client %s: assertion: %w", b.reg.clientNamed(id), err)
}

// mayBeUsed reports whether the store may have forgotten that an assertion was used:
// it may be of before a loss, by its own time, or for as long as one could live.
func (b *Broker) mayBeUsed(t *Token) bool {
	at := b.index.Loss().At
	return !at.IsZero() && !t.IssuedAt.After(at.Add(b.cfg.Skew)) && !b.now().After(at.Add(maxAssertionLife+b.cfg.Skew))
}

// unavailable is the error for something that is needed and down.
func unavailable(err error) *Error {
	if e := (*Error)(nil); errors.As(err, &e) && e.Code == Unavailable {
		return e
	}
	e := Fail(Unavailable, err, "something that is needed is unavailable; try again, with a new client assertion if there was one")
	e.RetryAfter = time.Second
	return e
}

// printable cuts what a stranger sent down to what a log can bear.
func printable(s string) string {
	if len(s) > 64 {
		s = strings.ToValidUTF8(s[:64], "") + "..."
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?' // what a terminal would obey, or a line of a log end with
		}
		return r
	}, s)
}
