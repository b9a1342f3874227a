package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/internal/testbed"
)

// The user that deploy/redis.acl gives Redis is the one that init names.
func TestAServerStartsWithWhatInitWroteForRedis(t *testing.T) {
	const password = "correct horse"
	acl, err := os.ReadFile("../../deploy/redis.acl")
	if err != nil {
		t.Fatal(err)
	}
	users := strings.ReplaceAll(string(acl), "STINT_PASSWORD_SHA256", fmt.Sprintf("%x", sha256.Sum256([]byte(password))))
	redis := testbed.Redis(t, testbed.RedisOptions{Config: users})
	issuer := publishing(t)
	dir := initialised(t, "--trust", issuer, "--redis", redis.Addr)
	file, secret := filepath.Join(dir, theConfig), filepath.Join(dir, "private", "redis")
	if err := os.WriteFile(secret, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	edit(t, file, "file:/run/secrets/stint-redis", "file:"+secret, "127.0.0.1:8080", "127.0.0.1:0", "127.0.0.1:9464", "127.0.0.1:0")
	shortSocket(t, file)
	wantStates(t, check(t.Context(), file, checkLive), map[string]string{
		"secrets": stateReady, "store": stateReady, "issuer " + issuer: stateReady, "listen.address": stateReady, "listen.ops": stateReady,
		"data": stateReady, "journal": "ready: is made",
	})
	serving(t, file)
	if r := check(t.Context(), file, checkLive); states(r)["store"] != stateReady {
		t.Errorf("beside the server: %v", states(r))
	}
}

// What deploy/vault/setup.sh prepares is what init describes.
func TestAServerStartsWithWhatInitWroteForVault(t *testing.T) {
	vault := testbed.VaultIfCached(t)
	prepare := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = append(vault.Env(), "PATH="+filepath.Dir(vault.Bin)+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	prepare("sh", "../../deploy/vault/setup.sh")
	issuer := publishing(t)
	dir := initialised(t, "--trust", issuer, "--vault", vault.Addr)
	file, id := filepath.Join(dir, theConfig), filepath.Join(dir, "secret-id")
	if err := os.WriteFile(id, []byte(prepare(vault.Bin, "write", "-f", "-field=secret_id", "auth/approle/role/stint/secret-id")), 0o600); err != nil {
		t.Fatal(err)
	}
	edit(t, file, "file:/run/secrets/stint-secret-id", "file:"+id, "127.0.0.1:8080", "127.0.0.1:0", "127.0.0.1:9464", "127.0.0.1:0",
		"00000000-0000-0000-0000-000000000000", prepare(vault.Bin, "read", "-field=role_id", "auth/approle/role/stint/role-id"),
		"https://mcp.example/notes/jwks.json", issuer+"/keys")
	shortSocket(t, file)
	wantStates(t, check(t.Context(), file, checkLive), map[string]string{
		"secrets": stateReady, "store": "ready: is made", "issuer " + issuer: stateReady, "keys of client notes-mcp": stateReady,
		"listen.address": stateReady, "listen.ops": stateReady, "data": stateReady, "journal": "ready: is made",
	})
	serving(t, file)
	var keys []api.SigningKey
	keysJSON(t, file, &keys, "list")
	var out api.RevokedKey
	if keysJSON(t, file, &out, "revoke", keys[0].ID); !out.New || out.Signs.ID == keys[0].ID {
		t.Errorf("got %+v", out)
	}
}
