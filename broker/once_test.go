package broker_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

func (m *memory) Used(_ context.Context, purpose, id string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, used := m.once[purpose+"\x00"+id]
	return used && at.After(m.now()), m.down
}

// forOnce gives the agent a token for one call of a tool of the MCP server.
func (w *world) forOnce() (secret.String, *broker.Token) {
	w.t.Helper()
	got, tok := w.must(func(r *broker.ExchangeRequest) {
		r.Scope, r.Details = "", `[{"type":"mcp_tool_call","tool":"read_file","once":true}]`
	})
	if !tok.Stint.Once {
		w.t.Fatalf("the token is for any number of uses: %+v", tok.Stint)
	}
	return got.Token, tok
}

// on is the MCP server exchanging a token that it was called with.
func (w *world) on(subject secret.String) func(*broker.ExchangeRequest) {
	return func(r *broker.ExchangeRequest) {
		r.Client, r.SubjectToken, r.Resources, r.Scope = w.reg.Clients["files-mcp"], subject, []string{mcp}, "files:read"
	}
}

func (w *world) introspect(client string, raw secret.String, consume bool) bool {
	w.t.Helper()
	i, err := w.b.Introspect(context.Background(), w.reg.Clients[client], raw, consume, "r")
	if err != nil {
		w.t.Fatal(err)
	}
	return i.Active
}

func (w *world) wantUsed(what string, change func(*broker.ExchangeRequest)) {
	w.t.Helper()
	_, err := w.exchange(change)
	if broker.CodeOf(err) != broker.BadToken || !strings.Contains(err.Error(), "used before") {
		w.t.Errorf("%s: %v", what, err)
	}
}

func TestATokenForOneUseThatIsConsumedIsOver(t *testing.T) {
	w := newWorld(t)
	raw, _ := w.forOnce()
	if !w.introspect("files-mcp", raw, false) || !w.introspect("files-mcp", raw, true) {
		t.Fatal("it is not good for one use")
	}
	if w.introspect("files-mcp", raw, false) {
		t.Error("it is called active after its use")
	}
	w.wantUsed("as a subject token", w.on(raw))
	// In its place in the order of refusals: before the target is looked at.
	w.wantUsed("for an unknown target", func(r *broker.ExchangeRequest) { w.on(raw)(r); r.Resources = []string{"https://nowhere.test/"} })
	w.wantUsed("for a credential", w.vend(raw, nil))
	w.store.fail(errors.New("gone"))
	if i, err := w.b.Introspect(context.Background(), w.reg.Clients["files-mcp"], raw, false, "r"); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("what is not known is told: %+v, %v", i, err)
	}
	if _, err := w.exchange(w.on(raw)); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("what is not known is exchanged: %v", err)
	}
}

