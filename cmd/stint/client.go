package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/vault"
)

// newClientInput is what the command line says of a client.
type newClientInput struct {
	method, resource string
	targets, auth    []string
	self             bool
}

// clientMethods are the ways for a client to authenticate.
var clientMethods = []string{
	"client_secret_basic", "client_secret_post", "private_key_jwt", "tls_client_auth", "self_signed_tls_client_auth", "kubernetes", "spiffe_x509", "spiffe_jwt",
}

func newClient(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "client", Short: "Make entries for clients", Args: cobra.NoArgs}
	var in newClientInput
	add := &cobra.Command{
		Use: "add ID", Short: "Make a client's secret and its entry for the configuration",
		Long: `Makes a secret of 256 random bits and prints it, once, with the entry that belongs under
clients: in the configuration. The entry holds a keyed hash: whoever reads it cannot
authenticate. The entry's ceiling is read access; raise it where more is needed.

For the other methods nothing is made: the client keeps its key, or gets what it shows of
its platform. --auth says what it is known by, and where its public keys are, as the
configuration calls it; ID.jwks.json where keys are needed and none are named.

With -o json, entry is the whole entry, as the configuration takes it. An id that is there
already, and targets that are nothing yet, are warned of.`,
		Example: `  stint clients add reports-mcp --resource https://mcp.example/reports --target https://api.example/notes
  stint clients add nightly --target https://api.example/notes --client-credentials
  stint clients add gateway --target https://api.example/notes --method private_key_jwt -o json | jq .entry
  stint clients add batch --target https://api.example/notes --method tls_client_auth --auth subject_dn=CN=batch,O=Acme --auth ca_file=ca.pem
  stint clients add pod --target https://api.example/notes --method kubernetes --auth issuer=https://cluster.example \
    --auth service_account=system:serviceaccount:acme:reports`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			made, err := makeClient(c.Context(), cfg, args[0], in)
			if err != nil {
				return err
			}
			return g.print(c, made.output(), made.text)
		},
	}
	f := add.Flags()
	f.StringVar(&in.method, "method", "client_secret_basic", "how it authenticates: "+strings.Join(clientMethods, ", "))
	f.StringArrayVar(&in.auth, "auth", nil, "what it is known by: a setting of auth as `NAME=VALUE`; repeatable")
	f.StringVar(&in.resource, "resource", "", "the `URI` of the resource that the client is itself")
	f.StringSliceVar(&in.targets, "target", nil, "a resource or provider that it may ask for; repeatable")
	f.BoolVar(&in.self, "client-credentials", false, "let it act for itself as well")
	_ = add.RegisterFlagCompletionFunc("method", cobra.FixedCompletions(clientMethods, cobra.ShellCompDirectiveNoFileComp))
	_ = add.RegisterFlagCompletionFunc("target", g.completed(targetsFor))
	add.ValidArgsFunction = cobra.NoFileCompletions
	c.AddCommand(add)
	return c
}

// makeClient makes a client's entry, and a secret if it has one. The errors are of the
// command line, or those of newSecret.
func makeClient(ctx context.Context, cfg *config.Config, id string, in newClientInput) (*madeClient, error) {
	if !slices.Contains(clientMethods, in.method) {
		return nil, usage("--method is one of %s, not %q", strings.Join(clientMethods, ", "), in.method)
	}
	made := &madeClient{Entry: clientEntry{
		ID: id, Auth: authEntry{Method: in.method}, GrantTypes: []string{broker.TokenExchange}, Resource: in.resource,
		Targets: append([]string{}, in.targets...), Ceiling: ceilingEntry{Access: "read", Scopes: "*", Vend: "*"},
	}}
	e := &made.Entry
	if in.self {
		e.GrantTypes = append(e.GrantTypes, broker.ClientCredentials)
	}
	if err := e.Auth.set(id, in.auth); err != nil {
		return nil, err
	}
	if strings.HasPrefix(in.method, "client_secret_") {
		var hash string
		var err error
		if made.Secret, hash, err = newSecret(ctx, cfg); err != nil {
			return nil, err
		}
		e.Auth.SecretHashes = []string{hash}
	}
	if err := e.check(); err != nil {
		return nil, usage("%v", err)
	}
	made.Warnings = e.warnings(cfg)
	return made, nil
}

