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
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
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
// by commas: required, url, https (or plain HTTP on loopback), hostport,
// oneof=a|b, min=N, max=N. A target with SetPos is told where it stood, and one
// with SetRaw is given what stood there. A target with Check is asked, when it
// has been read, what is wrong with it.
func Decode(file string, data []byte, v any) error {
	d := decoder{file: file}
	node, err := d.parse(data)
	if err != nil {
		return err
	}
	if node != nil {
		d.value(node, node, reflect.ValueOf(v).Elem(), "")
	}
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
		return nil, Errors{d.syntax(err)}
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, Errors{d.syntax(err)}
		}
		return nil, Errors{{d.file, more.Line, more.Column, "a second document"}}
	}
	return doc.Content[0], nil
}

// syntax takes the line out of the parser's error.
func (d *decoder) syntax(err error) Error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	e := Error{File: d.file, Text: text}
	if _, rest, ok := strings.Cut(text, "line "); ok {
		number, said, _ := strings.Cut(rest, ":")
		if n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(number, ",", 2)[0])); err == nil {
			e.Line, e.Column, e.Text = n, 1, strings.TrimSpace(said)
		}
	}
	return e
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
		d.inline(at, v, path, before)
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
		if err := c.Check(); err != nil {
			d.failf(at, "%s%v", label(path), err)
		}
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

// field is one field of a struct, embedded ones included.
type field struct {
	name  string
	index []int
	check string
}

func fields(t reflect.Type) (out []field) {
	for f := range t.Fields() {
		name, option, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case name == "-":
		case name == "" && (f.Anonymous || option == "inline") && f.Type.Kind() == reflect.Struct:
			for _, inner := range fields(f.Type) {
				inner.index = append(slices.Clone(f.Index), inner.index...)
				out = append(out, inner)
			}
		case name != "" && f.IsExported():
			out = append(out, field{name, f.Index, f.Tag.Get("check")})
		}
	}
	return out
}

func (d *decoder) object(node *yaml.Node, v reflect.Value, path string) {
	if node.Kind != yaml.MappingNode {
		d.failf(node, "%san object is wanted, not %s", label(path), describe(node))
		return
	}
	all := fields(v.Type())
	seen := make(map[string]*yaml.Node)
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
	}
	for _, f := range all {
		if key := seen[f.name]; slices.Contains(strings.Split(f.check, ","), "required") && (key == nil || v.FieldByIndex(f.index).IsZero()) {
			d.failf(cmp.Or(key, node), "%s%s is missing", label(path), f.name)
		}
	}
}

// inline does for structs that are part of their parent what is done for others:
// it says where they stood, and asks what is wrong with them.
func (d *decoder) inline(at *yaml.Node, v reflect.Value, path string, before int) {
	for f := range v.Type().Fields() {
		if f.Tag.Get("yaml") != ",inline" {
			continue
		}
		part := v.FieldByIndex(f.Index).Addr().Interface()
		if p, ok := part.(positioned); ok {
			p.SetPos(d.file, at.Line, at.Column)
		}
		if c, ok := part.(checked); ok && len(d.errors) == before {
			if err := c.Check(); err != nil {
				d.failf(at, "%s%v", label(path), err)
			}
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
		if strings.EqualFold(strings.ReplaceAll(name, "-", "_"), f.name) || strings.HasPrefix(f.name, name) || strings.HasPrefix(name, f.name) {
			return fmt.Sprintf("; did you mean %s?", f.name)
		}
	}
	slices.Sort(names)
	return "; there are: " + strings.Join(names, ", ")
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
		at := fmt.Sprintf("%s[%d]", path, i)
		if isNull(n) {
			d.failf(n, "%san empty element", label(at))
			continue
		}
		d.value(n, n, v.Index(i), at)
	}
}

