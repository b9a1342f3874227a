package doubles

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// What Google answers with where it is not as it should be.
const (
	GoogleIgnoresScope   = "the scope of a refresh is passed over"
	GoogleAddsScope      = "a scope is added"
	GoogleLastsLonger    = "tokens live two hours"
	GoogleSaysNoScope    = "the answer does not say the scope"
	GoogleDropsBoundary  = "the token without a boundary comes back"
	GoogleBoundaryLasts  = "the token within a boundary outlives the one it was made of"
	GoogleAnotherClient  = "the token is another client's"
	GoogleAnotherAccount = "the token is for another account"
)

// GoogleToken is a token that the double gave out.
type GoogleToken struct {
	Scopes   []string
	Account  string // whose it is
	Client   string
	Ends     time.Time
	Boundary []BoundaryRule // nil: none
	Subject  string         // of a federated token, the principal
}

// GoogleGrant is what a user has granted to a client.
type GoogleGrant struct {
	Account, Email string
	Scopes         []string
	Dead           bool
}

// Google is Google's token endpoint, STS, IAM Credentials, and as much of Cloud Storage
// as says who may do what. Its fields are set before it is used.
type Google struct {
	*httptest.Server
	Now func() time.Time
	// ClientID and Secret are those of the one OAuth client there is.
	ClientID, Secret string
	// Account is the service account, Provider the pool provider that may impersonate
	// it, and Assertion verifies what the pool is shown.
	Account, Provider string
	Assertion         func(raw string) (map[string]any, error)
	// Allowed are the scopes that the domain's administrator gave to the account.
	Allowed []string
	// STS and IAM are what Google says that these take and answer; nil: it is not held
	// against them.
	STS, IAM *Discovery

	mu       sync.Mutex
	over     string
	fail     func(path string) (status int, body string)
	tokens   map[string]*GoogleToken
	refresh  map[string]*GoogleGrant
	codes    map[string]url.Values
	consents GoogleGrant
	signed   map[string]map[string]any
	strange  []string
}

// NewGoogle starts a double.
func NewGoogle() *Google {
	g := &Google{
		Now: time.Now, ClientID: "client-1.apps.googleusercontent.com", Secret: "client-secret",
		tokens: make(map[string]*GoogleToken), refresh: make(map[string]*GoogleGrant), codes: make(map[string]url.Values),
		signed: make(map[string]map[string]any),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /auth", g.authorize)
	mux.HandleFunc("POST /token", g.token)
	mux.HandleFunc("POST /revoke", g.revoke)
	mux.HandleFunc("POST /tokeninfo", g.tokeninfo)
	mux.HandleFunc("POST /v1/token", g.exchange)
	mux.HandleFunc("POST /v1/projects/-/serviceAccounts/{call}", g.credentials)
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.fail != nil {
			if status, body := g.fail(r.URL.Path); status != 0 {
				w.WriteHeader(status)
				_, _ = w.Write([]byte(body))
				return
			}
		}
		mux.ServeHTTP(w, r)
	}))
	return g
}

// Over has it give more than it is asked for, in one of the ways above; empty: no more.
func (g *Google) Over(how string) { g.mu.Lock(); g.over = how; g.mu.Unlock() }

// Fail has answers replaced, where how returns a status.
func (g *Google) Fail(how func(path string) (status int, body string)) {
	g.mu.Lock()
	g.fail = how
	g.mu.Unlock()
}

// Grant has a user grant scopes, and returns the refresh token.
func (g *Google) Grant(to GoogleGrant) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	token := "1//" + random()
	g.refresh[token] = &to
	return token
}

// Consents is what the user will grant at the authorization endpoint.
func (g *Google) Consents(to GoogleGrant) { g.mu.Lock(); g.consents = to; g.mu.Unlock() }

// Token returns what a token is, and nil if it is none that is good.
func (g *Google) Token(token string) *GoogleToken {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.good(token)
}

// Granted returns the grant of a refresh token.
func (g *Google) Granted(token string) GoogleGrant {
	g.mu.Lock()
	defer g.mu.Unlock()
	return *g.refresh[token]
}

// Strange returns what was asked that Google does not take.
func (g *Google) Strange() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.strange)
}

func (g *Google) good(token string) *GoogleToken {
	t := g.tokens[token]
	if t == nil || !g.Now().Before(t.Ends) {
		return nil
	}
	return t
}

func random() string { return fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()) }

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// refuse answers as OAuth endpoints do, with text that nobody may repeat.
func refuse(w http.ResponseWriter, code string) {
	answer(w, http.StatusBadRequest, map[string]any{"error": code, "error_description": "upstream text: " + code})
}

// odd notes what Google does not take, and refuses it.
func (g *Google) odd(w http.ResponseWriter, format string, args ...any) {
	g.strange = append(g.strange, fmt.Sprintf(format, args...))
	refuse(w, "invalid_request")
}

// form reads a form with exactly these parameters, each there once.
func form(r *http.Request, names ...string) (url.Values, error) {
	if r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || r.URL.RawQuery != "" {
		return nil, errors.New("it is no form")
	}
	if err := r.ParseForm(); err != nil {
		return nil, err
	}
	for name, values := range r.PostForm {
		if !slices.Contains(names, name) || len(values) != 1 || values[0] == "" {
			return nil, fmt.Errorf("the parameter %s is there %d times", name, len(values))
		}
	}
	for _, name := range names {
		if r.PostForm.Get(name) == "" {
			return nil, fmt.Errorf("the parameter %s is missing", name)
		}
	}
	return r.PostForm, nil
}

