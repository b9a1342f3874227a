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
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
)

// guide is docs/mcp-servers.md, whose steps are programs beside it.
const guide = "../../docs/mcp-servers"

// typescript is the server of the guide that has nothing of ours.
const typescript = "../../interop/node/mcp-server.mjs"

// stepped is a server of the guide that runs in a sandbox, in the place of its own.
type stepped struct {
	*testing.T
	box *sandbox
	url string
}

// usedUp counts the tokens for one call that the API of a sandbox has used up.
type usedUp struct{ n atomic.Int32 }

func (u *usedUp) see(step sample.Step) {
	if step.Server == "API" && strings.Contains(step.Text, "use up the token") && step.Status == http.StatusOK {
		u.n.Add(1)
	}
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
	return s.obtain(user, client.Exchange{Scopes: strings.Fields(scope)})
}

// single is one that is good for one call of list_orders.
func (s *stepped) single(user string) secret.String {
	s.Helper()
	return s.obtain(user, client.Exchange{
		Scopes: []string{"orders:read"}, Details: json.RawMessage(`[{"type":"mcp_tool_call","tool":"list_orders","once":true}]`),
	})
}

func (s *stepped) obtain(user string, x client.Exchange) secret.String {
	s.Helper()
	tokens, err := (sample.Agent{}).SignIn(s.Context(), sample.SignIn{Issuer: s.box.IdP, ClientID: sample.DesktopClient, User: user, Password: user + "-password"})
	if err != nil {
		s.Fatal(err)
	}
	x.Subject, x.Resources = client.NewSecret(tokens.Access.Reveal()), []string{s.box.MCP}
	cred, err := s.desktop().Exchange(s.Context(), x)
	if err != nil {
		s.Fatal(err)
	}
	return secret.New(cred.Token.Reveal())
}

// desktop asks Stint as people's agent does.
func (s *stepped) desktop() *client.Client { return s.as("desktop", s.box.DesktopSecret) }

func (s *stepped) as(id string, password secret.String) *client.Client {
	s.Helper()
	c, err := client.New(client.Config{Issuer: s.box.Stint, ID: id, Secret: client.NewSecret(password.Reveal())})
	if err != nil {
		s.Fatal(err)
	}
	return c
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
	used := &usedUp{}
	box := tracedSandbox(t, used.see)
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
	_, err = s.call(s.single("alice"), "list_orders", nil) // the agent's first request is not yet the call
	s.want("a token for one call is good for one request", err, "invalid_token")

	s = step(2)
	text, err = s.call(alice, "list_orders", nil)
	s.want("alice reads", err, "")
	if !strings.Contains(text, "green tea") {
		t.Errorf("%s", text)
	}
	_, err = s.call(alice, "add_order", teaOrder)
	s.want("and does not write", err, "invalid_scope")

	lastStep(t, step(3), used)
	checkGuide(t)
}

// lastStep is what both servers of the guide come to. Nothing of the sandbox runs when it
// returns.
func lastStep(t *testing.T, s *stepped, used *usedUp) {
	t.Helper()
	alice, carol := s.held("alice", "orders:read"), s.held("carol", "orders:read orders:write")
	text, err := s.call(alice, "list_orders", nil)
	s.want("alice reads", err, "")
	if !strings.Contains(text, "green tea") || used.n.Load() != 0 {
		t.Errorf("%s, %d tokens used up", text, used.n.Load())
	}
	_, err = s.call(alice, "add_order", teaOrder)
	s.want("and does not write", err, "invalid_scope")
	text, err = s.call(carol, "add_order", teaOrder)
	s.want("carol writes", err, "")
	if !strings.Contains(text, "tea") || used.n.Load() != 1 {
		t.Errorf("%s, %d tokens used up", text, used.n.Load())
	}
	_, err = s.call(carol, "add_order", map[string]any{"item": "tea", "quantity": 500})
	s.want("as much as the mapping allows for one call", err, "invalid_scope")
	strangers(t, s, alice)
	single := s.single("alice")
	_, err = s.call(single, "list_orders", nil)
	s.want("a token for one call is good for it", err, "")
	_, err = s.call(single, "list_orders", nil)
	s.want("and for no other", err, "invalid_request")
	approvals(t, s, carol)
	if err := s.desktop().Return(t.Context(), &client.Credential{Token: client.NewSecret(alice.Reveal())}); err != nil {
		t.Fatal(err)
	}
	_, err = s.call(alice, "list_orders", nil)
	s.want("a token that was taken back is worth nothing", err, "invalid_request")
	if err := s.box.Close(); err != nil {
		t.Error(err)
	}
	_, err = s.call(carol, "list_orders", nil)
	s.want("without Stint the call fails, and not the token", err, "try again")
}

