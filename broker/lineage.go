package broker

import (
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strconv"
	"time"
)

// Lineage is where a token or lease came from: the token at the beginning, and
// each token of ours since. Whatever revokes one of them revokes what came of
// it. It is built anew at every exchange, never copied from a foreign token.
type Lineage struct {
	// Subject is the subject as ISSUER#SUB, or the id of a client that acts for
	// itself.
	Subject string
	// Session is the login that everything descends from, as [SessionID] writes
	// it.
	Session string
	// Root is the foreign token at the beginning. Without one, Hops[0] began it.
	Root *Root
	// Hops are the tokens of ours, oldest first, the present one last.
	Hops []Hop
	// Lease and Provider are set for a vended credential.
	Lease, Provider string
}

// Root is a foreign token with which a lineage began.
type Root struct {
	Issuer string
	// ID is the token's jti, or a digest of what else identifies it.
	ID string
	// Agent is the software that it was issued to, as policy knows it.
	Agent string
	// Time is when the subject signed in, or else when the token was issued.
	Time time.Time
}

// Hop is one token of ours, as far as it matters for revocation.
type Hop struct {
	ID       string
	Pos      Position
	Client   string
	Agent    string
	Resource string // the audience
	Tool     string
	Scopes   []string
	Policy   string // version of the mapping that decided
	// KeyID is that of our key which signed it; empty for what is being made, and
	// for a credential.
	KeyID string
	// By are the keys of the actor token that it was made with: what revokes that
	// token, its session or its subject, or whatever they came from, revokes this.
	By []Key
}

// Bounds of a lineage.
const (
	MaxHops        = 10
	maxLineageSize = 4096 // bytes, as encoded in a token
)

// generations is how many tokens the lineage has, the root included.
func (l *Lineage) generations() int {
	n := len(l.Hops)
	if l.Root != nil {
		n++
	}
	return max(n, 1)
}

// hop returns the i-th generation's hop; nil for the root.
func (l *Lineage) hop(i int) *Hop {
	if l.Root != nil {
		i--
	}
	if i < 0 || i >= len(l.Hops) {
		return nil
	}
	return &l.Hops[i]
}

func (l *Lineage) made(i int) made {
	if h := l.hop(i); h != nil {
		return made{pos: h.Pos}
	}
	if l.Root != nil {
		return made{time: l.Root.Time}
	}
	return made{}
}

// keys calls f for the keys of one kind that select the i-th generation, until f
// returns true; it returns what f did. Subject and session select the lineage by
// its beginning: a login after a revocation of the subject is a new one.
func (l *Lineage) keys(i int, kind Kind, f func(Key) bool) bool {
	h := l.hop(i)
	one := func(parts ...string) bool { return parts[len(parts)-1] != "" && f(KeyOf(kind, parts...)) }
	last := i == l.generations()-1
	switch kind {
	case ByEverything:
		return f(KeyOf(ByEverything))
	case BySession:
		return i == 0 && one(l.Session) || h.by(kind, f)
	case BySubject:
		return i == 0 && one(l.Subject) || h.by(kind, f)
	case ByIssuer:
		return i == 0 && l.Root != nil && one(l.Root.Issuer) || h.by(kind, f)
	case ByLease:
		return last && one(l.Lease)
	case ByProvider:
		return last && one(l.Provider)
	}
	if h == nil {
		if l.Root == nil {
			return false
		}
		switch kind {
		case ByToken:
			return one(l.Root.Issuer, l.Root.ID)
		case ByAgent:
			return one(l.Root.Agent)
		}
		return false
	}
	switch kind {
	case ByToken:
		return one("", h.ID) || h.by(kind, f)
	case ByKey:
		return one(h.KeyID) || h.by(kind, f)
	case ByClient:
		return one(h.Client)
	case ByAgent:
		return one(h.Agent)
	case ByResource:
		return one(h.Resource)
	case ByTool:
		return one(h.Resource, h.Tool)
	case ByPolicy:
		return one(h.Policy)
	case ByScope:
		for _, s := range h.Scopes {
			if one(h.Resource, s) {
				return true
			}
		}
	}
	return false
}

// by calls f for the keys of one kind of the actor token that a hop was made with,
// until f returns true; it returns what f did.
func (h *Hop) by(kind Kind, f func(Key) bool) bool {
	if h == nil {
		return false
	}
	for _, k := range h.By {
		if k.Kind == kind && f(k) {
			return true
		}
	}
	return false
}

// actorKeys are the keys by which what is made with an actor token is revoked with
// it. By agent, client and the others the hop has keys of its own.
func (l *Lineage) actorKeys() (keys []Key) {
	for i := range l.generations() {
		for _, kind := range [...]Kind{ByToken, BySession, BySubject, ByKey, ByIssuer} {
			l.keys(i, kind, func(k Key) bool {
				if !slices.Contains(keys, k) {
					keys = append(keys, k)
				}
				return false
			})
		}
	}
	return keys
}

// meets reports whether the i-th generation meets all conditions. Subject, session
// and issuer are those of the whole lineage, or of the generation's actor.
func (l *Lineage) meets(i int, where []Key) bool {
	for _, want := range where {
		is := func(got Key) bool { return got == want }
		met := l.keys(i, want.Kind, is)
		if !met && i > 0 && (want.Kind == BySubject || want.Kind == BySession || want.Kind == ByIssuer) {
			met = l.keys(0, want.Kind, is)
		}
		if !met {
			return false
		}
	}
	return true
}

// AllKeys returns every key that selects the lineage in some generation, for
// filing a lease.
func (l *Lineage) AllKeys() (all []Key) {
	for i := range l.generations() {
		for kind := ByToken; kind < kinds; kind++ {
			l.keys(i, kind, func(k Key) bool { all = append(all, k); return false })
		}
	}
	return all
}

// SessionID returns the login that a foreign token belongs to, as a digest:
// (iss, sid), else (iss, sub, auth_time), else (iss, jti), else (iss, sub, iat).
func SessionID(t *Token) string {
	parts := []string{"sid", t.Issuer, t.SessionID}
	switch {
	case t.SessionID != "":
	case !t.AuthTime.IsZero():
		parts = []string{"auth", t.Issuer, t.Subject, strconv.FormatInt(t.AuthTime.Unix(), 10)}
	case t.ID != "":
		parts = []string{"jti", t.Issuer, t.ID}
	default:
		parts = []string{"iat", t.Issuer, t.Subject, strconv.FormatInt(t.IssuedAt.Unix(), 10)}
	}
	d := KeyOf(BySession, parts...).Digest
	return base64.RawURLEncoding.EncodeToString(d[:])
}

// tokenID returns what identifies a foreign token for revocation: its jti, else
// a digest of the claims that tell it from others. Never the token's text: one
// JWT has several spellings.
func tokenID(t *Token) string {
	if t.ID != "" {
		return t.ID
	}
	h := sha256.New()
	for _, s := range []string{t.Subject, t.ClientID, strconv.FormatInt(t.IssuedAt.Unix(), 10), strconv.FormatInt(t.Expires.Unix(), 10)} {
		h.Write([]byte(strconv.Itoa(len(s)) + ":" + s))
	}
	return "~" + base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16])
}
