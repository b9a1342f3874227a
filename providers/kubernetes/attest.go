package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// lookedInto are namespaces that every cluster has. In them a token is asked what it may
// do although nothing was granted there: what it may do in all namespaces shows in each.
var lookedInto = []string{"default", "kube-system"}

const (
	// settles bounds how long it is waited for the API server to notice what was granted.
	settles = 5 * time.Second
	// again is how often it is asked meanwhile.
	again = 20 * time.Millisecond
)

// attestIdentity asks the API server whom it takes the token's holder for.
func (p *provider) attestIdentity(ctx context.Context, t *token, a account) error {
	var answer struct {
		Status struct {
			User struct {
				Name string `json:"username"`
				UID  string `json:"uid"`
			} `json:"userInfo"`
		} `json:"status"`
	}
	err := p.ask(ctx, call{
		method: http.MethodPost, path: "/apis/authentication.k8s.io/v1/selfsubjectreviews", as: t.token,
		body: map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}, into: &answer,
	})
	if err != nil {
		return fmt.Errorf("ask by the new token whose it is: %w", err)
	}
	if answer.Status.User.Name != "system:serviceaccount:"+a.namespace+":"+a.name || answer.Status.User.UID != a.uid {
		return errors.New("the API server takes the new token for another account's")
	}
	return nil
}

// attest asks the API server what the new token may do. Evidence is less where not all of
// its authorisers can list what they allow.
func (p *provider) attest(ctx context.Context, t *token, o order) (grant.Grant, broker.Evidence, error) {
	evidence := broker.Attested
	var beyond []policyRule // what it may do where nothing was granted
	for _, n := range append([]string{p.cfg.Namespace}, lookedInto...) {
		if slices.Contains(o.Namespaces, n) {
			continue
		}
		held, complete, err := p.allowed(ctx, t, n, o.Cluster)
		if err != nil {
			return grant.Grant{}, "", err
		}
		if !complete {
			evidence = broker.Echoed
		}
		beyond = append(beyond, held...)
	}
	clusterwide, err := grantOfRules(beyond)
	if err != nil {
		return grant.Grant{}, "", err
	}
	wanted, err := grantOfRules(o.Rules)
	if err != nil {
		return grant.Grant{}, "", err
	}
	var rules []policyRule
	for _, n := range o.Namespaces {
		held, complete, err := p.allowed(ctx, t, n, o.Rules)
		if err != nil {
			return grant.Grant{}, "", err
		}
		if !complete {
			evidence = broker.Echoed
		}
		for _, r := range held {
			meant, err1 := r.within(wanted)
			everywhere, err2 := r.within(clusterwide)
			if err := errors.Join(err1, err2); err != nil {
				return grant.Grant{}, "", err
			}
			if meant || !everywhere {
				rules = append(rules, r)
			}
		}
	}
	g, err := p.schema.ParseValue(map[string]any{
		"namespaces": list(o.Namespaces), "rules": entriesOf(rules), "cluster": entriesOf(beyond),
	})
	if err != nil {
		return g, "", fmt.Errorf("read what the token may do: %w", err)
	}
	if g.IsNothing() {
		return g, "", errors.New("the new token may do nothing")
	}
	return g, evidence, nil
}

func entriesOf(rules []policyRule) []any {
	out := make([]any, 0, len(rules))
	for _, r := range rules {
		out = append(out, r.entry())
	}
	return out
}

func grantOfRules(rules []policyRule) (grant.Grant, error) {
	g, err := rulesOnly.ParseValue(map[string]any{"rules": entriesOf(rules)})
	if err != nil {
		return g, fmt.Errorf("rules that no grant can say: %w", err)
	}
	return g, nil
}

// allowed is what the holder of a token may do in a namespace, beyond what everybody may,
// as soon as all that was wanted there is in it: API servers take a moment to notice new
// bindings.
func (p *provider) allowed(ctx context.Context, t *token, namespace string, wanted []policyRule) ([]policyRule, bool, error) {
	deadline := time.NewTimer(settles)
	defer deadline.Stop()
	for {
		held, complete, err := p.review(ctx, t, namespace)
		if err != nil {
			return nil, false, err
		}
		all, err := covers(held, wanted)
		if err != nil || all {
			return held, complete, err
		}
		select {
		case <-ctx.Done():
			return nil, false, broker.Fail(broker.Unavailable, ctx.Err(), "the upstream does not answer")
		case <-deadline.C:
			return held, complete, nil // less than was asked: the caller sees it
		case <-time.After(again):
		}
	}
}

// covers reports whether somebody has all rules that were wanted.
func covers(held, wanted []policyRule) (bool, error) {
	if len(wanted) == 0 {
		return true, nil
	}
	has, err := grantOfRules(held)
	if err != nil {
		return false, err
	}
	needs, err := grantOfRules(wanted)
	if err != nil {
		return false, err
	}
	ok, _ := grant.Leq(needs, has)
	return ok, nil
}

// review asks by the token what it may do in a namespace. complete says that nothing is
// left out.
func (p *provider) review(ctx context.Context, t *token, namespace string) (held []policyRule, complete bool, err error) {
	var answer struct {
		Status struct {
			Rules      []policyRule `json:"resourceRules"`
			URLs       []policyRule `json:"nonResourceRules"`
			Incomplete bool         `json:"incomplete"`
		} `json:"status"`
	}
	err = p.ask(ctx, call{
		method: http.MethodPost, path: "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", as: t.token,
		body: map[string]any{
			"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": map[string]any{"namespace": namespace},
		}, into: &answer,
	})
	if err != nil {
		return nil, false, fmt.Errorf("ask by the new token what it may do: %w", err)
	}
	single, err := atoms(slices.Concat(answer.Status.Rules, answer.Status.URLs))
	if err != nil {
		return nil, false, err
	}
	for _, r := range single {
		everybody, err := r.within(p.tolerated)
		if err != nil {
			return nil, false, err
		}
		if !everybody {
			held = append(held, r)
		}
	}
	return held, !answer.Status.Incomplete, nil
}
