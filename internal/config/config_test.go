package config_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/strictyaml"
)

// valid is a configuration that most tests change something in.
const valid = `version: 1
issuer: https://stint.example
data: data
listen: {address: "127.0.0.1:8080"}
store:
  kind: embedded
  file: data/store.db
secrets:
  kind: file
  file: {path: data/secrets.age, identity: identity}
mappings: mappings
issuers:
  - issuer: https://idp.example
    accept: [access_token]
    algorithms: [ES256]
    max_subject_age: 1h
    scopes: identity-only
    groups: [staff]
clients:
  - id: notes
    auth: {method: private_key_jwt, jwks_file: notes.json}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    resource: https://mcp.example/notes
    targets: [https://api.example]
    ceiling: "*"
`

// with puts text in place of other text in valid, or after it.
func with(pairs ...string) string {
	text := valid
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i] == "" {
			text += pairs[i+1]
			continue
		}
		if !strings.Contains(text, pairs[i]) {
			panic("there is no " + pairs[i])
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const redis = `store:
  kind: redis
  redis: {address: "127.0.0.1:6379", %s}
`

const embedded = "store:\n  kind: embedded\n  file: data/store.db\n"

// broken are configurations with what is wrong with them, in the golden file
// errors.txt as an administrator sees it.
var broken = map[string]string{
	"an empty file":                               "",
	"broken YAML":                                 with("data: data", "data: [data"),
	"a tab":                                       with("  kind: embedded", "\tkind: embedded"),
	"an unknown key":                              with("version: 1", "version: 1\nverison: 1"),
	"an unknown key deep down":                    with("algorithms: [ES256]", "algorithms: [ES256]\n    algoritms: [ES256]"),
	"a key twice":                                 with("data: data", "data: data\ndata: other"),
	"a client's key twice":                        with("    targets:", "    resource: https://x.example\n    targets:"),
	"a wrong type":                                with("version: 1", "version: one"),
	"a list where a text belongs":                 with("mappings: mappings", "mappings: [mappings]"),
	"a text where a list belongs":                 with("[access_token]", "access_token"),
	"a later version":                             with("version: 1", "version: 2"),
	"nothing that is required":                    "version: 1\nissuers: []\n",
	"an issuer with a slash at its end":           with("https://stint.example", "https://stint.example/"),
	"an issuer with a query":                      with("https://stint.example", "https://stint.example?x"),
	"an issuer over plain http":                   with("https://stint.example", "http://stint.example"),
	"an issuer that is no URL":                    with("https://stint.example", "stint"),
	"nobody to serve":                             with(valid[strings.Index(valid, "issuers:"):strings.Index(valid, "clients:")], "issuers: []\n"),
	"a provider twice":                            with("", "providers:\n  - {name: a, kind: postgres, settings: {}}\n  - {name: a, kind: vault, settings: {}}\n"),
	"a provider's name that is none":              with("", "providers: [{name: A, kind: postgres, settings: {}}]\n"),
	"a provider without settings":                 with("", "providers: [{name: a, kind: postgres}]\n"),
	"an address without a port":                   with("127.0.0.1:8080", "127.0.0.1"),
	"plain HTTP on every address":                 with("127.0.0.1:8080", ":8080"),
	"health in full on every address":             with(`{address: "127.0.0.1:8080"}`, `{address: "127.0.0.1:8080", ops: "0.0.0.0:9464"}`),
	"metrics on a name":                           with(`{address: "127.0.0.1:8080"}`, `{address: "127.0.0.1:8080", ops: "metrics.example:9464"}`),
	"everything in plain HTTP on every address":   with(`{address: "127.0.0.1:8080"}`, `{address: ":8080", ops: ":9464"}`),
	"an issuer of whom nothing is accepted":       with("[access_token]", "[]"),
	"tokens of no time":                           with("", "lifetimes:\n  token: 0s\n"),
	"tokens for years":                            with("", "lifetimes:\n  token: 100000h\n  credential: 24h1s\n"),
	"tokens for an instant":                       with("", "lifetimes: {token: 1ms, credential: 999ms}\n"),
	"staleness without a bound":                   with("", "revocation: {max_staleness: 61s, max_clock_offset: 2m, clock_skew: 1h}\n"),
	"an overlap of a year":                        with("", "keys:\n  overlap: 8760h\n"),
	"subjects for years":                          with("max_subject_age: 1h", "max_subject_age: 721h\n    max_session_age: 8761h"),
	"a ratio above 1":                             with("", "telemetry: {endpoint: 'https://o.example', ratio: 1.5}\n"),
	"a header that is no reference":               with("", "telemetry:\n  endpoint: https://o.example\n  headers:\n    authorization: Bearer hunter2\n"),
	"a header in the store":                       with("", "telemetry:\n  endpoint: https://o.example\n  headers:\n    authorization: vault:otel#token\n"),
	"a password that is no reference":             with(embedded, fmt.Sprintf(redis, "password: hunter2")),
	"a key that is no reference":                  with(embedded, fmt.Sprintf(redis, "tls: {certificate: 'file:/c', key: '-----BEGIN'}")),
	"a user without a password":                   with(embedded, fmt.Sprintf(redis, "username: stint")),
	"a Redis without TLS":                         with(embedded, strings.Replace(fmt.Sprintf(redis, "db: 0"), "127.0.0.1", "redis.example", 1)),
	"two stores":                                  with("  file: data/store.db", "  file: data/store.db\n  redis: {address: 'localhost:6379'}"),
	"a store that does not exist":                 with("kind: embedded", "kind: mysql"),
	"a network that is none":                      with("", "network:\n  allow:\n    - 10.0.0.0/8\n    - intranet\n"),
	"a duration that is none":                     with("max_subject_age: 1h", "max_subject_age: 1 hour"),
	"a session shorter than a token":              with("max_subject_age: 1h", "max_subject_age: 1h\n    max_session_age: 1m"),
	"a level of logging that does not exist":      with("", "log: {level: loud}\n"),
	"a secret id in the store that it opens":      with("  kind: file\n  file: {path: data/secrets.age, identity: identity}", "  kind: vault\n  vault: {address: 'https://v.example', auth: {method: approle, role_id: x, secret_id: 'vault:a#b'}}"),
	"a client with a secret in place of its hash": with("{method: private_key_jwt, jwks_file: notes.json}", "{method: client_secret_basic, secret_hashes: [hunter2]}"),
	"a client that authenticates in two ways":     with("jwks_file: notes.json", "jwks_file: notes.json, jwks_uri: 'https://x.example'"),
	"a grant type that does not exist":            with("grant_types: [", "grant_types: [password, "),
	"a ceiling that is none":                      with(`ceiling: "*"`, "ceiling: everything"),
	"scopes that are worth something unheard of":  with("scopes: identity-only", "scopes: all"),
	"an alias":                                    with("groups: [staff]", "groups: &g [staff]"),
	"a second document":                           with("", "---\nversion: 1\n"),
	"several mistakes, each of them":              with("version: 1", "version: x", "accept: [access_token]", "accept: [passport]", "data: data", "dta: data"),
	"mistakes of the whole, each of them":         with("https://stint.example", "https://stint.example/", embedded, fmt.Sprintf(redis, "username: stint")),
}

func TestErrorsAsTheyAreSeen(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	var got strings.Builder
	names := make([]string, 0, len(broken))
	for name := range broken {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		write(t, dir, "stint.yaml", broken[name])
		_, err := config.Load("stint.yaml")
		var all strictyaml.Errors
		if !errors.As(err, &all) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, e := range all {
			if e.File != "stint.yaml" || e.Line < 1 || e.Column < 1 || e.Text == "" {
				t.Errorf("%s: %+v stands nowhere", name, e)
			}
		}
		fmt.Fprintf(&got, "# %s\n%v\n\n", name, err)
	}
	if strings.Contains(got.String(), "hunter2") || strings.Contains(got.String(), "Bearer") {
		t.Error("an error shows what may be a secret")
	}
	golden(t, "errors.txt", got.String())
}

// golden compares with a file of testdata, whose folder was changed away from.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join(source, "testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, []byte(got)) {
		t.Errorf("%s is different (-update writes it):\n%s", name, firstDifference(string(want), got))
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return fmt.Sprintf("line %d\nwant %s\ngot  %s", i+1, w[i], g[i])
		}
	}
	return "one is longer"
}

