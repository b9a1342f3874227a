package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
)

func (w *world) opsGet(path string) *answer {
	w.Helper()
	return w.doRequest(w.http, must(http.NewRequest(http.MethodGet, "http://"+w.ops+path, nil))(w))
}

// readiness is what /readyz answers.
type readiness struct {
	Ready     bool              `json:"ready"`
	Missing   []string          `json:"missing"`
	Current   *bool             `json:"current"`
	Providers map[string]string `json:"providers"`
	Issuers   map[string]string `json:"issuers"`
	Why       string            `json:"why"`
	Problem   string            `json:"policy_problem"`
	Leases    int               `json:"open_leases"`
}

func (a *answer) readiness(t testing.TB) (r readiness) {
	t.Helper()
	if err := json.Unmarshal(a.body, &r); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	return r
}

// Readiness names what is missing. An upstream or an issuer that is down shows to
// operators, and does not make the server unready: the others are still served.
func TestReadiness(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		trouble func(*world)
		missing []string
		check   func(readiness) bool
	}{
		"all is well":        {func(*world) {}, nil, func(r readiness) bool { return *r.Current && r.Why == "" && r.Providers["code"] == "" }},
		"an upstream is out": {func(w *world) { w.code.Break(errors.New("upstream out")) }, nil, func(r readiness) bool { return r.Providers["code"] == "upstream out" && r.Providers["db"] == "" }},
		"an issuer is out": {func(w *world) {
			form := w.form()
			form.Set("subject_token", w.token("down", "at+jwt", nil))
			w.post("/oauth2/token", form)
		}, nil, func(r readiness) bool {
			return strings.Contains(r.Issuers["https://down.test"], "status 500") && r.Issuers["https://idp.test"] == ""
		}},
		"the mappings are broken": {func(w *world) { w.problem = "files.yaml:3:1: no such scope" }, nil, func(r readiness) bool { return r.Problem == "files.yaml:3:1: no such scope" }},
		"the store is out":        {func(w *world) { _ = w.store.Close() }, []string{"store"}, func(r readiness) bool { return r.Leases == -1 }},
		"the feed is out": {func(w *world) { _ = w.store.Close(); w.clock.move(3 * time.Second) }, []string{"revocation feed", "store"},
			func(r readiness) bool { return !*r.Current }},
		"the server is going away": {func(w *world) { w.server.Drain() }, []string{"shutting down"}, func(r readiness) bool { return *r.Current }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, doc := newWorld(t, options{}), loadDocument(t)
			c.trouble(w)
			status := http.StatusOK
			if len(c.missing) > 0 {
				status = http.StatusServiceUnavailable
			}
			public, full := w.get("/readyz"), w.opsGet("/readyz")
			for _, a := range []*answer{public, full} {
				r := a.readiness(t)
				if a.status != status || r.Ready != (status == 200) || !slices.Equal(r.Missing, c.missing) {
					t.Errorf("%d %s", a.status, a.body)
				}
				if problem := doc.check(must(http.NewRequest(http.MethodGet, "http://stint/readyz", nil))(t), nil, a); problem != nil {
					t.Error(problem)
				}
			}
			if r := full.readiness(t); !c.check(r) {
				t.Errorf("operators see %s", full.body)
			}
			if r := public.readiness(t); r.Current != nil || r.Providers != nil || r.Issuers != nil {
				t.Errorf("everybody sees %s", public.body)
			}
			if got := w.get("/livez"); got.status != 200 {
				t.Errorf("livez: %d", got.status)
			}
		})
	}
}

// A record that takes nothing makes the server unready, and nothing is granted.
func TestNothingIsGrantedWithoutARecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	_ = w.journal.Close()
	got := w.post("/oauth2/token", w.form())
	later(t, "an exchange", got, 503)
	if strings.Contains(string(got.body), "access_token") {
		t.Errorf("%s", got.body)
	}
	if got := string(w.opsGet("/metrics").body); !strings.Contains(got, `stint_events_total{code="",kind="exchange",outcome="unrecorded"} 1`) {
		t.Error("the metrics do not count it")
	}
}

