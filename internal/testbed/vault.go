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
	"strings"
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
