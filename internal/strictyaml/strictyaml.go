// Package strictyaml reads YAML files that people write, and says of everything
// that is wrong in them in which file, line and column it stands.
//
// Keys that the target does not know, keys that are there twice, aliases, merge
// keys, tags and further documents are errors. Scalars become what the target
// is, not what YAML guesses: "on" is a text where a text belongs. The package
// finds every mistake before it gives up.
package strictyaml

import (
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// MaxSize is the largest file that is read, in bytes.
const MaxSize = 8 << 20

// Error is one mistake.
type Error struct {
	File         string
	Line, Column int
	Text         string
}

func (e Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Text
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Text)
}

// Errors are all mistakes of a file, in the order of the file.
type Errors []Error

func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// positioned is a target that wants to know where it stood.
type positioned interface {
	SetPos(file string, line, column int)
}

// raw is a target that takes whatever is there, as JSON types.
type raw interface{ SetRaw(v any) }

// checked is a target that can say what is wrong with it as a whole.
type checked interface{ Check() error }

// Decode reads a file's content into v, a pointer to a struct. The error is an
// [Errors].
//
// Fields are named by the tag yaml; "-" leaves one out, and a struct that is
// embedded without a tag or tagged ",inline" is part of its parent. The tag check holds conditions, separated
// by commas: required, url, https (or plain HTTP on loopback), hostport, network
// (such as 10.1.0.0/16), reference (to a secret), oneof=a|b, min=N, max=N; of a span
// of time, min=1s and max=1h. Of
// lists and maps all but the first hold for every element.
//
// A target with SetPos is told where it stood, and one with SetRaw is given what
// stood there. A target with Check is asked, when it has been read, what is wrong
// with it: one error, or several joined. One that begins with the name of a key
// and a colon, as in "auth: method: ...", stands at that key.
func Decode(file string, data []byte, v any) error {
	d := decoder{file: file}
	node, err := d.parse(data)
	if err != nil {
		return err
	}
	if node == nil { // what is required is missing in an empty file too
		node = &yaml.Node{Kind: yaml.MappingNode, Line: 1, Column: 1}
	}
	d.value(node, node, reflect.ValueOf(v).Elem(), "")
	return d.result()
}

// Part is a piece of a file that is decoded later, when it is known into what.
type Part struct {
	file string
	node *yaml.Node
}

// Decode is [Decode] for the piece.
func (p *Part) Decode(v any) error {
	if p == nil || p.node == nil {
		return errors.New("nothing to decode")
	}
	d := decoder{file: p.file}
	d.value(p.node, p.node, reflect.ValueOf(v).Elem(), "")
	return d.result()
}

// Errorf is a mistake at the beginning of the piece.
func (p *Part) Errorf(format string, args ...any) error {
	return Errors{{p.file, p.node.Line, p.node.Column, fmt.Sprintf(format, args...)}}
}

type decoder struct {
	file   string
	errors Errors
}

func (d *decoder) result() error {
	if len(d.errors) == 0 {
		return nil
	}
	slices.SortStableFunc(d.errors, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return d.errors
}

func (d *decoder) failf(n *yaml.Node, format string, args ...any) {
	d.errors = append(d.errors, Error{d.file, n.Line, n.Column, fmt.Sprintf(format, args...)})
}

func (d *decoder) parse(data []byte) (*yaml.Node, error) {
	if len(data) > MaxSize {
		return nil, Errors{{File: d.file, Text: fmt.Sprintf("more than %d bytes", MaxSize)}}
	}
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, Errors{d.syntax(err, data)}
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, Errors{d.syntax(err, data)}
		}
		return nil, Errors{{d.file, more.Line, more.Column, "a second document"}}
	}
	return doc.Content[0], nil
}

// syntax takes the line out of the parser's error.
func (d *decoder) syntax(err error, data []byte) Error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	e := Error{File: d.file, Text: text}
	if _, rest, ok := strings.Cut(text, "line "); ok {
		number, said, _ := strings.Cut(rest, ":")
		if n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(number, ",", 2)[0])); err == nil {
			e.Line, e.Column, e.Text = n, 1, strings.TrimSpace(said)
		}
	}
	if column := indentedByTab(data, e.Line); column > 0 {
		e.Column, e.Text = column, "a tab: indent with spaces"
	}
	return e
}

// indentedByTab returns the column of the tab that a line begins with, after
// spaces at most; 0 if there is none. The parser says of one that a character
// cannot start a token, and nobody can see which.
func indentedByTab(data []byte, line int) int {
	for text := range strings.Lines(string(data)) {
		if line--; line == 0 {
			rest := strings.TrimLeft(text, " ")
			if strings.HasPrefix(rest, "\t") {
				return len(text) - len(rest) + 1
			}
			return 0
		}
	}
	return 0
}

var textType = reflect.TypeFor[encoding.TextUnmarshaler]()

