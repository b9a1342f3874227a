package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/vault"
)

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
