package api_test

import (
	"bytes"
	"compress/flate"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/secret"
)

// ZITADEL: tokens that were cut short were still tokens.
func TestAdvisory_CVE_2026_27840_ZITADEL(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	ours := w.granted(t, "a token", w.exchange(w.token("idp", "at+jwt", nil)))
	for where, tc := range map[string]struct {
		token string
		send  func(string) *answer
	}{
		"ours":    {ours, func(s string) *answer { return w.exchangeAs("files-mcp", s, "access_token", nil) }},
		"foreign": {w.token("idp", "at+jwt", nil), w.exchange},
	} {
		n := len(tc.token)
		var cut []string
		for i := 1; i < n; i += 7 {
			cut = append(cut, tc.token[:i], tc.token[i:], tc.token[:i-1]+tc.token[i:])
		}
		for i := 1; i < 100; i += 3 { // of the signature, letter by letter
			cut = append(cut, tc.token[:n-i])
		}
		for _, more := range []string{"A", "AA", "AAAA", ".", "=", "%", ".AAAA", tc.token} {
			cut = append(cut, tc.token+more, more+tc.token)
		}
		for _, s := range cut {
			w.refused(t, where+" "+s, tc.send(s), badSubject("token"))
			if where == "ours" {
				w.active(t, "introspected", "files-mcp", s, false)
			}
		}
	}
	if a := w.send("/oauth2/revoke", formType, url.Values{"token": {ours[:len(ours)-1]}}.Encode(), nil); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	w.active(t, "after half of it was revoked", "files-mcp", ours, true)
	login := func(pass string) *answer {
		return w.send("/oauth2/token", formType, w.form().Encode(), func(r *http.Request) { r.SetBasicAuth("desktop", pass) })
	}
	for i := range w.secret.Len() {
		w.refused(t, "a part of a secret", login(w.secret.Reveal()[:i]), badLogin("wrong secret"))
	}
	w.granted(t, "the secret", login(w.secret.Reveal()))
}

// ZITADEL: of a JWT identity provider aud was not looked at.
func TestAdvisory_CVE_2026_55669_ZITADEL(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	w.refusedEverywhere(t, map[string]map[string]any{
		"aud": {"aud": "https://other.test"}, "no aud": {"aud": nil}, "iss": {"iss": "https://stranger.test"}, "no iss": {"iss": nil}, "no sub": {"sub": nil},
	})
	w.refused(t, "assertion: no iss", w.asserted(w.assertion(map[string]any{"iss": nil})), badLogin("no claim iss"))
}

// ZITADEL: of a JWT identity provider exp and iat were not looked at.
func TestAdvisory_GHSA_wxg7_w2v3_w38g_ZITADEL(t *testing.T) {
	t.Parallel()
	newTarget(t, options{}).refusedEverywhere(t, map[string]map[string]any{
		"exp": {"exp": "-1h", "iat": "-2h"}, "no exp": {"exp": nil}, "iat": {"iat": "+1h", "exp": "+2h"}, "no iat": {"iat": nil},
		"nbf": {"nbf": "+1h"},
	})
}

// refusedEverywhere wants tokens with changed claims refused as subject, as actor, as
// the token of a job, and as a client's assertion.
func (w *target) refusedEverywhere(t *testing.T, changes map[string]map[string]any) {
	t.Helper()
	for name, change := range changes {
		w.refused(t, "subject: "+name, w.exchange(w.token("idp", "at+jwt", change)), badSubject("token"))
		robot := map[string]any{"sub": "robot"}
		job := map[string]any{"client_id": nil, "groups": nil, "auth_time": nil, "sid": nil, "repository": "acme/web", "scope": "ci:read"}
		for n, v := range change {
			robot[n], job[n] = v, v
		}
		actor := url.Values{"actor_token": {w.token("idp", "at+jwt", robot)}, "actor_token_type": {access}}
		w.refused(t, "actor: "+name, w.exchangeAs("desktop", w.token("idp", "at+jwt", nil), "access_token", actor), badActor("token"))
		w.refused(t, "job: "+name, w.exchangeAs("files-mcp", w.token("ci", "JWT", job), "jwt", nil), badSubject("token"))
		if name != "no iat" && name != "no iss" { // which RFC 7523 does not ask for, and which is judged below
			w.refused(t, "assertion: "+name, w.asserted(w.assertion(change)), badLogin("assertion"))
		}
	}
}

