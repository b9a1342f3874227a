package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

func TestRevocationSelectors(t *testing.T) {
	for name, tc := range map[string]struct {
		sel  func(first, second *broker.Token) broker.Selector
		dead string // of: login, first, second, again (a new login)
	}{
		"a token kills its descendants":      {func(a, _ *broker.Token) broker.Selector { return broker.Selector{Token: a.ID} }, "first second"},
		"a token leaves its parent alone":    {func(_, b *broker.Token) broker.Selector { return broker.Selector{Token: b.ID} }, "second"},
		"the login's own token kills all":    {func(_, _ *broker.Token) broker.Selector { return broker.Selector{Token: idp + "#idp-1"} }, "login first second"},
		"a session kills all of it":          {func(a, _ *broker.Token) broker.Selector { return broker.Selector{Session: a.Stint.Session} }, "login first second"},
		"a subject kills every login so far": {func(a, _ *broker.Token) broker.Selector { return broker.Selector{Subject: a.Subject} }, "login first second"},
		"conditions are joined":              {func(a, b *broker.Token) broker.Selector { return broker.Selector{Subject: a.Subject, Token: b.ID} }, "second"},
		"conditions that nothing meets":      {func(a, b *broker.Token) broker.Selector { return broker.Selector{Subject: idp + "#bob", Token: b.ID} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			login := w.tokens.put(w.token(nil))
			first, a := w.must(func(r *broker.ExchangeRequest) { r.SubjectToken = login })
			second, b := w.must(func(r *broker.ExchangeRequest) { r.Client, r.SubjectToken = w.reg.Clients["files-mcp"], first.Token })
			got, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: tc.sel(a, b), Reason: "test", Operator: "uid:0"})
			if err != nil || got.Position == "" || got.Bound.Before(w.clock.Now()) {
				t.Fatal(got, err)
			}
			w.clock.move(31 * time.Second)
			if err := w.b.Start(context.Background()); err != nil { // a heartbeat
				t.Fatal(err)
			}
			again := w.tokens.put(w.token(func(k *broker.Token) {
				k.SessionID, k.AuthTime, k.IssuedAt = "sid-2", w.clock.Now(), w.clock.Now()
			}))
			var dead []string
			for _, k := range []struct {
				name, client string
				raw          secret.String
			}{{"login", "desktop", login}, {"first", "files-mcp", first.Token}, {"second", "files-mcp", second.Token}, {"again", "desktop", again}} {
				_, err := w.exchange(func(r *broker.ExchangeRequest) { r.Client, r.SubjectToken = w.reg.Clients[k.client], k.raw })
				if broker.CodeOf(err) == broker.BadToken {
					dead = append(dead, k.name)
				} else if err != nil {
					t.Errorf("%s: %v", k.name, err)
				}
			}
			if got := strings.Join(dead, " "); got != tc.dead {
				t.Errorf("dead: %q, want %q", got, tc.dead)
			}
			e := w.record.last(t, audit.KindRevocation)
			if e.Outcome != audit.Done || e.Revocation.Reason != "test" || e.Party.Operator != "uid:0" || e.Revocation.Position != got.Position || strings.Contains(fmt.Sprint(e.Revocation.Selector), "alice") {
				t.Errorf("event %+v %+v", e, e.Revocation)
			}
		})
	}
}

func TestWhatNothingCanBeCalledIsNotRevoked(t *testing.T) {
	w := newWorld(t)
	for _, sel := range []broker.Selector{{}, {Subject: idp + "#alice\n"}, {Subject: idp + "#" + strings.Repeat("a", 513)}, {Token: idp + "#a\x00"}} {
		if got, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: sel}); broker.CodeOf(err) != broker.BadRequest {
			t.Errorf("%q: %v, %v", sel, got, err)
		}
	}
}

