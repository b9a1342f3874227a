package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
)

// accounts is an upstream at which subjects link accounts: whoever the code names.
type accounts struct {
	mu       sync.Mutex
	linked   map[string]*broker.Account
	asked    []broker.LinkRequest
	finish   func(code string) (*broker.Account, error)
	begin    string
	unlink   error // before it is forgotten
	untold   error // after
	unlinked int
	outcome  broker.Outcome
	lookup   error
}

// atUpstream has subjects link accounts at the warehouse.
func (w *world) atUpstream() *accounts {
	a := &accounts{linked: map[string]*broker.Account{}, begin: "https://up.test/authorize?scope=read%20list", outcome: broker.Outcome{State: broker.Revoked}}
	w.upstream.link = &broker.Link{
		Issuer: "https://up.test",
		Begin: func(_ context.Context, r broker.LinkRequest) (string, error) {
			return a.begin + "&" + url.Values{"state": {r.State}, "redirect_uri": {r.Redirect}}.Encode(), nil
		},
		Finish: func(_ context.Context, r broker.LinkRequest, code string) (*broker.Account, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.asked = append(a.asked, r)
			if a.finish != nil {
				return a.finish(code)
			}
			a.linked[r.Subject] = &broker.Account{ID: code, Name: "name-of-" + code, Scopes: []string{"read"}}
			return a.linked[r.Subject], nil
		},
		Linked: func(_ context.Context, subject string) (*broker.Account, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.lookup != nil {
				return nil, a.lookup
			}
			if got := a.linked[subject]; got != nil {
				return got, nil
			}
			return nil, fmt.Errorf("none: %w", broker.ErrNotFound)
		},
		Unlink: func(_ context.Context, subject string) (broker.Outcome, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.unlinked++
			if a.unlink != nil {
				return broker.Outcome{}, a.unlink
			}
			if a.linked[subject] == nil {
				return broker.Outcome{}, broker.ErrNotFound
			}
			delete(a.linked, subject)
			return a.outcome, a.untold
		},
	}
	return a
}

// linking is what somebody does about an account at the warehouse, with a token of ours.
func (w *world) linking(who string) broker.Linking {
	w.t.Helper()
	_, t := w.must(func(r *broker.ExchangeRequest) {
		r.SubjectToken = w.tokens.put(w.token(func(t *broker.Token) { t.Subject, t.SessionID = who, "sid-of-"+who }))
	})
	return broker.Linking{Person: t, Provider: "warehouse", RequestID: "req", Address: "192.0.2.7"}
}

// answer is one with a state that nobody has used.
func (w *world) answer(code string) broker.LinkAnswer {
	w.n++
	return broker.LinkAnswer{
		Redirect: self + "/connect/warehouse/callback", State: fmt.Sprintf("state-%d", w.n), Verifier: "verifier", Code: code,
		Ends: w.clock.Now().Add(10 * time.Minute),
	}
}

func (w *world) link(l broker.Linking, code string) {
	w.t.Helper()
	if _, err := w.b.FinishLink(context.Background(), l, w.answer(code)); err != nil {
		w.t.Fatal(err)
	}
}

