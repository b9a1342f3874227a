package broker_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

func TestConsent(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*broker.ExchangeRequest){
		"issued to the client": nil,
		"a delegate":           func(r *broker.ExchangeRequest) { r.Client = w.reg.Clients["gateway"] },
		"for the client's own resource": func(r *broker.ExchangeRequest) {
			r.Client, r.SubjectToken = w.reg.Clients["files-mcp"], w.tokens.put(w.token(func(k *broker.Token) { k.Audience = []string{mcp} }))
		},
		"may_act names it": func(r *broker.ExchangeRequest) {
			r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.MayAct = &broker.Actor{Subject: "desktop"} }))
		},
		"may_act names its identity": func(r *broker.ExchangeRequest) {
			r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.MayAct = &broker.Actor{Issuer: idp, Subject: "desktop-at-idp"} }))
		},
		"an ID token for its identity": func(r *broker.ExchangeRequest) {
			r.SubjectType, r.SubjectToken = broker.TypeID, w.tokens.put(w.token(func(k *broker.Token) { k.Use, k.Audience = broker.IDToken, []string{"desktop-at-idp"} }))
		},
		"an ID token for several that azp gives to it": func(r *broker.ExchangeRequest) {
			r.SubjectType, r.SubjectToken = broker.TypeID, w.tokens.put(w.token(func(k *broker.Token) {
				k.Use, k.Audience = broker.IDToken, []string{"helper-at-idp", "desktop-at-idp"}
			}))
		},
		"an ID token for it alone, whatever azp": func(r *broker.ExchangeRequest) {
			r.SubjectType, r.SubjectToken = broker.TypeID, w.tokens.put(w.token(func(k *broker.Token) {
				k.Use, k.ClientID, k.Audience = broker.IDToken, "helper-at-idp", []string{"desktop-at-idp"}
			}))
		},
		"a subject in another script": func(r *broker.ExchangeRequest) {
			r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.Subject = "Алиса де́ Ли" }))
		},
		"a login without a session and its time": func(r *broker.ExchangeRequest) {
			r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.SessionID, k.AuthTime = "", time.Time{} }))
		},
		"a declared jwt is whatever it is": func(r *broker.ExchangeRequest) { r.SubjectType = broker.TypeJWT },
	} {
		t.Run(name, func(t *testing.T) { w.must(change) })
	}
}

func TestSessionsOfUnknownAgeHaveToBeAcceptedByName(t *testing.T) {
	w := newWorld(t)
	undated := func(r *broker.ExchangeRequest) {
		r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.AuthTime = time.Time{} }))
	}
	if _, err := w.exchange(undated); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("by default: %v", err)
	}
	w.reg.Issuers[idp].UndatedSessions = true
	w.must(undated)
}

func TestActorTokens(t *testing.T) {
	w := newWorld(t)
	own, _ := w.must(func(r *broker.ExchangeRequest) {
		*r = broker.ExchangeRequest{GrantType: broker.ClientCredentials, Client: w.reg.Clients["files-mcp"], Resources: []string{mcp}, Scope: "files:read"}
	})
	first, _ := w.must(nil)
	_, tok := w.must(func(r *broker.ExchangeRequest) {
		r.Client, r.SubjectToken, r.Resources, r.Scope = w.reg.Clients["files-mcp"], first.Token, []string{api}, "read"
		r.ActorToken, r.ActorType = own.Token, broker.TypeAccess
	})
	if fmt.Sprint(tok.Actors) != "[{https://stint.test files-mcp} {https://stint.test desktop}]" {
		t.Errorf("the client by its own token: %v", tok.Actors)
	}
	robot := func(r *broker.ExchangeRequest) {
		r.ActorToken, r.ActorType = w.tokens.put(w.token(func(k *broker.Token) { k.Subject, k.SessionID, k.Expires = "robot", "", w.clock.Now().Add(time.Minute) })), broker.TypeAccess
	}
	_, tok = w.must(robot)
	if fmt.Sprint(tok.Actors) != "[{https://stint.test desktop} {https://idp.test robot}]" || tok.Stint.Agent != "helper" {
		t.Errorf("an agent that an issuer vouches for: %v, agent %s", tok.Actors, tok.Stint.Agent)
	}
	if !tok.Expires.Equal(w.clock.Now().Add(time.Minute)) {
		t.Error("a token outlives its actor's")
	}
	// The helper's ceiling is read: what a maintainer may write, she may not through it.
	_, err := w.exchange(func(r *broker.ExchangeRequest) {
		robot(r)
		r.SubjectToken, r.Scope = w.tokens.put(w.token(func(k *broker.Token) { k.Groups = []string{"maintainers"} })), "files:write"
	})
	if broker.CodeOf(err) != broker.BadScope || !strings.Contains(err.Error(), "above_ceiling") {
		t.Errorf("above the actor's ceiling: %v", err)
	}
	if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#robot"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.exchange(robot); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("a revoked actor: %v", err)
	}
}

