package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/client/clienttest"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/testbed/doubles"
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

// A whole Stint, without a key of AWS's: what signs the token, and the metadata by which
// MinIO checks it, are the server's own. Roles and tags are a double's.
func TestVendOfAWebIdentity(t *testing.T) {
	key, jwks := clientKey(t)
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	issuer := "http://" + address(testbed.FreePort(t))
	const role = "arn:aws:iam::123456789012:role/stint-data"
	a := doubles.NewAWS(t)
	a.Verify = func(token string) (map[string]any, error) { return verifiedBy(t, issuer, token) }
	a.Roles[role] = doubles.AWSRole{ID: "AROADATA", Longest: time.Hour}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, auth, _ := strings.Cut(string(text), "    auth: ")
	auth, _, _ = strings.Cut(auth, "\n")
	edit(t, file,
		auth, "{method: private_key_jwt, jwks_file: "+strings.TrimPrefix(kept(t, dir, "jwks.json", jwks), "file:")+"}", "credential: 15m", "credential: 30m",
		`["urn:ietf:params:oauth:grant-type:token-exchange"]`, "[client_credentials]", "targets: [https://api.example/notes]", "targets: [cloud]",
		"issuer: http://localhost:8080", "issuer: "+issuer,
		"", "\nproviders:\n  - name: cloud\n    kind: aws\n    settings: {role: \""+role+"\", region: eu-west-1, endpoint: \""+a.URL+"\", buckets: [warehouse]}\n")
	shortSocket(t, file)
	mapping := "resource: https://mcp.example/notes\nscopes:\n  files:read:\n    access: read\n    vend: {cloud: {s3: [{verbs: [get, list], bucket: warehouse, prefix: a/}], actions: []}}\n" +
		"rules:\n  - allow: [\"files:read\"]\n    to: {clients: [notes-mcp]}\n"
	for _, name := range []string{"example.yaml", "example.cedar"} {
		if err := os.Remove(filepath.Join(dir, "mappings", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "mappings", "notes.yaml"), []byte(mapping), 0o600); err != nil {
		t.Fatal(err)
	}
	servingAt(t, file, strings.TrimPrefix(issuer, "http://"))
	m := testbed.MinIO(t, testbed.MinIOSetup{IfCached: true, Discovery: issuer + "/.well-known/openid-configuration", ClientID: "sts.amazonaws.com", RolePolicy: "readwrite"})
	m.Bucket(t, "warehouse", "a/x", "a/b/x", "b/x")
	a.Behind(m.Addr, m.Role, m.Ask)
	vend := func(resource string) (map[string]string, string) {
		out, said, _ := typedAt(t, "", "vend", "--issuer", issuer, "--client", "notes-mcp", "--client-key", kept(t, dir, "key.pem", key), "--self",
			"--resource", resource, "--scope", "files:read", "--format", "credential-process")
		got := map[string]any{}
		_ = json.Unmarshal([]byte(out), &got)
		texts := map[string]string{}
		for k, v := range got {
			texts[k], _ = v.(string)
		}
		return texts, said
	}
	for resource, may := range map[string]map[string]int{
		"aws://cloud/s3/warehouse/a/": {"a/x": http.StatusOK, "a/b/x": http.StatusOK, "b/x": http.StatusForbidden},
		"s3://warehouse/a/b/":         {"a/x": http.StatusForbidden, "a/b/x": http.StatusOK, "b/x": http.StatusForbidden},
	} {
		got, said := vend(resource)
		k := testbed.AWSKeys{ID: got["AccessKeyId"], Secret: got["SecretAccessKey"], Session: got["SessionToken"]}
		if k.ID == "" {
			t.Fatalf("%s: %s", resource, said)
		}
		for object, want := range may {
			if status, answer, err := m.Do(t.Context(), k, http.MethodGet, "/warehouse/"+object, nil); status != want || err != nil {
				t.Errorf("%s: %s: %d, %v: %s", resource, object, status, err, answer)
			}
			if status, _, err := m.Do(t.Context(), k, http.MethodPut, "/warehouse/"+object, []byte("x")); status != http.StatusForbidden || err != nil {
				t.Errorf("%s: %s can be written: %d, %v", resource, object, status, err)
			}
		}
	}
	if _, said := vend("s3://archive/"); !strings.Contains(said, "target") {
		t.Errorf("a bucket of nobody's: %s", said)
	}
	s := a.Sessions()
	if len(s) != 2 || s[0].Tags["stint-client"] != "notes-mcp" || s[0].SourceIdentity == "" || s[0].Name != s[0].Tags["stint-lease"] {
		t.Errorf("%+v", s)
	}
}

// verifiedBy checks a token as somebody who knows an issuer by its metadata.
func verifiedBy(t *testing.T, issuer, token string) (map[string]any, error) {
	t.Helper()
	read := func(where string, into any) error {
		res, err := http.Get(where) //nolint:noctx // a test
		if err != nil {
			return err
		}
		defer func() { _ = res.Body.Close() }()
		return json.NewDecoder(res.Body).Decode(into)
	}
	var metadata struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	var keys jose.JSONWebKeySet
	if err := read(issuer+"/.well-known/openid-configuration", &metadata); err != nil {
		return nil, err
	}
	if err := read(metadata.JWKS, &keys); err != nil {
		return nil, err
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256, jose.ES256}) // EdDSA is none of AWS's
	if err != nil {
		return nil, err
	}
	claims := map[string]any{}
	if err := parsed.Claims(keys, &claims); err != nil {
		return nil, err
	}
	if claims["iss"] != metadata.Issuer {
		return nil, errors.New("another issuer")
	}
	return claims, nil
}
