package scopes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

func (c *compiler) rule(r *resource, in *Rule) {
	out := &rule{ref: fmt.Sprintf("%s:%d", in.File, in.Line), to: in.To, condition: -1}
	r.rules = append(r.rules, out)
	if len(in.Allow) == 0 {
		c.failf(in.Pos, "allow: a rule names at least one scope")
	}
	for _, a := range in.Allow {
		switch s := r.scopes[a.Value]; {
		case a.Value == star:
			for _, name := range slices.Sorted(maps.Keys(r.scopes)) {
				if s := r.scopes[name]; s.access == Read {
					out.scopes = append(out.scopes, s)
				}
			}
		case s == nil:
			c.failf(a.Pos, "allow: there is no scope %q here; there are: %s", a.Value, list(maps.Keys(r.scopes)))
		default:
			out.scopes = append(out.scopes, s)
		}
	}
	slices.SortFunc(out.scopes, func(a, b *scope) int { return cmp.Compare(a.name, b.name) })
	out.scopes = slices.Compact(out.scopes)
	if in.To == nil || len(in.To.Groups)+len(in.To.Agents)+len(in.To.Clients)+len(in.To.Subjects)+len(in.To.Claims) == 0 {
		c.failf(in.Pos, `to: say to whom; for every subject write to: {groups: ["*"]}`)
		out.to = &To{}
		return
	}
	c.to(out, in.To)
	switch in.Approval.Value {
	case "", "required":
		out.approval = in.Approval.Value != ""
	default:
		c.failf(in.Approval.Pos, "approval: %q: the one value is required", in.Approval.Value)
	}
	if in.When.Value != "" {
		n, err := r.conditions.addWhen(in.When.Value)
		if err != nil {
			c.failf(in.When.Pos, "when: %v", err)
			return
		}
		out.condition = n
	}
}

func (c *compiler) to(out *rule, in *To) {
	known := func(what string, texts []Text, exists func(string) bool, all func() string) {
		for _, t := range texts {
			if t.Value != star && !exists(t.Value) {
				c.failf(t.Pos, "to: no %s is called %q, so that this never matches; there are: %s", what, t.Value, all())
			}
		}
	}
	known("group of a configured issuer", in.Groups, func(s string) bool { return c.groups[s] }, func() string { return list(maps.Keys(c.groups)) })
	known("agent", in.Agents, func(s string) bool { return c.world.Agents[s] != nil || c.world.Clients[s].Ceiling != nil },
		func() string { return list(maps.Keys(c.world.Agents)) + ", and the clients" })
	known("client", in.Clients, func(s string) bool { return c.world.Clients[s].Ceiling != nil }, func() string { return list(maps.Keys(c.world.Clients)) })
	for _, g := range in.Groups {
		c.policy.groups[g.Value] = true
	}
	out.claims = make(map[string]string, len(in.Claims))
	for name, v := range in.Claims {
		c.policy.claims[name] = true
		switch {
		case name == "iss" && v.Value != star && !c.issuers[v.Value]:
			c.failf(v.Pos, "to: no configured issuer is %q, so that this never matches; there are: %s", v.Value, list(maps.Keys(c.issuers)))
		case !c.shown(in.Claims["iss"].Value, name):
			c.failf(v.Pos, "to: no token shows the claim %q, so that this never matches: it has to stand in the list of claims of its issuer", name)
		}
		out.claims[name] = v.Value
	}
	out.subjects = make(map[string]bool, len(in.Subjects))
	for _, s := range in.Subjects {
		iss, sub, ok := strings.Cut(s.Value, "#")
		switch {
		case s.Value == star:
		case !ok || sub == "":
			c.failf(s.Pos, "to: %q is no subject: write ISSUER#SUB", s.Value)
		case !c.issuers[iss]:
			c.failf(s.Pos, "to: no configured issuer is %q, so that this never matches; there are: %s", iss, list(maps.Keys(c.issuers)))
		}
		out.subjects[s.Value] = true
	}
}

// shown reports whether tokens of an issuer are read for a claim; those of any, if
// iss is none's.
func (c *compiler) shown(iss, claim string) bool {
	if claim == "iss" || claim == "sub" || c.world.Claims == nil {
		return true
	}
	for issuer, claims := range c.world.Claims {
		if (iss == "" || iss == star || iss == issuer) && slices.Contains(claims, claim) {
			return true
		}
	}
	return false
}

// reachable reports rules that nobody can ever use, and scopes that nobody can
// ever get.
func (c *compiler) reachable(m *Mapping) {
	r := c.policy.resources[m.Resource.Value]
	gettable := make(map[string]bool)
	for i, rule := range r.rules {
		useful := false
		for _, s := range rule.scopes {
			if c.someClient(r, rule, s) {
				gettable[s.name], useful = true, true
			}
		}
		if !useful {
			c.failf(m.Rules[i].Pos, "this rule never matches: no client that it allows may ask for %s within its ceiling", r.id)
		}
	}
	for _, name := range r.conditions.permits(r) {
		gettable[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(r.scopes)) {
		if !gettable[name] {
			hint := ""
			if r.scopes[name].access > Read {
				hint = fmt.Sprintf(" (a rule must name a scope of %s access; \"*\" is read only)", r.scopes[name].access)
			}
			c.failf(m.Scopes[name].Pos, "nobody can get the scope %s: no rule allows it%s", name, hint)
		}
	}
}

// someClient reports whether a client exists that the rule admits and that may
// ask for the scope.
func (c *compiler) someClient(r *resource, rule *rule, s *scope) bool {
	for _, id := range c.asks[r.id] {
		if client := c.world.Clients[id]; client.Alone && len(rule.to.Groups) > 0 {
			continue // a client itself is in no group
		}
		named := len(rule.to.Clients) == 0 || slices.ContainsFunc(rule.to.Clients, func(t Text) bool { return t.Value == star || t.Value == id })
		if named && c.world.Clients[id].Ceiling.allows(r.id, s) {
			return true
		}
	}
	return false
}

// askers notes which clients may ask for which resource.
func (c *compiler) askers() {
	c.asks = make(map[string][]string, len(c.policy.resources))
	for id, client := range c.world.Clients {
		c.asks[client.Resource] = append(c.asks[client.Resource], id)
		for _, t := range client.Targets {
			c.asks[t] = append(c.asks[t], id)
		}
	}
}
