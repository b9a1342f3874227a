package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/testbed"
)

// examine runs the doctor, and returns what it found, a line each.
func examine(t *testing.T, file string) (found []string, code int) {
	t.Helper()
	out, code := stintCLI(t, "doctor", "--config", file, "-o", "json")
	var all []finding
	if at := strings.Index(out, "\n]"); at < 0 || json.Unmarshal([]byte(out[:at+2]), &all) != nil {
		t.Fatalf("%d: %s", code, out)
	}
	for _, f := range all {
		if f.State != findingGood && f.Do == "" && f.About != "store" {
			t.Errorf("%s: %s: and what to do?", f.About, f.Detail)
		}
		found = append(found, f.State+" "+f.About+": "+f.Detail)
	}
	return found, code
}

func has(found []string, begin, word string) bool {
	return slices.ContainsFunc(found, func(s string) bool { return strings.HasPrefix(s, begin) && strings.Contains(s, word) })
}

// A sandbox that runs is well, and each thing that is broken about it is found.
func TestDoctor(t *testing.T) {
	box := inSandbox(t)
	admins := filepath.Join(box.Dir, "mappings", "stint.yaml")
	found, code := examine(t, box.Config)
	if code != 0 || has(found, findingBad, "") || has(found, findingWarn, "") {
		t.Errorf("a sandbox: %d\n%s", code, strings.Join(found, "\n"))
	}
	for _, want := range []string{"good issuer, as clients see it", "good clock of issuer", "good signing key", "good file "} {
		if !has(found, want, "") {
			t.Errorf("nothing is said of %q:\n%s", want, strings.Join(found, "\n"))
		}
	}
	if out, code := stintCLI(t, "doctor", "--config", box.Config); code != 0 || !strings.Contains(out, "0 bad, 0 to be mended") {
		t.Errorf("%d %s", code, out)
	}
	for name, tt := range map[string]struct {
		do, undo func()
		want     string
	}{
		"data that others may read": {
			func() { mode(t, filepath.Join(box.Dir, "data"), 0o755) }, func() { mode(t, filepath.Join(box.Dir, "data"), 0o700) }, "others may read it",
		},
		"a configuration that others may change": {
			func() { mode(t, box.Config, 0o666) }, func() { mode(t, box.Config, 0o600) }, "others may change it",
		},
		"an issuer that is another": {
			func() {
				changeFile(t, box.Config, "issuer: "+box.Stint+"\n", "issuer: "+box.IdP+"/x\n")
				changeFile(t, admins, "resource: "+box.Stint+"/", "resource: "+box.IdP+"/x/")
			},
			func() {
				changeFile(t, box.Config, "issuer: "+box.IdP+"/x\n", "issuer: "+box.Stint+"\n")
				changeFile(t, admins, "resource: "+box.IdP+"/x/", "resource: "+box.Stint+"/")
			}, "no metadata",
		},
	} {
		tt.do()
		found, code := examine(t, box.Config)
		tt.undo()
		if code != exitFailed || !has(found, findingBad, tt.want) {
			t.Errorf("%s: %d\n%s", name, code, strings.Join(found, "\n"))
		}
	}
	_ = box.idp.Close()
	if found, code := examine(t, box.Config); code != exitFailed || !has(found, findingBad+" issuer", "connection refused") {
		t.Errorf("a provider of identities that is out: %d\n%s", code, strings.Join(found, "\n"))
	}
}

func mode(t *testing.T, path string, m os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, m); err != nil {
		t.Fatal(err)
	}
}

// Of a Redis it says what its settings and its user's rights should be.
func TestDoctorLooksAtRedis(t *testing.T) {
	r := testbed.Redis(t, testbed.RedisOptions{})
	file := filepath.Join(initialised(t), theConfig)
	changeFile(t, file, "  kind: embedded\n  file: data/store.db\n", "  kind: redis\n  redis: {address: \""+r.Addr+"\"}\n")
	found, _ := examine(t, file)
	for _, want := range []string{"append-only", "more than it needs"} {
		if !has(found, findingWarn+" Redis", want) {
			t.Errorf("nothing of %q:\n%s", want, strings.Join(found, "\n"))
		}
	}
	if !has(found, findingGood+" clock of Redis", "") {
		t.Errorf("nothing of the clock:\n%s", strings.Join(found, "\n"))
	}
	r.Do("CONFIG", "SET", "maxmemory", "100mb")
	r.Do("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
	if found, code := examine(t, file); code != exitFailed || !has(found, findingBad+" store", "noeviction") {
		t.Errorf("a Redis that forgets: %d\n%s", code, strings.Join(found, "\n"))
	}
}

// A clock that is off is found, as far as it matters.
func TestDoctorsClock(t *testing.T) {
	for off, want := range map[time.Duration]string{0: findingGood, 4 * time.Second: findingGood, 8 * time.Second: findingWarn, -8 * time.Second: findingWarn, time.Minute: findingBad, -time.Minute: findingBad} {
		d := &doctor{}
		d.clock("a clock", time.Now().Add(off), time.Now(), 30*time.Second)
		if d.found[0].State != want {
			t.Errorf("%s off: %+v", off, d.found[0])
		}
	}
}

// What a configuration refuses, the doctor refuses as the check does.
func TestDoctorRefusesWhatTheCheckRefuses(t *testing.T) {
	file := filepath.Join(initialised(t), theConfig)
	changeFile(t, file, "version: 1\n", "version: 2\n")
	if out, code := stintCLI(t, "doctor", "--config", file); code != exitRefused || !strings.Contains(out, "stint.yaml:") {
		t.Errorf("%d %s", code, out)
	}
}

// Of Vault it says what Stint's token is good for.
func TestDoctorLooksAtVault(t *testing.T) {
	v := testbed.VaultIfCached(t)
	dir := initialised(t, "--vault", v.Addr)
	file, token := filepath.Join(dir, theConfig), filepath.Join(dir, "vault-token")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := regexp.MustCompile(`(?s)    auth:\n.*?secret_id: [^\n]*\n`).ReplaceAll(text, []byte("    auth: {method: token, token_file: "+token+"}\n"))
	changed = regexp.MustCompile(`secret_hashes: \[[^\]]*\]`).ReplaceAll(changed, []byte(`secret_hashes: ["hmac-sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]`))
	for path, data := range map[string][]byte{file: changed, token: []byte(v.RootToken)} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if found, code := examine(t, file); code != exitFailed || !has(found, findingBad+" Vault", "root token") {
		t.Errorf("a root token: %d\n%s", code, strings.Join(found, "\n"))
	}
	v.Call(t, "PUT", "sys/policies/acl/stint", map[string]any{"policy": `path "secret/*" { capabilities = ["create", "read", "update", "list"] }`})
	v.Call(t, "PUT", "sys/policies/acl/more", map[string]any{"policy": `path "sys/*" { capabilities = ["read"] }`})
	made := v.Call(t, "POST", "auth/token/create", map[string]any{"policies": []string{"stint", "more"}, "ttl": "1h"})
	short, _ := made["auth"].(map[string]any)["client_token"].(string)
	if err := os.WriteFile(token, []byte(short), 0o600); err != nil {
		t.Fatal(err)
	}
	found, _ := examine(t, file)
	if !has(found, findingGood+" Vault", "stint") || !has(found, findingWarn+" Vault", "more as well") {
		t.Errorf("a token that may do more:\n%s", strings.Join(found, "\n"))
	}
}
