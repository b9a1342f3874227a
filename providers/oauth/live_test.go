package oauth_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/oauth"
)

// Each preset at the server itself, with a test account: what it does when it is asked for
// fewer scopes is logged, and that it knows the preset's endpoints is tried. The variable
// holds a JSON object with client_id, client_secret, refresh_token and scopes; the refresh
// token is used up where the server rotates.
func TestLive(t *testing.T) {
	for preset, variable := range map[string]string{
		"atlassian": "STINT_LIVE_ATLASSIAN", "salesforce": "STINT_LIVE_SALESFORCE", "notion": "STINT_LIVE_NOTION", "linear": "STINT_LIVE_LINEAR",
	} {
		t.Run(preset, func(t *testing.T) {
			text := os.Getenv(variable)
			if text == "" {
				t.Skipf("needs an account at the upstream: set %s", variable)
			}
			var with struct {
				ClientID     string   `json:"client_id"`
				ClientSecret string   `json:"client_secret"`
				RefreshToken string   `json:"refresh_token"`
				Scopes       []string `json:"scopes"`
			}
			if err := json.Unmarshal([]byte(text), &with); err != nil {
				t.Fatal("the variable is no such object")
			}
			s := newAt("")
			s.secret = with.ClientSecret
			p := s.open(t, func(c *oauth.Config) {
				*c = oauth.Config{Preset: preset, ClientID: with.ClientID, ClientSecret: c.ClientSecret, Scopes: with.Scopes}
			})
			kept := &upstream.Parent{Refresh: secret.New(with.RefreshToken)}
			kept.Account.Scopes = with.Scopes
			if _, err := s.parents.Put(t.Context(), upstream.ParentKey{Provider: "main", Subject: alice}, kept); err != nil {
				t.Fatal(err)
			}
			result := certify(t, p, "")
			after, err := s.parents.Get(t.Context(), upstream.ParentKey{Provider: "main", Subject: alice})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %s; the refresh token is replaced: %t; scopes %s", preset, result, !after.Refresh.Equal(kept.Refresh), strings.Join(with.Scopes, " "))
		})
	}
}
