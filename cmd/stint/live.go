package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/internal/vault"
)

// The states of a dependency.
const (
	stateReady   = "ready"
	stateMissing = "missing" // it cannot be used
	stateInUse   = "in use"  // by the server that runs here, which is the answer
)

// errRunning is why something was not tried: it works for a server already.
var errRunning = errors.New("by the server that runs here; it was not touched")

// reachTime bounds how long one dependency is waited for.
const reachTime = 12 * time.Second

// dependency is something that the server needs from outside.
type dependency struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
}

// liveCheck opens and reaches what a configuration names, without changing it.
type liveCheck struct {
	cfg     *config.Config
	running bool // a server runs with this configuration
	secrets vault.Store
	engine  *vault.Engine
	failure error // why the secrets are not open

	mu    sync.Mutex
	found []dependency
}

func (l *liveCheck) close() {
	if l.secrets != nil {
		_ = l.secrets.Close()
	}
}

// openVault prepares to ask Vault, which is asked nothing yet.
func (l *liveCheck) openVault() (err error) {
	l.secrets, l.engine, err = vault.Open(inFolder(l.cfg), vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now})
	return err
}

// openSecrets opens the secrets, and finds out whether a server runs.
func (l *liveCheck) openSecrets(ctx context.Context) {
	if _, err := dialLocal(l.cfg); err == nil || !errors.Is(err, errNotRunning) {
		l.running = true
	}
	if l.cfg.Secrets.Kind == vault.KindFile {
		if l.failure = l.openFile(); l.failure != nil {
			return
		}
	}
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	l.failure = l.secrets.Ready(ctx)
}

// openFile opens the sealed file to read it, as it is: beside a server that has
// it open, and without a lock that would be left behind.
func (l *liveCheck) openFile() (err error) {
	l.secrets, _, err = vault.Open(inFolder(l.cfg), vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now, ReadOnly: true})
	return err
}

// resolve is what providers ask for secrets.
func (l *liveCheck) resolve(ctx context.Context, reference string) (secret.String, error) {
	return vault.Resolver{Store: l.secrets}.Resolve(ctx, reference)
}

// reach tries everything that there is, at the same time.
func (l *liveCheck) reach(ctx context.Context, p *plan) []dependency {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	l.found = nil
	l.result("secrets", l.failure)
	var wait sync.WaitGroup
	wait.Go(func() { l.reachStore(ctx) })
	wait.Go(func() { l.reachKeys(ctx, p) })
	for name, provider := range p.registry.Providers {
		if ready := provider.Describe().Ready; ready != nil {
			wait.Go(func() { l.result("provider "+name, ready(ctx)) })
		}
	}
	if l.cfg.Telemetry != nil {
		t, err := newTelemetry(ctx, l.cfg, slog.New(slog.DiscardHandler))
		if err == nil {
			t.shutdown()
		}
		l.result("telemetry's secrets", err)
	}
	wait.Wait()
	l.reachListeners()
	slices.SortFunc(l.found, func(a, b dependency) int { return cmp.Compare(a.Name, b.Name) })
	return l.found
}

func (l *liveCheck) add(name, state string, err error) {
	d := dependency{Name: name, State: state}
	if err != nil {
		d.Detail = oneLine(err.Error())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.found = append(l.found, d)
}

func (l *liveCheck) result(name string, err error) {
	state := stateReady
	if err != nil {
		state = stateMissing
	}
	l.add(name, state, err)
}

func (l *liveCheck) reachStore(ctx context.Context) {
	const name = "store"
	if l.cfg.Store.Kind == store.KindEmbedded {
		_, err := os.Stat(l.cfg.Path(l.cfg.Store.File))
		switch {
		case l.running:
			l.add(name, stateInUse, errRunning)
			return
		case errors.Is(err, os.ErrNotExist):
			l.add(name, stateReady, errors.New("is made at the first start"))
			return
		}
	}
	s, err := openStore(ctx, l.cfg, l.resolve)
	if err == nil {
		err = errors.Join(s.Ready(ctx), s.Close())
	}
	l.result(name, err)
}

// reachKeys fetches the keys of issuers and clients.
func (l *liveCheck) reachKeys(ctx context.Context, p *plan) {
	cfg, err1 := p.tokenConfig()
	client, err2 := p.fetcher()
	if err := errors.Join(err1, err2); err != nil {
		l.result("keys", err)
		return
	}
	issuers, clients := token.Probe(ctx, cfg, client)
	for id, err := range issuers {
		l.result("issuer "+id, err)
	}
	for id, err := range clients {
		l.result("keys of client "+id, err)
	}
}

// reachListeners takes the addresses for a moment, unless the server has them.
func (l *liveCheck) reachListeners() {
	for name, address := range map[string]string{"listen.address": l.cfg.Listen.Address, "listen.ops": l.cfg.Listen.Ops} {
		if l.running {
			l.add(name, stateInUse, errRunning)
			continue
		}
		in, err := net.Listen("tcp", address)
		if err == nil {
			err = in.Close()
		}
		l.result(name, err)
	}
}
