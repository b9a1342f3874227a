package testbed

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
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

var vaultBuilt = built{
	dir: "vault", takes: "20 minutes", compile: compileVault,
	from: []any{sdkBase, sdkNewer, sdkTaken, sdkEdited, sdkEditOld, sdkEditNew},
}

// vaultProgram returns the program: the cached one, else one on the PATH that is
// new enough, else it is built, or the test skipped.
func vaultProgram(t testing.TB, ifCached bool) string {
	t.Helper()
	if cached, there := vaultBuilt.cached(t, "vault"); there {
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
	if ifCached {
		vaultBuilt.skipUnbuilt(t, "vault")
	}
	return vaultBuilt.program(t, "vault", vaultModule)
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
	return vaultBuilt.program(t, filepath.Join("plugins", name), pkg)
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
