package strictyaml

import (
	"reflect"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v4"
)

// shape is what a struct is read as.
type shape struct {
	fields []field
	inline [][]int // structs that are part of it, and say what is wrong with them
}

// field is one field of a struct, embedded ones included.
type field struct {
	name     string
	index    []int
	check    string
	required bool
}

// shapes are those that were looked at before: the many files of a folder are
// read into a few types. They follow from the types alone.
var shapes sync.Map // of *shape, by reflect.Type

func shapeOf(t reflect.Type) *shape {
	if s, ok := shapes.Load(t); ok {
		return s.(*shape)
	}
	s := &shape{fields: fields(t)}
	for f := range t.Fields() {
		if f.Tag.Get("yaml") == ",inline" {
			s.inline = append(s.inline, f.Index)
		}
	}
	shapes.Store(t, s)
	return s
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
			check := f.Tag.Get("check")
			out = append(out, field{name, f.Index, check, slices.Contains(strings.Split(check, ","), "required")})
		}
	}
	return out
}

// inline does for structs that are part of their parent what is done for others:
// it says where they stood, and asks what is wrong with them.
func (d *decoder) inline(node, at *yaml.Node, v reflect.Value, path string, before int) {
	for _, index := range shapeOf(v.Type()).inline {
		part := v.FieldByIndex(index).Addr().Interface()
		if p, ok := part.(positioned); ok {
			p.SetPos(d.file, at.Line, at.Column)
		}
		if c, ok := part.(checked); ok && len(d.errors) == before {
			d.whole(node, at, c.Check(), path)
		}
	}
}
