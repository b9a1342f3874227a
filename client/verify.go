package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of a token: what Stint makes stays within them.
const (
	maxToken   = 16 << 10 // bytes
	maxLineage = 4 << 10  // bytes of the claim "stint"
	maxHops    = 10
)

// Token is a token that was verified.
type Token struct {
	// Subject is whom it speaks for: ISSUER#SUB, or the id of a client that acts for
	// itself.
	Subject string
	// ClientID is the client that it was issued to, and Actors are those who act for
	// the subject, outermost first (RFC 8693 section 4.1).
	ClientID string
	Actors   []string
	Agent    string // the software that the subject uses, if it is known
	Scopes   []string
	Expires  time.Time
	ID       string
	// Session is the login that it descends from.
	Session string
	// Tool and Arguments bind it to one tool call: the tool's name, and the SHA-256
	// of the arguments' canonical form (RFC 8785), in hexadecimal.
	Tool, Arguments string
	// Once says that it is good for one call.
	Once bool
	// Certificate is the thumbprint (x5t#S256, RFC 8705 section 3.1) of the certificate
	// that it is bound to; empty: to none.
	Certificate string

	raw Secret
}

// Has reports whether the token has all of the scopes.
func (t *Token) Has(scopes ...string) bool {
	return !slices.ContainsFunc(scopes, func(s string) bool { return !slices.Contains(t.Scopes, s) })
}

// Verify checks a token that a caller shows: its signature, issuer, audience, times
// and the bounds of its lineage (RFC 9068 section 4). A token that is good for one
// call is used up, by asking Stint. Others are verified without it, so that a
// revocation is seen when they are exchanged, or when they have expired; use
// [Client.Introspect] to see it at once.
//
// One that is bound to a certificate (RFC 8705 section 3) is accepted over a connection
// with that certificate alone: [WithConnection] says which it is. [Client.Protect] sees to
// it by itself.
//
// Errors: *[InvalidToken]; *[Unavailable] if it is not known.
func (c *Client) Verify(ctx context.Context, raw string) (*Token, error) {
	t, err := c.VerifyToVend(ctx, raw)
	if err != nil {
		return nil, err
	}
	if err := c.useOnce(ctx, t); err != nil {
		return nil, err
	}
	return t, nil
}

// VerifyToVend is [Client.Verify], but leaves a token for one call unused: handing
// it to [Client.Vend] uses it up. Whoever does nothing of the kind accepts it any
// number of times.
func (c *Client) VerifyToVend(ctx context.Context, raw string) (*Token, error) {
	if c.cfg.Resource == "" {
		return nil, errors.New("client: Config.Resource is empty, so that no token can be for it")
	}
	head, payload, err := split(raw)
	if err != nil {
		return nil, &InvalidToken{err.Error()}
	}
	key, ok, err := c.keys.find(ctx, head.KeyID)
	if err != nil {
		return nil, err
	}
	dot := strings.LastIndexByte(raw, '.')
	signature, err := base64.RawURLEncoding.Strict().DecodeString(raw[dot+1:])
	if err != nil || !ok || !key.good(head.Algorithm, []byte(raw[:dot]), signature) {
		return nil, &InvalidToken{"the signature is not one of " + c.cfg.Issuer}
	}
	t, err := c.claims(payload)
	if err != nil {
		return nil, &InvalidToken{err.Error()}
	}
	if !t.shownBy(connection(ctx)) {
		return nil, &InvalidToken{"it is bound to another certificate than that of the connection"}
	}
	t.raw = NewSecret(raw)
	return t, nil
}

// header is a JOSE header (RFC 7515 section 4.1).
type header struct {
	Algorithm string          `json:"alg"`
	Type      string          `json:"typ"`
	KeyID     string          `json:"kid"`
	Critical  json.RawMessage `json:"crit"`
}

