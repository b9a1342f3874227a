package audit

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Events are written on the way to every answer, and encoding/json finds out anew
// each time what an event is made of. What follows writes the same bytes for the
// same event; a test holds each field of the two against each other.

// appendJSON appends the event as [json.Marshal] writes it. The error says which
// of its raw members is no JSON, or that its time has no such form.
func (e *Event) appendJSON(b []byte) ([]byte, error) {
	o := object{b: append(b, '{'), first: true}
	o.int("v", int64(e.Version))
	o.string("id", e.ID)
	o.name("time")
	if o.b, o.err = e.Time.AppendText(append(o.b, '"')); o.err != nil {
		return nil, fmt.Errorf("time: %w", o.err)
	}
	o.b = append(o.b, '"')
	o.string("replica", e.Replica)
	o.string("kind", string(e.Kind))
	o.string("outcome", string(e.Outcome))
	o.text("code", e.Code)
	o.text("reason", e.Reason)
	o.text("request", e.Request)
	o.number("count", int64(e.Count))
	o.text("trace", e.Trace)
	o.text("grant_type", e.GrantType)
	e.Party.appendTo(&o)
	e.Target.appendTo(&o)
	if d := e.Decision; d != nil {
		o.open("decision")
		o.text("policy", d.Policy)
		o.texts("granted", d.Granted)
		o.texts("rules", d.Rules)
		o.close()
	}
	e.Token.appendTo(&o)
	e.Lease.appendTo(&o)
	e.Certificate.appendTo(&o)
	if r := e.Revocation; r != nil {
		o.open("revocation")
		o.text("position", r.Position)
		o.strings("selector", r.Selector)
		o.text("reason", r.Reason)
		o.number("leases", int64(r.Leases))
		o.close()
	}
	if c := e.Call; c != nil {
		o.open("call")
		o.string("method", c.Method)
		o.string("host", c.Host)
		o.string("path", c.Path)
		o.text("what", c.What)
		o.number("status", int64(c.Status))
		o.close()
	}
	if l := e.Link; l != nil {
		o.open("link")
		o.string("provider", l.Provider)
		o.string("action", l.Action)
		o.texts("scopes", l.Scopes)
		o.text("outcome", l.Outcome)
		o.number("until", l.Until)
		o.close()
	}
	if c := e.Change; c != nil {
		o.open("change")
		o.string("what", c.What)
		o.text("before", c.Before)
		o.text("after", c.After)
		o.close()
	}
	if len(e.Micros) > 0 {
		o.open("micros")
		var few [8]string
		for _, name := range sorted(few[:0], e.Micros) {
			o.key(name)
			o.b = strconv.AppendInt(o.b, e.Micros[name], 10)
		}
		o.close()
	}
	if len(e.Personal) > 0 {
		o.name("personal")
		o.b = append(base64.StdEncoding.AppendEncode(append(o.b, '"'), e.Personal), '"')
	}
	return append(o.b, '}'), o.err
}

func (p *Party) appendTo(o *object) {
	if p.Client == "" && p.Agent == "" && p.Subject == "" && p.Session == "" && p.Actors == nil && p.Operator == "" {
		return
	}
	o.open("party")
	o.text("client", p.Client)
	o.text("agent", p.Agent)
	o.text("subject", p.Subject)
	o.text("session", p.Session)
	o.texts("actors", p.Actors)
	o.text("operator", p.Operator)
	o.close()
}

func (t *Target) appendTo(o *object) {
	if t.Resource == "" && t.Provider == "" && t.Tool == "" && t.Arguments == "" && !t.Once && t.Scopes == nil {
		return
	}
	o.open("target")
	o.text("resource", t.Resource)
	o.text("provider", t.Provider)
	o.text("tool", t.Tool)
	o.text("arguments", t.Arguments)
	if t.Once {
		o.name("once")
		o.b = append(o.b, "true"...)
	}
	o.texts("scopes", t.Scopes)
	o.close()
}

func (t *Token) appendTo(o *object) {
	if t == nil {
		return
	}
	o.open("token")
	o.string("jti", t.ID)
	o.text("type", t.Type)
	o.text("iss", t.Issuer)
	o.text("parent", t.Parent)
	o.text("root", t.Root)
	o.text("position", t.Position)
	o.number("hops", int64(t.Hops))
	o.number("exp", t.Expires)
	o.close()
}

func (l *Lease) appendTo(o *object) {
	if l == nil {
		return
	}
	o.open("lease")
	o.string("id", l.ID)
	o.string("provider", l.Provider)
	o.text("class", l.Class)
	o.text("state", l.State)
	o.number("exp", l.Expires)
	o.text("digest", l.Digest)
	o.table("upstream", l.Upstream)
	o.text("outcome", l.Outcome)
	o.number("until", l.Until)
	o.close()
}

// table adds an object of texts, unless it is empty.
func (o *object) table(name string, texts map[string]string) {
	if len(texts) == 0 {
		return
	}
	o.open(name)
	var few [8]string
	for _, key := range sorted(few[:0], texts) {
		o.key(key)
		o.b = appendString(o.b, texts[key])
	}
	o.close()
}

