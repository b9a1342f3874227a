package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

func TestAnAgentGetsATokenForAnMCPServer(t *testing.T) {
	w := newWorld(t)
	got, tok := w.must(nil)
	if got.Type != broker.TypeAccess || got.TokenType != "Bearer" || fmt.Sprint(got.Scope) != "[files:read]" || got.Narrowed || got.Lease != "" {
		t.Errorf("issued %+v", got)
	}
	now := w.clock.Now()
	if tok.Subject != idp+"#alice" || tok.Audience[0] != mcp || tok.ClientID != "desktop" || len(tok.ID) != 22 || !tok.Expires.Equal(now.Add(4*time.Minute)) {
		t.Errorf("token %+v", tok)
	}
	if fmt.Sprint(tok.Actors) != "[{https://stint.test desktop}]" || fmt.Sprint(tok.Groups) != "[engineering]" || !tok.AuthTime.Equal(now.Add(-time.Hour)) {
		t.Errorf("token %+v", tok)
	}
	c := tok.Stint
	if c.Version != 1 || c.Root == nil || c.Root.Issuer != idp || c.Root.ID != "idp-1" || c.Root.Agent != "desktop" || len(c.Via) != 0 || c.Session == "" || len(c.Policy) != 16 || c.Agent != "desktop" {
		t.Errorf("claim %+v", c)
	}
	if p, err := broker.ParsePosition(c.Pos); err != nil || p.Seq != 1 || p.Epoch != uint64(now.UnixMilli()) {
		t.Errorf("position %v, %v", p, err)
	}
	e := w.record.last(t, audit.KindExchange)
	if e.Outcome != audit.Granted || e.Party.Client != "desktop" || e.Party.Agent != "desktop" || e.Party.Subject == "" || e.Party.Session != c.Session ||
		e.Target.Resource != mcp || e.Decision.Policy != c.Policy || len(e.Decision.Rules) != 1 || e.Token.ID != tok.ID || e.Token.Parent != "idp-1" || e.Request != "req" {
		t.Errorf("event %+v %+v", e, e.Token)
	}
	if p := w.record.who[len(w.record.who)-1]; p.Subject != idp+"#alice" || p.Email != "alice@acme.test" {
		t.Errorf("personal %+v", p)
	}
	eventually(t, "the session is noted", func() bool {
		s, _ := w.store.Sessions(context.Background(), e.Party.Subject, 9)
		return len(s) == 1 && s[0].Client == "desktop"
	})
}

func TestAServerExchangesOn(t *testing.T) {
	w := newWorld(t)
	first, parent := w.must(nil)
	_, tok := w.must(func(r *broker.ExchangeRequest) {
		r.Client, r.SubjectToken, r.Resources, r.Scope = w.reg.Clients["files-mcp"], first.Token, []string{api}, "read"
	})
	if tok.Subject != idp+"#alice" || fmt.Sprint(tok.Actors) != "[{https://stint.test files-mcp} {https://stint.test desktop}]" || tok.ClientID != "files-mcp" || fmt.Sprint(tok.Scope) != "[read]" {
		t.Errorf("token %+v", tok)
	}
	if tok.Expires.After(parent.Expires) {
		t.Error("a token outlives what it came from")
	}
	v := tok.Stint.Via
	if len(v) != 1 || v[0].ID != parent.ID || v[0].Client != "desktop" || v[0].Resource != mcp || v[0].Scope != "files:read" || tok.Stint.Root.ID != parent.Stint.Root.ID || tok.Stint.Session != parent.Stint.Session {
		t.Errorf("lineage %+v", tok.Stint)
	}
}

