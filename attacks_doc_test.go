package stint_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	namedFile = regexp.MustCompile(`[\w./-]+/[\w.-]+\.(?:go|txtar)\b`)
	namedTest = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`)
	function  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
)

// testsOf returns the tests in a file.
func testsOf(t *testing.T, path string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, m := range function.FindAllStringSubmatch(string(text), -1) {
		out[m[1]] = true
	}
	return out
}

// What docs/attacks.md says holds an attack is there, in the file that it names;
// and of the tests of attacks and advisories none is forgotten there.
func TestAttacksAreHeldByTestsThatExist(t *testing.T) {
	doc, err := os.ReadFile("docs/attacks.md")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]map[string]bool{}
	named := map[string]bool{}
	for line := range strings.Lines(string(doc)) {
		for piece := range strings.SplitSeq(line, ";") {
			for _, path := range namedFile.FindAllString(piece, -1) {
				if _, err := os.Stat(path); err != nil {
					t.Errorf("%s is named, and is not there", path)
					continue
				}
				if strings.HasSuffix(path, "_test.go") {
					files[path] = testsOf(t, path)
				}
				for _, test := range namedTest.FindAllString(piece, -1) {
					named[test] = true
					if !files[path][test] {
						t.Errorf("%s has no %s", path, test)
					}
				}
			}
		}
	}
	for _, test := range namedTest.FindAllString(string(doc), -1) {
		if !named[test] {
			t.Errorf("%s is named without its file", test)
		}
	}
	if len(named) < 80 {
		t.Errorf("only %d tests are named", len(named))
	}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		base := filepath.Base(path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(base, ".") && path != "." || base == "node_modules"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasPrefix(base, "attacks") && !strings.HasPrefix(base, "advisories") || !strings.HasSuffix(base, "_test.go") || base == "attacks_doc_test.go":
			return nil
		}
		for test := range testsOf(t, path) {
			if !named[test] {
				t.Errorf("docs/attacks.md does not say what %s in %s holds", test, path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
