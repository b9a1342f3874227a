package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
)

// guide is docs/mcp-servers.md, whose steps are programs beside it.
const guide = "../../docs/mcp-servers"

// stepped is a server of the guide that runs in a sandbox, in the place of its own.
type stepped struct {
	*testing.T
	box *sandbox
	url string
}

// runServer starts a program of the guide.
func runServer(t *testing.T, box *sandbox, name string, args ...string) *stepped {
	t.Helper()
	listen := address(freePort(t))
	cmd := exec.CommandContext(t.Context(), name, args...)
	var said lockedBuffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Env = append(os.Environ(), "LISTEN="+listen, "STINT="+box.Stint, "RESOURCE="+box.MCP, "API="+box.API,
		"ORDERS_MCP_SECRET="+box.MCPSecret.Reveal(), "API_KEY=a-key-with-all-rights")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, said.String())
		}
	})
	for range 200 {
		if c, err := net.DialTimeout("tcp", listen, time.Second); err == nil {
			_ = c.Close()
			return &stepped{t, box, "http://" + listen + "/mcp"}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s does not listen: %s", name, said.String())
	return nil
}

// held is somebody's token for the MCP server, as his agent has it.
func (s *stepped) held(user, scope string) secret.String {
	s.Helper()
	tokens, err := (sample.Agent{}).SignIn(s.Context(), sample.SignIn{Issuer: s.box.IdP, ClientID: sample.DesktopClient, User: user, Password: user + "-password"})
	if err != nil {
		s.Fatal(err)
	}
	holder, err := sample.NewHolder(s.box.as("desktop", s.box.DesktopSecret, "agent"))
	if err != nil {
		s.Fatal(err)
	}
	defer holder.Close()
	cred, err := holder.Exchange(s.Context(), client.Exchange{
		Subject: client.NewSecret(tokens.Access.Reveal()), Resources: []string{s.box.MCP}, Scopes: strings.Fields(scope),
	}, "")
	if err != nil {
		s.Fatal(err)
	}
	return secret.New(cred.Token.Reveal())
}

// call calls a tool, and says what came of it.
func (s *stepped) call(token secret.String, tool string, args map[string]any) (string, error) {
	return (sample.Agent{}).CallTool(s.Context(), s.url, token, tool, args)
}

func (s *stepped) want(what string, err error, word string) {
	s.Helper()
	if word == "" && err != nil || word != "" && (err == nil || !strings.Contains(err.Error(), word)) {
		s.Errorf("%s: %v, want %q", what, err, word)
	}
}

var teaOrder = map[string]any{"item": "tea", "quantity": 2}

// The guide from no authentication to a credential for each call, step by step.
func TestTheGuideForMCPServers(t *testing.T) {
	box := inSandbox(t)
	bin := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", bin+"/", guide+"/...").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	step := func(n int) *stepped { return runServer(t, box, filepath.Join(bin, fmt.Sprintf("step%d", n))) }

	s := step(0)
	text, err := s.call(secret.String{}, "list_orders", nil)
	s.want("anybody gets as far as the API, which knows no such key: "+text, err, "401")

	s = step(1)
	_, err = s.call(secret.String{}, "list_orders", nil)
	s.want("nobody without a token", err, "resource_metadata=")
	_, err = s.call(secret.New("made-up"), "list_orders", nil)
	s.want("nor with one that is none", err, "invalid_token")
	alice := s.held("alice", "orders:read")
	_, err = s.call(alice, "list_orders", nil)
	s.want("alice gets as far as the API", err, "the API answers 401")
	resp, err := http.Get(strings.Replace(s.url, "/mcp", "/.well-known/oauth-protected-resource/mcp", 1)) //nolint:noctx // at once
	if err != nil {
		t.Fatal(err)
	}
	var metadata struct {
		Servers []string `json:"authorization_servers"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&metadata); err != nil || len(metadata.Servers) != 1 || metadata.Servers[0] != box.Stint {
		t.Errorf("the metadata: %+v %v", metadata, err)
	}
	_ = resp.Body.Close()

	s = step(2)
	text, err = s.call(alice, "list_orders", nil)
	s.want("alice reads", err, "")
	if !strings.Contains(text, "green tea") {
		t.Errorf("%s", text)
	}
	_, err = s.call(alice, "add_order", teaOrder)
	s.want("and does not write", err, "invalid_scope")

	s = step(3)
	lastStep(t, s, box)
	checkGuide(t)
}

// lastStep is what both servers of the guide come to.
func lastStep(t *testing.T, s *stepped, box *sandbox) {
	t.Helper()
	alice, carol := s.held("alice", "orders:read"), s.held("carol", "orders:read orders:write")
	text, err := s.call(alice, "list_orders", nil)
	s.want("alice reads", err, "")
	if !strings.Contains(text, "green tea") {
		t.Errorf("%s", text)
	}
	_, err = s.call(alice, "add_order", teaOrder)
	s.want("and does not write", err, "invalid_scope")
	text, err = s.call(carol, "add_order", teaOrder)
	s.want("carol writes", err, "")
	if !strings.Contains(text, "tea") {
		t.Errorf("%s", text)
	}
	_, err = s.call(carol, "add_order", map[string]any{"item": "tea", "quantity": 500})
	s.want("as much as the mapping allows for one call", err, "invalid_scope")
	_, err = s.call(secret.String{}, "list_orders", nil)
	s.want("nobody without a token", err, "401")
	// An approval that is needed is said.
	changeFile(t, filepath.Join(box.Dir, "mappings", "orders-api.yaml"), "  - allow: [orders:write]\n", "  - allow: [orders:write]\n    approval: required\n")
	reloaded(t, box)
	_, err = s.call(carol, "add_order", teaOrder)
	if err == nil || !strings.Contains(err.Error(), "approve") && !strings.Contains(err.Error(), "a person") {
		t.Errorf("an approval that is needed: %v", err)
	}
	changeFile(t, filepath.Join(box.Dir, "mappings", "orders-api.yaml"), "    approval: required\n", "")
	reloaded(t, box)
}

// changeFile changes a file.
func changeFile(t *testing.T, path, old, text string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(data, []byte(old)) {
		t.Fatalf("%s has no %q: %v\n%s", path, old, err, data)
	}
	if err := os.WriteFile(path, bytes.Replace(data, []byte(old), []byte(text), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

// reloaded has the server read its mappings.
func reloaded(t *testing.T, box *sandbox) {
	t.Helper()
	box.server.reload(t.Context())
	if p := box.server.PolicyProblem(); p != "" {
		t.Fatal(p)
	}
}

// The same on the TypeScript SDK, with openid-client and jose, and nothing of ours.
func TestTheGuideForTypeScript(t *testing.T) {
	modules := "../../interop/node_modules"
	node := "node"
	if newer := modules + "/.newer/node"; exec.Command(newer, "--version").Run() == nil {
		node = newer
	}
	if _, err := os.Stat(modules + "/@modelcontextprotocol"); errors.Is(err, os.ErrNotExist) {
		if os.Getenv("STINT_REQUIRE_SERVERS") != "" {
			t.Fatal("the TypeScript SDK is missing: make node")
		}
		t.Skip("the TypeScript SDK is missing: make node")
	}
	box := inSandbox(t)
	lastStep(t, runServer(t, box, node, "../../interop/node/mcp-server.mjs"), box)
}

func freePort(t *testing.T) int {
	t.Helper()
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

// checkGuide holds what the guide shows against the programs, and counts the lines that a
// server needs.
func checkGuide(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(guide + ".md")
	if err != nil {
		t.Fatal(err)
	}
	var sources string
	steps := make([]map[string]bool, 4)
	for i := range steps {
		data, err := os.ReadFile(fmt.Sprintf("%s/step%d/main.go", guide, i))
		if err != nil {
			t.Fatal(err)
		}
		sources += string(data)
		steps[i] = make(map[string]bool)
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
				steps[i][line] = true
			}
		}
	}
	node, err := os.ReadFile("../../interop/node/mcp-server.mjs")
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for i, block := range strings.Split(string(text), "```") {
		language, code, _ := strings.Cut(block, "\n")
		if i%2 == 0 || language != "go" && language != "js" {
			continue
		}
		shown++
		if !strings.Contains(sources, code) && !strings.Contains(string(node), code) {
			t.Errorf("this is in none of the programs:\n%s", code)
		}
	}
	added := 0
	for line := range steps[3] {
		if !steps[0][line] {
			added++
		}
	}
	if shown < 6 || added > 60 {
		t.Errorf("%d pieces of code are shown, %d lines are needed", shown, added)
	}
	testbed.Report(t, "mcp-servers",
		testbed.Row{Name: "lines of code that an MCP server needs for tokens, and a credential for each call", Value: float64(linesBetween(steps[0], steps[2])), Unit: "lines", Target: 30, Met: linesBetween(steps[0], steps[2]) <= 30},
		testbed.Row{Name: "the same with one use, approvals and links", Value: float64(added), Unit: "lines", Target: 60, Met: added <= 60},
	)
}

func linesBetween(from, to map[string]bool) (n int) {
	for line := range to {
		if !from[line] {
			n++
		}
	}
	return n
}
