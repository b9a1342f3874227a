package sample

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/oauthex"

	"github.com/stint-dev/stint/internal/secret"
)

func TestAToolCallIsOneExchangeForOneScope(t *testing.T) {
	w := newWorld(t, nil)
	held := w.issue(w.alice(OrdersRead, OrdersWrite, ReportsRead))
	text, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "list_orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	var got orderList
	if err := json.Unmarshal([]byte(text), &got); err != nil || len(got.Orders) != 1 || got.Orders[0].Item != "tea" {
		t.Errorf("the answer is %s", text)
	}
	want := []string{
		"mcp: ask Stint about the caller's token (server/discover): 200",
		"mcp: ask Stint about the caller's token (tools/call): 200",
		"mcp: exchange the caller's token for one for the API, and for this call: 200",
		"api: ask Stint about the token of GET /orders: 200",
		"mcp: call the API: 200",
	}
	if lines := w.steps.summary(); !slices.Equal(lines, want) {
		t.Errorf("the steps are\n%s", strings.Join(lines, "\n"))
	}
	forms := w.forms("/oauth2/token")
	if len(forms) != 1 || forms[0].Get("scope") != OrdersRead || forms[0].Get("resource") != w.api.Resource() ||
		forms[0].Get("authorization_details") != `[{"type":"mcp_tool_call","tool":"list_orders","arguments":{}}]` {
		t.Errorf("asked was %v", forms)
	}
	sent := w.steps.find(t, "call the API").get("Authorization")
	if sent.Secret.Empty() || sent.Secret.Equal(held) || !sent.Secret.Equal(w.steps.find(t, "exchange").get("access_token").Secret) {
		t.Error("the API was not shown the token that was made for it")
	}
}

func TestAnOrderIsAddedInTheNameOfTheUser(t *testing.T) {
	w := newWorld(t, nil)
	held := w.issue(w.alice(OrdersWrite))
	text, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "add_order", map[string]any{"item": "coffee", "quantity": 3})
	if err != nil {
		t.Fatal(err)
	}
	var got Order
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if got.ID != 2 || got.By != "https://idp.example#alice" || !slices.Equal(got.Through, []string{"orders-mcp", "desktop-agent"}) {
		t.Errorf("the order is %+v", got)
	}
	forms := w.forms("/oauth2/token")
	if len(forms) != 1 || forms[0].Get("scope") != OrdersWrite ||
		forms[0].Get("authorization_details") != `[{"type":"mcp_tool_call","tool":"add_order","arguments":{"item":"coffee","quantity":3},"once":true}]` {
		t.Errorf("asked was %v", forms)
	}
	// What changes something has a token for one use, which the API used up.
	again := APICall{API: w.api.URL(), Method: http.MethodPost, Token: w.steps.find(t, "call the API").get("Authorization").Secret, Body: []byte(`{"item":"coffee","quantity":3}`)}
	if _, err := CallAPI(t.Context(), again); !refusedAs(err, http.StatusUnauthorized) {
		t.Errorf("the second use: %v", err)
	}
}

func TestWhoIsNotLetIn(t *testing.T) {
	w := newWorld(t, nil)
	revoked := w.issue(w.alice(OrdersRead))
	w.has(revoked, func(tok *fakeToken) { tok.gone = true })
	forAPI := w.alice(OrdersRead)
	forAPI.aud = w.api.Resource()
	bent := func(name string, value any) fakeToken {
		tok := w.alice(OrdersRead, OrdersWrite)
		tok.claims = map[string]any{name: value}
		return tok
	}
	metadata := `resource_metadata="` + strings.TrimSuffix(w.mcp.URL(), "/mcp") + `/.well-known/oauth-protected-resource/mcp"`
	tests := map[string]struct {
		token     secret.String
		status    int
		challenge string
	}{
		"a token that nobody made":  {secret.New("made-up"), 401, metadata},
		"no token":                  {secret.String{}, 401, metadata},
		"a revoked token":           {revoked, 401, metadata},
		"a token for the API":       {w.issue(forAPI), 401, metadata},
		"a token without the scope": {w.issue(w.alice(OrdersRead)), 403, metadata + `, scope="orders:write"`},
		"a token without any scope": {w.issue(w.alice()), 403, metadata + `, scope="orders:write"`},

		"a token of somebody else's":     {w.issue(bent("iss", "https://other.example")), 401, metadata},
		"a token for others, in a list":  {w.issue(bent("aud", []string{"https://other.example"})), 401, metadata},
		"a token that has expired":       {w.issue(bent("exp", 1)), 401, metadata},
		"a token that does not say when": {w.issue(bent("exp", nil)), 401, metadata},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), tt.token, "add_order", map[string]any{"item": "x", "quantity": 1})
			r := (*Refusal)(nil)
			if !errors.As(err, &r) || r.Status != tt.status || r.Challenge != "Bearer "+tt.challenge {
				t.Errorf("the error is %v", err)
			}
		})
	}
	if forms := w.forms("/oauth2/token"); len(forms) > 0 {
		t.Errorf("an exchange was asked for: %v", forms)
	}
}

