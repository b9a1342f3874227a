package aws_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/providers/aws"
	"github.com/stint-dev/stint/scopes/grant"
)

func TestSettings(t *testing.T) {
	deny := aws.Deny{Role: denyRole}
	for name, c := range map[string]struct {
		change func(*aws.Config)
		wrong  string
	}{
		"settings that are enough":            {func(*aws.Config) {}, ""},
		"keys":                                {func(c *aws.Config) { c.Auth, c.AccessKey, c.SecretKey = "assume_role", "vault:a", "vault:b" }, ""},
		"a role of another partition":         {func(c *aws.Config) { c.Role, c.Region = "arn:aws-cn:iam::123456789012:role/x", "cn-north-1" }, ""},
		"a policy that denies":                {func(c *aws.Config) { c.Revocation, c.Deny = "deny_policy", deny }, ""},
		"no role":                             {func(c *aws.Config) { c.Role = "stint-data" }, "role"},
		"a role with a wildcard":              {func(c *aws.Config) { c.Role = "arn:aws:iam::123456789012:role/*" }, "role"},
		"a user":                              {func(c *aws.Config) { c.Role = "arn:aws:iam::123456789012:user/x" }, "role"},
		"a bucket that is none":               {func(c *aws.Config) { c.Buckets = []string{"a/b"} }, "buckets"},
		"a region that is a host":             {func(c *aws.Config) { c.Region = "evil.example/" }, "region"},
		"an endpoint without TLS":             {func(c *aws.Config) { c.Endpoint = "http://sts.example" }, "not https"},
		"keys that are not asked for":         {func(c *aws.Config) { c.AccessKey = "vault:a" }, "go with auth"},
		"an external id that nobody asks for": {func(c *aws.Config) { c.ExternalID = "agreed" }, "go with auth"},
		"no keys":                             {func(c *aws.Config) { c.Auth = "assume_role" }, "wants access_key"},
		"a quarter of an hour and no more":    {func(c *aws.Config) { c.MaxLifetime.Duration = 15 * time.Minute }, "max_lifetime"},
		"a day":                               {func(c *aws.Config) { c.MaxLifetime.Duration = 24 * time.Hour }, "max_lifetime"},
		"a policy that is not asked for":      {func(c *aws.Config) { c.Deny = deny }, "deny goes with"},
		"a policy that nobody may write":      {func(c *aws.Config) { c.Revocation = "deny_policy" }, "deny.role"},
		"sessions that write their own denial": {func(c *aws.Config) {
			c.Revocation, c.Deny = "deny_policy", aws.Deny{Role: c.Role}
		}, "must not be able"},
		"a policy whose name is none": {func(c *aws.Config) {
			c.Revocation, c.Deny = "deny_policy", aws.Deny{Role: denyRole, Policy: "a/b"}
		}, "deny.policy"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := aws.Config{Role: dataRole, Region: "eu-west-1"}
			c.change(&cfg)
			if err := cfg.Check(); (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
				t.Error(err)
			}
		})
	}
	cn := aws.Config{Role: "arn:aws-cn:iam::123456789012:role/x", Region: "cn-north-1"}
	if err := cn.Check(); err != nil || cn.Endpoint != "https://sts.cn-north-1.amazonaws.com.cn/" {
		t.Errorf("%s, %v", cn.Endpoint, err)
	}
}

