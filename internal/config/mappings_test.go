package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/strictyaml"
)

const notes = `resource: https://api.example
scopes:
  read: {access: read}
rules:
  - allow: [read]
    to: {groups: [staff]}
`

func TestLoadMappings(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b.yaml", strings.Replace(notes, "api", "other", 1))
	write(t, dir, "a.yaml", notes)
	write(t, dir, "a.cedar", "permit (principal, action, resource);")
	write(t, dir, ".a.yaml.swp", "x: [")
	write(t, dir, ".hidden.yaml", "x: [")
	write(t, dir, "README.md", "about")
	write(t, dir, "folder/c.yaml", "x: [")
	// As Kubernetes mounts a ConfigMap.
	write(t, dir, "..data/c.yaml", strings.Replace(notes, "api", "third", 1))
	if err := os.Symlink("..data/c.yaml", filepath.Join(dir, "c.yaml")); err != nil {
		t.Fatal(err)
	}
	all, err := config.LoadMappings(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 || all[0].Resource.Value != "https://api.example" || all[1].Resource.Value != "https://other.example" || all[2].Resource.Value != "https://third.example" {
		t.Fatalf("got %d mappings", len(all))
	}
	m := all[0]
	if len(m.Content) != 2 || string(m.Content[0]) != notes || string(m.Content[1]) != string(m.Cedar) || m.CedarFile != filepath.Join(dir, "a.cedar") {
		t.Errorf("the version is not of all that the mapping is: %q", m.Content)
	}
	if r := m.Rules[0]; r.File != filepath.Join(dir, "a.yaml") || r.Line != 5 || m.Pos.Line != 1 {
		t.Errorf("the rule stands at %v, the mapping at %v", r.Pos, m.Pos)
	}
	if len(all[1].Content) != 1 || all[1].Cedar != nil {
		t.Error("the second mapping has the Cedar file of the first")
	}
}

func TestMappingsThatAreRefused(t *testing.T) {
	large := strings.Repeat("#\n", strictyaml.MaxSize/2+1)
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"none":                         {nil, "DIR: there is no NAME.yaml here, so that nothing could be granted"},
		"hidden ones alone":            {map[string]string{".a.yaml": notes}, "DIR: there is no NAME.yaml here, so that nothing could be granted"},
		"broken YAML":                  {map[string]string{"a.yaml": "resource: ["}, "DIR/a.yaml:2:1: did not find expected node content"},
		"an unknown key":               {map[string]string{"a.yaml": notes + "scope: {}\n"}, `DIR/a.yaml:7:1: no such key: "scope"; did you mean scopes?`},
		"a key twice":                  {map[string]string{"a.yaml": notes + "rules: []\n"}, `DIR/a.yaml:7:1: "rules" is there already, on line 4`},
		"a scope twice":                {map[string]string{"a.yaml": strings.Replace(notes, "rules:", "  read: {access: write}\nrules:", 1)}, `DIR/a.yaml:4:3: "read" is there already, on line 3`},
		"an access that is none":       {map[string]string{"a.yaml": strings.Replace(notes, "access: read", "access: all", 1)}, `DIR/a.yaml:3:18: scopes.read.access: "all" is none of read, write, admin`},
		"a rule that is no object":     {map[string]string{"a.yaml": notes + "  - read\n"}, `DIR/a.yaml:7:5: rules[1]: an object is wanted, not "read"`},
		"a rule that is empty":         {map[string]string{"a.yaml": notes + "  -\n"}, "DIR/a.yaml:7:4: rules[1]: an empty element"},
		"a lifetime that is none":      {map[string]string{"a.yaml": notes + "max_lifetime: 15\n"}, `DIR/a.yaml:7:15: max_lifetime: "15" is no duration; write for example 15m or 1h30m`},
		"another suffix":               {map[string]string{"a.yaml": notes, "b.yml": notes}, "DIR/b.yml: a mapping is called NAME.yaml: this file would do nothing"},
		"another suffix alone":         {map[string]string{"b.yml": notes}, "DIR/b.yml: a mapping is called NAME.yaml: this file would do nothing"},
		"Cedar without its mapping":    {map[string]string{"a.yaml": notes, "z.cedar": "x", "b.cedar": "x"}, "DIR/b.cedar: there is no mapping b.yaml beside it, so that it would do nothing\nDIR/z.cedar: there is no mapping z.yaml beside it, so that it would do nothing"},
		"a file that is too large":     {map[string]string{"a.yaml": large, "b.yaml": "x: y"}, "DIR/a.yaml: more than 8388608 bytes\nDIR/b.yaml:1:1: no such key: \"x\"; there are: max_lifetime, resource, rules, scopes, subject_issuer, tools"},
		"a Cedar file too large":       {map[string]string{"a.yaml": notes, "a.cedar": large}, "DIR/a.cedar: more than 8388608 bytes"},
		"a folder for a mapping":       {map[string]string{"a.yaml/x": ""}, "DIR/a.yaml: is no file"},
		"a folder for a Cedar file":    {map[string]string{"a.yaml": notes, "a.cedar/x": ""}, "DIR/a.cedar: is no file"},
		"mistakes in every file":       {map[string]string{"a.yaml": "x: y", "b.yaml": "rules: x"}, "DIR/a.yaml:1:1: no such key: \"x\"; there are: max_lifetime, resource, rules, scopes, subject_issuer, tools\nDIR/b.yaml:1:8: rules: a list is wanted, not \"x\""},
		"a text in place of an object": {map[string]string{"a.yaml": "notes"}, `DIR/a.yaml:1:1: an object is wanted, not "notes"`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range tc.files {
				write(t, dir, file, text)
			}
			got, err := config.LoadMappings(dir)
			if got != nil || !errors.As(err, new(strictyaml.Errors)) {
				t.Fatalf("got %v, %v", got, err)
			}
			if text := strings.ReplaceAll(err.Error(), dir, "DIR"); text != tc.want {
				t.Errorf("got  %s\nwant %s", text, tc.want)
			}
		})
	}
	if _, err := config.LoadMappings("/nowhere"); err == nil || err.Error() != "/nowhere: the folder of the mappings: no such file or directory" {
		t.Errorf("got %v", err)
	}
}

// Which file does not name the folder that was meant is what matters.
func TestAFolderOfMappingsThatIsNoneStandsWhereItIsNamed(t *testing.T) {
	for name, tc := range map[string]struct{ files, value, want string }{
		"a folder that is gone": {"", "mapings", "DIR/stint.yaml:11:1: mappings: DIR/mapings: the folder of the mappings: no such file or directory"},
		"one without mappings":  {"other/.keep", "other/", "DIR/stint.yaml:11:1: mappings: DIR/other: there is no NAME.yaml here, so that nothing could be granted"},
		"a mapping that is not": {"other/a.yaml", "other", "DIR/other/a.yaml:1:1: "},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.files != "" {
				write(t, dir, tc.files, "x: y\n")
			}
			write(t, dir, "stint.yaml", with("mappings: mappings", "mappings: "+tc.value))
			c, err := config.Load(filepath.Join(dir, "stint.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err = c.LoadMappings(); err == nil || !strings.HasPrefix(strings.ReplaceAll(err.Error(), dir, "DIR"), tc.want) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}
