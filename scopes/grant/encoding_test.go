package grant_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/scopes/grant"
)

var tables = grant.MustSchema("tables", 1,
	grant.Dimension{Name: "privileges", Type: grant.PrivSet, Values: []string{"SELECT", "INSERT"}, Below: map[string][]string{"region": {"own"}}},
	grant.Dimension{Name: "ttl", Type: grant.Duration, About: "how long the login may live"},
)

var mixed = grant.MustSchema("mixed", 1,
	grant.Dimension{Name: "perms", Type: grant.LevelMap, Levels: map[string][]string{"issues": {"read", "write"}, "workflows": {"write"}}},
	grant.Dimension{Name: "org", Type: grant.LevelMap, Optional: true},
	grant.Dimension{Name: "repos", Type: grant.IDSet},
	grant.Dimension{Name: "objects", Type: grant.PrefixSet},
	grant.Dimension{Name: "account", Type: grant.Exact},
	grant.Dimension{Name: "rules", Type: grant.RuleSet},
)

func TestCanonicalForm(t *testing.T) {
	for name, tc := range map[string]struct {
		schema   *grant.Schema
		in, want string
	}{
		"elements are sorted, gathered and rid of what others cover": {tables,
			`{"ttl":"15m","privileges":[
				{"object":"s.t","privileges":["SELECT","INSERT"],"columns":["b","a"],"rows":"own"},
				{"object":"s.t","privileges":"SELECT","columns":"a","rows":"region"},
				{"object":"s.a","privileges":["INSERT"],"columns":"*","rows":"*"}]}`,
			`{"privileges":[{"columns":"*","object":"s.a","privileges":["INSERT"],"rows":"*"},` +
				`{"columns":["a","b"],"object":"s.t","privileges":["INSERT"],"rows":"own"},` +
				`{"columns":["a"],"object":"s.t","privileges":["SELECT"],"rows":"region"},` +
				`{"columns":["b"],"object":"s.t","privileges":["SELECT"],"rows":"own"}],"ttl":900}`},
		"everything is written out": {tables, `"*"`, `{"privileges":"*","ttl":"*"}`},
		"nothing in a mandatory dimension is nothing at all": {tables,
			`{"ttl":0,"privileges":"*"}`, `"nothing"`},
		"nothing stays nothing": {tables, `"nothing"`, `"nothing"`},
		"an optional dimension may be nothing": {mixed,
			`{"perms":{"issues":"read","workflows":"none"},"org":{},"repos":["7","12"],"objects":[{"verbs":["put","get"],"bucket":"b","prefix":"p/"}],
			  "account":"42","rules":[{"verbs":["get","list"],"apiGroups":"","resources":"pods","resourceNames":"*"},{"verbs":["get"],"nonResourceURLs":["/healthz"]}]}`,
			`{"account":"42","objects":[{"bucket":"b","prefix":"p/","verbs":["get","put"]}],"org":{},"perms":{"issues":"read"},"repos":["12","7"],` +
				`"rules":[{"nonResourceURLs":"/healthz","verbs":["get"]},{"apiGroups":"","resourceNames":"*","resources":"pods","verbs":["get","list"]}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := tc.schema.Parse([]byte(tc.in))
			if err != nil {
				t.Fatal(err)
			}
			if g.String() != tc.want {
				t.Fatalf("got  %s\nwant %s", g, tc.want)
			}
			if js, err := json.Marshal(g); err != nil || string(js) != tc.want {
				t.Errorf("MarshalJSON: %s, %v", js, err)
			}
			if again, err := tc.schema.Parse([]byte(tc.want)); err != nil || !again.Equal(g) {
				t.Errorf("does not read back: %v", err)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	priv := func(fields string) string { return `{"ttl":"*","privileges":[{` + fields + `}]}` }
	whole := map[string]string{
		"account": `"42"`, "objects": `"*"`, "org": `"*"`, "perms": `"*"`, "repos": `"*"`, "rules": `"*"`,
	}
	with := func(name, v string) string {
		var parts []string
		for n, old := range whole {
			if n == name {
				old = v
			}
			parts = append(parts, `"`+n+`":`+old)
		}
		return "{" + strings.Join(parts, ",") + "}"
	}
	keys := func(n int) string {
		var parts []string
		for i := range n {
			parts = append(parts, fmt.Sprintf(`"k%d":"read"`, i))
		}
		return strings.Join(parts, ",")
	}
	var columns []string
	for i := range 2000 {
		columns = append(columns, fmt.Sprintf(`"c%d"`, i))
	}
	wide := `{"object":"t","privileges":"SELECT","columns":[` + strings.Join(columns, ",") + `],"rows":"*"}`
	many := `["` + strings.Repeat(`x","`, 2100) + `x"]`
	for name, tc := range map[string]struct {
		schema *grant.Schema
		in     string
		want   string
	}{
		"an absent dimension":                 {tables, `{"ttl":"*"}`, "privileges is missing"},
		"an unknown dimension":                {tables, `{"ttl":"*","privileges":"*","x":1}`, `there is no "x"`},
		"a repeated dimension":                {tables, `{"ttl":"*","ttl":1,"privileges":"*"}`, "duplicate"},
		"no object":                           {tables, `[]`, "a grant is an object"},
		"an absent field":                     {tables, priv(`"object":"t","privileges":"SELECT","rows":"*"`), "columns: missing"},
		"an unknown field":                    {tables, priv(`"object":"t","privileges":"SELECT","columns":"*","rows":"*","x":"y"`), "is wanted"},
		"an empty list in a field":            {tables, priv(`"object":"t","privileges":[],"columns":"*","rows":"*"`), "empty"},
		"a privilege that does not exist":     {tables, priv(`"object":"t","privileges":"DROP","columns":"*","rows":"*"`), "is none of SELECT, INSERT"},
		"a star where none is meant":          {tables, priv(`"object":"*","privileges":"SELECT","columns":"*","rows":"*"`), "not here"},
		"a star inside a name":                {tables, priv(`"object":"s.*","privileges":"SELECT","columns":"*","rows":"*"`), "not here"},
		"a number where a text belongs":       {tables, priv(`"object":1,"privileges":"SELECT","columns":"*","rows":"*"`), "text"},
		"a number in a list of texts":         {tables, priv(`"object":"t","privileges":[1],"columns":"*","rows":"*"`), "text"},
		"an element that is no object":        {tables, `{"ttl":"*","privileges":["x"]}`, "an object with object, privileges"},
		"an object where a list belongs":      {tables, `{"ttl":"*","privileges":{}}`, "a list is wanted"},
		"a fraction of a second":              {tables, `{"ttl":1.5,"privileges":"*"}`, "whole seconds"},
		"a negative duration":                 {tables, `{"ttl":"-1s","privileges":"*"}`, "between 0"},
		"an endless duration":                 {tables, `{"ttl":1e18,"privileges":"*"}`, "between 0"},
		"no duration":                         {tables, `{"ttl":"soon","privileges":"*"}`, "whole seconds"},
		"a duration of another kind":          {tables, `{"ttl":true,"privileges":"*"}`, "whole seconds"},
		"too many combinations in one":        {tables, priv(`"object":` + many[:1010] + `"],"privileges":["SELECT","INSERT"],"columns":` + many[:6310] + `"],"rows":"*"`), "more than 2048"},
		"a level that does not exist":         {mixed, with("perms", `{"issues":"own"}`), "none of none, read"},
		"a level that the key does not have":  {mixed, with("perms", `{"workflows":"read"}`), `no level "read"`},
		"a key that the schema does not have": {mixed, with("perms", `{"issue":"read"}`), `there is no "issue"`},
		"a level that is no text":             {mixed, with("perms", `{"issues":1}`), "a level is a text"},
		"a list of levels":                    {mixed, with("perms", `["issues"]`), "an object of levels"},
		"an empty id":                         {mixed, with("repos", `[""]`), "empty text"},
		"a control character":                 {mixed, with("repos", `["a\u0000b"]`), "characters"},
		"a long id":                           {mixed, with("repos", `["`+strings.Repeat("x", 600)+`"]`), "more than 512 bytes"},
		"too many ids":                        {mixed, with("repos", many), "more than 2048"},
		"a list where one value belongs":      {mixed, with("account", `["a","b"]`), "one text"},
		"a prefix without its slash":          {mixed, with("objects", `[{"verbs":"get","bucket":"b","prefix":"p"}]`), "ends in /"},
		"a wildcard in a prefix":              {mixed, with("objects", `[{"verbs":"get","bucket":"b","prefix":"p*/"}]`), "not here"},
		"a variable in a prefix":              {mixed, with("objects", `[{"verbs":"get","bucket":"b","prefix":"${aws:username}/"}]`), "? and $"},
		"a path that is none":                 {mixed, with("rules", `[{"verbs":"get","nonResourceURLs":"healthz"}]`), "no path"},
		"a star in the middle of a path":      {mixed, with("rules", `[{"verbs":"get","nonResourceURLs":"/a*/b"}]`), "no path"},
		"a rule of both kinds":                {mixed, with("rules", `[{"verbs":"get","nonResourceURLs":"/a","resources":"pods"}]`), "is wanted"},
		"a rule that names no resource":       {mixed, with("rules", `[{"verbs":"get","apiGroups":"","resourceNames":"*"}]`), "resources: missing"},
		"a star before no subresource":        {mixed, with("rules", `[{"verbs":"get","apiGroups":"","resources":"*/","resourceNames":"*"}]`), "not here"},
		"an id that is no text":               {mixed, with("repos", `[7]`), "a text is wanted"},
		"too many keys":                       {mixed, with("org", `{`+keys(2100)+`}`), "more than 2048"},
		"too many in several elements":        {tables, `{"ttl":"*","privileges":[` + wide + "," + wide + `]}`, "more than 2048"},
		"too many rules":                      {mixed, with("rules", `[{"verbs":["a","b","c","d","e","f","g","h","i","j","k","l","m","n","o","p","q"],"apiGroups":"","resources":["a","b","c","d","e","f","g","h","i","j","k","l","m","n","o","p"],"resourceNames":"*"}]`), "more than 256"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tc.schema.Parse([]byte(tc.in))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestLimitNarrowsOnlyWhatItNames(t *testing.T) {
	g, err := tables.Limit(map[string]any{"ttl": "1m"})
	if err != nil || g.String() != `{"privileges":"*","ttl":60}` {
		t.Fatal(g, err)
	}
	if g, err := tables.Limit(map[string]any{"ttl": 0}); err != nil || !g.IsNothing() {
		t.Error("a limit of nothing is", g, err)
	}
	for _, bad := range []map[string]any{{"tttl": "1m"}, {"ttl": "x"}} {
		if _, err := tables.Limit(bad); err == nil {
			t.Errorf("%v was read", bad)
		}
	}
}

func TestUnionOfProductsThatDifferTwiceIsRefused(t *testing.T) {
	parse := func(s string) grant.Grant {
		g, err := tables.Parse([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	one := func(table, ttl string) grant.Grant {
		return parse(`{"ttl":` + ttl + `,"privileges":[{"object":"` + table + `","privileges":"SELECT","columns":"*","rows":"*"}]}`)
	}
	if u, ok := grant.Union(one("a", "60"), one("b", "900")); ok {
		t.Errorf("a for 15 minutes came of a for one and b for 15: %s", u)
	}
	if _, ok := grant.Union(one("a", "60"), one("b", "60")); !ok {
		t.Error("two tables for the same time are no union")
	}
	if _, ok := grant.Union(one("a", "60"), mixed.Everything()); ok {
		t.Error("grants of two schemas have a union")
	}
	var first, second []any
	for i := range 2000 {
		first, second = append(first, fmt.Sprintf("a%d", i)), append(second, fmt.Sprintf("b%d", i))
	}
	ids := grant.MustSchema("ids", 1, grant.Dimension{Name: "x", Type: grant.IDSet})
	many, _ := ids.ParseValue(map[string]any{"x": first})
	more, _ := ids.ParseValue(map[string]any{"x": second})
	if _, ok := grant.Union(many, more); ok {
		t.Error("4,000 elements are one grant")
	}
	exact := grant.MustSchema("e", 1, grant.Dimension{Name: "x", Type: grant.Exact})
	a, _ := exact.Parse([]byte(`{"x":"a"}`))
	b, _ := exact.Parse([]byte(`{"x":"b"}`))
	if _, ok := grant.Union(a, b); ok {
		t.Error("one value is two")
	}
}

func TestGrantsOfDifferentSchemasHaveNothingInCommon(t *testing.T) {
	other := grant.MustSchema("tables", 2, tables.Dimensions()...)
	if m := grant.Meet(tables.Everything(), other.Everything()); !m.IsNothing() {
		t.Error("they meet in", m)
	}
	ok, diffs := grant.Leq(tables.Everything(), other.Everything())
	if ok || len(diffs) != 1 || !strings.Contains(diffs[0].String(), "different schemas") {
		t.Error("they compare:", ok, diffs)
	}
	if tables.Everything().Equal(other.Everything()) {
		t.Error("they are equal")
	}
	var zero grant.Grant
	if !zero.IsNothing() || zero.Schema() != nil || zero.String() != `"nothing"` {
		t.Error("the zero grant is something")
	}
	if ok, diffs := grant.Leq(tables.Everything(), tables.Nothing()); ok || len(diffs) != 1 {
		t.Error("everything is below nothing:", diffs)
	}
}

func TestLeqSaysWhatIsInExcess(t *testing.T) {
	a, _ := mixed.Parse([]byte(`{"account":"1","objects":"*","org":{},"perms":{"issues":"write"},"repos":["1","2"],"rules":[{"verbs":"get","nonResourceURLs":"/a"}]}`))
	b, _ := mixed.Parse([]byte(`{"account":"2","objects":[],"org":{},"perms":{"issues":"read"},"repos":["1"],"rules":[{"verbs":"get","nonResourceURLs":"/b"}]}`))
	if !b.IsNothing() {
		t.Fatal("an empty mandatory list is something")
	}
	b, _ = mixed.Parse([]byte(`{"account":"2","objects":[{"verbs":"get","bucket":"b","prefix":""}],"org":{},"perms":{"issues":"read"},"repos":["1"],"rules":[{"verbs":"get","nonResourceURLs":"/b"}]}`))
	_, diffs := grant.Leq(a, b)
	var got []string
	for _, d := range diffs {
		got = append(got, d.String())
	}
	want := []string{"account: 1", "objects: *", "perms: issues write", "repos: 2", "rules: get  /a"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDimension(t *testing.T) {
	g, _ := tables.Limit(map[string]any{"ttl": 60})
	if all, atoms := g.Dimension("privileges"); !all || atoms != nil {
		t.Error("privileges", all, atoms)
	}
	if all, atoms := g.Dimension("ttl"); all || len(atoms) != 1 || atoms[0][0] != "60" {
		t.Error("ttl", all, atoms)
	}
	if all, atoms := g.Dimension("x"); all || atoms != nil {
		t.Error("x", all, atoms)
	}
	if all, _ := tables.Nothing().Dimension("ttl"); all {
		t.Error("nothing has everything")
	}
	if g.Schema() != tables || tables.Kind() != "tables" {
		t.Error("the schema is lost")
	}
}

func TestReadOnly(t *testing.T) {
	s := grant.MustSchema("k", 1,
		grant.Dimension{Name: "perms", Type: grant.LevelMap, Reads: []string{"read"}},
		grant.Dimension{Name: "objects", Type: grant.PrefixSet, Reads: []string{"get", "list"}},
		grant.Dimension{Name: "ttl", Type: grant.Duration},
	)
	for in, want := range map[string]bool{
		`{"perms":{"a":"read"},"objects":[{"verbs":["get","list"],"bucket":"b","prefix":""}],"ttl":"*"}`:  true,
		`{"perms":{"a":"read","b":"write"},"objects":[{"verbs":"get","bucket":"b","prefix":""}],"ttl":1}`: false,
		`{"perms":{"a":"read"},"objects":[{"verbs":["get","put"],"bucket":"b","prefix":""}],"ttl":1}`:     false,
		`{"perms":"*","objects":[{"verbs":"get","bucket":"b","prefix":""}],"ttl":1}`:                      false,
		`"*"`:       false,
		`"nothing"`: true,
	} {
		if g, err := s.Parse([]byte(in)); err != nil || g.ReadOnly() != want {
			t.Errorf("%s: %v, %v", in, g.ReadOnly(), err)
		}
	}
	if tables.Everything().ReadOnly() {
		t.Error("a schema that cannot tell calls its grants read-only")
	}
}

// A sub-resource at which things are done can be used by whoever may get it.
func TestReadOnlyRules(t *testing.T) {
	s := grant.MustSchema("k", 1, grant.Dimension{Name: "rules", Type: grant.RuleSet, Reads: []string{"get", "list"}, ReadsAt: []string{"log", "status"}})
	bare := grant.MustSchema("k", 1, grant.Dimension{Name: "rules", Type: grant.RuleSet, Reads: []string{"get", "list"}})
	for in, want := range map[string]bool{
		`{"rules":[{"verbs":["get","list"],"apiGroups":"","resources":["pods","pods/log","*/status"],"resourceNames":"*"}]}`: true,
		`{"rules":[{"verbs":"delete","apiGroups":"","resources":"pods","resourceNames":"*"}]}`:                               false,
		`{"rules":[{"verbs":"get","apiGroups":"","resources":["pods","pods/exec"],"resourceNames":"web"}]}`:                  false,
		`{"rules":[{"verbs":"get","apiGroups":"","resources":"*/proxy","resourceNames":"*"}]}`:                               false,
		`{"rules":[{"verbs":"get","apiGroups":"","resources":"pods/log/log","resourceNames":"*"}]}`:                          false,
		`{"rules":[{"verbs":"get","apiGroups":"","resources":"*","resourceNames":"*"}]}`:                                     false,
		`{"rules":[{"verbs":"get","nonResourceURLs":["/metrics","/logs/*"]}]}`:                                               true,
	} {
		if g, err := s.Parse([]byte(in)); err != nil || g.ReadOnly() != want {
			t.Errorf("%s: %v, %v", in, g.ReadOnly(), err)
		}
	}
	g, err := bare.Parse([]byte(`{"rules":[{"verbs":"get","apiGroups":"","resources":"*","resourceNames":"*"}]}`))
	if err != nil || !g.ReadOnly() {
		t.Errorf("a schema that knows of no sub-resources tells by more than verbs: %v", err)
	}
}

func TestSchemaIsData(t *testing.T) {
	again, err := grant.DecodeSchema(tables.Encode())
	if err != nil || again.Hash() != tables.Hash() || len(tables.Hash()) != 64 {
		t.Fatal(err)
	}
	g, err := again.Parse([]byte(`{"ttl":60,"privileges":"*"}`))
	if err != nil {
		t.Fatal(err)
	}
	if ok, diffs := grant.Leq(g, tables.Everything()); !ok {
		t.Error("a decoded schema does not compare with its original:", diffs)
	}
	if _, err := grant.DecodeSchema([]byte(`{"kind":"x"`)); err == nil {
		t.Error("half a schema was read")
	}
}

func TestNewSchemaRefuses(t *testing.T) {
	dim := func(d grant.Dimension) []grant.Dimension { return []grant.Dimension{d} }
	for name, tc := range map[string]struct {
		dims []grant.Dimension
		want string
	}{
		"no dimensions":          {nil, "1 to 16"},
		"no name":                {dim(grant.Dimension{Type: grant.Exact}), "a name has"},
		"no such type":           {dim(grant.Dimension{Name: "x", Type: "bag"}), "no such type"},
		"two of one name":        {[]grant.Dimension{{Name: "x", Type: grant.Exact}, {Name: "x", Type: grant.IDSet}}, "twice"},
		"values of a duration":   {dim(grant.Dimension{Name: "x", Type: grant.Duration, Values: []string{"1"}}), "values mean nothing"},
		"reads of a duration":    {dim(grant.Dimension{Name: "x", Type: grant.Duration, Reads: []string{"1"}}), "reads mean nothing"},
		"levels of ids":          {dim(grant.Dimension{Name: "x", Type: grant.IDSet, Levels: map[string][]string{"a": {"read"}}}), "levels mean nothing"},
		"an order of ids":        {dim(grant.Dimension{Name: "x", Type: grant.IDSet, Below: map[string][]string{"a": {"b"}}}), "below means nothing"},
		"readable sub-tables":    {dim(grant.Dimension{Name: "x", Type: grant.PrivSet, ReadsAt: []string{"log"}}), "reads_at means nothing"},
		"a level that is none":   {dim(grant.Dimension{Name: "x", Type: grant.LevelMap, Levels: map[string][]string{"a": {"own"}}}), "no such level"},
		"a circle":               {dim(grant.Dimension{Name: "x", Type: grant.ScopeSet, Below: map[string][]string{"a": {"b"}, "b": {"a"}}}), "below itself"},
		"a place for the star":   {dim(grant.Dimension{Name: "x", Type: grant.PrivSet, Below: map[string][]string{"a": {"*"}}}), "own place"},
		"a circle further down":  {dim(grant.Dimension{Name: "x", Type: grant.ScopeSet, Below: map[string][]string{"a": {"b"}, "b": {"c"}, "c": {"b"}}}), "below itself"},
		"profiles with no meet":  {dim(grant.Dimension{Name: "x", Type: grant.Profile, Below: map[string][]string{"a": {"c", "d"}, "b": {"c", "d"}}}), "no single greatest"},
		"a value with bad UTF-8": {dim(grant.Dimension{Name: "x", Type: grant.IDSet, Values: []string{"\xff"}}), "UTF-8"},
		"more than 16":           {make([]grant.Dimension, 17), "1 to 16"},
		"a name with bad UTF-8":  {dim(grant.Dimension{Name: "\xff", Type: grant.Exact}), "a name has"},
		"a name beyond 64 bytes": {dim(grant.Dimension{Name: strings.Repeat("x", 65), Type: grant.Exact}), "a name has"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := grant.NewSchema("k", 1, tc.dims...); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
	defer func() {
		if recover() == nil {
			t.Error("MustSchema took a wrong schema")
		}
	}()
	grant.MustSchema("", 0)
}

// A meet of rules can have more elements than either; beyond the limit it is
// nothing, which is below both.
func TestAMeetTooLargeToSayIsNothing(t *testing.T) {
	rules := grant.MustSchema("r", 1, grant.Dimension{Name: "rules", Type: grant.RuleSet})
	var verbs, names []string
	for i := range 200 {
		verbs = append(verbs, `"v`+strings.Repeat("x", i)+`"`)
		names = append(names, `"n`+strings.Repeat("x", i)+`"`)
	}
	a, err := rules.Parse([]byte(`{"rules":[{"verbs":[` + strings.Join(verbs, ",") + `],"apiGroups":"","resources":"pods","resourceNames":"*"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := rules.Parse([]byte(`{"rules":[{"verbs":"*","apiGroups":"","resources":"pods","resourceNames":[` + strings.Join(names, ",") + `]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if m := grant.Meet(a, b); !m.IsNothing() {
		t.Errorf("200 x 200 rules were said in %d bytes", len(m.String()))
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"privileges":[{"object":"s.t","privileges":["SELECT"],"columns":["a"],"rows":"own"}],"ttl":900}`))
	f.Add([]byte(`"*"`))
	f.Add([]byte(`{"perms":{"issues":"read"},"org":{},"repos":["1"],"objects":"*","account":"1","rules":[{"verbs":["get"],"nonResourceURLs":"/healthz/*"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, s := range []*grant.Schema{tables, mixed} {
			g, err := s.Parse(data)
			if err != nil {
				continue
			}
			again, err := s.Parse(g.Canonical())
			if err != nil || !again.Equal(g) {
				t.Fatalf("%s does not read back: %v", g, err)
			}
			if ok, diffs := grant.Leq(grant.Meet(g, s.Everything()), g); !ok {
				t.Fatalf("%s: %v", g, diffs)
			}
		}
	})
}
