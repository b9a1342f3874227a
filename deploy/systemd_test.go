package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/testbed"
)

// exposure is what systemd-analyze says of the unit, and docs/installing.md repeats:
// 0 is a service that can do nothing, 10 one that can do everything.
const exposure = "1.1"

const hint = "apt-get install systemd"

func TestTheUnitIsNoMoreExposedThanWasSaid(t *testing.T) {
	analyze := testbed.Find(t, hint, "systemd-analyze")
	out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "stint.service").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := regexp.MustCompile(`Overall exposure level for stint\.service: ([0-9.]+)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("no level:\n%s", out)
	}
	level, err1 := strconv.ParseFloat(string(m[1]), 64)
	said, err2 := strconv.ParseFloat(exposure, 64)
	if err1 != nil || err2 != nil || level > said {
		t.Errorf("the level is %s, and was %s", m[1], exposure)
	}
	text, err := os.ReadFile("../docs/installing.md")
	if err != nil || !strings.Contains(string(text), "exposure level of "+exposure+" ") {
		t.Errorf("docs/installing.md does not say that it is %s: %v", exposure, err)
	}
}

// systemd finds nothing to say of it: no key it does not know, no path that is not
// there.
func TestTheUnitIsOneThatSystemdKnows(t *testing.T) {
	analyze := testbed.Find(t, hint, "systemd-analyze")
	data, err := os.ReadFile("stint.service")
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable() // the program is not installed here
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "stint.service")
	if err := os.WriteFile(unit, []byte(strings.Replace(string(data), program, exe, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// Stint works with all taken away that the unit takes away.
func TestStintRunsUnderItsUnit(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts a service manager")
	}
	for _, needed := range []string{"/lib/systemd/systemd", "/sys/fs/cgroup/systemd/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"} {
		if _, err := os.Stat(needed); err != nil || os.Getuid() != 0 {
			t.Skipf("a service manager of its own needs root and %s", needed)
		}
	}
	bin := built(t)
	etc := filepath.Join(t.TempDir(), "etc")
	if out, err := exec.Command(bin, "init", etc).CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	edit(t, filepath.Join(etc, "stint.yaml"), "data: data\n", "data: /var/lib/stint\n",
		"file: data/store.db", "file: /var/lib/stint/store.db", "path: data/secrets.age", "path: /var/lib/stint/secrets.age")
	out, err := exec.Command("sh", "testdata/systemd.sh", "stint.service", bin, etc).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := strings.ReplaceAll(string(out), "\t", " ")
	for what, want := range map[string]string{
		"it serves":                   `"msg":"ready"`,
		"as its own user":             "\nUid: 4242 4242 4242 4242\n",
		"without capabilities":        "\nCapEff: 0000000000000000\nCapBnd: 0000000000000000\n",
		"nor a way to them":           "\nNoNewPrivs: 1\n",
		"with its system calls alone": "\nSeccomp: 2\n",
		"it ends as a service does":   "\nResult=success\nExecMainStatus=0\n",
		"its journal has a queue":     "/[aio] (deleted)\n",
		"its data can be written":     "/stint /var/lib/stint rw,",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s: no %q in\n%s", what, want, text)
		}
	}
	if strings.Count("\n"+text, "\nready\n") != 2 {
		t.Errorf("it is not ready after the start, or after a reload:\n%s", text)
	}
	if !regexp.MustCompile(`(?m)^mount: \d+ \d+ \S+ / / ro,`).MatchString(text) {
		t.Errorf("the root can be written:\n%s", text)
	}
}
