package api

import (
	"context"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
)

// Requests with credentials that stay here are served by somebody else. This file gives
// them their place, and what they may take of the server: an upstream that is slow holds
// up no exchange.

const (
	callRoute = "/call/*"
	// maxCalls is how many are worked on at a time: each holds an answer in memory.
	maxCalls = 64
	// callBody is the largest body of one, in bytes, where others are held to less.
	callBody = 1 << 20
)

func isCall(c echo.Context) bool { return strings.HasSuffix(c.Path(), callRoute) }

// bodyLimit is how large a request's body may be.
func (s *Server) bodyLimit(c echo.Context) int64 {
	if isCall(c) {
		return max(s.cfg.Limits.Body, callBody)
	}
	return s.cfg.Limits.Body
}

type traceInContext struct{}

// TraceID returns the W3C trace id of a request, by its context.
func TraceID(ctx context.Context) string {
	id, _ := ctx.Value(traceInContext{}).(string)
	return id
}

// AllowCall counts such a request of a client, and says how long to wait if it is one too
// many. They are counted apart from exchanges, by the same numbers.
func (s *Server) AllowCall(client string) (wait time.Duration, ok bool) {
	return s.clients.take("call "+client, s.now())
}

func (s *Server) call(c echo.Context) error {
	r := c.Request()
	r = r.WithContext(context.WithValue(r.Context(), traceInContext{}, traceID(c)))
	r.RemoteAddr = c.RealIP()
	s.cfg.Calls.ServeHTTP(c.Response(), r)
	return nil
}
