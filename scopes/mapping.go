// Package scopes is the language of permission: what an administrator writes,
// and what follows from it for one request.
//
// A [Mapping] says, for one resource, which scopes it has, what each of them is
// worth at an upstream or at another resource, which tools need which scopes,
// and who may have them. [Compile] checks all mappings together, against the
// groups, agents, clients and providers that exist, and builds a [Policy].
// [Policy.Decide] is a pure function: it does no I/O, cannot fail, and denies
// what it does not allow. [Policy.Explain] is the same code, telling its steps.
//
// The package does not know tokens, HTTP or time: whoever asks says what the
// token holds and what the clock shows.
package scopes

import (
	"fmt"
	"strings"
	"time"

	"github.com/stint-dev/stint/scopes/grant"
)

// Pos is where something stands in a file.
type Pos struct {
	File         string
	Line, Column int
}

// SetPos is called by decoders that know positions.
func (p *Pos) SetPos(file string, line, column int) { *p = Pos{file, line, column} }

func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Text is a text that knows where it stands.
type Text struct {
	Value string
	Pos   Pos
}

// SetPos is called by decoders that know positions.
func (t *Text) SetPos(file string, line, column int) { t.Pos.SetPos(file, line, column) }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (t *Text) UnmarshalText(b []byte) error { t.Value = string(b); return nil }

// Duration is a span of time, written as "15m" or "1h30m". Read, it is longer than
// nothing.
type Duration struct{ time.Duration }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err == nil && v == 0 { // it would count as absent, and mean something else
		return fmt.Errorf("%q is no time at all; leave the key out for the default", b)
	}
	if err != nil || v < 0 {
		return fmt.Errorf("%q is no duration; write for example 15m or 1h30m", b)
	}
	d.Duration = v
	return nil
}

// Access is how much a scope lets one do.
type Access uint8

// The levels of access.
const (
	Read  Access = 1
	Write Access = 2
	Admin Access = 3
)

var accessNames = [...]string{"", "read", "write", "admin"}

func (a Access) String() string { return accessNames[a] }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *Access) UnmarshalText(b []byte) error {
	for i, n := range accessNames[1:] {
		if n == string(b) {
			*a = Access(i + 1)
			return nil
		}
	}
	return fmt.Errorf("%q is none of %s", b, strings.Join(accessNames[1:], ", "))
}

// Mapping is the policy of one resource: one file, mappings/NAME.yaml.
type Mapping struct {
	Pos Pos `yaml:"-"`
	// Resource is the identifier of the MCP server or API that the scopes belong
	// to (RFC 8707): an absolute URI without fragment, compared letter by letter.
	Resource Text `yaml:"resource"`
	// MaxLifetime is the longest that a token or credential may live. Absent: the
	// server's own limits.
	MaxLifetime Duration `yaml:"max_lifetime,omitempty"`
	// SubjectIssuer is the issuer of the subjects that {sub} stands for in grants.
	// Others may have subjects of the same name: with {sub} they get nothing. Absent:
	// the only issuer that is configured.
	SubjectIssuer Text `yaml:"subject_issuer,omitempty"`
	// Scopes are the permissions that exist at the resource, by name. Those of the
	// admin API are known, and left out.
	Scopes map[string]*Scope `yaml:"scopes,omitempty"`
	// Tools are the MCP tools that a request may name instead of scopes.
	Tools map[string]*Tool `yaml:"tools,omitempty"`
	// Rules say who may have which scopes. What no rule allows is refused.
	Rules []*Rule `yaml:"rules"`
	// Content is the text of the mapping and of the Cedar file beside it; their
	// hash is the mapping's version.
	Content [][]byte `yaml:"-"`
	// Cedar is the Cedar file beside the mapping, if there is one, and CedarFile
	// its name.
	Cedar     []byte `yaml:"-"`
	CedarFile string `yaml:"-"`
}

// Version is a hash of what the mapping says, by which the policy knows it.
func (m *Mapping) Version() string { return digest(m.Content) }

// Scope is one permission at a resource.
type Scope struct {
	Pos `yaml:"-"`
	// Access is read, write or admin. Rules give write and admin only by name.
	Access Access `yaml:"access"`
	// About says in a few words what the scope allows.
	About string `yaml:"about,omitempty"`
	// Vend says what the scope is worth at an upstream: for each provider the
	// grant, in the provider's own terms. "{sub}" and "{args.NAME}" stand for the
	// subject and for an argument of the tool call.
	Vend map[string]*Raw `yaml:"vend,omitempty"`
	// Forward says what the scope is worth at another resource: for each, the
	// scopes that a token with this scope may be exchanged for.
	Forward map[string][]Text `yaml:"forward,omitempty"`
}

