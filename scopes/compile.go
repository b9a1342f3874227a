package scopes

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/scopes/grant"
)

const star = "*"

// Policy is all mappings, compiled. It is immutable and safe for concurrent use.
type Policy struct {
	version   string
	resources map[string]*resource
	index     index
	providers map[string]*grant.Schema
	groups    map[string]bool // that some rule or condition names
	claims    map[string]bool // that some rule names
}

// resource is one compiled mapping.
type resource struct {
	id          string
	version     string
	maxLifetime time.Duration
	subjects    string // the issuer of those that {sub} stands for; empty: nobody
	scopes      map[string]*scope
	tools       map[string]*tool
	rules       []*rule
	conditions  *conditions
}

type scope struct {
	number  uint32 // in the index
	name    string
	access  Access
	vend    []vend
	forward []forward
}

// vend is what a scope is worth at one provider.
type vend struct {
	provider string
	grant    grant.Grant // if nothing in it depends on the request
	template any         // else this, to be filled in
}

// forward is what a scope is worth at another resource.
type forward struct {
	resource string
	scopes   []string
}

type tool struct {
	scopes    []string
	narrow    map[string]any // by provider: an object of dimensions, with templates
	arguments map[string]string
}

// rule is one compiled rule.
type rule struct {
	ref       string // file:line, for the record
	to        *To
	scopes    []*scope // that it allows
	subjects  map[string]bool
	claims    map[string]string
	condition int // in the resource's conditions; -1: none
	approval  bool
}

// compiler gathers everything that is wrong before it gives up.
type compiler struct {
	world    World
	policy   *Policy
	problems Problems
	groups   map[string]bool
	issuers  map[string]bool
	asks     map[string][]string // by resource: the clients that may ask for it
}

func (c *compiler) failf(at Pos, format string, args ...any) {
	c.problems = append(c.problems, Problem{at, fmt.Sprintf(format, args...)})
}

// Compile checks the mappings against the world and builds the policy. The error
// is a [Problems] with everything that is wrong: unknown names, rules that can
// never match, scopes that nobody can get, conditions that do not fit their
// schema, grants that their provider cannot express.
func Compile(mappings []*Mapping, world World) (*Policy, error) {
	c := &compiler{
		world: world,
		policy: &Policy{
			resources: make(map[string]*resource), providers: world.Providers,
			groups: make(map[string]bool), claims: make(map[string]bool),
		},
		groups:  set(world.Groups),
		issuers: set(append([]string{world.Self}, world.Issuers...)),
	}
	c.ceilings()
	for _, m := range mappings {
		c.mapping(m)
	}
	for _, m := range mappings {
		if r := c.policy.resources[m.Resource.Value]; r != nil {
			c.forwards(m)
		}
	}
	if len(c.problems) == 0 {
		c.policy.buildIndex()
		c.askers()
		for _, m := range mappings {
			c.reachable(m)
		}
	}
	if len(c.problems) > 0 {
		slices.SortStableFunc(c.problems, func(a, b Problem) int {
			return cmp.Or(cmp.Compare(a.Pos.File, b.Pos.File), a.Pos.Line-b.Pos.Line, a.Pos.Column-b.Pos.Column)
		})
		return nil, c.problems
	}
	var pieces [][]byte
	for _, id := range sortedKeys(c.policy.resources) {
		pieces = append(pieces, []byte(id), []byte(c.policy.resources[id].version))
	}
	c.policy.version = digest(pieces)
	return c.policy, nil
}

