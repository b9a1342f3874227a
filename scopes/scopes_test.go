package scopes_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/scopes"
	"github.com/stint-dev/stint/scopes/grant"
)

const (
	idp    = "https://idp.acme.example"
	ci     = "https://ci.acme.example"
	mcp    = "https://mcp.acme.example/files"
	api    = "https://api.acme.example/files"
	others = "https://mcp.acme.example/others"
)

var tables = grant.MustSchema("postgres", 1,
	grant.Dimension{Name: "privileges", Type: grant.PrivSet, Values: []string{"SELECT", "INSERT"}, Reads: []string{"SELECT"}, Below: map[string][]string{"region": {"own"}}},
)

var repos = grant.MustSchema("github", 1,
	grant.Dimension{Name: "repositories", Type: grant.IDSet},
	grant.Dimension{Name: "permissions", Type: grant.LevelMap, Reads: []string{"read"}},
)

func everything() *scopes.Ceiling { return &scopes.Ceiling{Everything: true} }

func world() scopes.World {
	return scopes.World{
		Groups: []string{"engineering", "maintainers", "finance"},
		Agents: map[string]*scopes.Ceiling{"desktop": everything(), "reader": ceiling("{access: read, scopes: '*', vend: '*'}")},
		Clients: map[string]scopes.Client{
			"files-mcp":  {Resource: mcp, Targets: []string{api, "warehouse", "github"}, Ceiling: everything()},
			"desktop":    {Targets: []string{mcp}, Ceiling: everything()},
			"api-caller": {Targets: []string{api}, Ceiling: ceiling("{access: write, scopes: {'" + api + "': [read]}, vend: {}}")},
		},
		Issuers:   []string{idp, ci},
		Claims:    map[string][]string{idp: {"department"}, ci: {"repository"}},
		Providers: map[string]*grant.Schema{"warehouse": tables, "github": repos},
	}
}

func ceiling(text string) *scopes.Ceiling {
	var c scopes.Ceiling
	if err := strictyaml.Decode("ceiling", []byte(text), &c); err != nil {
		panic(err)
	}
	return &c
}

// filesMapping is the mapping that most tests change one thing in.
const filesMapping = `
resource: https://mcp.acme.example/files
max_lifetime: 10m
scopes:
  files:read:
    access: read
    vend:
      warehouse: {privileges: [{object: sales.orders, privileges: SELECT, columns: "*", rows: "*"}]}
    forward: {"https://api.acme.example/files": [read]}
  files:list:
    access: read
    vend:
      warehouse: {privileges: [{object: sales.customers, privileges: SELECT, columns: "*", rows: "*"}]}
  files:write:
    access: write
    vend:
      github: {repositories: ["acme/{args.repo}"], permissions: {contents: write}}
      warehouse: {privileges: [{object: "sales.orders", privileges: INSERT, columns: "*", rows: own}]}
    forward: {"https://api.acme.example/files": [write, read]}
tools:
  read_file: {scopes: [files:read]}
  write_file:
    scopes: [files:write]
    arguments: {size: long, path: string, force: bool}
    narrow: {github: {permissions: {contents: write}}, warehouse: {privileges: [{object: "sales.{args.table}", privileges: INSERT, columns: "*", rows: own}]}}
rules:
  - allow: ["*"]
    to: {groups: [engineering]}
  - allow: [files:write]
    to: {groups: [maintainers], agents: [desktop], clients: [files-mcp]}
    when: context.time.hour >= 8 && context.time.hour < 18
  - allow: [files:read]
    to: {claims: {iss: "https://ci.acme.example", sub: "*", repository: acme/web}}
  - allow: [files:list]
    to: {subjects: ["https://idp.acme.example#carol"]}
  - allow: [files:write]
    to: {groups: [finance], clients: ["*"]}
    approval: required
`

const apiMapping = `
resource: https://api.acme.example/files
scopes:
  read: {access: read}
  write: {access: write}
rules:
  - allow: [read, write]
    to: {groups: [engineering, maintainers]}
`

func load(t testing.TB, texts ...string) []*scopes.Mapping {
	t.Helper()
	var out []*scopes.Mapping
	for i, text := range texts {
		var m scopes.Mapping
		if err := strictyaml.Decode(fmt.Sprintf("m%d.yaml", i), []byte(text), &m); err != nil {
			t.Fatal(err)
		}
		m.Content = [][]byte{[]byte(text)}
		out = append(out, &m)
	}
	return out
}

func compile(t testing.TB, texts ...string) (*scopes.Policy, scopes.World) {
	t.Helper()
	w := world()
	p, err := scopes.Compile(load(t, texts...), w)
	if err != nil {
		t.Fatal(err)
	}
	return p, w
}

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// request is alice of engineering, with a token that says only who she is.
func request(change func(*scopes.Request)) *scopes.Request {
	r := &scopes.Request{
		Resource: mcp, Scopes: []string{"files:read"},
		Subject: scopes.Subject{Issuer: idp, ID: "alice", Groups: []string{"engineering"}},
		Agent:   "desktop", Client: "files-mcp", Held: scopes.Held{Everything: true}, Now: noon,
	}
	if change != nil {
		change(r)
	}
	return r
}

