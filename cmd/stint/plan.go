package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/outbound"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/internal/vault"
	"github.com/stint-dev/stint/providers"
	"github.com/stint-dev/stint/scopes"
)

// plan is what the configuration says, read and checked, before anything is
// opened: all that `stint explain` and `stint check` need.
type plan struct {
	cfg      *config.Config
	secrets  vault.Store
	registry *broker.Registry
	policy   *scopes.Policy
	// resources are those of the mappings, also of such as cannot be used.
	resources map[string]bool
	// ring signs what providers assert; nil where there is no server.
	ring *token.Ring
}

// openPlan opens the secrets, which providers may need, and makes a plan.
func openPlan(ctx context.Context, cfg *config.Config, deps vault.Deps) (*plan, error) {
	secrets, engine, err := vault.Open(inFolder(cfg), deps)
	if err != nil {
		return nil, err
	}
	p := &plan{cfg: cfg, secrets: secrets}
	pd := providers.Deps{Deps: p.upstreamDeps(vault.Resolver{Store: secrets}.Resolve, deps)}
	if engine != nil { // an interface that holds a nil pointer is not nil
		pd.Engine, pd.Signer = engine, engine
	}
	if err := p.fill(ctx, pd); err != nil {
		return nil, errors.Join(err, secrets.Close())
	}
	return p, nil
}

// newPlan checks everything that can be checked without opening anything. The
// error joins all that is wrong, as far as it can be told by itself. If it is of
// the policy alone, there is a plan beside it, without one.
func newPlan(ctx context.Context, cfg *config.Config, deps providers.Deps) (*plan, error) {
	p := &plan{cfg: cfg}
	err := p.fill(ctx, deps)
	if p.resources == nil {
		return nil, err
	}
	return p, err
}

func (p *plan) fill(ctx context.Context, deps providers.Deps) error {
	cfg := p.cfg
	upstreams, wrong := openProviders(ctx, cfg, deps)
	var issuers []*broker.Issuer
	for _, i := range cfg.Issuers {
		issuers = append(issuers, &i.Policy)
	}
	var err error
	clients := slices.Clone(cfg.Clients)
	wrong = append(wrong, cfg.LinkAt(linking(upstreams)))
	clients = append(clients, cfg.SignInClients()...)
	p.registry, err = broker.NewRegistry(cfg.Issuer, clients, cfg.Agents, issuers, upstreams)
	wrong = append(wrong, err)
	_, err = p.tokenConfig()
	wrong = append(wrong, err)
	_, err = p.fetcher()
	wrong = append(wrong, err, p.certificate())
	mappings, err := cfg.LoadMappings()
	wrong = append(wrong, err)
	// Mappings that are held against half of what there is would seem wrong.
	if err = errors.Join(wrong...); err != nil {
		return err
	}
	p.resources = make(map[string]bool, len(mappings))
	for _, m := range mappings {
		p.resources[m.Resource.Value] = true
	}
	p.policy, err = scopes.Compile(mappings, p.world())
	return err
}

// world is what mappings may name.
func (p *plan) world() scopes.World {
	w := p.registry.World()
	w.Claims = make(map[string][]string, len(p.cfg.Issuers))
	for _, i := range p.cfg.Issuers {
		w.Claims[i.Policy.Issuer] = i.Tokens.Claims
	}
	return w
}

func openProviders(ctx context.Context, cfg *config.Config, deps providers.Deps) (map[string]broker.Provider, []error) {
	var wrong []error
	upstreams := make(map[string]broker.Provider, len(cfg.Providers))
	for _, in := range cfg.Providers {
		provider, err := providers.Open(ctx, in.Kind, in.Name, in.Settings.Decode, deps)
		if err != nil && !errors.As(err, new(strictyaml.Errors)) {
			err = in.Settings.Errorf("provider %s: %v", in.Name, err)
		}
		if err == nil {
			// Nothing that is shorter can be had of it, so that nothing ever would be.
			if least, most := provider.Describe().MinLifetime, cfg.Lifetimes.Credential.Duration; least > most {
				err = in.Settings.Errorf("provider %s: it lends for at least %s, and lifetimes.credential is %s", in.Name, least, most)
			}
		}
		if err != nil {
			wrong = append(wrong, err)
		}
		upstreams[in.Name] = provider
	}
	return upstreams, wrong
}

