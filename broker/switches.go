package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/audit"
)

// Switch says that a party which the configuration names is turned off, by whom and
// since when.
type Switch struct {
	By     string    `json:"by"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
}

// SwitchedKind is the kind of a party that can be turned off.
type SwitchedKind string

// The kinds of parties that can be turned off.
const (
	SwitchClient SwitchedKind = "client"
	SwitchIssuer SwitchedKind = "issuer"
)

// Switches are the parties that are turned off while the server runs. They take
// away, and never give: what the configuration disables stays disabled.
type Switches struct {
	Version int               `json:"v"` // of the format: 1
	Clients map[string]Switch `json:"clients,omitempty"`
	Issuers map[string]Switch `json:"issuers,omitempty"`
}

func (s *Switches) of(kind SwitchedKind) map[string]Switch {
	if kind == SwitchIssuer {
		return s.Issuers
	}
	return s.Clients
}

// SwitchStore keeps the switches where no loss of the store reaches them.
type SwitchStore interface {
	// LoadSwitches returns the switches and their version; ErrNotFound if none were
	// ever saved.
	LoadSwitches(ctx context.Context) (Switches, int, error)
	// SaveSwitches replaces those of a version, 0 where there are none. ErrConflict
	// if they have changed.
	SaveSwitches(ctx context.Context, s Switches, version int) error
}

// switchesTimeout bounds a reading of the switches.
const switchesTimeout = 5 * time.Second

// off is which parties this replica refuses besides those that the configuration
// disables. It is replaced whole.
type off struct {
	Switches
	version int
	// doubted are parties that the feed says were turned off, by a version of the
	// switches that this replica has not read yet, and doubts how often there was one.
	doubted map[Key]bool
	doubts  int
}

// switched holds what is off. The zero value holds nothing.
type switched struct {
	now atomic.Pointer[off]
	mu  sync.Mutex // held by whoever replaces it
}

func (s *switched) load() *off {
	if o := s.now.Load(); o != nil {
		return o
	}
	return &off{}
}

// clientOff reports whether everything is refused to a client.
func (r *Registry) clientOff(c *Client) bool {
	if c.Disabled {
		return true
	}
	o := r.switched.now.Load()
	if o == nil {
		return false
	}
	_, listed := o.Clients[c.ID]
	return listed || len(o.doubted) > 0 && o.doubted[KeyOf(ByClient, c.ID)]
}

// issuerOff reports whether an issuer's tokens are refused.
func (r *Registry) issuerOff(i *Issuer) bool {
	if i.Disabled {
		return true
	}
	o := r.switched.now.Load()
	if o == nil {
		return false
	}
	_, listed := o.Issuers[i.Issuer]
	return listed || len(o.doubted) > 0 && o.doubted[KeyOf(ByIssuer, i.Issuer)]
}

// Switched returns the switch of a party, if it is turned off, and the version of the
// switches that this replica goes by.
func (b *Broker) Switched(kind SwitchedKind, id string) (s Switch, isOff bool, version int) {
	o := b.reg.switched.load()
	s, isOff = o.of(kind)[id]
	return s, isOff, o.version
}

// doubt turns off, until the switches have been read again, whom the feed says was
// turned off elsewhere, and reports whether there is anybody.
func (b *Broker) doubtSwitched(entries []Entry) (any bool) {
	for _, e := range entries {
		for _, k := range e.Where {
			if k.Kind != ByClient && k.Kind != ByIssuer {
				continue
			}
			any = true
			s := &b.reg.switched
			s.mu.Lock()
			next := *s.load()
			next.doubted = maps.Clone(next.doubted)
			if next.doubted == nil {
				next.doubted = make(map[Key]bool)
			}
			next.doubted[k] = true
			next.doubts++
			s.now.Store(&next)
			s.mu.Unlock()
		}
	}
	return any
}

// reloadSwitches reads the switches. Those that cannot be read stay as they were.
func (b *Broker) reloadSwitches(ctx context.Context) error {
	if b.switches == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, switchesTimeout)
	defer cancel()
	s := &b.reg.switched
	before := s.load().doubts
	got, version, err := b.switches.LoadSwitches(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.load()
	switch {
	case errors.Is(err, ErrNotFound) && now.version == 0:
	case err != nil:
		return fmt.Errorf("read what is turned off: %w", err)
	case got.Version > 1:
		return fmt.Errorf("what is turned off is written in format %d, which this version of Stint does not know", got.Version)
	case version < now.version:
		return fmt.Errorf("what is turned off is of version %d, and was of %d before", version, now.version)
	}
	next := &off{Switches: got, version: version, doubts: now.doubts}
	if now.doubts != before { // somebody was turned off while this was read
		next.doubted = now.doubted
	}
	s.now.Store(next)
	return nil
}

// SwitchRequest asks to turn a party off or on again.
type SwitchRequest struct {
	Kind SwitchedKind
	ID   string
	Off  bool
	// Reason is kept with the switch, and recorded.
	Reason string
	// Version is that of the switches which the asker has seen; nil: any.
	Version *int
	// Operator names who asks.
	Operator, RequestID string
}

// Switch turns a party off at every replica, and takes back what it was given or
// what was given by its tokens; or turns it on again, for what is new. It is durable
// when Switch returns. Errors: BadTarget, if nobody is called that; BadRequest, if the
// configuration disables it; Changed, if the switches are of another version; Conflict;
// Unavailable.
func (b *Broker) Switch(ctx context.Context, r SwitchRequest) error {
	before, after := "on", "off"
	if !r.Off {
		before, after = after, before
	}
	changed, err := b.setSwitch(ctx, r)
	if err == nil && !changed {
		return nil
	}
	e := &audit.Event{
		Kind: audit.KindConfig, Outcome: audit.Done, Request: r.RequestID, Party: audit.Party{Operator: r.Operator},
		Reason: r.Reason, Change: &audit.Change{What: string(r.Kind) + " " + r.ID, Before: before, After: after},
	}
	if err != nil {
		ended(e, err)
	}
	if failure := b.recorder.Record(ctx, e, audit.Personal{}); failure != nil {
		b.log.ErrorContext(ctx, "alarm: a switch could not be recorded", "error", failure)
	}
	if err != nil || !r.Off {
		return err
	}
	s := Selector{client: r.ID}
	if r.Kind == SwitchIssuer {
		s = Selector{issuer: r.ID}
	}
	why := fmt.Sprintf("the %s was turned off", r.Kind)
	_, err = b.revoke(ctx, Revocation{Selector: s, Reason: why, Operator: r.Operator, RequestID: r.RequestID}, s.where(), b.now().Add(b.longest()))
	return err
}

// setSwitch writes the switches, and reports whether that changed anything.
func (b *Broker) setSwitch(ctx context.Context, r SwitchRequest) (changed bool, err error) {
	if b.switches == nil {
		return false, Fail(Internal, errors.New("no place for switches"), "")
	}
	client, issuer := b.reg.Clients[r.ID], b.reg.Issuers[r.ID]
	if r.Kind == SwitchIssuer && issuer == nil || r.Kind == SwitchClient && client == nil {
		return false, Fail(BadTarget, nil, fmt.Sprintf("no %s is called that", r.Kind))
	}
	if r.Kind == SwitchIssuer && issuer.Disabled || r.Kind == SwitchClient && client.Disabled {
		return false, Fail(BadRequest, nil, fmt.Sprintf("the configuration disables this %s: change it there", r.Kind))
	}
	if err := b.reloadSwitches(ctx); err != nil {
		return false, unavailable(err)
	}
	now := b.reg.switched.load()
	_, is := now.of(r.Kind)[r.ID]
	switch {
	case r.Version != nil && *r.Version != now.version:
		return false, Fail(Changed, nil, "it has changed since it was read")
	case is == r.Off:
		return false, nil
	}
	next := Switches{Version: 1, Clients: maps.Clone(now.Clients), Issuers: maps.Clone(now.Issuers)}
	if next.Clients == nil {
		next.Clients = make(map[string]Switch)
	}
	if next.Issuers == nil {
		next.Issuers = make(map[string]Switch)
	}
	if r.Off {
		next.of(r.Kind)[r.ID] = Switch{By: r.Operator, At: b.now().UTC().Truncate(time.Second), Reason: r.Reason}
	} else {
		delete(next.of(r.Kind), r.ID)
	}
	err = b.switches.SaveSwitches(ctx, next, now.version)
	if errors.Is(err, ErrConflict) {
		return false, Fail(Conflict, err, "somebody else changed it just now")
	}
	if err == nil {
		err = b.reloadSwitches(ctx)
	}
	if err != nil {
		return false, unavailable(err)
	}
	return true, nil
}
