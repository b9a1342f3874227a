package broker

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/scopes"
	"github.com/stint-dev/stint/scopes/grant"
)

// Grant types (RFC 6749 section 4.4, RFC 8693 section 2.1).
const (
	TokenExchange     = "urn:ietf:params:oauth:grant-type:token-exchange"
	ClientCredentials = "client_credentials"
)

// Client is an OAuth client: an MCP server, an agent or a gateway.
type Client struct {
	scopes.Pos `yaml:"-"`
	// ID is the client_id: letters, digits, dot, hyphen and underscore.
	ID string `yaml:"id" check:"required"`
	// Name is shown to people.
	Name string `yaml:"name,omitempty"`
	// Auth is how the client proves who it is.
	Auth ClientAuth `yaml:"auth" check:"required"`
	// GrantTypes are those that it may use: client_credentials and
	// urn:ietf:params:oauth:grant-type:token-exchange.
	GrantTypes []string `yaml:"grant_types" check:"required"`
	// Resource is the resource that this client is itself, if it is one: tokens
	// for it may be exchanged by it, and its mapping says what they are worth.
	Resource string `yaml:"resource,omitempty"`
	// Targets are the resources and providers that it may ask for.
	Targets []string `yaml:"targets"`
	// Ceiling is the most that it may ever have.
	Ceiling *scopes.Ceiling `yaml:"ceiling" check:"required"`
	// Identities are its client ids at trusted issuers, by issuer: tokens that were
	// issued to them count as issued to this client.
	Identities map[string]string `yaml:"identities,omitempty"`
	// MaxLifetime is the longest that it is given anything for. Absent: the
	// server's limits.
	MaxLifetime scopes.Duration `yaml:"max_lifetime,omitempty"`
	// AcceptLess lets it be granted less than it asks. Otherwise that is refused.
	AcceptLess bool `yaml:"accept_less,omitempty"`
	// Impersonation leaves it out of the tokens that it is given: they look as if
	// the subject itself held them. The record still names it.
	Impersonation bool `yaml:"impersonation,omitempty"`
	// BoundTokens binds the tokens that it is given to the certificate that it
	// authenticated by (RFC 8705 section 3): whoever shows one has to show that too.
	BoundTokens bool `yaml:"certificate_bound_tokens,omitempty"`
	// AcceptBound lets it exchange tokens that are for its resource and bound to the
	// certificate of whoever called it: it has checked that, as resource servers have
	// to. Otherwise who exchanges a bound token shows the certificate itself.
	AcceptBound bool `yaml:"accept_bound_tokens,omitempty"`
	// Disabled refuses everything to it.
	Disabled bool `yaml:"disabled,omitempty"`

	// Session is how long a token may live that it is given for an ID token, which says
	// who signed in and when, and not for how long (OpenID Connect Core section 2). It is
	// set for the client by which people sign in to Stint itself, and no other.
	Session time.Duration `yaml:"-"`

	targets map[string]bool // Targets, for looking up
}

// Check says what is wrong with a client's entry.
func (c *Client) Check() error {
	if err := checkID(c.ID); err != nil {
		return err
	}
	for _, g := range c.GrantTypes {
		if g != TokenExchange && g != ClientCredentials {
			return fmt.Errorf("grant_types: %q is none of %s, %s", g, ClientCredentials, TokenExchange)
		}
	}
	if c.Resource != "" {
		if err := scopes.CheckResource(c.Resource); err != nil {
			return fmt.Errorf("resource: %q %w", c.Resource, err)
		}
	}
	if err := c.Auth.check(); err != nil {
		return fmt.Errorf("auth: %w", err)
	}
	if c.BoundTokens && !c.Auth.byCertificate() {
		return fmt.Errorf("certificate_bound_tokens: %s shows no certificate that tokens could be bound to", c.Auth.Method)
	}
	if c.AcceptBound && c.Resource == "" {
		return errors.New("accept_bound_tokens: it is for clients that are a resource, whose callers show them their certificates")
	}
	return nil
}

