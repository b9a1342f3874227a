package api_test

import (
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// idToken is an ID token for Stint's own sign-in, of somebody of these groups.
func (w *world) idToken(who string, groups ...string) string {
	w.Helper()
	if len(groups) == 0 {
		groups = []string{"engineering"}
	}
	return w.idp.sign(w, "JWT", w.changed(map[string]any{
		"iss": w.idp.url, "sub": who, "aud": "stint-at-idp", "iat": "-1s", "exp": "+5m", "auth_time": "-1m", "sid": "sid-of-" + who,
		"nonce": rand.Text(), "groups": groups,
	}, nil))
}

// signedIn signs somebody in by the pages, and returns the token that his browser got.
func (w *world) signedIn(who string) string {
	w.Helper()
	state, cookie := w.begin("")
	a := w.browse(http.MethodGet, "/login/callback?"+url.Values{"state": {state}, "code": {who}}.Encode(), nil, cookie)
	if a.status != http.StatusSeeOther {
		w.Fatalf("sign in as %s: %d %s", who, a.status, a.body)
	}
	return cookieOf(a, "__Host-stint").Value
}

// begin goes to the provider, and returns the state that it was given and the cookie.
func (w *world) begin(query string) (state string, cookie *http.Cookie) {
	w.Helper()
	a := w.browse(http.MethodGet, "/login/start"+query, nil)
	to, err := url.Parse(a.header.Get("Location"))
	if a.status != http.StatusSeeOther || err != nil {
		w.Fatalf("%d %s", a.status, a.body)
	}
	return to.Query().Get("state"), cookieOf(a, "__Host-stint-sign-in")
}

func cookieOf(a *answer, name string) *http.Cookie {
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		if c.Name == name {
			return c
		}
	}
	return &http.Cookie{Name: name}
}

// browse is what a browser does: it sends cookies, and with a form where it comes from.
func (w *world) browse(method, path string, form url.Values, cookies ...*http.Cookie) *answer {
	w.Helper()
	req := must(http.NewRequest(method, "http://"+w.public+path, strings.NewReader(form.Encode())))(w)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", "http://"+w.public)
	}
	for _, c := range cookies {
		req.AddCookie(c)
	}
	a := w.doRequest(w.http, req)
	if err := w.document().check(req, []byte(form.Encode()), a); err != nil {
		w.Errorf("%s %s: against openapi.yaml: %v", method, path, err)
	}
	return a
}

// ask asks the admin API: with a token the public listener, without one the socket.
func (w *world) ask(token, method, path string, body any, headers ...string) (*answer, error) {
	w.Helper()
	host, client := "stint", w.local
	if token != "" {
		host, client = w.public, w.http
	}
	var in io.Reader
	text := []byte{}
	if raw, ok := body.(string); ok {
		text = []byte(raw)
	} else if body != nil {
		text = must(json.Marshal(body))(w)
	}
	if body != nil {
		in = strings.NewReader(string(text))
	}
	req := must(http.NewRequest(method, "http://"+host+"/admin/v1"+path, in))(w)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" && token != "none" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	a := w.doRequest(client, req)
	return a, w.document().check(req, text, a)
}

// must2 is must for what comes with a cursor.
func must2[T any](v T, _ string, err error) func(testing.TB) T { return must(v, err) }
