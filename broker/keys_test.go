package broker_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// What was obtained with a signing key that somebody else may hold dies with it,
// whoever signed it since: the key may have signed what it came from.
func TestRevokingASigningKeyTakesWhatWasObtainedWithIt(t *testing.T) {
	w := newWorld(t)
	w.run(w.b)
	own, _ := w.must(func(r *broker.ExchangeRequest) { // an actor token, of the key
		*r = broker.ExchangeRequest{GrantType: broker.ClientCredentials, Client: w.reg.Clients["files-mcp"], Resources: []string{mcp}, Scope: "files:read"}
	})
	first, _ := w.must(nil)
	w.keys.signs("second")
	derived, _ := w.must(w.on(first.Token))
	further, _ := w.must(w.on(derived.Token))
	lent, _ := w.must(w.vend(derived.Token, nil))
	clean, _ := w.must(nil)
	acted, _ := w.must(func(r *broker.ExchangeRequest) {
		w.on(clean.Token)(r)
		r.ActorToken, r.ActorType = own.Token, broker.TypeAccess
	})
	unrelated, _ := w.must(w.on(clean.Token))
	w.keys.withdraw("first")
	if err := w.b.EndWithdrawn(context.Background(), "root"); err != nil {
		t.Fatal(err)
	}
	for what, raw := range map[string]secret.String{
		"signed by it": first.Token, "made from that": derived.Token, "and from that": further.Token, "made with an actor token of the key": acted.Token,
	} {
		if w.introspect("files-mcp", raw, false) {
			t.Errorf("%s: active", what)
		}
		if _, err := w.exchange(w.on(raw)); broker.CodeOf(err) != broker.BadToken {
			t.Errorf("%s: exchanged: %v", what, err)
		}
	}
	eventually(t, "the lease is ended", func() bool { return w.lease(lent.Lease).State == broker.Closed })
	for what, raw := range map[string]secret.String{"signed by another": clean.Token, "made from that": unrelated.Token} {
		if !w.introspect("files-mcp", raw, false) {
			t.Errorf("%s: dead", what)
		}
	}
	records := len(w.store.all())
	if err := w.b.EndWithdrawn(context.Background(), ""); err != nil || len(w.store.all()) != records {
		t.Errorf("said twice: %d records instead of %d, %v", len(w.store.all()), records, err)
	}
	e := w.record.last(t, audit.KindRevocation)
	if !slices.Equal(e.Revocation.Selector, []string{"key=first"}) || e.Party.Operator != "root" {
		t.Errorf("recorded: %+v by %+v", e.Revocation, e.Party)
	}
}

// Whoever holds a key writes into its tokens what he likes, a position in the
// feed that is yet to come included.
func TestAPositionThatAThiefMadeUpHelpsNothing(t *testing.T) {
	w := newWorld(t)
	_, tok := w.must(nil)
	claim := *tok.Stint
	forged := *tok
	forged.Stint = &claim
	pos, err := broker.ParsePosition(claim.Pos)
	if err != nil {
		t.Fatal(err)
	}
	claim.Pos = broker.Position{Epoch: pos.Epoch, Seq: pos.Seq + 1_000_000}.String()
	w.keys.signs("second")
	made, _ := w.must(w.on(w.tokens.put(&forged)))
	w.keys.withdraw("first")
	if err := w.b.EndWithdrawn(context.Background(), ""); err != nil {
		t.Fatal(err)
	}
	if w.introspect("files-mcp", made.Token, false) {
		t.Error("it lives")
	}
}

// replica runs another replica, which reads the signing keys from a ring of its own.
func (w *world) replica(keys *ring) *broker.Broker {
	w.t.Helper()
	cfg, deps := w.settings()
	cfg.Replica, deps.Keys = "r2", keys
	b, err := broker.New(cfg, deps)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := b.Start(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	w.run(b)
	return b
}

// A replica that cannot read the keys refuses by the feed.
func TestAReplicaThatCannotReadTheKeysLearnsFromTheFeed(t *testing.T) {
	w := newWorld(t)
	first, _ := w.must(nil)
	other := w.replica(&ring{down: errors.New("no Vault")})
	w.keys.withdraw("first")
	if err := w.b.EndWithdrawn(context.Background(), ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a token of the key is refused", func() bool {
		i, err := other.Introspect(context.Background(), w.reg.Clients["files-mcp"], first.Token, false, "r")
		return err == nil && !i.Active
	})
}

