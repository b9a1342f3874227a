package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/internal/vault"
)

// certifiedView is what became of a certification.
type certifiedView struct {
	Provider string `json:"provider"`
	// Result is supported, or what the server does instead.
	Result string `json:"result"`
	Class  string `json:"class"`
}

// meansOf says what a result means.
var meansOf = map[string]string{
	"supported": "the server narrows, and says so: tokens are vended",
	"ignored":   "the server gives every scope, whatever it is asked for",
	"rejected":  "the server gives no token for fewer scopes",
	"shrinks":   "a refresh token that was narrowed stays narrow: the account has to be linked again",
	"unsaid":    "the server does not say what a token is for, and cannot be asked",
}

func newCertify(g *globals) *cobra.Command {
	var subject, file string
	c := &cobra.Command{
		Use: "certify NAME", Short: "Find out whether an upstream narrows, and remember it",
		Long: `Asks a provider's upstream for a token with fewer scopes than there are, and then for all of
them again, for a subject that has linked an account there (--subject), or by its own token
(--token). The tokens are ended at once. What came of it is kept with the secrets; without
"supported" the provider vends nothing.

A server that keeps its secrets in a sealed file has it open: stop it first. It exits with 0
if the upstream narrows, and with 3 if not.`,
		Example: `  stint providers certify tracker --subject 'https://idp.example#alice'
  stint providers certify tracker --subject 'https://idp.example#alice' -o json | jq .result`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage("name one provider of the configuration")
			}
			return nil
		},
		ValidArgsFunction: g.completed(providersOf),
		RunE: func(c *cobra.Command, args []string) error {
			r := broker.CertifyRequest{Subject: subject, Say: func(what string) { _, _ = fmt.Fprintln(c.ErrOrStderr(), what+" ...") }}
			if file != "" {
				text, err := readToken(c.InOrStdin(), file)
				if err != nil {
					return err
				}
				r.Assertion = text
			}
			v, err := g.certify(c.Context(), args[0], r)
			if err != nil {
				return err
			}
			if err := g.print(c, v, func(p *printer) { p.line("%s: %s: %s", v.Provider, v.Result, meansOf[v.Result]) }); err != nil {
				return err
			}
			if v.Result != "supported" {
				return &exitError{exitRefused, errors.New("")}
			}
			return nil
		},
	}
	c.Flags().StringVar(&subject, "subject", "", "a subject that has linked an account, as `ISSUER#SUB`")
	c.Flags().StringVar(&file, "token", "", "a `file` with the subject's own token, where the flow is exchange; - reads standard input")
	return c
}

// providersOf are the providers of a configuration.
func providersOf(cfg *config.Config) (names []string) {
	for _, p := range cfg.Providers {
		names = append(names, p.Name)
	}
	return names
}

func (g *globals) certify(ctx context.Context, name string, r broker.CertifyRequest) (*certifiedView, error) {
	cfg, err := config.Load(g.config)
	if err != nil {
		return nil, &exitError{exitRefused, err}
	}
	p, err := openPlan(ctx, cfg, vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		return nil, &exitError{exitRefused, err}
	}
	defer func() { _ = p.secrets.Close() }()
	provider := p.registry.Providers[name]
	if provider == nil {
		return nil, usage("there is no provider %q in %s", name, g.config)
	}
	certify := provider.Describe().Certify
	if certify == nil {
		return nil, usage("%s is of a kind that is known to narrow: there is nothing to find out", name)
	}
	if p.ring, err = token.OpenRing(ctx, ringConfig(cfg), keyFile{p.secrets}); err != nil {
		return nil, err
	}
	result, err := certify(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("certify %s: %w", name, err)
	}
	return &certifiedView{name, result, string(provider.Describe().Class)}, nil
}
