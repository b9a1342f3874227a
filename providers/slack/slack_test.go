package slack_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/outbound"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/providers/slack"
	"github.com/stint-dev/stint/scopes/grant"
)

// store keeps parents in memory, by compare-and-set, for several processes.
type store struct {
	mu       sync.Mutex
	fields   map[string]map[string]secret.String
	versions map[string]int
}

func (s *store) Read(_ context.Context, path string) (map[string]secret.String, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.fields[path]
	if !ok {
		return nil, 0, broker.ErrNotFound
	}
	return maps.Clone(f), s.versions[path], nil
}

func (s *store) Write(_ context.Context, path string, fields map[string]secret.String, version int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.versions[path] != version {
		return 0, broker.ErrConflict
	}
	s.fields[path], s.versions[path] = maps.Clone(fields), version+1
	return version + 1, nil
}

type seals struct{}

func (seals) Seal(plain []byte, context string) ([]byte, error) {
	return []byte(context + "\x00" + string(plain)), nil
}

func (seals) Open(sealed []byte, context string) ([]byte, error) {
	plain, ok := strings.CutPrefix(string(sealed), context+"\x00")
	if !ok {
		return nil, errors.New("sealed for another context")
	}
	return []byte(plain), nil
}

// world is a workspace, and what processes share.
type world struct {
	testing.TB
	up      *doubles.Slack
	store   *store
	mu      sync.Mutex
	secrets map[string]string
	ahead   time.Duration
}

func newWorld(t testing.TB) *world {
	up, refresh := doubles.NewSlack("T0ACME")
	t.Cleanup(up.Close)
	up.Channels = map[string]string{"C0GENERAL": "general", "C0RANDOM": "random", "C0OPS": "ops", "C0SECRET": "!secret", "D0DIRECT": "!direct"}
	return &world{TB: t, up: up, store: &store{fields: map[string]map[string]secret.String{}, versions: map[string]int{}}, secrets: map[string]string{
		"file:refresh": refresh, "file:app": up.ClientSecret,
	}}
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.ahead)
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ahead += d
}

// set puts a secret where the settings point to.
func (w *world) set(name, value string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.secrets[name] = value
}

// process opens the provider as one more process does.
func (w *world) process(change func(*slack.Config)) broker.Provider {
	w.Helper()
	cfg := slack.Config{Team: w.up.Team, ClientID: w.up.ClientID, ClientSecret: "file:app", RefreshToken: "file:refresh", URL: w.up.URL}
	if change != nil {
		change(&cfg)
	}
	p, err := slack.Open(w.Context(), "slack", func(v any) error { *v.(*slack.Config) = cfg; return nil }, upstream.Deps{
		Self: "https://stint.test", Now: w.now,
		Secret: func(_ context.Context, ref string) (secret.String, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.secrets[ref] == "" {
				return secret.String{}, errors.New("there is no " + ref)
			}
			return secret.New(w.secrets[ref]), nil
		},
		HTTP: func(hosts []string, _ []byte) (*http.Client, error) {
			return outbound.New(outbound.Policy{Hosts: hosts}), nil
		},
		Parents: upstream.NewParents(upstream.ParentConfig{
			Store: w.store, Sealer: func(context.Context) (broker.Sealer, error) { return seals{}, nil },
			Index: func(_ context.Context, s string) (string, error) { return fmt.Sprintf("%x", s), nil }, Now: w.now,
		}),
	})
	if err != nil {
		w.Fatal(err)
	}
	return p
}

func (w *world) host() string { return strings.TrimPrefix(w.up.URL, "http://") }

