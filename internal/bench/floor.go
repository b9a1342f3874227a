package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/audit"
)

// floor is the least that an exchange costs: one echo handler that parses the
// form, verifies RS256 and signs ES256 with the standard library. At /synced it
// writes and syncs a file before it answers as well, as one does that keeps a record;
// at /recorded it does so with Stint's journal.
func floor(addr, keyFile string) error {
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return errors.New("no key")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return err
	}
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public := parsed.(*rsa.PublicKey)
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"at+jwt","kid":"0123456789"}`)) + "."
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.GET("/readyz", func(c echo.Context) error { return c.NoContent(http.StatusOK) })
	exchange := func(c echo.Context) error {
		raw := c.FormValue("subject_token")
		last := strings.LastIndexByte(raw, '.')
		if last < 0 {
			return c.NoContent(http.StatusBadRequest)
		}
		signature, err := base64.RawURLEncoding.DecodeString(raw[last+1:])
		if err != nil {
			return c.NoContent(http.StatusBadRequest)
		}
		sum := sha256.Sum256([]byte(raw[:last]))
		if rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], signature) != nil {
			return c.NoContent(http.StatusBadRequest)
		}
		_, body, _ := strings.Cut(raw[:last], ".")
		signed := header + body
		sum = sha256.Sum256([]byte(signed))
		r, s, err := ecdsa.Sign(rand.Reader, signer, sum[:])
		if err != nil {
			return err
		}
		var both [64]byte
		r.FillBytes(both[:32])
		s.FillBytes(both[32:])
		return c.JSON(http.StatusOK, struct {
			AccessToken string `json:"access_token"`
			Type        string `json:"issued_token_type"`
			TokenType   string `json:"token_type"`
			ExpiresIn   int    `json:"expires_in"`
			Scope       string `json:"scope"`
		}{signed + "." + base64.RawURLEncoding.EncodeToString(both[:]), "urn:ietf:params:oauth:token-type:access_token", "Bearer", 300, "s1 s7"})
	}
	e.POST("/token", exchange)
	b, err := openBare(keyFile + ".bare")
	if err != nil {
		return err
	}
	record := make([]byte, 1200)
	e.POST("/synced", func(c echo.Context) error {
		if _, err := b.write(record, 1); err != nil { // of one connection, one at a time
			return err
		}
		return exchange(c)
	})
	j, err := audit.OpenJournal(audit.JournalConfig{Dir: keyFile + ".journal"})
	if err != nil {
		return err
	}
	e.POST("/recorded", func(c echo.Context) error {
		if err := j.Append(audit.Frame{Type: audit.FrameEvent, Payload: record}); err != nil {
			return err
		}
		return exchange(c)
	})
	return e.Start(addr)
}

// public writes an RSA public key for the floor.
func public(path string, key *rsa.PublicKey) error {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
}

// compact signs claims for a test, RS256 or ES256.
func compact(key crypto.Signer, alg, kid, typ string, claims any) (string, error) {
	h, err := json.Marshal(map[string]string{"alg": alg, "kid": kid, "typ": typ})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signed := base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(body)
	sum := sha256.Sum256([]byte(signed))
	var signature []byte
	switch k := key.(type) {
	case *rsa.PrivateKey:
		signature, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:])
	case *ecdsa.PrivateKey:
		r, s, e := ecdsa.Sign(rand.Reader, k, sum[:])
		signature, err = make([]byte, 64), e
		if err == nil {
			r.FillBytes(signature[:32])
			s.FillBytes(signature[32:])
		}
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), err
}
