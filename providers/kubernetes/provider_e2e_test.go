//go:build e2e

package kubernetes_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/scopes/grant"
)

// TestProvider runs what can share one API server.
func TestProvider(t *testing.T) {
	k := newCluster(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"what Leq allows, the API server's authoriser allows", testOracle},
		{"rules for the cluster are spelled", testClusterRules},
		{"less than was asked is an error", testLess},
		{"nothing is lent that Stint does not hold", testCeiling},
		{"a token is dead within seconds of its revocation, and useless at once", testLatency},
		{"a watch that is open outlives its token", testOpenWatch},
		{"who holds what is written where the cluster's log finds it", testIdentity},
		{"the user's own rights are asked for", testEntitlement},
		{"names are noted with what they meant", testNames},
		{"what a crash left is swept, however far it got", testCrash},
		{"what everybody has is noticed, unless it is tolerated", testTolerate},
		{"a token of ours that is refused is no fault of the caller's", testRefused},
		{"what the table calls a read connects to nothing", testReads},
		{"accounts that are there", testProfiles},
		{"contract", testContract},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, k)
			if left := k.remains(t); len(left) > 0 && !t.Failed() {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// session is a credential in use.
type session struct {
	k     *cluster
	token string
}

func (session) Close() {}

func (s session) Do(ctx context.Context, act string) error {
	return s.k.do(ctx, s.token, acts[act], providertest.ErrRefused)
}

// whoami is asked by everybody who has a token that is good.
var whoami = deed{"", "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`}

func claimsOf(token string) (c struct {
	Expires int64  `json:"exp"`
	ID      string `json:"jti"`
}, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errors.New("no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(payload, &c)
}

func (k *cluster) harness(t testing.TB) providertest.Harness {
	needs := make(map[string]grant.Grant)
	for name, a := range acts {
		text := a.grant
		if text == "" { // those for the cluster have a test of their own
			continue
		}
		needs[name] = parse(t, k.provider, text)
	}
	return providertest.Harness{
		Provider: k.provider, Subject: "https://idp.example#alice", Acts: needs, Rounds: 2, Pairs: 2000, Patience: 40 * time.Second,
		Upstream: "kube-apiserver " + k.Version, Oracle: "Covers of k8s.io/component-helpers",
		Grant: func(r *rand.Rand) grant.Grant { return randomGrant(t, k.provider, r) },
		Inexpressible: []grant.Grant{
			k.provider.Describe().Schema.Everything(),
			parse(t, k.provider, `{"namespaces":"*","rules":[`+pool[0]+`],"cluster":[]}`),
			parse(t, k.provider, `{"namespaces":["apps"],"rules":"*","cluster":[]}`),
			parse(t, k.provider, `{"namespaces":["apps"],"rules":[`+pool[0]+`],"cluster":"*"}`),
			parse(t, k.provider, `{"namespaces":["stint-accounts"],"rules":[`+pool[0]+`],"cluster":[]}`),
			parse(t, k.provider, `{"namespaces":["../apps"],"rules":[`+pool[0]+`],"cluster":[]}`),
			parse(t, k.provider, `{"namespaces":["apps"],"rules":[`+widePool[1]+`],"cluster":[]}`),
		},
		Open: func(ctx context.Context, m *broker.Minted) (providertest.Session, error) {
			if err := k.do(ctx, m.Token.Reveal(), whoami, providertest.ErrRefused); err != nil {
				return nil, err
			}
			return session{k, m.Token.Reveal()}, nil
		},
		Ends: func(_ context.Context, m *broker.Minted) (time.Time, error) {
			c, err := claimsOf(m.Token.Reveal())
			return time.Unix(c.Expires, 0), err
		},
		Remains: func(context.Context) ([]string, error) { return k.remains(t), nil },
		Within:  k.within,
	}
}

// order is what a grant is rendered as.
type order struct {
	Cluster    []any    `json:"cluster"`
	Namespaces []string `json:"namespaces"`
	Rules      []any    `json:"rules"`
}

// within asks Kubernetes' own code whether one grant is within another, namespace by
// namespace.
func (k *cluster) within(_ context.Context, a, b grant.Grant) (bool, error) {
	var less, more order
	for g, o := range map[*grant.Grant]*order{&a: &less, &b: &more} {
		rendered, err := k.provider.Render(*g)
		if err == nil {
			err = json.Unmarshal(rendered, o)
		}
		if err != nil {
			return false, err
		}
	}
	ok, err := k.covers(more.Cluster, less.Cluster)
	for _, n := range less.Namespaces {
		if !ok || err != nil {
			return false, err
		}
		owner := more.Cluster
		for _, m := range more.Namespaces {
			if m == n {
				owner = append(owner[:len(owner):len(owner)], more.Rules...)
			}
		}
		ok, err = k.covers(owner, less.Rules)
	}
	return ok, err
}

func testContract(t *testing.T, k *cluster) {
	h := k.harness(t)
	h.Overgrants = make(map[string]broker.Provider)
	for name, l := range k.liars(t) {
		h.Overgrants[name] = k.behind(t, l, k.settings())
	}
	providertest.Run(t, h)
}

// liars are API servers that give more than they are asked for.
func (k *cluster) liars(t testing.TB) map[string]*liar {
	k.powerful.Do(func() { k.Account(t, "default", "powerful") })
	isToken := func(path string) bool { return strings.HasSuffix(path, "/token") }
	spec := func(o map[string]any) map[string]any { s, _ := o["spec"].(map[string]any); return s }
	onToken := func(change func(o map[string]any) (path string)) *liar {
		l := k.liar(t)
		l.change = func(method, path string, o map[string]any) (string, bool) {
			if method != http.MethodPost || !isToken(path) {
				return path, false
			}
			if other := change(o); other != "" {
				path = other
			}
			return path, true
		}
		return l
	}
	out := map[string]*liar{
		"a token that lives longer": onToken(func(o map[string]any) string {
			spec(o)["expirationSeconds"] = 7200
			return ""
		}),
		"a token that is not bound": onToken(func(o map[string]any) string {
			delete(spec(o), "boundObjectRef")
			return ""
		}),
		"a token of another account": onToken(func(o map[string]any) string {
			delete(spec(o), "boundObjectRef")
			return "/api/v1/namespaces/default/serviceaccounts/powerful/token"
		}),
	}
	said := k.liar(t)
	said.answer = func(o map[string]any) {
		o["status"].(map[string]any)["expirationTimestamp"] = time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339)
	}
	out["an answer that says another end than the token"] = said
	out["a role with another rule"] = k.rolesBy(t, func(rules []any) []any {
		return append(rules, map[string]any{"apiGroups": []string{""}, "resources": []string{"secrets"}, "verbs": []string{"list"}})
	})
	out["a role with all verbs"] = k.rolesBy(t, func(rules []any) []any {
		for _, r := range rules {
			r.(map[string]any)["verbs"] = []string{"*"}
		}
		return rules
	})
	out["a role for all objects"] = k.rolesBy(t, func(rules []any) []any {
		for _, r := range rules {
			delete(r.(map[string]any), "resourceNames")
			r.(map[string]any)["resources"] = []string{"configmaps", "secrets"}
			r.(map[string]any)["apiGroups"] = []string{""}
		}
		return rules
	})
	return out
}

// rolesBy is an API server that changes the rules of roles. Whoever binds a role has to
// hold what is in it: that is done for Stint, too.
func (k *cluster) rolesBy(t testing.TB, change func(rules []any) []any) *liar {
	l := k.liar(t)
	l.change = func(method, path string, o map[string]any) (string, bool) {
		if method != http.MethodPost || !strings.Contains(path, "/role") {
			return path, false
		}
		if rules, ok := o["rules"].([]any); ok {
			o["rules"] = change(rules)
		}
		return path, true
	}
	return l
}
