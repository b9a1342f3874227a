// Package api is HTTP and OAuth on the wire: routes, limits, forms in, documents
// out. It is the only user of echo and fosite, and knows no policy: what a
// request comes to is the broker's to say, and which words of an error reach a
// caller is decided in errors.go alone.
package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/ory/fosite"
	"golang.org/x/time/rate"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// Broker is what the endpoints need of the broker.
type Broker interface {
	AuthenticateClient(ctx context.Context, c broker.Credentials) (*broker.Client, error)
	Exchange(ctx context.Context, r *broker.ExchangeRequest) (*broker.Issued, error)
	// Refuse records a request that did not come to an exchange.
	Refuse(ctx context.Context, r *broker.ExchangeRequest, clientID string, err error)
	Taker
	Admitter
	Linker
	Status(ctx context.Context) broker.Status
}

// Admitter is what administrators need.
type Admitter interface {
	Admit(ctx context.Context, raw secret.String, resource, certificate string) (*broker.Token, error)
	Judge() *broker.Judge
	// Person returns how the record names a subject.
	Person(subject string) string
	Sessions(ctx context.Context, f broker.SessionFilter, after string, limit int) ([]broker.Session, string, error)
	Leases(ctx context.Context, f broker.LeaseFilter, after string, limit int) ([]*broker.Lease, string, error)
	Lease(ctx context.Context, id string) (*broker.Lease, error)
	Switch(ctx context.Context, r broker.SwitchRequest) error
	Switched(kind broker.SwitchedKind, id string) (s broker.Switch, off bool, version int)
}

// Taker takes back, and says what is good.
type Taker interface {
	RevokeToken(ctx context.Context, c *broker.Client, raw secret.String, requestID string) error
	Introspect(ctx context.Context, c *broker.Client, raw secret.String, consume bool, requestID string) (*broker.Introspection, error)
	Revoke(ctx context.Context, r broker.Revocation) (*broker.Receipt, error)
	// RefuseTaking records a revocation or introspection that did not come to the
	// broker.
	RefuseTaking(ctx context.Context, kind audit.Kind, c *broker.Client, requestID string, err error)
}

var _ Broker = (*broker.Broker)(nil)

// Keys are our public keys.
type Keys interface {
	JWKS() []byte
	Algorithms() []string
}

// Limits bound what strangers send. Zero values mean the defaults given here.
// Revocations are counted apart from all else, by the same numbers.
type Limits struct {
	// Body is the largest request body, in bytes. Default: 65536.
	Body int64 `yaml:"body,omitempty" check:"min=1024,max=1048576"`
	// Concurrency is how many requests are worked on at a time; further ones are
	// answered 503. Default: 512.
	Concurrency int `yaml:"concurrency,omitempty" check:"min=1,max=100000"`
	// ClientRate is how many requests a second a client may send for long, and
	// ClientBurst how many at once. Defaults: 500 and 1000.
	ClientRate  float64 `yaml:"client_rate,omitempty"`
	ClientBurst int     `yaml:"client_burst,omitempty" check:"min=1"`
	// AddressRate and AddressBurst are the same for a network address. Defaults:
	// 1000 and 2000.
	AddressRate  float64 `yaml:"address_rate,omitempty"`
	AddressBurst int     `yaml:"address_burst,omitempty" check:"min=1"`
	// TrustedProxies are the networks of proxies whose X-Forwarded-For is believed.
	TrustedProxies []string `yaml:"trusted_proxies,omitempty"`
}

// Check says what is wrong with limits.
func (l *Limits) Check() error {
	for _, p := range l.TrustedProxies {
		if _, _, err := net.ParseCIDR(p); err != nil {
			return errors.New("trusted_proxies: write networks, such as 10.0.0.0/8")
		}
	}
	if l.ClientRate < 0 || l.AddressRate < 0 {
		return errors.New("rates are not negative")
	}
	return nil
}

func (l *Limits) defaults() {
	set := func(v *float64, d float64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&l.ClientRate, 500)
	set(&l.AddressRate, 1000)
	for v, d := range map[*int]int{&l.ClientBurst: 1000, &l.AddressBurst: 2000, &l.Concurrency: 512} {
		if *v == 0 {
			*v = d
		}
	}
	if l.Body == 0 {
		l.Body = 64 << 10
	}
}

