// Package doubles has upstreams of which there is no real one to test with: strict, and
// able to give too much when they are told to.
package doubles

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
)

// What GitHub does where it is not as it should be.
const (
	GitHubAllRepositories  = "the token is for all repositories"
	GitHubMorePermission   = "the token has a permission more"
	GitHubHigherLevel      = "the token has a higher level"
	GitHubLastsLonger      = "the token lives a day"
	GitHubSaysNothing      = "the answer does not say what the token is for"
	GitHubLosesAnswers     = "the answer is lost"
	GitHubAnotherOwner     = "the token is of another owner" // of a user's
	GitHubIsLimited        = "the rate limit is used up"
	GitHubRefusesRenewals  = "the user has revoked the App"
	GitHubUserTokensRemain = "the App's user tokens do not expire"
)

// GitHub is GitHub as emulate has it, which enforces what a token may do, with what
// emulate lacks before it: the end of tokens, tokens of users that are renewed and
// narrowed, and App tokens of the form of 2026. Every request that GitHub's own
// description has is held against it. Its fields are set before it is used.
type GitHub struct {
	*httptest.Server
	// ClientID and Secret are those of the App that users sign in to. Users are the ids of
	// users by name, with what each may do by itself: none, read or write, by
	// OWNER/NAME.
	ClientID, Secret string
	Users            map[string]*GitHubUser
	// App asks emulate for an installation token.
	App func(permissions map[string]string, ids []int64) (token string, answer map[string]any)
	// Owner is the id of the one account, and Repositories its repositories' ids by name.
	Owner        int64
	Repositories map[string]int64
	Now          func() time.Time

	mu       sync.Mutex
	over     string
	upstream *httputil.ReverseProxy
	router   routers.Router
	strange  []string
	ended    map[string]bool
	aliases  map[string]string // what emulate calls a token that we handed out
	until    map[string]time.Time
	refresh  map[string]string // user by refresh token
	used     map[string]bool
	codes    map[string]githubCode
	users    map[string]string // user by access token
	scoped   map[string][]int64
	n        int
	own      map[string]bool // tokens that read metadata alone, and users' own
	family   map[string]bool // users whose tokens were all ended
	renewals int
	left     int // of the rate limit, if limited
	limited  bool
}

// GitHubUser is a user.
type GitHubUser struct {
	ID     int64
	Rights map[string]string // permission by repository's name
}

type githubCode struct{ user, challenge, redirect string }

// NewGitHub starts a double before an emulate. description is GitHub's own, as JSON.
func NewGitHub(emulate string, description []byte) (*GitHub, error) {
	target, err := url.Parse(emulate)
	if err != nil {
		return nil, err
	}
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromData(description)
	if err != nil {
		return nil, err
	}
	g := &GitHub{
		Now: time.Now, ended: map[string]bool{}, aliases: map[string]string{}, until: map[string]time.Time{}, refresh: map[string]string{},
		used: map[string]bool{}, codes: map[string]githubCode{}, users: map[string]string{}, scoped: map[string][]int64{}, family: map[string]bool{}, own: map[string]bool{},
		Users: map[string]*GitHubUser{}, Repositories: map[string]int64{},
	}
	g.Server = httptest.NewServer(http.HandlerFunc(g.serve))
	doc.Servers = openapi3.Servers{{URL: g.URL}}
	if g.router, err = legacy.NewRouter(doc, openapi3.DisableExamplesValidation(), openapi3.DisableSchemaDefaultsValidation()); err != nil {
		g.Close()
		return nil, err
	}
	g.upstream = httputil.NewSingleHostReverseProxy(target)
	g.upstream.ModifyResponse = g.modify
	return g, nil
}

// Over has it misbehave in one way; empty: not at all.
func (g *GitHub) Over(how string) { g.mu.Lock(); g.over = how; g.mu.Unlock() }

// Left has installation tokens come with so much left of the rate limit; negative: as
// emulate says.
func (g *GitHub) Left(n int) { g.mu.Lock(); g.left, g.limited = n, n >= 0; g.mu.Unlock() }

// Strange returns what was asked that GitHub's own description does not allow.
func (g *GitHub) Strange() []string { g.mu.Lock(); defer g.mu.Unlock(); return slices.Clone(g.strange) }

// Renewals is how often a user's tokens were renewed.
func (g *GitHub) Renewals() int { g.mu.Lock(); defer g.mu.Unlock(); return g.renewals }

// Alive lists the tokens that were handed out, and neither ended nor ran out: but for
// those that can read metadata alone, and users' own, which are narrowed.
func (g *GitHub) Alive() (tokens []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for token, until := range g.until {
		if !g.own[token] && !g.ended[token] && g.Now().Before(until) {
			tokens = append(tokens, token)
		}
	}
	return tokens
}