var series = regexp.MustCompile(`(?m)^(stint_[a-z_]+)`)

// The metrics say what there is, by labels that nobody from outside chooses.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	vend := w.vending()
	issued(t, w.post("/oauth2/token", vend))
	bad := w.form()
	bad.Set("resource", "https://elsewhere.test")
	w.post("/oauth2/token", bad)
	for _, path := range []string{"/stranger-1", "/oauth2/stranger-2", "/admin/stranger-3/../x"} {
		w.get(path)
	}
	req := must(http.NewRequest("STRANGER", "http://"+w.public+"/oauth2/token?stranger-4", nil))(t)
	w.doRequest(w.http, req)
	a := w.opsGet("/metrics")
	text := string(a.body)
	if problem := loadDocument(t).check(must(http.NewRequest(http.MethodGet, "http://stint/metrics", nil))(t), nil, a); problem != nil {
		t.Error(problem)
	}
	for _, want := range []string{
		`stint_http_request_seconds_count{route="/oauth2/token",status="200"} 2`,
		`stint_http_request_seconds_count{route="/oauth2/token",status="400"} 1`,
		`stint_http_request_seconds_count{route="none",status="404"} `,
		`stint_http_errors_total{error="invalid_target",route="/oauth2/token"} 1`,
		`stint_events_total{code="",kind="exchange",outcome="granted"} 2`,
		`stint_events_total{code="bad_target",kind="exchange",outcome="refused"} 1`,
		"stint_current 1", "stint_open_leases 1", "stint_journal_failed 0", `stint_build_info{version="test"} 1`,
		`stint_provider_ready{provider="code"} 1`, "stint_feed_position 1", "stint_revocations 0", "stint_feed_behind_seconds 0",
		`stint_policy_info{version="` + w.b.Judge().Policy().Version() + `"} 1`,
		"go_goroutines", "process_open_fds",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(strings.ToLower(text), "stranger") || strings.Contains(text, "alice") || strings.Contains(text, "elsewhere") {
		t.Error("a stranger chose a label")
	}
	if t.Failed() {
		t.Logf("series: %v", slices.Compact(series.FindAllString(text, -1)))
	}
	// What becomes of a lease upstream is counted.
	if got := w.post("/oauth2/revoke", url.Values{"token": {vend.Get("subject_token")}}); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	eventually(t, "the lease is ended upstream and counted", func() bool {
		return strings.Contains(string(w.opsGet("/metrics").body), `stint_lease_outcomes_total{outcome="revoked",provider="code"} 1`)
	})
	w.code.Break(errors.New("out"))
	if text := string(w.opsGet("/metrics").body); !strings.Contains(text, `stint_provider_ready{provider="code"} 0`) {
		t.Error("an upstream that is out is not counted so")
	}
}

