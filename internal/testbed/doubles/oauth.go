package doubles

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// What an authorization server does where it is not as it should be.
const (
	OAuthIgnoresScope  = "the token has every scope, and the answer says so"
	OAuthAddsScope     = "the token has a scope that nobody knows"
	OAuthSaysNoScope   = "the answer does not say the scope"
	OAuthShrinks       = "a refresh token that was narrowed stays narrow"
	OAuthRejectsScope  = "no scope may be asked for"
	OAuthLastsLonger   = "the token lives a day"
	OAuthErrsWith200   = "errors come with status 200"
	OAuthLosesAnswers  = "the answer is lost"
	OAuthEndsFamily    = "the end of one token is the end of all"
	OAuthIssuesAnother = "what is issued is of another type"
	OAuthIssuesJWT     = "what is issued is a JWT that is said to be no access token"
	OAuthAnotherType   = "the token is to be used with a proof"
)

// OAuth is an authorization server for what no server that can be had here does: one that
// ends single tokens, and that misbehaves as it is told. Refresh tokens are good for one
// use, and the second use of one ends all that came of it. Its fields are set before it is
// used.
type OAuth struct {
	*httptest.Server
	ClientID, Secret string
	Scopes           []string
	// Subject checks what is exchanged or asserted, and says whose it is; empty: it is not
	// accepted.
	Subject func(grantType string, form url.Values) string
	// Renewing is called while a refresh token is used, before that is answered.
	Renewing func()
	// SparesFamily has the end of a refresh token that was used end nothing else.
	SparesFamily bool

	mu      sync.Mutex
	over    string
	codes   map[string][2]string // challenge and redirect URI
	refresh map[string][]string  // scopes by refresh token
	used    map[string]bool
	dead    bool // the family was ended
	access  map[string]oauthToken
	n       int
	reuses  int
}

type oauthToken struct {
	scopes []string
	until  time.Time
	ended  bool
}

// NewOAuth starts a double.
func NewOAuth() *OAuth {
	o := &OAuth{codes: map[string][2]string{}, refresh: map[string][]string{}, used: map[string]bool{}, access: map[string]oauthToken{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", o.token)
	mux.HandleFunc("POST /revoke", o.revoke)
	mux.HandleFunc("POST /introspect", o.introspect)
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if id, word, ok := r.BasicAuth(); !ok || id != o.ClientID || word != url.QueryEscape(o.Secret) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
		if r.URL.Path == "/token" && o.Renewing != nil {
			o.mu.Unlock()
			defer o.mu.Lock()
			o.Renewing()
		}
	}))
	return o
}

// Over has it misbehave in one way; empty: not at all.
func (o *OAuth) Over(how string) { o.mu.Lock(); o.over = how; o.mu.Unlock() }

// Reuses is how often an old refresh token was shown.
func (o *OAuth) Reuses() int { o.mu.Lock(); defer o.mu.Unlock(); return o.reuses }

// Refresh is the refresh token that is good.
func (o *OAuth) Refresh() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	for token := range o.refresh {
		if !o.used[token] {
			return token
		}
	}
	return ""
}

// Alive lists the access tokens that are good.
func (o *OAuth) Alive() (tokens []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for token, t := range o.access {
		if !t.ended && !o.dead && time.Now().Before(t.until) {
			tokens = append(tokens, token)
		}
	}
	return tokens
}

