package api_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
)

// later checks that an answer sends the caller away for a while.
func later(t testing.TB, what string, a *answer, status int) {
	t.Helper()
	oauth, _, _ := errorOf(t, a)
	if a.status != status || oauth != "temporarily_unavailable" || a.header.Get("Retry-After") != "1" {
		t.Errorf("%s: %d %s, Retry-After %q", what, a.status, a.body, a.header.Get("Retry-After"))
	}
}

// Beyond so many requests at a time further ones are sent away, at once; health
// is answered all the same.
func TestConcurrencyIsLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{limits: api.Limits{Concurrency: 1}})
	form := w.vending()
	waits, goOn := w.block()
	done := make(chan *answer, 1)
	go func() { done <- w.post("/oauth2/token", form) }()
	<-waits
	later(t, "a second request", w.post("/oauth2/token", w.form()), 503)
	later(t, "another endpoint", w.post("/oauth2/introspect", url.Values{"token": {"abc"}}), 503)
	if got := w.post("/oauth2/revoke", url.Values{"token": {"abc"}}); got.status != 200 {
		t.Errorf("a revocation, which has a place of its own: %d %s", got.status, got.body)
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if got := w.get(path); got.status != 200 {
			t.Errorf("%s: %d", path, got.status)
		}
	}
	goOn()
	if got := <-done; got.status != 200 {
		t.Errorf("the first: %d %s", got.status, got.body)
	}
	issued(t, w.post("/oauth2/token", w.form()))
}

func (w *world) get(path string) *answer {
	w.Helper()
	return w.doRequest(w.http, must(http.NewRequest(http.MethodGet, "http://"+w.public+path, nil))(w))
}

// Connections that have sent half a request hold up nobody.
func TestSlowBodiesTakeNoPlace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{limits: api.Limits{Concurrency: 2}})
	for range 8 {
		w.raw(head + "Content-Length: 100\r\n\r\na=b")
	}
	// The server reads them all before it answers what comes behind them.
	for range 20 {
		issued(t, w.post("/oauth2/token", w.form()))
		time.Sleep(2 * time.Millisecond)
	}
}

// A panic gives its place back.
func TestPanicGivesItsPlaceBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{limits: api.Limits{Concurrency: 1}})
	form := w.vending()
	w.code.set(func() { panic("in an upstream") })
	for range 3 {
		if got := w.post("/oauth2/token", form); got.status != 500 {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	w.code.set(nil)
	issued(t, w.post("/oauth2/token", form))
}

// from sends a request to the public handler as from an address.
func (w *world) from(address string, header ...string) *answer {
	w.Helper()
	return w.arrive(httptest.NewRequest(http.MethodGet, "http://stint/oauth2/jwks", nil), address, header...)
}

// revocationFrom is from, for a revocation.
func (w *world) revocationFrom(address string, header ...string) *answer {
	w.Helper()
	return w.arrive(httptest.NewRequest(http.MethodPost, "http://stint/oauth2/revoke", nil), address, header...)
}

func (w *world) arrive(r *http.Request, address string, header ...string) *answer {
	w.Helper()
	r.RemoteAddr = address
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	out := httptest.NewRecorder()
	w.handler().ServeHTTP(out, r)
	return &answer{out.Code, out.Header(), out.Body.Bytes()}
}

func (w *world) handler() http.Handler { return w.server.Public() }

func TestAddressesAreHeldToARate(t *testing.T) {
	t.Parallel()
	limits := api.Limits{AddressRate: 0.5, AddressBurst: 2}
	proxied := limits
	proxied.TrustedProxies = []string{"10.0.0.0/8"}
	for name, c := range map[string]struct {
		limits api.Limits
		first  []string // address, headers: asks twice
		then   []string
		same   bool
	}{
		"the same address":                           {limits, []string{"192.0.2.1:1"}, []string{"192.0.2.1:2"}, true},
		"another address":                            {limits, []string{"192.0.2.1:1"}, []string{"192.0.2.2:1"}, false},
		"another address of the same IPv6 network":   {limits, []string{"[2001:db8::1]:1"}, []string{"[2001:db8::2]:1"}, true},
		"an address of another IPv6 network":         {limits, []string{"[2001:db8::1]:1"}, []string{"[2001:db8:0:1::1]:1"}, false},
		"an IPv4 address written in IPv6":            {limits, []string{"192.0.2.1:1"}, []string{"[::ffff:192.0.2.1]:1"}, true},
		"a header of somebody who is no proxy":       {limits, []string{"192.0.2.1:1", "X-Forwarded-For", "1.1.1.1"}, []string{"192.0.2.1:1", "X-Forwarded-For", "2.2.2.2"}, true},
		"another header of somebody who is no proxy": {limits, []string{"192.0.2.1:1", "X-Real-Ip", "1.1.1.1"}, []string{"192.0.2.1:1", "X-Real-Ip", "2.2.2.2"}, true},
		"different addresses behind a proxy":         {proxied, []string{"10.0.0.1:1", "X-Forwarded-For", "1.1.1.1"}, []string{"10.0.0.1:1", "X-Forwarded-For", "2.2.2.2"}, false},
		"the same address behind two proxies":        {proxied, []string{"10.0.0.1:1", "X-Forwarded-For", "1.1.1.1, 10.2.2.2"}, []string{"10.0.0.9:1", "X-Forwarded-For", "1.1.1.1"}, true},
		"a proxy that believes what it was told":     {proxied, []string{"10.0.0.1:1", "X-Forwarded-For", "6.6.6.6, 1.1.1.1"}, []string{"10.0.0.1:1", "X-Forwarded-For", "7.7.7.7, 1.1.1.1"}, true},
		"loopback is no proxy unless it is named":    {proxied, []string{"127.0.0.1:1", "X-Forwarded-For", "1.1.1.1"}, []string{"127.0.0.1:1", "X-Forwarded-For", "2.2.2.2"}, true},
		"somebody who is no proxy beside one":        {proxied, []string{"192.0.2.1:1", "X-Forwarded-For", "1.1.1.1"}, []string{"192.0.2.1:1", "X-Forwarded-For", "2.2.2.2"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{limits: c.limits})
			for range 2 {
				if got := w.from(c.first[0], c.first[1:]...); got.status != 200 {
					t.Fatalf("within the burst: %d", got.status)
				}
			}
			got := w.from(c.then[0], c.then[1:]...)
			if !c.same {
				if got.status != 200 {
					t.Errorf("status %d", got.status)
				}
				return
			}
			if oauth, _, _ := errorOf(t, got); got.status != 429 || oauth != "temporarily_unavailable" || got.header.Get("Retry-After") != "2" {
				t.Errorf("%d %s %v", got.status, got.body, got.header)
			}
			if got := w.revocationFrom(c.then[0], c.then[1:]...); got.status == 429 {
				t.Errorf("a revocation is held to what else was asked: %s", got.body)
			}
			w.clock.move(2 * time.Second)
			if got := w.from(c.then[0], c.then[1:]...); got.status != 200 {
				t.Errorf("two seconds later: %d", got.status)
			}
		})
	}
}

