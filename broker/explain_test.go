package broker_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes"
)

// question asks what a request asks.
func (w *world) question(r *broker.ExchangeRequest) *broker.Question {
	w.t.Helper()
	q := &broker.Question{
		Client: r.Client, Resources: r.Resources, Audiences: r.Audiences, Scope: r.Scope, Details: r.Details, Now: w.clock.Now(), Live: true,
	}
	if r.GrantType == broker.TokenExchange {
		var err error
		if q.Token, err = w.tokens.Verify(context.Background(), r.SubjectToken); err != nil {
			w.t.Fatal(err)
		}
	}
	return q
}

func (w *world) explain(change func(*broker.ExchangeRequest)) *broker.Explanation {
	w.t.Helper()
	return w.judge.Explain(context.Background(), w.question(w.request(change)))
}

// without returns the client as it were without a grant type.
func without(c *broker.Client, grantType string) *broker.Client {
	other := *c
	other.GrantTypes = slices.DeleteFunc(slices.Clone(c.GrantTypes), func(g string) bool { return g == grantType })
	return &other
}

// What is explained is what is decided: the same request gets the same answer
// from both, for the same reason.
func TestExplainAgreesWithTheExchange(t *testing.T) {
	w := newWorld(t)
	own, _ := w.must(nil)
	foreign := func(change func(*broker.Token)) func(*broker.ExchangeRequest) {
		return func(r *broker.ExchangeRequest) { r.SubjectToken = w.tokens.put(w.token(change)) }
	}
	for name, change := range map[string]func(*broker.ExchangeRequest){
		"what is granted":                nil,
		"a credential":                   w.vend(own.Token, nil),
		"a scope that nobody has":        func(r *broker.ExchangeRequest) { r.Scope = "files:nope" },
		"a scope that no rule gives":     func(r *broker.ExchangeRequest) { r.Scope = "files:write" },
		"a malformed scope":              func(r *broker.ExchangeRequest) { r.Scope = "a\"b" },
		"no scope":                       func(r *broker.ExchangeRequest) { r.Scope = "" },
		"an unknown target":              func(r *broker.ExchangeRequest) { r.Resources = []string{"https://nobody.test"} },
		"no target":                      func(r *broker.ExchangeRequest) { r.Resources = nil },
		"another group":                  foreign(func(k *broker.Token) { k.Groups = []string{"visitors"} }),
		"an issuer that is not trusted":  foreign(func(k *broker.Token) { k.Issuer = "https://evil.test" }),
		"another audience":               foreign(func(k *broker.Token) { k.Audience = []string{"https://other.test"} }),
		"software that nobody names":     foreign(func(k *broker.Token) { k.ClientID = "unheard-of" }),
		"a client that may not exchange": func(r *broker.ExchangeRequest) { r.Client = without(r.Client, broker.TokenExchange) },
		"a client without consent":       func(r *broker.ExchangeRequest) { r.Client = w.reg.Clients["files-mcp"] },
		"details that are no JSON":       func(r *broker.ExchangeRequest) { r.Details = "[" },
		"a tool that the mapping lacks":  func(r *broker.ExchangeRequest) { r.Scope, r.Details = "", `[{"type":"mcp_tool_call","tool":"nope"}]` },
		"a table that the mapping lacks": w.vend(own.Token, func(r *broker.ExchangeRequest) { r.Resources = []string{"postgres://warehouse/sales.secrets"} }),
	} {
		t.Run(name, func(t *testing.T) {
			r := w.request(change)
			issued, err := w.b.Exchange(context.Background(), r)
			e := w.judge.Explain(context.Background(), w.question(r))
			if e.Allowed != (err == nil) {
				t.Fatalf("the exchange says %v, explained is %+v", err, e)
			}
			if err != nil {
				if f := broker.AsError(err); e.Code != f.Code || e.Answer != f.Public || !strings.HasPrefix(e.Reason, f.Reason()) || !strings.Contains(e.Reason, f.Personal) {
					t.Errorf("refused with %s %q %q, explained %s %q %q", f.Code, f.Public, f.Reason(), e.Code, e.Answer, e.Reason)
				}
				return
			}
			if got := strings.Join(e.Policy.Decision.Granted, " "); got != strings.Join(issued.Scope, " ") {
				t.Errorf("granted %v, explained %s", issued.Scope, got)
			}
			if issued.Lease != "" && (e.Narrowing == nil || e.Narrowing.Grant.IsNothing() || len(e.Narrowing.Upstream) == 0 || len(e.Narrowing.Left) != 5) {
				t.Errorf("the narrowing is not told: %+v", e.Narrowing)
			}
		})
	}
}

