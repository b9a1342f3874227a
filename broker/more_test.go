package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// settings are what a broker of the world is made of.
func (w *world) settings() (broker.Config, broker.Deps) {
	return broker.Config{
			Replica: "r1", TokenLifetime: 5 * time.Minute, CredentialLifetime: 15 * time.Minute, Skew: 30 * time.Second,
			MaxStaleness: 200 * time.Millisecond, MaxClockOffset: time.Second, MintTimeout: 200 * time.Millisecond, RevokeTimeout: time.Second,
			ClientSecretKey: secretKey,
		}, broker.Deps{
			Tokens: w.tokens, Keys: w.keys, Feed: w.store, Anchor: w.anchor, Ledger: w.store, Once: w.store, Sessions: w.store, Recorder: w.record, Sealer: seals{},
			Judge: w.judge, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: w.clock.Now, History: w.record.history,
		}
}

func TestABrokerIsGivenAllItNeeds(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*broker.Config, *broker.Deps){
		"no replica":              func(c *broker.Config, _ *broker.Deps) { c.Replica = "" },
		"a key that is too short": func(c *broker.Config, _ *broker.Deps) { c.ClientSecretKey = secretKey[:31] },
		"no token lifetime":       func(c *broker.Config, _ *broker.Deps) { c.TokenLifetime = 0 },
		"no credential lifetime":  func(c *broker.Config, _ *broker.Deps) { c.CredentialLifetime = 0 },
		"a skew below zero":       func(c *broker.Config, _ *broker.Deps) { c.Skew = -1 },
		"no staleness":            func(c *broker.Config, _ *broker.Deps) { c.MaxStaleness = 0 },
		"no clock offset":         func(c *broker.Config, _ *broker.Deps) { c.MaxClockOffset = 0 },
		"no time to mint":         func(c *broker.Config, _ *broker.Deps) { c.MintTimeout = 0 },
		"no time to revoke":       func(c *broker.Config, _ *broker.Deps) { c.RevokeTimeout = 0 },
		"no tokens":               func(_ *broker.Config, d *broker.Deps) { d.Tokens = nil },
		"no signing keys":         func(_ *broker.Config, d *broker.Deps) { d.Keys = nil },
		"no feed":                 func(_ *broker.Config, d *broker.Deps) { d.Feed = nil },
		"no anchor":               func(_ *broker.Config, d *broker.Deps) { d.Anchor = nil },
		"no ledger":               func(_ *broker.Config, d *broker.Deps) { d.Ledger = nil },
		"no one-time ids":         func(_ *broker.Config, d *broker.Deps) { d.Once = nil },
		"no sessions":             func(_ *broker.Config, d *broker.Deps) { d.Sessions = nil },
		"no recorder":             func(_ *broker.Config, d *broker.Deps) { d.Recorder = nil },
		"no sealer":               func(_ *broker.Config, d *broker.Deps) { d.Sealer = nil },
		"no judge":                func(_ *broker.Config, d *broker.Deps) { d.Judge = nil },
		"no log":                  func(_ *broker.Config, d *broker.Deps) { d.Log = nil },
		"no clock":                func(_ *broker.Config, d *broker.Deps) { d.Now = nil },
	} {
		t.Run(name, func(t *testing.T) {
			cfg, deps := w.settings()
			change(&cfg, &deps)
			if _, err := broker.New(cfg, deps); err == nil {
				t.Error("accepted")
			}
		})
	}
	t.Run("tracing and a journal's history can do without", func(t *testing.T) {
		cfg, deps := w.settings()
		deps.Span, deps.History = nil, nil
		b, err := broker.New(cfg, deps)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Start(context.Background()); err != nil || b.Judge() != w.judge {
			t.Error(err)
		}
		w.b = b
		w.must(nil)
	})
}

