package testbed

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// VaultSetup says what kind of Vault a test wants. The zero value is a server in
// dev mode: in memory, unsealed, KV version 2 at secret/.
type VaultSetup struct {
	// IfCached skips the test if the program would have to be built first, which
	// takes up to 20 minutes; with STINT_REQUIRE_SERVERS=all it is built all the same.
	IfCached bool
	// Durable keeps the data in files, so that the server can be sealed, unsealed
	// and restarted. TLS serves https, with a certificate for 127.0.0.1, localhost
	// and vault.test; it implies Durable.
	Durable, TLS bool
	// Plugins are built, if need be, and registered as database plugins.
	Plugins []string
}

// VaultServer is a real Vault that was started for a test.
type VaultServer struct {
	*Process
	Addr      string // http://127.0.0.1:PORT, or https
	RootToken string
	CA        string // file of the certificate authority, with TLS
	Bin       string // the program, which is the command line client too

	dir, unseal string
	args        []string
	client      *http.Client
}

// Vault starts a Vault in dev mode, building it first if it has to.
func Vault(t testing.TB) *VaultServer { return StartVault(t, VaultSetup{}) }

// VaultIfCached is [Vault], but skips the test rather than build for minutes.
func VaultIfCached(t testing.TB) *VaultServer { return StartVault(t, VaultSetup{IfCached: true}) }

// StartVault starts a Vault as s says. It is initialised and unsealed, and has
// KV version 2 at secret/.
func StartVault(t testing.TB, s VaultSetup) *VaultServer {
	t.Helper()
	v := &VaultServer{Bin: vaultProgram(t, s.IfCached), dir: t.TempDir(), client: &http.Client{Timeout: 20 * time.Second}}
	var plugins []string
	for _, name := range s.Plugins {
		plugins = append(plugins, VaultPlugin(t, name))
	}
	addr := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	v.Addr = "http://" + addr
	if s.Durable || s.TLS {
		v.durable(t, addr, s.TLS, plugins)
	} else {
		v.RootToken = "root"
		v.args = []string{"server", "-dev", "-dev-no-store-token", "-dev-root-token-id=root", "-dev-listen-address=" + addr}
		if len(plugins) > 0 {
			v.args = append(v.args, "-dev-plugin-dir="+filepath.Dir(plugins[0]))
		}
		v.start(t)
	}
	for _, file := range plugins {
		v.register(t, file)
	}
	return v
}

