package vault_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/providers/vault"
	"github.com/stint-dev/stint/scopes/grant"
)

// checked is what Check says of one role.
func checked(r vault.Role) error {
	if r.Policy == "" {
		r.Policy = "stint-x"
	}
	c := vault.Config{Roles: map[string]vault.Role{"x": r}}
	return c.Check()
}

func TestWhatVaultCannotTakeBackIsNotSaidToBeRevocable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		role  vault.Role
		wants string // of the error; empty: it is taken
	}{
		"database logins end":                       {vault.Role{Engine: "database", Mount: "db", Path: "creds/r"}, ""},
		"database logins are not said to last":      {vault.Role{Engine: "database", Mount: "db", Path: "creds/r", Revoke: "none"}, "ends with its lease"},
		"a static login is everybody's":             {vault.Role{Engine: "database", Mount: "db", Path: "static-creds/r"}, "nothing that the engine"},
		"aws sts lasts":                             {vault.Role{Engine: "aws", Mount: "aws", Path: "sts/r", Revoke: "none"}, ""},
		"aws sts is not said to end":                {vault.Role{Engine: "aws", Mount: "aws", Path: "sts/r"}, "cannot take back"},
		"aws sts is not said to end, if spelled":    {vault.Role{Engine: "aws", Mount: "aws", Path: "sts/r", Revoke: "lease"}, "cannot take back"},
		"aws creds depends, and has to be spelled":  {vault.Role{Engine: "aws", Mount: "aws", Path: "creds/r"}, "say lease or none"},
		"aws creds for IAM users":                   {vault.Role{Engine: "aws", Mount: "aws", Path: "creds/r", Revoke: "lease"}, ""},
		"gcp keys end":                              {vault.Role{Engine: "gcp", Mount: "gcp", Path: "roleset/r/key"}, ""},
		"gcp tokens last":                           {vault.Role{Engine: "gcp", Mount: "gcp", Path: "roleset/r/token"}, "cannot take back"},
		"gcp tokens of impersonated accounts last":  {vault.Role{Engine: "gcp", Mount: "gcp", Path: "impersonated-account/r/token"}, "cannot take back"},
		"azure principals end":                      {vault.Role{Engine: "azure", Mount: "az", Path: "creds/r"}, ""},
		"kubernetes depends, and has to be spelled": {vault.Role{Engine: "kubernetes", Mount: "k", Path: "creds/r", Method: "write"}, "say lease or none"},
		"one-time passwords of ssh end":             {vault.Role{Engine: "ssh", Mount: "ssh", Path: "creds/r", Method: "write"}, ""},
		"certificates of ssh last":                  {vault.Role{Engine: "ssh", Mount: "ssh", Path: "sign/r", Method: "write"}, "cannot take back"},
		"certificates of pki depend":                {vault.Role{Engine: "pki", Mount: "pki", Path: "issue/r", Method: "write"}, "say lease or none"},
		"leased certificates of pki":                {vault.Role{Engine: "pki", Mount: "pki", Path: "issue/r", Method: "write", Revoke: "lease"}, ""},
		"an engine that nobody named is believed":   {vault.Role{Mount: "x", Path: "sts/r"}, ""},
		"choices of an engine that nobody named": {
			vault.Role{Mount: "x", Path: "issue/r", Method: "write", Choose: map[string][]string{"common_name": {"a"}}}, "say the engine",
		},
		"a choice that is not a grant's": {
			vault.Role{Engine: "aws", Mount: "aws", Path: "sts/r", Method: "write", Revoke: "none", Choose: map[string][]string{"ttl": {"1h"}}}, "not a grant's to choose",
		},
		"a choice that is set": {
			vault.Role{
				Engine: "pki", Mount: "pki", Path: "issue/r", Method: "write", Revoke: "none", Params: map[string]string{"common_name": "a"},
				Choose: map[string][]string{"common_name": {"a", "b"}},
			}, "set already",
		},
		"a choice of nothing": {
			vault.Role{Engine: "pki", Mount: "pki", Path: "issue/r", Method: "write", Revoke: "none", Choose: map[string][]string{"common_name": {}}}, "list the values",
		},
		"a choice for what is read": {
			vault.Role{Engine: "pki", Mount: "pki", Path: "issue/r", Revoke: "none", Choose: map[string][]string{"common_name": {"a"}}}, "method: write",
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := checked(c.role)
			if (err == nil) != (c.wants == "") || err != nil && !strings.Contains(err.Error(), c.wants) {
				t.Errorf("%v, wanted %q", err, c.wants)
			}
		})
	}
	for _, v := range []string{"", "a,b", "*", "a*", "{{x}}", "a b", "a\nb", "a=b", strings.Repeat("a", 201), "${x}", "?"} {
		r := vault.Role{Engine: "pki", Mount: "pki", Path: "issue/r", Method: "write", Revoke: "none", Choose: map[string][]string{"common_name": {v}}}
		if err := checked(r); err == nil || !strings.Contains(err.Error(), "plain value") {
			t.Errorf("%q: %v", v, err)
		}
	}
}

