package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestMistakesOnTheCommandLineSayWhereHelpIs(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"a command that is not there":       {[]string{"nonsense"}, `unknown command "nonsense" for "stint"; see stint --help`},
		"one that is nearly there":          {[]string{"kyes"}, `did you mean keys?; see stint --help`},
		"one after flags":                   {[]string{"-o", "json", "nonsense"}, `unknown command "nonsense"`},
		"one below another":                 {[]string{"keys", "rotat"}, `unknown command "rotat" for "stint keys"; did you mean rotate?; see stint keys --help`},
		"help about one that is not there":  {[]string{"help", "nonsense"}, `unknown command "nonsense"`},
		"a shell that is not there":         {[]string{"completion", "ksh"}, `unknown command "ksh" for "stint completion"`},
		"a flag that is required":           {[]string{"explain"}, `"client" not set; see stint explain --help`},
		"two flags of which there is one":   {[]string{"explain", "--client", "x", "--subject", "a#b", "--token", "-"}, "[subject token] were all set; see stint explain --help"},
		"a flag that is not there":          {[]string{"check", "--alive"}, "unknown flag: --alive; see stint check --help"},
		"a session that is none":            {[]string{"sessions", "end", "nonsense"}, "22 characters"},
		"a lease that is none":              {[]string{"leases", "end", "nonsense"}, "24 lower-case letters"},
		"an argument too many":              {[]string{"version", "1"}, `unknown command "1" for "stint version"; see stint version --help`},
		"a way of printing that is not one": {[]string{"version", "-o", "xml"}, "--output is text, json or yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code, err := command(t, tc.args...)
			if code != exitUsage || err == nil || !strings.Contains(err.Error(), tc.want) || out != "" {
				t.Errorf("%d: %v\n%s", code, err, out)
			}
		})
	}
}

func TestTheVersionIsPrintedAsAsked(t *testing.T) {
	for name, args := range map[string][]string{
		"a flag": {"--version"}, "a letter": {"-v"}, "a command": {"version"},
	} {
		if out, code := stintCLI(t, args...); code != 0 || out != "stint "+version()+"\n" {
			t.Errorf("%s: %d: %s", name, code, out)
		}
		out, code := stintCLI(t, append(args, "-o", "json")...)
		var got struct{ Version string }
		if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || got.Version != version() {
			t.Errorf("%s, as JSON: %d, %v: %s", name, code, err, out)
		}
	}
}

// What holds other commands shows its help by itself, and so does the whole.
func TestCommandsThatHoldOthersShowThem(t *testing.T) {
	for _, args := range [][]string{{}, {"keys"}, {"client"}, {"audit"}, {"completion"}, {"--help", "-o", "json"}, {"help", "keys"}} {
		if out, code := stintCLI(t, args...); code != 0 || !strings.Contains(out, "Available Commands:") {
			t.Errorf("%q: %d: %s", args, code, out)
		}
	}
}

// The exit code is what an error carries, whatever its text is.
func TestExitCodesAreCarriedByErrors(t *testing.T) {
	if got := run(t.Context(), []string{"nonsense"}); got != exitUsage {
		t.Errorf("a mistake of the command line: %d", got)
	}
	if got := run(t.Context(), []string{"check", "-c", "/does/not/exist.yaml"}); got != exitRefused {
		t.Errorf("no configuration: %d", got)
	}
	if got := exitCodeOf(errors.New("unknown command of an upstream")); got != exitFailed {
		t.Errorf("a failure that reads like a mistake: %d", got)
	}
	out, _ := stintCLI(t, "--help")
	for _, code := range []string{"0, it is done", "1, something did not work", "2, the command line is wrong", "3, the\nanswer is no"} {
		if !strings.Contains(out, code) {
			t.Errorf("--help says no %q", code)
		}
	}
}

// leafCommands are the commands that do something, those of cobra among them.
func leafCommands(c *cobra.Command) (out []*cobra.Command) {
	if !c.HasSubCommands() {
		return []*cobra.Command{c}
	}
	for _, sub := range c.Commands() {
		if sub.Name() != "help" {
			out = append(out, leafCommands(sub)...)
		}
	}
	return out
}

func TestEveryCommandHasExamples(t *testing.T) {
	all := leafCommands(newRoot())
	if len(all) < 20 {
		t.Errorf("only %d commands were found", len(all))
	}
	for _, c := range all {
		if !strings.Contains(c.Example, "stint "+strings.TrimPrefix(c.CommandPath(), "stint ")) {
			t.Errorf("%s: the example is %q", c.CommandPath(), c.Example)
		}
	}
}