func TestDecide(t *testing.T) {
	p, w := compile(t, filesMapping, apiMapping)
	for name, tc := range map[string]struct {
		change   func(*scopes.Request)
		want     string // granted scopes, or the first refusal
		approval bool
	}{
		"a member of the group may read":      {nil, "files:read", false},
		"everything that was asked is needed": {func(r *scopes.Request) { r.Scopes = []string{"files:read", "files:write"} }, "!files:write: no_rule", false},
		"a wildcard gives reads":              {func(r *scopes.Request) { r.Scopes = []string{"files:read", "files:list"} }, "files:read files:list", false},
		"a wildcard does not give writes":     {func(r *scopes.Request) { r.Scopes = []string{"files:write"} }, "!files:write: no_rule", false},
		"another group may not":               {func(r *scopes.Request) { r.Subject.Groups = []string{"finance"} }, "!files:read: no_rule", false},
		"no group may not":                    {func(r *scopes.Request) { r.Subject.Groups = nil }, "!files:read: no_rule", false},
		"a group that nobody configured":      {func(r *scopes.Request) { r.Subject.Groups = []string{"engineering2", "*", ""} }, "!files:read: no_rule", false},
		"an unknown scope":                    {func(r *scopes.Request) { r.Scopes = []string{"files:delete"} }, "!files:delete: unknown_scope", false},
		"a wildcard is no scope":              {func(r *scopes.Request) { r.Scopes = []string{"*"} }, "!*: unknown_scope", false},
		"an unknown resource":                 {func(r *scopes.Request) { r.Resource = mcp + "/" }, "!unknown_resource", false},
		"nothing asked is not allowed":        {func(r *scopes.Request) { r.Scopes = nil }, "!", false},
		"all of a rule must match": {func(r *scopes.Request) {
			r.Subject.Groups, r.Scopes = []string{"maintainers"}, []string{"files:write"}
		}, "files:write", false},
		"another agent does not match": {func(r *scopes.Request) {
			r.Subject.Groups, r.Scopes, r.Agent = []string{"maintainers"}, []string{"files:write"}, "reader"
		}, "!files:write: no_rule", false},
		"no agent does not match": {func(r *scopes.Request) {
			r.Subject.Groups, r.Scopes, r.Agent = []string{"maintainers"}, []string{"files:write"}, ""
		}, "!files:write: no_rule", false},
		"another client does not match": {func(r *scopes.Request) {
			r.Subject.Groups, r.Scopes, r.Client = []string{"maintainers"}, []string{"files:write"}, "desktop"
		}, "!files:write: no_rule", false},
		"a condition that does not hold": {func(r *scopes.Request) {
			r.Subject.Groups, r.Scopes, r.Now = []string{"maintainers"}, []string{"files:write"}, noon.Add(8*time.Hour)
		}, "!files:write: condition", false},
		"a condition looks at UTC": {func(r *scopes.Request) {
			r.Subject.Groups, r.Scopes = []string{"maintainers"}, []string{"files:write"}
			r.Now = noon.Add(8 * time.Hour).In(time.FixedZone("west", -10*3600))
		}, "!files:write: condition", false},
		"claims match a workload": {func(r *scopes.Request) {
			r.Subject = scopes.Subject{Issuer: ci, ID: "job", Claims: map[string]string{"repository": "acme/web"}}
		}, "files:read", false},
		"another value of a claim does not": {func(r *scopes.Request) {
			r.Subject = scopes.Subject{Issuer: ci, ID: "job", Claims: map[string]string{"repository": "acme/web2"}}
		}, "!files:read: no_rule", false},
		"the same claim of another issuer does not": {func(r *scopes.Request) {
			r.Subject = scopes.Subject{Issuer: idp, ID: "job", Claims: map[string]string{"repository": "acme/web", "iss": ci}}
		}, "!files:read: no_rule", false},
		"a single subject matches": {func(r *scopes.Request) {
			r.Subject, r.Scopes = scopes.Subject{Issuer: idp, ID: "carol"}, []string{"files:list"}
		}, "files:list", false},
		"the same sub of another issuer does not": {func(r *scopes.Request) {
			r.Subject, r.Scopes = scopes.Subject{Issuer: ci, ID: "carol"}, []string{"files:list"}
		}, "!files:list: no_rule", false},
		"approval is asked for where only such a rule allows": {func(r *scopes.Request) {
			r.Subject.Groups, r.Scopes = []string{"finance"}, []string{"files:write"}
		}, "files:write", true},
		"approval is not asked for where another rule allows": {func(r *scopes.Request) {
			r.Subject.Groups, r.Scopes = []string{"finance", "maintainers"}, []string{"files:write"}
		}, "files:write", false},
		"a tool stands for its scopes":         {func(r *scopes.Request) { r.Tool, r.Scopes = "read_file", nil }, "files:read", false},
		"an unknown tool":                      {func(r *scopes.Request) { r.Tool = "delete_file" }, "!unknown_tool", false},
		"a scope that the tool does not need":  {func(r *scopes.Request) { r.Tool, r.Scopes = "read_file", []string{"files:write"} }, "!files:write: beyond_tool", false},
		"the token limits at its own resource": {func(r *scopes.Request) { r.Held = scopes.Held{Resource: mcp, Scopes: []string{"files:list"}} }, "!files:read: not_in_token", false},
		"the token holds it":                   {func(r *scopes.Request) { r.Held = scopes.Held{Resource: mcp, Scopes: []string{"files:read"}} }, "files:read", false},
		"a token without scopes holds nothing": {func(r *scopes.Request) { r.Held = scopes.Held{Resource: mcp} }, "!files:read: not_in_token", false},
		"the zero Held holds nothing":          {func(r *scopes.Request) { r.Held = scopes.Held{} }, "!files:read: not_in_token", false},
		"a scope is worth what is forwarded": {func(r *scopes.Request) {
			r.Resource, r.Scopes, r.Held = api, []string{"read"}, scopes.Held{Resource: mcp, Scopes: []string{"files:read"}}
		}, "read", false},
		"a scope is not worth what is not": {func(r *scopes.Request) {
			r.Resource, r.Scopes, r.Held = api, []string{"write"}, scopes.Held{Resource: mcp, Scopes: []string{"files:read", "write", "files:list"}}
		}, "!write: not_in_token", false},
		"nor at a resource without a mapping": {func(r *scopes.Request) {
			r.Resource, r.Scopes, r.Held = api, []string{"read"}, scopes.Held{Resource: others, Scopes: []string{"read"}}
		}, "!read: not_in_token", false},
		"a ceiling of access": {func(r *scopes.Request) {
			r.Subject.Groups, r.Scopes = []string{"maintainers"}, []string{"files:write"}
			r.Ceilings = []*scopes.Ceiling{everything(), w.Agents["reader"]}
		}, "!files:write: above_ceiling", false},
		"a ceiling of scopes": {func(r *scopes.Request) {
			r.Resource, r.Scopes, r.Client = api, []string{"write"}, "api-caller"
			r.Ceilings = []*scopes.Ceiling{w.Clients["api-caller"].Ceiling}
		}, "!write: above_ceiling", false},
		"within a ceiling of scopes": {func(r *scopes.Request) {
			r.Resource, r.Scopes, r.Client = api, []string{"read"}, "api-caller"
			r.Ceilings = []*scopes.Ceiling{w.Clients["api-caller"].Ceiling}
		}, "read", false},
		"a ceiling gives nothing at a resource that it does not name": {func(r *scopes.Request) {
			r.Ceilings = []*scopes.Ceiling{w.Clients["api-caller"].Ceiling}
		}, "!files:read: above_ceiling", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := request(tc.change)
			d := p.Decide(r)
			got := strings.Join(d.Granted, " ")
			if !d.Allowed() {
				got = "!"
				if len(d.Refused) > 0 {
					got += d.Refused[0].String()
				}
			}
			if got != tc.want || d.Approval != tc.approval {
				t.Fatalf("got %q (approval %v), want %q; %+v", got, d.Approval, tc.want, d)
			}
			if d.Allowed() && (len(d.Rules) == 0 || len(d.Policy) != 16) {
				t.Errorf("no rule or version is named: %+v", d)
			}
			x := p.Explain(r)
			if x.Allowed != d.Allowed() || fmt.Sprint(x.Decision.Refused) != fmt.Sprint(d.Refused) {
				t.Errorf("explained otherwise: %+v", x)
			}
			for _, s := range x.Scopes {
				if !s.Allowed && s.Nearest == "" {
					t.Errorf("%s: nothing is said that would have allowed it", s.Scope)
				}
			}
		})
	}
}