// value decodes node into v. at is where to say that v stood: the key's place
// where there is a key. path names v in errors.
func (d *decoder) value(node, at *yaml.Node, v reflect.Value, path string) {
	if node.Kind == yaml.AliasNode || node.Anchor != "" {
		d.failf(node, "%sanchors and aliases are not taken: write it out", label(path))
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.Type() == reflect.TypeFor[*Part]() {
			v.Set(reflect.ValueOf(&Part{d.file, node}))
			return
		}
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.value(node, at, v.Elem(), path)
		return
	}
	before := len(d.errors)
	target := v.Addr().Interface()
	if p, ok := target.(positioned); ok {
		p.SetPos(d.file, at.Line, at.Column)
	}
	switch r, isRaw := target.(raw); {
	case isRaw:
		r.SetRaw(d.plain(node, 0))
	case node.Kind == yaml.ScalarNode && v.Addr().Type().Implements(textType):
		if err := target.(encoding.TextUnmarshaler).UnmarshalText([]byte(node.Value)); err != nil {
			d.failf(node, "%s%v", label(path), err)
		}
	case v.Kind() == reflect.Struct:
		d.object(node, v, path)
		d.inline(node, at, v, path, before)
	case v.Kind() == reflect.Map:
		d.mapping(node, v, path)
	case v.Kind() == reflect.Slice:
		d.list(node, v, path)
	case v.Kind() == reflect.Interface:
		v.Set(reflect.ValueOf(d.plain(node, 0)))
	default:
		d.scalar(node, v, path)
	}
	if c, ok := target.(checked); ok && len(d.errors) == before {
		d.whole(node, at, c.Check(), path)
	}
}

func label(path string) string {
	if path == "" {
		return ""
	}
	return path + ": "
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func (d *decoder) object(node *yaml.Node, v reflect.Value, path string) {
	if node.Kind != yaml.MappingNode {
		d.failf(node, "%san object is wanted, not %s", label(path), describe(node))
		return
	}
	all := shapeOf(v.Type()).fields
	seen, wrong := make(map[string]*yaml.Node), make(map[string]bool)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, val := node.Content[i], node.Content[i+1]
		if !d.key(key, seen) {
			continue
		}
		n := slices.IndexFunc(all, func(f field) bool { return f.name == key.Value })
		if n < 0 {
			d.failf(key, "%sno such key: %q%s", label(path), key.Value, suggest(key.Value, all))
			continue
		}
		if isNull(val) {
			continue
		}
		before := len(d.errors)
		d.value(val, key, v.FieldByIndex(all[n].index), join(path, key.Value))
		if len(d.errors) == before {
			d.check(val, v.FieldByIndex(all[n].index), all[n].check, join(path, key.Value))
		}
		if len(d.errors) > before {
			wrong[key.Value] = true
		}
	}
	for _, f := range all {
		if key := seen[f.name]; f.required && !wrong[f.name] && (key == nil || v.FieldByIndex(f.index).IsZero()) {
			d.failf(cmp.Or(key, node), "%s%s is missing", label(path), f.name)
		}
	}
}

func (d *decoder) key(key *yaml.Node, seen map[string]*yaml.Node) bool {
	switch {
	case key.Kind != yaml.ScalarNode || key.Tag == "!!merge":
		d.failf(key, "a key is a plain text")
		return false
	case seen[key.Value] != nil:
		d.failf(key, "%q is there already, on line %d", key.Value, seen[key.Value].Line)
		return false
	}
	seen[key.Value] = key
	return true
}

func suggest(name string, all []field) string {
	names := make([]string, len(all))
	for i, f := range all {
		names[i] = f.name
		if alike(strings.ToLower(strings.ReplaceAll(name, "-", "_")), f.name) {
			return fmt.Sprintf("; did you mean %s?", f.name)
		}
	}
	slices.Sort(names)
	return "; there are: " + strings.Join(names, ", ")
}

// alike reports whether a name may have been meant: as its beginning, with more
// behind it, or with one letter or two neighbours wrong.
func alike(name, meant string) bool {
	if strings.HasPrefix(meant, name) || strings.HasPrefix(name, meant) {
		return true
	}
	i := 0
	for i < min(len(name), len(meant)) && name[i] == meant[i] {
		i++
	}
	a, b := name[i:], meant[i:]
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return len(a) <= 1 && len(b) <= 1 || len(a) == 2 && len(b) == 2 && a[0] == b[1] && a[1] == b[0]
}

func (d *decoder) mapping(node *yaml.Node, v reflect.Value, path string) {
	if node.Kind != yaml.MappingNode {
		d.failf(node, "%san object is wanted, not %s", label(path), describe(node))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	seen := make(map[string]*yaml.Node)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, val := node.Content[i], node.Content[i+1]
		if !d.key(key, seen) {
			continue
		}
		e := reflect.New(v.Type().Elem()).Elem()
		if isNull(val) {
			d.failf(key, "%sthere is nothing behind it", label(join(path, key.Value)))
			continue
		}
		d.value(val, key, e, join(path, key.Value))
		v.SetMapIndex(reflect.ValueOf(key.Value).Convert(v.Type().Key()), e)
	}
}

func (d *decoder) list(node *yaml.Node, v reflect.Value, path string) {
	if node.Kind != yaml.SequenceNode {
		d.failf(node, "%sa list is wanted, not %s", label(path), describe(node))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(node.Content), len(node.Content)))
	for i, n := range node.Content {
		at := path + "[" + strconv.Itoa(i) + "]"
		if isNull(n) {
			d.failf(n, "%san empty element", label(at))
			continue
		}
		d.value(n, n, v.Index(i), at)
	}
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "an object"
	case yaml.SequenceNode:
		return "a list"
	default:
		return strconv.Quote(n.Value)
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// Encode writes a value as YAML, with the names and in the order that it has in JSON.
func Encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	block(&doc)
	return yaml.Marshal(&doc)
}

// block has everything written on lines of its own, and quoted only where it must be.
func block(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		block(c)
	}
}
