package api_test

import (
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What callers send and get as secrets is in no log, no metric and no record,
// whatever becomes of the request.
func TestNoSinkHoldsASecret(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	secrets := map[string]string{"the client's secret": w.secret.Reveal()}
	keep := func(name, text string) string { secrets[name] = text; return text }

	form := w.form()
	keep("the subject token", form.Get("subject_token"))
	mine := keep("our token", issued(t, w.post("/oauth2/token", form)))
	vend := w.asFilesMCP(url.Values{"grant_type": {exchange}, "subject_token": {mine}, "subject_token_type": {access}, "resource": {"fake://db/web"}, "scope": {"files:read"}})
	document := keep("the credential", issued(t, w.post("/oauth2/token", vend)))
	keep("its password", document[strings.Index(document, "fake-"):strings.LastIndex(document, `"`)])

	w.goWrong(mine, keep)

	req := must(http.NewRequest(http.MethodGet, "http://"+w.ops+"/metrics", nil))(t)
	sinks := map[string]string{"the log": w.logs.String(), "the journal": w.journalled(), "the metrics": string(w.doRequest(w.http, req).body)}
	for _, file := range []string{"store.db", "subjects.db", "sealed"} {
		f := must(os.Open(filepath.Join(w.dir, file)))(t)
		sinks[file] = string(must(io.ReadAll(f))(t))
		_ = f.Close()
	}
	for sink, text := range sinks {
		if len(text) < 500 {
			t.Errorf("%s holds next to nothing", sink)
		}
		for name, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s holds %s", sink, name)
			}
			if _, signature, ok := strings.Cut(s, "."); ok && strings.Contains(text, signature) {
				t.Errorf("%s holds a part of %s", sink, name)
			}
		}
		if strings.Contains(text, "alice@acme.test") || strings.Contains(text, "idp.test#alice") {
			t.Errorf("%s holds personal data", sink)
		}
	}
	if got := strings.Count(sinks["the journal"], `"kind":"exchange"`); got < 7 {
		t.Errorf("%d exchanges are recorded, those refused included", got)
	}
}

// goWrong sends secrets in requests that come to nothing, each in its own way.
func (w *world) goWrong(mine string, keep func(name, text string) string) {
	w.Helper()
	bad := w.form()
	bad.Set("subject_token", keep("a refused token", w.token("stranger", "at+jwt", nil)))
	w.post("/oauth2/token", bad)
	bad.Set("subject_token", keep("no token", "not-a-token-but-secret-nevertheless"))
	w.post("/oauth2/token", bad)
	wrong := w.asFilesMCP(w.form())
	wrong.Set("client_secret", keep("a wrong secret", "wrong-secret-of-somebody"))
	w.post("/oauth2/token", wrong)
	twice := w.form()
	twice["subject_token"] = []string{keep("a repeated token", "repeated-secret"), "x"}
	w.post("/oauth2/token", twice)
	asserted := w.form()
	asserted.Set("client_id", "gateway")
	asserted.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	asserted.Set("client_assertion", keep("a refused assertion", w.assertion(map[string]any{"aud": "https://elsewhere.test"})))
	w.post("/oauth2/token", asserted)
	w.post("/oauth2/introspect", url.Values{"token": {mine}})
	w.post("/oauth2/revoke", url.Values{"token": {mine}})
	details := w.form()
	details.Del("scope")
	details.Set("authorization_details", `[{"type":"mcp_tool_call","tool":"read_file","arguments":{"q":"`+keep("an argument", "argument-of-a-call")+`"}}]`)
	w.post("/oauth2/token", details)
	req := must(http.NewRequest(http.MethodGet, "http://"+w.public+"/oauth2/token?subject_token="+keep("a token in the address", "token-in-an-address"), nil))(w)
	req.Header.Set("Authorization", "Bearer "+keep("a bearer token", "bearer-of-somebody"))
	w.doRequest(w.http, req)
}
