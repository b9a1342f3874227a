package config

import (
	"errors"
	"testing"

	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/scopes"
	"github.com/stint-dev/stint/scopes/grant"
)

// fuzzWorld is what the mappings of the corpus refer to.
func fuzzWorld() scopes.World {
	everything := &scopes.Ceiling{Everything: true}
	return scopes.World{
		Groups: []string{"staff"}, Issuers: []string{"https://idp.example"},
		Agents:  map[string]*scopes.Ceiling{"desktop": everything},
		Clients: map[string]scopes.Client{"notes": {Resource: "https://api.example", Targets: []string{"db"}, Ceiling: everything}},
		Providers: map[string]*grant.Schema{"db": grant.MustSchema("postgres", 1,
			grant.Dimension{Name: "privileges", Type: grant.PrivSet, Values: []string{"SELECT", "INSERT"}, Reads: []string{"SELECT"}})},
	}
}

// Whatever is in a file: it is refused with everything that is wrong, or it
// compiles, or the compiler says what is wrong, and nothing panics.
func FuzzLoadMapping(f *testing.F) {
	for _, text := range []string{
		"",
		"resource: https://api.example\nscopes:\n  read: {access: read}\nrules:\n  - allow: [read]\n    to: {groups: [staff]}\n",
		"resource: https://api.example\nmax_lifetime: 5m\nscopes:\n  r: {access: read, vend: {db: {privileges: [{object: app.t, privileges: SELECT, columns: '*', rows: '*'}]}}}\n" +
			"tools:\n  t: {scopes: [r], arguments: {n: long}, narrow: {db: {privileges: [{object: 'app.{args.n}', privileges: SELECT, columns: '*', rows: '*'}]}}}\n" +
			"rules:\n  - {allow: ['*'], to: {agents: [desktop], clients: [notes], subjects: ['https://idp.example#x'], claims: {iss: 'https://idp.example'}}, when: context.time.hour > 3, approval: required}\n",
		"resource: x\nscopes:\n  a:\n  b: {}\nrules: [{}, {to: }, {allow: , to: {}}]\n",
		"resource: https://api.example\nscopes: {r: {access: read, vend: {db: , x: [1]}, forward: {y: [z]}}}\ntools: {t: {narrow: {db: '{'}}}\nrules: []\n",
		"resource: [a]\nscopes: &a {b: *a}\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseMapping("m.yaml", data)
		if err != nil {
			var all strictyaml.Errors
			if !errors.As(err, &all) || len(all) == 0 {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		p, err := scopes.Compile([]*scopes.Mapping{m}, fuzzWorld())
		var problems scopes.Problems
		switch {
		case err == nil && !p.Has(m.Resource.Value):
			t.Fatal("it compiled to nothing")
		case err != nil && (!errors.As(err, &problems) || len(problems) == 0):
			t.Fatalf("an error of another kind: %v", err)
		}
		for _, problem := range problems {
			if problem.Pos.File != "m.yaml" || problem.Pos.Line < 1 {
				t.Errorf("%v stands nowhere", problem)
			}
		}
	})
}
