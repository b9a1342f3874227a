package api_test

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/stint-dev/stint/audit"
)

// inUTF16 is a text as UTF-16 with a byte order mark.
func inUTF16(text string) string {
	b := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(text)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return string(b)
}

func gzipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.String()
}

const (
	noForm    = "the body has to be application/x-www-form-urlencoded"
	brokenOne = "the body is no form"
	repeated  = "a parameter is repeated"
	notUTF8   = "a parameter is not UTF-8 text"
)

// A request has one reading. Whatever would have two is refused, at each endpoint
// that takes a form, before anything is looked at.
func TestAttackParameterPollution(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	multipart := "--x\r\nContent-Disposition: form-data; name=\"token\"\r\n\r\nabc\r\n--x--\r\n"
	type attack struct {
		path, contentType, body string // of the body %s is a good form
		want                    refusal
	}
	tooLarge := refusal{413, "invalid_request", "the body is too large", "the body is too large"}
	for name, a := range map[string]attack{
		"in the address alone":                     {"?%s", formType, "", badForm("parameters belong into the body")},
		"in the address and in the body":           {"?scope=files:write", formType, "%s", badForm("parameters belong into the body")},
		"in the address, escaped":                  {"?%%73cope=files:write", formType, "%s", badForm("parameters belong into the body")},
		"of several parts":                         {"", "multipart/form-data; boundary=x", multipart, badForm(noForm)},
		"of several parts that says it is none":    {"", formType + "; boundary=x", multipart, badForm(brokenOne)},
		"in UTF-16":                                {"", formType + "; charset=utf-16", "%u", badForm(noForm)},
		"in UTF-16 that says nothing":              {"", formType, "%u", badForm(brokenOne)},
		"with semicolons between":                  {"", formType, "%s;scope=files:write", badForm(brokenOne)},
		"with an escaped semicolon in a name":      {"", formType, "%s&a%3Bb=c&a%3Bb=d", badForm(repeated)},
		"as JSON":                                  {"", "application/json", `{"grant_type":"client_credentials","token":"abc"}`, badForm(noForm)},
		"as JSON that says it is a form":           {"", formType, `{"grant_type":"client_credentials","token":"abc;"}`, badForm(brokenOne)},
		"as text":                                  {"", "text/plain", "%s", badForm(noForm)},
		"of no type":                               {"", "", "%s", badForm(noForm)},
		"of a type with more behind":               {"", formType + ", application/json", "%s", badForm(noForm)},
		"in another charset":                       {"", formType + "; charset=iso-8859-1", "%s", badForm(noForm)},
		"with a NUL in a name":                     {"", formType, "%s&a%00b=c", badForm(notUTF8)},
		"with a NUL in a value":                    {"", formType, "%s&a=b%00c", badForm(notUTF8)},
		"with bytes that are no text":              {"", formType, "%s&a=%C0%AF", badForm(notUTF8)},
		"with broken escapes":                      {"", formType, "%s&a=%4", badForm(brokenOne)},
		"of 1 MB":                                  {"", formType, "%s&a=" + strings.Repeat("x", 1<<20), tooLarge},
		"of 1 MB of names":                         {"", formType, "%s&" + strings.Repeat("a=1&", 1<<18), tooLarge},
		"one byte beyond the limit":                {"", formType, strings.Repeat("x", 64<<10+1), tooLarge},
		"with an unknown parameter twice":          {"", formType, "%s&x=1&x=2", badForm(repeated)},
		"with an unknown parameter twice, escaped": {"", formType, "%s&x=1&%78=1", badForm(repeated)},
	} {
		for path, good := range map[string]string{"/oauth2/token": w.form().Encode(), "/oauth2/revoke": "token=a%20c", "/oauth2/introspect": "token=a%20c"} {
			want := a.want
			if path != "/oauth2/token" {
				want.reason = "" // no exchange, and nothing was done
			}
			body := strings.NewReplacer("%s", good, "%u", inUTF16(good)).Replace(a.body)
			where := path + strings.NewReplacer("%s", good, "%%", "%").Replace(a.path)
			w.refused(t, path+" "+name, w.send(where, a.contentType, body, nil), want)
		}
	}
	compressed := w.send("/oauth2/token", formType, gzipped(w.form().Encode()), func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") })
	w.refused(t, "compressed", compressed, badForm(noForm))
	both := w.send("/oauth2/token", formType, w.form().Encode(), func(r *http.Request) { r.Header.Add("Content-Type", "application/json") })
	w.refused(t, "of two types", both, badForm(noForm))
	other := w.form()
	other.Set("grant_type", "password")
	w.refused(t, "of a grant type that there is not", w.post("/oauth2/token", other), refusal{400, "unsupported_grant_type", "the grant type is not supported", "the grant type is not supported"})
	w.granted(t, "the form", w.send("/oauth2/token", formType, w.form().Encode(), nil))
}

// Of every parameter but resource and audience there is one, whether its two
// values differ or not, and in whichever order they come.
func TestAttackRepeatedParameters(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	for _, name := range []string{
		"grant_type", "subject_token", "subject_token_type", "actor_token", "actor_token_type", "requested_token_type", "scope",
		"authorization_details", "client_id", "client_secret", "client_assertion", "client_assertion_type",
	} {
		good := w.form()
		if good.Get(name) == "" {
			good.Set(name, "x")
		}
		value := good.Get(name)
		for _, other := range []string{value, "y"} {
			body := good.Encode()
			w.refused(t, name+" behind", w.send("/oauth2/token", formType, body+"&"+name+"="+url.QueryEscape(other), nil), badForm(repeated))
			w.refused(t, name+" before", w.send("/oauth2/token", formType, name+"="+url.QueryEscape(other)+"&"+body, nil), badForm(repeated))
		}
	}
	for _, path := range []string{"/oauth2/revoke", "/oauth2/introspect"} {
		for _, name := range []string{"token", "token_type_hint", "client_id"} {
			body := "token=abc&" + name + "=1&" + name + "=2"
			w.refused(t, path+" "+name, w.send(path, formType, body, nil), refusal{400, "invalid_request", repeated, ""})
		}
	}
	// What a client asks of them in vain, once it is known to be one, is recorded.
	for _, tc := range []struct {
		path, body, reason string
		kind               audit.Kind
	}{
		{"/oauth2/revoke", "token_type_hint=x", "token is missing", audit.KindRevocation},
		{"/oauth2/introspect", "token_type_hint=x", "token is missing", audit.KindIntrospect},
		{"/oauth2/introspect", "token=abc&consume=1", "consume is true or false", audit.KindIntrospect},
		{"/oauth2/introspect", "token=abc", "client desktop is no resource", audit.KindIntrospect},
	} {
		w.recordedAs(t, tc.path+" "+tc.body, w.send(tc.path, formType, tc.body, nil), tc.kind, tc.reason)
	}
	// Those two may be repeated, not without end, and name one thing together.
	many := w.form()
	for range 16 {
		many.Add("resource", mcp)
	}
	w.refused(t, "seventeen resources", w.post("/oauth2/token", many), badForm("a parameter is repeated too often"))
	two := w.form()
	two.Add("resource", "https://api.test/files")
	w.refused(t, "two targets, one of another client", w.post("/oauth2/token", two), refusal{400, "invalid_target", "unknown target", "no target of client"})
	two["resource"][1] = "https://api.test/nothing" // which is told the same
	w.refused(t, "two targets, one unknown", w.post("/oauth2/token", two), refusal{400, "invalid_target", "unknown target", "no mapping"})
	two["audience"] = []string{"code"}
	two["resource"] = []string{mcp}
	w.refused(t, "a target and another audience", w.asMCP(two), refusal{400, "invalid_target", "one target at a time", "one target at a time"})
}

// asMCP posts a form as files-mcp, of a token that was issued for it.
func (w *target) asMCP(form url.Values) *answer {
	w.t.Helper()
	form.Set("subject_token", w.granted(w.t, "a token for the MCP server", w.post("/oauth2/token", w.form())))
	return w.post("/oauth2/token", w.asFilesMCP(form))
}

// Documents within a request are read the one strict way, too: no name twice, none
// in another case, nothing behind, and no more than there is room for.
func TestAttackDetailsOfTwoReadings(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	call := func(inner string) string { return `[{"type":"mcp_tool_call","tool":"read_file"` + inner + `}]` }
	for name, tc := range map[string]struct{ details, want string }{
		"a name twice":                 {call(`,"tool":"write_file"`), "duplicate"},
		"a name twice by an escape":    {call(`,"\u0074ool":"write_file"`), "duplicate"},
		"a name in another case":       {call(`,"Tool":"write_file"`), "unknown"},
		"a name with a NUL":            {call(`,"tool\u0000":"write_file"`), "unknown"},
		"a byte order mark":            {"\ufeff" + call(""), "invalid"},
		"data behind":                  {call("") + "[]", "invalid"},
		"an argument twice":            {call(`,"arguments":{"a":1,"a":2}`), "duplicate"},
		"an argument twice, deep down": {call(`,"arguments":{"a":[{"b":1,"b":2}]}`), "duplicate"},
		"arguments nested 40 deep":     {call(`,"arguments":` + strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)), "nested"},
		"nested 10,000 deep":           {strings.Repeat("[", 10_000), "nested"},
		"a lone surrogate":             {call(`,"arguments":{"a":"\ud800"}`), "invalid"},
		"more objects than there are":  {`[` + strings.Repeat(`{"type":"mcp_tool_call"},`, 8) + `{}]`, "1 to 8"},
	} {
		a := w.exchangeAs("desktop", w.token("idp", "at+jwt", nil), "access_token", url.Values{"authorization_details": {tc.details}, "scope": nil})
		_, description, _ := errorOf(t, a)
		if !strings.HasPrefix(description, "authorization_details: ") || !strings.Contains(description, tc.want) {
			t.Errorf("%s: %d %s, want %q", name, a.status, a.body, tc.want)
		}
		w.refused(t, name, a, refusal{400, "invalid_authorization_details", description, tc.want})
	}
	w.granted(t, "a tool call", w.exchangeAs("desktop", w.token("idp", "at+jwt", nil), "access_token", url.Values{"authorization_details": {call("")}, "scope": nil}))
}

