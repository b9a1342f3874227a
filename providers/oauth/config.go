package oauth

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/upstream"
)

// The flows.
const (
	flowRefresh   = "refresh"
	flowExchange  = "exchange"
	flowAssertion = "assertion"
)

// authByKey is client authentication by a JWT (RFC 7523 section 2.2).
const authByKey = "private_key_jwt"

// Config is what the configuration says of one server.
type Config struct {
	// Preset fills in what is known of a server: atlassian, salesforce, notion or
	// linear. What stands beside it comes first.
	Preset string `yaml:"preset,omitempty" check:"oneof=atlassian|salesforce|notion|linear"`
	// Flow is refresh, exchange or assertion. Absent: refresh.
	Flow string `yaml:"flow,omitempty" check:"oneof=refresh|exchange|assertion"`
	// Issuer is the server's issuer identifier: its metadata says where the endpoints
	// are that are not named here.
	Issuer string `yaml:"issuer,omitempty" check:"https"`
	// Authorize is the authorization endpoint, and Token the token endpoint.
	Authorize string `yaml:"authorize,omitempty" check:"https"`
	Token     string `yaml:"token,omitempty" check:"https"`
	// Revoke is the revocation endpoint (RFC 7009), and Introspect the introspection
	// endpoint (RFC 7662).
	Revoke     string `yaml:"revoke,omitempty" check:"https"`
	Introspect string `yaml:"introspect,omitempty" check:"https"`
	// UserInfo says who has linked an account: a JSON object with sub, or id.
	UserInfo string `yaml:"userinfo,omitempty" check:"https"`
	// CA is a reference to the certificates, as PEM, that sign the server's. Absent: the
	// system's.
	CA string `yaml:"ca,omitempty" check:"reference"`
	// ClientID is what Stint is called there, and ClientSecret a reference to its secret.
	ClientID     string `yaml:"client_id" check:"required"`
	ClientSecret string `yaml:"client_secret,omitempty" check:"reference"`
	// ClientAuth is how Stint authenticates. Absent: client_secret_basic, or none without a
	// secret. private_key_jwt is by Stint's own keys, which the server reads at Stint's
	// jwks_uri: client_id is Stint's issuer identifier then.
	ClientAuth string `yaml:"client_auth,omitempty" check:"oneof=client_secret_basic|client_secret_post|private_key_jwt|none"`
	// Body is the form in which the token endpoint is asked: form or json. Absent: form.
	Body string `yaml:"body,omitempty" check:"oneof=form|json"`
	// Separator stands between scopes. Absent: a space.
	Separator string `yaml:"separator,omitempty"`
	// Scopes are those that may be granted. Others are refused, whatever the server says.
	Scopes []string `yaml:"scopes"`
	// Reads are those of them that only read.
	Reads []string `yaml:"reads,omitempty"`
	// Implies lists for a scope those that it implies.
	Implies map[string][]string `yaml:"implies,omitempty"`
	// Always are scopes that go with every request, such as offline_access, and mean
	// nothing by themselves.
	Always []string `yaml:"always,omitempty"`
	// AuthorizeParams and TokenParams are further parameters, such as audience.
	AuthorizeParams map[string]string `yaml:"authorize_params,omitempty"`
	TokenParams     map[string]string `yaml:"token_params,omitempty"`
	// SubjectsOf is the issuer of the subjects that the flow assertion speaks for: the
	// server knows them by its names.
	SubjectsOf string `yaml:"subjects_of,omitempty"`
	// Resource is what tokens are asked for (RFC 8707).
	Resource string `yaml:"resource,omitempty"`
	// Lifetime is the longest that an access token of the server lives. Absent: 1h.
	Lifetime upstream.Duration `yaml:"lifetime,omitempty"`
	// Revokes says what ends when one access token is revoked at the server: token;
	// family or grant, for more than that, so that it is not done when a lease ends; or
	// none. Absent: none.
	Revokes string `yaml:"revokes,omitempty" check:"oneof=token|family|grant|none"`
}

