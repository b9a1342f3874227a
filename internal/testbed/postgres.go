package testbed

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresOptions says what kind of PostgreSQL a test needs. The zero value is
// one over plain TCP that syncs nothing to disk.
type PostgresOptions struct {
	// TLS makes it take nothing but TLS.
	TLS bool
	// Sync has it sync every commit, as in production.
	Sync bool
	// Settings are added to those of the server.
	Settings map[string]string
}

// PostgresServer is a running PostgreSQL. Its superuser is postgres, and every
// login is by SCRAM-SHA-256.
type PostgresServer struct {
	// Host and Port stay the same over restarts.
	Host string
	Port int
	// Password is the superuser's.
	Password string
	// CA is the certificate, as PEM, that signed the server's. Empty without TLS.
	CA string
	// Process is the present process; Restart replaces it.
	Process *Process

	t         testing.TB
	opts      PostgresOptions
	bin, dir  string
	owner     *syscall.Credential
	databases atomic.Int32
}

// Postgres starts a PostgreSQL 15 or newer, or skips the test if there is none.
func Postgres(t testing.TB) *PostgresServer {
	t.Helper()
	return StartPostgres(t, PostgresOptions{})
}

// StartPostgres is [Postgres] with options.
func StartPostgres(t testing.TB, opts PostgresOptions) *PostgresServer {
	t.Helper()
	s := &PostgresServer{t: t, opts: opts, Host: "127.0.0.1", Port: FreePort(t), Password: rand.Text(), bin: postgresBin(t)}
	s.own()
	s.prepare()
	s.start()
	return s
}

// postgresBin finds the folder of the server's programs: Debian keeps them off
// the PATH. STINT_POSTGRES names it, to test with another version.
func postgresBin(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("STINT_POSTGRES"); dir != "" {
		return dir
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	found = slices.DeleteFunc(found, func(path string) bool { return version(path) < 15 })
	if len(found) > 0 {
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) }))
	}
	return filepath.Dir(Find(t, "apt-get install postgresql", "postgres"))
}

// own makes the server's directory. PostgreSQL does not run as root, and whoever
// it runs as has to reach its files: the test's own directory is root's alone.
func (s *PostgresServer) own() {
	s.t.Helper()
	dir, err := os.MkdirTemp("", "stint-postgres-")
	if err != nil {
		s.t.Fatal(err)
	}
	s.dir = dir
	s.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if os.Getuid() != 0 {
		return
	}
	uid, gid := 65534, 65534
	if u, err := user.Lookup("postgres"); err == nil {
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		s.t.Fatal(err)
	}
	s.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func (s *PostgresServer) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + s.bin + ":/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	return cmd
}

// write puts a file into the server's directory, for its eyes only.
func (s *PostgresServer) write(name, text string) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if s.owner != nil {
		if err := os.Chown(path, int(s.owner.Uid), int(s.owner.Gid)); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *PostgresServer) prepare() {
	s.t.Helper()
	s.write("password", s.Password)
	init := s.command("initdb", "-D", "data", "-U", "postgres", "--pwfile=password", "--auth=scram-sha-256",
		"--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions")
	if out, err := init.CombinedOutput(); err != nil {
		s.t.Fatalf("initdb: %v\n%s", err, out)
	}
	set := map[string]string{
		"listen_addresses": s.Host, "port": strconv.Itoa(s.Port), "unix_socket_directories": "",
		"max_connections": "100", "shared_buffers": "32MB", "timezone": "UTC", "log_timezone": "UTC",
	}
	if !s.opts.Sync {
		// Still, what was committed has left the process: killing it loses nothing.
		set["fsync"], set["full_page_writes"] = "off", "off"
	}
	hba := "host all all 127.0.0.1/32 scram-sha-256\n"
	if s.opts.TLS {
		s.certify()
		set["ssl"], set["ssl_cert_file"], set["ssl_key_file"] = "on", filepath.Join(s.dir, "server.pem"), filepath.Join(s.dir, "server.key")
		hba = "hostssl all all 127.0.0.1/32 scram-sha-256\n"
	}
	for name, value := range s.opts.Settings {
		set[name] = value
	}
	var conf strings.Builder
	for name, value := range set {
		fmt.Fprintf(&conf, "%s = '%s'\n", name, strings.ReplaceAll(value, "'", "''"))
	}
	s.write("data/postgresql.conf", conf.String())
	s.write("data/pg_hba.conf", hba)
}

