//go:build e2e

package kubernetes_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/scopes/grant"
)

var errRefused = errors.New("refused")

const some = `{"namespaces":["apps"],"rules":[{"verbs":["get","list","watch","create"],"apiGroups":"","resources":"configmaps","resourceNames":"*"}],"cluster":[]}`

// asked makes a request for a grant.
func asked(t testing.TB, p broker.Provider, text string) broker.MintRequest {
	t.Helper()
	g := parse(t, p, text)
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	lease := fmt.Sprintf("%024d", rand.Uint64())
	return broker.MintRequest{
		Lease: lease, Grant: g, Rendered: rendered, Expires: time.Now().Add(15 * time.Minute).Truncate(time.Second),
		Subject: alice, Pseudonym: "pseudonym", Actor: "claude-desktop", Client: "https://client.example/id",
		Note: func([]byte) error { return nil },
	}
}

const alice = "https://idp.example#alice"

func mint(t testing.TB, p broker.Provider, text string) (broker.MintRequest, *broker.Minted) {
	t.Helper()
	r := asked(t, p, text)
	m, err := p.Mint(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return r, m
}

// end revokes until that is final, and returns the outcomes on the way.
func end(t testing.TB, p broker.Provider, r broker.MintRequest) (states []broker.Outcome) {
	t.Helper()
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		o, err := p.Revoke(t.Context(), broker.RevokeLease{Lease: r.Lease, Expires: r.Expires})
		if err != nil {
			t.Fatal(err)
		}
		if states = append(states, o); o.State.Final() {
			return states
		}
	}
	t.Fatalf("lease %s does not end", r.Lease)
	return nil
}

func last(states []broker.Outcome) broker.OutcomeState { return states[len(states)-1].State }

func testClusterRules(t *testing.T, k *cluster) {
	with := `{"namespaces":["apps"],"rules":[` + pool[0] + `],"cluster":[` + strings.Join(widePool, ",") + `]}`
	r, m := mint(t, k.provider, with)
	if m.Evidence != broker.Attested || !m.Granted.Equal(r.Grant) {
		t.Errorf("granted is %s (%s), asked was %s", m.Granted, m.Evidence, r.Grant)
	}
	bare, n := mint(t, k.provider, `{"namespaces":["apps"],"rules":[`+pool[0]+`],"cluster":[]}`)
	for _, act := range []string{"list nodes", "read metrics"} {
		if err := k.do(t.Context(), m.Token.Reveal(), acts[act], errRefused); err != nil {
			t.Errorf("%s: %v", act, err)
		}
		if err := k.do(t.Context(), n.Token.Reveal(), acts[act], errRefused); !errors.Is(err, errRefused) {
			t.Errorf("%s without a rule for the cluster: %v", act, err)
		}
	}
	end(t, k.provider, r)
	end(t, k.provider, bare)
}

func testLess(t *testing.T, k *cluster) {
	p := k.behind(t, k.rolesBy(t, func(rules []any) []any { return rules[1:] }), k.settings())
	r := asked(t, p, `{"namespaces":["apps"],"rules":[`+pool[0]+`,`+pool[1]+`],"cluster":[]}`)
	if _, err := p.Mint(t.Context(), r); err == nil || !strings.Contains(err.Error(), "less than was asked") {
		t.Errorf("a role that lacks a rule: %v", err)
	}
	end(t, p, r)
}

func testCeiling(t *testing.T, k *cluster) {
	for name, text := range map[string]string{
		"a verb":            `{"namespaces":["apps"],"rules":[{"verbs":"delete","apiGroups":"","resources":"pods","resourceNames":"*"}],"cluster":[]}`,
		"a name":            `{"namespaces":["apps"],"rules":[{"verbs":"get","apiGroups":"","resources":"secrets","resourceNames":"*"}],"cluster":[]}`,
		"everything":        `{"namespaces":["apps"],"rules":[{"verbs":"*","apiGroups":"*","resources":"*","resourceNames":"*"}],"cluster":[]}`,
		"all sub-resources": `{"namespaces":["apps"],"rules":[{"verbs":"get","apiGroups":"","resources":"*/exec","resourceNames":"*"}],"cluster":[]}`,
		"another namespace": `{"namespaces":["apps","kube-system"],"rules":[` + pool[0] + `],"cluster":[]}`,
		"the cluster":       `{"namespaces":["apps"],"rules":[` + pool[0] + `],"cluster":[{"verbs":"delete","apiGroups":"","resources":"nodes","resourceNames":"*"}]}`,
	} {
		r := asked(t, k.provider, text)
		_, err := k.provider.Mint(t.Context(), r)
		if broker.CodeOf(err) != broker.BadScope {
			t.Errorf("%s that Stint does not hold: %v", name, err)
		}
		if o := end(t, k.provider, r); last(o) != broker.AlreadyDead {
			t.Errorf("%s: no token was made, and the outcome is %s", name, last(o))
		}
	}
	r := asked(t, k.provider, `{"namespaces":["nowhere"],"rules":[`+pool[0]+`],"cluster":[]}`)
	if _, err := k.provider.Mint(t.Context(), r); broker.CodeOf(err) != broker.BadScope && broker.CodeOf(err) != broker.BadTarget {
		t.Errorf("a namespace that is not there: %v", err)
	}
	end(t, k.provider, r)
}

