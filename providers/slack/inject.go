package slack

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// unclear is the error for a request of which it cannot be told what it asks for.
func unclear(why string) error { return broker.Fail(broker.BadRequest, nil, why) }

// inject is Inject of [broker.Description].
func (p *provider) inject(ctx context.Context, r broker.InjectRequest) (*broker.Injection, error) {
	name, ok := strings.CutPrefix(r.Path, "/api/")
	m, known := methods[name]
	switch {
	case !ok || !known:
		return nil, broker.Fail(broker.BadScope, errors.New("no method of the table"), "the grant does not allow this request")
	case r.Method != http.MethodPost && (r.Method != http.MethodGet || !m.reads):
		return nil, unclear("methods are called by POST, and those that read by GET too")
	}
	args, err := arguments(r)
	if err != nil {
		return nil, err
	}
	need, err := p.need(name, m, args)
	if err != nil {
		return nil, err
	}
	if ok, diffs := grant.Leq(need, r.Grant); !ok || need.IsNothing() {
		return nil, broker.Fail(broker.BadScope, fmt.Errorf("not granted: %v", diffs), "the grant does not allow this request")
	}
	if m.channel != "" {
		if err := p.seen(ctx, r.Grant, args[m.channel]); err != nil {
			return nil, err
		}
	}
	token, err := p.token(ctx)
	if err != nil {
		return nil, err
	}
	return &broker.Injection{
		Header: []broker.Injected{{Name: "Authorization", Value: secret.New("Bearer " + token.Reveal())}}, Scrub: []secret.String{token}, What: name,
	}, nil
}

// arguments reads the arguments of a method, which are in one place. What is no text is
// there as well, as the empty text.
func arguments(r broker.InjectRequest) (map[string]string, error) {
	kinds := r.Header["Content-Type"]
	switch {
	case r.Method == http.MethodGet || len(r.Body) == 0:
		return form(r.Query)
	case r.Query != "":
		return nil, unclear("arguments are in the body or in the query, not in both")
	case len(kinds) != 1:
		return nil, unclear("Content-Type says once what the body is")
	}
	kind, params, err := mime.ParseMediaType(kinds[0])
	charset, named := params["charset"]
	switch {
	case err != nil || named && !strings.EqualFold(charset, "utf-8"):
		return nil, unclear("Content-Type is not understood")
	case kind == "application/x-www-form-urlencoded":
		return form(string(r.Body))
	case kind == "application/json":
		return object(r.Body)
	}
	return nil, unclear("the body is a form or JSON")
}

func form(text string) (map[string]string, error) {
	values, err := url.ParseQuery(text)
	if err != nil {
		return nil, unclear("the arguments are no form")
	}
	out := make(map[string]string, len(values))
	for name, list := range values {
		if len(list) != 1 || !plain(name) {
			return nil, unclear("an argument is repeated, or has a name that is read in several ways")
		}
		out[name] = list[0]
	}
	return out, nil
}

func object(body []byte) (map[string]string, error) {
	var values map[string]any
	if err := strictjson.Decode(body, &values); err != nil || values == nil {
		return nil, unclear("the body is no JSON object, or has a member twice")
	}
	out := make(map[string]string, len(values))
	for name, v := range values {
		if !plain(name) {
			return nil, unclear("an argument has a name that is read in several ways")
		}
		out[name], _ = v.(string)
	}
	return out, nil
}

// plain reports whether the name of an argument is one that every reader takes for the
// same: forms have brackets, dots and spaces that some turn into something else.
func plain(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
}

// need is the least grant that a request needs.
func (p *provider) need(name string, m method, args map[string]string) (grant.Grant, error) {
	for arg, v := range args {
		switch {
		case arg == "token":
			return grant.Grant{}, unclear("the token is for Stint to set")
		case arg == "team_id" && v != p.cfg.Team:
			return grant.Grant{}, unclear("this is another workspace")
		case strings.HasPrefix(arg, "channel") && arg != m.channel:
			return grant.Grant{}, unclear("this method does not name its channel so")
		case arg == "types" && m.lists && !p.cfg.PrivateChannels && v != "public_channel":
			return grant.Grant{}, broker.Fail(broker.BadScope, nil, "private channels are not listed here")
		}
	}
	if m.lists && !p.cfg.PrivateChannels && name != "conversations.list" && args["types"] == "" {
		return grant.Grant{}, broker.Fail(broker.BadScope, nil, "ask for types=public_channel: private channels are not listed here")
	}
	in := any("*")
	if m.channel != "" {
		if !isChannel(args[m.channel]) {
			return grant.Grant{}, unclear("the channel is named once, by its id")
		}
		in = []any{args[m.channel]}
	}
	return schema.ParseValue(map[string]any{"methods": []any{name}, "channels": in})
}

// seen checks that a channel is one that is anybody's. One that a grant names has been
// looked at when that was made.
func (p *provider) seen(ctx context.Context, g grant.Grant, id string) error {
	if all, _ := g.Dimension("channels"); !all || p.cfg.PrivateChannels {
		return nil
	}
	channels, err := p.list(ctx)
	if err != nil {
		return err
	}
	if c, known := channels[id]; !known || c.Private {
		return broker.Fail(broker.BadScope, errors.New("no public channel"), "the grant does not allow this request")
	}
	return nil
}