func (s *PostgresServer) start() {
	s.t.Helper()
	s.Process = Start(s.t, s.command("postgres", "-D", "data"), func() error {
		c, err := s.connect("postgres")
		if err != nil {
			return err
		}
		return c.Close(context.Background())
	})
	p := s.Process
	s.t.Cleanup(func() { stopPostgres(p) })
}

// stopPostgres ends a server without waiting for its clients: SIGTERM would.
func stopPostgres(p *Process) {
	_ = p.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-p.Done():
	case <-time.After(5 * time.Second):
		p.Kill()
	}
}

// Restart stops the server, breaking every connection, and starts it again.
func (s *PostgresServer) Restart() {
	s.t.Helper()
	stopPostgres(s.Process)
	s.start()
}

// DSN returns a connection URI of the superuser for a database.
func (s *PostgresServer) DSN(database string) string {
	return s.UserDSN("postgres", s.Password, database)
}

// UserDSN returns a connection URI of any user for a database.
func (s *PostgresServer) UserDSN(user, password, database string) string {
	u := url.URL{
		Scheme: "postgresql", User: url.UserPassword(user, password), Host: net.JoinHostPort(s.Host, strconv.Itoa(s.Port)),
		Path: "/" + database, RawQuery: "sslmode=disable",
	}
	if s.opts.TLS {
		u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {filepath.Join(s.dir, "ca.pem")}}.Encode()
	}
	return u.String()
}

func (s *PostgresServer) connect(database string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return pgx.Connect(ctx, s.DSN(database))
}

// Database creates an empty database and returns its name.
func (s *PostgresServer) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	s.Exec(t, "postgres", "CREATE DATABASE "+name)
	return name
}

// Exec runs a script as the superuser.
func (s *PostgresServer) Exec(t testing.TB, database, script string) {
	t.Helper()
	c, err := s.connect(database)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	if _, err := c.PgConn().Exec(context.Background(), script).ReadAll(); err != nil {
		t.Fatalf("%v\nin: %.2000s", err, script)
	}
}

// Query runs a query as the superuser and returns its rows, each with its
// columns as text and a bar between them, NULL as nothing.
func (s *PostgresServer) Query(t testing.TB, database, query string, args ...any) []string {
	t.Helper()
	c, err := s.connect(database)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	rows, err := c.Query(context.Background(), query, args...)
	if err != nil {
		t.Fatalf("%v\nin: %.2000s", err, query)
	}
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		values, err := row.Values()
		texts := make([]string, len(values))
		for i, v := range values {
			if v != nil {
				texts[i] = fmt.Sprint(v)
			}
		}
		return strings.Join(texts, "|"), err
	})
	if err != nil {
		t.Fatalf("%v\nin: %.2000s", err, query)
	}
	return lines
}

// certify makes an authority and the server's certificate.
func (s *PostgresServer) certify() {
	s.t.Helper()
	check := func(err error) {
		if err != nil {
			s.t.Helper()
			s.t.Fatal(err)
		}
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		check(err)
		return k
	}
	caKey, serverKey := key(), key()
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "testbed"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "postgres"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.ParseIP(s.Host)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	check(err)
	serverDER, err := x509.CreateCertificate(rand.Reader, server, ca, serverKey.Public(), caKey)
	check(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(serverKey)
	check(err)
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	s.CA = text("CERTIFICATE", caDER)
	s.write("ca.pem", s.CA)
	s.write("server.pem", text("CERTIFICATE", serverDER))
	s.write("server.key", text("PRIVATE KEY", keyDER))
}
