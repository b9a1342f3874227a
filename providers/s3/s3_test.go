package s3_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/providers/s3"
	"github.com/stint-dev/stint/scopes/grant"
)

func TestSettings(t *testing.T) {
	base := s3.Config{Endpoint: "https://store.example:9000", STS: "minio", AccessKey: "vault:id", SecretKey: "vault:key"}
	for name, c := range map[string]struct {
		change func(*s3.Config)
		wrong  string
	}{
		"settings that are enough":                 {func(*s3.Config) {}, ""},
		"a store on this machine":                  {func(c *s3.Config) { c.Endpoint = "http://127.0.0.1:9000" }, ""},
		"URLs for a week":                          {func(c *s3.Config) { c.STS, c.MaxLifetime.Duration = "none", 168*time.Hour }, ""},
		"a role":                                   {func(c *s3.Config) { c.STS, c.Role = "aws", "arn:aws:iam::1:role/x" }, ""},
		"a store without TLS":                      {func(c *s3.Config) { c.Endpoint = "http://store.example" }, "not https"},
		"a store in a path":                        {func(c *s3.Config) { c.Endpoint = "https://store.example/s3" }, "no address"},
		"a store with a password":                  {func(c *s3.Config) { c.Endpoint = "https://a:b@store.example" }, "no address"},
		"a region that is none":                    {func(c *s3.Config) { c.Region = "x/y" }, "region"},
		"no role where one is wanted":              {func(c *s3.Config) { c.STS = "aws" }, "role"},
		"a role where none is":                     {func(c *s3.Config) { c.Role = "arn:aws:iam::1:role/x" }, "role goes with"},
		"URLs for longer than a week":              {func(c *s3.Config) { c.STS, c.MaxLifetime.Duration = "none", 169*time.Hour }, "max_lifetime"},
		"keys for longer than half a day":          {func(c *s3.Config) { c.MaxLifetime.Duration = 13 * time.Hour }, "max_lifetime"},
		"keys for less than the least":             {func(c *s3.Config) { c.MaxLifetime.Duration = 15 * time.Minute }, "max_lifetime"},
		"a dialect of policies that URLs have not": {func(c *s3.Config) { c.STS, c.PolicyDialect = "none", "principal" }, "policy_dialect"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := base
			c.change(&cfg)
			if err := cfg.Check(); (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
				t.Error(err)
			}
		})
	}
}

func provider(t *testing.T, kind string) broker.Provider {
	return opened(t, s3.Config{Endpoint: "https://store.example", STS: kind, Buckets: []string{"warehouse"}, AccessKey: "vault:id", SecretKey: "vault:key"}, testbed.AWSKeys{})
}

