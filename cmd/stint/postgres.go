package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/vault"
	"github.com/stint-dev/stint/providers/postgres"
)

const aboutConnecting = `

The database is named as with psql: --database takes a connection URI or keywords, and
what is absent comes from PGHOST, PGPORT, PGDATABASE, PGUSER, PGSERVICE and so on. The
password comes from PGPASSWORD, from the password file, or from what --password refers
to, and never stands on the command line.`

func newPostgres(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use: "postgres", Short: "Prepare a PostgreSQL database, and look at it",
		Long: `Prepares a PostgreSQL database for logins that live as long as a tool call: a schema with
functions, and two roles. What the ceiling role is granted WITH GRANT OPTION is the most
that is ever handed out; the broker role, which the server logs in as, may call the
functions and nothing else.`,
		Args: cobra.NoArgs,
	}
	c.AddCommand(newPostgresInstall(g), newPostgresStatus(g), newPostgresUninstall(g))
	return c
}

// dba is how a DBA reaches a database, and what Stint's roles are called there.
type dba struct {
	g                  *globals
	database, password string
	roles              postgres.Roles
}

func (d *dba) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&d.database, "database", "", "the database, as a connection `URI` or keywords; absent: the environment's (PGHOST and so on)")
	f.StringVar(&d.password, "password", "", "a `reference` to your password: file:/PATH, env:NAME or vault:PATH#FIELD; absent: PGPASSWORD")
	f.StringVar(&d.roles.Ceiling, "ceiling", "stint_ceiling", "the `role` that holds the most that is handed out")
	f.StringVar(&d.roles.Broker, "broker", "stint_broker", "the `role` that the server logs in as")
}

// dsn returns the connection string, with the password.
func (d *dba) dsn(ctx context.Context) (secret.String, error) {
	password, err := d.g.referred(ctx, "password", d.password)
	if err != nil {
		return secret.String{}, err
	}
	dsn, err := postgres.DSN(d.database, password)
	if err != nil {
		return dsn, usage("--database: %v", err)
	}
	return dsn, nil
}

// look looks at the database; one that cannot be reached may be another than was meant.
func (d *dba) look(ctx context.Context, dsn secret.String) (*postgres.Standing, error) {
	s, err := postgres.Look(ctx, dsn, d.roles)
	if d.database == "" && errors.As(err, new(*pgconn.ConnectError)) {
		return nil, fmt.Errorf("%w\nno --database is given, and PGHOST, PGDATABASE and so on name this one: say which is meant, for instance --database postgres://postgres@db.example/sales", err)
	}
	return s, err
}

// referred returns the secret that a flag refers to; none if it is absent.
func (g *globals) referred(ctx context.Context, flag, reference string) (s secret.String, err error) {
	if reference == "" {
		return s, nil
	}
	if err := vault.CheckReference(reference); err != nil {
		return s, usage("--%s: %v", flag, err)
	}
	if !strings.HasPrefix(reference, "vault:") {
		s, err = vault.Resolver{}.Resolve(ctx, reference)
		return s, wrapFlag(flag, err)
	}
	cfg, err := config.Load(g.config)
	if err != nil {
		return s, &exitError{exitRefused, err}
	}
	err = withSecrets(cfg, func(store vault.Store) error {
		s, err = vault.Resolver{Store: store}.Resolve(ctx, reference)
		return err
	})
	return s, wrapFlag(flag, err)
}

func wrapFlag(flag string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("--%s: %w", flag, err)
}

// installed is what an installation did, or would do.
type installed struct {
	Database string   `json:"database"`
	DryRun   bool     `json:"dry_run,omitempty"`
	Version  int      `json:"version"`
	Changes  []string `json:"changes"`
}