func TestRevocationsThatCannotBeStoredAreNotSwallowed(t *testing.T) {
	w := newWorld(t)
	w.store.fail(errors.New("gone"))
	_, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#alice"}})
	if broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("answered %v", err)
	}
	if e := w.record.last(t, audit.KindRevocation); e.Outcome != audit.Failed {
		t.Errorf("event %+v", e)
	}
	w.store.fail(nil)
	w.record.down = errors.New("disk full") // taking back waits for no record
	if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#alice"}}); err != nil {
		t.Errorf("without a journal: %v", err)
	}
	w.record.down = nil
	if _, err := w.exchange(nil); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("it was not revoked: %v", err)
	}
	if _, err := w.b.Revoke(context.Background(), broker.Revocation{}); broker.CodeOf(err) != broker.BadRequest {
		t.Errorf("nothing selected: %v", err)
	}
}

func TestConcurrentRevocationsAreAllThere(t *testing.T) {
	w := newWorld(t)
	other := w.broker("r2", &record{}, broker.Head{})
	w.run(w.b)
	w.run(other)
	var wg sync.WaitGroup
	const each = 25
	for i := range each {
		for n, b := range []*broker.Broker{w.b, other} {
			wg.Go(func() {
				if _, err := b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Token: fmt.Sprintf("t-%d-%d", n, i)}}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	x := broker.NewIndex(0)
	all := w.store.all()
	if len(all) != 2*each+1 || x.Apply(all...) != len(all) {
		t.Errorf("%d entries, or no chain", len(all))
	}
}

func TestRFC7009(t *testing.T) {
	w := newWorld(t)
	first, _ := w.must(nil)
	desktop, mcpServer := w.reg.Clients["desktop"], w.reg.Clients["files-mcp"]
	ctx := context.Background()
	if err := w.b.RevokeToken(ctx, mcpServer, first.Token, "r"); broker.CodeOf(err) != broker.Denied {
		t.Errorf("another client's token: %v", err)
	}
	for name, raw := range map[string]secret.String{"unknown": secret.New("x"), "foreign": w.tokens.put(w.token(nil))} {
		if err := w.b.RevokeToken(ctx, desktop, raw, "r"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.store.fail(errors.New("gone"))
	if err := w.b.RevokeToken(ctx, desktop, first.Token, "r"); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("with the store down: %v", err)
	}
	w.store.fail(nil)
	w.tokens.down = errors.New("no keys")
	if err := w.b.RevokeToken(ctx, desktop, first.Token, "r"); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("with no keys: %v", err)
	}
	w.tokens.down = nil
	for range 2 {
		if err := w.b.RevokeToken(ctx, desktop, first.Token, "r"); err != nil {
			t.Error(err)
		}
	}
	if i, err := w.b.Introspect(ctx, mcpServer, first.Token, false, "r"); err != nil || i.Active {
		t.Errorf("it is active: %+v, %v", i, err)
	}
}

func TestIntrospection(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	first, tok := w.must(nil)
	mcpServer := w.reg.Clients["files-mcp"]
	i, err := w.b.Introspect(ctx, mcpServer, first.Token, false, "r")
	if err != nil || !i.Active || i.Token.ID != tok.ID {
		t.Fatalf("%+v, %v", i, err)
	}
	for _, raw := range []secret.String{first.Token, secret.New("x")} {
		if i, err := w.b.Introspect(ctx, w.reg.Clients["desktop"], raw, false, "r"); broker.CodeOf(err) != broker.Denied {
			t.Errorf("a client that is no resource learns %+v, %v", i, err)
		}
	}
	if i, err := w.b.Introspect(ctx, w.reg.Clients["files-api"], first.Token, false, "r"); err != nil || i.Active || i.Token != nil {
		t.Errorf("another resource learns %+v, %v", i, err)
	}
	if e := w.record.last(t, audit.KindIntrospect); e.Outcome != audit.Refused || e.Party.Client != "files-api" || !strings.Contains(e.Reason, tok.ID) || e.Code == "" {
		t.Errorf("recorded as %+v", e)
	}
	for name, raw := range map[string]secret.String{"unknown": secret.New("x"), "foreign": w.tokens.put(w.token(func(k *broker.Token) { k.Audience = []string{mcp} }))} {
		if i, err := w.b.Introspect(ctx, mcpServer, raw, false, "r"); err != nil || i.Active {
			t.Errorf("%s: %+v, %v", name, i, err)
		}
	}
	if _, err := w.b.Introspect(ctx, mcpServer, first.Token, true, "r"); broker.CodeOf(err) != broker.BadRequest {
		t.Errorf("a token for many uses is used up: %v", err)
	}
	w.tokens.down = errors.New("no keys")
	if _, err := w.b.Introspect(ctx, mcpServer, first.Token, false, "r"); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("what is not known is inactive: %v", err)
	}
	w.tokens.down = nil
	w.reg.Issuers[idp].Disabled = true
	if i, err := w.b.Introspect(ctx, mcpServer, first.Token, false, "r"); err != nil || i.Active {
		t.Errorf("of a disabled issuer: %+v, %v", i, err)
	}
	w.reg.Issuers[idp].Disabled = false
	w.reg.Clients["desktop"].Disabled = true
	if i, err := w.b.Introspect(ctx, mcpServer, first.Token, false, "r"); err != nil || i.Active {
		t.Errorf("of a disabled client: %+v, %v", i, err)
	}
	w.clock.move(time.Second)
	if _, err := w.b.Introspect(ctx, mcpServer, first.Token, false, "r"); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("at a replica that is not current: %v", err)
	}
}

