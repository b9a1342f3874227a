package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/client"
)

func newVend(g *globals) *cobra.Command {
	v := &vending{asker: asker{g: g}}
	c := &cobra.Command{
		Use: "vend [flags] -- COMMAND [ARG...]", Short: "Run a command with a credential that is gone when it ends",
		Long: `Asks a Stint for a token or a credential as one of its clients, as stint exchange does,
runs a command with it in the environment of that process, and gives it back when the
command ends, however it ends. It is not printed, is in no command line, and on no disk.
The variables by which the client's secret and the subject's token were named are not
handed on.

  a token            STINT_TOKEN, or what --env says
  a PostgreSQL login PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD, PGSSLMODE
  AWS keys           AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
                     AWS_CREDENTIAL_EXPIRATION, and AWS_REGION and AWS_ENDPOINT_URL
                     where they are known
  anything else      STINT_ and each of its fields, such as STINT_USERNAME

Variables that would lead the command elsewhere, such as PGSERVICE or AWS_PROFILE, are
taken out. With --env, those that it names are set, and no others. Nothing is renewed: a
command that runs longer than the credential lives finds it dead. Signals are passed on.

With --format it runs nothing and prints the credential, for programs that ask for one by
a convention: credential-process is what AWS's SDKs read by the setting credential_process
of a profile, exec-credential what kubectl reads from the program that a kubeconfig's user
names under exec, pgpass a line of PostgreSQL's password file. That one is not given back:
it ends by itself, or by stint revoke.` + aboutAsking + `

It exits as the command does, or with 128 and the number of the signal that killed it.
Before there is a command: with 126 if it cannot be run, with 127 if it is not found, and
otherwise like stint exchange. If the credential cannot be given back, it says so on
standard error.`,
		Example: `  stint vend --issuer http://localhost:8080 --client orders-mcp --client-secret env:ORDERS_MCP_SECRET \
    --subject-token file:/run/user/call.jwt --resource postgres://warehouse/sales.orders --scope reports:read -- psql -c 'SELECT item FROM sales.orders'
  stint vend --subject-token file:/run/user/call.jwt --resource https://api.example/notes --scope notes:read --env API_TOKEN -- env
  stint vend --subject-token file:/run/user/call.jwt --resource postgres://warehouse/sales.orders --scope reports:read --env DATABASE_URL=url -- env
  stint vend --subject-token file:/run/user/call.jwt --resource postgres://warehouse/sales.orders --scope reports:read --format pgpass > orders.pgpass`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error { return v.run(c, args) },
	}
	v.flags(c)
	f := c.Flags()
	f.SetInterspersed(false) // the flags of the command are its own
	f.StringArrayVar(&v.env, "env", nil, "put the token, or a `NAME[=FIELD]` of the credential, into this variable (repeatable)")
	f.StringVar(&v.format, "format", "", "print it instead, in a `format`: env, json, pgpass, credential-process or exec-credential")
	c.MarkFlagsMutuallyExclusive("env", "format")
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// vending is what `stint vend` was asked for.
type vending struct {
	asker
	env    []string
	format string
}

func (v *vending) run(c *cobra.Command, args []string) error {
	if v.format == "" && len(args) == 0 && v.g.output == "json" {
		v.format = "json"
	}
	switch {
	case v.format != "" && !slices.Contains(formats, v.format):
		return usage("--format is %s, not %q", strings.Join(formats, ", "), v.format)
	case v.format != "" && len(args) > 0:
		return usage("--format prints the credential and runs nothing: leave it out, or the command")
	case v.format == "" && len(args) == 0:
		return usage("say which command to run, after --, or by --format how to print the credential")
	case len(args) > 0 && v.g.output == "json":
		return usage("--output is about what is printed, and a command prints for itself")
	}
	wanted, err := wantedVariables(v.env)
	if err != nil {
		return err
	}
	if v.format != "" {
		return v.print(c)
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return notRun(args[0], err)
	}
	asks, x, err := v.prepare(c.Context(), c.InOrStdin())
	if err != nil {
		return err
	}
	r := &lending{asker: &v.asker, client: asks, wanted: wanted, path: path, args: args}
	return r.run(c, x)
}

// print prints a credential in a format.
func (v *vending) print(c *cobra.Command) error {
	if err := v.forPrograms(c.OutOrStdout()); err != nil {
		return err
	}
	asks, x, err := v.prepare(c.Context(), c.InOrStdin())
	if err != nil {
		return err
	}
	got, err := asks.Exchange(c.Context(), x)
	if err != nil {
		return v.said(err)
	}
	text, err := formatted(got, v.format)
	if err != nil { // nobody has it: it need not live
		return errors.Join(&exitError{exitRefused, err}, giveBack(asks, got))
	}
	_, err = fmt.Fprintln(c.OutOrStdout(), text.Reveal())
	return err
}

// notRun is the error for a command that was not run, with the exit code that shells
// have for it.
func notRun(name string, err error) error {
	code := 126
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		code = 127
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner
	}
	return &exitError{code, fmt.Errorf("%s: %w", name, err)}
}

// wholeAnswer is all that was answered, as it was.
func wholeAnswer(got *client.Credential) json.RawMessage {
	return json.RawMessage(got.Answer().Reveal())
}
