package broker_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/scopes/grant"
)

// injecting makes the upstream one whose credential stays here, and returns what it was
// asked to hold last.
func (w *world) injecting() *broker.InjectRequest {
	last := &broker.InjectRequest{}
	w.upstream.inject = func(_ context.Context, r broker.InjectRequest) (*broker.Injection, error) {
		*last = r
		need, err := tables.ParseValue(map[string]any{"privileges": []any{map[string]any{
			"object": strings.Trim(r.Path, "/"), "privileges": []any{"SELECT"}, "columns": "*", "rows": "*",
		}}})
		if err != nil {
			return nil, broker.Fail(broker.BadRequest, err, "what is that")
		}
		if ok, _ := grant.Leq(need, r.Grant); !ok {
			return nil, broker.Fail(broker.BadScope, nil, "the grant does not allow this request")
		}
		return &broker.Injection{Header: []broker.Injected{{Name: "Authorization", Value: secret.New("Bearer upstream-secret")}}, Roots: []byte("roots"), What: "read"}, nil
	}
	w.judge.SetPolicy(w.policy(filesYAML, apiYAML))
	return last
}

// callToken is one that was vended for reading orders.
func (w *world) callToken() *broker.Issued {
	w.t.Helper()
	first, _ := w.must(nil)
	got, err := w.exchange(w.vend(first.Token, nil))
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func callOf(token secret.String, change func(*broker.CallRequest)) *broker.CallRequest {
	r := &broker.CallRequest{Token: token, Provider: "warehouse", Method: "GET", Host: "up.test", Path: "/sales.orders", RequestID: "call-1", Address: "192.0.2.7"}
	if change != nil {
		change(r)
	}
	return r
}

func TestACredentialThatStaysHereIsUsedByATokenOfOurs(t *testing.T) {
	w := newWorld(t)
	last := w.injecting()
	got := w.callToken()
	if got.TokenType != "Bearer" || got.Type != broker.TypeAccess || got.Document || len(got.Lease) != 24 || got.Call != self+"/call/warehouse/" {
		t.Errorf("issued %+v", got)
	}
	e := w.record.last(t, audit.KindExchange)
	if c := e.Certificate; e.Lease.Class != "none" || c == nil || string(c.Grant) != ordersRead || string(c.Granted) != ordersRead || c.Evidence != "attested" {
		t.Errorf("event %+v", e)
	}
	token, err := w.tokens.Verify(t.Context(), got.Token)
	if err != nil || token.ID != got.Lease || token.Audience[0] != self+"/call" || token.Stint.Call.Provider != "warehouse" || token.Stint.Session == "" || !token.Expires.Equal(got.Expires) {
		t.Errorf("token %+v, %+v, %v", token, token.Stint, err)
	}
	c, err := w.b.Call(t.Context(), callOf(got.Token, func(r *broker.CallRequest) {
		r.Host, r.Query, r.Body, r.Method = "up.test:8443", "a=b", []byte("body"), "POST"
		r.Header = map[string][]string{"Accept": {"text/plain"}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if c.Lease != got.Lease || c.Client != "files-mcp" || c.Origin != "https://up.test:8443" || len(c.Hosts) != 2 || c.Hosts[0] != "up.test" || string(c.Roots) != "roots" || c.Header[0].Value.Reveal() != "Bearer upstream-secret" {
		t.Errorf("call %+v", c)
	}
	if last.Lease != got.Lease || string(last.Grant.Canonical()) != ordersRead || string(last.Handle) != "handle of "+got.Lease || last.Method != http.MethodPost ||
		last.Host != "up.test:8443" || last.Path != "/sales.orders" || last.Query != "a=b" || string(last.Body) != "body" || last.Header["Accept"][0] != "text/plain" {
		t.Errorf("the provider was asked %+v", last)
	}
	if n := w.record.count(audit.KindCall); n != 0 {
		t.Errorf("%d events before there is an answer", n)
	}
	if err := c.Done(t.Context(), 201, nil); err != nil {
		t.Fatal(err)
	}
	e = w.record.last(t, audit.KindCall)
	sum := sha256.Sum256([]byte("/sales.orders"))
	if e.Outcome != audit.Done || *e.Call != (audit.Call{Method: "POST", Host: "up.test:8443", Path: hex.EncodeToString(sum[:]), What: "read", Status: 201}) ||
		e.Lease.ID != got.Lease || e.Target.Provider != "warehouse" || e.Target.Resource != mcp || e.Party.Client != "files-mcp" || e.Party.Subject == "" || e.Request != "call-1" {
		t.Errorf("event %+v, %+v", e, e.Call)
	}
	if data, _ := json.Marshal(w.record.events); strings.Contains(string(data), "upstream-secret") || strings.Contains(string(data), "pw-") || strings.Contains(string(data), "/sales.orders\"") && strings.Contains(string(data), "192.0.2.7") {
		t.Error("the record shows a secret, or an address in clear")
	}
}

func TestCallsThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(w *world, got *broker.Issued)
		change  func(*broker.CallRequest)
		code    broker.Code
		reason  string
	}{
		"no token":                        {change: func(r *broker.CallRequest) { r.Token = secret.New("x") }, code: broker.BadToken, reason: "unknown"},
		"a token for another provider":    {change: func(r *broker.CallRequest) { r.Provider = "other" }, code: broker.BadToken, reason: "it is for requests to provider warehouse"},
		"what the grant does not allow":   {change: func(r *broker.CallRequest) { r.Path = "/sales.customers" }, code: broker.BadScope},
		"another host":                    {change: func(r *broker.CallRequest) { r.Host = "evil.test" }, code: broker.BadTarget, reason: "none of the provider's"},
		"a host in another spelling":      {change: func(r *broker.CallRequest) { r.Host = "UP.test" }, code: broker.BadTarget, reason: "none of the provider's"},
		"a host with the usual port":      {change: func(r *broker.CallRequest) { r.Host = "up.test:443" }, code: broker.BadTarget},
		"a host with a user":              {change: func(r *broker.CallRequest) { r.Host = "x@up.test" }, code: broker.BadTarget},
		"a host with a dot at its end":    {change: func(r *broker.CallRequest) { r.Host = "up.test." }, code: broker.BadTarget},
		"an unknown method":               {change: func(r *broker.CallRequest) { r.Method = "CONNECT" }, code: broker.BadRequest},
		"a method in small letters":       {change: func(r *broker.CallRequest) { r.Method = "get" }, code: broker.BadRequest},
		"a body where nothing is written": {change: func(r *broker.CallRequest) { r.Body = []byte("_method=DELETE") }, code: broker.BadRequest},
		"a path that leads up":            {change: func(r *broker.CallRequest) { r.Path = "/a/../sales.orders" }, code: broker.BadRequest},
		"a query with a semicolon":        {change: func(r *broker.CallRequest) { r.Query = "a=b;c=d" }, code: broker.BadRequest},
		"a lease that was revoked":        {prepare: func(w *world, got *broker.Issued) { w.revoke(broker.Selector{Lease: got.Lease}) }, code: broker.BadToken, reason: "revoked"},
		"a token that was revoked":        {prepare: func(w *world, got *broker.Issued) { w.revoke(broker.Selector{Token: got.Lease}) }, code: broker.BadToken, reason: "revoked"},
		"a subject that was revoked":      {prepare: func(w *world, _ *broker.Issued) { w.revoke(broker.Selector{Subject: idp + "#alice"}) }, code: broker.BadToken, reason: "revoked"},
		"the token before it was revoked": {prepare: func(w *world, _ *broker.Issued) { w.revoke(broker.Selector{Token: idp + "#idp-1"}) }, code: broker.BadToken, reason: "revoked"},
		"a lease that is closing": {prepare: func(w *world, got *broker.Issued) {
			w.turn(got.Lease, func(l *broker.Lease) { l.State = broker.Closing })
		}, code: broker.BadToken, reason: "closing"},
		"a lease that is an intent": {prepare: func(w *world, got *broker.Issued) {
			w.turn(got.Lease, func(l *broker.Lease) { l.State = broker.Intent })
		}, code: broker.BadToken, reason: "intent"},
		"a lease that has run out": {prepare: func(w *world, got *broker.Issued) {
			w.turn(got.Lease, func(l *broker.Lease) { l.Expires = w.clock.Now() })
		}, code: broker.BadToken, reason: "active until"},
		"a token that has run out": {prepare: func(w *world, _ *broker.Issued) {
			w.clock.move(20 * time.Minute)
			w.b = w.broker("later", w.record, broker.Head{})
		}, code: broker.BadToken, reason: "expired"},
		"a lease that says more than we signed": {prepare: func(w *world, got *broker.Issued) {
			w.turn(got.Lease, func(l *broker.Lease) { l.Grant = tables.Everything().Canonical() })
		}, code: broker.BadToken, reason: "something else"},
		"a lease that says nothing":   {prepare: func(w *world, got *broker.Issued) { w.turn(got.Lease, func(l *broker.Lease) { l.Grant = nil }) }, code: broker.BadToken},
		"a lease of another provider": {prepare: func(w *world, got *broker.Issued) { w.turn(got.Lease, func(l *broker.Lease) { l.Provider = "other" }) }, code: broker.BadToken, reason: "of provider other"},
		"a handle of another lease": {prepare: func(w *world, got *broker.Issued) {
			w.turn(got.Lease, func(l *broker.Lease) { l.Handle = []byte("x") })
		}, code: broker.Internal, reason: "sealed for another context"},
		"a provider that injects no more": {prepare: func(w *world, _ *broker.Issued) { w.upstream.inject = nil }, code: broker.BadToken, reason: "does not inject"},
		"a provider that panics": {prepare: func(w *world, _ *broker.Issued) {
			w.upstream.inject = func(context.Context, broker.InjectRequest) (*broker.Injection, error) { panic("upstream-secret") }
		}, code: broker.Unavailable, reason: "panicked"},
		"a provider that answers with nothing": {prepare: func(w *world, _ *broker.Issued) {
			w.upstream.inject = func(context.Context, broker.InjectRequest) (*broker.Injection, error) { return nil, nil }
		}, code: broker.Internal},
		"a provider without words": {prepare: func(w *world, _ *broker.Issued) {
			w.upstream.inject = func(context.Context, broker.InjectRequest) (*broker.Injection, error) {
				return nil, errors.New("its own words")
			}
		}, code: broker.Unavailable, reason: "inject"},
		"keys that cannot be had": {prepare: func(w *world, _ *broker.Issued) { w.tokens.down = errors.New("down") }, code: broker.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.injecting()
			got := w.callToken()
			if c, err := w.b.Call(t.Context(), callOf(got.Token, nil)); err != nil || c == nil {
				t.Fatalf("before: %v", err)
			}
			if tc.prepare != nil {
				tc.prepare(w, got)
			}
			_, err := w.b.Call(t.Context(), callOf(got.Token, tc.change))
			if e := broker.AsError(err); err == nil || e.Code != tc.code || !strings.Contains(e.Reason(), tc.reason) || strings.Contains(err.Error(), "upstream-secret") || strings.Contains(e.Public, "its own words") {
				t.Fatalf("%v", err)
			}
			if e := w.record.last(t, audit.KindCall); e.Outcome != audit.Refused && e.Outcome != audit.Failed || e.Code != string(tc.code) {
				t.Errorf("event %+v", e)
			}
		})
	}
}

func (w *world) revoke(s broker.Selector) {
	w.t.Helper()
	if _, err := w.b.Revoke(w.t.Context(), broker.Revocation{Selector: s, Operator: "test"}); err != nil {
		w.t.Fatal(err)
	}
}

// turn changes a lease in the ledger, as whoever can write there could.
func (w *world) turn(id string, change func(*broker.Lease)) {
	w.t.Helper()
	l := w.lease(id)
	change(l)
	if err := w.store.Update(w.t.Context(), l); err != nil {
		w.t.Fatal(err)
	}
}

// A token for requests is good for nothing else, and no other is good for requests.
func TestATokenForRequestsIsForNothingElse(t *testing.T) {
	w := newWorld(t)
	w.injecting()
	first, _ := w.must(nil)
	if _, err := w.b.Call(t.Context(), callOf(first.Token, nil)); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("a token for a resource makes a request: %v", err)
	}
	// Not even one that says that it is for this.
	other, _ := w.tokens.Verify(t.Context(), first.Token)
	bent := *other
	bent.Audience = []string{self + "/call"}
	if _, err := w.b.Call(t.Context(), callOf(w.tokens.put(&bent), nil)); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("an audience is enough: %v", err)
	}
	got := w.callToken()
	for name, change := range map[string]func(*broker.ExchangeRequest){
		"as a subject token": w.vend(got.Token, nil),
		"for a resource":     func(r *broker.ExchangeRequest) { r.Client, r.SubjectToken = w.reg.Clients["files-mcp"], got.Token },
		"as an actor token": func(r *broker.ExchangeRequest) {
			r.Client, r.SubjectToken, r.ActorToken, r.ActorType = w.reg.Clients["files-mcp"], first.Token, got.Token, broker.TypeAccess
		},
	} {
		if _, err := w.exchange(change); broker.CodeOf(err) != broker.BadToken {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w.introspect("files-mcp", got.Token, false) {
		t.Error("it is active at a resource")
	}
	if _, err := w.b.Admit(t.Context(), got.Token, mcp, ""); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("it is admitted elsewhere: %v", err)
	}
}

// What was revoked while a request was on its way is not answered; what cannot be
// recorded neither.
func TestAnAnswerIsHeldBack(t *testing.T) {
	w := newWorld(t)
	w.injecting()
	got := w.callToken()
	begin := func() *broker.Call {
		c, err := w.b.Call(t.Context(), callOf(got.Token, nil))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c, d := begin(), begin()
	w.record.down = errors.New("disk full")
	if err := c.Done(t.Context(), 200, nil); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("it could not be recorded, and is answered: %v", err)
	}
	w.record.down = nil
	w.revoke(broker.Selector{Lease: got.Lease})
	if err := d.Done(t.Context(), 200, nil); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("it was revoked, and is answered: %v", err)
	}
	if e := w.record.last(t, audit.KindCall); e.Outcome != audit.Refused || e.Call.Status != 200 {
		t.Errorf("event %+v", e)
	}
}

