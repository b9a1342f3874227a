package gateway

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/outbound"
	"github.com/stint-dev/stint/internal/secret"
)

const (
	key    = "sk-live+Geheim/9?&%7="
	issuer = "https://stint.test/auth"
)

// world is a gateway before an upstream.
type world struct {
	testing.TB
	upstream *httptest.Server
	got      []*http.Request // with bodies that were read
	bodies   []string
	answer   http.HandlerFunc
	mu       sync.Mutex

	asked  *broker.CallRequest
	inject func(c *broker.Call)
	refuse error // of the broker
	held   error // of Done
	status int
	failed error
	done   int
	wait   time.Duration

	logs    bytes.Buffer
	gateway *Handler
	server  *httptest.Server
}

// Call implements [Broker].
func (w *world) Call(_ context.Context, r *broker.CallRequest) (*broker.Call, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = r
	if w.refuse != nil {
		return nil, w.refuse
	}
	c := &broker.Call{Lease: "lease1", Client: "client1", Origin: w.upstream.URL, Hosts: []string{"127.0.0.1"}}
	c.Injection.Header = []broker.Injected{{Name: "authorization", Value: secret.New("Bearer " + key)}}
	c.Scrub = []secret.String{secret.New(key)}
	c.Done = func(_ context.Context, status int, failure error) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.status, w.failed, w.done = status, failure, w.done+1
		return w.held
	}
	if w.inject != nil {
		w.inject(c)
	}
	return c, nil
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t}
	w.upstream = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.mu.Lock()
		w.got, w.bodies = append(w.got, r), append(w.bodies, string(body))
		answer := w.answer
		w.mu.Unlock()
		if answer != nil {
			answer(out, r)
		}
	}))
	t.Cleanup(w.upstream.Close)
	var err error
	w.gateway, err = New(Config{
		Issuer: issuer, MaxAnswer: 1000, Log: slog.New(slog.NewTextHandler(&w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		HTTP: func(hosts []string, _ []byte) (*http.Client, error) {
			return outbound.New(outbound.Policy{Hosts: hosts, Timeout: 2 * time.Second}), nil
		},
		Allow: func(string) (time.Duration, bool) { return w.wait, w.wait == 0 },
	}, w)
	if err != nil {
		t.Fatal(err)
	}
	w.server = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		out.Header().Set("X-Request-Id", "req-1")
		r.Body = http.MaxBytesReader(out, r.Body, 100)
		w.gateway.ServeHTTP(out, r)
	}))
	t.Cleanup(w.server.Close)
	return w
}

// last is what the upstream got last.
func (w *world) last() (*http.Request, string) {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.got) == 0 {
		w.Fatal("the upstream got nothing")
	}
	return w.got[len(w.got)-1], w.bodies[len(w.bodies)-1]
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.got)
}

// raw sends a request letter by letter.
func (w *world) raw(text string) (*http.Response, string) {
	w.Helper()
	conn, err := net.Dial("tcp", w.server.Listener.Addr().String())
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, strings.ReplaceAll(text, "\n", "\r\n")); err != nil {
		w.Fatal(err)
	}
	method, _, _ := strings.Cut(text, " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(resp.Body)
	return resp, string(body)
}

// get sends a GET for a path at the upstream, with more headers.
func (w *world) get(path string, headers ...string) (*http.Response, string) {
	w.Helper()
	return w.raw("GET /auth/call/static/api.test" + path + " HTTP/1.1\nHost: stint.test\nConnection: close\nAuthorization: Bearer tok\n" + lines(headers) + "\n")
}

func lines(headers []string) (out string) {
	for _, h := range headers {
		out += h + "\n"
	}
	return out
}

