package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/api/adminapi"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/internal/vault"
)

func newKeys(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "keys", Short: "List, rotate and revoke the signing keys", Args: cobra.NoArgs}
	c.AddCommand(&cobra.Command{
		Use: "list", Short: "List the signing keys, oldest first", Args: cobra.NoArgs,
		Example: "  stint keys list\n  stint keys list -o json | jq '.[].kid'",
		RunE: func(c *cobra.Command, _ []string) error {
			keys, err := g.signingKeys(c.Context())
			if err != nil {
				return err
			}
			return g.print(c, keys, func(p *printer) {
				p.row("KEY", "ALGORITHM", "STATE", "SIGNS FROM", "PUBLISHED UNTIL")
				for _, k := range keys {
					until := "-"
					if !k.Until.IsZero() {
						until = k.Until.Local().Format(time.DateTime)
					}
					p.row(k.ID, k.Algorithm, k.State, k.Active.Local().Format(time.DateTime), until)
				}
			})
		},
	})
	c.AddCommand(&cobra.Command{
		Use: "show KID", Short: "Show one signing key", Args: cobra.ExactArgs(1), ValidArgsFunction: first(g.completed(keysOf)),
		Example: "  stint keys show NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
		RunE: func(c *cobra.Command, args []string) error {
			keys, err := g.signingKeys(c.Context())
			if err != nil {
				return err
			}
			at := slices.IndexFunc(keys, func(k api.SigningKey) bool { return k.ID == args[0] })
			if at < 0 {
				return &exitError{exitRefused, fmt.Errorf("there is no signing key %s; stint keys list shows those there are", args[0])}
			}
			return g.print(c, keys[at], func(p *printer) { showFields(p, keys[at]) })
		},
	})
	c.AddCommand(newKeysRotate(g), newKeysRevoke(g))
	return c
}

func newKeysRotate(g *globals) *cobra.Command {
	var now, sealing bool
	rotate := &cobra.Command{
		Use: "rotate", Short: "Add a signing key",
		Long: `Adds a signing key. It is published at once and signs after the overlap of the
configuration, so that nobody who caches our keys meets a token that he cannot verify.
The old key is published until the last of its tokens has run out.

With --now it signs at once. Whoever caches our keys refuses new tokens until he fetches
them again. What a stolen key signs is accepted all the same: stint keys revoke.

With --sealing it is the key for what is sealed at rest (handles of leases in the store and
the journal, keys of subjects) that is begun anew; older ones go on opening what they
sealed, so that nothing is sealed again.`,
		Example: "  stint keys rotate\n  stint keys rotate --now\n  stint keys rotate --sealing",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if sealing {
				return g.rotateSealing(c)
			}
			var key api.SigningKey
			err := g.withKeys(c.Context(), func(l *adminAPI) error {
				return l.call(c.Context(), http.MethodPost, "/admin/v1/keys", map[string]bool{"at_once": now}, &key)
			}, func(r *token.Ring) error {
				k, err := r.Rotate(c.Context(), now)
				key = api.SigningKey(k)
				return err
			})
			if err != nil {
				return err
			}
			return g.print(c, key, func(p *printer) {
				p.line("new key %s (%s), signs from %s", key.ID, key.Algorithm, key.Active.Local().Format(time.DateTime))
			})
		},
	}
	rotate.Flags().BoolVar(&now, "now", false, "sign with it at once")
	rotate.Flags().BoolVar(&sealing, "sealing", false, "the key for what is sealed at rest, in place of a signing key")
	rotate.MarkFlagsMutuallyExclusive("now", "sealing")
	return rotate
}

// signingKeys are those that the running server has, or else the secrets.
func (g *globals) signingKeys(ctx context.Context) (keys []api.SigningKey, err error) {
	err = g.withKeys(ctx, func(l *adminAPI) error {
		var got struct {
			Items []api.SigningKey `json:"items"`
		}
		err := l.call(ctx, http.MethodGet, "/admin/v1/keys", nil, &got)
		keys = got.Items
		return err
	}, func(r *token.Ring) error { keys = signingKeys(r.Keys()); return nil })
	return keys, err
}

// rotateSealing begins a new sealing key.
func (g *globals) rotateSealing(c *cobra.Command) error {
	var key adminapi.SealingKey
	ctx := c.Context()
	err := g.withServer(func(l *adminAPI) error {
		return l.call(ctx, http.MethodPost, "/admin/v1/keys/sealing", nil, &key)
	}, func(cfg *config.Config) error {
		return withSecrets(cfg, func(secrets vault.Store) error {
			sealer, err := vault.NewSealer(ctx, secrets, time.Now)
			if err == nil {
				key.ID, err = sealer.Rotate(ctx)
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	return g.print(c, key, func(p *printer) { p.line("new sealing key %s, in use from now on; older ones go on opening", key.ID) })
}

// withKeys asks the running server, or, if none runs, opens the secrets itself.
func (g *globals) withKeys(ctx context.Context, running func(*adminAPI) error, alone func(*token.Ring) error) error {
	return g.withServer(running, func(cfg *config.Config) error { return withRing(ctx, cfg, alone) })
}

// withServer asks the running server, or, if none runs here, does without.
func (g *globals) withServer(running func(*adminAPI) error, alone func(*config.Config) error) error {
	if g.context != "" {
		l, err := g.connect()
		if err != nil {
			return err
		}
		return running(l)
	}
	cfg, err := config.Load(g.config)
	if err != nil {
		return &exitError{exitRefused, err}
	}
	l, err := dialLocal(cfg)
	if err == nil {
		return running(l)
	}
	if !errors.Is(err, errNotRunning) {
		return err
	}
	return alone(cfg)
}

// withRing opens the secrets and the signing keys in them.
func withRing(ctx context.Context, cfg *config.Config, do func(*token.Ring) error) error {
	return withSecrets(cfg, func(secrets vault.Store) error {
		ring, err := token.OpenRing(ctx, ringConfig(cfg), keyFile{secrets})
		if err != nil {
			return err
		}
		return do(ring)
	})
}

// withSecrets opens the secrets. That they cannot be opened, for instance because
// somebody has them open, is refused, as it is by `stint serve`.
func withSecrets(cfg *config.Config, do func(vault.Store) error) error {
	secrets, _, err := vault.Open(inFolder(cfg), vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		return &exitError{exitRefused, err}
	}
	return errors.Join(do(secrets), secrets.Close())
}
