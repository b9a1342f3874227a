package testbed

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
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
