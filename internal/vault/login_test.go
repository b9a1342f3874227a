package vault_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/vault"
)

// setUp runs deploy/vault/setup.sh against v.
func setUp(t testing.TB, v *testbed.VaultServer, args ...string) {
	t.Helper()
	script, err := filepath.Abs("../../deploy/vault/setup.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(script, args...)
	cmd.Env, cmd.Dir = v.Env(), t.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("setup.sh %v: %v\n%s", args, err, out)
	}
}

// asStint is the configuration of a store in v, by AppRole, as setup.sh has
// prepared it.
func asStint(t testing.TB, v *testbed.VaultServer) vault.Config {
	t.Helper()
	role := v.Call(t, http.MethodGet, "auth/approle/role/stint/role-id", nil)["data"].(map[string]any)["role_id"].(string)
	id := v.Call(t, http.MethodPut, "auth/approle/role/stint/secret-id", nil)["data"].(map[string]any)["secret_id"].(string)
	return vault.Config{Kind: vault.KindVault, Vault: &vault.ServerConfig{
		Address: v.Addr, CA: v.CA, Auth: vault.AuthConfig{Method: "approle", RoleID: role, SecretID: "file:" + write(t, "secret-id", id)},
	}}
}

// tune changes the role that stint logs in by.
func tune(t testing.TB, v *testbed.VaultServer, settings map[string]any) {
	t.Helper()
	v.Call(t, http.MethodPost, "auth/approle/role/stint", settings)
}

// endTokens ends every token but root's, behind everybody's back.
func endTokens(t testing.TB, v *testbed.VaultServer) {
	t.Helper()
	for _, a := range accessors(t, v) {
		data, _ := v.Call(t, http.MethodPost, "auth/token/lookup-accessor", map[string]any{"accessor": a})["data"].(map[string]any)
		if data["display_name"] != "root" && data["display_name"] != "token" {
			v.Call(t, http.MethodPost, "auth/token/revoke-accessor", map[string]any{"accessor": a})
		}
	}
}

func accessors(t testing.TB, v *testbed.VaultServer) []string {
	t.Helper()
	var out []string
	for _, a := range v.Call(t, "LIST", "auth/token/accessors", nil)["data"].(map[string]any)["keys"].([]any) {
		out = append(out, a.(string))
	}
	return out
}

func logins(d *deps) int { return strings.Count(d.log.String(), "logged in to vault") }

func TestThePolicyInDeployIsEnoughAndNoMore(t *testing.T) {
	t.Parallel()
	v := testbed.VaultIfCached(t)
	setUp(t, v)
	setUp(t, v) // it may be run again
	v.Call(t, http.MethodPut, "secret/data/stint/github/app", map[string]any{"data": map[string]any{"key": "k", "id": 7, "more": []int{1}}})
	v.Call(t, http.MethodPut, "secret/data/other/app", map[string]any{"data": map[string]string{"key": "k"}})
	s, _, d := open(t, asStint(t, v))
	ctx := t.Context()

	wantRead(t, s, "github/app", fields("key", "k", "id", "7", "more", "[1]"), 1)
	if names, err := s.List(ctx, ""); err != nil || len(names) != 1 || names[0] != "github/" {
		t.Errorf("listed %q, %v", names, err)
	}
	if _, err := vault.Key(ctx, s, vault.PathClientSecrets); err != nil {
		t.Error(err)
	}
	box := sealer(t, s, time.Now)
	before := seal(t, box, "text", "context")
	if _, err := box.Rotate(ctx); err != nil {
		t.Error(err)
	}
	wantOpen(t, box, before, "text", "context")
	for seq := range uint64(2) {
		if err := vault.NewAnchor(s).SaveHead(ctx, head(1, seq+1, 1)); err != nil {
			t.Error(err)
		}
	}
	if err := s.Ready(ctx); err != nil {
		t.Error(err)
	}

	_, err1 := s.Write(ctx, "github/app", fields("key", "other"), 1)
	_, err2 := s.Write(ctx, "new", fields("key", "other"), 0)
	for i, err := range []error{err1, err2, s.Delete(ctx, "keys/sealing"), s.Delete(ctx, "github/app")} {
		wantText(t, err, "vault answers 403")
		if broker.CodeOf(err) != broker.Internal {
			t.Errorf("%d: %v", i, err)
		}
	}
	outside := asStint(t, v)
	outside.Vault.Prefix = "other"
	o, _, other := open(t, outside)
	for range 3 {
		_, _, err := o.Read(ctx, "app")
		wantText(t, err, "vault answers 403")
		other.clock.Move(time.Minute) // the token is old enough to be doubted
	}
	if logins(d) != 1 || logins(other) != 1 {
		t.Errorf("logged in %d and %d times: want of permission is no reason to", logins(d), logins(other))
	}
}

