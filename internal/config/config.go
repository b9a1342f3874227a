// Package config reads what an administrator wrote: stint.yaml, the mappings
// beside it, and what both refer to. It is the only reader of files and
// environment at start-up.
//
// Every package owns its part of the configuration; here the parts are put
// together, read strictly, checked against each other, and every mistake is
// reported with file, line and column.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/internal/vault"
	"github.com/stint-dev/stint/scopes"
)

// Config is stint.yaml.
type Config struct {
	// Version is the version of this format: 1.
	Version int `yaml:"version" check:"required,min=1,max=1"`
	// Issuer is the URL by which Stint is known: the claim iss of its tokens, and
	// the beginning of its endpoints. No slash at its end.
	Issuer string `yaml:"issuer" check:"required,https"`
	// Replica names this process in the audit record and among its replicas.
	// Absent: the host's name.
	Replica string `yaml:"replica,omitempty"`
	// Data is the folder for what has to last: the audit journal, and on one
	// machine the store and the sealed secrets.
	Data string `yaml:"data" check:"required"`
	// Listen says where Stint listens.
	Listen api.Listen `yaml:"listen" check:"required"`
	// Store says where state is kept: leases, one-time ids and revocations.
	Store store.Config `yaml:"store" check:"required"`
	// Secrets says where secrets are kept: signing keys, sealing keys, and what the
	// configuration refers to as vault:PATH#FIELD.
	Secrets vault.Config `yaml:"secrets" check:"required"`
	// Mappings is the folder of the mappings: one file a resource, NAME.yaml, and
	// beside it, if it needs one, NAME.cedar. Relative to this file.
	Mappings string `yaml:"mappings" check:"required"`
	// Issuers are those whose tokens are trusted.
	Issuers []*Issuer `yaml:"issuers"`
	// Clients are the MCP servers, agents and gateways that may ask.
	Clients []*broker.Client `yaml:"clients"`
	// Agents are software that subjects use and that does not ask by itself.
	Agents []*broker.Agent `yaml:"agents,omitempty"`
	// Providers are the upstreams that credentials are vended of.
	Providers []*Provider `yaml:"providers,omitempty"`
	// Lifetimes bound what is issued.
	Lifetimes Lifetimes `yaml:"lifetimes,omitempty"`
	// Revocation bounds how late a replica may learn of a revocation.
	Revocation Revocation `yaml:"revocation,omitempty"`
	// Keys says how our signing keys live.
	Keys Keys `yaml:"keys,omitempty"`
	// Limits bound what strangers send.
	Limits api.Limits `yaml:"limits,omitempty"`
	// Network says which networks may be asked besides those of configured hosts.
	Network Network `yaml:"network,omitempty"`
	// Telemetry exports traces. Off unless configured.
	Telemetry *Telemetry `yaml:"telemetry,omitempty"`
	// Log says what is logged.
	Log Log `yaml:"log,omitempty"`

	path string
}

// Issuer is a trusted issuer: how its tokens are verified, and what they count
// for.
type Issuer struct {
	Policy broker.Issuer `yaml:",inline"`
	Tokens token.Issuer  `yaml:",inline"`
}

// Provider is an upstream.
type Provider struct {
	scopes.Pos `yaml:"-"`
	// Name is what mappings, targets and resource URIs call it.
	Name string `yaml:"name" check:"required"`
	// Kind is one of the kinds that `stint providers` lists.
	Kind string `yaml:"kind" check:"required"`
	// Settings are the kind's own.
	Settings *strictyaml.Part `yaml:"settings" check:"required"`
}

var providerName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Check says what is wrong with a provider's entry.
func (p *Provider) Check() error {
	if !providerName.MatchString(p.Name) {
		return fmt.Errorf("name: %q is not 1 to 63 lower-case letters, digits and hyphens", p.Name)
	}
	return nil
}

// Lifetimes bound what is issued.
type Lifetimes struct {
	// Token is the longest that a token of ours may live. Absent: 5m.
	Token scopes.Duration `yaml:"token,omitempty"`
	// Credential is the longest that a vended credential may live. Absent: 15m.
	Credential scopes.Duration `yaml:"credential,omitempty"`
}

// Revocation bounds how late a replica may learn of a revocation.
type Revocation struct {
	// MaxStaleness is how old the last confirmed heartbeat of a replica may be for
	// it to grant anything. Absent: 2s.
	MaxStaleness scopes.Duration `yaml:"max_staleness,omitempty"`
	// MaxClockOffset is how far its clock may be from the store's. Absent: 1s.
	MaxClockOffset scopes.Duration `yaml:"max_clock_offset,omitempty"`
	// ClockSkew is how far the clocks of issuers and clients may be off. Absent: 30s.
	ClockSkew scopes.Duration `yaml:"clock_skew,omitempty"`
}

// Keys says how our signing keys live.
type Keys struct {
	// Algorithm is that of new keys. Absent: ES256.
	Algorithm string `yaml:"algorithm,omitempty" check:"oneof=ES256|EdDSA"`
	// Overlap is how long a new key is published before it signs: as long as
	// anybody caches our keys. Absent: 10m.
	Overlap scopes.Duration `yaml:"overlap,omitempty"`
}

// Network says which networks may be asked.
type Network struct {
	// Allow lists networks, such as 10.1.0.0/16, that the documents of issuers may
	// point to. The hosts that the configuration names may be anywhere; others
	// must be at public addresses.
	Allow []string `yaml:"allow,omitempty"`
	// CA is a file of certificates in PEM that issuers' are verified by. Absent: the
	// system's.
	CA string `yaml:"ca,omitempty"`
}

