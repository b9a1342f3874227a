package postgres

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/upstream"
)

// Config is what the configuration says of one database.
type Config struct {
	// Host is where the broker reaches the server.
	Host string `yaml:"host" check:"required"`
	// Port of the server. Absent: 5432.
	Port int `yaml:"port,omitempty" check:"min=1,max=65535"`
	// Database is the one that `stint postgres install` was run in.
	Database string `yaml:"database" check:"required"`
	// User is the broker's login role. Absent: stint_broker.
	User string `yaml:"user,omitempty"`
	// Password is a reference to the secret.
	Password string `yaml:"password" check:"required,reference"`
	// CA is a reference to the certificates, as PEM, that sign the server's.
	// Absent: the system's.
	CA string `yaml:"ca,omitempty" check:"reference"`
	// InsecurePlaintext connects without TLS to a server that is not on loopback.
	// For networks that are encrypted by other means, and for nothing else.
	InsecurePlaintext bool `yaml:"insecure_plaintext,omitempty"`
	// Public is what clients are told, where it differs.
	Public Public `yaml:"public,omitempty"`
	// MaxLifetime is the longest that a login role lives. Absent: 1h. The database
	// has a limit of its own, in stint.setting.
	MaxLifetime upstream.Duration `yaml:"max_lifetime,omitempty"`
	// Connections is how many at a time a login role may have. Absent: 4.
	Connections int `yaml:"connections,omitempty" check:"min=1,max=1000"`
	// Rows are the row policies that grants may name, beside "*", which is all rows.
	Rows map[string]RowPolicy `yaml:"rows,omitempty"`
	// Entitlement says where the subject's own rights are found: subject_roles, in
	// the role that the table stint.subject_role names for it; or none, where the
	// database does not know the subject.
	Entitlement string `yaml:"entitlement" check:"required,oneof=none|subject_roles"`
	// Tolerate lists what is open to PUBLIC in this database and is not held against
	// a grant: tables that everybody may read, as schema.table, and functions that
	// run as their owner, as schema.name().
	Tolerate []string `yaml:"tolerate,omitempty"`
	// Timeout bounds each call to the database. Absent: 10s.
	Timeout upstream.Duration `yaml:"timeout,omitempty"`
	// IdleGroups is how long a group role that no lease uses is kept for the next.
	// Absent: 10m.
	IdleGroups upstream.Duration `yaml:"idle_groups,omitempty"`
}

// Public is a database as clients reach it.
type Public struct {
	Host     string `yaml:"host,omitempty"`
	Port     int    `yaml:"port,omitempty" check:"min=1,max=65535"`
	Database string `yaml:"database,omitempty"`
	// SSLMode is libpq's sslmode. Absent: verify-full, and prefer where the broker
	// itself connects without TLS.
	SSLMode string `yaml:"sslmode,omitempty" check:"oneof=disable|allow|prefer|require|verify-ca|verify-full"`
}

// RowPolicy is a name for some of a table's rows, which row-level security
// policies of the database give a meaning: they ask stint.rows.
type RowPolicy struct {
	// Shows lists the policies that never show a row which this one does not.
	Shows []string `yaml:"shows,omitempty"`
	// Entitled says that it shows a subject no rows but its own: whoever may use
	// the table at all, even under row-level security, is entitled to them.
	Entitled bool `yaml:"entitled,omitempty"`
}

// Check says what is wrong with the settings.
func (c *Config) Check() error {
	c.fill()
	if c.MaxLifetime.Duration < time.Second || c.Timeout.Duration < 100*time.Millisecond {
		return errors.New("max_lifetime is at least 1s, timeout at least 100ms")
	}
	if c.InsecurePlaintext && c.CA != "" {
		return errors.New("ca: means nothing without TLS")
	}
	for _, name := range []string{c.Database, c.User} {
		if err := checkName(name); err != nil {
			return err
		}
	}
	for name, r := range c.Rows {
		if !rowName.MatchString(name) {
			return fmt.Errorf("rows: %q is not lower-case letters, digits and underscores", name)
		}
		for _, s := range r.Shows {
			if _, ok := c.Rows[s]; !ok {
				return fmt.Errorf("rows: %s: there is no row policy %q", name, s)
			}
		}
	}
	for _, t := range c.Tolerate {
		if _, err := parseObject(trimCall(t)); err != nil {
			return fmt.Errorf("tolerate: %w", err)
		}
	}
	return nil
}

// fill sets what is absent.
func (c *Config) fill() {
	fill(&c.Port, 5432)
	fill(&c.User, "stint_broker")
	fill(&c.MaxLifetime.Duration, time.Hour)
	fill(&c.Connections, 4)
	fill(&c.Timeout.Duration, 10*time.Second)
	fill(&c.IdleGroups.Duration, 10*time.Minute)
	fill(&c.Public.Host, c.Host)
	fill(&c.Public.Port, c.Port)
	fill(&c.Public.Database, c.Database)
	mode := "verify-full"
	if c.plaintext() {
		mode = "prefer"
	}
	fill(&c.Public.SSLMode, mode)
}

func fill[T comparable](field *T, absent T) {
	var zero T
	if *field == zero {
		*field = absent
	}
}

// plaintext reports whether the broker connects without TLS: where that is
// spelled, and on loopback unless a CA is named.
func (c *Config) plaintext() bool {
	ip := net.ParseIP(c.Host)
	loopback := c.Host == "localhost" || ip != nil && ip.IsLoopback()
	return c.InsecurePlaintext || loopback && c.CA == ""
}

// trimCall takes the parentheses off a function.
func trimCall(name string) string { return strings.TrimSuffix(name, "()") }

// entitled returns the row policies that show subjects only their own rows.
func (c *Config) entitled() (names []string) {
	for name, r := range c.Rows {
		if r.Entitled {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// url returns a connection URI of libpq's.
func (p Public) url(user, password string) string {
	u := url.URL{
		Scheme: "postgresql", User: url.UserPassword(user, password),
		Host: net.JoinHostPort(p.Host, strconv.Itoa(p.Port)), Path: "/" + p.Database,
		RawQuery: url.Values{"sslmode": {p.SSLMode}}.Encode(),
	}
	return u.String()
}
