package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
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
)

const (
	grace        = 15 * time.Second // for requests in flight when the server stops
	startTimeout = 60 * time.Second // for stores that come up at the same time
	policyEvery  = 2 * time.Second  // that the mappings are looked at
)

func newServe(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "Run the server",
		Long: `Runs the server until it is asked to stop (SIGINT, SIGTERM); requests in flight are
finished first. Mappings are read again when they change, or on SIGHUP: a broken edit
keeps the old version in force and is logged.`,
		Example: "  stint serve --config /etc/stint/stint.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			return serve(c.Context(), cfg, c.ErrOrStderr(), func(s *server, public, ops string) {
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
	tuneMemory(ctx)
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
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() { defer close(done); s.broker.Run(background) }()
	go s.followPolicy(background)
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
		err := s.broker.Start(ctx)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		s.log.Warn("not ready yet; trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
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

// followPolicy puts new versions of the mappings in force.
func (s *server) followPolicy(ctx context.Context) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	last, _ := folderState(s.cfg.Mappings)
	for {
		forced := false
		select {
		case <-ctx.Done():
			return
		case <-hup:
			forced = true
		case <-time.After(policyEvery):
		}
		state, err := folderState(s.cfg.Mappings)
		if err != nil {
			s.log.Error("mappings cannot be read; the version in force stays", "error", err)
			continue
		}
		if state == last && !forced {
			continue
		}
		last = state
		s.reload(ctx)
	}
}

// reload puts the mappings in force as they are now, or says why not.
func (s *server) reload(ctx context.Context) {
	old := s.broker.Judge().Policy().Version()
	p, err := s.compile()
	if err == nil && p.Version() == old {
		s.broken.Store(nil)
		return
	}
	if err == nil {
		err = s.broker.SetPolicy(ctx, p)
	}
	if err != nil {
		text := err.Error()
		s.broken.Store(&text)
		s.log.Error("the mappings were changed and cannot be used; the version in force stays", "version", old, "error", err)
		e := &audit.Event{Kind: audit.KindConfig, Outcome: audit.Refused, Reason: text, Change: &audit.Change{What: "mappings", Before: old}}
		if err := s.events.Record(ctx, e, audit.Personal{}); err != nil {
			s.log.Error("record", "error", err)
		}
		return
	}
	s.broken.Store(nil)
	s.log.Info("new mappings are in force", "before", old, "version", p.Version())
}

// folderState is a digest of what a folder holds, by name, size and time.
func folderState(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != ".yaml" && ext != ".cedar" {
			continue
		}
		info, err := os.Stat(filepath.Join(dir, e.Name())) // through links, as mounted volumes have them
		if err != nil {
			return "", err
		}
		_, _ = fmt.Fprintf(h, "%s\x00%d\x00%d\x00", e.Name(), info.Size(), info.ModTime().UnixNano())
	}
	return string(h.Sum(nil)), nil
}

// PolicyProblem implements [api.Operations].
func (s *server) PolicyProblem() string {
	if p := s.broken.Load(); p != nil {
		return *p
	}
	return ""
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
	}
	if err := s.events.Record(ctx, e, audit.Personal{}); err != nil {
		s.log.Error("record a change of signing keys", "error", err)
	}
}

// NewClientSecret implements [api.Operations].
func (s *server) NewClientSecret() (made secret.String, hash string) {
	return s.broker.NewClientSecret()
}

var _ api.Operations = (*server)(nil)