func newPostgresInstall(g *globals) *cobra.Command {
	d := &dba{g: g}
	var show, dry bool
	var reference string
	c := &cobra.Command{
		Use: "install", Short: "Put Stint's schema and roles into a database, or update them",
		Long: `Puts the schema stint and two roles into a database, or brings what is there to this
version, in one transaction. Run twice it changes nothing, and no lease ends. It takes a
superuser, or a role with CREATEROLE that may create schemas.

--print shows the SQL, for review, and connects to nothing; it can be run by psql. With
--dry-run everything is done and undone again, which says what would go wrong.` + aboutConnecting,
		Example: `  stint postgres install --print | less
  PGPASSWORD=... stint postgres install --database postgres://postgres@db.example/sales --dry-run
  stint postgres install --database service=sales --broker-password file:/run/secrets/stint-sales

  psql sales -c 'GRANT USAGE ON SCHEMA app TO stint_ceiling WITH GRANT OPTION' \
             -c 'GRANT SELECT ON app.orders TO stint_ceiling WITH GRANT OPTION'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if show && dry {
				return usage("--print does nothing, and --dry-run does something: one of the two")
			}
			if show {
				return d.print(c, postgres.InstallSQL)
			}
			password, err := g.referred(c.Context(), "broker-password", reference)
			if err != nil {
				return err
			}
			done, err := d.install(c.Context(), dry, password)
			if err != nil {
				return err
			}
			return g.print(c, done, done.text)
		},
	}
	d.flags(c)
	f := c.Flags()
	f.BoolVar(&show, "print", false, "print the SQL and do nothing")
	f.BoolVar(&dry, "dry-run", false, "do it, and undo it")
	f.StringVar(&reference, "broker-password", "", "a `reference` to the password that the broker role gets: file:/PATH, env:NAME or vault:PATH#FIELD; absent: it keeps its own")
	return c
}

// print prints a script.
func (d *dba) print(c *cobra.Command, script func(postgres.Roles) (string, error)) error {
	text, err := script(d.roles)
	if err != nil {
		return usage("%v", err)
	}
	return d.g.print(c, map[string]any{"version": postgres.Version, "sql": text}, func(p *printer) { p.line("%s", strings.TrimSuffix(text, "\n")) })
}

func (d *dba) install(ctx context.Context, dry bool, password secret.String) (*installed, error) {
	if _, err := postgres.InstallSQL(d.roles); err != nil {
		return nil, usage("%v", err)
	}
	dsn, err := d.dsn(ctx)
	if err != nil {
		return nil, err
	}
	before, err := d.look(ctx, dsn)
	if err != nil {
		return nil, err
	}
	if dry {
		err = postgres.Rehearse(ctx, dsn, d.roles)
	} else {
		err = postgres.Install(ctx, dsn, d.roles, password)
	}
	if err != nil {
		return nil, err
	}
	done := &installed{Database: before.Database, DryRun: dry, Version: postgres.Version}
	for _, role := range []string{d.roles.Ceiling, d.roles.Broker} {
		if before.Version == 0 && slices.Contains(before.Missing, role) {
			done.Changes = append(done.Changes, "made role "+role)
		}
	}
	switch before.Version {
	case 0:
		done.Changes = append(done.Changes, fmt.Sprintf("made schema stint, version %d", postgres.Version))
	case postgres.Version:
		done.Changes = append(done.Changes, fmt.Sprintf("version %d was there: wrote its functions anew", postgres.Version))
	default:
		done.Changes = append(done.Changes, fmt.Sprintf("brought version %d to version %d", before.Version, postgres.Version))
	}
	if !password.Empty() {
		done.Changes = append(done.Changes, "set the password of "+d.roles.Broker)
	}
	return done, nil
}

func (i *installed) text(p *printer) {
	if i.DryRun {
		p.line("database %s would be changed so; nothing was:", i.Database)
	} else {
		p.line("database %s:", i.Database)
	}
	for _, c := range i.Changes {
		p.line("  %s", c)
	}
}

func newPostgresUninstall(g *globals) *cobra.Command {
	d := &dba{g: g}
	var show bool
	c := &cobra.Command{
		Use: "uninstall", Short: "End all leases and take Stint out of a database",
		Long: `Ends every lease of a database, and drops their roles, the groups and the schema stint;
the ceiling and the broker role as well, unless another database needs them. Refused
while row policies ask stint.` + aboutConnecting,
		Example: `  stint postgres uninstall --print
  stint postgres uninstall --database postgres://postgres@db.example/sales`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if show {
				return d.print(c, postgres.UninstallSQL)
			}
			done, err := d.uninstall(c.Context())
			if err != nil {
				return err
			}
			return g.print(c, done, done.text)
		},
	}
	d.flags(c)
	c.Flags().BoolVar(&show, "print", false, "print the SQL and do nothing")
	return c
}

