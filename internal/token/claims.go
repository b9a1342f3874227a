package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes"
)

// Bounds of what a token may say.
const (
	maxText      = 512 // bytes of an identifier
	maxGroups    = 1000
	maxAudiences = 16
	maxActorSize = 8 << 10 // bytes of act
	maxAhead     = 366 * 24 * time.Hour
)

// names says under which names an issuer puts what has no fixed name. A name
// that begins with a slash is a path into objects (RFC 6901).
type names struct {
	subject, groups, scope, email string
	shown                         map[string]bool // claims that rules may name
	nested                        bool            // some name is a path
}

// payload is a token's claims as they are read, before they are believed.
type payload struct {
	broker.Token
	notBefore time.Time
	idClaims  bool // it has claims that only ID tokens have
	bound     bool // it is good only together with a key (RFC 7800)
}

// parseAssertion reads the claims of a client's assertion. One of SPIFFE need not have an
// issuer (JWT-SVID section 3); to those who need it, an empty one is nobody's.
func parseAssertion(data []byte) (*payload, error) {
	p := &payload{}
	err := strictjson.Members(data, func(name string, value []byte) (err error) {
		if name == "iss" {
			p.Issuer, err = text(value)
		} else {
			err = p.member(name, value, standard)
		}
		if err != nil {
			return fmt.Errorf("claim %s: %w", printable(name), err)
		}
		return nil
	})
	return p, err
}

