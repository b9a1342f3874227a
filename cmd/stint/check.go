package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/internal/vault"
	"github.com/stint-dev/stint/providers"
	"github.com/stint-dev/stint/scopes"
)

// depth is how far a check goes; each goes as far as the one before, and farther.
type depth int

const (
	checkAway depth = iota // the configuration, the mappings and the files that hold no secret
	checkHere              // the secrets on this machine that the server starts with
	checkLive              // what the server keeps, and whom it asks
)

func newCheck(g *globals) *cobra.Command {
	var live, noSecrets bool
	c := &cobra.Command{
		Use: "check", Short: "Check the configuration and the mappings",
		Long: `Refuses what starting the server would refuse, and says of every mistake in which file,
line and column it stands. It looks at

- the configuration, the mappings, and the keys and certificates that they name;
- the secrets on this machine that the server starts with: the sealed file and the
  identity that opens it, and what references to file:/PATH and env:NAME lead to, and
  with a sealed file those to vault:PATH#FIELD.

Nobody is asked, and no secret is shown. With --no-secrets it leaves out the secrets, and
can run in a pipeline, away from the server.

With --live it looks also at what there is to find out by trying only:

- the data folder: whether it can be written;
- the store, and the newest part of the audit journal: whether they can be opened;
- Vault, and what references to vault:PATH#FIELD lead to in it;
- every provider, the keys of every issuer, and the addresses to listen on.

It changes nothing that they hold, and can run beside the server: what that alone may
have open, an embedded store and its addresses, is reported as in use.

It exits with 3 if there are mistakes, and with 1 if something that was tried is not
usable; "ok" in JSON is true where it exits with 0.`,
		Example: "  stint check --config /etc/stint/stint.yaml\n  stint check --no-secrets --config /etc/stint/stint.yaml\n  stint check --live -o json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			how := checkHere
			switch {
			case live:
				how = checkLive
			case noSecrets:
				how = checkAway
			}
			r := check(c.Context(), g.config, how)
			if err := g.print(c, r, r.text); err != nil {
				return err
			}
			return r.err()
		},
	}
	c.Flags().BoolVar(&live, "live", false, "try what the configuration depends on as well")
	c.Flags().BoolVar(&noSecrets, "no-secrets", false, "do not look for secrets on this machine")
	c.MarkFlagsMutuallyExclusive("live", "no-secrets")
	return c
}

// checkReport is what `stint check` found.
type checkReport struct {
	Config string `json:"config"`
	// OK says that there are no mistakes, and that all that was tried can be used.
	OK           bool         `json:"ok"`
	Mistakes     []mistake    `json:"mistakes,omitempty"`
	Warnings     []mistake    `json:"warnings,omitempty"`
	Summary      *summary     `json:"summary,omitempty"`
	Dependencies []dependency `json:"dependencies,omitempty"`
}

// mistake is one thing that is wrong, or questionable. Without a line it is about
// the whole file, without a file about something else.
type mistake struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Text   string `json:"text"`
}

func (m mistake) String() string {
	if m.File == "" {
		return m.Text
	}
	return strictyaml.Error{File: m.File, Line: m.Line, Column: m.Column, Text: m.Text}.Error()
}

// summary counts what a configuration has.
type summary struct {
	Issuers   int    `json:"issuers"`
	Clients   int    `json:"clients"`
	Agents    int    `json:"agents"`
	Providers int    `json:"providers"`
	Resources int    `json:"resources"`
	Scopes    int    `json:"scopes"`
	Policy    string `json:"policy_version"`
}