// Every row of the traps of RFC 8693, and of the attacks at the token endpoint,
// that is decided here.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	own, _ := w.must(nil)
	subject := func(change func(*broker.Token)) func(*broker.ExchangeRequest) {
		return func(r *broker.ExchangeRequest) { r.SubjectToken = w.tokens.put(w.token(change)) }
	}
	as := func(client string) func(*broker.ExchangeRequest) {
		return func(r *broker.ExchangeRequest) { r.Client = w.reg.Clients[client] }
	}
	and := func(fs ...func(*broker.ExchangeRequest)) func(*broker.ExchangeRequest) {
		return func(r *broker.ExchangeRequest) {
			for _, f := range fs {
				f(r)
			}
		}
	}
	now := w.clock.Now()
	for name, tc := range map[string]struct {
		change func(*broker.ExchangeRequest)
		code   broker.Code
		reason string // part of the record's reason
	}{
		"a grant type that is not registered": {func(r *broker.ExchangeRequest) { r.GrantType = broker.ClientCredentials }, broker.Denied, "not registered"},
		"a token that nobody made":            {func(r *broker.ExchangeRequest) { r.SubjectToken = secret.New("x") }, broker.BadToken, "unknown"},
		"an ID token as an access token":      {subject(func(k *broker.Token) { k.Use = broker.IDToken }), broker.BadToken, "declared access_token"},
		"an access token as an ID token":      {func(r *broker.ExchangeRequest) { r.SubjectType = broker.TypeID }, broker.BadToken, "declared id_token"},
		"a use that the issuer has not":       {and(subject(func(k *broker.Token) { k.Use = broker.OtherJWT }), func(r *broker.ExchangeRequest) { r.SubjectType = broker.TypeJWT }), broker.BadToken, "is not accepted"},
		"a disabled issuer":                   {and(as("gateway"), subject(func(k *broker.Token) { k.Issuer = "https://old.test" })), broker.BadToken, "unknown or disabled"},
		"an issuer that is not configured":    {subject(func(k *broker.Token) { k.Issuer = "https://evil.test" }), broker.BadToken, "unknown or disabled"},
		"a token that is too old":             {subject(func(k *broker.Token) { k.IssuedAt = now.Add(-61 * time.Minute) }), broker.BadToken, "max_subject_age"},
		"a login that is too old":             {subject(func(k *broker.Token) { k.AuthTime = now.Add(-721 * time.Hour) }), broker.BadToken, "max_session_age"},
		"no subject":                          {subject(func(k *broker.Token) { k.Subject = "" }), broker.BadToken, "no subject"},
		"a session of unknown age":            {subject(func(k *broker.Token) { k.AuthTime = time.Time{} }), broker.BadToken, "max_session_age"},
		"a subject with a NUL":                {subject(func(k *broker.Token) { k.Subject = "alice\x00" }), broker.BadToken, "cannot be printed"},
		"a subject with a line break":         {subject(func(k *broker.Token) { k.Subject = "alice\nbob" }), broker.BadToken, "cannot be printed"},
		"a subject that turns the text round": {subject(func(k *broker.Token) { k.Subject = "alice\u202e" }), broker.BadToken, "cannot be printed"},
		"a subject that is no text":           {subject(func(k *broker.Token) { k.Subject = "alice\xff" }), broker.BadToken, "cannot be printed"},
		"a subject of many bytes":             {subject(func(k *broker.Token) { k.Subject = strings.Repeat("a", 513) }), broker.BadToken, "512 bytes"},
		"an id with an escape":                {subject(func(k *broker.Token) { k.ID = "\x1b[2J" }), broker.BadToken, "cannot be printed"},
		"an actor with an escape":             {subject(func(k *broker.Token) { k.Actors = []broker.Actor{{Issuer: idp, Subject: "\x1b[2J"}} }), broker.BadToken, "cannot be printed"},
		"an ID token that azp gives to another": {and(as("desktop"), subject(func(k *broker.Token) {
			k.Use, k.ClientID, k.Audience = broker.IDToken, "helper-at-idp", []string{"helper-at-idp", "desktop-at-idp"}
		}), func(r *broker.ExchangeRequest) { r.SubjectType = broker.TypeID }), broker.BadToken, "audience"},
		"an ID token for several others that azp gives to it": {and(subject(func(k *broker.Token) {
			k.Use, k.Audience = broker.IDToken, []string{"helper-at-idp", "other-at-idp"}
		}), func(r *broker.ExchangeRequest) { r.SubjectType = broker.TypeID }), broker.BadToken, "audience"},
		"software that nobody configured": {subject(func(k *broker.Token) { k.ClientID = "stranger" }), broker.BadToken, "no agent or client names"},
		"a disabled agent":                {and(as("gateway"), subject(func(k *broker.Token) { k.ClientID = "gone-at-idp" })), broker.BadToken, "disabled"},
		"an audience of others":           {subject(func(k *broker.Token) { k.Audience = []string{"https://other.test"} }), broker.BadToken, "audience"},
		"an audience with a slash behind": {subject(func(k *broker.Token) { k.Audience = []string{self + "/"} }), broker.BadToken, "audience"},
		"an audience in capitals":         {subject(func(k *broker.Token) { k.Audience = []string{strings.ToUpper(self)} }), broker.BadToken, "audience"},
		"another client's user token":     {as("files-mcp"), broker.BadToken, "no consent"},
		"another client's token of ours":  {and(as("files-api"), func(r *broker.ExchangeRequest) { r.SubjectToken = own.Token }), broker.BadToken, "not to or for client"},
		"may_act that names another":      {subject(func(k *broker.Token) { k.MayAct = &broker.Actor{Subject: "gateway"} }), broker.BadToken, "may_act"},
		"may_act of another issuer":       {subject(func(k *broker.Token) { k.MayAct = &broker.Actor{Issuer: "https://evil.test", Subject: "desktop"} }), broker.BadToken, "may_act"},
		"an ID token for several that names none": {and(subject(func(k *broker.Token) {
			k.Use, k.ClientID, k.Audience = broker.IDToken, "", []string{"desktop-at-idp", self}
		}), func(r *broker.ExchangeRequest) { r.SubjectType = broker.TypeID }), broker.BadToken, "no agent or client names"},
		"an ID token for another client":   {and(subject(func(k *broker.Token) { k.Use, k.Audience = broker.IDToken, []string{"other-at-idp"} }), func(r *broker.ExchangeRequest) { r.SubjectType = broker.TypeID }), broker.BadToken, "audience"},
		"no target":                        {func(r *broker.ExchangeRequest) { r.Resources = nil }, broker.BadTarget, "missing"},
		"an unknown target":                {func(r *broker.ExchangeRequest) { r.Resources = []string{"https://nowhere.test/"} }, broker.BadTarget, "no mapping"},
		"a target with a slash behind":     {func(r *broker.ExchangeRequest) { r.Resources = []string{mcp + "/"} }, broker.BadTarget, "no mapping"},
		"a target with a fragment":         {func(r *broker.ExchangeRequest) { r.Resources = []string{mcp + "#x"} }, broker.BadTarget, "fragment"},
		"a target that is no URI":          {func(r *broker.ExchangeRequest) { r.Resources = []string{"files"} }, broker.BadTarget, "no absolute URI"},
		"a target of another client":       {func(r *broker.ExchangeRequest) { r.Resources = []string{api} }, broker.BadTarget, "no target of client"},
		"the same through audience":        {func(r *broker.ExchangeRequest) { r.Resources, r.Audiences = nil, []string{api} }, broker.BadTarget, "no target of client"},
		"an upstream of another client":    {func(r *broker.ExchangeRequest) { r.Resources, r.Audiences = nil, []string{"warehouse"} }, broker.BadTarget, "no target of client"},
		"two targets":                      {and(as("files-mcp"), func(r *broker.ExchangeRequest) { r.SubjectToken, r.Resources = own.Token, []string{mcp, api} }), broker.BadTarget, "one target"},
		"two targets, one unknown":         {func(r *broker.ExchangeRequest) { r.Resources = []string{mcp, mcp + "/"} }, broker.BadTarget, "no mapping"},
		"two targets, one of another":      {func(r *broker.ExchangeRequest) { r.Resources = []string{mcp, api} }, broker.BadTarget, "no target of client"},
		"a target and another audience":    {func(r *broker.ExchangeRequest) { r.Audiences = []string{api} }, broker.BadTarget, "no target of client"},
		"a scheme of nobody":               {func(r *broker.ExchangeRequest) { r.Resources = []string{"mysql://warehouse/x"} }, broker.BadTarget, "no mapping"},
		"no scope":                         {func(r *broker.ExchangeRequest) { r.Scope = "" }, broker.BadScope, "no scope"},
		"an unknown scope":                 {func(r *broker.ExchangeRequest) { r.Scope = "files:delete" }, broker.BadScope, "unknown_scope"},
		"a scope in capitals":              {func(r *broker.ExchangeRequest) { r.Scope = "FILES:READ" }, broker.BadScope, "unknown_scope"},
		"every scope":                      {func(r *broker.ExchangeRequest) { r.Scope = "*" }, broker.BadScope, "unknown_scope"},
		"a scope twice":                    {func(r *broker.ExchangeRequest) { r.Scope = "files:read files:read" }, broker.BadScope, "twice"},
		"scopes with a tab":                {func(r *broker.ExchangeRequest) { r.Scope = "files:read\tfiles:list" }, broker.BadScope, "character"},
		"a write that no rule names":       {func(r *broker.ExchangeRequest) { r.Scope = "files:write" }, broker.BadScope, "no_rule"},
		"one scope of two":                 {func(r *broker.ExchangeRequest) { r.Scope = "files:read files:write" }, broker.BadScope, "files:write: no_rule"},
		"a person without the group":       {subject(func(k *broker.Token) { k.Groups = nil }), broker.BadScope, "no_rule"},
		"what needs approval":              {and(subject(func(k *broker.Token) { k.Groups = []string{"maintainers"} }), func(r *broker.ExchangeRequest) { r.Scope = "files:list" }), broker.NeedsApproval, "approval"},
		"a type that the target has not":   {func(r *broker.ExchangeRequest) { r.RequestedType = broker.TypeCredential }, broker.BadRequest, "no credentials"},
		"an actor token of another client": {func(r *broker.ExchangeRequest) { r.ActorToken, r.ActorType = own.Token, broker.TypeAccess }, broker.BadToken, "not of the client"},
		"an actor token of a person": {func(r *broker.ExchangeRequest) {
			r.ActorToken, r.ActorType = w.tokens.put(w.token(nil)), broker.TypeAccess
		}, broker.BadToken, "is no actor"},
		"an actor token for others": {func(r *broker.ExchangeRequest) {
			r.ActorToken, r.ActorType = w.tokens.put(w.token(func(k *broker.Token) { k.Subject, k.Audience = "robot", []string{"https://x.test"} })), broker.TypeAccess
		}, broker.BadToken, "audience"},
		"an actor that is the subject": {and(subject(func(k *broker.Token) { k.Subject = "robot" }), func(r *broker.ExchangeRequest) {
			r.ActorToken, r.ActorType = w.tokens.put(w.token(func(k *broker.Token) { k.Subject = "robot" })), broker.TypeAccess
		}), broker.BadToken, "subject itself"},
		"an actor token that nobody made":     {func(r *broker.ExchangeRequest) { r.ActorToken, r.ActorType = secret.New("x"), broker.TypeAccess }, broker.BadToken, "actor token"},
		"details that are no JSON":            {func(r *broker.ExchangeRequest) { r.Details = "x" }, broker.BadDetails, "no JSON array"},
		"details that are an object":          {func(r *broker.ExchangeRequest) { r.Details = "{}" }, broker.BadDetails, "no JSON array"},
		"no details":                          {func(r *broker.ExchangeRequest) { r.Details = "[]" }, broker.BadDetails, "1 to 8"},
		"details without a type":              {func(r *broker.ExchangeRequest) { r.Details = "[{}]" }, broker.BadDetails, "with a type"},
		"details of an unknown type":          {func(r *broker.ExchangeRequest) { r.Details = `[{"type":"payment"}]` }, broker.BadDetails, "does not exist"},
		"an upstream's details for a token":   {func(r *broker.ExchangeRequest) { r.Details = `[{"type":"postgres"}]` }, broker.BadDetails, "does not exist"},
		"details with a name twice":           {func(r *broker.ExchangeRequest) { r.Details = `[{"type":"mcp_tool_call","tool":"a","tool":"b"}]` }, broker.BadDetails, "duplicate"},
		"details with a name in another case": {func(r *broker.ExchangeRequest) { r.Details = `[{"type":"mcp_tool_call","Tool":"read_file"}]` }, broker.BadDetails, "unknown"},
		"two tool calls": {func(r *broker.ExchangeRequest) {
			r.Details = `[{"type":"mcp_tool_call","tool":"read_file"},{"type":"mcp_tool_call","tool":"read_file"}]`
		}, broker.BadDetails, "more than one"},
		"a tool call of no tool": {func(r *broker.ExchangeRequest) { r.Details = `[{"type":"mcp_tool_call"}]` }, broker.BadDetails, "tool is a text"},
		"a tool call elsewhere": {func(r *broker.ExchangeRequest) {
			r.Details = `[{"type":"mcp_tool_call","tool":"read_file","locations":["https://x.test"]}]`
		}, broker.BadDetails, "location"},
		"arguments that are no object": {func(r *broker.ExchangeRequest) {
			r.Details = `[{"type":"mcp_tool_call","tool":"read_file","arguments":[1]}]`
		}, broker.BadDetails, "no object"},
		"arguments of many bytes": {func(r *broker.ExchangeRequest) {
			r.Details = `[{"type":"mcp_tool_call","tool":"read_file","arguments":{"a":"` + strings.Repeat("x", 17<<10) + `"}}]`
		}, broker.BadDetails, "more than 16384"},
		"details of many bytes": {func(r *broker.ExchangeRequest) { r.Details = strings.Repeat(" ", 33<<10) }, broker.BadDetails, "more than 32768"},
		"an unknown tool":       {func(r *broker.ExchangeRequest) { r.Scope, r.Details = "", `[{"type":"mcp_tool_call","tool":"rm"}]` }, broker.BadScope, "unknown_tool"},
	} {
		t.Run(name, func(t *testing.T) {
			before := w.record.count(audit.KindExchange)
			got, err := w.exchange(tc.change)
			if err == nil {
				t.Fatalf("granted %+v", got)
			}
			if code := broker.CodeOf(err); code != tc.code {
				t.Fatalf("code %s, want %s: %v", code, tc.code, err)
			}
			e := w.record.last(t, audit.KindExchange)
			if w.record.count(audit.KindExchange) != before+1 || e.Outcome != audit.Refused || e.Code != string(tc.code) {
				t.Errorf("not one event of the refusal: %+v", e)
			}
			if !strings.Contains(e.Reason, tc.reason) {
				t.Errorf("the record says %q, want %q", e.Reason, tc.reason)
			}
			if e.Token != nil || e.Lease != nil {
				t.Error("the record shows something issued")
			}
		})
	}
}

