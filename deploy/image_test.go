// Package deploy_test holds what an installation is made of against what it says:
// the image, the compose file, the unit of systemd and the examples. No container
// engine is needed, and none has been used: the steps of the Dockerfile are done
// with the Go of this machine, and the result runs as an engine would run it.
package deploy_test

import (
	"crypto/sha256"
	"crypto/x509"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// entry is a file of an image.
type entry struct {
	mode   fs.FileMode
	owner  string
	digest string // of files
}

// image is the content of an image, and where it lies.
type image struct {
	root    string
	entries map[string]entry
}

// assemble does the steps of the Dockerfile with a copy of the checkout in dir.
func assemble(t *testing.T, dir string, env ...string) image {
	t.Helper()
	stages := dockerfile(t)
	src, out, root := filepath.Join(dir, "src"), filepath.Join(dir, "out"), filepath.Join(dir, "root")
	here := strings.NewReplacer("/src", src, "/out", out)
	env = append(append(withoutGo(os.Environ()), stages[0].env(t)...), env...)
	for _, s := range stages[0].steps {
		switch s.name {
		case "COPY":
			if s.rest != ". ." {
				t.Fatalf("COPY %s: not known here", s.rest)
			}
			copyContext(t, src)
		case "RUN":
			cmd := exec.Command("sh", "-c", here.Replace(s.rest))
			cmd.Dir, cmd.Env = src, env
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("RUN %s: %v\n%s", s.rest, err, text)
			}
		}
	}
	for _, c := range stages[1].all("COPY") {
		from, to, _ := strings.Cut(c.rest, " ")
		if c.flags["from"] != "build" {
			t.Fatalf("COPY %s: not of the stage build", c.rest)
		}
		layer(t, here.Replace(from), filepath.Join(root, to), c.flags)
	}
	return image{root, listing(t, root)}
}

// withoutGo leaves out what this machine says of Go, which the image does not know.
func withoutGo(env []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, "GOFLAGS=") })
	return append(env, "GOENV=off")
}

// copyContext copies what the builder is given.
func copyContext(t *testing.T, to string) {
	t.Helper()
	patterns := ignored(t)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel("..", path)
		switch {
		case err != nil:
			return err
		case matches(patterns, rel) && d.IsDir():
			return filepath.SkipDir
		case matches(patterns, rel) || !d.IsDir() && !d.Type().IsRegular():
			return nil
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		info, err1 := d.Info()
		data, err2 := os.ReadFile(path)
		if errors.Is(err2, fs.ErrNotExist) { // git tidies up beside us
			return nil
		}
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, info.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// matches knows patterns of one name, in the root or, with **/, anywhere.
func matches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if anywhere, ok := strings.CutPrefix(p, "**/"); ok {
			ok, _ := filepath.Match(anywhere, filepath.Base(path))
			return ok
		}
		return p == path
	})
}

