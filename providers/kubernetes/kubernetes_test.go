package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/kubernetes"
	"github.com/stint-dev/stint/scopes/grant"
)

// What can be told without a cluster. What needs one is behind the tag e2e.

var good = kubernetes.Config{
	Server: "https://kubernetes.default.svc", Token: "file:token", Accounts: "per_lease", Namespace: "stint-accounts", Entitlement: "none",
}

var picks = kubernetes.Config{
	Server: "https://kubernetes.default.svc", Token: "file:token", Accounts: "profiles", Entitlement: "none",
	Profiles: map[string]kubernetes.Account{"reader": {Namespace: "robots", Name: "reader", Reads: true}, "writer": {Namespace: "robots", Name: "writer"}},
}

func offline(t testing.TB, name string, cfg kubernetes.Config) (broker.Provider, error) {
	t.Helper()
	return kubernetes.Open(t.Context(), name, func(v any) error { *v.(*kubernetes.Config) = cfg; return nil }, upstream.Deps{
		Now: time.Now,
		Secret: func(context.Context, string) (secret.String, error) {
			return secret.String{}, errors.New("asked for a secret")
		},
		HTTP: func([]string, []byte) (*http.Client, error) { return nil, errors.New("asked for a client") },
	})
}

func opened(t testing.TB, cfg kubernetes.Config) broker.Provider {
	t.Helper()
	p, err := offline(t, "prod", cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSettingsThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*kubernetes.Config)
		want   string
	}{
		"plain HTTP":                     {func(c *kubernetes.Config) { c.Server = "http://kubernetes.default.svc" }, "https"},
		"a server with a query":          {func(c *kubernetes.Config) { c.Server += "/?x" }, "https"},
		"too short a life":               {func(c *kubernetes.Config) { c.MaxLifetime.Duration = 10 * time.Minute }, "max_lifetime"},
		"nowhere to make accounts":       {func(c *kubernetes.Config) { c.Namespace = "" }, "namespace"},
		"accounts among others":          {func(c *kubernetes.Config) { c.Namespace = "kube-system" }, "other things"},
		"a namespace that is a path":     {func(c *kubernetes.Config) { c.Namespace = "../x" }, "no name"},
		"profiles beside leases":         {func(c *kubernetes.Config) { c.Profiles = picks.Profiles }, "profiles"},
		"an audience that is empty":      {func(c *kubernetes.Config) { c.Audiences = []string{""} }, "audiences"},
		"users that are not asked about": {func(c *kubernetes.Config) { c.Users.Name = "{sub}" }, "entitlement"},
		"users of no issuer":             {func(c *kubernetes.Config) { c.Entitlement, c.Users.Name = "subject_access_review", "{sub}" }, "issuer"},
		"users who are all the same": {func(c *kubernetes.Config) {
			c.Entitlement, c.Users = "subject_access_review", kubernetes.Users{Issuer: "i", Name: "x"}
		}, "{sub}"},
		"a rule that is half of one": {func(c *kubernetes.Config) { c.Tolerate = []kubernetes.Rule{{Verbs: []string{"get"}}} }, "tolerate"},
		"no profiles":                {func(c *kubernetes.Config) { *c = picks; c.Profiles = nil }, "none"},
		"one account by two names": {func(c *kubernetes.Config) {
			*c = picks
			c.Profiles = map[string]kubernetes.Account{"a": picks.Profiles["reader"], "b": picks.Profiles["reader"]}
		}, "a and b"},
		"a profile with a name of no use": {func(c *kubernetes.Config) {
			*c = picks
			c.Profiles = map[string]kubernetes.Account{"A": picks.Profiles["reader"]}
		}, "lower-case"},
		"an account that is a path": {func(c *kubernetes.Config) {
			*c = picks
			c.Profiles = map[string]kubernetes.Account{"a": {Namespace: "x", Name: "../y"}}
		}, "no service account"},
		"profiles with a namespace": {func(c *kubernetes.Config) { *c = picks; c.Namespace = "x" }, "per_lease"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			tc.change(&cfg)
			if _, err := offline(t, "prod", cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, wanted is an error with %q", err, tc.want)
			}
		})
	}
	if _, err := offline(t, "no label!", good); err == nil {
		t.Error("a name that cannot be in a label is taken")
	}
}

const podReader = `{"verbs":["get","list"],"apiGroups":"","resources":"pods","resourceNames":"*"}`