// A bad token, an unknown one and a revoked one are told the same.
func TestRefusedTokensAreToldTheSame(t *testing.T) {
	w := newWorld(t)
	texts := map[string]bool{}
	for _, change := range []func(*broker.ExchangeRequest){
		func(r *broker.ExchangeRequest) { r.SubjectToken = secret.New("x") },
		func(r *broker.ExchangeRequest) { r.Client = w.reg.Clients["files-mcp"] },
		func(r *broker.ExchangeRequest) {
			r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.SessionID = "dead" }))
			if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Session: broker.SessionID(w.token(func(k *broker.Token) { k.SessionID = "dead" }))}}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		_, err := w.exchange(change)
		texts[broker.AsError(err).Public] = true
	}
	if len(texts) != 1 {
		t.Errorf("told apart: %v", texts)
	}
}

func TestClientsForThemselves(t *testing.T) {
	w := newWorld(t)
	own := func(r *broker.ExchangeRequest) {
		*r = broker.ExchangeRequest{GrantType: broker.ClientCredentials, Client: w.reg.Clients["files-mcp"], Resources: []string{mcp}, Scope: "files:read"}
	}
	_, tok := w.must(own)
	if tok.Subject != "files-mcp" || tok.ClientID != "files-mcp" || tok.Actors != nil || tok.Stint.Root != nil || tok.Stint.Session == "" {
		t.Errorf("token %+v %+v", tok, tok.Stint)
	}
	if _, err := w.exchange(func(r *broker.ExchangeRequest) { own(r); r.Scope = "files:list" }); broker.CodeOf(err) != broker.BadScope {
		t.Errorf("the same policy holds: %v", err)
	}
	if _, err := w.b.Revoke(context.Background(), broker.Revocation{Selector: broker.Selector{Subject: "files-mcp"}}); err != nil {
		t.Fatal(err)
	}
	got, err := w.exchange(func(r *broker.ExchangeRequest) {
		r.Client, r.SubjectToken, r.Resources, r.Scope = w.reg.Clients["files-mcp"], w.tokens.put(tok), []string{api}, "read"
	})
	if broker.CodeOf(err) != broker.BadToken {
		t.Errorf("a revoked token of its own: %v, %v", got, err)
	}
}