func TestARequestIsMadeWithTheCredential(t *testing.T) {
	w := newWorld(t)
	w.answer = func(out http.ResponseWriter, _ *http.Request) {
		out.Header().Set("Content-Type", "text/x-test")
		out.Header().Set("X-RateLimit-Remaining", "7")
		out.Header().Set("ETag", `"e"`)
		out.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(out, "made")
	}
	resp, body := w.raw("POST /auth/call/static/api.test/v1/things?a=b&c=%26 HTTP/1.1\nHost: stint.test\nConnection: close\nAuthorization: bearer tok\n" +
		"Content-Type: application/json\nIdempotency-Key: k\nX-Other: o\nX-Api-Version: 3\nContent-Length: 2\n\n{}")
	if resp.StatusCode != http.StatusCreated || body != "made" || resp.Header.Get("Content-Type") != "text/x-test" || resp.Header.Get("X-Ratelimit-Remaining") != "7" || resp.Header.Get("Etag") != `"e"` {
		t.Errorf("answered %d %v %q", resp.StatusCode, resp.Header, body)
	}
	if resp.Header.Get("Stint-Lease") != "lease1" || resp.Header.Get("X-Request-Id") != "req-1" || !strings.Contains(resp.Header.Get("Content-Security-Policy"), "sandbox") || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", resp.Header)
	}
	r, sent := w.last()
	if r.Method != http.MethodPost || r.RequestURI != "/v1/things?a=b&c=%26" || sent != "{}" || r.Header.Get("Authorization") != "Bearer "+key || r.Header.Get("Content-Type") != "application/json" ||
		r.Header.Get("Idempotency-Key") != "k" || r.Header.Get("User-Agent") != "stint" || r.Header.Get("X-Other") != "" || r.Host != strings.TrimPrefix(w.upstream.URL, "http://") {
		t.Errorf("sent %s %s %v %q", r.Method, r.RequestURI, r.Header, sent)
	}
	a := w.asked
	if a.Token.Reveal() != "tok" || a.Provider != "static" || a.Host != "api.test" || a.Path != "/v1/things" || a.Query != "a=b&c=%26" || a.Method != http.MethodPost || string(a.Body) != "{}" ||
		a.RequestID != "req-1" || a.Address == "" || a.Header["X-Other"][0] != "o" || a.Header["Authorization"] != nil {
		t.Errorf("the broker was asked %+v", a)
	}
	if w.status != 201 || w.failed != nil || w.done != 1 {
		t.Errorf("done %d, %d, %v", w.done, w.status, w.failed)
	}
}

func TestTheProviderNamesFurtherHeaders(t *testing.T) {
	w := newWorld(t)
	w.inject = func(c *broker.Call) {
		c.Pass = []string{"x-api-version", "cookie", "X-Forwarded-For", "Authorization", "x-http-method-override"}
	}
	w.get("/", "X-Api-Version: 3", "Cookie: c", "X-Forwarded-For: 1.1.1.1", "X-HTTP-Method-Override: DELETE")
	r, _ := w.last()
	if r.Header.Get("X-Api-Version") != "3" || r.Header.Get("Cookie") != "" || r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("X-Http-Method-Override") != "" || r.Header.Get("Authorization") != "Bearer "+key {
		t.Errorf("sent %v", r.Header)
	}
}

func TestACredentialInTheQuery(t *testing.T) {
	w := newWorld(t)
	w.inject = func(c *broker.Call) {
		c.Header, c.Query = nil, []broker.Injected{{Name: "key", Value: secret.New(key)}}
	}
	w.get("/?a=b")
	if r, _ := w.last(); r.RequestURI != "/?a=b&key="+url.QueryEscape(key) || r.Header.Get("Authorization") != "" {
		t.Errorf("sent %s %v", r.RequestURI, r.Header)
	}
	w.get("/")
	if r, _ := w.last(); r.RequestURI != "/?key="+url.QueryEscape(key) {
		t.Errorf("sent %s", r.RequestURI)
	}
	for _, q := range []string{"key=mine", "a=b&key=mine", "KEY=mine", "key", "key[]=mine", "key%5B0%5D=mine", "key%20=mine", "+key=mine"} {
		n := w.count()
		if resp, body := w.get("/?" + q); resp.StatusCode != http.StatusBadRequest || w.count() != n {
			t.Errorf("?%s: %d %s", q, resp.StatusCode, body)
		}
	}
	// Nobody answers: the error has the address, and with it the key.
	w.upstream.Close()
	if resp, body := w.get("/"); resp.StatusCode != http.StatusServiceUnavailable || strings.Contains(body, "sk-live") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if strings.Contains(w.logs.String(), "sk-live") || w.failed == nil || strings.Contains(w.failed.Error(), "sk-live") {
		t.Errorf("logged %s, %v", w.logs.String(), w.failed)
	}
}

