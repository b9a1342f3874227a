package config_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/scopes"
	"github.com/stint-dev/stint/scopes/grant"
)

// configByCode reads a configuration, and the settings of its providers.
func configByCode(t *testing.T, text string) error {
	t.Helper()
	c, err := config.Load(write(t, t.TempDir(), "stint.yaml", text))
	if err != nil {
		return err
	}
	for _, p := range c.Providers {
		if err := p.Settings.Decode(reflect.New(settings[p.Kind]).Interface()); err != nil {
			return err
		}
	}
	return nil
}

// mappingByCode reads and compiles a mapping.
func mappingByCode(t *testing.T, text string) error {
	t.Helper()
	var m scopes.Mapping
	if err := strictyaml.Decode("m.yaml", []byte(text), &m); err != nil {
		return err
	}
	_, err := scopes.Compile([]*scopes.Mapping{&m}, scopes.World{
		Groups: []string{"staff"}, Issuers: []string{"https://idp.example"},
		Clients: map[string]scopes.Client{"notes": {Resource: "https://api.example", Ceiling: &scopes.Ceiling{Everything: true}}},
		Providers: map[string]*grant.Schema{"db": grant.MustSchema("postgres", 1,
			grant.Dimension{Name: "privileges", Type: grant.PrivSet, Values: []string{"SELECT"}, Reads: []string{"SELECT"}})},
	})
	return err
}

const vaultSecrets = "  kind: vault\n  vault: {address: 'https://v.example', auth: {method: kubernetes, role: stint}, timeout: 3s}"
const fileSecrets = "  kind: file\n  file: {path: data/secrets.age, identity: identity}"

// good are configurations that both take.
var good = map[string]string{
	"as it is":            valid,
	"Redis":               with(embedded, fmtRedis("username: stint, password: 'file:/p', wait_timeout: 500ms, tls: {ca: 'vault:a/b#ca'}, pool_size: 9")),
	"Vault":               with(fileSecrets, vaultSecrets),
	"a duration of parts": with("max_subject_age: 1h", "max_subject_age: 1h30m0.5s"),
	"a ceiling in full":   with(`ceiling: "*"`, `ceiling: {access: write, scopes: {"https://api.example": [a, b]}, vend: "*"}`),
	"scopes of ours":      with("scopes: identity-only", "scopes: ours"),
	"mapped scopes":       with("scopes: identity-only", "scopes: {mapped: {mail: {'https://api.example': [read]}}}"),
	"keys within":         with("jwks_file: notes.json", "jwks: {keys: [{kty: EC}]}"),
	"keys elsewhere":      with("jwks_file: notes.json", "jwks_uri: https://x.example/keys"),
	"metrics in a pod":    with(`{address: "127.0.0.1:8080"}`, `{address: "127.0.0.1:8080", ops: ":9464", insecure_ops: true}`),
	"metrics at home":     with(`{address: "127.0.0.1:8080"}`, `{address: "127.0.0.1:8080", ops: "[::1]:9464"}`),
	"the longest":         with("max_subject_age: 1h", "max_subject_age: 720h\n    max_session_age: 8760h", "", "lifetimes: {token: 24h, credential: 24h}\nrevocation: {max_staleness: 1m, max_clock_offset: 1m, clock_skew: 10m}\nkeys: {overlap: 168h}\n"),
	"an IPv6 address":     with("127.0.0.1:8080", "[::1]:8080"),
	"an issuer at home":   with("https://stint.example", "http://localhost:8080"),
	"everything else": with("", "replica: a\nagents: [{name: d, identities: {'https://idp.example': x}, ceiling: '*'}]\nlifetimes: {token: 1m}\n"+
		"revocation: {max_staleness: 1s}\nkeys: {algorithm: EdDSA}\nlimits: {body: 2048, client_rate: 1.5, trusted_proxies: [10.0.0.0/8]}\n"+
		"network: {allow: ['fd00::/8', 10.1.0.0/16]}\ntelemetry: {endpoint: 'http://o.example:4318', ratio: 0.5, headers: {a: 'env:TOKEN'}}\nlog: {level: warn}\n"),
	"providers": with("", "providers:\n"+
		"  - {name: a, kind: postgres, settings: {host: h, port: 5433, database: d, password: 'env:P', entitlement: none, rows: {own: {entitled: true}}, timeout: 5s}}\n"+
		"  - {name: b, kind: vault, settings: {roles: {r: {mount: database, path: creds/r, policy: stint-r}}, max_lifetime: 1h}}\n"),
}

func fmtRedis(more string) string { return strings.Replace(redis, "%s", more, 1) }

// brokenToo are further configurations that both refuse.
var brokenToo = map[string]string{
	"a key too much in a provider's settings":  with("", "providers: [{name: a, kind: postgres, settings: {host: h, database: d, password: 'env:P', entitlement: none, x: 1}}]\n"),
	"a provider's password that is written":    with("", "providers: [{name: a, kind: postgres, settings: {host: h, database: d, password: geheim, entitlement: none}}]\n"),
	"the settings of another kind of provider": with("", "providers: [{name: a, kind: postgres, settings: {roles: {}}}]\n"),
	"a key of a client that there is not":      with("jwks_file: notes.json", "jwks_path: notes.json"),
	"a ceiling with something missing":         with(`ceiling: "*"`, "ceiling: {access: read, scope: '*', vend: '*'}"),
	"no secret for a secret's method":          with("method: private_key_jwt, jwks_file: notes.json", "method: client_secret_basic"),
	"an algorithm that is none":                with("[ES256]", "[HS256]"),
	"two places for an issuer's keys":          with("algorithms: [ES256]", "algorithms: [ES256]\n    jwks_uri: https://x.example\n    jwks_file: x"),
	"a type that is none":                      with("algorithms: [ES256]", "algorithms: [ES256]\n    types: {refresh_token: [x]}"),
	"a truth that is none":                     with("scopes: identity-only", "scopes: identity-only\n    may_act: sometimes"),
	"a number out of bounds":                   with("", "limits: {body: 7}\n"),
}

