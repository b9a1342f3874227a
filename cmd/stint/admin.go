package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/api/adminapi"
	"github.com/stint-dev/stint/broker"
)

// What administrators see of a running server, and what they turn off.

const adminBase = "/admin/v1"

// listing are the flags of commands that list.
type listing struct {
	limit int
	watch bool
}

func (l *listing) flags(c *cobra.Command) {
	c.Flags().IntVar(&l.limit, "limit", 0, "the most that is listed (default: all)")
	c.Flags().BoolVarP(&l.watch, "watch", "w", false, "list again every two seconds, until stopped")
}

// watchEvery is how often --watch looks.
const watchEvery = 2 * time.Second

// show prints what get gets, once, or with watch until it is stopped.
func (g *globals) show(c *cobra.Command, watch bool, get func(ctx context.Context) (any, func(*printer), error)) error {
	for first := true; ; first = false {
		v, text, err := get(c.Context())
		switch {
		case err != nil:
			return err
		case watch && g.output == "yaml":
			_, _ = fmt.Fprintln(c.OutOrStdout(), "---")
		case watch && g.output == "text" && !first:
			_, _ = fmt.Fprintf(c.OutOrStdout(), "\n%s\n", time.Now().Format(time.TimeOnly))
		}
		if err := g.print(c, v, text); err != nil || !watch {
			return err
		}
		select {
		case <-c.Context().Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

// pages reads a list, page by page, up to limit items; 0 are all.
func pages[T any](ctx context.Context, api *adminAPI, path string, query url.Values, limit int) ([]T, error) {
	all := []T{}
	if limit < 0 {
		return nil, usage("--limit is a number of lines")
	}
	for {
		size := 1000
		if limit > 0 {
			size = min(size, limit-len(all))
		}
		query.Set("limit", strconv.Itoa(size))
		var page struct {
			Items []T    `json:"items"`
			Next  string `json:"next"`
		}
		if err := api.call(ctx, http.MethodGet, adminBase+path+"?"+query.Encode(), nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Items...)
		if page.Next == "" || limit > 0 && len(all) >= limit {
			return all, nil
		}
		query.Set("cursor", page.Next)
	}
}

// given are the parameters that have a value.
func given(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

func newStatus(g *globals) *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use: "status", Short: "Show how a running server is",
		Long: `Shows whether a server can serve, what is missing, how far it has followed the revocation
feed, which policy is in force, and what is wrong with issuers and upstreams. It exits with
0 if the server is ready, and with 1 if it is not.`,
		Example: "  stint status\n  stint status -o json | jq .missing\n  stint status --watch",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := g.connect()
			if err != nil {
				return err
			}
			var last adminapi.Readiness
			err = g.show(c, watch, func(ctx context.Context) (any, func(*printer), error) {
				last = adminapi.Readiness{}
				err := api.call(ctx, http.MethodGet, adminBase+"/status", nil, &last)
				return last, func(p *printer) { showStatus(p, last) }, err
			})
			if err == nil && !last.Ready {
				err = fmt.Errorf("not ready: %s", strings.Join(last.Missing, ", "))
			}
			return err
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show it again every two seconds, until stopped")
	return c
}

func showStatus(p *printer, s adminapi.Readiness) {
	ready := "yes"
	if !s.Ready {
		ready = "no: " + strings.Join(s.Missing, ", ") + " missing"
	}
	p.row("ready", ready)
	p.row("replica", s.Replica)
	p.row("feed", fmt.Sprintf("position %s, confirmed %.1f s ago, %d revocations", s.Position, s.BehindSeconds, s.Revocations))
	if s.Why != "" {
		p.row("not current", s.Why)
	}
	p.row("leases", fmt.Sprintf("%d open", s.OpenLeases))
	p.row("policy", fmt.Sprintf("%s, %d mappings", s.Policy, len(s.Policies)))
	if s.PolicyProblem != "" {
		p.row("newest mappings", "not in force: "+s.PolicyProblem)
	}
	health := func(what string, all map[string]string) {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			p.row(what+" "+name, cmp.Or(all[name], "good"))
		}
	}
	health("issuer", s.Issuers)
	health("upstream", s.Providers)
}

func newSessions(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "sessions", Short: "List the logins that have been seen", Aliases: []string{"session"}, Args: cobra.NoArgs}
	var l listing
	var subject, client string
	list := &cobra.Command{
		Use: "list", Short: "List sessions that are not revoked, newest first",
		Long: `Lists logins that have been seen in exchanges and are not revoked, newest first. A person
is shown as the index that the audit record has; --subject finds the sessions of one.`,
		Example: `  stint sessions list
  stint sessions list --subject 'https://idp.example#alice' -o json | jq -r '.[].id'
  stint sessions list --limit 20`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := g.connect()
			if err != nil {
				return err
			}
			return g.show(c, l.watch, func(ctx context.Context) (any, func(*printer), error) {
				all, err := pages[adminapi.Session](ctx, api, "/sessions", given("subject", subject, "client", client), l.limit)
				return all, func(p *printer) {
					p.row("SESSION", "SUBJECT", "CLIENT", "AGENT", "FIRST SEEN")
					for _, s := range all {
						p.row(s.ID, cmp.Or(s.Subject, "-"), s.Client, cmp.Or(s.Agent, "-"), s.First.Local().Format(time.DateTime))
					}
				}, err
			})
		},
	}
	l.flags(list)
	list.Flags().StringVar(&subject, "subject", "", "those of `ISSUER#SUB`")
	list.Flags().StringVar(&client, "client", "", "those that a client has seen")
	_ = list.RegisterFlagCompletionFunc("client", g.completed(clientsOf))
	show := &cobra.Command{
		Use: "show ID", Short: "Show a session, as each client has seen it",
		Example: "  stint sessions show 3q2-7wAAAAAAAAAAAAAAAA",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := g.connect()
			if err != nil {
				return err
			}
			all, err := pages[adminapi.Session](c.Context(), api, "/sessions", url.Values{}, 0)
			if err != nil {
				return err
			}
			all = slices.DeleteFunc(all, func(s adminapi.Session) bool { return s.ID != args[0] })
			if len(all) == 0 {
				return &exitError{exitRefused, fmt.Errorf("there is no session %s that is not revoked; stint sessions list shows those there are", args[0])}
			}
			return g.print(c, all, func(p *printer) {
				for _, s := range all {
					showFields(p, s)
				}
			})
		},
	}
	c.AddCommand(list, show, newEnd(g, "session"))
	return c
}