// A scope is one word of a list, letter by letter.
func TestAttackScopesInOtherWords(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	for name, tc := range map[string]struct{ scope, description, reason string }{
		"a tab between":          {"files:read\tfiles:list", "scope is malformed", "character"},
		"a line break":           {"files:read\nfiles:list", "scope is malformed", "character"},
		"two spaces":             {"files:read  files:list", "scope is malformed", "space"},
		"twice":                  {"files:read files:read", "scope is malformed", "twice"},
		"a quotation mark":       {`files:read"`, "scope is malformed", "character"},
		"not ASCII":              {"files:r\u0435ad", "scope is malformed", "character"}, // a Cyrillic e
		"a thousand":             {strings.TrimSpace(strings.Repeat("a ", 1000)), "scope is malformed", ""},
		"in capitals":            {"Files:Read", "not all that was asked for is granted", "unknown_scope"},
		"a wildcard":             {"*", "not all that was asked for is granted", "unknown_scope"},
		"a wildcard behind":      {"files:*", "not all that was asked for is granted", "unknown_scope"},
		"the part before":        {"files", "not all that was asked for is granted", "unknown_scope"},
		"more behind":            {"files:read:all", "not all that was asked for is granted", "unknown_scope"},
		"of another resource":    {"read", "not all that was asked for is granted", "unknown_scope"},
		"one that is not hers":   {"files:read files:write", "not all that was asked for is granted", "files:write"},
		"none, for everything":   {"", "say what: scope is missing", "no scope"},
		"a write by a wildcard":  {"files:write", "not all that was asked for is granted", "no_rule"},
		"of OpenID, to be lucky": {"openid offline_access", "not all that was asked for is granted", "unknown_scope"},
	} {
		form := w.form()
		form.Set("scope", tc.scope)
		if tc.reason == "" {
			tc.reason = "scope"
		}
		w.refused(t, name, w.post("/oauth2/token", form), refusal{400, "invalid_scope", tc.description, tc.reason})
	}
}
