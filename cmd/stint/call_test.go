package main

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/internal/testbed"
)

// weather is an upstream with one key for everything, and a Stint before it.
type weather struct {
	t      *testing.T
	issuer string
	config string
	up     *httptest.Server
	mu     sync.Mutex
	got    []string
}

const weatherKey = "the-key-of-the-weather"

func withWeather(t *testing.T) *weather {
	t.Helper()
	w := &weather{t: t}
	w.up = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.mu.Lock()
		w.got = append(w.got, r.Method+" "+r.RequestURI+" "+r.Header.Get("Content-Type")+" "+string(body))
		w.mu.Unlock()
		out.Header().Set("Content-Type", "text/plain")
		switch {
		case r.Header.Get("X-Api-Key") != weatherKey:
			out.WriteHeader(http.StatusUnauthorized)
		case strings.HasSuffix(r.URL.Path, "/echo"):
			_, _ = io.WriteString(out, "you sent "+r.Header.Get("X-Api-Key")+"\a\n")
		case strings.HasSuffix(r.URL.Path, "/none"):
			http.NotFound(out, r)
		default:
			_, _ = io.WriteString(out, "sunny\n")
		}
	}))
	t.Cleanup(w.up.Close)
	dir := filepath.Join(t.TempDir(), "etc")
	out, code := stintCLI(t, "init", dir, "-o", "json")
	var made initOutput
	if err := json.Unmarshal([]byte(out), &made); code != 0 || err != nil {
		t.Fatalf("%d, %v: %s", code, err, out)
	}
	w.config = filepath.Join(dir, theConfig)
	w.issuer = "http://" + address(testbed.FreePort(t))
	edit(t, w.config,
		`["urn:ietf:params:oauth:grant-type:token-exchange"]`, "[client_credentials]", "targets: [https://api.example/notes]", "targets: [weather]",
		"issuer: http://localhost:8080", "issuer: "+w.issuer,
		"", "\nproviders:\n  - name: weather\n    kind: static\n    settings:\n      secret: "+kept(t, dir, "key", weatherKey)+
			"\n      header: \"X-Api-Key: {secret}\"\n      hosts: [\""+w.up.URL+"\"]\n")
	shortSocket(t, w.config)
	host := strings.TrimPrefix(w.up.URL, "http://")
	mapping := `resource: https://mcp.example/notes
scopes:
  weather:read: {access: read, vend: {weather: {calls: [{verbs: [GET], bucket: "HOST", prefix: v1/stations/}]}}}
  weather:write: {access: write, vend: {weather: {calls: [{verbs: [PUT], bucket: "HOST", prefix: v1/stations/}]}}}
rules:
  - allow: [weather:read, weather:write]
    to: {clients: [notes-mcp]}
`
	for _, name := range []string{"example.yaml", "example.cedar"} {
		if err := os.Remove(filepath.Join(dir, "mappings", name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "mappings", "notes.yaml"), []byte(strings.ReplaceAll(mapping, "HOST", host)), 0o600); err != nil {
		t.Fatal(err)
	}
	servingAt(t, w.config, strings.TrimPrefix(w.issuer, "http://"))
	t.Setenv(envIssuer, w.issuer)
	t.Setenv(envClient, "notes-mcp")
	t.Setenv("NOTES_SECRET", made.Secret)
	t.Setenv(envSecret, made.Secret)
	return w
}

// call runs the command, as the client.
func (w *weather) call(args ...string) (out, said string, code int) {
	w.t.Helper()
	return typedAt(w.t, "", append([]string{"call", "--self"}, args...)...)
}

func (w *weather) last() string {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.got) == 0 {
		return ""
	}
	return w.got[len(w.got)-1]
}