func TestATokenForOneCallIsUsedOnce(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	first, _ := w.must(func(r *broker.ExchangeRequest) {
		r.Scope, r.Details = "", `[{"type":"mcp_tool_call","tool":"read_file","arguments":{"a":1},"once":true}]`
	})
	mcpServer := w.reg.Clients["files-mcp"]
	if i, err := w.b.Introspect(ctx, mcpServer, first.Token, false, "r"); err != nil || !i.Active {
		t.Fatal(i, err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	used := 0
	for range 100 {
		wg.Go(func() {
			i, err := w.b.Introspect(ctx, mcpServer, first.Token, true, "r")
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if i.Active {
				used++
			}
		})
	}
	wg.Wait()
	if used != 1 {
		t.Errorf("used %d times", used)
	}
	if e := w.record.last(t, audit.KindIntrospect); e.Target.Tool != "read_file" || !e.Target.Once {
		t.Errorf("event %+v", e)
	}
	w.store.fail(errors.New("gone"))
	if _, err := w.b.Introspect(ctx, mcpServer, first.Token, true, "r"); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("without the store: %v", err)
	}
	w.store.fail(nil)
	w.record.down = errors.New("full")
	if i, err := w.b.Introspect(ctx, mcpServer, first.Token, true, "r"); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("without the record: %+v, %v", i, err)
	}
}

// What is revoked, disabled or gone is so in every grant type and at every door:
// GHSA-7qjx-gp9h-65qj (Dex), CVE-2026-1486 (Keycloak), CVE-2026-9097 (Casdoor).
func TestDisabledMeansDisabledEverywhere(t *testing.T) {
	w := newWorld(t)
	doors := map[string]func() error{
		"exchange": func() error { _, err := w.exchange(nil); return err },
		"for itself": func() error {
			_, err := w.exchange(func(r *broker.ExchangeRequest) {
				*r = broker.ExchangeRequest{GrantType: broker.ClientCredentials, Client: w.reg.Clients["files-mcp"], Resources: []string{mcp}, Scope: "files:read"}
			})
			return err
		},
		"authentication": func() error {
			_, err := w.b.AuthenticateClient(context.Background(), broker.Credentials{Method: "client_secret_post", ID: "files-mcp", Secret: goodSecret})
			return err
		},
	}
	for name, door := range doors {
		if err := door(); err != nil {
			t.Fatalf("%s before: %v", name, err)
		}
	}
	w.reg.Clients["files-mcp"].Disabled = true
	if err := doors["authentication"](); broker.CodeOf(err) != broker.BadClient {
		t.Errorf("a disabled client authenticates: %v", err)
	}
	if err := doors["for itself"](); err == nil {
		t.Error("a disabled client acts for itself")
	}
	w.reg.Issuers[idp].Disabled = true
	if err := doors["exchange"](); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("a disabled issuer's token: %v", err)
	}
}