// digest is the version of some content: 16 hexadecimal digits of a SHA-256
// over the pieces, each behind its length.
func digest(pieces [][]byte) string {
	h := sha256.New()
	for _, p := range pieces {
		_, _ = fmt.Fprintf(h, "%d:", len(p))
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func set(list []string) map[string]bool {
	m := make(map[string]bool, len(list))
	for _, s := range list {
		m[s] = true
	}
	return m
}

// CheckResource reports whether s can identify a resource: an absolute URI with
// a host or path and without fragment (RFC 8707 section 2). The error says what it
// is, as in "is no absolute URI", and does not repeat it.
func CheckResource(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || len(s) > 512:
		return errors.New("is no URI of at most 512 bytes")
	case u.Scheme == "" || u.Host == "" && u.Opaque == "":
		return errors.New("is no absolute URI")
	case strings.Contains(s, "#"):
		return errors.New("has a fragment, which a resource has not")
	case u.User != nil:
		return errors.New("names a user, which a resource does not")
	}
	return nil
}

func (c *compiler) mapping(m *Mapping) {
	if err := CheckResource(m.Resource.Value); err != nil {
		c.failf(cmp.Or(m.Resource.Pos, m.Pos), "resource: %q %v", m.Resource.Value, err)
		return
	}
	if other := c.policy.resources[m.Resource.Value]; other != nil {
		c.failf(m.Resource.Pos, "resource %s has a mapping already", m.Resource.Value)
		return
	}
	r := &resource{
		id: m.Resource.Value, version: digest(m.Content), maxLifetime: m.MaxLifetime.Duration,
		scopes: make(map[string]*scope, len(m.Scopes)), tools: make(map[string]*tool, len(m.Tools)),
	}
	c.policy.resources[r.id] = r
	if len(m.Scopes) == 0 {
		c.failf(m.Pos, "scopes: there are none")
	}
	for _, name := range slices.Sorted(maps.Keys(m.Scopes)) {
		c.scope(r, name, m.Scopes[name])
	}
	for _, name := range slices.Sorted(maps.Keys(m.Tools)) {
		c.tool(r, name, m.Tools[name])
	}
	c.subjects(r, m)
	r.conditions = newConditions(r)
	for _, in := range m.Rules {
		c.rule(r, in)
	}
	if len(m.Cedar) > 0 {
		c.problems = append(c.problems, r.conditions.addFile(m.CedarFile, m.Cedar)...)
	}
	maps.Copy(c.policy.groups, r.conditions.groups)
}

// subjects finds out whose subjects {sub} stands for.
func (c *compiler) subjects(r *resource, m *Mapping) {
	switch in := m.SubjectIssuer; {
	case in.Value != "":
		if r.subjects = in.Value; !slices.Contains(c.world.Issuers, in.Value) {
			c.failf(in.Pos, "subject_issuer: no configured issuer is %q; there are: %s", in.Value, list(slices.Values(c.world.Issuers)))
		}
	case len(c.world.Issuers) == 1:
		r.subjects = c.world.Issuers[0]
	case r.namesSubject():
		c.failf(m.Pos, "subject_issuer is missing: of several issuers it says whose subjects {sub} stands for; there are: %s", list(slices.Values(c.world.Issuers)))
	}
}

// namesSubject reports whether {sub} stands in a grant.
func (r *resource) namesSubject() bool {
	for _, s := range r.scopes {
		if slices.ContainsFunc(s.vend, func(v vend) bool { return namesSubject(v.template) }) {
			return true
		}
	}
	for _, t := range r.tools {
		for _, v := range t.narrow {
			if namesSubject(v) {
				return true
			}
		}
	}
	return false
}

func (c *compiler) scope(r *resource, name string, in *Scope) {
	if err := CheckToken(name); err != nil || name == star {
		c.failf(in.Pos, "%q cannot be the name of a scope", name)
		return
	}
	if in.Access == 0 {
		c.failf(in.Pos, "scope %s: access is missing: read, write or admin", name)
	}
	s := &scope{name: name, access: in.Access}
	r.scopes[name] = s
	for _, provider := range slices.Sorted(maps.Keys(in.Vend)) {
		raw := in.Vend[provider]
		schema := c.world.Providers[provider]
		if schema == nil {
			c.failf(raw.Pos, "scope %s: there is no provider %q; there are: %s", name, provider, list(maps.Keys(c.world.Providers)))
			continue
		}
		v := vend{provider: provider}
		if hasTemplate(raw.Value) {
			v.template = raw.Value
			if err := checkTemplates(raw.Value); err != nil {
				c.failf(raw.Pos, "scope %s: vend %s: %v", name, provider, err)
				continue
			}
		}
		g, err := schema.ParseValue(sample(raw.Value))
		switch {
		case err != nil:
			c.failf(raw.Pos, "scope %s: vend %s: %v", name, provider, err)
		case g.IsNothing():
			c.failf(raw.Pos, "scope %s: vend %s: this grant is nothing", name, provider)
		case in.Access == Read && !g.ReadOnly():
			c.failf(raw.Pos, "scope %s: vend %s: this grant does more than read, the scope's access is read", name, provider)
		case v.template == nil:
			c.expressible(raw.Pos, fmt.Sprintf("scope %s: vend %s", name, provider), provider, g)
		}
		if v.template == nil {
			v.grant = g
		}
		s.vend = append(s.vend, v)
	}
}

// expressible refuses a grant that the provider could never be asked for.
func (c *compiler) expressible(at Pos, where, provider string, g grant.Grant) {
	if check := c.world.Checks[provider]; check != nil {
		if err := check(g); err != nil {
			c.failf(at, "%s: %v", where, err)
		}
	}
}

func (c *compiler) tool(r *resource, name string, in *Tool) {
	t := &tool{narrow: make(map[string]any), arguments: make(map[string]string)}
	r.tools[name] = t
	if name == "" || len(name) > 128 {
		c.failf(in.Pos, "%q cannot be the name of a tool", name)
	}
	if len(in.Scopes) == 0 {
		c.failf(in.Pos, "tool %s: scopes: a call needs at least one", name)
	}
	for _, s := range in.Scopes {
		if r.scopes[s.Value] == nil {
			c.failf(s.Pos, "tool %s: there is no scope %q here; there are: %s", name, s.Value, list(maps.Keys(r.scopes)))
			continue
		}
		t.scopes = append(t.scopes, s.Value)
	}
	for arg, typ := range in.Arguments {
		if !slices.Contains([]string{"string", "long", "bool"}, typ.Value) {
			c.failf(typ.Pos, "tool %s: argument %s: %q is none of string, long, bool", name, arg, typ.Value)
		}
		if !identifier(arg) {
			c.failf(typ.Pos, "tool %s: %q is no name that a condition could use", name, arg)
		}
		t.arguments[arg] = typ.Value
	}
	for provider, raw := range in.Narrow {
		schema := c.world.Providers[provider]
		object, isObject := raw.Value.(map[string]any)
		switch {
		case schema == nil:
			c.failf(raw.Pos, "tool %s: narrow: there is no provider %q; there are: %s", name, provider, list(maps.Keys(c.world.Providers)))
			continue
		case !isObject:
			c.failf(raw.Pos, "tool %s: narrow %s: an object with some of the grant's dimensions is wanted", name, provider)
			continue
		}
		if err := checkTemplates(raw.Value); err != nil {
			c.failf(raw.Pos, "tool %s: narrow %s: %v", name, provider, err)
		} else if _, err := schema.Limit(sample(object).(map[string]any)); err != nil {
			c.failf(raw.Pos, "tool %s: narrow %s: %v", name, provider, err)
		}
		t.narrow[provider] = object
	}
}

// forwards resolves what scopes are worth at other resources. A scope is never
// worth more access elsewhere than it is itself.
func (c *compiler) forwards(m *Mapping) {
	r := c.policy.resources[m.Resource.Value]
	for _, name := range slices.Sorted(maps.Keys(m.Scopes)) {
		s := r.scopes[name]
		if s == nil {
			continue
		}
		for _, id := range slices.Sorted(maps.Keys(m.Scopes[name].Forward)) {
			texts := m.Scopes[name].Forward[id]
			other := c.policy.resources[id]
			if other == nil || other == r {
				c.failf(m.Scopes[name].Pos, "scope %s: forward: no other resource with a mapping is %q", name, id)
				continue
			}
			f := forward{resource: id}
			for _, t := range texts {
				switch to := other.scopes[t.Value]; {
				case to == nil:
					c.failf(t.Pos, "scope %s: forward: %s has no scope %q; it has: %s", name, id, t.Value, list(maps.Keys(other.scopes)))
				case to.access > s.access:
					c.failf(t.Pos, "scope %s: forward: %s is %s access, %s only %s", name, t.Value, to.access, name, s.access)
				default:
					f.scopes = append(f.scopes, t.Value)
				}
			}
			s.forward = append(s.forward, f)
		}
	}
}

func identifier(s string) bool {
	for i, c := range s {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// list shows names in an error, not too many of them.
func list(names func(func(string) bool)) string {
	all := slices.Sorted(names)
	if len(all) == 0 {
		return "none"
	}
	if len(all) > 12 {
		return strings.Join(all[:12], ", ") + fmt.Sprintf(" and %d more", len(all)-12)
	}
	return strings.Join(all, ", ")
}
