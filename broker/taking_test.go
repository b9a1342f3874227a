package broker_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// RFC 7009 for a credential: its client has its lease id, and takes it back by that.
func TestALeaseIsTakenBackByItsID(t *testing.T) {
	w := newWorld(t)
	w.run(w.b)
	id := w.login(nil)
	revoke := func(client, token string) error {
		return w.b.RevokeToken(context.Background(), w.reg.Clients[client], secret.New(token), "r")
	}
	if err := revoke("desktop", id); broker.CodeOf(err) != broker.Denied {
		t.Errorf("another client: %v", err)
	}
	if e := w.record.last(t, audit.KindRevocation); e.Outcome != audit.Refused || e.Code != string(broker.Denied) || e.Party.Client != "desktop" || e.Request != "r" || !strings.Contains(e.Reason, id) {
		t.Errorf("recorded as %+v", e)
	}
	if l := w.lease(id); l.State != broker.Active || w.upstream.living() != 1 {
		t.Fatalf("it is over: %+v", l)
	}
	for name, token := range map[string]string{"of nobody": strings.Repeat("a", 24), "too long": id + "a", "in capitals": strings.ToUpper(id), "nothing": ""} {
		before := w.record.count(audit.KindRevocation)
		if err := revoke("files-mcp", token); err != nil || w.record.count(audit.KindRevocation) != before {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.store.fail(errors.New("gone"))
	if err := revoke("files-mcp", id); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("with the store down: %v", err)
	}
	w.store.fail(nil)
	if err := revoke("files-mcp", id); err != nil {
		t.Fatal(err)
	}
	if e := w.record.last(t, audit.KindRevocation); e.Outcome != audit.Done || e.Party.Client != "files-mcp" || e.Revocation.Position == "" || strings.Join(e.Revocation.Selector, " ") != "lease="+id {
		t.Errorf("recorded as %+v %+v", e, e.Revocation)
	}
	eventually(t, "it is ended upstream", func() bool { return w.lease(id).State == broker.Closed && w.upstream.living() == 0 })
	before := len(w.store.all())
	if err := revoke("files-mcp", id); err != nil || len(w.store.all()) != before {
		t.Errorf("again: %v, and the feed is longer by %d", err, len(w.store.all())-before)
	}
}

// What an authenticated client is refused is in the record; what failed because
// something is down, or was nothing to do, is not.
func TestRefusedRevocationsAndIntrospectionsAreRecorded(t *testing.T) {
	w := newWorld(t)
	first, tok := w.must(nil)
	ctx := context.Background()
	for name, tc := range map[string]struct {
		try    func() error
		kind   audit.Kind
		client string
		code   broker.Code
		reason string
	}{
		"another's token is taken back": {func() error { return w.b.RevokeToken(ctx, w.reg.Clients["files-mcp"], first.Token, "r") }, audit.KindRevocation, "files-mcp", broker.Denied, tok.ID},
		"a client that is no resource asks": {func() error {
			_, err := w.b.Introspect(ctx, w.reg.Clients["desktop"], first.Token, false, "r")
			return err
		}, audit.KindIntrospect, "desktop", broker.Denied, "no resource"},
		"a token for many uses is used up": {func() error {
			_, err := w.b.Introspect(ctx, w.reg.Clients["files-mcp"], first.Token, true, "r")
			return err
		}, audit.KindIntrospect, "files-mcp", broker.BadRequest, "not for one use"},
	} {
		t.Run(name, func(t *testing.T) {
			before := w.record.count(tc.kind)
			if err := tc.try(); broker.CodeOf(err) != tc.code {
				t.Fatal(err)
			}
			e := w.record.last(t, tc.kind)
			if w.record.count(tc.kind) != before+1 || e.Outcome != audit.Refused || e.Code != string(tc.code) || e.Party.Client != tc.client || e.Request != "r" || !strings.Contains(e.Reason, tc.reason) {
				t.Errorf("recorded as %+v", e)
			}
		})
	}
	before := len(w.record.events)
	for _, raw := range []secret.String{secret.New("x"), w.tokens.put(w.token(nil))} {
		if err := w.b.RevokeToken(ctx, w.reg.Clients["desktop"], raw, "r"); err != nil {
			t.Error(err)
		}
		if _, err := w.b.Introspect(ctx, w.reg.Clients["files-mcp"], raw, false, "r"); err != nil {
			t.Error(err)
		}
	}
	w.tokens.down = errors.New("no keys")
	if err := w.b.RevokeToken(ctx, w.reg.Clients["desktop"], first.Token, "r"); broker.CodeOf(err) != broker.Unavailable {
		t.Error(err)
	}
	if got := len(w.record.events); got != before {
		t.Errorf("%d events of what was no refusal", got-before)
	}
}
