package sample

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"

	"github.com/zitadel/oidc/v3/pkg/oidc"
)

// The algorithm of the tokens, and the types in their headers: an access token
// can be told from an ID token (RFC 9068 section 2.1).
const (
	signingAlgorithm = "RS256"
	accessTokenType  = "at+jwt"
	idTokenType      = "JWT"
)

// tokens makes the tokens of a sign-in.
func (p *provider) tokens(s *signedIn) (*oidc.AccessTokenResponse, error) {
	now := p.cfg.Now()
	base := oidc.TokenClaims{
		Issuer: p.issuer, Subject: s.user.Name,
		IssuedAt: oidc.FromTime(now), Expiration: oidc.FromTime(now.Add(p.cfg.TokenLifetime)), AuthTime: oidc.FromTime(s.at),
		AuthenticationMethodsReferences: oidc.AuthenticationMethodsReferences{"pwd"}, // RFC 8176
	}
	scope := oidc.SpaceDelimitedArray{oidc.ScopeOpenID}

	access := oidc.AccessTokenClaims{TokenClaims: base, Scopes: scope, Claims: map[string]any{
		"sid": s.session, "groups": s.user.Groups, "email": s.user.Email,
	}}
	access.Audience, access.ClientID, access.JWTID = oidc.Audience{s.audience}, s.client, rand.Text()
	accessToken, err := p.key.sign(accessTokenType, &access)
	if err != nil {
		return nil, fmt.Errorf("access token: %w", err)
	}

	id := oidc.IDTokenClaims{TokenClaims: base, SessionID: s.session, Claims: map[string]any{"groups": s.user.Groups}}
	id.Audience, id.AuthorizedParty, id.Nonce, id.Email = oidc.Audience{s.client}, s.client, s.nonce, s.user.Email
	if id.AccessTokenHash, err = oidc.ClaimHash(accessToken, signingAlgorithm); err != nil {
		return nil, fmt.Errorf("id token: %w", err)
	}
	idToken, err := p.key.sign(idTokenType, &id)
	if err != nil {
		return nil, fmt.Errorf("id token: %w", err)
	}
	return &oidc.AccessTokenResponse{
		AccessToken: accessToken, TokenType: oidc.BearerToken, IDToken: idToken,
		ExpiresIn: uint64(p.cfg.TokenLifetime.Seconds()), Scope: scope,
	}, nil
}

// signingKey is a key that is made at start and forgotten at the end. The library
// could sign as well, but writes the type JWT into every header.
type signingKey struct {
	id  string
	key *rsa.PrivateKey
}

func newSigningKey() (*signingKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	k := &signingKey{key: key}
	j := k.public()
	// RFC 7638 section 3: the required members, in alphabetical order.
	sum := sha256.Sum256([]byte(`{"e":"` + j.E + `","kty":"` + j.Type + `","n":"` + j.N + `"}`))
	k.id = base64.RawURLEncoding.EncodeToString(sum[:])
	return k, nil
}

// jwk is a public key (RFC 7518 section 6.3.1).
type jwk struct {
	Type      string `json:"kty"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	ID        string `json:"kid"`
	N         string `json:"n"`
	E         string `json:"e"`
}

type jwkSet struct {
	Keys []jwk `json:"keys"`
}

func (k *signingKey) public() jwk {
	number := func(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.Bytes()) }
	return jwk{
		Type: "RSA", Use: "sig", Algorithm: signingAlgorithm, ID: k.id,
		N: number(k.key.N), E: number(big.NewInt(int64(k.key.E))),
	}
}

func (k *signingKey) set() jwkSet { return jwkSet{[]jwk{k.public()}} }

// sign makes a JWT (RFC 7515 section 5.1) of a type.
func (k *signingKey) sign(typ string, claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	header := `{"alg":"` + signingAlgorithm + `","kid":"` + k.id + `","typ":"` + typ + `"}`
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	sum := sha256.Sum256([]byte(input))
	signature, err := rsa.SignPKCS1v15(rand.Reader, k.key, crypto.SHA256, sum[:])
	if err != nil {
		return "", err
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
