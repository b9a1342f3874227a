package store

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/secret"
)

// The kinds of store.
const (
	KindEmbedded = "embedded" // a file, for one machine
	KindRedis    = "redis"
)

// Config says where state is kept. Exactly one of the two kinds is meant: keys of
// the other are an error.
type Config struct {
	// Kind is embedded (one file, for one machine) or redis (for any number of
	// replicas).
	Kind string `yaml:"kind" check:"required,oneof=embedded|redis"`
	// File is where the embedded store keeps everything. One process at a time may
	// have it open.
	File string `yaml:"file,omitempty"`
	// Redis is how to reach Redis, version 6.2 or later.
	Redis *RedisConfig `yaml:"redis,omitempty"`
}

// Check says what is wrong with the configuration.
func (c *Config) Check() error {
	switch {
	case c.Kind == KindEmbedded && c.File == "":
		return errors.New("the embedded store needs file")
	case c.Kind == KindEmbedded && c.Redis != nil:
		return errors.New("redis: the embedded store does not use it; write kind: redis")
	case c.Kind == KindRedis && c.Redis == nil:
		return errors.New("kind: redis needs redis")
	case c.Kind == KindRedis && c.File != "":
		return errors.New("file: Redis does not use it; write kind: embedded")
	}
	return nil
}

// RedisConfig says how to reach Redis and what to ask of it. It should not evict
// (maxmemory-policy noeviction): what is evicted is a one-time id that can be used
// again, or a lease that nobody ends.
type RedisConfig struct {
	// Address is HOST:PORT of the master, or of what always leads to it.
	Address string `yaml:"address" check:"required,hostport"`
	// Username is the ACL user. deploy/redis.acl holds one with the rights that
	// suffice. Absent: default.
	Username string `yaml:"username,omitempty"`
	// Password refers to the user's password: file:, env: or vault:.
	Password string `yaml:"password,omitempty" check:"reference"`
	// DB is the number of the database.
	DB int `yaml:"db,omitempty" check:"min=0,max=1000000"`
	// TLS turns on TLS, version 1.2 at least. The server's certificate is always
	// verified.
	TLS *RedisTLS `yaml:"tls,omitempty"`
	// InsecurePlaintext allows an address that is not loopback without TLS: for
	// networks that encrypt by themselves, such as a service mesh.
	InsecurePlaintext bool `yaml:"insecure_plaintext,omitempty"`
	// ReplicasToWait is how many replicas of Redis have to confirm revocations,
	// one-time ids and heartbeats. With 0 a failover can lose what was answered
	// just before; the feed's chain shows that it did.
	ReplicasToWait int `yaml:"replicas_to_wait,omitempty" check:"min=0,max=16"`
	// WaitTimeout is how long they may take; after that the write counts as failed.
	// Absent: 500ms.
	WaitTimeout Duration `yaml:"wait_timeout,omitempty"`
	// Prefix begins every key: letters, digits and : . _ -. Absent: stint:
	Prefix string `yaml:"prefix,omitempty"`
	// DialTimeout is how long a new connection may take. Absent: 1s.
	DialTimeout Duration `yaml:"dial_timeout,omitempty"`
	// Timeout is how long one answer may take, beyond what it is told to wait, with
	// the time to get a connection. Absent: 1s.
	Timeout Duration `yaml:"timeout,omitempty"`
	// PoolSize is how many connections there are at most. Absent: 32.
	PoolSize int `yaml:"pool_size,omitempty" check:"min=2,max=10000"`
}

// RedisTLS says whom to trust and who we are. What is given refers to PEM: file:,
// env: or vault:.
type RedisTLS struct {
	// CA refers to the certificates of the authorities that are trusted. Absent:
	// those of the system.
	CA string `yaml:"ca,omitempty" check:"reference"`
	// Certificate and Key refer to our own, where Redis asks for one.
	Certificate string `yaml:"certificate,omitempty" check:"reference"`
	Key         string `yaml:"key,omitempty" check:"reference"`
	// ServerName is the name that the server's certificate must have. Absent: the
	// host of the address.
	ServerName string `yaml:"server_name,omitempty"`
}

// Check says what is wrong with the configuration.
func (t *RedisTLS) Check() error {
	if (t.Certificate == "") != (t.Key == "") {
		return errors.New("certificate and key belong together")
	}
	return nil
}

// Check says what is wrong with the configuration.
func (c *RedisConfig) Check() error {
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		return fmt.Errorf("address: %w", err)
	}
	if c.TLS == nil && !c.InsecurePlaintext && !loopback(host) {
		return fmt.Errorf("%s is reached without TLS: add tls, or write insecure_plaintext: true", c.Address)
	}
	if c.TLS != nil && c.InsecurePlaintext {
		return errors.New("insecure_plaintext: there is tls")
	}
	if c.DB < 0 || c.ReplicasToWait < 0 || c.PoolSize < 0 || c.PoolSize == 1 {
		return errors.New("db, replicas_to_wait and pool_size are not negative, and a pool has at least 2")
	}
	if strings.ContainsFunc(c.Prefix, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(":._-", r)
	}) {
		return fmt.Errorf("prefix: %q holds more than letters, digits and : . _ -", c.Prefix)
	}
	for name, d := range map[string]Duration{"wait_timeout": c.WaitTimeout, "dial_timeout": c.DialTimeout, "timeout": c.Timeout} {
		// Redis takes a wait of 0 ms for one without end.
		if d.Duration != 0 && d.Duration < 10*time.Millisecond {
			return fmt.Errorf("%s: %s is less than 10ms", name, d.Duration)
		}
	}
	return nil
}

// withDefaults returns a copy in which nothing is absent.
func (c RedisConfig) withDefaults() RedisConfig {
	c.WaitTimeout.Duration = cmp.Or(c.WaitTimeout.Duration, 500*time.Millisecond)
	c.DialTimeout.Duration = cmp.Or(c.DialTimeout.Duration, time.Second)
	c.Timeout.Duration = cmp.Or(c.Timeout.Duration, time.Second)
	c.Prefix = cmp.Or(c.Prefix, "stint:")
	c.PoolSize = cmp.Or(c.PoolSize, 32)
	return c
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// RedisSecrets is what the references of a [RedisConfig] led to.
type RedisSecrets struct {
	// Password is the user's password; empty for none.
	Password secret.String
	// CA, Certificate and Key are PEM, as [RedisTLS] has them.
	CA, Certificate string
	Key             secret.String
}

// tlsConfig returns the settings for TLS, nil without it.
func (c RedisConfig) tlsConfig(s RedisSecrets) (*tls.Config, error) {
	if c.TLS == nil {
		return nil, nil
	}
	host, _, _ := net.SplitHostPort(c.Address)
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cmp.Or(c.TLS.ServerName, host)}
	if (s.CA != "") != (c.TLS.CA != "") || (s.Certificate != "") != (c.TLS.Certificate != "") || s.Key.Empty() != (c.TLS.Key == "") {
		return nil, errors.New("tls: what is configured and what was read do not match")
	}
	if s.CA != "" {
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM([]byte(s.CA)) {
			return nil, errors.New("tls: ca holds no certificate")
		}
	}
	if s.Certificate != "" {
		pair, err := tls.X509KeyPair([]byte(s.Certificate), []byte(s.Key.Reveal()))
		if err != nil {
			return nil, fmt.Errorf("tls: certificate and key: %w", err)
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

// Duration is a span of time, written as "500ms" or "1m30s".
type Duration struct{ time.Duration }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is no duration; write for example 500ms or 2s", b)
	}
	d.Duration = v
	return nil
}
