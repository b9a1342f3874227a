package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/scopes"
)

const withAdmin = `
admin:
  administrators: ["https://idp.example#root"]
  sign_in: {issuer: "https://idp.example", client_id: stint}
`

var acceptsID = []string{"accept: [access_token]", "accept: [access_token, id_token]"}

// Administrators that could never get in are refused, each with what to change.
func TestAdminRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ text, want string }{
		"no administrators":         {with(acceptsID[0], acceptsID[1], "", strings.Replace(withAdmin, `["https://idp.example#root"]`, "[]", 1)), "name at least one"},
		"a name without its issuer": {with(acceptsID[0], acceptsID[1], "", strings.Replace(withAdmin, "https://idp.example#root", "root", 1)), "ISSUER#SUB"},
		"one of an unknown issuer":  {with(acceptsID[0], acceptsID[1], "", strings.Replace(withAdmin, "https://idp.example#root", "https://other.example#root", 1)), "no configured issuer"},
		"an unknown provider":       {with(acceptsID[0], acceptsID[1], "", strings.Replace(withAdmin, `issuer: "https://idp.example"`, `issuer: "https://other.example"`, 1)), "no configured issuer"},
		"no ID tokens":              {with("", withAdmin), "add id_token to accept"},
		"scopes that an ID token has not": {
			with(acceptsID[0], acceptsID[1], "scopes: identity-only", "scopes: ours", "", withAdmin), "have to be identity-only",
		},
		"a provider that is disabled": {with(acceptsID[0], acceptsID[1]+"\n    disabled: true", "", withAdmin), "it is disabled"},
		"a secret in clear": {
			with(acceptsID[0], acceptsID[1], "", strings.Replace(withAdmin, "client_id: stint", "client_id: stint, client_secret: hunter2", 1)), "client_secret",
		},
		"scopes without openid": {with(acceptsID[0], acceptsID[1], "", strings.Replace(withAdmin, "client_id: stint", "client_id: stint, scopes: [email]", 1)), "openid"},
		"too long a session":    {with(acceptsID[0], acceptsID[1], "", strings.Replace(withAdmin, "client_id: stint", "client_id: stint, lifetime: 13h", 1)), "lifetime"},
		"a client of that name": {with(acceptsID[0], acceptsID[1], "id: notes", "id: stint-admin", "", withAdmin), "is Stint's own"},
		"the same without it":   {with("id: notes", "id: stint-admin"), "is Stint's own"},
	} {
		_, err := config.Load(write(t, t.TempDir(), "stint.yaml", tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "stint.yaml:") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c, err := config.Load(write(t, t.TempDir(), "stint.yaml", with(acceptsID[0], acceptsID[1], "", withAdmin))); err != nil || c.Admin.SignIn.Lifetime.Hours() != 1 {
		t.Errorf("%v", err)
	}
}

// load reads a configuration with mappings, and returns what they are.
func loadWith(t *testing.T, admin, mapping, cedar string) (*config.Config, []*scopes.Mapping, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "mappings"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "mappings"), "api.yaml", "resource: https://api.example\nscopes: {read: {access: read}}\nrules:\n  - {allow: [read], to: {groups: [staff]}}\n")
	if mapping != "" {
		write(t, filepath.Join(dir, "mappings"), "stint.yaml", mapping)
	}
	if cedar != "" {
		write(t, filepath.Join(dir, "mappings"), "stint.cedar", cedar)
	}
	c, err := config.Load(write(t, dir, "stint.yaml", with(acceptsID[0], acceptsID[1], "", admin)))
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.LoadMappings()
	return c, m, err
}

// The mapping of the admin API always lets the administrators in, and nothing that
// somebody writes beside it takes that away.
func TestAdminMapping(t *testing.T) {
	t.Parallel()
	const rules = "resource: https://stint.example/admin/v1\nrules:\n  - {allow: [read], to: {groups: [staff]}}\n"
	for name, tt := range map[string]struct {
		mapping, cedar, want string
		rules                int
	}{
		"none written":          {"", "", "", 1},
		"rules":                 {rules, "", "", 2},
		"scopes of one's own":   {rules + "scopes: {read: {access: read}}\n", "", "write rules alone", 0},
		"a Cedar file":          {rules, "forbid(principal, action, resource);", "write rules alone", 0},
		"of another issuer":     {strings.Replace(rules, "stint.example", "other.example", 1), "", "the admin API is https://stint.example/admin/v1", 0},
		"tools":                 {rules + "tools: {x: {scopes: [read]}}\n", "", "write rules alone", 0},
		"a rule for everything": {strings.Replace(rules, "[read]", "[administer]", 1), "", "", 2},
	} {
		_, all, err := loadWith(t, withAdmin, tt.mapping, tt.cedar)
		if tt.want != "" {
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || len(all) != 2 {
			t.Errorf("%s: %d mappings, %v", name, len(all), err)
			continue
		}
		m := all[1]
		last := m.Rules[len(m.Rules)-1]
		if m.Resource.Value != "https://stint.example/admin/v1" || len(m.Scopes) != 4 || len(m.Rules) != tt.rules ||
			len(last.Allow) != 4 || last.To.Subjects[0].Value != "https://idp.example#root" || last.To.Clients[0].Value != config.AdminClient {
			t.Errorf("%s: %+v", name, m)
		}
	}
	if _, _, err := loadWith(t, "", rules, ""); err == nil || !strings.Contains(err.Error(), "nobody can reach") {
		t.Errorf("a mapping of the admin API without one: %v", err)
	}
	// Another administrator is another version.
	_, one, _ := loadWith(t, withAdmin, rules, "")
	_, two, _ := loadWith(t, strings.Replace(withAdmin, "#root", "#other", 1), rules, "")
	if one[1].Version() == two[1].Version() {
		t.Error("another administrator, and the same version")
	}
}
