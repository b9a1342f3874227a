package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/hashicorp/vault/api"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// maxAnswer bounds an answer of Vault, in bytes; a longer one is an error.
const maxAnswer = 2 << 20

// client is a Vault that is logged in to. It is the [Store] in Vault too: see
// kv.go.
type client struct {
	api       *api.Client
	mount     string
	prefix    string
	tokenRole string
	timeout   time.Duration
	login     *login
	idle      func() // closes connections that are not in use
	now       func() time.Time
}

func newClient(cfg ServerConfig, d Deps) (*client, error) {
	cfg = cfg.withDefaults()
	transport, err := newTransport(cfg)
	if err != nil {
		return nil, err
	}
	a, err := api.NewClient(&api.Config{
		Address: cfg.Address, HttpClient: &http.Client{Transport: transport}, DisableRedirects: true,
	})
	if err != nil {
		return nil, err
	}
	// The library has taken the token, namespace and headers of VAULT_* from the
	// environment. What is configured counts, and nothing else.
	a.ClearToken()
	a.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	a.SetNamespace(cfg.Namespace)
	a.SetWrappingLookupFunc(func(string, string) string { return "" })
	c := &client{
		api: a, mount: cfg.Mount, prefix: cfg.Prefix, tokenRole: cfg.TokenRole,
		timeout: time.Duration(cfg.Timeout), idle: transport.next.CloseIdleConnections, now: d.Now,
	}
	c.login = newLogin(c, cfg.Auth, d)
	return c, nil
}

// newTransport returns the way to Vault. It goes through no proxy: the token
// goes to the address that is configured, and nowhere else.
func newTransport(cfg ServerConfig) (*careful, error) {
	trust := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cfg.ServerName}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		if trust.RootCAs = x509.NewCertPool(); !trust.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %s has no certificate in PEM", cfg.CA)
		}
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	if strings.HasPrefix(cfg.Address, "http://") {
		// A name such as localhost may still lead elsewhere.
		dialer.Control = func(_, address string, _ syscall.RawConn) error {
			if host, _, err := net.SplitHostPort(address); err != nil || !loopback(host) {
				return fmt.Errorf("%s is no loopback address: plain http does not go there", address)
			}
			return nil
		}
	}
	return &careful{&http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: trust, TLSHandshakeTimeout: 5 * time.Second, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 64 << 10,
	}}, nil
}

// careful lets nothing through that is no answer of Vault's, which the library
// would take for an empty one: a redirect, and the pages that proxies write.
type careful struct{ next *http.Transport }

func (c *careful) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	switch {
	case res.StatusCode >= 300 && res.StatusCode < 400:
		err = errors.New("redirected: the address is to be that of Vault itself, or of a balancer that forwards")
	case kind != "application/json" && res.StatusCode != http.StatusNoContent:
		err = fmt.Errorf("status %d, but no JSON: what answers is not Vault", res.StatusCode)
	}
	if err != nil {
		_ = res.Body.Close()
		return nil, err
	}
	res.Body = &limited{res.Body, maxAnswer}
	return res, nil
}

// limited is a body that errs beyond its limit, rather than end.
type limited struct {
	io.ReadCloser
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	n, err := l.ReadCloser.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// answer is what Vault answers, as far as it is of use here.
type answer struct {
	LeaseID       string          `json:"lease_id"`
	LeaseDuration int64           `json:"lease_duration"` // seconds
	Data          json.RawMessage `json:"data"`
	Warnings      []string        `json:"warnings"`
	Auth          *auth           `json:"auth"`
}

// auth is the part of an answer that hands out a token.
type auth struct {
	ClientToken      string   `json:"client_token"`
	Accessor         string   `json:"accessor"`
	Policies         []string `json:"policies"`
	IdentityPolicies []string `json:"identity_policies"`
	LeaseDuration    int64    `json:"lease_duration"` // seconds
	Renewable        bool     `json:"renewable"`
	EntityID         string   `json:"entity_id"`
	TokenType        string   `json:"token_type"`
	Orphan           bool     `json:"orphan"`
	NumUses          int64    `json:"num_uses"`
}

// decode reads the data of an answer into v.
func (a *answer) decode(v any) error {
	if a == nil || len(a.Data) == 0 {
		return errors.New("an answer without data")
	}
	return strictjson.DecodeKnown(a.Data, v)
}

// fields returns the data of an answer as secrets.
func (a *answer) fields() (Fields, error) {
	var data map[string]json.RawMessage
	if err := a.decode(&data); err != nil {
		return nil, err
	}
	return fieldsOf(data), nil
}

// request is one call of Vault. A nil body with GET reads, and with PUT is empty.
type request struct {
	method string
	path   string
	query  url.Values
	body   map[string]any
	// secrets are texts of body that no error may show, however Vault words it.
	secrets []secret.String
}

// refusal is what Vault answered instead of what was asked for. Its text is
// Vault's own, without the secrets of the request, and bounded.
type refusal struct {
	status int
	text   string
	data   json.RawMessage // of a 404
}

func (r *refusal) Error() string { return fmt.Sprintf("vault answers %d: %s", r.status, r.text) }

// as sends a request with a token, which may be empty, and bounds its time.
// Errors are a [*refusal], or, if there was no answer to make sense of, have the
// code Unavailable.
func (c *client) as(ctx context.Context, token secret.String, limit time.Duration, r request) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	l := c.api.WithRequestCallbacks(func(r *api.Request) { r.ClientToken = token.Reveal() }).Logical()
	var res *api.Response
	var err error
	switch r.method {
	case http.MethodGet:
		res, err = l.ReadRawWithDataWithContext(ctx, r.path, r.query)
	case http.MethodDelete:
		res, err = l.DeleteRawWithContext(ctx, r.path)
	default:
		body, failed := json.Marshal(r.body)
		if failed != nil {
			return nil, fmt.Errorf("write request: %w", failed)
		}
		res, err = l.WriteRawWithContext(ctx, r.path, body)
	}
	if res != nil {
		defer func() { _ = res.Body.Close() }()
	}
	refused := (*api.ResponseError)(nil)
	switch {
	case errors.As(err, &refused):
		return nil, c.refusal(refused, res.Body, append(r.secrets, token))
	case err != nil:
		return nil, unavailable(fmt.Errorf("ask vault: %w", err))
	}
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, unavailable(fmt.Errorf("read vault's answer: %w", err))
	}
	if len(text) == 0 {
		return &answer{}, nil
	}
	a := new(answer)
	if err := strictjson.DecodeKnown(text, a); err != nil {
		return nil, unavailable(fmt.Errorf("read vault's answer: %w", err))
	}
	return a, nil
}

