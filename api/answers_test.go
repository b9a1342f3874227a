package api_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
)

// public are requests for what strangers may ask, but for the endpoints of OAuth.
var public = []struct {
	method, path string
	form         url.Values
}{
	{"GET", "/oauth2/jwks", nil}, {"GET", "/.well-known/oauth-authorization-server", nil}, {"GET", "/.well-known/openid-configuration", nil},
	{"GET", "/login", nil}, {"GET", "/login/start", nil}, {"GET", "/login/callback", nil}, {"POST", "/login/end", url.Values{}},
	{"GET", "/login/cli", nil}, {"POST", "/login/cli", url.Values{}}, {"POST", "/login/token", url.Values{}},
}

// Too many are sent away, a few minutes or a second, in the way that each endpoint has.
func TestStrangersAreSentAway(t *testing.T) {
	t.Parallel()
	few := newWorld(t, options{limits: api.Limits{AddressRate: 0.001, AddressBurst: 1}})
	few.browse("GET", "/login", nil)
	busy := newWorld(t, options{limits: api.Limits{Concurrency: 1}})
	form := busy.vending()
	waits, goOn := busy.block()
	done := make(chan *answer, 1)
	go func() { done <- busy.post("/oauth2/token", form) }()
	<-waits
	for _, p := range public {
		if a := few.browse(p.method, p.path, p.form); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" {
			t.Errorf("%s %s: %d", p.method, p.path, a.status)
		}
		if a := busy.browse(p.method, p.path, p.form); a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
			t.Errorf("%s %s: %d", p.method, p.path, a.status)
		}
	}
	goOn()
	<-done
}

// A body that is too large is refused, at every endpoint of OAuth.
func TestBodiesThatAreTooLarge(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	for _, path := range []string{"/oauth2/token", "/oauth2/renew", "/oauth2/revoke", "/oauth2/introspect", "/login/token"} {
		if a := w.browse("POST", path, url.Values{"a": {strings.Repeat("x", 70_000)}}); a.status != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

// slips fail in a way that has no code, once they are told to.
type slips struct {
	api.Broker
	broker.Sealer
	broker.Answers
	exchange, revoke, seal, claim atomic.Bool
}

func (s *slips) Exchange(ctx context.Context, r *broker.ExchangeRequest) (*broker.Issued, error) {
	if s.exchange.Load() {
		return nil, errors.New(inside)
	}
	return s.Broker.Exchange(ctx, r)
}

func (s *slips) Revoke(ctx context.Context, r broker.Revocation) (*broker.Receipt, error) {
	if s.revoke.Load() {
		return nil, errors.New(inside)
	}
	return s.Broker.Revoke(ctx, r)
}

func (s *slips) Seal(plain []byte, context string) ([]byte, error) {
	if s.seal.Load() {
		return nil, errors.New(inside)
	}
	return s.Sealer.Seal(plain, context)
}

func (s *slips) Claim(ctx context.Context, name string, data []byte, expires time.Time) ([]byte, error) {
	if s.claim.Load() {
		return nil, errors.New(inside)
	}
	return s.Answers.Claim(ctx, name, data, expires)
}

// Our own failures say nothing of what is inside, on pages and elsewhere.
func TestPagesOfOurOwnFailures(t *testing.T) {
	t.Parallel()
	s := &slips{}
	w := newWorld(t, options{
		wrap: func(b api.Broker) api.Broker { s.Broker = b; return s },
		config: func(c *api.Config) {
			s.Sealer, s.Answers = c.Sealer, c.Answers
			c.Sealer, c.Answers = s, s
		},
	})
	mine := session(w.signedIn("root"))
	csrf := hidden(t, w.browse("GET", "/login", nil, mine), "csrf")
	cli := url.Values{"port": {"4711"}, "code_challenge": {strings.Repeat("A", 43)}, "state": {strings.Repeat("s", 22)}}
	fails := func(status int, slip *atomic.Bool, method, path string, form url.Values, cookies ...*http.Cookie) {
		t.Helper()
		slip.Store(true)
		a := w.browse(method, path, form, cookies...)
		slip.Store(false)
		if a.status != status || strings.Contains(string(a.body), "10.0.0.7") {
			t.Errorf("%s %s: %d %s", method, path, a.status, a.body)
		}
	}
	fails(500, &s.seal, "GET", "/login", nil, mine)
	fails(500, &s.seal, "GET", "/login/start", nil)
	fails(500, &s.seal, "GET", "/login/cli?"+cli.Encode(), nil, mine)
	allow := url.Values{"csrf": {csrf}, "answer": {"allow"}}
	for name, v := range cli {
		allow[name] = v
	}
	fails(500, &s.seal, "POST", "/login/cli", allow, mine)
	state, kept := w.begin("")
	fails(500, &s.exchange, "GET", "/login/callback?"+url.Values{"state": {state}, "code": {"root"}}.Encode(), nil, kept)
	fails(500, &s.revoke, "POST", "/login/end", url.Values{"csrf": {csrf}}, mine)
	// The same of programs.
	token := redeemable(t, w, mine)
	fails(503, &s.claim, "POST", "/login/token", token)
	fails(500, &s.exchange, "POST", "/login/token", token)
	// And what is down.
	w.signIn.err = broker.Fail(broker.Unavailable, errors.New(inside), "the provider is out")
	state, kept = w.begun()
	fails(503, &s.claim, "GET", "/login/callback?"+url.Values{"state": {state}, "code": {"root"}}.Encode(), nil, kept)
	w.signIn.err = broker.Fail(broker.BadToken, errors.New(inside), "the answer is not accepted")
	state, kept = w.begun()
	fails(401, &s.claim, "GET", "/login/callback?"+url.Values{"state": {state}, "code": {"root"}}.Encode(), nil, kept)
	if a := w.browse("GET", "/login/cli", nil, mine); a.status != http.StatusBadRequest {
		t.Errorf("no command line waits: %d", a.status)
	}
	if a := w.browse("GET", "/login/cli?"+cli.Encode(), nil); a.status != http.StatusSeeOther {
		t.Errorf("nobody is signed in: %d", a.status)
	}
	if a := w.browse("POST", "/login/cli", cli, mine); a.status != http.StatusForbidden {
		t.Errorf("a form of nobody's: %d", a.status)
	}
	if a := w.browse("POST", "/login/cli", nil, mine); a.status != http.StatusBadRequest {
		t.Errorf("no form: %d", a.status)
	}
	if a := w.browse("POST", "/login/end", url.Values{}); a.status != http.StatusSeeOther {
		t.Errorf("nobody is signed in: %d", a.status)
	}
}

// begun is begin, where the provider answers nothing afterwards.
func (w *world) begun() (state string, cookie *http.Cookie) {
	w.Helper()
	err := w.signIn.err
	w.signIn.err = nil
	state, cookie = w.begin("")
	w.signIn.err = err
	return state, cookie
}

// redeemable is a form with a code for a command line.
func redeemable(t *testing.T, w *world, mine *http.Cookie) url.Values {
	t.Helper()
	verifier := strings.Repeat("v", 43)
	q := url.Values{"port": {"4711"}, "code_challenge": {challengeOf(verifier)}, "state": {strings.Repeat("s", 22)}}
	form := url.Values{"csrf": {hidden(t, w.browse("GET", "/login/cli?"+q.Encode(), nil, mine), "csrf")}, "answer": {"allow"}}
	for name, v := range q {
		form[name] = v
	}
	to := must(url.Parse(w.browse("POST", "/login/cli", form, mine).header.Get("Location")))(t)
	return url.Values{"code": {to.Query().Get("code")}, "code_verifier": {verifier}}
}