// linking are the names of the providers at which people link accounts of their own.
func linking(upstreams map[string]broker.Provider) (names []string) {
	for name, p := range upstreams {
		if p != nil && p.Describe().Link != nil { // one that could not be opened is nil
			names = append(names, name)
		}
	}
	return names
}

// certificate reads the certificate as the server will.
func (p *plan) certificate() error {
	t := p.cfg.Listen.TLS
	if t == nil {
		return nil
	}
	if _, err := tls.LoadX509KeyPair(t.Certificate, t.Key); err != nil {
		return p.cfg.Errorf("listen: tls: certificate: %v", err)
	}
	return nil
}

// compile reads the mappings and builds the policy.
func (p *plan) compile() (*scopes.Policy, error) {
	mappings, err := p.cfg.LoadMappings()
	if err != nil {
		return nil, err
	}
	return scopes.Compile(mappings, p.world())
}

// tokenConfig reads the keys that files hold.
func (p *plan) tokenConfig() (token.Config, error) {
	cfg := token.Config{
		Self: p.cfg.Issuer, Skew: p.cfg.Revocation.ClockSkew.Duration, CacheSize: 2048, Now: time.Now,
		IssuerKeys: make(map[string][]byte), Clients: make(map[string]token.ClientKeys), Certificates: make(map[string]token.ClientKeys),
	}
	var wrong scopes.Problems
	failf := func(at scopes.Pos, format string, args ...any) {
		wrong = append(wrong, scopes.Problem{Pos: at, Text: fmt.Sprintf(format, args...)})
	}
	for _, i := range p.cfg.Issuers {
		cfg.Issuers = append(cfg.Issuers, i.Tokens)
		if i.Tokens.JWKSFile == "" {
			continue
		}
		keys, err := os.ReadFile(p.cfg.Path(i.Tokens.JWKSFile))
		if err == nil {
			_, err = token.ParseKeys(keys, i.Tokens.Algorithms, true)
		}
		if err != nil {
			failf(i.Policy.Pos, "issuer %s: jwks_file: %v", i.Policy.Issuer, brief(err, i.Tokens.JWKSFile))
		}
		cfg.IssuerKeys[i.Tokens.ID] = keys
	}
	for _, c := range p.cfg.Clients {
		if c.ByCertificate() && p.cfg.Listen.TLS == nil {
			failf(c.Pos, "client %s: %s needs listen.tls: where a proxy speaks TLS, nobody proves the key of a certificate to this server, and what a header says of one is not believed", c.ID, c.Auth.Method)
		}
		if t := p.cfg.Listen.TLS; c.ByCertificate() && t != nil && t.MinVersion == "1.2" {
			failf(c.Pos, "client %s: %s is for TLS 1.3 alone, and listen.tls.min_version is 1.2", c.ID, c.Auth.Method)
		}
		keys, err := p.clientKeys(c)
		if err != nil {
			failf(c.Pos, "client %s: its keys: %v", c.ID, brief(err, cmp.Or(c.Auth.JWKSFile, c.Auth.CAFile)))
		}
		switch c.Auth.Method {
		case "private_key_jwt":
			cfg.Clients[c.ID] = keys
		case "spiffe_jwt":
			cfg.Clients[c.Auth.SPIFFEID] = keys
		default:
			if c.ByCertificate() {
				cfg.Certificates[c.ID] = keys
			}
		}
	}
	if len(wrong) > 0 {
		return cfg, wrong
	}
	return cfg, nil
}

// keyKinds are what the keys of clients are read as, by method. Others have none.
var keyKinds = map[string]token.KeyKind{
	"private_key_jwt": token.Keys, "self_signed_tls_client_auth": token.Certificates, "tls_client_auth": token.X509Bundle,
	"spiffe_jwt": token.JWTBundle, "spiffe_x509": token.X509Bundle,
}

