package kubernetes

import (
	"fmt"
	"strings"

	"github.com/stint-dev/stint/scopes/grant"
)

// policyRule is an RBAC rule as Roles have it, and as a SelfSubjectRulesReview lists
// what somebody may do. Without resource names it is about all of them.
type policyRule struct {
	APIGroups       []string `json:"apiGroups,omitempty"`
	NonResourceURLs []string `json:"nonResourceURLs,omitempty"`
	ResourceNames   []string `json:"resourceNames,omitempty"`
	Resources       []string `json:"resources,omitempty"`
	Verbs           []string `json:"verbs"`
}

// entry is the rule as an element of a grant.
func (r policyRule) entry() map[string]any {
	if len(r.NonResourceURLs) > 0 {
		return map[string]any{"verbs": list(r.Verbs), "nonResourceURLs": list(r.NonResourceURLs)}
	}
	e := map[string]any{"verbs": list(r.Verbs), "apiGroups": list(r.APIGroups), "resources": list(r.Resources), "resourceNames": any(star)}
	if len(r.ResourceNames) > 0 {
		e["resourceNames"] = list(r.ResourceNames)
	}
	return e
}

func list(texts []string) []any {
	out := make([]any, len(texts))
	for i, t := range texts {
		out[i] = t
	}
	return out
}

// isURL reports whether an atom of a rule set is about a path that is no resource.
func isURL(a grant.Atom) bool { return strings.HasPrefix(a[3], "\x00") }

// rulesOnly compares rules by themselves.
var rulesOnly = grant.MustSchema("rules", 1, grant.Dimension{Name: "rules", Type: grant.RuleSet})

// ruleSet are rules as a grant of rulesOnly.
func ruleSet(rules []Rule) (grant.Grant, error) {
	entries := make([]any, 0, len(rules))
	for _, r := range rules {
		entries = append(entries, policyRule{
			Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames, NonResourceURLs: r.NonResourceURLs,
		}.entry())
	}
	return rulesOnly.ParseValue(map[string]any{"rules": entries})
}

// basics are what every service account of a new cluster may do: system:basic-user,
// system:discovery, system:public-info-viewer, system:service-account-issuer-discovery
// and system:cluster-trust-bundle-discovery. They tell who one is, what there is, and
// whose certificates to trust.
var basics = []Rule{
	{Verbs: []string{"create"}, APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"selfsubjectaccessreviews", "selfsubjectrulesreviews"}},
	{Verbs: []string{"create"}, APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"selfsubjectreviews"}},
	{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"clustertrustbundles"}},
	{Verbs: []string{"get"}, NonResourceURLs: []string{
		"/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks", "/openid/v1/jwks/",
		"/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/healthz", "/livez", "/readyz", "/version", "/version/",
	}},
}

// maxHeld bounds how many rules of an account are looked at, one by one.
const maxHeld = 4096

// atoms takes rules apart: each of one verb, group, resource and name.
func atoms(rules []policyRule) ([]policyRule, error) {
	var out []policyRule
	for _, r := range rules {
		names := r.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, verb := range r.Verbs {
			for _, u := range r.NonResourceURLs {
				out = append(out, policyRule{Verbs: []string{verb}, NonResourceURLs: []string{u}})
			}
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, name := range names {
						one := policyRule{Verbs: []string{verb}, APIGroups: []string{group}, Resources: []string{resource}}
						if name != "" {
							one.ResourceNames = []string{name}
						}
						out = append(out, one)
					}
				}
			}
		}
		if len(out) > maxHeld {
			return nil, fmt.Errorf("an account with more than %d rules", maxHeld)
		}
	}
	return out, nil
}

// within reports whether a single rule is below others.
func (r policyRule) within(others grant.Grant) (bool, error) {
	one, err := rulesOnly.ParseValue(map[string]any{"rules": []any{r.entry()}})
	if err != nil {
		return false, fmt.Errorf("a rule that no grant can say: %w", err)
	}
	ok, _ := grant.Leq(one, others)
	return ok, nil
}
