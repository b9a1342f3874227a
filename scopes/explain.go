package scopes

import (
	"fmt"
	"slices"
	"strings"
)

// Explanation is a decision with its steps.
type Explanation struct {
	Resource string             `json:"resource"`
	Policy   string             `json:"policy,omitempty"`
	Allowed  bool               `json:"allowed"`
	Approval bool               `json:"approval,omitzero"`
	Why      Why                `json:"why,omitempty"` // where no scope came to be looked at
	Scopes   []ScopeExplanation `json:"scopes"`
	Decision Decision           `json:"-"`
}

// ScopeExplanation says how one scope fared.
type ScopeExplanation struct {
	Scope   string `json:"scope"`
	Access  string `json:"access,omitempty"`
	Allowed bool   `json:"allowed"`
	Why     Why    `json:"why,omitempty"`
	// Steps are the limits in order, each with whether it was passed.
	Steps []Step `json:"steps,omitempty"`
	// Rules are those that matched, with what they said.
	Rules []RuleExplanation `json:"rules,omitempty"`
	// Nearest says what would have allowed it, changing as little as possible.
	Nearest string `json:"nearest,omitempty"`
}

// Step is one limit that a scope has to pass.
type Step struct {
	Limit string `json:"limit"`
	Pass  bool   `json:"pass"`
	Says  string `json:"says,omitempty"`
}

// RuleExplanation is what one rule said.
type RuleExplanation struct {
	Rule string `json:"rule"`
	Says string `json:"says"`
}

// trace collects an Explanation. Every method does nothing on nil, so that
// Decide and Explain are one code.
type trace struct {
	out []*scopeTrace
}

type scopeTrace struct{ ScopeExplanation }

func (t *trace) scope(name string) *scopeTrace {
	if t == nil {
		return nil
	}
	s := &scopeTrace{ScopeExplanation{Scope: name}}
	t.out = append(t.out, s)
	return s
}

func (t *scopeTrace) known(s *scope) {
	if t != nil {
		t.Access = s.access.String()
	}
}

func (t *scopeTrace) step(limit string, pass bool) {
	if t != nil {
		t.Steps = append(t.Steps, Step{Limit: limit, Pass: pass})
	}
}

func (t *scopeTrace) spoke(rule, says string) {
	if t != nil {
		t.Rules = append(t.Rules, RuleExplanation{rule, says})
	}
}

// Explain decides as [Policy.Decide] does, and tells how.
func (p *Policy) Explain(req *Request) Explanation {
	tr := &trace{}
	d := p.decide(req, tr)
	out := Explanation{
		Resource: req.Resource, Policy: d.Policy, Allowed: d.Allowed(), Approval: d.Approval,
		Scopes: []ScopeExplanation{}, Decision: d,
	}
	for _, r := range d.Refused {
		if r.Scope == "" {
			out.Why = r.Why
		}
	}
	for _, t := range tr.out {
		s := t.ScopeExplanation
		s.Allowed = slices.Contains(d.Granted, s.Scope)
		for _, r := range d.Refused {
			if r.Scope == s.Scope {
				s.Why = r.Why
			}
		}
		for i := range s.Steps {
			s.Steps[i].Says = p.says(req, s.Scope, s.Steps[i])
		}
		if !s.Allowed {
			s.Nearest = p.nearest(req, s)
		}
		out.Scopes = append(out.Scopes, s)
	}
	return out
}

// says describes a step in words.
func (p *Policy) says(req *Request, scope string, s Step) string {
	switch {
	case s.Limit == "tool":
		return "the tool that is named does not need it"
	case s.Limit == "token" && req.Held.Everything:
		return "the token says who, not what: no limit"
	case s.Limit == "token" && req.Held.Resource == req.Resource:
		return "the token holds: " + list(slices.Values(req.Held.Scopes))
	case s.Limit == "token" && s.Pass:
		return fmt.Sprintf("%s forwards it for a scope that the token holds", req.Held.Resource)
	case s.Limit == "token":
		return fmt.Sprintf("no scope of the token (%s) at %s is forwarded as %s", list(slices.Values(req.Held.Scopes)), req.Held.Resource, scope)
	case s.Limit == "ceiling" && s.Pass:
		return fmt.Sprintf("within the ceilings of the agent and the clients (%d)", len(req.Ceilings))
	case s.Limit == "ceiling":
		return "above the ceiling of the agent or a client on the way"
	}
	return ""
}

