package config_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/providers"
	"github.com/stint-dev/stint/providers/aws"
	"github.com/stint-dev/stint/providers/entra"
	"github.com/stint-dev/stint/providers/github"
	"github.com/stint-dev/stint/providers/google"
	"github.com/stint-dev/stint/providers/kubernetes"
	"github.com/stint-dev/stint/providers/oauth"
	"github.com/stint-dev/stint/providers/postgres"
	"github.com/stint-dev/stint/providers/s3"
	"github.com/stint-dev/stint/providers/slack"
	"github.com/stint-dev/stint/providers/static"
	"github.com/stint-dev/stint/providers/vault"
	"github.com/stint-dev/stint/scopes"
)

var update = flag.Bool("update", false, "write the files that tests compare with")

// settings are what the kinds of providers decode.
var settings = map[string]reflect.Type{
	"entra":      reflect.TypeFor[entra.Config](),
	"github":     reflect.TypeFor[github.Config](),
	"oauth":      reflect.TypeFor[oauth.Config](),
	"google":     reflect.TypeFor[google.Config](),
	"aws":        reflect.TypeFor[aws.Config](),
	"postgres":   reflect.TypeFor[postgres.Config](),
	"s3":         reflect.TypeFor[s3.Config](),
	"vault":      reflect.TypeFor[vault.Config](),
	"kubernetes": reflect.TypeFor[kubernetes.Config](),
	"slack":      reflect.TypeFor[slack.Config](),
	"static":     reflect.TypeFor[static.Config](),
}

var duration = object{"type": "string", "pattern": `^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$`}

// shapes are the schemas of types that read themselves.
var shapes = map[string]object{
	"scopes.Duration": duration, "store.Duration": duration, "vault.Duration": duration,
	"upstream.Duration": duration,
	"scopes.Access":     {"enum": texts("read", "write", "admin")},
	"scopes.Text":       {"type": "string"},
	"scopes.Raw":        {},
	"strictyaml.Part":   {"type": "object"},
}

// rules are what code says beyond the tags, by type and by field.
var rules = map[string]object{
	"scopes.Mapping":         {"required": texts("resource", "scopes", "rules")},
	"scopes.Mapping.scopes":  {"minProperties": 1},
	"scopes.Scope":           {"required": texts("access")},
	"scopes.Tool":            {"required": texts("scopes")},
	"scopes.Tool.scopes":     {"minItems": 1},
	"scopes.Tool.arguments":  {"additionalProperties": object{"enum": texts("string", "long", "bool")}},
	"scopes.Rule":            {"required": texts("allow", "to")},
	"scopes.Rule.allow":      {"minItems": 1},
	"scopes.Rule.approval":   {"enum": texts("required")},
	"scopes.To":              {"minProperties": 1},
	"scopes.Ceiling":         {"required": texts("access", "scopes", "vend")},
	"broker.Client.id":       {"pattern": "^[A-Za-z0-9._-]{1,64}$"},
	"broker.Agent.name":      {"pattern": "^[A-Za-z0-9._-]{1,64}$"},
	"broker.Client.resource": {"pattern": "^[^#]+$"},
	"broker.Client.grant_types": {"items": object{
		"enum": texts("urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials"),
	}},
	"broker.ClientAuth":               {"allOf": methods()},
	"broker.ClientAuth.secret_hashes": {"maxItems": 4},
	"broker.Issuer.accept":            {"minItems": 1, "items": object{"enum": texts("access_token", "id_token", "jwt", "client_assertion")}},
	"token.Issuer.algorithms": {"items": object{
		"enum": texts("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"),
	}},
	"token.Issuer.types":     {"propertyNames": object{"enum": texts("access_token", "id_token", "jwt")}},
	"config.Issuer":          {"not": requires("jwks_uri", "jwks_file")},
	"config.Telemetry.ratio": {"minimum": 0, "maximum": 1},
	"config.Provider.name":   {"pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"},
	"store.Config":           kinds("embedded", "file", "redis", "redis"),
	"vault.Config":           kinds("file", "file", "vault", "vault"),
}

