package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// failing is the real broker, except that it fails as it is told once a client
// has been authenticated.
type failing struct {
	api.Broker
	mu   sync.Mutex
	fail func() error
}

func (f *failing) set(fail func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

func (f *failing) now() error {
	f.mu.Lock()
	fail := f.fail
	f.mu.Unlock()
	if fail == nil {
		return nil
	}
	return fail()
}

func (f *failing) Exchange(ctx context.Context, r *broker.ExchangeRequest) (*broker.Issued, error) {
	if err := f.now(); err != nil {
		return nil, err
	}
	return f.Broker.Exchange(ctx, r)
}

func (f *failing) RevokeToken(ctx context.Context, c *broker.Client, raw secret.String, id string) error {
	if err := f.now(); err != nil {
		return err
	}
	return f.Broker.RevokeToken(ctx, c, raw, id)
}

func (f *failing) Introspect(ctx context.Context, c *broker.Client, raw secret.String, consume bool, id string) (*broker.Introspection, error) {
	if err := f.now(); err != nil {
		return nil, err
	}
	return f.Broker.Introspect(ctx, c, raw, consume, id)
}

func (f *failing) Revoke(ctx context.Context, r broker.Revocation) (*broker.Receipt, error) {
	if err := f.now(); err != nil {
		return nil, err
	}
	return f.Broker.Revoke(ctx, r)
}

// newFailing makes a server on a broker that can be told to fail.
func newFailing(t testing.TB) (*world, *failing) {
	t.Helper()
	f := &failing{}
	w := newWorld(t, options{wrap: func(b api.Broker) api.Broker { f.Broker = b; return f }})
	return w, f
}

// post sends a form to the public listener as a client that has a secret.
func (w *world) post(path string, form url.Values) *answer {
	w.Helper()
	req := must(http.NewRequest(http.MethodPost, "http://"+w.public+path, strings.NewReader(form.Encode())))(w)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if form.Get("client_id") == "" {
		req.SetBasicAuth("desktop", w.secret.Reveal())
	}
	return w.doRequest(w.http, req)
}

// form is a good exchange by the client desktop.
func (w *world) form() url.Values {
	w.Helper()
	return url.Values{
		"grant_type": {exchange}, "subject_token": {w.token("idp", "at+jwt", nil)}, "subject_token_type": {access},
		"resource": {mcp}, "scope": {"files:read"},
	}
}

// asFilesMCP makes a form that of the client files-mcp.
func (w *world) asFilesMCP(form url.Values) url.Values {
	form.Set("client_id", "files-mcp")
	form.Set("client_secret", w.secret.Reveal())
	return form
}

// issued returns the token that an answer holds.
func issued(t testing.TB, a *answer) string {
	t.Helper()
	var out struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(a.body, &out); err != nil || a.status != 200 || out.Token == "" {
		t.Fatalf("nothing was issued: %d %s", a.status, a.body)
	}
	return out.Token
}

// errorOf returns the error's name and description in an answer.
func errorOf(t testing.TB, a *answer) (name, description, link string) {
	t.Helper()
	var out struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
		URL         string `json:"url"`
		Code        string `json:"code"` // of problem details (RFC 9457)
		Detail      string `json:"detail"`
	}
	if err := json.Unmarshal(a.body, &out); err != nil {
		t.Fatalf("%d %q: %v", a.status, a.body, err)
	}
	if out.Code != "" {
		return oauthName[out.Code], out.Detail, ""
	}
	return out.Error, out.Description, out.URL
}

// oauthName is what OAuth calls the codes of the admin API.
var oauthName = map[string]string{
	"bad_request": "invalid_request", "bad_token": "invalid_request", "too_large": "invalid_request", "conflict": "invalid_request",
	"changed": "invalid_request", "method_not_allowed": "invalid_request", "bad_client": "invalid_client", "denied": "unauthorized_client",
	"bad_scope": "invalid_scope", "bad_target": "invalid_target", "bad_details": "invalid_authorization_details",
	"needs_approval": "interaction_required", "needs_link": "interaction_required",
	"limited": "temporarily_unavailable", "unavailable": "temporarily_unavailable", "internal": "server_error",
}

// silentFailure reports whether an answer says that we failed, and not a word more.
func silentFailure(a *answer) bool {
	var p map[string]any
	if strings.TrimSpace(string(a.body)) == `{"error":"server_error"}` {
		return true
	}
	return json.Unmarshal(a.body, &p) == nil && p["code"] == "internal" && p["detail"] == nil && len(p) == 5
}

const inside = "dial tcp 10.0.0.7:6379: connection refused"

// errorRow is what a code becomes at each endpoint. A status of 0 means that the
// code does not come from there.
type errorRow struct {
	fail                             func() error
	oauth                            string
	token, revoke, introspect, admin int
	silent                           bool // no description
}

func coded(code broker.Code) func() error {
	return func() error { return broker.Fail(code, errors.New(inside), "a sentence for the caller") }
}