// Config is what the endpoints go by.
type Config struct {
	// Issuer is our issuer identifier, without a slash at its end. Its path is that
	// of every endpoint.
	Issuer string
	Limits Limits
	Keys   Keys
	// AuthMethods are the methods of authentication that are advertised, and BoundTokens
	// says that there are clients whose tokens are bound to their certificates.
	AuthMethods []string
	BoundTokens bool
	// DetailsTypes are the types of authorization details that exist.
	DetailsTypes []string
	// IssuerHealth says of each trusted issuer what is wrong with its keys; empty:
	// nothing.
	IssuerHealth func() map[string]string
	// Operations are offered to administrators.
	Operations Operations
	// Admin lets administrators in over the network; nil: the local socket is the only
	// way.
	Admin *Door
	// Connect lets people link accounts of their own; nil: there are none to link.
	Connect *Door
	// Answers remembers what was answered to idempotency keys, sealed.
	Answers broker.Answers
	Sealer  broker.Sealer
	// Calls serves the addresses at which requests are made with credentials that stay
	// here; nil: there are none. What it answers is its own.
	Calls   http.Handler
	Metrics *Metrics
	Log     *slog.Logger
	Now     func() time.Time
	// Span starts a span of a trace for a request, continuing the one that its
	// headers name; nil: no tracing. The functions it returns give the trace's id,
	// and end the span with a status.
	Span func(r *http.Request) (ctx context.Context, traceID string, end func(status int))
}

// Server is the endpoints.
type Server struct {
	cfg       Config
	broker    Broker
	oauth     *fosite.Fosite
	clients   *rates
	addresses *rates
	slots     chan struct{}
	revoking  chan struct{}
	calling   chan struct{}
	draining  atomic.Bool
	last      lastStatus
	failures  *rate.Limiter // of lines in the log
	unlogged  atomic.Int64
	log       *slog.Logger
	now       func() time.Time
}

// New returns the endpoints of a broker.
func New(cfg Config, b Broker) (*Server, error) {
	u, err := url.Parse(cfg.Issuer)
	switch {
	case err != nil || u.Host == "" || strings.HasSuffix(cfg.Issuer, "/") || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("issuer: an https URL without query, fragment and final slash is needed (RFC 8414 section 2)")
	case strings.ContainsAny(u.EscapedPath(), ":*%"): // they mean something in routes
		return nil, errors.New("issuer: its path has to be of letters, digits, slashes and hyphens")
	case b == nil || cfg.Keys == nil || cfg.Log == nil || cfg.Now == nil || cfg.Metrics == nil || cfg.IssuerHealth == nil || cfg.Operations == nil ||
		cfg.Answers == nil || cfg.Sealer == nil:
		return nil, errors.New("api: a collaborator is missing")
	}
	cfg.Limits.defaults()
	if cfg.AuthMethods == nil {
		cfg.AuthMethods = []string{"client_secret_basic", "client_secret_post", "private_key_jwt"}
	}
	if cfg.DetailsTypes == nil {
		cfg.DetailsTypes = []string{} // null is no list
	}
	s := &Server{
		cfg: cfg, broker: b, log: cfg.Log, now: cfg.Now, slots: make(chan struct{}, cfg.Limits.Concurrency),
		revoking:  make(chan struct{}, cfg.Limits.Concurrency),
		calling:   make(chan struct{}, min(cfg.Limits.Concurrency, maxCalls)),
		clients:   newRates(cfg.Limits.ClientRate, cfg.Limits.ClientBurst),
		addresses: newRates(cfg.Limits.AddressRate, cfg.Limits.AddressBurst),
		failures:  rate.NewLimiter(1, 60),
	}
	// fosite parses, asks us who the client is and then our one handler what
	// comes of it. Its own JWT code, hashers, fetchers and writers have no part.
	s.oauth = &fosite.Fosite{Config: &fosite.Config{
		ClientAuthenticationStrategy: s.authenticate,
		TokenEndpointHandlers:        fosite.TokenEndpointHandlers{exchangeHandler{}},
	}}
	return s, nil
}

// Drain makes /readyz say that the server is going away.
func (s *Server) Drain() { s.draining.Store(true) }

