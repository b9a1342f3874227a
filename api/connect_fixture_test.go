package api_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/stint-dev/stint/broker"
)

// person is somebody with a browser, who links accounts.
type person struct {
	*world
	name    string
	cookies map[string]*http.Cookie
}

// at is somebody who is signed in at /connect.
func (w *world) at(who string) *person {
	w.Helper()
	p := &person{w, who, map[string]*http.Cookie{}}
	p.signIn(p.goTo("GET", "/connect/start", nil))
	if p.cookies["__Host-stint-connect"] == nil {
		w.Fatalf("%s is not signed in", who)
	}
	return p
}

// goTo asks for a page, and keeps the cookies that come with it.
func (p *person) goTo(method, path string, form url.Values) *answer {
	p.Helper()
	var send []*http.Cookie
	for _, c := range p.cookies {
		send = append(send, c)
	}
	a := p.browse(method, path, form, send...)
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		if p.cookies[c.Name] = c; c.MaxAge < 0 {
			delete(p.cookies, c.Name)
		}
	}
	return a
}

// signIn comes back from the organisation's provider, where a page led, and returns the
// page after that.
func (p *person) signIn(at *answer) *answer {
	p.Helper()
	to := must(url.Parse(at.header.Get("Location")))(p)
	if at.status != http.StatusSeeOther || to.Path != "/authorize" {
		p.Fatalf("not sent to the provider: %d %s %s", at.status, at.header, at.body)
	}
	return p.goTo("GET", "/connect/callback?"+url.Values{"state": {to.Query().Get("state")}, "code": {p.name}}.Encode(), nil)
}

// csrf is the token in the forms of a page.
func (p *person) csrf(path string) url.Values {
	p.Helper()
	return url.Values{"csrf": {hidden(p, p.goTo("GET", path, nil), "csrf")}}
}

// begins goes as far as the upstream, and returns where it is sent.
func (p *person) begins() (where string) {
	p.Helper()
	a := p.goTo("POST", "/connect/code", p.csrf("/connect/code"))
	where, ok := strings.CutPrefix(a.header.Get("Refresh"), "0; url=")
	if a.status != http.StatusOK || !ok {
		p.Fatalf("%d %s %s", a.status, a.header, a.body)
	}
	return where
}

// allows is the person allowing at the upstream what is asked there, with an account of
// his; it returns the path that he is sent back to.
func (p *person) allows(where, account string) (back string) {
	p.Helper()
	to := must(p.code.Allow(where, broker.Account{ID: account, Name: "name-of-" + account, Scopes: []string{"repo"}}))(p)
	return strings.TrimPrefix(to, p.self)
}

// links links an account.
func (p *person) links(account string) {
	p.Helper()
	if a := p.goTo("GET", p.allows(p.begins(), account), nil); a.status != http.StatusSeeOther {
		p.Fatalf("%d %s", a.status, a.body)
	}
}

// commandLine is the token that a command line of his gets.
func (p *person) commandLine() string {
	p.Helper()
	verifier := strings.Repeat("v", 43)
	q := url.Values{"port": {"4711"}, "code_challenge": {challengeOf(verifier)}, "state": {strings.Repeat("s", 22)}}
	form := p.csrf("/connect/cli?" + q.Encode())
	form.Set("answer", "allow")
	for name, v := range q {
		form[name] = v
	}
	to := must(url.Parse(p.goTo("POST", "/connect/cli", form).header.Get("Location")))(p)
	var got struct {
		Token string `json:"access_token"`
	}
	a := p.browse("POST", "/connect/token", url.Values{"code": {to.Query().Get("code")}, "code_verifier": {verifier}})
	if err := json.Unmarshal(a.body, &got); err != nil || got.Token == "" {
		p.Fatalf("%d %s", a.status, a.body)
	}
	return got.Token
}

// asks is a command line asking.
func (w *world) asks(token, method, path string) *answer {
	w.Helper()
	req := must(http.NewRequest(method, "http://"+w.public+path, nil))(w)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	a := w.doRequest(w.http, req)
	if err := w.document().check(req, nil, a); err != nil {
		w.Errorf("%s %s: against openapi.yaml: %v", method, path, err)
	}
	return a
}