func TestAStartThatFailsCanBeTriedAgain(t *testing.T) {
	w := newWorld(t)
	f := newFaulty(w.store)
	cfg, deps := w.settings()
	deps.Feed, deps.Anchor = f, f
	b, err := broker.New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	w.b = b
	for _, call := range []string{"anchored", "read"} {
		f.set(call, 1)
		if err := b.Start(t.Context()); !errors.Is(err, errBroken) {
			t.Errorf("%s: %v", call, err)
		}
		if _, err := w.exchange(nil); broker.CodeOf(err) != broker.Unavailable {
			t.Errorf("it grants before it has started: %v", err)
		}
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.must(nil)
}

func TestAPolicyIsInForceWhenItIsRecorded(t *testing.T) {
	w := newWorld(t)
	w.must(nil)
	before := w.b.Judge().Policy().Version()
	strict := w.policy(strings.ReplaceAll(filesYAML, "groups: [engineering]", "groups: [maintainers]"), apiYAML)

	w.record.down = errBroken
	if err := w.b.SetPolicy(t.Context(), strict); !errors.Is(err, errBroken) {
		t.Errorf("not recorded, and in force: %v", err)
	}
	w.record.down = nil
	if w.b.Judge().Policy().Version() != before {
		t.Error("a policy that is not recorded is in force")
	}
	w.must(nil)

	if err := w.b.SetPolicy(t.Context(), strict); err != nil {
		t.Fatal(err)
	}
	if _, err := w.exchange(nil); broker.CodeOf(err) != broker.BadScope {
		t.Errorf("the old policy decides: %v", err)
	}
	e := w.record.last(t, audit.KindConfig)
	if e.Outcome != audit.Done || e.Change == nil || e.Change.What != "mappings" || e.Change.Before != before || e.Change.After != strict.Version() || before == strict.Version() {
		t.Errorf("%+v %+v", e, e.Change)
	}
}

func TestRequestsThatCameToNoExchangeAreRecorded(t *testing.T) {
	w := newWorld(t)
	stranger := strings.Repeat("é", 5000)
	for name, c := range map[string]struct {
		err     error
		outcome audit.Outcome
		code    broker.Code
		reason  string
	}{
		"a bad client":      {broker.Fail(broker.BadClient, errors.New("wrong secret"), "no"), audit.Refused, broker.BadClient, "wrong secret"},
		"a bad request":     {broker.Fail(broker.BadRequest, nil, "scope is repeated"), audit.Refused, broker.BadRequest, "scope is repeated"},
		"something is down": {broker.Fail(broker.Unavailable, errBroken, "later"), audit.Failed, broker.Unavailable, errBroken.Error()},
		"a plain error":     {errBroken, audit.Failed, broker.Internal, errBroken.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			r := &broker.ExchangeRequest{GrantType: stranger, RequestID: "req-" + name, Trace: "trace", Address: "203.0.113.7"}
			noted := w.record.noted
			w.b.Refuse(t.Context(), r, stranger, c.err)
			if who := w.record.who; w.record.noted != noted+1 || who[len(who)-1].Address != r.Address {
				t.Errorf("%d noted, the last from %+v", w.record.noted-noted, who[len(who)-1])
			}
			e := w.record.last(t, audit.KindExchange)
			if e.Outcome != c.outcome || e.Code != string(c.code) || e.Reason != c.reason || e.Request != r.RequestID || e.Trace != "trace" {
				t.Errorf("%+v", e)
			}
			if text := e.GrantType; len(text) > 80 || !strings.HasPrefix(text, "é") || e.Party.Subject != "" {
				t.Errorf("%d bytes: %q", len(text), text)
			}
			if text := e.Party.Client; len(text) != 24 || !strings.HasPrefix(text, "unknown:") {
				t.Errorf("a client_id that is none: %q", text)
			}
		})
	}
	w.record.down = errBroken // the caller has been refused by then
	w.b.Refuse(t.Context(), &broker.ExchangeRequest{}, "x", errBroken)
}