// newSecret makes a client's secret, and its hash: at the server that runs here, or by
// the secrets themselves if none does. Errors: an exitError if either refuses.
func newSecret(ctx context.Context, cfg *config.Config) (made secret.String, hash string, err error) {
	l, err := dialLocal(cfg)
	if err == nil {
		var got struct{ Secret, Hash string }
		err = l.call(ctx, http.MethodPost, "/admin/v1/client-secrets", nil, &got)
		return secret.New(got.Secret), got.Hash, err
	}
	if !errors.Is(err, errNotRunning) {
		return made, "", err
	}
	err = withSecrets(cfg, func(secrets vault.Store) (err error) {
		made, hash, err = makeSecret(ctx, secrets)
		return err
	})
	return made, hash, err
}

// makeSecret makes a client's secret, and its hash under the key in the store.
func makeSecret(ctx context.Context, secrets vault.Store) (secret.String, string, error) {
	key, err := vault.Key(ctx, secrets, vault.PathClientSecrets)
	if err != nil {
		return secret.String{}, "", err
	}
	made, hash := broker.NewClientSecret([]byte(key.Reveal()))
	return made, hash, nil
}

// madeClient is what was made for a client.
type madeClient struct {
	Secret   secret.String // empty where the method has none
	Entry    clientEntry
	Warnings []string
}

// clientEntry is a client's entry, as the configuration takes it.
type clientEntry struct {
	ID         string       `json:"id"`
	Auth       authEntry    `json:"auth"`
	GrantTypes []string     `json:"grant_types"`
	Resource   string       `json:"resource,omitempty"`
	Targets    []string     `json:"targets"`
	Ceiling    ceilingEntry `json:"ceiling"`
}

type authEntry struct {
	Method       string   `json:"method"`
	SecretHashes []string `json:"secret_hashes,omitempty"`
	JWKSFile     string   `json:"jwks_file,omitempty"`
	JWKSURI      string   `json:"jwks_uri,omitempty"`
	CAFile       string   `json:"ca_file,omitempty"`
	SubjectDN    string   `json:"subject_dn,omitempty"`
	SANDNS       string   `json:"san_dns,omitempty"`
	SANURI       string   `json:"san_uri,omitempty"`
	SANIP        string   `json:"san_ip,omitempty"`
	SANEmail     string   `json:"san_email,omitempty"`
	Issuer       string   `json:"issuer,omitempty"`
	Account      string   `json:"service_account,omitempty"`
	SPIFFEID     string   `json:"spiffe_id,omitempty"`
}

// setting is a text in a client's authentication, as the configuration calls it.
type setting struct {
	name  string
	value *string
}

func (a *authEntry) settings() []setting {
	return []setting{
		{"jwks_file", &a.JWKSFile}, {"jwks_uri", &a.JWKSURI}, {"ca_file", &a.CAFile}, {"subject_dn", &a.SubjectDN}, {"san_dns", &a.SANDNS},
		{"san_uri", &a.SANURI}, {"san_ip", &a.SANIP}, {"san_email", &a.SANEmail}, {"issuer", &a.Issuer}, {"service_account", &a.Account}, {"spiffe_id", &a.SPIFFEID},
	}
}

// set takes settings of the command line, and names a file for keys where the method
// needs some and none are named.
func (a *authEntry) set(id string, given []string) error {
	all := a.settings()
	for _, text := range given {
		name, value, _ := strings.Cut(text, "=")
		at := slices.IndexFunc(all, func(s setting) bool { return s.name == name })
		if at < 0 || value == "" || *all[at].value != "" {
			return usage("--auth is NAME=VALUE, each once, not %q", text)
		}
		*all[at].value = value
	}
	if _, keyed := keyKinds[a.Method]; keyed && a.Method != "tls_client_auth" && a.JWKSURI == "" && a.CAFile == "" && a.JWKSFile == "" {
		a.JWKSFile = id + ".jwks.json"
	}
	return nil
}

type ceilingEntry struct {
	Access string `json:"access"`
	Scopes string `json:"scopes"`
	Vend   string `json:"vend"`
}

