package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/config"
)

const theTarget = "https://api.example/notes" // of what init writes

// clientEntryIn adds an entry to a configuration, which has to be in order then.
func clientEntryIn(t *testing.T, file, entry string) {
	t.Helper()
	edit(t, file, "clients:\n", "clients:\n"+entry+"\n")
	if out, code := stintCLI(t, "check", "-c", file); code != 0 || strings.Contains(out, "warning") || !strings.Contains(out, "2 clients") {
		t.Errorf("the entry is not one: %d: %s\n%s", code, out, entry)
	}
}

// Either way of printing gives an entry that the configuration takes as it is.
func TestAnEntryForAClientIsTakenAsItIs(t *testing.T) {
	dir := initialised(t)
	original, err := os.ReadFile(filepath.Join(dir, theConfig))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "reports.jwks.json"), publicKey(t), 0o600); err != nil {
		t.Fatal(err)
	}
	const plain = `["urn:ietf:params:oauth:grant-type:token-exchange"]`
	for name, tc := range map[string]struct {
		args []string
		auth string // beginning, as JSON
		more string // the rest of the entry
	}{
		"a secret": {
			nil, `{"method":"client_secret_basic","secret_hashes":["`,
			`"grant_types":` + plain + `,"targets":["https://api.example/notes"],"ceiling":{"access":"read","scopes":"*","vend":"*"}}`,
		},
		"a secret in the form, a resource and its own behalf": {
			[]string{"--method", "client_secret_post", "--resource", "https://mcp.example/reports", "--client-credentials"},
			`{"method":"client_secret_post","secret_hashes":["`,
			`"grant_types":["urn:ietf:params:oauth:grant-type:token-exchange","client_credentials"],"resource":"https://mcp.example/reports",` +
				`"targets":["https://api.example/notes"],"ceiling":{"access":"read","scopes":"*","vend":"*"}}`,
		},
		"a key": {
			[]string{"--method", "private_key_jwt"}, `{"method":"private_key_jwt","jwks_file":"reports.jwks.json"`,
			`"grant_types":` + plain + `,"targets":["https://api.example/notes"],"ceiling":{"access":"read","scopes":"*","vend":"*"}}`,
		},
		"the bundle of a trust domain": {
			[]string{"--method", "spiffe_jwt", "--auth", "spiffe_id=spiffe://acme.example/reports", "--auth", "jwks_uri=https://spire.acme.example/bundle"},
			`{"method":"spiffe_jwt","jwks_uri":"https://spire.acme.example/bundle","spiffe_id":"spiffe://acme.example/reports"`,
			`"grant_types":` + plain + `,"targets":["https://api.example/notes"],"ceiling":{"access":"read","scopes":"*","vend":"*"}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, theConfig)
			if err := os.WriteFile(file, original, 0o600); err != nil {
				t.Fatal(err)
			}
			args := append([]string{"client", "add", "reports", "--target", theTarget, "-c", file}, tc.args...)
			text, code := stintCLI(t, args...)
			if code != 0 {
				t.Fatalf("%d: %s", code, text)
			}
			if hasSecret := strings.Contains(text, "shown this once: "); hasSecret != strings.Contains(name, "a secret") {
				t.Errorf("got\n%s", text)
			}
			clientEntryIn(t, file, text)

			if err := os.WriteFile(file, original, 0o600); err != nil {
				t.Fatal(err)
			}
			out, code := stintCLI(t, append(args, "-o", "json")...)
			var got struct {
				Secret   string
				Entry    json.RawMessage
				Warnings []string
			}
			if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || len(got.Warnings) > 0 {
				t.Fatalf("%d, %v: %s", code, err, out)
			}
			if (len(got.Secret) < 40) == strings.Contains(name, "a secret") {
				t.Errorf("the secret is %q", got.Secret)
			}
			entry := compacted(t, got.Entry)
			if !strings.HasPrefix(entry, `{"id":"reports","auth":`+tc.auth) || !strings.HasSuffix(entry, "},"+tc.more) {
				t.Errorf("the entry is\n%s", entry)
			}
			clientEntryIn(t, file, "  - "+entry)
		})
	}
}

func compacted(t *testing.T, text json.RawMessage) string {
	t.Helper()
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(text); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

func TestWhatAnEntryForAClientWouldNotBeGoodForIsWarnedOf(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		edit []string // of the mapping
		want []string
	}{
		"nothing":      {[]string{"reports", "--target", theTarget}, nil, nil},
		"an id of old": {[]string{"notes-mcp", "--target", theTarget}, nil, []string{"there is a client notes-mcp already, and no second entry may be: to replace its secret, add this hash to its secret_hashes"}},
		"an id of old, with a key": {
			[]string{"notes-mcp", "--target", theTarget, "--method", "private_key_jwt"}, nil, []string{"there is a client notes-mcp already, and no second entry may be"},
		},
		"an agent's name": {[]string{"desktop", "--target", theTarget}, nil, []string{"there is an agent desktop already, and a client may not be called like one"}},
		"no target":       {[]string{"reports"}, nil, []string{"without --target it can be given nothing"}},
		"targets that are nothing": {
			[]string{"reports", "--target", theTarget + "/", "--target", "warehouse", "--target", theTarget}, nil,
			[]string{
				"https://api.example/notes/ is no resource of a mapping and no provider; there are https://api.example/notes",
				"warehouse is no resource of a mapping and no provider; there are https://api.example/notes",
			},
		},
		"mappings that cannot be read": {
			[]string{"reports", "--target", theTarget}, []string{"", "\nrulez: []\n"},
			[]string{"the mappings are not in order, so that the targets were not looked up: stint check says why"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := initialised(t)
			edit(t, filepath.Join(dir, "mappings", "example.yaml"), tc.edit...)
			args := append([]string{"client", "add", "-c", filepath.Join(dir, theConfig)}, tc.args...)
			out, code := stintCLI(t, append(args, "-o", "json")...)
			var got struct {
				Entry    struct{ Targets []string }
				Warnings []string
			}
			if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil {
				t.Fatalf("%d, %v: %s", code, err, out)
			}
			if !slices.Equal(got.Warnings, tc.want) || got.Entry.Targets == nil {
				t.Errorf("got %q, and the targets %q", got.Warnings, got.Entry.Targets)
			}
			text, _ := stintCLI(t, args...)
			for _, w := range tc.want {
				if !strings.Contains(text, "# Warning: "+w+".\n") {
					t.Errorf("no %q in\n%s", w, text)
				}
			}
		})
	}
}

func TestEntriesForClientsThatCannotBe(t *testing.T) {
	file := filepath.Join(initialised(t), theConfig)
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"an id that is a subject":           {[]string{"https://idp.example#alice"}, exitUsage, "is not 1 to 64 letters"},
		"a method that is none":             {[]string{"reports", "--method", "none"}, exitUsage, `spiffe_jwt, not "none"`},
		"a resource that is no URI":         {[]string{"reports", "--resource", "reports"}, exitUsage, "resource: "},
		"no id":                             {nil, exitUsage, "accepts 1 arg(s)"},
		"a configuration that is not there": {[]string{"reports", "-c", "/does/not/exist.yaml"}, exitRefused, ""},
	} {
		out, code := stintCLI(t, append([]string{"client", "add", "-c", file}, tc.args...)...)
		if code != tc.code || !strings.Contains(out, tc.want) || strings.Contains(out, "shown this once") {
			t.Errorf("%s: %d: %s", name, code, out)
		}
	}
}

// A client's secret is made by the running server if there is one, and either way
// the server takes it for the hash.
func TestARunningServerMakesTheSecretOfAClient(t *testing.T) {
	file := filepath.Join(initialised(t), theConfig)
	shortSocket(t, file)
	serving(t, file)
	out, code := stintCLI(t, "client", "add", "reports", "--target", theTarget, "-c", file, "-o", "json")
	var got struct {
		Secret string
		Entry  clientEntry
	}
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || len(got.Secret) < 40 || len(got.Entry.Auth.SecretHashes) != 1 {
		t.Errorf("%d, %v: %s", code, err, out)
	}
}

// Only where it is handed over is the secret to be seen.
func TestTheSecretThatWasMadeIsNotPrintedByTheWay(t *testing.T) {
	file := filepath.Join(initialised(t), theConfig)
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	made, err := makeClient(t.Context(), cfg, "reports", newClientInput{method: "client_secret_basic"})
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", made, *made, *made), slog.AnyValue(*made).String(), string(encoded)} {
		if strings.Contains(text, made.Secret.Reveal()) {
			t.Errorf("it is in %s", text)
		}
	}
}