// Telemetry exports traces by OTLP over HTTP.
type Telemetry struct {
	// Endpoint is the URL of the collector, for instance https://otel:4318.
	Endpoint string `yaml:"endpoint" check:"required,url"`
	// Ratio is the part of traces that is kept, from 0 to 1. Absent: 1. A caller's
	// decision comes first.
	Ratio *float64 `yaml:"ratio,omitempty"`
	// Headers are sent with every export; their values are references.
	Headers map[string]string `yaml:"headers,omitempty"`
}

// Check says what is wrong with the telemetry.
func (t *Telemetry) Check() error {
	if t.Ratio != nil && (*t.Ratio < 0 || *t.Ratio > 1) {
		return errors.New("ratio: from 0 to 1")
	}
	return nil
}

// Log says what is logged.
type Log struct {
	// Level is debug, info, warn or error. Absent: info. Requests are logged at
	// debug; the audit record has them in any case.
	Level string `yaml:"level,omitempty" check:"oneof=debug|info|warn|error"`
	// Format is text or json. Absent: json.
	Format string `yaml:"format,omitempty" check:"oneof=text|json"`
}

// Load reads a configuration and fills in what is absent.
func Load(path string) (*Config, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	c := &Config{path: path}
	if err := strictyaml.Decode(path, data, c); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	c.defaults()
	return c, nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, errors.Unwrap(err))
	}
	if info.Size() > strictyaml.MaxSize {
		return nil, fmt.Errorf("%s: more than %d bytes", path, strictyaml.MaxSize)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// check holds the parts against each other.
func (c *Config) check() error {
	if strings.HasSuffix(c.Issuer, "/") || strings.ContainsAny(c.Issuer, "?#") {
		return fmt.Errorf("%s: issuer: no slash at its end, no query, no fragment (RFC 8414 section 2)", c.path)
	}
	if len(c.Issuers) == 0 && !slices.ContainsFunc(c.Clients, func(cl *broker.Client) bool { return slices.Contains(cl.GrantTypes, broker.ClientCredentials) }) {
		return fmt.Errorf("%s: issuers: there are none, and no client acts for itself: nobody could be served", c.path)
	}
	seen := make(map[string]bool)
	for _, p := range c.Providers {
		if seen[p.Name] {
			return fmt.Errorf("%s: provider %s is there twice", p.Pos, p.Name)
		}
		seen[p.Name] = true
	}
	return nil
}

func (c *Config) defaults() {
	or := func(d *scopes.Duration, v time.Duration) {
		if d.Duration == 0 {
			d.Duration = v
		}
	}
	or(&c.Lifetimes.Token, 5*time.Minute)
	or(&c.Lifetimes.Credential, 15*time.Minute)
	or(&c.Revocation.MaxStaleness, 2*time.Second)
	or(&c.Revocation.MaxClockOffset, time.Second)
	or(&c.Revocation.ClockSkew, 30*time.Second)
	or(&c.Keys.Overlap, 10*time.Minute)
	text := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	text(&c.Keys.Algorithm, "ES256")
	text(&c.Log.Level, "info")
	text(&c.Log.Format, "json")
	text(&c.Listen.Ops, "127.0.0.1:9464")
	c.Data = c.Path(c.Data)
	text(&c.Listen.Socket, filepath.Join(c.Data, "stint.sock"))
	if c.Replica == "" {
		c.Replica, _ = os.Hostname()
		text(&c.Replica, "stint")
	}
	c.Mappings = c.Path(c.Mappings)
	for _, i := range c.Issuers {
		i.Tokens.ID = i.Policy.Issuer
	}
}

// Path returns a path of the configuration: relative ones begin at its folder.
func (c *Config) Path(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(filepath.Dir(c.path), p)
}

// Journal returns the folder of the audit journal.
func (c *Config) Journal() string { return filepath.Join(c.Data, "journal") }

// LoadMappings reads all mappings of a folder.
func LoadMappings(dir string) ([]*scopes.Mapping, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read mappings: %w", err)
	}
	var out []*scopes.Mapping
	var mistakes strictyaml.Errors
	cedar := make(map[string]bool)
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".cedar"); ok {
			cedar[name] = true
		}
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".yaml")
		if !ok || strings.HasPrefix(name, ".") || e.IsDir() {
			continue
		}
		m, err := loadMapping(dir, name, cedar[name])
		delete(cedar, name)
		var some strictyaml.Errors
		switch {
		case errors.As(err, &some):
			mistakes = append(mistakes, some...)
		case err != nil:
			return nil, err
		default:
			out = append(out, m)
		}
	}
	for name := range cedar {
		mistakes = append(mistakes, strictyaml.Error{File: filepath.Join(dir, name+".cedar"), Text: "there is no mapping of this name beside it, so that it would do nothing"})
	}
	if len(mistakes) > 0 {
		return nil, mistakes
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("mappings: there is no NAME.yaml in %s, so that nothing could be granted", dir)
	}
	return out, nil
}

func loadMapping(dir, name string, withCedar bool) (*scopes.Mapping, error) {
	path := filepath.Join(dir, name+".yaml")
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	m := &scopes.Mapping{}
	m.Pos.SetPos(path, 1, 1)
	if err := strictyaml.Decode(path, data, m); err != nil {
		return nil, err
	}
	m.Content = [][]byte{data}
	if withCedar {
		m.CedarFile = filepath.Join(dir, name+".cedar")
		if m.Cedar, err = readFile(m.CedarFile); err != nil {
			return nil, err
		}
		m.Content = append(m.Content, m.Cedar)
	}
	return m, nil
}
