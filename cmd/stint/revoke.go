package main

import (
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
)

func newRevoke(g *globals) *cobra.Command {
	var in struct {
		broker.Selector
		Reason string `json:"reason"`
	}
	c := &cobra.Command{
		Use: "revoke", Short: "Take back tokens, sessions, subjects or leases",
		Long: `Takes back what all of the given conditions select, with everything that was made from
it: tokens die at every replica, leases are ended upstream. Speaks to the running server
over its local socket.

The answer comes when the revocation is durable. Every replica refuses at the latest by
the bound that it names.`,
		Example: `  stint revoke --subject 'https://idp.example#alice' --reason "laptop stolen"
  stint revoke --session 3q2-7wAAAAAAAAAAAAAAAA
  stint revoke --token 4fzzzxyzaaaaaaaaaaaaaa
  stint revoke --lease abcdefghijklmnopqrstuvwx`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if in.Selector == (broker.Selector{}) {
				return usage("say what: --token, --session, --subject or --lease")
			}
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			l, err := dialLocal(cfg)
			if err != nil {
				return err
			}
			var got broker.Receipt
			if err := l.call(c.Context(), http.MethodPost, "/admin/v1/revocations", in, &got); err != nil {
				return err
			}
			return g.print(c, got, func(p *printer) {
				p.line("revoked, at position %s of the feed", got.Position)
				p.line("every replica refuses by %s at the latest; leases are being ended upstream", got.Bound.Local().Format(time.TimeOnly))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Token, "token", "", "the `jti` of a token of ours, or ISSUER#JTI of a foreign one")
	f.StringVar(&in.Session, "session", "", "the `id` of a session, as `stint audit` shows it")
	f.StringVar(&in.Subject, "subject", "", "a subject as `ISSUER#SUB`, or a client that acts for itself")
	f.StringVar(&in.Lease, "lease", "", "the `id` of a lease")
	f.StringVar(&in.Reason, "reason", "", "why, for the record")
	return c
}
