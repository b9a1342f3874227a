// Command step3 says which tool is called, with which arguments: what it gets is good for
// this call alone, and for a tool that changes something once. Where a person has to do
// something first, it says what.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/stint-dev/stint/client"
)

type order struct {
	ID       int    `json:"id,omitempty"`
	Item     string `json:"item"`
	Quantity int    `json:"quantity"`
}

type orders struct {
	Orders []order `json:"orders"`
}

var stint *client.Client

func main() {
	server := mcp.NewServer(&mcp.Implementation{Name: "orders", Version: "1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "list_orders", Description: "Lists all orders."}, listOrders)
	mcp.AddTool(server, &mcp.Tool{Name: "add_order", Description: "Adds an order."}, addOrder)
	protocol := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, &mcp.StreamableHTTPOptions{Stateless: true, JSONResponse: true})
	var err error
	stint, err = client.New(client.Config{
		Issuer: os.Getenv("STINT"), Resource: os.Getenv("RESOURCE"),
		ID: "orders-mcp", Secret: client.NewSecret(os.Getenv("ORDERS_MCP_SECRET")),
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle(stint.MetadataPath(), stint.Metadata("Orders", "orders:read", "orders:write"))
	http.Handle("/mcp", stint.ProtectToVend(protocol))
	log.Fatal(http.ListenAndServe(os.Getenv("LISTEN"), nil)) //nolint:gosec // without time limits, to be short
}

func listOrders(ctx context.Context, req *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, orders, error) {
	var out orders
	err := call(ctx, need{req, "orders:read", false}, http.MethodGet, nil, &out)
	return nil, out, err
}

func addOrder(ctx context.Context, req *mcp.CallToolRequest, in order) (*mcp.CallToolResult, order, error) {
	var out order
	err := call(ctx, need{req, "orders:write", true}, http.MethodPost, in, &out)
	return nil, out, err
}

// need is what a call of a tool needs.
type need struct {
	req   *mcp.CallToolRequest
	scope string
	once  bool
}

// call calls the API, in the name of whoever called us.
func call(ctx context.Context, n need, method string, in, out any) error {
	cred, err := stint.Vend(ctx, client.Call{
		Resource: os.Getenv("API"), Scopes: []string{n.scope},
		Tool: n.req.Params.Name, Arguments: n.req.Params.Arguments, Once: n.once,
	})
	approval, link, down := (*client.NeedsApproval)(nil), (*client.NeedsLink)(nil), (*client.Unavailable)(nil)
	switch {
	case errors.As(err, &approval):
		return fmt.Errorf("somebody has to approve this first: %s", approval.URL)
	case errors.As(err, &link):
		return fmt.Errorf("link your account first: %s", link.URL)
	case errors.As(err, &down):
		return errors.New("not now; try again in a moment")
	case err != nil:
		return err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, os.Getenv("API")+"/orders", bytes.NewReader(body))
	if err != nil {
		return err
	}
	cred.Authorize(req)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the API answers %s", resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
