package sample

import (
	"crypto/rand"
	"crypto/subtle"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
)

const (
	signInPath   = "/sign-in"
	signInCookie = "sign-in"
	signInTime   = 10 * time.Minute // to fill in the form
	codeTime     = time.Minute      // RFC 6749 section 4.1.2 has ten at most
	maxWaiting   = 1000             // attempts, and codes
	maxFailures  = 5                // of one attempt
)

// attempt is an authorization request whose user has not signed in yet.
type attempt struct {
	id string
	// browser is what the browser that brought the request has in a cookie.
	browser                                  string
	client, redirect, state, nonce, audience string
	challenge                                oidc.CodeChallenge
	failures                                 int
	expires                                  time.Time
}

// cookie ties the form to the browser: another one, which was shown the address,
// cannot sign in here as somebody else.
func (a *attempt) cookie() *http.Cookie {
	return &http.Cookie{ //nolint:gosec // not Secure: this provider is plain HTTP on loopback
		Name: signInCookie, Value: a.browser, Path: signInPath, MaxAge: int(signInTime.Seconds()),
		HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
}

// signedIn is an attempt that succeeded, and waits for its code to be redeemed.
type signedIn struct {
	attempt
	user User
	// session is the claim sid, and at when the user signed in.
	session string
	at      time.Time
}

// waiting is what the provider remembers, all of it for a short time.
type waiting struct {
	now      func() time.Time
	mu       sync.Mutex
	attempts map[string]*attempt
	codes    map[string]*signedIn
}

func newWaiting(now func() time.Time) *waiting {
	return &waiting{now: now, attempts: make(map[string]*attempt), codes: make(map[string]*signedIn)}
}

// begin remembers an attempt; false if there are too many.
func (w *waiting) begin(a *attempt) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	for id, old := range w.attempts {
		if !now.Before(old.expires) {
			delete(w.attempts, id)
		}
	}
	if len(w.attempts) >= maxWaiting {
		return false
	}
	a.expires = now.Add(signInTime)
	w.attempts[a.id] = a
	return true
}

// known reports whether an attempt waits, and came from this browser.
func (w *waiting) known(id, browser string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.find(id, browser) != nil
}

func (w *waiting) find(id, browser string) *attempt {
	a := w.attempts[id]
	if a == nil || !w.now().Before(a.expires) || subtle.ConstantTimeCompare([]byte(a.browser), []byte(browser)) != 1 {
		return nil
	}
	return a
}

// finish ends an attempt: with a code for it if user is somebody. Of those who
// are nobody it counts the failures. The attempt is nil if there is none.
func (w *waiting) finish(id, browser string, user *User) (code string, a *attempt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a = w.find(id, browser); a == nil {
		return "", nil
	}
	if user == nil {
		if a.failures++; a.failures == maxFailures {
			delete(w.attempts, id)
		}
		return "", a
	}
	delete(w.attempts, id)
	now := w.now()
	for old, s := range w.codes {
		if !now.Before(s.expires) {
			delete(w.codes, old)
		}
	}
	if len(w.codes) >= maxWaiting {
		return "", nil
	}
	s := &signedIn{attempt: *a, user: *user, session: rand.Text(), at: now}
	s.expires = now.Add(codeTime)
	code = rand.Text()
	w.codes[code] = s
	return code, a
}

// redeem takes what waits for a code; nil if nothing does.
func (w *waiting) redeem(code string) *signedIn {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.codes[code]
	delete(w.codes, code)
	if s == nil || !w.now().Before(s.expires) {
		return nil
	}
	return s
}

// formText is the whole user interface.
const formText = `<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Sign in</title></head>
<body>
<h1>Sign in</h1>
<p>This is the sample identity provider of a demonstration.</p>
{{if .Failed}}<p role="alert">User and password do not fit.</p>{{end}}
<form method="post" action="{{.Action}}">
<input type="hidden" name="id" value="{{.ID}}">
<p><label>User <input name="user" autocomplete="username" autofocus></label></p>
<p><label>Password <input name="password" type="password" autocomplete="current-password"></label></p>
<p><button>Sign in</button></p>
</form>
</body>
</html>
`

// newForm parses the form, when a provider starts and not with the program.
func newForm() *template.Template { return template.Must(template.New("sign-in").Parse(formText)) }

// render shows the form.
func (p *provider) render(w http.ResponseWriter, status int, id string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	// The form is answered with a redirect to a port of loopback, which browsers
	// count as a target of the form.
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self' http://127.0.0.1:* http://localhost:*")
	w.WriteHeader(status)
	_ = p.form.Execute(w, map[string]any{"Action": signInPath, "ID": id, "Failed": status != http.StatusOK})
}

const nothingWaits = "nothing waits here to be signed in, or it began in another browser: begin again"

func browserOf(r *http.Request) string {
	c, err := r.Cookie(signInCookie)
	if err != nil {
		return ""
	}
	return c.Value
}

func (p *provider) showForm(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("id")
	if !p.waiting.known(id, browserOf(r)) {
		http.Error(w, nothingWaits, http.StatusBadRequest)
		return
	}
	p.render(w, http.StatusOK, id)
}

// takeForm answers with a redirect to the client, and a form that does not fit
// with the form again.
func (p *provider) takeForm(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "this is no form", http.StatusBadRequest)
		return
	}
	id := r.PostForm.Get("id")
	user := p.user(r.PostForm.Get("user"), r.PostForm.Get("password"))
	code, a := p.waiting.finish(id, browserOf(r), user)
	switch {
	case a == nil:
		http.Error(w, nothingWaits, http.StatusBadRequest)
		return
	case code == "":
		p.render(w, http.StatusForbidden, id)
		return
	}
	to, err := url.Parse(a.redirect)
	if err != nil {
		http.Error(w, "the redirect URI is none", http.StatusBadRequest)
		return
	}
	pairs := []string{"code", code, "iss", p.issuer}
	if a.state != "" {
		pairs = append(pairs, "state", a.state)
	}
	// 303 has the browser forget the form; with 307 it would send the password on
	// to the client (RFC 9700 section 4.12).
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, withQuery(to, pairs...), http.StatusSeeOther)
}

// user returns who has this name and password, or nil.
func (p *provider) user(name, password string) *User {
	i := slices.IndexFunc(p.users, func(u User) bool { return u.Name == name })
	if i < 0 || subtle.ConstantTimeCompare([]byte(p.users[i].Password), []byte(password)) != 1 {
		return nil
	}
	return &p.users[i]
}
