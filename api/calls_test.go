package api_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
)

// Requests with credentials that stay here go to whoever serves them, letter by letter,
// and have limits of their own.
func TestCallsAreHandedOn(t *testing.T) {
	w := newWorld(t, options{calls: true, limits: api.Limits{Body: 2048}})
	ask := func(method, target string, body int) *answer {
		t.Helper()
		r := must(http.NewRequest(method, "http://"+w.public+target, io.LimitReader(strings.NewReader(strings.Repeat("x", body)), int64(body))))(t)
		r.ContentLength = int64(body)
		a := w.doRequest(w.http, r)
		if err := w.document().check(r, nil, a); err != nil {
			t.Error(err)
		}
		return a
	}
	for _, method := range broker.Methods {
		for _, status := range []int{200, 302, 404, 418, 500} {
			a := ask(method, fmt.Sprintf("/call/p/api.test:8443/a%%2Fb/..;/%d?x=%%41&y", status), 0)
			want := fmt.Sprintf("%s /call/p/api.test:8443/a%%2Fb/..;/%d?x=%%41&y from 127.0.0.1 with 0", method, status)
			if a.status != status || method != "HEAD" && string(a.body) != want || a.header.Get("X-Request-Id") == "" || a.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: %d %q, want %d %q", method, a.status, a.body, status, want)
			}
		}
	}
	for _, method := range []string{"OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"} {
		if a := ask(method, "/call/p/h/200", 0); a.status == http.StatusOK {
			t.Errorf("%s: %d %s", method, a.status, a.body)
		}
	}
	// More than others, and not without end.
	if a := ask("POST", "/call/p/h/200", 1<<20); a.status != 200 || !strings.HasSuffix(string(a.body), "with 1048576") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := ask("POST", "/call/p/h/200", 1<<20+1); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := ask("POST", "/oauth2/token", 4096); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestCallsDoNotHoldUpExchanges(t *testing.T) {
	hold, in := make(chan struct{}), make(chan struct{}, 1)
	w := newWorld(t, options{limits: api.Limits{Concurrency: 1, ClientRate: 1, ClientBurst: 2}, config: func(c *api.Config) {
		c.Calls = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { in <- struct{}{}; <-hold })
	}})
	go func() {
		if resp, err := w.http.Get("http://" + w.public + "/call/p/h/x"); err == nil {
			_ = resp.Body.Close()
		}
	}()
	<-in
	if resp := must(w.http.Get("http://" + w.public + "/call/p/h/x"))(t); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%d", resp.StatusCode)
	}
	if resp := must(w.http.Get("http://" + w.public + "/oauth2/jwks"))(t); resp.StatusCode != http.StatusOK {
		t.Errorf("%d: held up", resp.StatusCode)
	}
	close(hold)
	for i, want := range []bool{true, true, false} {
		if wait, ok := w.server.AllowCall("c"); ok != want || ok != (wait == 0) || wait > 2*time.Second {
			t.Errorf("%d: %s, %t", i, wait, ok)
		}
	}
}

// Where no credential stays here, nothing says that there is such an endpoint.
func TestCallsAreAdvertisedWhereTheyExist(t *testing.T) {
	for there, want := range map[bool]string{true: `"stint_call_endpoint":"` + self + `/call"`, false: ""} {
		w := newWorld(t, options{calls: there})
		a := w.doRequest(w.http, must(http.NewRequest(http.MethodGet, "http://"+w.public+"/.well-known/oauth-authorization-server", nil))(t))
		if strings.Contains(string(a.body), "stint_call_endpoint") != there || !strings.Contains(string(a.body), want) {
			t.Errorf("%s", a.body)
		}
		a = w.doRequest(w.http, must(http.NewRequest(http.MethodGet, "http://"+w.public+"/call/p/h/x", nil))(t))
		if (a.status == http.StatusNotFound) == there {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
}
