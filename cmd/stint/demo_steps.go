package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/secret"
)

// scene is one step of the demonstration.
type scene struct {
	title, text string
	play        func(ctx context.Context) error
}

// steps are the demonstration, in order. What a text says, its play checks.
func (d *demo) steps() []scene {
	all := []scene{
		{"Alice signs in",
			"She uses an agent on her desktop, which has her sign in at the company's identity provider, in her browser.",
			d.signIn},
		{"Her agent gets a token for the MCP server",
			"It shows Stint the token of her sign-in and says what it wants: the scope orders:read at the MCP server. Her group may have that.",
			d.tokenForMCP},
		{"One tool call",
			"The agent calls the tool list_orders. The MCP server has no rights at the API. It exchanges the token that it was shown for one of its own: " +
				"for the API, for this tool call, in Alice's name.",
			d.toolCall},
		{"Nothing wider comes of it",
			"Suppose that the MCP server has been broken into. Whoever has its memory tries what he can: to write with the token for the API, to show the " +
				"API another token, to ask Stint for more than Alice's agent asked for.",
			d.nothingWider},
		{"Writing is decided call by call",
			"Carol is a maintainer and may add orders, of at most 100 pieces: a condition in the policy looks at the arguments of the call. What she is given is good for that call, once.",
			d.callByCall},
	}
	if d.box.Warehouse != 0 {
		all = append(all, scene{"A database login, for one report",
			"The tool report needs the warehouse, a PostgreSQL. The MCP server has no password for it: for the call, Stint makes a login that can read one table.",
			d.lendLogin})
	}
	taken := "Everything that was made from it ends at once: "
	if d.box.Warehouse != 0 {
		taken += "tokens, the database login, and the connection that is open with it."
	} else {
		taken += "her tokens, and those that others hold in her name."
	}
	return append(all,
		scene{"Bob is refused, and it can be said why",
			"Bob is in no group. He is told no more than that. Whoever runs Stint asks `stint explain`, which decides by the same code and shows each step.",
			d.refuseBob},
		scene{"Alice's laptop is stolen",
			"Her session is revoked, as `stint revoke` does it. " + taken,
			d.takeBack},
		scene{"The record",
			"Each request is in the audit record before its answer leaves, whatever became of it. As `stint audit tail` shows it:",
			d.record},
	)
}

// signedIn signs somebody in.
func (d *demo) signedIn(ctx context.Context, name string) (secret.String, *payload, error) {
	u := d.box.user(name)
	tokens, err := d.agent.SignIn(ctx, sample.SignIn{Issuer: d.box.IdP, ClientID: sample.DesktopClient, User: u.Name, Password: u.Password})
	if err != nil {
		return secret.String{}, nil, err
	}
	p, err := payloadOf(tokens.Access)
	return tokens.Access, p, err
}

// forMCP has the agent exchange a sign-in for a token for the MCP server.
func (d *demo) forMCP(ctx context.Context, signIn secret.String, scope ...string) (secret.String, *payload, error) {
	cred, err := d.desktop.Exchange(ctx, client.Exchange{
		Subject: client.NewSecret(signIn.Reveal()), Resources: []string{d.box.MCP}, Scopes: scope,
	}, "exchange the sign-in for a token for the MCP server")
	if err != nil {
		return secret.String{}, nil, err
	}
	token := secret.New(cred.Token.Reveal())
	p, err := payloadOf(token)
	return token, p, err
}

func (d *demo) call(ctx context.Context, token secret.String, tool string, args map[string]any) (string, error) {
	return d.agent.CallTool(ctx, d.box.MCP, token, tool, args)
}

// api calls the API, as somebody who has a token.
func (d *demo) api(ctx context.Context, token secret.String, method, who, why string) error {
	call := sample.APICall{API: d.box.API, Method: method, Token: token, Server: who, Why: why, Trace: d.see}
	if method == http.MethodPost {
		call.Body = []byte(`{"item":"gold","quantity":1}`)
	}
	_, err := sample.CallAPI(ctx, call)
	return err
}

// refused states that a request was refused in one way and no other.
func (d *demo) refused(err error, status int, word, text string) {
	r, asked := (*sample.Refusal)(nil), (*client.Refused)(nil)
	ok := errors.As(err, &r) && r.Status == status && (r.Code == word || word == "" || strings.Contains(r.Challenge, word)) ||
		errors.As(err, &asked) && asked.Status == status && asked.Code == word
	d.that(ok, text, fmt.Sprintf("the answer is %v", err))
}

func (d *demo) signIn(ctx context.Context) error {
	token, p, err := d.signedIn(ctx, "alice")
	if err != nil {
		return err
	}
	d.aliceSignIn = token
	d.that(p.Subject == "alice" && slices.Equal(p.Groups, []string{"engineering"}), "The token says who she is, alice, and her group, engineering.", p)
	d.that(p.audience() == d.box.Stint && p.Scope == "openid", "It is for Stint, and says nothing of what she may do.", p)
	return nil
}

