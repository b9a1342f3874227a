package broker

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// Index holds every live revocation in memory. Whatever is checked is checked
// here, in a few look-ups, and never waits for the store.
//
// Records with one condition, by far the most, take 32 bytes each and a slot or
// two of 4 bytes in a hash table, without a pointer among them; records with
// several conditions hang on their rarest. Both turn back into feed entries,
// byte for byte, so that a replica can restore what the store lost.
type Index struct {
	skew time.Duration

	mu       sync.RWMutex
	base     Head // what the oldest kept entry follows
	head     Head
	recent   []Head     // the last heads, oldest first
	segments [][]plain  // records with one condition, oldest first
	first    int        // records of the first segment that are forgotten
	dropped  uint32     // records that were in segments dropped since
	table    table      // of plain records: their numbers, counted from the very first
	others   []Entry    // entries that are not plain, oldest first
	epochs   []Position // entries at which a new epoch began, oldest first
	joint    map[Key][]Entry
	counts   [kinds]int // live records by the kind that they are filed under
	loss     Loss
}

// Loss is when the store last lost data, as far as the feed knows. What else was in
// it may be lost as well: before all which ids were used that may be used once.
type Loss struct {
	Pos Position
	At  time.Time
}

// plain is a record with one condition.
type plain struct {
	digest      [16]byte
	at, expires uint32 // Unix seconds
	seq         uint32 // behind Index.base
	kind        Kind
}

const (
	segmentSize = 4096
	recentSize  = 4096
)

// NewIndex returns an empty index. skew is how far the clocks of foreign issuers
// may be off: a foreign token counts as older than a revocation up to that.
func NewIndex(skew time.Duration) *Index {
	return &Index{skew: skew, table: newTable(), joint: make(map[Key][]Entry)}
}

// Head returns how far the index has come.
func (x *Index) Head() Head {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.head
}

// Len returns how many live records there are.
func (x *Index) Len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := 0
	for _, c := range x.counts {
		n += c
	}
	return n
}

// Apply adds entries that follow the head and one another, and returns how many
// it took: fewer than all if one does not follow.
func (x *Index) Apply(entries ...Entry) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, e := range entries {
		if x.head == (Head{}) { // whatever comes first: those before it were trimmed
			x.base = Head{Position{e.Pos.Epoch, e.Pos.Seq - 1}, e.Prev}
			x.head = x.base
		}
		if e.Prev != x.head.ID || e.Pos.Epoch < x.head.Pos.Epoch || e.Pos.Seq <= x.head.Pos.Seq {
			return i
		}
		x.add(e)
		x.head = e.Head()
		if len(x.recent) == recentSize {
			x.recent = slices.Delete(x.recent, 0, recentSize/2)
		}
		x.recent = append(x.recent, x.head)
	}
	return len(entries)
}

func (x *Index) add(e Entry) {
	rel := e.Pos.Seq - x.base.Pos.Seq
	if e.marksLoss() {
		x.loss = Loss{e.Pos, e.At}
	}
	if e.Pos.Epoch != x.head.Pos.Epoch {
		x.epochs = append(x.epochs, e.Pos)
	}
	if len(e.Where) != 1 || !e.Until.IsZero() || rel > math.MaxUint32 || !fits(e.At) || !fits(e.Expires) {
		x.others = append(x.others, e)
		if len(e.Where) > 0 {
			k := slices.MinFunc(e.Where, func(a, b Key) int { return int(a.Kind) - int(b.Kind) })
			x.joint[k] = append(x.joint[k], e)
			x.counts[k.Kind]++
		}
		return
	}
	last := len(x.segments) - 1
	if last < 0 || len(x.segments[last]) == segmentSize {
		x.segments = append(x.segments, make([]plain, 0, segmentSize))
		last++
	}
	x.segments[last] = append(x.segments[last], plain{
		e.Where[0].Digest, uint32(e.At.Unix()), uint32(e.Expires.Unix()), uint32(rel), e.Where[0].Kind,
	})
	x.counts[e.Where[0].Kind]++
	x.insert(x.dropped + uint32(last*segmentSize+len(x.segments[last])-1))
}

