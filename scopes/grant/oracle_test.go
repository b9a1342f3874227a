package grant_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/scopes/grant"
)

// An oracle says what a dimension's JSON means, by enumerating a small universe
// of concrete requests and deciding each as the upstream would. It shares no
// code with the package, and reads the JSON, not the parsed grant.
type oracle struct {
	dim      grant.Dimension
	requests [][]string
	allows   func(v any, r []string) bool
	random   func(*rand.Rand) any // a random element or value, as JSON types
	single   bool
}

var (
	implies = map[string][]string{"drive": {"drive.read", "drive.meta"}, "drive.read": {"drive.meta"}, "all": {"drive", "mail"}}
	rowsOf  = map[string]string{"*": "1234", "region": "12", "own": "1", "archived": "3"}
	powers  = map[string]string{"owner": "abcd", "editor": "abc", "viewer": "a", "billing": "d"}
)

func product(lists ...[]string) [][]string {
	out := [][]string{nil}
	for _, l := range lists {
		var next [][]string
		for _, o := range out {
			for _, t := range l {
				next = append(next, append(slices.Clone(o), t))
			}
		}
		out = next
	}
	return out
}

func pick(r *rand.Rand, from ...string) string { return from[r.IntN(len(from))] }

// some returns a text or a list of texts.
func some(r *rand.Rand, from ...string) any {
	if r.IntN(3) == 0 {
		return pick(r, from...)
	}
	n := 1 + r.IntN(2)
	out := make([]any, n)
	for i := range out {
		out[i] = pick(r, from...)
	}
	return out
}

func list(r *rand.Rand, most int, one func() any) any {
	out := make([]any, r.IntN(most+1))
	for i := range out {
		out[i] = one()
	}
	return out
}

func texts(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, e := range v {
			out = append(out, texts(e)...)
		}
		return out
	}
	return nil
}

func hasOrStar(v any, t string) bool {
	return slices.ContainsFunc(texts(v), func(x string) bool { return x == "*" || x == t })
}

func anyEntry(v any, match func(map[string]any) bool) bool {
	for _, e := range v.([]any) {
		if match(e.(map[string]any)) {
			return true
		}
	}
	return false
}

func reachable(from, to string) bool {
	return from == to || slices.ContainsFunc(implies[from], func(n string) bool { return reachable(n, to) })
}