// newEnd revokes a thing that was listed.
func newEnd(g *globals, what string) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "end ID", Short: "Take back a " + what + " and all that was made from it",
		Example: "  stint " + what + "s end 3q2-7wAAAAAAAAAAAAAAAA --reason \"laptop stolen\"",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			in := adminapi.RevocationRequest{Reason: reason, Session: args[0]}
			if what == "lease" {
				in.Session, in.Lease = "", args[0]
			}
			if err := wellFormed(broker.Selector{Session: in.Session, Lease: in.Lease}); err != nil {
				return usage("%v", err)
			}
			api, err := g.connect()
			if err != nil {
				return err
			}
			return g.revoke(c, api, in)
		},
	}
	if what == "lease" {
		c.Example = "  stint leases end abcdefghijklmnopqrstuvwx --reason \"not needed any more\""
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record, which keeps it as it is: name no person")
	return c
}

// revoke takes back, and shows the receipt.
func (g *globals) revoke(c *cobra.Command, api *adminAPI, in any) error {
	var got adminapi.Receipt
	if err := api.call(c.Context(), http.MethodPost, adminBase+"/revocations", in, &got); err != nil {
		return err
	}
	return g.print(c, got, func(p *printer) {
		p.line("revoked, at position %s of the feed", got.Position)
		p.line("every replica refuses by %s at the latest; leases are being ended upstream", got.Bound.Local().Format(time.TimeOnly))
	})
}

