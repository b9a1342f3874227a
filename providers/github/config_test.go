package github_test

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/providers/github"
	"github.com/stint-dev/stint/scopes/grant"
)

func TestSettingsThatCannotBeRight(t *testing.T) {
	good := func() github.Config {
		return github.Config{Entitlement: "none", Apps: []github.App{{ClientID: "a", PrivateKey: "env:KEY", ClientSecret: "env:SECRET"}}}
	}
	for name, c := range map[string]struct {
		change func(*github.Config)
		wants  string
	}{
		"good":                          {func(*github.Config) {}, ""},
		"no App":                        {func(c *github.Config) { c.Apps = nil }, "there is none"},
		"nothing said of entitlement":   {func(c *github.Config) { c.Entitlement = "" }, "say collaborator"},
		"users, and entitlement":        {func(c *github.Config) { c.Mode = "user" }, "goes with mode: app"},
		"users of two Apps":             {func(c *github.Config) { c.Mode, c.Entitlement, c.Apps = "user", "", append(c.Apps, c.Apps[0]) }, "by one App"},
		"users who cannot link":         {func(c *github.Config) { c.Mode, c.Entitlement, c.Apps[0].ClientSecret = "user", "", "" }, "client_secret"},
		"an App without a key":          {func(c *github.Config) { c.Apps[0].PrivateKey = "" }, "either private_key or"},
		"an App with two":               {func(c *github.Config) { c.Apps[0].TransitKey = "k" }, "either private_key or"},
		"a login of nobody":             {func(c *github.Config) { c.Logins = map[string]string{"alice": "alice"} }, "ISSUER#SUB"},
		"a login that climbs":           {func(c *github.Config) { c.Logins = map[string]string{alice: "../x"} }, "ISSUER#SUB"},
		"a key in Vault, without Vault": {func(c *github.Config) { c.Apps[0] = github.App{ClientID: "a", TransitKey: "k"} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good()
			c.change(&cfg)
			err := cfg.Check()
			if (err == nil) != (c.wants == "") || err != nil && !strings.Contains(err.Error(), c.wants) {
				t.Errorf("%v, wanted %q", err, c.wants)
			}
		})
	}
}

// The tables are those of GitHub's own description.
func TestPermissionsAreGitHubs(t *testing.T) {
	text, err := os.ReadFile("testdata/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct{ Enum []string }
			}
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	want := doc.Components.Schemas["app-permissions"].Properties
	got := make(map[string][]string)
	for _, d := range github.Describe().Schema.Dimensions() {
		maps.Copy(got, d.Levels)
	}
	if len(want) != 55 || len(got) != len(want) {
		t.Errorf("%d permissions, GitHub has %d", len(got), len(want))
	}
	for key, p := range want {
		if !slices.Equal(got[key], p.Enum) {
			t.Errorf("%s: %q, GitHub has %q", key, got[key], p.Enum)
		}
	}
}

// emulate is not GitHub everywhere: what is different is pinned, so that nobody relies on
// it.
func TestWhereEmulateIsNotGitHub(t *testing.T) {
	h := newHub(t)
	_, none := h.mint(t, map[string]any{"permissions": map[string]string{"contents": "read"}, "repositories": []string{}})
	if list, _ := none["repositories"].([]any); none["repository_selection"] != "selected" || len(list) != 0 {
		t.Errorf("an empty list of repositories: %v", none)
	}
	token, _ := h.mint(t, map[string]any{"permissions": map[string]string{"issues": "read"}, "repository_ids": []int64{h.Repositories["web"]}})
	if status, _ := h.do(t, h.emulate, "GET", "/repos/acme/api/issues", token, ""); status != 403 {
		t.Errorf("what is private: %d", status)
	}
	if status, _ := h.do(t, h.emulate, "DELETE", "/installation/token", token, ""); status != 404 {
		t.Errorf("the end of a token: %d", status)
	}
	if len(token) != 31 || !strings.HasPrefix(token, "ghs_") {
		t.Errorf("a token of another form: %d characters", len(token))
	}
}

// Of several Apps the one with most left of its rate limit is asked.
func TestTheAppWithMostLeftIsAsked(t *testing.T) {
	h := newHub(t)
	p := h.open(t, func(c *github.Config) { c.Apps = append(c.Apps, github.App{ClientID: appID, PrivateKey: "env:KEY"}) })
	warm(t, p)
	g := h.of(t, p, map[string]any{"issues": "read"}, "web")
	if err := once(t, p, g); err != nil {
		t.Fatal(err)
	}
	h.Left(0)
	if err := once(t, p, g); err != nil { // its answer says that nothing is left
		t.Fatal(err)
	}
	h.Left(-1)
	if err := once(t, p, g); err != nil {
		t.Errorf("the other App has some left: %v", err)
	}
	h.Left(0)
	for range 3 {
		_ = once(t, p, g)
	}
	if e := broker.AsError(once(t, p, g)); e.Code != broker.Limited || e.RetryAfter <= 0 || e.RetryAfter > time.Hour {
		t.Errorf("%v after %s", e, e.RetryAfter)
	}
}

// once mints a grant and ends it.
func once(t *testing.T, p broker.Provider, g grant.Grant) error {
	t.Helper()
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Mint(t.Context(), broker.MintRequest{
		Lease: strings.Repeat("c", 24), Grant: g, Rendered: rendered, Expires: time.Now().Add(time.Hour), Note: func([]byte) error { return nil },
	})
	if err == nil {
		_, err = p.Revoke(t.Context(), broker.RevokeLease{Lease: strings.Repeat("c", 24), Handle: m.Handle})
	}
	return err
}
