package interop

import (
	"encoding/json"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
)

var (
	formAction = regexp.MustCompile(`<form [^>]*action="([^"]+)"`)
	formPrompt = regexp.MustCompile(`name="prompt" value="([a-z]+)"`)
)

// signIn signs alice in as a browser does, and returns what her agent gets:
// authorization code with PKCE. Without a resource the access token is for the
// identity provider.
func (w *world) signIn(t *testing.T, resource string) *oauth2.Token {
	t.Helper()
	conf := oauth2.Config{
		ClientID: "desktop-at-idp", RedirectURL: "http://127.0.0.1/callback", Scopes: []string{"openid", "groups", "use"},
		Endpoint: oauth2.Endpoint{AuthURL: w.IdP + "/auth", TokenURL: w.IdP + "/token", AuthStyle: oauth2.AuthStyleInParams},
	}
	var at []oauth2.AuthCodeOption
	if resource != "" {
		at = append(at, oauth2.SetAuthURLParam("resource", resource))
	}
	verifier := oauth2.GenerateVerifier()
	back := w.browse(t, conf.AuthCodeURL("state", append(at, oauth2.S256ChallengeOption(verifier))...), conf.RedirectURL)
	if back.Get("code") == "" || back.Get("state") != "state" || back.Get("iss") != w.IdP {
		t.Fatalf("sign in: %v", back)
	}
	tokens, err := conf.Exchange(t.Context(), back.Get("code"), append(at, oauth2.VerifierOption(verifier))...)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// browse goes where it is led, fills in every form, and returns the query with
// which it comes back.
func (w *world) browse(t *testing.T, start, redirect string) url.Values {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar, Timeout: 10 * time.Second, CheckRedirect: func(next *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(next.URL.String(), redirect) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	resp, err := browser.Get(start)
	for range 3 { // to sign in, to consent, to go back
		if err != nil {
			t.Fatal(err)
		}
		page, readErr := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if readErr != nil {
			t.Fatal(readErr)
		}
		if to, err := resp.Location(); err == nil {
			return to.Query()
		}
		action, prompt := formAction.FindSubmatch(page), formPrompt.FindSubmatch(page)
		if action == nil || prompt == nil {
			t.Fatalf("%s: %s: no form\n%s", resp.Request.URL, resp.Status, page)
		}
		resp, err = browser.PostForm(html.UnescapeString(string(action[1])), url.Values{
			"prompt": {string(prompt[1])}, "login": {"alice"}, "password": {"any"},
		})
	}
	t.Fatal("sign in: one form after another")
	return nil
}

// post asks Stint something as a client with client_secret_basic.
func (w *world) post(t *testing.T, id, path string, form url.Values) (status int, answer map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.Issuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(id, w.Secrets[id])
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatalf("%s: %v", resp.Status, err)
	}
	return resp.StatusCode, answer
}

// isAlices checks with the API that a token is for it, alice's, and who
// holds it.
func (w *world) isAlices(t *testing.T, token, holder string) {
	t.Helper()
	status, got := w.post(t, "orders-api", "/oauth2/introspect", url.Values{"token": {token}})
	act, _ := got["act"].(map[string]any)
	if status != http.StatusOK || got["active"] != true || got["sub"] != w.IdP+"#alice" || got["aud"] != api ||
		got["scope"] != "orders:read" || got["client_id"] != holder || act["sub"] != holder {
		t.Errorf("%d %v", status, got)
	}
}

// fresh reports whether something runs out soon, and has not.
func fresh(expiry time.Time) bool {
	left := time.Until(expiry)
	return left > 0 && left <= 5*time.Minute+time.Second
}
