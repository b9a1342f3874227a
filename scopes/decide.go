package scopes

import (
	"fmt"
	"slices"
	"time"

	"github.com/stint-dev/stint/scopes/grant"
)

// Request is what is asked of a policy.
type Request struct {
	// Resource is whose scopes are asked for.
	Resource string
	// Scopes are those asked for. With a Tool they may be left out: then they are
	// those that the tool needs.
	Scopes []string
	// Tool is the MCP tool of the call, if it is one, and Arguments its arguments
	// as decoded JSON.
	Tool      string
	Arguments map[string]any
	Subject   Subject
	// Agent is the software that the subject uses, empty if unknown, and Client
	// the OAuth client that asks.
	Agent, Client string
	// Held is what the subject's token allows.
	Held Held
	// Ceilings are those of the agent and of every client on the way.
	Ceilings []*Ceiling
	Now      time.Time
}

// Subject is whom the client acts for.
type Subject struct {
	Issuer, ID string
	Groups     []string
	// Claims are claims of the token that rules may name.
	Claims map[string]string
}

// Name returns the subject as ISSUER#SUB.
func (s Subject) Name() string { return s.Issuer + "#" + s.ID }

func (s Subject) claim(name string) (string, bool) {
	switch name {
	case "iss":
		return s.Issuer, true
	case "sub":
		return s.ID, true
	}
	v, ok := s.Claims[name]
	return v, ok
}

