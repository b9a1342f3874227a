package strictyaml_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/strictyaml"
)

type place struct {
	file         string
	line, column int
}

func (p *place) SetPos(file string, line, column int) { *p = place{file, line, column} }

type shout string

func (s *shout) UnmarshalText(b []byte) error {
	if string(b) == "quiet" {
		return errors.New("too quiet")
	}
	*s = shout(strings.ToUpper(string(b)))
	return nil
}

type anything struct {
	place
	v any
}

func (a *anything) SetRaw(v any) { a.v = v }

type inner struct {
	place `yaml:"-"`
	Name  string `yaml:"name" check:"required"`
	Kind  string `yaml:"kind" check:"oneof=a|b"`
}

func (i *inner) Check() error {
	if i.Name == i.Kind {
		return errors.New("name and kind are the same")
	}
	return nil
}

type base struct {
	Port int `yaml:"port" check:"min=1,max=65535"`
}

type target struct {
	base
	URL     string            `yaml:"url" check:"https"`
	Address string            `yaml:"address" check:"hostport"`
	On      bool              `yaml:"on"`
	Ratio   float64           `yaml:"ratio"`
	Say     shout             `yaml:"say"`
	Inners  []*inner          `yaml:"inners"`
	By      map[string]*inner `yaml:"by"`
	Raw     anything          `yaml:"raw"`
	Part    *strictyaml.Part  `yaml:"part"`
	Skipped string            `yaml:"-"`
	Any     any               `yaml:"any"`
	Words   []string          `yaml:"words"`
	Nets    []string          `yaml:"nets" check:"network"`
	Secrets map[string]string `yaml:"secrets" check:"reference"`
	Labels  map[string]string `yaml:"labels"`
}