// check holds an entry against what the configuration takes.
func (e *clientEntry) check() error {
	c := broker.Client{ID: e.ID, GrantTypes: e.GrantTypes, Resource: e.Resource, Auth: broker.ClientAuth{
		Method: e.Auth.Method, SecretHashes: e.Auth.SecretHashes, JWKSFile: e.Auth.JWKSFile, JWKSURI: e.Auth.JWKSURI, CAFile: e.Auth.CAFile,
		SubjectDN: e.Auth.SubjectDN, SANDNS: e.Auth.SANDNS, SANURI: e.Auth.SANURI, SANIP: e.Auth.SANIP, SANEmail: e.Auth.SANEmail,
		Issuer: e.Auth.Issuer, ServiceAccount: e.Auth.Account, SPIFFEID: e.Auth.SPIFFEID,
	}}
	return c.Check()
}

// warnings says what of an entry the configuration has already, or not yet.
func (e *clientEntry) warnings(cfg *config.Config) (out []string) {
	warn := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	same := func(c *broker.Client) bool { return c.ID == e.ID }
	switch there := slices.ContainsFunc(cfg.Clients, same); {
	case there && len(e.Auth.SecretHashes) > 0:
		warn("there is a client %s already, and no second entry may be: to replace its secret, add this hash to its secret_hashes", e.ID)
	case there:
		warn("there is a client %s already, and no second entry may be", e.ID)
	case slices.ContainsFunc(cfg.Agents, func(a *broker.Agent) bool { return a.Name == e.ID }):
		warn("there is an agent %s already, and a client may not be called like one", e.ID)
	}
	if len(e.Targets) == 0 {
		warn("without --target it can be given nothing")
		return out
	}
	targets, err := targetsOf(cfg)
	if err != nil {
		warn("the mappings are not in order, so that the targets were not looked up: stint check says why")
		return out
	}
	for _, t := range e.Targets {
		if !slices.Contains(targets, t) {
			warn("%s is no resource of a mapping and no provider; there are %s", t, strings.Join(targets, ", "))
		}
	}
	return out
}

// targetsOf are the resources and providers that a client can ask for.
func targetsOf(cfg *config.Config) (out []string, err error) {
	mappings, err := config.LoadMappings(cfg.Mappings)
	for _, m := range mappings {
		out = append(out, m.Resource.Value)
	}
	for _, p := range cfg.Providers {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return out, err
}

// clientOutput is what is printed as JSON, with the secret in clear.
type clientOutput struct {
	Secret   string      `json:"secret,omitempty"`
	Entry    clientEntry `json:"entry"`
	Warnings []string    `json:"warnings,omitempty"`
}

func (m *madeClient) output() clientOutput {
	return clientOutput{m.Secret.Reveal(), m.Entry, m.Warnings}
}

func (m *madeClient) text(p *printer) {
	e := &m.Entry
	for _, w := range m.Warnings {
		p.line("# Warning: %s.", w)
	}
	if !m.Secret.Empty() {
		p.line("# The secret of %s, shown this once: %s", e.ID, m.Secret.Reveal())
	}
	p.line("# Put this under clients: in the configuration, and restart the server.")
	p.line("  - id: %s", e.ID)
	p.line("    auth: %s", e.Auth.flow())
	p.line("    grant_types: %s", flow(e.GrantTypes))
	if e.Resource != "" {
		p.line("    resource: %s", e.Resource)
	}
	p.line("    targets: %s", flow(e.Targets))
	p.line(`    ceiling: {access: %s, scopes: %q, vend: %q}`, e.Ceiling.Access, e.Ceiling.Scopes, e.Ceiling.Vend)
}

// flow writes it as YAML on one line.
func (a *authEntry) flow() string {
	parts := []string{"method: " + a.Method}
	if len(a.SecretHashes) > 0 {
		parts = append(parts, "secret_hashes: "+flow(a.SecretHashes))
	}
	for _, s := range a.settings() {
		if *s.value != "" {
			parts = append(parts, fmt.Sprintf("%s: %q", s.name, *s.value))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// flow writes a list as YAML on one line.
func flow(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(out, ", ") + "]"
}
