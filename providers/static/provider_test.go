package static_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/providers/static"
	"github.com/stint-dev/stint/scopes/grant"
)

const key = "key-that-opens-all"

// shop is an upstream that takes the key for everything, and says what it was asked.
type shop struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func newShop(t testing.TB) *shop {
	s := &shop{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Api-Key") != key {
			http.Error(out, "no key", http.StatusUnauthorized)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen = append(s.seen, r.Method+" "+r.RequestURI)
		_, _ = io.WriteString(out, r.Method+" "+r.URL.EscapedPath())
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *shop) host() string { return s.Listener.Addr().String() }

// world is what a provider is handed.
type world struct {
	mu     sync.Mutex
	secret string
	asked  int
	down   error
	now    time.Time
}

func (w *world) deps() upstream.Deps {
	return upstream.Deps{
		Self: "https://stint.test",
		Secret: func(_ context.Context, ref string) (secret.String, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.asked++
			if w.down != nil || ref != "file:key" {
				return secret.String{}, errors.Join(w.down, errors.New("no "+ref))
			}
			return secret.New(w.secret), nil
		},
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.now.IsZero() {
				return time.Now()
			}
			return w.now
		},
	}
}

func open(t testing.TB, w *world, cfg static.Config) broker.Provider {
	t.Helper()
	p, err := static.Open(t.Context(), "shop", func(v any) error { *v.(*static.Config) = cfg; return nil }, w.deps())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func calls(t testing.TB, s *grant.Schema, list ...any) grant.Grant {
	t.Helper()
	g, err := s.ParseValue(map[string]any{"calls": list})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func call(host, prefix string, verbs ...any) any {
	return map[string]any{"verbs": verbs, "bucket": host, "prefix": prefix}
}

// places are paths, some of which are below others, or look as if they were.
var places = []string{"", "v1/", "v1/things/", "v1/things/7/", "v1/thingsandmore/", "v1%20x/", "v2/"}

// requests are all that the oracle looks at.
func requests() (out [][2]string) {
	for _, m := range []string{"GET", "HEAD", "POST", "DELETE"} {
		for _, p := range []string{"/", "/v1", "/v1/", "/v1/things", "/v1/things/7", "/v1/things/7/x", "/v1/thingsandmore", "/v1%20x/y", "/v2/", "/v1thing", "/other"} {
			out = append(out, [2]string{m, p})
		}
	}
	return out
}

// allows is what a grant is meant to allow, by other code: path by path.
func allows(g grant.Grant, host, method, path string) bool {
	all, atoms := g.Dimension("calls")
	if all {
		return true
	}
	for _, a := range atoms {
		stem := "/" + strings.TrimSuffix(a[2], "/")
		if a[0] == method && a[1] == host && (a[2] == "" || path == stem || strings.HasPrefix(path, stem+"/")) {
			return true
		}
	}
	return false
}

type session struct {
	calls providertest.Calls
	host  string
}

func (s session) Do(ctx context.Context, act string) error {
	method, path, _ := strings.Cut(act, " ")
	r, err := http.NewRequestWithContext(ctx, method, "http://"+s.host+path, nil)
	if err != nil {
		return err
	}
	resp, err := s.calls(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || method != "HEAD" && string(body) != act {
		return fmt.Errorf("%d %s %w", resp.StatusCode, body, errors.Join(err))
	}
	return nil
}

func (session) Close() {}

func TestProvider(t *testing.T) {
	up := newShop(t)
	host := up.host()
	p := open(t, &world{secret: key}, static.Config{Secret: "file:key", Header: "X-Api-Key: {secret}", Hosts: []string{"http://" + host, "other.test"}})
	s := p.Describe().Schema
	acts := map[string]grant.Grant{}
	for _, r := range requests() {
		if !strings.HasPrefix(r[0], "HEAD") {
			prefix := strings.Trim(r[1], "/") + "/"
			if prefix == "/" {
				prefix = ""
			}
			acts[r[0]+" "+r[1]] = calls(t, s, call(host, prefix, r[0]))
		}
	}
	providertest.Run(t, providertest.Harness{
		Provider: p, Subject: "https://idp.test#alice", Acts: acts, Upstream: "an HTTP server of the test", Oracle: "every request of a list, by string comparison",
		Grant: func(r *rand.Rand) grant.Grant {
			var list []any
			for range 1 + r.IntN(3) {
				h := host
				if r.IntN(4) == 0 {
					h = "other.test"
				}
				list = append(list, call(h, places[r.IntN(len(places))], []any{"GET", "POST", "DELETE", "HEAD"}[r.IntN(4)]))
			}
			return calls(t, s, list...)
		},
		Inexpressible: []grant.Grant{calls(t, s, call("elsewhere.test", "", "GET")), calls(t, s, call(host, "a/../", "GET"))},
		Use: func(ctx context.Context, c providertest.Calls) (providertest.Session, error) {
			return session{c, host}, nil
		},
		Ends:    func(_ context.Context, m *broker.Minted) (time.Time, error) { return m.Expires, nil },
		Remains: func(context.Context) ([]string, error) { return nil, nil },
		Within: func(_ context.Context, a, b grant.Grant) (bool, error) {
			for _, h := range []string{host, "other.test"} {
				for _, r := range requests() {
					if allows(a, h, r[0], r[1]) && !allows(b, h, r[0], r[1]) {
						return false, nil
					}
				}
			}
			return true, nil
		},
		Pairs: 400,
	})
	if up.mu.Lock(); len(up.seen) == 0 {
		t.Error("the upstream was never asked")
	}
	up.mu.Unlock()
}

// Every request of the list is let through if, and only if, the grant means it.
func TestRequestsAreHeldToTheGrant(t *testing.T) {
	p := open(t, &world{secret: key}, static.Config{Secret: "file:key", Hosts: []string{"a.test", "b.test:8443"}})
	d := p.Describe()
	n := 0
	for _, place := range places {
		for _, verb := range []string{"GET", "POST"} {
			g := calls(t, d.Schema, call("a.test", place, verb))
			for _, r := range requests() {
				for _, host := range []string{"a.test", "b.test:8443"} {
					in, err := d.Inject(t.Context(), broker.InjectRequest{Grant: g, Method: r[0], Host: host, Path: r[1]})
					if want := allows(g, host, r[0], r[1]); (err == nil) != want || want && in.Header[0].Value.Reveal() != "Bearer "+key || !want && broker.CodeOf(err) != broker.BadScope {
						t.Errorf("%s: %s %s%s: %v", g, r[0], host, r[1], err)
					}
					n++
				}
			}
		}
	}
	if n < 1000 {
		t.Errorf("only %d", n)
	}
}

func TestRequestsThatNoGrantCouldName(t *testing.T) {
	p := open(t, &world{secret: key}, static.Config{Secret: "file:key", Hosts: []string{"a.test"}})
	d := p.Describe()
	below := calls(t, d.Schema, call("a.test", "v1/", "GET"))
	long := "/v1/" + strings.Repeat("abcdefgh/", 100)
	for name, tc := range map[string]struct {
		g    grant.Grant
		path string
		code broker.Code
	}{
		"a long path below":                        {below, long, ""},
		"a long path elsewhere":                    {below, "/v2" + long[3:], broker.BadScope},
		"a segment that is longer than any prefix": {below, "/v1/" + strings.Repeat("a", 600), ""},
		"such a segment at the beginning":          {below, "/" + strings.Repeat("a", 600) + "/v1/", broker.BadScope},
		"everything":                               {d.Schema.Everything(), long, ""},
		"nothing":                                  {d.Schema.Nothing(), "/v1/", broker.BadScope},
		"no grant":                                 {grant.Grant{}, "/v1/", broker.BadScope},
		"a star":                                   {d.Schema.Everything(), "/v1/*", broker.BadRequest},
		"a variable":                               {d.Schema.Everything(), "/v1/${x}", broker.BadRequest},
	} {
		_, err := d.Inject(t.Context(), broker.InjectRequest{Grant: tc.g, Method: "GET", Host: "a.test", Path: tc.path})
		if broker.CodeOf(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHowTheSecretGoesIntoARequest(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  static.Config
		want string
	}{
		"by itself":       {static.Config{}, "Authorization=Bearer " + key},
		"in a header":     {static.Config{Header: "X-Api-Key: {secret}"}, "X-Api-Key=" + key},
		"within a header": {static.Config{Header: "Authorization: Token token={secret}, v=1"}, "Authorization=Token token=" + key + ", v=1"},
		"as a password":   {static.Config{User: "bot"}, "Authorization=Basic Ym90OmtleS10aGF0LW9wZW5zLWFsbA=="},
		"in the address":  {static.Config{Query: "key"}, "?key=" + key},
	} {
		tc.cfg.Secret, tc.cfg.Hosts, tc.cfg.Headers = "file:key", []string{"a.test"}, []string{"X-Api-Version"}
		p := open(t, &world{secret: key}, tc.cfg)
		in, err := p.Describe().Inject(t.Context(), broker.InjectRequest{Grant: p.Describe().Schema.Everything(), Method: "GET", Host: "a.test", Path: "/"})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, h := range in.Header {
			got += h.Name + "=" + h.Value.Reveal()
		}
		for _, q := range in.Query {
			got += "?" + q.Name + "=" + q.Value.Reveal()
		}
		if got != tc.want || len(in.Scrub) != 1 || in.Scrub[0].Reveal() != key || len(in.Pass) != 1 {
			t.Errorf("%s: %s, %+v", name, got, in)
		}
	}
}

// A secret is read again after a minute, so that one that was replaced is used then, and
// one that is gone is not.
func TestTheSecretIsReadAgain(t *testing.T) {
	w := &world{secret: key, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	p := open(t, w, static.Config{Secret: "file:key", Hosts: []string{"a.test"}})
	d := p.Describe()
	use := func() string {
		in, err := d.Inject(t.Context(), broker.InjectRequest{Grant: d.Schema.Everything(), Method: "GET", Host: "a.test", Path: "/"})
		if err != nil {
			if broker.CodeOf(err) != broker.Unavailable || strings.Contains(broker.AsError(err).Public, "file:key") {
				t.Errorf("%v", err)
			}
			return ""
		}
		return in.Scrub[0].Reveal()
	}
	pass := func(d time.Duration) { w.mu.Lock(); w.now = w.now.Add(d); w.mu.Unlock() }
	if w.asked != 0 {
		t.Error("it was read before anybody asked")
	}
	use()
	w.secret = "another-that-opens"
	if pass(59 * time.Second); use() != key || w.asked != 1 {
		t.Errorf("asked %d times within a minute", w.asked)
	}
	if pass(time.Second); use() != w.secret {
		t.Error("the old one is used for more than a minute")
	}
	pass(time.Minute)
	if w.down = errors.New("down"); use() != "" || d.Ready(t.Context()) == nil {
		t.Error("one that cannot be read is used")
	}
	w.down = nil
	for _, bad := range []string{"short", "with\r\nX-Other: header", ""} {
		if w.secret = bad; use() != "" {
			t.Errorf("%q is used", bad)
		}
	}
}

func TestWhatIsNamed(t *testing.T) {
	p := open(t, &world{secret: key}, static.Config{Secret: "file:key", Hosts: []string{"a.test", "b.test:8443"}})
	all := p.Describe().Schema.Everything()
	ask := func(r broker.ResolveRequest) (*broker.Resolved, error) {
		r.Grants = []grant.Grant{all}
		return p.Resolve(t.Context(), r)
	}
	for uri, want := range map[string]string{
		"static://shop/a.test/":              `"bucket":"a.test","prefix":""`,
		"static://shop/a.test/v1/things/":    `"bucket":"a.test","prefix":"v1/things/"`,
		"static://shop/b.test:8443/x%20y/":   `"bucket":"b.test:8443","prefix":"x%20y/"`,
		"static://shop/a.test":               "",
		"static://shop/":                     "",
		"static://other/a.test/":             "",
		"static://shop/c.test/":              "",
		"static://shop/a.test/v1/things":     "",
		"static://shop/a.test/v1/../":        "",
		"static://shop/a.test//":             "",
		"static://shop/a.test/%2e%2e/":       "",
		"static://shop/a.test/*/":            "",
		"static://shop/A.test/":              "",
		"static://shop/a.test:443/":          "",
		"static://shop@a.test/":              "",
		"https://a.test/":                    "",
		"static://shop/a.test/v1/?method=x/": "",
	} {
		r, err := ask(broker.ResolveRequest{Resources: []string{uri}})
		if want == "" {
			if broker.CodeOf(err) != broker.BadTarget {
				t.Errorf("%s: %v", uri, err)
			}
			continue
		}
		if err != nil || !strings.Contains(r.Request.String(), want) || !strings.Contains(r.Request.String(), `"DELETE","GET","HEAD"`) || len(r.Parts) != 1 || !r.Parts[0].Equal(r.Request) {
			t.Errorf("%s: %v, %v", uri, r, err)
		}
	}
	r, err := ask(broker.ResolveRequest{
		Resources: []string{"static://shop/a.test/v1/", "static://shop/b.test:8443/"},
		Details: []map[string]any{
			{"provider": "shop", "calls": []any{call("a.test", "v1/things/", "GET")}},
			{"calls": []any{call("a.test", "v2/", "GET"), call("b.test:8443", "", "POST")}},
		},
	})
	if err != nil || len(r.Parts) != 2 || r.Wanted == nil || r.Request.String() != `{"calls":[{"bucket":"a.test","prefix":"v1/things/","verbs":["GET"]},{"bucket":"b.test:8443","prefix":"","verbs":["POST"]}]}` {
		t.Errorf("%+v, %v", r, err)
	}
	for name, d := range map[string]map[string]any{
		"another provider":    {"provider": "other", "calls": "*"},
		"no calls":            {"calls": []any{}},
		"nothing":             {},
		"another host":        {"calls": []any{call("c.test", "", "GET")}},
		"another method":      {"calls": []any{call("a.test", "", "TRACE")}},
		"a path that is none": {"calls": []any{call("a.test", "a//", "GET")}},
		"a star":              {"calls": []any{call("a.test", "a*/", "GET")}},
		"half a segment":      {"calls": []any{call("a.test", "v1/thi", "GET")}},
	} {
		if _, err := ask(broker.ResolveRequest{Details: []map[string]any{d}}); broker.CodeOf(err) != broker.BadDetails {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a mapping says of hosts and paths that can never be asked for is found at load.
func TestGrantsOfMappingsAreChecked(t *testing.T) {
	p := open(t, &world{secret: key}, static.Config{Secret: "file:key", Hosts: []string{"a.test"}})
	d := p.Describe()
	for g, ok := range map[*grant.Grant]bool{
		ptr(calls(t, d.Schema, call("a.test", "v1/", "GET"))):    true,
		ptr(d.Schema.Everything()):                               true,
		ptr(calls(t, d.Schema, call("b.test", "v1/", "GET"))):    false,
		ptr(calls(t, d.Schema, call("a.test", "%7Eme/", "GET"))): false,
	} {
		if err := d.Check(*g); (err == nil) != ok {
			t.Errorf("%s: %v", g, err)
		}
	}
	if g := calls(t, d.Schema, call("a.test", "v1/", "GET", "HEAD")); !g.ReadOnly() {
		t.Error("GET and HEAD only read")
	}
	if g := calls(t, d.Schema, call("a.test", "v1/", "POST")); g.ReadOnly() || d.Schema.Everything().ReadOnly() {
		t.Error("POST writes")
	}
}

func ptr(g grant.Grant) *grant.Grant { return &g }

func TestSettingsThatCannotBe(t *testing.T) {
	good := func() static.Config { return static.Config{Secret: "file:key", Hosts: []string{"a.test"}} }
	for name, change := range map[string]func(*static.Config){
		"two ways":                     func(c *static.Config) { c.Header, c.Query = "A: {secret}", "q" },
		"a header without a place":     func(c *static.Config) { c.Header = "Authorization: Bearer" },
		"a header with two places":     func(c *static.Config) { c.Header = "A: {secret} {secret}" },
		"a header without a value":     func(c *static.Config) { c.Header = "Authorization" },
		"a header that is no name":     func(c *static.Config) { c.Header = "A b: {secret}" },
		"a header that ends another":   func(c *static.Config) { c.Header = "A: {secret}\r\nB: c" },
		"the host":                     func(c *static.Config) { c.Header = "Host: {secret}" },
		"the length":                   func(c *static.Config) { c.Header = "content-length: {secret}" },
		"a parameter with a sign":      func(c *static.Config) { c.Query = "a=b" },
		"a user with a colon":          func(c *static.Config) { c.User = "a:b" },
		"a header that is none":        func(c *static.Config) { c.Headers = []string{"a b"} },
		"no hosts":                     func(c *static.Config) { c.Hosts = nil },
		"a host twice":                 func(c *static.Config) { c.Hosts = []string{"a.test", "a.test"} },
		"a host that is empty":         func(c *static.Config) { c.Hosts = []string{""} },
		"a host with a path":           func(c *static.Config) { c.Hosts = []string{"a.test/x"} },
		"a host with a user":           func(c *static.Config) { c.Hosts = []string{"x@a.test"} },
		"a host in capitals":           func(c *static.Config) { c.Hosts = []string{"A.test"} },
		"a host with a star":           func(c *static.Config) { c.Hosts = []string{"*.test"} },
		"a host in another script":     func(c *static.Config) { c.Hosts = []string{"аpple.test"} },
		"a host with a dot at the end": func(c *static.Config) { c.Hosts = []string{"a.test."} },
		"the usual port":               func(c *static.Config) { c.Hosts = []string{"a.test:443"} },
		"no port after the colon":      func(c *static.Config) { c.Hosts = []string{"a.test:"} },
		"https in front":               func(c *static.Config) { c.Hosts = []string{"https://a.test"} },
		"plain HTTP":                   func(c *static.Config) { c.Hosts = []string{"http://a.test"} },
		"plain HTTP in the house":      func(c *static.Config) { c.Hosts = []string{"http://10.0.0.1"} },
	} {
		c := good()
		change(&c)
		if err := c.Check(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	for _, h := range []string{"a.test", "a.test:8443", "http://127.0.0.1:80801"[:21], "http://localhost", "http://[::1]:8080", "xn--pple-43d.test", "192.0.2.1"} {
		c := good()
		c.Hosts = []string{h}
		if err := c.Check(); err != nil {
			t.Errorf("%s: %v", h, err)
		}
	}
}
