package kubernetes

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// right is one thing that a user may do or not.
type right struct {
	user, namespace string // without a namespace: in all, or what is in none
	rule            grant.Atom
}

// maxAsked is how many things are asked about a user at once.
const maxAsked = 256

// entitle fills in the subject's own rights, and who the namespaces are.
func (p *provider) entitle(ctx context.Context, r broker.ResolveRequest, out *broker.Resolved) error {
	g := likely(out)
	out.Basis = "the cluster does not know the subject"
	if p.cfg.Entitlement == subjectAccessReview {
		out.Basis = "SubjectAccessReview for the user that the subject is in the cluster"
	}
	if !r.Live {
		if p.cfg.Entitlement == subjectAccessReview {
			out.Basis = "assumed: the cluster was not asked"
		}
		return nil
	}
	if g.IsNothing() {
		return nil
	}
	everywhere, in := g.Dimension("namespaces")
	names := make([]string, 0, len(in))
	for _, a := range in {
		names = append(names, a[0])
	}
	if len(names) <= maxNamespaces { // more than that is refused when it is rendered
		var err error
		if out.Names, err = p.identify(ctx, names); err != nil {
			return err
		}
	}
	if p.cfg.Entitlement != subjectAccessReview {
		return nil
	}
	user, known := p.user(r.Subject)
	if !known {
		out.Entitlement, out.Basis = p.schema.Nothing(), "the cluster knows no users of the subject's issuer"
		return nil
	}
	if everywhere || p.cfg.Accounts == profiles {
		out.Entitlement, out.Basis = p.schema.Nothing(), "what is not spelled cannot be asked about"
		return nil
	}
	var err error
	out.Entitlement, err = p.entitlement(ctx, user, names, g)
	return err
}

// user is what a subject is called in the cluster.
func (p *provider) user(subject string) (string, bool) {
	sub, ok := strings.CutPrefix(subject, p.cfg.Users.Issuer+"#")
	if !ok || sub == "" {
		return "", false
	}
	return strings.Replace(p.cfg.Users.Name, subPlace, sub, 1), true
}

// entitlement asks about every rule in every namespace. What a user may do is no product
// of both: counted are the namespaces in which he may do everything, or else what he may
// do in all of them.
func (p *provider) entitlement(ctx context.Context, user string, namespaces []string, g grant.Grant) (grant.Grant, error) {
	all, rules := g.Dimension("rules")
	whole, cluster := g.Dimension("cluster")
	if all || whole || len(rules)*len(namespaces)+len(cluster) > maxAsked {
		return p.schema.Nothing(), nil
	}
	var full []string
	common := slices.Clone(rules)
	for _, n := range namespaces {
		held, err := p.held(ctx, user, n, rules)
		if err != nil {
			return p.schema.Nothing(), err
		}
		if len(held) == len(rules) {
			full = append(full, n)
		}
		common = slices.DeleteFunc(common, func(a grant.Atom) bool { return !slices.Contains(held, a) })
	}
	if len(full) > 0 && len(full) < len(namespaces) {
		namespaces, common = full, rules
	}
	clusterwide, err := p.held(ctx, user, "", cluster)
	if err != nil {
		return p.schema.Nothing(), err
	}
	return p.schema.ParseValue(map[string]any{"namespaces": list(namespaces), "rules": entries(common), "cluster": entries(clusterwide)})
}

func entries(atoms []grant.Atom) []any {
	out := make([]any, 0, len(atoms))
	for _, r := range policyRules(atoms) {
		out = append(out, r.entry())
	}
	return out
}

// held are the rules that a user has somewhere.
func (p *provider) held(ctx context.Context, user, namespace string, rules []grant.Atom) ([]grant.Atom, error) {
	var out []grant.Atom
	for _, a := range rules {
		yes, err := p.rights.Get(ctx, right{user, namespace, a}, func(ctx context.Context) (bool, bool, error) {
			may, err := p.may(ctx, user, namespace, a)
			return may, may, err
		})
		if err != nil {
			return nil, err
		}
		if yes {
			out = append(out, a)
		}
	}
	return out, nil
}

// may asks the cluster whether a user may do one thing. "*" is asked for as it is: only a
// rule that has it covers it. A name of "*" is none: whatever it is called.
func (p *provider) may(ctx context.Context, user, namespace string, a grant.Atom) (bool, error) {
	spec := map[string]any{"user": user, "groups": append([]string{"system:authenticated"}, p.cfg.Users.Groups...)}
	if isURL(a) {
		spec["nonResourceAttributes"] = map[string]any{"verb": a[0], "path": a[2]}
	} else {
		resource, sub, _ := strings.Cut(a[2], "/")
		attributes := map[string]any{"verb": a[0], "group": a[1], "resource": resource, "subresource": sub, "namespace": namespace}
		if a[3] != star {
			attributes["name"] = a[3]
		}
		spec["resourceAttributes"] = attributes
	}
	var answer review
	err := p.ask(ctx, call{
		method: http.MethodPost, path: "/apis/authorization.k8s.io/v1/subjectaccessreviews",
		body: map[string]any{"spec": spec}, into: &answer,
	})
	if err != nil {
		return false, fmt.Errorf("ask what the user may do: %w", err)
	}
	return answer.Status.Allowed, nil
}