// layer copies into the image as COPY does: as root, unless it says whose it is.
func layer(t *testing.T, from, to string, flags map[string]string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	owner, mode := [2]int{0, 0}, uint64(0)
	if o := flags["chown"]; o != "" {
		uid, gid, _ := strings.Cut(o, ":")
		var err1, err2 error
		owner[0], err1 = strconv.Atoi(uid)
		owner[1], err2 = strconv.Atoi(gid)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatalf("--chown=%s: there are no names in this image: %v", o, err)
		}
	}
	if m := flags["chmod"]; m != "" {
		var err error
		if mode, err = strconv.ParseUint(m, 8, 12); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(to, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && os.Getuid() == 0 {
			err = os.Chown(path, owner[0], owner[1])
		}
		if err == nil && mode != 0 {
			err = os.Chmod(path, fs.FileMode(mode))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// listing describes every file of a folder.
func listing(t *testing.T, root string) map[string]entry {
	t.Helper()
	out := make(map[string]entry)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		e := entry{mode: info.Mode(), owner: fmt.Sprint(stat.Uid, ":", stat.Gid)}
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			e.digest = hex.EncodeToString(sum[:])
		}
		rel, _ := filepath.Rel(root, path)
		out["/"+rel] = e
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

const program = "/usr/local/bin/stint"

func TestTheImageIsTheSameWhereverItIsBuilt(t *testing.T) {
	if testing.Short() {
		t.Skip("it is built twice")
	}
	dir := t.TempDir()
	one := assemble(t, filepath.Join(dir, "one"))
	var env []string
	if os.Getenv("STINT_REQUIRE_SERVERS") == "all" { // compiled anew, not linked alone
		env = append(env, "GOCACHE="+filepath.Join(dir, "cache"))
	}
	other := assemble(t, filepath.Join(dir, "quite", "another"), env...)
	if !maps.Equal(one.entries, other.entries) {
		t.Errorf("two builds differ:\n%v\n%v", one.entries, other.entries)
	}
	if len(one.entries) > 20 || one.entries[program].digest == "" {
		t.Errorf("the image holds %d things: %v", len(one.entries), slices.Sorted(maps.Keys(one.entries)))
	}
	for path, e := range one.entries {
		if e.mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 || e.mode.Perm()&0o022 != 0 {
			t.Errorf("%s: %s", path, e.mode)
		}
	}
	t.Run("the program is static", func(t *testing.T) { isStatic(t, one.root+program) })
	t.Run("the program says of which commit it is", func(t *testing.T) { saysItsCommit(t, one.root+program) })
	t.Run("authorities are in it", func(t *testing.T) {
		data, err := os.ReadFile(one.root + "/etc/ssl/certs/ca-certificates.crt")
		if pool := x509.NewCertPool(); err != nil || !pool.AppendCertsFromPEM(data) {
			t.Errorf("no certificates: %v", err)
		}
	})
	t.Run("it runs as an engine would run it", func(t *testing.T) { runsReadOnly(t, one) })
}

// isStatic refuses a program that needs a loader or a library, which are not there.
func isStatic(t *testing.T, file string) {
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the program asks for an interpreter")
		}
	}
	if libraries, err := f.ImportedLibraries(); err != nil || len(libraries) > 0 {
		t.Errorf("the program needs %v (%v)", libraries, err)
	}
}

func saysItsCommit(t *testing.T, file string) {
	want, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if err != nil {
		t.Skip("this is no checkout")
	}
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && s.Value != strings.TrimSpace(string(want)):
			t.Errorf("the program is of %s, the checkout of %s", s.Value, want)
		case s.Key == "vcs.revision":
			want = nil
		case s.Key == "-trimpath" && s.Value != "true", s.Key == "CGO_ENABLED" && s.Value != "0":
			t.Errorf("built with %s=%s", s.Key, s.Value)
		}
	}
	if want != nil {
		t.Error("the program does not say of which commit it is")
	}
}

// What git knows is given to the builder, or the commit would not be a clean one.
func TestNothingOfTheCommitIsKeptFromTheBuilder(t *testing.T) {
	cmd := exec.Command("git", "ls-files")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Skip("this is no checkout")
	}
	patterns := ignored(t)
	for path := range strings.Lines(string(out)) {
		for path = strings.TrimSpace(path); path != "."; path = filepath.Dir(path) {
			if matches(patterns, path) {
				t.Errorf("%s is ignored", path)
			}
		}
	}
}

// Nobody of a name can be in an image without names, and nobody there is root.
func TestTheImageIsForANumberThatIsNotRoot(t *testing.T) {
	last := dockerfile(t)[1]
	uid, gid, _ := strings.Cut(last.only(t, "USER").rest, ":")
	for _, id := range []string{uid, gid} {
		if n, err := strconv.Atoi(id); err != nil || n < 1000 {
			t.Errorf("USER: %q is no number of a user", id)
		}
	}
	for _, c := range last.all("COPY") {
		if owner := c.flags["chown"]; owner != "" && owner != uid+":"+gid {
			t.Errorf("COPY %s belongs to %s, the user is %s:%s", c.rest, owner, uid, gid)
		}
	}
	health, ok := strings.CutPrefix(last.only(t, "HEALTHCHECK").rest, "CMD ")
	if !ok {
		t.Fatal("HEALTHCHECK has no command")
	}
	for _, command := range [][]string{last.only(t, "ENTRYPOINT").list(t), step{name: "HEALTHCHECK", rest: health}.list(t)} {
		if command[0] != program {
			t.Errorf("%v is not in the image", command)
		}
	}
}
