package aws

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/stint-dev/stint/internal/sts"
	"github.com/stint-dev/stint/internal/upstream"
)

// Config is what the configuration says of one role.
type Config struct {
	// Role is the ARN of the role that sessions are of.
	Role string `yaml:"role" check:"required"`
	// Region is the one whose STS is asked, and that credentials name.
	Region string `yaml:"region" check:"required"`
	// Endpoint is the address of STS. Absent: https://sts.REGION.amazonaws.com/, or that
	// of the role's partition.
	Endpoint string `yaml:"endpoint,omitempty"`
	// Auth says how AWS knows us. web_identity: by a token that Stint signs, which needs
	// Stint to be an OpenID Connect provider of the account, and no key. assume_role: by
	// keys. Absent: web_identity.
	Auth string `yaml:"auth,omitempty" check:"oneof=web_identity|assume_role"`
	// AccessKey and SecretKey are references to the keys of assume_role.
	AccessKey string `yaml:"access_key,omitempty" check:"reference"`
	SecretKey string `yaml:"secret_key,omitempty" check:"reference"`
	// ExternalID is what the role's trust policy may ask of assume_role.
	ExternalID string `yaml:"external_id,omitempty"`
	// Buckets are those whose URIs, s3://bucket/prefix/, name something at this provider.
	// Nothing is granted by that. Absent: only URIs with the provider's name do.
	Buckets []string `yaml:"buckets,omitempty"`
	// MaxLifetime is the longest that a session lives: at most 12h, and what the role has
	// as its longest session. Absent: 1h.
	MaxLifetime upstream.Duration `yaml:"max_lifetime,omitempty"`
	// Revocation says how sessions are ended. none: they end by themselves. deny_policy:
	// by an inline policy of the role that denies everything to them. Absent: none.
	Revocation string `yaml:"revocation,omitempty" check:"oneof=none|deny_policy"`
	// Deny says where that policy is.
	Deny Deny `yaml:"deny,omitempty"`
}

// Deny is the policy that denies everything to sessions that were revoked.
type Deny struct {
	// Role is the ARN of a role that may do iam:PutRolePolicy to the role of the
	// sessions, and that trusts Stint as that role does.
	Role string `yaml:"role,omitempty"`
	// Policy is the name of the inline policy. It belongs to this provider alone: what
	// else is in it is lost. Absent: stint-deny.
	Policy string `yaml:"policy,omitempty"`
	// Endpoint is the address of IAM, and Region the one that requests to it are signed
	// for. Absent: those of the role's partition.
	Endpoint string `yaml:"endpoint,omitempty"`
	Region   string `yaml:"region,omitempty"`
	// Settle is how long AWS takes until a policy is in effect everywhere: a lease is
	// said to be revoked when that has passed. Absent: 1m.
	Settle upstream.Duration `yaml:"settle,omitempty"`
}

const (
	// minLifetime is the shortest session, with the time that it takes to ask for it.
	minLifetime = sts.MinLife + 10*time.Second
	// margin is how much shorter than asked a session is: it begins when STS is reached.
	margin = 2 * time.Second
)

var (
	roleARN    = regexp.MustCompile(`^arn:(aws|aws-cn|aws-us-gov):iam::[0-9]{12}:role/([A-Za-z0-9_+=,.@-]+/)*([A-Za-z0-9_+=,.@-]{1,64})$`)
	regionName = regexp.MustCompile(`^[a-z]{2}(-[a-z]+){1,3}-[0-9]{1,2}$`)
	policyName = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{1,128}$`)
	externalID = regexp.MustCompile(`^[A-Za-z0-9_+=,.@:/-]{2,1000}$`)
)

// partition is where the services of a part of AWS are.
type partition struct{ domain, iam, region string }

var partitions = map[string]partition{
	"aws":        {"amazonaws.com", "https://iam.amazonaws.com/", "us-east-1"},
	"aws-cn":     {"amazonaws.com.cn", "https://iam.cn-north-1.amazonaws.com.cn/", "cn-north-1"},
	"aws-us-gov": {"amazonaws.com", "https://iam.us-gov.amazonaws.com/", "us-gov-west-1"},
}

// Check says what is wrong with the settings.
func (c *Config) Check() error {
	m := roleARN.FindStringSubmatch(c.Role)
	switch {
	case m == nil:
		return fmt.Errorf("role: %q is no ARN of a role", c.Role)
	case !regionName.MatchString(c.Region):
		return fmt.Errorf("region: %q is no region", c.Region)
	}
	c.fill(partitions[m[1]])
	keys := c.AccessKey != "" || c.SecretKey != ""
	switch {
	case c.Auth == "assume_role" && (c.AccessKey == "" || c.SecretKey == ""):
		return errors.New("assume_role wants access_key and secret_key")
	case c.Auth != "assume_role" && (keys || c.ExternalID != ""):
		return errors.New("access_key, secret_key and external_id go with auth: assume_role")
	case c.ExternalID != "" && !externalID.MatchString(c.ExternalID):
		return errors.New("external_id: this is none")
	case c.MaxLifetime.Duration < minLifetime || c.MaxLifetime.Duration > sts.MaxLife:
		return fmt.Errorf("max_lifetime is at least %s, and at most %s", minLifetime, sts.MaxLife)
	}
	if _, err := sts.CheckEndpoint(c.Endpoint); err != nil {
		return fmt.Errorf("endpoint: %w", err)
	}
	for _, b := range c.Buckets {
		if !bucketName.MatchString(b) {
			return fmt.Errorf("buckets: %q is no name of a bucket", b)
		}
	}
	return c.checkDeny(m[1])
}

func (c *Config) fill(where partition) {
	set := func(to *string, value string) {
		if *to == "" {
			*to = value
		}
	}
	set(&c.Endpoint, "https://sts."+c.Region+"."+where.domain+"/")
	set(&c.Auth, "web_identity")
	set(&c.Revocation, "none")
	if c.MaxLifetime.Duration == 0 {
		c.MaxLifetime.Duration = time.Hour
	}
	if c.Revocation == "deny_policy" {
		set(&c.Deny.Policy, "stint-deny")
		set(&c.Deny.Endpoint, where.iam)
		set(&c.Deny.Region, where.region)
		if c.Deny.Settle.Duration == 0 {
			c.Deny.Settle.Duration = time.Minute
		}
	}
}

func (c *Config) checkDeny(where string) error {
	if c.Revocation != "deny_policy" {
		if c.Deny != (Deny{}) {
			return errors.New("deny goes with revocation: deny_policy")
		}
		return nil
	}
	m := roleARN.FindStringSubmatch(c.Deny.Role)
	switch {
	case m == nil || m[1] != where:
		return fmt.Errorf("deny.role: %q is no ARN of a role", c.Deny.Role)
	case c.Deny.Role == c.Role:
		return errors.New("deny.role: sessions must not be able to change what denies them")
	case !policyName.MatchString(c.Deny.Policy):
		return fmt.Errorf("deny.policy: %q is no name of a policy", c.Deny.Policy)
	case !regionName.MatchString(c.Deny.Region):
		return fmt.Errorf("deny.region: %q is no region", c.Deny.Region)
	}
	if _, err := sts.CheckEndpoint(c.Deny.Endpoint); err != nil {
		return fmt.Errorf("deny.endpoint: %w", err)
	}
	return nil
}

// roleName is the last part of the role's ARN.
func roleName(arn string) string { return roleARN.FindStringSubmatch(arn)[3] }
