package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// restore settles at start, from the journal, what the store has lost.
func (b *Broker) restore(ctx context.Context, saved Head) error {
	b.log.ErrorContext(ctx, "the store lost part of the revocation feed", "known", b.known.Pos.String(), "anchor", saved.Pos.String())
	mine, err := b.history(0)
	if err != nil {
		return fmt.Errorf("read the feed from the journal: %w", err)
	}
	own := NewIndex(b.cfg.Skew)
	own.Apply(chainTo(b.known, mine)...)
	b.index.Reset(own)
	if holds, _ := own.Holds(saved); saved != (Head{}) && !holds {
		// Others may know more. Give those that run time to put it back.
		if err := b.waitForOthers(ctx, saved); err != nil {
			return b.newEpoch(ctx, saved)
		}
	}
	if own.Head() == (Head{}) {
		// A head of ours whose entries the journal does not have any more counts, too.
		fresh, lost, err := b.read(ctx, b.journalNew, saved, b.known)
		if err != nil || lost || fresh.Head() == (Head{}) {
			return errors.Join(err, b.newEpoch(ctx, saved))
		}
		b.index.Reset(fresh)
		return nil
	}
	return b.mend(ctx)
}

// chainTo returns the chain that ends at a head, oldest first, out of entries in
// any order, among which there may be others and some more than once.
func chainTo(h Head, entries []Entry) (chain []Entry) {
	byID := make(map[ChainID]Entry, len(entries))
	for _, e := range entries {
		byID[e.ID] = e
	}
	for id := h.ID; ; {
		e, ok := byID[id]
		if !ok {
			slices.Reverse(chain)
			return chain
		}
		chain = append(chain, e)
		id = e.Prev
	}
}

// waitForOthers waits until the feed holds a head again.
func (b *Broker) waitForOthers(ctx context.Context, h Head) error {
	ctx, cancel := context.WithTimeout(ctx, 2*b.cfg.MaxStaleness)
	defer cancel()
	for {
		fresh, lost, err := b.read(ctx, nil, h)
		if err == nil && !lost && fresh.Head() != (Head{}) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(b.cfg.MaxStaleness / 8):
		}
	}
}

// newEpoch gives up what was lost: everything made before now is dead.
func (b *Broker) newEpoch(ctx context.Context, saved Head) error {
	fresh, _, err := b.read(ctx, b.journalNew)
	if err != nil {
		return err
	}
	now := b.now()
	at := fresh.Head()
	pos := Position{
		max(uint64(now.UnixMilli()), at.Pos.Epoch+1, saved.Pos.Epoch+1),
		max(at.Pos.Seq, saved.Pos.Seq, b.index.Head().Pos.Seq) + 1,
	}
	e := at.Follow(Record{
		Where: []Key{KeyOf(ByEverything)}, At: now.Truncate(time.Second).Add(time.Second),
		Expires: now.Add(b.longest()).Truncate(time.Second),
	}, pos)
	if err := b.feed.Append(ctx, at, e); err != nil {
		return fmt.Errorf("begin a new epoch: %w", err)
	}
	fresh.Apply(e)
	b.index.Reset(fresh)
	b.alarm(ctx, "part of the revocation feed is lost for good: everything issued before now is treated as revoked", pos)
	b.journal([]Entry{e})
	b.saveAnchor(ctx)
	return nil
}

