package api

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
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