// ZITADEL: a code or refresh token was good for whichever client brought it.
func TestAdvisory_CVE_2026_55672_ZITADEL(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	mine := w.granted(t, "a token", w.exchange(w.token("idp", "at+jwt", nil)))
	apis := w.granted(t, "onward", w.exchangeAs("files-mcp", mine, "access_token", url.Values{"resource": {"https://api.test/files"}, "scope": {"read"}}))
	w.refused(t, "desktop's, by files-api", w.exchangeAs("files-api", mine, "access_token", nil), badSubject("not to or for client"))
	w.refused(t, "for files-api, by desktop", w.exchange(apis), badSubject("not to or for client"))
	w.refused(t, "an ID token of desktop's, by files-mcp", w.exchangeAs("files-mcp", w.token("idp", "JWT", map[string]any{"aud": "desktop-at-idp", "nonce": "n"}), "id_token", nil), badSubject("audience"))
	w.refused(t, "the gateway's assertion, by desktop", w.sendTo(t, w.public, "/oauth2/token", func() url.Values {
		form := w.assertedForm(w.assertion(nil))
		form.Set("client_id", "desktop")
		return form
	}()), badLogin("no client"))
	for _, other := range []string{"files-api", "off"} {
		a := w.send("/oauth2/revoke", formType, url.Values{"token": {mine}}.Encode(), func(r *http.Request) { r.SetBasicAuth(other, w.secret.Reveal()) })
		if a.status == 200 {
			t.Errorf("%s revokes another's token", other)
		}
	}
	w.active(t, "after others tried to revoke it", "files-mcp", mine, true)
}

// ZITADEL: a token that was for one use could be used again.
func TestAdvisory_CVE_2025_46815_ZITADEL(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	once := w.granted(t, "a token for one call", w.exchangeAs("desktop", w.token("idp", "at+jwt", nil), "access_token", url.Values{
		"scope": nil, "authorization_details": {`[{"type":"mcp_tool_call","tool":"read_file","once":true}]`},
	}))
	use := func() string {
		return string(w.send("/oauth2/introspect", formType, w.asFilesMCP(url.Values{"token": {once}, "consume": {"true"}}).Encode(), func(r *http.Request) { r.Header.Del("Authorization") }).body)
	}
	if first := use(); !strings.Contains(first, `"active":true`) || !strings.Contains(first, `"once":true`) {
		t.Errorf("the first use: %s", first)
	}
	for range 2 {
		if again := strings.TrimSpace(use()); again != `{"active":false}` {
			t.Errorf("another use: %s", again)
		}
	}
}

// Casdoor: a JWT that had been revoked was taken for the subject of an exchange.
func TestAdvisory_CVE_2026_9097_Casdoor(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	mine := w.granted(t, "a token", w.exchange(w.token("idp", "at+jwt", nil)))
	child := w.granted(t, "one made of it", w.exchangeAs("files-mcp", mine, "access_token", nil))
	w.granted(t, "a credential", w.vended(child))
	if a := w.send("/oauth2/revoke", formType, url.Values{"token": {mine}}.Encode(), nil); a.status != 200 {
		t.Fatal(a.status)
	}
	for name, token := range map[string]string{"itself": mine, "what was made of it": child} {
		w.refused(t, name, w.exchangeAs("files-mcp", token, "access_token", nil), badSubject("revoked"))
		w.refused(t, name+", for a credential", w.vended(token), badSubject("revoked"))
		w.active(t, name, "files-mcp", token, false)
	}
	eventually(t, "the credential is ended", func() bool { return len(w.code.Live()) == 0 })
	own := w.granted(t, "a client's own", w.itself())
	w.operate(t, map[string]string{"token": claimsOf(t, own).ID})
	mine = w.granted(t, "a token", w.exchange(w.token("idp", "at+jwt", nil)))
	actor := url.Values{"actor_token": {own}, "actor_token_type": {access}}
	w.refused(t, "as an actor", w.exchangeAs("files-mcp", mine, "access_token", actor), badActor("revoked"))
}

// Vault: of a list of audiences the wrong thing was compared.
func TestAdvisory_CVE_2024_5798_Vault(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	for name, tc := range map[string]struct {
		aud  any
		good bool
	}{
		"ours": {self, true}, "a list of ours": {[]string{self}, true}, "ours last": {[]string{"https://a.test", self}, true}, "ours first": {[]string{self, "https://a.test"}, true},
		"a list of others": {[]string{"https://a.test", "https://b.test"}, false}, "a prefix in a list": {[]string{"https://a.test", "https://stint"}, false},
		"one that begins like ours": {[]string{self + ".a.test", "https://a.test"}, false}, "both in one": {[]string{self + "," + "https://a.test"}, false},
		"a list of nothing": {[]string{}, false}, "the empty text": {[]string{""}, false}, "a list of lists": {[][]string{{self}}, false}, "null beside it": {[]any{nil, self}, false},
	} {
		a := w.exchange(w.token("idp", "at+jwt", map[string]any{"aud": tc.aud}))
		if tc.good {
			w.granted(t, name, a)
			continue
		}
		w.refused(t, name, a, badSubject("aud"))
	}
}

