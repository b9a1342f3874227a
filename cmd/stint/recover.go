package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/vault"
)

func newRecover(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "recover", Short: "Rebuild leases from the journal after the store lost its data",
		Long: `Reads the leases that this replica's journal holds and writes those that the store does
not have, so that they are ended in time. Those that this replica closed are closed, also
if another replica brought them back; those that ran out more than an hour ago are left
alone, because another may have closed them, and listed. Run it once at each replica,
with the server stopped, after Redis came back without its data. Doing it twice changes
nothing.

It exits with 3 while the server runs here, which has the secrets and the store open.`,
		Example: "  stint recover --config /etc/stint/stint.yaml\n  stint recover -o json | jq .skipped.expired",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			done, err := rebuild(c.Context(), cfg)
			if err != nil && done.Restored+done.Closed == 0 {
				return err
			}
			return errors.Join(g.print(c, asRecovery(done), func(p *printer) { printRecovery(p, done) }), err)
		},
	}
}

// recovery is what was done, for programs.
type recovery struct {
	Restored int `json:"restored"`
	Ending   int `json:"ending"`
	Closed   int `json:"closed"`
	Skipped  struct {
		Known   int            `json:"known"`
		Over    int            `json:"over"`
		Expired []expiredLease `json:"expired"`
	} `json:"skipped"`
}

type expiredLease struct {
	Lease    string    `json:"lease"`
	Provider string    `json:"provider"`
	Expires  time.Time `json:"expires"`
}

func asRecovery(done broker.Rebuilt) recovery {
	r := recovery{Restored: done.Restored, Ending: done.Ending, Closed: done.Closed}
	r.Skipped.Known, r.Skipped.Over, r.Skipped.Expired = done.Known, done.Over, []expiredLease{}
	for _, l := range done.Expired {
		r.Skipped.Expired = append(r.Skipped.Expired, expiredLease{l.ID, l.Provider, l.Expires})
	}
	return r
}

func printRecovery(p *printer, done broker.Rebuilt) {
	p.line("%d leases restored, %d of them to be ended at once", done.Restored, done.Ending)
	p.line("%d leases closed that the store did not know to be closed", done.Closed)
	p.line("%d leases skipped: the store has them", done.Known)
	p.line("%d leases skipped: they were closed long ago", done.Over)
	p.line("%d leases skipped: they ran out more than an hour ago, and may have been closed elsewhere", len(done.Expired))
	for _, l := range done.Expired {
		p.row("  "+l.ID, l.Provider, l.Expires.UTC().Format(time.RFC3339))
	}
}

// notOurs makes what a later version wrote a refusal, which no second try changes.
func notOurs(err error) error {
	if errors.Is(err, broker.ErrLater) || errors.Is(err, audit.ErrLater) {
		return &exitError{exitRefused, err}
	}
	return err
}

// rebuild runs a recovery from the journal. What was done before an error is in its
// result.
func rebuild(ctx context.Context, cfg *config.Config) (done broker.Rebuilt, err error) {
	release, err := audit.HoldJournal(cfg.Journal())
	if errors.Is(err, fs.ErrNotExist) {
		return done, &exitError{exitRefused, fmt.Errorf("there is no journal at %s", cfg.Journal())}
	}
	if errors.Is(err, audit.ErrInUse) {
		return done, &exitError{exitRefused, fmt.Errorf("the server runs here: stop it first (%w)", err)}
	}
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, release()) }()
	newest := make(map[string]*broker.Lease)
	err = audit.ReadJournal(cfg.Journal(), 1, func(f audit.Frame, _ uint64) error {
		if f.Type != audit.FrameLease {
			return nil
		}
		l, err := broker.DecodeLease(f.Payload)
		if err != nil {
			return fmt.Errorf("lease in the journal: %w", err)
		}
		newest[l.ID] = l
		return nil
	})
	if err != nil {
		return done, notOurs(err)
	}
	p, err := openPlan(ctx, cfg, vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		return done, &exitError{exitRefused, err} // as of `stint serve`
	}
	defer func() { err = errors.Join(err, p.secrets.Close()) }()
	s, err := openStore(ctx, cfg, vault.Resolver{Store: p.secrets}.Resolve)
	if err != nil {
		return done, &exitError{exitRefused, err}
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.CheckFormat(ctx); err != nil {
		return done, notOurs(err)
	}
	inOrder := slices.SortedFunc(maps.Values(newest), func(a, b *broker.Lease) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return broker.Rebuild(ctx, s, s, inOrder, time.Now())
}
