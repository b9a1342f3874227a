package doubles

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
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

// What Entra answers with where it is not as it should be.
const (
	EntraLastsLonger = "tokens live a day"
	EntraSaysNoScope = "the answer does not say the scope"
	EntraOverGrants  = "a permission more was granted to the registration"
	EntraGivesLess   = "a permission less was granted to the registration"
	EntraStepsUp     = "conditional access wants more"
	EntraRefuses     = "the sign-in is over"
)

// EntraApp is an app registration.
type EntraApp struct {
	Secret string
	Public *rsa.PublicKey // of its certificate
	Digest string         // SHA-256 of it, in base64url
	URIs   []string       // its application id URIs
	// Granted are the permissions that were granted to it, of all APIs, as API/Permission,
	// and Exposes says that others may ask for tokens for it.
	Granted []string
	Exposes []string // client ids
}

// EntraToken is a token that the double gave out.
type EntraToken struct {
	Audience, Subject, Client string
	Scopes                    []string
	Ends                      time.Time
}

// Entra is the token endpoint of one tenant, for the on-behalf-of flow. It does as Entra
// does and gives all that a registration was granted, whatever scope it is asked for.
// Its fields are set before it is used.
type Entra struct {
	*httptest.Server
	Now    func() time.Time
	Tenant string
	Apps   map[string]*EntraApp

	mu      sync.Mutex
	over    string
	tokens  map[string]*EntraToken
	strange []string
	asked   []url.Values
}

// NewEntra starts a double.
func NewEntra(tenant string) *Entra {
	e := &Entra{Now: time.Now, Tenant: tenant, Apps: make(map[string]*EntraApp), tokens: make(map[string]*EntraToken)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /"+tenant+"/oauth2/v2.0/token", e.token)
	mux.HandleFunc("GET /"+tenant+"/v2.0/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"token_endpoint": e.URL + "/" + tenant + "/oauth2/v2.0/token"})
	})
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		mux.ServeHTTP(w, r)
	}))
	return e
}

// Over has it answer otherwise than it should, in one of the ways above.
func (e *Entra) Over(how string) { e.mu.Lock(); e.over = how; e.mu.Unlock() }

// SignIn returns a user's access token for an audience.
func (e *Entra) SignIn(subject, audience string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.make(&EntraToken{Audience: audience, Subject: subject, Scopes: []string{"access_as_user"}, Ends: e.Now().Add(time.Hour)})
}

// Token returns what a token is, and nil if it is none that is good.
func (e *Entra) Token(token string) *EntraToken {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.good(token)
}

// Strange returns what was asked that Entra does not take, and Asked all that was.
func (e *Entra) Strange() []string { e.mu.Lock(); defer e.mu.Unlock(); return slices.Clone(e.strange) }

// Asked returns the forms of all requests.
func (e *Entra) Asked() []url.Values { e.mu.Lock(); defer e.mu.Unlock(); return slices.Clone(e.asked) }

func (e *Entra) good(token string) *EntraToken {
	t := e.tokens[token]
	if t == nil || !e.Now().Before(t.Ends) {
		return nil
	}
	return t
}

// make writes a token: a JWT whose signature only this double knows.
func (e *Entra) make(t *EntraToken) string {
	claims, _ := json.Marshal(map[string]any{
		"aud": t.Audience, "iss": e.URL + "/" + e.Tenant + "/v2.0", "tid": e.Tenant, "oid": t.Subject, "sub": t.Subject,
		"scp": strings.Join(t.Scopes, " "), "azp": t.Client, "exp": t.Ends.Unix(), "ver": "2.0",
	})
	raw := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(claims) + "." + random()
	e.tokens[raw] = t
	return raw
}

// refuse answers as Entra does: with numbers, texts and ids that nobody may repeat.
func (e *Entra) refuse(w http.ResponseWriter, status int, code, claims string) {
	body := map[string]any{
		"error": code, "error_description": "AADSTS50000: upstream text", "error_codes": []int{50000},
		"timestamp": "2026-11-23 15:00:00Z", "trace_id": random(), "correlation_id": random(), "error_uri": e.URL + "/error?code=50000",
	}
	if claims != "" {
		body["claims"], body["suberror"] = claims, "basic_action"
	}
	answer(w, status, body)
}

func (e *Entra) odd(w http.ResponseWriter, format string, args ...any) {
	e.strange = append(e.strange, fmt.Sprintf(format, args...))
	e.refuse(w, http.StatusBadRequest, "invalid_request", "")
}

