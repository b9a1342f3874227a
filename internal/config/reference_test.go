package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/providers"
	"github.com/stint-dev/stint/scopes"
)

const referenceBegin = `# Configuration

Every key of ` + "`stint.yaml`" + ` and of the mappings. This page is made of the types that the
files are decoded into and of their comments, by ` + "`go generate ./internal/config`" + `; editors
get the same from ` + "`stint schema config` and `stint schema mapping`" + `. Unknown keys are
mistakes, and ` + "`stint check`" + ` says of every mistake where it stands.

- A *duration* is written as ` + "`500ms`, `15m` or `1h30m`" + `.
- A *reference* names a secret and never holds it: ` + "`file:/PATH`, `env:NAME` or\n  `vault:PATH#FIELD`" + `.
- Relative paths begin at the folder of ` + "`stint.yaml`" + `.
- Keys in **bold** are required.

`

// reference writes the tables of one schema.
type reference struct {
	t           *testing.T
	definitions object
	places      map[string]string // where a definition is described: its heading
	b           bytes.Buffer
}

// newReference begins at an embedded schema.
func newReference(t *testing.T, name string) *reference {
	t.Helper()
	data, err := config.Schema(name)
	if err != nil {
		t.Fatal(err)
	}
	var root struct{ Definitions object }
	if err := json.Unmarshal(data, &root); err != nil {
		t.Fatal(err)
	}
	return &reference{t: t, definitions: root.Definitions, places: make(map[string]string)}
}

// nested is an object inside another, and the heading that it gets.
type nested struct {
	heading string
	of      reflect.Type
}

// describe writes the table of a type, and then those of the objects in it.
func (r *reference) describe(heading, path string, of reflect.Type) {
	def, ok := r.definitions[name(of)].(object)
	if !ok {
		r.t.Fatalf("there is no definition of %s", name(of))
	}
	r.places[name(of)] = heading
	fmt.Fprintf(&r.b, "### %s\n\n", heading)
	if text, ok := strings.CutPrefix(fmt.Sprint(def["description"]), of.Name()); ok && strings.HasPrefix(heading, "`") {
		fmt.Fprintf(&r.b, "%s%s\n\n", heading, text)
	}
	r.b.WriteString("| Key | Value | Meaning |\n|---|---|---|\n")
	var inside []nested
	required, _ := def["required"].([]any)
	for _, f := range orderedFields(of) {
		p := def["properties"].(object)[f.key].(object)
		key := "`" + f.key + "`"
		if slices.Contains(required, any(f.key)) {
			key = "**" + key + "**"
		}
		place := "`" + path + f.key + suffix(f.of) + "`"
		if in := structIn(f.of); in != nil && r.definitions[name(in)] != nil && r.places[name(in)] == "" {
			r.places[name(in)] = place
			inside = append(inside, nested{place, in})
		}
		text, _ := p["description"].(string)
		fmt.Fprintf(&r.b, "| %s | %s | %s |\n", key, r.value(p), strings.ReplaceAll(text, "|", `\|`))
	}
	r.b.WriteString("\n")
	for _, n := range inside {
		r.describe(n.heading, strings.Trim(n.heading, "`")+".", n.of)
	}
}

// field is a key and the type behind it.
type field struct {
	key string
	of  reflect.Type
}

// orderedFields are the keys of a struct as they stand in it, those of inlined
// structs among them.
func orderedFields(t reflect.Type) (out []field) {
	for f := range t.Fields() {
		key, option, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case key == "-" || !f.IsExported() && !f.Anonymous:
		case key == "" && (option == "inline" || f.Anonymous):
			out = append(out, orderedFields(f.Type)...)
		case key != "":
			out = append(out, field{key, f.Type})
		}
	}
	return out
}

// structIn is the struct in a pointer, list or map.
func structIn(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	return t
}

// suffix shows that there are several: [] in a list, .NAME in a map.
func suffix(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return suffix(t.Elem())
	case reflect.Slice:
		return "[]" + suffix(t.Elem())
	case reflect.Map:
		return ".NAME" + suffix(t.Elem())
	}
	return ""
}

