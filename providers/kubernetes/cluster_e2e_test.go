//go:build e2e

package kubernetes_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/outbound"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/kubernetes"
	"github.com/stint-dev/stint/scopes/grant"
)

// cluster is a real API server on which Stint may lend, in apps and shop, as
// deploy/kubernetes/broker.yaml has it.
type cluster struct {
	*testbed.KubernetesServer
	token string // the broker's
	ca    string
	// provider makes accounts per lease.
	provider broker.Provider
	covers   func(owner, servant any) (bool, error)
	powerful sync.Once // the account default/powerful
}

// ceiling is what may be lent in apps and shop, besides what the file says.
const ceiling = `{"kind":"ClusterRole","metadata":{"name":"test-ceiling"},"rules":[
	{"apiGroups":[""],"resources":["secrets"],"verbs":["get"],"resourceNames":["web-tls"]},
	{"apiGroups":[""],"resources":["pods/exec"],"verbs":["create","get"]},
	{"apiGroups":["batch"],"resources":["*"],"verbs":["get","list"]}]}`

// wide is what may be lent in the whole cluster.
const wide = `{"kind":"ClusterRole","metadata":{"name":"test-wide"},"rules":[
	{"apiGroups":[""],"resources":["nodes"],"verbs":["get","list"]},
	{"nonResourceURLs":["/metrics","/logs/*"],"verbs":["get"]},
	{"apiGroups":["rbac.authorization.k8s.io"],"resources":["clusterroles","clusterrolebindings"],"verbs":["create","delete"]}]}`

func newCluster(t *testing.T) *cluster {
	k := &cluster{KubernetesServer: testbed.Kubernetes(t), covers: testbed.Covers(t)}
	ca, err := os.ReadFile(k.CA)
	if err != nil {
		t.Fatal(err)
	}
	k.ca = string(ca)
	k.install(t)
	for _, n := range []string{"apps", "shop"} {
		k.Namespace(t, n)
		for _, role := range []string{"stint-lends", "stint-ceiling", "test-ceiling"} {
			k.bind(t, n, role)
		}
	}
	k.Apply(t, object(t, ceiling), object(t, wide))
	k.bind(t, "", "test-wide")
	k.token = k.Token(t, "stint", "stint")
	k.provider = k.open(t, k.settings(), nil)
	return k
}

// install makes what deploy/kubernetes/broker.yaml says.
func (k *cluster) install(t testing.TB) {
	t.Helper()
	file, err := os.ReadFile("../../deploy/kubernetes/broker.yaml")
	if err != nil {
		t.Fatal(err)
	}
	in := yaml.NewDecoder(bytes.NewReader(file))
	for {
		var o map[string]any
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		k.Apply(t, o)
	}
}

// bind gives the broker's account a role in a namespace, or in all.
func (k *cluster) bind(t testing.TB, namespace, role string) {
	t.Helper()
	kind := "RoleBinding"
	if namespace == "" {
		kind = "ClusterRoleBinding"
	}
	k.Apply(t, map[string]any{
		"kind": kind, "metadata": map[string]any{"namespace": namespace, "name": role},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "namespace": "stint", "name": "stint"}},
	})
}