func TestATokenIsRenewedBeforeItRunsOut(t *testing.T) {
	t.Parallel()
	v := testbed.VaultIfCached(t)
	setUp(t, v)
	tune(t, v, map[string]any{"token_ttl": "2s", "token_max_ttl": "1h"})
	s, _, d := open(t, asStint(t, v))
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err := s.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := logins(d); n != 1 {
		t.Errorf("logged in %d times", n)
	}
}

func TestATokenThatCannotBeRenewedIsReplacedBeforeItRunsOut(t *testing.T) {
	for name, settings := range map[string]map[string]any{
		"as its longest life draws near": {"token_ttl": "3s", "token_max_ttl": "7s"},
		"as it is of a kind that is not": {"token_ttl": "4s", "token_max_ttl": "1h", "token_type": "batch"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := testbed.VaultIfCached(t)
			setUp(t, v)
			tune(t, v, settings)
			s, _, d := open(t, asStint(t, v))
			for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if err := s.Ready(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if n := logins(d); n < 2 || n > 8 {
				t.Errorf("logged in %d times", n)
			}
			for line := range strings.Lines(d.log.String()) {
				// On a busy machine a renewal can come late; then it has to log in at once.
				if strings.Contains(line, "level=WARN") && !strings.Contains(line, "past the max TTL") {
					t.Error(line)
				}
			}
		})
	}
}

func TestATokenRevokedBehindOurBackIsReplaced(t *testing.T) {
	t.Parallel()
	v := testbed.VaultIfCached(t)
	setUp(t, v)
	s, _, d := open(t, asStint(t, v))
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	endTokens(t, v)
	// A token that is new is not doubted.
	if _, err := vault.NewAnchor(s).LoadHead(t.Context()); err == nil {
		t.Fatal("the token was not ended")
	}
	if logins(d) != 1 {
		t.Fatalf("logged in %d times", logins(d))
	}
	d.clock.Move(2 * time.Second)
	errs := make(chan error)
	for range 20 {
		go func() { errs <- s.Ready(t.Context()) }()
	}
	for range 20 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if logins(d) != 2 {
		t.Errorf("logged in %d times", logins(d))
	}
}

