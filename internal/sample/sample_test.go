package sample

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/secret"
)

// settled waits until there are no more goroutines than there were.
func settled(t *testing.T, before int) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, before %d\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestNothingIsLeftRunning(t *testing.T) {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	before := runtime.NumGoroutine()
	t.Run("all of it", func(t *testing.T) {
		w := newWorld(t, nil)
		idp, _ := startIdP(t)
		signIn(t, idp, "alice", "")
		held := w.issue(w.alice(OrdersRead))
		if _, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "list_orders", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), secret.New("made-up"), "list_orders", nil); err == nil {
			t.Fatal("let in")
		}
	})
	settled(t, before)
}

func TestClosingLetsGoOfStint(t *testing.T) {
	f := newStint(t)
	f.set(func(f *stintFake) { f.clients["orders-api"] = fakeClient{secret: "x", resource: "https://api.example"} })
	before := runtime.NumGoroutine()
	api, err := StartAPI(t.Context(), APIConfig{Stint: f.config("orders-api"), Resource: "https://api.example"})
	if err != nil {
		t.Fatal(err)
	}
	if resp := ask(t, &world{api: api}, "GET", "Bearer x", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("%d", resp.StatusCode)
	}
	if err := api.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	settled(t, before)
}

func TestServersEndWithTheirContext(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	idp, err := StartIdP(ctx, IdPConfig{Audience: stintAudience})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-idp.done
	if err := idp.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if c, err := net.Dial("tcp", strings.TrimPrefix(idp.URL(), "http://")); err == nil {
		_ = c.Close()
		t.Error("it still listens")
	}
	settled(t, before)
}

func TestAContextThatHasEndedStartsNothingThatStays(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	idp, err := StartIdP(ctx, IdPConfig{Audience: stintAudience})
	if err != nil {
		t.Fatal(err)
	}
	<-idp.done
	settled(t, before)
}

func TestAListenerIsTakenAsItIs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	idp, err := StartIdP(t.Context(), IdPConfig{Audience: stintAudience, Listener: l})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idp.Close() }()
	if idp.URL() != "http://"+l.Addr().String() {
		t.Errorf("it is at %s", idp.URL())
	}
}

func TestNothingListensBeyondLoopback(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := StartIdP(t.Context(), IdPConfig{Audience: stintAudience, Listener: l}); err == nil {
		t.Error("it started")
	}
	if _, err := l.Accept(); err == nil {
		t.Error("the listener is still open")
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	stint := StintConfig{Issuer: "https://stint.example", ClientID: "a", Secret: secret.New("b")}
	start := func(cfg MCPConfig) func() (io.Closer, error) {
		return func() (io.Closer, error) { return StartMCP(t.Context(), cfg) }
	}
	tests := map[string]func() (io.Closer, error){
		"an identity provider without an audience": func() (io.Closer, error) { return StartIdP(t.Context(), IdPConfig{}) },
		"an API without Stint":                     func() (io.Closer, error) { return StartAPI(t.Context(), APIConfig{}) },
		"an API without a secret": func() (io.Closer, error) {
			return StartAPI(t.Context(), APIConfig{Stint: StintConfig{Issuer: stint.Issuer, ClientID: "a"}})
		},
		"an MCP server without an API": start(MCPConfig{Stint: stint}),
		"an MCP server without Stint":  start(MCPConfig{API: "http://127.0.0.1:1"}),
		"a database without a query":   start(MCPConfig{Stint: stint, API: "http://127.0.0.1:1", Database: &Database{Resource: warehouse}}),
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if s, err := tt(); err == nil {
				_ = s.Close()
				t.Error("it started")
			}
		})
	}
}

func TestAnAnswerThatIsTooLargeIsNone(t *testing.T) {
	for size, ok := range map[int]bool{maxBody: true, maxBody + 1: false} {
		if _, err := readBody(strings.NewReader(strings.Repeat("x", size))); (err == nil) != ok {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestARedirectIsNotFollowedWithACredential(t *testing.T) {
	reached := false
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	if _, err := (Agent{}).CallTool(t.Context(), server.URL, secret.New("x"), "list_orders", nil); err == nil || reached {
		t.Errorf("reached %v, %v", reached, err)
	}
}
