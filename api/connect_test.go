package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// Who lacks an account is told where to link one; linked, what was refused is granted;
// unlinked, what was granted ends, upstream as well.
func TestLinkingOnPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{links: true})
	form := w.vending()
	a := w.post("/oauth2/token", form)
	if name, _, link := errorOf(t, a); a.status != 400 || name != "interaction_required" || link != self+"/connect/code" || !strings.Contains(string(a.body), `"interaction":"link"`) {
		t.Fatalf("%d %s", a.status, a.body)
	}
	p := &person{w, "alice", map[string]*http.Cookie{}}
	// The page leads to the sign-in, and the sign-in back to it.
	back := p.signIn(p.goTo("GET", strings.TrimPrefix(p.goTo("GET", "/connect/code", nil).header.Get("Location"), self), nil))
	if back.status != http.StatusSeeOther || back.header.Get("Location") != "/connect/code" {
		t.Fatalf("%d %s", back.status, back.header)
	}
	offer := string(p.goTo("GET", "/connect/code", nil).body)
	for _, want := range []string{"https://idp.test#alice", "code.test", "<code>repo</code>", "<code>read:user</code>"} {
		if !strings.Contains(offer, want) {
			t.Errorf("the page does not say %s: %s", want, offer)
		}
	}
	if strings.Contains(offer, "replaced") {
		t.Error("the page speaks of an account that there is not")
	}
	where := p.begins()
	callback := p.allows(where, "4711")
	if a := p.goTo("GET", callback, nil); a.status != http.StatusSeeOther || a.header.Get("Location") != "/connect" {
		t.Fatalf("%d %s %s", a.status, a.header, a.body)
	}
	if got, ok := w.code.Linked("https://idp.test#alice"); !ok || got.ID != "4711" {
		t.Fatalf("%+v", got)
	}
	if a := w.post("/oauth2/token", form); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if list := string(p.goTo("GET", "/connect", nil).body); !strings.Contains(list, "name-of-4711") || !strings.Contains(list, `action="/connect/code/unlink"`) {
		t.Errorf("%s", list)
	}
	if offer := string(p.goTo("GET", "/connect/code", nil).body); !strings.Contains(offer, "name-of-4711") || !strings.Contains(offer, "replaced") {
		t.Errorf("%s", offer)
	}
	if list := string(w.at("bob").goTo("GET", "/connect", nil).body); strings.Contains(list, "4711") || !strings.Contains(list, "No account is linked") {
		t.Errorf("bob sees alice's: %s", list)
	}
	w.code.Revokes(broker.Outcome{State: broker.NotRevocableUntil, Until: w.clock.Now().Add(time.Hour)})
	if a := p.goTo("POST", "/connect/code/unlink", p.csrf("/connect")); a.status != http.StatusOK || !strings.Contains(string(a.body), "cannot be revoked there, and it ends by itself on 2030-01-02 13:00 UTC") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if !slices.Equal(w.code.Revoked(), []string{"4711"}) {
		t.Errorf("%v", w.code.Revoked())
	}
	eventually(t, "what was vended has ended", func() bool { return len(w.code.Live()) == 0 })
	if a := w.post("/oauth2/token", w.vending()); !strings.Contains(string(a.body), "interaction_required") {
		t.Errorf("%d %s", a.status, a.body)
	}
	// Nothing of it is in the log; in the record neither, but for what is sealed.
	code := must(url.Parse(callback))(t).Query()
	for _, sink := range []string{w.logs.String(), w.journalled()} {
		for _, text := range []string{code.Get("code"), code.Get("state"), "name-of-4711", "https://idp.test#alice"} {
			if strings.Contains(sink, text) {
				t.Errorf("%s is in a sink", text)
			}
		}
	}
	for _, want := range []string{`"action":"begin"`, `"action":"finish"`, `"action":"unlink","outcome":"not_revocable_until"`} {
		if !strings.Contains(w.journalled(), want) {
			t.Errorf("the record has no %s", want)
		}
	}
}

