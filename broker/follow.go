package broker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/audit"
)

// currency says whether this replica knows every revocation that it must.
type currency struct{ at atomic.Pointer[moment] }

// moment is when the replica was last known to be current, and what has kept it
// from being so since.
type moment struct {
	confirmed time.Time
	why       string // of the chain or the clock: not current, however fresh
}

func (c *currency) confirm(at time.Time) { c.at.Store(&moment{confirmed: at}) }

// doubt says that the replica is not current, for another reason than age.
func (c *currency) doubt(why string) {
	m := moment{why: why}
	if old := c.at.Load(); old != nil {
		m.confirmed = old.confirmed
	}
	c.at.Store(&m)
}

func (c *currency) state(now time.Time) (behind time.Duration, why string) {
	m := c.at.Load()
	if m == nil {
		return math.MaxInt64, "no heartbeat has been confirmed yet"
	}
	return now.Sub(m.confirmed), m.why
}

// current returns nil if this replica may grant, else an error with the code
// Unavailable: clients keep their tokens and come again.
func (b *Broker) current(now time.Time) error {
	behind, why := b.currency.state(now)
	if why == "" && behind > b.cfg.MaxStaleness {
		why = fmt.Sprintf("the last confirmed heartbeat is %s old", behind.Round(time.Millisecond))
	}
	if why != "" {
		return unavailable(errors.New("not current: " + why))
	}
	return nil
}

// readBatch is how many entries are read at a time.
const readBatch = 10_000

// Start loads the feed, settles with the store what either has lost, joins the
// other replicas and returns when this one is current. After an error it may be
// called again.
func (b *Broker) Start(ctx context.Context) error {
	b.joined = b.now().Unix()
	saved, err := b.anchor.LoadHead(ctx)
	if err != nil {
		return fmt.Errorf("load the feed's anchor: %w", err)
	}
	b.anchored.Store(&saved)
	if err := b.load(ctx, saved); err != nil {
		return err
	}
	if err := b.reloadSwitches(ctx); err != nil {
		return err
	}
	return b.beat(ctx)
}

// load fills the index from the feed. known heads that are not on its chain mean
// that the store lost something.
func (b *Broker) load(ctx context.Context, saved Head) error {
	fresh, lost, err := b.read(ctx, b.journalNew, saved, b.known)
	if err != nil {
		return fmt.Errorf("load the revocation feed: %w", err)
	}
	if !lost {
		if lost, err = b.beheaded(fresh); err != nil {
			return err
		}
	}
	switch {
	case fresh.Head() == Head{} && saved == Head{} && b.known == Head{}:
		return b.begin(ctx)
	case fresh.Head() == Head{} || lost:
		if err := b.restore(ctx, saved); err != nil {
			return fmt.Errorf("settle the revocation feed: %w", err)
		}
	default:
		b.index.Reset(fresh)
	}
	return nil
}

// read builds an index of the whole feed, and shows each batch of entries to
// each, which may be nil. lost is true if one of the heads should be on the
// feed's chain and is not.
func (b *Broker) read(ctx context.Context, each func([]Entry), heads ...Head) (x *Index, lost bool, err error) {
	x = NewIndex(b.cfg.Skew)
	seen := make([]bool, len(heads))
	for {
		entries, err := b.feed.Read(ctx, x.Head().Pos.Seq, readBatch, 0)
		if err != nil {
			return nil, false, err
		}
		if len(entries) == 0 {
			break
		}
		first := x.Head() == Head{}
		for i, h := range heads {
			for _, e := range entries {
				// What was trimmed away before the feed's beginning is not missing.
				seen[i] = seen[i] || e.Head() == h || first && h.Pos.Epoch <= entries[0].Pos.Epoch && h.Pos.Seq < entries[0].Pos.Seq
			}
		}
		if n := x.Apply(entries...); n < len(entries) {
			return x, true, nil // the store's own chain is broken: what is behind is repaired from what we know
		}
		if each != nil {
			each(entries)
		}
	}
	for i, h := range heads {
		if h != (Head{}) && !seen[i] {
			lost = true
		}
	}
	return x, lost, nil
}

// begin makes the first entry of a new installation's feed.
func (b *Broker) begin(ctx context.Context) error {
	now := b.now()
	first := Head{}.Follow(Record{At: now.Truncate(time.Second), Expires: now.Truncate(time.Second)}, Position{uint64(now.UnixMilli()), 1})
	err := b.feed.Append(ctx, Head{}, first)
	if err != nil && !errors.Is(err, ErrConflict) { // a conflict: another replica was first
		return fmt.Errorf("begin the revocation feed: %w", err)
	}
	fresh, _, err := b.read(ctx, b.journalNew)
	if err != nil {
		return fmt.Errorf("load the revocation feed: %w", err)
	}
	b.index.Reset(fresh)
	b.saveAnchor(ctx)
	return nil
}

// alarm records what an operator has to know.
func (b *Broker) alarm(ctx context.Context, what string, pos Position) {
	b.log.ErrorContext(ctx, "alarm: "+what, "position", pos.String())
	e := &audit.Event{Kind: audit.KindService, Outcome: audit.Failed, Reason: what, Revocation: &audit.Revocation{Position: pos.String(), Selector: []string{"everything"}}}
	if err := b.recorder.Record(ctx, e, audit.Personal{}); err != nil {
		b.log.ErrorContext(ctx, "record alarm", "error", err)
	}
}