// An account is offered, linked, listed and unlinked; the record says so each time, and
// seals whose account it is.
func TestLinkingAnAccount(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	w := newWorld(t)
	up, l := w.atUpstream(), w.linking("alice")
	offer, err := w.b.OfferLink(ctx, l, "https://stint.test/back")
	if err != nil || offer.Site != "up.test" || !slices.Equal(offer.Scopes, []string{"read", "list"}) || offer.Account != nil {
		t.Fatalf("%+v %v", offer, err)
	}
	a := w.answer("4711")
	where, err := w.b.BeginLink(ctx, l, a)
	if err != nil || !strings.Contains(where, a.State) {
		t.Fatalf("%s %v", where, err)
	}
	if e := w.record.last(t, audit.KindLink); e.Link.Action != "begin" || e.Link.Provider != "warehouse" || e.Outcome != audit.Done || e.Party.Subject == "" {
		t.Errorf("%+v %+v", e, e.Link)
	}
	got, err := w.b.FinishLink(ctx, l, a)
	if err != nil || got.ID != "4711" {
		t.Fatalf("%+v %v", got, err)
	}
	if r := up.asked[0]; r.Subject != idp+"#alice" || r.State != a.State || r.Verifier != a.Verifier || r.Redirect != a.Redirect {
		t.Errorf("the provider was asked %+v", r)
	}
	e, who := w.record.last(t, audit.KindLink), w.record.who[len(w.record.who)-1]
	if e.Link.Action != "finish" || e.Outcome != audit.Done || !slices.Equal(e.Link.Scopes, []string{"read"}) || who.Account != "4711 name-of-4711" || who.Subject != idp+"#alice" {
		t.Errorf("%+v %+v %+v", e, e.Link, who)
	}
	if text, _ := json.Marshal(e); strings.Contains(string(text), "4711") || strings.Contains(string(text), "alice") {
		t.Errorf("the event names the account: %s", text)
	}
	all, err := w.b.Accounts(ctx, l)
	if err != nil || len(all) != 1 || all[0].Account.ID != "4711" || all[0].Provider != "warehouse" || all[0].Problem != "" {
		t.Errorf("%+v %v", all, err)
	}
	if all, err := w.b.Accounts(ctx, w.linking("bob")); err != nil || all[0].Account != nil {
		t.Errorf("bob has alice's: %+v %v", all, err)
	}
	out, err := w.b.Unlink(ctx, l)
	if err != nil || out.State != broker.Revoked {
		t.Fatalf("%+v %v", out, err)
	}
	e, who = w.record.last(t, audit.KindLink), w.record.who[len(w.record.who)-1]
	if e.Link.Action != "unlink" || e.Link.Outcome != "revoked" || who.Account != "4711 name-of-4711" {
		t.Errorf("%+v %+v", e.Link, who)
	}
	if _, err := w.b.Unlink(ctx, l); broker.CodeOf(err) != broker.BadTarget {
		t.Errorf("unlinked twice: %v", err)
	}
}

// Who is no person, is revoked or frozen, or asks for what there is not, links nothing,
// and no upstream is asked.
func TestWhoMayNotLink(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, c := range []struct {
		name   string
		change func(*world, *broker.Linking)
		want   broker.Code
	}{
		{"nobody", func(_ *world, l *broker.Linking) { l.Person = nil }, broker.BadToken},
		{"a client for itself", func(_ *world, l *broker.Linking) { t := *l.Person; t.Subject = "files-mcp"; l.Person = &t }, broker.BadToken},
		{"a foreign token", func(w *world, l *broker.Linking) { l.Person = w.token(nil) }, broker.BadToken},
		{"a provider that there is not", func(_ *world, l *broker.Linking) { l.Provider = "other" }, broker.BadTarget},
		{"a provider without accounts", func(w *world, _ *broker.Linking) { w.upstream.link = nil }, broker.BadTarget},
		{"a subject that was revoked", func(w *world, _ *broker.Linking) {
			w.revoke(broker.Selector{Subject: idp + "#alice"})
		}, broker.BadToken},
		{"a session that was ended", func(w *world, l *broker.Linking) {
			w.revoke(broker.Selector{Session: l.Person.Stint.Session})
		}, broker.BadToken},
		{"a token that was revoked", func(w *world, l *broker.Linking) { w.revoke(broker.Selector{Token: l.Person.ID}) }, broker.BadToken},
		{"a subject that is frozen", func(w *world, _ *broker.Linking) { w.freeze(idp + "#alice") }, broker.BadToken},
		{"an issuer that is turned off", func(w *world, _ *broker.Linking) { w.reg.Issuers[idp].Disabled = true }, broker.BadToken},
		{"a replica that is not current", func(w *world, _ *broker.Linking) { w.clock.move(time.Minute) }, broker.Unavailable},
	} {
		w := newWorld(t)
		up, l := w.atUpstream(), w.linking("alice")
		c.change(w, &l)
		before := w.record.count(audit.KindLink)
		_, offered := w.b.OfferLink(ctx, l, "https://stint.test/back")
		_, begun := w.b.BeginLink(ctx, l, w.answer("x"))
		_, finished := w.b.FinishLink(ctx, l, w.answer("x"))
		for what, err := range map[string]error{"offered": offered, "begun": begun, "finished": finished} {
			if broker.CodeOf(err) != c.want {
				t.Errorf("%s: %s: %v, want %s", c.name, what, err, c.want)
			}
		}
		if len(up.asked) != 0 || len(up.linked) != 0 {
			t.Errorf("%s: the upstream was asked", c.name)
		}
		if got := w.record.count(audit.KindLink) - before; got != 2 {
			t.Errorf("%s: %d events, want one each for begin and finish", c.name, got)
		}
		if e := w.record.last(t, audit.KindLink); e.Outcome == audit.Done || e.Code != string(c.want) {
			t.Errorf("%s: %+v", c.name, e)
		}
	}
}