func (c *Certificate) appendTo(o *object) {
	if c == nil {
		return
	}
	o.open("certificate")
	o.string("kind", c.Kind)
	o.string("schema", c.Schema)
	o.name("inputs")
	if c.Inputs == nil {
		o.b = append(o.b, "null"...)
	} else {
		o.b = append(o.b, '[')
		for i, in := range c.Inputs {
			if i > 0 {
				o.b = append(o.b, ',')
			}
			o.b, o.first = append(o.b, '{'), true
			o.string("name", in.Name)
			o.raw("grant", in.Grant)
			o.close()
		}
		o.b = append(o.b, ']')
	}
	o.raw("grant", c.Grant)
	o.raw("rendered", c.Rendered)
	o.raw("granted", c.Granted)
	o.string("evidence", c.Evidence)
	o.table("names", c.Names)
	o.int("asked_exp", c.Asked)
	o.int("given_exp", c.Given)
	o.close()
}

// appendJSON appends the personal data as [json.Marshal] writes it.
func (p *Personal) appendJSON(b []byte) []byte {
	o := object{b: append(b, '{'), first: true}
	o.text("sub", p.Subject)
	o.text("email", p.Email)
	o.text("addr", p.Address)
	o.text("account", p.Account)
	o.text("detail", p.Detail)
	return append(o.b, '}')
}

// object writes the members of a JSON object.
type object struct {
	b     []byte
	first bool // the next member is the first of its object
	err   error
}

// name begins a member whose name needs no escapes.
func (o *object) name(name string) {
	if !o.first {
		o.b = append(o.b, ',')
	}
	o.first = false
	o.b = append(append(append(o.b, '"'), name...), '"', ':')
}

// key begins a member of any name.
func (o *object) key(name string) {
	if !o.first {
		o.b = append(o.b, ',')
	}
	o.first = false
	o.b = append(appendString(o.b, name), ':')
}

func (o *object) open(name string) {
	o.name(name)
	o.b, o.first = append(o.b, '{'), true
}

func (o *object) close() { o.b, o.first = append(o.b, '}'), false }

func (o *object) string(name, value string) {
	o.name(name)
	o.b = appendString(o.b, value)
}

// text is a string that is left out if empty; number and texts likewise.
func (o *object) text(name, value string) {
	if value != "" {
		o.string(name, value)
	}
}

func (o *object) int(name string, value int64) {
	o.name(name)
	o.b = strconv.AppendInt(o.b, value, 10)
}

func (o *object) number(name string, value int64) {
	if value != 0 {
		o.int(name, value)
	}
}

func (o *object) strings(name string, values []string) {
	o.name(name)
	if values == nil {
		o.b = append(o.b, "null"...)
		return
	}
	o.b = append(o.b, '[')
	for i, v := range values {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		o.b = appendString(o.b, v)
	}
	o.b = append(o.b, ']')
}

func (o *object) texts(name string, values []string) {
	if len(values) > 0 {
		o.strings(name, values)
	}
}

// raw is a value that is JSON already. Grants in canonical form need no change.
func (o *object) raw(name string, value json.RawMessage) {
	o.name(name)
	switch {
	case value == nil:
		o.b = append(o.b, "null"...)
	case !slices.ContainsFunc(value, unlikely) && json.Valid(value):
		o.b = append(o.b, value...)
	default:
		data, err := json.Marshal(value)
		if err != nil && o.err == nil {
			o.err = fmt.Errorf("%s: %w", name, err)
		}
		o.b = append(o.b, data...)
	}
}

// sorted appends the names in m, in order.
func sorted[V any](names []string, m map[string]V) []string {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// unlikely reports whether a byte of raw JSON may have to be left out or escaped.
func unlikely(c byte) bool {
	return c <= ' ' || c == '<' || c == '>' || c == '&' || c == lineSeparator[0]
}

const lineSeparator = "\u2028"

const hexDigits = "0123456789abcdef"

// plain says of each byte whether it is a character that stands for itself in a
// string, also where the document ends up in a page.
var plain = func() (t [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		t[c] = !strings.ContainsRune(`"\<>&`, c)
	}
	return t
}()

// appendString appends s as a JSON string, with U+FFFD for what is no UTF-8.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for {
		i := 0
		for i < len(s) && plain[s[i]] {
			i++
		}
		b = append(b, s[:i]...)
		if i == len(s) {
			return append(b, '"')
		}
		s = s[i:]
		if s[0] < utf8.RuneSelf {
			b = appendEscape(b, s[0])
			s = s[1:]
			continue
		}
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(b, `\ufffd`...)
		case r == '\u2028' || r == '\u2029': // JavaScript takes them for the end of a line
			b = append(b, '\\', 'u', '2', '0', '2', hexDigits[r&0xf])
		default:
			b = append(b, s[:size]...)
		}
		s = s[size:]
	}
}

func appendEscape(b []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(b, '\\', c)
	case '\b':
		return append(b, '\\', 'b')
	case '\f':
		return append(b, '\\', 'f')
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	}
	return append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
}
