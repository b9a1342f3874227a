package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/stint-dev/stint/audit"
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

// liveCheck opens and reaches what a configuration names, and changes nothing of it.
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

// openSecrets finds out whether the secrets can be read, and whether a server runs.
func (l *liveCheck) openSecrets(ctx context.Context) {
	if _, err := dialLocal(l.cfg); err == nil || !errors.Is(err, errNotRunning) {
		l.running = true
	}
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	l.failure = l.secrets.Ready(ctx)
	if f := l.cfg.Secrets.File; f != nil && l.failure == nil {
		_, l.failure = canMake(filepath.Dir(l.cfg.Path(f.Path))) // it is locked, and rewritten
	}
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
	wait.Go(l.reachData)
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
		file := l.cfg.Path(l.cfg.Store.File)
		_, err := os.Stat(file)
		switch {
		case l.running:
			l.add(name, stateInUse, errRunning)
			return
		case errors.Is(err, fs.ErrNotExist):
			_, err := canMake(filepath.Dir(file))
			l.toBeMade(name, false, err)
			return
		}
	}
	s, err := openStore(ctx, l.cfg, l.resolve)
	if err == nil {
		err = errors.Join(s.Ready(ctx), s.Close())
	}
	l.result(name, err)
}

// toBeMade adds what may be there or not at the first start, which then makes it.
func (l *liveCheck) toBeMade(name string, there bool, err error) {
	if err == nil && !there {
		l.add(name, stateReady, errors.New("is made at the first start"))
		return
	}
	l.result(name, err)
}

// reachData tries whether the data folder can be written, and reads of the journal
// what is read at start-up: its newest segment.
func (l *liveCheck) reachData() {
	there, err := canMake(l.cfg.Data)
	l.toBeMade("data", there, err)
	_, err = os.Stat(l.cfg.Journal())
	if there = !errors.Is(err, fs.ErrNotExist); there {
		err = audit.ReadJournal(l.cfg.Journal(), math.MaxUint64, func(audit.Frame, uint64) error { return nil })
	} else {
		err = nil
	}
	l.toBeMade("journal", there, err)
}

// canMake tries whether something can be made in a folder, or the folder itself if
// it is not there, and leaves nothing behind.
func canMake(dir string) (there bool, err error) {
	at := filepath.Clean(dir)
	for {
		_, err := os.Stat(at)
		if err == nil {
			break
		}
		if up := filepath.Dir(at); errors.Is(err, fs.ErrNotExist) && up != at {
			at = up
			continue
		}
		return false, err
	}
	probe, err := os.MkdirTemp(at, ".stint-check-")
	if err != nil {
		return false, fmt.Errorf("nothing can be made in %w", brief(err, at))
	}
	return at == filepath.Clean(dir), os.Remove(probe)
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
