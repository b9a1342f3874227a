// Command stint is an OAuth token-exchange server and credential vendor for the
// Model Context Protocol, and what its administrators do from a shell.
package main

import (
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
	exitRefused = 3 // the answer is no: a configuration, a request or a decision
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
	config string
	output string
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
	if e := (*exitError)(nil); errors.As(err, &e) {
		return e.code
	}
	if strings.HasPrefix(text, "unknown command") || strings.HasPrefix(text, "required flag") || strings.HasPrefix(text, "if any flags in the group") {
		return exitUsage
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "stint",
		Short: "Short-lived, down-scoped credentials for MCP servers",
		Long: `Stint is an OAuth token-exchange server (RFC 8693): it swaps a person's identity for a
credential that is short-lived and narrowed to this MCP server, this resource and this
call, and takes it back when it has to.

Try it:                 stint demo
Keep it running:        stint dev
Set up a server:        stint init, stint check, stint serve
Why, or why not:        stint explain
End it:                 stint revoke
What happened:          stint audit tail`,
		SilenceUsage: true, SilenceErrors: true, Version: version(),
	}
	root.PersistentFlags().StringVarP(&g.config, "config", "c", envOr("STINT_CONFIG", "stint.yaml"), "the configuration `file` (or STINT_CONFIG)")
	root.PersistentFlags().StringVarP(&g.output, "output", "o", "text", "how to print: `text or json`")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if g.output != "text" && g.output != "json" {
			return usage("--output is text or json, not %q", g.output)
		}
		return nil
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage("%v; see %s --help", err, c.CommandPath())
	})
	root.AddCommand(
		newServe(g), newCheck(g), newInit(g), newExplain(g), newRevoke(g), newAudit(g), newKeys(g), newClient(g),
		newProviders(g), newPostgres(g), newRecover(g), newSchema(g), newDemo(g), newDev(g), newVersion(g),
	)
	for _, c := range root.Commands() {
		usageOfArgs(c)
	}
	return root
}

// usageOfArgs makes wrong arguments a mistake of the command line.
func usageOfArgs(c *cobra.Command) {
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
		RunE: func(c *cobra.Command, _ []string) error {
			return g.print(c, map[string]string{"version": version()}, func(p *printer) { p.line("stint %s", version()) })
		},
	}
}