// Whoever held a token on the way limits what comes of it, at every hop.
func TestCeilingsAreNotLostOnTheWay(t *testing.T) {
	w := newWorld(t)
	first, _ := w.must(func(r *broker.ExchangeRequest) {
		r.Client = w.reg.Clients["gateway"]
		r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.ClientID, k.Groups = "helper-at-idp", []string{"maintainers", "engineering"} }))
	})
	// The gateway impersonates: no act names anybody. The lineage does.
	second, tok := w.must(func(r *broker.ExchangeRequest) {
		r.Client, r.SubjectToken, r.Resources, r.Scope = w.reg.Clients["files-mcp"], first.Token, []string{api}, "read"
	})
	if tok.Stint.Root.Agent != "helper" || second == nil {
		t.Fatalf("lineage %+v", tok.Stint)
	}
	w.reg.Agents["helper"].Ceiling.Access = 0 // an administrator lowers it to nothing
	_, err := w.exchange(func(r *broker.ExchangeRequest) {
		r.Client, r.SubjectToken, r.Resources, r.Scope = w.reg.Clients["files-mcp"], first.Token, []string{api}, "read"
	})
	if broker.CodeOf(err) != broker.BadScope {
		t.Errorf("the agent's ceiling was forgotten: %v", err)
	}
	delete(w.reg.Clients, "gateway")
	if _, err = w.exchange(func(r *broker.ExchangeRequest) {
		r.Client, r.SubjectToken, r.Resources, r.Scope = w.reg.Clients["files-mcp"], first.Token, []string{api}, "read"
	}); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("a client that is gone is still on the way: %v", err)
	}
}

