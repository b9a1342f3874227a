package testbed

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// built is a module whose programs tests need, built once into the user's cache.
type built struct {
	// dir is the folder below internal/testbed with go.mod and go.sum, which are a
	// module of their own and so cannot be embedded.
	dir string
	// from is what the programs are made of besides.
	from []any
	// takes says how long it takes where nothing is cached.
	takes string
	// compile builds a package; nil: [goBuild].
	compile func(files, cache, pkg, program string) error
}

// cached returns where a program is, or would be, and whether it is there.
func (b built) cached(t testing.TB, name string) (program string, there bool) {
	t.Helper()
	program = filepath.Join(b.cache(t), name)
	_, err := os.Stat(program)
	return program, err == nil
}

// cache is the folder of the programs: named by the digest of all that they
// are built from, and outside the checkout.
func (b built) cache(t testing.TB) string {
	t.Helper()
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(b.files(t), name))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(h, "%s %d\n%s", name, len(data), data)
	}
	fmt.Fprintln(h, append(b.from[:len(b.from):len(b.from)], runtime.GOOS, runtime.GOARCH)...)
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

// files is the folder with the module files.
func (b built) files(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil && dir != filepath.Dir(dir) {
		files := filepath.Join(dir, "internal", "testbed", b.dir)
		if _, gone := os.Stat(filepath.Join(files, "go.mod")); gone == nil {
			return files
		}
		dir = filepath.Dir(dir)
	}
	t.Fatalf("internal/testbed/%s is not above this test's folder", b.dir)
	return ""
}

// skipUnbuilt skips a test that would have to build a program first, unless
// everything is to be tried.
func (b built) skipUnbuilt(t testing.TB, name string) {
	t.Helper()
	if _, there := b.cached(t, name); !there && os.Getenv("STINT_REQUIRE_SERVERS") != "all" {
		t.Skipf("no %s has been built yet, which takes a while: set STINT_REQUIRE_SERVERS=all to build it", name)
	}
}

// program builds one program into the cache, unless it is there, and returns
// its path. Test binaries that need it at the same time wait for the first.
func (b built) program(t testing.TB, name, pkg string) string {
	t.Helper()
	program, there := b.cached(t, name)
	if there {
		return program
	}
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	defer progress("building " + name + " for tests, once; " + b.takes + " if nothing of it is cached")()
	cache := b.cache(t)
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, there := b.cached(t, name); there {
		return program // somebody else has built it meanwhile
	}
	compile := b.compile
	if compile == nil {
		compile = goBuild
	}
	if err := compile(b.files(t), cache, pkg, program); err != nil {
		t.Fatalf("build %s: %v", name, err)
	}
	return program
}

// goBuild builds a package that the module files name.
func goBuild(files, cache, pkg, program string) error {
	work := filepath.Join(cache, "build")
	if err := errors.Join(os.RemoveAll(work), os.CopyFS(work, os.DirFS(files))); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if _, err := goCommand(work, "build", "-trimpath", "-ldflags=-s -w", "-o", program+".new", pkg); err != nil {
		return err
	}
	return os.Rename(program+".new", program)
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