func newLeases(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "leases", Short: "List the credentials that are out", Aliases: []string{"lease"}, Args: cobra.NoArgs}
	var l listing
	var subject, client, agent, provider, session, state string
	list := &cobra.Command{
		Use: "list", Short: "List leases that are not closed",
		Long: `Lists the leases of vended credentials: who holds what at which upstream, until when. A
person is shown as the index that the audit record has; --subject finds the leases of one.`,
		Example: `  stint leases list
  stint leases list --provider db --state active
  stint leases list --subject 'https://idp.example#alice' -o json | jq -r '.[].id'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := g.connect()
			if err != nil {
				return err
			}
			query := func() url.Values {
				return given("subject", subject, "client", client, "agent", agent, "provider", provider, "session", session, "state", state)
			}
			return g.show(c, l.watch, func(ctx context.Context) (any, func(*printer), error) {
				all, err := pages[adminapi.Lease](ctx, api, "/leases", query(), l.limit)
				return all, func(p *printer) { showLeases(p, all) }, err
			})
		},
	}
	l.flags(list)
	f := list.Flags()
	f.StringVar(&subject, "subject", "", "those of `ISSUER#SUB`")
	f.StringVar(&client, "client", "", "those that a client got")
	f.StringVar(&agent, "agent", "", "those that were got through an agent")
	f.StringVar(&provider, "provider", "", "those of an upstream")
	f.StringVar(&session, "session", "", "those of a session")
	f.StringVar(&state, "state", "", "intent, active or closing")
	_ = list.RegisterFlagCompletionFunc("client", g.completed(clientsOf))
	_ = list.RegisterFlagCompletionFunc("state", cobra.FixedCompletions([]string{"intent", "active", "closing"}, cobra.ShellCompDirectiveNoFileComp))
	show := &cobra.Command{
		Use: "show ID", Short: "Show one lease: its grant, and what became of it",
		Example: "  stint leases show abcdefghijklmnopqrstuvwx",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := g.connect()
			if err != nil {
				return err
			}
			var out adminapi.Lease
			if err := api.call(c.Context(), http.MethodGet, adminBase+"/leases/"+url.PathEscape(args[0]), nil, &out); err != nil {
				return err
			}
			return g.print(c, out, func(p *printer) { showFields(p, out) })
		},
	}
	c.AddCommand(list, show, newEnd(g, "lease"))
	return c
}

func showLeases(p *printer, all []adminapi.Lease) {
	p.row("LEASE", "STATE", "UPSTREAM", "SUBJECT", "CLIENT", "AGENT", "EXPIRES")
	for _, l := range all {
		p.row(l.ID, l.State, l.Provider, cmp.Or(l.Subject, "-"), cmp.Or(l.Client, "-"), cmp.Or(l.Agent, "-"), l.Expires.Local().Format(time.DateTime))
	}
}