// Public returns the handler of the public listener.
func (s *Server) Public() http.Handler {
	e := s.echo()
	u, _ := url.Parse(s.cfg.Issuer) // New has checked it
	base := u.Path
	g := e.Group(base)
	g.POST("/oauth2/token", s.limited(s.token))
	g.POST("/oauth2/renew", s.limited(s.renew))
	g.POST("/oauth2/revoke", s.limited(s.revoke))
	g.POST("/oauth2/introspect", s.limited(s.introspect))
	get(g.Match, "/oauth2/jwks", s.limited(s.jwks))
	// RFC 8414 section 3.1 puts the issuer's path behind the well-known one;
	// OpenID Connect Discovery section 4 before it. Both are found.
	get(e.Match, "/.well-known/oauth-authorization-server"+base, s.limited(s.serveMetadata(false)))
	get(e.Match, "/.well-known/openid-configuration"+base, s.limited(s.serveMetadata(true)))
	if base != "" {
		get(g.Match, "/.well-known/openid-configuration", s.limited(s.serveMetadata(true)))
	}
	get(e.Match, "/livez", s.live)
	get(e.Match, "/readyz", s.ready(false))
	if s.cfg.Calls != nil {
		g.Match(broker.Methods, callRoute, s.limited(s.call))
	}
	if s.cfg.Admin != nil {
		s.adminRoutes(e, base, s.byToken)
		d := s.administrators()
		d.routes(g, d.loginPage)
	}
	if s.cfg.Connect != nil {
		s.connectRoutes(g)
	}
	return e
}

// Ops returns the handler of the listener for operators: health in full, and
// metrics.
func (s *Server) Ops() http.Handler {
	e := s.echo()
	get(e.Match, "/livez", s.live)
	get(e.Match, "/readyz", s.ready(true))
	get(e.Match, "/metrics", echo.WrapHandler(s.cfg.Metrics.Handler()))
	return e
}

// Local returns the handler of the local socket. Who can open it may use it; the
// caller's user id is in the record.
func (s *Server) Local() http.Handler {
	e := s.echo()
	s.adminRoutes(e, "", atSocket)
	return e
}

// get adds a route for GET, and with it HEAD (RFC 9110 section 9.1).
func get(match func([]string, string, echo.HandlerFunc, ...echo.MiddlewareFunc) []*echo.Route, path string, h echo.HandlerFunc) {
	match([]string{http.MethodGet, http.MethodHead}, path, h)
}

func (s *Server) echo() *echo.Echo {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.IPExtractor = echo.ExtractIPDirect()
	if len(s.cfg.Limits.TrustedProxies) > 0 {
		options := []echo.TrustOption{echo.TrustLoopback(false), echo.TrustLinkLocal(false), echo.TrustPrivateNet(false)}
		for _, p := range s.cfg.Limits.TrustedProxies {
			if _, network, err := net.ParseCIDR(p); err == nil {
				options = append(options, echo.TrustIPRange(network))
			}
		}
		e.IPExtractor = echo.ExtractIPFromXFFHeader(options...)
	}
	e.HTTPErrorHandler = s.httpError
	e.Use(s.around)
	return e
}

// httpError answers what no endpoint did: unknown paths, wrong methods, errors
// that a handler returned instead of writing them.
func (s *Server) httpError(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	status := http.StatusInternalServerError
	if he := (*echo.HTTPError)(nil); errors.As(err, &he) {
		status = he.Code
	} else {
		s.log.ErrorContext(c.Request().Context(), "request failed", "path", c.Path(), "request", requestID(c), "error", err)
	}
	p := problem{Error: "server_error", code: broker.Internal, status: status}
	switch {
	case status == http.StatusNotFound:
		p.Error, p.Description, p.code = "invalid_request", "there is nothing here", broker.BadTarget
	case status == http.StatusMethodNotAllowed:
		p.Error, p.Description, p.code = "invalid_request", "the method is not allowed here", noMethod
	case status < http.StatusInternalServerError:
		p.Error, p.code = "invalid_request", broker.BadRequest
	}
	_ = p.write(c)
}

const requestIDHeader = "X-Request-Id"

// fixedHeaders are those of every answer. Nobody writes into the values: they are
// shared, so that setting them costs nothing.
var fixedHeaders = []struct {
	name  string
	value []string
}{
	{"Cache-Control", []string{"no-store"}},
	{"Pragma", []string{"no-cache"}}, // RFC 6749 section 5.1 wants both
	{"X-Content-Type-Options", []string{"nosniff"}},
	{"Content-Security-Policy", []string{"default-src 'none'; frame-ancestors 'none'"}},
	{"Referrer-Policy", []string{"no-referrer"}},
}

