// Command step1 lets in who shows a token for it, and tells the others where to get one.
package main

import (
	"bytes"
	"context"
	"encoding/json"
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

func main() {
	server := mcp.NewServer(&mcp.Implementation{Name: "orders", Version: "1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "list_orders", Description: "Lists all orders."}, listOrders)
	mcp.AddTool(server, &mcp.Tool{Name: "add_order", Description: "Adds an order."}, addOrder)
	protocol := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, &mcp.StreamableHTTPOptions{Stateless: true, JSONResponse: true})
	stint, err := client.New(client.Config{
		Issuer: os.Getenv("STINT"), Resource: os.Getenv("RESOURCE"),
		ID: "orders-mcp", Secret: client.NewSecret(os.Getenv("ORDERS_MCP_SECRET")),
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle(stint.MetadataPath(), stint.Metadata("Orders", "orders:read", "orders:write"))
	http.Handle("/mcp", stint.Protect(protocol))
	log.Fatal(http.ListenAndServe(os.Getenv("LISTEN"), nil)) //nolint:gosec // without time limits, to be short
}

func listOrders(ctx context.Context, _ *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, orders, error) {
	var out orders
	err := call(ctx, http.MethodGet, nil, &out)
	return nil, out, err
}

func addOrder(ctx context.Context, _ *mcp.CallToolRequest, in order) (*mcp.CallToolResult, order, error) {
	var out order
	err := call(ctx, http.MethodPost, in, &out)
	return nil, out, err
}

// call calls the API.
func call(ctx context.Context, method string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, os.Getenv("API")+"/orders", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+os.Getenv("API_KEY"))
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
