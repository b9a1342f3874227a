package main

import (
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
)

// keysJSON runs a command about keys and reads what it printed.
func keysJSON(t *testing.T, file string, into any, args ...string) {
	t.Helper()
	out, code, err := command(t, append([]string{"keys", "-c", file, "-o", "json"}, args...)...)
	if code != 0 || json.Unmarshal([]byte(out), into) != nil {
		t.Fatalf("keys %q: %d, %v: %s", args, code, err, out)
	}
}

// publishedBy returns the ids of the keys that a server publishes.
func publishedBy(t *testing.T, address string) (ids []string) {
	t.Helper()
	resp, err := http.Get("http://" + address + "/oauth2/jwks")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	var set struct {
		Keys []struct{ Kid string }
	}
	if err != nil || json.Unmarshal(data, &set) != nil {
		t.Fatalf("%v: %s", err, data)
	}
	for _, k := range set.Keys {
		ids = append(ids, k.Kid)
	}
	return ids
}

func TestARevokedKeyLeavesTheSecrets(t *testing.T) {
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	shortSocket(t, file)
	var first, keys []api.SigningKey
	keysJSON(t, file, &first, "list")
	if len(first) != 1 {
		t.Fatalf("got %+v", first)
	}
	var out api.RevokedKey
	keysJSON(t, file, &out, "revoke", first[0].ID)
	if out.Revoked != first[0].ID || !out.New || out.Signs.State != "active" || out.Signs.ID == first[0].ID || out.Within != 60 {
		t.Errorf("got %+v", out)
	}
	var next api.SigningKey
	keysJSON(t, file, &next, "rotate")
	text, code := stintCLI(t, "keys", "revoke", out.Signs.ID, "-c", file)
	if code != 0 || !strings.Contains(text, "revoked "+out.Signs.ID+": it is published no more") || !strings.Contains(text, next.ID+" (ES256) signs\n") {
		t.Errorf("got %d: %s", code, text)
	}
	if keysJSON(t, file, &keys, "list"); len(keys) != 1 || keys[0].ID != next.ID || keys[0].State != "active" {
		t.Errorf("left: %+v", keys)
	}
	if got := publishedBy(t, serving(t, file)); !slices.Equal(got, []string{next.ID}) {
		t.Errorf("a server publishes %v, not %s", got, next.ID)
	}
}

func TestKeysThatCannotBeRevoked(t *testing.T) {
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	shortSocket(t, file)
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"none is named":       {nil, exitUsage, "accepts 1 arg(s)"},
		"one that is unknown": {[]string{"nobody"}, exitRefused, `there is no signing key "nobody": not found; stint keys list`},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := stintCLI(t, append([]string{"keys", "revoke", "-c", file}, tc.args...)...)
			if code != tc.code || !strings.Contains(out, tc.want) {
				t.Errorf("got %d: %s", code, out)
			}
		})
	}
	serving(t, file)
	if out, code := stintCLI(t, "keys", "revoke", "nobody", "-c", file); code != exitRefused || !strings.Contains(out, "there is no such signing key") {
		t.Errorf("of a server: %d: %s", code, out)
	}
}

func TestARunningServerRevokesAtOnce(t *testing.T) {
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	shortSocket(t, file)
	address := serving(t, file)
	old := publishedBy(t, address)
	var out api.RevokedKey
	keysJSON(t, file, &out, "revoke", old[0])
	if got := publishedBy(t, address); !out.New || !slices.Equal(got, []string{out.Signs.ID}) || out.Signs.ID == old[0] {
		t.Errorf("%+v; published: %v", out, got)
	}
	text, code := stintCLI(t, "audit", "tail", "-c", file)
	for _, want := range []string{
		`change="signing key revoked" before=` + old[0] + " after=" + out.Signs.ID, // the key itself
		"selector=key=" + old[0], // what was obtained with it
	} {
		if code != 0 || !strings.Contains(text, want) {
			t.Errorf("the record: %d: no %q in %s", code, want, text)
		}
	}
}

// Rotated by hand, a key is published as long as the server would publish it.
func TestKeysRotatedByHandAreKeptAsTheConfigurationSays(t *testing.T) {
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	shortSocket(t, file)
	edit(t, file, "credential: 15m", "credential: 8h", "", "revocation: {clock_skew: 1m}\n")
	var keys []api.SigningKey
	var made api.SigningKey
	keysJSON(t, file, &made, "rotate", "--now")
	keysJSON(t, file, &keys, "list")
	if len(keys) != 2 || !keys[0].Until.Equal(made.Active.Add(8*time.Hour+time.Minute)) {
		t.Errorf("the old key is published until %v, not for eight hours from %v", keys[0].Until, made.Active)
	}
}
