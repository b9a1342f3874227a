package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/vault"
	"github.com/stint-dev/stint/providers/postgres"
)

// The sandbox of `stint demo` and `stint dev`: Stint as `stint serve` runs it, on a
// configuration that is written for it, with the sample servers around it. All of
// it is in this process and on loopback, and speaks real HTTP.

//go:embed sandbox
var sandboxFiles embed.FS

// Where the parts of a sandbox are in its folder.
const (
	sandboxEnv       = "env"
	sandboxLog       = "stint.log"
	sandboxWarehouse = "postgres"
	warehouseSecret  = "providers/warehouse"
	warehouseReport  = "SELECT item, sum(quantity) AS quantity, sum(total) AS total FROM sales.orders GROUP BY item ORDER BY item"
)

// Whether there has to be a PostgreSQL.
const (
	postgresAuto    = "auto"    // if it is installed
	postgresRequire = "require" // or fail
	postgresOff     = "off"
)

// sandboxOptions say what kind of sandbox is wanted.
type sandboxOptions struct {
	// Dir is where it is kept. A sandbox that is there already is started again.
	Dir string
	// Port is that of Stint, the others follow it; 0: free ones.
	Port int
	// SamePort refuses a sandbox that is there already and has another port.
	SamePort bool
	// Postgres is one of the constants above.
	Postgres string
	// Trace is told what goes over the wire; nil: nobody is.
	Trace func(sample.Step)
}

// layout is what the files of a sandbox are filled in with, and what is read from
// the file env when it is started again.
type layout struct {
	Dir, Config, Env                      string
	Stint, IdP, MCP, API                  string // URLs
	StintAddress, OpsAddress              string
	Warehouse                             int // PostgreSQL's port; 0: there is none
	DesktopHash, MCPHash, APIHash         string
	DesktopSecret, MCPSecret, APISecret   secret.String
	AdminPassword                         secret.String
	idpAddress, mcpAddress, apiAddress    string
	postgresBin, postgresVersion, without string
}

// sandbox is a running one.
type sandbox struct {
	layout
	opts      sandboxOptions
	cfg       *config.Config
	server    *server
	idp       *sample.IdP
	mcp       *sample.MCPServer
	api       *sample.API
	warehouse *sample.Warehouse
	log       *os.File
	closers   []func() error
	// ended is closed when Stint has ended, for whatever reason, which is failure.
	ended   chan struct{}
	failure error
}

// openSandbox starts a sandbox, and returns when all of it works. What it started
// before an error is stopped.
func openSandbox(ctx context.Context, opts sandboxOptions) (_ *sandbox, err error) {
	s := &sandbox{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	again, err := s.prepare(ctx)
	if err != nil {
		return nil, err
	}
	if s.log, err = os.OpenFile(filepath.Join(s.Dir, sandboxLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.log.Close)
	s.ownLog()
	if !again {
		if err := s.write(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.startWarehouse(ctx, again); err != nil {
		return nil, err
	}
	if err := s.startIdP(ctx); err != nil {
		return nil, err
	}
	if err := s.startStint(ctx); err != nil {
		return nil, err
	}
	return s, s.startServers(ctx)
}

// Close stops everything, last first.
func (s *sandbox) Close() error {
	var err error
	for i := len(s.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, s.closers[i]())
	}
	s.closers = nil
	return err
}

// ownLog has the library of the sample identity provider, which logs to slog's
// default and nowhere else, log where Stint does.
func (s *sandbox) ownLog() {
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelWarn})))
	s.closers = append(s.closers, func() error { slog.SetDefault(before); return nil })
}

