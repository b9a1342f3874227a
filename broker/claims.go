package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Claims are those of a token of ours: RFC 9068, delegation by RFC 8693 section
// 4.1, details by RFC 9396 section 9.1, and our own claim.
type Claims struct {
	Issuer   string
	Subject  string // ISSUER#SUB, or the id of a client that acts for itself
	Audience string // exactly one
	ClientID string
	ID       string
	IssuedAt time.Time
	Expires  time.Time
	Scope    []string
	Actors   []Actor // outermost first
	AuthTime time.Time
	Groups   []string
	Details  json.RawMessage
	// Certificate is the thumbprint of the certificate that it is bound to (RFC 8705
	// section 3.1); empty: to none.
	Certificate string
	Stint       StintClaim
}

// ClaimVersion is the version of [StintClaim].
const ClaimVersion = 1

// StintClaim is the claim "stint": what revocation, a further
// exchange and the record need to know. Its names are short because it travels
// with every call. Of a claim of a later version nothing is known but that.
type StintClaim struct {
	// Version is [ClaimVersion].
	Version int `json:"v"`
	// Pos is the feed position when the token was made.
	Pos string `json:"pos"`
	// Policy is the version of the mapping that decided.
	Policy string `json:"pol,omitempty"`
	// Session is the login that the token descends from.
	Session string `json:"ses,omitempty"`
	// Agent is the software that the subject uses.
	Agent string `json:"agt,omitempty"`
	// Tool and Arguments (SHA-256 of the canonical form, in hexadecimal) bind the
	// token to a tool call, and Once to a single use.
	Tool      string `json:"tool,omitempty"`
	Arguments string `json:"args,omitempty"`
	Once      bool   `json:"once,omitempty"`
	// By are the keys of the actor token that it was made with (see [Hop]), each as
	// [Key.String] writes it.
	By []string `json:"by,omitempty"`
	// Root is the foreign token at the beginning.
	Root *RootClaim `json:"root,omitempty"`
	// Via are the tokens of ours before this one, oldest first.
	Via []HopClaim `json:"via,omitempty"`
	// Claims are claims of the subject's token that rules name.
	Claims map[string]string `json:"clm,omitempty"`
	// Call says that the token is good for requests through Stint, and for nothing else.
	Call *CallClaim `json:"call,omitempty"`
}

// CallClaim is what requests a token is good for. The lease has the token's jti.
type CallClaim struct {
	Provider string `json:"prv"`
	// Grant is the hash of what the lease allows (see [grant.Grant.Hash]): the ledger is
	// not believed more than that.
	Grant string `json:"gnt"`
	// Resource is that through whose mapping it was granted.
	Resource string `json:"res,omitempty"`
}

// RootClaim is a [Root] in a token.
type RootClaim struct {
	Issuer string `json:"iss"`
	ID     string `json:"jti"`
	Agent  string `json:"agt,omitempty"`
	Time   int64  `json:"at"`
}

// HopClaim is a [Hop] in a token.
type HopClaim struct {
	ID       string   `json:"jti"`
	Pos      string   `json:"pos"`
	Client   string   `json:"cid"`
	Agent    string   `json:"agt,omitempty"`
	Resource string   `json:"aud"`
	Tool     string   `json:"tool,omitempty"`
	Scope    string   `json:"scp,omitempty"`
	Policy   string   `json:"pol,omitempty"`
	KeyID    string   `json:"kid,omitempty"`
	By       []string `json:"by,omitempty"`
}

// ancestry returns the lineage of a verified token, which which says. Errors: BadToken;
// Unavailable, for a token that a replica of a later version made. It is not known to be
// bad, and whoever holds it is to keep it and ask again.
func ancestry(which string, t *Token, agent string) (*Lineage, error) {
	l, err := lineageOf(t, agent)
	if errors.Is(err, ErrLater) {
		return nil, unavailable(fmt.Errorf("%s: %w", which, err))
	}
	if err != nil {
		return nil, refused(which, "%w", err)
	}
	return l, nil
}