func TestImpersonationLeavesTheClientOut(t *testing.T) {
	w := newWorld(t)
	_, tok := w.must(func(r *broker.ExchangeRequest) { r.Client = w.reg.Clients["gateway"] })
	if tok.Actors != nil || tok.ClientID != "gateway" {
		t.Errorf("token %+v", tok)
	}
	if e := w.record.last(t, audit.KindExchange); e.Party.Client != "gateway" {
		t.Error("the record does not name it")
	}
}

func TestLessThanAskedOnlyForThoseWhoAcceptIt(t *testing.T) {
	w := newWorld(t)
	got, tok := w.must(func(r *broker.ExchangeRequest) {
		r.Client, r.Scope = w.reg.Clients["gateway"], "files:read files:write files:zzz"
	})
	if fmt.Sprint(got.Scope) != "[files:read]" || !got.Narrowed || fmt.Sprint(tok.Scope) != "[files:read]" {
		t.Errorf("issued %+v", got)
	}
	if _, err := w.exchange(func(r *broker.ExchangeRequest) { r.Client, r.Scope = w.reg.Clients["gateway"], "files:write" }); broker.CodeOf(err) != broker.BadScope {
		t.Errorf("nothing at all: %v", err)
	}
}

func TestForeignScopes(t *testing.T) {
	w := newWorld(t)
	job := func(change func(*broker.Token)) func(*broker.ExchangeRequest) {
		return func(r *broker.ExchangeRequest) {
			r.Client, r.SubjectType = w.reg.Clients["files-mcp"], broker.TypeJWT
			r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) {
				k.Issuer, k.Subject, k.Use, k.SessionID, k.AuthTime, k.ClientID = ci, "repo:acme/web", broker.OtherJWT, "", time.Time{}, ""
				k.Claims, k.Scope, k.Groups = map[string]string{"repository": "acme/web", "run": "7"}, []string{"ci:read"}, nil
				if change != nil {
					change(k)
				}
			}))
		}
	}
	_, tok := w.must(job(func(k *broker.Token) { k.Groups = []string{"engineering"} }))
	if len(tok.Groups) != 0 {
		t.Errorf("groups of another issuer were handed on: %v", tok.Groups)
	}
	_, tok = w.must(job(nil))
	if tok.Subject != ci+"#repo:acme/web" || fmt.Sprint(tok.Stint.Claims) != "map[repository:acme/web]" {
		t.Errorf("token %+v %+v", tok, tok.Stint)
	}
	for name, change := range map[string]func(*broker.Token){
		"without a scope":       func(k *broker.Token) { k.Scope = nil },
		"with another scope":    func(k *broker.Token) { k.Scope = []string{"ci:write", "files:read"} },
		"of another repository": func(k *broker.Token) { k.Claims = map[string]string{"repository": "acme/other"} },
		// Another issuer knows that group; this one has none.
		"in a group of another issuer": func(k *broker.Token) {
			k.Claims, k.Groups = map[string]string{"repository": "acme/other"}, []string{"engineering"}
		},
		"that says it is us": func(k *broker.Token) {
			k.Claims = map[string]string{"repository": "acme/web", "iss": self, "sub": "files-mcp"}
			k.Claims["repository"] = "x"
		},
	} {
		if _, err := w.exchange(job(change)); broker.CodeOf(err) != broker.BadScope {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The claims that rules name go along, so that a second hop decides by them too.
	if _, err := w.exchange(func(r *broker.ExchangeRequest) {
		r.Client, r.SubjectToken, r.Scope = w.reg.Clients["files-mcp"], w.tokens.put(tok), "files:read"
	}); err != nil {
		t.Errorf("second hop: %v", err)
	}
}

// However often a token is exchanged, nothing grows.
func TestNothingGrowsAlongAChain(t *testing.T) {
	w := newWorld(t)
	w.reg.Clients["files-mcp"].Resource = mcp
	first, parent := w.must(func(r *broker.ExchangeRequest) { r.Scope = "files:read files:list" })
	raw := first.Token
	for hop := range broker.MaxHops + 2 {
		got, err := w.exchange(func(r *broker.ExchangeRequest) {
			r.Client, r.SubjectToken, r.Scope = w.reg.Clients["files-mcp"], raw, "files:read files:list"
		})
		if err != nil {
			if hop < 5 || broker.CodeOf(err) != broker.BadToken {
				t.Fatalf("hop %d: %v", hop, err)
			}
			return // the chain is bounded
		}
		tok, err := w.tokens.Verify(context.Background(), got.Token)
		if err != nil {
			t.Fatal(err)
		}
		if tok.Expires.After(parent.Expires) || len(tok.Scope) > len(parent.Scope) || tok.Audience[0] != mcp {
			t.Fatalf("hop %d grew: %+v", hop, tok)
		}
		if _, err := w.exchange(func(r *broker.ExchangeRequest) {
			r.Client, r.SubjectToken, r.Scope = w.reg.Clients["files-mcp"], got.Token, "files:read files:write"
		}); err == nil {
			t.Fatalf("hop %d got a scope that its parent had not", hop)
		}
		raw, parent = got.Token, tok
		w.clock.move(time.Second)
		if err := w.b.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	t.Error("the chain has no bound")
}

func TestToolCalls(t *testing.T) {
	w := newWorld(t)
	call := func(details string) func(*broker.ExchangeRequest) {
		return func(r *broker.ExchangeRequest) { r.Scope, r.Details = "", details }
	}
	const args = `{"path":"a","n":1.0}`
	got, tok := w.must(call(`[{"type":"mcp_tool_call","tool":"read_file","arguments":` + args + `}]`))
	var back []map[string]any
	if err := json.Unmarshal(got.Details, &back); err != nil || back[0]["tool"] != "read_file" || back[0]["once"] != nil || !strings.HasPrefix(fmt.Sprint(back[0]["arguments_digest"]), "sha-256:") {
		t.Fatalf("details %s", got.Details)
	}
	if tok.Stint.Tool != "read_file" || tok.Stint.Once || len(tok.Stint.Arguments) != 64 || fmt.Sprint(tok.Scope) != "[files:read]" || !got.Narrowed {
		t.Errorf("token %+v", tok.Stint)
	}
	for _, e := range w.record.events {
		if data, _ := json.Marshal(e); strings.Contains(string(data), `"path"`) {
			t.Error("the record holds the arguments")
		}
	}
	on := func(details string) func(*broker.ExchangeRequest) {
		return func(r *broker.ExchangeRequest) {
			r.Client, r.SubjectToken, r.Resources, r.Scope, r.Details = w.reg.Clients["files-mcp"], got.Token, []string{mcp}, "files:read", details
		}
	}
	if _, tok := w.must(on(`[{"type":"mcp_tool_call","tool":"read_file","arguments":{"n":1,"path":"a"}}]`)); tok.Stint.Arguments == "" {
		t.Error("the same arguments, written otherwise, are the same")
	}
	if _, tok := w.must(on("")); tok.Stint.Tool != "read_file" || tok.Stint.Arguments == "" {
		t.Error("a token for a tool call makes tokens for other calls")
	}
	for name, details := range map[string]string{
		"another tool":    `[{"type":"mcp_tool_call","tool":"my_table"}]`,
		"other arguments": `[{"type":"mcp_tool_call","tool":"read_file","arguments":{"path":"b","n":1}}]`,
	} {
		if _, err := w.exchange(on(details)); broker.CodeOf(err) != broker.BadDetails {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatIsDownIsUnavailable(t *testing.T) {
	w := newWorld(t)
	w.tokens.down = errors.New("no keys")
	if _, err := w.exchange(nil); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("keys: %v", err)
	}
	w.tokens.down = nil
	w.record.down = errors.New("disk full")
	got, err := w.exchange(nil)
	if broker.CodeOf(err) != broker.Unavailable || got != nil {
		t.Errorf("no record, no token: %v, %v", got, err)
	}
	w.record.down = nil
	w.clock.move(time.Second) // no heartbeat meanwhile
	_, err = w.exchange(nil)
	if e := broker.AsError(err); e.Code != broker.Unavailable || e.RetryAfter == 0 {
		t.Errorf("a replica that is not current: %v", err)
	}
	if e := w.record.last(t, audit.KindExchange); e.Outcome != audit.Failed || !strings.Contains(e.Reason, "not current") {
		t.Errorf("event %+v", e)
	}
}

func TestCheckOfRequests(t *testing.T) {
	for name, tc := range map[string]struct {
		r    broker.ExchangeRequest
		want string
	}{
		"no subject token":              {broker.ExchangeRequest{GrantType: broker.TokenExchange}, "subject_token is missing"},
		"no type":                       {broker.ExchangeRequest{GrantType: broker.TokenExchange, SubjectToken: secret.New("x")}, "subject_token_type is missing"},
		"a type that is not supported":  {broker.ExchangeRequest{GrantType: broker.TokenExchange, SubjectToken: secret.New("x"), SubjectType: "urn:ietf:params:oauth:token-type:saml2"}, "not supported"},
		"an actor without a type":       {broker.ExchangeRequest{GrantType: broker.TokenExchange, SubjectToken: secret.New("x"), SubjectType: broker.TypeJWT, ActorToken: secret.New("y")}, "go together"},
		"an actor's type alone":         {broker.ExchangeRequest{GrantType: broker.TokenExchange, SubjectToken: secret.New("x"), SubjectType: broker.TypeJWT, ActorType: broker.TypeJWT}, "go together"},
		"an actor's type not supported": {broker.ExchangeRequest{GrantType: broker.TokenExchange, SubjectToken: secret.New("x"), SubjectType: broker.TypeJWT, ActorToken: secret.New("y"), ActorType: "z"}, "not supported"},
		"a requested type":              {broker.ExchangeRequest{GrantType: broker.TokenExchange, SubjectToken: secret.New("x"), SubjectType: broker.TypeJWT, RequestedType: "urn:ietf:params:oauth:token-type:refresh_token"}, "requested_token_type"},
		"a subject for itself":          {broker.ExchangeRequest{GrantType: broker.ClientCredentials, SubjectToken: secret.New("x")}, "takes no subject_token"},
		"an actor for itself":           {broker.ExchangeRequest{GrantType: broker.ClientCredentials, ActorToken: secret.New("x")}, "takes no subject_token"},
	} {
		if err := tc.r.Check(); broker.CodeOf(err) != broker.BadRequest || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := broker.ExchangeRequest{GrantType: broker.ClientCredentials}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
}
