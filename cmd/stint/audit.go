package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/vault"
)

func newAudit(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use: "audit", Short: "Read the audit record", Args: cobra.NoArgs,
		Long: "Reads the audit record of this replica from its journal, beside the running server or without it.",
	}
	var n int
	var follow bool
	tail := &cobra.Command{
		Use: "tail", Short: "Show the newest events, and with --follow those that come",
		Example: "  stint audit tail -n 50\n  stint audit tail --follow --output json | jq .",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			return g.tail(c, cfg.Journal(), n, follow)
		},
	}
	tail.Flags().IntVarP(&n, "lines", "n", 20, "how many")
	tail.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more")
	show := &cobra.Command{
		Use: "show EVENT", Short: "Show one event in full", Args: cobra.ExactArgs(1),
		Example: "  stint audit show 06fqnz3d0w8mz5ymxk1zj9vqw8",
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			var found *audit.Event
			err = readEvents(cfg.Journal(), 1, func(e *audit.Event, _ uint64) {
				if e.ID == args[0] {
					found = e
				}
			})
			if err != nil {
				return err
			}
			if found == nil {
				return fmt.Errorf("there is no event %s in %s", args[0], cfg.Journal())
			}
			data, err := json.MarshalIndent(found, "", "  ")
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), string(data))
			return err
		},
	}
	c.AddCommand(tail, show)
	return c
}

// readEvents calls each for the events of a journal from a sequence number on.
func readEvents(dir string, from uint64, each func(*audit.Event, uint64)) error {
	return audit.ReadJournal(dir, from, func(f audit.Frame, seq uint64) error {
		if f.Type != audit.FrameEvent {
			return nil
		}
		var e audit.Event
		if err := json.Unmarshal(f.Payload, &e); err != nil {
			return fmt.Errorf("event %d: %w", seq, err)
		}
		each(&e, seq)
		return nil
	})
}

func (g *globals) tail(c *cobra.Command, dir string, n int, follow bool) error {
	if n < 0 {
		return usage("--lines is not negative")
	}
	var last []*audit.Event
	next := uint64(1)
	err := readEvents(dir, 1, func(e *audit.Event, seq uint64) {
		if last = append(last, e); len(last) > n {
			last = last[1:]
		}
		next = seq + 1
	})
	if err != nil {
		return err
	}
	for _, e := range last {
		if err := g.printEvent(c, e); err != nil {
			return err
		}
	}
	for follow {
		select {
		case <-c.Context().Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
		var failure error
		if err := readEvents(dir, next, func(e *audit.Event, seq uint64) {
			failure = errors.Join(failure, g.printEvent(c, e))
			next = seq + 1
		}); err != nil || failure != nil {
			return errors.Join(err, failure)
		}
	}
	return nil
}

// printEvent prints an event in a line: JSON, or the words that matter first.
func (g *globals) printEvent(c *cobra.Command, e *audit.Event) error {
	if g.output == "json" {
		data, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.OutOrStdout(), string(data))
		return err
	}
	_, err := fmt.Fprintln(c.OutOrStdout(), eventLine(e))
	return err
}

// eventLine is an event in a line for people.
func eventLine(e *audit.Event) string {
	parts := []string{e.Time.Local().Format(time.DateTime), e.ID, string(e.Kind), string(e.Outcome)}
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+"="+value)
		}
	}
	add("code", e.Code)
	add("client", e.Party.Client)
	add("agent", e.Party.Agent)
	add("operator", e.Party.Operator)
	add("subject", cut(e.Party.Subject, 12))
	add("session", e.Party.Session)
	add("resource", e.Target.Resource)
	add("provider", e.Target.Provider)
	add("tool", e.Target.Tool)
	add("scope", strings.Join(e.Target.Scopes, ","))
	if e.Token != nil {
		add("token", e.Token.ID)
	}
	if l := e.Lease; l != nil {
		add("lease", l.ID)
		add("outcome", l.Outcome)
	}
	if r := e.Revocation; r != nil {
		add("selector", strings.Join(r.Selector, ","))
		add("why", r.Reason)
	}
	if ch := e.Change; ch != nil {
		add("change", ch.What)
		add("version", ch.After)
	}
	add("reason", e.Reason)
	return strings.Join(parts, " ")
}

func cut(s string, n int) string { return s[:min(n, len(s))] }

func newRecover(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "recover", Short: "Rebuild leases from the journal after the store lost its data",
		Long: `Reads the leases that this replica's journal holds and writes those that the store does
not have, so that they are ended in time. Run it once at each replica, with the server
stopped, after Redis came back without its data. Doing it twice changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			n, err := recoverLeases(c.Context(), cfg)
			if err != nil {
				return err
			}
			return g.print(c, map[string]int{"restored": n}, func(p *printer) { p.line("%d leases restored", n) })
		},
	}
}

func recoverLeases(ctx context.Context, cfg *config.Config) (n int, err error) {
	newest := make(map[string]*broker.Lease)
	err = audit.ReadJournal(cfg.Journal(), 1, func(f audit.Frame, _ uint64) error {
		if f.Type != audit.FrameLease {
			return nil
		}
		var l broker.Lease
		if err := json.Unmarshal(f.Payload, &l); err != nil {
			return fmt.Errorf("lease in the journal: %w", err)
		}
		newest[l.ID] = &l
		return nil
	})
	if err != nil {
		return 0, err
	}
	var leases []*broker.Lease
	for _, l := range newest {
		leases = append(leases, l)
	}
	p, err := openPlan(ctx, cfg, vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.secrets.Close()) }()
	s, err := openStore(ctx, cfg, vault.Resolver{Store: p.secrets}.Resolve)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return broker.Recover(ctx, s, leases, time.Now())
}
