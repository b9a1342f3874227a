package slack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

// channel is what is known of one.
type channel struct {
	Name    string
	Private bool
}

const (
	pageSize = "200" // as Slack recommends
	maxPages = 100
)

// list returns the channels of the workspace that the bot sees, as they were within the
// last minute.
func (p *provider) list(ctx context.Context) (map[string]channel, error) {
	return p.channels.Get(ctx, struct{}{}, func(ctx context.Context) (map[string]channel, bool, error) {
		types := "public_channel"
		if p.cfg.PrivateChannels {
			types = "public_channel,private_channel"
		}
		out, cursor := map[string]channel{}, ""
		for range maxPages {
			var page struct {
				status
				Channels []struct {
					ID      string `json:"id"`
					Name    string `json:"name"`
					Private bool   `json:"is_private"`
				} `json:"channels"`
				Metadata struct {
					Next string `json:"next_cursor"`
				} `json:"response_metadata"`
			}
			q := url.Values{"types": {types}, "limit": {pageSize}}
			if cursor != "" {
				q.Set("cursor", cursor)
			}
			if err := p.ask(ctx, "conversations.list", q, &page, &page.status); err != nil {
				return nil, false, err
			}
			for _, c := range page.Channels {
				if isChannel(c.ID) {
					out[c.ID] = channel{c.Name, c.Private}
				}
			}
			if cursor = page.Metadata.Next; cursor == "" {
				return out, true, nil
			}
		}
		return nil, false, broker.Fail(broker.Unavailable, errors.New("the list of channels has no end"), "the upstream's channels cannot be listed")
	})
}

// ask calls a method that reads.
func (p *provider) ask(ctx context.Context, name string, args url.Values, into any, s *status) error {
	token, err := p.token(ctx)
	if err != nil {
		return err
	}
	a, err := p.client.Do(ctx, upstream.Request{Method: "POST", URL: p.cfg.URL + "/api/" + name, Form: args, Bearer: token})
	if err != nil {
		return err
	}
	if err := a.JSON(into); err != nil || !s.OK {
		return broker.Fail(broker.Unavailable, errors.Join(fmt.Errorf("%s: %s", name, s.shown()), err), "the upstream does not answer as it should")
	}
	return nil
}

// Resolve implements [broker.Provider].
func (p *provider) Resolve(ctx context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	n := &naming{p: p, ctx: ctx, live: r.Live, names: map[string]string{}}
	out := &broker.Resolved{
		Request: schema.Everything(), Entitlement: schema.Everything(),
		Basis: "public channels are everybody's in the workspace; Slack is not asked about the subject",
	}
	if p.cfg.PrivateChannels {
		out.Basis = "Slack is not asked about the subject: the mapping knows"
	}
	for i, uri := range r.Resources {
		part, err := n.part(uri)
		if err != nil {
			return nil, n.failed(broker.BadTarget, err)
		}
		out.Parts = append(out.Parts, part)
		if i > 0 {
			part, _ = grant.Union(out.Request, part) // they differ in one dimension
		}
		out.Request = part
	}
	for _, d := range r.Details {
		wanted, err := n.wanted(d)
		if err != nil || out.Wanted != nil {
			return nil, n.failed(broker.BadDetails, errors.Join(err, errors.New("authorization_details: one object with methods and channels is wanted")))
		}
		out.Wanted, out.Request = &wanted, grant.Meet(out.Request, wanted)
	}
	for _, g := range r.Grants {
		rewritten, err := n.rewrite(g)
		if err != nil {
			return nil, n.failed(broker.BadTarget, err)
		}
		out.Grants = append(out.Grants, rewritten)
	}
	if len(n.names) > 0 {
		out.Names = n.names
	}
	return out, nil
}

// naming turns names of channels into ids, for one request.
type naming struct {
	p     *provider
	ctx   context.Context
	live  bool
	names map[string]string
}

// failed is the error for what a request names. What went wrong upstream keeps its code.
func (n *naming) failed(code broker.Code, err error) error {
	if e := (*broker.Error)(nil); errors.As(err, &e) {
		return e
	}
	return broker.Fail(code, err, err.Error())
}