func object(t testing.TB, text string) (o map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// settings are those of accounts per lease.
func (k *cluster) settings() kubernetes.Config {
	return kubernetes.Config{
		Server: k.URL, CA: "file:ca", Token: "file:token", Accounts: "per_lease", Namespace: "stint-accounts", Entitlement: "none",
	}
}

// open opens a provider; change, if it is not nil, is made to what it is handed.
func (k *cluster) open(t testing.TB, cfg kubernetes.Config, change func(*upstream.Deps)) broker.Provider {
	t.Helper()
	d := upstream.Deps{
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Secret: func(_ context.Context, ref string) (secret.String, error) {
			return secret.New(map[string]string{"file:ca": k.ca, "file:token": k.token}[ref]), nil
		},
		HTTP: func(hosts []string, roots []byte) (*http.Client, error) {
			pool := x509.NewCertPool()
			if !pool.AppendCertsFromPEM(roots) {
				return nil, errors.New("no certificate")
			}
			return outbound.New(outbound.Policy{Hosts: hosts, Roots: pool}), nil
		},
	}
	if change != nil {
		change(&d)
	}
	p, err := kubernetes.Open(t.Context(), "prod", func(v any) error { *v.(*kubernetes.Config) = cfg; return nil }, d)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func parse(t testing.TB, p broker.Provider, text string) grant.Grant {
	t.Helper()
	g, err := p.Describe().Schema.Parse([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return g
}

// pool are rules that may be lent in apps and shop.
var pool = []string{
	`{"verbs":["get","list"],"apiGroups":"","resources":"pods","resourceNames":"*"}`,
	`{"verbs":["get"],"apiGroups":"","resources":"pods/log","resourceNames":"*"}`,
	`{"verbs":["get","update"],"apiGroups":"","resources":"configmaps","resourceNames":"settings"}`,
	`{"verbs":["get","watch","delete"],"apiGroups":"","resources":"configmaps","resourceNames":"*"}`,
	`{"verbs":["create"],"apiGroups":"","resources":"configmaps","resourceNames":"*"}`,
	`{"verbs":["get"],"apiGroups":"","resources":"secrets","resourceNames":"web-tls"}`,
	`{"verbs":["patch"],"apiGroups":"apps","resources":["deployments","deployments/scale"],"resourceNames":["web","db"]}`,
	`{"verbs":["list"],"apiGroups":"batch","resources":"*","resourceNames":"*"}`,
	`{"verbs":["list"],"apiGroups":"batch","resources":"jobs","resourceNames":"*"}`,
}

// widePool are those for the cluster.
var widePool = []string{
	`{"verbs":["list"],"apiGroups":"","resources":"nodes","resourceNames":"*"}`,
	`{"verbs":["get"],"nonResourceURLs":"/metrics"}`,
	`{"verbs":["get"],"nonResourceURLs":"/logs/*"}`,
}

func randomGrant(t testing.TB, p broker.Provider, r *rand.Rand) grant.Grant {
	some := func(from []string, least int) string {
		from = append([]string{}, from...)
		r.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
		return strings.Join(from[:least+r.IntN(len(from)-least+1)], ",")
	}
	cluster := ""
	if r.IntN(2) == 0 {
		cluster = some(widePool, 1)
	}
	return parse(t, p, fmt.Sprintf(`{"namespaces":[%s],"rules":[%s],"cluster":[%s]}`, some([]string{`"apps"`, `"shop"`}, 1), some(pool, 1), cluster))
}

// deed is something to do at the API server.
type deed struct {
	grant, method, path, body string
}

const configmap = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"settings"}}`

// acts are deeds, each with the least grant that allows it. What is not there is looked
// for by whoever may.
var acts = map[string]deed{
	"list pods of apps":        {in("apps", pool[0], "list"), "GET", "/api/v1/namespaces/apps/pods", ""},
	"list pods of shop":        {in("shop", pool[0], "list"), "GET", "/api/v1/namespaces/shop/pods", ""},
	"read a log":               {in("apps", pool[1], "get"), "GET", "/api/v1/namespaces/apps/pods/web/log", ""},
	"get the settings":         {in("shop", pool[2], "get"), "GET", "/api/v1/namespaces/shop/configmaps/settings", ""},
	"get another config map":   {in("shop", pool[3], "get"), "GET", "/api/v1/namespaces/shop/configmaps/others", ""},
	"make a config map":        {in("apps", pool[4], "create"), "POST", "/api/v1/namespaces/apps/configmaps?dryRun=All", configmap},
	"delete a config map":      {in("apps", pool[3], "delete"), "DELETE", "/api/v1/namespaces/apps/configmaps/others?dryRun=All", ""},
	"read a secret":            {in("apps", pool[5], "get"), "GET", "/api/v1/namespaces/apps/secrets/web-tls", ""},
	"read another secret":      {`{"namespaces":["apps"],"rules":[{"verbs":"get","apiGroups":"","resources":"secrets","resourceNames":"*"}],"cluster":[]}`, "GET", "/api/v1/namespaces/apps/secrets/others", ""},
	"list jobs":                {in("shop", pool[8], "list"), "GET", "/apis/batch/v1/namespaces/shop/jobs", ""},
	"list cron jobs":           {in("shop", pool[7], "list"), "GET", "/apis/batch/v1/namespaces/shop/cronjobs", ""},
	"list secrets of accounts": {`{"namespaces":["stint-accounts"],"rules":[{"verbs":"list","apiGroups":"","resources":"secrets","resourceNames":"*"}],"cluster":[]}`, "GET", "/api/v1/namespaces/stint-accounts/secrets", ""},
	"list nodes":               {"", "GET", "/api/v1/nodes", ""},
	"read metrics":             {"", "GET", "/metrics", ""},
}

// in is a grant of one verb of a rule in a namespace.
func in(namespace, rule, verb string) string {
	e := make(map[string]any)
	if err := json.Unmarshal([]byte(rule), &e); err != nil {
		panic(err)
	}
	e["verbs"] = verb
	one, _ := json.Marshal(e)
	return fmt.Sprintf(`{"namespaces":[%q],"rules":[%s],"cluster":[]}`, namespace, one)
}

// do does a deed as the holder of a token. The error of one that is refused wraps
// [providertest.ErrRefused].
func (k *cluster) do(ctx context.Context, token string, d deed, refused error) error {
	var body any
	if d.body != "" {
		body = json.RawMessage(d.body)
	}
	status, answer, err := k.Do(ctx, token, d.method, d.path, body)
	switch {
	case err != nil:
		return err
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return fmt.Errorf("status %d: %w", status, refused)
	case status < 300 || status == http.StatusNotFound:
		return nil
	}
	return fmt.Errorf("%s %s: %d %.300s", d.method, d.path, status, answer)
}

// remains is everything that Stint has made.
func (k *cluster) remains(t testing.TB) (left []string) {
	for _, path := range []string{
		"/api/v1/secrets", "/api/v1/serviceaccounts", "/apis/rbac.authorization.k8s.io/v1/roles", "/apis/rbac.authorization.k8s.io/v1/rolebindings",
		"/apis/rbac.authorization.k8s.io/v1/clusterroles", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
	} {
		items, _ := k.Call(t, http.MethodGet, path+"?labelSelector=app.kubernetes.io/managed-by=stint", nil)["items"].([]any)
		for _, i := range items {
			left = append(left, fmt.Sprintf("%s/%s", path, i.(map[string]any)["metadata"].(map[string]any)["name"]))
		}
	}
	return left
}

// liar stands before the API server and changes what is asked of it: everything that
// change reports to have changed is done as the administrator.
type liar struct {
	*httptest.Server
	mu     sync.Mutex
	change func(method, path string, body map[string]any) (newPath string, changed bool)
	// answer changes what TokenRequests are answered; nil: nothing.
	answer func(body map[string]any)
	after  func() // runs when a TokenRequest was answered; nil: nothing
}

func (k *cluster) liar(t testing.TB) *liar {
	l := &liar{}
	target, err := url.Parse(k.URL)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(k.ca))
	proxy := &httputil.ReverseProxy{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			l.mu.Lock()
			defer l.mu.Unlock()
			if r.Out.Body == nil {
				return
			}
			body, err := io.ReadAll(r.Out.Body)
			var o map[string]any
			if err != nil || l.change == nil || json.Unmarshal(body, &o) != nil {
				o = nil
			}
			if path, changed := "", false; o != nil {
				if path, changed = l.change(r.In.Method, r.In.URL.Path, o); changed {
					r.Out.URL.Path = path
					r.Out.Header.Set("Authorization", "Bearer "+k.Admin)
					body, _ = json.Marshal(o)
				}
			}
			r.Out.Body, r.Out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		},
		ModifyResponse: func(r *http.Response) error {
			if !strings.HasSuffix(r.Request.URL.Path, "/token") || r.StatusCode >= 300 {
				return nil
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.after != nil {
				l.after()
			}
			body, err := io.ReadAll(r.Body)
			var o map[string]any
			if err == nil && l.answer != nil && json.Unmarshal(body, &o) == nil {
				l.answer(o)
				body, err = json.Marshal(o)
			}
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			r.Header.Set("Content-Length", fmt.Sprint(len(body)))
			return err
		},
	}
	l.Server = httptest.NewTLSServer(proxy)
	t.Cleanup(l.Close)
	return l
}

// behind opens a provider that takes the liar for the API server.
func (k *cluster) behind(t testing.TB, l *liar, cfg kubernetes.Config) broker.Provider {
	cfg.Server = l.URL
	return k.open(t, cfg, func(d *upstream.Deps) {
		d.Secret = func(_ context.Context, ref string) (secret.String, error) {
			if ref == "file:ca" {
				return secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.Certificate().Raw}))), nil
			}
			return secret.New(k.token), nil
		}
	})
}