func TestGrant(t *testing.T) {
	p, w := compile(t, filesMapping, apiMapping)
	orders := func(priv, rows string) string {
		return `{"privileges":[{"columns":"*","object":"sales.orders","privileges":["` + priv + `"],"rows":"` + rows + `"}]}`
	}
	args := func(kv ...any) map[string]any {
		m := map[string]any{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i].(string)] = kv[i+1]
		}
		return m
	}
	for name, tc := range map[string]struct {
		scopes   []string
		provider string
		tool     string
		args     map[string]any
		want     string // the grant, or "!" and part of the error
	}{
		"a scope is worth its grant":              {[]string{"files:read"}, "warehouse", "", nil, orders("SELECT", "*")},
		"two scopes that differ once are one":     {[]string{"files:read", "files:list"}, "warehouse", "", nil, `{"privileges":[{"columns":"*","object":"sales.customers","privileges":["SELECT"],"rows":"*"},{"columns":"*","object":"sales.orders","privileges":["SELECT"],"rows":"*"}]}`},
		"a scope that vends nothing there":        {[]string{"files:read"}, "github", "", nil, `"nothing"`},
		"an argument is filled in":                {[]string{"files:write"}, "github", "write_file", args("repo", "web", "table", "orders"), `{"permissions":{"contents":"write"},"repositories":["acme/web"]}`},
		"a whole number is filled in":             {[]string{"files:write"}, "github", "write_file", args("repo", 42.0), `{"permissions":{"contents":"write"},"repositories":["acme/42"]}`},
		"a missing argument":                      {[]string{"files:write"}, "github", "write_file", args("x", "y"), "!argument repo is missing"},
		"no arguments at all":                     {[]string{"files:write"}, "github", "", nil, "!argument repo is missing"},
		"an argument that is everything":          {[]string{"files:write"}, "github", "write_file", args("repo", "*"), "!cannot stand in a grant"},
		"an argument that climbs":                 {[]string{"files:write"}, "github", "write_file", args("repo", ".."), "!cannot stand in a grant"},
		"an argument that goes further down":      {[]string{"files:write"}, "github", "write_file", args("repo", "web/../secret"), "!cannot stand in a grant"},
		"an argument that is a template":          {[]string{"files:write"}, "github", "write_file", args("repo", "{sub}"), "!cannot stand in a grant"},
		"an argument with a control character":    {[]string{"files:write"}, "github", "write_file", args("repo", "a\x00b"), "!cannot stand in a grant"},
		"an argument of many bytes":               {[]string{"files:write"}, "github", "write_file", args("repo", strings.Repeat("a", 300)), "!cannot stand in a grant"},
		"an empty argument":                       {[]string{"files:write"}, "github", "write_file", args("repo", ""), "!cannot stand in a grant"},
		"a fraction":                              {[]string{"files:write"}, "github", "write_file", args("repo", 1.5), "!no text or whole number"},
		"a number beyond exactness":               {[]string{"files:write"}, "github", "write_file", args("repo", float64(1<<60)), "!no text or whole number"},
		"a list":                                  {[]string{"files:write"}, "github", "write_file", args("repo", []any{"a"}), "!no text or whole number"},
		"a tool narrows":                          {[]string{"files:write"}, "warehouse", "write_file", args("repo", "x", "table", "orders"), orders("INSERT", "own")},
		"a tool narrows to nothing":               {[]string{"files:write"}, "warehouse", "write_file", args("repo", "x", "table", "customers"), `"nothing"`},
		"a tool cannot be narrowed by everything": {[]string{"files:write"}, "warehouse", "write_file", args("table", "*"), "!cannot stand in a grant"},
		"a provider that nobody configured":       {[]string{"files:read"}, "nowhere", "", nil, "!vends at nowhere"},
		"a scope that does not exist":             {[]string{"zzz"}, "warehouse", "", nil, `"nothing"`},
	} {
		t.Run(name, func(t *testing.T) {
			r := request(func(r *scopes.Request) { r.Tool, r.Arguments = tc.tool, tc.args })
			g, err := p.Grant(r, tc.scopes, tc.provider)
			if want, fails := strings.CutPrefix(tc.want, "!"); fails {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("got %s, %v, want an error with %q", g, err, want)
				}
				return
			}
			if err != nil || g.String() != tc.want {
				t.Fatalf("got %s, %v\nwant %s", g, err, tc.want)
			}
		})
	}
	t.Run("grants that cannot be joined are refused", func(t *testing.T) {
		text := strings.Replace(filesMapping, `repositories: ["acme/{args.repo}"], permissions: {contents: write}}`, `repositories: ["acme/{sub}"], permissions: {contents: write}}`, 1)
		text = strings.Replace(text, "max_lifetime: 10m", "max_lifetime: 10m\nsubject_issuer: "+idp, 1)
		text = strings.Replace(text, "    forward: {\"https://api.acme.example/files\": [read]}\n", "      github: {repositories: [acme/web], permissions: {issues: read}}\n", 1)
		p, _ := compile(t, text, apiMapping)
		if g, err := p.Grant(request(nil), []string{"files:read", "files:write"}, "github"); err == nil || !strings.Contains(err.Error(), "ask for one at a time") {
			t.Errorf("joined: %s, %v", g, err)
		}
		if g, err := p.Grant(request(nil), []string{"files:write"}, "github"); err != nil || !strings.Contains(g.String(), `"acme/alice"`) {
			t.Errorf("the subject was not filled in: %s, %v", g, err)
		}
		r := request(func(r *scopes.Request) { r.Subject.ID = "a/../b" })
		if g, err := p.Grant(r, []string{"files:write"}, "github"); err == nil {
			t.Errorf("a subject climbed: %s", g)
		}
		r = request(func(r *scopes.Request) { r.Subject.Issuer = ci })
		if g, err := p.Grant(r, []string{"files:write"}, "github"); err == nil || !strings.Contains(err.Error(), "another issuer") {
			t.Errorf("another issuer's subject of the same name: %s, %v", g, err)
		}
	})
	t.Run("a grant that grew too long is refused", func(t *testing.T) {
		p, _ := compile(t, strings.Replace(filesMapping, "{args.table}", "{args.table}{args.table}{args.table}", 1), apiMapping)
		r := request(func(r *scopes.Request) { r.Tool, r.Arguments = "write_file", args("table", strings.Repeat("x", 200)) })
		if g, err := p.Grant(r, []string{"files:write"}, "warehouse"); err == nil || !strings.Contains(err.Error(), "more than 512 bytes") {
			t.Errorf("got %s, %v", g, err)
		}
	})
	t.Run("ceilings limit grants", func(t *testing.T) {
		if g := everything().Limit("warehouse", tables); !g.Equal(tables.Everything()) {
			t.Error(g)
		}
		if g := w.Agents["reader"].Limit("warehouse", tables); !g.Equal(tables.Everything()) {
			t.Error(g)
		}
		if g := w.Clients["api-caller"].Ceiling.Limit("warehouse", tables); !g.IsNothing() {
			t.Error("a ceiling that names no provider leaves", g)
		}
	})
}