// journal keeps entries, so that this replica can give them back to a store that
// lost them. Without a journal revocations still work.
func (b *Broker) journal(entries []Entry) {
	for batch := range slices.Chunk(entries, 4096) {
		frames := make([]audit.Frame, len(batch))
		for i, e := range batch {
			frames[i] = audit.Frame{Type: audit.FrameFeed, Payload: e.Encode()}
		}
		if err := b.recorder.Keep(frames...); err != nil {
			b.log.Error("alarm: the journal does not take revocations", "error", err)
		}
	}
}

// journalNew keeps what the journal did not have when this process started.
func (b *Broker) journalNew(entries []Entry) { b.journal(after(entries, b.known.Pos.Seq)) }

// take applies entries that were read or appended. It reports whether they fit
// the chain; those that it has already do.
func (b *Broker) take(entries []Entry) bool {
	b.repair.Lock()
	defer b.repair.Unlock()
	news := slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool {
		has, _ := b.index.Holds(e.Head())
		return has
	})
	n := b.index.Apply(news...)
	b.journal(news[:n])
	b.toMark(news[:n])
	b.toReload(news[:n])
	return n == len(news)
}

// Run follows the feed, keeps the heartbeat, marks and ends leases, and returns
// when ctx is done, after leaving the other replicas.
func (b *Broker) Run(ctx context.Context) {
	done := make(chan struct{})
	loops := []func(context.Context){b.followLoop, b.beatLoop, b.markLoop, b.reapLoop, b.upkeepLoop, b.sweepLoop, b.keyLoop}
	for _, loop := range loops {
		go func() { loop(ctx); done <- struct{}{} }()
	}
	for range loops {
		<-done
	}
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := b.feed.Leave(leave, b.cfg.Replica); err != nil {
		b.log.Warn("leave the other replicas", "error", err)
	}
}

func (b *Broker) followLoop(ctx context.Context) {
	for ctx.Err() == nil {
		entries, err := b.feed.Read(ctx, b.index.Head().Pos.Seq, readBatch, time.Second)
		if err != nil {
			b.complain(ctx, "read the revocation feed", err)
			pause(ctx, 100*time.Millisecond)
			continue
		}
		if !b.take(entries) {
			b.currency.doubt("the store's chain of revocations is not the one this replica followed")
			if err := b.mend(ctx); err != nil {
				b.complain(ctx, "mend the revocation feed", err)
				pause(ctx, 100*time.Millisecond)
			}
		}
	}
}

func (b *Broker) beatLoop(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, b.cfg.MaxStaleness/4)
		if err := b.beat(ctx); err != nil {
			b.complain(ctx, "heartbeat", err)
		}
	}
}

// beat confirms that this replica is current. It is, as of the moment before the
// heartbeat was sent, if the store took the heartbeat, agrees on the time, and
// has no entry that the index has not.
func (b *Broker) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.MaxStaleness)
	defer cancel()
	sent, head := b.now(), b.index.Head()
	beat, err := b.feed.Beat(ctx, Replica{ID: b.cfg.Replica, Applied: head.Pos, Since: b.joined}, 3*b.cfg.MaxStaleness)
	if err != nil {
		return err
	}
	trip := b.now().Sub(sent)
	if off := beat.Now.Sub(sent.Add(trip / 2)).Abs(); off > b.cfg.MaxClockOffset+trip {
		err := fmt.Errorf("the clock is %s from the store's", off.Round(time.Millisecond))
		b.currency.doubt(err.Error())
		return err
	}
	if beat.Head.Pos.Seq < head.Pos.Seq {
		b.currency.doubt("the store lost revocations that this replica has")
		if err := b.mend(ctx); err != nil {
			return err
		}
		return errors.New("the store had lost revocations; they are back")
	}
	if err := b.reach(ctx, beat.Head.Pos.Seq); err != nil {
		return fmt.Errorf("revocations up to %s: %w", beat.Head.Pos, err)
	}
	if has, _ := b.index.Holds(beat.Head); !has {
		b.currency.doubt("the store's chain of revocations is not the one this replica followed")
		return b.mend(ctx)
	}
	b.currency.confirm(sent)
	return nil
}

// reach waits until the index has come to a sequence number, reading by itself
// what is missing.
func (b *Broker) reach(ctx context.Context, seq uint64) error {
	for b.index.Head().Pos.Seq < seq {
		entries, err := b.feed.Read(ctx, b.index.Head().Pos.Seq, readBatch, 0)
		if err != nil {
			return err
		}
		if !b.take(entries) {
			return b.mend(ctx)
		}
		if len(entries) == 0 {
			return errors.New("the store counts entries that it does not give")
		}
	}
	return nil
}

// upkeepLoop remembers the head outside the store, forgets what is of no more
// use, and trims the feed.
func (b *Broker) upkeepLoop(ctx context.Context) {
	trimmed := uint64(0)
	for ctx.Err() == nil {
		pause(ctx, time.Second)
		b.saveAnchor(ctx)
		upto, more := b.index.Sweep(b.now().Add(-b.cfg.Skew))
		for more && ctx.Err() == nil {
			upto, more = b.index.Sweep(b.now().Add(-b.cfg.Skew))
		}
		if upto > trimmed {
			if err := b.feed.Trim(ctx, upto); err != nil {
				b.complain(ctx, "trim the revocation feed", err)
				continue
			}
			trimmed = upto
		}
	}
}

func (b *Broker) saveAnchor(ctx context.Context) {
	head := b.index.Head()
	if old := b.anchored.Load(); old != nil && *old == head {
		return
	}
	if err := b.anchor.SaveHead(ctx, head); err != nil {
		b.complain(ctx, "save the feed's anchor", err)
		return
	}
	b.anchored.Store(&head)
}

// complain logs what went wrong in the background, unless it is the end.
func (b *Broker) complain(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		b.log.WarnContext(ctx, what, "error", err)
	}
}

// pause waits, but not beyond the end.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