// freeze keeps new grants from a subject, by a record that another replica wrote.
func (w *world) freeze(subject string) {
	w.t.Helper()
	ctx := context.Background()
	all, err := w.store.Read(ctx, 0, 1000, 0)
	if err != nil || len(all) == 0 {
		w.t.Fatal(err)
	}
	head := all[len(all)-1].Head()
	now := w.clock.Now().Truncate(time.Second)
	e := head.Follow(broker.Record{
		Where: []broker.Key{broker.KeyOf(broker.BySubject, subject), broker.KeyOf(broker.ByAgent, "desktop")}, At: now.Add(-time.Hour),
		Expires: now.Add(time.Hour), Until: now.Add(30 * time.Minute),
	}, broker.Position{Epoch: head.Pos.Epoch, Seq: head.Pos.Seq + 1})
	if err := w.store.Append(ctx, head, e); err != nil {
		w.t.Fatal(err)
	}
	w.run(w.b)
	eventually(w.t, "the broker has read the freeze", func() bool { return w.b.Status(ctx).Head == e.Pos })
}

// An answer is taken once, of the upstream that was asked, with a code; whatever goes
// wrong, nothing is linked and the reason stays here.
func TestAnswersThatAreNotTaken(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	said := func(code broker.Code, text string) func(string) (*broker.Account, error) {
		return func(string) (*broker.Account, error) { return nil, broker.Fail(code, errors.New("inside"), text) }
	}
	for _, c := range []struct {
		name   string
		change func(*accounts, *broker.LinkAnswer)
		want   broker.Code
		public string
	}{
		{"of another issuer", func(_ *accounts, a *broker.LinkAnswer) { a.Issuer = "https://evil.test" }, broker.BadToken, "not accepted"},
		{"of the issuer with a slash", func(_ *accounts, a *broker.LinkAnswer) { a.Issuer = "https://up.test/" }, broker.BadToken, "not accepted"},
		{"without a code", func(_ *accounts, a *broker.LinkAnswer) { a.Code = "" }, broker.BadToken, "not accepted"},
		{"with a code without end", func(_ *accounts, a *broker.LinkAnswer) { a.Code = strings.Repeat("x", 5000) }, broker.BadToken, "not accepted"},
		{"the upstream refuses", func(up *accounts, _ *broker.LinkAnswer) {
			up.finish = said(broker.BadToken, "the upstream refuses the code")
		}, broker.BadToken, "refuses the code"},
		{"the upstream limits", func(up *accounts, _ *broker.LinkAnswer) { up.finish = said(broker.Limited, "slow down") }, broker.Limited, "slow down"},
		{"an error without a code", func(up *accounts, _ *broker.LinkAnswer) {
			up.finish = func(string) (*broker.Account, error) { return nil, errors.New("body of the upstream") }
		}, broker.Unavailable, "cannot be asked"},
		{"a panic", func(up *accounts, _ *broker.LinkAnswer) {
			up.finish = func(string) (*broker.Account, error) { panic("body of the upstream") }
		}, broker.Unavailable, "cannot be asked"},
		{"nothing", func(up *accounts, _ *broker.LinkAnswer) {
			up.finish = func(string) (*broker.Account, error) { return nil, nil }
		}, broker.Unavailable, "cannot be asked"},
		{"what is linked cannot be read", func(up *accounts, _ *broker.LinkAnswer) { up.lookup = errors.New("down") }, broker.Unavailable, "cannot be asked"},
	} {
		w := newWorld(t)
		up, l := w.atUpstream(), w.linking("alice")
		a := w.answer("4711")
		c.change(up, &a)
		_, err := w.b.FinishLink(ctx, l, a)
		if e := broker.AsError(err); e.Code != c.want || !strings.Contains(e.Public, c.public) || strings.Contains(e.Public, "body") {
			t.Errorf("%s: %v", c.name, err)
		}
		if e := w.record.last(t, audit.KindLink); e.Outcome == audit.Done || e.Link.Action != "finish" {
			t.Errorf("%s: %+v", c.name, e)
		}
		// The same state is not good again, whatever came of it.
		up.finish, up.lookup = nil, nil
		a.Issuer, a.Code = "https://up.test", "4711"
		if _, err := w.b.FinishLink(ctx, l, a); broker.CodeOf(err) != broker.BadToken || len(up.linked) != 0 {
			t.Errorf("%s: the state is good twice: %v", c.name, err)
		}
	}
}

