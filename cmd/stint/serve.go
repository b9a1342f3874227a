package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/scopes"
)

const (
	grace        = 15 * time.Second // for requests in flight when the server stops
	startTimeout = 60 * time.Second // for stores that come up at the same time
)

func newServe(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "Run the server",
		Long: `Runs the server until it is asked to stop (SIGINT, SIGTERM); requests in flight are
finished first. Mappings are read again when they change, or on SIGHUP: a broken edit
keeps the old version in force, and /readyz at listen.ops, the log and the audit record
say so.`,
		Example: "  stint serve --config /etc/stint/stint.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			settle := tuneMemory(c.Context())
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			return serve(c.Context(), cfg, c.ErrOrStderr(), func(s *server, public, ops string) {
				settle()
				s.log.Info("ready", "issuer", cfg.Issuer, "address", public, "ops", ops, "socket", cfg.Listen.Socket,
					"policy", s.broker.Judge().Policy().Version(), "version", version())
			})
		},
	}
}

// logger returns a logger as the configuration wants it.
func logger(cfg config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Level)) // the configuration was checked
	o := &slog.HandlerOptions{Level: level}
	if cfg.Format == "text" {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

// serve runs a server until ctx is done.
func serve(ctx context.Context, cfg *config.Config, logs io.Writer, ready func(s *server, public, ops string)) error {
	log := logger(cfg.Log, logs)
	tel, err := newTelemetry(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer tel.shutdown()
	s, err := build(ctx, cfg, log, tel)
	if err != nil {
		return &exitError{exitRefused, err}
	}
	err = s.run(ctx, func(s *server, public, ops string) {
		releaseProgram()
		ready(s, public, ops)
	})
	return errors.Join(err, s.Close())
}

func (s *server) run(ctx context.Context, ready func(s *server, public, ops string)) error {
	if err := s.start(ctx); err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // before anybody is told that it is ready
	defer signal.Stop(hup)
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() { defer close(done); s.broker.Run(background) }()
	go s.followPolicy(background, hup)
	go s.tokens.Warm(background)
	s.note(ctx, "started", nil)
	err := s.api.Serve(ctx, s.cfg.Listen.Listen, grace, func(public, ops string) { ready(s, public, ops) })
	s.note(context.WithoutCancel(ctx), "stopped", err)
	cancel()
	<-done
	return err
}

// start joins the replicas. A store that is not there yet is waited for.
func (s *server) start(ctx context.Context) error {
	deadline := time.Now().Add(startTimeout)
	for {
		// First: where a later version keeps its feed, this one would find that it is lost.
		err := s.store.CheckFormat(ctx)
		if err == nil {
			err = s.broker.Start(ctx)
		}
		switch {
		case err == nil:
			s.warnOfLoss(ctx)
			return nil
		case errors.Is(err, broker.ErrLater):
			return notOurs(err)
		case ctx.Err() != nil || time.Now().After(deadline):
			return err
		}
		s.log.Warn("not ready yet; trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// warnOfLoss warns if a part of the data folder is new although another has a past:
// this replica is, or it was lost.
func (s *server) warnOfLoss(ctx context.Context) {
	if s.newJournal && s.broker.Status(ctx).Head.Seq > 1 {
		s.log.Warn("the journal is new, and the store is not: unless this replica is new too, its record begins anew, and leases that only the old journal knew cannot be recovered", "folder", s.cfg.Journal())
	}
	if s.newSubjects && !s.newJournal {
		s.log.Warn("the keys of subjects are new, and the journal is not: personal data in older events cannot be read any more", "file", filepath.Join(s.cfg.Data, subjectsFile))
	}
}

// note records that the server started or stopped.
func (s *server) note(ctx context.Context, what string, failure error) {
	e := &audit.Event{Kind: audit.KindService, Outcome: audit.Done, Reason: what, Change: &audit.Change{What: "server " + what, After: version()}}
	if failure != nil {
		e.Outcome, e.Reason = audit.Failed, failure.Error()
	}
	if err := s.events.Record(ctx, e, audit.Personal{}); err != nil {
		s.log.Error("record", "what", what, "error", err)
	}
}

// SigningKeys implements [api.Operations].
func (s *server) SigningKeys() []api.SigningKey { return signingKeys(s.ring.Keys()) }

func signingKeys(in []token.KeyInfo) (out []api.SigningKey) {
	for _, k := range in {
		out = append(out, api.SigningKey(k))
	}
	return out
}

// RotateKey implements [api.Operations].
func (s *server) RotateKey(ctx context.Context, operator string, atOnce bool) (api.SigningKey, error) {
	k, err := s.ring.Rotate(ctx, atOnce)
	s.noteKeys(ctx, operator, audit.Change{What: "signing key", After: k.ID}, err)
	return api.SigningKey(k), err
}

// RotateSealingKey implements [api.Operations].
func (s *server) RotateSealingKey(ctx context.Context, operator string) (string, error) {
	id, err := s.sealer.Rotate(ctx)
	s.noteKeys(ctx, operator, audit.Change{What: "sealing key", After: id}, err)
	return id, err
}

// RevokeKey implements [api.Operations].
func (s *server) RevokeKey(ctx context.Context, operator, kid string) (api.RevokedKey, error) {
	out, err := revokeKey(ctx, s.ring, kid)
	if err == nil {
		if err = s.broker.EndWithdrawn(ctx, operator); err != nil {
			err = broker.Fail(broker.Unavailable, err, "the key is withdrawn; what was obtained with it is revoked once the store takes the revocation: it is tried again within a minute")
		}
	}
	s.noteKeys(ctx, operator, audit.Change{What: "signing key revoked", Before: kid, After: out.Signs.ID}, err)
	return out, err
}

// noteKeys records what an operator did to the signing keys. A failure does not
// undo it.
func (s *server) noteKeys(ctx context.Context, operator string, change audit.Change, failure error) {
	e := &audit.Event{Kind: audit.KindKey, Outcome: audit.Done, Party: audit.Party{Operator: operator}, Change: &change}
	if failure != nil {
		e.Outcome, e.Reason = audit.Failed, failure.Error()
		if errors.Is(failure, broker.ErrNotFound) { // nothing of ours failed
			e.Outcome = audit.Refused
		}
	}
	if err := s.events.Record(ctx, e, audit.Personal{}); err != nil {
		s.log.Error("record a change of signing keys", "error", err)
	}
}

// NewClientSecret implements [api.Operations].
func (s *server) NewClientSecret(ctx context.Context, operator string) (made secret.String, hash string, err error) {
	made, hash = s.broker.NewClientSecret()
	e := &audit.Event{
		Kind: audit.KindConfig, Outcome: audit.Done, Party: audit.Party{Operator: operator}, Change: &audit.Change{What: "client secret made", After: hash},
	}
	if err := s.events.Record(ctx, e, audit.Personal{}); err != nil {
		return secret.String{}, "", broker.Fail(broker.Unavailable, err, "it could not be recorded")
	}
	return made, hash, nil
}

// Mappings implements [api.Operations].
func (s *server) Mappings() []*scopes.Mapping {
	all, err := s.cfg.LoadMappings()
	if err != nil { // which PolicyProblem says
		return nil
	}
	return all
}

var _ api.Operations = (*server)(nil)
