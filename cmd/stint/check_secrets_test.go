package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/config"
)

// What a server reads when it starts is looked for where it is named, and its value
// is shown to nobody.
func TestCheckLooksForTheSecretsThatTheServerStartsWith(t *testing.T) {
	const headers = "telemetry: {endpoint: 'https://otel.example', headers: {a: 'env:STINT_TEST_HERE', b: 'REF'}}\n"
	t.Setenv("STINT_TEST_HERE", "c4nary")
	redis := []string{"--redis", "127.0.0.1:6379"}
	for name, tc := range map[string]struct {
		init  []string
		spoil func(t *testing.T, dir string)
		edits []string
		want  string // FILE:LINE:COLUMN: TEXT, its beginning; empty: all is there
	}{
		"all of it": {want: ""},
		"no identity": {spoil: removed("private/identity"),
			want: "stint.yaml:40:5: secrets: file: identity: private/identity: it does not exist: put the copy of it back"},
		"no sealed file": {spoil: removed("data/secrets.age"),
			want: "stint.yaml:39:5: secrets: file: path: sealed file data/secrets.age: it does not exist: put a copy of it back"},
		"an identity that others may read": {spoil: func(t *testing.T, dir string) { chmod(t, filepath.Join(dir, "private/identity"), 0o644) },
			want: "stint.yaml:40:5: secrets: file: identity: private/identity has mode 0644, which lets others at it: chmod 0600"},
		"a sealed file that others may write": {spoil: func(t *testing.T, dir string) { chmod(t, filepath.Join(dir, "data/secrets.age"), 0o666) },
			want: "stint.yaml:39:5: secrets: file: path: sealed file data/secrets.age: data/secrets.age has mode 0666"},
		"an identity of another file": {spoil: func(t *testing.T, dir string) {
			other, err := os.ReadFile(filepath.Join(initialised(t), "private/identity"))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "private/identity"), other, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, want: "stint.yaml:39:5: secrets: file: path: sealed file data/secrets.age: the identity does not open it"},
		"a variable that is not set": {edits: []string{"", strings.Replace(headers, "REF", "env:STINT_TEST_NOWHERE", 1)},
			want: "stint.yaml:102:83: telemetry: headers: b: env:STINT_TEST_NOWHERE: there is nothing there"},
		"a file that is not there": {edits: []string{"", strings.Replace(headers, "REF", "file:/does/not/exist", 1)},
			want: "stint.yaml:102:83: telemetry: headers: b: open /does/not/exist: no such file or directory"},
		"headers that are there":     {edits: []string{"", strings.Replace(headers, "REF", "env:STINT_TEST_HERE", 1)}},
		"Redis without its password": {init: redis, want: "stint.yaml:35:5: store: redis: password: open /run/secrets/stint-redis: no such file"},
		"Redis with a password that is not in the sealed file": {init: redis, edits: []string{"file:/run/secrets/stint-redis", "vault:redis#password"},
			want: "stint.yaml:35:5: store: redis: password: vault:redis#password: redis: not found"},
		"Redis by a certificate that is not there": {init: redis, edits: []string{"file:/run/secrets/stint-redis", "env:STINT_TEST_HERE\n    tls: {ca: 'file:/does/not/exist'}"},
			want: "stint.yaml:36:11: store: redis: tls: ca: open /does/not/exist: no such file"},
		"Vault without what opens it": {init: []string{"--vault", "http://127.0.0.1:1"}, want: "stint.yaml:46:7: secrets: vault: auth: secret_id: open /run/secrets/stint-secret-id: no such file"},
		"Vault without its token": {init: []string{"--vault", "http://127.0.0.1:1"}, spoil: func(t *testing.T, dir string) {
			text, err := os.ReadFile(filepath.Join(dir, theConfig))
			if err != nil {
				t.Fatal(err)
			}
			before, rest, _ := strings.Cut(string(text), "      method: approle\n")
			_, after, _ := strings.Cut(rest, "\n\n")
			if err := os.WriteFile(filepath.Join(dir, theConfig), []byte(before+"      method: token\n      token_file: nowhere\n\n"+after), 0o600); err != nil {
				t.Fatal(err)
			}
		}, want: "stint.yaml:45:7: secrets: vault: auth: token_file: open nowhere: no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := initialised(t, tc.init...)
			file := filepath.Join(dir, theConfig)
			if tc.spoil != nil {
				tc.spoil(t, dir)
			}
			edit(t, file, tc.edits...)
			before := tree(t, dir)
			r := check(t.Context(), file, checkHere)
			var got []string
			for _, m := range r.Mistakes {
				got = append(got, strings.ReplaceAll(m.String(), dir+"/", ""))
			}
			if tree(t, dir) != before {
				t.Errorf("the check left something behind:\n%s", tree(t, dir))
			}
			if r := check(t.Context(), file, checkAway); !r.OK {
				t.Errorf("without secrets: %v", r.Mistakes)
			}
			if strings.Contains(strings.Join(got, "\n"), "c4nary") {
				t.Errorf("a secret is shown: %q", got)
			}
			if tc.want == "" {
				if !r.OK {
					t.Errorf("got %q", got)
				}
				return
			}
			if len(got) != 1 || !strings.HasPrefix(got[0], tc.want) || r.OK {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
			doesNotStart(t, file)
		})
	}
}

