package vault

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/upstream"
)

// Config is what the configuration says of the credentials of one provider.
type Config struct {
	// Roles are the credentials that may be vended, by the names that grants have
	// for them: lower-case letters, digits, - and _.
	Roles map[string]Role `yaml:"roles" check:"required"`
	// MaxLifetime is the longest that a credential lives. Absent: 1h. Vault has
	// limits of its own, in the token role and the engines.
	MaxLifetime upstream.Duration `yaml:"max_lifetime,omitempty"`
}

// Role is one credential that may be vended.
type Role struct {
	// Mount is where the secrets engine is mounted, and Path what is asked of it,
	// such as creds/readonly or issue/web.
	Mount string `yaml:"mount" check:"required"`
	Path  string `yaml:"path" check:"required"`
	// Policy is the one of the child token, stint-...; it has to allow this path,
	// and should allow nothing else. deploy/vault/setup.sh writes such policies.
	Policy string `yaml:"policy" check:"required"`
	// Method is write for engines that are written to (issue, sign), with Params if
	// there are any. Absent: read.
	Method string            `yaml:"method,omitempty" check:"oneof=read|write"`
	Params map[string]string `yaml:"params,omitempty"`
	// Engine is the kind of the secrets engine. Said, what is known of it is held against
	// the rest: what Vault can take back, and what a grant may choose. Absent: the
	// settings are taken at their word.
	Engine string `yaml:"engine,omitempty" check:"oneof=database|aws|gcp|azure|kubernetes|ssh|pki"`
	// Choose lists parameters that a grant chooses, each with all the values that may
	// ever be chosen: of aws role_arn; of kubernetes kubernetes_namespace and
	// cluster_role_binding; of ssh valid_principals, cert_type, username and ip; of pki
	// common_name, alt_names, ip_sans and uri_sans. A credential has one of each.
	Choose map[string][]string `yaml:"choose,omitempty"`
	// LifetimeParam names the parameter, mostly ttl, that tells the engine how long
	// the credential is to live, in seconds as in "900s". Absent: it is not told,
	// and the credential ends with its lease.
	LifetimeParam string `yaml:"lifetime_param,omitempty"`
	// Reads says that whoever has this role can read, and nothing else.
	Reads bool `yaml:"reads,omitempty"`
	// Revoke says what becomes of the credential when Vault revokes its lease.
	// lease: it ends too, as with database, pki with generate_lease (for those who
	// read its CRL or ask OCSP), aws with IAM users, gcp with service account keys,
	// azure, kubernetes with generated accounts. none: nothing, or there is no
	// lease, as with aws STS, gcp access tokens, kubernetes with existing accounts,
	// ssh certificates, pki without generate_lease. Absent: lease. Sessions that are
	// open end only if the engine ends them, as revocation_statements can.
	Revoke string `yaml:"revoke,omitempty" check:"oneof=lease|none"`
	// Ends names the field of the engine's answer that says when a credential ends
	// which cannot be revoked, in seconds since 1970 or as RFC 3339 has it: of pki
	// it is expiration. Absent: it ends when its lease says.
	Ends string `yaml:"ends,omitempty"`

	spelled bool // whether Revoke was
}

// lasts reports whether the credential cannot be taken back.
func (r Role) lasts() bool { return r.Revoke == "none" }

// where is the path in Vault.
func (r Role) where() string { return r.Mount + "/" + r.Path }

// order is what is sent to Vault, with what a grant chose.
func (r Role) order(chosen map[string]string) order {
	o := order{Mount: r.Mount, Path: r.Path, Policy: r.Policy, Method: r.Method, Lifetime: r.LifetimeParam, Params: map[string]string{}}
	maps.Copy(o.Params, chosen)
	maps.Copy(o.Params, r.Params)
	return o
}

// chose returns what was chosen in an order of this role; ok is false if it is none.
func (r Role) chose(o order) (chosen map[string]string, ok bool) {
	chosen = make(map[string]string, len(r.Choose))
	for name, values := range r.Choose {
		if !slices.Contains(values, o.Params[name]) {
			return nil, false
		}
		chosen[name] = o.Params[name]
	}
	return chosen, r.order(chosen).equal(o)
}

// overlaps reports whether some order could be of either role.
func (r Role) overlaps(b Role) bool {
	may := func(r Role) map[string][]string {
		all := maps.Clone(r.Choose)
		if all == nil {
			all = make(map[string][]string, len(r.Params))
		}
		for name, v := range r.Params {
			all[name] = []string{v}
		}
		return all
	}
	mine, theirs := may(r), may(b)
	if r.Mount != b.Mount || r.Path != b.Path || r.Policy != b.Policy || r.Method != b.Method || r.LifetimeParam != b.LifetimeParam || len(mine) != len(theirs) {
		return false
	}
	for name, values := range mine {
		if !slices.ContainsFunc(values, func(v string) bool { return slices.Contains(theirs[name], v) }) {
			return false
		}
	}
	return true
}

// minLifetime is the shortest life: what [margin] leaves of it is some seconds.
const minLifetime = 5 * time.Second

var (
	roleName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	pathName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$`)
	policy   = regexp.MustCompile(`^stint-[A-Za-z0-9_-]+$`)
)

// Check says what is wrong with the settings.
func (c *Config) Check() error {
	if c.MaxLifetime.Duration == 0 {
		c.MaxLifetime.Duration = time.Hour
	}
	if c.MaxLifetime.Duration < minLifetime {
		return fmt.Errorf("max_lifetime is at least %s", minLifetime)
	}
	if len(c.Roles) == 0 {
		return errors.New("roles: there are none, so that nothing can be vended")
	}
	names := slices.Sorted(maps.Keys(c.Roles))
	for i, name := range names {
		r := c.Roles[name]
		r.fill()
		c.Roles[name] = r
		if !roleName.MatchString(name) {
			return fmt.Errorf("roles: %q is not up to 63 lower-case letters, digits, - and _", name)
		}
		if err := r.check(); err != nil {
			return fmt.Errorf("roles: %s: %w", name, err)
		}
		for _, before := range names[:i] {
			// What is sent has to tell which role is meant.
			if c.Roles[before].overlaps(r) {
				return fmt.Errorf("roles: %s and %s ask Vault for the same", before, name)
			}
		}
	}
	return nil
}

// fill sets what is absent.
func (r *Role) fill() {
	if r.Method == "" {
		r.Method = "read"
	}
	if r.spelled = r.spelled || r.Revoke != ""; r.Revoke == "" {
		r.Revoke = "lease"
	}
}

func (r Role) check() error {
	_, told := r.Params[r.LifetimeParam]
	first, _, _ := strings.Cut(r.Mount, "/")
	switch {
	case len(r.where()) > 200 || !pathName.MatchString(r.where()) || strings.Contains(r.where(), ".."):
		return fmt.Errorf("%s is no path in Vault that can be used here", r.where())
	case slices.Contains([]string{"sys", "auth", "identity", "cubbyhole"}, first):
		return fmt.Errorf("mount: there is no secrets engine at %s", first)
	case !policy.MatchString(r.Policy):
		return fmt.Errorf("policy: %q does not begin with stint-: the token role allows no other", r.Policy)
	case r.Method != "write" && (len(r.Params) > 0 || r.LifetimeParam != ""):
		return errors.New("params and lifetime_param go with method: write")
	case told:
		return fmt.Errorf("params: %s is what lifetime_param sets", r.LifetimeParam)
	case r.Ends != "" && !r.lasts():
		return errors.New("ends goes with revoke: none: what can be revoked ends with its lease")
	}
	return r.checkEngine()
}
