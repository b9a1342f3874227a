package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// ringVersion is the version of the document.
const ringVersion = 1

// readDoc reads the document. Errors: [broker.ErrLater].
func readDoc(doc secret.String) (*ringDoc, error) {
	d := &ringDoc{}
	data := []byte(doc.Reveal())
	err := strictjson.Decode(data, d)
	if err != nil || d.Version > ringVersion {
		if v, later := strictjson.Later(data, "v", ringVersion); later {
			err = fmt.Errorf("version %d: %w", v, broker.ErrLater)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("document of signing keys: %w", err)
	}
	return d, nil
}

// ringDoc is the document.
type ringDoc struct {
	Version int          `json:"v"`
	Keys    []ringDocKey `json:"keys"`
	// Revoked are keys that were withdrawn, as long as something that was obtained
	// with one may be alive.
	Revoked []revokedKey `json:"revoked,omitempty"`
}

type revokedKey struct {
	ID string `json:"kid"`
	At int64  `json:"at"`
}

type ringDocKey struct {
	Created int64 `json:"created"`
	Active  int64 `json:"active"`
	// Retired is when another took its place, if that one is here no more. Absent:
	// when the next one begins.
	Retired int64           `json:"retired,omitempty"`
	JWK     json.RawMessage `json:"jwk"` // private
}

// retired says when the key at i stops signing; zero: nothing takes its place.
func (d *ringDoc) retired(i int) time.Time {
	switch {
	case d.Keys[i].Retired != 0:
		return time.Unix(d.Keys[i].Retired, 0)
	case i+1 < len(d.Keys):
		return time.Unix(d.Keys[i+1].Active, 0)
	}
	return time.Time{}
}

// ownKeyOf reads a key of the document.
func ownKeyOf(k ringDocKey) (*ownKey, error) {
	var j jose.JSONWebKey
	if err := j.UnmarshalJSON(k.JWK); err != nil {
		return nil, fmt.Errorf("jwk: %w", err)
	}
	signer, ok := j.Key.(crypto.Signer)
	if !ok {
		return nil, errors.New("it cannot sign")
	}
	public := j.Public()
	published, err := public.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("publish: %w", err)
	}
	head := func(typ string) string {
		b := append(strictjson.AppendString([]byte(`{"alg":`), j.Algorithm), `,"typ":"`+typ+`","kid":`...)
		return base64.RawURLEncoding.EncodeToString(append(strictjson.AppendString(b, j.KeyID), '}')) + "."
	}
	return &ownKey{
		Key:     Key{id: j.KeyID, alg: j.Algorithm, public: public.Key, lowS: true},
		private: signer, jwk: published, header: head("at+jwt"), plain: head("JWT"),
		created: time.Unix(k.Created, 0), active: time.Unix(k.Active, 0),
	}, nil
}

// newKey makes a key that signs after the overlap.
func newKey(alg string, now time.Time, overlap time.Duration) (k ringDocKey, err error) {
	j := jose.JSONWebKey{Algorithm: alg, Use: "sig"}
	if alg == "EdDSA" {
		_, j.Key, err = ed25519.GenerateKey(rand.Reader)
	} else {
		j.Key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return k, fmt.Errorf("make key: %w", err)
	}
	print, err := j.Thumbprint(crypto.SHA256) // RFC 7638
	if err != nil {
		return k, fmt.Errorf("name key: %w", err)
	}
	j.KeyID = base64.RawURLEncoding.EncodeToString(print)
	if strings.HasPrefix(j.KeyID, "-") {
		return newKey(alg, now, overlap) // its name would be an option on a command line
	}
	if k.JWK, err = j.MarshalJSON(); err != nil {
		return k, fmt.Errorf("encode key: %w", err)
	}
	k.Created, k.Active = now.Unix(), now.Add(overlap).Unix()
	return k, nil
}