// durable starts a server that keeps its data in files.
func (v *VaultServer) durable(t testing.TB, addr string, secure bool, plugins []string) {
	t.Helper()
	listener := fmt.Sprintf("address = %q\n  tls_disable = true", addr)
	if secure {
		v.Addr = "https://" + addr
		v.CA = filepath.Join(v.dir, "ca.pem")
		listener = fmt.Sprintf("address = %q\n  tls_cert_file = %q\n  tls_key_file = %q",
			addr, filepath.Join(v.dir, "cert.pem"), filepath.Join(v.dir, "key.pem"))
		pool := x509.NewCertPool()
		pool.AddCert(certificate(t, v.dir))
		v.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	}
	data, file := filepath.Join(v.dir, "data"), filepath.Join(v.dir, "vault.hcl")
	config := fmt.Sprintf("listener \"tcp\" {\n  %s\n}\nstorage \"raft\" {\n  path = %q\n  node_id = \"one\"\n  performance_multiplier = 1\n}\n"+
		"api_addr = %q\ncluster_addr = \"https://127.0.0.1:%d\"\ndisable_mlock = true\n", listener, data, v.Addr, FreePort(t))
	if len(plugins) > 0 {
		config += fmt.Sprintf("plugin_directory = %q\n", filepath.Dir(plugins[0]))
	}
	if err := errors.Join(os.Mkdir(data, 0o700), os.WriteFile(file, []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}
	v.args = []string{"server", "-config=" + file}
	v.start(t)
	made := v.Call(t, http.MethodPut, "sys/init", map[string]any{"secret_shares": 1, "secret_threshold": 1})
	v.unseal = made["keys"].([]any)[0].(string)
	v.RootToken = made["root_token"].(string)
	v.Unseal(t)
	v.Call(t, http.MethodPost, "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	// A new mount upgrades itself for a moment, and refuses until then.
	v.wait(t, func() error {
		_, err := v.Try(http.MethodPut, "secret/data/ready", map[string]any{"data": map[string]string{}})
		return err
	})
	v.Call(t, http.MethodDelete, "secret/metadata/ready", nil)
}

func (v *VaultServer) start(t testing.TB) {
	t.Helper()
	cmd := exec.Command(v.Bin, v.args...)
	cmd.Env, cmd.Dir = cleanEnv("HOME="+v.dir), v.dir
	v.Process = Start(t, cmd, func() error {
		// An answer of any kind: sealed and not initialised have codes of their own.
		res, err := v.client.Get(v.Addr + "/v1/sys/health?sealedcode=200&uninitcode=200")
		if err != nil {
			return err
		}
		defer func() { _ = res.Body.Close() }()
		if res.StatusCode != http.StatusOK {
			return errors.New(res.Status)
		}
		return nil
	})
}

// Env is an environment for scripts that use the command line client: as root,
// with `vault` found first on the PATH.
func (v *VaultServer) Env() []string {
	return cleanEnv("HOME="+v.dir, "VAULT_ADDR="+v.Addr, "VAULT_TOKEN="+v.RootToken, "VAULT_CACERT="+v.CA,
		"PATH="+filepath.Dir(v.Bin)+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// cleanEnv is this process's environment without what Vault reads, and with more.
func cleanEnv(more ...string) []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "VAULT_") && !strings.HasPrefix(e, "HOME=") {
			env = append(env, e)
		}
	}
	return append(env, more...)
}

// Call asks the server as root, and fails the test if it refuses. It returns the
// answer; an empty one is nil.
func (v *VaultServer) Call(t testing.TB, method, path string, body any) map[string]any {
	t.Helper()
	out, err := v.Try(method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try is Call for what the server may refuse: the error holds its status and its words.
func (v *VaultServer) Try(method, path string, body any) (map[string]any, error) {
	data, err1 := json.Marshal(body)
	r, err2 := http.NewRequestWithContext(context.Background(), method, v.Addr+"/v1/"+path, bytes.NewReader(data))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	r.Header.Set("X-Vault-Token", v.RootToken)
	res, err := v.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= 300 {
		return nil, fmt.Errorf("vault: %s %s: %s: %s", method, path, res.Status, answer)
	}
	var out map[string]any
	if len(answer) == 0 {
		return nil, nil
	}
	return out, json.Unmarshal(answer, &out)
}

// Seal seals the server: it answers, but nothing that needs a secret.
func (v *VaultServer) Seal(t testing.TB) {
	t.Helper()
	v.Call(t, http.MethodPut, "sys/seal", nil)
}

// Unseal unseals a durable server, and returns when it serves.
func (v *VaultServer) Unseal(t testing.TB) {
	t.Helper()
	v.Call(t, http.MethodPut, "sys/unseal", map[string]any{"key": v.unseal})
	v.wait(t, func() error { _, err := v.Try(http.MethodGet, "sys/health", nil); return err })
}

// Restart stops a durable server and starts it again, sealed, at the same
// address.
func (v *VaultServer) Restart(t testing.TB) {
	t.Helper()
	v.Stop()
	v.start(t)
}

func (v *VaultServer) wait(t testing.TB, ready func() error) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// register enters a plugin in the catalogue, where its SHA-256 vouches for it.
func (v *VaultServer) register(t testing.TB, file string) {
	t.Helper()
	program, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	v.Call(t, http.MethodPut, "sys/plugins/catalog/database/"+filepath.Base(file),
		map[string]any{"sha256": fmt.Sprintf("%x", sha256.Sum256(program)), "command": filepath.Base(file)})
}

// certificate writes ca.pem, cert.pem and key.pem for a server on loopback.
func certificate(t testing.TB, dir string) *x509.Certificate {
	t.Helper()
	key, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "vault.test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost", "vault.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err2 := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	pkcs8, err3 := x509.MarshalPKCS8PrivateKey(key)
	made, err4 := x509.ParseCertificate(der)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{
		"ca.pem": cert, "cert.pem": cert, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return made
}

// What Vault is built from. The module as published compiles against no
// published sdk: vault/go.mod names a copy of one, with these edits.
const (
	vaultModule = "github.com/hashicorp/vault"
	sdkModule   = "github.com/hashicorp/vault/sdk"
)

// vaultPlugins are the packages of the plugins that can be built, by name.
var vaultPlugins = map[string]string{
	"postgresql-database-plugin": vaultModule + "/plugins/database/postgresql/postgresql-database-plugin",
}

// sdkBase is copied whole; of sdkNewer one file replaces its own.
var (
	sdkBase  = pinned{"v0.21.0", "h1:3gDqdKLhHY2ekmCEE9EeesoNpgsReq2bo/SpMqvBYdw="}
	sdkNewer = pinned{"v0.24.0", "h1:4/8w/puVy751oHZlD2nVgDQPfqHy6gC61dU9QnMZZ0g="}
)

// pinned is a version of the sdk, with the hash that go.sum has no room for.
type pinned struct{ version, sum string }

const (
	sdkTaken   = "helper/keysutil/lock_manager.go" // from the newer
	sdkEdited  = "framework/backend.go"
	sdkEditOld = "ActivationFunc func(context.Context, *logical.Request, string) error"
	sdkEditNew = "ActivationFunc func(context.Context, *logical.Request) error"
)

// vaultProgram returns the program: the cached one, else one on the PATH that is
// new enough, else it is built, or the test skipped.
func vaultProgram(t testing.TB, ifCached bool) string {
	t.Helper()
	cached := filepath.Join(vaultCache(t), "vault")
	if _, err := os.Stat(cached); err == nil {
		return cached
	}
	if path, err := exec.LookPath("vault"); err == nil {
		out, err := exec.Command(path, "version").Output()
		if m := regexp.MustCompile(`^Vault v1\.(\d+)\.`).FindSubmatch(out); err == nil && m != nil {
			if minor, _ := strconv.Atoi(string(m[1])); minor >= 15 {
				return path
			}
		}
	}
	if ifCached && os.Getenv("STINT_REQUIRE_SERVERS") != "all" {
		t.Skip("no Vault has been built yet, which takes a while: set STINT_REQUIRE_SERVERS=all to build it")
	}
	return buildVault(t, "vault", vaultModule)
}

// VaultPlugin returns the program of one of Vault's database plugins, building
// it first if it has to. It belongs to the Vault that is built, not to one found
// on the PATH, which has those plugins in it.
func VaultPlugin(t testing.TB, name string) string {
	t.Helper()
	pkg := vaultPlugins[name]
	if pkg == "" {
		t.Fatalf("no such plugin of Vault: %q", name)
	}
	return buildVault(t, filepath.Join("plugins", name), pkg)
}

// vaultCache is the folder of the programs: named by the digest of all that they
// are built from, and outside the checkout.
func vaultCache(t testing.TB) string {
	t.Helper()
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(vaultFiles(t), name))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(h, "%s %d\n%s", name, len(data), data)
	}
	fmt.Fprintln(h, sdkBase, sdkNewer, sdkTaken, sdkEdited, sdkEditOld, sdkEditNew, runtime.GOOS, runtime.GOARCH)
	root := os.Getenv("STINT_TESTBED_DIR")
	if root == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		root = filepath.Join(dir, "stint-testbed")
	}
	return filepath.Join(root, hex.EncodeToString(h.Sum(nil)[:12]))
}

// vaultFiles is the folder with the module files, which are a module of their
// own and so cannot be embedded.
func vaultFiles(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil && dir != filepath.Dir(dir) {
		files := filepath.Join(dir, "internal", "testbed", "vault")
		if _, gone := os.Stat(filepath.Join(files, "go.mod")); gone == nil {
			return files
		}
		dir = filepath.Dir(dir)
	}
	t.Fatal("internal/testbed/vault is not above this test's folder")
	return ""
}

// buildVault builds one program into the cache, unless it is there, and returns
// its path. Test binaries that need it at the same time wait for the first.
func buildVault(t testing.TB, name, pkg string) string {
	t.Helper()
	cache := vaultCache(t)
	program := filepath.Join(cache, name)
	if _, err := os.Stat(program); err == nil {
		return program
	}
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	defer progress("building " + name + " for tests, once; 20 minutes if nothing of it is cached")()
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err == nil {
		return program // somebody else has built it meanwhile
	}
	if err := compileVault(vaultFiles(t), cache, pkg, program); err != nil {
		t.Fatalf("build %s: %v", name, err)
	}
	return program
}

// compileVault lays out the module beside its edited sdk, and builds pkg.
func compileVault(files, cache, pkg, program string) error {
	work := filepath.Join(cache, "build")
	if err := errors.Join(os.RemoveAll(work), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	sdk, module := filepath.Join(work, "vault-sdk"), filepath.Join(work, "vault")
	base, err := fetchSDK(work, sdkBase)
	if err != nil {
		return err
	}
	newer, err := fetchSDK(work, sdkNewer)
	if err != nil {
		return err
	}
	if err := errors.Join(os.CopyFS(sdk, os.DirFS(base)), os.CopyFS(module, os.DirFS(files))); err != nil {
		return err
	}
	taken, err1 := os.ReadFile(filepath.Join(newer, sdkTaken))
	edited, err2 := os.ReadFile(filepath.Join(sdk, sdkEdited))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if n := bytes.Count(edited, []byte(sdkEditOld)); n != 1 {
		return fmt.Errorf("%s has the line to be edited %d times", sdkEdited, n)
	}
	edited = bytes.Replace(edited, []byte(sdkEditOld), []byte(sdkEditNew), 1)
	err = errors.Join(os.WriteFile(filepath.Join(sdk, sdkTaken), taken, 0o600), os.WriteFile(filepath.Join(sdk, sdkEdited), edited, 0o600))
	if err != nil {
		return err
	}
	if _, err := goCommand(module, "build", "-trimpath", "-ldflags=-s -w", "-tags=minimal", "-o", program+".new", pkg); err != nil {
		return err
	}
	return os.Rename(program+".new", program)
}

// fetchSDK returns the folder of a version of the sdk.
func fetchSDK(dir string, p pinned) (string, error) {
	out, err := goCommand(dir, "mod", "download", "-json", sdkModule+"@"+p.version)
	if err != nil {
		return "", err
	}
	var got struct{ Dir, Sum string }
	if err := json.Unmarshal(out, &got); err != nil {
		return "", err
	}
	if got.Sum != p.sum {
		return "", fmt.Errorf("sdk %s has the hash %s, not %s", p.version, got.Sum, p.sum)
	}
	return got.Dir, nil
}

func goCommand(dir string, args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off", "PWD="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // should the test itself be killed
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out, nil
}

// progress says that something takes time, until it is stopped: on the terminal,
// because go test keeps what a test prints until the test is over. Where there is
// no terminal it is said on stderr, which -v shows at once.
func progress(what string) (stop func()) {
	began, done := time.Now(), make(chan struct{})
	out, err := os.OpenFile("/dev/tty", os.O_WRONLY, 0)
	if err != nil {
		out = os.Stderr
	}
	say := func() {
		_, _ = fmt.Fprintf(out, "testbed: %s: %s\n", what, time.Since(began).Round(time.Second))
	}
	say()
	go func() {
		tick := time.NewTicker(15 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				say()
			}
		}
	}()
	return func() {
		close(done)
		say()
		if out != os.Stderr {
			_ = out.Close()
		}
	}
}
