package token

import (
	"container/list"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
)

// cache remembers tokens whose signatures have been verified, by the SHA-256 of
// their exact bytes. Another spelling of a token misses, and is checked.
// Revocation, consent and policy are decided after a hit, never remembered.
type cache struct {
	mu    sync.Mutex
	most  int
	known map[[32]byte]*list.Element
	order list.List // the latest used first
}

type cached struct {
	key     [32]byte
	token   *broker.Token
	keys    keySource // whose keys verified it, and which state of them
	state   uint64
	expires time.Time
}

// keySource are keys that may be replaced. Tokens that those before verified are
// then looked at again.
type keySource interface {
	// generation says how often they were replaced.
	generation() uint64
}

// maxCached is how long a verified token is remembered, at most.
const maxCached = 5 * time.Minute

func newCache(most int) *cache {
	return &cache{most: most, known: make(map[[32]byte]*list.Element)}
}

func cacheKey(text string) [32]byte { return sha256.Sum256([]byte(text)) }

// get returns a remembered token, unless it has expired or the keys of its issuer,
// or ours, have changed.
func (c *cache) get(key [32]byte, now time.Time) *broker.Token {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.known[key]
	if !ok {
		return nil
	}
	e := el.Value.(*cached)
	if !now.Before(e.expires) || e.keys.generation() != e.state {
		c.order.Remove(el)
		delete(c.known, key)
		return nil
	}
	c.order.MoveToFront(el)
	return e.token
}

func (c *cache) put(e *cached) {
	if c.most == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.known[e.key]; ok {
		return
	}
	c.known[e.key] = c.order.PushFront(e)
	if c.order.Len() > c.most {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.known, last.Value.(*cached).key)
	}
}

// generation says how often the set of keys has changed. Asking renews a set that is
// no longer fresh, so that tokens in constant use do not keep old keys alive.
func (s *source) generation() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		if now := s.now(); now.After(s.fresh) && now.After(s.tried.Add(minInterval)) {
			s.begin(now)
		}
	}
	return s.replaced
}
