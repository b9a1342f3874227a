package stint_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/stint-dev/stint/"

// allowed is who may import whom among our own packages. "*" at the end of a name
// stands for everything below. Changing this table is a design decision.
var allowed = map[string][]string{
	"cmd/*":                  {"*"},
	"e2e/*":                  {"*"},
	"docs/*":                 {"client"},
	"docs/_paste":            {"broker", "scopes/grant", "internal/secret", "internal/strictjson", "internal/upstream"},
	"scripts/*":              {},
	"scripts/providers":      {"broker", "providers"},
	"internal/bench":         {"*"},
	"api":                    {"api/adminapi", "broker", "scopes", "scopes/grant", "audit", "internal/secret", "internal/strictjson"},
	"api/adminapi":           {},
	"audit":                  {},
	"broker":                 {"scopes", "scopes/grant", "audit", "internal/secret", "internal/strictjson"},
	"gateway":                {"broker", "internal/secret"},
	"scopes":                 {"scopes/grant"},
	"scopes/grant":           {"internal/strictjson"},
	"providers":              {"broker", "scopes/grant", "internal/secret", "internal/upstream", "providers/*"},
	"providers/providertest": {"broker", "scopes/grant", "internal/secret", "internal/strictjson", "internal/testbed"},
	"providers/*":            {"broker", "scopes/grant", "internal/secret", "internal/strictjson", "internal/upstream"},
	"providers/aws":          {"broker", "scopes/grant", "internal/secret", "internal/strictjson", "internal/sts", "internal/upstream"},
	"providers/s3":           {"broker", "scopes/grant", "internal/secret", "internal/strictjson", "internal/sts", "internal/upstream"},
	"internal/config":        {"api", "broker", "internal/secret", "internal/store", "internal/strictyaml", "internal/token", "internal/vault", "scopes", "scopes/grant"},
	"internal/login":         {"broker", "internal/secret", "internal/strictjson"},
	"internal/outbound":      {},
	"internal/sample":        {"client", "internal/secret"},
	"internal/secret":        {},
	"internal/store":         {"broker", "internal/secret", "internal/strictjson"},
	"internal/store/*":       {"broker", "internal/secret", "internal/store"},
	"internal/strictjson":    {},
	"internal/strictyaml":    {},
	"internal/sts":           {"broker", "internal/secret", "internal/strictjson", "internal/upstream"},
	"internal/testbed/*":     {},
	"internal/token":         {"broker", "scopes", "internal/secret", "internal/strictjson"},
	"internal/upstream":      {"broker", "internal/secret", "internal/strictjson"},
	"internal/vault":         {"broker", "internal/secret", "internal/strictjson"},
}

// homes are libraries that only one place may use.
var homes = map[string][]string{
	"github.com/labstack/echo/":            {"api", "api/adminapi", "internal/bench"},
	"github.com/oapi-codegen/":             {"api/adminapi"},
	"github.com/ory/fosite":                {"api"},
	"github.com/prometheus/client_golang/": {"api"},
	"golang.org/x/time/":                   {"api"},
	"github.com/go-jose/go-jose/v4":        {"internal/token"},
	"github.com/go-jose/go-jose/v3":        {},
	"github.com/redis/go-redis/":           {"internal/store"},
	"go.etcd.io/bbolt":                     {"internal/store"},
	"github.com/hashicorp/vault/":          {"internal/vault"},
	"filippo.io/age":                       {"internal/vault"},
	"github.com/cedar-policy/":             {"scopes"},
	"github.com/go-json-experiment/":       {"internal/strictjson"},
	"go.yaml.in/":                          {"internal/strictyaml"},
	"github.com/aws/":                      {"internal/sts"},
	"github.com/jackc/pgx/":                {"providers/postgres", "internal/sample", "cmd/stint"},
	"golang.org/x/oauth2":                  {"internal/login"},
	"github.com/zitadel/":                  {"internal/sample"},
	"github.com/modelcontextprotocol/":     {"internal/sample", "docs/mcp-servers/step0", "docs/mcp-servers/step1", "docs/mcp-servers/step2", "docs/mcp-servers/step3"},
	"github.com/spf13/cobra":               {"cmd/stint"},
	"go.opentelemetry.io/":                 {"cmd/stint"},
	"golang.org/x/sys/":                    {"cmd/stint"},
}

func match(pattern, name string) bool {
	if stem, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name+"/", stem) || stem == ""
	}
	return pattern == name
}

// rule returns the most particular entry of the table for a package.
func rule(name string) (imports []string, ok bool) {
	if list, ok := allowed[name]; ok {
		return list, true
	}
	best := -1
	for pattern, list := range allowed {
		if match(pattern, name) && len(pattern) > best {
			imports, ok, best = list, true, len(pattern)
		}
	}
	return imports, ok
}

// Arrows point inward, and a library has one home. Tests may import what they
// need.
func TestImports(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || slices.Contains([]string{"testdata", "node_modules", "build", "bin", "client"}, d.Name())):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		files++
		checkFile(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("only %d files were looked at", files)
	}
}

func checkFile(t *testing.T, path string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.ToSlash(filepath.Dir(path))
	imports, known := rule(name)
	if !known {
		t.Errorf("%s: the package %s is not in the table", path, name)
		return
	}
	for _, spec := range f.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		if ours, ok := strings.CutPrefix(imported, module); ok {
			if !slices.ContainsFunc(imports, func(p string) bool { return match(p, ours) }) {
				t.Errorf("%s: %s may not import %s", path, name, ours)
			}
			if strings.HasSuffix(name, "test") || !strings.Contains(ours, "testbed") && !strings.HasSuffix(ours, "test") {
				continue
			}
			t.Errorf("%s: %s imports %s, which is for tests", path, name, ours)
		}
		for library, places := range homes {
			if forTests := strings.HasSuffix(name, "test") || match("internal/testbed/*", name); forTests {
				continue
			}
			if strings.HasPrefix(imported, library) && !slices.ContainsFunc(places, func(p string) bool { return match(p, name) }) {
				t.Errorf("%s: %s has another home: %v", path, imported, places)
			}
		}
	}
}
