package broker

import (
	"math"
	"slices"
	"time"
)

// walk calls f for the kept entries up to and with a sequence number, oldest
// first, each as it was applied.
func (x *Index) walk(upto uint64, f func(Entry)) {
	at, others := x.base, x.others
	each := func(e Entry) bool {
		if e.Pos.Seq > upto {
			return false
		}
		e = at.Follow(e.Record, e.Pos)
		at = e.Head()
		f(e)
		return true
	}
	for i := 0; ; i++ {
		p := x.plain(i)
		if p == nil {
			break
		}
		seq := x.base.Pos.Seq + uint64(p.seq)
		for len(others) > 0 && others[0].Pos.Seq < seq {
			if !each(others[0]) {
				return
			}
			others = others[1:]
		}
		if !each(p.entry(Position{x.epoch(seq), seq})) {
			return
		}
	}
	for _, e := range others {
		if !each(e) {
			return
		}
	}
}

// epoch returns the epoch that a sequence number is in.
func (x *Index) epoch(seq uint64) uint64 {
	epoch := x.base.Pos.Epoch
	for _, p := range x.epochs {
		if p.Seq <= seq {
			epoch = p.Epoch
		}
	}
	return epoch
}

func (p *plain) entry(pos Position) Entry {
	return Entry{Record: Record{
		Where: []Key{p.key()}, At: time.Unix(int64(p.at), 0), Expires: time.Unix(int64(p.expires), 0),
	}, Pos: pos}
}

// After returns the kept entries behind a sequence number, oldest first, and
// what the first of them follows.
func (x *Index) After(seq uint64) (from Head, entries []Entry) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	from = x.base
	x.walk(math.MaxUint64, func(e Entry) {
		if e.Pos.Seq <= seq {
			from = e.Head()
		} else {
			entries = append(entries, e)
		}
	})
	return from, entries
}

// Holds reports whether h is on the chain that the index followed: yes, no, or
// too long ago to tell.
func (x *Index) Holds(h Head) (yes, known bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if h == x.base || h == x.head {
		return true, true
	}
	for i := len(x.recent) - 1; i >= 0; i-- {
		if r := x.recent[i]; r.Pos.Seq <= h.Pos.Seq {
			return r == h, true
		}
	}
	return false, h.Pos.Epoch != x.base.Pos.Epoch
}

// Sweep forgets the oldest entries that are of no more use, and returns the
// sequence number up to which the feed may be trimmed. It does a bounded amount of
// work; more is true if there may be more to do.
//
// A few thousand entries stay, whatever they are: they cost little, and moving the
// base goes through all that stay.
func (x *Index) Sweep(now time.Time) (upto uint64, more bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	last, plains, ok := x.outlived(segmentSize, now)
	if !ok {
		return x.base.Pos.Seq, false
	}
	base := x.base
	x.walk(last, func(e Entry) { base = e.Head() })
	for range plains {
		x.forget()
	}
	x.rebase(base)
	return base.Pos.Seq, true
}

// outlived returns the sequence number of the last of the n oldest entries, and how
// many of those are plain. ok is true if all n are of no more use, and there are
// others behind them: the newest entry stays.
func (x *Index) outlived(n int, now time.Time) (last uint64, plains int, ok bool) {
	others := x.others
	if x.plains()+len(others) <= n {
		return 0, 0, false
	}
	for range n {
		p := x.plain(plains)
		if p == nil || len(others) > 0 && others[0].Pos.Seq < x.base.Pos.Seq+uint64(p.seq) {
			if others[0].Expires.After(now) {
				return 0, 0, false
			}
			last, others = others[0].Pos.Seq, others[1:]
			continue
		}
		if int64(p.expires) > now.Unix() {
			return 0, 0, false
		}
		last = x.base.Pos.Seq + uint64(p.seq)
		plains++
	}
	return last, plains, true
}

// plains returns how many plain records are kept.
func (x *Index) plains() int {
	last := len(x.segments) - 1
	if last < 0 {
		return 0
	}
	return last*segmentSize + len(x.segments[last]) - x.first
}

// plain returns the i-th plain record that is kept, from the oldest; nil if there
// are fewer.
func (x *Index) plain(i int) *plain {
	if i >= x.plains() {
		return nil
	}
	return x.record(x.dropped + uint32(x.first+i))
}

// forget drops the oldest plain record, and its segment with the last of it.
func (x *Index) forget() {
	x.counts[x.segments[0][x.first].kind]--
	x.remove(x.dropped + uint32(x.first))
	if x.first++; x.first == segmentSize {
		x.segments[0] = nil
		x.segments = x.segments[1:]
		x.dropped += segmentSize
		x.first = 0
	}
}

// rebase moves the base up to where the oldest kept entry begins.
func (x *Index) rebase(base Head) {
	delta := uint32(base.Pos.Seq - x.base.Pos.Seq)
	skip := x.first
	for _, s := range x.segments {
		for i := skip; i < len(s); i++ {
			s[i].seq -= delta
		}
		skip = 0
	}
	n := 0
	seen := make(map[Key]bool) // a key may be that of all
	for ; n < len(x.others) && x.others[n].Pos.Seq <= base.Pos.Seq; n++ {
		for _, k := range x.others[n].Where {
			if !seen[k] {
				seen[k] = true
				x.unhang(k, base.Pos.Seq)
			}
		}
	}
	if n > 0 { // into a new place: the old one is as large as the most there ever were
		x.others = slices.Clone(x.others[n:])
	}
	x.epochs = slices.DeleteFunc(x.epochs, func(p Position) bool { return p.Seq <= base.Pos.Seq })
	x.base = base
}

// unhang drops the records with several conditions that hang on a key, up to a
// sequence number.
func (x *Index) unhang(k Key, upto uint64) {
	hung := x.joint[k]
	n := 0
	for n < len(hung) && hung[n].Pos.Seq <= upto {
		n++
	}
	x.counts[k.Kind] -= n
	if n == len(hung) {
		delete(x.joint, k)
	} else if n > 0 {
		x.joint[k] = slices.Clone(hung[n:])
	}
}
