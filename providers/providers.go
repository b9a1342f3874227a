// Package providers is the list of upstreams that Stint can vend for.
package providers

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/aws"
	"github.com/stint-dev/stint/providers/entra"
	"github.com/stint-dev/stint/providers/github"
	"github.com/stint-dev/stint/providers/google"
	"github.com/stint-dev/stint/providers/kubernetes"
	"github.com/stint-dev/stint/providers/oauth"
	"github.com/stint-dev/stint/providers/postgres"
	"github.com/stint-dev/stint/providers/s3"
	"github.com/stint-dev/stint/providers/slack"
	"github.com/stint-dev/stint/providers/static"
	"github.com/stint-dev/stint/providers/vault"
)

// Deps are what providers are handed.
type Deps struct {
	upstream.Deps
	// Engine is the Vault that keeps the secrets; nil where a file keeps them.
	Engine vault.Engine
	// Signer signs by keys that stay in Vault; nil where a file keeps the secrets.
	Signer github.Signer
}

// kind is one kind of provider.
type kind struct {
	describe func() broker.Description
	open     func(ctx context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error)
}

// kinds are the list: a line a kind.
func kinds(d Deps) map[string]kind {
	return map[string]kind{
		"entra":      {entra.Describe, entra.Open},
		"github":     {github.Describe, github.On(d.Signer)},
		"oauth":      {oauth.Describe, oauth.Open},
		"google":     {google.Describe, google.Open},
		"aws":        {aws.Describe, aws.Open},
		"postgres":   {postgres.Describe, postgres.Open},
		"s3":         {s3.Describe, s3.Open},
		"vault":      {vault.Describe, vault.On(d.Engine)},
		"kubernetes": {kubernetes.Describe, kubernetes.Open},
		"slack":      {slack.Describe, slack.Open},
		"static":     {static.Describe, static.Open},
	}
}

// Kinds are the kinds of providers that exist, sorted.
func Kinds() []string {
	return slices.Sorted(maps.Keys(kinds(Deps{})))
}

// Describe returns what all providers of a kind say of themselves.
func Describe(name string) (broker.Description, error) {
	k, ok := kinds(Deps{})[name]
	if !ok {
		return broker.Description{}, unknown(name)
	}
	return k.describe(), nil
}

// Open makes a provider of its settings, which decode reads. It connects to
// nothing: that waits for the first use. What it opens is closed when ctx ends.
func Open(ctx context.Context, kind, name string, decode func(any) error, d Deps) (broker.Provider, error) {
	k, ok := kinds(d)[kind]
	if !ok {
		return nil, unknown(kind)
	}
	return k.open(ctx, name, decode, d.Deps)
}

func unknown(kind string) error {
	return fmt.Errorf("there is no kind of provider %q; there are %s", kind, strings.Join(Kinds(), ", "))
}