func TestCompileRefuses(t *testing.T) {
	change := func(old, new string) string {
		if !strings.Contains(filesMapping, old) {
			t.Fatalf("the mapping has no %q", old)
		}
		return strings.Replace(filesMapping, old, new, 1)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"a resource that is no URI":                          {change("resource: https://mcp.acme.example/files", "resource: files"), `m0.yaml:2:1: resource: "files" is no absolute URI`},
		"a resource with a fragment":                         {change("resource: https://mcp.acme.example/files", "resource: https://mcp.acme.example/files#x"), "has a fragment"},
		"a resource with a user":                             {change("resource: https://mcp.acme.example/files", "resource: https://u@mcp.acme.example/files"), "names a user"},
		"{sub} of whom, of several issuers":                  {change(`"acme/{args.repo}"`, `"acme/{sub}"`), "subject_issuer is missing"},
		"{sub} of whom, in a tool":                           {change("sales.{args.table}", "sales.{sub}"), "subject_issuer is missing"},
		"{sub} of an unknown issuer":                         {change("max_lifetime: 10m", "max_lifetime: 10m\nsubject_issuer: https://evil.example"), `m0.yaml:4:1: subject_issuer: no configured issuer is "https://evil.example"; there are: `},
		"no scopes":                                          {"resource: https://x.example/\nrules: []", "scopes: there are none"},
		"a scope without access":                             {change("    access: read\n    vend:", "    vend:"), "m0.yaml:5:3: scope files:read: access is missing"},
		"a scope that is no token":                           {change("  files:list:", `  "files list":`), "cannot be the name of a scope"},
		"a scope called everything":                          {change("  files:list:", `  "*":`), "cannot be the name of a scope"},
		"a provider that does not exist":                     {change("      github:", "      gitlab:"), `m0.yaml:17:7: scope files:write: there is no provider "gitlab"; there are: github, warehouse`},
		"a grant that the provider cannot say":               {change("privileges: SELECT", "privileges: DROP"), `m0.yaml:8:7: scope files:read: vend warehouse: privileges: "DROP" is none of`},
		"a grant of the wrong types":                         {change("[{object: sales.orders, privileges: SELECT, columns: \"*\", rows: \"*\"}]", "[1, true]"), "element 1"},
		"a read that writes":                                 {change("privileges: SELECT", "privileges: [SELECT, INSERT]"), "m0.yaml:8:7: scope files:read: vend warehouse: this grant does more than read"},
		"a grant of nothing":                                 {change("{privileges: [{object: sales.orders, privileges: SELECT, columns: \"*\", rows: \"*\"}]}", "nothing"), "this grant is nothing"},
		"a template that does not exist":                     {change("{args.repo}", "{user}"), "there are {sub} and {args.NAME}"},
		"a template that does not end":                       {change("{args.repo}", "{args.repo"), "there are {sub} and {args.NAME}"},
		"a brace without its partner":                        {change("{args.repo}", "x}"), "without its {"},
		"a forward to nowhere":                               {change(`forward: {"https://api.acme.example/files": [read]}`, `forward: {"https://nowhere.example/": [read]}`), "no other resource with a mapping"},
		"a forward to itself":                                {change(`forward: {"https://api.acme.example/files": [read]}`, `forward: {"https://mcp.acme.example/files": [files:list]}`), "no other resource with a mapping"},
		"a forward of a scope that is not":                   {change("[read]}", "[reed]}"), `has no scope "reed"; it has: read, write`},
		"a forward to more access":                           {change("[read]}", "[write]}"), "forward: write is write access, files:read only read"},
		"a tool without scopes":                              {change("{scopes: [files:read]}", "{scopes: []}"), "a call needs at least one"},
		"a tool with a scope that is not":                    {change("{scopes: [files:read]}", "{scopes: [files:raed]}"), `m0.yaml:21:24: tool read_file: there is no scope "files:raed"`},
		"a tool narrowed nowhere":                            {change("narrow: {github:", "narrow: {nowhere:"), `narrow: there is no provider "nowhere"`},
		"a tool narrowed in no dimension":                    {change("warehouse: {privileges: [{object: \"sales.{", "warehouse: {tables: [{object: \"sales.{"), `there is no "tables"`},
		"a tool narrowed by no object":                       {change(`github: {permissions: {contents: write}}`, "github: x"), "an object with some"},
		"a tool without a name":                              {change("  read_file:", `  "":`), `"" cannot be the name of a tool`},
		"a tool narrowed by no template":                     {change("sales.{args.table}", "sales.{table}"), "there are {sub} and {args.NAME}"},
		"an argument that Cedar reserves":                    {change("size: long", "if: long"), "when: schema of the conditions"},
		"a resource that is no URI at all":                   {change("resource: https://mcp.acme.example/files", "resource: '%zz'"), "is no URI"},
		"an argument of no type":                             {change("size: long", "size: int"), "is none of string, long, bool"},
		"an argument that has no name":                       {change("size: long", "a-b: long"), "no name that a condition could use"},
		"a rule that allows nothing":                         {change(`allow: ["*"]`, "allow: []"), "names at least one scope"},
		"a rule for a scope that is not":                     {change(`allow: ["*"]`, "allow: [files:reed]"), `there is no scope "files:reed"`},
		"a rule for nobody":                                  {change("to: {groups: [engineering]}", "to: {}"), "say to whom"},
		"a rule without to":                                  {change("    to: {groups: [engineering]}\n", ""), "say to whom"},
		"a group that nobody has":                            {change("groups: [engineering]", "groups: [enginering]"), `no group of a configured issuer is called "enginering"`},
		"an agent that does not exist":                       {change("agents: [desktop]", "agents: [laptop]"), `no agent is called "laptop"`},
		"a client that does not exist":                       {change("clients: [files-mcp]", "clients: [file-mcp]"), `no client is called "file-mcp"`},
		"a client that may not ask":                          {change("clients: [files-mcp]", "clients: [api-caller]"), "m0.yaml:29:5: this rule never matches: no client that it allows may ask for https://mcp.acme.example/files"},
		"an issuer that is not trusted":                      {change(`iss: "https://ci.acme.example"`, `iss: "https://ci2.acme.example"`), `no configured issuer is "https://ci2.acme.example"`},
		"a claim that this issuer's tokens are not read for": {change("repository: acme/web", "department: web"), `no token shows the claim "department"`},
		"a claim that no issuer's tokens are read for":       {change(`iss: "https://ci.acme.example", sub: "*", repository: acme/web`, "workflow: x"), `no token shows the claim "workflow"`},
		"a subject without an issuer":                        {change("https://idp.acme.example#carol", "carol"), "is no subject"},
		"a subject of an unknown issuer":                     {change("https://idp.acme.example#carol", "https://x.example#carol"), `no configured issuer is "https://x.example"`},
		"approval of another kind":                           {change("approval: required", "approval: maybe"), "the one value is required"},
		"a condition with an endless text":                   {change("context.time.hour >= 8 && context.time.hour < 18", "context.tool == \"x"), `m0.yaml:31:5: when: literal not terminated`},
		"a condition that does not parse":                    {change("context.time.hour >= 8 && context.time.hour < 18", "context.time.hour >="), `m0.yaml:31:5: when: ";": invalid primary`},
		"a condition with an unknown name":                   {change("context.time.hour >= 8 && context.time.hour < 18", "context.time.hours >= 8"), "when:"},
		"a condition that compares two types":                {change("context.time.hour >= 8 && context.time.hour < 18", `context.time.hour == "8"`), "when:"},
		"a condition on what may be absent":                  {change("context.time.hour >= 8 && context.time.hour < 18", "context.args.size > 8"), "when:"},
		"a condition that ends and begins":                   {change("context.time.hour >= 8 && context.time.hour < 18", "true }; permit (principal, action, resource) when { true"), "one expression is wanted"},
		"two conditions in one":                              {change("context.time.hour >= 8 && context.time.hour < 18", "true } unless { false"), "one expression is wanted"},
		"a scope that nobody can get":                        {change("groups: [engineering]", "groups: [engineering], clients: [desktop]") + "", ""},
		"a write that only a wildcard allows": {change(`  - allow: [files:write]
    to: {groups: [maintainers], agents: [desktop], clients: [files-mcp]}
    when: context.time.hour >= 8 && context.time.hour < 18
`, "")[:len(change(`  - allow: [files:write]
    to: {groups: [maintainers], agents: [desktop], clients: [files-mcp]}
    when: context.time.hour >= 8 && context.time.hour < 18
`, ""))-len("  - allow: [files:write]\n    to: {groups: [finance], clients: [\"*\"]}\n    approval: required\n")], "nobody can get the scope files:write: no rule allows it (a rule must name a scope of write access"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := scopes.Compile(load(t, tc.text, apiMapping), world())
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v\nwant an error with %q", err, tc.want)
			}
		})
	}
	t.Run("many names are cut short", func(t *testing.T) {
		w := world()
		for i := range 20 {
			w.Groups = append(w.Groups, fmt.Sprintf("g%02d", i))
		}
		_, err := scopes.Compile(load(t, change("groups: [engineering]", "groups: [a]"), apiMapping), w)
		if err == nil || !strings.Contains(err.Error(), " and 11 more") {
			t.Error(err)
		}
		w.Agents = nil
		w.Clients = map[string]scopes.Client{}
		if _, err = scopes.Compile(load(t, filesMapping, apiMapping), w); err == nil || !strings.Contains(err.Error(), "there are: none") {
			t.Error(err)
		}
	})
	t.Run("two mappings of one resource", func(t *testing.T) {
		_, err := scopes.Compile(load(t, apiMapping, apiMapping), world())
		if err == nil || !strings.Contains(err.Error(), "m1.yaml:2:1: resource https://api.acme.example/files has a mapping already") {
			t.Error(err)
		}
	})
	t.Run("every problem is reported", func(t *testing.T) {
		_, err := scopes.Compile(load(t, change("groups: [engineering]", "groups: [a, b]")), world())
		var all scopes.Problems
		if !errors.As(err, &all) || len(all) < 4 { // two groups, two forwards
			t.Errorf("got %v", err)
		}
	})
}