// Held is what a subject's token allows by itself.
type Held struct {
	// Everything means that the token says who, not what.
	Everything bool `json:"everything,omitzero"`
	// Scopes are the token's scopes at Resource. For another resource they are
	// worth what that resource's mapping forwards.
	Resource string   `json:"resource,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
}

// Why says on what a scope failed.
type Why string

// The reasons for a refusal, in the order in which they are looked for.
const (
	UnknownResource Why = "unknown_resource"
	UnknownTool     Why = "unknown_tool"
	UnknownScope    Why = "unknown_scope"
	BeyondTool      Why = "beyond_tool"     // the tool that is named does not need it
	NotHeld         Why = "not_in_token"    // the subject's token does not allow it
	AboveCeiling    Why = "above_ceiling"   // of the agent or a client
	NoRule          Why = "no_rule"         // no rule allows it to these parties
	ConditionFalse  Why = "condition"       // rules match, but their conditions do not hold
	ConditionError  Why = "condition_error" // a condition could not be evaluated, which denies
	Forbidden       Why = "forbidden"       // a forbid in Cedar applies
)

// Refusal is a scope that was not granted.
type Refusal struct {
	Scope string
	Why   Why
}

func (r Refusal) String() string {
	if r.Scope == "" {
		return string(r.Why)
	}
	return fmt.Sprintf("%s: %s", r.Scope, r.Why)
}

// Decision is what follows from the policy for one request.
type Decision struct {
	// Policy is the version of the resource's mapping.
	Policy string
	// Asked are the scopes in question: those asked for, or the tool's.
	Asked []string
	// Granted and Refused divide what was asked.
	Granted []string
	Refused []Refusal
	// Rules name the rules that allowed, by file and line, or by Cedar policy.
	Rules []string
	// Approval says that a rule needed for the grant asks a human first.
	Approval bool
	// MaxLifetime is the mapping's limit; 0 is none.
	MaxLifetime time.Duration
}

// Allowed reports whether something was asked and all of it is granted.
func (d Decision) Allowed() bool { return len(d.Granted) > 0 && len(d.Refused) == 0 }

// Version returns the version of all mappings together.
func (p *Policy) Version() string { return p.version }

// Versions returns the version of each resource's mapping.
func (p *Policy) Versions() map[string]string {
	out := make(map[string]string, len(p.resources))
	for id, r := range p.resources {
		out[id] = r.version
	}
	return out
}

// Has reports whether the policy has a mapping for the resource.
func (p *Policy) Has(resource string) bool { return p.resources[resource] != nil }

// Scopes returns the names of a resource's scopes, sorted.
func (p *Policy) Scopes(resource string) []string {
	r := p.resources[resource]
	if r == nil {
		return nil
	}
	return sortedKeys(r.scopes)
}

// Decide says what the policy allows. It has no side effects and cannot fail:
// whatever goes wrong is a refusal.
func (p *Policy) Decide(req *Request) Decision { return p.decide(req, nil) }

// decide is both Decide and, with a trace, Explain.
func (p *Policy) decide(req *Request, tr *trace) Decision {
	r := p.resources[req.Resource]
	if r == nil {
		return Decision{Asked: req.Scopes, Refused: []Refusal{{Why: UnknownResource}}}
	}
	d := Decision{Policy: r.version, Asked: req.Scopes, MaxLifetime: r.maxLifetime}
	var t *tool
	if req.Tool != "" {
		if t = r.tools[req.Tool]; t == nil {
			d.Refused = []Refusal{{Why: UnknownTool}}
			return d
		}
		if len(d.Asked) == 0 {
			d.Asked = t.scopes
		}
	}
	var groups [8]uint32
	w := p.index.who(req, groups[:0])
	e := evaluation{policy: p, resource: r, tool: t, req: req, who: &w, decision: &d}
	for _, name := range d.Asked {
		if why := e.scope(name, tr.scope(name)); why != "" {
			d.Refused = append(d.Refused, Refusal{name, why})
		} else {
			d.Granted = append(d.Granted, name)
		}
	}
	return d
}

// evaluation is the work on one request.
type evaluation struct {
	policy   *Policy
	resource *resource
	tool     *tool // that is called; nil if none is named
	req      *Request
	who      *who
	decision *Decision
	cedar    *cedarRequest // made when the first condition needs it
}

// scope decides one scope; the empty answer is yes.
func (e *evaluation) scope(name string, tr *scopeTrace) Why {
	s := e.resource.scopes[name]
	if s == nil {
		return UnknownScope
	}
	tr.known(s)
	if e.tool != nil && !slices.Contains(e.tool.scopes, name) {
		tr.step("tool", false)
		return BeyondTool
	}
	if held := e.held(s); !held {
		tr.step("token", false)
		return NotHeld
	}
	tr.step("token", true)
	for _, c := range e.req.Ceilings {
		if !c.allows(e.resource.id, s) {
			tr.step("ceiling", false)
			return AboveCeiling
		}
	}
	tr.step("ceiling", true)
	why := e.rules(s, tr)
	tr.step("rules", why == "")
	return why
}

func (e *evaluation) held(s *scope) bool { return e.policy.holds(e.req.Held, e.resource, s) }

// holds reports whether a token allows a scope of a resource.
func (p *Policy) holds(h Held, r *resource, s *scope) bool {
	switch {
	case h.Everything:
		return true
	case h.Resource == r.id:
		return slices.Contains(h.Scopes, s.name)
	}
	from := p.resources[h.Resource]
	if from == nil {
		return false
	}
	for _, name := range h.Scopes {
		if held := from.scopes[name]; held != nil && held.forwards(r.id, s.name) {
			return true
		}
	}
	return false
}

// KnownGroups returns those of a subject's groups that some rule or condition
// names: a token need not carry the others.
func (p *Policy) KnownGroups(groups []string) (known []string) {
	for _, g := range groups {
		if p.groups[g] {
			known = append(known, g)
		}
	}
	return known
}

// KnownClaims returns those of a subject's claims that some rule names.
func (p *Policy) KnownClaims(claims map[string]string) map[string]string {
	var known map[string]string
	for name := range p.claims {
		if v, ok := claims[name]; ok {
			if known == nil {
				known = make(map[string]string)
			}
			known[name] = v
		}
	}
	return known
}

// Holds returns the scopes of the requested resource that the token allows by
// itself.
func (p *Policy) Holds(req *Request) (names []string) {
	r := p.resources[req.Resource]
	if r == nil {
		return nil
	}
	for _, name := range sortedKeys(r.scopes) {
		if p.holds(req.Held, r, r.scopes[name]) {
			names = append(names, name)
		}
	}
	return names
}

func (s *scope) forwards(resource, name string) bool {
	return slices.ContainsFunc(s.forward, func(f forward) bool {
		return f.resource == resource && slices.Contains(f.scopes, name)
	})
}

// rules asks the rules and the Cedar file. A condition that cannot be evaluated
// denies, whatever the others say.
func (e *evaluation) rules(s *scope, tr *scopeTrace) Why {
	var allowed, asking *rule
	var seen []*rule // of those with a condition: the index may name one twice
	why := NoRule
	all := tr != nil || len(e.resource.conditions.when) > 0
	e.policy.index.each(s.number, e.who, func(r *rule) bool {
		if r == allowed || slices.Contains(seen, r) || !r.matches(e.req) {
			return true
		}
		if all {
			seen = append(seen, r)
		}
		switch holds, err := e.condition(r, s); {
		case err != nil:
			tr.spoke(r.ref, "condition could not be evaluated: "+err.Error())
			why = ConditionError
			return false
		case !holds:
			tr.spoke(r.ref, "condition does not hold")
			if why == NoRule {
				why = ConditionFalse
			}
		case r.approval:
			tr.spoke(r.ref, "allows, with approval")
			asking = r
		default:
			tr.spoke(r.ref, "allows")
			allowed = r
		}
		return all || allowed == nil
	})
	if why == ConditionError {
		return why
	}
	verdict := e.file(s, tr)
	switch {
	case verdict.err != nil:
		return ConditionError
	case verdict.forbid != "":
		return Forbidden
	case allowed != nil:
		e.note(allowed.ref)
	case verdict.permit != "":
		e.note(verdict.permit)
	case asking != nil:
		e.note(asking.ref)
		e.decision.Approval = true
	default:
		return why
	}
	return ""
}

// note remembers a rule that allowed.
func (e *evaluation) note(ref string) {
	if !slices.Contains(e.decision.Rules, ref) {
		e.decision.Rules = append(e.decision.Rules, ref)
	}
}

// matches checks what the index does not: single subjects and claims.
func (r *rule) matches(req *Request) bool {
	if len(r.subjects) > 0 && !r.subjects[star] && !r.subjects[req.Subject.Name()] {
		return false
	}
	for name, want := range r.claims {
		if got, ok := req.Subject.claim(name); !ok || got != want && want != star {
			return false
		}
	}
	return true
}

// Grant returns what the given scopes of a resource are worth at a provider:
// the union of their grants, limited by the tool. It is nothing if none of them
// vends there. The error says why the union cannot be said, or which argument
// is unfit; it may be shown to the caller.
func (p *Policy) Grant(req *Request, granted []string, provider string) (grant.Grant, error) {
	r, schema := p.resources[req.Resource], p.providers[provider]
	if r == nil || schema == nil {
		return grant.Grant{}, fmt.Errorf("no mapping of %s vends at %s", req.Resource, provider)
	}
	total := schema.Nothing()
	for _, name := range granted {
		s := r.scopes[name]
		if s == nil {
			continue
		}
		for _, v := range s.vend {
			if v.provider != provider {
				continue
			}
			g, err := v.resolve(r, req, schema)
			if err != nil {
				return grant.Grant{}, err
			}
			var ok bool
			if total, ok = grant.Union(total, g); !ok {
				return grant.Grant{}, fmt.Errorf("the scopes %v cannot be one grant at %s: ask for one at a time", granted, provider)
			}
		}
	}
	if t := r.tools[req.Tool]; t != nil && t.narrow[provider] != nil {
		filled, err := expand(t.narrow[provider], r.subject(req), req.Arguments)
		if err != nil {
			return grant.Grant{}, err
		}
		limit, err := schema.Limit(filled.(map[string]any))
		if err != nil {
			return grant.Grant{}, err
		}
		total = grant.Meet(total, limit)
	}
	return total, nil
}

// subject is what {sub} stands for; empty for subjects of other issuers, who may
// have the same name.
func (r *resource) subject(req *Request) string {
	if req.Subject.Issuer != r.subjects {
		return ""
	}
	return req.Subject.ID
}

func (v *vend) resolve(r *resource, req *Request, schema *grant.Schema) (grant.Grant, error) {
	if v.template == nil {
		return v.grant, nil
	}
	filled, err := expand(v.template, r.subject(req), req.Arguments)
	if err != nil {
		return grant.Grant{}, err
	}
	return schema.ParseValue(filled)
}
