package scopes

import (
	"cmp"
	"maps"
	"math"
	"slices"
)

// index finds the rules that could allow a scope to a client, agent and group, by
// a search in the few entries of that scope: they lie together in memory, so that
// a large policy is as fast as a small one, and hold no pointers, so that it costs
// the garbage collector little.
type index struct {
	symbols map[symbol]uint32
	spans   []uint32 // where the entries of each scope begin, and the end
	entries []entry
	rules   []*rule
}

// symbol is a name of one kind; 0 is anybody.
type symbol struct {
	kind byte // 'g'roup, 'a'gent, 'c'lient
	name string
}

// entry is a rule of a scope, for one combination of the parties that it names.
type entry struct{ client, agent, group, rule uint32 }

// compare orders the entries of a scope. Of the same parties the last rule is first.
func (e entry) compare(o entry) int {
	return cmp.Or(cmp.Compare(e.client, o.client), cmp.Compare(e.agent, o.agent), cmp.Compare(e.group, o.group), cmp.Compare(o.rule, e.rule))
}

func (p *Policy) buildIndex() {
	p.index = index{symbols: make(map[symbol]uint32)}
	x := &p.index
	for _, id := range slices.Sorted(maps.Keys(p.resources)) {
		r := p.resources[id]
		first, of := len(x.spans), make([][]entry, len(r.scopes))
		for i, name := range slices.Sorted(maps.Keys(r.scopes)) {
			r.scopes[name].number = uint32(first + i)
		}
		for _, rule := range r.rules {
			list := x.entriesOf(rule)
			for _, s := range rule.scopes {
				at := int(s.number) - first
				of[at] = append(of[at], list...)
			}
			x.rules = append(x.rules, rule)
		}
		for _, list := range of {
			slices.SortFunc(list, entry.compare)
			x.spans = append(x.spans, uint32(len(x.entries)))
			x.entries = append(x.entries, list...)
		}
	}
	x.spans = append(x.spans, uint32(len(x.entries)))
	x.entries = slices.Clip(x.entries)
}

// entriesOf returns the entries of the rule that is added next.
func (x *index) entriesOf(r *rule) (list []entry) {
	for _, c := range x.numbers('c', r.to.Clients) {
		for _, a := range x.numbers('a', r.to.Agents) {
			for _, g := range x.numbers('g', r.to.Groups) {
				list = append(list, entry{c, a, g, uint32(len(x.rules))})
			}
		}
	}
	return list
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
	of := x.entries[x.spans[scope]:x.spans[scope+1]]
	for i, c := range w.clients {
		if i > 0 && c == 0 {
			continue
		}
		for j, a := range w.agents {
			if j > 0 && a == 0 {
				continue
			}
			for _, g := range w.groups {
				at, _ := slices.BinarySearchFunc(of, entry{c, a, g, math.MaxUint32}, entry.compare)
				for ; at < len(of) && of[at].client == c && of[at].agent == a && of[at].group == g; at++ {
					if !f(x.rules[of[at].rule]) {
						return
					}
				}
			}
		}
	}
}