func TestDecode(t *testing.T) {
	var got target
	err := strictyaml.Decode("f.yaml", []byte(`
url: https://x.example/y
address: ":8443"
port: 80
on: true
ratio: 0.5
say: hello
words: [on, 012, 2026-01-01, ~x]
labels: {a: 1.0}
inners:
  - name: x
    kind: a
  - {name: y, kind: b}
by:
  one: {name: z, kind: a}
raw: {list: [1, two, true, null], big: 1e3}
part:
  name: later
any: [1]
`), &got)
	if err != nil {
		t.Fatal(err)
	}
	if got.URL != "https://x.example/y" || got.Port != 80 || !got.On || got.Ratio != 0.5 || got.Say != "HELLO" || got.Address != ":8443" {
		t.Errorf("got %+v", got)
	}
	if strings.Join(got.Words, ",") != "on,012,2026-01-01,~x" || got.Labels["a"] != "1.0" {
		t.Errorf("texts were guessed at: %q %q", got.Words, got.Labels)
	}
	if p := got.Inners[1].place; p != (place{"f.yaml", 13, 5}) {
		t.Errorf("the second of inners stands at %v", p)
	}
	if p := got.By["one"].place; p != (place{"f.yaml", 15, 3}) {
		t.Errorf("a map's value stands at its key, not at %v", p)
	}
	m := got.Raw.v.(map[string]any)
	if l := m["list"].([]any); l[0] != 1.0 || l[1] != "two" || l[2] != true || l[3] != nil || m["big"] != 1000.0 {
		t.Errorf("raw: %v", m)
	}
	var in struct {
		Name string `yaml:"name"`
	}
	if err := got.Part.Decode(&in); err != nil || in.Name != "later" {
		t.Errorf("part: %v, %v", in, err)
	}
	var other struct {
		Age int `yaml:"age"`
	}
	if err := got.Part.Decode(&other); err == nil || !strings.Contains(err.Error(), "f.yaml:18:3: no such key") {
		t.Errorf("part: %v", err)
	}
	if err := got.Part.Errorf("wrong %d", 1); err.Error() != "f.yaml:18:3: wrong 1" {
		t.Error(err)
	}
	var empty target
	if err := strictyaml.Decode("f.yaml", []byte("# nothing\n"), &empty); err != nil {
		t.Error(err)
	}
	if err := (*strictyaml.Part)(nil).Decode(&in); err == nil {
		t.Error("no part was decoded")
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"an unknown key":                 {"on: true\nprot: 1", `f.yaml:2:1: no such key: "prot"`},
		"an unknown key that is alike":   {"add: x", "did you mean address?"},
		"a letter too few":               {"adress: x", "did you mean address?"},
		"a letter too many":              {"porrt: x", "did you mean port?"},
		"a wrong letter":                 {"part: x\nbort: x", "did you mean port?"},
		"two letters the wrong way":      {"prot: x", "did you mean port?"},
		"nothing that is alike":          {"xyzzy: x", "; there are: address, any"},
		"a key in another case":          {"URL: x", "did you mean url?"},
		"a key twice":                    {"on: true\non: false", `f.yaml:2:1: "on" is there already, on line 1`},
		"a key twice in a map":           {"labels:\n  a: x\n  a: y", `f.yaml:3:3: "a" is there already`},
		"a key twice in raw":             {"raw: {a: 1, a: 2}", "there already"},
		"no boolean":                     {"on: yes", `f.yaml:1:5: on: true or false is wanted, not "yes"`},
		"no number":                      {"port: many", "port: a whole number is wanted"},
		"a number out of bounds":         {"port: 0", "min is 1"},
		"a number that is too large":     {"port: 70000", "max is 65535"},
		"an infinite ratio":              {"ratio: .inf", "a number is wanted"},
		"a list where a text belongs":    {"url: [x]", "a text is wanted, not a list"},
		"a text where a list belongs":    {"words: x", `a list is wanted, not "x"`},
		"a text where an object belongs": {"by: x", "an object is wanted"},
		"a list of the wrong things":     {"inners: [x]", `inners[0]: an object is wanted, not "x"`},
		"an empty element":               {"inners:\n  -\n", "an empty element"},
		"nothing behind a name":          {"by:\n  one:\n", "f.yaml:2:3: by.one: there is nothing"},
		"a missing field":                {"by: {one: {kind: a}}", "f.yaml:1:11: by.one: name is missing"},
		"an empty field":                 {`by: {one: {name: "", kind: a}}`, "name is missing"},
		"a value that does not exist":    {"by: {one: {name: x, kind: c}}", `by.one.kind: "c" is none of a, b`},
		"a check of the whole":           {"by:\n  one: {name: a, kind: a}", "f.yaml:2:3: by.one: name and kind are the same"},
		"a text that is refused":         {"say: quiet", "f.yaml:1:6: say: too quiet"},
		"an anchor":                      {"url: &a https://x\nsay: *a", "anchors and aliases"},
		"an anchor in raw":               {"raw: {a: &x 1, b: *x}", "anchors and aliases"},
		"a merge key":                    {"by: {one: {<<: {name: x}}}", "a key is a plain text"},
		"a list as a key":                {"by: {[a]: x}", "a key is a plain text"},
		"a second document":              {"on: true\n---\non: true", "a second document"},
		"broken YAML":                    {"on: true\n  x: [", "f.yaml:"},
		"a tab":                          {"on: true\nby:\n\tone: x", "f.yaml:3:1: a tab: indent with spaces"},
		"a tab after spaces":             {"by:\n  one:\n    name: a\n  \tkind: b", "f.yaml:4:3: a tab: indent with spaces"},
		"a tab in a block of text":       {"say: |\n\thello", "f.yaml:2:1: a tab: indent with spaces"},
		"something else before a tab":    {"say: @x\t", "f.yaml:1:1: found character that cannot start any token"},
		"a tab in a second document":     {"on: true\n---\n\ton: true", "f.yaml:3:1: a tab: indent with spaces"},
		"depth":                          {"raw: " + strings.Repeat("[", 40) + strings.Repeat("]", 40), "nested"},
		"no URL":                         {"url: example.com", "is no URL"},
		"a plain URL":                    {"url: http://example.com", "use https"},
		"a URL with a user":              {"url: https://u:p@example.com", "f.yaml:1:6: url: a URL does not name a user"},
		"a broken URL with a user":       {"url: https://u:p%zz@example.com", "url: a URL does not name a user"},
		"no network":                     {"nets:\n  - 10.0.0.0/8\n  - 10.0.0.0", `f.yaml:3:5: nets[1]: "10.0.0.0" is no network`},
		"a secret that is written out":   {"secrets:\n  a: file:/x\n  b: hunter2", "f.yaml:3:6: secrets.b: a secret is not written here"},
		"a reference without a field":    {"secrets: {a: vault:x}", "a secret is not written here"},
		"a reference that climbs":        {"secrets: {a: 'vault:../x#y'}", "a secret is not written here"},
		"no address":                     {"address: localhost", "is no address"},
		"a port that is none":            {"address: localhost:http", "is no address"},
		"a list at the top":              {"[1]", "an object is wanted, not a list"},
	} {
		t.Run(name, func(t *testing.T) {
			var v target
			err := strictyaml.Decode("f.yaml", []byte(tc.in), &v)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v\nwant an error with %q", err, tc.want)
			}
		})
	}
	var v target
	if err := strictyaml.Decode("f.yaml", make([]byte, strictyaml.MaxSize+1), &v); err == nil || !strings.Contains(err.Error(), "f.yaml: more than") {
		t.Error(err)
	}
}

type half struct {
	place `yaml:"-"`
	A     int `yaml:"a"`
}

func (h *half) Check() error {
	if h.A == 7 {
		return errors.New("a is seven")
	}
	return nil
}

type whole struct {
	First  half `yaml:",inline"`
	Second struct {
		B int `yaml:"b"`
	} `yaml:",inline"`
}

