// Package providers is the list of upstreams that Stint can vend for.
package providers

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/providers/postgres"
	"github.com/stint-dev/stint/providers/vault"
)

// Deps are what providers are handed.
type Deps struct {
	// Secret returns the secret that a reference of the settings names.
	Secret func(ctx context.Context, ref string) (secret.String, error)
	// Engine is the Vault that keeps the secrets; nil where a file keeps them.
	Engine vault.Engine
	Now    func() time.Time
	Log    *slog.Logger
}

// kind is one kind of provider.
type kind struct {
	describe func() broker.Description
	open     func(ctx context.Context, name string, decode func(any) error, d Deps) (broker.Provider, error)
}

var kinds = map[string]kind{
	"postgres": {postgres.Describe, func(ctx context.Context, name string, decode func(any) error, d Deps) (broker.Provider, error) {
		return postgres.Open(ctx, name, decode, postgres.Deps{Secret: d.Secret, Now: d.Now, Log: d.Log})
	}},
	"vault": {vault.Describe, func(_ context.Context, name string, decode func(any) error, d Deps) (broker.Provider, error) {
		return vault.Open(name, decode, vault.Deps{Engine: d.Engine, Now: d.Now})
	}},
}

// Kinds are the kinds of providers that exist, sorted.
func Kinds() []string {
	names := make([]string, 0, len(kinds))
	for k := range kinds {
		names = append(names, k)
	}
	slices.Sort(names)
	return names
}

// Describe returns what all providers of a kind say of themselves.
func Describe(name string) (broker.Description, error) {
	k, ok := kinds[name]
	if !ok {
		return broker.Description{}, unknown(name)
	}
	return k.describe(), nil
}

// Open makes a provider of its settings, which decode reads. It connects to
// nothing: that waits for the first use. What it opens is closed when ctx ends.
func Open(ctx context.Context, kind, name string, decode func(any) error, d Deps) (broker.Provider, error) {
	k, ok := kinds[kind]
	if !ok {
		return nil, unknown(kind)
	}
	return k.open(ctx, name, decode, d)
}

func unknown(kind string) error {
	return fmt.Errorf("there is no kind of provider %q; there are %s", kind, strings.Join(Kinds(), ", "))
}