// methods says which settings each method of authentication has: of each group one.
func methods() (all []any) {
	keys := texts("jwks", "jwks_file", "jwks_uri")
	groups := [][]any{texts("secret_hashes"), keys, texts("ca_file"), texts("subject_dn", "san_dns", "san_uri", "san_ip", "san_email"),
		texts("issuer"), texts("service_account"), texts("spiffe_id")}
	for _, m := range []struct {
		method string
		needs  [][]any
		may    []any
	}{
		{"client_secret_basic", [][]any{groups[0]}, nil},
		{"client_secret_post", [][]any{groups[0]}, nil},
		{"private_key_jwt", [][]any{keys}, nil},
		{"tls_client_auth", [][]any{groups[3]}, groups[2]},
		{"self_signed_tls_client_auth", [][]any{keys}, nil},
		{"kubernetes", [][]any{groups[4], groups[5]}, nil},
		{"spiffe_x509", [][]any{groups[6], append(texts("ca_file"), keys...)}, nil},
		{"spiffe_jwt", [][]any{groups[6], keys}, nil},
	} {
		never := object{}
		for _, key := range slices.Concat(groups...) {
			never[key.(string)] = false
		}
		var needs []any
		for _, group := range append(m.needs, m.may) {
			var one []any
			for _, key := range group {
				delete(never, key.(string))
				one = append(one, requires(key.(string)))
			}
			needs = append(needs, object{"oneOf": one})
		}
		all = append(all, object{
			"if":   object{"properties": object{"method": object{"const": m.method}}, "required": texts("method")},
			"then": object{"properties": never, "allOf": needs[:len(m.needs)]},
		})
	}
	return all
}

func requires(keys ...string) object { return object{"required": texts(keys...)} }

// kinds says that each kind has a key of its own, and not the other's.
func kinds(first, firstKey, second, secondKey string) object {
	return object{
		"if":   object{"properties": object{"kind": object{"const": first}}},
		"then": object{"required": texts(firstKey), "properties": object{secondKey: false}},
		"else": object{"required": texts(secondKey), "properties": object{firstKey: false}},
	}
}

// configSchema is the schema of stint.yaml, with the settings of each kind of
// provider.
func configSchema(t *testing.T) []byte {
	var root object
	if err := json.Unmarshal(generate(t, "Stint: configuration", reflect.TypeFor[config.Config]()), &root); err != nil {
		t.Fatal(err)
	}
	definitions := root["definitions"].(object)
	provider := definitions["config.Provider"].(object)
	provider["properties"].(object)["kind"].(object)["enum"] = texts(providers.Kinds()...)
	var cases []any
	for _, kind := range providers.Kinds() {
		if settings[kind] == nil {
			t.Fatalf("the settings of a provider of the kind %s are not known here", kind)
		}
		var one object
		if err := json.Unmarshal(generate(t, "", settings[kind]), &one); err != nil {
			t.Fatal(err)
		}
		merge(definitions, one["definitions"].(object))
		cases = append(cases, object{
			"if":   object{"properties": object{"kind": object{"const": kind}}},
			"then": object{"properties": object{"settings": one["allOf"].([]any)[0]}},
		})
	}
	provider["allOf"] = cases
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSchemasAreThoseOfTheTypes(t *testing.T) {
	for name, want := range map[string][]byte{
		"config":  configSchema(t),
		"mapping": generate(t, "Stint: mapping", reflect.TypeFor[scopes.Mapping]()),
	} {
		file := filepath.Join("schema", name+".json")
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got, err := config.Schema(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not of these types and comments (%v): run go test ./internal/config -run TestSchemas -update", file, err)
		}
	}
	if _, err := config.Schema("other"); err == nil || !strings.Contains(err.Error(), "there are config, mapping") {
		t.Errorf("got %v", err)
	}
}

// Whatever an administrator may set, an editor explains.
func TestEveryKeyIsDescribed(t *testing.T) {
	for _, name := range config.Schemas() {
		data, err := config.Schema(name)
		if err != nil {
			t.Fatal(err)
		}
		var root object
		if err := json.Unmarshal(data, &root); err != nil {
			t.Fatal(err)
		}
		for def, d := range root["definitions"].(object) {
			for key, p := range d.(object)["properties"].(object) {
				if p.(object)["description"] == nil && def != "providers.postgres.Public" {
					t.Errorf("%s: %s: %s has no description", name, def, key)
				}
			}
		}
	}
}

// compileSchema returns an embedded schema.
func compileSchema(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	data, err := config.Schema(name)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("stint:"+name, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("stint:" + name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bySchema holds YAML against a schema, as an editor does.
func bySchema(t *testing.T, s *jsonschema.Schema, text string) error {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		return err
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(doc)
}