// Ends is when a token that was handed out ends.
func (g *GitHub) Ends(token string) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.until[token]
}

// Code is what a user's browser brings back from signing in, for a request as the
// authorization endpoint got it.
func (g *GitHub) Code(user, where string) (code string, err error) {
	u, err := url.Parse(where)
	if err != nil {
		return "", err
	}
	q := u.Query()
	if u.Path != "/login/oauth/authorize" || q.Get("client_id") != g.ClientID || q.Get("code_challenge_method") != "S256" || q.Get("state") == "" {
		return "", fmt.Errorf("GitHub would not take %s", where)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
	code = fmt.Sprint("code-", g.n)
	g.codes[code] = githubCode{user, q.Get("code_challenge"), q.Get("redirect_uri")}
	return code, nil
}

func bearer(r *http.Request) string {
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

// check holds a request against GitHub's description, where that has it.
func (g *GitHub) check(r *http.Request, body []byte) {
	route, params, err := g.router.FindRoute(r)
	if err != nil {
		return // not described
	}
	clone := r.Clone(r.Context())
	clone.Body = io.NopCloser(bytes.NewReader(body))
	err = openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request: clone, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc},
	})
	// The description leaves the permissions open: there is no other than those in it.
	var sent struct {
		Permissions map[string]string `json:"permissions"`
	}
	if err == nil && json.Unmarshal(body, &sent) == nil && sent.Permissions != nil {
		known := route.Spec.Components.Schemas["app-permissions"].Value.Properties
		for key := range sent.Permissions {
			if known[key] == nil {
				err = fmt.Errorf("there is no permission %q", key)
			}
		}
	}
	if err != nil {
		g.strange = append(g.strange, r.Method+" "+r.URL.Path+": "+err.Error())
	}
}

func (g *GitHub) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	g.mu.Lock()
	g.check(r, body)
	token := bearer(r)
	dead := g.ended[token] || !g.until[token].IsZero() && !g.Now().Before(g.until[token]) || g.family[g.users[token]]
	over := g.over
	alias := g.aliases[token]
	g.mu.Unlock()
	say := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if v != nil {
			_ = json.NewEncoder(w).Encode(v)
		}
	}
	switch path := r.URL.Path; {
	case over == GitHubIsLimited:
		w.Header().Set("X-Ratelimit-Remaining", "0")
		w.Header().Set("X-Ratelimit-Reset", fmt.Sprint(g.Now().Add(90*time.Second).Unix()))
		say(http.StatusForbidden, map[string]any{"message": "API rate limit exceeded"})
	case dead:
		say(http.StatusUnauthorized, map[string]any{"message": "Bad credentials"})
	case path == "/app":
		say(http.StatusOK, map[string]any{"id": 12345})
	case path == "/installation/token" && r.Method == http.MethodDelete:
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.until[token].IsZero() || g.users[token] != "" {
			say(http.StatusUnauthorized, map[string]any{"message": "Bad credentials"})
			return
		}
		g.ended[token] = true
		w.WriteHeader(http.StatusNoContent)
	case path == "/login/oauth/access_token" && r.Method == http.MethodPost:
		say(http.StatusOK, g.signIn(body))
	case strings.HasPrefix(path, "/applications/"+g.ClientID+"/"):
		g.application(w, r, strings.TrimPrefix(path, "/applications/"+g.ClientID), body, say)
	case path == "/user" && g.userOf(token) != "":
		say(http.StatusOK, map[string]any{"id": g.Users[g.userOf(token)].ID, "login": g.userOf(token)})
	case strings.HasPrefix(path, "/user/installations"):
		g.installations(path, token, say)
	case strings.HasPrefix(path, "/user/") && r.Method == http.MethodGet:
		for name, u := range g.Users {
			if path == fmt.Sprint("/user/", u.ID) {
				say(http.StatusOK, map[string]any{"id": u.ID, "login": name})
				return
			}
		}
		say(http.StatusNotFound, nil)
	case strings.HasSuffix(path, "/permission") && strings.Contains(path, "/collaborators/"):
		g.permission(path, say)
	default:
		if alias != "" {
			r.Header.Set("Authorization", "Bearer "+alias)
		}
		if strings.HasSuffix(path, "/access_tokens") {
			g.widen(r, body)
		}
		g.upstream.ServeHTTP(w, r)
	}
}

func (g *GitHub) userOf(token string) string { g.mu.Lock(); defer g.mu.Unlock(); return g.users[token] }