// lineageOf is ancestry without a code: ErrLater for a token of a later version.
func lineageOf(t *Token, agent string) (*Lineage, error) {
	if !t.Ours {
		at := t.IssuedAt
		if !t.AuthTime.IsZero() && t.AuthTime.Before(at) {
			at = t.AuthTime
		}
		return &Lineage{
			Subject: t.Issuer + "#" + t.Subject, Session: SessionID(t),
			Root: &Root{Issuer: t.Issuer, ID: tokenID(t), Agent: agent, Time: at},
		}, nil
	}
	c := t.Stint
	if c != nil && c.Version > ClaimVersion {
		return nil, fmt.Errorf("a claim of version %d: %w", c.Version, ErrLater)
	}
	if c == nil || c.Version != ClaimVersion {
		return nil, errors.New("a token of ours without a claim of this version")
	}
	l := &Lineage{Subject: t.Subject, Session: c.Session}
	if c.Root != nil {
		l.Root = &Root{c.Root.Issuer, c.Root.ID, c.Root.Agent, time.Unix(c.Root.Time, 0)}
	}
	if len(c.Via) >= MaxHops || len(t.Audience) != 1 {
		return nil, errors.New("a token of ours with more hops or audiences than we give")
	}
	self := HopClaim{
		ID: t.ID, Pos: c.Pos, Client: t.ClientID, Agent: c.Agent, Resource: t.Audience[0],
		Tool: c.Tool, Scope: strings.Join(t.Scope, " "), Policy: c.Policy, KeyID: t.KeyID, By: c.By,
	}
	if c.Call != nil { // what revokes the lease revokes the token
		self.Resource, l.Lease, l.Provider = c.Call.Resource, t.ID, c.Call.Provider
	}
	for _, h := range append(c.Via[:len(c.Via):len(c.Via)], self) {
		pos, err := ParsePosition(h.Pos)
		if err != nil {
			return nil, fmt.Errorf("hop %s: %w", h.ID, err)
		}
		by, err := parseKeys(h.By)
		if err != nil {
			return nil, fmt.Errorf("hop %s: %w", h.ID, err)
		}
		l.Hops = append(l.Hops, Hop{
			ID: h.ID, Pos: pos, Client: h.Client, Agent: h.Agent, Resource: h.Resource,
			Tool: h.Tool, Scopes: strings.Fields(h.Scope), Policy: h.Policy, KeyID: h.KeyID, By: by,
		})
	}
	return l, nil
}

func parseKeys(texts []string) (keys []Key, err error) {
	for _, text := range texts {
		k, err := parseKey(text)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func keyTexts(keys []Key) (texts []string) {
	for _, k := range keys {
		texts = append(texts, k.String())
	}
	return texts
}

// with returns the lineage of what is made from l next.
func (l *Lineage) with(h Hop) *Lineage {
	next := *l
	next.Hops = append(l.Hops[:len(l.Hops):len(l.Hops)], h)
	return &next
}

// claim writes the lineage into the claim of a token, whose last hop is itself.
func (l *Lineage) claim(c *StintClaim) error {
	c.Version, c.Session = ClaimVersion, l.Session
	if r := l.Root; r != nil {
		c.Root = &RootClaim{r.Issuer, r.ID, r.Agent, r.Time.Unix()}
	}
	last := len(l.Hops) - 1
	if last >= MaxHops {
		return fmt.Errorf("a chain of more than %d tokens", MaxHops)
	}
	for _, h := range l.Hops[:last] {
		c.Via = append(c.Via, HopClaim{
			h.ID, h.Pos.String(), h.Client, h.Agent, h.Resource, h.Tool, strings.Join(h.Scopes, " "), h.Policy, h.KeyID, keyTexts(h.By),
		})
	}
	h := l.Hops[last]
	c.Pos, c.Policy, c.Agent, c.Tool, c.By = h.Pos.String(), h.Policy, h.Agent, h.Tool, keyTexts(h.By)
	if len(c.Via) == 0 && len(c.By) == 0 {
		return nil // cannot be large
	}
	if data, err := json.Marshal(c); err != nil || len(data) > maxLineageSize {
		return fmt.Errorf("a chain of more than %d bytes", maxLineageSize)
	}
	return nil
}