func TestAnExchangeUsesUpATokenForOneUse(t *testing.T) {
	for name, change := range map[string]func(w *world, raw secret.String) func(*broker.ExchangeRequest){
		"for a token":      func(w *world, raw secret.String) func(*broker.ExchangeRequest) { return w.on(raw) },
		"for a credential": func(w *world, raw secret.String) func(*broker.ExchangeRequest) { return w.vend(raw, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			raw, _ := w.forOnce()
			// What is refused for another reason uses nothing up.
			for _, bad := range []func(*broker.ExchangeRequest){
				func(r *broker.ExchangeRequest) { r.Scope = "files:nope" },
				func(r *broker.ExchangeRequest) {
					r.RequestedType = map[bool]string{true: broker.TypeJWT, false: broker.TypeCredential}[name == "for a credential"]
				},
			} {
				if _, err := w.exchange(func(r *broker.ExchangeRequest) { change(w, raw)(r); bad(r) }); err == nil {
					t.Fatal("granted")
				}
			}
			if !w.introspect("files-mcp", raw, false) {
				t.Fatal("a request that was refused used it up")
			}
			var wg sync.WaitGroup
			var mu sync.Mutex
			granted := 0
			for range 50 {
				r := w.request(change(w, raw))
				wg.Go(func() {
					_, err := w.b.Exchange(context.Background(), r)
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						granted++
					} else if broker.CodeOf(err) != broker.BadToken {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if granted != 1 {
				t.Errorf("exchanged %d times", granted)
			}
			if w.introspect("files-mcp", raw, false) || w.introspect("files-mcp", raw, true) {
				t.Error("it is good for another use")
			}
		})
	}
}

// Nor does one that is refused for what its answer would be.
func TestAnAnswerThatCannotBeMadeUsesNothingUp(t *testing.T) {
	w := newWorld(t)
	_, tok := w.forOnce()
	long := *tok
	for len(long.Actors) < broker.MaxHops {
		long.Actors = append(long.Actors[:len(long.Actors):len(long.Actors)], broker.Actor{Issuer: idp, Subject: "helper-at-idp"})
	}
	raw := w.tokens.put(&long)
	if _, err := w.exchange(w.on(raw)); broker.CodeOf(err) != broker.BadToken || !strings.Contains(err.Error(), "a chain of more than 10 actors") {
		t.Fatal(err)
	}
	if !w.introspect("files-mcp", raw, false) {
		t.Error("it was used up")
	}
}

func TestWhatIsMadeFromATokenForOneUseIsForOneUse(t *testing.T) {
	w := newWorld(t)
	raw, _ := w.forOnce()
	got, tok := w.must(func(r *broker.ExchangeRequest) {
		w.on(raw)(r)
		r.Details = `[{"type":"mcp_tool_call","tool":"read_file","once":false}]`
	})
	if !tok.Stint.Once || !strings.Contains(string(got.Details), `"once":true`) {
		t.Errorf("the token %+v, answered %s", tok.Stint, got.Details)
	}
	if !w.record.last(t, audit.KindExchange).Target.Once {
		t.Error("the record does not say that it is for one use")
	}
	if !w.introspect("files-mcp", got.Token, true) || w.introspect("files-mcp", got.Token, true) || w.introspect("files-mcp", got.Token, false) {
		t.Error("it is not for one use")
	}
	// A credential's uses are not counted, and nobody is told that they are.
	raw, _ = w.forOnce()
	lent, _ := w.must(w.vend(raw, nil))
	if strings.Contains(string(lent.Details), "once") {
		t.Errorf("answered %s", lent.Details)
	}
}

func TestAnActorTokenForOneUseIsUsedOnce(t *testing.T) {
	w := newWorld(t)
	own, _ := w.must(func(r *broker.ExchangeRequest) {
		*r = broker.ExchangeRequest{
			GrantType: broker.ClientCredentials, Client: w.reg.Clients["files-mcp"], Resources: []string{mcp},
			Details: `[{"type":"mcp_tool_call","tool":"read_file","once":true}]`,
		}
	})
	first, _ := w.must(nil)
	act := func(r *broker.ExchangeRequest) {
		w.on(first.Token)(r)
		r.ActorToken, r.ActorType = own.Token, broker.TypeAccess
	}
	w.must(act)
	w.wantUsed("as an actor token", act)
	w.wantUsed("for an unknown target", func(r *broker.ExchangeRequest) { act(r); r.Resources = []string{"https://nowhere.test/"} })
}

// A token is good until our clock and the skew say otherwise, and so its use is
// remembered.
func TestAUseIsRememberedBeyondTheSkew(t *testing.T) {
	w := newWorld(t)
	raw, tok := w.forOnce()
	if !w.introspect("files-mcp", raw, true) {
		t.Fatal("its one use")
	}
	expires := w.clock.Now().Add(time.Minute)
	assertion := w.tokens.put(&broker.Token{Issuer: "gateway", Subject: "gateway", Audience: []string{self}, ID: "a", Expires: expires})
	if _, err := w.b.AuthenticateClient(context.Background(), broker.Credentials{Method: "private_key_jwt", Assertion: assertion}); err != nil {
		t.Fatal(err)
	}
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	for id, end := range map[string]time.Time{"token\x00" + tok.ID: tok.Expires, "client-assertion\x00gateway\x00a": expires} {
		if at, ok := w.store.once[id]; !ok || !at.Equal(end.Add(30*time.Second+time.Minute)) { // the store keeps it a minute longer
			t.Errorf("%q is remembered until %s, %t", id, at, ok)
		}
	}
}

// A store that lost data has forgotten which ids were used as well: of before that,
// nothing for one use is good any more.
func TestWhatTheStoreForgotCountsAsUsed(t *testing.T) {
	w := newWorld(t)
	w.run(w.b)
	raw, _ := w.forOnce()
	if !w.introspect("files-mcp", raw, true) {
		t.Fatal("its one use")
	}
	dated := func(id string) broker.Credentials {
		return broker.Credentials{Method: "private_key_jwt", Assertion: w.tokens.put(&broker.Token{
			Issuer: "gateway", Subject: "gateway", Audience: []string{self}, ID: id, IssuedAt: w.clock.Now(), Expires: w.clock.Now().Add(5 * time.Minute),
		})}
	}
	assertion := dated("a")
	if _, err := w.b.AuthenticateClient(context.Background(), assertion); err != nil {
		t.Fatal(err)
	}
	w.store.flush()
	eventually(t, "the loss is in the feed", func() bool { return len(w.store.all()) > 1 })
	eventually(t, "the replica is current", func() bool { return w.b.Status(context.Background()).Current })
	if w.introspect("files-mcp", raw, false) || w.introspect("files-mcp", raw, true) {
		t.Error("a token for one use has another")
	}
	w.wantUsed("an exchange", w.on(raw))
	if _, err := w.b.AuthenticateClient(context.Background(), assertion); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("the assertion again: %v", err)
	}
	undated := w.tokens.put(&broker.Token{Issuer: "gateway", Subject: "gateway", Audience: []string{self}, ID: "u", Expires: w.clock.Now().Add(5 * time.Minute)})
	if _, err := w.b.AuthenticateClient(context.Background(), broker.Credentials{Method: "private_key_jwt", Assertion: undated}); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("one that does not say when it was made: %v", err)
	}
	w.clock.move(32 * time.Second) // beyond the skew
	eventually(t, "the replica is current", func() bool { return w.b.Status(context.Background()).Current })
	if _, err := w.b.AuthenticateClient(context.Background(), dated("b")); err != nil {
		t.Errorf("one of later: %v", err)
	}
	if raw, _ := w.forOnce(); !w.introspect("files-mcp", raw, true) {
		t.Error("a new token for one use has none")
	}
}

// flush makes the store forget everything.
func (m *memory) flush() {
	m.lose(0)
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.once)
}
