package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stint-dev/stint/broker"
)

// poolSize is how many connections the broker itself has to one database.
const poolSize = 8

// newPool prepares the connections. The secrets are asked for anew for each one,
// so that a password can be changed without a restart.
func (p *provider) newPool() (*pgxpool.Pool, error) {
	// Every setting is spelled below: what the environment says (PGHOST,
	// PGPASSFILE and so on) is none of ours.
	cfg, err := pgxpool.ParseConfig("host=localhost port=5432 user=x dbname=x password=x sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("prepare connections: %w", err)
	}
	cc := cfg.ConnConfig
	cc.Host, cc.Port, cc.Database, cc.User = p.cfg.Host, uint16(p.cfg.Port), p.cfg.Database, p.cfg.User
	cc.Fallbacks, cc.ConnectTimeout = nil, p.cfg.Timeout.Duration
	limit := strconv.FormatInt(p.cfg.Timeout.Milliseconds(), 10)
	cc.RuntimeParams = map[string]string{
		"application_name": "stint", "search_path": "pg_catalog, pg_temp",
		"statement_timeout": limit, "lock_timeout": limit, "idle_in_transaction_session_timeout": limit,
	}
	// A caller who gives up has the server give up as well: it would else go on
	// minting for nobody.
	cc.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: time.Second}
	}
	cfg.MaxConns, cfg.MinConns = poolSize, 0
	cfg.MaxConnLifetime, cfg.MaxConnIdleTime = 30*time.Minute, 5*time.Minute
	cfg.BeforeConnect = p.authenticate
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, fmt.Errorf("prepare connections: %w", err)
	}
	return pool, nil
}

// authenticate fills in password and TLS of a new connection.
func (p *provider) authenticate(ctx context.Context, cc *pgx.ConnConfig) error {
	password, err := p.deps.Secret(ctx, p.cfg.Password)
	if err != nil {
		return fmt.Errorf("password: %w", err)
	}
	cc.Password = password.Reveal()
	if p.cfg.plaintext() {
		cc.TLSConfig = nil
		return nil
	}
	cc.TLSConfig = &tls.Config{ServerName: p.cfg.Host, MinVersion: tls.VersionTLS12}
	if p.cfg.CA == "" {
		return nil
	}
	ca, err := p.deps.Secret(ctx, p.cfg.CA)
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	cc.TLSConfig.RootCAs = x509.NewCertPool()
	if !cc.TLSConfig.RootCAs.AppendCertsFromPEM([]byte(ca.Reveal())) {
		return errors.New("ca: holds no certificate")
	}
	return nil
}

// within bounds a call.
func (p *provider) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, p.cfg.Timeout.Duration)
}

// SQLSTATEs of our own functions, with what a caller may know of each.
var ours = map[string]struct {
	code   broker.Code
	public string
}{
	"ST001": {broker.BadScope, "the database has no such table or column"},
	"ST002": {broker.BadScope, "the database does not lend this"},
	"ST003": {broker.BadScope, "the database cannot limit the rows of this"},
	"ST004": {broker.Unavailable, "the credential has been taken back"},
	"ST005": {broker.Internal, ""},
	"ST006": {broker.Unavailable, "the database cannot be used now"},
	"ST007": {broker.Unavailable, "the database cannot be used now"},
}

// fault is the error of a call to the database. What the server said goes no
// further than its SQLSTATE, unless our own functions said it: its messages
// quote data.
func fault(doing string, err error) error {
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return broker.Fail(broker.Unavailable, fmt.Errorf("%s: %w", doing, plainer(err)), "the database cannot be reached")
	}
	if o, ok := ours[pg.Code]; ok {
		return broker.Fail(o.code, fmt.Errorf("%s: %s (SQLSTATE %s)", doing, pg.Message, pg.Code), o.public)
	}
	hint := ""
	switch pg.Code {
	case "3F000", "42883", "42501":
		hint = ": `stint postgres install` has not been run in this database, or not by this version"
	}
	return broker.Fail(broker.Unavailable, fmt.Errorf("%s: SQLSTATE %s%s", doing, pg.Code, hint), "the database cannot be used now")
}

// plainer reduces an error of the connection to what went wrong, keeping what
// callers compare with.
func plainer(err error) error {
	var op *net.OpError
	for _, known := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return known
		}
	}
	if errors.As(err, &op) {
		return op
	}
	return errors.New(strings.ReplaceAll(err.Error(), "\n", " "))
}

// again reports whether a statement failed, and changed nothing, for no better
// reason than what others did at the same time: deadlock, serialisation, a lock,
// or a catalogue row that changed meanwhile (which has no SQLSTATE of its own).
func again(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "40001", "40P01", "55P03", "XX000":
		return true
	}
	return false
}

// ready reports whether the database can be used, and whether the broker's login
// is as harmless as it has to be.
func (p *provider) ready(ctx context.Context) error {
	ctx, cancel := p.within(ctx)
	defer cancel()
	var installed, server int
	var harmless bool
	err := p.pool.QueryRow(ctx, `SELECT version, server, harmless FROM stint.standing()`).Scan(&installed, &server, &harmless)
	switch {
	case err != nil:
		return fault("look at the database", err)
	case installed != Version:
		return fmt.Errorf("version %d is installed in the database, this is %d: run `stint postgres install`", installed, Version)
	case server < 150000:
		return fmt.Errorf("PostgreSQL 15 or newer is wanted, this is %d", server)
	case !harmless:
		return fmt.Errorf("role %s can do more than call the functions: it must be no superuser and have no CREATEROLE, BYPASSRLS or REPLICATION", p.cfg.User)
	}
	return nil
}
