// Package gateway makes requests with credentials that stay here. Whoever has been given
// a token for that sends them to
//
//	ISSUER/call/PROVIDER/HOST/PATH?QUERY
//
// by any method, with the token in Authorization. The broker says whether the token is
// good and its grant allows the request; the gateway puts the credential in, sends what is
// left of the request to https://HOST/PATH?QUERY, and hands back the answer, with the
// credential cut out of it wherever it shows.
//
// Of the request the upstream gets method, path, query and body as they came, and of the
// headers those that are listed here, or that the provider names; of the answer the caller
// gets status, body and those headers that are listed here. Lists of what is passed, not of
// what is cut: no credential of the caller's, nothing that only a proxy may say, no other
// method in a header, and no cookie ever gets through. Redirects are answered, not
// followed. Answers are held in memory, and such as are too large for that are refused:
// what is passed on in pieces can be neither recorded before it leaves nor searched whole.
//
// The package decides nothing; it knows HTTP, and no provider.
package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// Broker is what the gateway needs of the broker.
type Broker interface {
	Call(ctx context.Context, r *broker.CallRequest) (*broker.Call, error)
}

var _ Broker = (*broker.Broker)(nil)

// Config is what the gateway goes by.
type Config struct {
	// Issuer is our issuer identifier: addresses begin with it.
	Issuer string
	// HTTP returns a client that may ask these hosts and no others, verified by roots in
	// PEM, or the system's, and that follows no redirects.
	HTTP func(hosts []string, roots []byte) (*http.Client, error)
	// Allow counts a request of a client, and says how long to wait if it is one too many.
	Allow func(client string) (wait time.Duration, ok bool)
	// Trace returns the W3C trace id of a request; nil: there are none.
	Trace func(ctx context.Context) string
	// MaxAnswer is the largest answer that is handed back, in bytes. Zero: 4 MiB.
	MaxAnswer int64
	Log       *slog.Logger
}

// Handler serves the addresses.
type Handler struct {
	cfg    Config
	broker Broker
	prefix string

	mu      sync.Mutex
	clients map[string]*http.Client // by provider, hosts and roots
	flying  map[string]int          // requests under way, by lease
}

var _ http.Handler = (*Handler)(nil)

const (
	defaultAnswer = 4 << 20
	// maxFlying is how many requests of a lease are under way at a time.
	maxFlying = 16
	// LeaseHeader is in answers of the upstream, and in none of our own: it names the lease.
	LeaseHeader = "Stint-Lease"
)

// New returns the handler of a broker's requests.
func New(cfg Config, b Broker) (*Handler, error) {
	u, err := url.Parse(cfg.Issuer)
	if err != nil || u.Host == "" || b == nil || cfg.HTTP == nil || cfg.Allow == nil || cfg.Log == nil {
		return nil, errors.New("gateway: an issuer and every collaborator are needed")
	}
	if cfg.MaxAnswer <= 0 {
		cfg.MaxAnswer = defaultAnswer
	}
	return &Handler{cfg: cfg, broker: b, prefix: u.EscapedPath() + "/call/", clients: map[string]*http.Client{}, flying: map[string]int{}}, nil
}

// ServeHTTP implements [http.Handler]. The caller of it has limited the body, and has set
// X-Request-Id in the answer.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a, err := h.serve(w, r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	a.write(w, r.Method)
}

// serve makes one request, and returns the answer when it is on record.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request) (*answer, error) {
	in, err := h.read(r)
	if err != nil {
		return nil, err
	}
	in.RequestID = w.Header().Get("X-Request-Id")
	call, err := h.broker.Call(r.Context(), in)
	if err != nil {
		return nil, err
	}
	a, failure := h.send(r.Context(), call, in)
	status := 0
	if failure == nil {
		status = a.status
	}
	if err := call.Done(r.Context(), status, failure); err != nil {
		return nil, err
	}
	return a, failure
}

// read takes a request apart.
func (h *Handler) read(r *http.Request) (*broker.CallRequest, error) {
	out := &broker.CallRequest{Method: r.Method, Address: r.RemoteAddr, Certificate: broker.Shown(r.TLS)}
	if h.cfg.Trace != nil {
		out.Trace = h.cfg.Trace(r.Context())
	}
	var err error
	if out.Token, err = bearer(r.Header); err != nil {
		return nil, err
	}
	// The target as it came: what has been parsed has been decoded.
	where, query, _ := strings.Cut(r.RequestURI, "?")
	rest, ours := strings.CutPrefix(where, h.prefix)
	provider, rest, _ := strings.Cut(rest, "/")
	host, path, whole := strings.Cut(rest, "/")
	if !ours || !whole || provider == "" || host == "" {
		return nil, broker.Fail(broker.BadRequest, nil, "the address is /call/PROVIDER/HOST/PATH")
	}
	out.Provider, out.Host, out.Path, out.Query = provider, host, "/"+path, query
	if out.Header, err = incoming(r.Header); err != nil {
		return nil, err
	}
	if out.Body, err = io.ReadAll(r.Body); err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return nil, errTooLarge
		}
		return nil, broker.Fail(broker.BadRequest, nil, "the body could not be read")
	}
	return out, nil
}

