package api

import (
	"container/list"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/time/rate"

	"github.com/stint-dev/stint/broker"
)

// rates holds many parties each to a rate. It remembers those seen last; one
// that is forgotten starts anew, with its burst.
type rates struct {
	limit rate.Limit
	burst int

	mu    sync.Mutex
	known map[string]*list.Element
	order list.List
}

type party struct {
	name    string
	limiter *rate.Limiter
}

// maxParties bounds how many are remembered.
const maxParties = 8192

func newRates(perSecond float64, burst int) *rates {
	return &rates{limit: rate.Limit(perSecond), burst: burst, known: make(map[string]*list.Element)}
}

// take counts a request of a party. If it is one too many, wait says when the
// next may come.
func (r *rates) take(name string, now time.Time) (wait time.Duration, ok bool) {
	r.mu.Lock()
	el, known := r.known[name]
	if !known {
		el = r.order.PushFront(&party{name, rate.NewLimiter(r.limit, r.burst)})
		r.known[name] = el
		if r.order.Len() > maxParties {
			last := r.order.Back()
			r.order.Remove(last)
			delete(r.known, last.Value.(*party).name)
		}
	} else {
		r.order.MoveToFront(el)
	}
	limiter := el.Value.(*party).limiter
	r.mu.Unlock()
	if limiter.AllowN(now, 1) {
		return 0, true
	}
	return max(time.Duration(float64(time.Second)/float64(r.limit)), time.Second), false
}

// purpose is what a request counts for. Revocations and administrators have rates and
// places of their own: where others have used up theirs, they can still take back.
func purpose(r *http.Request) string {
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/oauth2/revoke"), strings.HasSuffix(path, "/unlink"), r.Method == http.MethodDelete && strings.Contains(path, "/connect/v1/"):
		return "revoke "
	case strings.Contains(path, "/admin/v1/"):
		return "admin "
	}
	return ""
}

// limited holds a handler to the rate of an address and to the number of
// requests at a time. A request counts once its body is there: whoever sends it a
// byte at a time holds up nobody else.
func (s *Server) limited(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		counts := purpose(c.Request())
		slots := s.slots
		switch {
		case isCall(c):
			counts, slots = "call ", s.calling
		case counts != "":
			slots = s.revoking
		}
		refuse := s.fail
		if s.isPage(c) {
			refuse = func(c echo.Context, err error) error { return s.refusedPage(c, "Not now", err) }
		}
		if wait, ok := s.addresses.take(counts+addressKey(c.RealIP()), s.now()); !ok {
			return refuse(c, limited(wait))
		}
		if _, err := readBody(c.Request()); err != nil {
			if strings.HasSuffix(c.Path(), "/oauth2/token") { // every request for a token leaves an event
				return s.refuse(c, &broker.ExchangeRequest{}, err)
			}
			return refuse(c, err)
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			return next(c)
		default:
			e := broker.Fail(broker.Unavailable, errors.New("too many requests at a time"), "the server is busy; try again")
			e.RetryAfter = time.Second
			return refuse(c, e)
		}
	}
}

// addressKey is what an address counts as, however it is written: of IPv6 the
// network of a subscriber.
func addressKey(ip string) string {
	a := net.ParseIP(ip)
	switch {
	case a == nil:
		return ip
	case a.To4() == nil:
		return a.Mask(net.CIDRMask(64, 128)).String()
	}
	return a.String()
}
