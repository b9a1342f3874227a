package strictyaml

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// whole reports what Check said of the target that stood at node.
func (d *decoder) whole(node, at *yaml.Node, err error, path string) {
	if err == nil {
		return
	}
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range several.Unwrap() {
			d.whole(node, at, one, path)
		}
		return
	}
	d.failf(blamed(node, at, err.Error()), "%s%v", label(path), err)
}

// Errorf is a mistake in a file that was decoded already: at the key whose name,
// with a colon, the text begins with, as that of Check; else in the file.
func Errorf(file string, data []byte, format string, args ...any) error {
	e := Error{File: file, Text: fmt.Sprintf(format, args...)}
	d := decoder{file: file}
	if root, err := d.parse(data); err == nil && root != nil {
		if at := blamed(root, root, e.Text); at != root {
			e.Line, e.Column = at.Line, at.Column
		}
	}
	return Errors{e}
}

// Find returns where a key stands in a file that was decoded already: the last of
// keys, each in what stands at the one before, or of them the last that there is. A
// key is a name, an element as in list[2], or a path of both. Without any it is 0, 0.
func Find(file string, data []byte, keys ...string) (line, column int) {
	d := decoder{file: file}
	node, err := d.parse(data)
	if err != nil {
		return 0, 0
	}
	for _, name := range keys {
		if node == nil {
			break
		}
		at, value := lookUp(node, name)
		if at == nil {
			break
		}
		line, column, node = at.Line, at.Column, value
	}
	return line, column
}

// blamed returns the key that a text about node begins with, or at.
func blamed(node, at *yaml.Node, text string) *yaml.Node {
	for {
		name, rest, ok := strings.Cut(text, ": ")
		if !ok || node == nil {
			return at
		}
		key, value := lookUp(node, name)
		if key == nil {
			return at
		}
		node, at, text = value, key, rest
	}
}

// lookUp returns what a name leads to in a node: a key, an element as in list[2],
// or a path of them as in a.list[2].b.
func lookUp(node *yaml.Node, name string) (at, value *yaml.Node) {
	if node.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == name {
				return node.Content[i], node.Content[i+1]
			}
		}
	}
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		if _, value = lookUp(node, name[:i]); value == nil {
			return nil, nil
		}
		return lookUp(value, name[i+1:])
	}
	if i := strings.LastIndexByte(name, '['); i > 0 && strings.HasSuffix(name, "]") {
		_, value = lookUp(node, name[:i])
		n, err := strconv.Atoi(name[i+1 : len(name)-1])
		if err == nil && value != nil && value.Kind == yaml.SequenceNode && n >= 0 && n < len(value.Content) {
			return value.Content[n], value.Content[n]
		}
	}
	return nil, nil
}

// check holds a value, or each of its elements, against the conditions of its tag.
func (d *decoder) check(node *yaml.Node, v reflect.Value, checks, path string) {
	switch {
	case checks == "" || checks == "required":
		return
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			d.check(node.Content[i], v.Index(i), checks, fmt.Sprintf("%s[%d]", path, i))
		}
		return
	case v.Kind() == reflect.Map:
		for i := 0; i+1 < len(node.Content); i += 2 {
			key := node.Content[i].Value
			d.check(node.Content[i+1], v.MapIndex(reflect.ValueOf(key).Convert(v.Type().Key())), checks, join(path, key))
		}
		return
	}
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
		return checkBound(name, arg, v)
	case "url", "https":
		return checkURL(v.String(), name == "https")
	case "hostport":
		if _, port, err := net.SplitHostPort(v.String()); err != nil || !isPort(port) {
			return fmt.Errorf("%q is no address: write HOST:PORT or :PORT", v.String())
		}
	case "network":
		if _, err := netip.ParsePrefix(v.String()); err != nil {
			return fmt.Errorf("%q is no network: write for example 10.1.0.0/16", v.String())
		}
	case "reference":
		if !reference.MatchString(v.String()) { // and it is not repeated: it may be the secret itself
			return errors.New("a secret is not written here, but named: file:/PATH, env:NAME or vault:PATH#FIELD")
		}
	default:
		panic("strictyaml: no such check: " + name)
	}
	return nil
}

// checkBound holds a number, or a span of time, against its least or its most.
func checkBound(name, arg string, v reflect.Value) error {
	span := v.Kind() == reflect.Struct
	var n int64
	if span { // a struct around a time.Duration, as types of spans are
		d, _ := time.ParseDuration(arg)
		n, v = int64(d), v.Field(0)
	} else {
		n, _ = strconv.ParseInt(arg, 10, 64)
	}
	switch {
	case name == "min" && v.Int() >= n || name == "max" && v.Int() <= n:
		return nil
	case span:
		return fmt.Errorf("%s is out of bounds: %s is %s", time.Duration(v.Int()), name, arg)
	}
	return fmt.Errorf("%d is out of bounds: %s is %d", v.Int(), name, n)
}

// Reference is the form of references to secrets, as a regular expression.
const Reference = `^(file:/[^\x00]*|env:[A-Za-z_][A-Za-z0-9_]*|vault:[a-z0-9_-]+(/[a-z0-9_-]+)*#[^\x00]+)$`

var reference = regexp.MustCompile(Reference)

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == s
}

func checkURL(s string, secure bool) error {
	u, err := url.Parse(s)
	switch {
	case err == nil && u.User != nil || err != nil && strings.Contains(s, "@"):
		return errors.New("a URL does not name a user") // and is not repeated: a password may be in it
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%q is no URL: write https://HOST/PATH", s)
	case strings.Contains(s, "#"):
		return fmt.Errorf("%q has a fragment", s)
	case secure && u.Scheme != "https" && !loopback(u.Hostname()):
		return fmt.Errorf("%q: plain http is for loopback addresses; use https", s)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