var errorRows = map[string]errorRow{
	"BadRequest":    {coded(broker.BadRequest), "invalid_request", 400, 400, 400, 400, false},
	"BadClient":     {coded(broker.BadClient), "invalid_client", 401, 401, 401, 401, false},
	"BadToken":      {coded(broker.BadToken), "invalid_request", 400, 200, 200, 401, false},
	"BadScope":      {coded(broker.BadScope), "invalid_scope", 400, 0, 0, 403, false},
	"BadTarget":     {coded(broker.BadTarget), "invalid_target", 400, 0, 0, 404, false},
	"BadDetails":    {coded(broker.BadDetails), "invalid_authorization_details", 400, 0, 0, 0, false},
	"Denied":        {coded(broker.Denied), "unauthorized_client", 400, 400, 403, 403, false},
	"NeedsApproval": {coded(broker.NeedsApproval), "interaction_required", 400, 0, 0, 409, false},
	"NeedsLink":     {coded(broker.NeedsLink), "interaction_required", 400, 0, 0, 409, false},
	"Limited":       {coded(broker.Limited), "temporarily_unavailable", 429, 429, 429, 429, false},
	"Unavailable":   {coded(broker.Unavailable), "temporarily_unavailable", 503, 503, 503, 503, false},
	"Internal":      {coded(broker.Internal), "server_error", 500, 503, 500, 500, true},
	"no code":       {func() error { return errors.New(inside) }, "server_error", 500, 503, 500, 500, true},
	"unknown code":  {coded("surprise"), "server_error", 500, 503, 500, 500, true},
}

// Which error a code becomes is one table; it is written here a second
// time.
func TestErrorTable(t *testing.T) {
	t.Parallel()
	for name, c := range errorRows {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, f := newFailing(t)
			f.set(c.fail)
			doc := loadDocument(t)
			for path, want := range map[string]int{"/oauth2/token": c.token, "/oauth2/renew": c.token, "/oauth2/revoke": c.revoke, "/oauth2/introspect": c.introspect, "/admin/v1/revocations": c.admin} {
				if want == 0 {
					continue
				}
				req, body, client := w.toFail(path)
				got := w.doRequest(client, req)
				if got.status != want {
					t.Errorf("%s: status %d, want %d: %s", path, got.status, want, got.body)
					continue
				}
				if strings.Contains(string(got.body), "10.0.0.7") {
					t.Errorf("%s: the caller is told what is inside: %s", path, got.body)
				}
				if path != "/admin/v1/revocations" || want >= 500 {
					if problem := doc.check(req, body, got); problem != nil {
						t.Errorf("%s: against openapi.yaml: %v", path, problem)
					}
				}
				if want == 200 {
					wantBody := map[string]string{"/oauth2/revoke": "", "/oauth2/introspect": `{"active":false}`}[path]
					if strings.TrimSpace(string(got.body)) != wantBody {
						t.Errorf("%s: %q, want %q", path, got.body, wantBody)
					}
					continue
				}
				oauth, description, _ := errorOf(t, got)
				if oauth != c.oauth || (description == "") != c.silent {
					t.Errorf("%s: %s", path, got.body)
				}
				if want := map[string]string{"NeedsApproval": `"interaction":"approval"`, "NeedsLink": `"interaction":"link"`}[name]; path != "/admin/v1/revocations" && !strings.Contains(string(got.body), want) {
					t.Errorf("%s: %s, want %s", path, got.body, want)
				}
				if retry := got.header.Get("Retry-After"); (retry == "1") != (c.oauth == "temporarily_unavailable") {
					t.Errorf("%s: Retry-After %q", path, retry)
				}
				if challenge := got.header.Get("WWW-Authenticate"); (challenge != "") != (got.status == 401) {
					t.Errorf("%s: WWW-Authenticate %q", path, challenge)
				}
			}
			if want := "10.0.0.7"; !strings.Contains(w.logs.String(), want) && c.token >= 400 {
				t.Error("the log does not say why")
			}
		})
	}
}

// toFail is a request that authenticates and then comes to the broker.
func (w *world) toFail(path string) (*http.Request, []byte, *http.Client) {
	w.Helper()
	if strings.HasPrefix(path, "/admin") {
		body := `{"subject":"x"}`
		req := must(http.NewRequest(http.MethodPost, "http://stint"+path, strings.NewReader(body)))(w)
		req.Header.Set("Content-Type", "application/json")
		return req, []byte(body), w.local
	}
	form := w.form()
	switch path {
	case "/oauth2/token":
	case "/oauth2/renew":
		form.Set("lease_id", strings.Repeat("a", 24))
	default:
		form = url.Values{"token": {"abc"}}
	}
	body := form.Encode()
	req := must(http.NewRequest(http.MethodPost, "http://"+w.public+path, strings.NewReader(body)))(w)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("desktop", w.secret.Reveal())
	return req, []byte(body), w.http
}