// mend compares the chain of this replica with the store's, and puts back what
// the store lost. Where both went on differently, what either has since is
// appended once more behind both, so that no position can be mistaken.
func (b *Broker) mend(ctx context.Context) error {
	b.repair.Lock()
	defer b.repair.Unlock()
	base, mine := b.index.After(0)
	theirs, err := b.readAll(ctx)
	if err != nil {
		return err
	}
	var at Head // the end of the store's chain
	if len(theirs) > 0 {
		at = theirs[len(theirs)-1].Head()
	}
	head := b.index.Head()
	common, shared := lastCommon(base, mine, theirs)
	lost, found := after(mine, common), after(theirs, common)
	gone := missing(mine[:len(mine)-len(lost)], theirs, b.now())
	var add []Entry
	switch {
	case len(theirs) > 0 && !shared && at.Pos.Epoch >= head.Pos.Epoch && theirs[0].Pos.Seq > head.Pos.Seq && len(missing(mine, nil, b.now())) == 0:
		// We are so far behind that what we knew has been trimmed away: it had run out.
	case len(lost)+len(gone) == 0:
	case len(found)+len(gone) == 0 && (shared || len(theirs) == 0):
		add = lost // as they were
	default:
		pos := Position{max(at.Pos.Epoch, head.Pos.Epoch), max(at.Pos.Seq, head.Pos.Seq)}
		end := at
		if len(lost) == 0 {
			found = nil // nothing of ours has the place of one of these
		}
		for _, e := range slices.Concat(found, lost, gone) {
			pos.Seq++
			e = end.Follow(e.Record, pos)
			end = e.Head()
			add = append(add, e)
		}
	}
	if len(add) > 0 { // what else was in the store may be gone as well
		end := add[len(add)-1].Head()
		add = append(add[:len(add):len(add)], end.Follow(b.loss(), Position{end.Pos.Epoch, end.Pos.Seq + 1}))
	}
	for len(add) > 0 {
		n := min(len(add), 1000)
		if err := b.feed.Append(ctx, at, add[:n]...); err != nil {
			return fmt.Errorf("put back %d lost revocations: %w", len(add), err)
		}
		b.log.WarnContext(ctx, "put back lost revocations", "count", n)
		at, add = add[n-1].Head(), add[n:]
	}
	before := b.index.Head().Pos.Seq
	fresh, _, err := b.read(ctx, func(entries []Entry) {
		news := after(entries, before)
		b.journal(news)
		b.toMark(news)
		b.toReload(news)
	})
	if err != nil {
		return err
	}
	b.index.Reset(fresh)
	return nil
}

// missing returns those entries of mine that are not among theirs and have not run
// out: what has is trimmed away.
func missing(mine, theirs []Entry, now time.Time) (gone []Entry) {
	there := make(map[ChainID]bool, len(theirs))
	for _, e := range theirs {
		there[e.ID] = true
	}
	for _, e := range mine {
		if e.Expires.After(now) && !there[e.ID] {
			gone = append(gone, e)
		}
	}
	return gone
}

// beheaded reports whether a feed that does not begin at the beginning lacks entries
// that this replica's journal has and that have not run out.
func (b *Broker) beheaded(x *Index) (bool, error) {
	base, theirs := x.After(0)
	if base.ID == (ChainID{}) || b.known == (Head{}) {
		return false, nil
	}
	mine, err := b.history(0)
	if err != nil {
		return false, fmt.Errorf("read the feed from the journal: %w", err)
	}
	return len(missing(chainTo(b.known, mine), theirs, b.now())) > 0, nil
}

// loss is the record of one: it selects nothing, and says when.
func (b *Broker) loss() Record {
	now := b.now()
	return Record{At: now.Truncate(time.Second).Add(time.Second), Expires: now.Add(b.longest()).Truncate(time.Second).Add(2 * time.Second)}
}

func (b *Broker) readAll(ctx context.Context) (all []Entry, err error) {
	for seq := uint64(0); ; {
		entries, err := b.feed.Read(ctx, seq, readBatch, 0)
		if err != nil || len(entries) == 0 {
			return all, err
		}
		all = append(all, entries...)
		seq = entries[len(entries)-1].Pos.Seq
	}
}

// lastCommon returns the sequence number of the last entry that both chains
// have, or of what both begin behind.
func lastCommon(base Head, mine, theirs []Entry) (seq uint64, shared bool) {
	ids := make(map[Head]bool, len(theirs))
	for _, e := range theirs {
		ids[e.Head()] = true
	}
	for i := len(mine) - 1; i >= 0; i-- {
		if ids[mine[i].Head()] {
			return mine[i].Pos.Seq, true
		}
	}
	if len(theirs) > 0 && (ids[base] || theirs[0].Prev == base.ID) {
		return base.Pos.Seq, true
	}
	return 0, false
}

func after(entries []Entry, seq uint64) []Entry {
	i := slices.IndexFunc(entries, func(e Entry) bool { return e.Pos.Seq > seq })
	if i < 0 {
		return nil
	}
	return entries[i:]
}