// codeAlone are those of broken that take more than a schema to see.
var codeAlone = []string{
	"an issuer with a slash at its end", "an issuer with a query", "nobody to serve", "plain HTTP on every address", "health in full on every address", "metrics on a name",
	"everything in plain HTTP on every address", "tokens of no time", "tokens for years", "tokens for an instant", "staleness without a bound",
	"an overlap of a year", "subjects for years",
	"a header in the store", "a user without a password", "a Redis without TLS", "a session shorter than a token",
	"a secret id in the store that it opens", "a client with a secret in place of its hash", "mistakes of the whole, each of them", "an alias",
	"a second document", // editors look at each by itself
}

func TestSchemaAndCodeAgreeOnConfigurations(t *testing.T) {
	s := compileSchema(t, "config")
	for name, text := range good {
		if err := configByCode(t, text); err != nil {
			t.Errorf("%s: refused: %v", name, err)
		}
		if err := bySchema(t, s, text); err != nil {
			t.Errorf("%s: refused by the schema: %v", name, err)
		}
	}
	for _, cases := range []map[string]string{broken, brokenToo} {
		for name, text := range cases {
			if configByCode(t, text) == nil {
				t.Errorf("%s: not refused", name)
			}
			if refused, alone := bySchema(t, s, text) != nil, slices.Contains(codeAlone, name); refused == alone {
				t.Errorf("%s: refused by the schema: %t", name, refused)
			}
		}
	}
}

func TestSchemaAndCodeAgreeOnMappings(t *testing.T) {
	s := compileSchema(t, "mapping")
	const with = "resource: https://api.example\nscopes:\n  read: {access: read}\n"
	const rule = "rules:\n  - allow: [read]\n    to: {groups: [staff]}\n"
	for name, tc := range map[string]struct {
		text         string
		code, schema bool // whether they take it
	}{
		"as it is": {with + rule, true, true},
		"all that there is": {"resource: https://api.example\nmax_lifetime: 5m\nscopes:\n" +
			"  read: {access: read, about: x, vend: {db: {privileges: [{object: a.b, privileges: SELECT, columns: '*', rows: '*'}]}}}\n" +
			"tools: {t: {scopes: [read], arguments: {n: long}, narrow: {db: {privileges: [{object: a.b, privileges: SELECT, columns: '*', rows: '*'}]}}}}\n" +
			"rules:\n  - {allow: ['*'], to: {clients: [notes], subjects: ['https://idp.example#x'], claims: {iss: 'https://idp.example'}}, when: 'true', approval: required}\n", true, true},
		"an unknown key":                    {with + rule + "tool: {}\n", false, false},
		"no resource":                       {strings.TrimPrefix(with, "resource: https://api.example\n") + rule, false, false},
		"no scopes":                         {"resource: https://api.example\nscopes: {}\n" + rule, false, false},
		"no rules":                          {with, false, false},
		"no access":                         {with + "  other: {about: x}\n" + rule, false, false},
		"an access that is none":            {with + "  other: {access: rw}\n" + rule, false, false},
		"a tool without scopes":             {with + "tools: {t: {scopes: []}}\n" + rule, false, false},
		"an argument that is none":          {with + "tools: {t: {scopes: [read], arguments: {n: float}}}\n" + rule, false, false},
		"a rule that allows nothing":        {with + rule + "  - {allow: [], to: {groups: [staff]}}\n", false, false},
		"a rule for nobody":                 {with + rule + "  - {allow: [read], to: {}}\n", false, false},
		"a rule that does not say":          {with + rule + "  - {allow: [read]}\n", false, false},
		"an approval that is none":          {with + rule + "    approval: maybe\n", false, false},
		"a condition that is no text":       {with + rule + "    when: [x]\n", false, false},
		"a duration that is none":           {with + rule + "max_lifetime: soon\n", false, false},
		"a scope that there is not":         {with + strings.Replace(rule, "[read]", "[write]", 1), false, true},
		"a group that there is not":         {with + strings.Replace(rule, "[staff]", "[others]", 1), false, true},
		"a grant that its provider has not": {strings.Replace(with, "access: read", "access: read, vend: {db: {x: y}}", 1) + rule, false, true},
		// An editor asks for quotes where a text looks like something else, and for
		// something behind every key.
		"a text that looks like a number": {with + strings.Replace(rule, "to:", "when: true\n    to:", 1), true, false},
		"a key with nothing behind it":    {with + rule + "tools:\n", true, false},
	} {
		if err := mappingByCode(t, tc.text); (err == nil) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
		if err := bySchema(t, s, tc.text); (err == nil) != tc.schema {
			t.Errorf("%s: by the schema: %v", name, err)
		}
	}
}
