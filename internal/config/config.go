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
	"io/fs"
	"maps"
	"net"
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
	Listen Listen `yaml:"listen" check:"required"`
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
	// Admin lets administrators in over the network. Absent: the local socket is the
	// only way.
	Admin *Admin `yaml:"admin,omitempty"`
	// Connect says how people link accounts of their own, where a provider needs theirs.
	// Absent: they sign in as administrators do.
	Connect *Connect `yaml:"connect,omitempty"`
	// Limits bound what strangers send.
	Limits api.Limits `yaml:"limits,omitempty"`
	// Network says which networks may be asked besides those of configured hosts.
	Network Network `yaml:"network,omitempty"`
	// Telemetry exports traces. Off unless configured.
	Telemetry *Telemetry `yaml:"telemetry,omitempty"`
	// Log says what is logged.
	Log Log `yaml:"log,omitempty"`

	path string
	text []byte
	// links are the providers at which people link accounts: see [Config.LinkAt].
	links []string
}

// Issuer is a trusted issuer: how its tokens are verified, and what they count
// for.
type Issuer struct {
	Policy broker.Issuer `yaml:",inline"`
	Tokens token.Issuer  `yaml:",inline"`
}

// Listen says where and how to listen.
type Listen struct {
	api.Listen
	// InsecureOps allows ops at any address: health in full and metrics in plain
	// HTTP, for whoever reaches it. It is for networks where that is only who should,
	// for instance a pod whose network policy lets in what collects metrics alone.
	// Probes need it not: /livez and /readyz are at the public address as well.
	InsecureOps bool `yaml:"insecure_ops,omitempty"`
}

// Check says what is wrong with where to listen.
func (l *Listen) Check() error {
	host, _, _ := net.SplitHostPort(l.Ops) // its form was checked
	ip := net.ParseIP(host)
	if l.Ops != "" && !l.InsecureOps && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return errors.Join(l.Listen.Check(), fmt.Errorf("ops: %s: health in full and metrics are plain HTTP, for loopback addresses; "+
			"where the network lets in nobody else, say insecure_ops: true", l.Ops))
	}
	if overlap(l.Address, l.Ops) {
		return errors.Join(l.Listen.Check(), fmt.Errorf("ops: %s: address listens there already; choose another port", l.Ops))
	}
	return l.Listen.Check()
}

// overlap reports whether two servers cannot listen at both addresses.
func overlap(a, b string) bool {
	hostA, portA, err1 := net.SplitHostPort(a)
	hostB, portB, err2 := net.SplitHostPort(b)
	if err1 != nil || err2 != nil || portA != portB || portA == "0" {
		return false
	}
	host := func(s string) net.IP {
		switch s {
		case "":
			return net.IPv6unspecified
		case "localhost":
			return net.IPv4(127, 0, 0, 1)
		}
		return net.ParseIP(s)
	}
	ipA, ipB := host(hostA), host(hostB)
	return hostA == hostB || ipA.Equal(ipB) && ipA != nil || ipA.IsUnspecified() || ipB.IsUnspecified()
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
	// Token is the longest that a token of ours may live, at most 24h. Absent: 5m.
	Token scopes.Duration `yaml:"token,omitempty" check:"min=1s,max=24h"`
	// Credential is the longest that a vended credential may live, at most 24h.
	// Absent: 15m.
	Credential scopes.Duration `yaml:"credential,omitempty" check:"min=1s,max=24h"`
}

// Revocation bounds how late a replica may learn of a revocation.
type Revocation struct {
	// MaxStaleness is how old the last confirmed heartbeat of a replica may be for
	// it to grant anything, at most 1m. Absent: 2s.
	MaxStaleness scopes.Duration `yaml:"max_staleness,omitempty" check:"min=100ms,max=1m"`
	// MaxClockOffset is how far its clock may be from the store's, at most 1m.
	// Absent: 1s.
	MaxClockOffset scopes.Duration `yaml:"max_clock_offset,omitempty" check:"min=1ms,max=1m"`
	// ClockSkew is how far the clocks of issuers and clients may be off, at most 10m.
	// Absent: 30s.
	ClockSkew scopes.Duration `yaml:"clock_skew,omitempty" check:"min=1ms,max=10m"`
}

// Keys says how our signing keys live.
type Keys struct {
	// Algorithm is that of new keys. Absent: ES256.
	Algorithm string `yaml:"algorithm,omitempty" check:"oneof=ES256|EdDSA"`
	// Overlap is how long a new key is published before it signs: as long as
	// anybody caches our keys, at most 168h. Absent: 10m.
	Overlap scopes.Duration `yaml:"overlap,omitempty" check:"min=1s,max=168h"`
}

