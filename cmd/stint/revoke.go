package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
)

func newRevoke(g *globals) *cobra.Command {
	var in struct {
		broker.Selector
		Reason string `json:"reason"`
	}
	var force bool
	c := &cobra.Command{
		Use: "revoke", Short: "Take back tokens, sessions, subjects or leases",
		Long: `Takes back what all of the given conditions select, with everything that was made from
it: tokens die at every replica, leases are ended upstream. Speaks to the running server over
its local socket, or to the installation that you are signed in to (stint context).

The answer comes when the revocation is durable. Every replica refuses at the latest by
the bound that it names. A revocation is a rule and not a search: it holds for what is
found later as well, and does not say how much it took. What cannot be the name of
anything is refused, so that a slip of the hand is not taken for a revocation.

It exits with 0 when the revocation is durable, with 1 if it may not be, with 2 for what
cannot be a name, and with 3 for a name that the configuration or the server refuses.`,
		Example: `  stint revoke --subject 'https://idp.example#alice' --reason "laptop stolen"
  stint revoke --session 3q2-7wAAAAAAAAAAAAAAAA
  stint revoke --token 4fzzzxyzaaaaaaaaaaaaaQ
  stint revoke --lease abcdefghijklmnopqrstuvwx`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if in.Selector == (broker.Selector{}) {
				return usage("say what: --token, --session, --subject or --lease")
			}
			if err := wellFormed(in.Selector); err != nil {
				return usage("%v", err)
			}
			// Elsewhere nobody here knows what is configured.
			if cfg, err := config.Load(g.config); g.context == "" && err == nil {
				if err := known(cfg, in.Selector); err != nil && !force {
					return &exitError{exitRefused, fmt.Errorf("%w; if it was configured once, --force revokes it all the same", err)}
				}
			}
			api, err := g.connect()
			if err != nil {
				return err
			}
			return g.revoke(c, api, in)
		},
	}
	f := c.Flags()
	f.StringVar(&in.Token, "token", "", "the `jti` of a token of ours, or ISSUER#JTI of a foreign one")
	f.StringVar(&in.Session, "session", "", "the `id` of a session, as `stint audit` shows it")
	f.StringVar(&in.Subject, "subject", "", "a subject as `ISSUER#SUB`, or a client that acts for itself")
	f.StringVar(&in.Lease, "lease", "", "the `id` of a lease")
	f.StringVar(&in.Reason, "reason", "", "why, for the record, which keeps it as it is: name no person")
	f.BoolVar(&force, "force", false, "although its issuer or client is not configured")
	return c
}

// digest128 is how the ids of our tokens and of sessions are written: 128 bits.
var digest128 = base64.RawURLEncoding.Strict()

// leaseForm is how the ids of leases are written.
var leaseForm = regexp.MustCompile(`^[a-z0-9]{24}$`)

// wellFormed says which part of a selector can be the name of nothing. What was
// given is not repeated where it may be a token.
func wellFormed(s broker.Selector) error {
	id := func(text string) bool {
		raw, err := digest128.DecodeString(text)
		return err == nil && len(raw) == 16
	}
	iss, jti, foreign := strings.Cut(s.Token, "#")
	_, sub, person := strings.Cut(s.Subject, "#")
	switch {
	case !broker.Legible(sub) || !broker.Legible(jti):
		return errors.New("no subject or token can be called that: it is too long, or has characters that cannot be printed, such as the end of a line")
	case strings.HasPrefix(s.Token, "eyJ") && strings.Contains(s.Token, "."):
		return errors.New("--token is the jti of the token, not the token itself: that belongs into no command line")
	case s.Token != "" && !foreign && !id(s.Token):
		return errors.New("--token is the jti of a token of ours, 22 characters, or ISSUER#JTI of a foreign one")
	case foreign && (iss == "" || jti == ""):
		return errors.New("--token is ISSUER#JTI for a foreign token: one half is missing")
	case s.Session != "" && !id(s.Session):
		return errors.New("--session is the id of a session, 22 characters, as stint audit show has it")
	case person && (sub == "" || strings.HasPrefix(s.Subject, "#")):
		return errors.New("--subject is ISSUER#SUB: one half is missing")
	case !person && strings.Contains(s.Subject, "://"):
		return errors.New("--subject is ISSUER#SUB: whom of that issuer?")
	case s.Lease != "" && !leaseForm.MatchString(s.Lease):
		return errors.New("--lease is the id of a lease, 24 lower-case letters and digits, as stint audit show has it")
	}
	return nil
}

// known says what a selector names that the configuration does not have, so that
// nothing of it can be alive.
func known(cfg *config.Config, s broker.Selector) error {
	var issuers, clients []string
	for _, i := range cfg.Issuers {
		issuers = append(issuers, i.Policy.Issuer)
	}
	for _, c := range cfg.Clients {
		clients = append(clients, c.ID)
	}
	trusted := func(what, iss string) error {
		if slices.Contains(issuers, iss) {
			return nil
		}
		return fmt.Errorf("%s: %s is no configured issuer; there are %s", what, iss, strings.Join(issuers, ", "))
	}
	if iss, jti, foreign := strings.Cut(s.Token, "#"); foreign {
		if iss == cfg.Issuer {
			return fmt.Errorf("--token: a token of our own is named by its jti alone: %s", jti)
		}
		if err := trusted("--token", iss); err != nil {
			return err
		}
	}
	iss, sub, person := strings.Cut(s.Subject, "#")
	switch {
	case person && iss == cfg.Issuer:
		return fmt.Errorf("--subject: a client of ours that acts for itself is named by its id alone: %s", sub)
	case person:
		return trusted("--subject", iss)
	case s.Subject != "" && !slices.Contains(clients, s.Subject):
		return fmt.Errorf("--subject: no client is called %q, and others are written ISSUER#SUB; the issuers are %s", s.Subject, strings.Join(issuers, ", "))
	}
	return nil
}
