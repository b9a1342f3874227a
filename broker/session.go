package broker

import (
	"container/list"
	"context"
	"crypto/rand"
	"sync"
	"time"
)

// notedSessions remembers which sessions this replica has written, so that each
// (session, client) is written once.
type notedSessions struct {
	mu    sync.Mutex
	known map[[2]string]*list.Element
	order list.List
	slots chan struct{} // bounds what is being written
}

const (
	maxNoted  = 16384
	maxNoting = 64
)

func (n *notedSessions) init() {
	n.known = make(map[[2]string]*list.Element)
	n.slots = make(chan struct{}, maxNoting)
}

// add reports whether the session is new here.
func (n *notedSessions) add(key [2]string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if el, ok := n.known[key]; ok {
		n.order.MoveToFront(el)
		return false
	}
	n.known[key] = n.order.PushFront(key)
	if n.order.Len() > maxNoted {
		last := n.order.Back()
		n.order.Remove(last)
		delete(n.known, last.Value.([2]string))
	}
	return true
}

func (n *notedSessions) drop(key [2]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if el, ok := n.known[key]; ok {
		n.order.Remove(el)
		delete(n.known, key)
	}
}

// noteSession writes a session that is new, without holding up the answer: the
// audit record has it already, and no revocation depends on it.
func (b *Broker) noteSession(l *Lineage, x *exchange) {
	key := [2]string{l.Session, x.r.Client.ID}
	if x.subject == nil || l.Session == "" || !b.noted.add(key) { // a client for itself has none
		return
	}
	s := Session{
		ID: l.Session, Subject: x.event.Party.Subject, Client: x.r.Client.ID, Agent: x.agent, First: x.now,
		Expires: x.now.Add(b.sessionLife(x.subject)),
	}
	select {
	case b.noted.slots <- struct{}{}:
	default:
		b.noted.drop(key) // too many at once: the next exchange of the session will do
		return
	}
	go func() {
		defer func() { <-b.noted.slots }()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := b.sessions.Note(ctx, s); err != nil {
			b.log.Warn("note session", "error", err)
			b.noted.drop(key)
		}
	}()
}

func (b *Broker) sessionLife(t *Token) time.Duration {
	i := b.reg.Issuers[t.Issuer]
	switch {
	case i == nil: // a token of ours
		return b.longest()
	case t.SessionID == "" && t.AuthTime.IsZero(): // each of its tokens is a session
		return i.MaxSubjectAge.Duration + b.longestIssued()
	}
	return i.MaxSessionAge.Duration
}

// longest is how long anything that exists now could matter: the longest session
// of any issuer, and what may be issued at its end.
func (b *Broker) longest() time.Duration {
	d := time.Hour
	for _, i := range b.reg.Issuers {
		d = max(d, i.MaxSessionAge.Duration)
	}
	return d + b.longestIssued() + 2*b.cfg.Skew
}

// longestIssued is the longest life of anything that we issue.
func (b *Broker) longestIssued() time.Duration {
	d := max(b.cfg.TokenLifetime, b.cfg.CredentialLifetime)
	for _, c := range b.reg.Clients {
		d = max(d, c.Session)
	}
	return d
}

// randomText fills b with random lower-case letters and digits, 5 bits each.
func randomText(b []byte) {
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyz234567"[b[i]&31]
	}
}
