package deploy_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/stint-dev/stint/internal/testbed"
)

// project reads the compose file by the code that Docker Compose reads it by, which
// holds it against the specification's schema and refuses names that lead nowhere.
func project(t *testing.T, dir string) *types.Project {
	t.Helper()
	file := filepath.Join(dir, "compose.yaml")
	p, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: dir, ConfigFiles: []types.ConfigFile{{Filename: file}}, Environment: types.Mapping{},
	}, func(o *loader.Options) { o.Profiles = []string{"*"} })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Nothing in the installation has a right that it does not need.
func TestTheServicesAreClosed(t *testing.T) {
	dir, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	p := project(t, dir)
	if names := p.ServiceNames(); !slices.Equal(names, []string{"postgres", "redis", "stint", "vault", "warehouse"}) {
		t.Errorf("the services are %v", names)
	}
	for name, s := range p.Services {
		uid, _, _ := strings.Cut(s.User, ":")
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || len(s.CapAdd) > 0 || s.Privileged ||
			!slices.Contains(s.SecurityOpt, "no-new-privileges:true") || uid == "" || uid == "0" {
			t.Errorf("%s is open: %+v", name, s)
		}
		if s.HealthCheck == nil || s.HealthCheck.Disable != (name == "warehouse") {
			t.Errorf("%s: nobody would see that it is ill", name)
		}
		if _, outside := s.Networks["outside"]; outside != (name == "stint") || len(s.Ports) > 0 && name != "stint" {
			t.Errorf("%s can be reached, or reach others", name)
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to the network", name, port.Published)
			}
		}
		for _, v := range s.Volumes {
			if _, err := os.Stat(v.Source); v.Type == types.VolumeTypeBind && (err != nil || !v.ReadOnly) {
				t.Errorf("%s: %s can be written, or is not there: %v", name, v.Source, err)
			}
		}
		for key, value := range s.Environment {
			if value != nil && strings.Contains(key, "PASSWORD") && !strings.HasSuffix(key, "_FILE") {
				t.Errorf("%s: %s is not in a file", name, key)
			}
		}
	}
	if last := dockerfile(t)[1]; p.Services["stint"].User != last.only(t, "USER").rest {
		t.Errorf("stint runs as %s, the image is for %s", p.Services["stint"].User, last.only(t, "USER").rest)
	}
	if !p.Networks["inside"].Internal {
		t.Error("what is inside can reach the world")
	}
	for name, s := range p.Secrets {
		if made := filepath.Join(dir, "compose", "made", name); s.File != made {
			t.Errorf("secret %s is at %s, not among what prepare.sh makes", name, s.File)
		}
	}
}

// composed is an installation that runs: the commands of the compose file, with real
// servers, as the users that it names, in a network of their own.
type composed struct {
	t       *testing.T
	dir     string // a copy of deploy
	project *types.Project
	net     int               // a process in their network
	tools   map[string]string // programs that the images have, by path
	volumes map[string]string
	ran     int
}

func compose(t *testing.T) *composed {
	t.Helper()
	needsRoot(t, "namespaces and the users of services need root")
	c := &composed{t: t, dir: filepath.Join(t.TempDir(), "deploy"), volumes: make(map[string]string)}
	vault := testbed.VaultIfCached(t) // it is started; the program is all that is wanted
	vault.Stop()
	redis := testbed.Find(t, "apt-get install redis-server", "redis-server")
	c.tools = map[string]string{ // by path where the image has them, else by name
		"/usr/local/bin/stint": built(t), "/usr/local/bin/vault": vault.Bin, "/usr/local/bin/redis-server": redis}
	for _, name := range []string{"postgres", "initdb", "pg_isready", "psql", "createdb"} {
		found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
		if err != nil || len(found) == 0 {
			testbed.Missing(t, "postgresql is not installed: apt-get install postgresql")
		}
		c.tools[name] = found[len(found)-1]
	}
	if err := os.CopyFS(c.dir, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	// Folders that tests make are for root alone; services come in by their users.
	for at := c.dir; at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c.net = network(t)
	return c
}

// network is a process in a network of its own, where every port is free.
func network(t *testing.T) (pid int) {
	t.Helper()
	holder := exec.Command("sh", "-c", "ip link set lo up && echo up && exec sleep 600")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	p := testbed.Start(t, holder, func() error { return nil })
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(p.Output(), "up"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no network: %s", p.Output())
		}
	}
	return holder.Process.Pid
}