func TestExplainNamesWhatWouldHaveAllowedIt(t *testing.T) {
	w := newWorld(t)
	own, _ := w.must(nil)
	for name, tc := range map[string]struct {
		change func(*broker.ExchangeRequest)
		says   string
	}{
		"a group": {func(r *broker.ExchangeRequest) {
			r.SubjectToken = w.tokens.put(w.token(func(k *broker.Token) { k.Groups = nil }))
		}, "the group engineering"},
		"a target":    {func(r *broker.ExchangeRequest) { r.Resources = []string{"https://nobody.test"} }, "the targets of client desktop are"},
		"a scope":     {func(r *broker.ExchangeRequest) { r.Scope = "" }, "files:read"},
		"a tool":      {func(r *broker.ExchangeRequest) { r.Scope, r.Details = "", `[{"type":"mcp_tool_call","tool":"nope"}]` }, "an entry for the tool nope"},
		"a wider map": {w.vend(own.Token, func(r *broker.ExchangeRequest) { r.Resources = []string{"postgres://warehouse/sales.secrets"} }), "a wider"},
	} {
		t.Run(name, func(t *testing.T) {
			e := w.explain(tc.change)
			if e.Allowed || !strings.Contains(strings.Join(e.Nearest, "\n"), tc.says) {
				t.Errorf("allowed %t, nearest %q", e.Allowed, e.Nearest)
			}
		})
	}
}

// A subject without a token is a subject whose token is assumed. What cannot be is
// not assumed, and what is, is said.
// What is disabled is refused, and to enable it is what would have allowed it.
func TestExplainLooksAtWhatIsDisabled(t *testing.T) {
	w := newWorld(t)
	off := *w.reg.Clients["desktop"]
	off.Disabled = true
	e := w.explain(func(r *broker.ExchangeRequest) { r.Client = &off })
	if e.Allowed || e.Code != broker.BadClient || !slices.Equal(e.Nearest, []string{"client desktop is disabled: enable it"}) {
		t.Errorf("the client: %+v", e)
	}
	w.reg.Issuers[idp].Disabled = true
	if e := w.explain(nil); e.Allowed || !slices.Equal(e.Nearest, []string{"issuer " + idp + " is disabled: enable it"}) {
		t.Errorf("the issuer: %+v", e)
	}
}

func TestExplainSaysWhatItAssumes(t *testing.T) {
	w := newWorld(t)
	ask := func(client string, change func(*broker.Question)) *broker.Explanation {
		q := &broker.Question{
			Client: w.reg.Clients[client], Subject: &scopes.Subject{Issuer: idp, ID: "alice", Groups: []string{"engineering"}}, Agent: "desktop",
			Resources: []string{mcp}, Scope: "files:read", Now: w.clock.Now(),
		}
		if change != nil {
			change(q)
		}
		return w.judge.Explain(context.Background(), q)
	}
	token := func(e *broker.Explanation) string {
		t.Helper()
		if e.Policy == nil || len(e.Policy.Scopes) != 1 || e.Policy.Scopes[0].Steps[0].Limit != "token" {
			t.Fatalf("%+v", e)
		}
		return e.Policy.Scopes[0].Steps[0].Says
	}
	for client, want := range map[string]string{"desktop": "that this client may present", "gateway": "that this client may present", "files-mcp": "for " + mcp + "; one of ours is worth the scopes that it holds"} {
		e := ask(client, nil)
		if !e.Allowed || len(e.Assumed) != 1 || !strings.Contains(e.Assumed[0], want) || !strings.Contains(token(e), e.Assumed[0]) {
			t.Errorf("%s: allowed %t, assumed %q, said %q", client, e.Allowed, e.Assumed, token(e))
		}
	}
	held := &scopes.Held{Resource: mcp, Scopes: []string{"files:read"}}
	if e := ask("files-mcp", func(q *broker.Question) { q.Held = held }); !e.Allowed || e.Assumed != nil || strings.Contains(token(e), "assumed") {
		t.Errorf("said, and assumed all the same: %+v", e)
	}
	// A client that no issuer's token can be for has only tokens of ours.
	delete(w.reg.Clients["desktop"].Identities, idp)
	e := ask("desktop", nil)
	if e.Allowed || e.Code != broker.BadToken || !strings.Contains(e.Reason, "it can only present tokens of ours") || !strings.Contains(strings.Join(e.Nearest, " "), "--held") {
		t.Errorf("%+v", e)
	}
	if e := ask("desktop", func(q *broker.Question) { q.Held = held }); !e.Allowed {
		t.Errorf("with a token of ours: %+v", e)
	}
	// For a resource that takes ID tokens alone, none is.
	w.reg.Issuers[idp].Accept = []string{"id_token"}
	if e := ask("files-mcp", nil); e.Allowed || !strings.Contains(e.Reason, "tokens of ours") {
		t.Errorf("%+v", e)
	}
	w.reg.Issuers[idp].Disabled = true
	if e := ask("gateway", nil); e.Allowed || !strings.Contains(e.Reason, "disabled") {
		t.Errorf("%+v", e)
	}
}

