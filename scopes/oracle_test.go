package scopes_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"github.com/stint-dev/stint/scopes"
)

// The index is held against Cedar itself: random rules are written twice, as a
// mapping and as Cedar policies, and every request must be decided alike.
func TestTheIndexDecidesAsCedarDoes(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	groups, agents, clients := []string{"g1", "g2", "g3"}, []string{"a1", "a2"}, []string{"c1", "c2", "c3"}
	all := []string{"s1", "s2", "s3", "w1", "w2"}
	some := func(from []string) []string {
		var out []string
		for _, s := range from {
			if r.IntN(3) == 0 {
				out = append(out, s)
			}
		}
		return out
	}
	granted, refused := 0, 0
	for round := range 150 {
		var yaml, policies strings.Builder
		yaml.WriteString("resource: https://r.example/\nscopes: {s1: {access: read}, s2: {access: read}, s3: {access: read}, w1: {access: write}, w2: {access: write}}\nrules:\n")
		rules := 1 + r.IntN(6)
		for range rules {
			allow, g, a, c := some(all), some(groups), some(agents), some(clients)
			if r.IntN(4) == 0 || len(allow) == 0 {
				allow = append(allow, "*")
			}
			if len(g)+len(a)+len(c) == 0 {
				g = []string{"*"}
			}
			fmt.Fprintf(&yaml, "  - {allow: [%s], to: {groups: [%s], agents: [%s], clients: [%s]}}\n",
				quoted(allow), quoted(g), quoted(a), quoted(c))
			policies.WriteString(asCedar(allow, g, a, c))
		}
		// Two more rules keep the mapping loadable whatever was drawn.
		yaml.WriteString("  - {allow: [s1, s2, s3, w1, w2], to: {clients: [spare]}}\n")
		w := scopes.World{Groups: groups, Agents: map[string]*scopes.Ceiling{}, Clients: map[string]scopes.Client{}}
		for _, a := range agents {
			w.Agents[a] = everything()
		}
		for _, c := range append(clients, "spare") {
			w.Clients[c] = scopes.Client{Targets: []string{"https://r.example/"}, Ceiling: everything()}
		}
		p, err := scopes.Compile(load(t, yaml.String()), w)
		if err != nil {
			t.Fatalf("round %d: %v\n%s", round, err, yaml.String())
		}
		set, err := cedar.NewPolicySetFromBytes("", []byte(policies.String()))
		if err != nil {
			t.Fatal(err, policies.String())
		}
		for range 60 {
			req := &scopes.Request{
				Resource: "https://r.example/", Scopes: []string{all[r.IntN(len(all))]}, Held: scopes.Held{Everything: true}, Now: noon,
				Subject: scopes.Subject{Issuer: idp, ID: "x", Groups: some(append(groups, "unknown"))},
				Agent:   append(agents, "", "stranger")[r.IntN(4)], Client: append(clients, "stranger")[r.IntN(4)],
			}
			want := cedarSays(set, req)
			if got := p.Decide(req).Allowed(); got != want {
				t.Fatalf("the index says %v, Cedar %v\nrequest %+v\n%s", got, want, req, yaml.String())
			}
			if want {
				granted++
			} else {
				refused++
			}
		}
	}
	if granted < 1000 || refused < 1000 {
		t.Errorf("the comparison is one-sided: %d granted, %d refused", granted, refused)
	}
}

func quoted(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(out, ", ")
}

func asCedar(allow, groups, agents, clients []string) string {
	any := func(list []string, format string) string {
		if len(list) == 0 || slices.Contains(list, "*") {
			return "true"
		}
		out := make([]string, len(list))
		for i, s := range list {
			out[i] = fmt.Sprintf(format, s)
		}
		return "(" + strings.Join(out, " || ") + ")"
	}
	names := slices.Clone(allow)
	if slices.Contains(allow, "*") {
		names = append(slices.DeleteFunc(names, func(s string) bool { return s == "*" }), "s1", "s2", "s3")
	}
	for i, s := range names {
		names[i] = fmt.Sprintf("Action::%q", s)
	}
	return fmt.Sprintf("permit (principal, action in [%s], resource) when { %s && %s && %s };\n", strings.Join(names, ", "),
		any(groups, "principal in Group::%q"), any(agents, "context.agent == %q"), any(clients, "context.client == %q"))
}

func cedarSays(set *cedar.PolicySet, req *scopes.Request) bool {
	user := cedar.NewEntityUID("User", "x")
	var parents []cedar.EntityUID
	for _, g := range req.Subject.Groups {
		parents = append(parents, cedar.NewEntityUID("Group", types.String(g)))
	}
	decision, _ := cedar.Authorize(set, types.EntityMap{user: {UID: user, Parents: cedar.NewEntityUIDSet(parents...)}}, cedar.Request{
		Principal: user, Action: cedar.NewEntityUID("Action", types.String(req.Scopes[0])), Resource: cedar.NewEntityUID("R", "r"),
		Context: cedar.NewRecord(cedar.RecordMap{"agent": types.String(req.Agent), "client": types.String(req.Client)}),
	})
	return decision == cedar.Allow
}

// big is a policy of so many resources, scopes each and groups each.
func big(b testing.TB, resources, each, groups int) *scopes.Policy {
	b.Helper()
	w := scopes.World{Clients: map[string]scopes.Client{}, Agents: map[string]*scopes.Ceiling{}}
	for g := range groups {
		w.Groups = append(w.Groups, fmt.Sprintf("g%d", g))
	}
	client := scopes.Client{Ceiling: everything()}
	var all []*scopes.Mapping
	for r := range resources {
		id := fmt.Sprintf("https://r%d.example/", r)
		client.Targets = append(client.Targets, id)
		m := &scopes.Mapping{Resource: scopes.Text{Value: id}, Scopes: map[string]*scopes.Scope{}}
		rule := &scopes.Rule{To: &scopes.To{}}
		for s := range each {
			name := fmt.Sprintf("s%d", s)
			m.Scopes[name] = &scopes.Scope{Access: scopes.Read}
			rule.Allow = append(rule.Allow, scopes.Text{Value: name})
		}
		for _, g := range w.Groups {
			rule.To.Groups = append(rule.To.Groups, scopes.Text{Value: g})
		}
		m.Rules = []*scopes.Rule{rule}
		all = append(all, m)
	}
	w.Clients["c"] = client
	p, err := scopes.Compile(all, w)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func BenchmarkDecide(b *testing.B) {
	for _, size := range [][2]int{{1, 10}, {1000, 10}, {1000, 100}, {1, 5000}} {
		b.Run(fmt.Sprintf("resources=%d/scopes=%d", size[0], size[1]), func(b *testing.B) {
			p := big(b, size[0], size[1], 5)
			req := &scopes.Request{
				Resource: fmt.Sprintf("https://r%d.example/", size[0]/2), Scopes: []string{"s1", "s7"}, Client: "c", Agent: "a",
				Subject: scopes.Subject{Issuer: idp, ID: "x", Groups: []string{"g3", "x", "y"}}, Held: scopes.Held{Everything: true}, Now: noon,
			}
			b.ReportAllocs()
			for b.Loop() {
				if d := p.Decide(req); !d.Allowed() {
					b.Fatal(d)
				}
			}
		})
	}
}