func (d *dba) uninstall(ctx context.Context) (*installed, error) {
	dsn, err := d.dsn(ctx)
	if err != nil {
		return nil, err
	}
	before, err := d.look(ctx, dsn)
	if err != nil {
		return nil, err
	}
	if before.Version == 0 {
		return nil, notInstalled(before)
	}
	roles := postgres.Roles{Ceiling: before.Ceiling, Broker: before.Broker}
	if err := postgres.Uninstall(ctx, dsn, roles); err != nil {
		return nil, err
	}
	after, err := postgres.Look(ctx, dsn, roles)
	if err != nil {
		return nil, err
	}
	done := &installed{Database: before.Database, Changes: []string{fmt.Sprintf("ended %d leases, dropped %d groups and the schema stint", before.Open, before.Groups)}}
	for _, role := range []string{roles.Ceiling, roles.Broker} {
		what := "kept role " + role + ", which is needed elsewhere"
		if slices.Contains(after.Missing, role) {
			what = "dropped role " + role
		}
		done.Changes = append(done.Changes, what)
	}
	return done, nil
}

func notInstalled(s *postgres.Standing) error {
	return &exitError{exitRefused, fmt.Errorf("nothing is installed in database %s: run `stint postgres install`", s.Database)}
}

func newPostgresStatus(g *globals) *cobra.Command {
	d := &dba{g: g}
	c := &cobra.Command{
		Use: "status", Short: "Show what is installed, what it may hand out, and open leases",
		Long: `Shows the version that is installed, the limits, what the ceiling may hand out, open
leases, and what a DBA should look at: what is open to everybody, because mints are
refused for that. It takes a superuser or a member of the ceiling, and changes nothing.

Exit code 3: nothing is installed, or another version.` + aboutConnecting,
		Example: `  stint postgres status --database postgres://postgres@db.example/sales
  PGSERVICE=sales stint postgres status -o json | jq .warnings`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dsn, err := d.dsn(c.Context())
			if err != nil {
				return err
			}
			s, err := d.look(c.Context(), dsn)
			if err != nil {
				return err
			}
			err = g.print(c, s, func(p *printer) { standing(p, s) })
			switch {
			case err == nil && s.Version == 0:
				return notInstalled(s)
			case err == nil && s.Version != postgres.Version:
				return &exitError{exitRefused, errors.New("it is not of this version")}
			}
			return err
		},
	}
	d.flags(c)
	return c
}

// standing prints what there is in a database.
func standing(p *printer, s *postgres.Standing) {
	p.row("database", fmt.Sprintf("%s, PostgreSQL %s", s.Database, s.Server))
	if s.Version == 0 {
		p.row("version", "none")
		return
	}
	p.row("version", fmt.Sprintf("%d, since %s", s.Version, s.Since.Local().Format(time.DateTime)))
	p.row("ceiling", s.Ceiling)
	p.row("broker", s.Broker)
	life := time.Duration(s.MaxLifetime * float64(time.Second))
	p.row("limits", fmt.Sprintf("%s and %d connections a lease", life, s.MaxConnections))
	p.row("alive", fmt.Sprintf("%d leases, %d groups", s.Open, s.Groups))
	p.flush()
	if len(s.Lends) > 0 {
		p.line("")
		p.row("OBJECT", "MAY BE LENT")
		for _, l := range s.Lends {
			p.row(l.Object, strings.Join(l.Privileges, ", "))
		}
		p.flush()
	}
	if len(s.Leases) > 0 {
		p.line("")
		p.row("LEASE", "STATE", "SINCE", "UNTIL", "SESSIONS", "GROUP")
		for _, l := range s.Leases {
			p.row(l.Lease, l.State, l.Since.Local().Format(time.DateTime), l.Until.Local().Format(time.DateTime), l.Sessions, l.Group)
		}
		p.flush()
		if more := s.Open - len(s.Leases); more > 0 {
			p.line("and %d more", more)
		}
	}
	for i, w := range s.Warnings {
		if i == 0 {
			p.line("")
		}
		p.line("warning: %s", w)
	}
}
