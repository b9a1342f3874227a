package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

type contextKey struct{}

// WithToken puts a verified token into a context, where [Client.Vend] finds it.
func WithToken(ctx context.Context, t *Token) context.Context {
	return context.WithValue(ctx, contextKey{}, t)
}

// FromContext returns the token that [Client.Protect] or [WithToken] put into a
// context; nil if there is none.
func FromContext(ctx context.Context) *Token {
	t, _ := ctx.Value(contextKey{}).(*Token)
	return t
}

// Protect lets through who shows a token for this server that has the scopes, and
// puts it into the request's context. Others get 401 or 403 with a challenge that
// says where to get one (RFC 6750 section 3, RFC 9728 section 5.1); 503 if it
// cannot be known. A token for one call is used up, unless it lacks a scope.
func (c *Client) Protect(next http.Handler, scopes ...string) http.Handler {
	return c.protect(next, c.useOnce, scopes)
}

// ProtectToVend is [Client.Protect] for handlers that hand every caller's token to
// [Client.Vend], which uses up a token for one call: see [Client.VerifyToVend].
func (c *Client) ProtectToVend(next http.Handler, scopes ...string) http.Handler {
	return c.protect(next, func(context.Context, *Token) error { return nil }, scopes)
}

// protect lets through whose token is good; accept has the last word.
func (c *Client) protect(next http.Handler, accept func(context.Context, *Token) error, scopes []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, ok := bearer(r)
		if !ok {
			c.Challenge(w, scopes, nil)
			return
		}
		t, err := c.VerifyToVend(WithConnection(r.Context(), r.TLS), raw)
		switch {
		case err != nil:
		case !t.Has(scopes...):
			err = &InsufficientScope{scopes}
		default:
			err = accept(r.Context(), t)
		}
		if err != nil {
			c.Challenge(w, scopes, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(WithToken(r.Context(), t)))
	})
}

// bearer returns the token of a request: from its header, which is there once, and
// from nowhere else.
func bearer(r *http.Request) (string, bool) {
	h := r.Header.Values("Authorization")
	if len(h) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(h[0], " ")
	token = strings.TrimLeft(token, " ")
	return token, ok && strings.EqualFold(scheme, "Bearer") && token != ""
}

// Challenge answers a request that is not let through, and why: nil, if it showed
// no token at all. scopes are those that it needs.
func (c *Client) Challenge(w http.ResponseWriter, scopes []string, why error) {
	status := http.StatusUnauthorized
	challenge := fmt.Sprintf(`Bearer resource_metadata=%q`, c.MetadataURL())
	if len(scopes) > 0 {
		challenge += fmt.Sprintf(`, scope=%q`, strings.Join(scopes, " "))
	}
	bad, insufficient, down := (*InvalidToken)(nil), (*InsufficientScope)(nil), (*Unavailable)(nil)
	switch {
	case why == nil:
	case errors.As(why, &bad):
		challenge += `, error="invalid_token"`
	case errors.As(why, &insufficient):
		status = http.StatusForbidden
		challenge += `, error="insufficient_scope"`
	case errors.As(why, &down):
		seconds := max(1, math.Ceil(down.RetryAfter.Seconds()))
		w.Header().Set("Retry-After", strconv.Itoa(int(seconds)))
		http.Error(w, "the token cannot be checked at the moment", http.StatusServiceUnavailable)
		return
	default:
		http.Error(w, "the token cannot be checked", http.StatusInternalServerError)
		return
	}
	w.Header().Set("WWW-Authenticate", challenge)
	http.Error(w, http.StatusText(status), status)
}

const wellKnown = "/.well-known/oauth-protected-resource"

// MetadataPath is where this server's metadata has to be served, and MetadataURL
// is that as a URL: the well-known name goes between host and path of the resource
// (RFC 9728 section 3.1).
func (c *Client) MetadataPath() string {
	u, err := url.Parse(c.cfg.Resource)
	if err != nil {
		return wellKnown
	}
	return wellKnown + strings.TrimSuffix(u.EscapedPath(), "/")
}

// MetadataURL is described at [Client.MetadataPath].
func (c *Client) MetadataURL() string {
	u, err := url.Parse(c.cfg.Resource)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host + c.MetadataPath()
}

// Metadata serves this server's metadata (RFC 9728 section 2), readable from any
// origin. scopes are all that it knows.
func (c *Client) Metadata(name string, scopes ...string) http.Handler {
	doc, err := json.Marshal(struct {
		Resource string   `json:"resource"`
		Servers  []string `json:"authorization_servers"`
		Scopes   []string `json:"scopes_supported,omitempty"`
		Methods  []string `json:"bearer_methods_supported"`
		Name     string   `json:"resource_name,omitempty"`
	}{c.cfg.Resource, []string{c.cfg.Issuer}, scopes, []string{"header"}, name})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		switch {
		case err != nil:
			http.Error(w, "no metadata", http.StatusInternalServerError)
		case r.Method == http.MethodOptions:
			w.Header().Set("Access-Control-Allow-Methods", "GET, HEAD")
			w.WriteHeader(http.StatusNoContent)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "", http.StatusMethodNotAllowed)
		default:
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(doc)
		}
	})
}
