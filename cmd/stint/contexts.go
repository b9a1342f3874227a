package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/secret"
)

// installation is one that this user is, or was, signed in to.
type installation struct {
	// Issuer is its URL.
	Issuer string `json:"issuer"`
	// CA is a file with the certificates that its own is verified by; empty: the
	// system's.
	CA string `json:"ca,omitempty"`
	// Token is for its admin API; it is written to this user's file and nowhere else.
	Token   string    `json:"token,omitempty"`
	Scope   string    `json:"scope,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
}

// contexts are the installations by the names that the user gave them.
type contexts struct {
	Current string                  `json:"current,omitempty"`
	Known   map[string]installation `json:"contexts"`
	// People are tokens by which this user sees to accounts of his own, by issuer.
	People map[string]ownToken `json:"people,omitempty"`

	path string
}

// ownToken is a token for somebody's own accounts at an installation. It is good for a
// quarter of an hour.
type ownToken struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// readContexts reads the user's file; none is an empty one.
func readContexts() (*contexts, error) {
	dir := os.Getenv("STINT_HOME")
	if dir == "" {
		base, err := os.UserConfigDir()
		if err != nil {
			return nil, fmt.Errorf("%w; say where by STINT_HOME", err)
		}
		dir = filepath.Join(base, "stint")
	}
	c := &contexts{path: filepath.Join(dir, "contexts.json"), Known: make(map[string]installation)}
	info, err := os.Stat(c.path) //nolint:gosec // the user's own environment says where
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, &exitError{exitRefused, fmt.Errorf("%s holds tokens, and others may read it: chmod 600 it", c.path)}
	}
	data, err := os.ReadFile(c.path) //nolint:gosec // as above
	if err == nil {
		err = json.Unmarshal(data, c)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; remove it, and sign in again", c.path, err)
	}
	return c, nil
}

// write replaces the user's file.
func (c *contexts) write() error {
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	next, err := os.CreateTemp(filepath.Dir(c.path), "contexts-*") // which nobody else may read
	if err != nil {
		return err
	}
	_, err = next.Write(append(data, '\n'))
	err = errors.Join(err, next.Close())
	if err == nil {
		err = os.Rename(next.Name(), c.path)
	}
	if err != nil {
		_ = os.Remove(next.Name())
	}
	return err
}

func (c *contexts) find(name string) (installation, error) {
	if i, ok := c.Known[name]; ok {
		return i, nil
	}
	return installation{}, usage("no context is called %q; there are: %s", name, strings.Join(slices.Sorted(maps.Keys(c.Known)), ", "))
}

// api returns a way to speak to an installation's admin API.
func (i installation) api() (*adminAPI, error) {
	client, err := i.client()
	if err != nil {
		return nil, err
	}
	if i.Token == "" || !time.Now().Before(i.Expires) {
		return nil, &exitError{exitRefused, fmt.Errorf("you are not signed in to %s any more: stint login %s", i.Issuer, i.Issuer)}
	}
	return &adminAPI{client: client, base: i.Issuer, token: secret.New(i.Token)}, nil
}

// client returns an HTTP client that follows no redirects, and speaks to nobody in clear
// but to this machine.
func (i installation) client() (*http.Client, error) {
	u, err := url.Parse(i.Issuer)
	if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || u.Hostname() != "127.0.0.1" && u.Hostname() != "localhost" && u.Hostname() != "::1") {
		return nil, usage("%q is not the URL of an installation: https://HOST, as its configuration has it as issuer", i.Issuer)
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if i.CA != "" {
		pem, err := os.ReadFile(i.CA)
		if err != nil {
			return nil, fmt.Errorf("--ca: %w", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usage("--ca: %s holds no certificate", i.CA)
		}
	}
	return &http.Client{
		Transport: t, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// connect finds the server that an administrator's command is for: that of --context;
// else the one that runs here, by its configuration; else that of the current context.
func (g *globals) connect() (*adminAPI, error) {
	known, err := readContexts()
	if err != nil {
		return nil, err
	}
	if g.context != "" {
		i, err := known.find(g.context)
		if err != nil {
			return nil, err
		}
		return i.api()
	}
	here, failed := config.Load(g.config)
	if failed == nil {
		l, err := dialLocal(here)
		if err == nil || known.Current == "" {
			return l, err
		}
	}
	if known.Current == "" {
		return nil, &exitError{exitRefused, fmt.Errorf("%w\nnor are you signed in anywhere: stint login https://HOST, or --config for a server on this machine", failed)}
	}
	return known.Known[known.Current].api()
}

func newContext(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use: "context", Short: "List and choose the installations that you are signed in to", Aliases: []string{"contexts"}, Args: cobra.NoArgs,
		Long: `Commands for administrators speak to the installation of --context (or STINT_CONTEXT),
else to the server of --config if it runs on this machine, else to the current context.
What stint login gets is kept in stint/contexts.json in your configuration folder, or in
STINT_HOME, for you alone.`,
	}
	c.AddCommand(&cobra.Command{
		Use: "list", Short: "List them", Args: cobra.NoArgs, Example: "  stint context list\n  stint context list -o json",
		RunE: func(c *cobra.Command, _ []string) error { return g.listContexts(c) },
	}, &cobra.Command{
		Use: "use NAME", Short: "Make one the current one", Args: cobra.ExactArgs(1), Example: "  stint context use production",
		ValidArgsFunction: first(completeContexts),
		RunE: func(_ *cobra.Command, args []string) error {
			known, err := readContexts()
			if err != nil {
				return err
			}
			if _, err := known.find(args[0]); err != nil {
				return err
			}
			known.Current = args[0]
			return known.write()
		},
	}, &cobra.Command{
		Use: "remove NAME", Short: "Forget one, and the token for it", Args: cobra.ExactArgs(1), Example: "  stint context remove production",
		Long:              "Forgets a context and the token for it on this machine. The token lives on: stint logout ends it.",
		ValidArgsFunction: first(completeContexts),
		RunE: func(_ *cobra.Command, args []string) error {
			known, err := readContexts()
			if err != nil {
				return err
			}
			if _, err := known.find(args[0]); err != nil {
				return err
			}
			delete(known.Known, args[0])
			if known.Current == args[0] {
				known.Current = ""
			}
			return known.write()
		},
	})
	return c
}

// shownContext is a context without its token.
type shownContext struct {
	Name    string    `json:"name"`
	Current bool      `json:"current"`
	Issuer  string    `json:"issuer"`
	Scope   string    `json:"scope,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Valid   bool      `json:"signed_in"`
}

func (g *globals) listContexts(c *cobra.Command) error {
	known, err := readContexts()
	if err != nil {
		return err
	}
	out := []shownContext{}
	for _, name := range slices.Sorted(maps.Keys(known.Known)) {
		i := known.Known[name]
		out = append(out, shownContext{name, name == known.Current, i.Issuer, i.Scope, i.Expires, i.Token != "" && time.Now().Before(i.Expires)})
	}
	return g.print(c, out, func(p *printer) {
		p.row("", "NAME", "INSTALLATION", "YOU MAY", "UNTIL")
		for _, s := range out {
			mark, until := "", "not signed in"
			if s.Current {
				mark = "*"
			}
			if s.Valid {
				until = s.Expires.Local().Format(time.DateTime)
			}
			p.row(mark, s.Name, s.Issuer, s.Scope, until)
		}
	})
}

func completeContexts(*cobra.Command, []string, string) (out []string, _ cobra.ShellCompDirective) {
	known, err := readContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, name := range slices.Sorted(maps.Keys(known.Known)) {
		out = append(out, described(name, known.Known[name].Issuer))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