// Vault: tokens of clients were in the audit log in clear.
func TestAdvisory_CVE_2024_8365_Vault(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	canaries := map[string]string{"a client's secret": w.secret.Reveal()}
	canary := func(name, text string) string { canaries[name] = text; return text }
	mine := canary("our token", w.granted(t, "a token", w.exchange(canary("the subject token", w.token("idp", "at+jwt", nil)))))
	canary("the credential", w.granted(t, "a credential", w.vended(mine)))
	robot := canary("the actor token", w.token("idp", "at+jwt", map[string]any{"sub": "robot", "sid": "r"}))
	w.granted(t, "with an actor", w.exchangeAs("desktop", w.token("idp", "at+jwt", nil), "access_token", url.Values{"actor_token": {robot}, "actor_token_type": {access}}))
	for i, name := range []string{"subject_token", "actor_token", "client_secret", "client_assertion", "scope", "resource", "audience", "client_id", "grant_type", "requested_token_type", "subject_token_type", "authorization_details"} {
		form := w.form()
		form.Set(name, canary("what stood for "+name, "canary-"+rand.Text()[:20]+string(rune('a'+i))))
		if name == "scope" || name == "resource" || name == "audience" || name == "client_id" || name == "grant_type" || strings.HasSuffix(name, "_type") {
			delete(canaries, "what stood for "+name) // no secrets: operators want to see what was asked
		}
		w.send("/oauth2/token", formType, form.Encode(), nil)
	}
	w.asserted(canary("an assertion", w.assertion(nil)))
	w.asserted(canary("a late assertion", w.assertion(map[string]any{"exp": "-1h"})))
	w.introspect("files-mcp", mine)
	w.send("/oauth2/revoke", formType, url.Values{"token": {mine}}.Encode(), nil)
	for sink, text := range map[string]string{"the record": w.journalled(), "the log": w.logs.String(), "the metrics": string(w.opsGet("/metrics").body)} {
		for name, s := range canaries {
			tail := s[strings.LastIndex(s, ".")+1:]
			if strings.Contains(text, s) || strings.Contains(text, tail) {
				t.Errorf("%s holds %s", sink, name)
			}
		}
	}
}

// Vault: the key of a cache had the name in it, and not whose name it was.
func TestAdvisory_CVE_2025_11621_Vault(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	// Everything that two tokens can have in common but the issuer and its key.
	alike := map[string]any{"sub": "alice", "jti": "same", "sid": "same", "aud": self, "client_id": nil, "groups": nil, "repository": "acme/web", "scope": "ci:read"}
	job := w.token("ci", "JWT", alike)
	w.granted(t, "the one", w.exchangeAs("files-mcp", job, "jwt", nil))
	alike["iss"] = "https://idp.test"
	w.refused(t, "with the other's name", w.exchangeAs("files-mcp", w.token("ci", "JWT", alike), "jwt", nil), badSubject("signature"))
	w.refused(t, "with the other's signature", w.exchangeAs("files-mcp", job[:strings.LastIndex(job, ".")]+w.token("idp", "JWT", nil)[strings.LastIndex(w.token("idp", "JWT", nil), "."):], "jwt", nil), badSubject("token"))
	w.refused(t, "the one, by a client without consent", w.exchangeAs("desktop", job, "jwt", nil), badSubject("no consent"))
	w.granted(t, "the one again", w.exchangeAs("files-mcp", job, "jwt", nil))
}

// Vault: the caller's Authorization header was passed on with Vault's token. An
// upstream sees nothing of what a caller brought.
func TestAdvisory_CVE_2026_4525_Vault(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	mine := w.granted(t, "a token", w.exchange(w.token("idp", "at+jwt", nil)))
	a := w.vended(mine)
	var got struct {
		Token string `json:"access_token"`
		Lease string `json:"lease_id"`
	}
	if err := json.Unmarshal(a.body, &got); err != nil || got.Lease == "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	asked, ok := w.code.Asked(got.Lease)
	if !ok {
		t.Fatal("the upstream was not asked")
	}
	all := fmt.Sprintf("%+v %s", asked, asked.Rendered)
	for name, s := range map[string]string{"the token": mine, "a part of it": mine[strings.LastIndex(mine, "."):], "the client's secret": w.secret.Reveal()} {
		if strings.Contains(all, s) {
			t.Errorf("the upstream was shown %s: %s", name, all)
		}
	}
	if got.Token == mine || w.code.Accepts(secret.New(mine)) || !w.code.Accepts(secret.New(got.Token)) {
		t.Error("what was brought is what came back, or opens the upstream")
	}
}

