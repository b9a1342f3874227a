package kubernetes

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/upstream"
)

// Config is what the configuration says of one cluster.
type Config struct {
	// Server is the API server's address, such as https://kubernetes.default.svc.
	Server string `yaml:"server" check:"required"`
	// CA is a reference to the certificates, as PEM, that sign the server's.
	// Absent: the system's.
	CA string `yaml:"ca,omitempty" check:"reference"`
	// Token is a reference to the broker's own token. It is read anew for each call, as
	// the kubelet replaces the file.
	Token string `yaml:"token" check:"required,reference"`
	// Accounts says whose tokens are vended: per_lease, an account that is made for each
	// lease; or profiles, accounts that are there.
	Accounts string `yaml:"accounts" check:"required,oneof=per_lease|profiles"`
	// Namespace is where accounts are made per lease. It is there for nothing else, and
	// no other Stint uses it.
	Namespace string `yaml:"namespace,omitempty"`
	// Profiles are the accounts that are there, by the names that grants have for them:
	// lower-case letters, digits, - and _.
	Profiles map[string]Account `yaml:"profiles,omitempty"`
	// Audiences are whom the tokens are for; the API server has to be among them.
	// Absent: the API server alone.
	Audiences []string `yaml:"audiences,omitempty"`
	// MaxLifetime is the longest that a token lives. Absent: 1h. It is at least 10m15s:
	// no API server makes tokens for less than 10m.
	MaxLifetime upstream.Duration `yaml:"max_lifetime,omitempty"`
	// Entitlement says where the subject's own rights are found: subject_access_review,
	// by asking the cluster what the user may do that users names; or none, where the
	// cluster does not know the subject.
	Entitlement string `yaml:"entitlement" check:"required,oneof=none|subject_access_review"`
	// Users says how subjects are called in the cluster.
	Users Users `yaml:"users,omitempty"`
	// Tolerate are RBAC rules that all accounts of this cluster have, and that are not
	// held against a grant. Those of a new cluster are known.
	Tolerate []Rule `yaml:"tolerate,omitempty"`
}

// Account is a service account that is there.
type Account struct {
	// Namespace is the one that it is in.
	Namespace string `yaml:"namespace" check:"required"`
	// Name is its name there.
	Name string `yaml:"name" check:"required"`
	// Reads says that the account can read, and nothing else.
	Reads bool `yaml:"reads,omitempty"`
}

// Users says how subjects are called in the cluster, as its own authentication has it.
type Users struct {
	// Issuer is the one whose subjects the cluster knows. Subjects of others have no
	// rights there.
	Issuer string `yaml:"issuer,omitempty"`
	// Name is what a user is called, with {sub} for the subject, such as oidc:{sub}.
	Name string `yaml:"name,omitempty"`
	// Groups are those that every such user is in. system:authenticated is added.
	Groups []string `yaml:"groups,omitempty"`
}

// Rule is an RBAC rule.
type Rule struct {
	// Verbs are those that it allows.
	Verbs []string `yaml:"verbs" check:"required"`
	// APIGroups are those of the resources; "" is the core one.
	APIGroups []string `yaml:"api_groups,omitempty"`
	// Resources are those that it is about, with their sub-resources, as in pods/log.
	Resources []string `yaml:"resources,omitempty"`
	// ResourceNames are the objects that it is about. Absent: all.
	ResourceNames []string `yaml:"resource_names,omitempty"`
	// NonResourceURLs are paths that are no resources, in place of groups and resources.
	NonResourceURLs []string `yaml:"non_resource_urls,omitempty"`
}

// The ways there are.
const (
	perLease = "per_lease"
	profiles = "profiles"

	subjectAccessReview = "subject_access_review"
	subPlace            = "{sub}"
)

// Check says what is wrong with the settings.
func (c *Config) Check() error {
	if c.MaxLifetime.Duration == 0 {
		c.MaxLifetime.Duration = time.Hour
	}
	u, err := url.Parse(c.Server)
	switch {
	case c.MaxLifetime.Duration < minLifetime:
		return fmt.Errorf("max_lifetime is at least %s", minLifetime)
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return errors.New("server: an https URL is wanted")
	case slices.Contains(c.Audiences, ""):
		return errors.New("audiences: one of them is empty")
	}
	c.Server = strings.TrimSuffix(c.Server, "/")
	if err := c.Users.check(c.Entitlement); err != nil {
		return fmt.Errorf("users: %w", err)
	}
	if c.Accounts == profiles {
		return c.checkProfiles()
	}
	switch {
	case len(c.Profiles) > 0:
		return errors.New("profiles: go with accounts: profiles")
	case !dnsLabel(c.Namespace):
		return fmt.Errorf("namespace: say where accounts are made; %q is no name of a namespace", c.Namespace)
	case slices.Contains(lookedInto, c.Namespace):
		return fmt.Errorf("namespace: %s is there for other things, too", c.Namespace)
	}
	return nil
}

func (c *Config) checkProfiles() error {
	switch {
	case c.Namespace != "":
		return errors.New("namespace: goes with accounts: per_lease")
	case len(c.Profiles) == 0:
		return errors.New("profiles: there are none, so that nothing can be vended")
	}
	seen := make(map[string]string)
	for name, a := range c.Profiles {
		at := a.Namespace + "/" + a.Name
		switch {
		case !profileName(name):
			return fmt.Errorf("profiles: %q is not up to 63 lower-case letters, digits, - and _", name)
		case !dnsLabel(a.Namespace) || !dnsName(a.Name):
			return fmt.Errorf("profiles: %s: %s is no service account", name, at)
		case seen[at] != "":
			return fmt.Errorf("profiles: %s and %s are the same account", min(seen[at], name), max(seen[at], name))
		}
		seen[at] = name
	}
	if len(c.namespaces()) > maxNamespaces {
		return fmt.Errorf("profiles: in more than %d namespaces", maxNamespaces)
	}
	return nil
}

func (u *Users) check(entitlement string) error {
	used := u.Issuer != "" || u.Name != "" || len(u.Groups) > 0
	switch {
	case entitlement != subjectAccessReview && used:
		return errors.New("go with entitlement: subject_access_review")
	case entitlement == subjectAccessReview && (u.Issuer == "" || strings.Count(u.Name, subPlace) != 1):
		return errors.New("say issuer, and name with " + subPlace + " in it")
	}
	return nil
}

// namespaces are those in which there are Secrets of leases, sorted.
func (c *Config) namespaces() []string {
	if c.Accounts != profiles {
		return []string{c.Namespace}
	}
	var out []string
	for _, a := range c.Profiles {
		out = append(out, a.Namespace)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