func (e *Entra) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		e.odd(w, "%v", err)
		return
	}
	names := []string{"grant_type", "requested_token_use", "client_id", "assertion", "scope"}
	if r.PostForm.Has("client_assertion") {
		names = append(names, "client_assertion", "client_assertion_type")
	} else {
		names = append(names, "client_secret")
	}
	f, err := form(r, names...)
	if err != nil || f.Get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" || f.Get("requested_token_use") != "on_behalf_of" {
		e.odd(w, "%v: %v", f.Get("grant_type"), err)
		return
	}
	e.asked = append(e.asked, f)
	app := e.Apps[f.Get("client_id")]
	if err := e.authentic(app, f); err != nil {
		e.refuse(w, http.StatusUnauthorized, "invalid_client", "")
		return
	}
	subject := e.good(f.Get("assertion"))
	switch {
	case e.over == EntraRefuses, subject == nil, subject.Audience != f.Get("client_id") && !slices.Contains(app.URIs, subject.Audience):
		e.refuse(w, http.StatusBadRequest, "invalid_grant", "")
	case e.over == EntraStepsUp:
		e.refuse(w, http.StatusBadRequest, "interaction_required", `{"access_token":{"acrs":{"essential":true,"value":"c1"}}}`)
	default:
		e.give(w, f, app, subject)
	}
}

// give answers for all scopes of the API that the request names.
func (e *Entra) give(w http.ResponseWriter, f url.Values, app *EntraApp, subject *EntraToken) {
	api, scopes := "", []string(nil)
	for _, s := range strings.Split(f.Get("scope"), " ") {
		i := strings.LastIndex(s, "/")
		if i < 0 || api != "" && s[:i] != api {
			e.odd(w, "scope %q", f.Get("scope"))
			return
		}
		api = s[:i]
		if name := s[i+1:]; name != ".default" && !slices.Contains(app.Granted, s) {
			e.refuse(w, http.StatusBadRequest, "invalid_grant", "") // consent is missing
			return
		}
	}
	for _, other := range e.Apps {
		if slices.Contains(other.URIs, api) && slices.Contains(other.Exposes, f.Get("client_id")) {
			scopes = []string{"access_as_user"}
		}
	}
	said := make([]string, 0, len(app.Granted))
	for _, s := range app.Granted { // all of them, whatever was asked
		if name, ok := strings.CutPrefix(s, api+"/"); ok {
			scopes, said = append(scopes, name), append(said, s)
		} else if !strings.Contains(s, "/") {
			scopes, said = append(scopes, s), append(said, s)
		}
	}
	if len(scopes) == 0 {
		e.refuse(w, http.StatusBadRequest, "invalid_resource", "")
		return
	}
	life := 60 + rand.IntN(31)
	switch e.over {
	case EntraLastsLonger:
		life = 24 * 60
	case EntraOverGrants:
		scopes, said = append(scopes, "Directory.ReadWrite.All"), append(said, "Directory.ReadWrite.All")
	case EntraGivesLess:
		scopes, said = scopes[1:], said[min(1, len(said)):]
	case EntraSaysNoScope:
		said = nil
	}
	t := &EntraToken{Audience: api, Subject: subject.Subject, Client: f.Get("client_id"), Scopes: scopes, Ends: e.Now().Add(time.Duration(life) * time.Minute)}
	answer(w, http.StatusOK, map[string]any{
		"token_type": "Bearer", "scope": strings.Join(said, " "), "expires_in": life * 60, "ext_expires_in": life * 60,
		"access_token": e.make(t), "refresh_token": "0.refresh-" + random(),
	})
}

// authentic checks that an app is itself.
func (e *Entra) authentic(app *EntraApp, f url.Values) error {
	if app == nil {
		return errors.New("there is no such app")
	}
	if !f.Has("client_assertion") {
		if app.Secret == "" || f.Get("client_secret") != app.Secret {
			return errors.New("another secret")
		}
		return nil
	}
	parts := strings.Split(f.Get("client_assertion"), ".")
	if app.Public == nil || len(parts) != 3 || f.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
		return errors.New("no assertion")
	}
	signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPSS(app.Public, crypto.SHA256, sum[:], signature, nil); err != nil {
		return err
	}
	var header, c map[string]any
	for i, v := range []*map[string]any{&header, &c} {
		data, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(data, v) != nil {
			return errors.New("it cannot be read")
		}
	}
	exp, _ := c["exp"].(float64)
	nbf, _ := c["nbf"].(float64)
	now := float64(e.Now().Unix())
	if header["alg"] != "PS256" || header["x5t#S256"] != app.Digest || c["aud"] != e.URL+"/"+e.Tenant+"/oauth2/v2.0/token" ||
		c["iss"] != f.Get("client_id") || c["sub"] != c["iss"] || c["jti"] == nil || nbf > now || exp <= now || exp > now+600 {
		return errors.New("it says something else")
	}
	return nil
}