// What people sign in to here is not the admin API, nor anything else; and no cookie is a
// token.
func TestConnectSessionsAreForNothingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{links: true})
	root := w.at("root") // who is an administrator
	cookie := root.cookies["__Host-stint-connect"]
	if !cookie.Secure || !cookie.HttpOnly || cookie.SameSite != http.SameSiteLaxMode || cookie.Path != "/" || cookie.Domain != "" || cookie.MaxAge > 15*60 {
		t.Errorf("%+v", cookie)
	}
	mine, admins := root.commandLine(), w.signedIn("root")
	for what, token := range map[string]string{"the cookie": cookie.Value, "the command line's token": mine} {
		if a, _ := w.ask(token, "GET", "/status", nil); a.status != http.StatusUnauthorized {
			t.Errorf("%s at the admin API: %d", what, a.status)
		}
		if a := w.browse("GET", "/login", nil, session(token)); !strings.Contains(string(a.body), "Sign in at") {
			t.Errorf("%s signs an administrator in: %s", what, a.body)
		}
	}
	for what, token := range map[string]string{"the cookie": cookie.Value, "an administrator's token": admins, "none": "", "no token": "x"} {
		if a := w.asks(token, "GET", "/connect/v1/accounts"); a.status != http.StatusUnauthorized || a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s at the accounts: %d", what, a.status)
		}
	}
	for what, value := range map[string]string{"an administrator's token": admins, "a token for it, unsealed": mine} {
		if a := w.browse("GET", "/connect", nil, &http.Cookie{Name: "__Host-stint-connect", Value: value}); !strings.Contains(string(a.body), "Sign in at") {
			t.Errorf("%s is a session: %s", what, a.body)
		}
	}
	// Nor is it exchanged for something else, by anybody.
	for _, c := range []string{"desktop", "files-mcp", "stint-admin"} {
		_, err := w.b.Exchange(context.Background(), &broker.ExchangeRequest{
			GrantType: broker.TokenExchange, Client: w.reg.Clients[c], SubjectToken: secret.New(mine), SubjectType: access,
			Resources: []string{map[string]string{"stint-admin": self + "/admin/v1"}[c] + map[string]string{"desktop": mcp, "files-mcp": mcp}[c]}, Scope: "read files:read",
		})
		if err == nil {
			t.Errorf("client %s exchanges it", c)
		}
	}
	// It ends in a quarter of an hour, and at once by signing out.
	w.clock.move(16 * time.Minute)
	w.settle()
	if a := w.asks(mine, "GET", "/connect/v1/accounts"); a.status != http.StatusUnauthorized {
		t.Errorf("%d", a.status)
	}
	root = w.at("root")
	mine = root.commandLine()
	if a := root.goTo("POST", "/connect/end", root.csrf("/connect")); a.status != http.StatusSeeOther || a.header.Get("Location") != "/connect" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.asks(mine, "GET", "/connect/v1/accounts"); a.status != http.StatusUnauthorized {
		t.Errorf("the command line's token lives on: %d", a.status)
	}
}

