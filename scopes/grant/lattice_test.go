package grant_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stint-dev/stint/scopes/grant"
)

var allTypes = []grant.Type{
	grant.IDSet, grant.LevelMap, grant.ScopeSet, grant.PrefixSet, grant.RuleSet,
	grant.PrivSet, grant.Profile, grant.Duration, grant.Exact, grant.ActionSet, grant.OwnedSet,
}

// worlds are every type alone, and products of three.
func worlds(t *testing.T) map[string]world {
	out := map[string]world{}
	for i, typ := range allTypes {
		out[string(typ)] = newWorld(t, typ)
		three := []grant.Type{typ, allTypes[(i+3)%len(allTypes)], allTypes[(i+5)%len(allTypes)]}
		out[string(three[0]+"×"+three[1]+"×"+three[2])] = newWorld(t, three...)
	}
	return out
}

// pairs is how many random grants each property is tried on, in each world.
const pairs = 400

func TestMeetMeansIntersection(t *testing.T) {
	for name, w := range worlds(t) {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			for range pairs {
				x, y := w.random(r), w.random(r)
				a, b := w.parse(t, x), w.parse(t, y)
				ma, mb := w.meaning(t, x), w.meaning(t, y)
				m := grant.Meet(a, b)
				got, want := w.meaningOf(t, m), intersect(ma, mb)
				if !within(got, want) {
					t.Fatalf("meet allows more than both:\n a %s\n b %s\n m %s", a, b, m)
				}
				// A product with an empty mandatory dimension is nothing as a whole.
				if !m.IsNothing() && !within(want, got) {
					t.Fatalf("meet allows less than both:\n a %s\n b %s\n m %s", a, b, m)
				}
				if m.IsNothing() && !w.collapses(want) {
					t.Fatalf("meet is nothing, both allow something:\n a %s\n b %s", a, b)
				}
				for _, in := range []grant.Grant{a, b} {
					if ok, diffs := grant.Leq(m, in); !ok {
						t.Fatalf("meet is not below an input: %s !<= %s: %v", m, in, diffs)
					}
				}
			}
		})
	}
}

// collapses reports whether some mandatory dimension allows nothing.
func (w world) collapses(meaning map[string]bool) bool {
	for name, o := range w.oracles {
		found := false
		for k := range meaning {
			found = found || strings.HasPrefix(k, name+"=")
		}
		if !found && !o.dim.Optional {
			return true
		}
	}
	return false
}

func TestLeqIsSound(t *testing.T) {
	for name, w := range worlds(t) {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, 4))
			below, refused := 0, 0
			for range pairs {
				x, y := w.random(r), w.random(r)
				if r.IntN(2) == 0 { // make many comparable pairs
					x = w.jsonOf(t, grant.Meet(w.parse(t, x), w.parse(t, y)))
				}
				a, b := w.parse(t, x), w.parse(t, y)
				contained := within(w.meaning(t, x), w.meaning(t, y))
				ok, diffs := grant.Leq(a, b)
				if ok && !contained {
					t.Fatalf("Leq says %s <= %s; the oracle allows more", a, b)
				}
				if ok != (len(diffs) == 0) {
					t.Fatalf("Leq is %v with differences %v", ok, diffs)
				}
				if contained {
					below++
				}
				if contained && !ok {
					refused++
				}
			}
			// The universe is small, so that some unions of elements fill what is
			// another grant's single element; those refusals are sound.
			if below < pairs/4 || refused > below/10 {
				t.Errorf("%d of %d pairs comparable, %d refused", below, pairs, refused)
			}
		})
	}
}