// Whoever was called by an agent holds its token, and does not become the agent.
func TestAnActorTokenThatWasFound(t *testing.T) {
	w := newWorld(t)
	alice := w.tokens.put(w.token(func(k *broker.Token) { k.Audience = []string{mcp} }))
	found := w.tokens.put(w.token(func(k *broker.Token) { k.Subject, k.ClientID, k.SessionID = "robot", "helper-at-idp", "robots" }))
	with := func(actor secret.String) error {
		_, err := w.exchange(func(r *broker.ExchangeRequest) {
			w.on(alice)(r)
			r.ActorToken, r.ActorType = actor, broker.TypeAccess
		})
		return err
	}
	if err := with(found); broker.CodeOf(err) != broker.BadToken || !strings.Contains(err.Error(), "actor token: client files-mcp has no consent") {
		t.Errorf("found: %v", err)
	}
	w.reg.Issuers[idp].Delegates = []string{"files-mcp"}
	if err := with(found); err != nil {
		t.Errorf("by a delegate: %v", err)
	}
}

// An actor keeps its name along the way, also behind a client that impersonates.
func TestAnActorBehindAnImpersonatorKeepsItsName(t *testing.T) {
	w := newWorld(t)
	actor := w.tokens.put(w.token(func(k *broker.Token) { k.Subject, k.ClientID, k.SessionID = "robot", "helper-at-idp", "robots" }))
	got, tok := w.must(func(r *broker.ExchangeRequest) {
		r.Client, r.ActorToken, r.ActorType = w.reg.Clients["gateway"], actor, broker.TypeAccess
	})
	if tok.Stint.Agent != "helper" {
		t.Fatalf("agent %q", tok.Stint.Agent)
	}
	if _, next := w.must(w.on(got.Token)); next.Stint.Agent != "helper" {
		t.Errorf("one exchange later: agent %q of %v", next.Stint.Agent, next.Actors)
	}
}

// A token that speaks of a client and was issued to another is not the client's own.
func TestAnActorTokenOfTheClientThatAnotherHolds(t *testing.T) {
	w := newWorld(t)
	_, own := w.must(func(r *broker.ExchangeRequest) {
		*r = broker.ExchangeRequest{GrantType: broker.ClientCredentials, Client: w.reg.Clients["files-mcp"], Resources: []string{mcp}, Scope: "files:read"}
	})
	first, _ := w.must(nil)
	for name, change := range map[string]func(*broker.Token){
		"issued to another":  func(k *broker.Token) { k.ClientID = "desktop" },
		"of another subject": func(k *broker.Token) { k.Subject = "desktop" },
	} {
		k := *own
		change(&k)
		_, err := w.exchange(func(r *broker.ExchangeRequest) {
			w.on(first.Token)(r)
			r.ActorToken, r.ActorType = w.tokens.put(&k), broker.TypeAccess
		})
		if broker.CodeOf(err) != broker.BadToken || !strings.Contains(err.Error(), "not of the client files-mcp itself") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// robot is the token of an agent that the identity provider vouches for.
func (w *world) robot() *broker.Token {
	return w.token(func(k *broker.Token) { k.Subject, k.ID, k.SessionID = "robot", "robot-jti", "robots" })
}

// acted is what came of alice's token with an actor's: a token, one made from it
// without the actor, and a lease.
type acted struct {
	first, second secret.String
	token         *broker.Token
	lease         string
}

func (w *world) acted(actor secret.String) (a acted) {
	w.t.Helper()
	got, _ := w.must(func(r *broker.ExchangeRequest) { r.ActorToken, r.ActorType = actor, broker.TypeAccess })
	next, tok := w.must(w.on(got.Token))
	lent, _ := w.must(w.vend(got.Token, nil))
	return acted{got.Token, next.Token, tok, lent.Lease}
}

// What revokes an actor's token, its session or its subject, revokes what was
// made with it before, and what was made of that.
func TestRevokingAnActorTakesWhatItMade(t *testing.T) {
	for name, tc := range map[string]struct {
		sel  func(actor *broker.Token) broker.Selector
		dead bool
	}{
		"its subject": {func(k *broker.Token) broker.Selector { return broker.Selector{Subject: idp + "#robot"} }, true},
		"its session": {func(k *broker.Token) broker.Selector { return broker.Selector{Session: broker.SessionID(k)} }, true},
		"its token":   {func(k *broker.Token) broker.Selector { return broker.Selector{Token: idp + "#robot-jti"} }, true},
		"its subject in its session": {func(k *broker.Token) broker.Selector {
			return broker.Selector{Subject: idp + "#robot", Session: broker.SessionID(k)}
		}, true},
		"its token for the subject": {func(k *broker.Token) broker.Selector {
			return broker.Selector{Subject: idp + "#alice", Token: idp + "#robot-jti"}
		}, true},
		"another subject": {func(k *broker.Token) broker.Selector { return broker.Selector{Subject: idp + "#other"} }, false},
		"its subject, in another's login": {func(k *broker.Token) broker.Selector {
			return broker.Selector{Subject: idp + "#robot", Token: idp + "#other"}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.run(w.b)
			actor := w.robot()
			a := w.acted(w.tokens.put(actor))
			_, alone := w.must(nil) // alice, without the robot
			if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: tc.sel(actor)}); err != nil {
				t.Fatal(err)
			}
			for what, raw := range map[string]secret.String{"made with it": a.first, "made from that": a.second} {
				if w.introspect("files-mcp", raw, false) == tc.dead {
					t.Errorf("%s: active is %t", what, !tc.dead)
				}
				if _, err := w.exchange(w.on(raw)); (broker.CodeOf(err) == broker.BadToken) != tc.dead {
					t.Errorf("%s: exchanged: %v", what, err)
				}
			}
			if tc.dead {
				eventually(t, "the lease is ended", func() bool { return w.lease(a.lease).State == broker.Closed })
			}
			if !w.introspect("files-mcp", w.tokens.put(alone), false) {
				t.Error("what it had no part in is dead")
			}
		})
	}
}

