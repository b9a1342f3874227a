//go:build e2e

package kubernetes_test

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/kubernetes"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/scopes/grant"
)

// resolved is what a subject is entitled to of a grant.
func resolved(t testing.TB, p broker.Provider, subject, text string) (*broker.Resolved, error) {
	t.Helper()
	g := parse(t, p, text)
	return p.Resolve(t.Context(), broker.ResolveRequest{Subject: subject, Grants: []grant.Grant{g, p.Describe().Schema.Everything()}, Live: true})
}

func testEntitlement(t *testing.T, k *cluster) {
	cfg := k.settings()
	cfg.Entitlement, cfg.Users = "subject_access_review", kubernetes.Users{Issuer: "https://idp.example", Name: "oidc:{sub}", Groups: []string{"engineering"}}
	p := k.open(t, cfg, nil)
	pods := object(t, `{"apiGroups":[""],"resources":["pods"],"verbs":["get","list"]}`)
	logs := object(t, `{"apiGroups":[""],"resources":["pods/log"],"verbs":["get"]}`)
	k.give(t, "oidc:alice", "apps", []any{pods, logs})
	k.give(t, "oidc:alice", "shop", []any{pods})
	time.Sleep(time.Second) // for the API server to notice
	both := `{"namespaces":["apps","shop"],"rules":[` + pool[0] + `,` + pool[1] + `],"cluster":[]}`
	inBoth := parse(t, p, `{"namespaces":["apps"],"rules":[`+pool[0]+`,`+pool[1]+`],"cluster":[]}`)
	r, err := resolved(t, p, alice, both)
	if err != nil || !r.Entitlement.Equal(inBoth) {
		t.Errorf("alice may do all of it in one namespace: %s, %v", r.Entitlement, err)
	}
	r, err = resolved(t, p, alice, `{"namespaces":["shop"],"rules":[`+pool[0]+`,`+pool[1]+`],"cluster":[`+widePool[0]+`]}`)
	if want := parse(t, p, `{"namespaces":["shop"],"rules":[`+pool[0]+`],"cluster":[]}`); err != nil || !r.Entitlement.Equal(want) {
		t.Errorf("alice may do some of it: %s, %v", r.Entitlement, err)
	}
	for name, subject := range map[string]string{"bob": "https://idp.example#bob", "another issuer's alice": "https://evil.example#alice", "a client": "client"} {
		if r, err = resolved(t, p, subject, both); err != nil || !r.Entitlement.IsNothing() {
			t.Errorf("%s: %s, %v", name, r.Entitlement, err)
		}
	}
	g := parse(t, p, both)
	r, err = p.Resolve(t.Context(), broker.ResolveRequest{Subject: "https://idp.example#bob", Grants: []grant.Grant{g, g}})
	if err != nil || !strings.Contains(r.Basis, "assumed") {
		t.Errorf("%+v, %v", r, err)
	}
}

func testNames(t *testing.T, k *cluster) {
	r, err := resolved(t, k.provider, alice, some)
	uid := k.Call(t, http.MethodGet, "/api/v1/namespaces/apps", nil)["metadata"].(map[string]any)["uid"]
	if err != nil || r.Names["namespace apps"] != uid || len(r.Names) != 1 {
		t.Errorf("%v, %v", r, err)
	}
	_, err = resolved(t, k.provider, alice, `{"namespaces":["nowhere"],"rules":[`+pool[0]+`],"cluster":[]}`)
	if broker.CodeOf(err) != broker.BadTarget {
		t.Errorf("a namespace that is not there: %v", err)
	}
}

