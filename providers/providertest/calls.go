package providertest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// Calls sends a request by a lease whose credential stays here, as the broker and the
// gateway do: held to the grant by the provider, with the credential put in. The error
// wraps [ErrRefused] if the grant does not allow it, or the lease has ended.
type Calls func(ctx context.Context, r *http.Request) (*http.Response, error)

// watched is a provider that injects, with what the broker does for it: it knows which
// leases there are, and makes no requests by those that have ended.
type watched struct {
	broker.Provider
	*watchedLeases
}

type watchedLeases struct {
	mu     sync.Mutex
	minted map[*broker.Minted]broker.MintRequest
	ended  map[string]bool
}

func watch(p broker.Provider) *watched {
	return &watched{p, &watchedLeases{minted: map[*broker.Minted]broker.MintRequest{}, ended: map[string]bool{}}}
}

// Mint implements [broker.Provider].
func (w *watched) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	m, err := w.Provider.Mint(ctx, r)
	if err == nil && m != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.minted[m] = r
	}
	return m, err
}

// Revoke implements [broker.Provider]. A lease makes no requests from the moment that it
// is to be ended, whatever the provider can do.
func (w *watched) Revoke(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	w.mu.Lock()
	w.ended[r.Lease] = true
	w.mu.Unlock()
	return w.Provider.Revoke(ctx, r)
}

// alive returns what a lease was minted for; the error wraps ErrRefused if it has ended.
func (w *watched) alive(m *broker.Minted) (broker.MintRequest, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, known := w.minted[m]
	if !known || w.ended[r.Lease] || !time.Now().Before(m.Expires) {
		return r, fmt.Errorf("the lease has ended: %w", ErrRefused)
	}
	return r, nil
}

// calls returns what makes requests by a lease.
func (w *watched) calls(m *broker.Minted) Calls {
	return func(ctx context.Context, r *http.Request) (*http.Response, error) {
		lease, err := w.alive(m)
		if err != nil {
			return nil, err
		}
		return w.call(ctx, lease.Lease, lease.Grant, m.Handle, r)
	}
}

func (w *watched) call(ctx context.Context, lease string, g grant.Grant, handle []byte, r *http.Request) (*http.Response, error) {
	d := w.Describe()
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	in, err := d.Inject(ctx, broker.InjectRequest{
		Lease: lease, Grant: g, Handle: handle, Method: r.Method, Host: r.URL.Host, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Header: r.Header, Body: body,
	})
	switch code := broker.CodeOf(err); {
	case code == broker.BadScope || code == broker.BadRequest:
		return nil, fmt.Errorf("%w: %w", err, ErrRefused)
	case err != nil:
		return nil, err
	}
	origin := ""
	for _, o := range d.Origins {
		if u, err := url.Parse(o); err == nil && u.Host == r.URL.Host {
			origin = o
		}
	}
	if origin == "" {
		return nil, fmt.Errorf("%s is no origin: %w", r.URL.Host, ErrRefused)
	}
	query := r.URL.RawQuery
	for _, q := range in.Query {
		query += "&" + url.QueryEscape(q.Name) + "=" + url.QueryEscape(q.Value.Reveal())
	}
	out, err := http.NewRequestWithContext(ctx, r.Method, origin+r.URL.EscapedPath()+"?"+query, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	out.Header = r.Header.Clone()
	for _, h := range in.Header {
		out.Header.Set(h.Name, h.Value.Reveal())
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Timeout: 10 * time.Second}
	if in.Roots != nil {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(in.Roots)
		client.Transport = &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}}
	}
	return client.Do(out)
}

// open begins to use a credential, wherever it is.
func (h *Harness) open(ctx context.Context, m *broker.Minted) (Session, error) {
	if h.Use == nil {
		return h.Open(ctx, m)
	}
	w, ok := h.Provider.(*watched)
	if !ok {
		return nil, errors.New("Use is for providers that inject")
	}
	if _, err := w.alive(m); err != nil {
		return nil, err
	}
	return h.Use(ctx, w.calls(m))
}

// injects reports whether a provider's credentials stay here.
func injects(d broker.Description) bool { return len(d.Modes) > 0 && d.Modes[0] == broker.Inject }
