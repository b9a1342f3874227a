package s3

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/sts"
	"github.com/stint-dev/stint/internal/upstream"
)

// Config is what the configuration says of one store.
type Config struct {
	// Endpoint is the address of the store, as clients reach it too.
	Endpoint string `yaml:"endpoint" check:"required"`
	// Region is the one that requests are signed for. Absent: us-east-1.
	Region string `yaml:"region,omitempty"`
	// CA is a reference to the certificates, as PEM, that sign the store's. Absent: the
	// system's.
	CA string `yaml:"ca,omitempty" check:"reference"`
	// STS says which dialect of temporary keys the store speaks. minio: its own user's
	// sessions. aws: sessions of a role. none: it has no temporary keys, and presigned
	// URLs are vended.
	STS string `yaml:"sts" check:"required,oneof=minio|aws|none"`
	// Role is the ARN of the role, for sts: aws.
	Role string `yaml:"role,omitempty"`
	// PolicyDialect says how the store wants session policies. aws: as AWS has them.
	// principal: with a Principal of "*" in each statement. Absent: aws.
	PolicyDialect string `yaml:"policy_dialect,omitempty" check:"oneof=aws|principal"`
	// AccessKey and SecretKey are references to the keys of the user who is the limit of
	// all that is vended.
	AccessKey string `yaml:"access_key" check:"required,reference"`
	SecretKey string `yaml:"secret_key" check:"required,reference"`
	// Buckets are those whose URIs, s3://bucket/prefix/, name something at this provider.
	// Nothing is granted by that. Absent: only URIs with the provider's name do.
	Buckets []string `yaml:"buckets,omitempty"`
	// MaxLifetime is the longest that keys or a URL live: at most 12h, and 168h for URLs.
	// Absent: 1h.
	MaxLifetime upstream.Duration `yaml:"max_lifetime,omitempty"`
}

var (
	regionName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	roleARN    = regexp.MustCompile(`^arn:[A-Za-z0-9:/_+=,.@-]{1,512}$`)
)

// Check says what is wrong with the settings.
func (c *Config) Check() error {
	if c.Region == "" {
		c.Region = "us-east-1"
	}
	if c.PolicyDialect == "" {
		c.PolicyDialect = "aws"
	}
	if c.MaxLifetime.Duration == 0 {
		c.MaxLifetime.Duration = time.Hour
	}
	least, most := minSession, sts.MaxLife
	if c.STS == "none" {
		least, most = minURL, maxURL
	}
	switch {
	case !regionName.MatchString(c.Region):
		return fmt.Errorf("region: %q is no region", c.Region)
	case c.STS == "aws" && !roleARN.MatchString(c.Role):
		return fmt.Errorf("role: %q is no ARN, which sts: aws wants", c.Role)
	case c.STS != "aws" && c.Role != "":
		return errors.New("role goes with sts: aws")
	case c.STS == "none" && c.PolicyDialect != "aws":
		return errors.New("policy_dialect: URLs have no policy")
	case c.MaxLifetime.Duration < least || c.MaxLifetime.Duration > most:
		return fmt.Errorf("max_lifetime is at least %s, and at most %s", least, most)
	}
	if _, err := sts.CheckEndpoint(c.Endpoint); err != nil {
		return fmt.Errorf("endpoint: %w", err)
	}
	for _, b := range c.Buckets {
		if !bucketName.MatchString(b) {
			return fmt.Errorf("buckets: %q is no name of a bucket", b)
		}
	}
	return nil
}

func trimmed(s secret.String) string { return strings.TrimSpace(s.Reveal()) }