func removed(name string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func chmod(t *testing.T, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

// doesNotStart holds against a server what a check refuses.
func doesNotStart(t *testing.T, file string) {
	t.Helper()
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	tel, err := newTelemetry(t.Context(), cfg, log)
	if err != nil {
		return
	}
	defer tel.shutdown()
	if s, err := build(t.Context(), cfg, log, tel); err == nil {
		_ = s.Close()
		t.Error("a server would start with it")
	}
}

// What only trying finds out is left to --live, and a server does not start with it
// either.
func TestLiveCheckTriesWhatTheServerKeeps(t *testing.T) {
	junk := []byte(strings.Repeat("junk", 4096))
	for name, tc := range map[string]struct {
		edits []string
		spoil func(t *testing.T, dir string)
		want  map[string]string
	}{
		"a sealed file that nobody can lock": {nil, func(t *testing.T, dir string) {
			f, err := os.Open(filepath.Join(dir, "data/secrets.age"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			edit(t, filepath.Join(dir, theConfig), "data/secrets.age", fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		}, map[string]string{"secrets": "missing: nothing can be made in /proc/self/fd: "}},
		"a store that is none": {nil, func(t *testing.T, dir string) { put(t, filepath.Join(dir, "data/store.db"), junk) }, map[string]string{"store": "missing: embedded store "}},
		"a journal that is none": {nil, func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, "data/journal", strings.Repeat("0", 19)+"1.journal"), junk)
		}, map[string]string{"journal": "missing: journal is damaged: "}},
		"a data folder that nobody can make": {[]string{"data: data", "data: /proc/nope"}, nil, map[string]string{"data": "missing: nothing can be made in /proc: "}},
		"a data folder that is a file": {[]string{"data: data", "data: stint.yaml"}, nil,
			map[string]string{"data": "missing: nothing can be made in stint.yaml: not a directory", "journal": "missing: "}},
		"a store where nobody can make it": {[]string{"file: data/store.db", "file: /proc/nope/store.db"}, nil, map[string]string{"store": "missing: nothing can be made in /proc: "}},
	} {
		t.Run(name, func(t *testing.T) {
			issuer := publishing(t)
			dir := initialised(t, "--trust", issuer)
			file := filepath.Join(dir, theConfig)
			shortSocket(t, file)
			edit(t, file, "127.0.0.1:8080", "127.0.0.1:0", "127.0.0.1:9464", "127.0.0.1:0")
			edit(t, file, tc.edits...)
			if tc.spoil != nil {
				tc.spoil(t, dir)
			}
			if r := check(t.Context(), file, checkHere); !r.OK {
				t.Errorf("it was tried without --live: %v", r.Mistakes)
			}
			before := tree(t, dir)
			r := check(t.Context(), file, checkLive)
			if r.OK || len(r.missing()) != len(tc.want) {
				t.Errorf("got %v, %q", r.OK, states(r))
			}
			for name, want := range tc.want {
				if got := strings.ReplaceAll(states(r)[name], dir+"/", ""); !strings.HasPrefix(got, want) {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
			if tree(t, dir) != before {
				t.Errorf("the check changed something:\n%s", tree(t, dir))
			}
			doesNotStart(t, file)
		})
	}
}

func put(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A typo in a target makes seeming mistakes in mappings: what names it is shown
// beside them.
func TestATypoInATargetIsNamedBesideTheMistakesThatItMakes(t *testing.T) {
	file := filepath.Join(initialised(t), theConfig)
	edit(t, file, "targets: [https://api.example/notes]", "targets: [https://api.example/nots]")
	const want = `stint.yaml:71:15: client notes-mcp: its target "https://api.example/nots" is no resource of a mapping and no provider`
	r := check(t.Context(), file, checkHere)
	if len(r.Mistakes) == 0 || len(r.Warnings) != 1 || !strings.HasSuffix(r.Warnings[0].String(), want) {
		t.Errorf("got %v beside %v", r.Warnings, r.Mistakes)
	}
	out, code := stintCLI(t, "check", "-c", file)
	if code != exitRefused || !strings.Contains(out, strings.Replace(want, "client", "warning: client", 1)) {
		t.Errorf("the command: %d: %s", code, out)
	}
}

func TestCheckGoesOneWayOrTheOther(t *testing.T) {
	if out, code := stintCLI(t, "check", "--live", "--no-secrets"); code != exitUsage {
		t.Errorf("%d: %s", code, out)
	}
	// In a pipeline there is the configuration, and nothing else.
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	for _, name := range []string{"private", "data"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if out, code := stintCLI(t, "check", "-c", file); code != exitRefused || !strings.Contains(out, "secrets: file: identity: ") {
		t.Errorf("with secrets: %d: %s", code, out)
	}
	if out, code := stintCLI(t, "check", "--no-secrets", "-c", file); code != 0 {
		t.Errorf("without: %d: %s", code, out)
	}
}