// What somebody can do about it is a URL, and when to come again a number of
// seconds, rounded up.
func TestErrorsSayWhereAndWhen(t *testing.T) {
	t.Parallel()
	w, f := newFailing(t)
	f.set(func() error {
		e := broker.Fail(broker.NeedsLink, nil, "link an account")
		e.URL = "https://stint.test/connect/code"
		return e
	})
	if _, _, link := errorOf(t, w.post("/oauth2/token", w.form())); link != "https://stint.test/connect/code" {
		t.Errorf("url %q", link)
	}
	f.set(func() error {
		e := broker.Fail(broker.Unavailable, nil, "later")
		e.RetryAfter = 1500 * time.Millisecond
		return e
	})
	if got := w.post("/oauth2/token", w.form()).header.Get("Retry-After"); got != "2" {
		t.Errorf("Retry-After %q", got)
	}
}

// A panic is our own failure: answered like one, at each endpoint as its errors
// are, and logged with what is needed to find it, but not with what it says.
func TestPanicIsAnsweredWithoutText(t *testing.T) {
	t.Parallel()
	w, f := newFailing(t)
	canary := "canary-" + w.secret.Reveal()
	for name, panics := range map[string]func() error{
		"a text":           func() error { panic(canary) },
		"an error":         func() error { panic(errors.New(canary)) },
		"a slip":           func() error { var m map[string]int; m["x"] = 1; return nil },
		"a credential map": func() error { panic(map[string]string{"token": canary}) },
	} {
		f.set(panics)
		for path, want := range map[string]int{"/oauth2/token": 500, "/oauth2/revoke": 503, "/oauth2/introspect": 500, "/admin/v1/revocations": 500} {
			req, _, client := w.toFail(path)
			got := w.doRequest(client, req)
			if got.status != want || !silentFailure(got) {
				t.Errorf("%s at %s: %d %s", name, path, got.status, got.body)
			}
			if id := got.header.Get("X-Request-Id"); !strings.Contains(w.logs.String(), id) {
				t.Errorf("%s at %s: request %s is not in the log", name, path, id)
			}
		}
	}
	log := w.logs.String()
	for _, want := range []string{"errors_test.go", "assignment to entry in nil map", `"msg":"panic"`} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %s", want)
		}
	}
	if strings.Contains(log, canary) {
		t.Error("the log has what the panic said")
	}
	f.set(nil)
	issued(t, w.post("/oauth2/token", w.form()))
}

// What an upstream wants of a person, or of time, reaches the caller in members of its
// own; what it said does not.
func TestErrorsOfUpstreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{links: true})
	const body = `{"message":"Bad credentials","token":"ghp_secret"}`
	fail := func(code broker.Code, change func(*broker.Error)) error {
		e := broker.Fail(code, errors.New(body), "the upstream wants it so")
		if change != nil {
			change(e)
		}
		return e
	}
	for _, c := range []struct {
		name       string
		err        error
		status     int
		error      string
		url        string
		claims     string
		retryAfter string
	}{
		{"no account is linked", fail(broker.NeedsLink, nil), 400, "interaction_required", self + "/connect/code", "", ""},
		{"a step up of the sign-in", fail(broker.NeedsLink, func(e *broker.Error) { e.Claims = `{"access_token":{"acrs":{"essential":true,"value":"c1"}}}` }),
			400, "interaction_required", self + "/connect/code", `{"access_token":{"acrs":{"essential":true,"value":"c1"}}}`, ""},
		{"a rate limit", fail(broker.Limited, func(e *broker.Error) { e.RetryAfter = 90 * time.Second }), 429, "temporarily_unavailable", "", "", "90"},
		{"an outage", fail(broker.Unavailable, func(e *broker.Error) { e.RetryAfter = 7 * time.Second }), 503, "temporarily_unavailable", "", "", "7"},
		{"an outage that says no time", fail(broker.Unavailable, nil), 503, "temporarily_unavailable", "", "", "1"},
		{"what was asked wrongly", fail(broker.BadTarget, nil), 400, "invalid_target", "", "", ""},
		{"an error without a code", errors.New(body), 500, "server_error", "", "", ""},
	} {
		form := w.vending()
		w.code.mu.Lock()
		w.code.fail = c.err
		w.code.mu.Unlock()
		a := w.post("/oauth2/token", form)
		var got struct {
			Error  string `json:"error"`
			URL    string `json:"url"`
			Claims string `json:"claims"`
		}
		if err := json.Unmarshal(a.body, &got); err != nil || a.status != c.status || got.Error != c.error || got.URL != c.url || got.Claims != c.claims || a.header.Get("Retry-After") != c.retryAfter {
			t.Errorf("%s: %d %s %s", c.name, a.status, a.header, a.body)
		}
		if strings.Contains(string(a.body), "ghp_") || strings.Contains(string(a.body), "Bad credentials") {
			t.Errorf("%s: the upstream's body reaches the caller: %s", c.name, a.body)
		}
	}
}