// testTolerate opens a door to all accounts.
func testTolerate(t *testing.T, k *cluster) {
	const path = "/apis/rbac.authorization.k8s.io/v1/"
	k.Apply(t,
		object(t, `{"kind":"ClusterRole","metadata":{"name":"open-door"},"rules":[{"apiGroups":[""],"resources":["nodes"],"verbs":["list"]}]}`),
		object(t, `{"kind":"ClusterRoleBinding","metadata":{"name":"open-door"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"open-door"},
			"subjects":[{"kind":"Group","apiGroup":"rbac.authorization.k8s.io","name":"system:serviceaccounts"}]}`))
	defer func() {
		k.Call(t, http.MethodDelete, path+"clusterrolebindings/open-door", nil)
		k.Call(t, http.MethodDelete, path+"clusterroles/open-door", nil)
		time.Sleep(time.Second) // for the API server to notice
	}()
	time.Sleep(time.Second)
	r, m := mint(t, k.provider, some)
	ok, diffs := grant.Leq(m.Granted, r.Grant)
	if ok || len(diffs) != 1 || diffs[0].Dimension != "cluster" {
		t.Errorf("what is open to all accounts is not said to be granted: %v", diffs)
	}
	end(t, k.provider, r)
	cfg := k.settings()
	cfg.Tolerate = []kubernetes.Rule{{Verbs: []string{"list"}, APIGroups: []string{""}, Resources: []string{"nodes"}}}
	p := k.open(t, cfg, nil)
	r, m = mint(t, p, some)
	if !m.Granted.Equal(r.Grant) {
		t.Errorf("granted is %s", m.Granted)
	}
	end(t, p, r)
}

func testRefused(t *testing.T, k *cluster) {
	p := k.open(t, k.settings(), func(d *upstream.Deps) {
		was := d.Secret
		d.Secret = func(ctx context.Context, ref string) (secret.String, error) {
			if ref == "file:token" {
				return secret.New("wrong"), nil
			}
			return was(ctx, ref)
		}
	})
	if err := p.Describe().Ready(t.Context()); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("ready: %v", err)
	}
	if _, err := p.Mint(t.Context(), asked(t, p, some)); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("mint: %v", err)
	}
	r, _ := mint(t, k.provider, some)
	if _, err := p.Revoke(t.Context(), broker.RevokeLease{Lease: r.Lease}); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("a revocation that was refused: %v", err)
	}
	end(t, k.provider, r)
}

// testReads holds the table of reads to the API server's own description: what it calls
// a connection is no read, whatever the verb, and everything it calls a read is one of
// three verbs.
func testReads(t *testing.T, k *cluster) {
	var described struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	status, answer, err := k.Do(t.Context(), k.Admin, http.MethodGet, "/openapi/v2", nil)
	if err != nil || status != http.StatusOK || json.Unmarshal(answer, &described) != nil {
		t.Fatal(status, err)
	}
	verbs := map[string]bool{}
	connects := map[string]bool{}
	for path, methods := range described.Paths {
		for method, raw := range methods {
			var op struct {
				Action string `json:"x-kubernetes-action"`
			}
			if json.Unmarshal(raw, &op) != nil || op.Action == "" {
				continue
			}
			if op.Action == "connect" {
				connects[resourceOf(path)] = true
			} else if method == "get" {
				verbs[op.Action] = true
			}
		}
	}
	for action := range verbs {
		if verb := strings.TrimSuffix(action, "list"); verb != "watch" && action != "get" && action != "list" && action != "watchlist" {
			t.Errorf("%s is asked for with GET, and is not in the table", action)
		}
	}
	if len(connects) < 5 {
		t.Errorf("only %v connect", connects)
	}
	for resource := range connects {
		g := parse(t, k.provider, `{"namespaces":["apps"],"rules":[{"verbs":"get","apiGroups":"","resources":"`+resource+`","resourceNames":"*"}],"cluster":[]}`)
		if g.ReadOnly() {
			t.Errorf("get %s is called a read, and connects", resource)
		}
	}
	g := parse(t, k.provider, `{"namespaces":["apps"],"rules":[{"verbs":["get","list","watch"],"apiGroups":"","resources":["pods","pods/log"],"resourceNames":"*"}],"cluster":[]}`)
	if !g.ReadOnly() {
		t.Error("reading pods is no read")
	}
}