// A command line sees and unlinks what its person's pages show, and nobody else's.
func TestAccountsOfACommandLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{links: true})
	alice, bob := w.at("alice"), w.at("bob")
	alice.links("4711")
	bob.links("4712")
	mine := alice.commandLine()
	list := func() (out api.LinkedAccounts) {
		a := w.asks(mine, "GET", "/connect/v1/accounts")
		if err := json.Unmarshal(a.body, &out); err != nil || a.status != http.StatusOK || len(out.Items) != 1 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		return out
	}
	got := list()
	if i := got.Items[0]; got.Subject != "https://idp.test#alice" || !i.Linked || i.Account != "4711" || i.Name != "name-of-4711" || i.URL != self+"/connect/code" || i.Provider != "code" || i.Kind != "fake" {
		t.Errorf("%+v", got)
	}
	a := w.asks(mine, "DELETE", "/connect/v1/accounts/code")
	var out api.UnlinkedAccount
	if err := json.Unmarshal(a.body, &out); err != nil || out.Outcome != "revoked" || out.Provider != "code" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if got := list(); got.Items[0].Linked {
		t.Errorf("%+v", got)
	}
	for _, name := range []string{"code", "db", "nothing"} {
		if a := w.asks(mine, "DELETE", "/connect/v1/accounts/"+name); a.status != http.StatusNotFound {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if _, ok := w.code.Linked("https://idp.test#bob"); !ok {
		t.Error("bob's account is gone")
	}
	// Without the scope it is of no use; signed out with it, it ends.
	less, err := w.b.Exchange(context.Background(), &broker.ExchangeRequest{
		GrantType: broker.TokenExchange, Client: w.reg.Clients["stint-admin"], SubjectToken: secret.New(w.idToken("alice")),
		SubjectType: broker.TypeID, Resources: []string{self + "/connect"}, Scope: "other",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{{"GET", ""}, {"DELETE", "/code"}} {
		if a := w.asks(less.Token.Reveal(), c[0], "/connect/v1/accounts"+c[1]); a.status != http.StatusForbidden || !strings.Contains(a.header.Get("WWW-Authenticate"), "accounts") {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	for _, want := range []int{http.StatusNoContent, http.StatusUnauthorized} {
		if a := w.asks(mine, "POST", "/connect/end"); a.status != want {
			t.Errorf("%d %s, want %d", a.status, a.body, want)
		}
	}
	if a := w.asks(mine, "DELETE", "/connect/v1/accounts/code"); a.status != http.StatusUnauthorized {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// What is wrong with an account is told where it is shown.
func TestAccountsThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{links: true})
	p := w.at("alice")
	where := p.begins()
	to := must(w.code.Allow(where, broker.Account{ID: `"><script>`, Name: "<b>x</b>", Broken: "the upstream refuses to renew it", Expires: w.clock.Now().Add(time.Hour)}))(t)
	p.goTo("GET", strings.TrimPrefix(to, self), nil)
	page := string(p.goTo("GET", "/connect", nil).body)
	if !strings.Contains(page, "refuses to renew it. Link it again") || !strings.Contains(page, "2030-01-02 13:00 UTC") || strings.Contains(page, "<script>") || strings.Contains(page, "<b>") {
		t.Errorf("%s", page)
	}
	mine := p.commandLine()
	if a := w.asks(mine, "GET", "/connect/v1/accounts"); !strings.Contains(string(a.body), `"problem":"the upstream refuses to renew it"`) {
		t.Errorf("%s", a.body)
	}
	w.code.Break(errors.New(inside))
	if page := string(p.goTo("GET", "/connect", nil).body); !strings.Contains(page, "cannot be told now") || strings.Contains(page, "10.0.0.7") {
		t.Errorf("%s", page)
	}
	for what, a := range map[string]*answer{
		"offered": p.goTo("GET", "/connect/code", nil), "begun": p.goTo("POST", "/connect/code", p.csrf("/connect")),
		"unlinked": p.goTo("POST", "/connect/code/unlink", p.csrf("/connect")), "deleted": w.asks(mine, "DELETE", "/connect/v1/accounts/code"),
	} {
		if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || strings.Contains(string(a.body), "10.0.0.7") {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
}

// connectPages are what strangers may ask for at /connect.
var connectPages = []struct {
	method, path string
	form         url.Values
}{
	{"GET", "/connect", nil}, {"GET", "/connect/start", nil}, {"GET", "/connect/callback", nil}, {"POST", "/connect/end", url.Values{}},
	{"GET", "/connect/cli", nil}, {"POST", "/connect/cli", url.Values{}}, {"POST", "/connect/token", url.Values{}},
	{"GET", "/connect/code", nil}, {"POST", "/connect/code", url.Values{}}, {"GET", "/connect/code/callback", nil}, {"POST", "/connect/code/unlink", url.Values{}},
	{"GET", "/connect/v1/accounts", nil}, {"DELETE", "/connect/v1/accounts/code", nil},
}

func TestStrangersAreSentAwayFromConnect(t *testing.T) {
	t.Parallel()
	few := newWorld(t, options{links: true, limits: api.Limits{AddressRate: 0.001, AddressBurst: 1}})
	few.browse("GET", "/connect", nil)
	busy := newWorld(t, options{links: true, limits: api.Limits{Concurrency: 1}})
	form := busy.vending()
	waits, goOn := busy.block()
	done := make(chan *answer, 1)
	go func() { done <- busy.post("/oauth2/token", form) }()
	<-waits
	few.browse("POST", "/connect/code/unlink", url.Values{})
	for _, p := range connectPages {
		if taking := strings.HasSuffix(p.path, "/unlink") || p.method == "DELETE"; taking {
			// What takes back has a place of its own, where all others are used up.
			if a := busy.browse(p.method, p.path, p.form); a.status != http.StatusForbidden && a.status != http.StatusUnauthorized {
				t.Errorf("%s %s: %d", p.method, p.path, a.status)
			}
			if a := few.browse(p.method, p.path, p.form); a.status != http.StatusTooManyRequests {
				t.Errorf("%s %s: %d", p.method, p.path, a.status)
			}
			continue
		}
		for want, a := range map[int]*answer{
			http.StatusTooManyRequests: few.browse(p.method, p.path, p.form), http.StatusServiceUnavailable: busy.browse(p.method, p.path, p.form),
		} {
			html := strings.HasPrefix(a.header.Get("Content-Type"), "text/html")
			if a.status != want || a.header.Get("Retry-After") == "" || html == (strings.Contains(p.path, "/v1/") || p.path == "/connect/token") {
				t.Errorf("%s %s: %d %s", p.method, p.path, a.status, a.header)
			}
		}
	}
	goOn()
	<-done
	if a := few.browse("POST", "/connect/token", url.Values{"a": {strings.Repeat("x", 70_000)}}); a.status != http.StatusTooManyRequests {
		t.Errorf("%d", a.status)
	}
}

// slipping fails in a way that has no code, once it is told to.
type slipping struct {
	*slips
	link atomic.Bool
}

func (s *slipping) fails() error {
	if s.link.Load() {
		return errors.New(inside)
	}
	return nil
}

func (s *slipping) Accounts(ctx context.Context, l broker.Linking) ([]broker.Linkable, error) {
	out, err := s.Broker.Accounts(ctx, l)
	return out, errors.Join(err, s.fails())
}

func (s *slipping) OfferLink(ctx context.Context, l broker.Linking, redirect string) (*broker.LinkOffer, error) {
	out, err := s.Broker.OfferLink(ctx, l, redirect)
	return out, errors.Join(err, s.fails())
}

func (s *slipping) BeginLink(ctx context.Context, l broker.Linking, a broker.LinkAnswer) (string, error) {
	out, err := s.Broker.BeginLink(ctx, l, a)
	return out, errors.Join(err, s.fails())
}

func (s *slipping) FinishLink(ctx context.Context, l broker.Linking, a broker.LinkAnswer) (*broker.Account, error) {
	out, err := s.Broker.FinishLink(ctx, l, a)
	return out, errors.Join(err, s.fails())
}

func (s *slipping) Unlink(ctx context.Context, l broker.Linking) (broker.Outcome, error) {
	out, err := s.Broker.Unlink(ctx, l)
	return out, errors.Join(err, s.fails())
}

// Our own failures say nothing of what is inside, and what there is not is not there.
func TestConnectPagesOfOurOwnFailures(t *testing.T) {
	t.Parallel()
	s := &slipping{slips: &slips{}}
	w := newWorld(t, options{
		links: true,
		wrap:  func(b api.Broker) api.Broker { s.Broker = b; return s },
		config: func(c *api.Config) {
			s.Sealer, s.Answers = c.Sealer, c.Answers
			c.Sealer, c.Answers = s, s
		},
	})
	p := w.at("alice")
	fails := func(status int, slip *atomic.Bool, method, path string, form url.Values) {
		t.Helper()
		slip.Store(true)
		a := p.goTo(method, path, form)
		slip.Store(false)
		if a.status != status || strings.Contains(string(a.body), "10.0.0.7") {
			t.Errorf("%s %s: %d %s", method, path, a.status, a.body)
		}
	}
	cli := url.Values{"port": {"4711"}, "code_challenge": {strings.Repeat("A", 43)}, "state": {strings.Repeat("s", 22)}}
	csrf := p.csrf("/connect")
	for _, path := range []string{"/connect", "/connect/code", "/connect/cli?" + cli.Encode(), "/connect/start"} {
		fails(500, &s.seal, "GET", path, nil)
	}
	fails(500, &s.seal, "POST", "/connect/code", csrf)
	for _, path := range []string{"/connect", "/connect/code"} {
		fails(500, &s.link, "GET", path, nil)
	}
	for _, path := range []string{"/connect/code", "/connect/code/unlink"} {
		p.links("4711")
		fails(500, &s.link, "POST", path, csrf)
	}
	fails(500, &s.revoke, "POST", "/connect/end", csrf)
	fails(500, &s.link, "GET", p.allows(p.begins(), "4711"), nil)
	allow := url.Values{"csrf": csrf["csrf"], "answer": {"allow"}}
	for name, v := range cli {
		allow[name] = v
	}
	fails(500, &s.seal, "POST", "/connect/cli", allow)
	// The same of programs, and of the sign-in.
	mine := p.commandLine()
	s.link.Store(true)
	for _, c := range [][2]string{{"GET", "/connect/v1/accounts"}, {"DELETE", "/connect/v1/accounts/code"}} {
		if a := w.asks(mine, c[0], c[1]); a.status != 500 || strings.Contains(string(a.body), "10.0.0.7") {
			t.Errorf("%v: %d %s", c, a.status, a.body)
		}
	}
	s.link.Store(false)
	w.connectTokens(s, p)
	w.connectSignIns(s)
	for path, want := range map[string]int{"/connect/db": 404, "/connect/nothing": 404, "/connect/cli": 400} {
		if a := p.goTo("GET", path, nil); a.status != want {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	for path, want := range map[string]int{"/connect/db": 404, "/connect/nothing/unlink": 404} {
		if a := p.goTo("POST", path, csrf); a.status != want {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if a := p.goTo("POST", "/connect/cli", nil); a.status != 400 {
		t.Errorf("%d", a.status)
	}
	if a := w.browse("GET", "/connect/cli?"+cli.Encode(), nil); a.status != http.StatusSeeOther {
		t.Errorf("%d", a.status)
	}
}

// connectTokens are the ways in which a command line gets no token.
func (w *world) connectTokens(s *slipping, p *person) {
	w.Helper()
	verifier := strings.Repeat("v", 43)
	code := func() url.Values {
		q := url.Values{"port": {"4711"}, "code_challenge": {challengeOf(verifier)}, "state": {strings.Repeat("s", 22)}}
		form := p.csrf("/connect/cli?" + q.Encode())
		form.Set("answer", "allow")
		for name, v := range q {
			form[name] = v
		}
		to := must(url.Parse(p.goTo("POST", "/connect/cli", form).header.Get("Location")))(w)
		return url.Values{"code": {to.Query().Get("code")}, "code_verifier": {verifier}}
	}
	redeem := func(want int, form url.Values) {
		w.Helper()
		if a := w.browse("POST", "/connect/token", form); a.status != want {
			w.Errorf("%d %s, want %d", a.status, a.body, want)
		}
	}
	s.claim.Store(true)
	redeem(503, code())
	s.claim.Store(false)
	form := code()
	s.exchange.Store(true)
	redeem(500, form)
	s.exchange.Store(false)
	redeem(400, form) // it is used up
	redeem(413, url.Values{"a": {strings.Repeat("x", 70_000)}})
	// A code of one door is not one of another's.
	form = code()
	if a := w.browse("POST", "/login/token", form); a.status != 400 {
		w.Errorf("a code for accounts is good for the admin API: %d %s", a.status, a.body)
	}
	redeem(200, form)
	redeem(400, redeemable(w.TB.(*testing.T), w, session(w.signedIn("root"))))
}

// connectSignIns are the ways in which a sign-in fails.
func (w *world) connectSignIns(s *slipping) {
	w.Helper()
	for _, c := range []struct {
		name   string
		want   int
		change func(q url.Values)
	}{
		{"an error", 403, func(q url.Values) { q.Set("error", "access_denied") }},
		{"another state", 400, func(q url.Values) { q.Set("state", "x") }},
		{"a refusal", 401, func(url.Values) { w.signIn.err = broker.Fail(broker.BadToken, errors.New(inside), "not accepted") }},
		{"an outage", 503, func(url.Values) {
			w.signIn.err = broker.Fail(broker.Unavailable, errors.New(inside), "the provider is out")
		}},
		{"a failure", 500, func(url.Values) { s.exchange.Store(true) }},
	} {
		p := &person{w, "alice", map[string]*http.Cookie{}}
		to := must(url.Parse(p.goTo("GET", "/connect/start", nil).header.Get("Location")))(w)
		q := url.Values{"state": {to.Query().Get("state")}, "code": {"alice"}}
		c.change(q)
		a := p.goTo("GET", "/connect/callback?"+q.Encode(), nil)
		w.signIn.err = nil
		s.exchange.Store(false)
		if a.status != c.want || p.cookies["__Host-stint-connect"] != nil || strings.Contains(string(a.body), "10.0.0.7") {
			w.Errorf("%s: %d %s", c.name, a.status, a.body)
		}
	}
	p := &person{w, "alice", map[string]*http.Cookie{}}
	if a := p.goTo("GET", "/connect/start?port=x", nil); a.status != 400 {
		w.Errorf("%d", a.status)
	}
	if a := p.goTo("POST", "/connect/end", url.Values{}); a.status != http.StatusSeeOther {
		w.Errorf("%d", a.status)
	}
	p = w.at("alice")
	if a := p.goTo("POST", "/connect/end", url.Values{"csrf": {"x"}}); a.status != http.StatusForbidden {
		w.Errorf("%d", a.status)
	}
}

// Accounts are linked also where nobody administers over the network.
func TestConnectWithoutAdministrators(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{links: true, config: func(c *api.Config) { c.Admin = nil }})
	p := w.at("alice")
	p.links("4711")
	if a := w.asks(p.commandLine(), "GET", "/connect/v1/accounts"); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := p.goTo("GET", "/login", nil); a.status != http.StatusNotFound {
		t.Errorf("%d", a.status)
	}
	if a, _ := w.ask(p.commandLine(), "GET", "/status", nil); a.status != http.StatusNotFound {
		t.Errorf("%d", a.status)
	}
	without := newWorld(t, options{})
	for _, page := range connectPages {
		if a := without.browse(page.method, page.path, page.form); a.status != http.StatusNotFound {
			t.Errorf("%s %s: %d", page.method, page.path, a.status)
		}
	}
}

// Whoever turns off the client of the sign-in shuts the door, for who is in as well.
func TestConnectIsTurnedOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{links: true})
	p := w.at("alice")
	mine := p.commandLine()
	if err := w.b.Switch(t.Context(), broker.SwitchRequest{Kind: broker.SwitchClient, ID: "stint-admin", Off: true, Operator: "test"}); err != nil {
		t.Fatal(err)
	}
	if a := w.asks(mine, "GET", "/connect/v1/accounts"); a.status != http.StatusUnauthorized {
		t.Errorf("%d", a.status)
	}
	if a := p.goTo("GET", "/connect", nil); !strings.Contains(string(a.body), "Sign in at") {
		t.Errorf("%s", a.body)
	}
	if a := p.signIn(p.goTo("GET", "/connect/start", nil)); a.status != http.StatusUnauthorized || p.cookies["__Host-stint-connect"] != nil {
		t.Errorf("%d %s", a.status, a.body)
	}
}