// Code is what a browser brings back from the authorization endpoint.
func (o *OAuth) Code(where string) string {
	u, err := url.Parse(where)
	if err != nil {
		return ""
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n++
	code := fmt.Sprint("code", o.n)
	o.codes[code] = [2]string{u.Query().Get("code_challenge"), u.Query().Get("redirect_uri")}
	return code
}

func (o *OAuth) say(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	if o.over == OAuthErrsWith200 {
		status = http.StatusOK
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (o *OAuth) no(w http.ResponseWriter, what string) {
	o.say(w, http.StatusBadRequest, map[string]any{"error": what, "error_description": "a secret of the server's"})
}

func (o *OAuth) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		o.no(w, "invalid_request")
		return
	}
	form, scopes, kind := r.PostForm, slices.Clone(o.Scopes), r.PostForm.Get("grant_type")
	family := slices.Clone(o.Scopes)
	switch kind {
	case "authorization_code":
		c, known := o.codes[form.Get("code")]
		delete(o.codes, form.Get("code"))
		sum := sha256.Sum256([]byte(form.Get("code_verifier")))
		if !known || base64.RawURLEncoding.EncodeToString(sum[:]) != c[0] || form.Get("redirect_uri") != c[1] {
			o.no(w, "invalid_grant")
			return
		}
		o.dead = false
	case "refresh_token":
		old := form.Get("refresh_token")
		held, known := o.refresh[old]
		if o.used[old] {
			o.reuses++
			o.dead = true
		}
		if !known || o.dead {
			o.no(w, "invalid_grant")
			return
		}
		if form.Has("scope") && o.over == OAuthRejectsScope {
			o.no(w, "invalid_scope")
			return
		}
		scopes, family = held, held
		o.used[old] = true
	default:
		if o.Subject == nil || o.Subject(kind, form) == "" {
			o.no(w, "invalid_grant")
			return
		}
	}
	if form.Has("scope") && kind != "authorization_code" {
		asked := strings.Fields(form.Get("scope"))
		for _, s := range asked {
			if !slices.Contains(scopes, s) {
				o.no(w, "invalid_scope")
				return
			}
		}
		scopes = asked
	}
	if o.over == OAuthIgnoresScope {
		scopes = slices.Clone(o.Scopes)
	}
	o.answer(w, kind, scopes, family)
}

func (o *OAuth) answer(w http.ResponseWriter, kind string, scopes, family []string) {
	life := 10 * time.Minute
	switch o.over {
	case OAuthAddsScope:
		scopes = append(slices.Clone(scopes), "everything:admin")
	case OAuthLastsLonger:
		life = 24 * time.Hour
	}
	o.n++
	token := fmt.Sprint("access", o.n)
	o.access[token] = oauthToken{scopes: scopes, until: time.Now().Add(life)}
	out := map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": int(life.Seconds()), "scope": strings.Join(scopes, " ")}
	if kind == "authorization_code" || kind == "refresh_token" {
		next := fmt.Sprint("refresh", o.n)
		if o.over == OAuthShrinks {
			family = scopes
		}
		o.refresh[next] = family
		out["refresh_token"] = next
	} else {
		out["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
	}
	switch o.over {
	case OAuthSaysNoScope:
		delete(out, "scope")
	case OAuthIssuesAnother:
		out["issued_token_type"] = "urn:ietf:params:oauth:token-type:saml2"
	case OAuthIssuesJWT:
		out["issued_token_type"] = "urn:ietf:params:oauth:token-type:jwt"
	case OAuthAnotherType:
		out["token_type"] = "DPoP"
	case OAuthLosesAnswers:
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	o.say(w, http.StatusOK, out)
}

func (o *OAuth) revoke(w http.ResponseWriter, r *http.Request) {
	token := r.PostFormValue("token")
	switch _, known := o.refresh[token]; {
	case known && o.SparesFamily:
		o.used[token] = true
	case known || o.over == OAuthEndsFamily:
		o.dead = true
	}
	if t, known := o.access[token]; known {
		t.ended = true
		o.access[token] = t
	}
	w.WriteHeader(http.StatusOK)
}

func (o *OAuth) introspect(w http.ResponseWriter, r *http.Request) {
	t, known := o.access[r.PostFormValue("token")]
	if !known || t.ended || o.dead || !time.Now().Before(t.until) {
		o.say(w, http.StatusOK, map[string]any{"active": false})
		return
	}
	out := map[string]any{"active": true, "scope": strings.Join(t.scopes, " "), "exp": t.until.Unix()}
	maps.DeleteFunc(out, func(name string, _ any) bool { return name == "scope" && o.over == OAuthSaysNoScope })
	o.say(w, http.StatusOK, out)
}
