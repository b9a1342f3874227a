package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/providers"
)

// connector is what the commands about somebody's own accounts have in common.
type connector struct {
	*globals
	issuer, ca string
	noBrowser  bool
}

func newConnect(g *globals) *cobra.Command {
	k := &connector{globals: g}
	c := &cobra.Command{
		Use: "connect [PROVIDER]", Short: "Link an account of yours at an upstream, see and unlink them",
		Long: `Some upstreams are used with your own account there: it has to be linked once. This opens
the installation's page for PROVIDER in a browser, or that of all your accounts: there you
sign in with your organisation's account, see what would be linked, and go on to the
upstream, which asks whether you allow it. What is kept of it never leaves the
installation.

The installation is that of --issuer (or STINT_ISSUER), else of --context, else of the
configuration on this machine, else of the current context.`,
		Example: `  stint connect github --issuer https://stint.example
  stint connect --no-browser
  stint connect list -o json
  stint connect unlink github`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: first(k.completeProviders),
		RunE:              func(c *cobra.Command, args []string) error { return k.open(c, args) },
	}
	f := c.PersistentFlags()
	f.StringVar(&k.issuer, "issuer", os.Getenv(envIssuer), "the `URL` of the installation, which is its issuer (or "+envIssuer+")")
	f.StringVar(&k.ca, "ca", "", "a `file` of certificates in PEM by which the installation's own is verified")
	f.BoolVar(&k.noBrowser, "no-browser", false, "only print the address that a browser has to open")
	c.AddCommand(&cobra.Command{
		Use: "list", Short: "List the upstreams, and which of your accounts are linked", Args: cobra.NoArgs,
		Long: `Lists the upstreams at which accounts can be linked, and your own that are. A browser asks
whether to let the command line see them, as stint login does, and shows a code that is
shown here as well; for a quarter of an hour it does not ask again.`,
		Example: "  stint connect list\n  stint connect list --issuer https://stint.example -o json",
		RunE:    func(c *cobra.Command, _ []string) error { return k.list(c) },
	}, &cobra.Command{
		Use: "unlink PROVIDER", Short: "Unlink your account, and end what was made from it", Args: cobra.ExactArgs(1),
		Long: `Has the installation forget your account at an upstream, revoke there what can be, and end
the credentials that were made from it. Prints what became of it there: revoked, or until
when it lives where it cannot be. A browser asks first, as for stint connect list.`,
		Example:           "  stint connect unlink github\n  stint connect unlink github -o json",
		ValidArgsFunction: first(k.completeProviders),
		RunE:              func(c *cobra.Command, args []string) error { return k.unlink(c, args[0]) },
	})
	return c
}

// at is the installation that is meant.
func (k *connector) at(known *contexts) (in installation, err error) {
	switch {
	case k.issuer != "":
		in = installation{Issuer: strings.TrimSuffix(k.issuer, "/")}
		if name := known.nameOf(in.Issuer); name != "" {
			in.CA = known.Known[name].CA
		}
	case k.context != "":
		if in, err = known.find(k.context); err != nil {
			return in, err
		}
	default:
		cfg, err := config.Load(k.config)
		if err == nil {
			in = installation{Issuer: cfg.Issuer}
		} else if in = known.Known[known.Current]; in.Issuer == "" {
			return in, usage("say which installation: --issuer https://HOST, or %s", envIssuer)
		}
	}
	if k.ca != "" {
		if in.CA, err = filepath.Abs(k.ca); err != nil {
			return in, err
		}
	}
	return installation{Issuer: in.Issuer, CA: in.CA}, nil // without an administrator's token
}

// reach returns a way to speak to the installation about accounts, without a token, if it
// has any to link.
func (k *connector) reach(ctx context.Context, in installation) (*adminAPI, error) {
	client, err := in.client()
	if err != nil {
		return nil, err
	}
	l := &adminAPI{client: client, base: in.Issuer}
	err = l.call(ctx, http.MethodGet, accountsPath, nil, nil)
	switch {
	case errors.Is(err, errNotSignedIn): // as everybody who has no token
		return l, nil
	case exitCodeOf(err) == exitRefused:
		return nil, &exitError{exitRefused, fmt.Errorf("no accounts are linked at %s: none of its providers needs one", in.Issuer)}
	case err == nil:
		err = fmt.Errorf("the answer of %s is none of Stint", in.Issuer)
	}
	return nil, err
}

const accountsPath = broker.ConnectPath + "/v1/accounts"

