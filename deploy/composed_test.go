package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
)

// said are the lines of a block of docs/installing.md, by how it begins.
func said(t *testing.T, first string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile("../docs/installing.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\n"+first+"\n")
	block, _, end := strings.Cut(rest, "\n```")
	if !ok || !end {
		t.Fatalf("docs/installing.md has no block that begins with %q", first)
	}
	return append([]string{first}, strings.Split(block, "\n")...)
}

// What docs/installing.md says of the compose file comes out as said: its commands,
// with an engine of our own in place of Docker.
func TestTheComposedInstallationComesUp(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts four servers")
	}
	c := compose(t)
	vault := vaultOf{}
	for _, line := range said(t, "deploy/compose/prepare.sh") {
		words := strings.Fields(line)
		switch {
		case words[0] == "deploy/compose/prepare.sh":
			c.prepare()
		case line == "cd deploy":
		case len(words) < 3 || words[0] != "docker" || words[1] != "compose":
			t.Fatalf("%s: not known here", line)
		case words[2] == "up":
			for _, service := range words[3:] {
				if !strings.HasPrefix(service, "-") {
					c.start(service)
				}
			}
		case words[2] == "run":
			service := words[len(words)-1]
			out, err := c.run(service, nil, append([]string{program}, c.project.Services[service].Command...)...)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s\n%s", line, out)
		case words[2] == "exec":
			c.inside(line, words[3:], &vault)
		}
	}
	c.serves()
}

// prepare runs the script, twice: what it made it keeps.
func (c *composed) prepare() {
	c.t.Helper()
	made := filepath.Join(c.dir, "compose", "made")
	var before map[string]entry
	for range 2 {
		cmd := exec.Command("sh", filepath.Join(c.dir, "compose", "prepare.sh"))
		if out, err := cmd.CombinedOutput(); err != nil {
			c.t.Fatalf("prepare.sh: %v\n%s", err, out)
		}
		if after := listing(c.t, made); before == nil {
			before = after
		} else if len(before) != len(after) || before["/ca.key"] != after["/ca.key"] || before["/redis-password"] != after["/redis-password"] || before["/vault.pem"] != after["/vault.pem"] {
			c.t.Errorf("prepare.sh does not keep what it made:\n%v\n%v", before, after)
		}
	}
	for name, e := range before {
		if secret := !strings.HasSuffix(name, ".pem") && name != "/."; secret && e.mode.Perm()&0o077 != 0 && name != "/.gitignore" {
			c.t.Errorf("made%s can be read by others: %s", name, e.mode)
		}
	}
	c.project = project(c.t, c.dir)
	for _, s := range c.project.Secrets {
		if _, err := os.Stat(s.File); err != nil {
			c.t.Errorf("prepare.sh does not make %s", s.File)
		}
	}
}

// start starts a service when those that it depends on are healthy.
func (c *composed) start(service string) {
	c.t.Helper()
	for other, d := range c.project.Services[service].DependsOn {
		if err := c.healthy(other); d.Condition == types.ServiceConditionHealthy && err != nil {
			c.t.Fatalf("%s, which %s waits for: %v", other, service, err)
		}
	}
	ready := func() error { return c.healthy(service) }
	if service == "vault" { // healthy is unsealed, which it cannot be yet
		ready = func() error {
			if err := c.healthy(service); err == nil || !strings.Contains(err.Error(), "Sealed") {
				return err
			}
			return nil
		}
	}
	c.up(service, ready)
}

// vaultOf is what Vault said when it was initialised.
type vaultOf struct{ key, token string }

// inside runs a command in a service, and puts in what a person would.
func (c *composed) inside(line string, words []string, v *vaultOf) {
	c.t.Helper()
	var env []string
	to := ""
	if at := slices.Index(words, ">"); at >= 0 {
		to, words = words[at+1], words[:at]
	}
	for strings.HasPrefix(words[0], "-") {
		if words[0] == "-e" {
			env, words = append(env, words[1]+"="+v.token), words[1:]
		}
		words = words[1:]
	}
	service, args := words[0], c.program(words[1:])
	if strings.HasSuffix(line, "operator unseal") {
		args = append(args, v.key)
	}
	out, err := c.run(service, env, args...)
	if err != nil {
		c.t.Fatalf("%s: %v", line, err)
	}
	if to != "" {
		// As a shell does: the file is there, and stays whose it is.
		if err := os.WriteFile(filepath.Join(c.dir, to), []byte(out), 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	if strings.Contains(line, "operator init") {
		v.key = regexp.MustCompile(`Unseal Key 1: (\S+)`).FindStringSubmatch(out)[1]
		v.token = regexp.MustCompile(`Initial Root Token: (\S+)`).FindStringSubmatch(out)[1]
	}
}

// serves looks at what came of it: from outside, and by what check --live tries.
func (c *composed) serves() {
	c.t.Helper()
	curl := exec.Command("nsenter", "--net=/proc/"+strconv.Itoa(c.net)+"/ns/net", "curl", "-sS", "--fail", "--cacert",
		filepath.Join(c.dir, "compose", "made", "ca.pem"), "https://localhost:8443/readyz")
	if out, err := curl.CombinedOutput(); err != nil || !strings.Contains(string(out), `"ready":true`) {
		c.t.Errorf("readyz: %v\n%s", err, out)
	}
	_, err := c.run("stint", nil, program, "check", "--live") // the issuer and the client's keys are examples
	if err == nil {
		c.t.Fatal("the issuer idp.example was found")
	}
	for _, want := range []string{`ready +provider warehouse`, `ready +secrets`, `ready +store`, `ready +data`, `missing +issuer https://idp\.example`} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(err.Error()) {
			c.t.Errorf("no %q in\n%v", want, err)
		}
	}
	// What belongs to others stays theirs: the password of the database's superuser is
	// not for Vault, nor Redis's for the database.
	for service, secret := range map[string]string{"vault": "postgres-password", "postgres": "redis-password", "stint": "admin-password"} {
		if out, err := c.run(service, nil, "/bin/cat", "/run/secrets/"+secret); err == nil {
			c.t.Errorf("%s can read %s: %s", service, secret, out)
		}
	}
}