// testLatency measures: when the token can do nothing any more, when it is refused, and
// when Stint says so.
func testLatency(t *testing.T, k *cluster) {
	r, m := mint(t, k.provider, some)
	token := m.Token.Reveal()
	act := deed{"", "GET", "/api/v1/namespaces/apps/configmaps", ""}
	if err := k.do(t.Context(), token, act, errRefused); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	o, err := k.provider.Revoke(t.Context(), broker.RevokeLease{Lease: r.Lease, Expires: r.Expires})
	if err != nil || o.State != broker.DisabledPendingKill || o.Until.Before(time.Now().Add(10*time.Second)) {
		t.Fatalf("%+v, %v", o, err)
	}
	await := func(d deed) time.Duration {
		for time.Since(began) < 30*time.Second {
			err := k.do(t.Context(), token, d, errRefused)
			if errors.Is(err, errRefused) {
				return time.Since(began)
			}
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Fatal("it is never refused")
		return 0
	}
	useless := await(act)
	refused := await(whoami)
	states := end(t, k.provider, r)
	said := time.Since(began)
	t.Logf("useless after %s, refused after %s, said to be revoked after %s", useless, refused, said)
	if useless > time.Second || refused > said || last(states) != broker.Revoked {
		t.Errorf("useless after %s, refused after %s, %s after %s", useless, refused, last(states), said)
	}
	if again := end(t, k.provider, r); last(again) != broker.AlreadyDead {
		t.Errorf("a second revocation comes to %s", last(again))
	}
	testbed.Report(t, "kubernetes-revocation",
		testbed.Row{Name: "the token can do nothing any more", Value: float64(useless.Milliseconds()), Unit: "ms", Target: 1000, Met: useless < time.Second},
		testbed.Row{Name: "API server refuses the token", Value: float64(refused.Milliseconds()), Unit: "ms", Target: 13000, Met: refused < 13*time.Second},
		testbed.Row{Name: "said to be revoked", Value: float64(said.Milliseconds()), Unit: "ms", Target: 20000, Met: said < 20*time.Second},
	)
}

// testOpenWatch pins what is said of streams: if it fails, things are better than the
// documentation has them.
func testOpenWatch(t *testing.T, k *cluster) {
	r, m := mint(t, k.provider, some)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.URL+"/api/v1/namespaces/apps/configmaps?watch=1&resourceVersion=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+m.Token.Reveal())
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(k.ca))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	res, err := transport.RoundTrip(req)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(err, res)
	}
	defer func() { _ = res.Body.Close() }()
	if states := end(t, k.provider, r); last(states) != broker.Revoked || !strings.Contains(states[len(states)-1].Note, "watch") {
		t.Errorf("%+v", states)
	}
	k.Call(t, http.MethodPost, "/api/v1/namespaces/apps/configmaps", map[string]any{"metadata": map[string]any{"name": "after"}})
	defer k.Call(t, http.MethodDelete, "/api/v1/namespaces/apps/configmaps/after", nil)
	in := bufio.NewReader(res.Body)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, `"after"`) {
			return
		}
	}
}

func testIdentity(t *testing.T, k *cluster) {
	r, m := mint(t, k.provider, some)
	c, err := claimsOf(m.Token.Reveal())
	if err != nil || c.ID == "" || m.Upstream["jti"] != c.ID || m.Upstream["account"] != "stint-accounts/stint-"+r.Lease {
		t.Errorf("%v, %v, %v", m.Upstream, c, err)
	}
	for _, path := range []string{"secrets/lease-", "serviceaccounts/stint-"} {
		o := k.Call(t, http.MethodGet, "/api/v1/namespaces/stint-accounts/"+path+r.Lease, nil)
		notes, _ := o["metadata"].(map[string]any)["annotations"].(map[string]any)
		if notes["stint.dev/subject"] != "pseudonym" || notes["stint.dev/agent"] != "claude-desktop" || notes["stint.dev/client"] != "https://client.example/id" {
			t.Errorf("%s: %v", path, notes)
		}
		if data, there := o["data"]; there {
			t.Errorf("%s holds %v", path, data)
		}
	}
	end(t, k.provider, r)
}