func TestWhatARequestNames(t *testing.T) {
	p, q := opened(t, good), opened(t, picks)
	all := p.Describe().Schema.Everything()
	apps := schemaGrant(t, p, `{"namespaces":["apps"],"rules":"*","cluster":[]}`)
	both := schemaGrant(t, p, `{"namespaces":["apps","shop"],"rules":"*","cluster":[]}`)
	pods := schemaGrant(t, p, `{"namespaces":["apps"],"rules":[`+podReader+`],"cluster":[]}`)
	detail := map[string]any{"namespaces": []any{"apps"}, "rules": []any{map[string]any{
		"verbs": []any{"get", "list"}, "apiGroups": "", "resources": "pods", "resourceNames": "*",
	}}}
	for name, tc := range map[string]struct {
		p         broker.Provider
		resources []string
		details   []map[string]any
		want      grant.Grant
		code      broker.Code
	}{
		"nothing is everything":              {p, nil, nil, all, ""},
		"a namespace, and not the cluster":   {p, []string{"k8s://prod/apps"}, nil, apps, ""},
		"two namespaces":                     {p, []string{"k8s://prod/apps", "k8s://prod/shop"}, nil, both, ""},
		"details, and not the cluster":       {p, nil, []map[string]any{detail}, pods, ""},
		"both, of one thing":                 {p, []string{"k8s://prod/apps"}, []map[string]any{detail}, pods, ""},
		"both, of two things":                {p, []string{"k8s://prod/shop"}, []map[string]any{detail}, all, broker.BadDetails},
		"more resources than details":        {p, []string{"k8s://prod/apps", "k8s://prod/shop"}, []map[string]any{detail}, all, broker.BadDetails},
		"another cluster":                    {p, []string{"k8s://staging/apps"}, nil, all, broker.BadTarget},
		"no namespace":                       {p, []string{"k8s://prod/"}, nil, all, broker.BadTarget},
		"a path":                             {p, []string{"k8s://prod/apps/pods"}, nil, all, broker.BadTarget},
		"a way out":                          {p, []string{"k8s://prod/.."}, nil, all, broker.BadTarget},
		"a wildcard":                         {p, []string{"k8s://prod/*"}, nil, all, broker.BadTarget},
		"an escape":                          {p, []string{"k8s://prod/%61pps"}, nil, all, broker.BadTarget},
		"a query":                            {p, []string{"k8s://prod/apps?x"}, nil, all, broker.BadTarget},
		"where accounts are":                 {p, []string{"k8s://prod/stint-accounts"}, nil, all, broker.BadTarget},
		"details without rules":              {p, nil, []map[string]any{{"namespaces": []any{"apps"}}}, all, broker.BadDetails},
		"details of another provider":        {p, nil, []map[string]any{{"provider": "staging", "namespaces": "*", "rules": "*"}}, all, broker.BadDetails},
		"details with a namespace of nobody": {p, nil, []map[string]any{{"namespaces": []any{"a/b"}, "rules": "*"}}, all, broker.BadDetails},
		"a profile":                          {q, []string{"k8s://prod/reader"}, nil, schemaGrant(t, q, `{"profile":"reader"}`), ""},
		"two profiles":                       {q, []string{"k8s://prod/reader", "k8s://prod/writer"}, nil, all, broker.BadTarget},
		"a profile that is not there":        {q, []string{"k8s://prod/admin"}, nil, all, broker.BadTarget},
		"all profiles":                       {q, nil, []map[string]any{{"profile": "*"}}, all, broker.BadDetails},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := tc.p.Resolve(t.Context(), broker.ResolveRequest{Subject: "i#s", Resources: tc.resources, Details: tc.details})
			switch {
			case tc.code != "":
				if broker.CodeOf(err) != tc.code {
					t.Errorf("%v, wanted is %s", err, tc.code)
				}
			case err != nil:
				t.Error(err)
			case !r.Request.Equal(tc.want):
				t.Errorf("%s, wanted is %s", r.Request, tc.want)
			}
		})
	}
}

