package config

import (
	"embed"
	"fmt"
	"strings"
)

//go:generate go test . -run ^TestSchemasAreThoseOfTheTypes$ -update
//go:generate go test . -run ^TestTheReferenceIsOfTheTypes$ -update

//go:embed schema/config.json schema/mapping.json
var schemas embed.FS

// Schemas are the names of the schemas that there are.
func Schemas() []string { return []string{"config", "mapping"} }

// Schema returns a JSON Schema (draft 7, as editors know it) of stint.yaml
// ("config") or of a mapping ("mapping"). It is made of the types that are decoded
// into and their comments. What it refuses, `stint check` refuses too, except texts
// that need no quotes here and would in JSON, numbers in quotes, and keys with
// nothing behind them; `stint check` refuses more.
func Schema(name string) ([]byte, error) {
	data, err := schemas.ReadFile("schema/" + name + ".json")
	if err != nil {
		return nil, fmt.Errorf("there is no schema %q; there are %s", name, strings.Join(Schemas(), ", "))
	}
	return data, nil
}