// testCrash ends mints at each of their calls, as a process that dies does.
func testCrash(t *testing.T, k *cluster) {
	l := k.liar(t)
	p := k.behind(t, l, k.settings())
	var tokens []string
	var orphans []broker.MintRequest
	for calls := 1; ; calls++ {
		r := asked(t, p, `{"namespaces":["apps","shop"],"rules":[`+pool[0]+`],"cluster":[`+widePool[0]+`]}`)
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		l.mu.Lock()
		l.change = func(method, path string, _ map[string]any) (string, bool) {
			if n++; n == calls {
				cancel() // this one arrives, and no other
			}
			return path, false
		}
		l.mu.Unlock()
		m, err := p.Mint(ctx, r)
		cancel()
		if m != nil {
			tokens = append(tokens, m.Token.Reveal())
		}
		orphans = append(orphans, r)
		if err == nil {
			break
		}
		if calls > 40 {
			t.Fatal(err)
		}
	}
	if len(orphans) < 9 {
		t.Fatalf("only %d calls", len(orphans))
	}
	kept, m := mint(t, k.provider, some)
	ended, err := k.provider.Describe().Sweep(t.Context(), func(lease string) bool { return lease == kept.Lease })
	if err != nil || len(ended) == 0 {
		t.Errorf("%d were ended: %v", len(ended), err)
	}
	if err := k.do(t.Context(), m.Token.Reveal(), whoami, errRefused); err != nil {
		t.Errorf("what is known was swept: %v", err)
	}
	for _, token := range tokens {
		if err := k.do(t.Context(), token, whoami, errRefused); !errors.Is(err, errRefused) {
			t.Errorf("an orphan is alive: %v", err)
		}
	}
	end(t, k.provider, kept)
	t.Logf("%d mints were cut off, %d tokens of theirs ended", len(orphans), len(ended))
}

// testOracle has the API server itself say what accounts may do that have been granted
// random grants.
func testOracle(t *testing.T, k *cluster) {
	r := rand.New(rand.NewPCG(1, 2))
	type held struct {
		grant   grant.Grant
		account string
	}
	var all []held
	for i := range 24 {
		h := held{randomGrant(t, k.provider, r), fmt.Sprintf("oracle-%d", i)}
		rendered, err := k.provider.Render(h.grant)
		if err != nil {
			t.Fatal(err)
		}
		o := object(t, string(rendered))
		k.give(t, h.account, "", o["cluster"].([]any))
		for _, n := range o["namespaces"].([]any) {
			k.give(t, h.account, n.(string), o["rules"].([]any))
		}
		all = append(all, h)
	}
	time.Sleep(2 * time.Second) // for the API server to notice them all
	pairs, below, missed := 0, 0, 0
	for _, a := range all {
		for _, b := range all {
			less := a.grant
			if r.IntN(2) == 0 {
				less = grant.Meet(a.grant, b.grant)
			}
			if less.IsNothing() {
				continue
			}
			ok, diffs := grant.Leq(less, b.grant)
			really := k.may(t, b.account, less)
			pairs++
			switch {
			case ok && !really:
				t.Errorf("%s is said to be below %s, and the API server refuses some of it", less, b.grant)
			case ok:
				below++
			case really:
				missed++
				t.Logf("not seen to be below: %s in %s: %v", less, b.grant, diffs)
			}
		}
	}
	t.Logf("%d pairs, %d below, %d that were not seen to be", pairs, below, missed)
	if below < pairs/10 || below == pairs {
		t.Error("which shows nothing")
	}
}

// give gives an account rules, by objects of this test's own.
func (k *cluster) give(t testing.TB, account, namespace string, rules []any) {
	kind := "Role"
	if namespace == "" {
		kind = "ClusterRole"
	}
	meta := map[string]any{"name": account, "namespace": namespace}
	k.Apply(t,
		map[string]any{"kind": kind, "metadata": meta, "rules": rules},
		map[string]any{
			"kind": kind + "Binding", "metadata": meta, "roleRef": map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": account},
			"subjects": []any{map[string]any{"kind": "User", "name": account, "apiGroup": "rbac.authorization.k8s.io"}},
		})
}

// may asks for each element of a grant whether a user may do it.
func (k *cluster) may(t testing.TB, user string, g grant.Grant) bool {
	t.Helper()
	_, namespaces := g.Dimension("namespaces")
	_, rules := g.Dimension("rules")
	_, wide := g.Dimension("cluster")
	for _, n := range namespaces {
		for _, a := range rules {
			if !k.allowed(t, user, n[0], a) {
				return false
			}
		}
	}
	for _, a := range wide {
		if !k.allowed(t, user, "", a) {
			return false
		}
	}
	return true
}

func (k *cluster) allowed(t testing.TB, user, namespace string, a grant.Atom) bool {
	t.Helper()
	spec := map[string]any{"user": user}
	if strings.HasPrefix(a[2], "/") {
		spec["nonResourceAttributes"] = map[string]any{"verb": a[0], "path": a[2]}
	} else {
		resource, sub, _ := strings.Cut(a[2], "/")
		name := a[3]
		if name == "*" {
			name = "any-name-at-all"
		}
		spec["resourceAttributes"] = map[string]any{"verb": a[0], "group": a[1], "resource": resource, "subresource": sub, "name": name, "namespace": namespace}
	}
	answer := k.Call(t, http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", map[string]any{"spec": spec})
	allowed, _ := answer["status"].(map[string]any)["allowed"].(bool)
	return allowed
}