// An issuer with a path has its endpoints below it, and its metadata where RFC
// 8414 section 3.1 and OpenID Connect Discovery section 4 put them; everything
// that is advertised answers, and nothing is at the root.
func TestIssuerWithAPath(t *testing.T) {
	t.Parallel()
	const issuer = self + "/tenant/one"
	w := newWorld(t, options{issuer: issuer})
	var docs []map[string]any
	for _, path := range []string{
		"/.well-known/oauth-authorization-server/tenant/one", "/.well-known/openid-configuration/tenant/one", "/tenant/one/.well-known/openid-configuration",
	} {
		var doc map[string]any
		if a := w.get(path); a.status != 200 || json.Unmarshal(a.body, &doc) != nil {
			t.Fatalf("%s: %d %s", path, a.status, a.body)
		}
		docs = append(docs, doc)
	}
	if !reflect.DeepEqual(docs[1], docs[2]) {
		t.Error("the two places of OpenID Connect differ")
	}
	endpoints := 0
	for name, v := range docs[1] {
		text, _ := v.(string)
		if name == "issuer" && text != issuer {
			t.Errorf("issuer %s", text)
		}
		path, ours := strings.CutPrefix(text, self)
		if !strings.HasSuffix(name, "_endpoint") && name != "jwks_uri" {
			continue
		}
		endpoints++
		method, want := http.MethodPost, 400
		if name == "jwks_uri" {
			method, want = http.MethodGet, 200
		}
		a := w.doRequest(w.http, must(http.NewRequest(method, "http://"+w.public+path, nil))(t))
		if !ours || a.status != want {
			t.Errorf("%s %s: %d %s", name, text, a.status, a.body)
		}
	}
	if endpoints != 4 {
		t.Errorf("%d endpoints are advertised", endpoints)
	}
	for _, path := range []string{"/oauth2/token", "/.well-known/oauth-authorization-server", "/tenant/one/.well-known/oauth-authorization-server", "/tenant/oauth2/jwks"} {
		if a := w.get(path); a.status != 404 {
			t.Errorf("%s: %d", path, a.status)
		}
	}
	if a := w.get("/livez"); a.status != 200 {
		t.Errorf("livez: %d", a.status)
	}
	// A panic at revocation is one there too.
	if a := w.post("/tenant/one/oauth2/revoke", url.Values{"token": {"abc"}}); a.status != 200 {
		t.Errorf("revocation: %d %s", a.status, a.body)
	}
	issued(t, w.post("/tenant/one/oauth2/token", w.form()))
}

// What is advertised to sign with verifies what is signed.
func TestPublishedKeysVerifyWhatIsIssued(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	verify(t, w.get("/oauth2/jwks").body, issued(t, w.post("/oauth2/token", w.form())))
	req := must(http.NewRequest(http.MethodPost, "http://stint/admin/v1/keys", strings.NewReader(`{"at_once":true}`)))(t)
	req.Header.Set("Content-Type", "application/json")
	if a := w.doRequest(w.local, req); a.status != 201 || !strings.Contains(string(a.body), `"state":"active"`) {
		t.Fatalf("%d %s", a.status, a.body)
	}
	verify(t, w.get("/oauth2/jwks").body, issued(t, w.post("/oauth2/token", w.form())))
	if !strings.Contains(w.journalled(), `"kind":"key"`) {
		t.Error("the new key is not in the record")
	}
	_ = w.journal.Close()
	if a := w.doRequest(w.local, must(http.NewRequest(http.MethodPost, "http://stint/admin/v1/keys", nil))(t)); a.status != 400 {
		t.Errorf("no body: %d %s", a.status, a.body)
	}
	again := req.Clone(context.Background())
	again.Body = must(req.GetBody())(t)
	if a := w.doRequest(w.local, again); a.status != 500 || !silentFailure(a) {
		t.Errorf("a rotation that failed: %d %s", a.status, a.body)
	}
}

func TestARevokedKeyIsPublishedNoMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	old := w.ring.Keys()[0].ID
	for _, tc := range []struct {
		kid  string
		want int
	}{{"nobody", 404}, {old, 201}, {old, 404}} {
		req := must(http.NewRequest(http.MethodPost, "http://stint/admin/v1/keys/revocations", strings.NewReader(`{"kid":"`+tc.kid+`"}`)))(t)
		req.Header.Set("Content-Type", "application/json")
		if a := w.doRequest(w.local, req); a.status != tc.want {
			t.Errorf("%s: %d %s", tc.kid, a.status, a.body)
		}
	}
	if keys := string(w.ring.JWKS()); strings.Contains(keys, old) {
		t.Errorf("still published: %s", keys)
	}
}

// The secret that is made for a client is one: its hash lets the client in.
func TestNewClientSecretFitsItsHash(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	req := must(http.NewRequest(http.MethodPost, "http://stint/admin/v1/client-secrets", nil))(t)
	var made struct{ Secret, Hash string }
	if err := json.Unmarshal(w.doRequest(w.local, req).body, &made); err != nil {
		t.Fatal(err)
	}
	w.reg.Clients["desktop"].Auth.SecretHashes = []string{made.Hash}
	if got := w.post("/oauth2/token", w.form()); got.status != 401 {
		t.Errorf("the old one: %d %s", got.status, got.body)
	}
	form := w.form().Encode()
	post := must(http.NewRequest(http.MethodPost, "http://"+w.public+"/oauth2/token", strings.NewReader(form)))(t)
	post.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	post.SetBasicAuth("desktop", made.Secret)
	issued(t, w.doRequest(w.http, post))
	if strings.Contains(w.logs.String(), made.Secret) {
		t.Error("it is in the log")
	}
}