func (d *demo) tokenForMCP(ctx context.Context) error {
	token, p, err := d.forMCP(ctx, d.aliceSignIn, sample.OrdersRead)
	if err != nil {
		return err
	}
	d.aliceToken = token
	d.that(p.audience() == d.box.MCP && p.Scope == sample.OrdersRead, "The token is for the MCP server and for nobody else, and good for orders:read.", p)
	d.that(p.Subject == d.box.IdP+"#alice" && slices.Equal(p.actors(), []string{"desktop"}), "It speaks for Alice (sub), and says that her agent acts for her (act).", p)
	d.that(p.life() > 0 && p.life() <= 5*time.Minute, "It lives for 5 minutes, as the mapping of the MCP server has it.", p.life())
	return nil
}

func (d *demo) toolCall(ctx context.Context) error {
	text, err := d.call(ctx, d.aliceToken, "list_orders", nil)
	if err != nil {
		return err
	}
	orders, err := ordersOf(text)
	if err != nil {
		return err
	}
	sent, err := d.find("MCP server", "call the API")
	if err != nil {
		return err
	}
	d.apiToken = sent.Request[0].Secret
	p, err := payloadOf(d.apiToken)
	if err != nil {
		return err
	}
	d.that(len(orders) == 2, "The tool answered with the two orders that the API has.", text)
	d.that(!d.apiToken.Equal(d.aliceToken) && p.audience() == d.box.API, "The API was never shown the agent's token, but one that is for the API.", p)
	d.that(p.Scope == sample.OrdersRead && p.life() <= time.Minute && strings.Contains(string(p.Details), `"list_orders"`),
		"That one is good for orders:read, for a minute at most, and for a call of list_orders.", p)
	d.that(p.Subject == d.box.IdP+"#alice" && slices.Equal(p.actors(), []string{"orders-mcp", "desktop"}),
		"It says in whose name, and through whom: Alice, by the MCP server, for her agent.", p)
	return nil
}

func ordersOf(text string) ([]sample.Order, error) {
	var list struct {
		Orders []sample.Order `json:"orders"`
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("the answer of list_orders: %w", err)
	}
	return list.Orders, nil
}

func (d *demo) nothingWider(ctx context.Context) error {
	err := d.api(ctx, d.apiToken, http.MethodPost, "intruder", "add an order with the token for reading")
	d.refused(err, http.StatusForbidden, "insufficient_scope", "With the token for the API, orders can be read, and not added.")
	err = d.api(ctx, d.aliceToken, http.MethodGet, "intruder", "show the API the token that is for the MCP server")
	d.refused(err, http.StatusUnauthorized, "invalid_token", "The token for the MCP server opens nothing at the API.")
	more := func(resource, scope, why string) error {
		held := client.NewSecret(d.aliceToken.Reveal())
		_, err := d.thief.Exchange(ctx, client.Exchange{Subject: held, Resources: []string{resource}, Scopes: []string{scope}}, why)
		return err
	}
	err = more(d.box.API, sample.OrdersWrite, "ask for orders:write with a token for orders:read")
	d.refused(err, http.StatusBadRequest, "invalid_scope", "Stint gives the MCP server no more than the token it holds is worth.")
	err = more("https://payroll.example", sample.OrdersRead, "ask for a token for something else")
	d.refused(err, http.StatusBadRequest, "invalid_target", "And nothing for places that are none of its business.")
	return nil
}

func (d *demo) callByCall(ctx context.Context) error {
	signIn, _, err := d.signedIn(ctx, "carol")
	if err != nil {
		return err
	}
	if d.carolToken, _, err = d.forMCP(ctx, signIn, sample.OrdersRead, sample.OrdersWrite); err != nil {
		return err
	}
	text, err := d.call(ctx, d.carolToken, "add_order", map[string]any{"item": "black tea", "quantity": 5})
	if err != nil {
		return err
	}
	var added sample.Order
	if err := json.Unmarshal([]byte(text), &added); err != nil {
		return fmt.Errorf("the answer of add_order: %w", err)
	}
	sent, err := d.find("MCP server", "call the API")
	if err != nil {
		return err
	}
	d.that(added.By == d.box.IdP+"#carol" && slices.Equal(added.Through, []string{"orders-mcp", "desktop"}),
		"Five pieces are ordered, and the API has noted in whose name, and through whom.", text)
	again := d.api(ctx, sent.Request[0].Secret, http.MethodPost, "intruder", "use the token of that call again")
	d.refused(again, http.StatusUnauthorized, "invalid_token", "The token for the API that this took is used up: a second use is refused.")
	_, err = d.call(ctx, d.carolToken, "add_order", map[string]any{"item": "black tea", "quantity": 500})
	te := (*sample.ToolError)(nil)
	d.that(errors.As(err, &te) && strings.Contains(te.Text, "invalid_scope"), "500 pieces are refused, by Stint: the MCP server got no token for that.", err)
	if text, err = d.call(ctx, d.carolToken, "list_orders", nil); err != nil {
		return err
	}
	orders, err := ordersOf(text)
	d.that(err == nil && len(orders) == 3, "There are three orders now, and no more.", text)
	return nil
}