func newClients(g *globals) *cobra.Command {
	c := newClient(g)
	c.Use, c.Aliases, c.Short = "clients", []string{"client"}, "List clients, turn them off and on, and make entries for new ones"
	var l listing
	list := &cobra.Command{
		Use: "list", Short: "List the clients of a running server",
		Example: "  stint clients list\n  stint clients list -o json | jq -r '.[] | select(.disabled) | .id'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := g.connect()
			if err != nil {
				return err
			}
			return g.show(c, l.watch, func(ctx context.Context) (any, func(*printer), error) {
				all, err := pages[adminapi.Client](ctx, api, "/clients", url.Values{}, l.limit)
				return all, func(p *printer) {
					p.row("CLIENT", "NAME", "STATE", "RESOURCE", "MAY ASK FOR")
					for _, x := range all {
						p.row(x.ID, cmp.Or(x.Name, "-"), stateOf(x.Disabled), cmp.Or(x.Resource, "-"), cmp.Or(strings.Join(x.Targets, ", "), "-"))
					}
				}, err
			})
		},
	}
	l.flags(list)
	show := &cobra.Command{
		Use: "show ID", Short: "Show one client", Example: "  stint clients show notes-mcp",
		Args: cobra.ExactArgs(1), ValidArgsFunction: first(g.completed(clientsOf)),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := g.connect()
			if err != nil {
				return err
			}
			var out adminapi.Client
			if err := api.call(c.Context(), http.MethodGet, adminBase+"/clients/"+url.PathEscape(args[0]), nil, &out); err != nil {
				return err
			}
			return g.print(c, out, func(p *printer) { showFields(p, out) })
		},
	}
	c.AddCommand(list, show, newSwitch(g, "client", true), newSwitch(g, "client", false))
	return c
}

// newIssuers lists issuers, and turns them off and on.
func newIssuers(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "issuers", Short: "List trusted issuers, and turn them off and on", Aliases: []string{"issuer"}, Args: cobra.NoArgs}
	var l listing
	list := &cobra.Command{
		Use: "list", Short: "List the issuers of a running server", Args: cobra.NoArgs,
		Example: "  stint issuers list\n  stint issuers list -o json | jq '.[].problem'",
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := g.connect()
			if err != nil {
				return err
			}
			return g.show(c, l.watch, func(ctx context.Context) (any, func(*printer), error) {
				all, err := pages[adminapi.Issuer](ctx, api, "/issuers", url.Values{}, l.limit)
				return all, func(p *printer) {
					p.row("ID", "ISSUER", "STATE", "ACCEPTED", "KEYS")
					for _, i := range all {
						p.row(i.ID, i.Issuer, stateOf(i.Disabled), strings.Join(i.Accept, ", "), cmp.Or(i.Problem, "good"))
					}
				}, err
			})
		},
	}
	l.flags(list)
	c.AddCommand(list, newSwitch(g, "issuer", true), newSwitch(g, "issuer", false))
	return c
}

func stateOf(disabled bool) string {
	if disabled {
		return "off"
	}
	return "on"
}

// switched are examples of what can be turned off.
var switched = map[string]string{"client": "notes-mcp", "issuer": "f4c1d2a90b3e5678"}

// newSwitch turns a client or an issuer off or on.
func newSwitch(g *globals, what string, off bool) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "enable ID", Short: "Turn a " + what + " on again",
		Long:    "Turns it on again. What it held when it was turned off stays dead; replicas other than the\none that is asked follow within a minute.",
		Example: "  stint " + what + "s enable " + switched[what],
		Args:    cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := g.connect()
			if err != nil {
				return err
			}
			var out map[string]any // of a client, or of an issuer
			in := adminapi.SwitchChange{Disabled: off, Reason: reason}
			if err := api.call(c.Context(), http.MethodPatch, adminBase+"/"+what+"s/"+url.PathEscape(args[0]), in, &out); err != nil {
				return err
			}
			return g.print(c, out, func(p *printer) { p.line("%s is %s", args[0], stateOf(out["disabled"] == true)) })
		},
	}
	if off {
		c.Use, c.Short = "disable ID", "Turn a "+what+" off at once, and take back what it holds"
		c.Long = `Turns it off at every replica, whatever the configuration says, until it is turned on
again: everything is refused to it, its tokens and all that was made from them are dead,
and leases are ended upstream.`
		c.Example = "  stint " + what + "s disable " + switched[what] + " --reason \"broken into\""
	}
	if what == "client" {
		c.ValidArgsFunction = first(g.completed(clientsOf))
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record, which keeps it as it is: name no person")
	return c
}

// showFields writes what there is of a document, a line each.
func showFields(p *printer, v any) {
	for _, f := range fieldsOf(v) {
		p.row(f[0], f[1])
	}
}