func TestErrorsHoldWhatTheyCameFrom(t *testing.T) {
	err := fmt.Errorf("deeper: %w", broker.Fail(broker.BadTarget, fmt.Errorf("inner: %w", broker.ErrNotFound), "no such target"))
	if !errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrConflict) || broker.CodeOf(err) != broker.BadTarget {
		t.Error(err)
	}
	if got := broker.AsError(errBroken); got.Code != broker.Internal || got.Public != "" || !errors.Is(got, errBroken) {
		t.Errorf("%+v", got)
	}
}

func TestASecretThatIsMadeOpensItsDoor(t *testing.T) {
	w := newWorld(t)
	made, hash := w.b.NewClientSecret()
	another, _ := w.b.NewClientSecret()
	client := w.reg.Clients["files-mcp"]
	credentials := broker.Credentials{Method: "client_secret_post", ID: client.ID, Secret: made}
	if _, err := w.b.AuthenticateClient(t.Context(), credentials); broker.CodeOf(err) != broker.BadClient {
		t.Errorf("before it is entered: %v", err)
	}
	client.Auth.SecretHashes = append(client.Auth.SecretHashes, hash)
	for text, good := range map[string]bool{made.Reveal(): true, goodSecret.Reveal(): true, another.Reveal(): false, hash: false, "": false} {
		credentials.Secret = secret.New(text)
		if got, err := w.b.AuthenticateClient(t.Context(), credentials); (err == nil) != good || good && got != client {
			t.Errorf("%v, wanted %t", err, good)
		}
	}
	if strings.Contains(hash, made.Reveal()) || made.Equal(another) {
		t.Error("the hash tells the secret, or two are the same")
	}
}

func TestStatus(t *testing.T) {
	w, _ := breakable(t)
	first, _ := w.must(nil)
	w.must(w.vend(first.Token, nil))
	s := w.b.Status(t.Context())
	if !s.Current || s.Why != "" || s.Replica != "r1" || s.OpenLeases != 1 || s.Record != "" || s.Policy != w.judge.Policy().Version() || len(s.Policies) != 2 || s.Providers["warehouse"] != "" {
		t.Errorf("when all is well: %+v", s)
	}
	if _, there := s.Providers["warehouse"]; !there {
		t.Error("an upstream is not asked")
	}
	before := s.Records
	if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Token: "x"}}); err != nil {
		t.Fatal(err)
	}
	if s := w.b.Status(t.Context()); s.Records != before+1 || s.Head.Seq == 0 {
		t.Errorf("after a revocation: %+v", s)
	}
	w.upstream.revErr, w.record.down = errBroken, errBroken
	w.store.fail(errBroken)
	w.clock.move(time.Minute)
	s = w.b.Status(t.Context())
	if s.Current || s.Behind < time.Minute || s.OpenLeases != -1 || s.Record != errBroken.Error() || s.Providers["warehouse"] != errBroken.Error() {
		t.Errorf("when nothing is: %+v", s)
	}
}

func (w *world) lease(id string) *broker.Lease {
	w.t.Helper()
	l, err := w.store.Lease(context.Background(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// login vends a credential and returns its lease.
func (w *world) login(change func(*broker.ExchangeRequest)) string {
	w.t.Helper()
	first, _ := w.must(change)
	got, _ := w.must(w.vend(first.Token, nil))
	return got.Lease
}

// A selector with two conditions takes what meets both.
func TestARevocationOfSeveralConditionsMarksWhatMeetsAll(t *testing.T) {
	w, _ := breakable(t)
	of := func(sub, sid string) func(*broker.ExchangeRequest) {
		return func(r *broker.ExchangeRequest) {
			r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.Subject, k.SessionID = sub, sid }))
		}
	}
	both, onlySubject, onlySession := w.login(of("alice", "one")), w.login(of("alice", "two")), w.login(of("bob", "one"))
	if w.lease(both).Session != w.lease(onlySession).Session {
		t.Fatal("they are of one session")
	}
	session := w.lease(both).Session
	w.run(w.b)
	if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Subject: idp + "#alice", Session: session}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what meets both is ended", func() bool { return w.lease(both).State == broker.Closed })
	// Whatever comes to be marked after it shows that the others have been looked at.
	last := w.login(of("carol", "four"))
	if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Lease: last}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the next is ended", func() bool { return w.lease(last).State == broker.Closed })
	for _, id := range []string{onlySubject, onlySession} {
		if l := w.lease(id); l.State != broker.Active {
			t.Errorf("%+v", l)
		}
	}
}

