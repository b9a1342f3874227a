package entra

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// authenticate adds how an app proves that it is itself: a secret, or an assertion that
// it signs (RFC 7523 section 2.2).
func (p *provider) authenticate(ctx context.Context, by App, form url.Values) error {
	if by.Certificate == "" {
		s, err := p.deps.Secret(ctx, by.ClientSecret)
		if err != nil {
			return fmt.Errorf("read client_secret: %w", err)
		}
		form.Set("client_secret", s.Reveal())
		return nil
	}
	s, err := p.deps.Secret(ctx, by.Certificate)
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	signed, err := p.sign(by.ClientID, s)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	form.Set("client_assertion_type", assertionType)
	form.Set("client_assertion", signed.Reveal())
	return nil
}

// sign makes an assertion of an app's by PS256, which names the certificate by its
// SHA-256.
func (p *provider) sign(clientID string, bundle secret.String) (secret.String, error) {
	der, key, err := bundled(bundle)
	if err != nil {
		return secret.String{}, err
	}
	thumbprint := sha256.Sum256(der)
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	now := p.deps.Now()
	header, err1 := strictjson.Encode(map[string]any{
		"alg": "PS256", "typ": "JWT", "x5t#S256": base64.RawURLEncoding.EncodeToString(thumbprint[:]),
	})
	claims, err2 := strictjson.Encode(map[string]any{
		"aud": p.tokenURL(), "iss": clientID, "sub": clientID, "jti": base64.RawURLEncoding.EncodeToString(id[:]),
		"nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	})
	if err := errors.Join(err1, err2); err != nil {
		return secret.String{}, err
	}
	text := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	if err != nil {
		return secret.String{}, errors.New("the key does not sign")
	}
	return secret.New(text + "." + base64.RawURLEncoding.EncodeToString(signature)), nil
}

// bundled reads a certificate and its key, in any order.
func bundled(bundle secret.String) (certificate []byte, key *rsa.PrivateKey, err error) {
	rest := []byte(bundle.Reveal())
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE":
			if certificate == nil { // the first is its own, others sign it
				certificate = block.Bytes
			}
		case "PRIVATE KEY":
			if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
				key, _ = k.(*rsa.PrivateKey)
			}
		case "RSA PRIVATE KEY":
			key, _ = x509.ParsePKCS1PrivateKey(block.Bytes)
		}
	}
	if certificate == nil || key == nil {
		return nil, nil, errors.New("there is no certificate with an RSA key")
	}
	c, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, nil, errors.New("the certificate cannot be read")
	}
	if public, ok := c.PublicKey.(*rsa.PublicKey); !ok || !public.Equal(&key.PublicKey) {
		return nil, nil, errors.New("the key is not the certificate's")
	}
	return certificate, key, nil
}
