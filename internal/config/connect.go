package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes"
)

// ConnectClient is the id of the client by which people sign in to link accounts, where
// administrators sign in by another, or not at all.
const ConnectClient = "stint-connect"

// ConnectScope is the scope of the resource at which people link accounts.
const ConnectScope = "accounts"

// ConnectLifetime is the longest that somebody is signed in to link accounts.
const ConnectLifetime = 15 * time.Minute

// Connect says how people link accounts of their own at upstreams. Who can sign in can
// link: it takes no rights, and gives none.
type Connect struct {
	// SignIn says how they sign in, for at most 15 minutes. Whoever they are there is whose
	// account is linked: exchanges find it for the tokens of the same issuer and subject.
	// Absent: as administrators do (admin.sign_in).
	SignIn *SignIn `yaml:"sign_in,omitempty"`
}

// Check says what is wrong with the connection of accounts.
func (c *Connect) Check() error {
	if c.SignIn == nil {
		return nil
	}
	return c.SignIn.check()
}

// ConnectResource is the identifier of the resource at which people link accounts.
func (c *Config) ConnectResource() string { return c.Issuer + broker.ConnectPath }

// ConnectSignIn is how people sign in to link accounts; nil if nothing says how.
func (c *Config) ConnectSignIn() *SignIn {
	switch {
	case c.Connect != nil && c.Connect.SignIn != nil:
		return c.Connect.SignIn
	case c.Admin != nil:
		return &c.Admin.SignIn
	}
	return nil
}

// ConnectClientID is the id of the client by which people sign in to link accounts: that
// of administrators, if the issuer knows both as one.
func (c *Config) ConnectClientID() string {
	in := c.ConnectSignIn()
	if c.Admin != nil && in != nil && in.Issuer == c.Admin.SignIn.Issuer && in.ClientID == c.Admin.SignIn.ClientID {
		return AdminClient
	}
	return ConnectClient
}

// checkConnect holds the connection of accounts against the rest.
func (c *Config) checkConnect() error {
	if c.Connect == nil {
		return nil
	}
	if c.ConnectSignIn() == nil {
		return errors.New("connect: sign_in: it is absent, and so is admin.sign_in: nobody could sign in")
	}
	if c.Connect.SignIn == nil {
		return nil // admin's is checked there
	}
	return c.checkSignIn("connect", c.Connect.SignIn)
}

// connectNames are names of pages below /connect, which no provider can have besides.
var connectNames = []string{"start", "callback", "end", "cli", "token", "v1"}

// LinkAt says at which of the providers people link accounts: it shows when they are
// opened. The error says what keeps people from doing so.
func (c *Config) LinkAt(providers []string) error {
	c.links = slices.Sorted(slices.Values(providers))
	var wrong scopes.Problems
	for _, p := range c.Providers {
		if !slices.Contains(c.links, p.Name) {
			continue
		}
		if c.ConnectSignIn() == nil {
			wrong = append(wrong, scopes.Problem{Pos: p.Pos, Text: fmt.Sprintf("provider %s: people link accounts of their own at it, and nothing says how they sign in: add connect.sign_in, or admin", p.Name)})
		}
		if slices.Contains(connectNames, p.Name) {
			wrong = append(wrong, scopes.Problem{Pos: p.Pos, Text: fmt.Sprintf("provider %s: a page below /connect has this name: call it otherwise", p.Name)})
		}
	}
	if len(wrong) > 0 {
		if c.ConnectSignIn() == nil {
			c.links = nil // the rest is checked without
		}
		return wrong
	}
	return nil
}

// Links are the providers at which people link accounts, sorted.
func (c *Config) Links() []string { return c.links }

// withConnect adds the mapping of the resource at which people link accounts: who signs
// in may do so, by that sign-in alone, for a short time.
func (c *Config) withConnect(all []*scopes.Mapping) ([]*scopes.Mapping, error) {
	for _, m := range all {
		if m.Resource.Value == c.ConnectResource() {
			return nil, scopes.Problems{{Pos: m.Resource.Pos, Text: "resource: people link accounts there, which Stint's own rule says who may"}}
		}
	}
	if len(c.links) == 0 {
		return all, nil
	}
	in := c.ConnectSignIn()
	place := c.Pos("connect", "sign_in")
	if c.Connect == nil || c.Connect.SignIn == nil {
		place = c.Pos("admin", "sign_in")
	}
	text := func(s string) scopes.Text { return scopes.Text{Value: s, Pos: place} }
	life := min(in.Lifetime.Duration, ConnectLifetime)
	return append(all, &scopes.Mapping{
		Pos: place, Resource: text(c.ConnectResource()), MaxLifetime: scopes.Duration{Duration: life},
		Scopes: map[string]*scopes.Scope{ConnectScope: {Pos: place, Access: scopes.Write, About: "link accounts of one's own, see and unlink them"}},
		Rules: []*scopes.Rule{{Pos: place, Allow: []scopes.Text{text(ConnectScope)}, To: &scopes.To{
			Pos: place, Clients: []scopes.Text{text(c.ConnectClientID())}, Claims: map[string]scopes.Text{"iss": text(in.Issuer)},
		}}},
		Content: [][]byte{[]byte(strings.Join([]string{in.Issuer, in.ClientID, life.String()}, "\x00"))},
	}), nil
}