func TestARequestThatFailsUpstreamIsRecorded(t *testing.T) {
	w := newWorld(t)
	w.injecting()
	c, err := w.b.Call(t.Context(), callOf(w.callToken().Token, nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Done(t.Context(), 0, broker.Fail(broker.Unavailable, errors.New("no answer"), "")); err != nil {
		t.Fatal(err)
	}
	if e := w.record.last(t, audit.KindCall); e.Outcome != audit.Failed || e.Reason != "no answer" || e.Call.Status != 0 {
		t.Errorf("event %+v", e)
	}
}

// Another replica refuses a revoked lease when it has come so far in the feed, without a
// look at the ledger.
func TestARevokedLeaseMakesNoRequestsAnywhere(t *testing.T) {
	w := newWorld(t)
	w.injecting()
	got := w.callToken()
	other := w.broker("r2", w.record, broker.Head{})
	w.run(other)
	if _, err := other.Call(t.Context(), callOf(got.Token, nil)); err != nil {
		t.Fatal(err)
	}
	w.revoke(broker.Selector{Lease: got.Lease})
	eventually(t, "the other replica refuses", func() bool {
		_, err := other.Call(t.Context(), callOf(got.Token, nil))
		return broker.CodeOf(err) == broker.BadToken
	})
}

func TestProvidersThatInjectAndBreakTheContract(t *testing.T) {
	for name, bend := range map[string]func(*upstream){
		"hand out what stays here": func(u *upstream) { u.leaks = true },
		"say that they grant more": func(u *upstream) { u.grants = func(grant.Grant) grant.Grant { return tables.Everything() } },
		"outlive what was asked":   func(u *upstream) { u.late = time.Hour },
		"hold to less than is said": func(u *upstream) {
			u.grants = func(grant.Grant) grant.Grant {
				g, _ := tables.Parse([]byte(`{"privileges":[{"columns":["a"],"object":"sales.orders","privileges":["SELECT"],"rows":"*"}]}`))
				return g
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.injecting()
			first, _ := w.must(nil)
			bend(w.upstream)
			got, err := w.exchange(w.vend(first.Token, nil))
			if err == nil {
				t.Fatalf("issued %+v", got)
			}
			if e := w.record.last(t, audit.KindExchange); e.Outcome == audit.Granted || e.Lease == nil {
				t.Errorf("event %+v", e)
			}
		})
	}
}

// What is to stay here, and has no way to be used, is not handed out instead.
func TestWhatStaysHereIsNotVended(t *testing.T) {
	w := newWorld(t)
	for _, class := range []broker.Class{broker.None, broker.Coarse} {
		w.upstream.class, w.upstream.modes = class, []broker.Mode{broker.Inject}
		first, _ := w.must(nil)
		if got, err := w.exchange(w.vend(first.Token, nil)); broker.CodeOf(err) != broker.BadTarget {
			t.Errorf("%s: %+v, %v", class, got, err)
		}
	}
}

func TestPathsThatCouldBeReadInTwoWaysAreRefused(t *testing.T) {
	w := newWorld(t)
	asked := w.injecting()
	token := w.callToken().Token
	try := func(p, query string) error {
		_, err := w.b.Call(t.Context(), callOf(token, func(r *broker.CallRequest) { r.Path, r.Query = p, query }))
		return err
	}
	for _, p := range []string{
		"", "x", "*", "/..", "/.", "/a/..", "/a/../b", "/a/./b", "/../..", "//", "//evil.test/x", "/a//b", "/a/..;/b", "/..;x=1/b", "/;/b", "/a/;x/b",
		"/%2e%2e/a", "/%2E%2E/a", "/.%2E/a", "/a%2Fb", "/a%2fb", "/a%5Cb", `/a\b`, `/a\..\b`, "/a%00b", "/a\x00b", "/a%0D%0AX: y", "/a\r\nb", "/a%7F",
		"/%41", "/%7E", "/a%20%2E", "/%", "/%4", "/%zz", "/%c3%a9", "/é", "/a b", "/a?b", "/a#b", "/a%3Fb", "/a%23b", "/a%3Bb", "/%252e%252e/", "/%25",
		"/%C0%AF", "/%C0%AE%C0%AE/", "/%EF%BC%8F", "/%EF%BC%8E%EF%BC%8E/a", "/%E2%80%A5/a", "/a*", "/$batch", "/%FF", "/" + strings.Repeat("a", 5000), "/a\t", "/<a>", "/{a}", "/a|b", "/a\"b", "/a^b", "/a`b", "/[a]",
		"https://evil.test/", "@evil.test/",
	} {
		if err := try(p, ""); broker.CodeOf(err) != broker.BadRequest {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, q := range []string{"a;b", "a#b", "a b", "a\r\nb", "%", "%zz", "%00", "%41", "é", strings.Repeat("a", 5000), "%7F", "a\x00"} {
		if err := try("/sales.orders", q); broker.CodeOf(err) != broker.BadRequest {
			t.Errorf("?%q: %v", q, err)
		}
	}
	for _, p := range []string{"/", "/a", "/a/", "/a/b;v=1/c", "/a.b/..c/d..", "/...", "/%C3%A9", "/a%20b", "/a:b@c/d,e/(f)!'~", "/%2A%24%7B", "/a/;x=%20"[:2], "/v1%5B0%5D"} {
		if err := try(p, "a=b&c=%C3%A9&d=/?%26%0A"); broker.CodeOf(err) == broker.BadRequest && !strings.Contains(err.Error(), "what is that") {
			t.Errorf("%q: %v", p, err)
		} else if asked.Path != p {
			t.Errorf("%q came as %q", p, asked.Path)
		}
	}
}

// No path that is taken changes by being cleaned, decoded or normalised.
func FuzzPathsOfRequests(f *testing.F) {
	for _, p := range []string{"/", "/a/b", "/a/%2E", "/..;/", "/%C3%A9/", "/a//b", "/a;b/c"} {
		f.Add(p)
	}
	w := newWorld(f)
	asked := w.injecting()
	token := w.callToken().Token
	f.Fuzz(func(t *testing.T, p string) {
		asked.Path = ""
		_, _ = w.b.Call(context.Background(), callOf(token, func(r *broker.CallRequest) { r.Path = p }))
		if asked.Path == "" {
			return
		}
		decoded, err := url.PathUnescape(p)
		again, err2 := url.PathUnescape(decoded)
		clean := path.Clean(decoded)
		if strings.HasSuffix(decoded, "/") && clean != "/" {
			clean += "/"
		}
		u, err3 := url.Parse("https://up.test" + p)
		if asked.Path != p || err != nil || err2 != nil || again != decoded || clean != decoded || strings.ContainsAny(decoded, "\\\x00\r\n") || err3 != nil || u.EscapedPath() != p || u.Host != "up.test" {
			t.Errorf("%q is taken", p)
		}
	})
}

// One that is bound to a certificate makes requests over connections with that alone.
func TestACallsTokenIsHeldToItsCertificate(t *testing.T) {
	w := newWorld(t)
	w.injecting()
	token, err := w.tokens.Verify(t.Context(), w.callToken().Token)
	if err != nil {
		t.Fatal(err)
	}
	bound := *token
	bound.Certificate = "mine"
	raw := w.tokens.put(&bound)
	for certificate, want := range map[string]broker.Code{"": broker.BadToken, "other": broker.BadToken, "mine": ""} {
		_, err := w.b.Call(t.Context(), callOf(raw, func(r *broker.CallRequest) { r.Certificate = certificate }))
		if (err == nil) != (want == "") || err != nil && broker.CodeOf(err) != want {
			t.Errorf("by %q: %v", certificate, err)
		}
	}
}
