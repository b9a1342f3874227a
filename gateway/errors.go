package gateway

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
)

// errTooLarge is what a body beyond the limit comes to.
var errTooLarge = broker.Fail(broker.BadRequest, nil, "the body is too large")

func limited(wait time.Duration) error {
	e := broker.Fail(broker.Limited, nil, "too many requests; slow down")
	e.RetryAfter = wait
	return e
}

// noAnswer is the error for an upstream that has none that can be handed back. The request
// may have taken effect.
func noAnswer(err error) error {
	e := broker.Fail(broker.Unavailable, err, "the upstream has no answer that can be handed back; the request may have taken effect")
	e.RetryAfter = time.Second
	return e
}

// row is what a code becomes here.
type row struct {
	name   string
	status int
}

// table is the map from codes to the wire: RFC 6750 section 3.1, where it has a name. A
// code that is not in it, and every error that has none, is 502 without a word.
var table = map[broker.Code]row{
	broker.BadRequest:  {"invalid_request", http.StatusBadRequest},
	broker.BadToken:    {"invalid_token", http.StatusUnauthorized},
	broker.BadScope:    {"insufficient_scope", http.StatusForbidden},
	broker.Denied:      {"insufficient_scope", http.StatusForbidden},
	broker.BadTarget:   {"invalid_target", http.StatusNotFound},
	broker.NeedsLink:   {"interaction_required", http.StatusForbidden},
	broker.Limited:     {"temporarily_unavailable", http.StatusTooManyRequests},
	broker.Unavailable: {"temporarily_unavailable", http.StatusServiceUnavailable},
}

// problem is an error of ours on the wire.
type problem struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
	URL         string `json:"url,omitempty"`
	Interaction string `json:"interaction,omitempty"`
}

// refuse answers what came to nothing. It does not have [LeaseHeader], by which answers of
// upstreams are told from ours.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	e := broker.AsError(err)
	to, known := table[e.Code]
	p := problem{Error: to.name, Description: plain(e.Public)}
	if !known {
		to, p = row{status: http.StatusBadGateway}, problem{Error: "server_error"}
	}
	if errors.Is(err, errTooLarge) {
		to.status = http.StatusRequestEntityTooLarge
	}
	out := w.Header()
	switch e.Code {
	case broker.BadToken:
		out.Set("WWW-Authenticate", `Bearer realm="stint", error="invalid_token"`)
	case broker.BadScope, broker.Denied:
		out.Set("WWW-Authenticate", `Bearer realm="stint", error="insufficient_scope"`)
	case broker.NeedsLink:
		p.URL, p.Interaction = e.URL, "link"
	case broker.Limited, broker.Unavailable:
		out.Set("Retry-After", strconv.Itoa(int(max(e.RetryAfter+time.Second-1, time.Second)/time.Second)))
	}
	level := slog.LevelDebug
	if to.status == http.StatusBadGateway {
		level = slog.LevelError
	}
	h.cfg.Log.LogAttrs(r.Context(), level, "request through Stint refused", slog.String("request", out.Get("X-Request-Id")),
		slog.String("error", p.Error), slog.String("reason", e.Reason()))
	body, _ := json.Marshal(p) // has nothing that cannot be encoded
	out.Set("Content-Type", "application/json")
	out.Set("Cache-Control", "no-store")
	w.WriteHeader(to.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// plain keeps a text to what error_description may hold (RFC 6750 section 3).
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '\''
		}
		return r
	}, text)
}