// resourceOf is the resource of a path as RBAC has it, such as pods/exec.
func resourceOf(path string) string {
	path = strings.TrimSuffix(path, "/{path}")
	parts := strings.Split(path, "/")
	n := len(parts)
	return parts[n-3] + "/" + parts[n-1]
}

func testProfiles(t *testing.T, k *cluster) {
	k.Namespace(t, "robots")
	accounts := map[string]kubernetes.Account{
		"reader": {Namespace: "robots", Name: "reader", Reads: true}, "writer": {Namespace: "robots", Name: "writer"},
		"elsewhere": {Namespace: "stint-accounts", Name: "elsewhere"},
	}
	k.Apply(t, object(t, `{"kind":"Role","metadata":{"namespace":"robots","name":"stint"},"rules":[
		{"apiGroups":[""],"resources":["serviceaccounts"],"verbs":["get"],"resourceNames":["reader","writer"]},
		{"apiGroups":[""],"resources":["serviceaccounts/token"],"verbs":["create"],"resourceNames":["reader","writer"]},
		{"apiGroups":[""],"resources":["secrets"],"verbs":["create","get","list","patch","delete"]}]}`),
		object(t, `{"kind":"RoleBinding","metadata":{"namespace":"robots","name":"stint"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"stint"},
			"subjects":[{"kind":"ServiceAccount","namespace":"stint","name":"stint"}]}`))
	for _, a := range accounts {
		k.Account(t, a.Namespace, a.Name)
	}
	cfg := k.settings()
	cfg.Accounts, cfg.Namespace, cfg.Profiles = "profiles", "", accounts
	p := k.open(t, cfg, nil)
	one := func(name string) grant.Grant { return parse(t, p, `{"profile":"`+name+`"}`) }
	if !one("reader").ReadOnly() || one("writer").ReadOnly() {
		t.Error("which accounts read is not what the settings say")
	}
	names := []string{"reader", "writer", "elsewhere"}
	h := k.harness(t)
	h.Provider, h.Acts, h.Variant, h.Rounds, h.Within, h.Oracle = p, nil, "profiles", 1, nil, ""
	h.Grant = func(r *rand.Rand) grant.Grant { return one(names[r.IntN(len(names))]) }
	h.Inexpressible = []grant.Grant{p.Describe().Schema.Everything()}
	h.Overgrants = make(map[string]broker.Provider)
	for name, l := range k.liars(t) {
		if !strings.Contains(name, "role") {
			h.Overgrants[name] = k.behind(t, l, cfg)
		}
	}
	providertest.Run(t, h)
	// Other people's accounts are left alone.
	for _, a := range accounts {
		if status, _, err := k.Do(t.Context(), k.Admin, http.MethodGet, "/api/v1/namespaces/"+a.Namespace+"/serviceaccounts/"+a.Name, nil); err != nil || status != http.StatusOK {
			t.Errorf("%s is gone: %d, %v", a.Name, status, err)
		}
	}
	// A token that could not be bound is not said to be revoked.
	r := asked(t, h.Overgrants["a token that is not bound"], `{"profile":"reader"}`)
	var noted []byte
	r.Note = func(handle []byte) error { noted = handle; return nil }
	if _, err := h.Overgrants["a token that is not bound"].Mint(t.Context(), r); err == nil {
		t.Fatal("a token that is not bound is vended")
	}
	end(t, p, r)
	o, err := p.Revoke(t.Context(), broker.RevokeLease{Lease: r.Lease, Handle: noted, Expires: r.Expires})
	if err != nil || o.State != broker.NotRevocableUntil || o.Until.Before(time.Now().Add(10*time.Minute)) {
		t.Errorf("%+v, %v", o, err)
	}
	if !errors.Is(renders(p, p.Describe().Schema.Everything()), broker.ErrInexpressible) {
		t.Error("all accounts at once are rendered")
	}
}

func renders(p broker.Provider, g grant.Grant) error { _, err := p.Render(g); return err }