func TestTheTokenIsHandedBackAtTheEnd(t *testing.T) {
	t.Parallel()
	v := testbed.VaultIfCached(t)
	setUp(t, v)
	before := len(accessors(t, v))
	s, _, _ := open(t, asStint(t, v))
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(accessors(t, v)); n != before+1 {
		t.Fatalf("%d tokens", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(accessors(t, v)); n != before {
		t.Errorf("%d tokens are left", n-before)
	}
}

func TestASealedVaultIsAnErrorUntilItIsUnsealed(t *testing.T) {
	t.Parallel()
	v := testbed.StartVault(t, testbed.VaultSetup{IfCached: true, TLS: true})
	setUp(t, v)
	cfg := asStint(t, v)
	s, _, d := open(t, cfg)
	if _, err := vault.Key(t.Context(), s, vault.PathAuditIndex); err != nil {
		t.Fatal(err)
	}
	fresh, _, d2 := open(t, cfg) // has no login yet
	down := func() {
		t.Helper()
		for _, s := range []vault.Store{s, fresh} {
			began := time.Now()
			_, _, err := s.Read(t.Context(), vault.PathAuditIndex)
			wantCode(t, err, broker.Unavailable)
			wantCode(t, s.Ready(t.Context()), broker.Unavailable)
			_, err = s.Write(t.Context(), vault.PathAuditIndex, fields("x", "y"), 1)
			wantCode(t, err, broker.Unavailable)
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("it took %s to say so", took)
			}
		}
	}
	up := func() {
		t.Helper()
		for i, s := range []vault.Store{s, fresh} {
			[]*deps{d, d2}[i].clock.Move(time.Minute) // past the wait after a failed login
			eventually(t, "read again", func() error {
				_, err := vault.Key(t.Context(), s, vault.PathAuditIndex)
				return err
			})
		}
	}
	v.Seal(t)
	down()
	v.Unseal(t)
	up()
	v.Stop()
	down()
	v.Restart(t)
	down() // it starts sealed
	v.Unseal(t)
	up()
}

func TestNoRequestWaitsLongerThanItMay(t *testing.T) {
	t.Parallel()
	v := testbed.VaultIfCached(t)
	setUp(t, v)
	cfg := asStint(t, v)
	cfg.Vault.Timeout = vault.Duration(700 * time.Millisecond)
	s, _, d := open(t, cfg)
	fresh, _, _ := open(t, cfg)
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.Signal(syscall.SIGSTOP)
	t.Cleanup(func() { v.Signal(syscall.SIGCONT) })
	eventually(t, "it stands still", func() error {
		if s.Ready(within(t, 200*time.Millisecond)) == nil {
			return errors.New("it still answers")
		}
		return nil
	})
	for name, s := range map[string]vault.Store{"with a token": s, "without": fresh} {
		for what, bound := range map[string]time.Duration{"its context": 100 * time.Millisecond, "its timeout": 2 * time.Second} {
			began := time.Now()
			err := s.Ready(within(t, bound))
			wantCode(t, err, broker.Unavailable)
			if took := time.Since(began); took > bound+500*time.Millisecond {
				t.Errorf("%s, %s: %s", name, what, took)
			}
		}
	}
	v.Signal(syscall.SIGCONT)
	d.clock.Move(time.Minute)
	eventually(t, "serves again", func() error { return s.Ready(t.Context()) })
}

func TestAfterALoginThatFailedTheNextOneIsWaitedFor(t *testing.T) {
	t.Parallel()
	v := testbed.VaultIfCached(t)
	setUp(t, v)
	cfg := asStint(t, v)
	good := strings.TrimPrefix(cfg.Vault.Auth.SecretID, "file:")
	cfg.Vault.Auth.SecretID = "file:" + write(t, "wrong", "wr0ng")
	s, _, d := open(t, cfg)
	err := s.Ready(t.Context())
	wantCode(t, err, broker.Unavailable)
	wantText(t, err, "invalid role or secret ID")
	for range 100 {
		wantCode(t, s.Ready(t.Context()), broker.Unavailable)
	}
	if e := broker.AsError(s.Ready(t.Context())); e.RetryAfter <= 0 || e.RetryAfter > 30*time.Second {
		t.Errorf("come again after %s", e.RetryAfter)
	}
	if n := strings.Count(d.log.String(), "level=WARN"); n != 1 {
		t.Errorf("tried %d times", n)
	}
	// The secret id is read anew for each login.
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(strings.TrimPrefix(cfg.Vault.Auth.SecretID, "file:"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	d.clock.Move(time.Minute)
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// jwtLogin mounts Vault's JWT method at a path and returns a maker of tokens.
func jwtLogin(t *testing.T, v *testbed.VaultServer, mount string) func(sub string) string {
	t.Helper()
	key, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, err2 := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	v.Call(t, http.MethodPost, "sys/auth/"+mount, map[string]any{"type": "jwt"})
	v.Call(t, http.MethodPost, "auth/"+mount+"/config", map[string]any{"jwt_validation_pubkeys": []string{public}})
	v.Call(t, http.MethodPost, "auth/"+mount+"/role/stint", map[string]any{
		"role_type": "jwt", "bound_audiences": []string{"vault"}, "user_claim": "sub", "bound_subject": "stint",
		"token_policies": []string{"stint"}, "token_no_default_policy": true, "token_ttl": "20m",
	})
	return func(sub string) string {
		part := func(v any) string {
			text, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			return base64.RawURLEncoding.EncodeToString(text)
		}
		text := part(map[string]string{"alg": "ES256", "typ": "JWT"}) + "." + part(map[string]any{
			"sub": sub, "aud": "vault", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
		})
		sum := sha256.Sum256([]byte(text))
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		return text + "." + base64.RawURLEncoding.EncodeToString(signature)
	}
}

func TestTheTokenFileIsReadForEachLogin(t *testing.T) {
	t.Parallel()
	v := testbed.VaultIfCached(t)
	setUp(t, v)
	// Vault asks a cluster about service accounts, but is asked by us as with JWTs.
	for _, method := range []string{"jwt", "kubernetes"} {
		t.Run(method, func(t *testing.T) {
			mount := "ci/" + method
			token := jwtLogin(t, v, mount)
			file := write(t, "token", token("somebody-else"))
			s, _, d := open(t, vault.Config{Kind: vault.KindVault, Vault: &vault.ServerConfig{
				Address: v.Addr, Auth: vault.AuthConfig{Method: method, Mount: mount, Role: "stint", TokenFile: file},
			}})
			wantCode(t, s.Ready(t.Context()), broker.Unavailable)
			for range 2 { // it rotates
				if err := os.WriteFile(file, []byte(token("stint")+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				d.clock.Move(time.Minute)
				if err := s.Ready(t.Context()); err != nil {
					t.Fatal(err)
				}
				endTokens(t, v)
				d.clock.Move(2 * time.Second)
			}
			if err := os.WriteFile(file, []byte("\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := s.Ready(t.Context())
			wantCode(t, err, broker.Unavailable)
			wantText(t, err, "no token: it is empty")
		})
	}
}

func TestATokenThatSomethingElseKeepsAliveIsTakenAndNotEnded(t *testing.T) {
	t.Parallel()
	v := testbed.VaultIfCached(t)
	setUp(t, v)
	give := func() string {
		return v.Call(t, http.MethodPost, "auth/token/create", map[string]any{
			"policies": []string{"stint"}, "no_default_policy": true, "ttl": "20m", "display_name": "given",
		})["auth"].(map[string]any)["client_token"].(string)
	}
	file := write(t, "token", give())
	s, _, d := open(t, vault.Config{Kind: vault.KindVault, Vault: &vault.ServerConfig{
		Address: v.Addr, Auth: vault.AuthConfig{Method: "token", TokenFile: file},
	}})
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, a := range accessors(t, v) {
		data, _ := v.Call(t, http.MethodPost, "auth/token/lookup-accessor", map[string]any{"accessor": a})["data"].(map[string]any)
		if data["display_name"] == "token-given" {
			v.Call(t, http.MethodPost, "auth/token/revoke-accessor", map[string]any{"accessor": a})
		}
	}
	d.clock.Move(2 * time.Second)
	wantCode(t, s.Ready(t.Context()), broker.Unavailable) // the file still has the old one
	if err := os.WriteFile(file, []byte(give()), 0o600); err != nil {
		t.Fatal(err)
	}
	d.clock.Move(time.Minute)
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := len(accessors(t, v))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(accessors(t, v)); n != left {
		t.Error("a token that was given to us was ended")
	}
}
