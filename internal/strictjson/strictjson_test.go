package strictjson_test

import (
	"errors"
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

func TestMembers(t *testing.T) {
	var got []string
	err := strictjson.Members([]byte(` {"a":1,"b":{"c":[2,"}"]},"\u0063":"x\n"} `), func(name string, v []byte) error {
		text, ok := strictjson.Text(v)
		got = append(got, name+"="+string(v)+"/"+text+"/"+map[bool]string{true: "text"}[ok])
		return nil
	})
	if want := "a=1// b={\"c\":[2,\"}\"]}// c=\"x\\n\"/x\n/text"; err != nil || strings.Join(got, " ") != want {
		t.Errorf("got %q, %v", got, err)
	}
	for name, bad := range map[string]string{
		"a list": `[]`, "nothing": ``, "a repeated name": `{"a":1,"\u0061":2}`, "a repeat further in": `{"a":{"b":1,"b":2}}`,
		"trailing data": `{"a":1} {}`, "half an object": `{"a":1`, "no value": `{"a":}`, "no name": `{1:2}`,
		"a lone surrogate": `{"a":"\ud800"}`, "depth": `{"a":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`,
	} {
		if err := strictjson.Members([]byte(bad), func(string, []byte) error { return nil }); err == nil {
			t.Errorf("%s was read", name)
		}
	}
	stop := errors.New("stop")
	if err := strictjson.Members([]byte(`{"a":1,"b":2}`), func(string, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the error of each is lost: %v", err)
	}
	for _, bad := range []string{``, `1`, `null`, `"`, `"\ud800"`} {
		if text, ok := strictjson.Text([]byte(bad)); ok {
			t.Errorf("%s is a text: %q", bad, text)
		}
	}
}

func BenchmarkMembers(b *testing.B) {
	doc := []byte(`{"iss":"https://idp.example","sub":"alice","aud":"x","exp":1764000000,"iat":1763990000,"jti":"abcdefghijklmnop","scope":"a b c","groups":["a","b","c"],"azp":"client","sid":"xyz","auth_time":1763990000,"email":"alice@example.com"}`)
	b.ReportAllocs()
	for b.Loop() {
		if err := strictjson.Members(doc, func(string, []byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func TestLater(t *testing.T) {
	for text, want := range map[string]bool{
		`{"v":2}`: true, `{"a":{"v":1},"b":[],"v":3}`: true, `{"v":1}`: false, `{"v":0}`: false, `{}`: false, `{"V":2}`: false,
		`{"a":{"v":2}}`: false, `{"v":"2"}`: false, `{"v":2.5}`: false, `{"v":2,"v":1}`: false, `{"v":2`: false, `[2]`: false, ``: false,
	} {
		if v, later := strictjson.Later([]byte(text), "v", 1); later != want || later && v < 2 {
			t.Errorf("%s: %d, %t", text, v, later)
		}
	}
}
