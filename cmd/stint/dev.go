package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/internal/sample"
)

// devPort is that of Stint in `stint dev`; those of the others follow it.
const devPort = 8790

func newDev(g *globals) *cobra.Command {
	opts := sandboxOptions{Port: devPort}
	c := &cobra.Command{
		Use: "dev", Short: "Run Stint with sample servers around it, to try things",
		Long: `Starts what stint demo plays with, and leaves it running: Stint on a configuration that
is written for it, a sample identity provider, MCP server and API, and a database where
PostgreSQL is installed. It prints who is where, and commands to try.

With --dir the folder stays, and another start goes on with it: edit the mappings in it
and see what changes. Without, all of it goes when this ends. Nothing listens but on
loopback. It is for trying things out: the users' passwords are public.`,
		Example: "  stint dev\n  stint dev --dir ./stint-dev --port 9000",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkPostgresFlag(opts.Postgres); err != nil {
				return err
			}
			if opts.Port < 0 || opts.Port > 65530 {
				return usage("--port is 0 to 65530, not %d", opts.Port)
			}
			return runDev(c, g, opts)
		},
	}
	f := c.Flags()
	f.StringVar(&opts.Dir, "dir", "", "keep everything in this `folder`, and go on with what is there; absent: in a temporary one, which is removed")
	f.IntVar(&opts.Port, "port", opts.Port, "the `port` of Stint; the others have those after it; 0: free ones")
	addPostgresFlag(c, &opts.Postgres)
	c.AddCommand(newSignIn(g))
	return c
}

// newSignIn signs a user in where a shell wants a token.
func newSignIn(g *globals) *cobra.Command {
	var issuer string
	c := &cobra.Command{
		Use: "sign-in USER", Short: "Sign a sample user in, and print the access token",
		Long: `Signs alice, bob or carol in at the sample identity provider of a running stint dev, as
their agent and browser would together, and prints the access token.`,
		Example: "  ALICE=$(stint dev sign-in alice)",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: first(cobra.FixedCompletions([]string{"alice", "bob", "carol"}, cobra.ShellCompDirectiveNoFileComp)),
		RunE: func(c *cobra.Command, args []string) error {
			tokens, err := (sample.Agent{}).SignIn(c.Context(), sample.SignIn{
				Issuer: issuer, ClientID: sample.DesktopClient, User: args[0], Password: args[0] + "-password",
			})
			if errors.Is(err, sample.ErrPassword) {
				return usage("there is no user %s; there are alice, bob and carol", args[0])
			}
			if errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("%w\nnobody listens at %s: run %s dev in another terminal; if it runs at another --port, say its identity provider by --idp or IDP", err, issuer, program())
			}
			if err != nil {
				return err
			}
			token := tokens.Access.Reveal()
			return g.print(c, map[string]string{"access_token": token}, func(p *printer) { p.line("%s", token) })
		},
	}
	c.Flags().StringVar(&issuer, "idp", envOr("IDP", "http://"+address(devPort+1)), "the identity provider's `URL` (or IDP)")
	return c
}

