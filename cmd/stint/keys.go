package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/internal/vault"
)

func newKeys(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "keys", Short: "List and rotate the signing keys", Args: cobra.NoArgs}
	c.AddCommand(&cobra.Command{
		Use: "list", Short: "List the signing keys, oldest first", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var keys []api.SigningKey
			err := g.withKeys(c.Context(), func(l *local) error {
				var got struct {
					Keys []api.SigningKey `json:"keys"`
				}
				err := l.call(c.Context(), http.MethodGet, "/admin/v1/keys", nil, &got)
				keys = got.Keys
				return err
			}, func(r *token.Ring) error { keys = signingKeys(r.Keys()); return nil })
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
	var now bool
	rotate := &cobra.Command{
		Use: "rotate", Short: "Add a signing key",
		Long: `Adds a signing key. It is published at once and signs after the overlap of the
configuration, so that nobody who caches our keys meets a token that he cannot verify.
The old key is published until the last of its tokens has run out.

With --now it signs at once: for a key that was stolen. Whoever caches our keys refuses
new tokens until he fetches them again.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var key api.SigningKey
			err := g.withKeys(c.Context(), func(l *local) error {
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
	c.AddCommand(rotate)
	return c
}

// withKeys asks the running server, or, if none runs, opens the secrets itself.
func (g *globals) withKeys(ctx context.Context, running func(*local) error, alone func(*token.Ring) error) error {
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
	return withSecrets(cfg, func(secrets vault.Store) error {
		ring, err := token.OpenRing(ctx, token.RingConfig{
			Algorithm: cfg.Keys.Algorithm, Overlap: cfg.Keys.Overlap.Duration, Retain: time.Hour, Now: time.Now,
		}, keyFile{secrets})
		if err != nil {
			return err
		}
		return alone(ring)
	})
}

func withSecrets(cfg *config.Config, do func(vault.Store) error) error {
	secrets, _, err := vault.Open(inFolder(cfg), vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		return err
	}
	return errors.Join(do(secrets), secrets.Close())
}

func newClient(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "client", Short: "Make entries for clients", Args: cobra.NoArgs}
	var in struct {
		method, resource string
		targets          []string
		self             bool
	}
	add := &cobra.Command{
		Use: "add ID", Short: "Make a client's secret and its entry for the configuration",
		Long: `Makes a secret of 256 random bits and prints it, once, with the entry that belongs under
clients: in the configuration. The entry holds a keyed hash: whoever reads it cannot
authenticate. The entry's ceiling is read access; raise it where more is needed.

For private_key_jwt nothing is made: the client keeps its key, and the entry names where
its public keys are.`,
		Example: `  stint client add orders-mcp --resource https://mcp.example/orders --target https://api.example
  stint client add desktop --target https://mcp.example/orders --method client_secret_post`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			entry := clientEntry{ID: args[0], Method: in.method, Resource: in.resource, Targets: in.targets, Self: in.self}
			if in.method != "private_key_jwt" {
				if entry.Secret, entry.Hash, err = newSecret(c.Context(), cfg); err != nil {
					return err
				}
			}
			if err := entry.check(); err != nil {
				return usage("%v", err)
			}
			return g.print(c, entry, entry.text)
		},
	}
	f := add.Flags()
	f.StringVar(&in.method, "method", "client_secret_basic", "how it authenticates: client_secret_basic, client_secret_post or private_key_jwt")
	f.StringVar(&in.resource, "resource", "", "the `URI` of the resource that the client is itself")
	f.StringSliceVar(&in.targets, "target", nil, "a resource or provider that it may ask for; repeatable")
	f.BoolVar(&in.self, "client-credentials", false, "let it act for itself as well")
	c.AddCommand(add)
	return c
}

func newSecret(ctx context.Context, cfg *config.Config) (made, hash string, err error) {
	l, err := dialLocal(cfg)
	if err == nil {
		var got struct{ Secret, Hash string }
		err = l.call(ctx, http.MethodPost, "/admin/v1/client-secrets", nil, &got)
		return got.Secret, got.Hash, err
	}
	if !errors.Is(err, errNotRunning) {
		return "", "", err
	}
	err = withSecrets(cfg, func(secrets vault.Store) error {
		s, h, err := makeSecret(ctx, secrets)
		made, hash = s.Reveal(), h
		return err
	})
	return made, hash, err
}

// makeSecret makes a client's secret, and its hash under the key in the store.
func makeSecret(ctx context.Context, secrets vault.Store) (secret.String, string, error) {
	key, err := vault.Key(ctx, secrets, vault.PathClientSecrets)
	if err != nil {
		return secret.String{}, "", err
	}
	made, hash := broker.NewClientSecret([]byte(key.Reveal()))
	return made, hash, nil
}

// clientEntry is a client's entry, as it is printed.
type clientEntry struct {
	ID       string   `json:"id"`
	Method   string   `json:"method"`
	Secret   string   `json:"secret,omitempty"`
	Hash     string   `json:"hash,omitempty"`
	Resource string   `json:"resource,omitempty"`
	Targets  []string `json:"targets"`
	Self     bool     `json:"client_credentials,omitempty"`
}

func (e clientEntry) check() error {
	c := broker.Client{ID: e.ID, Resource: e.Resource, Auth: broker.ClientAuth{Method: e.Method}}
	if e.Hash != "" {
		c.Auth.SecretHashes = []string{e.Hash}
	} else {
		c.Auth.JWKSFile = "keys.json"
	}
	switch e.Method {
	case "client_secret_basic", "client_secret_post", "private_key_jwt":
	default:
		return fmt.Errorf("--method is client_secret_basic, client_secret_post or private_key_jwt, not %q", e.Method)
	}
	return c.Check()
}

func (e clientEntry) text(p *printer) {
	if e.Secret != "" {
		p.line("# The secret of %s, shown this once: %s", e.ID, e.Secret)
	}
	p.line("# Put this under clients: in the configuration, and restart the server.")
	p.line("  - id: %s", e.ID)
	if e.Hash != "" {
		p.line("    auth: {method: %s, secret_hashes: [%q]}", e.Method, e.Hash)
	} else {
		p.line("    auth: {method: %s, jwks_file: %s.jwks.json}  # its public keys", e.Method, e.ID)
	}
	types := `"` + broker.TokenExchange + `"`
	if e.Self {
		types += ", " + broker.ClientCredentials
	}
	p.line("    grant_types: [%s]", types)
	if e.Resource != "" {
		p.line("    resource: %s", e.Resource)
	}
	p.line("    targets: %s", flow(e.Targets))
	p.line(`    ceiling: {access: read, scopes: "*", vend: "*"}`)
}

func flow(list []string) string {
	out := "["
	for i, s := range list {
		if i > 0 {
			out += ", "
		}
		out += fmt.Sprintf("%q", s)
	}
	return out + "]"
}
