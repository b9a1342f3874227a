package testbed

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var kubernetesBuilt = built{dir: "kube-apiserver", takes: "12 minutes"}

// KubernetesServer is a real API server, with its etcd, that was started for a test:
// RBAC, no controllers and no nodes. It is the issuer of its service accounts' tokens.
type KubernetesServer struct {
	*Process
	URL   string // https://127.0.0.1:PORT, and the issuer
	CA    string // file of the certificate authority
	Admin string // the token of somebody who may do everything
	// Version is its module's, such as 1.37.2: it was built without one.
	Version string

	client *http.Client
}

// Kubernetes starts an API server, building it first if it has to. more are flags.
func Kubernetes(t testing.TB, more ...string) *KubernetesServer {
	t.Helper()
	program := kubernetesBuilt.program(t, "kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver")
	store := etcd(t)
	dir, port := t.TempDir(), FreePort(t)
	pool := x509.NewCertPool()
	pool.AddCert(certificate(t, dir))
	k := &KubernetesServer{
		URL: fmt.Sprintf("https://127.0.0.1:%d", port), CA: filepath.Join(dir, "ca.pem"), Admin: "admin-token",
		client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 8,
		}},
	}
	t.Cleanup(k.client.CloseIdleConnections)
	signer, tokens := filepath.Join(dir, "accounts.pem"), filepath.Join(dir, "tokens.csv")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	accounts := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	err = errors.Join(os.WriteFile(signer, accounts, 0o600), os.WriteFile(tokens, []byte(k.Admin+",admin,admin,system:masters\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append([]string{
		"--etcd-servers=" + store, "--bind-address=127.0.0.1", fmt.Sprint("--secure-port=", port), "--cert-dir=" + dir,
		"--tls-cert-file=" + filepath.Join(dir, "cert.pem"), "--tls-private-key-file=" + filepath.Join(dir, "key.pem"),
		"--service-account-issuer=" + k.URL, "--service-account-signing-key-file=" + signer, "--service-account-key-file=" + signer,
		"--authorization-mode=RBAC", "--token-auth-file=" + tokens, "--service-cluster-ip-range=10.0.0.0/24",
		"--endpoint-reconciler-type=none", "--profiling=false",
	}, more...)...)
	cmd.Dir = dir
	k.Process = Start(t, cmd, func() error {
		status, answer, err := k.Do(context.Background(), k.Admin, http.MethodGet, "/readyz", nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d: %.200s", status, answer)
		}
		return err
	})
	module, err := os.ReadFile(filepath.Join(kubernetesBuilt.files(t), "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(module), "k8s.io/kubernetes v")
	version, _, _ := strings.Cut(after, "\n")
	k.Version = strings.Fields(version)[0]
	return k
}

// KubernetesIfCached is [Kubernetes], but skips the test rather than build for minutes;
// with STINT_REQUIRE_SERVERS=all it builds all the same.
func KubernetesIfCached(t testing.TB, more ...string) *KubernetesServer {
	t.Helper()
	kubernetesBuilt.skipUnbuilt(t, "kube-apiserver")
	return Kubernetes(t, more...)
}

// KubectlIfCached returns kubectl, of the same version; one that would have to be built
// first skips the test, unless STINT_REQUIRE_SERVERS=all.
func KubectlIfCached(t testing.TB) string {
	t.Helper()
	kubernetesBuilt.skipUnbuilt(t, "kubectl")
	return kubernetesBuilt.program(t, "kubectl", "k8s.io/kubernetes/cmd/kubectl")
}

// etcd starts what an API server keeps its objects in, and returns its address.
func etcd(t testing.TB) string {
	t.Helper()
	program := Find(t, "apt-get install etcd-server", "etcd")
	client, peer := fmt.Sprint("http://127.0.0.1:", FreePort(t)), fmt.Sprint("http://127.0.0.1:", FreePort(t))
	cmd := exec.Command(program, "--data-dir="+t.TempDir(), "--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer,
		"--logger=zap", "--log-level=error")
	Start(t, cmd, func() error {
		res, err := http.Get(client + "/health")
		if err != nil {
			return err
		}
		defer func() { _ = res.Body.Close() }()
		if res.StatusCode != http.StatusOK {
			return errors.New(res.Status)
		}
		return nil
	})
	return client
}

// Do asks the server as the holder of a token; with none, as nobody in particular.
func (k *KubernetesServer) Do(ctx context.Context, token, method, path string, body any) (status int, answer []byte, err error) {
	var data []byte
	if body != nil {
		if data, err = json.Marshal(body); err != nil {
			return 0, nil, err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, k.URL+path, bytes.NewReader(data))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Accept", "application/json")
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := k.client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err = io.ReadAll(res.Body)
	return res.StatusCode, answer, err
}

// Call asks the server as the administrator, and fails the test if it refuses.
func (k *KubernetesServer) Call(t testing.TB, method, path string, body any) map[string]any {
	t.Helper()
	status, answer, err := k.Do(context.Background(), k.Admin, method, path, body)
	if err != nil || status >= 300 {
		t.Fatalf("%s %s: %d %.500s %v", method, path, status, answer, err)
	}
	var out map[string]any
	if err := json.Unmarshal(answer, &out); err != nil {
		t.Fatalf("%s %s: %.200s: %v", method, path, answer, err)
	}
	return out
}

// Namespace makes a namespace.
func (k *KubernetesServer) Namespace(t testing.TB, name string) {
	t.Helper()
	k.Call(t, http.MethodPost, "/api/v1/namespaces", map[string]any{"metadata": map[string]any{"name": name}})
}

// Account makes a service account.
func (k *KubernetesServer) Account(t testing.TB, namespace, name string) {
	t.Helper()
	k.Call(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts", map[string]any{"metadata": map[string]any{"name": name}})
}

// Token makes a token of a service account, for an hour. Without audiences it is for
// the API server.
func (k *KubernetesServer) Token(t testing.TB, namespace, account string, audiences ...string) string {
	t.Helper()
	made := k.Call(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts/"+account+"/token", map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
		"spec": map[string]any{"audiences": audiences, "expirationSeconds": 3600},
	})
	token, _ := made["status"].(map[string]any)["token"].(string)
	if token == "" {
		t.Fatalf("no token of %s/%s", namespace, account)
	}
	return token
}

// OpenDiscovery lets everybody read the issuer's metadata and keys, at
// /.well-known/openid-configuration and /openid/v1/jwks, as clusters do whose tokens
// others verify.
func (k *KubernetesServer) OpenDiscovery(t testing.TB) {
	t.Helper()
	k.Call(t, http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", map[string]any{
		"metadata": map[string]any{"name": "open-discovery"},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:service-account-issuer-discovery"},
		"subjects": []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated"}},
	})
}

// Apply makes objects, as an administrator's files have them.
func (k *KubernetesServer) Apply(t testing.TB, objects ...map[string]any) {
	t.Helper()
	for _, o := range objects {
		meta, _ := o["metadata"].(map[string]any)
		namespace, _ := meta["namespace"].(string)
		at := map[string]string{
			"Namespace": "/api/v1/namespaces", "ServiceAccount": "/api/v1/namespaces/" + namespace + "/serviceaccounts",
			"Role":               "/apis/rbac.authorization.k8s.io/v1/namespaces/" + namespace + "/roles",
			"RoleBinding":        "/apis/rbac.authorization.k8s.io/v1/namespaces/" + namespace + "/rolebindings",
			"ClusterRole":        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
			"ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
		}[fmt.Sprint(o["kind"])]
		if at == "" {
			t.Fatalf("cannot make a %v", o["kind"])
		}
		k.Call(t, http.MethodPost, at, o)
	}
}