// parsePayload reads claims. Nothing of it is trusted before the signature is
// verified; it is read first to learn the issuer, and only once.
func parsePayload(data []byte, issuerNames func(iss string) (names, error)) (*payload, error) {
	iss, err := issuerOf(data)
	if err != nil {
		return nil, err
	}
	n, err := issuerNames(iss)
	if err != nil {
		return nil, err
	}
	p := &payload{}
	p.Issuer = iss
	err = strictjson.Members(data, func(name string, value []byte) error {
		if err := p.member(name, value, n); err != nil {
			return fmt.Errorf("claim %s: %w", printable(name), err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, p.nested(data, n)
}

// errFound ends a reading that has found what it was for.
var errFound = errors.New("found")

// issuerOf reads the claim iss alone, and no further.
func issuerOf(data []byte) (iss string, err error) {
	err = strictjson.Members(data, func(name string, value []byte) (err error) {
		if name != "iss" {
			return nil
		}
		if iss, err = text(value); err != nil {
			return err
		}
		return errFound
	})
	switch {
	case err != nil && !errors.Is(err, errFound):
		return "", err
	case iss == "":
		return "", errors.New("no claim iss")
	}
	return iss, nil
}

// nested reads those claims that lie within others.
func (p *payload) nested(data []byte, n names) error {
	if !n.nested {
		return nil
	}
	for path, use := range map[string]func([]byte) error{n.groups: p.readGroups, n.subject: p.readSubject, n.scope: p.readScope, n.email: p.readEmail} {
		if !strings.HasPrefix(path, "/") {
			continue
		}
		value, err := lookup(data, strings.Split(path[1:], "/"))
		if err != nil {
			return err
		}
		if value != nil {
			if err := use(value); err != nil {
				return fmt.Errorf("claim %s: %w", path, err)
			}
		}
	}
	return nil
}

var unescape = strings.NewReplacer("~1", "/", "~0", "~")

// lookup follows a path into objects; nil if it ends nowhere.
func lookup(data []byte, path []string) (found []byte, err error) {
	err = strictjson.Members(data, func(name string, value []byte) error {
		if name == unescape.Replace(path[0]) {
			found = append([]byte(nil), value...)
		}
		return nil
	})
	if err != nil || found == nil || len(path) == 1 {
		return found, err
	}
	if found[0] != '{' {
		return nil, nil
	}
	return lookup(found, path[1:])
}

// member takes one claim in.
func (p *payload) member(name string, value []byte, n names) (err error) {
	switch name { // names of an issuer's choice first: they may be standard ones
	case n.subject:
		return p.readSubject(value)
	case n.groups:
		return p.readGroups(value)
	case n.scope:
		return p.readScope(value)
	case n.email:
		return p.readEmail(value)
	}
	switch name {
	case "iss":
	case "sub": // another claim is the subject
	case "aud":
		p.Audience, err = texts(value, maxAudiences)
	case "jti":
		p.ID, err = text(value)
	case "sid":
		p.SessionID, err = text(value)
	case "client_id":
		p.ClientID, err = text(value)
	case "azp":
		if p.ClientID == "" {
			p.ClientID, err = text(value)
		}
	case "exp":
		p.Expires, err = date(value)
	case "iat":
		p.IssuedAt, err = date(value)
	case "nbf":
		p.notBefore, err = date(value)
	case "auth_time":
		p.AuthTime, err = date(value)
	case "act":
		p.Actors, err = actors(value)
	case "may_act":
		p.MayAct, err = mayAct(value)
	case "nonce", "at_hash", "c_hash", "s_hash":
		p.idClaims = true
	case "cnf":
		p.bound, p.Certificate = true, confirmation(value)
	case "authorization_details":
		p.Details = append(json.RawMessage(nil), value...)
	case "stint":
		p.Stint, err = stintClaim(value)
	}
	if err == nil && n.shown[name] {
		p.show(name, value)
	}
	return err
}

// stintClaim reads our own claim. Of one of a later version nothing else can be relied
// on; the token can still be revoked, by its jti.
func stintClaim(value []byte) (*broker.StintClaim, error) {
	c := &broker.StintClaim{}
	err := strictjson.DecodeKnown(value, c)
	if err != nil || c.Version > broker.ClaimVersion {
		if v, later := strictjson.Later(value, "v", broker.ClaimVersion); later {
			return &broker.StintClaim{Version: v}, nil
		}
	}
	return c, err
}

// show keeps a claim that rules may name, if it is a text, number or truth.
func (p *payload) show(name string, value []byte) {
	s, ok := strictjson.Text(value)
	if !ok {
		if c := value[0]; c == '{' || c == '[' || c == 'n' {
			return
		}
		s = string(value)
	}
	if len(s) > maxText {
		return
	}
	if p.Claims == nil {
		p.Claims = make(map[string]string)
	}
	p.Claims[name] = s
}

func (p *payload) readSubject(value []byte) (err error) {
	p.Subject, err = text(value)
	return err
}

func (p *payload) readGroups(value []byte) (err error) {
	p.Groups, err = texts(value, maxGroups)
	return err
}

func (p *payload) readEmail(value []byte) (err error) {
	p.Email, err = text(value)
	return err
}

// readScope reads a scope claim: one text of scopes (RFC 9068 section 2.2.3), or,
// as some issuers have it, a list.
func (p *payload) readScope(value []byte) (err error) {
	if len(value) > 0 && value[0] == '[' {
		if p.Scope, err = texts(value, 256); err != nil {
			return err
		}
		for _, s := range p.Scope {
			if err := scopes.CheckToken(s); err != nil {
				return err
			}
		}
		return nil
	}
	s, ok := strictjson.Text(value)
	if !ok {
		return errors.New("no text")
	}
	p.Scope, err = scopes.Parse(s)
	return err
}

func text(value []byte) (string, error) {
	s, ok := strictjson.Text(value)
	if !ok || len(s) > maxText {
		return "", fmt.Errorf("no text of at most %d bytes", maxText)
	}
	return s, nil
}

// texts reads a list of texts; a text is a list of one.
func texts(value []byte, most int) ([]string, error) {
	if len(value) > 0 && value[0] == '"' {
		s, err := text(value)
		return []string{s}, err
	}
	var list []*string // null would be read as the empty text
	if err := strictjson.Decode(value, &list); err != nil || list == nil || slices.Contains(list, nil) {
		return nil, errors.New("no text and no list of texts")
	}
	if len(list) > most {
		return nil, fmt.Errorf("more than %d elements", most)
	}
	out := make([]string, len(list))
	for i, s := range list {
		if out[i] = *s; len(*s) > maxText {
			return nil, fmt.Errorf("an element of more than %d bytes", maxText)
		}
	}
	return out, nil
}

// date reads a NumericDate (RFC 7519 section 2): a plain number of seconds, of
// which a fraction is dropped. What is no time between 1970 and 9999 is an
// error, such as milliseconds.
func date(value []byte) (time.Time, error) {
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(string(value), 64)
		if ferr != nil || math.IsInf(f, 0) || math.IsNaN(f) || math.Abs(f) > math.MaxInt32*1000 || strings.ContainsAny(string(value), "eE\"") {
			return time.Time{}, errors.New("no number of seconds")
		}
		n = int64(math.Floor(f))
	}
	if n <= 0 || n > 253402300799 {
		return time.Time{}, errors.New("no time between 1970 and 9999")
	}
	return time.Unix(n, 0), nil
}

// actors reads act (RFC 8693 section 4.1), outermost first. Only who acted is
// taken from it; the rest means nothing there.
func actors(value []byte) (chain []broker.Actor, err error) {
	if len(value) > maxActorSize {
		return nil, fmt.Errorf("more than %d bytes", maxActorSize)
	}
	for value != nil {
		if len(chain) == broker.MaxHops {
			return nil, fmt.Errorf("more than %d actors", broker.MaxHops)
		}
		a, next, err := actor(value)
		if err != nil {
			return nil, err
		}
		chain = append(chain, a)
		value = next
	}
	return chain, nil
}

func actor(value []byte) (a broker.Actor, next []byte, err error) {
	err = strictjson.Members(value, func(name string, v []byte) (err error) {
		switch name {
		case "sub":
			a.Subject, err = text(v)
		case "iss":
			a.Issuer, err = text(v)
		case "act":
			next = append([]byte(nil), v...)
		}
		return err
	})
	if err == nil && a.Subject == "" {
		err = errors.New("an actor without sub")
	}
	return a, next, err
}

// mayAct reads may_act (RFC 8693 section 4.4): who alone may act. A client may
// be named by client_id as well.
func mayAct(value []byte) (*broker.Actor, error) {
	var m struct {
		Subject  string `json:"sub"`
		ClientID string `json:"client_id"`
		Issuer   string `json:"iss"`
	}
	// Every member has to match (RFC 8693 section 4.4), so that those which are
	// not known make the whole unusable.
	if err := strictjson.Decode(value, &m); err != nil {
		return nil, err
	}
	switch {
	case m.Subject == "" && m.ClientID == "", m.Subject != "" && m.ClientID != "" && m.Subject != m.ClientID:
		return nil, errors.New("it names nobody, or two")
	case m.Subject == "":
		m.Subject = m.ClientID
	}
	return &broker.Actor{Issuer: m.Issuer, Subject: m.Subject}, nil
}

// times checks when a token is valid.
func (p *payload) times(now time.Time, skew time.Duration) error {
	switch {
	case p.Expires.IsZero():
		return errors.New("no claim exp")
	case p.IssuedAt.IsZero():
		return errors.New("no claim iat")
	case !now.Before(p.Expires.Add(skew)):
		return fmt.Errorf("expired %s ago", now.Sub(p.Expires).Round(time.Second))
	case p.IssuedAt.After(now.Add(skew)):
		return errors.New("issued in the future")
	case p.notBefore.After(now.Add(skew)):
		return errors.New("not valid yet")
	case p.Expires.Before(p.IssuedAt):
		return errors.New("expires before it was issued")
	case p.Expires.After(now.Add(maxAhead)):
		return errors.New("valid for more than a year")
	case p.AuthTime.After(p.IssuedAt.Add(skew)):
		return errors.New("signed in after it was issued")
	}
	return nil
}

func printable(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