// split reads a compact serialisation (RFC 7515 section 7.1), but for its signature.
func split(raw string) (head header, payload []byte, err error) {
	if len(raw) > maxToken {
		return head, nil, fmt.Errorf("more than %d bytes", maxToken)
	}
	part := strings.Split(raw, ".")
	if len(part) != 3 {
		return head, nil, errors.New("no signed token of three parts")
	}
	h, err := base64.RawURLEncoding.Strict().DecodeString(part[0])
	if err != nil || json.Unmarshal(h, &head) != nil {
		return head, nil, errors.New("the header cannot be read")
	}
	switch {
	case head.Critical != nil:
		return head, nil, errors.New("critical extensions")
	case head.Algorithm != "ES256" && head.Algorithm != "EdDSA":
		return head, nil, fmt.Errorf("the algorithm is %q", head.Algorithm)
	case !strings.EqualFold(head.Type, "at+jwt") && !strings.EqualFold(head.Type, "application/at+jwt"): // RFC 9068 section 4
		return head, nil, fmt.Errorf("the type is %q: no access token", head.Type)
	}
	if payload, err = base64.RawURLEncoding.Strict().DecodeString(part[1]); err != nil {
		return head, nil, errors.New("the claims are not encoded")
	}
	return head, payload, nil
}

// claims are those of Stint's tokens that matter here.
type claims struct {
	Issuer    string          `json:"iss"`
	Subject   string          `json:"sub"`
	Audience  audience        `json:"aud"`
	ClientID  string          `json:"client_id"`
	ID        string          `json:"jti"`
	IssuedAt  *int64          `json:"iat"`
	Expires   *int64          `json:"exp"`
	NotBefore int64           `json:"nbf"`
	Scope     string          `json:"scope"`
	Act       *actor          `json:"act"`
	Stint     json.RawMessage `json:"stint"`
	Confirm   json.RawMessage `json:"cnf"`
}

type actor struct {
	Subject string `json:"sub"`
	Act     *actor `json:"act"`
}

// list returns the actors, outermost first.
func (a *actor) list() (out []string) {
	for ; a != nil; a = a.Act {
		out = append(out, a.Subject)
	}
	return out
}

// audience is a text or a list of them (RFC 7519 section 4.1.3).
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if err := json.Unmarshal(b, &one); err == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// lineage is the claim "stint", version 1, as far as it matters here.
type lineage struct {
	Version   int               `json:"v"`
	Session   string            `json:"ses"`
	Agent     string            `json:"agt"`
	Tool      string            `json:"tool"`
	Arguments string            `json:"args"`
	Once      bool              `json:"once"`
	Via       []json.RawMessage `json:"via"`
}

// claims checks the claims of a token whose signature is good.
func (c *Client) claims(payload []byte) (*Token, error) {
	var p claims
	if err := json.Unmarshal(payload, &p); err != nil {
		return nil, errors.New("the claims cannot be read")
	}
	now := c.cfg.Now()
	switch {
	case p.Issuer != c.cfg.Issuer:
		return nil, fmt.Errorf("it was issued by %q", p.Issuer)
	case len(p.Audience) != 1 || p.Audience[0] != c.cfg.Resource:
		return nil, fmt.Errorf("it is for %q, not for %s", p.Audience, c.cfg.Resource)
	case p.Subject == "" || p.ID == "" || p.ClientID == "" || p.Expires == nil || p.IssuedAt == nil: // RFC 9068 section 2.2
		return nil, errors.New("it has no sub, jti, client_id, exp or iat")
	case !now.Before(time.Unix(*p.Expires, 0).Add(c.cfg.Skew)):
		return nil, errors.New("it has expired")
	case time.Unix(max(*p.IssuedAt, p.NotBefore), 0).After(now.Add(c.cfg.Skew)):
		return nil, errors.New("it is not good yet")
	case len(p.Stint) > maxLineage:
		return nil, fmt.Errorf("its lineage has more than %d bytes", maxLineage)
	}
	var l lineage
	if err := json.Unmarshal(p.Stint, &l); err != nil || l.Version != 1 {
		return nil, errors.New("its lineage cannot be read: it is of another version")
	}
	certificate, err := confirmed(p.Confirm)
	if err != nil {
		return nil, err
	}
	actors := p.Act.list()
	if len(l.Via) >= maxHops || len(actors) > maxHops {
		return nil, fmt.Errorf("its lineage has more than %d hops", maxHops)
	}
	return &Token{
		Subject: p.Subject, ClientID: p.ClientID, Actors: actors, Agent: l.Agent, Scopes: strings.Fields(p.Scope),
		Expires: time.Unix(*p.Expires, 0), ID: p.ID, Session: l.Session, Tool: l.Tool, Arguments: l.Arguments, Once: l.Once,
		Certificate: certificate,
	}, nil
}
