package sample

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/stint-dev/stint/internal/secret"
)

// Agent is the software on somebody's desktop: it signs them in, and calls tools
// for them. The zero value is one whose steps nobody is told of.
type Agent struct {
	// Trace is told of what goes over the wire; it may be nil.
	Trace func(Step)
}

// ToolError is what a tool answers that failed: the call went well, and the text
// says what did not.
type ToolError struct {
	Tool, Text string
}

func (e *ToolError) Error() string { return e.Tool + ": " + e.Text }

// CallTool calls a tool of an MCP server with an access token, and returns the
// text of its answer. Errors: a [Refusal], with status and challenge, if the
// server did not let the call in; a [ToolError] if the tool failed.
func (a Agent) CallTool(ctx context.Context, server string, token secret.String, tool string, args map[string]any) (string, error) {
	client := newClient()
	client.Timeout = callTime
	show := &showing{token: token, trace: a.Trace, next: newTransport()}
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
	if args == nil {
		args = map[string]any{}
	}
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
	trace trace
	next  *http.Transport

	mu   sync.Mutex
	last *Refusal
}

// RoundTrip implements [http.RoundTripper].
func (s *showing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+s.token.Reveal())
	step := Step{
		Server: "agent", Method: r.Method, URL: r.URL.String(), Began: time.Now(),
		Request: []Field{{Name: "Authorization", Value: "Bearer ", Secret: s.token}},
	}
	if err := s.describe(r, &step); err != nil {
		return nil, err
	}
	resp, err := s.next.RoundTrip(r)
	if err != nil {
		step.Err = err
		s.trace.step(step)
		return nil, err
	}
	body, err := readBody(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	s.mu.Lock()
	s.last = nil
	if resp.StatusCode >= http.StatusBadRequest {
		s.last = refusal(resp, nil)
	}
	s.mu.Unlock()
	step.Status, step.Answer = resp.StatusCode, rpcAnswer(body)
	if c := resp.Header.Get("WWW-Authenticate"); c != "" {
		step.Answer = append([]Field{{Name: "WWW-Authenticate", Value: c}}, step.Answer...)
	}
	s.trace.step(step)
	return resp, nil
}

// describe puts the method of a message and its parameters into a step.
func (s *showing) describe(r *http.Request, step *Step) error {
	step.Text = "end the connection"
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	body, err := readBody(r.Body)
	_ = r.Body.Close()
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var message struct {
		Method string `json:"method"`
		Params struct {
			Name      string          `json:"name"`
			Arguments json.RawMessage `json:"arguments"`
		} `json:"params"`
	}
	if err := json.Unmarshal(body, &message); err != nil {
		return err
	}
	step.Text = message.Method
	step.Request = append(step.Request, Field{Name: "method", Value: message.Method})
	if message.Params.Name != "" {
		step.Request = append(step.Request, Field{Name: "params.name", Value: message.Params.Name}, Field{Name: "params.arguments", Value: string(message.Params.Arguments)})
	}
	return nil
}

// rpcAnswer is the text of a tool's answer, if a message has one, else nothing.
func rpcAnswer(body []byte) (out []Field) {
	var message struct {
		Result struct {
			Content []struct {
				Text string `json:"text"`
			} `json:"content"`
			IsError bool `json:"isError"`
		} `json:"result"`
	}
	if err := json.Unmarshal(body, &message); err != nil {
		return nil
	}
	if message.Result.IsError {
		out = append(out, Field{Name: "result.isError", Value: "true"})
	}
	for _, c := range message.Result.Content {
		out = append(out, Field{Name: "result.content.text", Value: c.Text})
	}
	return out
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
