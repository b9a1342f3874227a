package testbed

import (
	"encoding/json"
	"net/http"
	"testing"
)

func TestKubernetes(t *testing.T) {
	k := KubernetesIfCached(t)
	k.Namespace(t, "apps")
	k.Account(t, "apps", "web")
	k.OpenDiscovery(t)
	token := k.Token(t, "apps", "web", "stint")
	if status, _, err := k.Do(t.Context(), token, http.MethodGet, "/api", nil); err != nil || status != http.StatusUnauthorized {
		t.Errorf("a token for somebody else is answered %d, %v", status, err)
	}
	token = k.Token(t, "apps", "web")
	if status, _, err := k.Do(t.Context(), token, http.MethodGet, "/api/v1/namespaces/apps/pods", nil); err != nil || status != http.StatusForbidden {
		t.Errorf("an account without a role is answered %d, %v", status, err)
	}
	var metadata struct {
		Issuer string `json:"issuer"`
	}
	status, answer, err := k.Do(t.Context(), "", http.MethodGet, "/.well-known/openid-configuration", nil)
	if err != nil || status != http.StatusOK || json.Unmarshal(answer, &metadata) != nil || metadata.Issuer != k.URL {
		t.Errorf("metadata: %d %s %v", status, answer, err)
	}
}