// startWarehouse starts PostgreSQL, and the first time puts into it what belongs
// there: what `stint postgres install` does, and the sample tables.
func (s *sandbox) startWarehouse(ctx context.Context, again bool) (err error) {
	if s.Warehouse == 0 {
		return nil
	}
	s.warehouse, err = sample.StartWarehouse(ctx, sample.WarehouseConfig{
		Bin: s.postgresBin, Dir: filepath.Join(s.Dir, sandboxWarehouse), Port: s.Warehouse, Password: s.AdminPassword,
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, s.warehouse.Close)
	if again {
		return nil
	}
	if err := s.warehouse.Run(ctx, "postgres", "CREATE DATABASE warehouse"); err != nil {
		return err
	}
	password := randomSecret()
	if err := postgres.Install(ctx, s.warehouse.DSN("warehouse"), postgres.Roles{}, password); err != nil {
		return fmt.Errorf("install in the warehouse: %w", err)
	}
	tables, err := sandboxFiles.ReadFile("sandbox/warehouse.sql")
	if err != nil {
		return err
	}
	if err := s.warehouse.Run(ctx, "warehouse", string(tables)); err != nil {
		return err
	}
	return withSecrets(s.bare(), func(secrets vault.Store) error {
		_, err := secrets.Write(ctx, warehouseSecret, vault.Fields{"password": password}, 0)
		return err
	})
}

func (s *sandbox) startIdP(ctx context.Context) error {
	l, err := net.Listen("tcp", s.idpAddress)
	if err != nil {
		return err
	}
	s.idp, err = sample.StartIdP(ctx, sample.IdPConfig{Listener: l, Audience: s.Stint, Log: slog.Default()})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, s.idp.Close)
	return nil
}

// startStint runs the server as `stint serve` does.
func (s *sandbox) startStint(ctx context.Context) (err error) {
	if s.cfg, err = config.Load(s.Config); err != nil {
		return err
	}
	// Its context is its own: it is stopped in its turn, after those who ask it.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ready := make(chan *server, 1)
	s.ended = make(chan struct{})
	go func() {
		defer close(s.ended)
		s.failure = serve(running, s.cfg, s.log, func(srv *server, _, _ string) { ready <- srv })
	}()
	s.closers = append(s.closers, func() error { stop(); <-s.ended; return s.failure })
	select {
	case s.server = <-ready:
		return nil
	case <-s.ended:
		return errors.New("the server could not be started") // why is said when it is closed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// startServers starts those who ask Stint.
func (s *sandbox) startServers(ctx context.Context) error {
	l, err := net.Listen("tcp", s.apiAddress)
	if err != nil {
		return err
	}
	s.api, err = sample.StartAPI(ctx, sample.APIConfig{
		Listener: l, Stint: s.as("orders-api", s.APISecret, "API"), Log: slog.Default(),
		Orders: []sample.Order{{ID: 1, Item: "green tea", Quantity: 12}, {ID: 2, Item: "coffee", Quantity: 4}},
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, s.api.Close)
	if l, err = net.Listen("tcp", s.mcpAddress); err != nil {
		return err
	}
	cfg := sample.MCPConfig{Listener: l, Stint: s.as("orders-mcp", s.MCPSecret, "MCP server"), API: s.API, Log: slog.Default()}
	if s.Warehouse != 0 {
		cfg.Database = &sample.Database{Resource: "postgres://warehouse/sales.orders", Query: warehouseReport}
	}
	if s.mcp, err = sample.StartMCP(ctx, cfg); err != nil {
		return err
	}
	s.closers = append(s.closers, s.mcp.Close)
	return nil
}

// as is how a client asks Stint.
func (s *sandbox) as(id string, password secret.String, who string) sample.StintConfig {
	return sample.StintConfig{Issuer: s.Stint, ClientID: id, Secret: password, Server: who, Trace: s.opts.Trace}
}

// user returns somebody who can sign in.
func (s *sandbox) user(name string) sample.User {
	for _, u := range s.idp.Users() {
		if u.Name == name {
			return u
		}
	}
	panic("sandbox: no user " + name) // written in code
}

// bare is as much of the configuration as is needed to open the secrets.
func (s *sandbox) bare() *config.Config {
	sealed := sealedIn(s.Dir)
	c := &config.Config{Secrets: vault.Config{Kind: vault.KindFile, File: &sealed}}
	c.Listen.Socket = s.socket()
	return c
}

func (s *sandbox) socket() string { return filepath.Join(s.Dir, "data", "stint.sock") }

// checkPorts reports which of the ports are taken.
func (s *sandbox) checkPorts() error {
	var taken []string
	for _, address := range []string{s.StintAddress, s.idpAddress, s.mcpAddress, s.apiAddress, s.OpsAddress} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			taken = append(taken, address)
			continue
		}
		_ = l.Close()
	}
	if len(taken) > 0 {
		return fmt.Errorf("somebody listens already at %s; choose other ports with --port", strings.Join(taken, ", "))
	}
	return nil
}

// freePorts returns loopback ports that nobody listens on now.
func freePorts(n int) (ports []int, err error) {
	var held []io.Closer
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		held = append(held, l)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// removeAll removes a folder that a server may still be leaving.
func removeAll(dir string) (err error) {
	for range 10 {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Host
}
