// Package kubernetes vends tokens of Kubernetes service accounts, by TokenRequest.
//
// Such a token has no scopes: what it may do is what RBAC lets its account do. So
// there are two ways, and a provider goes one of them.
//
// accounts: per_lease makes an account for each lease, in a namespace that is there for
// nothing else, and in every namespace of the grant a Role with exactly the grant's
// rules, bound to that account. Whoever makes a Role has to hold what it allows: that is
// the API server's own rule, so that what the broker's account holds in a namespace is
// the most that is ever handed out there, and nothing here can be talked into more. The
// broker needs neither `escalate` nor `bind`; deploy/kubernetes/broker.yaml has the least
// it does need.
//
// accounts: profiles takes accounts that are there already, each under a name. What they
// may do is written in the cluster; nothing narrower than all of it can be granted.
//
// Each token is bound to a Secret of its own, which is empty: when that is deleted, API
// servers refuse the token. They remember for 10 seconds that they accepted one, each for
// itself, and nobody can be asked what the others remember; so a lease is said to be
// revoked when that time is over, for which a second, empty Secret is kept. What was made
// for the lease alone is deleted at once, its bindings first: RBAC remembers nothing.
//
// After minting, the API server is asked by the new token itself whose it is and what it
// may do: in the namespaces of the grant, and in some where it may do nothing
// (SelfSubjectReview, SelfSubjectRulesReview). More than the grant, beyond what every
// account has, is refused and ended.
//
// What this cannot do: a watch, an exec or a port-forward that is open when its token
// dies goes on until the API server closes it (--min-request-timeout: half an hour to an
// hour). Things that a holder makes with its rights stay: whoever may create pods or
// RoleBindings leaves more behind than a token. And bindings that give something to all
// service accounts in some namespace that is neither the grant's nor looked into are not
// seen.
package kubernetes

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

type provider struct {
	name   string
	cfg    Config
	deps   upstream.Deps
	schema *grant.Schema
	about  broker.Description
	// tolerated are the rules that every account of the cluster has.
	tolerated grant.Grant
	// rights are what users may do, as the cluster said.
	rights *upstream.Memory[right, bool]

	mu     sync.Mutex
	client *upstream.Client // nil until the first use
}

var _ broker.Provider = (*provider)(nil)

const (
	// floor is the shortest life that API servers give a token.
	floor = 10 * time.Minute
	// margin is how much earlier than asked a token ends: its life begins when the API
	// server is reached.
	margin = 2 * time.Second
	// minLifetime leaves some time to make what the token needs.
	minLifetime = floor + 15*time.Second
)

// reads is the table of what only reads: these verbs, and of sub-resources those below.
// exec, attach, portforward and proxy are asked for with get, too, and do anything.
var (
	reads   = []string{"get", "list", "watch"}
	readsAt = []string{"log", "scale", "status"}
)

// readsVersion rises with every change of the table.
const readsVersion = "get, list and watch of resources and their log, scale and status, version 1"

// Describe is what all providers of this kind say of themselves, with the schema of
// accounts that are made per lease.
func Describe() broker.Description {
	s, err := newSchema(&Config{Accounts: perLease})
	if err != nil {
		panic("kubernetes: " + err.Error()) // written in code
	}
	return broker.Description{
		Kind: "kubernetes", About: "tokens of Kubernetes service accounts: an account for each lease with exactly the RBAC rules granted, or one that is there",
		Class: broker.Exact, Modes: []broker.Mode{broker.Vend}, Sweeps: true, Reads: readsVersion,
		Schema: s, Scheme: "k8s", Details: "kubernetes", TokenType: "Bearer",
		MinLifetime: minLifetime, MaxLifetime: time.Hour, Settable: true, Revokes: "token", Evidence: broker.Attested,
		Identity: []string{
			"audit log, annotation authentication.kubernetes.io/issued-credential-id and the user's credential-id: the jti",
			"audit log, user name, where accounts are made per lease: the lease",
			"annotations of the Secret that the token is bound to: lease, pseudonym of the subject, agent, client",
		},
	}
}

// newSchema returns the schema of grants.
func newSchema(cfg *Config) (*grant.Schema, error) {
	if cfg.Accounts == profiles {
		profile := grant.Dimension{
			Name: "profile", Type: grant.Profile, Values: slices.Sorted(maps.Keys(cfg.Profiles)),
			About: "A service account that is there. What it may do is written in the cluster; nothing narrower than all of it can be granted.",
		}
		for _, name := range profile.Values {
			if cfg.Profiles[name].Reads {
				profile.Reads = append(profile.Reads, name)
			}
		}
		return grant.NewSchema("kubernetes", 1, profile)
	}
	return grant.NewSchema("kubernetes", 1,
		grant.Dimension{Name: "namespaces", Type: grant.IDSet, About: "Namespaces, in each of which the rules are granted."},
		grant.Dimension{
			Name: "rules", Type: grant.RuleSet, Reads: reads, ReadsAt: readsAt,
			About: "RBAC rules for the namespaces: verbs of resources in API groups, \"\" being the core one, and their names or \"*\".",
		},
		grant.Dimension{
			Name: "cluster", Type: grant.RuleSet, Optional: true, Reads: reads, ReadsAt: readsAt,
			About: "RBAC rules for the whole cluster: for what is in no namespace, for all namespaces, and for paths that are no resources. [] is none.",
		},
	)
}

// Open makes a provider of its settings. It connects to nothing: that waits for the first
// use.
func Open(_ context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	p := &provider{name: name, deps: d, rights: upstream.NewMemory[right, bool](d.Now)}
	if err := decode(&p.cfg); err != nil {
		return nil, err
	}
	if err := p.cfg.Check(); err != nil {
		return nil, err
	}
	if !labelValue(name) {
		return nil, fmt.Errorf("%q cannot be the value of a label: letters, digits, -, _ and . are", name)
	}
	var err error
	if p.schema, err = newSchema(&p.cfg); err != nil {
		return nil, fmt.Errorf("profiles: %w", err)
	}
	if p.tolerated, err = ruleSet(slices.Concat(basics, p.cfg.Tolerate)); err != nil {
		return nil, fmt.Errorf("tolerate: %w", err)
	}
	p.about = Describe()
	p.about.Schema, p.about.MaxLifetime = p.schema, p.cfg.MaxLifetime.Duration
	p.about.Sweep, p.about.Ready, p.about.Check = p.sweep, p.ready, p.check
	if p.cfg.Accounts == profiles {
		p.about.Class, p.about.Reads = broker.Profile, "the settings"
	}
	return p, nil
}

// Describe implements [broker.Provider].
func (p *provider) Describe() broker.Description { return p.about }

// ready asks whether we may have tokens made: the API server has to be there, and take us
// for somebody who may.
func (p *provider) ready(ctx context.Context) error {
	for _, n := range p.cfg.namespaces() {
		asked := map[string]any{"spec": map[string]any{"resourceAttributes": map[string]any{
			"namespace": n, "verb": "create", "resource": "secrets",
		}}}
		var answer review
		err := p.ask(ctx, call{method: http.MethodPost, path: "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body: asked, into: &answer})
		if err != nil {
			return err
		}
		if !answer.Status.Allowed {
			return fmt.Errorf("the cluster does not let us make secrets in the namespace %s", n)
		}
	}
	return nil
}

// review is the answer to an access review.
type review struct {
	Status struct {
		Allowed         bool   `json:"allowed"`
		EvaluationError string `json:"evaluationError"`
	} `json:"status"`
}