func TestResolve(t *testing.T) {
	mapped := parse(t, objects(at([]any{"get", "list"}, "warehouse/a/")))
	entry := func(verb any, where string) map[string]any { return map[string]any{"objects": []any{at(verb, where)}} }
	for name, c := range map[string]struct {
		kind      string
		resources []string
		details   []map[string]any
		want      string // what is left of mapped, or the code of the refusal
	}{
		"nothing is named":                {"minio", nil, nil, mapped.String()},
		"a prefix":                        {"minio", []string{"s3://store/warehouse/a/b/"}, nil, `{"objects":[{"actions":["get","list"],"resource":"warehouse/a/b/"}]}`},
		"an object":                       {"minio", []string{"s3://store/warehouse/a/k"}, nil, `{"objects":[{"actions":["get"],"resource":"warehouse/a/k"}]}`},
		"an object with a space":          {"minio", []string{"s3://store/warehouse/a/k%20l"}, nil, `{"objects":[{"actions":["get"],"resource":"warehouse/a/k l"}]}`},
		"two objects":                     {"minio", []string{"s3://store/warehouse/a/k", "s3://store/warehouse/a/l"}, nil, `{"objects":[{"actions":["get"],"resource":"warehouse/a/k"},{"actions":["get"],"resource":"warehouse/a/l"}]}`},
		"an object that is not granted":   {"minio", []string{"s3://store/warehouse/b/k"}, nil, `"nothing"`},
		"an object to have a URL for":     {"none", []string{"s3://store/warehouse/a/k"}, nil, `{"objects":[{"actions":["get"],"resource":"warehouse/a/k"}]}`},
		"a verb":                          {"minio", nil, []map[string]any{entry("get", "warehouse/a/k")}, `{"objects":[{"actions":["get"],"resource":"warehouse/a/k"}]}`},
		"an object and one of its verbs":  {"minio", []string{"s3://store/warehouse/a/k"}, []map[string]any{entry("get", "warehouse/a/k")}, `{"objects":[{"actions":["get"],"resource":"warehouse/a/k"}]}`},
		"a wildcard":                      {"minio", []string{"s3://store/warehouse/*"}, nil, "bad_target"},
		"a wildcard that is escaped":      {"minio", []string{"s3://store/warehouse/%2A"}, nil, "bad_target"},
		"a variable":                      {"minio", []string{"s3://store/warehouse/$%7Baws:username%7D/"}, nil, "bad_target"},
		"a question mark that is escaped": {"minio", []string{"s3://store/warehouse/%3F"}, nil, "bad_target"},
		"a bucket without a slash":        {"minio", []string{"s3://store/warehouse"}, nil, "bad_target"},
		"a bucket that is claimed":        {"minio", []string{"s3://warehouse/a/k"}, nil, `{"objects":[{"actions":["get"],"resource":"warehouse/a/k"}]}`},
		"a bucket that is not claimed":    {"minio", []string{"s3://archive/a/k"}, nil, "bad_target"},
		"no bucket":                       {"minio", []string{"s3://store/"}, nil, "bad_target"},
		"a path that climbs":              {"minio", []string{"s3://store/warehouse/a/../b/"}, nil, "bad_target"},
		"a query":                         {"minio", []string{"s3://store/warehouse/a/?x=y"}, nil, "bad_target"},
		"a listing to have a URL for":     {"none", nil, []map[string]any{entry("list", "warehouse/a/")}, "bad_details"},
		"another provider":                {"minio", nil, []map[string]any{{"provider": "other", "objects": []any{at("get", "warehouse/k")}}}, "bad_details"},
		"nothing in the details":          {"minio", nil, []map[string]any{{"objects": []any{}}}, "bad_details"},
		"details beside the resource":     {"minio", []string{"s3://store/warehouse/a/k"}, []map[string]any{entry("get", "warehouse/a/l")}, "bad_details"},
		"a wildcard in the details":       {"minio", nil, []map[string]any{entry("get", "warehouse/a*")}, "bad_details"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := provider(t, c.kind).Resolve(t.Context(), broker.ResolveRequest{Resources: c.resources, Details: c.details, Grants: []grant.Grant{mapped, s3.Describe().Schema.Everything()}})
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

// The dialect is that of a store that wants to be told for whom. No such store is had:
// it is checked that the policy is otherwise the same, and read back strictly.
func TestADialectWithAPrincipal(t *testing.T) {
	cfg := s3.Config{Endpoint: "https://store.example", STS: "aws", Role: "arn:aws:iam::1:role/x", PolicyDialect: "principal", AccessKey: "vault:id", SecretKey: "vault:key"}
	p := opened(t, cfg, testbed.AWSKeys{})
	g := parse(t, objects(at("get", "warehouse/a/"), at("list", "warehouse/")))
	text, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), `"Principal":"*"`); n != 2 {
		t.Errorf("%d principals in %s", n, text)
	}
	if back, err := p.Parse(text); err != nil || !back.Equal(g) {
		t.Errorf("%s, %v", back, err)
	}
	for _, bad := range []string{strings.Replace(string(text), `,"Principal":"*"`, "", 1), strings.Replace(string(text), `"Principal":"*"`, `"Principal":"x"`, 1)} {
		if back, err := p.Parse([]byte(bad)); err == nil {
			t.Errorf("%s is read as %s", bad, back)
		}
	}
}