func TestLatticeLaws(t *testing.T) {
	for name, w := range worlds(t) {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(5, 6))
			top, bottom := w.schema.Everything(), w.schema.Nothing()
			for range pairs {
				a, b, c := w.parse(t, w.random(r)), w.parse(t, w.random(r)), w.parse(t, w.random(r))
				must := func(what string, ok bool) {
					if !ok {
						t.Fatalf("%s does not hold:\n a %s\n b %s\n c %s", what, a, b, c)
					}
				}
				leq := func(x, y grant.Grant) bool { ok, _ := grant.Leq(x, y); return ok }
				ab := grant.Meet(a, b)
				must("a∧a = a", grant.Meet(a, a).Equal(a))
				must("a∧b = b∧a", ab.Equal(grant.Meet(b, a)))
				must("(a∧b)∧c = a∧(b∧c)", grant.Meet(ab, c).Equal(grant.Meet(a, grant.Meet(b, c))))
				must("a∧everything = a", grant.Meet(a, top).Equal(a))
				must("a∧nothing = nothing", grant.Meet(a, bottom).IsNothing())
				must("nothing <= a <= everything", leq(bottom, a) && leq(a, top))
				must("a <= a", leq(a, a))
				must("a<=b iff a∧b = a", leq(a, b) == ab.Equal(a))
				must("a<=b and b<=a iff a = b", (leq(a, b) && leq(b, a)) == a.Equal(b))
				must("a<=b<=c gives a<=c", !leq(a, b) || !leq(b, c) || leq(a, c))
				must("c<=a and c<=b give c<=a∧b", !leq(c, a) || !leq(c, b) || leq(c, ab))
				if u, ok := grant.Union(a, b); ok {
					must("a, b <= a∨b", leq(a, u) && leq(b, u))
					must("(a∨b)∧a = a", grant.Meet(u, a).Equal(a))
				}
			}
		})
	}
}

func TestUnionMeansUnion(t *testing.T) {
	for name, w := range worlds(t) {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 8))
			unions := 0
			for range pairs {
				x, y := w.random(r), w.random(r)
				if mx, ok := x.(map[string]any); ok && r.IntN(2) == 0 {
					if my, ok := y.(map[string]any); ok { // let them differ in d0 alone
						for k := range my {
							if k != "d0" {
								my[k] = mx[k]
							}
						}
					}
				}
				u, ok := grant.Union(w.parse(t, x), w.parse(t, y))
				if !ok {
					continue
				}
				unions++
				both := w.meaning(t, x)
				for k := range w.meaning(t, y) {
					both[k] = true
				}
				if got := w.meaningOf(t, u); !within(got, both) || !within(both, got) {
					t.Fatalf("union of %v and %v is %s", x, y, u)
				}
			}
			if unions < pairs/8 {
				t.Errorf("only %d unions", unions)
			}
		})
	}
}

func TestCanonicalFormIsOneForOneMeaning(t *testing.T) {
	for name, w := range worlds(t) {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(9, 10))
			for range pairs {
				g := w.parse(t, w.random(r))
				again, err := w.schema.Parse(g.Canonical())
				if err != nil || !again.Equal(g) || again.Hash() != g.Hash() {
					t.Fatalf("%s reads back as %s, %v", g, again, err)
				}
			}
		})
	}
}

func (w world) jsonOf(t *testing.T, g grant.Grant) any {
	t.Helper()
	if g.IsNothing() {
		return "nothing"
	}
	m := map[string]any{}
	for name, o := range w.oracles {
		everything, atoms := g.Dimension(name)
		if everything {
			m[name] = "*"
			continue
		}
		m[name] = o.jsonOf(atoms)
	}
	return m
}

// jsonOf writes atoms the long way: one object an atom.
func (o oracle) jsonOf(atoms []grant.Atom) any {
	if o.dim.Type == grant.LevelMap {
		m := map[string]any{}
		for _, a := range atoms {
			m[a[0]] = a[1]
		}
		return m
	}
	if len(atoms) == 1 && o.dim.Type == grant.Duration {
		return map[string]float64{"1": 1, "59": 59, "60": 60, "900": 900, "4000": 4000}[atoms[0][0]]
	}
	if len(atoms) == 1 && o.single {
		return atoms[0][0]
	}
	out := []any{}
	for _, a := range atoms {
		switch o.dim.Type {
		case grant.PrefixSet:
			out = append(out, map[string]any{"verbs": a[0], "bucket": a[1], "prefix": a[2]})
		case grant.ActionSet:
			out = append(out, map[string]any{"actions": a[0], "resource": a[1]})
		case grant.PrivSet:
			out = append(out, map[string]any{"object": a[0], "privileges": a[1], "columns": a[2], "rows": a[3]})
		case grant.RuleSet:
			if strings.HasSuffix(a[3], "url") {
				out = append(out, map[string]any{"verbs": a[0], "nonResourceURLs": a[2]})
				continue
			}
			out = append(out, map[string]any{"verbs": a[0], "apiGroups": a[1], "resources": a[2], "resourceNames": a[3]})
		default:
			out = append(out, a[0])
		}
	}
	return out
}