// command is a command inside a service.
func (c *composed) command(service string, env []string, args ...string) *exec.Cmd {
	c.t.Helper()
	s, ok := c.project.Services[service]
	if !ok {
		c.t.Fatalf("there is no service %s", service)
	}
	c.ran++
	root := map[bool]string{true: "ro", false: "rw"}[s.ReadOnly]
	all := []string{"testdata/service.sh", filepath.Join(c.t.TempDir(), fmt.Sprint("run-", c.ran)), fmt.Sprint(c.net), s.User, root}
	for to, from := range c.tools {
		if filepath.IsAbs(to) {
			all = append(all, "ro", from, to)
		}
	}
	for _, v := range s.Volumes {
		from, mode := v.Source, "rw"
		if v.Type == types.VolumeTypeVolume {
			from = c.volume(v.Source, s.User)
		}
		if v.ReadOnly {
			mode = "ro"
		}
		all = append(all, mode, from, v.Target)
	}
	for _, x := range s.Secrets {
		all = append(all, "ro", c.project.Secrets[x.Source].File, "/run/secrets/"+x.Source)
	}
	for _, x := range s.Tmpfs {
		to, options, _ := strings.Cut(x, ":")
		if options == "" {
			options = "mode=1777"
		}
		all = append(all, "tmpfs", options, to)
	}
	all = append(all, "--")
	for key, value := range s.Environment {
		all = append(all, key+"="+*value)
	}
	if service == "stint" || service == "warehouse" {
		all = append(all, dockerfile(c.t)[1].env(c.t)...)
	}
	all = append(append(all, env...), "setpriv", "--no-new-privs", "chroot", "--userspec="+s.User, "--groups=")
	all = append(append(all, filepath.Join(all[1], "root")), args...)
	return exec.Command("sh", all...)
}

// volume is a folder of its user's, as images make those that they have volumes for.
func (c *composed) volume(name, user string) string {
	c.t.Helper()
	if dir := c.volumes[name]; dir != "" {
		return dir
	}
	dir := filepath.Join(filepath.Dir(c.dir), "volume-"+name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	if out, err := exec.Command("chown", user, dir).CombinedOutput(); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
	c.volumes[name] = dir
	return dir
}

// run runs a command to its end.
func (c *composed) run(service string, env []string, args ...string) (string, error) {
	c.t.Helper()
	cmd := c.command(service, env, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %v: %w\n%s%s", service, args, err, out.String(), errs.String())
	}
	return out.String(), err
}

// healthy runs a service's health check.
func (c *composed) healthy(service string) error {
	test := c.project.Services[service].HealthCheck.Test
	if test[0] != "CMD" {
		c.t.Fatalf("%s: %v is not in exec form", service, test)
	}
	_, err := c.run(service, nil, c.program(test[1:])...)
	return err
}

// program finds a program where this machine has it.
func (c *composed) program(args []string) []string {
	if path := c.tools[args[0]]; path != "" && !filepath.IsAbs(args[0]) {
		return append([]string{path}, args[1:]...)
	}
	return args
}

// up starts a service and waits until a check of it passes.
func (c *composed) up(service string, ready func() error) {
	c.t.Helper()
	s := c.project.Services[service]
	args := append(slices.Clone([]string(s.Entrypoint)), s.Command...)
	switch service {
	case "stint": // the image says what it runs
		last := dockerfile(c.t)[1]
		args = append(last.only(c.t, "ENTRYPOINT").list(c.t), last.only(c.t, "CMD").list(c.t)...)
	case "postgres": // what its image does before the first start
		c.firstPostgres()
	}
	cmd := c.command(service, nil, c.program(args)...)
	testbed.Start(c.t, cmd, ready)
	if service == "postgres" {
		if _, err := c.run(service, []string{"PGPASSWORD=" + c.made("postgres-password")}, c.tools["createdb"], "-h", "localhost", "-U", "postgres", "warehouse"); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *composed) firstPostgres() {
	c.t.Helper()
	s := c.project.Services["postgres"]
	if _, err := c.run("postgres", nil, c.tools["initdb"], "-D", "/var/lib/postgresql/data", "-U", "postgres",
		"--pwfile="+*s.Environment["POSTGRES_PASSWORD_FILE"], "-A", *s.Environment["POSTGRES_HOST_AUTH_METHOD"]); err != nil {
		c.t.Fatal(err)
	}
}

// made reads what prepare.sh made.
func (c *composed) made(name string) string {
	c.t.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, "compose", "made", name))
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}
