package api_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/internal/strictjson"
)

// verify checks a token's signature by a published key set.
func verify(t testing.TB, published []byte, text string) {
	t.Helper()
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(published, &set); err != nil {
		t.Fatal(err)
	}
	signed := must(jose.ParseSigned(text, []jose.SignatureAlgorithm{jose.ES256}))(t)
	keys := set.Key(signed.Signatures[0].Header.KeyID)
	if len(keys) != 1 || !keys[0].IsPublic() {
		t.Fatalf("%d keys for %s", len(keys), signed.Signatures[0].Header.KeyID)
	}
	if _, err := signed.Verify(keys[0]); err != nil {
		t.Error(err)
	}
}

// fuzzed sends a form to the token endpoint and checks what holds for every
// answer: it is ours, whole, and no failure.
func (w *world) fuzzed(t *testing.T, handler http.Handler, body string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/oauth2/token", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("desktop:"+w.secret.Reveal())))
	out := httptest.NewRecorder()
	handler.ServeHTTP(out, r)
	a := &answer{out.Code, out.Header(), out.Body.Bytes()}
	if a.status >= 500 {
		t.Fatalf("%d %s\n%s", a.status, a.body, w.logs)
	}
	var doc any
	if err := strictjson.Decode(a.body, &doc); err != nil {
		t.Fatalf("%d %q: %v", a.status, a.body, err)
	}
	if problem := invariant(r, a); problem != "" {
		t.Fatalf("%s: %d %v %s", problem, a.status, a.header, a.body)
	}
}

// unlimited are limits that a fuzzer does not reach.
var unlimited = api.Limits{AddressRate: 1e9, AddressBurst: 1e9, ClientRate: 1e9, ClientBurst: 1e9}

// Whatever form is sent, the answer is a JSON document, and never a failure.
func FuzzTokenForm(f *testing.F) {
	w := newWorld(f, options{limits: unlimited})
	good := w.form()
	f.Add(good.Encode())
	f.Add("")
	f.Add("grant_type=client_credentials&resource=x&resource=y&scope=%00")
	f.Add("grant_type=" + url.QueryEscape(exchange) + "&subject_token=a.b.c&subject_token_type=" + url.QueryEscape(access) + "&audience=code")
	f.Add("grant_type=%zz;a=b&&==&=&client_id=%22%5C")
	f.Add("client_assertion=a.b.c&client_assertion_type=x&grant_type=client_credentials")
	for _, change := range [][2]string{
		{"resource", "fake://code/web"}, {"resource", "https://[::1"}, {"resource", "\u2028"}, {"scope", "a\"b\\c"}, {"scope", strings.Repeat("a ", 300)},
		{"requested_token_type", "\U0001F600"}, {"actor_token", "e30.e30."}, {"authorization_details", `[{"type":"\"\\"}]`}, {"subject_token", ".."},
	} {
		form := w.form()
		form.Set(change[0], change[1])
		f.Add(form.Encode())
	}
	handler := w.server.Public()
	f.Fuzz(func(t *testing.T, body string) { w.fuzzed(t, handler, body) })
}

// Whatever authorization details are sent with an otherwise good request, they
// are understood, or refused in words that the caller may be told.
func FuzzAuthorizationDetails(f *testing.F) {
	for _, seed := range []string{
		`[{"type":"mcp_tool_call","tool":"read_file","arguments":{"path":"/a"},"once":true,"locations":["https://mcp.test/files"]}]`,
		`[{"type":"mcp_tool_call","tool":"my_repo","arguments":{"repo":"a/b"}}]`, `[{"type":"mcp_tool_call","tool":"my_repo","arguments":{"repo":null}}]`,
		`[{"type":"fake","repositories":"*","permissions":{}}]`, `[]`, `[[]]`, `null`, `{}`, `[{"type":1}]`, `[{"type":"\ud800"}]`, "[{\"type\":\"\xff\"}]",
		`[{"type":"a","type":"b"}]`, strings.Repeat("[", 64), `[{"type":"mcp_tool_call","tool":"read_file","arguments":{"n":1e999}}]`,
		`[{"type":"mcp_tool_call","tool":"read_file","arguments":{"n":-0,"m":0.1e-7}}]`, `[{"type":"mcp_tool_call","tool":"` + strings.Repeat("x", 129) + `"}]`,
	} {
		f.Add(seed)
	}
	w := newWorld(f, options{limits: unlimited})
	form, handler := w.form(), w.server.Public()
	form.Del("scope")
	f.Fuzz(func(t *testing.T, details string) {
		form := url.Values{"authorization_details": {details}}.Encode() + "&" + form.Encode()
		w.fuzzed(t, handler, form)
	})
}