// A replica that can read them does as soon as the feed says that one was revoked,
// and not a minute later.
func TestTheKeysAreReadAgainWhenOneIsRevoked(t *testing.T) {
	w := newWorld(t)
	seen := &ring{}
	w.replica(seen)
	eventually(t, "the keys are read at the start", func() bool { return seen.read() == 1 })
	w.keys.withdraw("first")
	if err := w.b.EndWithdrawn(context.Background(), ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the keys are read again", func() bool { return seen.read() == 2 })
}

// A key that was withdrawn while no server ran, or while the store was down, is
// revoked by the next that can.
func TestAWithdrawalThatTheFeedDoesNotHaveIsMadeUpFor(t *testing.T) {
	w := newWorld(t)
	first, _ := w.must(nil)
	w.keys.withdraw("first")
	w.store.fail(errors.New("gone"))
	if err := w.b.EndWithdrawn(context.Background(), ""); broker.CodeOf(err) != broker.Unavailable {
		t.Fatalf("without the store: %v", err)
	}
	w.store.fail(nil)
	w.run(w.b)
	eventually(t, "it is dead", func() bool { return !w.introspect("files-mcp", first.Token, false) })
}

// What was made with an actor whose issuer is trusted no more ends with the trust.
func TestWhatAnActorMadeEndsWithItsIssuer(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"disabled": func(w *world) { w.reg.Issuers[ci].Disabled = true },
		"removed":  func(w *world) { delete(w.reg.Issuers, ci) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			i := w.reg.Issuers[ci]
			i.Actors, i.Accept, i.Delegates = map[string]string{"job": "helper"}, []string{"access_token"}, []string{"desktop"}
			actor := w.token(func(k *broker.Token) { k.Issuer, k.Subject, k.SessionID, k.AuthTime = ci, "job", "", time.Time{} })
			a := w.acted(w.tokens.put(actor))
			alone, _ := w.must(nil)
			if !w.introspect("files-mcp", a.second, false) {
				t.Fatal("dead before")
			}
			end(w)
			for what, raw := range map[string]secret.String{"made with it": a.first, "made from that": a.second} {
				if w.introspect("files-mcp", raw, false) {
					t.Errorf("%s: active", what)
				}
				if _, err := w.exchange(w.on(raw)); broker.CodeOf(err) != broker.BadToken {
					t.Errorf("%s: exchanged: %v", what, err)
				}
			}
			if !w.introspect("files-mcp", alone.Token, false) {
				t.Error("what it had no part in is dead")
			}
		})
	}
}

// A login that was vended ends with the trust as well, when a replica starts that
// has the new configuration.
func TestALeaseEndsWithTheTrust(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"the issuer is disabled": func(w *world) { w.reg.Issuers[idp].Disabled = true },
		"the client is disabled": func(w *world) { w.reg.Clients["files-mcp"].Disabled = true },
		"a client on the way":    func(w *world) { delete(w.reg.Clients, "desktop") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			id := w.login(nil)
			ctx, stop := context.WithTimeout(context.Background(), 50*time.Millisecond)
			w.broker("r2", &record{}, broker.Head{}).Run(ctx) // nothing happens
			stop()
			if l := w.lease(id); l.State != broker.Active {
				t.Fatalf("before: %+v", l)
			}
			end(w)
			w.run(w.broker("r3", &record{}, broker.Head{}))
			eventually(t, "it is ended", func() bool { return w.lease(id).State == broker.Closed && w.upstream.living() == 0 })
		})
	}
}

// What acts for itself, or once, leaves no session behind for weeks.
func TestSessionsThatAreNone(t *testing.T) {
	w := newWorld(t)
	w.must(func(r *broker.ExchangeRequest) {
		*r = broker.ExchangeRequest{GrantType: broker.ClientCredentials, Client: w.reg.Clients["files-mcp"], Resources: []string{mcp}, Scope: "files:read"}
	})
	w.must(func(r *broker.ExchangeRequest) {
		r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.SessionID, k.AuthTime = "", time.Time{} }))
	})
	var all []broker.Session
	eventually(t, "the subject's is noted", func() bool {
		var err error
		all, err = w.store.Sessions(context.Background(), "", 10)
		return err == nil && len(all) > 0
	})
	if life := all[0].Expires.Sub(w.clock.Now()); len(all) != 1 || life > 2*time.Hour {
		t.Errorf("%d sessions, the first for %s", len(all), life)
	}
}

// A replica that did not know of a revocation yet may write an intent after the
// leases were gone through: they are gone through once more.
func TestWhatWasWrittenTooLateToBeMarkedIsMarked(t *testing.T) {
	w := newWorld(t)
	first, _ := w.must(nil)
	lent, _ := w.must(w.vend(first.Token, nil))
	late := *w.lease(lent.Lease)
	w.run(w.b)
	if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#alice"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first is ended", func() bool { return w.lease(lent.Lease).State == broker.Closed })
	late.ID, late.Version = "late", 0
	if err := w.store.Create(context.Background(), &late); err != nil {
		t.Fatal(err)
	}
	w.clock.move(time.Second)
	eventually(t, "the late one as well", func() bool { return w.lease("late").State != broker.Active })
	if l := w.lease("late"); l.Why != "revoked" {
		t.Errorf("%+v", l)
	}
}
