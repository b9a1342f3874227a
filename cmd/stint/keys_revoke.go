package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/token"
)

func newKeysRevoke(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "revoke KID", Short: "Withdraw a signing key at once",
		Long: `Withdraws a signing key that somebody else may hold: it leaves our keys and the JWK set,
and every token that it signed is refused, with all that was obtained by such tokens:
tokens made from them, and leases. If it signed, the key that waits signs from now on, or
a new one is made.

Asks the server that runs here, which tells the other replicas by the revocation feed, or
opens the secrets itself if none runs: then replicas that run elsewhere see it within a
minute, as they see a rotation, and what was obtained is revoked by the first of them, or
by the next server that starts.

Resource servers that cache our keys accept tokens of the withdrawn one until they fetch
the keys again: what was signed falsely is out of reach until then.`,
		Example: "  stint keys list\n  stint keys revoke NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: first(g.completed(keysOf)),
		RunE: func(c *cobra.Command, args []string) error {
			var out api.RevokedKey
			err := g.withKeys(c.Context(), func(l *adminAPI) error {
				return l.call(c.Context(), http.MethodPost, "/admin/v1/keys/revocations", map[string]string{"kid": args[0]}, &out)
			}, func(r *token.Ring) (err error) {
				out, err = revokeKey(c.Context(), r, args[0])
				if errors.Is(err, broker.ErrNotFound) {
					err = &exitError{exitRefused, fmt.Errorf("%w; stint keys list shows those there are", err)}
				}
				return err
			})
			if err != nil {
				return err
			}
			return g.print(c, out, func(p *printer) { showRevokedKey(p, out) })
		},
	}
}

// revokeKey withdraws a key of a ring.
func revokeKey(ctx context.Context, r *token.Ring, kid string) (api.RevokedKey, error) {
	known := make(map[string]bool)
	for _, k := range r.Keys() {
		known[k.ID] = true
	}
	signs, err := r.Revoke(ctx, kid)
	return api.RevokedKey{Revoked: kid, Signs: api.SigningKey(signs), New: !known[signs.ID], Within: int(broker.KeysEvery / time.Second)}, err
}

func showRevokedKey(p *printer, out api.RevokedKey) {
	p.line("revoked %s: it is published no more; tokens that it signed are refused, and what was obtained with them", out.Revoked)
	made := "signs"
	if out.New {
		made = "is new, and signs"
	}
	p.line("%s (%s) %s", out.Signs.ID, out.Signs.Algorithm, made)
	p.line("replicas that run see it within %d seconds; whoever caches our keys accepts the revoked one until he fetches them again", out.Within)
}
