package main

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/stint-dev/stint/client/clienttest"
	"github.com/stint-dev/stint/internal/testbed"
)

// execPlugin is what a kubeconfig says of a program that has tokens.
type execPlugin struct {
	APIVersion      string   `yaml:"apiVersion"`
	Command         string   `yaml:"command"`
	Args            []string `yaml:"args"`
	Env             []struct{ Name, Value string }
	InteractiveMode string `yaml:"interactiveMode"`
}

// documentedPlugin is the user of a kubeconfig in docs/providers.md.
func documentedPlugin(t *testing.T) execPlugin {
	t.Helper()
	page, err := os.ReadFile("../../docs/providers.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(page), "### kubectl")
	_, after, _ = strings.Cut(after, "```yaml\n")
	text, _, found := strings.Cut(after, "```")
	var doc struct {
		Users []struct {
			User struct {
				Exec execPlugin `yaml:"exec"`
			} `yaml:"user"`
		} `yaml:"users"`
	}
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil || !found || len(doc.Users) != 1 {
		t.Fatalf("no user of a kubeconfig is documented: %v", err)
	}
	return doc.Users[0].User.Exec
}

// The entry of a kubeconfig that is documented works as it is written: what it names is
// run as kubectl would, and its token used.
func TestVendIsAnExecPluginOfKubectl(t *testing.T) {
	plugin := documentedPlugin(t)
	const version = "client.authentication.k8s.io/v1"
	if plugin.APIVersion != version || plugin.Command != "stint" || plugin.InteractiveMode != "Never" {
		t.Fatalf("%+v", plugin)
	}
	b := clienttest.Start(t, clienttest.Config{Scopes: map[string][]string{"k8s://prod/apps": {"pods:read"}}})
	dir := t.TempDir()
	call := filepath.Join(dir, "call.jwt")
	if err := os.WriteFile(call, []byte(b.Token(clienttest.TokenOptions{})), 0o600); err != nil {
		t.Fatal(err)
	}
	// What is this test's own: where Stint is, who the client is, and where its secrets are.
	own := strings.NewReplacer("file:/run/user/call.jwt", "file:"+call, "--client=apps-mcp", "--client="+b.Client().ID)
	for i := range plugin.Args {
		plugin.Args[i] = own.Replace(plugin.Args[i])
	}
	cmd := exec.Command(buildStint(t), plugin.Args...)
	cmd.Env = append(os.Environ(), "APPS_MCP_SECRET="+b.Client().Secret.Reveal(), `KUBERNETES_EXEC_INFO={"apiVersion":"`+version+`","kind":"ExecCredential","spec":{"interactive":false}}`)
	for _, e := range plugin.Env {
		if e.Name == envIssuer {
			e.Value = b.Client().Issuer
		}
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	out, said, code := built(t, cmd)
	var got struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Status     struct {
			Token   string    `json:"token"`
			Expires time.Time `json:"expirationTimestamp"`
		} `json:"status"`
	}
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || got.APIVersion != version || got.Kind != "ExecCredential" ||
		got.Status.Token == "" || time.Until(got.Status.Expires) > time.Hour || time.Until(got.Status.Expires) < time.Minute {
		t.Fatalf("%d, %v: %s", code, err, said)
	}
	t.Run("of a real kubectl", func(t *testing.T) { useWithKubectl(t, cmd.Path, plugin, cmd.Env) })
}

// useWithKubectl has kubectl run the plugin, and looks at the token that it sends.
func useWithKubectl(t *testing.T, stint string, plugin execPlugin, env []string) {
	kubectl := testbed.KubectlIfCached(t)
	tokens := make(chan string, 8)
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokens <- strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		_, _ = w.Write([]byte("ok"))
	}))
	defer api.Close()
	dir := t.TempDir()
	plugin.Command = stint
	config, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"contexts": []any{map[string]any{"name": "c", "context": map[string]any{"cluster": "c", "user": "u"}}},
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{
			"server": api.URL, "certificate-authority-data": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw}),
		}}},
		"users": []any{map[string]any{"name": "u", "user": map[string]any{"exec": map[string]any{
			"apiVersion": plugin.APIVersion, "command": plugin.Command, "args": plugin.Args, "interactiveMode": plugin.InteractiveMode,
		}}}},
	})
	file := filepath.Join(dir, "config")
	if err = errors.Join(err, os.WriteFile(file, config, 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(kubectl, "--kubeconfig", file, "get", "--raw", "/livez")
	cmd.Env = append(env, "HOME="+dir)
	if out, said, code := built(t, cmd); code != 0 || out != "ok" {
		t.Fatalf("%d: %s%s", code, out, said)
	}
	if token := <-tokens; strings.Count(token, ".") != 2 {
		t.Errorf("kubectl sends %q", token)
	}
}
