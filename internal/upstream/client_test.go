package upstream_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
)

func TestWhatAnUpstreamAnswersIsBounded(t *testing.T) {
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		switch r.URL.Path {
		case "/slow down":
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusTooManyRequests)
		case "/broken":
			w.WriteHeader(http.StatusBadGateway)
		case "/away":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "/long":
			_, _ = w.Write(make([]byte, 1<<20+1))
		case "/cut":
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("short"))
		default:
			body, _ := io.ReadAll(r.Body)
			_, _ = fmt.Fprintf(w, `{"method":%q,"auth":%q,"kind":%q,"body":%q,"agent":%q}`, r.Method, r.Header.Get("Authorization"), r.Header.Get("Content-Type"), body, r.UserAgent())
			return
		}
		_, _ = io.WriteString(w, "hidden text")
	}))
	t.Cleanup(s.Close)
	c := upstream.NewClient("main", &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }})
	for name, tc := range map[string]struct {
		method, path string
		code         broker.Code
		uncertain    bool
		retry        time.Duration
	}{
		"a limit is told":                       {http.MethodPost, "/slow%20down", broker.Limited, false, 7 * time.Second},
		"a failure may have taken effect":       {http.MethodPost, "/broken", broker.Unavailable, true, 0},
		"but not where nothing is changed":      {http.MethodGet, "/broken", broker.Unavailable, false, 0},
		"an answer that is too long is none":    {http.MethodPost, "/long", broker.Unavailable, true, 0},
		"an answer that is cut is none":         {http.MethodDelete, "/cut", broker.Unavailable, true, 0},
		"a redirect is an answer, not followed": {http.MethodGet, "/away", "", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			before := asked
			a, err := c.Do(t.Context(), upstream.Request{Method: tc.method, URL: s.URL + tc.path})
			if broker.CodeOf(err) != tc.code || errors.Is(err, upstream.ErrUncertain) != tc.uncertain || asked != before+1 {
				t.Errorf("%v after %d requests", err, asked-before)
			}
			if err != nil && (broker.AsError(err).RetryAfter != tc.retry || strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), tc.path)) {
				t.Errorf("%v, again after %s", err, broker.AsError(err).RetryAfter)
			}
			if err == nil && a.Status != http.StatusFound {
				t.Errorf("%+v", a)
			}
		})
	}
	for name, r := range map[string]upstream.Request{
		`"auth":"Bearer t"`:         {Bearer: secret.New("t")},
		`"auth":"Basic dTpw"`:       {User: "u", Password: secret.New("p")},
		`"body":"a=b"`:              {Form: url.Values{"a": {"b"}}},
		`"kind":"application/json"`: {JSON: map[string]any{"x": 1}},
		`"body":"raw"`:              {Body: []byte("raw")},
		`"agent":"stint"`:           {},
	} {
		r.Method, r.URL = http.MethodPost, s.URL+"/echo"
		a, err := c.Do(t.Context(), r)
		if err != nil || !strings.Contains(string(a.Body), name) {
			t.Errorf("%s: %s, %v", name, a.Body, err)
		}
	}
	nobody := httptest.NewServer(nil)
	nobody.Close()
	_, err := c.Do(t.Context(), upstream.Request{Method: http.MethodPost, URL: nobody.URL + "/?secret=x"})
	if broker.CodeOf(err) != broker.Unavailable || errors.Is(err, upstream.ErrUncertain) || strings.Contains(err.Error(), "secret=x") {
		t.Errorf("nothing was sent: %v", err)
	}
	var v struct{ A int }
	if err := (&upstream.Answer{Body: []byte(`{"A":1,"A":2}`)}).JSON(&v); err == nil {
		t.Error("a member that is there twice is read")
	}
}

func TestRetryAfter(t *testing.T) {
	date := "Mon, 23 Nov 2026 12:00:00 GMT"
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "999999": time.Hour, "x": 0, "99999999999999999999": 0,
		"Mon, 23 Nov 2026 12:00:30 GMT": 30 * time.Second, "Mon, 23 Nov 2026 11:00:00 GMT": 0, "Tue, 24 Nov 2026 12:00:00 GMT": time.Hour,
	} {
		if got := upstream.RetryAfter(http.Header{"Retry-After": {text}, "Date": {date}}); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