// A foreign token without a jti is known by the claims that tell it from others,
// whichever way it is spelled.
func TestATokenWithoutAnIDIsRevokedByItsClaims(t *testing.T) {
	w := newWorld(t)
	issued := w.clock.Now().Add(-time.Minute)
	nameless := func(change func(*broker.Token)) func(*broker.ExchangeRequest) {
		return func(r *broker.ExchangeRequest) {
			r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) {
				k.ID, k.IssuedAt = "", issued
				if change != nil {
					change(k)
				}
			}))
		}
	}
	root := func(change func(*broker.Token)) string {
		t.Helper()
		_, k := w.must(nameless(change))
		if k.Stint.Root == nil || !strings.HasPrefix(k.Stint.Root.ID, "~") {
			t.Fatalf("%+v", k.Stint.Root)
		}
		return k.Stint.Root.ID
	}
	one := root(nil)
	if again := root(nil); again != one {
		t.Errorf("%s and %s are one token", one, again)
	}
	for name, change := range map[string]func(*broker.Token){
		"another subject": func(k *broker.Token) { k.Subject = "bob" },
		"another time":    func(k *broker.Token) { k.IssuedAt = issued.Add(-time.Second) },
		"another end":     func(k *broker.Token) { k.Expires = k.Expires.Add(time.Second) },
	} {
		if root(change) == one {
			t.Errorf("%s: the same id", name)
		}
	}
	if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Token: idp + "#" + one}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.exchange(nameless(nil)); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("it lives: %v", err)
	}
	if _, err := w.exchange(nameless(func(k *broker.Token) { k.Subject = "bob" })); err != nil {
		t.Errorf("another's went with it: %v", err)
	}
}

// A client that acts for itself has a lease with no token above it.
func TestAClientVendsForItself(t *testing.T) {
	w := newWorld(t)
	got, err := w.exchange(func(r *broker.ExchangeRequest) {
		*r = broker.ExchangeRequest{
			GrantType: broker.ClientCredentials, Client: w.reg.Clients["files-mcp"], Resources: []string{"postgres://warehouse/sales.orders"},
			Scope: "files:read", RequestID: "req",
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	e := w.record.last(t, audit.KindExchange)
	if l := w.lease(got.Lease); l.Subject != "files-mcp" || l.Client != "files-mcp" || e.Token != nil && e.Token.Parent != "" {
		t.Errorf("%+v, %+v", l, e.Token)
	}
	w.run(w.b)
	if _, err := w.b.Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Subject: "files-mcp"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is ended with its client", func() bool { return w.lease(got.Lease).State == broker.Closed })
}

func TestOrphansAreEndedInTheBackground(t *testing.T) {
	w := newWorld(t)
	id := w.login(nil)
	w.upstream.mu.Lock()
	w.upstream.alive["orphan"] = tables.Everything()
	w.upstream.mu.Unlock()
	w.run(w.b)
	eventually(t, "the orphan is gone", func() bool { return w.upstream.living() == 1 })
	eventually(t, "it is recorded", func() bool { return w.record.count(audit.KindLease) > 0 })
	if e := w.record.last(t, audit.KindLease); e.Lease == nil || e.Lease.ID != "orphan" {
		t.Errorf("%+v", e)
	}
	if l := w.lease(id); l.State != broker.Active {
		t.Errorf("%+v", l)
	}
}

func TestWhatStrangersSendIsCutAtACharacter(t *testing.T) {
	w := newWorld(t)
	w.b.Refuse(t.Context(), &broker.ExchangeRequest{GrantType: "x" + strings.Repeat("é", 100)}, "", errBroken)
	if got := w.record.last(t, audit.KindExchange).GrantType; !utf8.ValidString(got) {
		t.Errorf("half a character: %q", got)
	}
}
