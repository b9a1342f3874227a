package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/client/clienttest"
)

const (
	aKeys  = "vault://clouds/deployer"
	aLogin = "vault://clouds/shop"
)

// Credentials of kinds that take more than this machine has: what the provider makes
// of the answers of Vault's engines.
func TestVendKnowsTheConventionsOfOtherKinds(t *testing.T) {
	b := clienttest.Start(t, clienttest.Config{
		Scopes: map[string][]string{aKeys: {"deploy"}, aLogin: {"shop"}},
		Documents: map[string]json.RawMessage{
			aKeys: json.RawMessage(`{"role":"deployer","mount":"aws","path":"sts/deployer","revocable":false,"expires_at":"2030-01-01T00:00:00Z",
				"fields":{"access_key":"ASIAEXAMPLE","secret_key":"of the lease","security_token":"with it's quote","arn":"null"}}`),
			aLogin: json.RawMessage(`{"role":"shop","mount":"database","path":"creds/shop","fields":{"username":"v-shop","password":"of the lease","not a name":"x"}}`),
		},
	})
	t.Setenv(envIssuer, b.Client().Issuer)
	t.Setenv(envClient, b.Client().ID)
	t.Setenv(envSecret, b.Client().Secret.Reveal())
	t.Setenv("AWS_PROFILE", "of the administrator")
	t.Setenv("AWS_SECURITY_TOKEN", "of before")
	vend := func(resource, scope string, args ...string) (out, said string, code int) {
		return typedAt(t, b.Token(clienttest.TokenOptions{}), append([]string{"vend", "--subject-token", "-", "--resource", resource, "--scope", scope}, args...)...)
	}
	t.Run("AWS's SDKs find keys in the environment", func(t *testing.T) {
		out, said, code := vend(aKeys, "deploy", "--", "sh", "-c", "env | grep -v ^AWS_CA_BUNDLE | grep ^AWS_ | sort | sed 's/EXPIRATION=20.*Z$/EXPIRATION=then/'")
		want := "AWS_ACCESS_KEY_ID=ASIAEXAMPLE\nAWS_CREDENTIAL_EXPIRATION=then\nAWS_SECRET_ACCESS_KEY=of the lease\nAWS_SESSION_TOKEN=with it's quote\n"
		if code != 0 || said != "" || out != want {
			t.Errorf("%d: %s\n%s", code, said, out)
		}
	})
	t.Run("or by credential_process", func(t *testing.T) {
		out, _, code := vend(aKeys, "deploy", "--format", "credential-process")
		var got struct {
			Version                                    int
			AccessKeyID, SecretAccessKey, SessionToken string
			Expiration                                 time.Time
		}
		if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || got.Version != 1 || got.AccessKeyID != "ASIAEXAMPLE" || got.SecretAccessKey != "of the lease" ||
			got.SessionToken != "with it's quote" || time.Until(got.Expiration) > 5*time.Minute || time.Until(got.Expiration) < 4*time.Minute {
			t.Errorf("%d, %v: %s", code, err, out)
		}
	})
	t.Run("a shell reads them as they are", func(t *testing.T) {
		out, _, _ := vend(aKeys, "deploy", "--format", "env")
		cmd := exec.Command("sh", "-euc", out+`echo "$AWS_SESSION_TOKEN|${AWS_PROFILE-none}"`)
		if got, said, _ := built(t, cmd); got != "with it's quote|none\n" {
			t.Errorf("%s%s", got, said)
		}
	})
	t.Run("without a convention it is field by field", func(t *testing.T) {
		out, _, _ := vend(aLogin, "shop", "--", "sh", "-c", "env | grep ^STINT_[PU]")
		if !strings.Contains(out, "STINT_USERNAME=v-shop\n") || !strings.Contains(out, "STINT_PASSWORD=of the lease\n") {
			t.Error(out)
		}
		out, _, _ = vend(aLogin, "shop", "--env", "DB_USER=username", "--env", "ALL", "--", "sh", "-c", `echo "$DB_USER ${STINT_USERNAME-none} $ALL"`)
		if !strings.HasPrefix(out, `v-shop none {"role":"shop"`) {
			t.Error(out)
		}
		if _, said, code := vend(aLogin, "shop", "--env", "X=url", "--", "true"); code != exitRefused || !strings.Contains(said, "it has not a name, password, username") || strings.Contains(said, "of the lease") {
			t.Errorf("%d: %s", code, said)
		}
		if _, said, code := vend(aLogin, "shop", "--format", "pgpass"); code != exitRefused || !strings.Contains(said, "for PostgreSQL logins") {
			t.Errorf("%d: %s", code, said)
		}
	})
}

