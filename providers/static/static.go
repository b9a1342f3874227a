// Package static lends what has one fixed secret: an API key, a personal access token, a
// password. The upstream cannot narrow it, so it is never handed out: who is granted
// something makes his requests through Stint, which holds each of them to the grant and
// puts the secret in.
//
// The settings say where the secret is, how it goes into a request, and to which hosts:
//
//	secret: vault:secret/weather#key
//	header: "X-Api-Key: {secret}"
//	hosts: [api.weather.example]
//
// A grant is a set of methods at a host below a path: `GET` at `api.weather.example` below
// `v1/stations/`. That is a path in the spelling in which it is sent, percent-encoded, and
// without the slash at its beginning; it ends in one, or is empty, which is the whole host.
// It stands for the very path that it names, with and without the slash at the end, and for
// all below it. Queries and bodies are not looked at: where those decide what a request
// does, as with GraphQL, a grant cannot be narrower than the path, and an upstream that
// reads a method out of them can be asked for more than the grant has.
package static

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

var schema = grant.MustSchema("static", 1, grant.Dimension{
	Name: "calls", Type: grant.PrefixSet, Values: broker.Methods, Reads: []string{"GET", "HEAD"},
	About: "Requests: the verbs are methods of HTTP, the bucket is the host, and the prefix a path without its first slash, as it is sent.",
})

type provider struct {
	name  string
	cfg   Config
	deps  upstream.Deps
	about broker.Description

	mu   sync.Mutex
	kept secret.String
	ca   []byte
	read time.Time // when they were read
}

var _ broker.Provider = (*provider)(nil)

// Describe is what all providers of this kind say of themselves.
func Describe() broker.Description {
	return broker.Description{
		Kind: "static", About: "one fixed secret, such as an API key, put into requests that the grant allows",
		Class: broker.None, Modes: []broker.Mode{broker.Inject}, Schema: schema, Scheme: "static", Details: "static", TokenType: "Bearer",
		MinLifetime: time.Second, Settable: true, Revokes: "token", Evidence: broker.Asserted,
		Reads: "GET and HEAD (RFC 9110 section 9.2.1)",
	}
}

// Open makes a provider of its settings.
func Open(_ context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	p := &provider{name: name, deps: d, about: Describe()}
	if err := decode(&p.cfg); err != nil {
		return nil, err
	}
	if err := p.cfg.Check(); err != nil {
		return nil, err
	}
	p.about.Origins, p.about.Inject, p.about.Ready, p.about.Check = p.cfg.origins(), p.inject, p.ready, p.check
	return p, nil
}

// Describe implements [broker.Provider].
func (p *provider) Describe() broker.Description { return p.about }

func (p *provider) ready(ctx context.Context) error {
	_, _, err := p.secret(ctx)
	return err
}

const (
	// keepFor is how long a secret is used that has been read once.
	keepFor = time.Minute
	// minSecret is the shortest that can be found again in an answer.
	minSecret = 8
)

// secret returns what is put into requests, and what the upstream is verified by.
func (p *provider) secret(ctx context.Context) (s secret.String, ca []byte, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.deps.Now()
	if !p.kept.Empty() && now.Sub(p.read).Abs() < keepFor {
		return p.kept, p.ca, nil
	}
	p.kept = secret.String{}
	if s, err = p.deps.Secret(ctx, p.cfg.Secret); err == nil {
		err = usable(s)
	}
	if err == nil && p.cfg.CA != "" {
		var text secret.String
		text, err = p.deps.Secret(ctx, p.cfg.CA)
		ca = []byte(text.Reveal())
	}
	if err != nil {
		return s, nil, broker.Fail(broker.Unavailable, fmt.Errorf("read the secret: %w", err), "the upstream's secret cannot be had")
	}
	p.kept, p.ca, p.read = s, ca, now
	return s, ca, nil
}

func usable(s secret.String) error {
	switch {
	case s.Len() < minSecret:
		return fmt.Errorf("it has less than %d bytes, and could not be told from other text in an answer", minSecret)
	case !fitsHeader(s.Reveal()):
		return errors.New("it has a character that no header can hold")
	}
	return nil
}

// fitsHeader reports whether a text can stand in a header (RFC 9110 section 5.5).
func fitsHeader(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}