// nearest says what would have allowed a refused scope.
func (p *Policy) nearest(req *Request, s ScopeExplanation) string {
	r := p.resources[req.Resource]
	switch s.Why {
	case UnknownScope:
		if near := closest(s.Scope, sortedKeys(r.scopes)); near != "" {
			return fmt.Sprintf("the resource has no such scope; did you mean %s?", near)
		}
		return "the resource has these scopes: " + list(slices.Values(sortedKeys(r.scopes)))
	case BeyondTool:
		return fmt.Sprintf("the tool %s needs %s; ask for what it needs, or name no tool", req.Tool, list(slices.Values(r.tools[req.Tool].scopes)))
	case NotHeld:
		return p.nearestHeld(req, s.Scope)
	case AboveCeiling:
		return "raise the ceiling of the agent or client in the server's configuration"
	case NoRule:
		return r.nearestRule(req, s.Scope)
	case ConditionFalse:
		return "the condition of a matching rule would have to hold"
	case ConditionError:
		return "repair the condition that could not be evaluated: an error denies"
	default: // Forbidden: the others concern no single scope
		return "the forbid in the Cedar file would have to go, or not to apply"
	}
}

func (p *Policy) nearestHeld(req *Request, scope string) string {
	if req.Held.Resource == req.Resource {
		return fmt.Sprintf("a subject token with the scope %s", scope)
	}
	if from := p.resources[req.Held.Resource]; from != nil {
		for _, name := range sortedKeys(from.scopes) {
			if from.scopes[name].forwards(req.Resource, scope) {
				return fmt.Sprintf("a subject token with the scope %s, which %s forwards", name, from.id)
			}
		}
	}
	return fmt.Sprintf("a scope of %s that forwards %s to %s", req.Held.Resource, scope, req.Resource)
}

// nearestRule finds the rule that lacks least.
func (r *resource) nearestRule(req *Request, name string) string {
	best, bestRef := []string(nil), ""
	for _, rule := range r.rules {
		if !slices.ContainsFunc(rule.scopes, func(sc *scope) bool { return sc.name == name }) {
			continue
		}
		missing := rule.missing(req)
		if bestRef == "" || len(missing) < len(best) {
			best, bestRef = missing, rule.ref
		}
	}
	if bestRef == "" {
		return "no rule allows this scope to anybody by the mapping; the Cedar file may"
	}
	return fmt.Sprintf("the rule at %s allows it to %s", bestRef, strings.Join(best, ", and "))
}

// missing lists what a request lacks for a rule to match.
func (r *rule) missing(req *Request) (out []string) {
	lacks := func(what string, texts []Text, has func(string) bool) {
		if len(texts) > 0 && !slices.ContainsFunc(texts, func(t Text) bool { return t.Value == star || has(t.Value) }) {
			names := make([]string, len(texts))
			for i := range texts {
				names[i] = texts[i].Value
			}
			out = append(out, what+" "+strings.Join(names, " or "))
		}
	}
	lacks("the group", r.to.Groups, func(s string) bool { return slices.Contains(req.Subject.Groups, s) })
	lacks("the agent", r.to.Agents, func(s string) bool { return s == req.Agent })
	lacks("the client", r.to.Clients, func(s string) bool { return s == req.Client })
	lacks("the subject", r.to.Subjects, func(s string) bool { return s == req.Subject.Name() })
	for _, name := range sortedKeys(r.claims) {
		if got, ok := req.Subject.claim(name); !ok || got != r.claims[name] && r.claims[name] != star {
			out = append(out, fmt.Sprintf("tokens with %s = %q", name, r.claims[name]))
		}
	}
	return out
}

// closest returns the candidate that differs least from s, if it is alike.
func closest(s string, candidates []string) string {
	best, at := "", max(2, len(s)/3)+1
	for _, c := range candidates {
		if d := distance(s, c); d < at {
			best, at = c, d
		}
	}
	return best
}

// distance is the number of single-letter edits between two texts.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := diagonal
			if a[i] != b[j] {
				next = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
