package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"sync"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/outbound"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/internal/vault"
)

// upstreamDeps are what providers are handed. What needs keys looks for them when it is
// used: providers are opened before anything else is.
func (p *plan) upstreamDeps(resolve func(context.Context, string) (secret.String, error), d vault.Deps) upstream.Deps {
	return upstream.Deps{
		Self: p.cfg.Issuer, Secret: resolve, Now: d.Now, Log: d.Log, HTTP: upstreamClient, Assert: p.assert,
		Parents: upstream.NewParents(upstream.ParentConfig{Store: p.secrets, Sealer: p.lazySealer(d), Index: p.indexOf, Now: d.Now}),
	}
}

// upstreamClient returns a client for the hosts of one upstream.
func upstreamClient(hosts []string, pem []byte) (*http.Client, error) {
	roots, err := trusting(pem)
	if err != nil {
		return nil, err
	}
	return outbound.New(outbound.Policy{Hosts: hosts, Roots: roots}), nil
}

// assert signs what a provider says of a subject to its upstream.
func (p *plan) assert(ctx context.Context, claims map[string]any) (secret.String, error) {
	if p.ring == nil {
		return secret.String{}, errors.New("only the server signs")
	}
	return p.ring.Assert(ctx, p.cfg.Issuer, claims)
}

// lazySealer opens the keys that seal with the first use.
func (p *plan) lazySealer(d vault.Deps) func(context.Context) (broker.Sealer, error) {
	var mu sync.Mutex
	var sealer *vault.Sealer
	return func(ctx context.Context) (broker.Sealer, error) {
		mu.Lock()
		defer mu.Unlock()
		if sealer != nil {
			return sealer, nil
		}
		s, err := vault.NewSealer(ctx, p.secrets, d.Now)
		if err != nil {
			return nil, err
		}
		sealer = s
		return s, nil
	}
}

// indexOf names a subject in the paths of what is kept for it.
func (p *plan) indexOf(ctx context.Context, subject string) (string, error) {
	key, err := vault.Key(ctx, p.secrets, vault.PathAuditIndex)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, []byte(key.Reveal()))
	mac.Write([]byte("parent\x00" + subject))
	return hex.EncodeToString(mac.Sum(nil)), nil
}