// formats are what the patterns of texts are called.
var formats = map[any]string{
	duration["pattern"]: "duration", strictyaml.Reference: "reference", "^https?://.": "URL",
	`^(https://.|http://(localhost|127\.|\[))`: "URL: https, or http on loopback",
	":[0-9]{1,5}$":                "HOST:PORT",
	"^[0-9A-Fa-f.:]+/[0-9]{1,3}$": "network",
}

// value says in words what a schema takes.
func (r *reference) value(p object) string {
	if ref, ok := p["$ref"].(string); ok {
		return r.link(strings.TrimPrefix(ref, "#/definitions/"))
	}
	if either, ok := p["anyOf"].([]any); ok {
		var all []string
		for _, e := range either {
			all = append(all, r.value(e.(object)))
		}
		return strings.Join(all, ", or ")
	}
	if enum, ok := p["enum"].([]any); ok {
		var all []string
		for _, e := range enum {
			all = append(all, fmt.Sprintf("`%v`", e))
		}
		return strings.Join(all, ", ")
	}
	switch p["type"] {
	case "array":
		return "list of: " + r.value(p["items"].(object))
	case "object":
		if of, ok := p["additionalProperties"].(object); ok {
			return "by name: " + r.value(of)
		}
		return "object, of its kind"
	case "string":
		if format := formats[p["pattern"]]; format != "" {
			return format
		}
		return "text"
	case "boolean":
		return "`true`, `false`"
	case "integer", "number":
		return p["type"].(string) + bounds(p)
	case nil:
		return "anything"
	}
	r.t.Fatalf("no words for %v", p)
	return ""
}

// link leads to where an object is described.
func (r *reference) link(definition string) string {
	place := r.places[definition]
	if place == "" {
		r.t.Fatalf("%s is described nowhere", definition)
	}
	anchor := strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '-':
			return c
		case c >= 'A' && c <= 'Z':
			return c - 'A' + 'a'
		case c == ' ':
			return '-'
		}
		return -1
	}, place)
	return fmt.Sprintf("[%s](#%s)", place, anchor)
}

func bounds(p object) string {
	low, isLow := p["minimum"].(float64)
	high, isHigh := p["maximum"].(float64)
	switch {
	case isLow && isHigh:
		return fmt.Sprintf(", %.0f to %.0f", low, high)
	case isLow:
		return fmt.Sprintf(", at least %.0f", low)
	}
	return ""
}

// referenceText is docs/configuration.md.
func referenceText(t *testing.T) []byte {
	main, mapping := newReference(t, "config"), newReference(t, "mapping")
	main.b.WriteString(referenceBegin + "## stint.yaml\n\n")
	main.describe("The file", "", reflect.TypeFor[config.Config]())
	for _, kind := range providers.Kinds() {
		main.describe("Settings of a provider of the kind "+kind, "settings.", settings[kind])
	}
	main.b.WriteString("## mappings/*.yaml\n\n")
	mapping.describe("A mapping", "", reflect.TypeFor[scopes.Mapping]())
	return append(bytes.TrimRight(append(main.b.Bytes(), mapping.b.Bytes()...), "\n"), '\n')
}

func TestTheReferenceIsOfTheTypes(t *testing.T) {
	file, want := filepath.Join("..", "..", "docs", "configuration.md"), referenceText(t)
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not of these types and comments (%v): run go generate ./internal/config", file, err)
	}
}

// Whatever a schema knows has its line, so that nothing is left out unseen.
func TestTheReferenceHasEveryKey(t *testing.T) {
	text := string(referenceText(t))
	lines := 0
	for _, schema := range config.Schemas() {
		for def, d := range newReference(t, schema).definitions {
			for key := range d.(object)["properties"].(object) {
				lines++
				if !strings.Contains(text, "| `"+key+"` |") && !strings.Contains(text, "| **`"+key+"`** |") {
					t.Errorf("%s: %s: %s is not in the reference", schema, def, key)
				}
			}
		}
	}
	if got := strings.Count(text, "\n| `") + strings.Count(text, "\n| **`"); got != lines {
		t.Errorf("the reference has %d keys, the schemas have %d", got, lines)
	}
}
