package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/testbed"
)

// What comes of AWS-shaped fields on their way from a real Vault. The engine is KV: the
// one for AWS needs an AWS. Its keys cannot be taken back, as those of STS.
func TestVendOfWhatVaultHolds(t *testing.T) {
	vault := testbed.VaultIfCached(t)
	setUp := func(args ...string) {
		t.Helper()
		cmd := exec.Command("../../deploy/vault/setup.sh", args...)
		cmd.Env = vault.Env()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("setup.sh %q: %v\n%s", args, err, out)
		}
	}
	setUp()
	setUp("lease", "deployer", "clouds/deployer")
	data := func(method, path string) map[string]any {
		return vault.Call(t, method, path, nil)["data"].(map[string]any)
	}
	ends := time.Now().Add(5 * time.Minute).UTC().Truncate(time.Second)
	vault.Call(t, http.MethodPost, "sys/mounts/clouds", map[string]any{"type": "kv", "options": map[string]string{"version": "1"}})
	vault.Call(t, http.MethodPut, "clouds/deployer", map[string]any{
		"access_key": "ASIAEXAMPLE", "secret_key": "of the lease", "security_token": "of the session", "expiration": ends.Format(time.RFC3339),
	})

	key, jwks := clientKey(t)
	dir := initialised(t, "--vault", vault.Addr)
	file := filepath.Join(dir, theConfig)
	issuer := "http://" + address(testbed.FreePort(t))
	edit(t, file,
		"file:/run/secrets/stint-secret-id", kept(t, dir, "secret-id", data(http.MethodPut, "auth/approle/role/stint/secret-id")["secret_id"].(string)),
		"00000000-0000-0000-0000-000000000000", data(http.MethodGet, "auth/approle/role/stint/role-id")["role_id"].(string),
		"jwks_uri: https://mcp.example/notes/jwks.json", "jwks_file: "+strings.TrimPrefix(kept(t, dir, "jwks.json", jwks), "file:"),
		`["urn:ietf:params:oauth:grant-type:token-exchange"]`, "[client_credentials]", "targets: [https://api.example/notes]", "targets: [clouds]",
		"issuer: http://localhost:8080", "issuer: "+issuer,
		"", "\nproviders:\n  - name: clouds\n    kind: vault\n    settings:\n      roles:\n"+
			"        deployer: {mount: clouds, path: deployer, policy: stint-deployer, reads: true, revoke: none, ends: expiration}\n")
	shortSocket(t, file)
	mapping := "resource: https://mcp.example/notes\nscopes:\n  deploy: {access: read, vend: {clouds: {role: deployer, mount: clouds}}}\nrules:\n  - allow: [deploy]\n    to: {clients: [notes-mcp]}\n"
	for _, name := range []string{"example.yaml", "example.cedar"} {
		if err := os.Remove(filepath.Join(dir, "mappings", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "mappings", "notes.yaml"), []byte(mapping), 0o600); err != nil {
		t.Fatal(err)
	}
	servingAt(t, file, strings.TrimPrefix(issuer, "http://"))
	args := []string{
		"vend", "--issuer", issuer, "--client", "notes-mcp", "--client-key", kept(t, dir, "key.pem", key), "--self",
		"--resource", "vault://clouds/deployer", "--scope", "deploy",
	}
	out, said, code := typedAt(t, "", append(args, "--format", "credential-process")...)
	var got struct {
		Version                                    int
		AccessKeyID, SecretAccessKey, SessionToken string
		Expiration                                 time.Time
	}
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || got.Version != 1 || got.AccessKeyID != "ASIAEXAMPLE" ||
		got.SecretAccessKey != "of the lease" || got.SessionToken != "of the session" || got.Expiration.After(ends) || ends.Sub(got.Expiration) > 10*time.Second {
		t.Errorf("%d, %v: %s%s", code, err, out, said)
	}
	out, said, code = typedAt(t, "", append(args, "--", "sh", "-c", `echo "$AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY $AWS_SESSION_TOKEN"`)...)
	if code != 0 || said != "" || out != "ASIAEXAMPLE of the lease of the session\n" {
		t.Errorf("%d: %s%s", code, out, said)
	}
}

// clientKey makes a key for a client, in PEM, and what others know of it.
func clientKey(t *testing.T) (private, jwks string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err1 := x509.MarshalPKCS8PrivateKey(key)
	point, err2 := key.PublicKey.Bytes()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	text := base64.RawURLEncoding.EncodeToString
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","x":%q,"y":%q}]}`, text(point[1:33]), text(point[33:]))
}