func fits(t time.Time) bool { return t.Unix() >= 0 && t.Unix() <= math.MaxUint32 }

// Loss returns the last loss; zero if there was none.
func (x *Index) Loss() Loss {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.loss
}

// record returns the plain record of a number.
func (x *Index) record(number uint32) *plain {
	n := int(number - x.dropped)
	return &x.segments[n/segmentSize][n%segmentSize]
}

func (p *plain) key() Key { return Key{p.kind, p.digest} }

// Reset makes x what y is; y is not used any more.
func (x *Index) Reset(y *Index) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.base, x.head, x.recent, x.segments, x.first, x.dropped = y.base, y.head, y.recent, y.segments, y.first, y.dropped
	x.table, x.others, x.epochs, x.joint, x.counts, x.loss = y.table, y.others, y.epochs, y.joint, y.counts, y.loss
}

// made is when a token came into being: by feed position if we made it, else by
// its issuer's clock.
type made struct {
	pos  Position
	time time.Time
}

// before reports whether that was at or before a revocation.
func (x *Index) before(m made, seq uint64, at time.Time) bool {
	if m.pos.Epoch != 0 {
		return m.pos.Seq < seq
	}
	return !m.time.After(at.Add(x.skew))
}

// Check reports whether a lineage has been revoked, and if so by what kind of
// condition. It fails for a token of another epoch: what was known then is lost.
func (x *Index) Check(l *Lineage) error {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for i := range l.Hops {
		if l.Hops[i].Pos.Epoch != x.head.Pos.Epoch {
			return fmt.Errorf("made in another epoch of the revocation feed (%s, now %s)", l.Hops[i].Pos, x.head.Pos)
		}
	}
	for i := range l.generations() {
		m := l.made(i)
		for kind := ByToken; kind < kinds; kind++ {
			if x.counts[kind] == 0 {
				continue
			}
			if l.keys(i, kind, func(k Key) bool { return x.hit(k, m, l) }) {
				return fmt.Errorf("revoked by %s", kind)
			}
		}
	}
	return nil
}

// hit reports whether a record filed under the key of a generation selects it.
func (x *Index) hit(k Key, m made, l *Lineage) bool {
	if p := x.find(k); p != nil && (k.Kind.forever() || x.before(m, x.base.Pos.Seq+uint64(p.seq), time.Unix(int64(p.at), 0))) {
		return true
	}
	for i := range x.joint[k] {
		if x.selects(&x.joint[k][i], l) {
			return true
		}
	}
	return false
}

// selects reports whether a record with several conditions takes some
// generation of a lineage: one that meets them all, and was made before.
func (x *Index) selects(e *Entry, l *Lineage) bool {
	forever := slices.ContainsFunc(e.Where, func(k Key) bool { return k.Kind.forever() })
	for i := range l.generations() {
		if l.meets(i, e.Where) && (forever || x.before(l.made(i), e.Pos.Seq, e.At)) {
			return true
		}
	}
	return false
}

// Selects reports whether a record behind a position selects what is filed under
// the keys. Of several conditions each is met by some key.
func (x *Index) Selects(keys []Key, pos Position) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if pos.Epoch != x.head.Pos.Epoch {
		return true
	}
	for _, k := range keys {
		if p := x.find(k); p != nil && (k.Kind.forever() || x.base.Pos.Seq+uint64(p.seq) > pos.Seq) {
			return true
		}
		for _, e := range x.joint[k] {
			if e.Pos.Seq > pos.Seq && !slices.ContainsFunc(e.Where, func(w Key) bool { return !slices.Contains(keys, w) }) {
				return true
			}
		}
	}
	return false
}

// Frozen reports whether new grants to a lineage are frozen at a time, and until
// when.
func (x *Index) Frozen(l *Lineage, now time.Time) (until time.Time, frozen bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, e := range x.others {
		if !e.Until.After(now) {
			continue
		}
		for i := range l.generations() {
			if l.meets(i, e.Where) {
				return e.Until, true
			}
		}
	}
	return time.Time{}, false
}