// permission says what a collaborator may do: emulate's own word for it is not of the
// rights that tests set.
func (g *GitHub) permission(path string, say func(int, any)) {
	part := strings.Split(strings.Trim(path, "/"), "/") // repos OWNER NAME collaborators LOGIN permission
	u := g.Users[part[4]]
	if u == nil || g.Repositories[part[2]] == 0 {
		say(http.StatusNotFound, map[string]any{"message": "Not Found"})
		return
	}
	permission := u.Rights[part[2]]
	if permission == "" {
		permission = "none"
	}
	say(http.StatusOK, map[string]any{"permission": permission, "role_name": permission})
}

// widen changes what emulate is asked for.
func (g *GitHub) widen(r *http.Request, body []byte) {
	var in map[string]any
	if json.Unmarshal(body, &in) != nil {
		return
	}
	permissions, _ := in["permissions"].(map[string]any)
	switch g.over {
	case GitHubAllRepositories:
		delete(in, "repository_ids")
	case GitHubMorePermission:
		permissions["pull_requests"] = "read"
	case GitHubHigherLevel:
		raised := false
		for key, level := range permissions {
			permissions[key], raised = "write", raised || level == "read"
		}
		if !raised { // there is nothing higher: of another
			permissions["pull_requests"] = "write"
		}
	}
	changed, _ := json.Marshal(in)
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(changed)), int64(len(changed))
	r.Header.Set("Content-Length", fmt.Sprint(len(changed)))
}