// strangers are not let in: held is a token that would be.
func strangers(t *testing.T, s *stepped, held secret.String) {
	t.Helper()
	forAPI, err := s.as("orders-mcp", s.box.MCPSecret).Exchange(t.Context(), client.Exchange{
		Subject: client.NewSecret(held.Reveal()), Resources: []string{s.box.API}, Scopes: []string{"orders:read"},
	})
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(held.Reveal(), ".")
	for who, token := range map[string]string{
		"nobody": "", "a made-up token": "made-up", "a token for the API": forAPI.Token.Reveal(),
		"a token without its signature": parts[0] + "." + parts[1] + ".", "another's signature": parts[0] + "." + parts[1] + "." + strings.Split(forAPI.Token.Reveal(), ".")[2],
	} {
		_, err := s.call(secret.New(token), "list_orders", nil)
		s.want(who, err, "resource_metadata=")
	}
}

// approvals sees that an approval that is needed is said.
func approvals(t *testing.T, s *stepped, held secret.String) {
	t.Helper()
	mapping := filepath.Join(s.box.Dir, "mappings", "orders-api.yaml")
	changeFile(t, mapping, "  - allow: [orders:write]\n", "  - allow: [orders:write]\n    approval: required\n")
	reloaded(t, s.box)
	_, err := s.call(held, "add_order", teaOrder)
	s.want("an approval that is needed", err, "approve")
	changeFile(t, mapping, "    approval: required\n", "")
	reloaded(t, s.box)
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
	used := &usedUp{}
	box := tracedSandbox(t, used.see)
	lastStep(t, runServer(t, box, node, typescript), used)
}

func freePort(t *testing.T) int {
	t.Helper()
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

// checkGuide holds what each section of the guide shows against its program, and counts
// the lines that a server needs.
func checkGuide(t *testing.T) {
	t.Helper()
	read := func(name string) string {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	var steps [4]string
	for i := range steps {
		steps[i] = read(fmt.Sprintf("%s/step%d/main.go", guide, i))
	}
	programs := map[string]string{"1": steps[1], "2": steps[2], "3": steps[3], "In TypeScript": read(typescript)}
	shown := make(map[string]int)
	for section := range strings.SplitSeq(read(guide+".md"), "\n## ") {
		for name, program := range programs {
			if !strings.HasPrefix(section, name) {
				continue
			}
			for i, block := range strings.Split(section, "```") {
				if _, code, _ := strings.Cut(block, "\n"); i%2 == 1 {
					shown[name]++
					if !strings.Contains(program, code) {
						t.Errorf("section %s shows what its program has not:\n%s", name, code)
					}
				}
			}
		}
	}
	for name := range programs {
		if shown[name] == 0 {
			t.Errorf("section %s shows nothing", name)
		}
	}
	row := func(name string, lines, most int) testbed.Row {
		if lines == 0 || lines > most {
			t.Errorf("%s: %d", name, lines)
		}
		return testbed.Row{Name: name, Value: float64(lines), Unit: "lines", Target: float64(most), Met: lines <= most}
	}
	testbed.Report(t, "mcp-servers",
		row("lines of code that an MCP server needs for tokens, and a credential for each call", linesAdded(steps[0], steps[2]), 30),
		row("the same with one use, approvals and links", linesAdded(steps[0], steps[3]), 60),
	)
}

// linesAdded counts the lines of code that a program has more than another: a line as
// often as it is there.
func linesAdded(from, to string) (n int) {
	had := make(map[string]int)
	each := func(program string, do func(line string)) {
		for line := range strings.Lines(program) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
				do(line)
			}
		}
	}
	each(from, func(line string) { had[line]++ })
	each(to, func(line string) {
		if had[line]--; had[line] < 0 {
			n++
		}
	})
	return n
}