// Sites that a provider sends nobody to.
func TestWhereABrowserIsNotSent(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"", "/authorize", "javascript:alert(1)", "//evil.test", "https://user@up.test/", "ftp://up.test/", "https:///x", "\x00"} {
		w := newWorld(t)
		up, l := w.atUpstream(), w.linking("alice")
		up.begin = where
		if got, err := w.b.BeginLink(context.Background(), l, w.answer("")); broker.CodeOf(err) != broker.Unavailable {
			t.Errorf("%q: %q %v", where, got, err)
		}
	}
}

// No record, no link; nor one for whoever was revoked while it was made.
func TestALinkThatMayNotStay(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	t.Run("the record is down", func(t *testing.T) {
		w := newWorld(t)
		up, l := w.atUpstream(), w.linking("alice")
		w.record.fail = func(e *audit.Event) error {
			if e.Kind == audit.KindLink {
				return errors.New("disk full")
			}
			return nil
		}
		if _, err := w.b.BeginLink(ctx, l, w.answer("")); broker.CodeOf(err) != broker.Unavailable {
			t.Errorf("begun: %v", err)
		}
		if _, err := w.b.FinishLink(ctx, l, w.answer("4711")); broker.CodeOf(err) != broker.Unavailable || len(up.linked) != 0 || up.unlinked != 1 {
			t.Errorf("%v %v", err, up.linked)
		}
		// Taking away waits for no record.
		up.linked[idp+"#alice"] = &broker.Account{ID: "1"}
		if _, err := w.b.Unlink(ctx, l); err != nil || len(up.linked) != 0 {
			t.Errorf("%v %v", err, up.linked)
		}
	})
	t.Run("revoked meanwhile", func(t *testing.T) {
		w := newWorld(t)
		up, l := w.atUpstream(), w.linking("alice")
		up.finish = func(code string) (*broker.Account, error) {
			w.revoke(broker.Selector{Subject: idp + "#alice"})
			up.linked[idp+"#alice"] = &broker.Account{ID: code}
			return up.linked[idp+"#alice"], nil
		}
		if _, err := w.b.FinishLink(ctx, l, w.answer("4711")); broker.CodeOf(err) != broker.BadToken || len(up.linked) != 0 {
			t.Errorf("%v %v", err, up.linked)
		}
		if e := w.record.last(t, audit.KindLink); e.Outcome != audit.Refused {
			t.Errorf("%+v", e)
		}
	})
}

// leased vends a database login for somebody.
func (w *world) leased(who string) string {
	w.t.Helper()
	got, _ := w.must(func(r *broker.ExchangeRequest) {
		r.SubjectToken = w.tokens.put(w.token(func(t *broker.Token) { t.Subject, t.SessionID = who, "sid-of-"+who }))
	})
	out, _ := w.must(w.vend(got.Token, nil))
	return out.Lease
}

func (u *upstream) has(lease string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, ok := u.alive[lease]
	return ok
}

// Unlinking ends what was made from the account, and nothing else: not somebody else's,
// not the tokens of the subject, not what is made of an account that is linked later.
func TestUnlinkingEndsWhatWasMade(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	w := newWorld(t)
	w.atUpstream()
	w.run(w.b)
	alice, bob := w.linking("alice"), w.linking("bob")
	w.link(alice, "a")
	w.link(bob, "b")
	first, others := w.leased("alice"), w.leased("bob")
	if _, err := w.b.Unlink(ctx, alice); err != nil {
		t.Fatal(err)
	}
	eventually(t, "alice's lease has ended upstream", func() bool { return !w.upstream.has(first) })
	if e := w.record.last(t, audit.KindRevocation); len(e.Revocation.Selector) != 2 || e.Revocation.Selector[0] != "provider=warehouse" || strings.Contains(fmt.Sprint(e.Revocation), "alice") {
		t.Errorf("%+v", e.Revocation)
	}
	w.link(alice, "a2")
	second := w.leased("alice")
	if all, err := w.b.Accounts(ctx, alice); err != nil || all[0].Account.ID != "a2" {
		t.Errorf("alice's token has ended: %v", err)
	}
	// The same account again: what was made stays. Another: it ends.
	before := w.record.count(audit.KindRevocation)
	w.link(alice, "a2")
	if w.record.count(audit.KindRevocation) != before || !w.upstream.has(second) || !w.upstream.has(others) {
		t.Error("what was made ended, for the same account or another's")
	}
	w.link(alice, "another")
	eventually(t, "what was made of the first account has ended", func() bool { return !w.upstream.has(second) })
	if !w.upstream.has(others) {
		t.Error("bob's lease ended")
	}
}

