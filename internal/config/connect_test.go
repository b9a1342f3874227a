package config_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/scopes"
)

const (
	withConnect = `
connect:
  sign_in: {issuer: "https://idp.example", client_id: stint-for-people}
`
	withProviders = `
providers:
  - {name: code, kind: vault, settings: {}}
  - {name: callback, kind: vault, settings: {}}
  - {name: warehouse, kind: vault, settings: {}}
`
)

// A sign-in that could never be is refused, with what to change.
func TestConnectRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ text, want string }{
		"nobody signs in":           {with("", "\nconnect: {}\n"), "admin.sign_in"},
		"an unknown issuer":         {with(acceptsID[0], acceptsID[1], "", strings.Replace(withConnect, "https://idp.example", "https://other.example", 1)), "connect: sign_in: issuer: no configured issuer"},
		"no ID tokens":              {with("", withConnect), "add id_token to accept"},
		"scopes without openid":     {with(acceptsID[0], acceptsID[1], "", strings.Replace(withConnect, "-people", "-people, scopes: [email]", 1)), "openid"},
		"a client of that name":     {with("id: notes", "id: stint-connect"), "is Stint's own"},
		"a secret in clear":         {with(acceptsID[0], acceptsID[1], "", strings.Replace(withConnect, "-people", "-people, client_secret: hunter2", 1)), "client_secret"},
		"an issuer that is ours":    {with(acceptsID[0], acceptsID[1], "scopes: identity-only", "scopes: ours", "", withConnect), "have to be identity-only"},
		"an issuer that is not on":  {with(acceptsID[0], acceptsID[1]+"\n    disabled: true", "", withConnect), "it is disabled"},
		"a key that there is not":   {with("", "\nconnect: {sign-in: {}}\n"), "sign-in"},
		"a sign-in without issuer":  {with("", "\nconnect: {sign_in: {client_id: x}}\n"), "issuer"},
		"a sign-in without client":  {with("", "\nconnect: {sign_in: {issuer: \"https://idp.example\"}}\n"), "client_id"},
		"a life that is out bounds": {with(acceptsID[0], acceptsID[1], "", strings.Replace(withConnect, "-people", "-people, lifetime: 13h", 1)), "lifetime"},
	} {
		_, err := config.Load(write(t, t.TempDir(), "stint.yaml", tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "stint.yaml:") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Providers at which people link accounts need a way to sign in, and a name of their own:
// else the mistake stands where they do.
func TestLinkAtRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		text  string
		links []string
		want  []string
	}{
		"nothing is linked":       {with("", withProviders), nil, nil},
		"nobody signs in":         {with("", withProviders), []string{"code"}, []string{"provider code", "connect.sign_in, or admin"}},
		"administrators sign in":  {with(acceptsID[0], acceptsID[1], "", withAdmin+withProviders), []string{"code", "warehouse"}, nil},
		"people sign in":          {with(acceptsID[0], acceptsID[1], "", withConnect+withProviders), []string{"code"}, nil},
		"a page has the name":     {with(acceptsID[0], acceptsID[1], "", withConnect+withProviders), []string{"callback"}, []string{"provider callback", "call it otherwise"}},
		"the same with no link":   {with(acceptsID[0], acceptsID[1], "", withConnect+withProviders), []string{"warehouse"}, nil},
		"the name, and no signin": {with("", withProviders), []string{"callback"}, []string{"connect.sign_in, or admin", "call it otherwise"}},
	} {
		c, err := config.Load(write(t, t.TempDir(), "stint.yaml", tt.text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		err = c.LinkAt(tt.links)
		if (err == nil) != (tt.want == nil) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "stint.yaml:") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// Who signs in may link accounts, for a quarter of an hour, by that sign-in alone; where
// administrators sign in by the same client, it is one client.
func TestConnectMapping(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		section, client string
		clients         []string
		life            time.Duration
	}{
		"as administrators do": {withAdmin, config.AdminClient, []string{config.AdminClient}, 15 * time.Minute},
		"by a client of its own": {
			withAdmin + withConnect, config.ConnectClient, []string{config.AdminClient, config.ConnectClient}, 15 * time.Minute,
		},
		"by the client of administrators, spelled out": {
			withAdmin + strings.Replace(withConnect, "stint-for-people", "stint", 1), config.AdminClient, []string{config.AdminClient}, 15 * time.Minute,
		},
		"without administrators": {withConnect, config.ConnectClient, []string{config.ConnectClient}, 15 * time.Minute},
		"for less": {
			strings.Replace(withConnect, "-people", "-people, lifetime: 5m", 1), config.ConnectClient, []string{config.ConnectClient}, 5 * time.Minute,
		},
	} {
		c, _, err := loadWith(t, tt.section+withProviders, "", "")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if all, err := c.LoadMappings(); err != nil || slices.ContainsFunc(all, isConnect(c)) {
			t.Errorf("%s: there is a mapping before anything is linked: %v", name, err)
		}
		if err := c.LinkAt([]string{"code"}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var ids []string
		for _, cl := range c.SignInClients() {
			ids = append(ids, cl.ID)
			if has := slices.Contains(cl.Targets, c.ConnectResource()); has != (cl.ID == tt.client) {
				t.Errorf("%s: client %s may ask for %v", name, cl.ID, cl.Targets)
			}
		}
		if !slices.Equal(ids, tt.clients) {
			t.Errorf("%s: clients %v, want %v", name, ids, tt.clients)
		}
		all, err := c.LoadMappings()
		at := slices.IndexFunc(all, isConnect(c))
		if err != nil || at < 0 {
			t.Fatalf("%s: %v", name, err)
		}
		m := all[at]
		to := m.Rules[0].To
		if len(m.Rules) != 1 || len(m.Scopes) != 1 || m.MaxLifetime.Duration != tt.life || to.Clients[0].Value != tt.client || to.Claims["iss"].Value != "https://idp.example" {
			t.Errorf("%s: %+v %+v", name, m, to)
		}
	}
	// It is nobody else's to write.
	c, _, _ := loadWith(t, withConnect, "", "")
	_, _, err := loadWith(t, withConnect, "resource: "+c.ConnectResource()+"\nscopes: {accounts: {access: write}}\nrules:\n  - {allow: [accounts], to: {clients: [notes]}}\n", "")
	if err == nil || !strings.Contains(err.Error(), "Stint's own rule") {
		t.Errorf("%v", err)
	}
}

func isConnect(c *config.Config) func(*scopes.Mapping) bool {
	return func(m *scopes.Mapping) bool { return m.Resource.Value == c.ConnectResource() }
}