func TestARevokedTokenEndsInTheMiddle(t *testing.T) {
	w := newWorld(t, nil)
	held := w.issue(w.alice(OrdersRead))
	if _, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "list_orders", nil); err != nil {
		t.Fatal(err)
	}
	w.has(held, func(tok *fakeToken) { tok.gone = true })
	_, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "list_orders", nil)
	if r := (*Refusal)(nil); !errors.As(err, &r) || r.Status != http.StatusUnauthorized {
		t.Errorf("the error is %v", err)
	}
}

func TestWhatStintRefusesTheToolSays(t *testing.T) {
	w := newWorld(t, nil)
	w.set(func(f *stintFake) {
		c := f.clients["orders-mcp"]
		c.targets = nil
		f.clients["orders-mcp"] = c
	})
	_, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), w.issue(w.alice(OrdersRead)), "list_orders", nil)
	if te := (*ToolError)(nil); !errors.As(err, &te) || te.Tool != "list_orders" || !strings.Contains(te.Text, "invalid_target") {
		t.Errorf("the error is %v", err)
	}
}

func TestWithoutStintNobodyIsLetInAndNobodyIsTurnedAway(t *testing.T) {
	w := newWorld(t, nil)
	held := w.issue(w.alice(OrdersRead))
	w.set(func(f *stintFake) { f.down = true })
	_, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "list_orders", nil)
	if r := (*Refusal)(nil); !errors.As(err, &r) || r.Status != http.StatusInternalServerError {
		t.Errorf("the error is %v", err)
	}
	w.set(func(f *stintFake) { f.down = false })
	if _, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "list_orders", nil); err != nil {
		t.Errorf("later: %v", err)
	}
}

func TestATokenForOneCallIsUsedUp(t *testing.T) {
	w := newWorld(t, nil)
	tok := w.alice(OrdersRead)
	tok.once = true
	held := w.issue(tok)
	if _, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "list_orders", nil); err != nil {
		t.Fatal(err)
	}
	_, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "list_orders", nil)
	if err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("the error is %v", err)
	}
	if forms := w.forms("/oauth2/token"); len(forms) != 1 {
		t.Errorf("%d exchanges were asked for", len(forms))
	}
}

// What Stint answers is not taken on trust where it would widen what a token is
// good for.
func TestAnswersThatTheServersDoNotTake(t *testing.T) {
	set := func(path, name string, value any) func(string, map[string]any) {
		return func(p string, body map[string]any) {
			if p == path {
				body[name] = value
			}
		}
	}
	const token, introspect = "/oauth2/token", "/oauth2/introspect"
	tests := map[string]func(string, map[string]any){
		"a wider scope":                   set(token, "scope", "orders:read orders:write"),
		"another scope":                   set(token, "scope", "orders:write"),
		"no scope left":                   set(token, "scope", ""),
		"a token that is no bearer token": set(token, "token_type", "N_A"),
		"no token":                        set(token, "access_token", ""),
		"a token that is not active":      set(introspect, "active", false),
		"a token that is another":         set(introspect, "jti", "another"),
	}
	for name, bend := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.set(func(f *stintFake) { f.bend = bend })
			if text, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), w.issue(w.alice(OrdersRead)), "list_orders", nil); err == nil {
				t.Errorf("the answer is %s", text)
			}
			for _, line := range w.steps.summary() {
				if strings.Contains(line, "call the API") {
					t.Error("the API was called")
				}
			}
		})
	}
}

// An older client names no tool in a header; one that lies about it is not better
// off.
func TestScopesHoldWithoutTheHeaderToo(t *testing.T) {
	w := newWorld(t, nil)
	held := w.issue(w.alice(OrdersRead))
	for name, headers := range map[string]map[string]string{
		"no header":               {"MCP-Protocol-Version": "2025-06-18"},
		"a header of another one": {"MCP-Protocol-Version": "2025-06-18", "Mcp-Method": "tools/call", "Mcp-Name": "list_orders"},
	} {
		t.Run(name, func(t *testing.T) {
			body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add_order","arguments":{"item":"x","quantity":1}}}`
			status, text := post(t, w.mcp.URL(), held, body, headers)
			if status != http.StatusOK || !strings.Contains(text, `"isError":true`) || !strings.Contains(text, "needs the scope orders:write") {
				t.Errorf("%d %s", status, text)
			}
		})
	}
	if forms := w.forms("/oauth2/token"); len(forms) > 0 {
		t.Errorf("an exchange was asked for: %v", forms)
	}
}

