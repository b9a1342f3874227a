package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/internal/config"
)

func newReady(g *globals) *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use: "ready", Short: "Say whether the server on this machine can serve",
		Long: `Asks the server that runs with this configuration, over its local socket, what /readyz
says. It is the health check of a container, which has no other program, and what a script
waits for after a start.

It exits with 0 if the server is ready, and with 1 if it is not, or is not there.`,
		Example: "  stint ready --config /etc/stint/stint.yaml\n  stint ready --wait 1m -o json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if wait < 0 || wait > time.Hour {
				return usage("--wait is from 0s to 1h, not %s", wait)
			}
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			r, err := awaitReady(c.Context(), cfg, wait)
			if err != nil {
				return err
			}
			if err := g.print(c, r, r.text); err != nil {
				return err
			}
			return r.err()
		},
	}
	c.Flags().DurationVar(&wait, "wait", 0, "how `long` to go on asking until it is ready, up to 1h")
	return c
}

// readyReport is what the server says of itself.
type readyReport struct {
	Ready bool `json:"ready"`
	// Missing names what is needed and not there.
	Missing []string `json:"missing"`
}

func (r *readyReport) text(p *printer) {
	if r.Ready {
		p.line("ready")
		return
	}
	p.line("not ready: %s", strings.Join(r.Missing, ", "))
}

// err is what the command exits with.
func (r *readyReport) err() error {
	if r.Ready {
		return nil
	}
	return errors.New("the server is not ready; its log says why")
}

// awaitReady asks until the server is ready, or the time is over.
func awaitReady(ctx context.Context, cfg *config.Config, wait time.Duration) (*readyReport, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+10*time.Second) // one answer may take its time
	defer cancel()
	over := time.After(wait)
	for {
		r, err := askReady(ctx, cfg)
		if err == nil && r.Ready {
			return r, nil
		}
		select {
		case <-over:
			return r, err
		case <-ctx.Done():
			return r, errors.Join(err, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func askReady(ctx context.Context, cfg *config.Config) (*readyReport, error) {
	l, err := dialLocal(cfg)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://stint/admin/v1/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the server: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		return nil, fmt.Errorf("the server answered %d", resp.StatusCode)
	}
	r := &readyReport{Missing: []string{}}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(r); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return r, nil
}