// modify gives emulate's tokens the form that GitHub's have now, and an owner to the
// repositories in its answers, as GitHub's have.
func (g *GitHub) modify(resp *http.Response) error {
	if !strings.HasSuffix(resp.Request.URL.Path, "/access_tokens") || resp.StatusCode != http.StatusCreated {
		return nil
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.limited {
		resp.Header.Set("X-Ratelimit-Remaining", fmt.Sprint(g.left))
		resp.Header.Set("X-Ratelimit-Reset", fmt.Sprint(g.Now().Add(10*time.Minute).Unix()))
	}
	g.n++
	text, _ := out["token"].(string)
	long := fmt.Sprintf("ghs_12345_eyJ%s.%s", strings.Repeat("x", 480), strings.TrimPrefix(text, "ghs_"))
	g.aliases[long] = text
	g.until[long] = g.Now().Add(time.Hour).Truncate(time.Second)
	out["token"], out["expires_at"] = long, g.until[long].Format(time.RFC3339)
	if permissions, _ := out["permissions"].(map[string]any); len(permissions) == 1 && permissions["metadata"] != nil {
		g.own[long] = true
	}
	if list, ok := out["repositories"].([]any); ok {
		for _, e := range list {
			e.(map[string]any)["owner"] = map[string]any{"id": g.Owner, "login": "acme"}
		}
	}
	switch g.over {
	case GitHubLastsLonger:
		g.until[long] = g.Now().Add(24 * time.Hour).Truncate(time.Second)
		out["expires_at"] = g.until[long].Format(time.RFC3339)
	case GitHubSaysNothing:
		delete(out, "permissions")
		delete(out, "repository_selection")
		delete(out, "repositories")
	case GitHubLosesAnswers:
		out = map[string]any{}
	}
	if data, err = json.Marshal(out); err != nil {
		return err
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
	resp.Header.Set("Content-Length", fmt.Sprint(len(data)))
	return nil
}

// signIn exchanges codes and refresh tokens. What is refused is said with status 200. A
// refresh token that is shown a second time ends all that the user has: it was stolen.
func (g *GitHub) signIn(body []byte) map[string]any {
	form, err := url.ParseQuery(string(body))
	g.mu.Lock()
	defer g.mu.Unlock()
	no := func(what string) map[string]any { return map[string]any{"error": what, "error_description": "no"} }
	if err != nil || form.Get("client_id") != g.ClientID || form.Get("client_secret") != g.Secret {
		return no("incorrect_client_credentials")
	}
	user := ""
	if form.Get("grant_type") == "refresh_token" {
		old := form.Get("refresh_token")
		user = g.refresh[old]
		if g.used[old] {
			g.family[user] = true
		}
		if user == "" || g.used[old] || g.family[user] || g.over == GitHubRefusesRenewals {
			return no("bad_refresh_token")
		}
		g.used[old] = true
		g.renewals++
	} else {
		code := form.Get("code")
		c, known := g.codes[code]
		delete(g.codes, code)
		sum := sha256.Sum256([]byte(form.Get("code_verifier")))
		if !known || base64.RawURLEncoding.EncodeToString(sum[:]) != c.challenge || form.Get("redirect_uri") != c.redirect {
			return no("bad_verification_code")
		}
		user = c.user
		delete(g.family, user)
	}
	g.n++
	access, refresh := fmt.Sprint("ghu_", g.n), fmt.Sprint("ghr_", g.n)
	for token, of := range g.users { // the old one dies with the renewal
		if of == user && g.scoped[token] == nil {
			g.ended[token] = true
		}
	}
	g.users[access], g.refresh[refresh], g.until[access], g.own[access] = user, user, g.Now().Add(8*time.Hour), true
	out := map[string]any{"access_token": access, "token_type": "bearer", "scope": "", "expires_in": 28800, "refresh_token": refresh, "refresh_token_expires_in": 15897600}
	if g.over == GitHubUserTokensRemain {
		delete(out, "refresh_token")
		delete(out, "expires_in")
	}
	if g.over == GitHubLosesAnswers {
		return map[string]any{}
	}
	return out
}

// application is what the App does to its users' tokens, by its secret.
func (g *GitHub) application(w http.ResponseWriter, r *http.Request, path string, body []byte, say func(int, any)) {
	id, word, _ := r.BasicAuth()
	var in struct {
		Access      string            `json:"access_token"`
		Target      int64             `json:"target_id"`
		IDs         []int64           `json:"repository_ids"`
		Permissions map[string]string `json:"permissions"`
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := json.Unmarshal(body, &in); err != nil || id != g.ClientID || word != g.Secret {
		say(http.StatusUnauthorized, nil)
		return
	}
	user := g.users[in.Access]
	if user == "" || g.ended[in.Access] || g.family[user] {
		say(http.StatusNotFound, map[string]any{"message": "Not Found"})
		return
	}
	switch r.Method + path {
	case "DELETE/token":
		g.ended[in.Access] = true
		w.WriteHeader(http.StatusNoContent)
	case "DELETE/grant":
		g.family[user] = true
		w.WriteHeader(http.StatusNoContent)
	case "POST/token/scoped":
		g.narrow(user, in.Access, in.Target, in.IDs, in.Permissions, say)
	default:
		say(http.StatusNotFound, nil)
	}
}

// narrow makes a token of a user's narrower: GitHub intersects it with what the user may.
func (g *GitHub) narrow(user, access string, target int64, ids []int64, permissions map[string]string, say func(int, any)) {
	if target != g.Owner || g.scoped[access] != nil {
		say(http.StatusUnprocessableEntity, map[string]any{"message": "Validation Failed"})
		return
	}
	switch g.over {
	case GitHubAllRepositories:
		ids = nil
	case GitHubMorePermission:
		permissions = maps.Clone(permissions)
		permissions["metadata"], permissions["checks"] = "read", "read"
	case GitHubHigherLevel:
		permissions = maps.Clone(permissions)
		for key := range permissions {
			permissions[key] = "write"
		}
	}
	all := len(ids) == 0
	var may []int64
	for name, id := range g.Repositories {
		if right := g.Users[user].Rights[name]; right != "" && right != "none" && (all || slices.Contains(ids, id)) {
			may = append(may, id)
		}
	}
	if len(may) == 0 {
		say(http.StatusUnprocessableEntity, map[string]any{"message": "Validation Failed"})
		return
	}
	enforced := maps.Clone(permissions)
	delete(enforced, "checks")
	real, _ := g.App(enforced, may)
	g.n++
	token := fmt.Sprint("ghu_scoped", g.n)
	g.aliases[token], g.users[token], g.scoped[token], g.until[token] = real, user, may, g.until[access]
	if g.over == GitHubLastsLonger {
		g.until[token] = g.Now().Add(24 * time.Hour)
	}
	selection := "selected"
	if all {
		selection = "all"
	}
	account := g.Owner
	if g.over == GitHubAnotherOwner {
		account++
	}
	out := map[string]any{
		"token": token, "expires_at": g.until[token].Format(time.RFC3339),
		"installation": map[string]any{"permissions": permissions, "repository_selection": selection, "account": map[string]any{"id": account}},
	}
	switch g.over {
	case GitHubSaysNothing:
		delete(out, "installation")
	case GitHubLosesAnswers:
		out = map[string]any{}
	}
	say(http.StatusOK, out)
}

// installations lists what a user's token has.
func (g *GitHub) installations(path, token string, say func(int, any)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.users[token] == "" {
		say(http.StatusUnauthorized, nil)
		return
	}
	if path == "/user/installations" {
		say(http.StatusOK, map[string]any{"total_count": 1, "installations": []any{map[string]any{"id": 100, "account": map[string]any{"id": g.Owner}}}})
		return
	}
	var list []any
	for _, id := range g.scoped[token] {
		list = append(list, map[string]any{"id": id, "owner": map[string]any{"id": g.Owner}})
	}
	say(http.StatusOK, map[string]any{"total_count": len(list), "repositories": list})
}
