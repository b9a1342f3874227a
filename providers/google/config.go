package google

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
	flowUser           = "user"
	flowServiceAccount = "service_account"
	flowStorage        = "storage"
	flowDelegation     = "delegation"
)

// Config is what the configuration says of one way to Google.
type Config struct {
	// Flow is whose tokens are vended: user, of the account that the subject has
	// linked; service_account, of one service account; storage, of one, within a
	// boundary at Cloud Storage; delegation, of the subject's account in a Workspace
	// domain, by a service account that may act for all of them.
	Flow string `yaml:"flow" check:"required,oneof=user|service_account|storage|delegation"`
	// ClientID and ClientSecret are those of the OAuth client, for the flow user. The
	// secret is a reference.
	ClientID     string `yaml:"client_id,omitempty"`
	ClientSecret string `yaml:"client_secret,omitempty" check:"reference"`
	// Scopes are what a subject is asked to consent to when he links his account, for
	// the flow user, as in grants: drive.readonly.
	Scopes []string `yaml:"scopes,omitempty"`
	// Provider is the workload identity pool provider that trusts Stint's issuer:
	// //iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/NAME.
	// For all flows but user.
	Provider string `yaml:"provider,omitempty"`
	// ServiceAccount is the e-mail address of the account that is impersonated. For all
	// flows but user.
	ServiceAccount string `yaml:"service_account,omitempty"`
	// Delegates are service accounts between the pool and the last one, each of which
	// may impersonate the next.
	Delegates []string `yaml:"delegates,omitempty"`
	// Users are the accounts of the flow delegation: each subject, as ISSUER#SUB, with
	// the e-mail address of his own.
	Users map[string]string `yaml:"users,omitempty"`
	// Never are addresses that no token is made for, whoever asks: the domain's
	// administrators.
	Never []string `yaml:"never,omitempty"`
	// Attest has Google say of each token what it is good for, with a request more.
	// Absent: of users' tokens its answer says so anyway, of others nothing does.
	Attest bool `yaml:"attest,omitempty"`
	// MaxLifetime is the longest that a service account's token lives, up to 12h, which
	// the organisation has to allow; beyond 1h. Absent: 1h. Users' tokens live an hour.
	MaxLifetime upstream.Duration `yaml:"max_lifetime,omitempty" check:"min=1m,max=12h"`
	// Outlives accepts that users' tokens, which live an hour whatever is asked, end later
	// than the subject tokens they were made from: revoking those does not end them. For
	// the flows user and delegation. Absent: a lease needs subject tokens with that much
	// time left. Either way lifetimes.credential has to be 61m at least.
	Outlives bool `yaml:"outlives,omitempty"`
	// Endpoints are Google's, where they are elsewhere, as with Private Service Connect.
	Endpoints Endpoints `yaml:"endpoints,omitempty"`
}

// Endpoints are where Google is asked.
type Endpoints struct {
	// Authorization is where a browser is sent to consent. Absent:
	// https://accounts.google.com/o/oauth2/v2/auth.
	Authorization string `yaml:"authorization,omitempty" check:"https"`
	// Token is the token endpoint. Absent: https://oauth2.googleapis.com/token.
	Token string `yaml:"token,omitempty" check:"https"`
	// Revoke ends a grant. Absent: https://oauth2.googleapis.com/revoke.
	Revoke string `yaml:"revoke,omitempty" check:"https"`
	// TokenInfo says what a token is good for. Absent:
	// https://oauth2.googleapis.com/tokeninfo.
	TokenInfo string `yaml:"token_info,omitempty" check:"https"`
	// STS exchanges tokens. Absent: https://sts.googleapis.com/v1/token.
	STS string `yaml:"sts,omitempty" check:"https"`
	// IAMCredentials makes tokens of service accounts. Absent:
	// https://iamcredentials.googleapis.com.
	IAMCredentials string `yaml:"iam_credentials,omitempty" check:"https"`
}

// fixed reports whether tokens live an hour whatever is asked for.
func (c *Config) fixed() bool { return c.Flow == flowUser || c.Flow == flowDelegation }

// Check says what is wrong with the settings.
func (c *Config) Check() error {
	c.Endpoints.fill()
	if c.MaxLifetime.Duration == 0 {
		c.MaxLifetime.Duration = time.Hour
	}
	if c.MaxLifetime.Duration < minLifetime || c.MaxLifetime.Duration > 12*time.Hour {
		return errors.New("max_lifetime is between 1m and 12h")
	}
	switch c.Flow {
	case flowUser:
		return c.checkUser()
	case flowServiceAccount, flowStorage, flowDelegation:
		return c.checkFederation()
	}
	return fmt.Errorf("flow: %q is none of user, service_account, storage, delegation", c.Flow)
}

