package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes"
)

// AdminClient is the id of the client by which people sign in to Stint itself.
const AdminClient = "stint-admin"

// AdminPath is where the admin API is, below the issuer; both together are the
// identifier of the resource that it is.
const AdminPath = "/admin/v1"

// Admin lets administrators in over the network. The admin API is a resource like
// others: who may do what there is for a mapping to say, with the scopes read, operate,
// administer and approve.
type Admin struct {
	// Administrators are subjects, as ISSUER#SUB, who have every scope of the admin API,
	// whatever the mappings say: so that somebody can get in on the first day, and
	// nobody can shut everybody out.
	Administrators []string `yaml:"administrators" check:"required"`
	// SignIn says how people sign in.
	SignIn SignIn `yaml:"sign_in" check:"required"`
}

// SignIn says how people sign in: by OpenID Connect, at an issuer that is trusted.
type SignIn struct {
	// Issuer is one of the issuers. It has to accept id_token, and its scopes have to be
	// identity-only.
	Issuer string `yaml:"issuer" check:"required"`
	// ClientID is what Stint is called there. Its redirect URI is, with Stint's own issuer,
	// ISSUER/login/callback for administrators, and ISSUER/connect/callback for those who
	// link accounts.
	ClientID string `yaml:"client_id" check:"required"`
	// ClientSecret is a reference to its secret there (client_secret_basic). Absent: it
	// is a public client, and PKCE alone protects the code.
	ClientSecret string `yaml:"client_secret,omitempty" check:"reference"`
	// Scopes are asked for at the issuer. Absent: openid, profile, email.
	Scopes []string `yaml:"scopes,omitempty"`
	// Lifetime is how long somebody is signed in, at most 12h. Absent: 1h.
	Lifetime scopes.Duration `yaml:"lifetime,omitempty" check:"min=1m,max=12h"`
}

// Check says what is wrong with the administrators.
func (a *Admin) Check() error {
	if len(a.Administrators) == 0 {
		return errors.New("administrators: name at least one, as ISSUER#SUB: otherwise nobody could ever get in")
	}
	for _, s := range a.Administrators {
		if iss, sub, ok := strings.Cut(s, "#"); !ok || iss == "" || sub == "" || !broker.Legible(s) {
			return fmt.Errorf("administrators: %q is no subject: write ISSUER#SUB", s)
		}
	}
	return a.SignIn.check()
}

func (s *SignIn) check() error {
	if len(s.Scopes) > 0 && !slices.Contains(s.Scopes, "openid") {
		return errors.New("sign_in: scopes: openid is missing, without which there is no ID token")
	}
	return nil
}

// AdminResource is the identifier of the resource that the admin API is.
func (c *Config) AdminResource() string { return c.Issuer + AdminPath }

// checkAdmin holds the administrators against the rest.
func (c *Config) checkAdmin() error {
	for _, cl := range c.Clients {
		if cl.ID == AdminClient || cl.ID == ConnectClient {
			return fmt.Errorf("clients: the id %s is Stint's own", cl.ID)
		}
	}
	if c.Admin == nil {
		return nil
	}
	var wrong []error
	for _, s := range c.Admin.Administrators {
		iss, _, _ := strings.Cut(s, "#")
		if !slices.ContainsFunc(c.Issuers, func(i *Issuer) bool { return i.Policy.Issuer == iss }) {
			wrong = append(wrong, fmt.Errorf("admin: administrators: %s: no configured issuer is %q", s, iss))
		}
	}
	return errors.Join(append(wrong, c.checkSignIn("admin", &c.Admin.SignIn))...)
}

// checkSignIn holds a way to sign in against the issuers.
func (c *Config) checkSignIn(section string, in *SignIn) error {
	at := slices.IndexFunc(c.Issuers, func(i *Issuer) bool { return i.Policy.Issuer == in.Issuer })
	if at < 0 {
		return fmt.Errorf("%s: sign_in: issuer: no configured issuer is %q", section, in.Issuer)
	}
	switch i := c.Issuers[at].Policy; {
	case i.Disabled:
		return fmt.Errorf("%s: sign_in: issuer: it is disabled", section)
	case !slices.Contains(i.Accept, string(broker.IDToken)):
		return fmt.Errorf("%s: sign_in: issuer: its ID tokens are not accepted: add id_token to accept", section)
	case i.Scopes != nil && !i.Scopes.IdentityOnly:
		return fmt.Errorf("%s: sign_in: issuer: an ID token says who, not what: its scopes have to be identity-only", section)
	}
	return nil
}