// However many addresses there are, those that are remembered are bounded, and
// the ones seen last are among them.
func TestRatesForgetWhoWasNotSeenForLong(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{limits: api.Limits{AddressRate: 0.001, AddressBurst: 1, TrustedProxies: []string{"10.0.0.0/8"}}})
	ask := func(n int) int {
		return w.from("10.0.0.1:1", "X-Forwarded-For", fmt.Sprintf("1.%d.%d.%d", n>>16, n>>8&255, n&255)).status
	}
	if ask(0) != 200 || ask(0) != 429 {
		t.Fatal("the first is not held to its rate")
	}
	for n := range 10_000 {
		if ask(n + 1); n%1000 == 0 && ask(0) != 429 {
			t.Fatal("whoever goes on asking is forgotten among many others")
		}
	}
	for n := range 8192 {
		ask(n + 20_000)
	}
	if got := ask(28_191); got != 429 {
		t.Errorf("the latest is forgotten: %d", got)
	}
	if got := ask(0); got != 200 {
		t.Errorf("the first is remembered: %d", got)
	}
}

// A client is held to its rate at every endpoint, once it has shown who it is:
// nobody uses up another's.
func TestClientsAreHeldToARate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{limits: api.Limits{ClientRate: 1, ClientBurst: 2}})
	for range 5 {
		wrong := w.form()
		wrong.Set("client_id", "files-mcp")
		wrong.Set("client_secret", "wrong")
		if got := w.post("/oauth2/token", wrong); got.status != 401 {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	looking := w.asFilesMCP(url.Values{"token": {"abc"}})
	for range 2 {
		if got := w.post("/oauth2/introspect", looking); got.status != 200 {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	for path, form := range map[string]url.Values{
		"/oauth2/token": w.asFilesMCP(url.Values{"grant_type": {"client_credentials"}, "resource": {mcp}, "scope": {"files:read"}}), "/oauth2/introspect": looking,
	} {
		later(t, path, w.post(path, form), 429)
	}
	for range 2 { // what it used up otherwise does not keep it from taking back
		if got := w.post("/oauth2/revoke", looking); got.status != 200 {
			t.Errorf("a revocation: %d %s", got.status, got.body)
		}
	}
	later(t, "one revocation too many", w.post("/oauth2/revoke", looking), 429)
	issued(t, w.post("/oauth2/token", w.form())) // another client
	w.clock.move(time.Second)
	if got := w.post("/oauth2/introspect", looking); got.status == 429 {
		t.Errorf("a second later: %d %s", got.status, got.body)
	}
	if strings.Contains(w.journalled(), `"code":"limited"`) {
		t.Error("whoever is held to a rate fills the record all the same")
	}
}

func TestLimitsAreChecked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits api.Limits
		ok     bool
	}{
		"nothing set":             {api.Limits{}, true},
		"networks":                {api.Limits{TrustedProxies: []string{"10.0.0.0/8", "fd00::/8"}}, true},
		"an address":              {api.Limits{TrustedProxies: []string{"10.0.0.1"}}, false},
		"a negative client rate":  {api.Limits{ClientRate: -1}, false},
		"a negative address rate": {api.Limits{AddressRate: -1}, false},
	} {
		if err := c.limits.Check(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	good := api.Config{
		Issuer: self, Keys: w.ring, IssuerHealth: w.tokens.Ready, Operations: w, Answers: w.store, Sealer: w.sealer, Log: slog.New(slog.DiscardHandler), Now: w.clock.Now,
		Metrics: api.NewMetrics("test", w.b.Status),
	}
	if s, err := api.New(good, w.b); err != nil || s == nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*api.Config){
		"no issuer":                    func(c *api.Config) { c.Issuer = "" },
		"an issuer that is no URL":     func(c *api.Config) { c.Issuer = "https://stint.test/\x7f" },
		"an issuer with a slash":       func(c *api.Config) { c.Issuer = self + "/" },
		"an issuer with a query":       func(c *api.Config) { c.Issuer = self + "?a=b" },
		"an issuer with a fragment":    func(c *api.Config) { c.Issuer = self + "#a" },
		"an issuer with a place in it": func(c *api.Config) { c.Issuer = self + "/:tenant" },
		"an issuer with a star":        func(c *api.Config) { c.Issuer = self + "/*" },
		"an issuer that is encoded":    func(c *api.Config) { c.Issuer = self + "/a%2Fb" },
		"no keys":                      func(c *api.Config) { c.Keys = nil },
		"no log":                       func(c *api.Config) { c.Log = nil },
		"no answers":                   func(c *api.Config) { c.Answers = nil },
		"no sealer":                    func(c *api.Config) { c.Sealer = nil },
		"no clock":                     func(c *api.Config) { c.Now = nil },
		"no metrics":                   func(c *api.Config) { c.Metrics = nil },
		"no health of issuers":         func(c *api.Config) { c.IssuerHealth = nil },
		"no operations":                func(c *api.Config) { c.Operations = nil },
	} {
		cfg := good
		change(&cfg)
		if _, err := api.New(cfg, w.b); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := api.New(good, nil); err == nil {
		t.Error("no broker is accepted")
	}
	s := must(api.New(good, w.b))(t)
	out := httptest.NewRecorder()
	s.Public().ServeHTTP(out, httptest.NewRequest(http.MethodGet, "/.well-known/oauth-authorization-server", nil))
	if !bytes.Contains(out.Body.Bytes(), []byte(`"authorization_details_types_supported":[]`)) {
		t.Errorf("no types of details are no list: %s", out.Body)
	}
}

// asked counts how often the broker is asked how it is.
type asked struct {
	api.Broker
	n   int
	ctx error // of the one who made it ask
}

func (a *asked) Status(ctx context.Context) broker.Status {
	a.n++
	a.ctx = ctx.Err()
	return a.Broker.Status(ctx)
}

// A stranger cannot have the store and every upstream asked as often as he likes,
// nor make the server look unready by going away.
func TestReadinessIsNotAskedForAtWill(t *testing.T) {
	t.Parallel()
	a := &asked{}
	w := newWorld(t, options{wrap: func(b api.Broker) api.Broker { a.Broker = b; return a }})
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	handler := w.server.Public()
	for range 5 {
		out := httptest.NewRecorder()
		handler.ServeHTTP(out, httptest.NewRequest(http.MethodGet, "/readyz", nil).WithContext(gone))
		if out.Code != 200 {
			t.Errorf("%d %s", out.Code, out.Body)
		}
	}
	if a.n != 1 || a.ctx != nil {
		t.Errorf("asked %d times, with %v", a.n, a.ctx)
	}
	w.clock.move(time.Second)
	handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if a.n != 2 {
		t.Errorf("asked %d times a second later", a.n)
	}
	for range 2 { // operators see what is now
		w.server.Ops().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/readyz", nil))
	}
	if a.n != 4 {
		t.Errorf("asked %d times for operators too", a.n)
	}
}

// What is no address counts as itself.
func TestAddressThatIsNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{limits: api.Limits{AddressRate: 1, AddressBurst: 1}})
	if a, b := w.from("@:1"), w.from("@:2"); a.status != 200 || b.status != 429 {
		t.Errorf("%d, then %d", a.status, b.status)
	}
}