func (e *Endpoints) fill() {
	for _, one := range []struct {
		at    *string
		usual string
	}{
		{&e.Authorization, "https://accounts.google.com/o/oauth2/v2/auth"},
		{&e.Token, "https://oauth2.googleapis.com/token"},
		{&e.Revoke, "https://oauth2.googleapis.com/revoke"},
		{&e.TokenInfo, "https://oauth2.googleapis.com/tokeninfo"},
		{&e.STS, "https://sts.googleapis.com/v1/token"},
		{&e.IAMCredentials, "https://iamcredentials.googleapis.com"},
	} {
		if *one.at == "" {
			*one.at = one.usual
		}
	}
	e.IAMCredentials = strings.TrimSuffix(e.IAMCredentials, "/")
}

func (c *Config) checkUser() error {
	switch {
	case c.ClientID == "" || c.ClientSecret == "":
		return errors.New("the flow user needs client_id and client_secret")
	case len(c.Scopes) == 0:
		return errors.New("scopes: the flow user asks subjects to consent to some")
	case c.Provider != "" || c.ServiceAccount != "" || len(c.Delegates) > 0 || len(c.Users) > 0 || len(c.Never) > 0:
		return errors.New("provider, service_account, delegates, users and never are not of the flow user")
	}
	for _, s := range c.Scopes {
		if _, ok := full(s); !ok {
			return fmt.Errorf("scopes: %q is no scope; they are written without https://www.googleapis.com/auth/", s)
		}
	}
	return nil
}

// poolPrefix is what names of pool providers begin with. As an audience they have https:
// before them.
const poolPrefix = "//iam.googleapis.com/projects/"

func (c *Config) checkFederation() error {
	parts := strings.Split(strings.TrimPrefix(c.Provider, poolPrefix), "/")
	switch {
	case c.ClientID != "" || c.ClientSecret != "" || len(c.Scopes) > 0:
		return errors.New("client_id, client_secret and scopes are of the flow user alone")
	case !strings.HasPrefix(c.Provider, poolPrefix) || len(parts) != 7 || !digits(parts[0]) || slices.Contains(parts, "") ||
		parts[1] != "locations" || parts[2] != "global" || parts[3] != "workloadIdentityPools" || parts[5] != "providers":
		return errors.New("provider: write //iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/NAME")
	case c.Flow == flowStorage && c.Attest:
		return errors.New("attest: of a token within a boundary Google says nothing")
	case c.Flow != flowDelegation && c.Outlives:
		return errors.New("outlives: tokens of service accounts end when they are asked to")
	case c.Flow != flowDelegation && (len(c.Users) > 0 || len(c.Never) > 0):
		return errors.New("users and never are of the flow delegation alone")
	case c.Flow == flowDelegation && len(c.Users) == 0:
		return errors.New("users: there are none, so that nobody can be vended anything")
	}
	for _, account := range append([]string{c.ServiceAccount}, c.Delegates...) {
		if !address(account) {
			return fmt.Errorf("service_account, delegates: %q is no e-mail address of an account", account)
		}
	}
	for _, never := range c.Never {
		if !address(never) {
			return fmt.Errorf("never: %q is no e-mail address, in lower case", never)
		}
	}
	for _, subject := range slices.Sorted(maps.Keys(c.Users)) {
		mail := c.Users[subject]
		switch {
		case !strings.Contains(subject, "#"):
			return fmt.Errorf("users: %q is no subject; write ISSUER#SUB", subject)
		case !address(mail):
			return fmt.Errorf("users: %q is no e-mail address, in lower case", mail)
		case slices.Contains(c.Never, mail):
			return fmt.Errorf("users: %s is one of those that no token is made for", mail)
		}
	}
	return nil
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// address reports whether s is an e-mail address in its one spelling: it goes into paths
// and claims as it is.
func address(s string) bool {
	local, domain, ok := strings.Cut(s, "@")
	return ok && local != "" && domain != "" && len(s) <= 254 &&
		strings.Trim(local, "abcdefghijklmnopqrstuvwxyz0123456789._+-'") == "" &&
		strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789.-") == ""
}