// check reads the configuration as the server does.
func check(ctx context.Context, path string, how depth) *checkReport {
	ctx, cancel := context.WithCancel(ctx) // closes what providers opened
	defer cancel()
	r := &checkReport{Config: path}
	cfg, err := config.Load(path)
	if err != nil {
		r.Mistakes = mistakes(err)
		return r
	}
	l := &liveCheck{cfg: cfg}
	defer l.close()
	if cfg.Secrets.Kind == vault.KindVault {
		if err := l.openVault(); err != nil {
			r.Mistakes = mistakes(cfg.Errorf("secrets: %v", err))
			return r
		}
	}
	var wrong []error
	if how >= checkHere {
		wrong = l.findSecrets(ctx)
	}
	nowhere := &plan{cfg: cfg} // nothing is asked of what it keeps
	deps := providers.Deps{Deps: nowhere.upstreamDeps(l.resolve, vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now})}
	if l.engine != nil { // nil in an interface would be an engine
		deps.Engine, deps.Signer = l.engine, l.engine
	}
	p, err := newPlan(ctx, cfg, deps)
	if p != nil { // what is wrong in a mapping may come of what the warnings are about
		r.Warnings = p.warnings()
	}
	if r.Mistakes = mistakes(errors.Join(append(wrong, err)...)); len(r.Mistakes) > 0 {
		return r
	}
	r.Summary = p.summary()
	if how >= checkLive {
		l.openSecrets(ctx)
		r.Dependencies = l.reach(ctx, p)
	}
	r.OK = len(r.missing()) == 0
	return r
}

// mistakes takes errors apart, in the order of files and lines.
func mistakes(err error) []mistake {
	out := takeApart(err)
	for i := range out {
		out[i].Text = oneLine(out[i].Text)
	}
	slices.SortStableFunc(out, func(a, b mistake) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return slices.Compact(out)
}

func oneLine(text string) string { return strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ") }

func takeApart(err error) (out []mistake) {
	var several interface{ Unwrap() []error }
	switch e := err.(type) { //nolint:errorlint // it is unwrapped one by one below
	case nil:
	case strictyaml.Errors:
		for _, one := range e {
			out = append(out, mistake(one))
		}
	case scopes.Problems:
		for _, one := range e {
			out = append(out, mistake{one.Pos.File, one.Pos.Line, one.Pos.Column, one.Text})
		}
	default:
		if !errors.As(err, &several) {
			return []mistake{{Text: err.Error()}}
		}
		for _, one := range several.Unwrap() {
			out = append(out, takeApart(one)...)
		}
	}
	return out
}

func (p *plan) summary() *summary {
	s := &summary{
		Issuers: len(p.registry.Issuers), Clients: len(p.registry.Clients), Agents: len(p.registry.Agents),
		Providers: len(p.registry.Providers), Policy: p.policy.Version(),
	}
	for id := range p.policy.Versions() {
		s.Resources++
		s.Scopes += len(p.policy.Scopes(id))
	}
	return s
}

// text writes the report for people.
func (r *checkReport) text(p *printer) {
	for _, m := range r.Mistakes {
		p.line("%s", m)
	}
	for _, w := range r.Warnings {
		w.Text = "warning: " + w.Text
		p.line("%s", w)
	}
	for _, d := range r.Dependencies {
		p.row(d.State, d.Name, d.Detail)
	}
	p.flush()
	if s := r.Summary; s != nil {
		p.line("%s is in order: %s, %s, %s, %s; %s with %s; policy %s", r.Config, count(s.Issuers, "issuer"), count(s.Clients, "client"),
			count(s.Agents, "agent"), count(s.Providers, "provider"), count(s.Resources, "resource"), count(s.Scopes, "scope"), s.Policy)
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// missing names what cannot be used.
func (r *checkReport) missing() (names []string) {
	for _, d := range r.Dependencies {
		if d.State == stateMissing {
			names = append(names, d.Name)
		}
	}
	return names
}

// err is what the command exits with.
func (r *checkReport) err() error {
	if len(r.Mistakes) > 0 {
		return &exitError{exitRefused, errors.New(count(len(r.Mistakes), "mistake") + "; the server would not start")}
	}
	if missing := r.missing(); len(missing) > 0 {
		return fmt.Errorf("the configuration is in order; not usable at the moment: %s", strings.Join(missing, ", "))
	}
	return nil
}
