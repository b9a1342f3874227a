package slack_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/providers/slack"
	"github.com/stint-dev/stint/scopes/grant"
)

// emulated is a workspace at emulate, which enforces scopes, with a bot that has these.
func emulated(t *testing.T, scopes ...string) (at string) {
	t.Helper()
	return testbed.Emulate(t, "slack", map[string]any{
		"team": map[string]any{"name": "Acme", "domain": "acme"}, "strict_scopes": true,
		"users":    []any{map[string]any{"name": "developer", "real_name": "Developer", "email": "dev@acme.test"}},
		"channels": []any{map[string]any{"name": "general"}, map[string]any{"name": "random"}},
		"tokens":   []any{map[string]any{"token": "xoxb-of-the-bot", "user": "developer", "scopes": scopes}},
	})
}

// call calls a method at emulate with the bot's token.
func call(t *testing.T, at, method string, args url.Values) (ok bool, failure string, body []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at+"/api/"+method, strings.NewReader(args.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer xoxb-of-the-bot")
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ = io.ReadAll(resp.Body)
	var out struct {
		OK    bool   `json:"ok"`
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &out) != nil {
		return false, "not_json", body
	}
	return out.OK, out.Error, body
}

// What is said to read needs no scope that writes, and what is said to write needs one:
// emulate has its own table of that.
func TestTheTableAgreesWithEmulate(t *testing.T) {
	at := emulated(t, "channels:read", "channels:history", "groups:read", "groups:history", "im:read", "im:history", "mpim:read", "mpim:history",
		"users:read", "users:read.email", "users.profile:read", "pins:read", "bookmarks:read", "reactions:read", "team:read")
	_, _, list := call(t, at, "conversations.list", nil)
	var there struct {
		Channels []struct {
			ID string `json:"id"`
		} `json:"channels"`
	}
	if err := json.Unmarshal(list, &there); err != nil || len(there.Channels) == 0 {
		t.Fatalf("%v: %s", err, list)
	}
	id := there.Channels[0].ID
	told := 0
	for _, dim := range slack.Describe().Schema.Dimensions() {
		if dim.Name != "methods" {
			continue
		}
		for _, method := range dim.Values {
			_, failure, _ := call(t, at, method, url.Values{"channel": {id}, "channel_id": {id}, "topic": {"x"}, "purpose": {"x"}, "timestamp": {"1.1"}, "ts": {"1.1"}, "text": {"x"}, "name": {"x"}, "user": {"U0"}, "email": {"x@acme.test"}, "users": {"U0"}})
			if failure == "unknown_method" || failure == "not_json" || failure == "not_found" {
				continue // emulate does not have it
			}
			told++
			if reads := slices.Contains(dim.Reads, method); reads == (failure == "missing_scope") {
				t.Errorf("%s is said to read: %t, and emulate answers %q to who may only read", method, reads, failure)
			}
		}
	}
	if told < 25 {
		t.Errorf("emulate told of %d methods", told)
	}
}

// The provider's requests are Slack's, as emulate has it: names become ids, and a message
// is written in the channel of the grant.
func TestAgainstEmulate(t *testing.T) {
	at := emulated(t, "channels:read", "channels:history", "chat:write")
	w := newWorld(t)
	w.set("file:bot", "xoxb-of-the-bot")
	p := w.process(func(c *slack.Config) {
		c.URL, c.BotToken, c.RefreshToken, c.ClientID, c.ClientSecret = at, "file:bot", "", "", ""
	})
	g := grantOf(t, p, []any{"chat.postMessage", "conversations.history"}, []any{"general"})
	r, err := p.Resolve(t.Context(), broker.ResolveRequest{Grants: []grant.Grant{g}, Live: true})
	if err != nil {
		t.Fatal(err)
	}
	id := r.Names["general"]
	body := url.Values{"channel": {id}, "text": {"hello"}}.Encode()
	in, err := ask(t, p, r.Grants[0], broker.InjectRequest{
		Method: "POST", Host: strings.TrimPrefix(at, "http://"), Path: "/api/chat.postMessage", Body: []byte(body),
		Header: map[string][]string{"Content-Type": {"application/x-www-form-urlencoded"}},
	})
	if err != nil || id == "" || in.Header[0].Value.Reveal() != "Bearer xoxb-of-the-bot" {
		t.Fatalf("%q: %+v, %v", id, in, err)
	}
	if ok, failure, body := call(t, at, "chat.postMessage", url.Values{"channel": {id}, "text": {"hello"}}); !ok {
		t.Fatalf("%s: %s", failure, body)
	}
	if ok, _, body := call(t, at, "conversations.history", url.Values{"channel": {id}}); !ok || !strings.Contains(string(body), "hello") {
		t.Errorf("%s", body)
	}
	// Where emulate is not Slack: tokens do not rotate, and auth.revoke does nothing.
	if ok, failure, _ := call(t, at, "oauth.v2.access", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"xoxe-1-x"}}); ok {
		t.Errorf("tokens rotate by now (%s): the double can go", failure)
	}
}
