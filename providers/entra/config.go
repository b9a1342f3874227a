package entra

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/upstream"
)

// Config is what the configuration says of one tenant and one API in it.
type Config struct {
	// Tenant is the directory's id, in lower case.
	Tenant string `yaml:"tenant" check:"required"`
	// Login is where the tenant's tokens come from. Absent:
	// https://login.microsoftonline.com; national clouds have their own.
	Login string `yaml:"login,omitempty" check:"https"`
	// API is what the tokens are for, as its identifier URI. Absent:
	// https://graph.microsoft.com.
	API string `yaml:"api,omitempty"`
	// Profiles are the app registrations that tokens are made by, under the names that
	// grants have for them: lower-case letters, digits, - and _.
	Profiles map[string]Profile `yaml:"profiles" check:"required"`
	// Front is the registration of the API that subject tokens are for, where that is
	// none of the profiles'. Each profile's registration has to expose a scope, and to
	// let this one ask for it.
	Front *App `yaml:"front,omitempty"`
	// TokenLifetime is the longest that Entra lets a token of the profiles live. Absent:
	// 90m, which is so unless the tenant's policy says otherwise. One that lives longer
	// is refused.
	TokenLifetime upstream.Duration `yaml:"token_lifetime,omitempty" check:"min=10m,max=24h"`
	// Outlives accepts that tokens end later than the subject tokens they were made from:
	// revoking those does not end them. Absent: a lease needs subject tokens with that much
	// time left, which Entra's own never have unless token_lifetime is short. Either way
	// lifetimes.credential has to be a minute more than token_lifetime.
	Outlives bool `yaml:"outlives,omitempty"`
}

// App is an app registration.
type App struct {
	// ClientID is the registration's application id, in lower case.
	ClientID string `yaml:"client_id" check:"required"`
	// ClientSecret is a reference to its secret, and Certificate to its certificate with
	// the RSA key, as PEM. One of them.
	ClientSecret string `yaml:"client_secret,omitempty" check:"reference"`
	Certificate  string `yaml:"certificate,omitempty" check:"reference"`
	// Audience is its application id URI, as it is in tokens' aud. Absent:
	// api://CLIENT_ID.
	Audience string `yaml:"audience,omitempty"`
}

// Profile is an app registration with all that was granted to it.
type Profile struct {
	// ClientID is the registration's application id, in lower case. No other profile has
	// it.
	ClientID string `yaml:"client_id" check:"required"`
	// ClientSecret is a reference to its secret, and Certificate to its certificate with
	// the RSA key, as PEM. One of them.
	ClientSecret string `yaml:"client_secret,omitempty" check:"reference"`
	Certificate  string `yaml:"certificate,omitempty" check:"reference"`
	// Audience is its application id URI, as it is in tokens' aud. Absent:
	// api://CLIENT_ID.
	Audience string `yaml:"audience,omitempty"`
	// Scopes are the delegated permissions of the API that were granted to it, all of
	// them, as Mail.Read. A token with more is refused. openid, profile and email are
	// listed where they were granted.
	Scopes []string `yaml:"scopes" check:"required"`
	// Reads says that with these scopes nothing can be changed.
	Reads bool `yaml:"reads,omitempty"`
}

// usualLife is the longest that tokens live without a policy.
const usualLife = 90 * time.Minute

// signIn are the scopes that are no permissions of an API. They are never asked for, and
// come along where they were granted.
var signIn = []string{"openid", "profile", "email"}

func (p Profile) app() App {
	return App{ClientID: p.ClientID, ClientSecret: p.ClientSecret, Certificate: p.Certificate, Audience: p.Audience}
}

// within reports whether a profile's scopes are among another's. Entra does not tell
// their upper case from lower.
func (p Profile) within(q Profile) bool {
	for _, s := range p.Scopes {
		if !slices.ContainsFunc(q.Scopes, func(t string) bool { return strings.EqualFold(s, t) }) {
			return false
		}
	}
	return true
}

