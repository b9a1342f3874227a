// Package client is what an MCP server imports to work with Stint: it verifies the
// tokens that callers show, tells callers where to get one (RFC 9728), and vends
// the credential for one call. It needs the standard library alone.
//
//	stint, err := client.New(client.Config{Issuer: "https://stint.example", Resource: "https://mcp.example/notes", ID: "notes-mcp", Secret: secret})
//	http.Handle("/mcp", stint.Protect(handler))
//	cred, err := stint.Vend(ctx, client.Call{Resource: "https://api.example/notes", Scopes: []string{"notes:read"}})
//
// [Client.Vend] finds the caller's token in the context that [Client.Protect] made.
package client

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Config says which Stint to work with, and as whom.
type Config struct {
	// Issuer is Stint's issuer identifier.
	Issuer string
	// Resource is what this server is called by tokens (RFC 8707): a URI. Empty for
	// a client that verifies no tokens.
	Resource string
	// ID and Secret are the client's own credentials (client_secret_basic), as
	// `stint clients add` made them.
	ID     string
	Secret Secret
	// Key, in place of Secret, signs assertions (private_key_jwt): an ECDSA key on
	// P-256 or an Ed25519 key. KeyID is its `kid`.
	Key   crypto.Signer
	KeyID string

	// HTTP makes the requests; nil: a client with time limits of its own that
	// follows no redirects.
	HTTP *http.Client
	// Skew is how far clocks may be off; zero: 30 seconds.
	Skew time.Duration
	// Retry is how long a call goes on trying while Stint is not available, unless
	// its context ends before; zero: 5 seconds; negative: it does not.
	Retry time.Duration
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Client works with one Stint as one of its clients. It is safe for concurrent use.
type Client struct {
	cfg    Config
	issuer *url.URL
	signer *assertionSigner // nil: Secret
	keys   keyCache

	flight flight
	meta   atomic.Pointer[metadata] // nil until it was read
}

// Secret is a text that is not printed: neither by package fmt, nor in JSON, nor in
// a log. The zero value is the empty one.
//
// The text is behind a pointer: package fmt cannot call methods on what is in
// unexported fields, and then prints an address.
type Secret struct{ text *string }

// NewSecret makes a secret of a text.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

// Reveal returns the text. Whoever calls it sees to it that nobody prints it.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

func (s Secret) empty() bool { return s.text == nil }

const redacted = "[redacted]"

func (s Secret) String() string               { return redacted }
func (s Secret) GoString() string             { return redacted }
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }

// New returns a client. It asks nobody anything yet. Errors say what is wrong with
// the configuration.
func New(cfg Config) (*Client, error) {
	c := &Client{cfg: cfg}
	var err error
	if c.issuer, err = endpointURL("issuer", cfg.Issuer); err != nil {
		return nil, err
	}
	if c.issuer.RawQuery != "" || strings.HasSuffix(cfg.Issuer, "/") {
		return nil, fmt.Errorf("client: the issuer %s has a query, or ends with a slash", cfg.Issuer)
	}
	if u, err := url.Parse(cfg.Resource); cfg.Resource != "" && (err != nil || !u.IsAbs() || u.Fragment != "") {
		return nil, fmt.Errorf("client: the resource %q is no absolute URI without a fragment (RFC 8707 section 2)", cfg.Resource)
	}
	switch {
	case cfg.ID == "" && (!cfg.Secret.empty() || cfg.Key != nil):
		return nil, errors.New("client: there is a secret or key, and no id")
	case !cfg.Secret.empty() && cfg.Key != nil:
		return nil, errors.New("client: give a secret or a key, not both")
	case cfg.ID != "" && cfg.Secret.empty() && cfg.Key == nil:
		return nil, fmt.Errorf("client: the secret or key of %s is missing", cfg.ID)
	}
	if cfg.Key != nil {
		if c.signer, err = newAssertionSigner(cfg.Key, cfg.KeyID); err != nil {
			return nil, err
		}
	}
	if c.cfg.HTTP == nil {
		c.cfg.HTTP = defaultHTTP()
	}
	if c.cfg.Skew == 0 {
		c.cfg.Skew = 30 * time.Second
	}
	if c.cfg.Retry == 0 {
		c.cfg.Retry = 5 * time.Second
	}
	if c.cfg.Now == nil {
		c.cfg.Now = time.Now
	}
	c.keys.client = c
	return c, nil
}

// endpointURL is an absolute https URL, or http on loopback.
func endpointURL(what, text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("client: %s: %q is no URL of a server", what, text)
	}
	if u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname()) {
		return u, nil
	}
	return nil, fmt.Errorf("client: %s: %s needs https; only loopback may go without", what, text)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// defaultHTTP follows no redirects: the requests carry secrets.
func defaultHTTP() *http.Client {
	return &http.Client{
		Timeout: 15 * time.Second,
		Transport: &http.Transport{
			Proxy:       http.ProxyFromEnvironment,
			DialContext: (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			// A token is asked for at every call: connections are kept.
			MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second,
			TLSHandshakeTimeout: 5 * time.Second, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// metadata is what is needed of an authorization server's (RFC 8414 section 2).
type metadata struct {
	Issuer        string `json:"issuer"`
	Token         string `json:"token_endpoint"`
	Introspection string `json:"introspection_endpoint"`
	Revocation    string `json:"revocation_endpoint"`
	Keys          string `json:"jwks_uri"`
}

// metadata returns where Stint's endpoints are. They are read once.
func (c *Client) metadata(ctx context.Context) (*metadata, error) {
	if m := c.meta.Load(); m != nil {
		return m, nil
	}
	if err := c.flight.do(ctx, c.discover); err != nil {
		return nil, fmt.Errorf("metadata of %s: %w", c.cfg.Issuer, err)
	}
	return c.meta.Load(), nil
}

func (c *Client) discover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchBudget)
	defer cancel()
	// RFC 8414 section 3.1: the well-known name goes between host and path.
	at := *c.issuer
	at.Path = "/.well-known/oauth-authorization-server" + at.Path
	m := &metadata{}
	if err := c.get(ctx, at.String(), m); err != nil {
		return err
	}
	if m.Issuer != c.cfg.Issuer { // RFC 8414 section 3.3
		return fmt.Errorf("it says it is of %q", m.Issuer)
	}
	for what, text := range map[string]string{"token_endpoint": m.Token, "introspection_endpoint": m.Introspection, "revocation_endpoint": m.Revocation, "jwks_uri": m.Keys} {
		if _, err := endpointURL(what, text); err != nil {
			return err
		}
	}
	c.meta.Store(m)
	return nil
}
