package sample

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/internal/secret"
)

// The tools, and the scope that each needs, here and behind.
const (
	toolList   = "list_orders"
	toolAdd    = "add_order"
	toolReport = "report"
)

var toolScopes = map[string]string{toolList: OrdersRead, toolAdd: OrdersWrite, toolReport: ReportsRead}

// scopes are those that there are tools for.
func (s *MCPServer) scopes() []string {
	if s.cfg.Database == nil {
		return []string{OrdersRead, OrdersWrite}
	}
	return []string{OrdersRead, OrdersWrite, ReportsRead}
}

// newTools makes the part that speaks MCP.
func (s *MCPServer) newTools() *mcp.Server {
	m := mcp.NewServer(&mcp.Implementation{Name: "sample-orders", Version: "1"}, nil)
	no := false
	reads := &mcp.ToolAnnotations{ReadOnlyHint: true, OpenWorldHint: &no}
	adds := &mcp.ToolAnnotations{DestructiveHint: &no, OpenWorldHint: &no}
	mcp.AddTool(m, &mcp.Tool{Name: toolList, Description: "Lists all orders.", Annotations: reads}, s.listOrders)
	mcp.AddTool(m, &mcp.Tool{Name: toolAdd, Description: "Adds an order.", Annotations: adds}, s.addOrder)
	if s.cfg.Database != nil {
		mcp.AddTool(m, &mcp.Tool{Name: toolReport, Description: "Reports on the orders in the warehouse.", Annotations: reads}, s.report)
	}
	return m
}

type nothing struct{}

func (s *MCPServer) listOrders(ctx context.Context, req *mcp.CallToolRequest, _ nothing) (*mcp.CallToolResult, orderList, error) {
	var out orderList
	err := s.callAPI(ctx, req, http.MethodGet, nil, &out)
	return nil, out, err
}

func (s *MCPServer) addOrder(ctx context.Context, req *mcp.CallToolRequest, in newOrder) (*mcp.CallToolResult, Order, error) {
	var out Order
	if err := in.check(); err != nil {
		return nil, out, err
	}
	err := s.callAPI(ctx, req, http.MethodPost, in, &out)
	return nil, out, err
}

// callAPI is what a tool comes to: a token for this call, and the call.
func (s *MCPServer) callAPI(ctx context.Context, req *mcp.CallToolRequest, method string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	cred, err := s.vend(ctx, req, s.cfg.APIResource, "exchange the caller's token for one for the API, and for this call")
	if err != nil {
		return err
	}
	var body []byte
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	answer, err := CallAPI(ctx, APICall{
		API: s.cfg.API, Method: method, Token: secret.New(cred.Token.Reveal()), Body: body,
		Server: s.cfg.Stint.Server, Why: "call the API", Trace: s.cfg.Stint.Trace,
	})
	if err != nil {
		return fmt.Errorf("call the API: %w", err)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("call the API: %w", err)
	}
	return nil
}

// vend asks Stint for what a tool call needs, with the scope of the tool and no other.
// Stint is told which tool is called, with which arguments: what it gives is good for
// this call alone, the policy may look at the arguments, and what changes something is
// good for one use.
func (s *MCPServer) vend(ctx context.Context, req *mcp.CallToolRequest, resource, why string) (*client.Credential, error) {
	tool := req.Params.Name
	scope := toolScopes[tool]
	if req.Extra == nil || req.Extra.TokenInfo == nil {
		return nil, errors.New("the call has no token")
	}
	// A token that is for one call is used up by this: whoever comes second is refused.
	held, _ := req.Extra.TokenInfo.Extra[heldToken].(*client.Token)
	if held == nil || !held.Has(scope) {
		return nil, fmt.Errorf("the token is not good for %s: it needs the scope %s", tool, scope)
	}
	call := client.Call{Token: held, Resource: resource, Scopes: []string{scope}, Tool: tool, Arguments: req.Params.Arguments, Once: tool == toolAdd}
	cred, err := s.stint.vend(ctx, call, why)
	refused, approval, link := (*client.Refused)(nil), (*client.NeedsApproval)(nil), (*client.NeedsLink)(nil)
	switch {
	case err == nil:
		return cred, nil
	case errors.As(err, &approval):
		return nil, fmt.Errorf("a person has to approve this call: %s", approval.URL)
	case errors.As(err, &link):
		return nil, fmt.Errorf("an account has to be linked for this call: %s", link.URL)
	case errors.As(err, &refused):
		return nil, fmt.Errorf("stint refuses %s at %s: %w", scope, resource, refused)
	}
	s.log.WarnContext(ctx, "nothing was vended", "error", err)
	return nil, errors.New("nothing could be had for this call; try again")
}

// APICall is a call of the API.
type APICall struct {
	// API is its URL.
	API string
	// Method is GET for the orders, POST to add one, which Body is then.
	Method string
	Token  secret.String
	Body   []byte
	// Server and Why are who calls, and for what, in the step that Trace is told of;
	// it may be nil.
	Server, Why string
	Trace       func(Step)
}

// CallAPI calls the API with a token, and returns the body of a good answer. Others
// are a [Refusal].
func CallAPI(ctx context.Context, c APICall) (answer []byte, err error) {
	step := Step{
		Server: c.Server, Text: c.Why, Method: c.Method, URL: c.API + "/orders", Began: time.Now(),
		Request: append([]Field{{Name: "Authorization", Value: "Bearer ", Secret: c.Token}}, answerFields(c.Body)...),
	}
	defer func() {
		if step.Status == 0 {
			step.Err = err
		}
		trace(c.Trace).step(step)
	}()
	req, err := http.NewRequestWithContext(ctx, c.Method, step.URL, bytes.NewReader(c.Body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.Token.Reveal())
	if c.Body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	client := newClient()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if answer, err = readBody(resp.Body); err != nil {
		return nil, err
	}
	step.Status, step.Answer = resp.StatusCode, answerFields(answer)
	if h := resp.Header.Get("WWW-Authenticate"); h != "" {
		step.Answer = append([]Field{{Name: "WWW-Authenticate", Value: h}}, step.Answer...)
	}
	if resp.StatusCode/100 != 2 {
		return nil, refusal(resp, answer)
	}
	return answer, nil
}

// reportResult is what the tool report shows.
type reportResult struct {
	Login   string     `json:"login" jsonschema:"the database role that the report was read as"`
	Expires time.Time  `json:"expires" jsonschema:"when that role ends"`
	Columns []string   `json:"columns"`
	Rows    [][]string `json:"rows"`
}

// report asks Stint for a database login of its own, and reads with it. The login
// ends by itself soon, or when somebody takes it back.
func (s *MCPServer) report(ctx context.Context, req *mcp.CallToolRequest, _ nothing) (*mcp.CallToolResult, reportResult, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	cred, err := s.vend(ctx, req, s.cfg.Database.Resource, "exchange the caller's token for a database login")
	if err != nil {
		return nil, reportResult{}, err
	}
	out, err := s.query(ctx, secret.New(cred.Token.Reveal()))
	if err != nil {
		return nil, reportResult{}, fmt.Errorf("read the report: %w", err)
	}
	out.Expires = cred.Expires.UTC().Truncate(time.Second)
	return nil, *out, nil
}
