package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/internal/vault"
)

// What shells complete by the configuration. Where there is none, or it is not in
// order, nothing is offered: a shell that is asked has nowhere to show why.

// completeTime is the longest that somebody waits for a completion.
const completeTime = 2 * time.Second

// completed makes a completion of what list finds in the configuration, each with
// what it is after a tab.
func (g *globals) completed(list func(*config.Config) []string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		cfg, err := config.Load(g.config)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return list(cfg), cobra.ShellCompDirectiveNoFileComp
	}
}

// first completes the first argument alone.
func first(complete cobra.CompletionFunc) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(c, args, begun)
	}
}

func clientsOf(cfg *config.Config) (out []string) {
	for _, c := range cfg.Clients {
		out = append(out, described(c.ID, c.Name))
	}
	return out
}

func partiesOf(cfg *config.Config) (out []string) {
	for _, a := range cfg.Agents {
		out = append(out, described(a.Name, "agent"))
	}
	for _, c := range cfg.Clients {
		out = append(out, described(c.ID, "client"))
	}
	return out
}

func groupsOf(cfg *config.Config) (out []string) {
	for _, i := range cfg.Issuers {
		for _, name := range i.Policy.Groups {
			out = append(out, described(name, i.Policy.Issuer))
		}
	}
	return out
}

// targetsFor are those of [targetsOf] that can be found.
func targetsFor(cfg *config.Config) []string {
	out, _ := targetsOf(cfg)
	return out
}

func described(name, about string) string {
	if about == "" {
		return name
	}
	return name + "\t" + about
}

// keysOf are the signing keys that there are, by the server that runs here or by the
// secrets.
func keysOf(cfg *config.Config) (out []string) {
	ctx, cancel := context.WithTimeout(context.Background(), completeTime)
	defer cancel()
	var got struct{ Items []api.SigningKey }
	if l, err := dialLocal(cfg); err == nil {
		_ = l.call(ctx, http.MethodGet, "/admin/v1/keys", nil, &got)
	} else {
		got.Items = sealedKeys(ctx, cfg)
	}
	for _, k := range got.Items {
		out = append(out, described(k.ID, k.State+", "+k.Algorithm))
	}
	return out
}

// sealedKeys reads the signing keys among the secrets, without a lock on them. Where
// there are none it makes none.
func sealedKeys(ctx context.Context, cfg *config.Config) []api.SigningKey {
	secrets, _, err := vault.Open(inFolder(cfg), vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now, ReadOnly: true})
	if err != nil {
		return nil
	}
	defer func() { _ = secrets.Close() }()
	kept := lookOnly{keyFile{secrets}}
	if _, _, err := kept.LoadKeys(ctx); err != nil { // a ring would begin with a key that nobody keeps
		return nil
	}
	ring, err := token.OpenRing(ctx, ringConfig(cfg), kept)
	if err != nil {
		return nil
	}
	return signingKeys(ring.Keys())
}