// Tool is an MCP tool, as far as permission goes.
type Tool struct {
	Pos `yaml:"-"`
	// Scopes are those that a call needs.
	Scopes []Text `yaml:"scopes"`
	// Arguments gives types (string, long or bool) to the arguments that
	// conditions may look at.
	Arguments map[string]Text `yaml:"arguments,omitempty"`
	// Narrow limits the grant by the arguments of the call: for each provider some
	// of the grant's dimensions, with "{args.NAME}" for an argument.
	Narrow map[string]*Raw `yaml:"narrow,omitempty"`
}

// Rule allows scopes to somebody.
type Rule struct {
	Pos `yaml:"-"`
	// Allow lists scopes by name. "*" stands for every scope whose access is read.
	Allow []Text `yaml:"allow"`
	// To says who: all of what is given must hold.
	To *To `yaml:"to"`
	// When is a condition in Cedar, for instance context.time.hour >= 8.
	When Text `yaml:"when,omitempty"`
	// Approval required asks a human each time. Until approvals exist in Stint,
	// what needs one is refused.
	Approval Text `yaml:"approval,omitempty"`
}

// To describes to whom a rule applies. Of each list one entry must match, of
// claims every one. "*" in a list stands for anybody.
type To struct {
	Pos `yaml:"-"`
	// Groups are groups of the subject.
	Groups []Text `yaml:"groups,omitempty"`
	// Agents are the software that the subject uses.
	Agents []Text `yaml:"agents,omitempty"`
	// Clients are the OAuth clients that ask.
	Clients []Text `yaml:"clients,omitempty"`
	// Subjects are single subjects, as ISSUER#SUB.
	Subjects []Text `yaml:"subjects,omitempty"`
	// Claims are claims of the subject's token with their exact values; iss and
	// sub are among them, others have to stand in the issuer's list of claims. "*"
	// is any value of a claim that is there.
	Claims map[string]Text `yaml:"claims,omitempty"`
}

// Raw is a piece of a mapping whose shape a provider's schema decides.
type Raw struct {
	Pos   `yaml:"-"`
	Value any // maps, slices, strings, float64, bool
}

// SetRaw is called by decoders with the decoded value.
func (r *Raw) SetRaw(v any) { r.Value = v }

// Ceiling is the most that a client or agent may ever have, whoever it acts
// for. In a configuration it is "*", or an object with all three.
type Ceiling struct {
	Pos `yaml:"-"`
	// Everything means that there is no limit: the ceiling is written "*".
	Everything bool `yaml:"-"`
	// Access is the highest access of any scope.
	Access Access `yaml:"access"`
	// Scopes are "*", or for each resource its scopes or "*". Resources that are
	// not named have none.
	Scopes *Raw `yaml:"scopes"`
	// Vend are "*", or for each provider a grant or "*". Providers that are not
	// named have none.
	Vend *Raw `yaml:"vend"`

	anyScope, anyVend bool
	scopes            map[string]map[string]bool // by resource; a nil set: every scope
	vend              map[string]grant.Grant     // by provider
}

// UnmarshalText lets a configuration say "*".
func (c *Ceiling) UnmarshalText(b []byte) error {
	if string(b) != "*" {
		return fmt.Errorf(`%q is no ceiling: write "*" or an object with access, scopes and vend`, b)
	}
	c.Everything = true
	return nil
}

// World is what mappings and ceilings may refer to.
type World struct {
	// Groups are the groups that some issuer is configured to know.
	Groups []string
	// Agents and Clients are the names of the configured ones.
	Agents  map[string]*Ceiling
	Clients map[string]Client
	// Self is our own issuer identifier, of clients that act for themselves, and
	// Issuers are those whose subjects we accept.
	Self    string
	Issuers []string
	// Claims are, by issuer, the claims that its tokens are read for beside iss and
	// sub; nil: not known.
	Claims map[string][]string
	// Providers are the grant schemas of the configured upstreams, by their names.
	Providers map[string]*grant.Schema
	// Checks say, by provider, what is wrong with a grant that fits the schema and that
	// the upstream could never be asked for all the same. There may be none.
	Checks map[string]func(grant.Grant) error
}

// Client is what policy needs to know of a client.
type Client struct {
	// Resource is the resource that the client itself is; empty if none.
	Resource string
	// Targets are the resources and providers that it may ask for.
	Targets []string
	Ceiling *Ceiling
	// Alone says that it may not act for users, but only for itself.
	Alone bool
}

// Problem is one thing wrong with a mapping.
type Problem struct {
	Pos  Pos
	Text string
}

func (p Problem) Error() string { return p.Pos.String() + ": " + p.Text }

// Problems are all that is wrong with the mappings.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}