// around is about every request: its id, headers, size, span, log line, metrics,
// and what remains of a panic.
func (s *Server) around(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		began := s.now()
		r := c.Request()
		h := c.Response().Header()
		var id [8]byte
		_, _ = rand.Read(id[:]) // never fails
		h.Set(requestIDHeader, hex.EncodeToString(id[:]))
		for _, f := range fixedHeaders {
			h[f.name] = f.value
		}
		if r.TLS != nil {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		r.Body = http.MaxBytesReader(c.Response(), r.Body, s.bodyLimit(c))
		end := func(int) {}
		if s.cfg.Span != nil {
			var ctx context.Context
			var trace string
			ctx, trace, end = s.cfg.Span(r)
			c.SetRequest(r.WithContext(ctx))
			c.Set(traceKey, trace)
		}
		defer func() {
			if p := recover(); p != nil {
				s.log.ErrorContext(r.Context(), "panic", "value", panicked(p), "request", requestID(c), "stack", string(debug.Stack()))
				err = s.fail(c, errors.New("panic"))
			}
			if err != nil {
				s.httpError(err, c)
				err = nil
			}
			took := s.now().Sub(began)
			status := c.Response().Status
			end(status)
			s.cfg.Metrics.request(c.Path(), status, took)
			s.log.LogAttrs(r.Context(), slog.LevelDebug, "request", slog.String("path", c.Path()), slog.Int("status", status),
				slog.Duration("took", took), slog.String("request", requestID(c)))
		}()
		return next(c)
	}
}

// panicked is what of a panic may be logged: what the runtime says, or else no
// more than the type of what was thrown, whose text may hold anything.
func panicked(p any) string {
	if slip, ok := p.(runtime.Error); ok {
		return slip.Error()
	}
	return fmt.Sprintf("%T", p)
}

const traceKey = "trace"

func requestID(c echo.Context) string { return c.Response().Header().Get(requestIDHeader) }

func traceID(c echo.Context) string {
	id, _ := c.Get(traceKey).(string)
	return id
}

// refuse records a request that did not come to an exchange, and answers it.
func (s *Server) refuse(c echo.Context, r *broker.ExchangeRequest, err error) error {
	e := (*broker.Error)(nil)
	if errors.As(err, &e) && e.Code != broker.Limited {
		s.note(c, r, err)
	}
	return s.fail(c, err)
}

// note records a request that did not come to an exchange, by whoever it says it
// is from.
func (s *Server) note(c echo.Context, r *broker.ExchangeRequest, err error) {
	r.RequestID, r.Trace, r.Address = requestID(c), traceID(c), c.RealIP()
	id, _, _ := c.Request().BasicAuth()
	if form := c.Request().PostForm; id == "" && form != nil {
		id = form.Get("client_id")
	}
	s.broker.Refuse(c.Request().Context(), r, id, err)
}

// fail answers an error, and logs what the caller is not told.
func (s *Server) fail(c echo.Context, err error) error {
	if errors.Is(err, errTooLarge) {
		return s.answer(c, problem{Error: "invalid_request", Description: "the body is too large", code: tooLarge, status: http.StatusRequestEntityTooLarge})
	}
	p := toProblem(endpointOf(c), err)
	s.logRefusal(c, p, err)
	return s.answer(c, p)
}

// logRefusal logs why a request was refused. What strangers are refused for is in the
// record and in the metrics; they can fill neither, nor the log: what is not ours to
// mend is for who looks closely, and of the rest as much as somebody could read.
func (s *Server) logRefusal(c echo.Context, p problem, err error) {
	level := slog.LevelDebug
	attrs := []slog.Attr{
		slog.String("path", c.Path()), slog.String("request", requestID(c)),
		slog.String("error", p.Error), slog.String("reason", broker.AsError(err).Reason()),
	}
	if p.status >= http.StatusInternalServerError {
		if !s.failures.AllowN(s.now(), 1) {
			s.unlogged.Add(1)
			return
		}
		level = slog.LevelError
		attrs = append(attrs, slog.Int64("others", s.unlogged.Swap(0)))
	}
	s.log.LogAttrs(c.Request().Context(), level, "refused", attrs...)
}

func (s *Server) answer(c echo.Context, p problem) error {
	s.cfg.Metrics.refused(c.Path(), p.Error)
	return p.write(c)
}