func TestFeedLosses(t *testing.T) {
	ctx := context.Background()
	revoke := func(t *testing.T, b *broker.Broker, id string) {
		t.Helper()
		if _, err := b.Revoke(ctx, broker.Revocation{Selector: broker.Selector{Token: id}}); err != nil {
			t.Fatal(err)
		}
	}
	// dead reports whether the token of an id counts as revoked by a fresh replica.
	holds := func(w *world, ids ...string) string {
		var missing []string
		for _, id := range ids {
			found := false
			for _, e := range w.store.all() {
				for _, k := range e.Where {
					found = found || k == broker.KeyOf(broker.ByToken, "", id)
				}
			}
			if !found {
				missing = append(missing, id)
			}
		}
		return strings.Join(missing, " ")
	}
	t.Run("a flush is repaired by a replica that runs", func(t *testing.T) {
		w := newWorld(t)
		first, _ := w.must(nil)
		w.run(w.b)
		revoke(t, w.b, "a")
		revoke(t, w.b, "b")
		before := w.store.all()
		w.store.lose(0)
		eventually(t, "it is all back, and that it was away", func() bool { return len(w.store.all()) == len(before)+1 })
		for i, e := range w.store.all()[:len(before)] {
			if e.ID != before[i].ID {
				t.Error("not as it was")
			}
		}
		eventually(t, "and the token lives: losing data is no logout", func() bool {
			_, err := w.exchange(func(r *broker.ExchangeRequest) { r.Client, r.SubjectToken = w.reg.Clients["files-mcp"], first.Token })
			return err == nil
		})
	})
	t.Run("a failover that lost the end", func(t *testing.T) {
		w := newWorld(t)
		other := w.broker("r2", &record{}, broker.Head{})
		w.run(w.b)
		w.run(other)
		revoke(t, w.b, "a")
		revoke(t, w.b, "b")
		revoke(t, w.b, "c")
		w.store.lose(2)
		eventually(t, "it is all back", func() bool { return holds(w, "a", "b", "c") == "" })
	})
	t.Run("a failover that went on differently", func(t *testing.T) {
		w := newWorld(t)
		revoke(t, w.b, "a")
		behind := w.broker("r2", &record{}, broker.Head{}) // knows a
		revoke(t, w.b, "b")
		revoke(t, w.b, "c") // w.b is at 4
		victim, _ := w.must(nil)
		w.store.lose(2) // the new master has a
		revoke(t, behind, "d")
		if _, tok := w.must(func(r *broker.ExchangeRequest) { r.Client, r.SubjectToken = w.reg.Clients["files-mcp"], victim.Token }); tok.Stint.Pos == "" {
			t.Fatal("no position")
		}
		w.run(w.b)
		w.run(behind)
		eventually(t, "both sides' revocations are there", func() bool { return holds(w, "a", "b", "c", "d") == "" })
		eventually(t, "the chain is whole", func() bool { x := broker.NewIndex(0); all := w.store.all(); return x.Apply(all...) == len(all) })
		// No position that a token carries lies behind a record that it must not outlive.
		head := w.store.all()[len(w.store.all())-1]
		if head.Pos.Seq < 5 {
			t.Errorf("the feed ends at %s, tokens were made at 4", head.Pos)
		}
	})
	t.Run("an old snapshot under a restarted fleet is caught by the journal", func(t *testing.T) {
		w := newWorld(t)
		revoke(t, w.b, "a")
		revoke(t, w.b, "b")
		entries := w.store.all()
		known := entries[len(entries)-1].Head()
		w.store.lose(1)
		// The journal holds some entries twice, and one of a chain that was left.
		w.record.frames = append(w.record.frames, w.record.frames...)
		stray := entries[0].Head().Follow(entries[1].Record, broker.Position{Epoch: entries[0].Pos.Epoch, Seq: 99})
		w.record.frames = append(w.record.frames, audit.Frame{Type: audit.FrameFeed, Payload: stray.Encode()})
		w.broker("r1", w.record, known)
		if missing := holds(w, "a", "b"); missing != "" {
			t.Errorf("not put back: %s", missing)
		}
	})
	t.Run("without a journal the anchor catches it, and everything before is dead", func(t *testing.T) {
		w := newWorld(t)
		first, _ := w.must(nil)
		revoke(t, w.b, "a")
		entries := w.store.all()
		w.anchor.head = entries[len(entries)-1].Head()
		w.store.lose(0)
		b := w.broker("r9", &record{}, broker.Head{})
		w.b = b
		if _, err := w.exchange(func(r *broker.ExchangeRequest) { r.Client, r.SubjectToken = w.reg.Clients["files-mcp"], first.Token }); broker.CodeOf(err) != broker.BadToken {
			t.Errorf("a token from before lives: %v", err)
		}
		if _, err := w.exchange(nil); broker.CodeOf(err) != broker.BadToken {
			t.Errorf("a login from before lives: %v", err)
		}
		w.clock.move(time.Minute)
		if err := b.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := w.exchange(func(r *broker.ExchangeRequest) {
			r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.IssuedAt, k.AuthTime = w.clock.Now(), w.clock.Now() }))
		}); err != nil {
			t.Errorf("a new login is refused: %v", err)
		}
	})
	t.Run("a new replica waits for those that can put it back", func(t *testing.T) {
		w := newWorld(t)
		first, _ := w.must(nil)
		revoke(t, w.b, "a")
		entries := w.store.all()
		w.anchor.head = entries[len(entries)-1].Head()
		w.store.lose(0)
		w.run(w.b)
		b := w.broker("r9", &record{}, broker.Head{})
		w.b = b
		if _, err := w.exchange(func(r *broker.ExchangeRequest) { r.Client, r.SubjectToken = w.reg.Clients["files-mcp"], first.Token }); err != nil {
			t.Errorf("a needless logout: %v", err)
		}
	})
	t.Run("a new installation begins", func(t *testing.T) {
		w := newWorld(t)
		if all := w.store.all(); len(all) != 1 || len(all[0].Where) != 0 {
			t.Errorf("it begins with %v", all)
		}
	})
	t.Run("many replicas begin together", func(t *testing.T) {
		w := newWorld(t)
		w.store.lose(0)
		w.anchor.head = broker.Head{}
		var wg sync.WaitGroup
		for i := range 8 {
			b := w.unstarted(fmt.Sprint("n", i), &record{}, broker.Head{})
			wg.Go(func() {
				if err := b.Start(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := len(w.store.all()); n != 1 {
			t.Errorf("%d beginnings", n)
		}
	})
}

func TestCurrency(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	why := func() string {
		_, err := w.exchange(nil)
		if err == nil {
			return ""
		}
		return broker.AsError(err).Reason()
	}
	if got := why(); got != "" {
		t.Fatal(got)
	}
	w.clock.move(201 * time.Millisecond)
	if got := why(); !strings.Contains(got, "heartbeat is") {
		t.Errorf("after the bound: %q", got)
	}
	w.store.offset = 3 * time.Second
	if err := w.b.Start(ctx); err == nil {
		t.Error("started with a clock that is off")
	}
	if got := why(); !strings.Contains(got, "clock") {
		t.Errorf("with the clock off: %q", got)
	}
	w.store.offset = 0
	if err := w.b.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if got := why(); got != "" {
		t.Errorf("it does not recover: %q", got)
	}
	fresh := w.unstarted("r5", &record{}, broker.Head{})
	if _, err := fresh.Exchange(ctx, w.request(nil)); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("before it was started: %v", err)
	}
	s := w.b.Status(ctx)
	if !s.Current || s.Records != 0 || s.Head.Seq != 1 || s.OpenLeases != 0 || s.Providers["warehouse"] != "" || s.Policies[mcp] == "" {
		t.Errorf("status %+v", s)
	}
}

func TestAReplicaLearnsFromOthersAtOnce(t *testing.T) {
	w := newWorld(t)
	first, tok := w.must(nil)
	other := w.broker("r2", &record{}, broker.Head{})
	w.run(w.b)
	w.run(other)
	if _, err := other.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Token: tok.ID}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first refuses", func() bool {
		_, err := w.exchange(func(r *broker.ExchangeRequest) { r.Client, r.SubjectToken = w.reg.Clients["files-mcp"], first.Token })
		return broker.CodeOf(err) == broker.BadToken
	})
}