// Where the account was forgotten and the rest failed, unlinking again does the rest;
// where forgetting failed, what was made has ended all the same.
func TestUnlinkingInTwoSteps(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	w := newWorld(t)
	up := w.atUpstream()
	w.run(w.b)
	l := w.linking("alice")
	w.link(l, "a")
	first := w.leased("alice")
	up.unlink = errors.New("the secrets are down")
	if _, err := w.b.Unlink(ctx, l); broker.CodeOf(err) != broker.Unavailable || strings.Contains(broker.AsError(err).Public, "secrets") {
		t.Errorf("%v", err)
	}
	eventually(t, "what was made has ended", func() bool { return !w.upstream.has(first) })
	up.unlink = nil
	second := w.leased("alice")
	delete(up.linked, idp+"#alice") // forgotten, and then the feed could not be written
	out, err := w.b.Unlink(ctx, l)
	if err != nil || out.State != broker.AlreadyDead {
		t.Errorf("%+v %v", out, err)
	}
	eventually(t, "what was made has ended", func() bool { return !w.upstream.has(second) })
	if _, err := w.b.Unlink(ctx, l); broker.CodeOf(err) != broker.BadTarget {
		t.Errorf("%v", err)
	}
	// Forgotten, and the upstream does not answer: that is the outcome.
	w.link(l, "b")
	third := w.leased("alice")
	up.outcome, up.untold = broker.Outcome{State: broker.Stuck}, errors.New("body of the upstream")
	if out, err := w.b.Unlink(ctx, l); err != nil || out.State != broker.Stuck {
		t.Errorf("%+v %v", out, err)
	}
	eventually(t, "what was made has ended", func() bool { return !w.upstream.has(third) })
	if e := w.record.last(t, audit.KindLink); e.Link.Outcome != "stuck" {
		t.Errorf("%+v", e.Link)
	}
}

// Who lacks an account is told where to link one, by an exchange and by an explanation,
// and only where accounts are linked.
func TestNeedsLinkSaysWhere(t *testing.T) {
	t.Parallel()
	need := broker.Fail(broker.NeedsLink, errors.New("no account"), "link an account first")
	own := broker.Fail(broker.NeedsLink, nil, "install the app")
	own.URL, own.Claims = "https://up.test/install", `{"id_token":{}}`
	for _, c := range []struct {
		name   string
		err    error
		links  bool
		want   string
		claims string
	}{
		{"where accounts are linked", need, true, self + "/connect/warehouse", ""},
		{"wrapped", fmt.Errorf("resolve: %w", need), true, self + "/connect/warehouse", ""},
		{"where they are not", need, false, "", ""},
		{"a place of the provider's", own, true, "https://up.test/install", `{"id_token":{}}`},
	} {
		w := newWorld(t)
		if c.links {
			w.atUpstream()
		}
		w.upstream.needs = c.err
		got, _ := w.must(nil)
		_, err := w.exchange(w.vend(got.Token, nil))
		if e := broker.AsError(err); e.Code != broker.NeedsLink || e.URL != c.want || e.Claims != c.claims {
			t.Errorf("%s: %+v", c.name, e)
		}
		ex := w.judge.Explain(context.Background(), &broker.Question{
			Client: w.reg.Clients["files-mcp"], Token: must1(w.tokens.Verify(context.Background(), got.Token)), Now: w.clock.Now(),
			Resources: []string{"postgres://warehouse/sales.orders"}, Scope: "files:read", Live: true,
		})
		if ex.Code != broker.NeedsLink || ex.URL != c.want || c.want != "" && !strings.Contains(fmt.Sprint(ex.Nearest), c.want) {
			t.Errorf("%s: explained: %+v", c.name, ex)
		}
		if need.URL != "" {
			t.Errorf("%s: the provider's own error was changed", c.name)
		}
	}
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
