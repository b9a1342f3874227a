package clienttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stint-dev/stint/client"
)

// World is a Stint that [Run] tests the client against: a real one, or a [Broker].
type World struct {
	// Client is the configuration of the server under test.
	Client client.Config
	// Token returns a caller's token for that server, with scopes of its resource, for
	// one call or for several.
	Token func(t testing.TB, once bool, scopes ...string) string
	// Scope is a scope of the server's resource that callers can have.
	Scope string
	// API is a resource that the server may ask for, with Read, a scope that callers
	// get there, and Tool, a tool whose calls need that scope; its one argument is id, a
	// text.
	API, Read, Tool string
	// Revoke ends a caller's token, as an administrator does.
	Revoke func(t testing.TB, raw string)
}

// Run holds a client to what it promises. The fake and the real Stint pass the same.
func Run(t *testing.T, w World) {
	c, err := client.New(w.Client)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	verified := func(t *testing.T) *client.Token {
		t.Helper()
		tok, err := c.Verify(ctx, w.Token(t, false, w.Scope))
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	t.Run("a caller's token is verified", func(t *testing.T) {
		tok := verified(t)
		if tok.Subject == "" || tok.ID == "" || !tok.Has(w.Scope) || tok.Has("no:such") || tok.Once {
			t.Errorf("%+v", tok)
		}
		if err := c.Introspect(ctx, tok); err != nil {
			t.Error(err)
		}
	})
	t.Run("a changed token is not", func(t *testing.T) {
		raw := w.Token(t, false, w.Scope)
		for name, changed := range map[string]string{
			"nothing": "", "another signature": raw[:len(raw)-6] + "AAAAAA", "no signature": raw[:strings.LastIndexByte(raw, '.')+1], "a blank": raw + " ",
		} {
			_, err := c.Verify(ctx, changed)
			if bad := (*client.InvalidToken)(nil); !errors.As(err, &bad) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	t.Run("a token for somebody else is not", func(t *testing.T) {
		cred, err := c.Vend(ctx, client.Call{Token: verified(t), Resource: w.API, Scopes: []string{w.Read}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Verify(ctx, cred.Token.Reveal())
		if bad := (*client.InvalidToken)(nil); !errors.As(err, &bad) {
			t.Error(err)
		}
	})
	t.Run("a credential is vended for one call", func(t *testing.T) {
		for name, call := range map[string]client.Call{
			"by scope": {Resource: w.API, Scopes: []string{w.Read}}, "by tool": {Resource: w.API, Tool: w.Tool, Arguments: map[string]any{"id": "7"}},
			"by tool, with no arguments": {Resource: w.API, Tool: w.Tool, Arguments: json.RawMessage(nil)},
		} {
			call.Token = verified(t)
			cred, err := c.Vend(ctx, call)
			if err != nil || !cred.Bearer || len(cred.Scopes) != 1 || cred.Scopes[0] != w.Read || cred.Expires.IsZero() {
				t.Errorf("%s: %+v, %v", name, cred, err)
			}
		}
	})
	t.Run("what is not granted is refused", func(t *testing.T) {
		for want, call := range map[string]client.Call{
			"invalid_scope": {Resource: w.API, Scopes: []string{"no:such"}}, "invalid_target": {Resource: "https://nobody.example/", Scopes: []string{w.Read}},
		} {
			call.Token = verified(t)
			_, err := c.Vend(ctx, call)
			if r := (*client.Refused)(nil); !errors.As(err, &r) || r.Code != want || r.Status != http.StatusBadRequest {
				t.Errorf("%s: %v", want, err)
			}
		}
	})
	t.Run("a token for one call is used once", func(t *testing.T) { once(t, c, w) })
	t.Run("a revoked token is worth nothing", func(t *testing.T) {
		raw := w.Token(t, false, w.Scope)
		tok, err := c.Verify(ctx, raw)
		if err != nil {
			t.Fatal(err)
		}
		w.Revoke(t, raw)
		if bad := (*client.InvalidToken)(nil); !errors.As(c.Introspect(ctx, tok), &bad) {
			t.Error("it is still good")
		}
		_, err = c.Vend(ctx, client.Call{Token: tok, Resource: w.API, Scopes: []string{w.Read}})
		if r := (*client.Refused)(nil); !errors.As(err, &r) || r.Code != "invalid_request" {
			t.Errorf("something is vended for it: %v", err)
		}
	})
	t.Run("a credential is given back", func(t *testing.T) {
		cred, err := c.Vend(ctx, client.Call{Token: verified(t), Resource: w.API, Scopes: []string{w.Read}})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.Return(ctx, cred), c.Return(ctx, cred)); err != nil {
			t.Error(err)
		}
	})
	t.Run("a token is exchanged that was not verified", func(t *testing.T) { exchanged(t, c, w) })
	t.Run("a wrong secret is refused", func(t *testing.T) {
		cfg := w.Client
		cfg.Secret, cfg.Key = client.NewSecret("wrong"), nil
		other, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		_, err = other.Vend(ctx, client.Call{Token: verified(t), Resource: w.API, Scopes: []string{w.Read}})
		if r := (*client.Refused)(nil); !errors.As(err, &r) || r.Code != "invalid_client" || r.Status != http.StatusUnauthorized {
			t.Error(err)
		}
	})
	t.Run("a handler is protected", func(t *testing.T) { protected(t, c, w) })
}

func exchanged(t *testing.T, c *client.Client, w World) {
	ctx, raw := t.Context(), w.Token(t, false, w.Scope)
	x := client.Exchange{Subject: client.NewSecret(raw), Resources: []string{w.API}, Scopes: []string{w.Read}}
	cred, err := c.Exchange(ctx, x)
	if err != nil {
		t.Fatal(err)
	}
	if !cred.Bearer || cred.Type != client.TypeAccessToken || !strings.Contains(cred.Answer().Reveal(), `"`+cred.Token.Reveal()+`"`) {
		t.Errorf("%+v", cred)
	}
	if text := fmt.Sprintf("%+v %#v", *cred, x); strings.Contains(text, cred.Token.Reveal()) || strings.Contains(text, raw) {
		t.Error("it prints a token")
	}
	x.Details, x.Scopes = json.RawMessage(`[{"type":"mcp_tool_call","tool":"`+w.Tool+`","arguments":{"id":"7"}}]`), nil
	if cred, err = c.Exchange(ctx, x); err != nil || len(cred.Scopes) != 1 || cred.Scopes[0] != w.Read {
		t.Errorf("by tool: %+v, %v", cred, err)
	}
	for name, text := range map[string]string{
		"no array": `7`, "no tool": `[{"type":"mcp_tool_call","once":true}]`, "another type": `[{"type":"other","tool":"` + w.Tool + `"}]`,
		"arguments that are null": `[{"type":"mcp_tool_call","tool":"` + w.Tool + `","arguments":null}]`,
	} {
		changed := x
		changed.Details, changed.Scopes = json.RawMessage(text), []string{w.Read}
		_, err := c.Exchange(ctx, changed)
		if r := (*client.Refused)(nil); !errors.As(err, &r) || r.Code != "invalid_authorization_details" {
			t.Errorf("details with %s: %v", name, err)
		}
	}
	for want, change := range map[string]func(*client.Exchange){
		"invalid_request": func(x *client.Exchange) { x.SubjectType = "urn:example:none" },
		"invalid_target":  func(x *client.Exchange) { x.Resources = append(x.Resources, "https://nobody.example/") },
	} {
		changed := x
		changed.Resources = []string{w.API}
		change(&changed)
		_, err := c.Exchange(ctx, changed)
		if r := (*client.Refused)(nil); !errors.As(err, &r) || r.Code != want {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := c.Exchange(ctx, client.Exchange{Actor: x.Subject, Resources: x.Resources}); err == nil {
		t.Error("an actor acts for nobody")
	}
}

func once(t *testing.T, c *client.Client, w World) {
	ctx := t.Context()
	bad := func(what string, err error) {
		t.Helper()
		if i := (*client.InvalidToken)(nil); !errors.As(err, &i) {
			t.Errorf("%s: %v", what, err)
		}
	}
	raw := w.Token(t, true, w.Scope)
	if tok, err := c.Verify(ctx, raw); err != nil || !tok.Once {
		t.Fatal(tok, err)
	}
	again, err := c.Verify(ctx, raw)
	if bad("verified again", err); again != nil {
		t.Error("and there is a token for whoever overlooks the error")
	}

	// Vending uses it up as well.
	raw = w.Token(t, true, w.Scope)
	tok, err := c.VerifyToVend(ctx, raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Vend(ctx, client.Call{Token: tok, Resource: w.API, Scopes: []string{w.Read}}); err != nil {
		t.Fatal(err)
	}
	_, err = c.Verify(ctx, raw)
	bad("verified after it was vended for", err)
	_, err = c.Vend(ctx, client.Call{Token: tok, Resource: w.API, Scopes: []string{w.Read}})
	if r := (*client.Refused)(nil); !errors.As(err, &r) {
		t.Errorf("vended for again: %v", err)
	}
}

func protected(t *testing.T, c *client.Client, w World) {
	h := c.Protect(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if _, err := c.Vend(context.WithoutCancel(r.Context()), client.Call{Resource: w.API, Scopes: []string{w.Read}}); err != nil {
			t.Error(err)
		}
	}), w.Scope)
	for name, tc := range map[string]struct {
		header    []string
		status    int
		challenge string
	}{
		"without a token":     {nil, 401, `Bearer resource_metadata="`},
		"with two":            {[]string{"Bearer a", "Bearer b"}, 401, `Bearer resource_metadata="`},
		"with a bad one":      {[]string{"Bearer abc"}, 401, `error="invalid_token"`},
		"with another scheme": {[]string{"Basic YTpi"}, 401, `Bearer resource_metadata="`},
		"with a good one":     {[]string{"Bearer " + w.Token(t, false, w.Scope)}, 200, ""},
		"in small letters":    {[]string{"bearer " + w.Token(t, false, w.Scope)}, 200, ""},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
		r.Header["Authorization"] = tc.header
		out := httptest.NewRecorder()
		h.ServeHTTP(out, r)
		if out.Code != tc.status || !strings.Contains(out.Header().Get("WWW-Authenticate"), tc.challenge) {
			t.Errorf("%s: %d %v", name, out.Code, out.Header())
		}
	}
	narrow := c.Protect(http.NotFoundHandler(), w.Scope, "no:such")
	show := func(h http.Handler, raw string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
		r.Header.Set("Authorization", "Bearer "+raw)
		out := httptest.NewRecorder()
		h.ServeHTTP(out, r)
		return out
	}
	out := show(narrow, w.Token(t, false, w.Scope))
	if got := out.Header().Get("WWW-Authenticate"); out.Code != 403 || !strings.Contains(got, `error="insufficient_scope"`) || !strings.Contains(got, `scope="`+w.Scope+` no:such"`) {
		t.Errorf("without a scope: %d %s", out.Code, got)
	}

	// Who is refused for a scope keeps a token for one call; who is let in does not.
	single, open := w.Token(t, true, w.Scope), c.Protect(http.NotFoundHandler(), w.Scope)
	for i, step := range []struct {
		at   http.Handler
		want int
	}{{narrow, 403}, {open, 404}, {open, 401}} {
		if out := show(step.at, single); out.Code != step.want {
			t.Errorf("request %d with a token for one call: %d, want %d", i+1, out.Code, step.want)
		}
	}
}