func TestResolve(t *testing.T) {
	i := newIssuer(t)
	cfg := byToken("https://sts.eu-west-1.amazonaws.com/")
	cfg.Buckets = []string{"warehouse"}
	p := opened(t, cfg, deps(i, time.Now))
	for uri, ours := range map[string]bool{
		"s3://warehouse/": true, "s3://warehouse/a/k": true, "s3://archive/": false, "https://warehouse/": false, "aws://cloud/s3/warehouse/": false,
		"arn:aws:sqs:eu-west-1:123456789012:jobs": true, "arn:aws:sqs:eu-west-1:999999999999:jobs": false, "arn:aws-cn:sqs:cn-north-1:123456789012:jobs": false, "arn:": false,
	} {
		if p.Describe().Claims(uri) != ours {
			t.Errorf("%s: claimed is %v", uri, !ours)
		}
	}
	const table = "arn:aws:dynamodb:eu-west-1:123456789012:table/"
	mapped := parse(t, map[string]any{
		"s3":      []any{entry([]any{"get", "list"}, "warehouse", "a/")},
		"actions": []any{map[string]any{"actions": "dynamodb:GetItem", "resource": table}},
	})
	s3 := func(entries ...any) map[string]any { return objectsOf(entries...).(map[string]any) }
	other := s3(entry("get", "warehouse", "a/"))
	other["provider"] = "other"
	for name, c := range map[string]struct {
		resources []string
		details   []map[string]any
		want      string
	}{
		"nothing is named": {nil, nil, mapped.String()},
		"a prefix":         {[]string{"aws://cloud/s3/warehouse/a/b/"}, nil, `{"actions":[],"s3":[{"bucket":"warehouse","prefix":"a/b/","verbs":["get","list"]}]}`},
		"a bucket":         {[]string{"aws://cloud/s3/warehouse/"}, nil, `{"actions":[],"s3":[{"bucket":"warehouse","prefix":"a/","verbs":["get","list"]}]}`},
		"a table":          {[]string{"aws://cloud/" + table + "x"}, nil, `{"actions":[{"actions":["dynamodb:GetItem"],"resource":"` + table + `x"}],"s3":[]}`},
		"a prefix and a table": {[]string{"aws://cloud/s3/warehouse/a/", "aws://cloud/" + table + "x"}, nil,
			`{"actions":[{"actions":["dynamodb:GetItem"],"resource":"` + table + `x"}],"s3":[{"bucket":"warehouse","prefix":"a/","verbs":["get","list"]}]}`},
		"a prefix of a bucket that is claimed": {[]string{"s3://warehouse/a/b/"}, nil, `{"actions":[],"s3":[{"bucket":"warehouse","prefix":"a/b/","verbs":["get","list"]}]}`},
		"a bucket that is not claimed":         {[]string{"s3://archive/a/"}, nil, "bad_target"},
		"an ARN of the account":                {[]string{table + "x"}, nil, `{"actions":[{"actions":["dynamodb:GetItem"],"resource":"` + table + `x"}],"s3":[]}`},
		"an ARN of another account":            {[]string{"arn:aws:dynamodb:eu-west-1:999999999999:table/x"}, nil, "bad_target"},
		"details":                              {nil, []map[string]any{s3(entry("get", "warehouse", "a/b/"))}, `{"actions":[],"s3":[{"bucket":"warehouse","prefix":"a/b/","verbs":["get"]}]}`},
		"details, twice":                       {nil, []map[string]any{s3(entry("get", "warehouse", "a/b/")), s3(entry("list", "warehouse", "a/c/"))}, `{"actions":[],"s3":[{"bucket":"warehouse","prefix":"a/b/","verbs":["get"]},{"bucket":"warehouse","prefix":"a/c/","verbs":["list"]}]}`},
		"details within a resource":            {[]string{"aws://cloud/s3/warehouse/a/"}, []map[string]any{s3(entry("get", "warehouse", "a/b/"))}, `{"actions":[],"s3":[{"bucket":"warehouse","prefix":"a/b/","verbs":["get"]}]}`},
		"what is not granted":                  {[]string{"aws://cloud/s3/archive/"}, nil, `"nothing"`},
		"details beside the resource":          {[]string{"aws://cloud/s3/warehouse/a/"}, []map[string]any{s3(entry("get", "warehouse", "b/"))}, "bad_details"},
		"details without a dimension":          {nil, []map[string]any{{"s3": []any{entry("get", "warehouse", "a/")}}}, "bad_details"},
		"details of nothing":                   {nil, []map[string]any{s3()}, "bad_details"},
		"details of another provider":          {nil, []map[string]any{other}, "bad_details"},
		"an object, not a prefix":              {[]string{"aws://cloud/s3/warehouse/a/k"}, nil, "bad_target"},
		"a wildcard":                           {[]string{"aws://cloud/s3/warehouse/*/"}, nil, "bad_target"},
		"a wildcard that is escaped":           {[]string{"aws://cloud/s3/warehouse/%2A/"}, nil, "bad_target"},
		"a variable that is escaped":           {[]string{"aws://cloud/s3/warehouse/%24%7Baws:username%7D/"}, nil, "bad_target"},
		"a question mark that is escaped":      {[]string{"aws://cloud/s3/ware%3Fouse/"}, nil, "bad_target"},
		"a path that climbs":                   {[]string{"aws://cloud/s3/warehouse/a/../b/"}, nil, "bad_target"},
		"a table of another partition":         {[]string{"aws://cloud/arn:aws-cn:dynamodb:eu-west-1:123456789012:table/x"}, nil, "bad_target"},
		"half an ARN":                          {[]string{"aws://cloud/arn:aws:dynamodb:"}, nil, "bad_target"},
		"another provider's":                   {[]string{"aws://other/s3/warehouse/"}, nil, "bad_target"},
		"a query":                              {[]string{"aws://cloud/s3/warehouse/?x=y"}, nil, "bad_target"},
		"a fragment":                           {[]string{"aws://cloud/s3/warehouse/#x"}, nil, "bad_target"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := p.Resolve(t.Context(), broker.ResolveRequest{Resources: c.resources, Details: c.details, Grants: []grant.Grant{mapped, aws.Describe().Schema.Everything()}})
			if err != nil {
				if got := string(broker.CodeOf(err)); got != c.want {
					t.Errorf("%s: %v", got, err)
				}
				return
			}
			if got := grant.Meet(mapped, out.Request); got.String() != c.want {
				t.Errorf("got %s", got)
			}
		})
	}
}