// open opens the page at which an account is linked.
func (k *connector) open(c *cobra.Command, args []string) error {
	known, err := readContexts()
	if err != nil {
		return err
	}
	in, err := k.at(known)
	if err != nil {
		return err
	}
	if _, err := k.reach(c.Context(), in); err != nil {
		return err
	}
	page := in.Issuer + broker.ConnectPath
	if len(args) > 0 {
		page += "/" + url.PathEscape(args[0])
	}
	opened := false
	if !k.noBrowser {
		if err := browse(page); err != nil {
			_, _ = fmt.Fprintf(c.ErrOrStderr(), "(no browser could be opened: %v)\n", err)
		} else {
			opened = true
		}
	}
	return k.print(c, map[string]any{"url": page, "opened": opened}, func(p *printer) {
		p.line("link your account in a browser, at\n\n  %s", page)
	})
}

// ask makes a request about accounts, having somebody sign in first if he is not.
func (k *connector) ask(c *cobra.Command, method, path string, out any) error {
	known, err := readContexts()
	if err != nil {
		return err
	}
	in, err := k.at(known)
	if err != nil {
		return err
	}
	l, err := k.reach(c.Context(), in)
	if err != nil {
		return err
	}
	if own := known.People[in.Issuer]; time.Now().Before(own.Expires) {
		l.token = secret.New(own.Token)
		if err = l.call(c.Context(), method, path, nil, out); !errors.Is(err, errNotSignedIn) {
			return err
		}
	}
	open := browse
	if k.noBrowser {
		open = func(string) error { return nil }
	}
	if err := in.signIn(c.Context(), c.ErrOrStderr(), open, broker.ConnectPath); err != nil {
		return err
	}
	if known.People == nil {
		known.People = make(map[string]ownToken)
	}
	for issuer, own := range known.People { // what has run out is of no use to anybody
		if !time.Now().Before(own.Expires) {
			delete(known.People, issuer)
		}
	}
	known.People[in.Issuer] = ownToken{in.Token, in.Expires}
	if err := known.write(); err != nil {
		return err
	}
	l.token = secret.New(in.Token)
	return l.call(c.Context(), method, path, nil, out)
}

func (k *connector) list(c *cobra.Command) error {
	var out api.LinkedAccounts
	if err := k.ask(c, http.MethodGet, accountsPath, &out); err != nil {
		return err
	}
	return k.print(c, out, func(p *printer) {
		p.line("accounts of %s", harmless(out.Subject))
		p.row("PROVIDER", "ACCOUNT", "CONSENTED TO", "SINCE", "")
		for _, a := range out.Items {
			account, since := "none: "+a.URL, ""
			if a.Linked {
				account, since = cmp.Or(a.Name, a.Account), a.Since.Local().Format(time.DateTime)
			} else if a.Problem != "" {
				account = "not known"
			}
			p.row(a.Provider, harmless(account), harmless(strings.Join(a.Scopes, " ")), since, harmless(a.Problem))
		}
	})
}

func (k *connector) unlink(c *cobra.Command, provider string) error {
	var out api.UnlinkedAccount
	if err := k.ask(c, http.MethodDelete, accountsPath+"/"+url.PathEscape(provider), &out); err != nil {
		return err
	}
	return k.print(c, out, func(p *printer) {
		p.line("unlinked from %s, and what was made from it has ended. %s", harmless(provider), api.Unlinked(out.Outcome, out.Until))
	})
}

// completeProviders are the upstreams at which accounts are linked: those that the
// installation says, to who may ask it without signing in anew, else those of the
// configuration on this machine.
func (k *connector) completeProviders(*cobra.Command, []string, string) (out []string, _ cobra.ShellCompDirective) {
	known, err := readContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	in, err := k.at(known)
	if own := known.People[in.Issuer]; err == nil && time.Now().Before(own.Expires) {
		if client, err := in.client(); err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), completeTime)
			defer cancel()
			var got api.LinkedAccounts
			l := &adminAPI{client: client, base: in.Issuer, token: secret.New(own.Token)}
			if l.call(ctx, http.MethodGet, accountsPath, nil, &got) == nil {
				for _, a := range got.Items {
					out = append(out, described(a.Provider, cmp.Or(a.Name, a.Account, a.Kind)))
				}
				return out, cobra.ShellCompDirectiveNoFileComp
			}
		}
	}
	cfg, err := config.Load(k.config)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, p := range cfg.Providers {
		if d, err := providers.Describe(p.Kind); err == nil && d.Links {
			out = append(out, described(p.Name, p.Kind))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