type spanKey struct{}

// A trace goes through: the context of the span reaches the broker, its id the
// record, and its end has the status.
func TestSpans(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var ended []int
	seen := false
	w := newWorld(t, options{
		config: func(c *api.Config) {
			c.Span = func(r *http.Request) (context.Context, string, func(int)) {
				return context.WithValue(r.Context(), spanKey{}, true), "trace-" + r.Header.Get("Traceparent"), func(status int) {
					mu.Lock()
					defer mu.Unlock()
					ended = append(ended, status)
				}
			}
		},
		wrap: func(b api.Broker) api.Broker { return spying{b, &seen} },
	})
	for _, secretOf := range []string{w.secret.Reveal(), "wrong"} {
		req := must(http.NewRequest(http.MethodPost, "http://"+w.public+"/oauth2/token", strings.NewReader(w.form().Encode())))(t)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Traceparent", "abc")
		req.SetBasicAuth("desktop", secretOf)
		w.doRequest(w.http, req)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(ended, []int{200, 401}) || !seen {
		t.Errorf("ended with %v; seen by the broker: %v", ended, seen)
	}
	if got := strings.Count(w.journalled(), `"trace":"trace-abc"`); got != 2 {
		t.Errorf("%d records name the trace", got)
	}
}

// spying looks for the span's context.
type spying struct {
	api.Broker
	seen *bool
}

func (s spying) Exchange(ctx context.Context, r *broker.ExchangeRequest) (*broker.Issued, error) {
	*s.seen = ctx.Value(spanKey{}) == true
	return s.Broker.Exchange(ctx, r)
}

// What was refused before it came to an exchange is recorded with the client that
// was named, in whichever way it was.
func TestRefusalsAreRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	bad := w.form()
	bad.Del("subject_token")
	w.post("/oauth2/token", bad)
	named := w.asFilesMCP(url.Values{"grant_type": {exchange}})
	id := w.post("/oauth2/token", named).header.Get("X-Request-Id")
	wrong := w.asFilesMCP(w.form())
	wrong.Set("client_secret", "wrong")
	w.post("/oauth2/token", wrong)
	record := w.journalled()
	for _, want := range []string{
		`"code":"bad_request"`, `"code":"bad_client"`, `"client":"desktop"`, `"request":"` + id + `"`,
	} {
		if !strings.Contains(record, want) {
			t.Errorf("no %s in\n%s", want, record)
		}
	}
	if got := strings.Count(record, `"client":"files-mcp"`); got != 2 {
		t.Errorf("%d records name files-mcp", got)
	}
}

// An answer that cannot be made is our own failure.
func TestDocumentThatIsNoJSON(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{wrap: func(b api.Broker) api.Broker { return garbling{b} }})
	a := w.post("/oauth2/token", w.form())
	if a.status != 500 || !silentFailure(a) {
		t.Errorf("%d %s", a.status, a.body)
	}
	// The handler's own error is logged by a listener of any kind.
	out := httptest.NewRecorder()
	w.server.Local().ServeHTTP(out, httptest.NewRequest(http.MethodDelete, "/admin/v1/keys", nil))
	if out.Code != 405 {
		t.Errorf("DELETE: %d", out.Code)
	}
	if !strings.Contains(w.logs.String(), "a credential that is no JSON document") {
		t.Error("the log does not say why")
	}
}

// garbling says of a token that it is a document.
type garbling struct{ api.Broker }

func (g garbling) Exchange(ctx context.Context, r *broker.ExchangeRequest) (*broker.Issued, error) {
	i, err := g.Broker.Exchange(ctx, r)
	if i != nil {
		i.Document = true
	}
	return i, err
}