// Network says which networks may be asked.
type Network struct {
	// Allow lists networks, such as 10.1.0.0/16, that the documents of issuers may
	// point to. The hosts that the configuration names may be anywhere; others
	// must be at public addresses.
	Allow []string `yaml:"allow,omitempty" check:"network"`
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
	// Headers are sent with every export; their values are references to secrets:
	// file:/PATH or env:NAME.
	Headers map[string]string `yaml:"headers,omitempty" check:"reference"`
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

// Load reads a configuration and fills in what is absent. The error is a
// [strictyaml.Errors] with everything that is wrong in the file.
func Load(path string) (*Config, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	c := &Config{path: path, text: data}
	if err := strictyaml.Decode(path, data, c); err != nil {
		return nil, err
	}
	c.defaults()
	return c, nil
}

// readFile reads a file of the configuration.
func readFile(path string) ([]byte, error) {
	refuse := func(text string) ([]byte, error) { return nil, strictyaml.Errors{{File: path, Text: text}} }
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse("there is no such file")
	case err != nil:
		return refuse(cause(err))
	case !info.Mode().IsRegular():
		return refuse("is no file")
	case info.Size() > strictyaml.MaxSize:
		return refuse(fmt.Sprintf("more than %d bytes", strictyaml.MaxSize))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return refuse(cause(err))
	}
	return data, nil
}

// cause is what happened to a file, without saying again to which.
func cause(err error) string {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		err = e.Err
	}
	return err.Error()
}

// The longest that tokens and sessions of others are accepted: revocations are
// remembered for as long.
const (
	maxSubjectAge = 720 * time.Hour
	maxSessionAge = 8760 * time.Hour
)

// Check holds the parts against each other.
func (c *Config) Check() error {
	var wrong []error
	failf := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if strings.HasSuffix(c.Issuer, "/") || strings.ContainsAny(c.Issuer, "?#") {
		failf("issuer: no slash at its end, no query, no fragment (RFC 8414 section 2)")
	}
	forItself := func(cl *broker.Client) bool { return slices.Contains(cl.GrantTypes, broker.ClientCredentials) }
	if len(c.Issuers) == 0 && !slices.ContainsFunc(c.Clients, forItself) {
		failf("issuers: there are none, and no client acts for itself: nobody could be served")
	}
	for i, in := range c.Issuers {
		if in.Policy.Accept != nil && len(in.Policy.Accept) == 0 {
			failf("issuers[%d].accept: it is empty, so that every token of this issuer would be refused: name access_token, id_token or jwt, or set disabled", i)
		}
		if age := in.Policy.MaxSubjectAge.Duration; age > maxSubjectAge {
			failf("issuers[%d].max_subject_age: %s is out of bounds: max is 720h", i, age)
		}
		if age := in.Policy.MaxSessionAge.Duration; age > maxSessionAge {
			failf("issuers[%d].max_session_age: %s is out of bounds: max is 8760h", i, age)
		}
	}
	seen := make(map[string]bool)
	for i, p := range c.Providers {
		if seen[p.Name] {
			failf("providers[%d]: name: there is a provider %s already", i, p.Name)
		}
		seen[p.Name] = true
	}
	if r := c.Store.Redis; r != nil && r.Username != "" && r.Password == "" {
		failf("store: redis: username: it needs a password")
	}
	wrong = append(wrong, c.checkAdmin(), c.checkConnect())
	if c.Telemetry != nil {
		for _, name := range slices.Sorted(maps.Keys(c.Telemetry.Headers)) {
			if strings.HasPrefix(c.Telemetry.Headers[name], "vault:") {
				failf("telemetry: headers: %s: this secret is needed before the store is open: name it by file:/PATH or env:NAME", name)
			}
		}
	}
	return errors.Join(wrong...)
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
	if c.Admin != nil {
		or(&c.Admin.SignIn.Lifetime, time.Hour)
	}
	if c.Connect != nil && c.Connect.SignIn != nil {
		or(&c.Connect.SignIn.Lifetime, ConnectLifetime)
	}
	text(&c.Keys.Algorithm, "ES256")
	text(&c.Log.Level, "info")
	text(&c.Log.Format, "json")
	text(&c.Listen.Ops, "127.0.0.1:9464")
	c.Data = c.Path(c.Data)
	c.Listen.Socket = c.Path(c.Listen.Socket)
	text(&c.Listen.Socket, filepath.Join(c.Data, "stint.sock"))
	if t := c.Listen.TLS; t != nil {
		t.Certificate, t.Key = c.Path(t.Certificate), c.Path(t.Key)
		if t.ClientCA != "" {
			t.ClientCA = c.Path(t.ClientCA)
		}
	}
	if c.Replica == "" {
		c.Replica, _ = os.Hostname()
		text(&c.Replica, "stint")
	}
	c.Mappings = c.Path(c.Mappings)
	for _, i := range c.Issuers {
		i.Tokens.ID = i.Policy.Issuer
	}
}

// Errorf is a mistake that showed only later. Where the text begins with the name
// of a key and a colon, as in "network: ca: ...", it stands at that key.
func (c *Config) Errorf(format string, args ...any) error {
	return strictyaml.Errorf(c.path, c.text, format, args...)
}

// Pos returns where a key stands, such as clients[0], targets[1]: that of the
// innermost one that is there. Without any it is the file.
func (c *Config) Pos(keys ...string) scopes.Pos {
	line, column := strictyaml.Find(c.path, c.text, keys...)
	return scopes.Pos{File: c.path, Line: line, Column: column}
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
