package stint_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The walk-through of docs/providers.md is followed, without touching the checkout: a
// new provider is a folder and a line.
func TestANewProviderIsOneFolderAndOneLine(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("docs/providers.md")
	if err != nil {
		t.Fatal(err)
	}
	const line = `"paste": {paste.Describe, paste.Open},`
	for _, step := range []string{"cp -r docs/_paste providers/paste", line, "go test ./providers/paste", "stint providers show paste"} {
		if !strings.Contains(string(doc), step) {
			t.Errorf("docs/providers.md does not say %q", step)
		}
	}
	list, err := os.ReadFile("providers/providers.go")
	if err != nil {
		t.Fatal(err)
	}
	const before, imports = "\treturn map[string]kind{\n", "import (\n"
	if strings.Count(string(list), before) != 1 {
		t.Fatal("providers.go has no list")
	}
	text := strings.Replace(string(list), before, before+"\t\t"+line+"\n", 1)
	text = strings.Replace(text, imports, imports+"\t\"github.com/stint-dev/stint/providers/paste\"\n", 1)

	dir := t.TempDir()
	replace := make(map[string]string)
	put := func(name, text string) {
		t.Helper()
		from := filepath.Join(dir, filepath.Base(name)+".txt")
		if err := os.WriteFile(from, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		root, err := filepath.Abs(".")
		if err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, filepath.FromSlash(name))] = from
	}
	put("providers/providers.go", text)
	for _, name := range []string{"paste.go", "paste_test.go"} {
		text, err := os.ReadFile(filepath.Join("docs", "_paste", name))
		if err != nil {
			t.Fatal(err)
		}
		put("providers/paste/"+name, string(text))
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, data, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(in, name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = in
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", filepath.Base(name), args, err, out)
		}
		return string(out)
	}
	tests, stint := filepath.Join(dir, "paste.test"), filepath.Join(dir, "stint")
	run(".", "go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", tests, "./providers/paste")
	work := t.TempDir() // the result is no provider's of ours
	if err := os.WriteFile(filepath.Join(work, "go.mod"), []byte("module paste\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(work, tests, "-test.run", "TestProvider")
	run(".", "go", "build", "-overlay", overlay, "-o", stint, "./cmd/stint")
	if out := run(".", stint, "providers", "show", "paste"); !strings.Contains(out, "tokens of a paste server") {
		t.Errorf("%s", out)
	}
}