// checkID keeps the ids of clients apart from subjects, which have a # (RFC 9068
// section 5), and from URLs.
func checkID(id string) error {
	if id == "" || len(id) > 64 || strings.ContainsFunc(id, func(r rune) bool {
		return r != '.' && r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return fmt.Errorf("id: %q is not 1 to 64 letters, digits, dots, hyphens and underscores", id)
	}
	return nil
}

// may reports whether the client may use a grant type.
func (c *Client) may(grantType string) bool { return slices.Contains(c.GrantTypes, grantType) }

// registered fails if the client may not use a grant type.
func (c *Client) registered(grantType string) error {
	if c.may(grantType) {
		return nil
	}
	return Fail(Denied, fmt.Errorf("grant type %s is not registered for the client", printable(grantType)), "this grant type is not registered for the client")
}

// Agent is software that subjects use and that is no client of ours.
type Agent struct {
	scopes.Pos `yaml:"-"`
	// Name is what rules call it.
	Name string `yaml:"name" check:"required"`
	// Identities are its client ids at trusted issuers, by issuer.
	Identities map[string]string `yaml:"identities" check:"required"`
	// Ceiling is the most that anybody may have through it.
	Ceiling *scopes.Ceiling `yaml:"ceiling" check:"required"`
	// Disabled refuses everything through it.
	Disabled bool `yaml:"disabled,omitempty"`
}

// Check says what is wrong with an agent's entry.
func (a *Agent) Check() error { return checkID(a.Name) }

// Issuer is what we believe of a trusted issuer, beyond its signatures.
type Issuer struct {
	scopes.Pos `yaml:"-"`
	// Issuer is its identifier, as in the claim iss, letter by letter.
	Issuer string `yaml:"issuer" check:"required,https"`
	// Disabled refuses its tokens at once, whatever else is configured.
	Disabled bool `yaml:"disabled,omitempty"`
	// Accept lists what its tokens may be used as: access_token, id_token, jwt, which
	// are exchanged, and client_assertion, by which clients with the method kubernetes
	// authenticate.
	Accept []string `yaml:"accept" check:"required"`
	// Audiences are those of which a token must name one; a token that names the
	// asking client's own resource, or, for an ID token, its identity at the
	// issuer, will do as well.
	Audiences []string `yaml:"audiences,omitempty"`
	// MaxSubjectAge is how old a token may be, since it was issued.
	MaxSubjectAge scopes.Duration `yaml:"max_subject_age" check:"required"`
	// MaxSessionAge is how long after signing in a subject's tokens are accepted,
	// and so how long a revocation of a session or subject is remembered. Absent:
	// 720h.
	MaxSessionAge scopes.Duration `yaml:"max_session_age,omitempty"`
	// UndatedSessions accepts tokens that have a sid and no auth_time, from issuers
	// that never say when somebody signed in. The revocation of such a session is
	// forgotten after max_session_age, also if the issuer renews it for longer.
	UndatedSessions bool `yaml:"undated_sessions,omitempty"`
	// Scopes says what the scopes of its tokens are worth: identity-only (nothing:
	// the token says who, not what), ours (they are ours, by name), or an object
	// that maps each of its scopes to scopes at resources.
	Scopes *ScopeUse `yaml:"scopes" check:"required"`
	// Groups are the groups that mappings may name, and the only ones that count in
	// its tokens: another issuer's group of the same name is another group.
	Groups []string `yaml:"groups,omitempty"`
	// AnyAgent accepts tokens that were issued to software which no agent and no
	// client names. It then has no name for rules, and no ceiling.
	AnyAgent bool `yaml:"any_agent,omitempty"`
	// Delegates are the clients that may exchange its tokens, whoever they were
	// issued to.
	Delegates []string `yaml:"delegates,omitempty"`
	// MayAct honours the claim may_act of its tokens: the party named there, and
	// no other, may act.
	MayAct bool `yaml:"may_act,omitempty"`
	// Actors lets its tokens be actor tokens: each sub with the agent that it is.
	Actors map[string]string `yaml:"actors,omitempty"`
}

// Check says what is wrong with an issuer's entry.
func (i *Issuer) Check() error {
	for _, a := range i.Accept {
		if u := Use(a); u != AccessToken && u != IDToken && u != OtherJWT && a != asAssertion {
			return fmt.Errorf("accept: %q is none of access_token, id_token, jwt, client_assertion", a)
		}
	}
	if strings.ContainsAny(i.Issuer, "#?") {
		return errors.New("issuer: an issuer has neither query nor fragment (RFC 8414 section 2)")
	}
	if i.MaxSessionAge.Duration == 0 {
		i.MaxSessionAge.Duration = 720 * time.Hour
	}
	if i.MaxSessionAge.Duration < i.MaxSubjectAge.Duration {
		return errors.New("max_session_age: shorter than max_subject_age")
	}
	return nil
}

// ScopeUse says what a foreign token's scopes are worth.
type ScopeUse struct {
	// IdentityOnly: nothing is said about what.
	IdentityOnly bool `yaml:"-"`
	// Ours: they are scopes of ours, at the resource that is asked for.
	Ours bool `yaml:"-"`
	// Mapped: for each foreign scope, the scopes that it is worth at each resource.
	Mapped map[string]map[string][]string `yaml:"mapped,omitempty" check:"required"`
}

// UnmarshalText reads the short forms.
func (s *ScopeUse) UnmarshalText(b []byte) error {
	switch string(b) {
	case "identity-only":
		s.IdentityOnly = true
	case "ours":
		s.Ours = true
	default:
		return fmt.Errorf("%q is none of identity-only, ours, or an object with mapped", b)
	}
	return nil
}

// Registry is everybody that the configuration names.
type Registry struct {
	// Self is our own issuer identifier.
	Self      string
	Clients   map[string]*Client
	Agents    map[string]*Agent
	Issuers   map[string]*Issuer
	Providers map[string]Provider

	identities map[[2]string]string // (issuer, client id there) -> name of a client or agent
	groups     map[[2]string]bool   // (issuer, a group that it may speak of)
	workloads  map[[2]string]string // (issuer, or empty for SPIFFE; subject) -> client that authenticates as it
	switched   switched
}

// NewRegistry checks the parts against each other.
func NewRegistry(self string, clients []*Client, agents []*Agent, issuers []*Issuer, providers map[string]Provider) (*Registry, error) {
	r := &Registry{
		Self: self, Clients: make(map[string]*Client), Agents: make(map[string]*Agent),
		Issuers: make(map[string]*Issuer), Providers: providers, identities: make(map[[2]string]string), groups: make(map[[2]string]bool),
		workloads: make(map[[2]string]string),
	}
	var problems scopes.Problems
	failf := func(at scopes.Pos, format string, args ...any) {
		problems = append(problems, scopes.Problem{Pos: at, Text: fmt.Sprintf(format, args...)})
	}
	for _, i := range issuers {
		if r.Issuers[i.Issuer] != nil || i.Issuer == self {
			failf(i.Pos, "issuer %s is there twice, or is our own", i.Issuer)
		}
		r.Issuers[i.Issuer] = i
		for _, g := range i.Groups {
			r.groups[[2]string{i.Issuer, g}] = true
		}
	}
	claim := func(at scopes.Pos, name string, identities map[string]string) {
		for iss, id := range identities {
			if r.Issuers[iss] == nil {
				failf(at, "identities: no configured issuer is %q", iss)
			}
			if other, taken := r.identities[[2]string{iss, id}]; taken && other != name {
				failf(at, "identities: %q at %s is %s already", id, iss, other)
			}
			r.identities[[2]string{iss, id}] = name
		}
	}
	for _, c := range clients {
		if r.Clients[c.ID] != nil {
			failf(c.Pos, "client %s is there twice", c.ID)
		}
		r.Clients[c.ID] = c
		c.targets = make(map[string]bool, len(c.Targets))
		for _, t := range c.Targets {
			c.targets[t] = true
		}
		claim(c.Pos, c.ID, c.Identities)
		r.addWorkload(c, failf)
	}
	for _, a := range agents {
		if r.Agents[a.Name] != nil || r.Clients[a.Name] != nil {
			failf(a.Pos, "agent %s: a client or agent has this name", a.Name)
		}
		r.Agents[a.Name] = a
		claim(a.Pos, a.Name, a.Identities)
	}
	for _, i := range issuers {
		r.checkNamed(i, failf)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return r, nil
}

// checkNamed fails for clients and agents that an issuer names and nobody is.
func (r *Registry) checkNamed(i *Issuer, failf func(at scopes.Pos, format string, args ...any)) {
	for _, d := range i.Delegates {
		if r.Clients[d] == nil {
			failf(i.Pos, "delegates: there is no client %q", d)
		}
	}
	for sub, a := range i.Actors {
		if r.Agents[a] == nil && r.Clients[a] == nil {
			failf(i.Pos, "actors: %s: there is no agent or client %q", sub, a)
		}
	}
}

// World is the registry as mappings see it.
func (r *Registry) World() scopes.World {
	w := scopes.World{
		Agents: make(map[string]*scopes.Ceiling), Clients: make(map[string]scopes.Client),
		Self:      r.Self,
		Providers: make(map[string]*grant.Schema),
		Checks:    make(map[string]func(grant.Grant) error),
	}
	for _, a := range r.Agents {
		w.Agents[a.Name] = a.Ceiling
	}
	for _, c := range r.Clients {
		in := scopes.Client{Resource: c.Resource, Targets: c.Targets, Ceiling: c.Ceiling, Alone: !c.may(TokenExchange)}
		if in.Alone && !c.may(ClientCredentials) { // it may ask for nothing, but has its name
			in.Resource, in.Targets = "", nil
		}
		w.Clients[c.ID] = in
	}
	for _, i := range r.Issuers {
		w.Issuers = append(w.Issuers, i.Issuer)
		w.Groups = append(w.Groups, i.Groups...)
	}
	for name, p := range r.Providers {
		d := p.Describe()
		w.Providers[name], w.Checks[name] = d.Schema, d.Check
	}
	return w
}

// claimants are the providers at which a URI names something, whatever its scheme.
func (r *Registry) claimants(uri string) (names []string) {
	for name, p := range r.Providers {
		if claims := p.Describe().Claims; claims != nil && claims(uri) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// agentOf returns the name of the software that a token was issued to or is
// held by: its outermost actor, else its client. Software that nobody
// configured has no name.
func (r *Registry) agentOf(t *Token) string {
	iss, id := t.Issuer, t.ClientID
	if len(t.Actors) > 0 {
		if a := t.Actors[0]; a.Issuer != "" {
			iss, id = a.Issuer, a.Subject
		} else {
			id = a.Subject
		}
		if i := r.Issuers[iss]; i != nil && i.Actors[id] != "" && r.nameOf(iss, id) == "" {
			return i.Actors[id] // it acted by a token of its own
		}
	}
	return r.nameOf(iss, id)
}

// nameOf returns the name of a client id at an issuer.
func (r *Registry) nameOf(iss, id string) string {
	if iss == r.Self {
		if r.Clients[id] != nil {
			return id
		}
		return ""
	}
	return r.identities[[2]string{iss, id}]
}

// ceiling returns the ceiling of a client or agent; ok is false if there is none
// of that name, or it is disabled.
func (r *Registry) ceiling(name string) (c *scopes.Ceiling, ok bool) {
	if a := r.Agents[name]; a != nil {
		return a.Ceiling, !a.Disabled
	}
	if c := r.Clients[name]; c != nil {
		return c.Ceiling, !r.clientOff(c)
	}
	return nil, false
}
