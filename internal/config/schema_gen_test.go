package config_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/scopes"
)

// object is a JSON object.
type object = map[string]any

// generator makes a JSON Schema of the types that YAML is decoded into: of their
// tags yaml and check, and of their comments.
type generator struct {
	t           *testing.T
	definitions object
	docs        map[string]map[string]string // by package path: TYPE.FIELD and its comment
}

// generate returns the schema of a type.
func generate(t *testing.T, title string, of reflect.Type) []byte {
	g := &generator{t: t, definitions: make(object), docs: make(map[string]map[string]string)}
	root := object{
		"$schema": "http://json-schema.org/draft-07/schema#", "title": title,
		"definitions": g.definitions, "allOf": []any{g.schema(of, "")},
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// schema returns the schema of a type under the conditions of a tag check.
func (g *generator) schema(t reflect.Type, check string) object {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if s, ok := shapes[name(t)]; ok {
		return maps.Clone(s)
	}
	switch t.Kind() {
	case reflect.Struct:
		return g.reference(t)
	case reflect.Slice:
		return object{"type": "array", "items": g.schema(t.Elem(), check)}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": g.schema(t.Elem(), check)}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return conditions(object{"type": "integer"}, check)
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.String:
		return conditions(object{"type": "string"}, check)
	}
	g.t.Fatalf("no schema for a %s", t)
	return nil
}

// conditions adds what a tag check says.
func conditions(s object, check string) object {
	for c := range strings.SplitSeq(check, ",") {
		name, arg, _ := strings.Cut(c, "=")
		switch name {
		case "required":
			if s["type"] == "string" {
				s["minLength"] = 1
			}
		case "oneof":
			s["enum"] = texts(strings.Split(arg, "|")...)
		case "min", "max":
			n, _ := strconv.Atoi(arg)
			s[name+"imum"] = n
		case "url":
			s["pattern"] = "^https?://."
		case "https":
			s["pattern"] = `^(https://.|http://(localhost|127\.|\[))`
		case "hostport":
			s["pattern"] = ":[0-9]{1,5}$"
		case "network":
			s["pattern"] = "^[0-9A-Fa-f.:]+/[0-9]{1,3}$"
		case "reference":
			s["pattern"] = strictyaml.Reference
		}
	}
	return s
}

// reference refers to a struct, and puts it among the definitions.
func (g *generator) reference(t reflect.Type) object {
	if g.definitions[name(t)] == nil {
		properties, required := make(object), []any{}
		s := object{"type": "object", "additionalProperties": false, "properties": properties}
		g.definitions[name(t)] = s
		g.fields(t, properties, &required)
		if len(required) > 0 {
			s["required"] = required
		}
		if text, _, _ := strings.Cut(g.comments(t.PkgPath())[t.Name()+"."], "\n\n"); text != "" {
			s["description"] = strings.Join(strings.Fields(text), " ")
		}
		merge(s, rules[name(t)])
	}
	ref := object{"$ref": "#/definitions/" + name(t)}
	if short, ok := shortForms[t]; ok {
		return object{"anyOf": []any{object{"enum": texts(short...)}, ref}}
	}
	return ref
}

// fields adds the fields of a struct, those of inlined ones among them, as
// strictyaml reads them.
func (g *generator) fields(t reflect.Type, properties object, required *[]any) {
	above := ""
	for f := range t.Fields() {
		key, option, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case key == "-" || !f.IsExported() && !f.Anonymous:
		case key == "" && (option == "inline" || f.Anonymous):
			g.fields(f.Type, properties, required)
		case key != "":
			text := g.comments(t.PkgPath())[t.Name()+"."+f.Name]
			if text == "" && slices.Contains(goName.FindAllString(above, -1), f.Name) {
				text = above // one comment for several fields
			}
			above = text
			s := g.schema(f.Type, f.Tag.Get("check"))
			if text != "" {
				s["description"] = g.renamed(t, text)
			}
			properties[key] = merge(s, rules[name(t)+"."+key])
			if slices.Contains(strings.Split(f.Tag.Get("check"), ","), "required") {
				*required = append(*required, key)
			}
		}
	}
}

// name is PACKAGE.TYPE.
func name(t reflect.Type) string {
	path := t.PkgPath()
	if strings.HasSuffix(path, "providers/vault") || strings.HasSuffix(path, "providers/postgres") {
		return "providers." + filepath.Base(path) + "." + t.Name()
	}
	return filepath.Base(path) + "." + t.Name()
}

func texts(in ...string) (out []any) {
	for _, s := range in {
		out = append(out, s)
	}
	return out
}

// merge adds b to a, deeply.
func merge(a, b object) object {
	for k, v := range b {
		inner, ok := a[k].(object)
		more, also := v.(object)
		if ok && also {
			v = merge(inner, more)
		}
		a[k] = v
	}
	return a
}

// shortForms are texts that may stand in place of an object.
var shortForms = map[reflect.Type][]string{
	reflect.TypeFor[scopes.Ceiling]():  {"*"},
	reflect.TypeFor[broker.ScopeUse](): {"identity-only", "ours"},
}

var (
	leading = regexp.MustCompile(`^[A-Z]\w*(, [A-Z]\w*)*( and [A-Z]\w*)?\b`) // the names that a comment begins with
	goName  = regexp.MustCompile(`\b[A-Z]\w*\b`)
)

// renamed is a field's comment with the names that administrators know: of what it
// begins with, of fields that it is the only comment of, and of names that are no
// words.
func (g *generator) renamed(t reflect.Type, text string) string {
	keys, always := make(map[string]string), make(map[string]bool)
	for f := range t.Fields() {
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if key != "" && key != "-" {
			keys[f.Name] = key
			always[f.Name] = strings.Contains(key, "_") || g.comments(t.PkgPath())[t.Name()+"."+f.Name] == ""
		}
	}
	begin := leading.FindString(text)
	begin = goName.ReplaceAllStringFunc(begin, func(s string) string { return cmp.Or(keys[s], s) })
	rest := goName.ReplaceAllStringFunc(leading.ReplaceAllString(text, ""), func(s string) string {
		if always[s] {
			return keys[s]
		}
		return s
	})
	return strings.Join(strings.Fields(begin+rest), " ")
}

// comments reads the comments of a package of ours.
func (g *generator) comments(path string) map[string]string {
	if docs := g.docs[path]; docs != nil {
		return docs
	}
	docs := make(map[string]string)
	g.docs[path] = docs
	files, err := filepath.Glob(filepath.Join("../..", strings.TrimPrefix(path, "github.com/stint-dev/stint/"), "*.go"))
	if err != nil || len(files) == 0 {
		g.t.Fatalf("no source of %s: %v", path, err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			g.t.Fatal(err)
		}
		for _, d := range f.Decls {
			if decl, ok := d.(*ast.GenDecl); ok && decl.Tok == token.TYPE {
				typeComments(docs, decl)
			}
		}
	}
	return docs
}

func typeComments(docs map[string]string, decl *ast.GenDecl) {
	for _, s := range decl.Specs {
		spec := s.(*ast.TypeSpec)
		docs[spec.Name.Name+"."] = decl.Doc.Text() + spec.Doc.Text()
		in, ok := spec.Type.(*ast.StructType)
		if !ok {
			continue
		}
		for _, f := range in.Fields.List {
			for _, n := range f.Names {
				docs[spec.Name.Name+"."+n.Name] = f.Doc.Text()
			}
		}
	}
}
