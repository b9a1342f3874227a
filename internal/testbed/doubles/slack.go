package doubles

import (
	"crypto/rand"
	"encoding/json"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// Slack stands for Slack's Web API, as far as emulators do not go: tokens that rotate, and
// auth.revoke. Its answers have the shape of the samples that Slack's own SDK for Java
// carries. A bot has one pair of tokens that is good; each use of a refresh token makes
// another, and the one before is no good from then on, at once, which is stricter than
// Slack says it is.
type Slack struct {
	*httptest.Server
	Team, ClientID, ClientSecret string
	// Channels are those of the workspace, by id: the name, with a ! before it if the
	// channel is private.
	Channels map[string]string
	// Late lets a refresh token be used again: that succeeds as well, and the pair that was
	// given before is no good any more, as happens where two refresh at once.
	Late bool
	// Answer changes an answer to a rotation, which has taken effect; nil: it does not. An
	// answer of nil is never given.
	Answer func(answer map[string]any) (int, map[string]any)

	mu              sync.Mutex
	access, refresh string
	used            []string
	rotations       int
	revoked         bool
	calls           []string
}

// NewSlack returns a workspace in which a bot has been installed, with its refresh token.
func NewSlack(team string) (s *Slack, refresh string) {
	s = &Slack{Team: team, ClientID: "111.222", ClientSecret: "app-secret", Channels: map[string]string{}}
	s.access, s.refresh = "xoxe.xoxb-1-"+rand.Text(), "xoxe-1-"+rand.Text()
	s.Server = httptest.NewServer(s)
	return s, s.refresh
}

// Access returns the token that is good now.
func (s *Slack) Access() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.access
}

// Rotations returns how often tokens were made, and Calls the methods that were called
// with a good token, each with its channel.
func (s *Slack) Rotations() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rotations
}

// Calls is described with [Slack.Rotations].
func (s *Slack) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Revoked reports whether the bot was ended for everybody.
func (s *Slack) Revoked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revoked
}

// ServeHTTP implements [http.Handler].
func (s *Slack) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method, ok := strings.CutPrefix(r.URL.EscapedPath(), "/api/")
	if !ok || r.Method != http.MethodPost && r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	args := s.arguments(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if method == "oauth.v2.access" {
		s.rotate(w, r, args)
		return
	}
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case args == nil || args.Has("token"):
		s.fail(w, "invalid_arguments")
	case s.revoked:
		s.fail(w, "account_inactive")
	case !bearer || token == "":
		s.fail(w, "not_authed")
	case token != s.access:
		s.fail(w, "token_expired")
	case method == "auth.revoke":
		s.revoked = true
		s.answer(w, map[string]any{"ok": true, "revoked": true})
	default:
		s.call(w, method, args)
	}
}

// arguments reads those of a call, as generously as Slack does: from everywhere.
func (s *Slack) arguments(r *http.Request) url.Values {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if kind != "application/json" {
		if r.ParseForm() != nil {
			return nil
		}
		return r.Form
	}
	out := r.URL.Query()
	var doc map[string]any
	if json.NewDecoder(r.Body).Decode(&doc) != nil {
		return nil
	}
	for k, v := range doc {
		if text, ok := v.(string); ok {
			out.Set(k, text)
		}
	}
	return out
}

func (s *Slack) answer(w http.ResponseWriter, v map[string]any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(v)
}

func (s *Slack) fail(w http.ResponseWriter, name string) {
	s.answer(w, map[string]any{"ok": false, "error": name})
}

func (s *Slack) call(w http.ResponseWriter, method string, args url.Values) {
	channel := args.Get("channel")
	if channel == "" {
		channel = args.Get("channel_id")
	}
	if _, known := s.Channels[channel]; channel != "" && !known {
		s.fail(w, "channel_not_found")
		return
	}
	if method == "conversations.list" {
		s.list(w, args)
		return
	}
	s.calls = append(s.calls, strings.TrimSpace(method+" "+channel))
	s.answer(w, map[string]any{"ok": true, "channel": channel})
}

// list gives channels two at a time.
func (s *Slack) list(w http.ResponseWriter, args url.Values) {
	types := strings.Split(args.Get("types"), ",")
	var ids []string
	for id, name := range s.Channels {
		kind := "public_channel"
		if strings.HasPrefix(name, "!") {
			kind = "private_channel"
		}
		if slices.Contains(types, kind) && id > args.Get("cursor") {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	next := ""
	if len(ids) > 2 {
		ids = ids[:2]
		next = ids[1]
	}
	list := []any{}
	for _, id := range ids {
		name, private := strings.CutPrefix(s.Channels[id], "!")
		list = append(list, map[string]any{"id": id, "name": name, "is_channel": true, "is_private": private})
	}
	s.answer(w, map[string]any{"ok": true, "channels": list, "response_metadata": map[string]any{"next_cursor": next}})
}

// rotate exchanges a refresh token, once.
func (s *Slack) rotate(w http.ResponseWriter, r *http.Request, args url.Values) {
	id, word, basic := r.BasicAuth()
	given := args.Get("refresh_token")
	switch {
	case r.Method != http.MethodPost || args.Get("grant_type") != "refresh_token" || r.URL.RawQuery != "":
		s.fail(w, "invalid_arguments")
		return
	case !basic || id != s.ClientID:
		s.fail(w, "invalid_client_id")
		return
	case word != s.ClientSecret:
		s.fail(w, "bad_client_secret")
		return
	case s.revoked, given != s.refresh && !(s.Late && slices.Contains(s.used, given)):
		s.fail(w, "invalid_refresh_token")
		return
	}
	s.used = append(s.used, given)
	s.rotations++
	s.access, s.refresh = "xoxe.xoxb-1-"+rand.Text(), "xoxe-1-"+rand.Text()
	answer := map[string]any{
		"ok": true, "access_token": s.access, "token_type": "bot", "scope": "chat:write,channels:read", "bot_user_id": "U0BOT", "app_id": "A0APP",
		"team": map[string]any{"id": s.Team, "name": "Acme"}, "enterprise": nil, "is_enterprise_install": false, "expires_in": 43200,
		"refresh_token": s.refresh, "authed_user": map[string]any{"id": "U0OWNER"},
	}
	if s.Answer == nil {
		s.answer(w, answer)
		return
	}
	code, changed := s.Answer(answer)
	if changed == nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(changed)
}
