package main

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/secret"
)

// handshake are messages of MCP that are the same each time, and say nothing.
var handshake = []string{"server/discover", "initialize", "notifications/initialized", "ping", "end the connection"}

// calls takes what went over the wire since the last step.
func (s *stage) calls() []call {
	s.mu.Lock()
	steps := s.wire
	s.wire = nil
	s.mu.Unlock()
	slices.SortStableFunc(steps, func(a, b sample.Step) int { return a.Began.Compare(b.Began) })
	out := []call{}
	var skip time.Time
	refused := false
	for _, step := range steps {
		if slices.Contains(handshake, step.Text) {
			if refused || step.Status < http.StatusBadRequest {
				skip = step.Ended
			}
			refused = true
		}
		if !step.Ended.After(skip) { // it, and what was asked for its sake
			continue
		}
		out = append(out, s.call(step))
	}
	return out
}

func (s *stage) call(step sample.Step) call {
	c := call{
		From: step.Server, To: "somebody", What: step.Text, Method: step.Method, URL: step.URL, Status: step.Status,
		Request: fields(step.Request), Answer: fields(step.Answer), began: step.Began, ended: step.Ended,
	}
	longest := 0
	for prefix, name := range s.names {
		if strings.HasPrefix(step.URL, prefix) && len(prefix) > longest {
			c.To, longest = name, len(prefix)
		}
	}
	if step.Err != nil {
		c.Error = step.Err.Error()
	}
	for _, f := range step.Answer {
		if p, err := payloadOf(f.Secret); f.Name == "access_token" && err == nil {
			c.Token = p.fields()
		}
	}
	return c
}

func fields(in []sample.Field) []field {
	out := make([]field, 0, len(in))
	for _, f := range in {
		text := f.Value
		if !f.Secret.Empty() {
			text += shorten(f.Secret)
		}
		out = append(out, field{f.Name, text})
	}
	return out
}

// shorten leaves so much of a secret that it can be told from others: the ends of
// one that is long, which of a token are its header and the end of its signature.
func shorten(s secret.String) string {
	text := s.Reveal()
	if len(text) < 24 {
		return text[:min(len(text)/4, 3)] + "…"
	}
	if strings.HasPrefix(text, "{") {
		return "{…}"
	}
	return text[:3] + "…" + text[len(text)-4:]
}

// payload is what a JWT says, as far as it is of interest here.
type payload struct {
	Issuer   string          `json:"iss"`
	Subject  string          `json:"sub"`
	Audience json.RawMessage `json:"aud"`
	ID       string          `json:"jti"`
	Groups   []string        `json:"groups"`
	Scope    string          `json:"scope"`
	Issued   int64           `json:"iat"`
	Expires  int64           `json:"exp"`
	Act      *actor          `json:"act"`
	Details  json.RawMessage `json:"authorization_details"`
}

type actor struct {
	Subject string `json:"sub"`
	Act     *actor `json:"act"`
}

// payloadOf reads a JWT without checking it: for showing it, to whoever has it.
func payloadOf(token secret.String) (*payload, error) {
	parts := strings.Split(token.Reveal(), ".")
	if len(parts) != 3 {
		return nil, errors.New("it is no JWT")
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, err
	}
	p := &payload{}
	return p, json.Unmarshal(data, p)
}

// actors are those who act for the subject, outermost first.
func (p *payload) actors() (names []string) {
	for a := p.Act; a != nil; a = a.Act {
		names = append(names, a.Subject)
	}
	return names
}

// audience is whom the token is for, if that is one.
func (p *payload) audience() string {
	var one string
	var many []string
	if json.Unmarshal(p.Audience, &many) == nil && len(many) == 1 {
		return many[0]
	}
	_ = json.Unmarshal(p.Audience, &one)
	return one
}

func (p *payload) life() time.Duration { return time.Duration(p.Expires-p.Issued) * time.Second }

func (p *payload) fields() (out []field) {
	add := func(name, value string) {
		if value != "" {
			out = append(out, field{name, value})
		}
	}
	add("iss", p.Issuer)
	add("sub", p.Subject)
	add("aud", cmp.Or(p.audience(), string(p.Audience)))
	add("scope", p.Scope)
	add("groups", strings.Join(p.Groups, ","))
	prefix := "act.sub"
	for _, name := range p.actors() {
		add(prefix, name)
		prefix = "act." + prefix
	}
	add("authorization_details", string(p.Details))
	add("exp-iat", p.life().String())
	return out
}