// order is what is asked for: the API's scopes, sorted.
func (p Profile) order(api string) string {
	var out []string
	for _, s := range p.Scopes {
		if !slices.Contains(signIn, s) {
			out = append(out, api+"/"+s)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// audiences are what aud may be of tokens for an app.
func (a App) audiences() []string {
	if a.Audience != "" {
		return []string{a.ClientID, a.Audience}
	}
	return []string{a.ClientID, "api://" + a.ClientID}
}

// Check says what is wrong with the settings.
func (c *Config) Check() error {
	if c.Login == "" {
		c.Login = "https://login.microsoftonline.com"
	}
	if c.API == "" {
		c.API = "https://graph.microsoft.com"
	}
	if c.TokenLifetime.Duration == 0 {
		c.TokenLifetime.Duration = usualLife
	}
	c.Login, c.API = strings.TrimSuffix(c.Login, "/"), strings.TrimSuffix(c.API, "/")
	switch {
	case !uuid(c.Tenant):
		return errors.New("tenant: write the directory's id, as 11111111-1111-1111-1111-111111111111: a name can become another's")
	case strings.ContainsAny(c.API, " \t\"'?#") || !strings.Contains(c.API, "://"):
		return errors.New("api: write an identifier URI, as https://graph.microsoft.com")
	case c.TokenLifetime.Duration < 10*time.Minute || c.TokenLifetime.Duration > 24*time.Hour:
		return errors.New("token_lifetime is between 10m and 24h, as in Entra's policies")
	case len(c.Profiles) == 0:
		return errors.New("profiles: there are none, so that nothing can be vended")
	}
	if c.Front != nil {
		if err := c.Front.check(); err != nil {
			return fmt.Errorf("front: %w", err)
		}
	}
	names := slices.Sorted(maps.Keys(c.Profiles))
	for i, name := range names {
		p := c.Profiles[name]
		if name == "" || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
			return fmt.Errorf("profiles: %q is not up to 63 lower-case letters, digits, - and _", name)
		}
		if err := c.checkProfile(p); err != nil {
			return fmt.Errorf("profiles: %s: %w", name, err)
		}
		for _, before := range names[:i] {
			q := c.Profiles[before]
			switch {
			case p.ClientID == q.ClientID:
				return fmt.Errorf("profiles: %s and %s are one registration, which has all that either was granted", before, name)
			case p.within(q) && q.within(p):
				return fmt.Errorf("profiles: %s and %s have the same scopes", before, name)
			}
		}
	}
	return nil
}

func (a App) check() error {
	switch {
	case !uuid(a.ClientID):
		return errors.New("client_id is an application id, in lower case")
	case (a.ClientSecret == "") == (a.Certificate == ""):
		return errors.New("either client_secret or certificate")
	}
	return nil
}

func (c *Config) checkProfile(p Profile) error {
	if err := p.app().check(); err != nil {
		return err
	}
	if c.Front != nil && p.ClientID == c.Front.ClientID {
		return errors.New("front is another registration")
	}
	seen := make(map[string]bool)
	for _, s := range p.Scopes {
		key := strings.ToLower(s)
		switch {
		case s == "" || strings.ContainsAny(s, " /\\\"'*:") || key == ".default" || key == "offline_access":
			return fmt.Errorf("scopes: %q is no permission of an API by itself; write for example Mail.Read", s)
		case slices.Contains(signIn, key) && key != s:
			return fmt.Errorf("scopes: write %s", key)
		case seen[key]:
			return fmt.Errorf("scopes: %s is there twice", s)
		}
		seen[key] = true
	}
	if p.order(c.API) == "" {
		return errors.New("scopes: there is no permission of the API")
	}
	return nil
}

// uuid reports whether s is one, in its one spelling.
func uuid(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range s {
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (r == '-') || !dash && !strings.ContainsRune("0123456789abcdef", r) {
			return false
		}
	}
	return true
}