// SignInClients are the clients by which people sign in, as some of the registry. Nobody
// can authenticate as one.
func (c *Config) SignInClients() (out []*broker.Client) {
	client := func(id, name, section string, in *SignIn, targets ...string) *broker.Client {
		return &broker.Client{
			Pos: c.Pos(section, "sign_in"), ID: id, Name: name, GrantTypes: []string{broker.TokenExchange},
			Targets: targets, Ceiling: &scopes.Ceiling{Everything: true}, AcceptLess: true,
			Identities: map[string]string{in.Issuer: in.ClientID}, Session: in.Lifetime.Duration,
		}
	}
	if c.Admin != nil {
		out = append(out, client(AdminClient, "Stint's own sign-in", "admin", &c.Admin.SignIn, c.AdminResource()))
	}
	switch {
	case len(c.links) == 0:
	case c.ConnectClientID() == AdminClient:
		out[0].Targets = append(out[0].Targets, c.ConnectResource())
	default:
		out = append(out, client(ConnectClient, "Stint's own sign-in to link accounts", "connect", c.ConnectSignIn(), c.ConnectResource()))
	}
	return out
}

// AdminScopes are the scopes of the admin API, with what they allow.
var AdminScopes = map[string]scopes.Scope{
	"read":       {Access: scopes.Read, About: "see who holds what: sessions, leases, clients, issuers, providers, mappings, keys"},
	"operate":    {Access: scopes.Write, About: "take back, and turn clients and issuers off and on"},
	"administer": {Access: scopes.Admin, About: "rotate and withdraw signing keys, make secrets for clients"},
	"approve":    {Access: scopes.Write, About: "approve what needs a human; nothing does yet"},
}

// withAdmin adds the mapping of the admin API, or, where the administrator wrote one,
// its scopes and the rule for the administrators that stint.yaml names.
func (c *Config) withAdmin(all []*scopes.Mapping) ([]*scopes.Mapping, error) {
	at := slices.IndexFunc(all, func(m *scopes.Mapping) bool { return m.Resource.Value == c.AdminResource() })
	if c.Admin == nil {
		if at >= 0 {
			return nil, scopes.Problems{{Pos: all[at].Pos, Text: "resource: it is the admin API, which nobody can reach: stint.yaml has no admin"}}
		}
		return all, nil
	}
	for _, m := range all { // the issuer was changed, and this was forgotten
		if r := m.Resource.Value; strings.HasSuffix(r, AdminPath) && r != c.AdminResource() && len(m.Scopes) == 0 {
			return nil, scopes.Problems{{Pos: m.Resource.Pos, Text: fmt.Sprintf("resource: the admin API is %s", c.AdminResource())}}
		}
	}
	place := c.Pos("admin", "administrators")
	m := &scopes.Mapping{Pos: place, Resource: scopes.Text{Value: c.AdminResource(), Pos: place}}
	if at >= 0 {
		m = all[at]
		if len(m.Scopes) > 0 || len(m.Tools) > 0 || m.Cedar != nil {
			return nil, scopes.Problems{{Pos: m.Pos, Text: "the scopes of the admin API are known, it has no tools, and what could forbid the administrators everything has no place: write rules alone, and no Cedar file beside them"}}
		}
	} else {
		all = append(all, m)
	}
	m.Scopes = make(map[string]*scopes.Scope, len(AdminScopes))
	rule := &scopes.Rule{Pos: place, To: &scopes.To{Pos: place, Clients: []scopes.Text{{Value: AdminClient, Pos: place}}}}
	for _, name := range slices.Sorted(maps.Keys(AdminScopes)) {
		s := AdminScopes[name]
		s.Pos = place
		m.Scopes[name] = &s
		rule.Allow = append(rule.Allow, scopes.Text{Value: name, Pos: place})
	}
	for _, s := range c.Admin.Administrators {
		rule.To.Subjects = append(rule.To.Subjects, scopes.Text{Value: s, Pos: place})
		m.Content = append(m.Content, []byte(s))
	}
	m.Rules = append(m.Rules, rule)
	return all, nil
}
