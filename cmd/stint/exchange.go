package main

import (
	"encoding/json"

	"github.com/spf13/cobra"
)

func newExchange(g *globals) *cobra.Command {
	a := &asker{g: g}
	c := &cobra.Command{
		Use: "exchange", Short: "Exchange a token for another, or for a credential",
		Long: `Asks a Stint for one token exchange (RFC 8693) as one of its clients, and prints the
token; with -o json, all of the answer. A credential that is no token, such as a
database login, is a JSON document; stint vend hands it to a command without showing it
to anybody. What is printed is not given back: it ends by itself.` + aboutAsking + `

It exits with 0 if there is a token, with 1 if Stint could not be asked, with 2 if the
command line is wrong, with 3 if it was refused, and with 4 if a person has to do
something first, at the URL that is printed.`,
		Example: `  stint dev sign-in alice | stint exchange --issuer http://localhost:8080 --client desktop --client-secret env:DESKTOP_SECRET \
    --subject-token - --resource https://mcp.example/notes --scope notes:read
  stint exchange --subject-token file:/run/user/alice.jwt --resource https://mcp.example/notes --scope notes:read -o json
  stint exchange --client-key file:/etc/stint/desktop.pem --subject-token env:ALICE --resource https://mcp.example/notes --details call.json`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.forPrograms(c.OutOrStdout()); err != nil {
				return err
			}
			asks, x, err := a.prepare(c.Context(), c.InOrStdin())
			if err != nil {
				return err
			}
			got, err := asks.Exchange(c.Context(), x)
			if err != nil {
				return a.said(err)
			}
			return g.print(c, json.RawMessage(got.Answer().Reveal()), func(p *printer) { p.line("%s", got.Token.Reveal()) })
		},
	}
	a.flags(c)
	c.Flags().StringVar(&a.requestType, "requested-token-type", "", "the `type` that is wanted: access_token, jwt, credential or a URI; absent: whatever there is")
	_ = c.RegisterFlagCompletionFunc("requested-token-type", cobra.FixedCompletions([]string{"access_token", "jwt", "credential"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}
