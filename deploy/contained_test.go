package deploy_test

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stint-dev/stint/internal/testbed"
)

// contained starts a command as an engine does: as the user of the image, with the
// image as a root that cannot be written, without a way to more rights, and with
// the folders that are mounted, some of them to be written.
const contained = `set -eu
root=$1; shift
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
  mount --bind "$2" "$root$3"
  mount -o "remount,bind,$1" "$root$3"
  shift 3
done
shift
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec env -i "$@"`

// box is how a container is started.
type box struct {
	image
	env    []string
	mounts []string // by three: rw or ro, from, to
}

// command is what runs a command in the box.
func (b box) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	last := dockerfile(t)[1]
	user := last.only(t, "USER").rest
	all := append([]string{"-c", contained, "contained", b.root}, b.mounts...)
	all = append(append(append(all, "--", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), last.env(t)...), b.env...)
	all = append(all, "setpriv", "--no-new-privs", "chroot", "--userspec="+user, "--groups=", b.root)
	cmd := exec.Command("sh", append(all, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC}
	return cmd
}

// runsReadOnly starts the image with a configuration that its own init wrote.
func runsReadOnly(t *testing.T, i image) {
	needsRoot(t, "mounts and chroot need root")
	for _, dir := range []string{"/proc", "/etc/stint"} { // engines make what is mounted on
		if err := os.MkdirAll(i.root+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	etc, data := prepare(t, i)
	before := listing(t, i.root)
	ops := fmt.Sprint("127.0.0.1:", testbed.FreePort(t))
	edit(t, filepath.Join(etc, "stint.yaml"), "127.0.0.1:8080", fmt.Sprint("127.0.0.1:", testbed.FreePort(t)), "127.0.0.1:9464", ops)
	b := box{i, []string{"TZ=Asia/Kolkata"}, []string{"ro", etc, "/etc/stint", "rw", data, "/var/lib/stint"}}
	last := dockerfile(t)[1]
	start := append(last.only(t, "ENTRYPOINT").list(t), last.only(t, "CMD").list(t)...)
	cmd := b.command(t, start...)
	p := testbed.Start(t, cmd, func() error { return ready("http://" + ops + "/readyz") })

	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	uid, _, _ := strings.Cut(last.only(t, "USER").rest, ":")
	for _, line := range []string{"Uid:\t" + uid + "\t" + uid, "CapEff:\t0000000000000000", "NoNewPrivs:\t1"} {
		if err != nil || !strings.Contains(string(status), line) {
			t.Errorf("the process is not %q: %v\n%s", line, err, status)
		}
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid)); err != nil || !strings.HasSuffix(exe, program) {
		t.Errorf("another program runs: %s, %v", exe, err)
	}
	health := step{rest: strings.TrimPrefix(last.only(t, "HEALTHCHECK").rest, "CMD ")}.list(t)
	if out, err := b.command(t, health...).CombinedOutput(); err != nil || string(out) != "ready\n" {
		t.Errorf("%v: %v\n%s", health, err, out)
	}
	if out, err := b.command(t, program, "init", "/elsewhere").CombinedOutput(); err == nil || !strings.Contains(string(out), "read-only") {
		t.Errorf("the root can be written: %v\n%s", err, out)
	}
	p.Stop()
	if out, err := b.command(t, health...).CombinedOutput(); err == nil {
		t.Errorf("%v of a server that is gone: %s", health, out)
	}
	if !strings.Contains(p.Output(), `+05:30","level":"INFO","msg":"ready"`) {
		t.Errorf("the zone is not known:\n%s", p.Output())
	}
	if after := listing(t, i.root); !maps.Equal(before, after) {
		t.Errorf("the image was changed:\n%v\n%v", before, after)
	}
}

// prepare writes a configuration, which nobody but root can change, and a folder for
// the data as a new volume is: whose the folder of the image is.
func prepare(t *testing.T, i image) (etc, data string) {
	t.Helper()
	etc, data = t.TempDir(), t.TempDir()
	if out, err := exec.Command(i.root+program, "init", etc).CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	edit(t, filepath.Join(etc, "stint.yaml"), "data: data\n", "data: /var/lib/stint\n",
		"file: data/store.db", "file: /var/lib/stint/store.db", "path: data/secrets.age", "path: /var/lib/stint/secrets.age")
	owner, err := os.Stat(i.root + "/var/lib/stint")
	if err != nil {
		t.Fatal(err)
	}
	stat := owner.Sys().(*syscall.Stat_t)
	if err := os.Rename(filepath.Join(etc, "data", "secrets.age"), filepath.Join(data, "secrets.age")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{data, filepath.Join(data, "secrets.age"), filepath.Join(etc, "private"), filepath.Join(etc, "private", "identity")} {
		if err := os.Chown(path, int(stat.Uid), int(stat.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	return etc, data
}

// edit replaces texts of a file, each of which has to be there.
func edit(t *testing.T, file string, pairs ...string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%s has no %q", file, pairs[i])
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// ready asks whether a server says that it is ready.
func ready(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%d: %s", resp.StatusCode, body)
	}
	return nil
}

// needsRoot skips a test for who is not root, as a contributor need not be; where
// everything has to be tried it fails.
func needsRoot(t *testing.T, why string) {
	t.Helper()
	switch {
	case os.Getuid() == 0:
	case os.Getenv("STINT_REQUIRE_SERVERS") == "all":
		t.Fatal(why)
	default:
		t.Skip(why)
	}
}

// built is the program as the image has it, once for all tests of this package.
func built(t *testing.T) string {
	t.Helper()
	lookAtSources(t)
	bin := filepath.Join(t.TempDir(), "stint")
	cmd := exec.Command("go", "build", "-trimpath", "-tags=timetzdata", "-buildvcs=false", "-o", bin, "../cmd/stint")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// lookAtSources lets go test know what this test's outcome depends on: it would
// repeat an old one, because the sources are opened by other programs alone.
func lookAtSources(t *testing.T) {
	t.Helper()
	patterns := append(ignored(t), ".git")
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel("..", path); err == nil && d.IsDir() && matches(patterns, rel) {
			return filepath.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
