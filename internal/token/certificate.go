package token

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// KeyKind is what a key set is read as.
type KeyKind int

// The kinds of key sets.
const (
	// Keys are public keys that sign.
	Keys KeyKind = iota
	// Certificates are those that a client shows itself (RFC 8705 section 2.2).
	Certificates
	// JWTBundle and X509Bundle are the parts of a SPIFFE bundle: keys that sign
	// JWT-SVIDs, and authorities that sign X.509-SVIDs.
	JWTBundle
	X509Bundle
)

// bundleAlgorithms are those of JWT-SVIDs that we take. A key in a bundle names none
// (SPIFFE JWT-SVID section 6.2), so that there is one for each type.
var bundleAlgorithms = []string{"RS256", "ES256", "ES384", "ES512"}

// minRefresh bounds spiffe_refresh_hint from below.
const minRefresh = 30 * time.Second

// parseKind reads a key set as what it is for.
func parseKind(data []byte, kind KeyKind, algs []string, strict bool) (*Set, error) {
	switch kind {
	case Certificates:
		return parseSet(data, strict, parseCertificate)
	case JWTBundle:
		return parseSet(data, strict, parseBundleKey)
	case X509Bundle:
		s, err := parseSet(data, strict, parseAuthority)
		if err != nil {
			return nil, err
		}
		return authorities(s), nil
	}
	return ParseKeys(data, algs, strict)
}

// authorities makes one key of many, whichever is asked for.
func authorities(s *Set) *Set {
	all := &Key{roots: x509.NewCertPool()}
	for _, k := range s.keys {
		all.roots.AddCert(k.certificate)
	}
	return &Set{all: all}
}

// errOther is for keys in a bundle that are for something else.
var errOther = errors.New("for another use")

// useOf reads what a key is for.
func useOf(raw []byte) (use jwkUse, err error) {
	err = strictjson.DecodeKnown(raw, &use)
	return use, err
}

// parseBundleKey reads a key for JWT-SVIDs.
func parseBundleKey(raw []byte) (*Key, error) {
	switch use, err := useOf(raw); {
	case err != nil:
		return nil, err
	case use.Use != "jwt-svid":
		return nil, errOther
	case use.Kid == "":
		return nil, errors.New("a key of a bundle without an id")
	}
	return parseKeyFor(raw, "jwt-svid", bundleAlgorithms)
}

// certificateOf reads the certificate of a key, which go-jose holds against the key.
func certificateOf(raw []byte) (*x509.Certificate, error) {
	var j jose.JSONWebKey
	if err := j.UnmarshalJSON(raw); err != nil {
		return nil, fmt.Errorf("jwk: %w", err)
	}
	if !j.IsPublic() {
		return nil, errors.New("a private key where a public one belongs")
	}
	if len(j.Certificates) == 0 {
		return nil, errors.New("no certificate (x5c)")
	}
	return j.Certificates[0], nil
}

// parseCertificate reads a client's own certificate: it is found by its thumbprint.
func parseCertificate(raw []byte) (*Key, error) {
	c, err := certificateOf(raw)
	if err != nil {
		return nil, err
	}
	return &Key{id: broker.Thumbprint(c), certificate: c}, nil
}

// parseAuthority reads an authority of a bundle (SPIFFE Trust Domain and Bundle section
// 4.2): one certificate each.
func parseAuthority(raw []byte) (*Key, error) {
	use, err := useOf(raw)
	if err != nil {
		return nil, err
	}
	if use.Use != "x509-svid" {
		return nil, errOther
	}
	c, err := certificateOf(raw)
	if err != nil {
		return nil, err
	}
	return &Key{id: broker.Thumbprint(c), certificate: c}, checkAuthority(c)
}

// ParseAuthorities reads the certificates of authorities in PEM, strictly.
func ParseAuthorities(data []byte) (all []*x509.Certificate, err error) {
	if len(data) > maxKeySet {
		return nil, fmt.Errorf("more than %d bytes", maxKeySet)
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a %s where certificates belong", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err == nil {
			err = checkAuthority(c)
		}
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(all)+1, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 || len(all) > maxKeys {
		return nil, fmt.Errorf("%d certificates", len(all))
	}
	return all, nil
}

func checkAuthority(c *x509.Certificate) error {
	if !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("%s is no authority, which may sign certificates", printable(c.Subject.String()))
	}
	return nil
}

// source is where the keys come from.
func (k ClientKeys) source(client *http.Client, now func() time.Time) (*source, error) {
	switch {
	case k.JWKSURI != "":
		return &source{jwksURI: k.JWKSURI, algs: broker.ClientAlgorithms, kind: k.Kind, client: client, now: now}, nil
	case k.Authorities != nil:
		all, err := ParseAuthorities(k.Authorities)
		set := &Set{}
		for _, c := range all {
			set.keys = append(set.keys, &Key{certificate: c})
		}
		return fixed(authorities(set)), err
	}
	set, err := k.Parse()
	return &source{set: set, kind: k.Kind}, err
}

// Parse reads keys that were given, strictly.
func (k ClientKeys) Parse() (*Set, error) {
	return parseKind(k.JWKS, k.Kind, broker.ClientAlgorithms, true)
}

// Certificate implements [broker.Tokens].
func (s *Service) Certificate(ctx context.Context, clientID string, chain []*x509.Certificate) error {
	from := s.certificates[clientID]
	if from == nil || len(chain) == 0 {
		return refuse("client %q has no certificates", printable(clientID))
	}
	leaf, now := chain[0], s.cfg.Now()
	switch { // also of a certificate that nobody signed
	case now.Before(leaf.NotBefore):
		return refuse("the certificate is good only from %s on", leaf.NotBefore.Format(time.DateTime))
	case now.After(leaf.NotAfter):
		return refuse("the certificate expired on %s", leaf.NotAfter.Format(time.DateTime))
	}
	k, _, err := from.find(ctx, joseHeader{kid: broker.Thumbprint(leaf)})
	switch {
	case err != nil:
		return keyError(err)
	case k == nil:
		return refuse("it is none of the certificates of client %s", clientID)
	case k.roots == nil: // it is the certificate that was registered (RFC 8705 section 2.2)
		return nil
	case leaf.IsCA:
		return refuse("it is the certificate of an authority")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: k.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return refuse("%w", err)
	}
	return nil
}

// IssuerOf implements [broker.Tokens].
func (s *Service) IssuerOf(raw secret.String) string {
	t, err := parseJWS(raw.Reveal())
	if err != nil {
		return ""
	}
	iss, err := issuerOf(t.payload)
	if err != nil {
		return ""
	}
	return iss
}

// confirmation reads cnf: of what it can hold, x5t#S256 alone is known (RFC 8705
// section 3.1).
func confirmation(value []byte) (thumbprint string) {
	_ = strictjson.Members(value, func(name string, v []byte) (err error) {
		if name == "x5t#S256" {
			thumbprint, err = text(v)
		}
		return err
	})
	return thumbprint
}
