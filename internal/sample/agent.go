package sample

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/stint-dev/stint/internal/secret"
)

// ToolError is what a tool answers that failed: the call went well, and the text
// says what did not.
type ToolError struct {
	Tool, Text string
}

func (e *ToolError) Error() string { return e.Tool + ": " + e.Text }

// CallTool calls a tool of an MCP server with an access token, and returns the
// text of its answer. Errors: a [Refusal], with status and challenge, if the
// server did not let the call in; a [ToolError] if the tool failed.
func CallTool(ctx context.Context, server string, token secret.String, tool string, args map[string]any) (string, error) {
	client := newClient()
	client.Timeout = callTime
	show := &showing{token: token, next: newTransport()}
	defer show.next.CloseIdleConnections()
	client.Transport = show
	m := mcp.NewClient(&mcp.Implementation{Name: "sample-agent", Version: "1"}, nil)
	session, err := m.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint: server, HTTPClient: client, MaxRetries: -1, DisableStandaloneSSE: true,
	}, nil)
	if err != nil {
		return "", show.explain("connect to "+server, err)
	}
	defer func() { _ = session.Close() }()
	result, err := session.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		return "", show.explain("call "+tool, err)
	}
	var texts []string
	for _, c := range result.Content {
		if t, ok := c.(*mcp.TextContent); ok {
			texts = append(texts, t.Text)
		}
	}
	text := strings.Join(texts, "\n")
	if result.IsError {
		return "", &ToolError{tool, text}
	}
	return text, nil
}

// showing shows the token with every request, and remembers the last refusal,
// whose headers do not reach the errors of the SDK. It is given no redirects: the
// client follows none.
type showing struct {
	token secret.String
	next  *http.Transport

	mu   sync.Mutex
	last *Refusal
}

// RoundTrip implements [http.RoundTripper].
func (s *showing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+s.token.Reveal())
	resp, err := s.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = nil
	if resp.StatusCode >= http.StatusBadRequest {
		s.last = refusal(resp, nil)
	}
	return resp, nil
}

// explain adds the refusal to an error, if there was one.
func (s *showing) explain(doing string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		return fmt.Errorf("%s: %w (%w)", doing, s.last, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
