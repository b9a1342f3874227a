package sample

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/internal/secret"
)

// oldestPostgres is the major version from which on Stint vends logins.
const oldestPostgres = 15

// ErrNoPostgres says that there is no PostgreSQL on this machine that would do.
var ErrNoPostgres = fmt.Errorf("PostgreSQL %d or newer is not installed", oldestPostgres)

// FindPostgres returns the folder of the newest PostgreSQL's programs, and its
// version: on the PATH, or where Debian keeps them. The error is ErrNoPostgres.
func FindPostgres(ctx context.Context) (bin, version string, err error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			found = append(found, path)
		}
	}
	best := oldestPostgres - 1
	for _, path := range slices.Compact(found) {
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), "initdb")); err != nil {
			continue
		}
		said, err := exec.CommandContext(ctx, path, "--version").Output()
		text := regexp.MustCompile(`\b([0-9]+)(\.[0-9]+)*`).FindString(string(said))
		major, _, _ := strings.Cut(text, ".")
		if n, _ := strconv.Atoi(major); err == nil && n > best {
			bin, version, best = filepath.Dir(path), text, n
		}
	}
	if bin == "" {
		return "", "", ErrNoPostgres
	}
	return bin, version, nil
}

// WarehouseConfig says where the sample database is.
type WarehouseConfig struct {
	// Bin is the folder of PostgreSQL's programs.
	Bin string
	// Dir is where everything is kept: it is made, and used again if it is there.
	// PostgreSQL does not run as root: for root it runs as postgres, or as nobody, and
	// that user has to reach the folder.
	Dir string
	// Port is where it listens, on loopback; 0: a free one.
	Port int
	// Password is the superuser's, from the first start on.
	Password secret.String
}

// Warehouse is a PostgreSQL of our own, that nobody else uses.
type Warehouse struct {
	cfg   WarehouseConfig
	owner *syscall.Credential
	cmd   *exec.Cmd
	log   *os.File
	done  chan struct{}
	err   error
}

const warehouseHost = "127.0.0.1"

// StartWarehouse starts a PostgreSQL and returns when it takes connections. It
// ends when it is closed, or with this process.
func StartWarehouse(ctx context.Context, cfg WarehouseConfig) (_ *Warehouse, err error) {
	w := &Warehouse{cfg: cfg, done: make(chan struct{})}
	if w.cfg.Port == 0 {
		l, err := net.Listen("tcp", warehouseHost+":0")
		if err != nil {
			return nil, fmt.Errorf("postgresql: %w", err)
		}
		w.cfg.Port = l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
	}
	if err := w.own(); err != nil {
		return nil, fmt.Errorf("postgresql: %w", err)
	}
	if err := w.prepare(ctx); err != nil {
		return nil, fmt.Errorf("postgresql: %w", err)
	}
	if err := w.start(ctx); err != nil {
		return nil, fmt.Errorf("postgresql: %w", err)
	}
	return w, nil
}

// DSN is a connection URI of the superuser for a database.
func (w *Warehouse) DSN(database string) secret.String {
	u := url.URL{
		Scheme: "postgresql", User: url.UserPassword("postgres", w.cfg.Password.Reveal()),
		Host: net.JoinHostPort(warehouseHost, strconv.Itoa(w.cfg.Port)), Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return secret.New(u.String())
}

// Run runs a script in a database, as the superuser.
func (w *Warehouse) Run(ctx context.Context, database, script string) error {
	c, err := pgx.Connect(ctx, w.DSN(database).Reveal())
	if err != nil {
		return fmt.Errorf("postgresql: %w", err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	if _, err := c.PgConn().Exec(ctx, script).ReadAll(); err != nil {
		return fmt.Errorf("postgresql: run script: %w", err)
	}
	return nil
}

// own makes the folder, and gives it to whom the server runs as.
func (w *Warehouse) own() error {
	if err := os.Mkdir(w.cfg.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if os.Getuid() != 0 {
		return nil
	}
	uid, gid := 65534, 65534
	if u, err := user.Lookup("postgres"); err == nil {
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
	}
	w.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(w.cfg.Dir, uid, gid)
}

// command is one of PostgreSQL's programs. Signals from the terminal do not reach
// it: it ends when it is told to, or, where the system can do that, with us.
func (w *Warehouse) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(w.cfg.Bin, name), args...)
	cmd.Dir = w.cfg.Dir
	cmd.Env = []string{"PATH=" + w.cfg.Bin + ":/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: w.owner, Setpgid: true}
	endWithUs(cmd.SysProcAttr)
	return cmd
}

// write puts a file into the folder, for the server alone.
func (w *Warehouse) write(name, text string) error {
	path := filepath.Join(w.cfg.Dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	if w.owner == nil {
		return nil
	}
	return os.Chown(path, int(w.owner.Uid), int(w.owner.Gid))
}

// prepare makes the data folder, unless there is one, and the configuration.
func (w *Warehouse) prepare(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(w.cfg.Dir, "data", "PG_VERSION")); errors.Is(err, fs.ErrNotExist) {
		if err := w.write("password", w.cfg.Password.Reveal()); err != nil {
			return err
		}
		init := w.command(ctx, "initdb", "-D", "data", "-U", "postgres", "--pwfile=password", "--auth=scram-sha-256",
			"--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions")
		out, err := init.CombinedOutput()
		if err := os.Remove(filepath.Join(w.cfg.Dir, "password")); err != nil {
			return err
		}
		if err != nil {
			return fmt.Errorf("initdb: %w: %s", err, strings.TrimSpace(string(out)))
		}
	}
	conf := fmt.Sprintf("listen_addresses = '%s'\nport = %d\nunix_socket_directories = ''\nshared_buffers = '16MB'\nmax_connections = 40\ntimezone = 'UTC'\n",
		warehouseHost, w.cfg.Port)
	if err := w.write("data/postgresql.conf", conf); err != nil {
		return err
	}
	return w.write("data/pg_hba.conf", "host all all "+warehouseHost+"/32 scram-sha-256\n")
}

func (w *Warehouse) start(ctx context.Context) (err error) {
	if w.log, err = os.OpenFile(filepath.Join(w.cfg.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	// The context of the start does not end the server: Close does, in good order.
	w.cmd = w.command(context.WithoutCancel(ctx), "postgres", "-D", "data")
	w.cmd.Stdout, w.cmd.Stderr = w.log, w.log
	if err := w.cmd.Start(); err != nil {
		_ = w.log.Close()
		return err
	}
	go func() {
		w.err = w.cmd.Wait()
		close(w.done)
	}()
	ready, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	for {
		try, cancel := context.WithTimeout(ready, time.Second) // whoever has the port may say nothing
		c, err := pgx.Connect(try, w.DSN("postgres").Reveal())
		if err == nil {
			_ = c.Close(try)
			cancel()
			return nil
		}
		cancel()
		select {
		case <-w.done:
			_ = w.log.Close()
			return fmt.Errorf("the server ended: %w; see %s", w.err, w.log.Name())
		case <-ready.Done():
			return errors.Join(fmt.Errorf("the server is not ready; see %s: %w", w.log.Name(), err), w.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Close stops the server, in good order and without waiting for its clients. It
// may be called more than once.
func (w *Warehouse) Close() error {
	_ = w.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-w.done:
	case <-time.After(patience):
		_ = w.cmd.Process.Kill()
		<-w.done
	}
	_ = w.log.Close()
	return w.err
}
