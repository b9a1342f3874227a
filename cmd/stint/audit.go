package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/strictyaml"
)

func newAudit(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use: "audit", Short: "Read the audit record", Args: cobra.NoArgs,
		Long: `Reads the audit record of this replica from its journal, beside the running server or
without it. What it says of a person is encrypted under a key of that person's, which
--reveal needs; the running server has these keys open, so stop it first.`,
	}
	c.AddCommand(newAuditTail(g), newAuditShow(g))
	return c
}

const revealUsage = "decrypt what is said of persons; the server must not be running"

func newAuditTail(g *globals) *cobra.Command {
	var t tail
	var subject string
	var reveal bool
	c := &cobra.Command{
		Use: "tail", Short: "Show the newest events, and with --follow those that come",
		Example: `  stint audit tail -n 50
  stint audit tail --follow --output json | jq .
  stint audit tail --subject https://idp.example#alice`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if t.lines < 0 {
				return usage("--lines is not negative")
			}
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			keys, err := openPersons(c.Context(), cfg, subject, reveal)
			if err != nil {
				return err
			}
			t.wanted, t.from = keys.subject, audit.NewReader(cfg.Journal(), 1)
			t.print = func(e *audit.Event) error { return g.printEvent(c, keys.shown(c.Context(), e)) }
			return errors.Join(t.run(c.Context()), keys.Close())
		},
	}
	c.Flags().IntVarP(&t.lines, "lines", "n", 20, "how many")
	c.Flags().BoolVarP(&t.follow, "follow", "f", false, "wait for more")
	c.Flags().StringVar(&subject, "subject", "", "only events of a subject: `ISSUER#SUB`, or an index, or its beginning, as events show it")
	c.Flags().BoolVar(&reveal, "reveal", false, revealUsage)
	return c
}

func newAuditShow(g *globals) *cobra.Command {
	var reveal bool
	c := &cobra.Command{
		Use: "show EVENT", Short: "Show one event in full", Args: cobra.ExactArgs(1),
		Example: "  stint audit show 06fqnz3d0w8mz5ymxk1zj9vqw8",
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			var found *audit.Event
			err = audit.ReadJournal(cfg.Journal(), 1, func(f audit.Frame, seq uint64) error {
				if f.Type != audit.FrameEvent || !bytes.Contains(f.Payload, []byte(args[0])) {
					return nil
				}
				e, err := readEvent(f.Payload, seq)
				if err == nil && e.ID == args[0] {
					found = e
				}
				return err
			})
			if err != nil {
				return err
			}
			if found == nil {
				return fmt.Errorf("there is no event %s in %s", shown(args[0]), cfg.Journal())
			}
			keys, err := openPersons(c.Context(), cfg, "", reveal)
			if err != nil {
				return err
			}
			data, err := json.MarshalIndent(keys.shown(c.Context(), found), "", "  ")
			if err == nil {
				_, err = fmt.Fprintln(c.OutOrStdout(), string(legible(data)))
			}
			return errors.Join(err, keys.Close())
		},
	}
	c.Flags().BoolVar(&reveal, "reveal", false, revealUsage)
	return c
}

// readEvents calls each for the events of a journal from a sequence number on.
func readEvents(dir string, from uint64, each func(*audit.Event, uint64)) error {
	return audit.ReadJournal(dir, from, func(f audit.Frame, seq uint64) error {
		if f.Type != audit.FrameEvent {
			return nil
		}
		e, err := readEvent(f.Payload, seq)
		if err == nil {
			each(e, seq)
		}
		return err
	})
}

func readEvent(payload []byte, seq uint64) (*audit.Event, error) {
	e := &audit.Event{}
	err := json.Unmarshal(payload, e)
	if e.Version > audit.SchemaVersion { // which is read also where something else does not fit
		err = fmt.Errorf("of version %d: %w", e.Version, audit.ErrLater)
	}
	if err != nil {
		return nil, fmt.Errorf("event %d: %w", seq, err)
	}
	return e, nil
}

// tail shows the end of the record.
type tail struct {
	from   *audit.Reader
	lines  int
	follow bool
	wanted string // the beginning of the subject's index; empty: everybody's
	print  func(*audit.Event) error
}

