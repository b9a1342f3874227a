package api_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/token"
)

// A pod authenticates by the token that a real API server made for its service account,
// by the keys that the server publishes.
func TestServiceAccountsOfARealCluster(t *testing.T) {
	t.Parallel()
	k := testbed.KubernetesIfCached(t)
	post := func(path string, body any) []byte {
		t.Helper()
		status, answer, err := k.Do(context.Background(), k.Admin, http.MethodPost, path, body)
		if err != nil || status/100 != 2 {
			t.Fatalf("%s: %d %s %v", path, status, answer, err)
		}
		return answer
	}
	named := func(kind, name string) map[string]any {
		return map[string]any{"apiVersion": "v1", "kind": kind, "metadata": map[string]any{"name": name}}
	}
	post("/api/v1/namespaces", named("Namespace", "acme"))
	for _, name := range []string{"reports", "other"} {
		post("/api/v1/namespaces/acme/serviceaccounts", named("ServiceAccount", name))
	}
	request := func(account string, audiences ...string) string {
		t.Helper()
		var made struct {
			Status struct {
				Token string `json:"token"`
			} `json:"status"`
		}
		spec := map[string]any{"expirationSeconds": 600}
		if len(audiences) > 0 {
			spec["audiences"] = audiences
		}
		answer := post("/api/v1/namespaces/acme/serviceaccounts/"+account+"/token", map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
		if err := json.Unmarshal(answer, &made); err != nil || made.Status.Token == "" {
			t.Fatalf("%s: %v", answer, err)
		}
		return made.Status.Token
	}
	binding := named("ClusterRoleBinding", "keys-for-everybody")
	binding["apiVersion"] = "rbac.authorization.k8s.io/v1"
	binding["roleRef"] = map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:service-account-issuer-discovery"}
	binding["subjects"] = []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated"}}
	post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must(os.ReadFile(k.CA))(t))
	config := func(cfg *token.Config) {
		cfg.Issuers = append(cfg.Issuers, token.Issuer{ID: k.URL, Algorithms: []string{"RS256"}, Types: map[string][]string{"jwt": {"JWT"}}, JWKSURI: k.URL + "/openid/v1/jwks"})
	}
	w := newTarget(t, options{
		issuers: "  - {issuer: \"" + k.URL + "\", accept: [client_assertion], max_subject_age: 1h, scopes: identity-only}\n",
		clients: `
  - id: pod
    auth: {method: kubernetes, issuer: "` + k.URL + `", service_account: "system:serviceaccount:acme:reports"}
    grant_types: [client_credentials]
    targets: [https://mcp.test/files]
    ceiling: "*"
`, tokens: config, roots: roots,
	})
	w.clock.move(time.Since(w.clock.Now())) // the cluster's clock is the machine's
	w.settle()
	good := request("reports", self)
	authenticated(t, "by its id", w.workload("pod", assertionType, good))
	authenticated(t, "by nothing but it", w.workload("", assertionType, good))
	for name, c := range map[string]struct{ assertion, reason string }{
		"for the cluster itself":     {request("reports"), "not for"},
		"for the cluster as well":    {request("reports", self, k.URL), "not for"},
		"another account's":          {request("other", self), "no client is"},
		"with another's signature":   {good[:len(good)-8] + "AAAAAAAA", "bad_token"},
		"the token of a bootstrap":   {k.Admin, "bad_token"},
		"a token that is a bundle's": {string(must(os.ReadFile(k.CA))(t)), "bad_token"},
	} {
		w.refused(t, name, w.workload("pod", assertionType, c.assertion), badLogin(c.reason))
	}
	w.clock.move(time.Hour)
	w.settle()
	w.refused(t, "an hour later", w.workload("pod", assertionType, good), badLogin("expired"))
}
