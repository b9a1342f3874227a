package google_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/providers/google"
	"github.com/stint-dev/stint/scopes/grant"
)

// emulate is Google by others, and the other way round than ours: it keeps to the code
// flow, and passes over the scope of a refresh. So an account is linked there as it is at
// Google, and what is minted is more than was asked for and has to be seen to be.
func TestEmulate(t *testing.T) {
	where := testbed.Emulate(t, "google", map[string]any{
		"users": []any{map[string]any{"email": "alice@gmail.example", "name": "Alice"}},
		"oauth_clients": []any{map[string]any{
			"client_id": "stint", "client_secret": "client-secret", "redirect_uris": []any{"https://stint.example/connect/work/callback"},
		}},
	})
	b := newBed(t)
	b.Secret = "client-secret"
	cfg := google.Config{
		Flow: "user", ClientID: "stint", ClientSecret: "env:GOOGLE_SECRET", Scopes: []string{"drive.readonly", "calendar"},
		Endpoints: google.Endpoints{Authorization: where + "/o/oauth2/v2/auth", Token: where + "/oauth2/token", Revoke: where + "/oauth2/revoke"},
	}
	p := b.open(t, cfg)
	link := p.Describe().Link
	r := broker.LinkRequest{Subject: alice, Redirect: "https://stint.example/connect/work/callback", State: "state-1", Verifier: strings.Repeat("v", 43)}
	if _, err := link.Finish(t.Context(), r, "nonsense"); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("a code that is none: %v", err)
	}
	stolen := r
	stolen.Verifier = strings.Repeat("w", 43)
	if _, err := link.Finish(t.Context(), stolen, consent(t, link, r)); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("another's verifier: %v", err)
	}
	a, err := link.Finish(t.Context(), r, consent(t, link, r))
	if err != nil || a.Name != "alice@gmail.example" || a.ID == "" || !slices.Equal(a.Scopes, []string{"openid", "userinfo.email", "drive.readonly", "calendar"}) {
		t.Fatalf("%+v, %v", a, err)
	}
	out, err := p.Resolve(t.Context(), broker.ResolveRequest{Subject: alice, Live: true})
	if err != nil {
		t.Fatal(err)
	}
	asked := parse(t, p, `{"scopes":["drive.readonly"]}`)
	m, _, err := b.mint(t, p, asked)
	if err != nil {
		t.Fatal(err)
	}
	if ok, _ := grant.Leq(m.Granted, asked); ok || !m.Granted.Equal(out.Entitlement) {
		t.Errorf("an upstream that passes over the scope is taken at its word: %s", m.Granted)
	}
	all, _, err := b.mint(t, p, out.Entitlement)
	if err != nil || !all.Granted.Equal(out.Entitlement) || all.Expires.Sub(time.Now()) > time.Hour {
		t.Errorf("%+v, %v", all, err)
	}
	if o, err := link.Unlink(t.Context(), alice); err != nil || o.State != broker.Revoked {
		t.Errorf("%+v, %v", o, err)
	}
	if _, _, err := b.mint(t, p, asked); broker.CodeOf(err) != broker.NeedsLink {
		t.Errorf("after it was unlinked: %v", err)
	}
}

// consent is Alice in her browser, who picks herself.
func consent(t *testing.T, link *broker.Link, r broker.LinkRequest) string {
	t.Helper()
	where, err := link.Begin(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	page, err := client.Get(where)
	if err != nil || page.StatusCode != http.StatusOK {
		t.Fatalf("%+v, %v", page, err)
	}
	_ = page.Body.Close()
	form := u.Query()
	form.Set("email", "alice@gmail.example")
	u.Path, u.RawQuery = u.Path+"/callback", ""
	resp, err := client.PostForm(u.String(), form)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	back, err := resp.Location()
	if err != nil || back.Query().Get("state") != r.State {
		t.Fatalf("%s, %v", back, err)
	}
	return back.Query().Get("code")
}