func grantOf(t testing.TB, p broker.Provider, methods, channels any) grant.Grant {
	t.Helper()
	g, err := p.Describe().Schema.ParseValue(map[string]any{"methods": methods, "channels": channels})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// session does acts such as "POST chat.postMessage channel=C0GENERAL".
type session struct {
	calls providertest.Calls
	host  string
}

func (s session) Do(ctx context.Context, act string) error {
	parts := strings.Fields(act)
	form := ""
	if len(parts) > 2 {
		form = parts[2]
	}
	r, err := http.NewRequestWithContext(ctx, parts[0], "http://"+s.host+"/api/"+parts[1], strings.NewReader(form))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := s.calls(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var out struct {
		OK    bool   `json:"ok"`
		Error string `json:"error"`
	}
	body, _ := io.ReadAll(resp.Body)
	if err := json.Unmarshal(body, &out); err != nil || !out.OK {
		return fmt.Errorf("%s %w", body, errors.Join(err))
	}
	return nil
}

func (session) Close() {}

func TestProvider(t *testing.T) {
	w := newWorld(t)
	p := w.process(nil)
	acts := map[string]grant.Grant{}
	for _, m := range []string{"chat.postMessage", "conversations.history", "pins.add"} {
		for _, c := range []string{"C0GENERAL", "C0RANDOM"} {
			acts["POST "+m+" channel="+c] = grantOf(t, p, []any{m}, []any{c})
		}
	}
	acts["POST users.info user=U0"] = grantOf(t, p, []any{"users.info"}, "*")
	some := []string{"chat.postMessage", "conversations.history", "pins.add", "users.info"}
	channels := []string{"C0GENERAL", "C0RANDOM", "C0OPS"}
	providertest.Run(t, providertest.Harness{
		Provider: p, Subject: "https://idp.test#alice", Acts: acts, Upstream: "our double",
		Grant: func(r *rand.Rand) grant.Grant {
			if r.IntN(4) == 0 {
				return grantOf(t, p, []any{some[r.IntN(4)], some[r.IntN(4)]}, "*")
			}
			return grantOf(t, p, []any{some[r.IntN(3)], some[r.IntN(3)]}, []any{channels[r.IntN(3)], channels[r.IntN(3)]})
		},
		Inexpressible: []grant.Grant{grantOf(t, p, []any{"users.info"}, []any{"C0GENERAL"}), grantOf(t, p, []any{"pins.add"}, []any{"General!"})},
		Use: func(_ context.Context, c providertest.Calls) (providertest.Session, error) {
			return session{c, w.host()}, nil
		},
		Ends:    func(_ context.Context, m *broker.Minted) (time.Time, error) { return m.Expires, nil },
		Remains: func(context.Context) ([]string, error) { return nil, nil },
	})
	if n := w.up.Rotations(); n != 1 {
		t.Errorf("%d rotations", n)
	}
	if w.up.Revoked() {
		t.Error("the bot was ended for everybody")
	}
}

// ask makes one request by a grant, and says what the provider made of it.
func ask(t testing.TB, p broker.Provider, g grant.Grant, r broker.InjectRequest) (*broker.Injection, error) {
	t.Helper()
	r.Grant = g
	return p.Describe().Inject(t.Context(), r)
}

func TestArgumentsAreReadAsSlackReadsThem(t *testing.T) {
	w := newWorld(t)
	p := w.process(nil)
	g := grantOf(t, p, []any{"chat.postMessage", "conversations.history", "bookmarks.list"}, []any{"C0GENERAL"})
	const form, doc = "application/x-www-form-urlencoded", "application/json; charset=utf-8"
	for name, tc := range map[string]struct {
		method, path, query, kind, body string
		code                            broker.Code
	}{
		"a form":                             {"POST", "/api/chat.postMessage", "", form, "channel=C0GENERAL&text=a%26channel%3DC0RANDOM", ""},
		"JSON":                               {"POST", "/api/chat.postMessage", "", doc, `{"channel":"C0GENERAL","text":"x","blocks":[{"channel":"C0RANDOM"}]}`, ""},
		"a query":                            {"GET", "/api/conversations.history", "channel=C0GENERAL&limit=1", "", "", ""},
		"a query of a POST":                  {"POST", "/api/chat.postMessage", "channel=C0GENERAL&text=x", "", "", ""},
		"another name for the channel":       {"GET", "/api/bookmarks.list", "channel_id=C0GENERAL", "", "", ""},
		"another channel":                    {"POST", "/api/chat.postMessage", "", form, "channel=C0RANDOM", broker.BadScope},
		"another channel in JSON":            {"POST", "/api/chat.postMessage", "", doc, `{"channel":"C0RANDOM"}`, broker.BadScope},
		"another method":                     {"POST", "/api/chat.delete", "", form, "channel=C0GENERAL", broker.BadScope},
		"auth.revoke":                        {"POST", "/api/auth.revoke", "", form, "", broker.BadScope},
		"a method that nobody knows":         {"POST", "/api/chat.postMessage2", "", form, "channel=C0GENERAL", broker.BadScope},
		"another path":                       {"POST", "/api/chat.postMessage/", "", form, "channel=C0GENERAL", broker.BadScope},
		"no method":                          {"POST", "/api/", "", form, "channel=C0GENERAL", broker.BadScope},
		"a write by GET":                     {"GET", "/api/chat.postMessage", "channel=C0GENERAL", "", "", broker.BadRequest},
		"another verb":                       {"DELETE", "/api/conversations.history", "channel=C0GENERAL", "", "", broker.BadRequest},
		"no channel":                         {"POST", "/api/chat.postMessage", "", form, "text=x", broker.BadRequest},
		"an empty channel":                   {"POST", "/api/chat.postMessage", "", form, "channel=", broker.BadRequest},
		"a channel by name":                  {"POST", "/api/chat.postMessage", "", form, "channel=%23general", broker.BadRequest},
		"a person":                           {"POST", "/api/chat.postMessage", "", form, "channel=U0ALICE", broker.BadRequest},
		"two channels":                       {"POST", "/api/chat.postMessage", "", form, "channel=C0GENERAL&channel=C0RANDOM", broker.BadRequest},
		"two channels in one":                {"POST", "/api/chat.postMessage", "", form, "channel=C0GENERAL%2CC0RANDOM", broker.BadRequest},
		"a channel here and there":           {"POST", "/api/chat.postMessage", "channel=C0RANDOM", form, "channel=C0GENERAL", broker.BadRequest},
		"a channel in brackets":              {"POST", "/api/chat.postMessage", "", form, "channel=C0GENERAL&channel%5B%5D=C0RANDOM", broker.BadRequest},
		"a channel behind a space":           {"POST", "/api/chat.postMessage", "", form, "channel=C0GENERAL&+channel=C0RANDOM", broker.BadRequest},
		"a channel in capitals":              {"POST", "/api/chat.postMessage", "", form, "channel=C0GENERAL&Channel=C0RANDOM", broker.BadRequest},
		"a channel before NUL":               {"POST", "/api/chat.postMessage", "", form, "channel=C0GENERAL%00&text=x", broker.BadRequest},
		"channels as well":                   {"POST", "/api/chat.postMessage", "", form, "channel=C0GENERAL&channels=C0RANDOM", broker.BadRequest},
		"channel_id as well":                 {"POST", "/api/chat.postMessage", "", form, "channel=C0GENERAL&channel_id=C0RANDOM", broker.BadRequest},
		"a channel that is a list":           {"POST", "/api/chat.postMessage", "", doc, `{"channel":["C0GENERAL"]}`, broker.BadRequest},
		"a channel twice in JSON":            {"POST", "/api/chat.postMessage", "", doc, `{"channel":"C0GENERAL","channel":"C0RANDOM"}`, broker.BadRequest},
		"a channel twice in JSON, by escape": {"POST", "/api/chat.postMessage", "", doc, `{"channel":"C0GENERAL","\u0063hannel":"C0RANDOM"}`, broker.BadRequest},
		"JSON that is a list":                {"POST", "/api/chat.postMessage", "", doc, `[{"channel":"C0GENERAL"}]`, broker.BadRequest},
		"JSON that goes on":                  {"POST", "/api/chat.postMessage", "", doc, `{"channel":"C0GENERAL"}{}`, broker.BadRequest},
		"JSON that is called a form":         {"POST", "/api/chat.postMessage", "", form, `{"channel":"C0GENERAL"}`, broker.BadRequest},
		"a form that is called JSON":         {"POST", "/api/chat.postMessage", "", doc, "channel=C0GENERAL", broker.BadRequest},
		"a form that is called nothing":      {"POST", "/api/chat.postMessage", "", "", "channel=C0GENERAL", broker.BadRequest},
		"several parts":                      {"POST", "/api/chat.postMessage", "", "multipart/form-data; boundary=x", "channel=C0GENERAL", broker.BadRequest},
		"another charset":                    {"POST", "/api/chat.postMessage", "", "application/x-www-form-urlencoded; charset=utf-7", "channel=C0GENERAL", broker.BadRequest},
		"a token of one's own":               {"POST", "/api/chat.postMessage", "", form, "channel=C0GENERAL&token=xoxb-mine", broker.BadRequest},
		"a token of one's own in JSON":       {"POST", "/api/chat.postMessage", "", doc, `{"channel":"C0GENERAL","token":"xoxb-mine"}`, broker.BadRequest},
		"another workspace":                  {"GET", "/api/conversations.history", "channel=C0GENERAL&team_id=T0OTHER", "", "", broker.BadRequest},
		"a form with half an escape":         {"POST", "/api/chat.postMessage", "", form, "channel=C0GENERAL&text=%", broker.BadRequest},
	} {
		r := broker.InjectRequest{Method: tc.method, Host: w.host(), Path: tc.path, Query: tc.query, Body: []byte(tc.body)}
		if tc.kind != "" {
			r.Header = map[string][]string{"Content-Type": {tc.kind}}
		}
		in, err := ask(t, p, g, r)
		if broker.CodeOf(err) != tc.code {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err == nil && (in.Header[0].Value.Reveal() != "Bearer "+w.up.Access() || in.Scrub[0].Reveal() != w.up.Access() || in.What != strings.TrimPrefix(tc.path, "/api/")) {
			t.Errorf("%s: %+v", name, in)
		}
	}
}

// All channels are all public ones, unless the settings say otherwise.
func TestPrivateChannels(t *testing.T) {
	w := newWorld(t)
	for private, p := range map[bool]broker.Provider{false: w.process(nil), true: w.process(func(c *slack.Config) { c.PrivateChannels = true })} {
		g := grantOf(t, p, []any{"conversations.history", "conversations.list", "users.conversations"}, "*")
		for query, always := range map[string]bool{
			"conversations.history?channel=C0GENERAL": true, "conversations.history?channel=C0SECRET": false, "conversations.history?channel=D0DIRECT": false,
			"conversations.list?": true, "conversations.list?types=public_channel": true, "conversations.list?types=public_channel,private_channel": false,
			"users.conversations?types=public_channel": true, "users.conversations?": false, "users.conversations?types=im": false,
		} {
			name, args, _ := strings.Cut(query, "?")
			_, err := ask(t, p, g, broker.InjectRequest{Method: "GET", Host: w.host(), Path: "/api/" + name, Query: args})
			if want := always || private; (err == nil) != want || err != nil && broker.CodeOf(err) != broker.BadScope {
				t.Errorf("private %t: %s: %v", private, query, err)
			}
		}
		for channel, public := range map[string]bool{"C0GENERAL": true, "general": true, "C0SECRET": false, "secret": false, "C0NOWHERE": false} {
			r, err := p.Resolve(t.Context(), broker.ResolveRequest{Resources: []string{"slack://slack/" + channel}, Live: true})
			want := public || private // whoever may have private ones is not asked whether there are others
			if channel == "C0NOWHERE" {
				want = private
			}
			if (err == nil) != want || err != nil && broker.CodeOf(err) != broker.BadTarget {
				t.Errorf("private %t: %s: %v %v", private, channel, r, err)
			}
		}
	}
}

func TestNamesBecomeIDs(t *testing.T) {
	w := newWorld(t)
	p := w.process(nil)
	all := p.Describe().Schema.Everything()
	mapped := grantOf(t, p, []any{"chat.postMessage"}, []any{"general", "C0OPS"})
	r, err := p.Resolve(t.Context(), broker.ResolveRequest{
		Grants: []grant.Grant{mapped, all}, Resources: []string{"slack://slack/general", "slack://slack/C0RANDOM"}, Live: true,
		Details: []map[string]any{{"provider": "slack", "methods": []any{"chat.postMessage"}, "channels": []any{"general"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Grants[0].String() != `{"channels":["C0GENERAL","C0OPS"],"methods":["chat.postMessage"]}` || !r.Grants[1].Equal(all) || len(r.Parts) != 2 ||
		r.Request.String() != `{"channels":["C0GENERAL"],"methods":["chat.postMessage"]}` || !maps.Equal(r.Names, map[string]string{"general": "C0GENERAL"}) {
		t.Errorf("%+v", r)
	}
	// Not live, nothing is asked, and a name stays one, with which nothing is minted.
	n := w.up.Rotations()
	other := newWorld(t).process(nil)
	r, err = other.Resolve(t.Context(), broker.ResolveRequest{Grants: []grant.Grant{mapped}})
	if err != nil || !r.Grants[0].Equal(mapped) || w.up.Rotations() != n {
		t.Errorf("%v %v", r, err)
	}
	rendered, err := p.Render(mapped)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Mint(t.Context(), broker.MintRequest{Grant: mapped, Rendered: rendered, Expires: w.now().Add(time.Minute)}); err == nil {
		t.Error("a name was minted")
	}
	for _, uri := range []string{"slack://slack/", "slack://slack/General", "slack://other/general", "slack://slack/general/", "slack://slack/*", "slack://slack/%23general", "slack://slack/U0ALICE", "slack://slack/nosuch"} {
		if _, err := p.Resolve(t.Context(), broker.ResolveRequest{Resources: []string{uri}, Live: true}); broker.CodeOf(err) != broker.BadTarget {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// Two processes that need a token at once make one, whoever comes first, again and again.
func TestTwoProcessesRotateOnce(t *testing.T) {
	w := newWorld(t)
	w.up.Late = true // if both rotated, both would succeed, and one would hold what is no good
	processes := []broker.Provider{w.process(nil), w.process(nil)}
	g := grantOf(t, processes[0], []any{"auth.test"}, "*")
	for round := 1; round <= 5; round++ {
		var wait sync.WaitGroup
		tokens := make([]string, 16)
		for i := range tokens {
			wait.Go(func() {
				in, err := ask(t, processes[i%2], g, broker.InjectRequest{Method: "GET", Host: w.host(), Path: "/api/auth.test"})
				if err != nil {
					t.Error(err)
					return
				}
				tokens[i] = in.Scrub[0].Reveal()
			})
		}
		wait.Wait()
		if n := w.up.Rotations(); n != round || slices.ContainsFunc(tokens, func(s string) bool { return s != w.up.Access() }) {
			t.Fatalf("round %d: %d rotations, good is %s, held are %q", round, n, w.up.Access(), tokens)
		}
		w.pass(12 * time.Hour)
	}
}

// A process that ends between Slack's answer and its own record leaves a refresh token
// that was used. Where Slack takes it once more, the next one goes on with it; where it
// does not, the install has to be renewed, by another token in the settings.
func TestAnAnswerIsLostInTheMiddle(t *testing.T) {
	for _, late := range []bool{true, false} {
		w := newWorld(t)
		w.up.Late = late
		w.up.Answer = func(map[string]any) (int, map[string]any) { return 0, nil }
		p := w.process(nil)
		if err := p.Describe().Ready(t.Context()); broker.CodeOf(err) != broker.Unavailable {
			t.Fatal(err)
		}
		w.up.Answer = nil
		w.pass(time.Minute)
		err := w.process(nil).Describe().Ready(t.Context())
		if late {
			if err != nil || w.up.Rotations() != 2 {
				t.Errorf("%v, %d rotations", err, w.up.Rotations())
			}
			continue
		}
		if broker.CodeOf(err) != broker.Unavailable || !errors.Is(err, upstream.ErrDead) {
			t.Errorf("%v", err)
		}
		// Installed anew: another refresh token stands in the settings, at every process.
		up, refresh := doubles.NewSlack("T0ACME")
		t.Cleanup(up.Close)
		w.up = up
		w.set("file:refresh", refresh)
		one, two := w.process(nil), w.process(nil)
		for _, p := range []broker.Provider{one, two, one} {
			if err := p.Describe().Ready(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if up.Rotations() != 1 {
			t.Errorf("%d rotations", up.Rotations())
		}
	}
}

func TestRotationsThatAreRefused(t *testing.T) {
	type object = map[string]any
	for name, tc := range map[string]struct {
		answer    func(object) (int, object)
		code      broker.Code
		dead      bool
		uncertain bool
	}{
		"in Slack's form":         {answer: func(object) (int, object) { return 200, object{"ok": false, "error": "invalid_refresh_token"} }, code: broker.Unavailable, dead: true},
		"in the form of OAuth":    {answer: func(object) (int, object) { return 400, object{"error": "invalid_grant"} }, code: broker.Unavailable, dead: true},
		"the app is gone":         {answer: func(object) (int, object) { return 200, object{"ok": false, "error": "account_inactive"} }, code: broker.Unavailable, dead: true},
		"a wrong secret":          {answer: func(object) (int, object) { return 200, object{"ok": false, "error": "bad_client_secret"} }, code: broker.Unavailable},
		"too often":               {answer: func(object) (int, object) { return 200, object{"ok": false, "error": "ratelimited"} }, code: broker.Limited},
		"429":                     {answer: func(object) (int, object) { return 429, object{} }, code: broker.Limited},
		"by an inner error":       {answer: func(object) (int, object) { return 200, object{"ok": false, "error": "internal_error"} }, code: broker.Unavailable, uncertain: true},
		"500":                     {answer: func(object) (int, object) { return 500, object{} }, code: broker.Unavailable, uncertain: true},
		"another workspace":       {answer: func(a object) (int, object) { a["team"] = object{"id": "T0OTHER"}; return 200, a }, code: broker.Unavailable, dead: true},
		"the token of a person":   {answer: func(a object) (int, object) { a["token_type"] = "user"; return 200, a }, code: broker.Unavailable, uncertain: true},
		"without a refresh token": {answer: func(a object) (int, object) { delete(a, "refresh_token"); return 200, a }, code: broker.Unavailable, uncertain: true},
		"without an end":          {answer: func(a object) (int, object) { delete(a, "expires_in"); return 200, a }, code: broker.Unavailable, uncertain: true},
		"an unknown error":        {answer: func(object) (int, object) { return 200, object{"ok": false, "error": "<b>xoxe-1-canary</b>"} }, code: broker.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.up.Answer = tc.answer
			p := w.process(nil)
			err := p.Describe().Ready(t.Context())
			if broker.CodeOf(err) != tc.code || errors.Is(err, upstream.ErrDead) != tc.dead || errors.Is(err, upstream.ErrUncertain) != tc.uncertain || strings.Contains(err.Error(), "canary") {
				t.Errorf("%v", err)
			}
			if tc.uncertain {
				return // the next one waits until no answer can be under way any more
			}
			g := grantOf(t, p, []any{"auth.test"}, "*")
			rendered, err := p.Render(g)
			if err != nil {
				t.Fatal(err)
			}
			if m, err := p.Mint(t.Context(), broker.MintRequest{Grant: g, Rendered: rendered, Expires: w.now().Add(time.Minute)}); err == nil {
				t.Errorf("minted %+v", m)
			}
		})
	}
}

func TestATokenThatDoesNotRotate(t *testing.T) {
	w := newWorld(t)
	w.set("file:bot", w.up.Access())
	p := w.process(func(c *slack.Config) { c.BotToken, c.RefreshToken, c.ClientID, c.ClientSecret = "file:bot", "", "", "" })
	g := grantOf(t, p, []any{"auth.test"}, "*")
	use := func() (string, error) {
		in, err := ask(t, p, g, broker.InjectRequest{Method: "GET", Host: w.host(), Path: "/api/auth.test"})
		if err != nil {
			return "", err
		}
		return in.Scrub[0].Reveal(), nil
	}
	if got, err := use(); got != w.up.Access() || err != nil || w.up.Rotations() != 0 {
		t.Errorf("%v", err)
	}
	w.set("file:bot", "xoxb-another-one")
	if got, _ := use(); got != w.up.Access() {
		t.Error("it is read for each request")
	}
	if w.pass(time.Minute); true {
		if got, err := use(); got != "xoxb-another-one" {
			t.Errorf("the old one is used: %v", err)
		}
	}
	w.set("file:bot", "no token")
	w.pass(time.Minute)
	if _, err := use(); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("%v", err)
	}
}

// Whatever Revoke is asked, Slack hears nothing of it.
func TestRevokingALeaseLeavesTheBotAlone(t *testing.T) {
	w := newWorld(t)
	p := w.process(nil)
	for at, want := range map[time.Duration]broker.OutcomeState{time.Minute: broker.Revoked, -time.Minute: broker.AlreadyDead} {
		o, err := p.Revoke(t.Context(), broker.RevokeLease{Lease: "x", Expires: w.now().Add(at)})
		if err != nil || o.State != want || w.up.Revoked() || len(w.up.Calls()) > 0 {
			t.Errorf("%v %v", o, err)
		}
	}
}

func TestTheTableOfMethods(t *testing.T) {
	d := slack.Describe()
	for _, dim := range d.Schema.Dimensions() {
		if dim.Name != "methods" {
			continue
		}
		for _, never := range []string{"auth.revoke", "oauth.v2.access", "oauth.v2.exchange", "apps.uninstall", "admin.users.invite", "search.messages", "files.list", "chat.unfurl", "conversations.open"} {
			if slices.Contains(dim.Values, never) {
				t.Errorf("%s can be granted", never)
			}
		}
		for _, m := range dim.Reads {
			last := m[strings.LastIndex(m, ".")+1:]
			if !slices.Contains([]string{"test", "list", "info", "history", "replies", "members", "get", "getPermalink", "getPresence", "lookupByEmail", "conversations"}, last) {
				t.Errorf("%s is said to read", m)
			}
		}
		if len(dim.Values) < 40 || len(dim.Reads) > len(dim.Values)-20 {
			t.Errorf("%d methods, %d of them read", len(dim.Values), len(dim.Reads))
		}
	}
}

func TestSettingsThatCannotBe(t *testing.T) {
	good := func() slack.Config {
		return slack.Config{Team: "T0ACME", RefreshToken: "file:r", ClientID: "1.2", ClientSecret: "file:s"}
	}
	for name, change := range map[string]func(*slack.Config){
		"no token":               func(c *slack.Config) { c.RefreshToken = "" },
		"two tokens":             func(c *slack.Config) { c.BotToken = "file:b" },
		"no client":              func(c *slack.Config) { c.ClientID = "" },
		"no secret":              func(c *slack.Config) { c.ClientSecret = "" },
		"a client for no reason": func(c *slack.Config) { c.BotToken, c.RefreshToken = "file:b", "" },
		"no workspace":           func(c *slack.Config) { c.Team = "acme" },
		"plain HTTP":             func(c *slack.Config) { c.URL = "http://slack.com" },
		"a path":                 func(c *slack.Config) { c.URL = "https://slack.com/api" },
		"capitals":               func(c *slack.Config) { c.URL = "https://Slack.com" },
	} {
		c := good()
		change(&c)
		if err := c.Check(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	c := good()
	if err := c.Check(); err != nil || c.URL != "https://slack.com" {
		t.Errorf("%v, %s", err, c.URL)
	}
}