// presets are what is known of some servers. None of them narrows until it is certified.
var presets = map[string]Config{
	"atlassian": {
		Authorize: "https://auth.atlassian.com/authorize", Token: "https://auth.atlassian.com/oauth/token", UserInfo: "https://api.atlassian.com/me",
		ClientAuth: "client_secret_post", Body: "json", Always: []string{"offline_access"}, Revokes: "none",
		AuthorizeParams: map[string]string{"audience": "api.atlassian.com", "prompt": "consent"},
	},
	"salesforce": {
		Authorize: "https://login.salesforce.com/services/oauth2/authorize", Token: "https://login.salesforce.com/services/oauth2/token",
		Revoke: "https://login.salesforce.com/services/oauth2/revoke", Introspect: "https://login.salesforce.com/services/oauth2/introspect",
		UserInfo: "https://login.salesforce.com/services/oauth2/userinfo", ClientAuth: "client_secret_post", Always: []string{"refresh_token"}, Revokes: "token",
	},
	"notion": {
		Authorize: "https://api.notion.com/v1/oauth/authorize", Token: "https://api.notion.com/v1/oauth/token", Revoke: "https://api.notion.com/v1/oauth/revoke",
		Introspect: "https://api.notion.com/v1/oauth/introspect", Body: "json", Revokes: "grant",
		AuthorizeParams: map[string]string{"owner": "user"},
	},
	"linear": {
		Authorize: "https://linear.app/oauth/authorize", Token: "https://api.linear.app/oauth/token", Revoke: "https://api.linear.app/oauth/revoke",
		ClientAuth: "client_secret_post", Separator: ",", Revokes: "token",
		Implies: map[string][]string{"admin": {"write"}, "write": {"read", "issues:create", "comments:create"}}, Reads: []string{"read"},
	},
}

// Check says what is wrong with the settings.
func (c *Config) Check() error {
	c.fill()
	switch {
	case len(c.Scopes) == 0:
		return errors.New("scopes: there is none, so that nothing can be vended")
	case c.Issuer == "" && c.Token == "":
		return errors.New("token: say where the token endpoint is, or name the issuer")
	case c.Flow == flowRefresh && c.Issuer == "" && c.Authorize == "":
		return errors.New("authorize: without it nobody can link an account")
	case (c.Flow == flowAssertion) != (c.SubjectsOf != ""):
		return errors.New("subjects_of goes with flow: assertion, which needs it")
	case (c.ClientAuth == "none" || c.ClientAuth == authByKey) == (c.ClientSecret != ""):
		return fmt.Errorf("client_secret: client_auth is %s", c.ClientAuth)
	case c.Revokes == "token" && c.Revoke == "" && c.Issuer == "":
		return errors.New("revoke: revokes: token needs the revocation endpoint")
	case c.Lifetime.Duration < time.Minute || c.Lifetime.Duration > 24*time.Hour:
		return errors.New("lifetime lies between 1m and 24h")
	}
	for _, s := range slices.Concat(c.Scopes, c.Reads, c.Always, slices.Collect(maps.Keys(c.Implies))) {
		if !isScope(s) || strings.Contains(s, c.Separator) {
			return fmt.Errorf("scopes: %q cannot be a scope of this server", s)
		}
	}
	for _, s := range c.Reads {
		if !c.all()[s] {
			return fmt.Errorf("reads: %q is not among the scopes", s)
		}
	}
	return nil
}

// all are the scopes that a grant can name, with those that are implied by one.
func (c *Config) all() map[string]bool {
	out := make(map[string]bool, len(c.Scopes))
	for _, s := range c.Scopes {
		out[s] = true
	}
	return out
}

// isScope is RFC 6749 section 3.3.
func isScope(s string) bool {
	return s != "" && len(s) <= 256 && s != "*" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' })
}

// fill sets what is absent: from the preset, and then as it is usual.
func (c *Config) fill() {
	base := presets[c.Preset]
	for field, v := range map[*string]string{
		&c.Authorize: base.Authorize, &c.Token: base.Token, &c.Revoke: base.Revoke, &c.Introspect: base.Introspect, &c.UserInfo: base.UserInfo,
		&c.ClientAuth: base.ClientAuth, &c.Body: base.Body, &c.Separator: base.Separator, &c.Revokes: base.Revokes,
	} {
		if *field == "" {
			*field = v
		}
	}
	if c.Always == nil {
		c.Always = base.Always
	}
	if c.AuthorizeParams == nil {
		c.AuthorizeParams = base.AuthorizeParams
	}
	if c.Implies == nil {
		c.Implies = base.Implies
	}
	if c.Reads == nil {
		for _, s := range base.Reads {
			if slices.Contains(c.Scopes, s) {
				c.Reads = append(c.Reads, s)
			}
		}
	}
	auth := "client_secret_basic"
	if c.ClientSecret == "" {
		auth = "none"
	}
	for field, v := range map[*string]string{&c.Flow: flowRefresh, &c.ClientAuth: auth, &c.Body: "form", &c.Separator: " ", &c.Revokes: "none"} {
		if *field == "" {
			*field = v
		}
	}
	if c.Lifetime.Duration == 0 {
		c.Lifetime.Duration = time.Hour
	}
}
