package strictjson_test

import (
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/strictjson"
)

type doc struct {
	Method string         `json:"method"`
	Params map[string]any `json:"params"`
}

func TestDecode(t *testing.T) {
	deep := strings.Repeat("[", strictjson.MaxDepth+1) + strings.Repeat("]", strictjson.MaxDepth+1)
	for name, tc := range map[string]struct {
		in   string
		want string // part of the error; empty: none
	}{
		"a plain document is read":          {`{"method":"m","params":{"a":[1,2]}}`, ""},
		"white space around is fine":        {" {\"method\":\"m\"}\n", ""},
		"a repeated name is refused":        {`{"method":"a","method":"b"}`, "duplicate"},
		"a repeat further in is refused":    {`{"params":{"a":1,"a":2}}`, "duplicate"},
		"an escaped repeat is refused":      {`{"method":"a","\u006dethod":"b"}`, "duplicate"},
		"a name in another case is refused": {`{"Method":"a"}`, "unknown"},
		"an unknown name is refused":        {`{"other":1}`, "unknown"},
		"trailing data is refused":          {`{"method":"a"}{"method":"b"}`, "after top-level value"},
		"a byte order mark is refused":      {"\ufeff{}", "invalid character"},
		"broken UTF-8 is refused":           {"{\"method\":\"\xff\"}", "UTF-8"},
		"a lone surrogate is refused":       {`{"method":"\ud800"}`, "surrogate"},
		"nothing is refused":                {``, "EOF"},
		"a number where a text belongs":     {`{"method":7}`, "at /method: a JSON number does not fit here"},
		"depth is limited":                  {`{"params":{"a":` + deep + `}}`, "nested more than"},
		"brackets in strings do not count":  {`{"method":"` + strings.Repeat(`[\"{`, 100) + `"}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var d doc
			err := strictjson.Decode([]byte(tc.in), &d)
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error with %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "strictjson_test") {
				t.Errorf("the error names a Go type: %v", err)
			}
		})
	}
}

func TestDecodeKnownSkipsUnknownNamesOnly(t *testing.T) {
	var d doc
	if err := strictjson.DecodeKnown([]byte(`{"method":"m","extra":{"x":[]}}`), &d); err != nil || d.Method != "m" {
		t.Fatal(err, d)
	}
	if err := strictjson.DecodeKnown([]byte(`{"extra":1,"extra":2}`), &d); err == nil {
		t.Fatal("a repeated unknown name was read")
	}
	if err := strictjson.DecodeKnown([]byte(`{"METHOD":"x"}`), &d); err != nil || d.Method != "m" {
		t.Fatal("a name in another case was taken for ours")
	}
}

// The example is that of RFC 8785 section 3.2.2 and 3.2.3, in short.
func TestCanonical(t *testing.T) {
	in := `{"numbers":[333333333.33333329,1E30,4.50,2e-3],"string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}`
	want := `{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002],"string":"€$\u000f\nA'B\"\\\\\"/"}`
	got, err := strictjson.Canonical([]byte(in))
	if err != nil || string(got) != want {
		t.Fatalf("got %s, %v\nwant %s", got, err, want)
	}
	for _, bad := range []string{`{"a":1,"a":1}`, `{`, strings.Repeat("[", 40)} {
		if _, err := strictjson.Canonical([]byte(bad)); err == nil {
			t.Errorf("%s was canonicalised", bad)
		}
	}
	if got, err := strictjson.Encode(map[string]any{"b": 1, "a": []string{"<"}}); err != nil || string(got) != `{"a":["<"],"b":1}` {
		t.Errorf("Encode: %s, %v", got, err)
	}
	if _, err := strictjson.Encode("\xff"); err == nil {
		t.Error("broken UTF-8 was encoded")
	}
	if got := string(strictjson.AppendString(nil, "a\"\n<\u2028>é")); got != "\"a\\\"\\n<\u2028>é\"" {
		t.Errorf("AppendString = %s", got)
	}
}