func TestVendCommandLinesThatAreWrong(t *testing.T) {
	for name, tc := range map[string]struct {
		args  []string
		wants string
	}{
		"nothing to do":                      {nil, "which command to run"},
		"a command and a format":             {[]string{"--format", "env", "--", "true"}, "runs nothing"},
		"a format that is not there":         {[]string{"--format", "yaml"}, "env, json, pgpass, credential-process"},
		"variables and a format":             {[]string{"--format", "env", "--env", "A"}, "were all set"},
		"a variable that is none":            {[]string{"--env", "A B", "--", "true"}, "no name of a variable"},
		"JSON of a command":                  {[]string{"-o", "json", "--", "true"}, "prints for itself"},
		"a flag of the command, without one": {[]string{"-c", "x"}, "which command to run"},
		"nobody to act for":                  {[]string{"--issuer", "https://stint.example", "--client", "x", "--client-secret", "env:HOME", "--", "true"}, "say for whom"},
	} {
		t.Run(name, func(t *testing.T) {
			if out, said, code := typedAt(t, "", append([]string{"vend"}, tc.args...)...); code != exitUsage || !strings.Contains(said, tc.wants) || out != "" {
				t.Errorf("%d: %s", code, said)
			}
		})
	}
}

// slow is a server of one client that answers when it is told to.
type slow struct {
	*httptest.Server
	asked, answer chan struct{}
	returned      atomic.Int32
}

func startSlow(t *testing.T) *slow {
	t.Helper()
	s := &slow{asked: make(chan struct{}, 8), answer: make(chan struct{})}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var out any
		switch r.URL.Path {
		case "/.well-known/oauth-authorization-server":
			out = map[string]string{
				"issuer": s.URL, "token_endpoint": s.URL + "/token", "revocation_endpoint": s.URL + "/revoke", "introspection_endpoint": s.URL + "/i", "jwks_uri": s.URL + "/k",
			}
		case "/token":
			s.asked <- struct{}{}
			<-s.answer
			out = map[string]any{"access_token": "of the lease", "token_type": "Bearer", "issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "expires_in": 300}
		case "/revoke":
			if r.PostFormValue("token") == "of the lease" {
				s.returned.Add(1)
			}
			return
		}
		_ = json.NewEncoder(w).Encode(out)
	}))
	t.Cleanup(s.Close)
	return s
}

// What was asked for when a signal came is given back, and nothing is run.
func TestVendThatIsStoppedBeforeItRuns(t *testing.T) {
	s := startSlow(t)
	ran := filepath.Join(t.TempDir(), "ran")
	cmd := exec.Command(buildStint(t), "vend", "--issuer", s.URL, "--client", "x", "--self", "--resource", "https://api.example/", "--", "touch", ran)
	cmd.Env = append(os.Environ(), envSecret+"=x")
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	<-s.asked
	for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGTERM} {
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond) // the signal is on its way, and nothing shows when it is there
	close(s.answer)
	_ = cmd.Wait()
	if _, err := os.Stat(ran); cmd.ProcessState.ExitCode() != 128+15 || err == nil || s.returned.Load() != 1 || !strings.Contains(said.String(), "stopped before") {
		t.Errorf("%d, given back %d times, %v: %s", cmd.ProcessState.ExitCode(), s.returned.Load(), err, said.String())
	}
}
