package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Strangers is the subject under whose key the addresses of those are encrypted who
// were refused before they had said who they are. No issuer can name it.
const Strangers = "#strangers"

const (
	// noteDelay is how long an event of Note may wait to be written: many share one
	// sync, however fast they come.
	noteDelay = 100 * time.Millisecond
	// countEvery is how often those are written down that were only counted.
	countEvery = 10 * time.Second
)

// notes are what Note was given, and is not written yet.
type notes struct {
	writing sync.Mutex // held by whoever writes: who comes after finds it done

	mu     sync.Mutex
	tokens float64 // how many may be kept now
	filled time.Time
	events []*Event
	crowd  crowd
	soon   bool // a timer runs for events
	later  bool // a timer runs for crowd
	failed error
}

// crowd are events of which only the number is kept, and an example.
type crowd struct {
	count   int
	votes   int // of address, less those of others
	example Event
	address string
}

// add counts an event. The address that most have, if there is one, wins in the
// end, with an event of its.
func (c *crowd) add(e *Event, address string) {
	c.count++
	switch {
	case c.votes == 0:
		c.votes, c.example, c.address = 1, *e, address
	case c.address == address:
		c.votes++
	default:
		c.votes--
	}
}

// Note keeps an event on which nothing depends, such as the refusal of somebody who
// could not say who he is, without waiting until it is durable: it is written
// within a moment. Of many in a short time most are counted only, in one event of
// the kind [KindRefusals] every ten seconds, so that nobody can fill the record or
// keep the disk busy by being refused. There being no subject, personal data is
// encrypted under the key of [Strangers]. The error is about this event, or about
// earlier ones that could not be written.
func (l *Log) Note(ctx context.Context, e *Event, p Personal) error {
	keep, err := l.admit(e, p.Address)
	if !keep {
		return err
	}
	p.Subject = ""
	if p.Address != "" || p.Detail != "" {
		p.Subject = Strangers
	}
	if lost := l.complete(ctx, e, p); lost != nil {
		err = errors.Join(err, lost) // the event is kept without the address
	}
	n := &l.notes
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, e)
	if !n.soon {
		n.soon = true
		time.AfterFunc(noteDelay, func() { _ = l.writeNotes(context.Background(), false) })
	}
	return err
}

// admit decides whether an event is kept, and counts it if not. err is what went
// wrong since it was called last.
func (l *Log) admit(e *Event, address string) (keep bool, err error) {
	n := &l.notes
	n.mu.Lock()
	defer n.mu.Unlock()
	err, n.failed = n.failed, nil
	now := l.cfg.Now()
	n.tokens = min(n.tokens+max(now.Sub(n.filled).Seconds(), 0)*l.cfg.NoteRate, float64(l.cfg.NoteBurst))
	n.filled = now
	if n.tokens >= 1 {
		n.tokens--
		return true, err
	}
	n.crowd.add(e, address)
	l.countLater()
	return false, err
}

func (l *Log) countLater() {
	if !l.notes.later {
		l.notes.later = true
		time.AfterFunc(countEvery, func() { _ = l.writeNotes(context.Background(), true) })
	}
}

// Flush makes durable what [Log.Note] has kept or counted so far. Call it before
// the journal is closed.
func (l *Log) Flush() error { return l.writeNotes(context.Background(), true) }

func (l *Log) writeNotes(ctx context.Context, counted bool) error {
	n := &l.notes
	n.writing.Lock()
	defer n.writing.Unlock()
	n.mu.Lock()
	events := n.events
	n.events, n.soon = nil, false
	var c crowd
	if counted {
		c, n.crowd, n.later = n.crowd, crowd{}, false
	}
	n.mu.Unlock()
	var lost error
	if c.count > 0 {
		e := c.event()
		lost = l.complete(ctx, e, Personal{Subject: Strangers, Address: c.address})
		events = append(events, e)
	}
	err := l.append(events)
	if err != nil && !errors.Is(err, ErrClosed) {
		n.mu.Lock()
		for _, e := range events { // they count from now on
			n.crowd.add(e, "")
			n.crowd.count += max(e.Count, 1) - 1
		}
		l.countLater()
		n.mu.Unlock()
	}
	if err = errors.Join(lost, err); err != nil {
		n.mu.Lock()
		n.failed = fmt.Errorf("write what was noted: %w", err)
		n.mu.Unlock()
	}
	return err
}

// event returns the event that stands for all.
func (c *crowd) event() *Event {
	e := c.example
	return &Event{
		Kind: KindRefusals, Outcome: e.Outcome, Code: e.Code, Reason: e.Reason, Request: e.Request, GrantType: e.GrantType,
		Party: Party{Client: e.Party.Client}, Count: c.count,
	}
}

// append makes events durable with one sync.
func (l *Log) append(events []*Event) error {
	if len(events) == 0 {
		return nil
	}
	frames := make([]Frame, len(events))
	for i, e := range events {
		data, err := e.appendJSON(nil)
		if err != nil {
			return fmt.Errorf("encode event: %w", err)
		}
		frames[i] = Frame{FrameEvent, data}
	}
	return l.journal.Append(frames...)
}
