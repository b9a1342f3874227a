package deploy_test

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/testbed"
)

const helperAddress = "STINT_TEST_ISSUER"

// TestMain serves as an issuer where it is asked to: a process of its own can be in
// another network.
func TestMain(m *testing.M) {
	if address := os.Getenv(helperAddress); address != "" {
		http.HandleFunc("/.well-known/", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, `{"issuer":"http://%s","jwks_uri":"http://%s/keys"}`, address, address)
		})
		http.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprint(w, `{"keys":[{"kty":"EC","crv":"P-256","kid":"1","alg":"ES256","use":"sig",`+
				`"x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`) // of RFC 7517, appendix A.1
		})
		fmt.Println(http.ListenAndServe(address, nil))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// A service is installed as docs/installing.md says, line by line, on a machine that
// is dropped afterwards. systemd does not run there: where it would start the service,
// Stint is started as its user; that it works under the unit is tested apart.
func TestTheServiceIsInstalledAsWritten(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts three servers, and builds")
	}
	needsRoot(t, "an installation needs root")
	vault := testbed.VaultIfCached(t)
	vault.Stop()
	redis := testbed.Find(t, "apt-get install redis-server", "redis-server")
	dir := filepath.Join(t.TempDir(), "checkout")
	copyContext(t, dir)
	for at := dir; at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	net := network(t)
	within := func(args ...string) *exec.Cmd {
		return exec.Command("nsenter", append([]string{"--net=/proc/" + strconv.Itoa(net) + "/ns/net"}, args...)...)
	}
	conf := filepath.Join(t.TempDir(), "redis.conf")
	if err := os.WriteFile(conf, []byte("bind 127.0.0.1\nport 6379\nsave \"\"\nappendonly yes\nappendfsync always\ndir "+t.TempDir()+"\n"+users(t, "of redis")), 0o600); err != nil {
		t.Fatal(err)
	}
	reached := func(port string) func() error {
		return func() error { return within("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/"+port).Run() }
	}
	testbed.Start(t, within(redis, conf), reached("6379"))
	testbed.Start(t, within(vault.Bin, "server", "-dev", "-dev-no-store-token", "-dev-root-token-id=root", "-dev-listen-address=127.0.0.1:8200"), reached("8200"))
	issuer := within(os.Args[0])
	issuer.Env = append(os.Environ(), helperAddress+"=127.0.0.1:9000")
	testbed.Start(t, issuer, reached("9000"))

	script := filepath.Join(dir, "install.sh")
	if err := os.WriteFile(script, []byte(strings.Join(installation(t), "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "testdata/installed.sh", filepath.Join(t.TempDir(), "layer"), strconv.Itoa(net), dir, vault.Bin, script)
	cmd.Env = append(withoutGo(os.Environ()), "VAULT_ADDR=http://127.0.0.1:8200", "VAULT_TOKEN=root", "REDIS=127.0.0.1:6379",
		"IDP=http://127.0.0.1:9000", "ISSUER=http://127.0.0.1:8080", "PATH=/usr/local/bin:"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	for _, want := range []string{
		"\nready\n", "/etc/stint/stint.yaml root 644", "/etc/stint/private stint 700", "/etc/stint/private/secret-id stint 600",
		"/var/lib/stint stint 700", "/var/lib/stint/stint.sock stint 600", "/usr/local/bin/stint root 755", "/etc/systemd/system/stint.service root 644",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// installation is the block of the document, with what it takes to be there before,
// and afterwards what its table of files says.
func installation(t *testing.T) (lines []string) {
	t.Helper()
	lines = []string{"sh deploy/vault/setup.sh", "vault kv put -mount=secret stint/redis password='of redis'"}
	block := said(t, "make build")
	for _, line := range block {
		if strings.HasPrefix(line, "systemctl ") {
			line = "runuser -u stint -- stint serve --config /etc/stint/stint.yaml & server=$!"
		}
		lines = append(lines, line)
	}
	if !slices.Contains(block, "systemctl enable --now stint") {
		t.Error("the service is not started")
	}
	return append(lines, "stat -c '%n %U %a' /etc/stint/* /etc/stint/private/* /var/lib/stint /var/lib/stint/* /usr/local/bin/stint /etc/systemd/system/stint.service",
		"kill $server; wait $server || true")
}

// users are those of redis.acl, with a password.
func users(t *testing.T, password string) string {
	t.Helper()
	data, err := os.ReadFile("redis.acl")
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(data), "STINT_PASSWORD_SHA256", fmt.Sprintf("%x", sha256.Sum256([]byte(password))))
}