// A login of the actor after the revocation is a new one, whatever the age of the
// subject's token.
func TestAnActorThatComesAgainActsAgain(t *testing.T) {
	w := newWorld(t)
	old := w.acted(w.tokens.put(w.robot()))
	if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#robot"}}); err != nil {
		t.Fatal(err)
	}
	w.clock.move(time.Minute)
	if err := w.b.Start(context.Background()); err != nil { // a heartbeat
		t.Fatal(err)
	}
	anew := w.robot()
	anew.ID, anew.SessionID, anew.AuthTime, anew.IssuedAt = "again", "again", w.clock.Now(), w.clock.Now()
	if a := w.acted(w.tokens.put(anew)); !w.introspect("files-mcp", a.second, false) {
		t.Error("what it makes is dead")
	}
	if w.introspect("files-mcp", old.first, false) {
		t.Error("what it made before lives again")
	}
}

// An actor token of ours has come from somewhere, too.
func TestRevokingWhatAnActorTokenCameFrom(t *testing.T) {
	w := newWorld(t)
	own, first := w.must(func(r *broker.ExchangeRequest) {
		*r = broker.ExchangeRequest{GrantType: broker.ClientCredentials, Client: w.reg.Clients["files-mcp"], Resources: []string{mcp}, Scope: "files:read"}
	})
	again, _ := w.must(w.on(own.Token))
	hers, _ := w.must(nil)
	made, tok := w.must(func(r *broker.ExchangeRequest) {
		w.on(hers.Token)(r)
		r.ActorToken, r.ActorType = again.Token, broker.TypeAccess
	})
	if n := len(fmt.Sprint(tok.Stint.By)); len(tok.Stint.By) != 5 || n > 200 {
		t.Errorf("%d keys in %d bytes: %v", len(tok.Stint.By), n, tok.Stint.By)
	}
	if text := fmt.Sprint(tok.Stint.By); strings.Contains(text, "files-mcp") || strings.Contains(text, first.ID) {
		t.Errorf("they are in clear: %s", text)
	}
	if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Token: first.ID}}); err != nil {
		t.Fatal(err)
	}
	if w.introspect("files-mcp", made.Token, false) {
		t.Error("it lives")
	}
	if !w.introspect("files-mcp", hers.Token, false) {
		t.Error("the subject's went with it")
	}
}

// The claim is one of ours: what does not read as keys is no claim of this version.
func TestAClaimWithKeysThatAreNoneIsRefused(t *testing.T) {
	w := newWorld(t)
	_, tok := w.must(nil)
	bad, claim := *tok, *tok.Stint
	claim.By = []string{"x"}
	bad.Stint = &claim
	if _, err := w.exchange(w.on(w.tokens.put(&bad))); broker.CodeOf(err) != broker.BadToken || !strings.Contains(err.Error(), "is no key") {
		t.Error(err)
	}
}