func TestInlineParts(t *testing.T) {
	var v struct {
		All []*whole `yaml:"all"`
	}
	if err := strictyaml.Decode("f.yaml", []byte("all:\n  - a: 1\n    b: 2\n"), &v); err != nil {
		t.Fatal(err)
	}
	if w := v.All[0]; w.First.A != 1 || w.Second.B != 2 || w.First.place != (place{"f.yaml", 2, 5}) {
		t.Errorf("got %+v", w)
	}
	err := strictyaml.Decode("f.yaml", []byte("all:\n  - {a: 7, b: 2}\n"), &v)
	if err == nil || !strings.Contains(err.Error(), "f.yaml:2:5: all[0]: a is seven") {
		t.Errorf("got %v", err)
	}
}

// says is a part whose Check says what it was told to.
type says struct {
	place  `yaml:"-"`
	Text   string            `yaml:"text"`
	Labels map[string]string `yaml:"labels"`
	List   []*says           `yaml:"list"`
}

func (s *says) Check() error {
	if s.Text == "" {
		return nil
	}
	var all []error
	for line := range strings.SplitSeq(s.Text, "|") {
		all = append(all, errors.New(line))
	}
	return errors.Join(all...)
}

func TestWhatCheckSaysStandsAtTheKeyThatItNames(t *testing.T) {
	const tail = "\nlabels:\n  a.b: x\n  c: y\nlist:\n  - text: ''\n  - labels: {z: y}\n"
	for said, want := range map[string]string{
		"text: is wrong":             "f.yaml:1:1: text: is wrong",
		"labels: c: is wrong":        "f.yaml:4:3: labels: c: is wrong",
		"labels.c: is wrong":         "f.yaml:4:3: ",
		"labels: a.b: is wrong":      "f.yaml:3:3: ",
		"list[1]: labels: is wrong":  "f.yaml:7:5: ",
		"list[1].labels.z: is wrong": "f.yaml:7:14: ",
		"list[1]: is wrong":          "f.yaml:7:5: ",
		"list[7]: is wrong":          "f.yaml:1:1: ",
		"list[x]: is wrong":          "f.yaml:1:1: ",
		"nothing: is wrong":          "f.yaml:1:1: ",
		"labels: other: is wrong":    "f.yaml:2:1: ",
		"no.such[0].key: is wrong":   "f.yaml:1:1: ",
		"no colon at all":            "f.yaml:1:1: no colon at all",
		"list: wrong|labels: wrong":  "f.yaml:2:1: labels: wrong\nf.yaml:5:1: list: wrong",
	} {
		err := strictyaml.Decode("f.yaml", []byte("text: '"+said+"'"+tail), &says{})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: got %v", said, err)
		}
	}
}

func TestErrorsAfterDecoding(t *testing.T) {
	for text, want := range map[string]string{
		"by: one: no":   "f.yaml:2:3: by: one: no",
		"zzz: no":       "f.yaml: zzz: no",
		"nothing there": "f.yaml: nothing there",
	} {
		if err := strictyaml.Errorf("f.yaml", []byte("by:\n  one: x\n"), "%s", text); err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := strictyaml.Errorf("f.yaml", []byte("{"), "by: x"); err.Error() != "f.yaml: by: x" {
		t.Errorf("a broken file: %v", err)
	}
}

func TestAnEmptyFileHasNothingThatIsRequired(t *testing.T) {
	for _, text := range []string{"", "# nothing", "---\n"} {
		err := strictyaml.Decode("f.yaml", []byte(text), &inner{})
		if err == nil || !strings.HasPrefix(err.Error(), "f.yaml:") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestOneMistakeIsReportedOnce(t *testing.T) {
	var v struct {
		Port int `yaml:"port" check:"required,min=1"`
	}
	err := strictyaml.Decode("f.yaml", []byte("port: many"), &v)
	if err == nil || strings.Contains(err.Error(), "missing") {
		t.Errorf("got %v", err)
	}
}

func TestEveryMistakeIsReportedInOrder(t *testing.T) {
	var v target
	err := strictyaml.Decode("f.yaml", []byte("by:\n  b: {kind: c}\nport: x\nurl: http://127.0.0.1:80\nzzz: 1\n"), &v)
	var all strictyaml.Errors
	if !errors.As(err, &all) || len(all) != 4 {
		t.Fatalf("got %v", err)
	}
	for i := 1; i < len(all); i++ {
		if all[i].Line < all[i-1].Line {
			t.Errorf("out of order: %v", err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("by: {one: {name: x, kind: a}}\nraw: [1, {a: b}]\n"))
	f.Add([]byte("url: &a x\nsay: *a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var v target
		err := strictyaml.Decode("f.yaml", data, &v)
		var all strictyaml.Errors
		if err != nil && (!errors.As(err, &all) || len(all) == 0) {
			t.Fatalf("an error of another kind: %v", err)
		}
	})
}
