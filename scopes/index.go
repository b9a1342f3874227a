package scopes

import (
	"maps"
	"slices"
)

// index finds the rules that could allow a scope to a client, agent and group,
// in constant time whatever the number of rules. It holds no pointers but its
// two maps, so that a large policy costs the garbage collector little.
type index struct {
	symbols map[symbol]uint32
	heads   map[key]int32
	entries []entry
	rules   []*rule
}

// symbol is a name of one kind; 0 is anybody.
type symbol struct {
	kind byte // 'g'roup, 'a'gent, 'c'lient
	name string
}

type key struct{ scope, client, agent, group uint32 }

// entry is a rule in a list of those with the same key.
type entry struct{ rule, next int32 }

func (p *Policy) buildIndex() {
	size := 0
	for _, r := range p.resources {
		for _, rule := range r.rules {
			size += len(rule.scopes) * max(1, len(rule.to.Clients)) * max(1, len(rule.to.Agents)) * max(1, len(rule.to.Groups))
		}
	}
	p.index = index{symbols: make(map[symbol]uint32), heads: make(map[key]int32, size), entries: make([]entry, 0, size)}
	number := uint32(0)
	for _, id := range slices.Sorted(maps.Keys(p.resources)) {
		r := p.resources[id]
		for _, name := range slices.Sorted(maps.Keys(r.scopes)) {
			r.scopes[name].number = number
			number++
		}
		for _, rule := range r.rules {
			p.index.add(rule)
		}
	}
}

func (x *index) add(r *rule) {
	n := int32(len(x.rules))
	x.rules = append(x.rules, r)
	clients, agents, groups := x.numbers('c', r.to.Clients), x.numbers('a', r.to.Agents), x.numbers('g', r.to.Groups)
	for _, s := range r.scopes {
		for _, c := range clients {
			for _, a := range agents {
				for _, g := range groups {
					k := key{s.number, c, a, g}
					next, ok := x.heads[k]
					if !ok {
						next = -1
					}
					x.heads[k] = int32(len(x.entries))
					x.entries = append(x.entries, entry{n, next})
				}
			}
		}
	}
}

// numbers returns the symbols of a rule's list; none, and "*", are anybody.
func (x *index) numbers(kind byte, texts []Text) []uint32 {
	var out []uint32
	for _, t := range texts {
		if t.Value == star {
			return []uint32{0}
		}
		s := symbol{kind, t.Value}
		if x.symbols[s] == 0 {
			x.symbols[s] = uint32(len(x.symbols)) + 1
		}
		if n := x.symbols[s]; !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		return []uint32{0}
	}
	return out
}

// who is a request's parties as symbols, anybody among them.
type who struct {
	clients, agents [2]uint32
	groups          []uint32
}

func (x *index) who(req *Request, groups []uint32) who {
	w := who{groups: append(groups, 0)}
	w.clients[1] = x.symbols[symbol{'c', req.Client}]
	if req.Agent != "" {
		w.agents[1] = x.symbols[symbol{'a', req.Agent}]
	}
	for _, g := range req.Subject.Groups {
		if n := x.symbols[symbol{'g', g}]; n != 0 {
			w.groups = append(w.groups, n)
		}
	}
	return w
}

// each calls f for the rules that name the scope and the parties, until f
// returns false. A rule may come more than once.
func (x *index) each(scope uint32, w *who, f func(*rule) bool) {
	for i, c := range w.clients {
		if i > 0 && c == 0 {
			continue
		}
		for j, a := range w.agents {
			if j > 0 && a == 0 {
				continue
			}
			for _, g := range w.groups {
				at, ok := x.heads[key{scope, c, a, g}]
				for ok && at >= 0 {
					if !f(x.rules[x.entries[at].rule]) {
						return
					}
					at = x.entries[at].next
				}
			}
		}
	}
}