// refusal takes from an error answer what is safe to keep.
func (c *client) refusal(e *api.ResponseError, body io.Reader, secrets []secret.String) *refusal {
	r := &refusal{status: e.StatusCode, text: "no reason given"}
	if e.RawError {
		return r
	}
	if text := tidy(strings.Join(e.Errors, "; "), secrets); text != "" {
		r.text = text
	}
	if e.StatusCode == http.StatusNotFound {
		// KV answers 404 with data where there was something once.
		a := new(answer)
		if text, err := io.ReadAll(body); err == nil && strictjson.DecodeKnown(text, a) == nil {
			r.data = a.Data
		}
	}
	return r
}

// tidy makes Vault's words fit for a log: on one line, bounded, and without the
// given secrets, in clear or as JSON writes them.
func tidy(text string, secrets []secret.String) string {
	for _, s := range secrets {
		if s.Empty() {
			continue
		}
		quoted, _ := json.Marshal(s.Reveal())
		text = strings.ReplaceAll(text, s.Reveal(), "[secret]")
		text = strings.ReplaceAll(text, string(bytes.Trim(quoted, `"`)), "[secret]")
	}
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if runes := []rune(text); len(runes) > 300 {
		text = string(runes[:300]) + "..."
	}
	return text
}

// ask sends a request as ourselves. A token that has died is replaced once: Vault
// refuses before it does anything, so that asking again does nothing twice.
func (c *client) ask(ctx context.Context, limit time.Duration, r request) (*answer, error) {
	for again := false; ; again = true {
		token, err := c.login.token(ctx)
		if err != nil {
			return nil, err
		}
		a, err := c.as(ctx, token, limit, r)
		if isStatus(err, http.StatusForbidden) && !again && c.login.dead(ctx, token) {
			continue
		}
		return a, classify(err)
	}
}

func isStatus(err error, status int) bool {
	r := (*refusal)(nil)
	return errors.As(err, &r) && r.status == status
}

// says reports whether err is a refusal with a status and a piece of text. Vault
// has no codes for what went wrong, only sentences.
func says(err error, status int, text string) bool {
	r := (*refusal)(nil)
	return errors.As(err, &r) && r.status == status && strings.Contains(r.text, text)
}

// classify gives a refusal its meaning: 404 is ErrNotFound, unless Vault gives a
// reason, and what may pass by itself is Unavailable. The rest is a mistake of
// ours or of whoever set Vault up.
func classify(err error) error {
	r := (*refusal)(nil)
	if !errors.As(err, &r) {
		return err
	}
	switch {
	case r.status == http.StatusNotFound && r.text == "no reason given":
		return fmt.Errorf("%w: %w", broker.ErrNotFound, err)
	case r.status == http.StatusTooManyRequests || r.status == http.StatusPreconditionFailed || r.status >= 472:
		// 412 and 472 and up: a standby that cannot forward; 503: sealed.
		return unavailable(err)
	}
	return err
}

// Ready asks Vault for our own token: it answers if it is there, unsealed, and
// takes us for who we are.
func (c *client) Ready(ctx context.Context) error {
	_, err := c.ask(ctx, c.timeout, request{method: http.MethodGet, path: lookupSelf})
	return err
}

// Close ends the login.
func (c *client) Close() error {
	c.login.close()
	c.idle()
	return nil
}

// Token is what Vault says of the token that Stint has there.
type Token struct {
	Policies []string
	// Life is how long it lives, unless it is renewed; 0: for ever.
	Life time.Duration
}

// LookUp asks Vault for the token of a store; nil if the store is no Vault.
func LookUp(ctx context.Context, s Store) (*Token, error) {
	c, ok := s.(*client)
	if !ok {
		return nil, nil
	}
	a, err := c.ask(ctx, c.timeout, request{method: http.MethodGet, path: lookupSelf})
	if err != nil {
		return nil, err
	}
	var data struct {
		Policies []string `json:"policies"`
		TTL      int64    `json:"ttl"`
	}
	if err := a.decode(&data); err != nil {
		return nil, fmt.Errorf("look at the token for vault: %w", err)
	}
	return &Token{data.Policies, time.Duration(data.TTL) * time.Second}, nil
}
