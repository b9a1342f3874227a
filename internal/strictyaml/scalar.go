package strictyaml

import (
	"math"
	"reflect"
	"strconv"

	"go.yaml.in/yaml/v4"
)

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
