package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stint-dev/stint/internal/secret"
)

// Standing is what there is of Stint in a database.
type Standing struct {
	Database string `json:"database"`
	Server   string `json:"server"` // the version of PostgreSQL
	// Version is that of what is installed; 0: nothing is.
	Version int `json:"version"`
	// Since is when the tables were brought to this version.
	Since   time.Time `json:"since,omitzero"`
	Ceiling string    `json:"ceiling"`
	Broker  string    `json:"broker"`
	// Missing lists those of the two roles that do not exist.
	Missing []string `json:"missing,omitempty"`
	// MaxLifetime, in seconds, and MaxConnections are the limits in stint.setting.
	MaxLifetime    float64 `json:"max_lifetime,omitzero"`
	MaxConnections int     `json:"max_connections,omitzero"`
	// Lends is what the ceiling holds with grant option.
	Lends []Lent `json:"lends"`
	// Groups is how many group roles there are, and Open how many leases; Leases
	// are the latest of these.
	Groups int         `json:"groups"`
	Open   int         `json:"open"`
	Leases []OpenLease `json:"leases"`
	// Warnings say what a DBA should look at, each in a sentence.
	Warnings []string `json:"warnings,omitempty"`
}

// Lent is what the ceiling may hand out of one table or view.
type Lent struct {
	// Object is its name, as grants write it.
	Object string `json:"object"`
	// Privileges are such as SELECT, or SELECT (id, name) where it is not the whole
	// table.
	Privileges []string `json:"privileges"`
}

// OpenLease is a lease that has not been ended. Whose it is is not shown.
type OpenLease struct {
	Lease    string    `json:"lease"`
	Group    string    `json:"group"`
	Since    time.Time `json:"since"`
	Until    time.Time `json:"until,omitzero"`
	Sessions int       `json:"sessions"`
	// State is open, expired or revoked: the last two are about to be dropped.
	State string `json:"state"`
}

// shownLeases is how many leases a [Standing] holds at most.
const shownLeases = 100

// Look says what there is of Stint in a database, as whoever dsn says; r are the
// names that the roles have where nothing is installed. It changes nothing. Once
// Stint is installed it takes a superuser or a member of the ceiling.
func Look(ctx context.Context, dsn secret.String, r Roles) (*Standing, error) {
	r, err := r.fill()
	if err != nil {
		return nil, err
	}
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	cfg.RuntimeParams["search_path"] = "pg_catalog, pg_temp" // no functions of strangers
	c, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	s := &Standing{Ceiling: r.Ceiling, Broker: r.Broker, Lends: []Lent{}, Leases: []OpenLease{}}
	installed, err := s.identify(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("look at the database: %w", err)
	}
	steps := []func(context.Context, *pgx.Conn) error{s.roles}
	if installed {
		steps = append(steps, s.settings, s.lends, s.leases, s.warnings)
	}
	for _, step := range steps {
		if err := step(ctx, c); err != nil {
			return nil, fmt.Errorf("look at the database: %w", explained(err, s.Ceiling))
		}
	}
	return s, nil
}

// explained adds to a refusal who would not have been refused.
func explained(err error, ceiling string) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" {
		return fmt.Errorf("%w: be a superuser, or a member of %s", err, ceiling)
	}
	return err
}

// identify finds out whether there is a schema of ours, and whose it is.
func (s *Standing) identify(ctx context.Context, c *pgx.Conn) (installed bool, err error) {
	var owner, caller string
	err = c.QueryRow(ctx, `
		SELECT current_database(), current_setting('server_version'), coalesce((
				SELECT r.rolname FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
				WHERE n.nspname = 'stint' AND p.proname = 'version'), '')::text, coalesce((
				SELECT max(r.rolname) FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace,
					pg_catalog.aclexplode(p.proacl) a JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
				WHERE n.nspname = 'stint' AND p.proname = 'mint' AND a.grantee <> p.proowner), '')::text`,
	).Scan(&s.Database, &s.Server, &owner, &caller)
	if owner != "" {
		s.Ceiling = owner
	}
	if caller != "" {
		s.Broker = caller
	}
	return owner != "", err
}