// post sends JSON with a token.
func post(t *testing.T, address string, token secret.String, body string, headers map[string]string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if !token.Empty() {
		req.Header.Set("Authorization", "Bearer "+token.Reveal())
	}
	for name, value := range headers {
		req.Header.Set(name, value)
		if name == "Host" {
			req.Host = value
		}
	}
	client := newClient()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := readBody(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestWhatTheServersDoNotRead(t *testing.T) {
	w := newWorld(t, nil)
	held := w.issue(w.alice(OrdersRead))
	call := `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`
	tests := map[string]struct {
		body    string
		headers map[string]string
		status  int
	}{
		"a request":                     {call, nil, 200},
		"a page of another origin":      {call, map[string]string{"Origin": "https://evil.example"}, 403},
		"another name for this address": {call, map[string]string{"Host": "evil.example"}, 421},
		"more than is ever needed":      {`{"jsonrpc":"2.0","id":1,"method":"tools/list","x":"` + strings.Repeat("x", maxBody) + `"}`, nil, 413},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if status, text := post(t, w.mcp.URL(), held, tt.body, tt.headers); status != tt.status {
				t.Errorf("%d %s", status, text)
			}
		})
	}
}

func TestTheServerSaysWhoMakesTokensForIt(t *testing.T) {
	w := newWorld(t, nil)
	client := newClient()
	defer client.CloseIdleConnections()
	base := strings.TrimSuffix(w.mcp.URL(), "/mcp")
	m, err := oauthex.GetProtectedResourceMetadata(t.Context(), base+"/.well-known/oauth-protected-resource/mcp", w.mcp.Resource(), client)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(m.AuthorizationServers, []string{w.srv.URL}) || !slices.Equal(m.ScopesSupported, []string{OrdersRead, OrdersWrite}) {
		t.Errorf("the metadata is %+v", m)
	}
}

func TestStepsDoNotPrintSecrets(t *testing.T) {
	w := newWorld(t, nil)
	held := w.issue(w.alice(OrdersRead))
	if _, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "list_orders", nil); err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	w.steps.mu.Lock()
	for _, s := range w.steps.all {
		fmt.Fprintf(&printed, "%v %+v %#v\n", s, s, s)
	}
	w.steps.mu.Unlock()
	canaries := []string{"eyJ"}
	for _, id := range []string{"orders-mcp", "orders-api"} {
		canaries = append(canaries, w.clients[id].secret)
	}
	for _, c := range canaries {
		if strings.Contains(printed.String(), c) {
			t.Errorf("%q is printed", c)
		}
	}
	if !strings.Contains(printed.String(), OrdersRead) {
		t.Error("nothing is printed")
	}
	if got := w.steps.find(t, "exchange").get("subject_token"); !got.Secret.Equal(held) || got.Value != "" {
		t.Error("the step does not hold the token")
	}
}

func refusedAs(err error, status int) bool {
	r := (*Refusal)(nil)
	return errors.As(err, &r) && r.Status == status
}

// Whoever watches sees what went over the wire, with what is secret set apart.
func TestTheAgentsStepsAreTold(t *testing.T) {
	var seen steps
	a := Agent{Trace: seen.add}
	idp, _ := startIdP(t)
	tokens, err := a.SignIn(t.Context(), SignIn{Issuer: idp.URL(), ClientID: DesktopClient, User: "alice", Password: "alice-password"})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, nil)
	held := w.issue(w.alice(OrdersRead))
	if _, err := a.CallTool(t.Context(), w.mcp.URL(), held, "list_orders", nil); err != nil {
		t.Fatal(err)
	}
	if got := seen.find(t, "redeem"); got.Status != 200 || got.get("access_token").Value != "" || !got.get("access_token").Secret.Equal(tokens.Access) || got.get("code").Secret.Empty() {
		t.Errorf("the sign-in is told as %v", got)
	}
	if got := seen.find(t, "fill in the form"); got.get("user").Value != "alice" || got.get("password").Value != "" || got.get("password").Secret.Reveal() != "alice-password" || got.get("code").Secret.Empty() {
		t.Errorf("the form is told as %v", got)
	}
	got := seen.find(t, "tools/call")
	if got.Status != 200 || got.get("params.name").Value != "list_orders" || !got.get("Authorization").Secret.Equal(held) || !strings.Contains(got.get("result.content.text").Value, "tea") {
		t.Errorf("the call is told as %v", got)
	}
	if _, err := a.CallTool(t.Context(), w.mcp.URL(), secret.New("made-up"), "add_order", nil); err == nil {
		t.Fatal("let in")
	}
	if got := seen.all[len(seen.all)-1]; got.Status != 401 || !strings.Contains(got.get("WWW-Authenticate").Value, "resource_metadata") {
		t.Errorf("the refusal is told as %v", got)
	}
}
