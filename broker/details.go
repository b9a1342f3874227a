package broker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/stint-dev/stint/internal/strictjson"
)

// ToolCall is the type of authorization details (RFC 9396) that bind a request
// to one MCP tool call.
const ToolCall = "mcp_tool_call"

// Bounds of authorization details, in bytes and objects.
const (
	maxDetails     = 32 << 10
	maxArguments   = 16 << 10
	maxDetailItems = 8
)

// details are the authorization details of a request.
type details struct {
	tool      string
	arguments map[string]any // never kept, never logged
	digest    string         // SHA-256 of their canonical form, in hexadecimal
	once      bool
	provider  []map[string]any // for the target's provider
	answer    json.RawMessage  // what goes back, for a token
}

// toolCall is {"type":"mcp_tool_call", ...}.
type toolCall struct {
	Type      string          `json:"type"`
	Tool      string          `json:"tool"`
	Arguments json.RawMessage `json:"arguments"`
	Once      bool            `json:"once"`
	Locations []string        `json:"locations"`
}

// readDetails parses authorization details for a target, and holds them to the
// tool call that the subject token is bound to. The error has the code BadDetails
// and may be shown; what was read until then is returned with it.
func (r *Registry) readDetails(text string, at Target, subject *Token) (d details, err error) {
	if text == "" {
		return d, d.bind(at, subject)
	}
	bad := func(format string, args ...any) (details, error) {
		err := fmt.Errorf(format, args...)
		return d, Fail(BadDetails, err, "authorization_details: "+err.Error())
	}
	var items []json.RawMessage
	if len(text) > maxDetails {
		return bad("more than %d bytes", maxDetails)
	}
	if err := strictjson.Decode([]byte(text), &items); err != nil {
		return bad("no JSON array of objects: %v", err)
	}
	if len(items) == 0 || len(items) > maxDetailItems {
		return bad("1 to %d objects are wanted", maxDetailItems)
	}
	want := ""
	if at.Provider != "" {
		want = r.Providers[at.Provider].Describe().Details
	}
	for _, item := range items {
		var kind struct {
			Type string `json:"type"`
		}
		if err := strictjson.DecodeKnown(item, &kind); err != nil || kind.Type == "" {
			return bad("each is an object with a type")
		}
		switch {
		case kind.Type == ToolCall && d.tool == "":
			if err := d.readToolCall(item, at); err != nil {
				return bad("%s: %v", ToolCall, err)
			}
		case kind.Type == ToolCall:
			return bad("more than one %s", ToolCall)
		case kind.Type == want:
			var object map[string]any
			if err := strictjson.Decode(item, &object); err != nil {
				return bad("%v", err)
			}
			delete(object, "type")
			d.provider = append(d.provider, object)
		default:
			return bad("type %q does not exist for this target", printable(kind.Type))
		}
	}
	return d, d.bind(at, subject)
}

func (d *details) readToolCall(item []byte, at Target) error {
	var call toolCall
	if err := strictjson.Decode(item, &call); err != nil {
		return err
	}
	if call.Tool == "" || len(call.Tool) > 128 {
		return fmt.Errorf("tool is a text of 1 to 128 bytes")
	}
	for _, l := range call.Locations {
		if l != at.Resource {
			return fmt.Errorf("location %q is not the target", printable(l))
		}
	}
	d.tool, d.once = call.Tool, call.Once
	if len(call.Arguments) == 0 {
		return nil
	}
	if len(call.Arguments) > maxArguments {
		return fmt.Errorf("arguments of more than %d bytes", maxArguments)
	}
	if err := strictjson.Decode(call.Arguments, &d.arguments); err != nil || d.arguments == nil {
		return fmt.Errorf("arguments are no object")
	}
	canonical, err := strictjson.Canonical(call.Arguments)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(canonical)
	d.digest = hex.EncodeToString(sum[:])
	return nil
}

// bind holds the request to the tool call that the subject token is bound to,
// and prepares what goes back. What is made from a token for one use is for one
// use as well.
func (d *details) bind(at Target, t *Token) error {
	if t != nil && t.Ours && t.Stint.Tool != "" {
		held := t.Stint
		switch {
		case d.tool == "":
			d.tool = held.Tool
		case d.tool != held.Tool:
			return Fail(BadDetails, fmt.Errorf("the token is for the tool %s, not %s", held.Tool, d.tool), "authorization_details: the subject token is for another tool call")
		}
		if held.Arguments != "" && d.digest != "" && d.digest != held.Arguments {
			return Fail(BadDetails, fmt.Errorf("the token is for arguments %s, not %s", held.Arguments, d.digest), "authorization_details: the subject token is for another tool call")
		}
		if d.digest == "" {
			d.digest = held.Arguments
		}
		d.once = d.once || held.Once
	}
	if d.tool == "" {
		return nil
	}
	answer := map[string]any{"type": ToolCall, "tool": d.tool}
	if d.digest != "" {
		answer["arguments_digest"] = "sha-256:" + d.digest
	}
	if d.once && at.Provider == "" { // an upstream does not count the uses of a credential
		answer["once"] = true
	}
	encoded, err := strictjson.Encode([]any{answer})
	d.answer = encoded
	return err
}