// roles looks for the two roles.
func (s *Standing) roles(ctx context.Context, c *pgx.Conn) error {
	rows, err := c.Query(ctx, `SELECT n FROM unnest($1::text[]) n WHERE n NOT IN (SELECT rolname FROM pg_catalog.pg_roles)`, []string{s.Ceiling, s.Broker})
	if err != nil {
		return err
	}
	s.Missing, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return err
}

func (s *Standing) settings(ctx context.Context, c *pgx.Conn) error {
	return c.QueryRow(ctx, `
		SELECT stint.version(), (SELECT max(at) FROM stint.migration), extract(epoch FROM max_ttl)::double precision, max_connections,
			(SELECT count(*) FROM stint.grp)::integer, (SELECT count(*) FROM stint.lease WHERE dropped_at IS NULL)::integer
		FROM stint.setting`).Scan(&s.Version, &s.Since, &s.MaxLifetime, &s.MaxConnections, &s.Groups, &s.Open)
}

// lends reads what the ceiling may hand out, and warns of what it may not for
// want of the schema.
func (s *Standing) lends(ctx context.Context, c *pgx.Conn) error {
	rows, err := c.Query(ctx, `
		WITH seen AS MATERIALIZED (
			SELECT c.oid, n.nspname, c.relname, has_schema_privilege($1, n.oid, 'USAGE WITH GRANT OPTION') AS usable
			FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('information_schema', 'stint') AND n.nspname !~ '^pg_'
		), held AS (
			SELECT s.*, p.n, p.privilege, has_table_privilege($1, s.oid, p.privilege || ' WITH GRANT OPTION') AS whole, (
				SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
				WHERE p.privilege <> 'DELETE' AND a.attrelid = s.oid AND a.attnum > 0 AND NOT a.attisdropped
					AND CASE WHEN p.privilege <> 'DELETE' THEN has_column_privilege($1, s.oid, a.attnum, p.privilege || ' WITH GRANT OPTION') END) AS columns
			FROM seen s, unnest($2::text[]) WITH ORDINALITY AS p (privilege, n)
		)
		SELECT nspname::text, relname::text, usable, array_agg(privilege || CASE WHEN whole THEN '' ELSE ' (' || columns || ')' END ORDER BY n)
		FROM held WHERE whole OR columns IS NOT NULL GROUP BY nspname, relname, usable ORDER BY nspname, relname`, s.Ceiling, privileges)
	if err != nil {
		return err
	}
	var o object
	var usable bool
	var list []string
	closed := ""
	_, err = pgx.ForEachRow(rows, []any{&o.schema, &o.table, &usable, &list}, func() error {
		switch {
		case usable:
			s.Lends = append(s.Lends, Lent{o.String(), list})
		case closed != o.schema:
			closed = o.schema
			s.Warnings = append(s.Warnings, fmt.Sprintf("the ceiling has tables of schema %s and cannot pass them on: GRANT USAGE ON SCHEMA %[1]s TO %s WITH GRANT OPTION",
				spell(o.schema), spell(s.Ceiling)))
		}
		list = nil
		return nil
	})
	return err
}

func (s *Standing) leases(ctx context.Context, c *pgx.Conn) error {
	rows, err := c.Query(ctx, `
		SELECT l.id, coalesce(l.grp, '')::text, l.made_at, coalesce(l.not_after, l.made_at),
			(SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.usesysid = l.role)::integer,
			CASE WHEN l.revoked_at IS NOT NULL THEN 'revoked' WHEN l.not_after <= clock_timestamp() THEN 'expired' ELSE 'open' END
		FROM stint.lease l WHERE l.dropped_at IS NULL ORDER BY l.made_at DESC, l.id LIMIT $1`, shownLeases)
	if err != nil {
		return err
	}
	var l OpenLease
	_, err = pgx.ForEachRow(rows, []any{&l.Lease, &l.Group, &l.Since, &l.Until, &l.Sessions, &l.State}, func() error {
		s.Leases = append(s.Leases, l)
		return nil
	})
	return err
}

