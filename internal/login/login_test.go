package login_test

import (
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/login"
	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/secret"
)

const redirect = "http://127.0.0.1:9/login/callback"

// provider starts a real OpenID Provider, and returns it with a relying party of it.
func provider(t *testing.T, change func(*login.Config)) (*sample.IdP, *login.Provider) {
	t.Helper()
	idp, err := sample.StartIdP(t.Context(), sample.IdPConfig{Audience: "https://stint.test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = idp.Close() })
	cfg := login.Config{
		Issuer: idp.URL(), ClientID: sample.StintClient, Redirect: redirect, MaxAge: time.Hour, Now: time.Now,
		Client: &http.Client{Timeout: 10 * time.Second},
	}
	if change != nil {
		change(&cfg)
	}
	p, err := login.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return idp, p
}

// signIn is what a person does in a browser: it returns the parameters that came back.
func signIn(t *testing.T, where string) url.Values {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	var back *url.URL
	c := &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), redirect) {
			back = r.URL
			return http.ErrUseLastResponse
		}
		return nil
	}}
	resp, err := c.Get(where)
	if err != nil {
		t.Fatal(err)
	}
	page, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	id := regexp.MustCompile(`name="id" value="([^"]+)"`).FindSubmatch(page)
	if id == nil {
		t.Fatalf("%s: %d %s", where, resp.StatusCode, page)
	}
	resp, err = c.PostForm(resp.Request.URL.Scheme+"://"+resp.Request.URL.Host+"/sign-in", url.Values{"id": {string(id[1])}, "user": {"carol"}, "password": {"carol-password"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if back == nil {
		t.Fatalf("nothing came back: %d", resp.StatusCode)
	}
	return back.Query()
}

// The whole way, and each thing on it that must fit.
func TestSignIn(t *testing.T) {
	t.Parallel()
	verifier := strings.Repeat("v", 50)
	for name, tt := range map[string]struct {
		iss, verifier, nonce string
		code                 broker.Code
	}{
		"all is well":              {"", verifier, "n-1", ""},
		"the answer of another":    {"https://evil.test", verifier, "n-1", broker.BadToken},
		"the answer of nobody":     {"-", verifier, "n-1", broker.BadToken}, // this provider says who it is (RFC 9207)
		"another verifier":         {"", strings.Repeat("x", 50), "n-1", broker.BadToken},
		"the nonce of another":     {"", verifier, "n-2", broker.BadToken},
		"no nonce where there was": {"", verifier, "", broker.BadToken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, p := provider(t, nil)
			where, err := p.Begin(t.Context(), "state-1", "n-1", verifier)
			if err != nil {
				t.Fatal(err)
			}
			q := signIn(t, where)
			iss := q.Get("iss")
			if tt.iss != "" {
				iss = strings.Trim(tt.iss, "-")
			}
			if q.Get("state") != "state-1" || q.Get("iss") == "" {
				t.Fatalf("came back with %v", q)
			}
			id, err := p.Finish(t.Context(), iss, q.Get("code"), tt.verifier, tt.nonce)
			if broker.CodeOf(err) != tt.code || (err == nil) != (strings.Count(id.Reveal(), ".") == 2 && err == nil) {
				t.Errorf("%v", err)
			}
			if err == nil { // a code is good once
				if _, err := p.Finish(t.Context(), iss, q.Get("code"), tt.verifier, tt.nonce); broker.CodeOf(err) != broker.BadToken {
					t.Errorf("again: %v", err)
				}
			}
		})
	}
}

func TestBeginSaysWhatItMust(t *testing.T) {
	t.Parallel()
	idp, p := provider(t, func(c *login.Config) { c.Secret = secret.New("hunter2") })
	where, err := p.Begin(t.Context(), "s", "n", strings.Repeat("v", 50))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	for name, want := range map[string]string{
		"response_type": "code", "client_id": sample.StintClient, "redirect_uri": redirect, "scope": "openid profile email",
		"code_challenge_method": "S256", "nonce": "n", "state": "s", "max_age": "3600",
	} {
		if q.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, q.Get(name), want)
		}
	}
	if q.Get("code_challenge") == "" || strings.Contains(where, "vvvvv") || strings.Contains(where, "hunter2") || !strings.HasPrefix(where, idp.URL()) {
		t.Errorf("%s", where)
	}
}

// A provider that cannot be asked is Unavailable, and one that is another than it should
// be as well; what was known of it serves on.
func TestProviderThatIsOut(t *testing.T) {
	t.Parallel()
	now := time.Now()
	idp, p := provider(t, func(c *login.Config) { c.Now = func() time.Time { return now } })
	if _, err := p.Begin(t.Context(), "s", "n", "v"); err != nil {
		t.Fatal(err)
	}
	_ = idp.Close()
	now = now.Add(2 * time.Hour)
	if _, err := p.Begin(t.Context(), "s", "n", "v"); err != nil {
		t.Errorf("what was known is forgotten: %v", err)
	}
	if _, err := p.Finish(context.Background(), idp.URL(), "code", "v", "n"); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("%v", err)
	}
	_, fresh := provider(t, func(c *login.Config) { c.Issuer = "http://127.0.0.1:1" })
	if _, err := fresh.Begin(t.Context(), "s", "n", "v"); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("%v", err)
	}
	_, other := provider(t, func(c *login.Config) { c.Issuer = strings.Replace(c.Issuer, "127.0.0.1", "localhost", 1) })
	if _, err := other.Begin(t.Context(), "s", "n", "v"); broker.CodeOf(err) != broker.Unavailable || !strings.Contains(err.Error(), "is of the issuer") {
		t.Errorf("%v", err)
	}
}
