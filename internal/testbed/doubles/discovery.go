package doubles

import (
	"encoding/json"
	"fmt"
	"os"
)

// Discovery is what Google says that one of its APIs takes and answers.
type Discovery struct {
	Schemas map[string]*Shape `json:"schemas"`
}

// Shape is one schema of a discovery document.
type Shape struct {
	Type       string            `json:"type"`
	Ref        string            `json:"$ref"`
	Properties map[string]*Shape `json:"properties"`
	Items      *Shape            `json:"items"`
}

// ReadDiscovery reads a discovery document.
func ReadDiscovery(file string) (*Discovery, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var d Discovery
	return &d, json.Unmarshal(data, &d)
}

// Check holds a decoded JSON value against a schema. Members that the schema does not
// have are an error.
func (d *Discovery) Check(schema string, v any) error {
	s := d.Schemas[schema]
	if s == nil {
		return fmt.Errorf("there is no schema %s", schema)
	}
	return d.check(s, v, schema)
}

func (d *Discovery) check(s *Shape, v any, path string) error {
	if s.Ref != "" {
		return d.check(d.Schemas[s.Ref], v, path)
	}
	wrong := fmt.Errorf("%s: %T is no %s", path, v, s.Type)
	switch s.Type {
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			return wrong
		}
		for name, member := range m {
			p := s.Properties[name]
			if p == nil {
				return fmt.Errorf("%s has no member %s", path, name)
			}
			if err := d.check(p, member, path+"."+name); err != nil {
				return err
			}
		}
	case "array":
		list, ok := v.([]any)
		if !ok {
			return wrong
		}
		for _, e := range list {
			if err := d.check(s.Items, e, path+"[]"); err != nil {
				return err
			}
		}
	case "string":
		if _, ok := v.(string); !ok {
			return wrong
		}
	case "integer":
		if n, ok := v.(float64); !ok || n != float64(int64(n)) {
			return wrong
		}
	default:
		return fmt.Errorf("%s: the type %q is not known here", path, s.Type)
	}
	return nil
}