// warnings asks for what every lease would have of PUBLIC, in the words of
// stint.attest: role 0 is PUBLIC.
func (s *Standing) warnings(ctx context.Context, c *pgx.Conn) error {
	if s.Version != Version {
		s.Warnings = append(s.Warnings, fmt.Sprintf("version %d is installed, this is %d: run `stint postgres install`", s.Version, Version))
		return nil
	}
	if len(s.Lends) == 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the ceiling holds nothing with grant option, so that nothing can be granted: for example GRANT SELECT ON ... TO %s WITH GRANT OPTION", spell(s.Ceiling)))
	}
	rows, err := c.Query(ctx, `
		SELECT 'role ' || $1 || ' can do more than call the functions: it must be no superuser and have no CREATEROLE, BYPASSRLS or REPLICATION, nor be in ' || $2
		FROM pg_catalog.pg_roles r WHERE r.rolname = $1 AND (r.rolsuper OR r.rolcreaterole OR r.rolbypassrls OR r.rolreplication OR pg_has_role(r.oid, $2, 'MEMBER'))
	UNION ALL
		SELECT format('everybody may connect, the leases of other databases among them: REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC, then install again', current_database())
		WHERE has_database_privilege('public', current_database(), 'CONNECT')
	UNION ALL
		SELECT format('everybody has %s on %I.%I: mints are refused, unless the provider tolerates it', string_agg(DISTINCT e.privilege, ', '), e.schema_name, e.table_name)
		FROM stint.effective(0) e GROUP BY e.schema_name, e.table_name
	UNION ALL
		SELECT format('everybody may call %s as its owner: mints are refused, unless the provider tolerates it', p.oid::regprocedure)
		FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
		WHERE p.prosecdef AND n.nspname <> 'stint' AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype) AND has_function_privilege('public', p.oid, 'EXECUTE')
			AND (has_schema_privilege('public', n.oid, 'USAGE') OR has_schema_privilege($2, n.oid, 'USAGE'))
	UNION ALL
		SELECT format('everybody %s: mints are refused', b) FROM unnest(stint.beyond(0, '')) b`, s.Broker, s.Ceiling)
	if err != nil {
		return err
	}
	more, err := pgx.CollectRows(rows, pgx.RowTo[string])
	s.Warnings = append(s.Warnings, more...)
	return err
}

// dsnKeys are the settings that a connection string of a command line may hold:
// none is a secret, or names a file of which a part would be sent as one.
var dsnKeys = []string{
	"host", "port", "user", "dbname", "database", "service", "sslmode", "sslcert", "sslkey", "sslrootcert", "sslsni", "sslnegotiation",
	"sslcertmode", "connect_timeout", "target_session_attrs", "application_name", "options", "channel_binding", "require_auth",
	"min_protocol_version", "max_protocol_version", "krbsrvname", "krbspn",
}

// DSN joins a connection string of a command line, a URI or libpq's keywords,
// and a password. What is empty is left to the environment, as libpq has it
// (PGHOST, PGSERVICE, PGPASSWORD, the password file and so on). A password in
// the text is refused: other users of the machine could read it.
func DSN(text string, password secret.String) (secret.String, error) {
	options := pgx.ParseConfigOptions{}
	options.ConnStringAllowedKeys = dsnKeys
	if _, err := pgx.ParseConfigWithOptions(text, options); err != nil {
		if strings.Contains(err.Error(), `"password"`) {
			return secret.String{}, errors.New("a password does not stand in a connection string, where others can read it")
		}
		return secret.String{}, err
	}
	if password.Empty() {
		return secret.New(text), nil
	}
	if u, err := url.Parse(text); err == nil && (u.Scheme == "postgres" || u.Scheme == "postgresql") {
		q := u.Query()
		q.Set("password", password.Reveal())
		u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20") // to libpq a plus is a plus
		return secret.New(u.String()), nil
	}
	return secret.New(text + " password='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password.Reveal()) + "'"), nil
}
