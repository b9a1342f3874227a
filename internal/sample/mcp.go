package sample

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/modelcontextprotocol/go-sdk/oauthex"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/internal/secret"
)

const (
	mcpPath = "/mcp"
	// RFC 9728 section 3.1: the well-known name goes between host and path.
	resourceMetadataPath = "/.well-known/oauth-protected-resource" + mcpPath
)

// MCPConfig says what the MCP server is, and whom it works with.
type MCPConfig struct {
	// Listener is where it listens, on loopback; nil: a free port.
	Listener net.Listener
	// Resource is what it is called by tokens; empty: its URL.
	Resource string
	// Stint is asked about tokens, and for others in exchange; its Server may be
	// left out. Its Trace is told of the calls to API and database as well.
	Stint StintConfig
	// API is the URL of the API behind it, and APIResource what that is called by
	// tokens; empty: its URL.
	API, APIResource string
	// Database, if there is one, is what the tool report reads.
	Database *Database
	Log      *slog.Logger
}

// Database is a database whose logins Stint lends.
type Database struct {
	// Resource names what a login is for: postgres://PROVIDER/TABLE.
	Resource string
	// Query is what the report shows.
	Query string
}

// MCPServer is an MCP server that holds no rights of its own. Who calls a tool
// shows a token for this server; for what the tool does elsewhere, the server asks
// Stint for another, which is for that place, good for what the tool needs, and
// speaks for the same user. The token that was shown goes to Stint and to nobody
// else.
type MCPServer struct {
	*server
	cfg   MCPConfig
	stint *asker
	log   *slog.Logger
}

// StartMCP starts an MCP server and returns when it listens. It ends with ctx, or
// when it is closed. An error says what is missing in cfg, or why it cannot
// listen.
func StartMCP(ctx context.Context, cfg MCPConfig) (*MCPServer, error) {
	if cfg.API == "" {
		return nil, errors.New("mcp server: the URL of the API is missing")
	}
	if cfg.APIResource == "" {
		cfg.APIResource = cfg.API
	}
	if d := cfg.Database; d != nil && (d.Resource == "" || d.Query == "") {
		return nil, errors.New("mcp server: the database's resource or query is missing")
	}
	if cfg.Stint.Server == "" {
		cfg.Stint.Server = "mcp"
	}
	l, err := listen(cfg.Listener)
	if err != nil {
		return nil, fmt.Errorf("mcp server: %w", err)
	}
	base := "http://" + l.Addr().String()
	if cfg.Resource == "" {
		cfg.Resource = base + mcpPath
	}
	stint, err := newAsker(cfg.Stint, cfg.Resource)
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("mcp server: %w", err)
	}
	s := &MCPServer{cfg: cfg, stint: stint, log: orDiscard(cfg.Log)}
	s.server = serve(ctx, l, s.handler(base), s.log, stint.Close)
	return s, nil
}

// handler routes: the metadata for everybody, MCP for who has a token.
func (s *MCPServer) handler(base string) http.Handler {
	tools := s.newTools()
	// Stateless: no session is kept that somebody else could continue, and every
	// request shows its token.
	protocol := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return tools }, &mcp.StreamableHTTPOptions{
		Stateless: true, JSONResponse: true, MaxRequestBodyBytes: maxBody, PropagateRequestCancellation: true,
	})
	metadata := &oauthex.ProtectedResourceMetadata{ // RFC 9728 section 2
		Resource: s.cfg.Resource, AuthorizationServers: []string{s.cfg.Stint.Issuer}, ResourceName: "Sample orders",
		ScopesSupported: s.scopes(), BearerMethodsSupported: []string{"header"},
	}
	mux := http.NewServeMux()
	mux.Handle(resourceMetadataPath, auth.ProtectedResourceMetadataHandler(metadata))
	mux.Handle(mcpPath, http.NewCrossOriginProtection().Handler(s.protect(base, protocol)))
	return mux
}

// protect lets through who has a token for this server, and calls a tool only
// with the scope that the tool needs. The header that names the tool is checked
// against the body by the SDK; clients of older protocols send none, so that the
// tools look at the scopes again.
func (s *MCPServer) protect(base string, next http.Handler) http.Handler {
	require := func(scopes ...string) http.Handler {
		return auth.RequireBearerToken(s.verify, &auth.RequireBearerTokenOptions{
			ResourceMetadataURL: base + resourceMetadataPath, Scopes: scopes,
		})(next)
	}
	token := require()
	scoped := make(map[string]http.Handler)
	for tool, scope := range toolScopes {
		scoped[tool] = require(scope)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := scoped[r.Header.Get("Mcp-Name")]; h != nil && r.Header.Get("Mcp-Method") == "tools/call" {
			h.ServeHTTP(w, r)
			return
		}
		token.ServeHTTP(w, r)
	})
}

// heldToken is where the caller's token is kept for the tools.
const heldToken = "token"

var errUnchecked = errors.New("the token could not be checked; try again")

// verify verifies a token and asks Stint whether it has been revoked: it is an
// [auth.TokenVerifier]. What it returns
// is shown to the caller. When Stint cannot say, that is not the token's fault,
// and no 401: the SDK makes it a 500.
func (s *MCPServer) verify(ctx context.Context, token string, r *http.Request) (*auth.TokenInfo, error) {
	why := "ask Stint about the caller's token"
	if method := r.Header.Get("Mcp-Method"); method != "" {
		why += " (" + method + ")"
	}
	t, err := s.stint.check(ctx, secret.New(token), why)
	switch bad := (*client.InvalidToken)(nil); {
	case errors.As(err, &bad):
		return nil, auth.ErrInvalidToken
	case err != nil:
		s.log.WarnContext(ctx, "token could not be checked", "error", err)
		return nil, errUnchecked
	}
	return &auth.TokenInfo{
		Scopes: t.Scopes, Expiration: t.Expires, UserID: t.Subject,
		Extra: map[string]any{heldToken: t},
	}, nil
}
