package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/client/clienttest"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/s3"
)

// storeKeys are temporary keys of a MinIO, for what is below warehouse/a/, as the
// provider makes them.
func storeKeys(t *testing.T, m *testbed.MinIOServer) json.RawMessage {
	t.Helper()
	user := m.User(t, "stint", map[string]any{"Version": "2012-10-17", "Statement": []any{
		map[string]any{"Effect": "Allow", "Action": []string{"s3:*"}, "Resource": []string{"arn:aws:s3:::*"}},
	}})
	cfg := s3.Config{Endpoint: m.Addr, STS: "minio", AccessKey: "vault:id", SecretKey: "vault:key"}
	p, err := s3.Open(t.Context(), "store", func(v any) error { *v.(*s3.Config) = cfg; return nil }, upstream.Deps{
		Now:  time.Now,
		HTTP: func([]string, []byte) (*http.Client, error) { return &http.Client{Timeout: 10 * time.Second}, nil },
		Secret: func(_ context.Context, ref string) (secret.String, error) {
			return secret.New(map[string]string{"vault:id": user.ID, "vault:key": user.Secret}[ref]), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	g, err := p.Describe().Schema.ParseValue(map[string]any{"objects": []any{map[string]any{"actions": "get", "resource": "warehouse/a/"}}})
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	made, err := p.Mint(t.Context(), broker.MintRequest{
		Lease: "lease0123456789abcdefghi", Grant: g, Rendered: rendered, Expires: time.Now().Add(20 * time.Minute), Note: func([]byte) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return json.RawMessage(made.Document.Reveal())
}

// The profile is that of docs/providers.md.
func TestAWSsCommandLineUsesWhatIsVended(t *testing.T) {
	cli, err := exec.LookPath("aws")
	if err != nil {
		t.Skip("AWS's command line is not installed")
	}
	m := testbed.MinIO(t, testbed.MinIOSetup{IfCached: true})
	m.Bucket(t, "warehouse", "a/x", "b/x")
	const resource = "s3://store/warehouse/a/"
	b := clienttest.Start(t, clienttest.Config{
		Scopes: map[string][]string{resource: {"files:read"}}, Documents: map[string]json.RawMessage{resource: storeKeys(t, m)},
	})
	dir, bin := t.TempDir(), buildStint(t)
	token := filepath.Join(dir, "call.jwt")
	profile := "[profile stint]\nregion = us-east-1\ncredential_process = " + bin + " vend --subject-token file:" + token +
		" --resource " + resource + " --scope files:read --format credential-process\n"
	for file, text := range map[string]string{"config": profile, "call.jwt": b.Token(clienttest.TokenOptions{})} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, env []string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Env = append([]string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "AWS_CONFIG_FILE=" + filepath.Join(dir, "config"), "AWS_EC2_METADATA_DISABLED=true",
			envIssuer + "=" + b.Client().Issuer, envClient + "=" + b.Client().ID, envSecret + "=" + b.Client().Secret.Reveal()}, env...)
		for _, e := range os.Environ() {
			if strings.HasPrefix(e, "PYENV") {
				cmd.Env = append(cmd.Env, e)
			}
		}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return out.String(), err
	}
	ways := map[string]func(key string) (string, error){
		"by a profile": func(key string) (string, error) {
			return run(cli, nil, "--profile", "stint", "--endpoint-url", m.Addr, "s3", "cp", "s3://warehouse/"+key, "-")
		},
		"by its environment": func(key string) (string, error) {
			return run(bin, nil, "vend", "--subject-token", "file:"+token, "--resource", resource, "--scope", "files:read", "--",
				cli, "s3", "cp", "s3://warehouse/"+key, "-")
		},
	}
	for name, get := range ways {
		t.Run(name, func(t *testing.T) {
			if out, err := get("a/x"); err != nil || out != "a/x" {
				t.Errorf("%v: %s", err, out)
			}
			if out, err := get("b/x"); err == nil || !strings.Contains(out, "403") && !strings.Contains(out, "Forbidden") {
				t.Errorf("what was not granted: %v: %s", err, out)
			}
		})
	}
}
