package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Nobody has put what make build makes into PATH: whatever is said to be typed
// next names the program where it is.
func TestWhatIsSaidToBeTypedNamesTheProgramWhereItIs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's mine")
	out, code := stintCLI(t, "init", dir)
	if code != 0 {
		t.Fatalf("%d: %s", code, out)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		". " + exe + " check --live --config " + shellQuote(filepath.Join(dir, theConfig)),
		". " + exe + " serve --config " + shellQuote(filepath.Join(dir, theConfig)),
	} {
		if !strings.Contains(out, line) {
			t.Errorf("init says no %q:\n%s", line, out)
		}
	}
}

func TestTheReadmeNamesTheProgramWhereItIs(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, commands, ok := strings.Cut(string(text), "\n## Try it\n")
	if !ok {
		t.Fatal("README.md has no such section")
	}
	for _, line := range regexp.MustCompile("(?m)(^|`)stint .*").FindAllString(commands, -1) {
		t.Errorf("after make build there is bin/stint alone: %s", line)
	}
}
