// Package slack makes requests of Slack's Web API with an app's bot token.
//
// That token has everything that the app was installed with, for all channels that the bot
// sees, and Slack has no way to narrow it. So it is never handed out: who is granted
// something makes his requests through Stint, which holds each of them to methods and
// channels and puts the token in.
//
//	team: T0123ABCD
//	client_id: "123.456"
//	client_secret: vault:secret/slack#client_secret
//	refresh_token: vault:secret/slack#refresh_token
//
// With token rotation, which every app should have turned on, the settings name the
// refresh token of the install, or any later one. It is used once; what Slack gives in its
// place is kept sealed, and renewed by one replica at a time. Another one in the settings
// is an app that was installed anew, and takes its place. Without rotation the settings
// name the bot token itself.
//
// A grant is methods and channels: `chat.postMessage` in `C0123ABCD`. Methods are those of
// a table, which knows which argument is the channel; what is not in it is not granted. A
// method that names no channel speaks of the whole workspace, and needs all channels, "*".
// Channels are written as ids, or by name, which becomes an id when a grant is made.
//
// Slack takes arguments in several places and ways. A request has them in one: the query,
// a form, or JSON; each once, with names that nobody reads in another way, and no token
// among them.
//
// Channels that are private, and direct messages, are left out unless `private_channels`
// says otherwise: what is public in a workspace is everybody's there, but of the rest Slack
// is not asked what the subject may see. Nor whether there is such a person at all: that is
// for the mapping.
package slack

import (
	"context"
	"net/url"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

var schema = grant.MustSchema("slack", 1,
	grant.Dimension{
		Name: "methods", Type: grant.IDSet, Values: methodNames(false), Reads: methodNames(true),
		About: "Methods of the Web API.",
	},
	grant.Dimension{
		Name: "channels", Type: grant.IDSet,
		About: "Ids of channels; all of them for methods that name none.",
	},
)

type provider struct {
	name   string
	cfg    Config
	deps   upstream.Deps
	client *upstream.Client
	about  broker.Description
	// channels are those of the workspace, by id.
	channels *upstream.Memory[struct{}, map[string]channel]

	mu     sync.Mutex
	kept   secret.String // a token that does not rotate
	read   time.Time     // when it was read
	seeded secret.String // the refresh token that is known to have been kept
}

var _ broker.Provider = (*provider)(nil)

// Describe is what all providers of this kind say of themselves.
func Describe() broker.Description {
	return broker.Description{
		Kind: "slack", About: "the bot of a Slack app: methods of the Web API in channels",
		Class: broker.None, Modes: []broker.Mode{broker.Inject}, Schema: schema, Scheme: "slack", Details: "slack", TokenType: "Bearer",
		MinLifetime: time.Second, Settable: true, Revokes: "token", Evidence: broker.Asserted, Reads: "a table of methods, " + tableVersion,
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
	u, err := url.Parse(p.cfg.URL)
	if err != nil {
		return nil, err
	}
	h, err := d.HTTP([]string{u.Hostname()}, nil)
	if err != nil {
		return nil, err
	}
	p.client, p.channels = upstream.NewClient(name, h), upstream.NewMemory[struct{}, map[string]channel](d.Now)
	p.about.Origins, p.about.Inject, p.about.Ready, p.about.Check = []string{p.cfg.URL}, p.inject, p.ready, check
	return p, nil
}

// Describe implements [broker.Provider].
func (p *provider) Describe() broker.Description { return p.about }

// ready asks for nothing but the token: Slack's own health is not ours to ask for.
func (p *provider) ready(ctx context.Context) error {
	_, err := p.token(ctx)
	return err
}