func schemaGrant(t testing.TB, p broker.Provider, text string) grant.Grant {
	t.Helper()
	g, err := p.Describe().Schema.Parse([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return g
}

func TestGrantsThatNoRoleCanHold(t *testing.T) {
	p := opened(t, good)
	rule := func(verb, group, resource, name string) string {
		return fmt.Sprintf(`{"verbs":%q,"apiGroups":%q,"resources":%q,"resourceNames":%q}`, verb, group, resource, name)
	}
	for name, text := range map[string]string{
		"all namespaces":            `{"namespaces":"*","rules":[` + podReader + `],"cluster":[]}`,
		"too many namespaces":       `{"namespaces":["` + strings.Join(strings.Split("abcdefghijklmnopq", ""), `","`) + `"],"rules":[` + podReader + `],"cluster":[]}`,
		"where accounts are":        `{"namespaces":["stint-accounts"],"rules":[` + podReader + `],"cluster":[]}`,
		"everything":                `{"namespaces":["apps"],"rules":"*","cluster":[]}`,
		"the whole cluster":         `{"namespaces":["apps"],"rules":[` + podReader + `],"cluster":"*"}`,
		"a path in a namespace":     `{"namespaces":["apps"],"rules":[{"verbs":"get","nonResourceURLs":"/metrics"}],"cluster":[]}`,
		"a verb with a blank":       `{"namespaces":["apps"],"rules":[` + rule("get list", "", "pods", "*") + `],"cluster":[]}`,
		"a group with a slash":      `{"namespaces":["apps"],"rules":[` + rule("get", "apps/v1", "pods", "*") + `],"cluster":[]}`,
		"a resource in upper case":  `{"namespaces":["apps"],"rules":[` + rule("get", "", "Pods", "*") + `],"cluster":[]}`,
		"a name with a slash":       `{"namespaces":["apps"],"rules":[` + rule("get", "", "pods", "a/b") + `],"cluster":[]}`,
		"a name with a dollar":      `{"namespaces":["apps"],"rules":[` + rule("get", "", "pods", "${x}") + `],"cluster":[]}`,
		"a name with a question":    `{"namespaces":["apps"],"rules":[` + rule("get", "", "pods", "a?") + `],"cluster":[]}`,
		"a resource of the cluster": `{"namespaces":["apps"],"rules":[` + podReader + `],"cluster":[` + rule("get", "", "no des", "*") + `]}`,
	} {
		g := schemaGrant(t, p, text)
		if sent, err := p.Render(g); !errors.Is(err, broker.ErrInexpressible) {
			t.Errorf("%s is rendered as %s (%v)", name, sent, err)
		}
	}
	if err := p.Describe().Check(schemaGrant(t, p, `{"namespaces":"*","rules":[`+podReader+`],"cluster":[]}`)); err != nil {
		t.Errorf("a mapping of all namespaces, which requests narrow: %v", err)
	}
	if err := p.Describe().Check(schemaGrant(t, p, `{"namespaces":["stint-accounts"],"rules":"*","cluster":[]}`)); err == nil {
		t.Error("a mapping that lends where accounts are is taken")
	}
}

// What is sent says which objects are meant: without names it is all of them.
func TestHalfARuleIsNotRead(t *testing.T) {
	p := opened(t, good)
	for name, text := range map[string]string{
		"names that are none":    `{"cluster":[],"namespaces":["apps"],"rules":[{"apiGroups":[""],"resourceNames":[],"resources":["pods"],"verbs":["get"]}]}`,
		"names that are null":    `{"cluster":[],"namespaces":["apps"],"rules":[{"apiGroups":[""],"resourceNames":null,"resources":["pods"],"verbs":["get"]}]}`,
		"any name":               `{"cluster":[],"namespaces":["apps"],"rules":[{"apiGroups":[""],"resourceNames":["*"],"resources":["pods"],"verbs":["get"]}]}`,
		"no group":               `{"cluster":[],"namespaces":["apps"],"rules":[{"resources":["pods"],"verbs":["get"]}]}`,
		"no verb":                `{"cluster":[],"namespaces":["apps"],"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":[]}]}`,
		"resources and paths":    `{"cluster":[{"apiGroups":[""],"nonResourceURLs":["/x"],"resources":["pods"],"verbs":["get"]}],"namespaces":["apps"],"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}`,
		"no namespaces":          `{"cluster":[],"namespaces":[],"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}`,
		"no word of the cluster": `{"namespaces":["apps"],"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}`,
		"no rules":               `{"cluster":[],"namespaces":["apps"],"rules":[]}`,
		"a path among the rules": `{"cluster":[],"namespaces":["apps"],"rules":[{"nonResourceURLs":["/x"],"verbs":["get"]}]}`,
		"another's profile":      `{"account":"reader","namespace":"robots","profile":"reader"}`,
	} {
		if g, err := p.Parse([]byte(text)); err == nil {
			t.Errorf("%s is read as %s", name, g)
		}
	}
	if g, err := opened(t, picks).Parse([]byte(`{"account":"writer","namespace":"robots","profile":"reader"}`)); err == nil {
		t.Errorf("the account of another profile is read as %s", g)
	}
}
