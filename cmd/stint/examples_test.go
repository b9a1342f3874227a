package main

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/testbed"
)

// elsewhere are the commands whose examples need what is not here, and where they
// are run.
var elsewhere = map[string]string{
	"stint exchange": "TestExamplesOfTheShell", "stint vend": "the same",
	"stint call": "TestExamplesOfCall",

	"stint serve":              "every test that has a server; e2e, as built",
	"stint demo":               "TestTheDemonstrationComesOutAsSaid",
	"stint login":              "TestBrowserLetsTheCommandLineIn",
	"stint logout":             "the same",
	"stint connect list":       "TestConnectCommands",
	"stint connect unlink":     "the same",
	"stint context use":        "TestContexts",
	"stint context remove":     "the same",
	"stint postgres install":   "TestPostgresFromInstallationToUninstallation",
	"stint postgres status":    "the same",
	"stint postgres uninstall": "the same",

	// cobra's own, which write to standard output whatever else is set
	"stint completion bash": "no test", "stint completion zsh": "no test", "stint completion fish": "no test", "stint completion powershell": "no test",
}

// notDone are examples that are right and come to nothing with what is here.
var notDone = map[string]int{
	"stint explain --client notes-mcp --token -":                                                      exitRefused, // the token is none
	"stint explain --client notes-mcp --resource":                                                     exitRefused, // rules are for people
	"stint explain --client notes-mcp --subject 'https://idp.example#alice' --group everyone --group": -1,          // some of it by day alone
	"stint init --redis":      0,
	"stint keys revoke":       exitRefused, // there is no such key
	"stint audit show":        exitFailed,  // nor such an event
	"stint check --live":      exitFailed,  // idp.example cannot be reached
	"stint doctor":            exitFailed,  // nor here
	"stint recover":           exitRefused, // the server runs
	"stint leases show":       exitRefused, // there is no such lease
	"stint keys show":         exitRefused,
	"stint sessions show":     exitRefused,
	"stint issuers disable":   exitRefused,
	"stint issuers enable":    exitRefused,
	"stint providers certify": exitRefused, // the server has the sealed file open
}

// What is shown as an example works with what stint init writes, as it is typed.
func TestExamplesWorkWithWhatInitWrites(t *testing.T) {
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	shortSocket(t, file)
	serving(t, file)
	t.Setenv("STINT_CONFIG", file)
	t.Setenv("STINT_HOME", t.TempDir())
	ran := 0
	for _, c := range leafCommands(newRoot()) {
		if elsewhere[c.CommandPath()] != "" {
			continue
		}
		for _, line := range commandLines(c.Example) {
			ran++
			t.Run(line, func(t *testing.T) {
				t.Chdir(t.TempDir())
				etc := dir
				if c.Name() == "init" { // not where there is one already
					etc = filepath.Join(t.TempDir(), "etc")
				}
				want := 0
				for begin, code := range notDone {
					if strings.HasPrefix(line, begin) {
						want = code
					}
				}
				args := typed(t, strings.ReplaceAll(line, "/etc/stint", etc))
				if out, code, err := runExample(t, args); code != want && (want != -1 || code != 0 && code != exitRefused) {
					t.Errorf("%q: %d: %v\n%s", args, code, err, out)
				}
			})
		}
	}
	if ran < 25 {
		t.Errorf("only %d examples were run", ran)
	}
	testbed.Report(t, "examples", testbed.Row{Name: "examples of commands run", Value: float64(ran), Unit: "examples", Target: 25, Met: ran >= 25})
}

// runExample runs a command line with a token at its input. One that would go on is
// stopped.
func runExample(t *testing.T, args []string) (out string, code int, err error) {
	t.Helper()
	ctx := t.Context()
	if slices.Contains(args, "--follow") || slices.Contains(args, "--watch") {
		stopped, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		ctx = stopped
	}
	var b bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(strings.NewReader("no.to.ken"))
	root.SetOut(&b)
	root.SetErr(&b)
	if err = root.ExecuteContext(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) {
		return b.String(), 0, nil
	}
	return b.String(), exitCodeOf(err), err
}

// commandLines are the lines of an example that call the program by itself, those
// that a backslash continues in one.
func commandLines(example string) (out []string) {
	for line := range strings.Lines(strings.ReplaceAll(example, "\\\n", "")) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "stint ") {
			out = append(out, line)
		}
	}
	return out
}

// typed are the arguments of a command line as a shell hands them over: up to a
// pipe, a redirection or a comment, and without quotes.
func typed(t *testing.T, line string) (args []string) {
	t.Helper()
	word, quote, inside := "", rune(0), false
	end := func() {
		if inside {
			args = append(args, word)
		}
		word, inside = "", false
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, inside = r, true
		case r == ' ':
			end()
		case strings.ContainsRune("|<>", r), r == '#' && !inside:
			end()
			return args[1:]
		case strings.ContainsRune("$`(){}*?[];&\\~", r):
			t.Fatalf("%s: %c means something to a shell, and not to this test", line, r)
		default:
			word, inside = word+string(r), true
		}
	}
	end()
	return args[1:]
}