// An upstream that was not asked, or does not know the subject, limits nothing;
// that is not to say that the subject may do everything there.
func TestExplainDoesNotCallAMissingLimitARight(t *testing.T) {
	w := newWorld(t)
	own, _ := w.must(nil)
	note := func() string {
		t.Helper()
		e := w.explain(w.vend(own.Token, nil))
		if !e.Allowed || e.Narrowing == nil || e.Narrowing.Inputs[2].Name != "entitlement" {
			t.Fatalf("%+v", e)
		}
		return e.Narrowing.Inputs[2].Note
	}
	if got := note(); got != "no limit from here: none" {
		t.Errorf("%q", got)
	}
	some, err := tables.ParseValue(map[string]any{"privileges": []any{map[string]any{"object": "sales.orders", "privileges": "SELECT", "columns": "*", "rows": "*"}}})
	if err != nil {
		t.Fatal(err)
	}
	w.upstream.entitled = &some
	if got := note(); got != "asked" {
		t.Errorf("%q", got)
	}
}

func TestExplainTakesASubjectWithoutAToken(t *testing.T) {
	w := newWorld(t)
	ask := func(change func(*broker.Question)) *broker.Explanation {
		q := &broker.Question{
			Client: w.reg.Clients["desktop"], Subject: &scopes.Subject{Issuer: idp, ID: "alice", Groups: []string{"engineering"}}, Agent: "desktop",
			Resources: []string{mcp}, Scope: "files:read", Now: w.clock.Now(),
		}
		if change != nil {
			change(q)
		}
		return w.judge.Explain(context.Background(), q)
	}
	if e := ask(nil); !e.Allowed || e.Subject != idp+"#alice" {
		t.Errorf("%+v", e)
	}
	for name, change := range map[string]func(*broker.Question){
		"a token that holds nothing":  func(q *broker.Question) { q.Held = &scopes.Held{Resource: mcp} },
		"an unknown issuer":           func(q *broker.Question) { q.Subject.Issuer = "https://evil.test" },
		"an unknown agent":            func(q *broker.Question) { q.Agent = "nobody" },
		"somebody unknown on the way": func(q *broker.Question) { q.Via = []string{"nobody"} },
		"the client for itself":       func(q *broker.Question) { q.Subject = nil },
	} {
		if e := ask(change); e.Allowed || e.Reason == "" {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// Whoever asks may say any group; what counts is what the issuer may speak of.
func TestExplainCountsGroupsAsAnExchangeDoes(t *testing.T) {
	w := newWorld(t)
	for issuer, want := range map[string]bool{idp: true, ci: false} {
		e := w.judge.Explain(context.Background(), &broker.Question{
			Client: w.reg.Clients["desktop"], Subject: &scopes.Subject{Issuer: issuer, ID: "alice", Groups: []string{"engineering"}}, Agent: "desktop",
			Resources: []string{mcp}, Scope: "files:read", Held: &scopes.Held{Everything: true}, Now: w.clock.Now(),
		})
		if e.Allowed != want || want != slices.Contains(e.Groups, "engineering") {
			t.Errorf("%s: %+v", issuer, e)
		}
	}
}