// bomb is a text that is small and unpacks to many megabytes.
func bomb(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	z := must(flate.NewWriter(&b, flate.BestCompression))(t)
	for range 64 {
		_, _ = z.Write(make([]byte, 1<<20))
	}
	_ = z.Close()
	return b.Bytes()
}

// allocated is how much memory f asks for.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// go-jose: a compressed JWE was unpacked, whatever came out. Here it is refused for
// its five parts, or for saying zip.
func TestAdvisory_CVE_2024_28180_GoJose(t *testing.T) {
	w := newTarget(t, options{})
	packed := bomb(t)[:8<<10]
	b64 := base64.RawURLEncoding.EncodeToString
	jwe := b64([]byte(`{"alg":"dir","enc":"A128GCM","zip":"DEF","kid":"k"}`)) + ".." + b64(make([]byte, 12)) + "." + b64(packed) + "." + b64(make([]byte, 16))
	jws := forge(t, map[string]any{"alg": "ES256", "kid": "k", "typ": "at+jwt", "zip": "DEF"}, string(packed), es256(t, w.idp.key))
	used := allocated(func() {
		w.refused(t, "a JWE", w.exchange(jwe), badSubject("5 segments"))
		w.refused(t, "a JWS", w.exchange(jws), badSubject("zip"))
	})
	if used > 16<<20 {
		t.Errorf("%d bytes were asked for", used)
	}
}

// go-jose: a text of dots was split into as many parts.
func TestAdvisory_CVE_2025_27144_GoJose(t *testing.T) {
	w := newTarget(t, options{})
	dots := strings.Repeat(".", 60<<10)
	used := allocated(func() {
		for _, n := range []int{3, 4, 5, 1000, 16 << 10} {
			w.refused(t, "dots", w.exchange(dots[:n]), badSubject("segments"))
		}
		w.refused(t, "more dots than a token has room", w.exchange(dots), badSubject("more than 16384 bytes"))
	})
	if used > 16<<20 {
		t.Errorf("%d bytes were asked for", used)
	}
}

// go-jose: a JWE could ask for any number of rounds of PBES2.
func TestAdvisory_PBES2_GoJose(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	b64 := base64.RawURLEncoding.EncodeToString
	header := `{"alg":"PBES2-HS512+A256KW","enc":"A256GCM","p2c":2147483647,"p2s":"` + b64(make([]byte, 16)) + `"}`
	jwe := b64([]byte(header)) + "." + b64(make([]byte, 40)) + "." + b64(make([]byte, 12)) + ".AAAA." + b64(make([]byte, 16))
	began := time.Now()
	w.refused(t, "a JWE", w.exchange(jwe), badSubject("5 segments"))
	w.refused(t, "a JWE for an assertion", w.asserted(jwe), badLogin("5 segments"))
	w.refused(t, "as a JWS", w.exchange(b64([]byte(header))+".e30.AAAA"), badSubject("is not accepted"))
	if took := time.Since(began); took > 10*time.Second { // the rounds would take an hour
		t.Errorf("it took %s", took)
	}
}

// go-jose: a key that could not be unwrapped was a panic. No JWE is opened here, and
// the module is of a version without it.
func TestAdvisory_CVE_2026_34986_GoJose(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	b64 := base64.RawURLEncoding.EncodeToString
	for _, alg := range []string{"A128KW", "A256GCMKW", "ECDH-ES+A128KW", "RSA-OAEP", "dir"} {
		for _, key := range []string{"", "AA", "AAAAAAAAAAA", b64(make([]byte, 7))} {
			head := b64([]byte(`{"alg":"` + alg + `","enc":"A128GCM","kid":"k"}`))
			w.refused(t, alg+" "+key, w.exchange(head+"."+key+"."+b64(make([]byte, 12))+".AAAA."+b64(make([]byte, 16))), badSubject("5 segments"))
		}
	}
	if strings.Contains(w.logs.String(), `"panic"`) {
		t.Error("there was a panic")
	}
	mod := string(must(os.ReadFile(filepath.Join("..", "go.mod")))(t))
	for line := range strings.Lines(mod) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(f) < 2 || f[0] != "github.com/go-jose/go-jose/v4" {
			continue
		}
		if v := strings.Split(strings.TrimPrefix(f[1], "v4."), "."); len(v) != 2 || v[0] < "1" || v[0] == "1" && v[1] < "4" {
			t.Errorf("go-jose %s", f[1])
		}
		return
	}
	t.Error("go.mod does not name go-jose")
}