func TestExamplesOfCall(t *testing.T) {
	w := withWeather(t)
	t.Chdir(t.TempDir())
	if err := os.WriteFile("station.json", []byte(`{"name":"x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	places := strings.NewReplacer("http://localhost:8080", w.issuer, "https://api.weather.example", w.up.URL,
		"--subject-token file:/run/user/call.jwt", "--self")
	c, _, err := newRoot().Find([]string{"call"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range commandLines(c.Example) {
		out, said, code := typedAt(t, "", typed(t, places.Replace(line))...)
		if code != 0 || !strings.HasSuffix(out, "sunny\n") || said != "" {
			t.Errorf("%s\n%d: %q %s", line, code, out, said)
		}
		got = append(got, w.last())
	}
	if strings.Join(got, "\n") != "GET /v1/stations/7  \nPUT /v1/stations/7 application/json {\"name\":\"x\"}\nGET /v1/stations?near=7  " {
		t.Errorf("the upstream got\n%s", strings.Join(got, "\n"))
	}
}

func TestCall(t *testing.T) {
	w := withWeather(t)
	t.Run("the key comes back in no answer", func(t *testing.T) {
		out, said, code := w.call("--scope", "weather:read", "-i", "weather", w.up.URL+"/v1/stations/echo")
		if code != 0 || !strings.Contains(out, "you sent [secret]") || strings.Contains(out, weatherKey) || !strings.Contains(out, "HTTP/1.1 200\n") || !strings.Contains(out, "Stint-Lease: ") || said != "" {
			t.Errorf("%d: %q %s", code, out, said)
		}
	})
	t.Run("what the grant does not have is refused before the upstream hears of it", func(t *testing.T) {
		for _, args := range [][]string{
			{"--scope", "weather:read", "-X", "PUT", "weather", w.up.URL + "/v1/stations/7"},
			{"--scope", "weather:write", "weather", w.up.URL + "/v1/stations/7"},
			{"--scope", "weather:read", "weather", w.up.URL + "/v1/other"},
			{"--scope", "weather:read", "weather", w.up.URL},
			{"--scope", "weather:read", "weather", w.up.URL + "?x=/v1/stations/7"},
			{"--scope", "weather:read", "weather", w.up.URL + "/v1/stations/%2e%2e/other"},
			{"--scope", "weather:read", "weather", w.up.URL + "/v1/stations//7"},
			{"--scope", "weather:read", "weather", "https://elsewhere.example/v1/stations/7"},
			{"--scope", "weather:read", "-X", "TRACE", "weather", w.up.URL + "/v1/stations/7"},
		} {
			n := len(w.got)
			out, said, code := w.call(args...)
			if code != exitRefused && code != exitFailed || out != "" || len(w.got) != n || strings.Contains(said, weatherKey) {
				t.Errorf("%q: %d: %q %s", args, code, out, said)
			}
		}
	})
	t.Run("an answer that is an error is printed, and is one", func(t *testing.T) {
		out, said, code := w.call("--scope", "weather:read", "weather", w.up.URL+"/v1/stations/none")
		if code != exitFailed || out != "404 page not found\n" || !strings.Contains(said, "answered with 404") {
			t.Errorf("%d: %q %s", code, out, said)
		}
	})
	t.Run("what is wrong with the command line is said", func(t *testing.T) {
		for _, args := range [][]string{
			{"weather"}, {"weather", "not a URL"}, {"weather", "ftp://x/"}, {"weather", "https://u:p@x/"}, {"-H", "x", "weather", "https://x/"},
			{"-H", "authorization: Bearer mine", "weather", "https://x/"}, {"-X", "a b", "weather", "https://x/"},
			{"-d", "@/no/such/file", "weather", "https://x/"},
		} {
			if _, said, code := w.call(append([]string{"--scope", "weather:read"}, args...)...); code == 0 || said == "" {
				t.Errorf("%q: %d %s", args, code, said)
			}
		}
	})
	t.Run("the lease is given back, and every request is on record", func(t *testing.T) {
		var calls int
		var leases, ended map[string]bool
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			calls, leases, ended = 0, map[string]bool{}, map[string]bool{}
			for _, e := range w.events() {
				switch {
				case e.Kind == audit.KindCall && e.Outcome == audit.Done:
					calls++
					leases[e.Lease.ID] = true
					if e.Call.Status == 0 || len(e.Call.Path) != 64 || e.Call.Host != strings.TrimPrefix(w.up.URL, "http://") {
						t.Errorf("%+v", e.Call)
					}
				case e.Kind == audit.KindLease && e.Lease.Outcome == "revoked":
					ended[e.Lease.ID] = true
				}
			}
			left := 0
			for id := range leases {
				if !ended[id] {
					left++
				}
			}
			if left == 0 && calls >= 2 {
				break
			}
			if time.Since(began) > 20*time.Second {
				t.Fatalf("%d requests by %d leases, %d of them not revoked", calls, len(leases), left)
			}
		}
	})
}

// events reads the record.
func (w *weather) events() (out []audit.Event) {
	w.t.Helper()
	text, _, code := typedAt(w.t, "", "audit", "tail", "-c", w.config, "-o", "json", "-n", "1000")
	if code != 0 {
		w.t.Fatalf("%d: %s", code, text)
	}
	for dec := json.NewDecoder(strings.NewReader(text)); ; {
		var e audit.Event
		if err := dec.Decode(&e); err != nil {
			if !errors.Is(err, io.EOF) {
				w.t.Fatal(err)
			}
			return out
		}
		out = append(out, e)
	}
}