func TestCeilingsThatCannotBe(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"one word":                   {"x", "is no ceiling"},
		"parts missing":              {"{access: read}", "a ceiling has access, scopes and vend"},
		"scopes of another shape":    {"{access: read, scopes: [x], vend: '*'}", "an object of resources"},
		"scopes that are no list":    {"{access: read, scopes: {'https://x.example/': y}, vend: '*'}", "a list of texts"},
		"scopes that are no texts":   {"{access: read, scopes: {'https://x.example/': [1]}, vend: '*'}", "a list of texts"},
		"vend of another shape":      {"{access: read, scopes: '*', vend: x}", "an object of providers"},
		"a provider that is unknown": {"{access: read, scopes: '*', vend: {nowhere: '*'}}", "there is no provider"},
		"a grant that cannot be":     {"{access: read, scopes: '*', vend: {warehouse: {}}}", "privileges is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			w := world()
			var c scopes.Ceiling
			if err := strictyaml.Decode("ceiling", []byte(tc.text), &c); err != nil {
				if !strings.Contains(err.Error(), tc.want) {
					t.Fatal(err)
				}
				return
			}
			w.Agents["desktop"] = &c
			if _, err := scopes.Compile(load(t, filesMapping, apiMapping), w); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
	w := world()
	c := ceiling("{access: admin, scopes: {'https://mcp.acme.example/files': '*'}, vend: {warehouse: '*'}}")
	w.Agents["desktop"] = c
	p, err := scopes.Compile(load(t, filesMapping, apiMapping), w)
	if err != nil {
		t.Fatal(err)
	}
	if d := p.Decide(request(func(r *scopes.Request) { r.Ceilings = []*scopes.Ceiling{c} })); !d.Allowed() {
		t.Error("a ceiling of every scope of the resource refuses one:", d)
	}
	if !c.Limit("warehouse", tables).Equal(tables.Everything()) || !c.Limit("github", repos).IsNothing() {
		t.Error("the ceiling's grants are wrong")
	}
	if c := ceiling(`"*"`); !c.Everything {
		t.Error("* is not everything")
	}
}

func withCedar(t *testing.T, text, file string) ([]*scopes.Mapping, scopes.World) {
	m := load(t, text, apiMapping)
	m[0].Cedar, m[0].CedarFile = []byte(file), "files.cedar"
	return m, world()
}

func TestCedarFile(t *testing.T) {
	const permitAll = `permit (principal in Group::"finance", action, resource);`
	for name, tc := range map[string]struct {
		file   string
		change func(*scopes.Request)
		want   string
	}{
		"a permit allows as a rule does": {permitAll, func(r *scopes.Request) { r.Subject.Groups = []string{"finance"} }, "files:read"},
		"a permit that does not apply":   {permitAll, func(r *scopes.Request) { r.Subject.Groups = []string{"maintainers"} }, "!files:read: no_rule"},
		"a permit of every action gives no write": {permitAll, func(r *scopes.Request) {
			r.Subject.Groups, r.Scopes = []string{"finance"}, []string{"files:write"}
			r.Client = "desktop"
		}, "files:write?"}, // the rule for finance asks for approval
		"a permit that names a write gives it": {
			`permit (principal in Group::"maintainers", action == Action::"files:write", resource);`,
			func(r *scopes.Request) {
				r.Subject.Groups, r.Scopes, r.Agent = []string{"maintainers"}, []string{"files:write"}, ""
			}, "files:write",
		},
		"a permit that names one with in": {
			`permit (principal in Group::"maintainers", action in Action::"files:write", resource);`,
			func(r *scopes.Request) {
				r.Subject.Groups, r.Scopes, r.Agent = []string{"maintainers"}, []string{"files:write"}, ""
			}, "files:write",
		},
		"a permit that names several": {
			`permit (principal in Group::"maintainers", action in [Action::"files:write", Action::"files:read"], resource);`,
			func(r *scopes.Request) {
				r.Subject.Groups, r.Scopes, r.Agent = []string{"maintainers"}, []string{"files:write", "files:read"}, ""
			}, "files:write files:read",
		},
		"a forbid beats every rule": {`forbid (principal, action, resource) when { context.agent == "desktop" };`, nil, "!files:read: forbidden"},
		"a forbid beats every permit": {
			permitAll + `forbid (principal, action, resource) when { principal.id == "alice" };`,
			func(r *scopes.Request) { r.Subject.Groups = []string{"finance"} }, "!files:read: forbidden",
		},
		"a forbid that errs denies":     {`forbid (principal, action, resource) when { context.time.unix * 9223372036854775807 > 0 };`, nil, "!files:read: condition_error"},
		"a permit that errs denies too": {`permit (principal, action, resource) when { context.time.unix * 9223372036854775807 > 0 };`, nil, "!files:read: condition_error"},
		"a forbid by group":             {`forbid (principal in Group::"engineering", action, resource);`, nil, "!files:read: forbidden"},
		"a forbid by a group with an odd name": {
			`forbid (principal in Group::"en\"gineering", action, resource);`,
			func(r *scopes.Request) { r.Subject.Groups = append(r.Subject.Groups, `en"gineering`) }, "!files:read: forbidden",
		},
		"arguments of the declared type": {
			`forbid (principal, action, resource) when { context.args has size && context.args.size > 100 };`,
			func(r *scopes.Request) { r.Arguments = map[string]any{"size": 101.0} }, "!files:read: forbidden",
		},
		"arguments of another type are absent": {
			`forbid (principal, action, resource) unless { context.args has size && context.args.size < 100 };`,
			func(r *scopes.Request) { r.Arguments = map[string]any{"size": "1"} }, "!files:read: forbidden",
		},
		"texts and truths": {
			`forbid (principal, action, resource) unless { context.args has path && context.args.path like "/home/*" && context.args has force && !context.args.force };`,
			func(r *scopes.Request) { r.Arguments = map[string]any{"path": "/home/x", "force": false} }, "files:read",
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, w := withCedar(t, filesMapping, tc.file)
			p, err := scopes.Compile(m, w)
			if err != nil {
				t.Fatal(err)
			}
			d := p.Decide(request(tc.change))
			if x := p.Explain(request(tc.change)); x.Allowed != d.Allowed() {
				t.Errorf("explained otherwise: %+v", x)
			}
			got := strings.Join(d.Granted, " ")
			if d.Approval {
				got += "?"
			}
			if !d.Allowed() {
				got = "!" + d.Refused[0].String()
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	for name, tc := range map[string]struct{ file, want string }{
		"no Cedar":               {`permit (principal`, `files.cedar:1:18: "": exact got  want ,`},
		"no effect":              {"// why\n\nforbidden (principal, action, resource);", `files.cedar:3:11: "(": unexpected effect: forbidden`},
		"a text without an end":  {"permit (principal, action, resource)\nwhen { \"abc };", "files.cedar:2:8: literal not terminated"},
		"a number too large":     {"permit (principal, action, resource) when { 99999999999999999999 == 1 };", "files.cedar: strconv.ParseInt: "},
		"bytes that are no text": {"permit (principal, action, resource);\n\xff", "files.cedar: invalid UTF-8 encoding"},
		"an action that is none": {`permit (principal, action == Action::"read", resource);`, "files.cedar:1:1"},
		"a type that is none":    {`permit (principal in Team::"x", action, resource);`, "files.cedar:1:1"},
		"a name that is none":    {"permit (principal, action, resource);\npermit (principal, action, resource) when { principal.email == \"x\" };", "files.cedar:2:1"},
	} {
		t.Run(name, func(t *testing.T) {
			m, w := withCedar(t, filesMapping, tc.file)
			if _, err := scopes.Compile(m, w); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
	t.Run("a permit makes a scope one that somebody can get", func(t *testing.T) {
		text := strings.Replace(filesMapping, "groups: [engineering]", "groups: [engineering]", 1)
		text = strings.ReplaceAll(text, "  - allow: [files:write]\n    to: {groups: [finance], clients: [\"*\"]}\n    approval: required\n", "")
		i := strings.Index(text, "  - allow: [files:write]")
		j := strings.Index(text, "  - allow: [files:read]")
		text = text[:i] + text[j:]
		m, w := withCedar(t, text, `permit (principal, action, resource);`)
		if _, err := scopes.Compile(m, w); err == nil || !strings.Contains(err.Error(), "nobody can get the scope files:write") {
			t.Errorf("a permit of everything gives a write: %v", err)
		}
		m, w = withCedar(t, text, `permit (principal, action == Action::"files:write", resource);`)
		p, err := scopes.Compile(m, w)
		if err != nil {
			t.Fatal(err)
		}
		x := p.Explain(request(func(r *scopes.Request) { r.Subject.Groups, r.Scopes = nil, []string{"files:write"} }))
		if !x.Allowed {
			t.Errorf("got %+v", x)
		}
		m, w = withCedar(t, text, `permit (principal in Group::"finance", action == Action::"files:write", resource);`)
		if p, err = scopes.Compile(m, w); err != nil {
			t.Fatal(err)
		}
		x = p.Explain(request(func(r *scopes.Request) { r.Scopes = []string{"files:write"} }))
		if x.Allowed || !strings.Contains(x.Scopes[0].Nearest, "the Cedar file may") {
			t.Errorf("got %+v", x)
		}
	})
}

// A condition that cannot be evaluated denies, even where another rule allows.
func TestAnErringConditionDenies(t *testing.T) {
	text := strings.Replace(filesMapping, "  - allow: [files:read]\n", "  - allow: [files:read]\n    to: {groups: [engineering]}\n    when: context.time.unix * 9223372036854775807 > 0\n  - allow: [files:read]\n", 1)
	p, _ := compile(t, text, apiMapping)
	r := request(nil)
	if d := p.Decide(r); d.Allowed() || d.Refused[0].Why != scopes.ConditionError {
		t.Errorf("got %+v", d)
	}
	x := p.Explain(r)
	if !strings.Contains(fmt.Sprint(x.Scopes[0].Rules), "could not be evaluated") {
		t.Errorf("the rule is not named: %+v", x.Scopes[0].Rules)
	}
}

func TestHolds(t *testing.T) {
	p, _ := compile(t, filesMapping, apiMapping)
	for want, change := range map[string]func(*scopes.Request){
		"files:list files:read files:write": nil,
		"files:read":                        func(r *scopes.Request) { r.Held = scopes.Held{Resource: mcp, Scopes: []string{"files:read", "zzz"}} },
		"read write": func(r *scopes.Request) {
			r.Resource, r.Held = api, scopes.Held{Resource: mcp, Scopes: []string{"files:write"}}
		},
		"": func(r *scopes.Request) { r.Resource = others },
	} {
		if got := strings.Join(p.Holds(request(change)), " "); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestOnlyWhatRulesNameIsKnown(t *testing.T) {
	m, w := withCedar(t, filesMapping, `forbid (principal in Group::"contractors", action, resource);`)
	p, err := scopes.Compile(m, w)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.KnownGroups([]string{"engineering", "hr", "contractors", "*"}); strings.Join(got, " ") != "engineering contractors" {
		t.Errorf("groups: %q", got)
	}
	got := p.KnownClaims(map[string]string{"repository": "acme/web", "email": "x@y"})
	if len(got) != 1 || got["repository"] != "acme/web" || p.KnownClaims(nil) != nil {
		t.Errorf("claims: %v", got)
	}
}

func TestVersions(t *testing.T) {
	p, _ := compile(t, filesMapping, apiMapping)
	q, _ := compile(t, filesMapping, apiMapping+"# a comment\n")
	if p.Version() == q.Version() || p.Versions()[api] == q.Versions()[api] || p.Versions()[mcp] != q.Versions()[mcp] {
		t.Error("versions do not follow content:", p.Versions(), q.Versions())
	}
	again, _ := compile(t, apiMapping, filesMapping)
	if again.Version() != p.Version() {
		t.Error("the version depends on the order of files")
	}
	if !p.Has(mcp) || p.Has(others) || strings.Join(p.Scopes(mcp), " ") != "files:list files:read files:write" || p.Scopes(others) != nil {
		t.Error("Has or Scopes is wrong")
	}
	if d := p.Decide(request(nil)); d.Policy != p.Versions()[mcp] || d.MaxLifetime != 10*time.Minute {
		t.Errorf("the decision carries %+v", d)
	}
}

func TestExplainNamesTheNearest(t *testing.T) {
	p, _ := compile(t, filesMapping, apiMapping)
	for name, tc := range map[string]struct {
		change func(*scopes.Request)
		want   string
	}{
		"the group":        {func(r *scopes.Request) { r.Subject.Groups = nil }, "the rule at m0.yaml:27 allows it to the group engineering"},
		"the fewest lacks": {func(r *scopes.Request) { r.Subject.Groups, r.Scopes = nil, []string{"files:write"} }, "allows it to the group maintainers"},
		"several lacks": {func(r *scopes.Request) {
			r.Subject, r.Scopes, r.Client = scopes.Subject{Issuer: idp, ID: "x"}, []string{"files:list"}, "desktop"
		}, "the group engineering"},
		"a typing mistake":   {func(r *scopes.Request) { r.Scopes = []string{"file:read"} }, "did you mean files:read?"},
		"no such scope":      {func(r *scopes.Request) { r.Scopes = []string{"administer"} }, "the resource has these scopes: files:list, files:read, files:write"},
		"the token's scopes": {func(r *scopes.Request) { r.Held = scopes.Held{Resource: mcp, Scopes: []string{"files:list"}} }, "a subject token with the scope files:read"},
		"what is forwarded": {func(r *scopes.Request) {
			r.Resource, r.Scopes, r.Held = api, []string{"write"}, scopes.Held{Resource: mcp}
		}, "a subject token with the scope files:write, which https://mcp.acme.example/files forwards"},
		"what is not": {func(r *scopes.Request) {
			r.Resource, r.Scopes, r.Held = api, []string{"write"}, scopes.Held{Resource: others}
		}, "a scope of https://mcp.acme.example/others that forwards"},
		"what the tool needs": {func(r *scopes.Request) { r.Tool, r.Scopes = "read_file", []string{"files:write"} }, "the tool read_file needs files:read"},
		"the hour": {func(r *scopes.Request) {
			r.Subject.Groups, r.Scopes, r.Now = []string{"maintainers"}, []string{"files:write"}, noon.Add(10*time.Hour)
		}, "the condition of a matching rule"},
	} {
		t.Run(name, func(t *testing.T) {
			x := p.Explain(request(tc.change))
			if x.Allowed || len(x.Scopes) != 1 || !strings.Contains(x.Scopes[0].Nearest, tc.want) {
				t.Fatalf("got %+v, want %q", x, tc.want)
			}
		})
	}
	if x := p.Explain(request(func(r *scopes.Request) { r.Resource = others })); x.Why != scopes.UnknownResource {
		t.Errorf("got %+v", x)
	}
	x := p.Explain(request(func(r *scopes.Request) {
		r.Resource, r.Scopes, r.Held = api, []string{"read"}, scopes.Held{Resource: mcp, Scopes: []string{"files:read"}}
	}))
	if !x.Allowed || len(x.Scopes[0].Steps) != 3 || !strings.Contains(x.Scopes[0].Steps[0].Says, "forwards it") || x.Scopes[0].Rules[0].Says != "allows" {
		t.Errorf("steps: %+v", x.Scopes)
	}
	claim := p.Explain(request(func(r *scopes.Request) {
		r.Subject = scopes.Subject{Issuer: ci, ID: "x"}
		r.Scopes = []string{"files:read"}
	}))
	if !strings.Contains(claim.Scopes[0].Nearest, "engineering") && !strings.Contains(claim.Scopes[0].Nearest, `repository = "acme/web"`) {
		t.Errorf("nearest for a workload: %q", claim.Scopes[0].Nearest)
	}
}

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		want int // -1: an error
	}{
		"none": {"", 0}, "one": {"a", 1}, "several": {"a b:c d/e", 3}, "two spaces": {"a  b", -1}, "a leading space": {" a", -1},
		"a tab": {"a\tb", -1}, "a newline": {"a\nb", -1}, "a quote": {`a"b`, -1}, "a backslash": {`a\b`, -1}, "twice": {"a b a", -1},
		"another alphabet": {"å", -1}, "NUL": {"a\x00", -1}, "a long one": {strings.Repeat("a", 129), -1}, "many": {strings.Repeat("a ", 300), -1},
		"case is kept apart": {"a A", 2},
	} {
		got, err := scopes.Parse(tc.in)
		if tc.want < 0 && err == nil || tc.want >= 0 && (err != nil || len(got) != tc.want) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

func TestAccess(t *testing.T) {
	if scopes.Read.String()+scopes.Write.String()+scopes.Admin.String() != "readwriteadmin" {
		t.Error("levels have other names")
	}
	for _, bad := range []string{"resource: https://x.example/\nscopes: {a: {access: own}}", "resource: https://x.example/\nmax_lifetime: -1s", "resource: https://x.example/\nmax_lifetime: 0s", "max_lifetime: 7"} {
		var m scopes.Mapping
		if err := strictyaml.Decode("m.yaml", []byte(bad), &m); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if (scopes.Pos{File: "x"}).String() != "x" {
		t.Error("a place without a line")
	}
}

func FuzzMapping(f *testing.F) {
	f.Add([]byte(filesMapping), "")
	f.Add([]byte(apiMapping), `forbid (principal, action, resource);`)
	f.Fuzz(func(t *testing.T, text []byte, file string) {
		var m scopes.Mapping
		if strictyaml.Decode("m.yaml", text, &m) != nil {
			return
		}
		m.Cedar, m.CedarFile = []byte(file), "m.cedar"
		p, err := scopes.Compile([]*scopes.Mapping{&m}, world())
		if err != nil {
			var all scopes.Problems
			if !errors.As(err, &all) || len(all) == 0 {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		nobody := &scopes.Request{Resource: m.Resource.Value, Scopes: p.Scopes(m.Resource.Value), Now: noon}
		if d := p.Decide(nobody); len(d.Granted) > 0 {
			t.Fatalf("a request that holds nothing was granted %v", d.Granted)
		}
	})
}