// matches reports whether an event is one of those asked for. Most others are told
// apart without being read.
func (t *tail) matches(payload []byte, seq uint64) (bool, error) {
	if t.wanted == "" || !bytes.Contains(payload, []byte(t.wanted)) {
		return t.wanted == "", nil
	}
	e, err := readEvent(payload, seq)
	return err == nil && strings.HasPrefix(e.Party.Subject, t.wanted), err
}

// each reads the events that came since it was called last.
func (t *tail) each(do func(payload []byte, seq uint64) error) error {
	return t.from.Read(func(f audit.Frame, seq uint64) error {
		if f.Type != audit.FrameEvent {
			return nil
		}
		if ok, err := t.matches(f.Payload, seq); !ok {
			return err
		}
		return do(f.Payload, seq)
	})
}

func (t *tail) run(ctx context.Context) error {
	type entry struct {
		payload []byte
		seq     uint64
	}
	last := make([]entry, 0, min(t.lines, 1024)) // a ring, when it is full
	seen := 0
	err := t.each(func(payload []byte, seq uint64) error {
		switch e := (entry{bytes.Clone(payload), seq}); {
		case len(last) < t.lines:
			last = append(last, e)
		case t.lines > 0:
			last[seen%t.lines] = e
		}
		seen++
		return nil
	})
	if err != nil {
		return err
	}
	show := func(payload []byte, seq uint64) error {
		e, err := readEvent(payload, seq)
		if err != nil {
			return err
		}
		return t.print(e)
	}
	for i := range last {
		e := last[(seen+i)%len(last)]
		if err := show(e.payload, e.seq); err != nil {
			return err
		}
	}
	for t.follow {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
		if err := t.each(show); err != nil {
			return err
		}
	}
	return nil
}

// printEvent prints an event in a line: JSON, or the words that matter first.
func (g *globals) printEvent(c *cobra.Command, e *shownEvent) error {
	line := []byte(e.line())
	if g.output == "json" {
		data, err := json.Marshal(e)
		if err != nil {
			return err
		}
		line = legible(data)
	}
	if g.output == "yaml" {
		data, err := strictyaml.Encode(e)
		if err != nil {
			return err
		}
		line = append([]byte("---\n"), bytes.TrimSuffix(data, []byte("\n"))...)
	}
	_, err := fmt.Fprintln(c.OutOrStdout(), string(line))
	return err
}

// eventLine is an event in a line for people.
func eventLine(e *audit.Event) string { return (&shownEvent{Event: e}).line() }

func (e *shownEvent) line() string {
	parts := []string{e.Time.Local().Format(time.DateTime), shown(e.ID), shown(string(e.Kind)), shown(string(e.Outcome))}
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+"="+shown(value))
		}
	}
	add("code", e.Code)
	if e.Count > 0 {
		add("count", strconv.Itoa(e.Count))
	}
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
	if call := e.Call; call != nil {
		add("method", call.Method)
		add("host", call.Host)
		add("what", call.What)
		if call.Status != 0 {
			add("status", strconv.Itoa(call.Status))
		}
	}
	if r := e.Revocation; r != nil {
		add("selector", strings.Join(r.Selector, ","))
		add("why", r.Reason)
	}
	if ch := e.Change; ch != nil {
		add("change", ch.What)
		add("before", ch.Before)
		add("after", ch.After)
	}
	if p := e.Revealed; p != nil {
		add("person", p.Subject)
		add("email", p.Email)
		add("address", p.Address)
		add("detail", p.Detail)
	}
	add("unreadable", e.Unreadable)
	add("reason", e.Reason)
	return strings.Join(parts, " ")
}

func cut(s string, n int) string { return s[:min(n, len(s))] }

// shown is a text as a line can hold it: in quotes, with escapes, if it has
// anything in it that could pass for another field, end the line or be obeyed by a
// terminal. Clients are named by whoever asks.
func shown(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r == ' ' || r == '"' || r == '\\' || !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// legible escapes what encoding/json leaves as it is in strings and a terminal may
// obey: control characters beyond ASCII, and those that turn the direction.
func legible(data []byte) []byte {
	out := make([]byte, 0, len(data))
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		switch {
		case r < 0x7f || n > 1 && unicode.IsPrint(r):
			out = append(out, data[:n]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		data = data[n:]
	}
	return out
}