// part is what slack://PROVIDER/CHANNEL names. The error may be shown.
func (n *naming) part(uri string) (grant.Grant, error) {
	name, ours := strings.CutPrefix(uri, "slack://"+n.p.name+"/")
	if !ours || !isChannel(name) && !isName(name) {
		return grant.Grant{}, fmt.Errorf("name a channel as slack://%s/CHANNEL, by id or name", n.p.name)
	}
	g, err := schema.Limit(map[string]any{"channels": []any{name}})
	if err != nil {
		return g, err
	}
	return n.rewrite(g)
}

// wanted is what an object of the authorization details asks for. The error may be shown.
func (n *naming) wanted(d map[string]any) (grant.Grant, error) {
	given := make(map[string]any, len(d))
	for k, v := range d {
		if k != "provider" {
			given[k] = v
		} else if v != n.p.name {
			return grant.Grant{}, fmt.Errorf("provider is not %s", n.p.name)
		}
	}
	g, err := schema.ParseValue(given)
	if err != nil {
		return g, err
	}
	if g.IsNothing() {
		return g, errors.New("at least one method and one channel are needed")
	}
	return n.rewrite(g)
}

// rewrite puts ids in the place of names. The error may be shown.
func (n *naming) rewrite(g grant.Grant) (grant.Grant, error) {
	all, given := g.Dimension("channels")
	if all || g.IsNothing() {
		return g, nil
	}
	if err := check(g); err != nil {
		return g, err
	}
	ids := make([]any, len(given))
	for i, a := range given {
		id, err := n.id(a[0])
		if err != nil {
			return g, err
		}
		ids[i] = id
	}
	limit, err := schema.Limit(map[string]any{"channels": ids})
	if err != nil {
		return g, err
	}
	everywhere, err := schema.ParseValue(map[string]any{"methods": methodsOf(g), "channels": "*"})
	if err != nil {
		return g, err
	}
	return grant.Meet(everywhere, limit), nil
}

func methodsOf(g grant.Grant) any {
	all, list := g.Dimension("methods")
	if all {
		return "*"
	}
	out := make([]any, len(list))
	for i, a := range list {
		out[i] = a[0]
	}
	return out
}

// id is that of a channel that is written by id or name, and that may be granted.
func (n *naming) id(text string) (string, error) {
	if !n.live || n.p.cfg.PrivateChannels && isChannel(text) {
		return text, nil // a name is not rendered for anybody: see Mint
	}
	channels, err := n.p.list(n.ctx)
	if err != nil {
		return "", err
	}
	if isChannel(text) {
		if c, known := channels[text]; !known || c.Private {
			return "", fmt.Errorf("channels: there is no public channel %s", text)
		}
		return text, nil
	}
	var found []string
	for id, c := range channels {
		if c.Name == text {
			found = append(found, id)
		}
	}
	if len(found) != 1 {
		slices.Sort(found)
		return "", fmt.Errorf("channels: %d channels are called %s", len(found), text)
	}
	n.names[text] = found[0]
	return found[0], nil
}

// isName reports whether a text can be the name of a channel: those have no capitals, which
// every id has.
func isName(s string) bool {
	return s != "" && len(s) <= 240 && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '-' && r != '_' && (!unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.IsMark(r) || unicode.IsUpper(r))
	})
}

// check says what is wrong with a grant that no provider of the kind can be asked for. The
// error may be shown.
func check(g grant.Grant) error {
	all, channels := g.Dimension("channels")
	for _, c := range channels {
		if !isChannel(c[0]) && !isName(c[0]) {
			return fmt.Errorf("channels: %q is neither the id nor the name of one", c[0])
		}
	}
	anywhere, list := g.Dimension("methods")
	if all || anywhere {
		return nil
	}
	for _, m := range list {
		if methods[m[0]].channel == "" {
			return fmt.Errorf("methods: %s names no channel, and needs channels to be \"*\"", m[0])
		}
	}
	return nil
}