func oracles() map[grant.Type]oracle {
	ids := []string{"a", "b", "c", "d"}
	rank := map[string]int{"none": 0, "read": 1, "write": 2, "admin": 3}
	urls := []string{"/healthz", "/healthz/etcd", "/metrics", "/metrics/"}
	return map[grant.Type]oracle{
		grant.IDSet: {
			dim: grant.Dimension{Type: grant.IDSet}, requests: product(ids),
			allows: func(v any, r []string) bool { return slices.Contains(texts(v), r[0]) },
			random: func(r *rand.Rand) any { return list(r, 4, func() any { return pick(r, ids...) }) },
		},
		grant.LevelMap: {
			dim:      grant.Dimension{Type: grant.LevelMap, Levels: map[string][]string{"a": {"read", "write"}, "b": {"read", "write", "admin"}, "c": {"write"}}},
			requests: product([]string{"a", "b", "c"}, []string{"read", "write", "admin"}),
			allows: func(v any, r []string) bool {
				l, ok := v.(map[string]any)[r[0]]
				return ok && rank[l.(string)] >= rank[r[1]]
			},
			random: func(r *rand.Rand) any {
				m := map[string]any{}
				for key, legal := range map[string][]string{"a": {"none", "read", "write"}, "b": {"read", "write", "admin"}, "c": {"write"}} {
					if r.IntN(3) > 0 {
						m[key] = pick(r, legal...)
					}
				}
				return m
			},
		},
		grant.ScopeSet: {
			dim:      grant.Dimension{Type: grant.ScopeSet, Below: implies},
			requests: product([]string{"drive", "drive.read", "drive.meta", "mail", "all", "other"}),
			allows: func(v any, r []string) bool {
				return slices.ContainsFunc(texts(v), func(s string) bool { return reachable(s, r[0]) })
			},
			random: func(r *rand.Rand) any {
				return list(r, 3, func() any { return pick(r, "drive", "drive.read", "drive.meta", "mail", "all", "other") })
			},
		},
		grant.PrefixSet: {
			dim:      grant.Dimension{Type: grant.PrefixSet, Values: []string{"get", "put"}},
			requests: product([]string{"get", "put"}, []string{"x", "y"}, []string{"k", "a/k", "a/b/k", "a//k", "ab/k"}),
			allows: func(v any, r []string) bool {
				return anyEntry(v, func(e map[string]any) bool {
					return slices.Contains(texts(e["verbs"]), r[0]) && slices.Contains(texts(e["bucket"]), r[1]) &&
						slices.ContainsFunc(texts(e["prefix"]), func(p string) bool { return strings.HasPrefix(r[2], p) })
				})
			},
			random: func(r *rand.Rand) any {
				return list(r, 3, func() any {
					return map[string]any{"verbs": some(r, "get", "put"), "bucket": some(r, "x", "y"), "prefix": some(r, "", "a/", "a/b/", "a//", "ab/")}
				})
			},
		},
		grant.OwnedSet: {
			dim:      grant.Dimension{Type: grant.OwnedSet},
			requests: product([]string{"acme", "acm", "acme2"}, []string{"web", "api", "we"}),
			allows: func(v any, r []string) bool {
				return slices.ContainsFunc(texts(v), func(p string) bool { return p == r[0]+"/"+r[1] || p == r[0]+"/*" })
			},
			random: func(r *rand.Rand) any {
				return list(r, 4, func() any {
					return pick(r, "acme/web", "acme/api", "acme/*", "acm/web", "acm/*", "acme2/we", "acme2/*")
				})
			},
		},
		grant.ActionSet: {
			dim:      grant.Dimension{Type: grant.ActionSet},
			requests: product([]string{"db:Get", "db:Put"}, []string{"arn:db:t/x", "arn:db:t/x/i", "arn:db:t/xy", "arn:db:u", "arn:db:", "other"}),
			allows: func(v any, r []string) bool {
				return anyEntry(v, func(e map[string]any) bool {
					return slices.Contains(texts(e["actions"]), r[0]) && slices.ContainsFunc(texts(e["resource"]), func(p string) bool {
						// As IAM has it: a pattern, in which * stands for anything.
						if strings.ContainsAny(p[len(p)-1:], "/:") {
							p += "*"
						}
						head, glob := strings.CutSuffix(p, "*")
						return p == r[1] || glob && strings.HasPrefix(r[1], head)
					})
				})
			},
			random: func(r *rand.Rand) any {
				return list(r, 3, func() any {
					return map[string]any{"actions": some(r, "db:Get", "db:Put"), "resource": some(r, "arn:db:t/x", "arn:db:t/x/", "arn:db:t/", "arn:db:", "arn:db:u", "arn:", "*")}
				})
			},
		},
		grant.RuleSet: {
			dim: grant.Dimension{Type: grant.RuleSet},
			requests: append(product([]string{"get", "list"}, []string{"", "apps"}, []string{"pods", "pods/log", "jobs/log", "jobs/scale"}, []string{"n1", "n2"}),
				product([]string{"get", "post"}, []string{"url"}, urls)...),
			allows: func(v any, r []string) bool {
				return anyEntry(v, func(e map[string]any) bool {
					if paths, ok := e["nonResourceURLs"]; ok || len(r) == 3 {
						return ok && len(r) == 3 && hasOrStar(e["verbs"], r[0]) && slices.ContainsFunc(texts(paths), func(p string) bool {
							stem, glob := strings.CutSuffix(p, "*")
							return p == r[2] || glob && strings.HasPrefix(r[2], stem)
						})
					}
					_, sub, _ := strings.Cut(r[2], "/")
					return hasOrStar(e["verbs"], r[0]) && hasOrStar(e["apiGroups"], r[1]) && hasOrStar(e["resourceNames"], r[3]) &&
						(hasOrStar(e["resources"], r[2]) || sub != "" && slices.Contains(texts(e["resources"]), "*/"+sub))
				})
			},
			random: func(r *rand.Rand) any {
				return list(r, 3, func() any {
					if r.IntN(4) == 0 {
						return map[string]any{"verbs": some(r, "get", "post", "*"), "nonResourceURLs": some(r, "/healthz", "/healthz/*", "/metrics*", "*")}
					}
					return map[string]any{
						"verbs": some(r, "get", "list", "*"), "apiGroups": some(r, "", "apps", "*"),
						"resources": some(r, "pods", "pods/log", "*/log", "jobs/scale", "*"), "resourceNames": some(r, "n1", "n2", "*"),
					}
				})
			},
		},
		grant.PrivSet: {
			dim:      grant.Dimension{Type: grant.PrivSet, Values: []string{"SELECT", "UPDATE"}, Below: map[string][]string{"region": {"own"}}},
			requests: product([]string{"s.t", "s.u"}, []string{"SELECT", "UPDATE"}, []string{"c1", "c2", "c3"}, []string{"1", "2", "3", "4"}),
			allows: func(v any, r []string) bool {
				return anyEntry(v, func(e map[string]any) bool {
					return slices.Contains(texts(e["object"]), r[0]) && slices.Contains(texts(e["privileges"]), r[1]) && hasOrStar(e["columns"], r[2]) &&
						slices.ContainsFunc(texts(e["rows"]), func(p string) bool { return strings.Contains(rowsOf[p], r[3]) })
				})
			},
			random: func(r *rand.Rand) any {
				return list(r, 3, func() any {
					return map[string]any{
						"object": some(r, "s.t", "s.u"), "privileges": some(r, "SELECT", "UPDATE"),
						"columns": some(r, "c1", "c2", "c3", "*"), "rows": some(r, "own", "region", "archived", "*"),
					}
				})
			},
		},
		grant.Profile: {
			dim:      grant.Dimension{Type: grant.Profile, Below: map[string][]string{"owner": {"editor", "billing"}, "editor": {"viewer"}}},
			requests: product([]string{"a", "b", "c", "d"}), single: true,
			allows: func(v any, r []string) bool { p, _ := v.(string); return strings.Contains(powers[p], r[0]) },
			random: func(r *rand.Rand) any { return pick(r, "owner", "editor", "viewer", "billing") },
		},
		grant.Duration: {
			dim: grant.Dimension{Type: grant.Duration}, requests: product([]string{"1", "60", "900", "3600"}), single: true,
			allows: func(v any, r []string) bool {
				var want float64
				fmt.Sscan(r[0], &want)
				n, ok := v.(float64)
				return ok && want <= n
			},
			random: func(r *rand.Rand) any { return []any{1.0, 59.0, 60.0, 900.0, 4000.0}[r.IntN(5)] },
		},
		grant.Exact: {
			dim: grant.Dimension{Type: grant.Exact}, requests: product(ids), single: true,
			allows: func(v any, r []string) bool { return v == r[0] },
			random: func(r *rand.Rand) any { return pick(r, ids...) },
		},
	}
}