// source is the folder of this package.
var source, _ = os.Getwd()

func TestLoadFillsInWhatIsAbsent(t *testing.T) {
	dir := t.TempDir()
	c, err := config.Load(write(t, dir, "stint.yaml", valid))
	if err != nil {
		t.Fatal(err)
	}
	for what, ok := range map[string]bool{
		"lifetimes":   c.Lifetimes.Token.Duration == 5*time.Minute && c.Lifetimes.Credential.Duration == 15*time.Minute,
		"revocation":  c.Revocation.MaxStaleness.Duration == 2*time.Second && c.Revocation.MaxClockOffset.Duration == time.Second,
		"clock skew":  c.Revocation.ClockSkew.Duration == 30*time.Second,
		"keys":        c.Keys.Algorithm == "ES256" && c.Keys.Overlap.Duration == 10*time.Minute,
		"log":         c.Log.Level == "info" && c.Log.Format == "json",
		"ops":         c.Listen.Ops == "127.0.0.1:9464",
		"data":        c.Data == filepath.Join(dir, "data") && c.Journal() == filepath.Join(dir, "data/journal"),
		"socket":      c.Listen.Socket == filepath.Join(dir, "data/stint.sock"),
		"mappings":    c.Mappings == filepath.Join(dir, "mappings"),
		"replica":     c.Replica != "",
		"issuer's id": c.Issuers[0].Tokens.ID == "https://idp.example",
		"file":        c.Path("x") == filepath.Join(dir, "x") && c.Path("/x") == "/x" && c.Path("") == "",
	} {
		if !ok {
			t.Errorf("%s: not as it should be: %+v", what, c)
		}
	}
	if p := c.Issuers[0].Policy.Pos; p.Line != 13 || p.Column != 5 {
		t.Errorf("the issuer stands at %s", p)
	}
}

func TestLoadKeepsWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	c, err := config.Load(write(t, dir, "stint.yaml", with("data: data", "data: /var/lib/stint\nreplica: one",
		`{address: "127.0.0.1:8080"}`, `{address: ":8443", ops: "127.0.0.1:1", socket: run/s, tls: {certificate: c.pem, key: /k.pem}}`,
		"", "lifetimes: {token: 1m}\nkeys: {algorithm: EdDSA}\nlog: {level: debug, format: text}\ntelemetry: {endpoint: 'https://o.example', ratio: 0, headers: {a: 'env:A'}}\n")))
	if err != nil {
		t.Fatal(err)
	}
	l := c.Listen
	if c.Data != "/var/lib/stint" || c.Replica != "one" || l.Ops != "127.0.0.1:1" || l.Socket != filepath.Join(dir, "run/s") ||
		l.TLS.Certificate != filepath.Join(dir, "c.pem") || l.TLS.Key != "/k.pem" || c.Lifetimes.Token.Duration != time.Minute ||
		c.Keys.Algorithm != "EdDSA" || c.Log.Level != "debug" || c.Log.Format != "text" || *c.Telemetry.Ratio != 0 {
		t.Errorf("got %+v", c)
	}
}

// A configuration that lies elsewhere means the same, wherever one is.
func TestPathsBeginAtTheFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, dir, "etc/stint.yaml", valid)
	c, err := config.Load("etc/stint.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Data != "etc/data" || c.Listen.Socket != "etc/data/stint.sock" || c.Mappings != "etc/mappings" {
		t.Errorf("got %s, %s, %s", c.Data, c.Listen.Socket, c.Mappings)
	}
}

func TestAClientThatActsForItselfNeedsNoIssuer(t *testing.T) {
	text := with(valid[strings.Index(valid, "issuers:"):strings.Index(valid, "clients:")], "issuers: []\n", "grant_types: [", "grant_types: [client_credentials, ")
	if _, err := config.Load(write(t, t.TempDir(), "stint.yaml", text)); err != nil {
		t.Error(err)
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "large", strings.Repeat("#\n", strictyaml.MaxSize/2+1))
	write(t, dir, "file", "")
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"absent": "there is no such file",
		"folder": "is no file",
		"large":  "more than 8388608 bytes",
		"file/x": "not a directory",
		"loop":   "too many levels of symbolic links",
	} {
		path := filepath.Join(dir, name)
		if _, err := config.Load(path); err == nil || err.Error() != path+": "+want {
			t.Errorf("%s: got %v", name, err)
		}
	}
	private := write(t, dir, "private", valid)
	if err := os.Chmod(private, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(private); os.Getuid() != 0 && (err == nil || err.Error() != private+": permission denied") {
		t.Errorf("got %v", err)
	}
}

func TestMistakesThatShowLater(t *testing.T) {
	path := write(t, t.TempDir(), "stint.yaml", with("", "network: {ca: ca.pem}\n"))
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Errorf("network: ca: %s", "no"); err.Error() != path+":26:11: network: ca: no" {
		t.Error(err)
	}
	if err := c.Errorf("other"); err.Error() != path+": other" {
		t.Error(err)
	}
}

func TestWhereAKeyStands(t *testing.T) {
	path := write(t, t.TempDir(), "stint.yaml", valid)
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	for want, keys := range map[string][]string{
		":24:15": {"clients[0]", "targets[0]"},
		":24:5":  {"clients[0]", "targets"},
		":20:5":  {"clients[0]", "nothing"},
		":19:1":  {"clients", "1"},
		":10:34": {"secrets.file.identity", "deeper"},
		"":       {"nothing"},
	} {
		if p := c.Pos(keys...); p.String() != path+want {
			t.Errorf("%q stands at %s, not %s", keys, p, want)
		}
	}
}
