package kubernetes

import (
	"errors"
	"fmt"
	"slices"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// order is what is made for a lease: in each namespace a Role with the rules, and for
// the cluster, unless there are none, a ClusterRole with those. They go into the roles
// as they stand here.
type order struct {
	Cluster    []policyRule `json:"cluster"`
	Namespaces []string     `json:"namespaces"`
	Rules      []policyRule `json:"rules"`
}

// pick is what is asked for where accounts are there.
type pick struct {
	Namespace string `json:"namespace"`
	Account   string `json:"account"`
	Profile   string `json:"profile"`
}

// maxNamespaces is how many namespaces a lease can reach into: each costs a Role.
const maxNamespaces = 16

// check refuses what no cluster has a name for, and what is never granted. The grant may
// be a mapping's, or what came of one.
func (p *provider) check(g grant.Grant) error {
	if p.cfg.Accounts == profiles {
		return nil
	}
	_, namespaces := g.Dimension("namespaces")
	for _, a := range namespaces {
		switch {
		case !dnsLabel(a[0]):
			return fmt.Errorf("%q is no name of a namespace", a[0])
		case a[0] == p.cfg.Namespace:
			return fmt.Errorf("%s is where accounts are made: nothing is granted there", a[0])
		}
	}
	for _, name := range []string{"rules", "cluster"} {
		_, held := g.Dimension(name)
		for _, a := range held {
			if err := checkRule(a, name == "cluster"); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func checkRule(a grant.Atom, cluster bool) error {
	switch {
	case !verbName(a[0]):
		return fmt.Errorf("%q is no verb", a[0])
	case isURL(a) && !cluster:
		return fmt.Errorf("%s is in no namespace: it goes under cluster", a[2])
	case isURL(a):
		return nil
	case a[1] != "" && a[1] != star && !dnsName(a[1]):
		return fmt.Errorf("%q is no API group", a[1])
	case !resourceName(a[2]):
		return fmt.Errorf("%q is no resource", a[2])
	case !objectName(a[3]):
		return fmt.Errorf("%q is no name of an object", a[3])
	}
	return nil
}

// Render implements [broker.Provider]: the order or the pick, as RFC 8785 has it.
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	if g.IsNothing() {
		return nil, errors.New("nothing is never asked for")
	}
	if err := p.check(g); err != nil {
		return nil, fmt.Errorf("%w: %w", err, broker.ErrInexpressible)
	}
	if p.cfg.Accounts == profiles {
		_, held := g.Dimension("profile")
		if len(held) != 1 {
			return nil, fmt.Errorf("a token has one account, and %s names none: %w", g, broker.ErrInexpressible)
		}
		a, known := p.cfg.Profiles[held[0][0]]
		if !known {
			return nil, fmt.Errorf("there is no profile %s: %w", held[0][0], broker.ErrInexpressible)
		}
		return strictjson.Encode(pick{a.Namespace, a.Name, held[0][0]})
	}
	everywhere, namespaces := g.Dimension("namespaces")
	all, held := g.Dimension("rules")
	whole, cluster := g.Dimension("cluster")
	switch {
	case everywhere || len(namespaces) > maxNamespaces:
		return nil, fmt.Errorf("roles are made in up to %d namespaces: name them: %w", maxNamespaces, broker.ErrInexpressible)
	case all || whole:
		return nil, fmt.Errorf("a role has rules, and not everything: spell them: %w", broker.ErrInexpressible)
	}
	o := order{Cluster: policyRules(cluster), Rules: policyRules(held)}
	for _, a := range namespaces {
		o.Namespaces = append(o.Namespaces, a[0])
	}
	return strictjson.Encode(o)
}

// policyRules gathers the verbs of atoms that differ in nothing else.
func policyRules(atoms []grant.Atom) []policyRule {
	out := []policyRule{}
	at := make(map[grant.Atom]int)
	for _, a := range atoms { // sorted, by verb first
		key := a
		key[0] = ""
		if i, ok := at[key]; ok {
			out[i].Verbs = append(out[i].Verbs, a[0])
			continue
		}
		at[key] = len(out)
		r := policyRule{Verbs: []string{a[0]}}
		switch {
		case isURL(a):
			r.NonResourceURLs = []string{a[2]}
		case a[3] != star:
			r.ResourceNames = []string{a[3]}
			fallthrough
		default:
			r.APIGroups, r.Resources = []string{a[1]}, []string{a[2]}
		}
		out = append(out, r)
	}
	return out
}

// Parse implements [broker.Provider].
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	if p.cfg.Accounts == profiles {
		k, err := p.picked(rendered)
		if err != nil {
			return grant.Grant{}, err
		}
		return p.schema.ParseValue(map[string]any{"profile": k.Profile})
	}
	o, err := p.ordered(rendered)
	if err != nil {
		return grant.Grant{}, err
	}
	given := map[string]any{"namespaces": list(o.Namespaces)}
	for name, rules := range map[string][]policyRule{"rules": o.Rules, "cluster": o.Cluster} {
		entries := make([]any, 0, len(rules))
		for _, r := range rules {
			entries = append(entries, r.entry())
		}
		given[name] = entries
	}
	g, err := p.schema.ParseValue(given)
	if err == nil && g.IsNothing() {
		err = errors.New("the order grants nothing")
	}
	if err != nil {
		return grant.Grant{}, err
	}
	return g, p.check(g)
}

// exact decodes what was rendered: a member that is missing, null or empty in its place
// would be another thing to the API server.
func exact(rendered []byte, v any) error {
	if err := strictjson.Decode(rendered, v); err != nil {
		return err
	}
	again, err := strictjson.Encode(v)
	if err == nil && string(again) != string(rendered) {
		if given, err := strictjson.Canonical(rendered); err != nil || string(again) != string(given) {
			return errors.New("what is rendered is not complete")
		}
	}
	return err
}

func (p *provider) picked(rendered []byte) (pick, error) {
	var k pick
	if err := exact(rendered, &k); err != nil {
		return k, err
	}
	a, known := p.cfg.Profiles[k.Profile]
	if !known || a.Namespace != k.Namespace || a.Name != k.Account {
		return k, errors.New("what is rendered is no profile's account")
	}
	return k, nil
}

func (p *provider) ordered(rendered []byte) (order, error) {
	var o order
	if err := exact(rendered, &o); err != nil {
		return o, err
	}
	if o.Cluster == nil || len(o.Namespaces) == 0 || len(o.Namespaces) > maxNamespaces || len(o.Rules) == 0 {
		return o, errors.New("the order lacks something")
	}
	for _, r := range slices.Concat(o.Rules, o.Cluster) {
		url := len(r.NonResourceURLs) > 0
		if len(r.Verbs) == 0 || url == (len(r.APIGroups) > 0) || url == (len(r.Resources) > 0) || url && len(r.ResourceNames) > 0 || slices.Contains(r.ResourceNames, star) {
			return o, errors.New("a rule that is half of one")
		}
	}
	return o, nil
}
