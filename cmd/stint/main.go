// Command stint is an OAuth token-exchange server and credential vendor for the
// Model Context Protocol, and what its administrators do from a shell.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitFailed  = 1 // something did not work
	exitUsage   = 2 // the command line is wrong
	exitRefused = 3 // the answer is no: a configuration, a request or a decision, or somebody has it open
	exitPerson  = 4 // a person has to do something first, at the URL that is printed
)

// exitError carries an exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// globals are the flags of every command.
type globals struct {
	config  string
	output  string
	context string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	text := strings.TrimSpace(err.Error())
	if text != "" {
		fmt.Fprintln(os.Stderr, "stint:", strings.ReplaceAll(text, "\n", "\nstint: "))
	}
	return exitCodeOf(err)
}

// exitCodeOf is the code that an error carries; without one something failed.
func exitCodeOf(err error) int {
	if e := (*exitError)(nil); errors.As(err, &e) {
		return e.code
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	g := &globals{}
	var showVersion bool
	root := &cobra.Command{
		Use:   "stint",
		Short: "Short-lived, down-scoped credentials for MCP servers",
		Long: `Stint is an OAuth token-exchange server (RFC 8693): it swaps a person's identity for a
credential that is short-lived and narrowed to this MCP server, this resource and this
call, and takes it back when it has to.

Try it:                 stint demo
Keep it running:        stint dev
Set up a server:        stint init, stint check, stint serve, stint doctor
Why, or why not:        stint explain
Who holds what:         stint login, stint status, stint sessions, stint leases
End it:                 stint revoke
What happened:          stint audit tail
As a client:            stint exchange, stint vend
Your own accounts:      stint connect

Exit codes: 0, it is done; 1, something did not work; 2, the command line is wrong; 3, the
answer is no: the configuration, the request or the decision, or another process has open
what is needed; 4, a person has to do something first. stint vend ends as its command does.`,
		SilenceUsage: true, SilenceErrors: true,
		Args: unknownCommand,
		RunE: func(c *cobra.Command, _ []string) error {
			if showVersion {
				return g.printVersion(c)
			}
			return c.Help()
		},
	}
	root.Flags().BoolVarP(&showVersion, "version", "v", false, "print the version")
	root.PersistentFlags().StringVarP(&g.config, "config", "c", envOr("STINT_CONFIG", "stint.yaml"), "the configuration `file` (or STINT_CONFIG)")
	root.PersistentFlags().StringVarP(&g.output, "output", "o", "text", "how to print: `text, json or yaml`")
	root.PersistentFlags().StringVar(&g.context, "context", os.Getenv("STINT_CONTEXT"), "the installation to administer, by its `name` (or STINT_CONTEXT); see stint context")
	_ = root.RegisterFlagCompletionFunc("context", completeContexts)
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if g.output != "text" && g.output != "json" && g.output != "yaml" {
			return usage("--output is text, json or yaml, not %q", g.output)
		}
		// They would be looked at later, by errors that do not say what they are.
		if err := cmp.Or(c.ValidateRequiredFlags(), c.ValidateFlagGroups()); err != nil {
			return usage("%v; see %s --help", err, c.CommandPath())
		}
		return nil
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage("%v; see %s --help", err, c.CommandPath())
	})
	root.AddCommand(
		newServe(g), newReady(g), newCheck(g), newDoctor(g), newInit(g), newExplain(g), newRevoke(g), newAudit(g), newKeys(g), newClients(g),
		newStatus(g), newSessions(g), newLeases(g), newIssuers(g), newLogin(g), newLogout(g), newConnect(g), newContext(g), newExchange(g), newVend(g), newCall(g),
		newProviders(g), newPostgres(g), newRecover(g), newSchema(g), newDemo(g), newDev(g), newVersion(g),
	)
	addCompletion(root)
	usageOfArgs(root)
	checkHelp(root)
	return root
}

// checkHelp refuses help about what is no command.
func checkHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		if c.Name() == "help" {
			c.Args = func(_ *cobra.Command, args []string) error {
				if about, rest, err := root.Find(args); err != nil || len(rest) > 0 {
					return usage("%v; see %s --help", unknownCommand(about, rest), about.CommandPath())
				}
				return nil
			}
		}
	}
}

// unknownCommand refuses what is taken for the name of a command and is none.
func unknownCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	near := ""
	c.SuggestionsMinimumDistance = 2 // letters apart, as cobra has it
	if names := c.SuggestionsFor(args[0]); len(names) > 0 {
		near = "; did you mean " + strings.Join(names, " or ") + "?"
	}
	return fmt.Errorf("unknown command %q for %q%s", args[0], c.CommandPath(), near)
}

// addCompletion adds cobra's commands for shells, with examples.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	examples := map[string]string{
		"bash":       "  stint completion bash > ~/.local/share/bash-completion/completions/stint",
		"zsh":        `  stint completion zsh > "${fpath[1]}/_stint"`,
		"fish":       "  stint completion fish > ~/.config/fish/completions/stint.fish",
		"powershell": "  stint completion powershell | Out-String | Invoke-Expression",
	}
	c, _, err := root.Find([]string{"completion"})
	if err != nil {
		panic(err) // it was added above
	}
	for _, shell := range c.Commands() {
		shell.Example = examples[shell.Name()]
	}
}

// usageOfArgs makes wrong arguments a mistake of the command line, also where a
// command only holds others: by itself such a one would show its help and succeed.
func usageOfArgs(c *cobra.Command) {
	if c.HasSubCommands() && !c.Runnable() {
		c.Args, c.RunE = unknownCommand, func(c *cobra.Command, _ []string) error { return c.Help() }
	}
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usage("%v; see %s --help", err, c.CommandPath())
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		usageOfArgs(sub)
	}
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// version is that of the module, or of the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (v == "" || v == "(devel)") {
			v = s.Value[:min(12, len(s.Value))]
		}
	}
	if v == "" || v == "(devel)" {
		return "development"
	}
	return v
}

func newVersion(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Example: "  stint version\n  stint version -o json",
		RunE:    func(c *cobra.Command, _ []string) error { return g.printVersion(c) },
	}
}

func (g *globals) printVersion(c *cobra.Command) error {
	return g.print(c, map[string]string{"version": version()}, func(p *printer) { p.line("stint %s", version()) })
}