// bearer reads the token. There is one way to present it (RFC 6750 section 2.1).
func bearer(h http.Header) (secret.String, error) {
	given := h["Authorization"]
	if len(given) == 0 {
		return secret.String{}, broker.Fail(broker.BadToken, errors.New("no token"), "")
	}
	scheme, token, _ := strings.Cut(given[0], " ")
	if len(given) > 1 || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return secret.String{}, broker.Fail(broker.BadToken, errors.New("Authorization is not one bearer token"), "the token goes into Authorization, as Bearer")
	}
	return secret.New(token), nil
}

// send makes the request that the broker has allowed.
func (h *Handler) send(ctx context.Context, c *broker.Call, in *broker.CallRequest) (*answer, error) {
	if wait, ok := h.cfg.Allow(c.Client); !ok {
		return nil, limited(wait)
	}
	done, ok := h.take(c.Lease)
	if !ok {
		return nil, limited(time.Second)
	}
	defer done()
	cut, err := newScrubber(c)
	if err != nil {
		return nil, err
	}
	req, err := outgoing(ctx, c, in)
	if err != nil {
		return nil, err
	}
	client, err := h.client(in.Provider, c)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, noAnswer(bare(err))
	}
	defer func() { _ = resp.Body.Close() }()
	return h.answer(resp, cut)
}

// take counts a request of a lease, until done is called.
func (h *Handler) take(lease string) (done func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.flying[lease] >= maxFlying {
		return nil, false
	}
	h.flying[lease]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.flying[lease]--; h.flying[lease] == 0 {
			delete(h.flying, lease)
		}
	}, true
}

// client returns the one of a provider.
func (h *Handler) client(provider string, c *broker.Call) (*http.Client, error) {
	key := provider + "\x00" + strings.Join(c.Hosts, "\x00") + "\x00\x00" + string(c.Roots)
	h.mu.Lock()
	defer h.mu.Unlock()
	if client := h.clients[key]; client != nil {
		return client, nil
	}
	client, err := h.cfg.HTTP(c.Hosts, c.Roots)
	if err != nil {
		return nil, err
	}
	h.clients[key] = client
	return client, nil
}

// outgoing is the request that the upstream gets.
func outgoing(ctx context.Context, c *broker.Call, in *broker.CallRequest) (*http.Request, error) {
	query := in.Query
	for _, q := range c.Query {
		if has(in.Query, q.Name) {
			return nil, broker.Fail(broker.BadRequest, nil, "the query has a parameter that is for Stint to set")
		}
		if query != "" {
			query += "&"
		}
		query += url.QueryEscape(q.Name) + "=" + url.QueryEscape(q.Value.Reveal())
	}
	req, err := http.NewRequestWithContext(ctx, in.Method, c.Origin+in.Path, bytes.NewReader(in.Body))
	if err != nil {
		return nil, bare(err)
	}
	req.URL.RawQuery = query
	if req.URL.EscapedPath() != in.Path || req.URL.Scheme+"://"+req.URL.Host != c.Origin {
		return nil, errors.New("what would be sent is not what was asked")
	}
	req.Header = passed(in.Header, c.Pass)
	for _, f := range c.Header {
		req.Header.Set(f.Name, f.Value.Reveal())
	}
	return req, nil
}

// has reports whether a query has a parameter, in whatever spelling.
func has(query, name string) bool {
	for pair := range strings.SplitSeq(query, "&") {
		given, _, _ := strings.Cut(pair, "=")
		if plain, err := url.QueryUnescape(given); err != nil || strings.EqualFold(strings.TrimSpace(plain), name) ||
			strings.HasPrefix(strings.ToLower(plain), strings.ToLower(name)+"[") { // PHP and others make a list of it
			return true
		}
	}
	return false
}

// bare takes the URL off an error, which may hold what was injected.
func bare(err error) error {
	if e := (*url.Error)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// answer is what is handed back.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// answer reads what the upstream answered, and takes out what has to stay here.
func (h *Handler) answer(resp *http.Response, cut *scrubber) (*answer, error) {
	if resp.StatusCode < http.StatusOK {
		return nil, noAnswer(fmt.Errorf("status %d", resp.StatusCode))
	}
	if coding := resp.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, noAnswer(errors.New("the answer is encoded in a way that was not asked for, and cannot be searched"))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, h.cfg.MaxAnswer+1))
	if err == nil && int64(len(body)) > h.cfg.MaxAnswer {
		err = fmt.Errorf("an answer of more than %d bytes", h.cfg.MaxAnswer)
	}
	if err != nil {
		return nil, noAnswer(bare(err))
	}
	a := &answer{status: resp.StatusCode, header: returned(resp), body: cut.bytes(body)}
	for _, values := range a.header {
		for i, v := range values {
			values[i] = cut.text(v)
		}
	}
	a.header.Set(LeaseHeader, cut.lease)
	return a, nil
}

// write hands an answer back. Whatever it is, no browser is to make a page of it that is
// ours.
func (a *answer) write(w http.ResponseWriter, method string) {
	out := w.Header()
	for name, values := range a.header {
		out[name] = values
	}
	out.Set("Content-Security-Policy", "default-src 'none'; sandbox; frame-ancestors 'none'")
	out.Set("X-Content-Type-Options", "nosniff")
	out.Set("Cache-Control", "no-store")
	bodiless := a.status == http.StatusNoContent || a.status == http.StatusNotModified
	if !bodiless && method != http.MethodHead {
		out.Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	w.WriteHeader(a.status)
	if !bodiless && method != http.MethodHead {
		_, _ = w.Write(a.body) // who has gone is not told
	}
}
