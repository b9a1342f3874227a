package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stint-dev/stint/api"
)

// completions asks as a shell does, and returns what is offered, without what it is.
func completions(t *testing.T, args ...string) (out []string) {
	t.Helper()
	text, code := stintCLI(t, append([]string{"__complete"}, args...)...)
	offers, directive, ok := strings.Cut(text, ":4\n") // cobra.ShellCompDirectiveNoFileComp
	if code != 0 || !ok {
		t.Fatalf("%q: %d: %s%s", args, code, text, directive)
	}
	for line := range strings.Lines(offers) {
		name, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		out = append(out, name)
	}
	return out
}

func TestShellsCompleteWhatIsAClosedList(t *testing.T) {
	file := filepath.Join(initialised(t), theConfig)
	shortSocket(t, file)
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"clients":                          {[]string{"explain", "-c", file, "--client", ""}, "notes-mcp"},
		"agents and clients":               {[]string{"explain", "-c", file, "--client", "notes-mcp", "--agent", ""}, "desktop notes-mcp"},
		"who is on the way":                {[]string{"explain", "-c", file, "--via", ""}, "desktop notes-mcp"},
		"groups":                           {[]string{"explain", "-c", file, "--group", ""}, "everyone editors"},
		"what can be asked for":            {[]string{"explain", "-c", file, "--resource", ""}, theTarget},
		"targets":                          {[]string{"client", "add", "x", "-c", file, "--target", ""}, theTarget},
		"methods":                          {[]string{"client", "add", "x", "--method", ""}, "client_secret_basic client_secret_post private_key_jwt tls_client_auth self_signed_tls_client_auth kubernetes spiffe_x509 spiffe_jwt"},
		"users":                            {[]string{"dev", "sign-in", ""}, "alice bob carol"},
		"no second user":                   {[]string{"dev", "sign-in", "alice", ""}, ""},
		"ways of printing":                 {[]string{"version", "-o", ""}, "text json yaml"},
		"formats":                          {[]string{"vend", "--format", ""}, "env json pgpass credential-process exec-credential"},
		"types of tokens":                  {[]string{"exchange", "--requested-token-type", ""}, "access_token jwt credential"},
		"what a shell can ask for":         {[]string{"vend", "-c", file, "--resource", ""}, theTarget},
		"a configuration that is not here": {[]string{"explain", "-c", "/does/not/exist.yaml", "--client", ""}, ""},
		"keys, where there are none yet":   {[]string{"keys", "revoke", "-c", file, ""}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(completions(t, tc.args...), " "); got != tc.want {
				t.Errorf("got %q, not %q", got, tc.want)
			}
		})
	}
}

func TestSigningKeysAreCompletedWithAServerAndWithout(t *testing.T) {
	file := filepath.Join(initialised(t), theConfig)
	shortSocket(t, file)
	var keys []api.SigningKey
	keysJSON(t, file, &keys, "list") // which makes the first
	if got := completions(t, "keys", "revoke", "-c", file, ""); len(got) != 1 || got[0] != keys[0].ID {
		t.Errorf("without: %q, not %q", got, keys[0].ID)
	}
	serving(t, file)
	if got := completions(t, "keys", "revoke", "-c", file, ""); len(got) != 1 || got[0] != keys[0].ID {
		t.Errorf("with: %q, not %q", got, keys[0].ID)
	}
	if got := completions(t, "keys", "revoke", "-c", file, keys[0].ID, ""); len(got) != 0 {
		t.Errorf("a second one: %q", got)
	}
}
