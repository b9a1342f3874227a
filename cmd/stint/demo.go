package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/secret"
)

// demoTime is the longest that a demonstration takes.
const demoTime = 55 * time.Second

type demoOptions struct {
	postgres, keep string
	fast           bool
}

func newDemo(g *globals) *cobra.Command {
	var in demoOptions
	c := &cobra.Command{
		Use: "demo", Short: "Play the main job out, step by step, and check it",
		Long: `Starts Stint on a configuration of its own, with a sample identity provider, MCP server,
API and, where PostgreSQL is installed, database around it, all on this machine; plays
out what Stint is for; and shows the real requests and answers. Secrets are shortened.

Whatever it says is checked. If something does not come out as said, it exits with 1.`,
		Example: "  stint demo\n  stint demo --keep ./stint-demo     # to look at the configuration and the record\n  stint demo -o json | jq .title",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkPostgresFlag(in.postgres); err != nil {
				return err
			}
			return playDemo(c.Context(), newStage(c.OutOrStdout(), g.output == "json", in.fast), in)
		},
	}
	f := c.Flags()
	addPostgresFlag(c, &in.postgres)
	f.StringVar(&in.keep, "keep", "", "keep the configuration and the record in this `folder`; absent: in a temporary one, which is removed")
	f.BoolVar(&in.fast, "fast", false, "do not pause between the steps, as is done on a terminal")
	return c
}

func addPostgresFlag(c *cobra.Command, mode *string) {
	c.Flags().StringVar(mode, "postgres", postgresAuto, "with a PostgreSQL: `auto, require or off`; auto: if it is installed")
	_ = c.RegisterFlagCompletionFunc("postgres", cobra.FixedCompletions([]string{postgresAuto, postgresRequire, postgresOff}, cobra.ShellCompDirectiveNoFileComp))
}

func checkPostgresFlag(mode string) error {
	if mode != postgresAuto && mode != postgresRequire && mode != postgresOff {
		return usage("--postgres is auto, require or off, not %q", mode)
	}
	return nil
}

// demo is a demonstration that is being played.
type demo struct {
	*stage
	box   *sandbox
	agent sample.Agent
	// desktop asks Stint as the agent does, and thief as somebody who has the MCP
	// server's secret.
	desktop, thief *sample.Holder

	aliceSignIn, aliceToken, carolToken, apiToken secret.String
	login                                         secret.String // the database's, as it was lent
	conn                                          *pgx.Conn     // opened with it
}

// playDemo plays a demonstration. The error says which step did not come out.
func playDemo(stopped context.Context, st *stage, in demoOptions) (err error) {
	ctx, cancel := context.WithTimeout(stopped, demoTime)
	defer cancel()
	dir := in.keep
	if dir == "" {
		if dir, err = temporary("stint-demo-"); err != nil {
			return err
		}
		defer func() {
			if err != nil && stopped.Err() == nil {
				err = fmt.Errorf("%w\nwhat the servers logged is left in %s", err, filepath.Join(dir, sandboxLog))
				return
			}
			err = errors.Join(err, removeAll(dir))
		}()
	} else if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return usage("--keep: %s is not empty; choose a folder that is empty or not there", dir)
	}
	box, err := openSandbox(ctx, sandboxOptions{Dir: dir, Postgres: in.postgres, Trace: st.see})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	return perform(ctx, st, box, in)
}

// perform plays the steps in a sandbox.
func perform(ctx context.Context, st *stage, box *sandbox, in demoOptions) error {
	d := &demo{stage: st, box: box, agent: sample.Agent{Trace: st.see}}
	if err := d.cast(); err != nil {
		return err
	}
	defer d.leave()
	d.opening(in)
	checked, began := 0, time.Now()
	for _, s := range d.steps() {
		d.begin(s.title, s.text)
		if err := d.end(s.play(ctx)); err != nil {
			return err
		}
		checked += len(d.now.Claims)
	}
	if !d.json {
		d.closing(in, checked, time.Since(began))
	}
	return nil
}

// cast names those who take part.
func (d *demo) cast() (err error) {
	d.names[d.box.Stint], d.names[d.box.IdP], d.names[d.box.API] = "Stint", "identity provider", "API"
	d.names[d.box.MCP], d.names["unix:"], d.names["postgres:"] = "MCP server", "Stint", "PostgreSQL"
	if d.desktop, err = sample.NewHolder(d.box.as("desktop", d.box.DesktopSecret, "agent")); err != nil {
		return err
	}
	d.thief, err = sample.NewHolder(d.box.as("orders-mcp", d.box.MCPSecret, "intruder"))
	return err
}

func (d *demo) leave() {
	d.desktop.Close()
	d.thief.Close()
	if d.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = d.conn.Close(ctx)
	}
}

func (d *demo) opening(in demoOptions) {
	if d.json {
		return
	}
	d.print(d.paint("1", "Stint, from a sign-in to a revocation"))
	d.print("")
	for _, line := range wrap("An agent acts for a person. An MCP server has to call an API, or a database, for that person, once. "+
		"Stint swaps the person's sign-in for a credential that is short-lived and good for just that, takes it back when it has to, and keeps the record. "+
		"What runs here is real, and on this machine:", columns-2) {
		d.print("  " + line)
	}
	d.print("")
	row := func(name, where, what string) { d.print(fmt.Sprintf("    %-18s %-28s %s", name, where, what)) }
	row("identity provider", d.box.IdP, "signs people in (OpenID Connect)")
	row("Stint", d.box.Stint, "this program, as `stint serve` runs it")
	row("MCP server", d.box.MCP, "has the tools; the client orders-mcp of Stint")
	row("API", d.box.API, "has the orders; asks Stint about tokens")
	if d.box.Warehouse != 0 {
		row("PostgreSQL "+d.box.postgresVersion, address(d.box.Warehouse), "the warehouse; Stint lends logins to it")
	} else {
		row("PostgreSQL", "-", "left out: "+d.box.without)
	}
	d.print("")
	about := "The configuration is " + d.box.Config + ", the policy in mappings/ beside it."
	if in.keep == "" {
		about += " Both go when this ends; `stint demo --keep DIR` keeps them."
	}
	about += "\nBelow is what goes over the wire. Secrets are shortened, what is alike the second time is …; `stint demo -o json` has all of it. " +
		"What stands behind a ✓ has been checked."
	for _, line := range wrap(about, columns-2) {
		d.print("  " + line)
	}
}

func (d *demo) closing(in demoOptions, checked int, took time.Duration) {
	d.print("")
	d.print(d.paint("1", fmt.Sprintf("All of it came out as said: %d claims were checked, in %.1f s.", checked, took.Seconds())))
	d.print("")
	if in.keep != "" {
		d.print("  Look at it:        " + filepath.Join(d.box.Dir, "mappings"))
		d.print("                     " + program() + " audit tail --config " + shellQuote(d.box.Config))
	}
	d.print("  Try it yourself:   " + program() + " dev")
	if d.box.Warehouse == 0 && in.postgres == postgresAuto {
		d.print("  With a database:   make demo-postgres")
	}
}