// world is a schema of one to three dimensions with their oracles.
type world struct {
	schema  *grant.Schema
	oracles map[string]oracle
}

func newWorld(t *testing.T, types ...grant.Type) world {
	t.Helper()
	w := world{oracles: map[string]oracle{}}
	var dims []grant.Dimension
	for i, typ := range types {
		o := oracles()[typ]
		o.dim.Name = fmt.Sprintf("d%d", i)
		o.dim.Optional = i == 2 // the third dimension of a product is optional
		dims = append(dims, o.dim)
		w.oracles[o.dim.Name] = o
	}
	var err error
	if w.schema, err = grant.NewSchema("test", 1, dims...); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w world) random(r *rand.Rand) any {
	if n := r.IntN(20); n == 0 {
		return "*"
	}
	m := map[string]any{}
	for name, o := range w.oracles {
		if m[name] = o.random(r); r.IntN(6) == 0 {
			m[name] = "*"
		}
	}
	return m
}

func (w world) parse(t *testing.T, v any) grant.Grant {
	t.Helper()
	js, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	g, err := w.schema.Parse(js)
	if err != nil {
		t.Fatalf("parse %s: %v", js, err)
	}
	return g
}

// meaning lists what JSON allows, dimension by dimension: "d0=..." requests, or
// nothing at all where a mandatory dimension allows none.
func (w world) meaning(t *testing.T, v any) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	if v == "nothing" {
		return out
	}
	for name, o := range w.oracles {
		n := 0
		for _, r := range o.requests {
			if v == "*" || v.(map[string]any)[name] == "*" || o.says(v.(map[string]any)[name], r) {
				out[name+"="+strings.Join(r, "\x00")] = true
				n++
			}
		}
		if n == 0 && !o.dim.Optional {
			return map[string]bool{}
		}
	}
	return out
}

func (o oracle) says(v any, r []string) bool {
	if l, ok := v.([]any); ok && len(l) == 0 {
		return false
	}
	return o.allows(v, r)
}

func (w world) meaningOf(t *testing.T, g grant.Grant) map[string]bool {
	t.Helper()
	var v any
	if err := json.Unmarshal(g.Canonical(), &v); err != nil {
		t.Fatal(err)
	}
	return w.meaning(t, v)
}

func within(a, b map[string]bool) bool {
	for k := range a {
		if !b[k] {
			return false
		}
	}
	return true
}

func intersect(a, b map[string]bool) map[string]bool {
	out := map[string]bool{}
	for k := range a {
		if b[k] {
			out[k] = true
		}
	}
	return out
}
