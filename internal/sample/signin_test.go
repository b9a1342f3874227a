package sample

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestSignInSaysWhoIsNotSignedIn(t *testing.T) {
	idp, _ := startIdP(t)
	tests := map[string]struct {
		user, password, resource, client string
		want                             func(error) bool
	}{
		"a wrong password":    {"alice", "bob-password", "", DesktopClient, func(err error) bool { return errors.Is(err, ErrPassword) }},
		"no password":         {"alice", "", "", DesktopClient, func(err error) bool { return errors.Is(err, ErrPassword) }},
		"nobody we know":      {"mallory", "alice-password", "", DesktopClient, func(err error) bool { return errors.Is(err, ErrPassword) }},
		"an unknown resource": {"alice", "alice-password", "https://other.example", DesktopClient, refusedWith("invalid_target")},
		"an unknown client":   {"alice", "alice-password", "", "other", refusedWith("invalid_request")},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := (Agent{}).SignIn(t.Context(), SignIn{idp.URL(), tt.client, tt.user, tt.password, tt.resource}); !tt.want(err) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func refusedWith(code string) func(error) bool {
	return func(err error) bool {
		r := (*Refusal)(nil)
		return errors.As(err, &r) && r.Code == code
	}
}

// A provider that lies is played by the real one, with its answers changed on the
// way.
func TestWhatSignInDoesNotBelieve(t *testing.T) {
	idp, _ := startIdP(t)
	response := func(change func(url.Values)) func(*flow, *http.Response) {
		return func(f *flow, resp *http.Response) {
			u, err := url.Parse(resp.Header.Get("Location"))
			if err == nil && strings.HasPrefix(u.String(), f.redirect) {
				q := u.Query()
				change(q)
				u.RawQuery = q.Encode()
				resp.Header.Set("Location", u.String())
			}
		}
	}
	tests := map[string]struct {
		answer func(*flow, *http.Response)
		want   string
	}{
		"another state":  {response(func(q url.Values) { q.Set("state", "other") }), "the state is not ours"},
		"no state":       {response(func(q url.Values) { q.Del("state") }), "the state is not ours"},
		"another issuer": {response(func(q url.Values) { q.Set("iss", "https://other.example") }), `of the issuer "https://other.example"`},
		"no issuer":      {response(func(q url.Values) { q.Del("iss") }), `of the issuer ""`},
		"no code":        {response(func(q url.Values) { q.Del("code") }), "there is no code"},
		"an answer to elsewhere": {func(f *flow, resp *http.Response) {
			if to := resp.Header.Get("Location"); strings.HasPrefix(to, f.redirect) {
				resp.Header.Set("Location", strings.Replace(to, "/callback", "/callback-of-others", 1))
			}
		}, "it goes to"},
		"a page of somebody else": {func(f *flow, resp *http.Response) {
			if strings.HasPrefix(resp.Header.Get("Location"), signInPath) {
				resp.Header.Set("Location", "http://127.0.0.2:1/sign-in")
			}
		}, "leads to 127.0.0.2:1"},
		"an ID token for another request": {func(f *flow, resp *http.Response) {
			if resp.Request.URL.Path == "/oauth/token" {
				f.nonce = "other"
			}
		}, "it answers another request"},
		"an ID token of another issuer": {func(f *flow, resp *http.Response) {
			if resp.Request.URL.Path == "/oauth/token" {
				f.issuer = "https://other.example"
			}
		}, "ID token: it is of the issuer"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, err := newFlow(t.Context(), idp.URL(), DesktopClient, "")
			if err != nil {
				t.Fatal(err)
			}
			inner := f.http.Transport.(*http.Transport)
			defer inner.CloseIdleConnections()
			f.http.Transport = rewrite{inner, nil, func(r *http.Response) { tt.answer(f, r) }}
			code, err := f.authorize(t.Context(), "alice", "alice-password")
			if err == nil {
				_, err = f.redeem(t.Context(), code)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestAFormThatGoesElsewhereIsNotFilledIn(t *testing.T) {
	idp, _ := startIdP(t)
	f, err := newFlow(t.Context(), idp.URL(), DesktopClient, "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.http.CloseIdleConnections()
	for address, want := range map[string]bool{
		idp.URL() + "/sign-in": true, "http://127.0.0.1:1/sign-in": false, "https" + strings.TrimPrefix(idp.URL(), "http"): false,
	} {
		u, err := url.Parse(address)
		if err != nil || f.own(u) != want {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestAPageIsReadForItsForm(t *testing.T) {
	tests := map[string]struct {
		page, action string
		ok           bool
	}{
		"a form":                       {`<form method=POST action="/x?a=1&amp;b=2"><input type=hidden name=id value="&quot;7"><input name=user><input name=password></form>`, "/x?a=1&b=2", true},
		"a form that is sent with GET": {`<form action="/x"><input name=user><input name=password></form>`, "", false},
		"a form for something else":    {`<form method=post action="/x"><input name=q></form>`, "", false},
		"no form":                      {`<input name=user><input name=password>`, "", false},
		"a form in a comment":          {`<!-- <form method=post action="/x"><input name=user><input name=password></form> -->`, "", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			action, fields, err := readForm([]byte(tt.page))
			if (err == nil) != tt.ok || action != tt.action || tt.ok && fields.Get("id") != `"7` {
				t.Errorf("%q, %v, %v", action, fields, err)
			}
		})
	}
}