// namespaces is a role whose grants choose a namespace and a binding.
var namespaces = vault.Role{
	Engine: "kubernetes", Mount: "k8s", Path: "creds/dev", Policy: "stint-dev", Method: "write", Revoke: "lease", LifetimeParam: "ttl",
	Params: map[string]string{"audiences": "x"},
	Choose: map[string][]string{"kubernetes_namespace": {"team-a", "team-b"}, "cluster_role_binding": {"false"}},
}

func TestAGrantChoosesFromAList(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.lease = "k8s/creds/dev/"
	p := open(t, map[string]vault.Role{"dev": namespaces, "reader": roles()["reader"]}, deps{Engine: f, Now: func() time.Time { return f.now }})
	s := p.Describe().Schema
	for text, want := range map[string]string{
		`{"mount":"k8s","role":"dev","params":["cluster_role_binding=false","kubernetes_namespace=team-a"]}`:                               "",
		`{"mount":"database","role":"reader","params":[]}`:                                                                                 "",
		`{"mount":"k8s","role":"dev","params":"*"}`:                                                                                        "choose",
		`{"mount":"k8s","role":"dev","params":["kubernetes_namespace=team-a"]}`:                                                            "choose one each",
		`{"mount":"k8s","role":"dev","params":[]}`:                                                                                         "choose one each",
		`{"mount":"k8s","role":"dev","params":["cluster_role_binding=false","kubernetes_namespace=team-a","kubernetes_namespace=team-b"]}`: "more than one",
		`{"mount":"database","role":"reader","params":["kubernetes_namespace=team-a"]}`:                                                    "not one that can be chosen",
	} {
		g, err := s.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		rendered, err := p.Render(g)
		if want != "" {
			if !errors.Is(err, broker.ErrInexpressible) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		back, err2 := p.Parse(rendered)
		if err != nil || err2 != nil || !back.Equal(g) {
			t.Errorf("%s: %v, %v, reads back as %s", text, err, err2, back)
		}
	}
	for name, c := range map[string]string{
		"a namespace that is not in the list": `{"lifetime":"ttl","method":"write","mount":"k8s","params":{"audiences":"x","cluster_role_binding":"false","kubernetes_namespace":"kube-system"},"path":"creds/dev","policy":"stint-dev"}`,
		"a binding that is not in the list":   `{"lifetime":"ttl","method":"write","mount":"k8s","params":{"audiences":"x","cluster_role_binding":"true","kubernetes_namespace":"team-a"},"path":"creds/dev","policy":"stint-dev"}`,
		"a parameter beside":                  `{"lifetime":"ttl","method":"write","mount":"k8s","params":{"audiences":"x","cluster_role_binding":"false","kubernetes_namespace":"team-a","role":"x"},"path":"creds/dev","policy":"stint-dev"}`,
	} {
		if g, err := p.Parse([]byte(c)); err == nil {
			t.Errorf("%s is read as %s", name, g)
		}
	}

	g, err := s.Parse([]byte(`{"mount":"k8s","role":"dev","params":["cluster_role_binding=false","kubernetes_namespace=team-b"]}`))
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Mint(t.Context(), broker.MintRequest{
		Lease: lease, Grant: g, Rendered: rendered, Expires: f.now.Add(time.Minute), Note: func([]byte) error { return nil },
	})
	if err != nil || m.Evidence != broker.Asserted || !m.Granted.Equal(g) {
		t.Fatalf("%+v, %v", m, err)
	}
	if got := fmt.Sprintln(f.params["kubernetes_namespace"], f.params["cluster_role_binding"], f.params["audiences"]); got != "team-b false x\n" {
		t.Errorf("the engine was told %q", got)
	}
}

func TestTwoRolesAreToldApartByWhatIsSent(t *testing.T) {
	t.Parallel()
	other := namespaces
	other.Choose = map[string][]string{"kubernetes_namespace": {"team-b", "team-c"}, "cluster_role_binding": {"false"}}
	c := vault.Config{Roles: map[string]vault.Role{"a": namespaces, "b": other}}
	if err := c.Check(); err == nil || !strings.Contains(err.Error(), "ask Vault for the same") {
		t.Errorf("%v", err)
	}
	other.Choose = map[string][]string{"kubernetes_namespace": {"team-c"}, "cluster_role_binding": {"false"}}
	c = vault.Config{Roles: map[string]vault.Role{"a": namespaces, "b": other}}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
}

func TestDetailsChoose(t *testing.T) {
	t.Parallel()
	p := open(t, map[string]vault.Role{"dev": namespaces, "reader": roles()["reader"]}, deps{Engine: newFake(), Now: time.Now})
	s := p.Describe().Schema
	mapped, err := s.Parse([]byte(`{"mount":"k8s","role":"dev","params":["cluster_role_binding=false","kubernetes_namespace=team-a","kubernetes_namespace=team-b"]}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Describe().Check(mapped); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]string{
		`{"mount":"k8s","role":"dev","params":["kubernetes_namespace=team-a"]}`:  "wants a choice of cluster_role_binding",
		`{"mount":"*","role":"reader","params":["kubernetes_namespace=team-a"]}`: "does not let",
		`{"mount":"k8s","role":"dev","params":[]}`:                               "wants a choice",
	} {
		g, err := s.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Describe().Check(g); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	chosen := map[string]any{"mount": "k8s", "role": "dev", "params": []any{"cluster_role_binding=false", "kubernetes_namespace=team-a"}}
	r, err := p.Resolve(t.Context(), broker.ResolveRequest{Resources: []string{"vault://main/dev"}, Details: []map[string]any{chosen}})
	if err != nil {
		t.Fatal(err)
	}
	g := grant.Meet(mapped, r.Request)
	if _, err := p.Render(g); err != nil {
		t.Error(err)
	}
	if _, err := p.Resolve(t.Context(), broker.ResolveRequest{Resources: []string{"vault://main/reader"}, Details: []map[string]any{chosen}}); broker.CodeOf(err) != broker.BadDetails {
		t.Errorf("details of another role than the resource: %v", err)
	}
}

// The table in docs/providers.md says what the code goes by.
func TestTheTableOfEnginesIsTrue(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/providers.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## vault\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := 0
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || !strings.HasPrefix(line, "  | `") {
			continue
		}
		rows++
		engine := strings.Trim(cells[1], " `")
		what, _, _ := strings.Cut(strings.TrimSpace(cells[3]), ":")
		for _, path := range strings.Split(cells[2], ",") {
			r := vault.Role{Engine: engine, Mount: "x", Path: strings.Trim(path, " `") + "/r", Method: "write"}
			lease, none := r, r
			lease.Revoke, none.Revoke = "lease", "none"
			got := map[[3]bool]string{{true, true, false}: "ends", {false, false, true}: "lasts", {false, true, true}: "depends"}[[3]bool{
				checked(r) == nil, checked(lease) == nil, checked(none) == nil,
			}]
			if got != what {
				t.Errorf("%s %s: the table says %q, the code %q", engine, path, what, got)
			}
		}
	}
	if rows != 10 {
		t.Errorf("the table has %d rows", rows)
	}
}