// clientKeys returns the keys of a client that authenticates by assertion or
// certificate.
func (p *plan) clientKeys(c *broker.Client) (keys token.ClientKeys, err error) {
	kind, ok := keyKinds[c.Auth.Method]
	if !ok {
		return keys, nil
	}
	keys.Kind = kind
	ca := c.Auth.CAFile
	if t := p.cfg.Listen.TLS; ca == "" && c.Auth.Method == "tls_client_auth" && t != nil {
		ca = t.ClientCA
	}
	switch {
	case c.Auth.JWKSURI != "":
		keys.JWKSURI = c.Auth.JWKSURI
		return keys, nil
	case ca != "":
		if keys.Authorities, err = os.ReadFile(p.cfg.Path(ca)); err == nil {
			_, err = token.ParseAuthorities(keys.Authorities)
		}
		return keys, err
	case c.Auth.JWKSFile != "":
		keys.JWKS, err = os.ReadFile(p.cfg.Path(c.Auth.JWKSFile))
	case c.Auth.JWKS != nil:
		keys.JWKS, err = json.Marshal(c.Auth.JWKS.Value)
	default:
		return keys, errors.New("no authority is named: ca_file, or listen.tls.client_ca")
	}
	if err == nil {
		_, err = keys.Parse()
	}
	return keys, err
}

// askClients makes the listener ask for certificates, if a client authenticates by one.
// Where all of them are signed by authorities that are known, callers are told which, so
// that no browser asks its user for one.
func (p *plan) askClients(keys map[string]token.ClientKeys) {
	if len(keys) == 0 {
		return
	}
	t, hints := p.cfg.Listen.TLS, x509.NewCertPool()
	t.AskClients = true
	for _, k := range keys {
		all, err := token.ParseAuthorities(k.Authorities)
		if err != nil { // self-signed, or fetched
			return
		}
		for _, c := range all {
			hints.AddCert(c)
		}
	}
	t.Hints = hints
}

// brief is an error about a file that has been named as the configuration names
// it.
func brief(err error, file string) error {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return fmt.Errorf("%s: %w", file, e.Err)
	}
	return err
}

// fetcher returns the client that fetches keys: of the hosts that are configured,
// wherever they are, and of public addresses that their documents point to.
func (p *plan) fetcher() (*http.Client, error) {
	policy := outbound.Policy{Public: true}
	hosts := func(urls ...string) {
		for _, text := range urls {
			if u, err := url.Parse(text); err == nil && text != "" {
				policy.Hosts = append(policy.Hosts, u.Hostname())
			}
		}
	}
	for _, i := range p.cfg.Issuers {
		hosts(i.Policy.Issuer, i.Tokens.JWKSURI)
	}
	for _, c := range p.cfg.Clients {
		hosts(c.Auth.JWKSURI)
	}
	for _, text := range p.cfg.Network.Allow {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, p.cfg.Errorf("network: allow: %v", err)
		}
		policy.Networks = append(policy.Networks, prefix)
	}
	if p.cfg.Network.CA != "" {
		pem, err := os.ReadFile(p.cfg.Path(p.cfg.Network.CA))
		if err != nil {
			return nil, p.cfg.Errorf("network: ca: %v", brief(err, p.cfg.Network.CA))
		}
		if policy.Roots, err = trusting(pem); err != nil {
			return nil, p.cfg.Errorf("network: ca: %s holds no certificate", p.cfg.Network.CA)
		}
	}
	return outbound.New(policy), nil
}

// trusting returns the certificates of PEM; nil for none, which are the system's.
func trusting(pem []byte) (*x509.CertPool, error) {
	if pem == nil {
		return nil, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("there is no certificate in it")
	}
	return roots, nil
}

// detailsTypes are the types of authorization details that exist.
func (p *plan) detailsTypes() []string {
	types := []string{broker.ToolCall}
	for _, provider := range p.registry.Providers {
		if t := provider.Describe().Details; !slices.Contains(types, t) {
			types = append(types, t)
		}
	}
	slices.Sort(types)
	return types
}