// authorize is the user who consents at once.
func (g *Google) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	for name, want := range map[string]string{
		"response_type": "code", "client_id": g.ClientID, "code_challenge_method": "S256", "access_type": "offline", "prompt": "consent",
	} {
		if q.Get(name) != want {
			g.odd(w, "authorization: %s is %q", name, q.Get(name))
			return
		}
	}
	code := "4/" + random()
	g.codes[code] = q
	back := q.Get("redirect_uri") + "?" + url.Values{"code": {code}, "state": {q.Get("state")}}.Encode()
	http.Redirect(w, r, back, http.StatusFound)
}

func (g *Google) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		g.odd(w, "token: %v", err)
		return
	}
	switch r.PostForm.Get("grant_type") {
	case "refresh_token":
		g.refreshed(w, r)
	case "authorization_code":
		g.code(w, r)
	case "urn:ietf:params:oauth:grant-type:jwt-bearer":
		g.delegated(w, r)
	default:
		refuse(w, "unsupported_grant_type")
	}
}

func (g *Google) client(w http.ResponseWriter, f url.Values) bool {
	if f.Get("client_id") == g.ClientID && f.Get("client_secret") == g.Secret {
		return true
	}
	answer(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client", "error_description": "upstream text"})
	return false
}

// refreshed narrows to the scope that is asked for, all of which has to have been
// granted, each as it is.
func (g *Google) refreshed(w http.ResponseWriter, r *http.Request) {
	f, err := form(r, "grant_type", "refresh_token", "client_id", "client_secret", "scope")
	if err != nil {
		g.odd(w, "refresh: %v", err)
		return
	}
	to := g.refresh[f.Get("refresh_token")]
	switch {
	case !g.client(w, f):
		return
	case to == nil || to.Dead:
		refuse(w, "invalid_grant")
		return
	}
	scopes := strings.Split(f.Get("scope"), " ")
	for _, s := range scopes {
		if !slices.Contains(to.Scopes, s) {
			refuse(w, "invalid_scope")
			return
		}
	}
	if g.over == GoogleIgnoresScope {
		scopes = to.Scopes
	}
	g.give(w, &GoogleToken{Scopes: scopes, Account: to.Account, Client: g.ClientID}, true, nil)
}

// give answers with a token.
func (g *Google) give(w http.ResponseWriter, t *GoogleToken, says bool, more map[string]any) {
	life := 3599 * time.Second
	switch g.over {
	case GoogleAddsScope:
		t.Scopes = append(slices.Clone(t.Scopes), "https://www.googleapis.com/auth/youtube")
	case GoogleLastsLonger:
		life = 2 * time.Hour
	case GoogleAnotherClient:
		t.Client = "another"
	case GoogleAnotherAccount:
		t.Account = "bob@acme.example"
	case GoogleSaysNoScope:
		says = false
	}
	t.Ends = g.Now().Add(life)
	token := "ya29." + random()
	g.tokens[token] = t
	body := map[string]any{"access_token": token, "expires_in": int(life / time.Second), "token_type": "Bearer"}
	if says {
		body["scope"] = strings.Join(t.Scopes, " ")
	}
	for k, v := range more {
		body[k] = v
	}
	answer(w, http.StatusOK, body)
}

func (g *Google) code(w http.ResponseWriter, r *http.Request) {
	f, err := form(r, "grant_type", "code", "redirect_uri", "client_id", "client_secret", "code_verifier")
	if err != nil {
		g.odd(w, "code: %v", err)
		return
	}
	q := g.codes[f.Get("code")]
	delete(g.codes, f.Get("code"))
	if !g.client(w, f) {
		return
	}
	if q == nil || q.Get("redirect_uri") != f.Get("redirect_uri") || q.Get("code_challenge") != s256(f.Get("code_verifier")) {
		refuse(w, "invalid_grant")
		return
	}
	to := g.consents
	if to.Scopes == nil {
		to.Scopes = strings.Split(q.Get("scope"), " ")
	}
	refresh := "1//" + random()
	g.refresh[refresh] = &to
	claims, _ := json.Marshal(map[string]any{
		"iss": "https://accounts.google.com", "aud": g.ClientID, "sub": to.Account, "email": to.Email, "exp": g.Now().Add(time.Hour).Unix(),
	})
	idToken := "e30." + base64.RawURLEncoding.EncodeToString(claims) + ".c2ln"
	g.give(w, &GoogleToken{Scopes: to.Scopes, Account: to.Account, Client: g.ClientID}, true, map[string]any{"refresh_token": refresh, "id_token": idToken})
}

// revoke takes the whole grant along, whatever token it is shown.
func (g *Google) revoke(w http.ResponseWriter, r *http.Request) {
	f, err := form(r, "token")
	if err != nil {
		g.odd(w, "revoke: %v", err)
		return
	}
	account := ""
	if to := g.refresh[f.Get("token")]; to != nil && !to.Dead {
		account = to.Account
	} else if t := g.good(f.Get("token")); t != nil {
		account = t.Account
	}
	if account == "" {
		refuse(w, "invalid_token")
		return
	}
	for _, to := range g.refresh {
		to.Dead = to.Dead || to.Account == account
	}
	for name, t := range g.tokens {
		if t.Account == account {
			delete(g.tokens, name)
		}
	}
	w.WriteHeader(http.StatusOK)
}

func (g *Google) tokeninfo(w http.ResponseWriter, r *http.Request) {
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	t := g.good(bearer)
	if t == nil || t.Boundary != nil {
		refuse(w, "invalid_token")
		return
	}
	body := map[string]any{
		"azp": t.Client, "aud": t.Client, "scope": strings.Join(t.Scopes, " "),
		"exp": fmt.Sprint(t.Ends.Unix()), "expires_in": fmt.Sprint(int(t.Ends.Sub(g.Now()) / time.Second)),
	}
	if strings.Contains(t.Account, "@") {
		body["email"] = t.Account
	}
	answer(w, http.StatusOK, body)
}