// What every error of the broker comes to.
func TestRefusals(t *testing.T) {
	for code, want := range map[broker.Code]struct {
		status int
		name   string
	}{
		broker.BadRequest: {400, "invalid_request"}, broker.BadToken: {401, "invalid_token"}, broker.BadScope: {403, "insufficient_scope"},
		broker.Denied: {403, "insufficient_scope"}, broker.BadTarget: {404, "invalid_target"}, broker.NeedsLink: {403, "interaction_required"},
		broker.Limited: {429, "temporarily_unavailable"}, broker.Unavailable: {503, "temporarily_unavailable"}, broker.Internal: {502, "server_error"},
		broker.BadDetails: {502, "server_error"},
	} {
		w := newWorld(t)
		w.refuse = broker.Fail(code, errors.New("for the log"), `what "the caller" may know`)
		resp, body := w.get("/")
		if resp.StatusCode != want.status || !strings.Contains(body, `"error":"`+want.name+`"`) || strings.Contains(body, "for the log") || resp.Header.Get("Stint-Lease") != "" || w.count() != 0 || w.done != 0 {
			t.Errorf("%s: %d %s", code, resp.StatusCode, body)
		}
		if (want.status == 401 || code == broker.BadScope) != (resp.Header.Get("WWW-Authenticate") != "") && code != broker.Denied {
			t.Errorf("%s: challenge %q", code, resp.Header.Get("WWW-Authenticate"))
		}
		if (want.status == 429 || want.status == 503) != (resp.Header.Get("Retry-After") == "1") {
			t.Errorf("%s: Retry-After %q", code, resp.Header.Get("Retry-After"))
		}
		if want.status == 502 && strings.Contains(body, "may know") {
			t.Errorf("%s: %s", code, body)
		}
	}
	w := newWorld(t)
	w.refuse = errors.New("sk-live: no code")
	if resp, body := w.get("/"); resp.StatusCode != http.StatusBadGateway || strings.Contains(body, "sk-live") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestRequestsThatAreMalformed(t *testing.T) {
	w := newWorld(t)
	ask := func(target string, headers ...string) (int, string) {
		resp, body := w.raw("POST " + target + " HTTP/1.1\nHost: stint.test\nConnection: close\n" + lines(headers) + "\n")
		return resp.StatusCode, body
	}
	const good, token = "/auth/call/static/api.test/x", "Authorization: Bearer tok"
	for name, tc := range map[string]struct {
		target  string
		headers []string
		status  int
	}{
		"no token":                     {good, nil, 401},
		"another scheme":               {good, []string{"Authorization: Basic eDp5"}, 401},
		"a scheme and no token":        {good, []string{"Authorization: Bearer"}, 401},
		"two tokens":                   {good, []string{token, token}, 401},
		"no path":                      {"/auth/call/static/api.test", []string{token}, 400},
		"no host":                      {"/auth/call/static//x", []string{token}, 400},
		"no provider":                  {"/auth/call//api.test/x", []string{token}, 400},
		"nothing":                      {"/auth/call/", []string{token}, 400},
		"another place":                {"/call/static/api.test/x", []string{token}, 400},
		"an encoded place":             {"/auth/c%61ll/static/api.test/x", []string{token}, 400},
		"a query too early":            {"/auth/call/static?/api.test/x", []string{token}, 400},
		"an encoded body":              {good, []string{token, "Content-Encoding: gzip", "Content-Length: 0"}, 400},
		"a header twice":               {good, []string{token, "X-A: 1", "X-A: 2"}, 400},
		"a type twice":                 {good, []string{token, "Content-Type: a/b", "Content-Type: a/b"}, 400},
		"Connection that takes a type": {good, []string{token, "Connection: content-type", "Content-Type: a/b"}, 400},
		"a body that is too large":     {good, []string{token, "Content-Length: 101", "", strings.Repeat("x", 101)}, 413},
	} {
		if status, body := ask(tc.target, tc.headers...); status != tc.status {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if w.count() != 0 || w.asked != nil {
		t.Error("it came further")
	}
	if status, body := ask(good, token, "Content-Length: 100", "", strings.Repeat("x", 100)); status != 200 {
		t.Errorf("a body that is large enough: %d %s", status, body)
	}
}

func TestAnswersThatAreNotHandedBack(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"too large": func(out http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(out, strings.Repeat("x", 1001)) },
		"too large when unpacked": func(out http.ResponseWriter, r *http.Request) {
			out.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(out)
			_, _ = z.Write(make([]byte, 1<<20))
			_ = z.Close()
		},
		"encoded": func(out http.ResponseWriter, _ *http.Request) {
			out.Header().Set("Content-Encoding", "br")
			_, _ = io.WriteString(out, "x")
		},
		"cut off": func(out http.ResponseWriter, _ *http.Request) {
			out.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(out, "x")
		},
		"none": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"late": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"another speech": func(out http.ResponseWriter, _ *http.Request) {
			conn, _, _ := out.(http.Hijacker).Hijack()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nx")
			_ = conn.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.answer = answer
			resp, body := w.get("/")
			if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "may have taken effect") || resp.Header.Get("Stint-Lease") != "" {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
			if w.done != 1 || w.failed == nil || w.status != 0 {
				t.Errorf("recorded %d, %d, %v", w.done, w.status, w.failed)
			}
		})
	}
	t.Run("large, and not too large", func(t *testing.T) {
		w := newWorld(t)
		w.answer = func(out http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(out, strings.Repeat("x", 1000)) }
		if resp, body := w.get("/"); resp.StatusCode != http.StatusOK || len(body) != 1000 {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	t.Run("what cannot be recorded", func(t *testing.T) {
		w := newWorld(t)
		w.answer = func(out http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(out, "the answer") }
		w.held = broker.Fail(broker.Unavailable, errors.New("disk full"), "not now")
		if resp, body := w.get("/"); resp.StatusCode != http.StatusServiceUnavailable || strings.Contains(body, "the answer") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
}

func TestLimits(t *testing.T) {
	w := newWorld(t)
	w.wait = 3 * time.Second
	if resp, _ := w.get("/"); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "3" || w.count() != 0 {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	w.wait = 0
	hold, in := make(chan struct{}), make(chan struct{}, maxFlying)
	w.answer = func(http.ResponseWriter, *http.Request) { in <- struct{}{}; <-hold }
	var wait sync.WaitGroup
	for range maxFlying {
		wait.Go(func() { w.get("/") })
	}
	for range maxFlying {
		<-in
	}
	if resp, _ := w.get("/"); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("%d: one too many at a time", resp.StatusCode)
	}
	close(hold)
	wait.Wait()
	if resp, _ := w.get("/"); resp.StatusCode != http.StatusOK || len(w.gateway.flying) != 0 {
		t.Errorf("%d, %v", resp.StatusCode, w.gateway.flying)
	}
}

func TestMethodsWithoutABody(t *testing.T) {
	w := newWorld(t)
	w.answer = func(out http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			out.WriteHeader(http.StatusNoContent)
		}
	}
	for _, method := range []string{"HEAD", "DELETE"} {
		resp, body := w.raw(method + " /auth/call/static/api.test/x HTTP/1.1\nHost: s\nConnection: close\nAuthorization: Bearer tok\n\n")
		if r, _ := w.last(); r.Method != method || body != "" || resp.StatusCode >= 300 || resp.Header.Get("Stint-Lease") == "" {
			t.Errorf("%s: %d %q", method, resp.StatusCode, body)
		}
	}
}

// The credential does not come back, however the upstream writes it.
func TestTheCredentialIsCutOutOfAnswers(t *testing.T) {
	auth := "Bearer " + key
	for name, text := range map[string]string{
		"as it is":                   key,
		"with its scheme":            auth,
		"in an address":              "https://x/?k=" + url.QueryEscape(key),
		"in a path":                  url.PathEscape(key),
		"in small letters encoded":   strings.ToLower(url.QueryEscape("/?&%=+")) + strings.ReplaceAll(strings.ReplaceAll(url.QueryEscape(key), "%2B", "%2b"), "%2F", "%2f"),
		"every byte encoded":         percented(key),
		"in JSON":                    fmt.Sprintf(`{"headers":{"authorization":%q}}`, auth),
		"in JSON for HTML":           `{"a":"Bearer sk-live+Geheim/9?\u0026%7="}`,
		"in JSON with slashes":       `{"a":"Bearer sk-live+Geheim\/9?&%7="}`,
		"in JSON, every character":   `{"a":"` + strings.ReplaceAll(strings.ReplaceAll(percented(key), "%", `\u00`), `\u002F`, `\/`) + `"}`,
		"in HTML":                    "<b>sk-live+Geheim/9?&amp;%7=</b>",
		"in base64":                  base64.StdEncoding.EncodeToString([]byte(key)),
		"in base64url":               base64.RawURLEncoding.EncodeToString([]byte(key)),
		"in base64 behind one byte":  base64.StdEncoding.EncodeToString([]byte("x" + key + "yz")),
		"in base64 behind two bytes": base64.URLEncoding.EncodeToString([]byte("xx" + key + "y")),
		"in base64 with its scheme":  base64.StdEncoding.EncodeToString([]byte(auth)),
		"in base64 of JSON":          base64.StdEncoding.EncodeToString([]byte(`{"token":"` + key + `"}`)),
		"in hexadecimal":             hex.EncodeToString([]byte(key)),
		"in large hexadecimal":       strings.ToUpper(hex.EncodeToString([]byte(auth))),
		"twice":                      key + key,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.answer = func(out http.ResponseWriter, _ *http.Request) {
				out.Header().Set("Content-Type", text)
				out.Header().Set("Location", "https://api.test/?"+text)
				out.Header().Set("X-Ratelimit-Key", text)
				_, _ = io.WriteString(out, "before "+text+" after")
			}
			resp, body := w.get("/")
			if resp.StatusCode != http.StatusOK || !strings.Contains(body, mark) || !strings.HasPrefix(body, "before ") || !strings.HasSuffix(body, " after") {
				t.Fatalf("%d %q", resp.StatusCode, body)
			}
			all := body
			for _, v := range resp.Header {
				all += "\n" + strings.Join(v, "\n")
			}
			// Nothing of it that is long enough to be of use, whatever is done to it.
			for _, plain := range []string{all, unpercent(all), unbase64(all), unhex(all)} {
				if strings.Contains(plain, "Geheim") {
					t.Errorf("it shows %q", plain)
				}
			}
		})
	}
}

func percented(text string) (out string) {
	for _, c := range []byte(text) {
		out += fmt.Sprintf("%%%02X", c)
	}
	return out
}

func unpercent(s string) string {
	out, err := url.QueryUnescape(strings.ReplaceAll(s, "%\n", ""))
	if err != nil {
		return ""
	}
	return out
}

func unbase64(s string) (out string) {
	for word := range strings.FieldsSeq(strings.NewReplacer("-", "+", "_", "/", "?", " ", mark, " ").Replace(s)) {
		for skip := range 4 {
			if skip < len(word) {
				b, _ := base64.RawStdEncoding.DecodeString(strings.TrimRight(word[skip:], "="))
				out += string(b) + " "
			}
		}
	}
	return out
}

func unhex(s string) (out string) {
	for word := range strings.FieldsSeq(strings.ReplaceAll(s, mark, " ")) {
		b, _ := hex.DecodeString(word)
		out += string(b) + " "
	}
	return out
}

func TestWhatCannotBeScrubbedIsNotSent(t *testing.T) {
	for name, inject := range map[string]func(*broker.Call){
		"a short secret":    func(c *broker.Call) { c.Scrub = append(c.Scrub, secret.New("1234567")) },
		"nothing to inject": func(c *broker.Call) { c.Header, c.Scrub = nil, nil },
		"a header that ends another": func(c *broker.Call) {
			c.Header[0].Value = secret.New("Bearer x\r\nX-Injected: y")
		},
	} {
		w := newWorld(t)
		w.inject = inject
		if resp, _ := w.get("/"); resp.StatusCode < 500 || w.count() != 0 || w.failed == nil {
			t.Errorf("%s: %d, %d sent", name, resp.StatusCode, w.count())
		}
	}
}

func TestNewRefusesWhatIsMissing(t *testing.T) {
	for _, cfg := range []Config{{}, {Issuer: "x"}, {Issuer: issuer}} {
		if _, err := New(cfg, &world{}); err == nil {
			t.Errorf("%+v", cfg)
		}
	}
}

// What no provider can have passed is not, also if it were there.
func TestWhatIsNeverPassed(t *testing.T) {
	got := passed(map[string][]string{"Cookie": {"c"}, "X-Forwarded-For": {"f"}, "X-Version": {"1"}}, []string{"cookie", "x-forwarded-for", "x-version"})
	if len(got) != 2 || got.Get("X-Version") != "1" || got.Get("User-Agent") != "stint" {
		t.Errorf("%v", got)
	}
}