func (d *decoder) scalar(node *yaml.Node, v reflect.Value, path string) {
	if node.Kind != yaml.ScalarNode {
		d.failf(node, "%s%s is wanted, not %s", label(path), want(v.Kind()), describe(node))
		return
	}
	wrong := func() { d.failf(node, "%s%s is wanted, not %q", label(path), want(v.Kind()), node.Value) }
	switch v.Kind() {
	case reflect.String:
		v.SetString(node.Value)
	case reflect.Bool:
		if node.Value != "true" && node.Value != "false" {
			wrong()
		}
		v.SetBool(node.Value == "true")
	case reflect.Int, reflect.Int64, reflect.Int32:
		n, err := strconv.ParseInt(node.Value, 10, v.Type().Bits())
		if err != nil {
			wrong()
		}
		v.SetInt(n)
	case reflect.Float64:
		f, err := strconv.ParseFloat(node.Value, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			wrong()
		}
		v.SetFloat(f)
	default:
		panic("strictyaml: no way to read a " + v.Type().String())
	}
}

func want(k reflect.Kind) string {
	switch k {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64, reflect.Int32:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	default:
		return "a text"
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

// plain returns a node as JSON would have it.
func (d *decoder) plain(n *yaml.Node, depth int) any {
	switch {
	case depth > 32:
		d.failf(n, "nested more than 32 deep")
		return nil
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.failf(n, "anchors and aliases are not taken: write it out")
		return nil
	case n.Kind == yaml.MappingNode:
		out := make(map[string]any, len(n.Content)/2)
		seen := make(map[string]*yaml.Node)
		for i := 0; i+1 < len(n.Content); i += 2 {
			if d.key(n.Content[i], seen) {
				out[n.Content[i].Value] = d.plain(n.Content[i+1], depth+1)
			}
		}
		return out
	case n.Kind == yaml.SequenceNode:
		out := make([]any, len(n.Content))
		for i := range n.Content {
			out[i] = d.plain(n.Content[i], depth+1)
		}
		return out
	}
	switch n.Tag {
	case "!!null":
		return nil
	case "!!bool":
		return n.Value == "true"
	case "!!int", "!!float":
		if f, err := strconv.ParseFloat(n.Value, 64); err == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
			return f
		}
	}
	return n.Value
}

// check holds a value against the conditions of its tag.
func (d *decoder) check(node *yaml.Node, v reflect.Value, checks, path string) {
	for c := range strings.SplitSeq(checks, ",") {
		name, arg, _ := strings.Cut(c, "=")
		if err := checkOne(name, arg, v); err != nil {
			d.failf(node, "%s%v", label(path), err)
			return
		}
	}
}

func checkOne(name, arg string, v reflect.Value) error {
	switch name {
	case "", "required":
		return nil
	case "oneof":
		if all := strings.Split(arg, "|"); !slices.Contains(all, v.String()) {
			return fmt.Errorf("%q is none of %s", v.String(), strings.Join(all, ", "))
		}
	case "min", "max":
		n, _ := strconv.ParseInt(arg, 10, 64)
		if name == "min" && v.Int() < n || name == "max" && v.Int() > n {
			return fmt.Errorf("%d is out of bounds: %s is %d", v.Int(), name, n)
		}
	case "url", "https":
		return checkURL(v.String(), name == "https")
	case "hostport":
		if _, port, err := net.SplitHostPort(v.String()); err != nil || !isPort(port) {
			return fmt.Errorf("%q is no address: write HOST:PORT or :PORT", v.String())
		}
	default:
		panic("strictyaml: no such check: " + name)
	}
	return nil
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == s
}

func checkURL(s string, secure bool) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%q is no URL: write https://HOST/PATH", s)
	case u.User != nil || strings.Contains(s, "#"):
		return fmt.Errorf("%q names a user or has a fragment", s)
	case secure && u.Scheme != "https" && !loopback(u.Hostname()):
		return fmt.Errorf("%q: plain http is for loopback addresses; use https", s)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