func runDev(c *cobra.Command, g *globals, opts sandboxOptions) (err error) {
	ctx := c.Context()
	if opts.Dir == "" {
		if opts.Dir, err = temporary("stint-dev-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, removeAll(opts.Dir)) }()
	}
	opts.SamePort = c.Flags().Changed("port")
	box, err := openSandbox(ctx, opts)
	if err != nil {
		return interrupted(ctx, err)
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	said := newDevGuide(box)
	if err := g.print(c, said, said.show); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-box.ended:
		return fmt.Errorf("the server has ended; see %s", filepath.Join(box.Dir, sandboxLog)) // why is said when it is closed
	}
}

// interrupted is no error if somebody asked to stop before all had started.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// devGuide is what `stint dev` says.
type devGuide struct {
	IdP       string       `json:"identity_provider"`
	Stint     string       `json:"stint"`
	Ops       string       `json:"ops"`
	MCP       string       `json:"mcp_server"`
	API       string       `json:"api"`
	Warehouse string       `json:"postgres,omitempty"`
	Without   string       `json:"without_postgres,omitempty"`
	Dir       string       `json:"folder"`
	Users     []devUser    `json:"users"`
	Commands  []devCommand `json:"commands"`
}

type devUser struct {
	Name     string   `json:"name"`
	Password string   `json:"password"`
	Groups   []string `json:"groups"`
}

// devCommand is for a shell, after those before it.
type devCommand struct {
	About string `json:"about"`
	Text  string `json:"command"`
}

func newDevGuide(b *sandbox) *devGuide {
	d := &devGuide{
		IdP: b.IdP, Stint: b.Stint, Ops: "http://" + b.OpsAddress, MCP: b.MCP, API: b.API, Without: b.without, Dir: b.Dir,
		Commands: devCommands(program(), b.Env, b.Warehouse != 0),
	}
	if b.Warehouse != 0 {
		d.Warehouse = address(b.Warehouse)
	}
	for _, u := range b.idp.Users() {
		d.Users = append(d.Users, devUser{u.Name, u.Password, u.Groups})
	}
	return d
}

// program is how a shell elsewhere calls this one.
func program() string {
	if !strings.ContainsRune(os.Args[0], filepath.Separator) {
		return filepath.Base(os.Args[0])
	}
	path, err := os.Executable()
	if err != nil {
		return "stint"
	}
	return shellQuote(path)
}

// devCommands are commands to try, in this order.
func devCommands(stint, env string, warehouse bool) []devCommand {
	exchange := func(into, client, subject, resource, scope, member string) string {
		return into + `=$(curl -s $STINT/oauth2/token -u ` + client + ` \
  -d grant_type=urn:ietf:params:oauth:grant-type:token-exchange \
  -d subject_token=$` + subject + ` -d subject_token_type=urn:ietf:params:oauth:token-type:access_token \
  -d resource=` + resource + ` -d scope=` + scope + ` | sed 's/.*"` + member + `":"\([^"]*\)".*/\1/')`
	}
	call := func(tool, flags string) string {
		return `curl ` + flags + ` $MCP -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
  -H 'Accept: application/json, text/event-stream' \
  -d '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + tool + `","arguments":{}}}'; echo`
	}
	out := []devCommand{
		{"The addresses, and the clients' secrets.", ". " + shellQuote(env)},
		{"Alice signs in. In a browser that is a page; here it is filled in for her.", "ALICE=$(" + stint + " dev sign-in alice)"},
		{"Her agent exchanges that for a token for the MCP server,", exchange("TOKEN", "desktop:$DESKTOP_SECRET", "ALICE", "$MCP", "orders:read", "access_token")},
		{"and calls a tool.", call("list_orders", "-s")},
		{"That token opens nothing at the API. (401)", `curl -s -i $API/orders -H "Authorization: Bearer $TOKEN"; echo`},
	}
	if warehouse {
		out = append(out,
			devCommand{"A token for reports, and what the MCP server gets for it: a database login,", exchange("REPORTS", "desktop:$DESKTOP_SECRET", "ALICE", "$MCP", "reports:read", "access_token") + "\n" +
				exchange("LOGIN", "orders-mcp:$ORDERS_MCP_SECRET", "REPORTS", "postgres://warehouse/sales.orders", "reports:read", "url")})
		if _, err := exec.LookPath("psql"); err == nil {
			out = append(out, devCommand{"which reads one table, and no other.", `psql "$LOGIN" -c 'SELECT * FROM sales.orders'; psql "$LOGIN" -c 'SELECT * FROM sales.salaries'`},
				devCommand{"The same without seeing the login, which ends with psql.", `echo "$REPORTS" | ` + stint + ` vend --client orders-mcp --client-secret env:ORDERS_MCP_SECRET --subject-token - \
  --resource postgres://warehouse/sales.orders --scope reports:read -- psql -c 'SELECT current_user, item FROM sales.orders'`})
		} else {
			out = append(out, devCommand{"which a driver takes as it is.", `echo "$LOGIN"`})
		}
	}
	return append(out,
		devCommand{"Why may Bob not?", stint + " dev sign-in bob | " + stint + " explain --client desktop --token - --resource $MCP --scope orders:read"},
		devCommand{"Take back everything of Alice's, and call again. (401)", stint + ` revoke --subject "$IDP#alice" --reason "laptop stolen"` + "\n" + call("list_orders", "-s -i")},
		devCommand{"What happened.", stint + " audit tail"},
	)
}

func (d *devGuide) show(p *printer) {
	p.line("Stint runs, with everything around it. Ctrl-C stops it.\n")
	p.row("  identity provider", d.IdP)
	p.row("  Stint", d.Stint, "this program, as `stint serve` runs it")
	p.row("  for operators", d.Ops+"/readyz", "and /metrics")
	p.row("  MCP server", d.MCP, "the client orders-mcp")
	p.row("  API", d.API, "the client orders-api")
	if d.Warehouse != "" {
		p.row("  PostgreSQL", d.Warehouse, "the provider warehouse")
	} else {
		p.row("  PostgreSQL", "-", "left out: "+d.Without)
	}
	p.row("  folder", d.Dir, "stint.yaml, stint.log")
	p.row("  policy", filepath.Join(d.Dir, "mappings"), "edit it: it is in force two seconds after")
	p.flush()
	p.line("")
	p.row("  USER", "PASSWORD", "GROUPS")
	for _, u := range d.Users {
		p.row("  "+u.Name, u.Password, strings.Join(u.Groups, ", "))
	}
	p.flush()
	p.line("\nTry it, in another terminal:\n")
	for _, c := range d.Commands {
		p.line("  # %s", c.About)
		p.line("  %s\n", strings.ReplaceAll(c.Text, "\n", "\n  "))
	}
}
