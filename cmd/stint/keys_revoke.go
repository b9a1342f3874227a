package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/internal/vault"
)

// revokedKey is what came of revoking a signing key.
type revokedKey struct {
	Revoked string         `json:"revoked"`
	Signs   api.SigningKey `json:"signs"`
	// New says that the key which signs now was made for it: nobody knows it yet.
	New bool `json:"new"`
	// Within is how long replicas that run may take to see it, in seconds.
	Within int `json:"within"`
}

func newKeysRevoke(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "revoke KID", Short: "Withdraw a signing key at once",
		Long: `Withdraws a signing key that somebody else may hold: it leaves our keys and the JWK set,
and every token that it signed is refused here. If it signed, the key that waits signs
from now on, or a new one is made.

It changes the secrets and not a server: replicas that run see it within a minute, as they
see a rotation. A sealed file is open to one process at a time: stop the server first, and
start it afterwards.

Resource servers that cache our keys accept tokens of the withdrawn one until they fetch
the keys again: what was signed falsely is out of reach until then.`,
		Example: "  stint keys list\n  stint keys revoke NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			if cfg.Secrets.Kind == vault.KindFile {
				if _, err := dialLocal(cfg); !errors.Is(err, errNotRunning) {
					return fmt.Errorf("the server that runs here has the sealed file open: stop it, revoke the key, and start it again")
				}
			}
			out, err := revokeKey(c.Context(), cfg, args[0])
			if err != nil {
				return err
			}
			return g.print(c, out, out.text)
		},
	}
}

// revokeKey withdraws a key among the secrets.
func revokeKey(ctx context.Context, cfg *config.Config, kid string) (out *revokedKey, err error) {
	err = withRing(ctx, cfg, func(r *token.Ring) error {
		known := make(map[string]bool)
		for _, k := range r.Keys() {
			known[k.ID] = true
		}
		signs, err := r.Revoke(ctx, kid)
		if errors.Is(err, broker.ErrNotFound) {
			return &exitError{exitRefused, fmt.Errorf("there is no signing key %q; stint keys list shows those there are", kid)}
		}
		out = &revokedKey{Revoked: kid, Signs: api.SigningKey(signs), New: !known[signs.ID], Within: int(keysEvery / time.Second)}
		return err
	})
	return out, err
}

func (out *revokedKey) text(p *printer) {
	p.line("revoked %s: it is published no more, and tokens that it signed are refused", out.Revoked)
	made := "signs"
	if out.New {
		made = "is new, and signs"
	}
	p.line("%s (%s) %s", out.Signs.ID, out.Signs.Algorithm, made)
	p.line("replicas that run see it within %d seconds; whoever caches our keys accepts the revoked one until he fetches them again", out.Within)
}
