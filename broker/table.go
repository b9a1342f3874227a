package broker

import (
	"encoding/binary"
	"math/bits"
)

// table is the hash table of plain records: open addressing, one step at a time.
//
// A slot holds the lowest bits of a record's number, and above them a tag, from
// other bits of the key's digest than its place: what is not there is found out
// without looking at records, which lie all over the memory. A slot in use is not
// zero, as no tag is.
type table struct {
	slots []uint32
	used  int // slots in use
	width int // bits of a number
}

func newTable() table { return table{slots: make([]uint32, 1024), width: bits.Len(2 * segmentSize)} }

// place returns where the search for a key begins, and its tag.
func (t *table) place(k Key) (slot, tag uint32) {
	h := binary.LittleEndian.Uint64(k.Digest[:]) + uint64(k.Kind)*0x9e3779b97f4a7c15
	return uint32(h) & t.mask(), max(uint32(h>>32)>>t.width, 1)
}

func (t *table) mask() uint32 { return uint32(len(t.slots) - 1) }

// number returns which record a slot means, of those that begin with first.
func (t *table) number(slot, first uint32) uint32 {
	return first + (slot-first)&(1<<t.width-1)
}

// value returns what a slot holds for a record.
func (t *table) value(tag, number uint32) uint32 { return tag<<t.width | number&(1<<t.width-1) }

// insert files a record. A newer record of the same key takes the place of the
// older, which it includes.
func (x *Index) insert(number uint32) {
	if full := x.table.used*3 > len(x.table.slots)*2; full || number-x.dropped >= 1<<x.table.width {
		x.grow(full)
	}
	t := &x.table
	k := x.record(number).key()
	i, tag := t.place(k)
	for ; t.slots[i] != 0; i = (i + 1) & t.mask() {
		if s := t.slots[i]; s>>t.width == tag && x.record(t.number(s, x.dropped)).key() == k {
			t.slots[i] = t.value(tag, number)
			return
		}
	}
	t.slots[i] = t.value(tag, number)
	t.used++
}

// grow makes room for twice the records that are kept, and for twice the keys if
// the slots are full.
func (x *Index) grow(full bool) {
	old := x.table
	x.table = table{slots: make([]uint32, len(old.slots)), width: bits.Len(uint(2 * len(x.segments) * segmentSize))}
	if full {
		x.table.slots = make([]uint32, 2*len(old.slots))
	}
	for _, s := range old.slots {
		if s != 0 {
			x.insert(old.number(s, x.dropped))
		}
	}
}

// find returns the newest plain record of a key.
func (x *Index) find(k Key) *plain {
	t := &x.table
	for i, tag := t.place(k); t.slots[i] != 0; i = (i + 1) & t.mask() {
		if s := t.slots[i]; s>>t.width == tag {
			if p := x.record(t.number(s, x.dropped)); p.key() == k {
				return p
			}
		}
	}
	return nil
}

// remove takes a record out of the table, if it is the newest of its key.
func (x *Index) remove(number uint32) {
	t := &x.table
	mask := t.mask()
	i, tag := t.place(x.record(number).key())
	for t.slots[i] != t.value(tag, number) {
		if t.slots[i] == 0 {
			return
		}
		i = (i + 1) & mask
	}
	// Close the gap, so that every record is still found from its slot.
	for j := i; ; {
		t.slots[i] = 0
		for {
			j = (j + 1) & mask
			if t.slots[j] == 0 {
				t.used--
				return
			}
			home, _ := t.place(x.record(t.number(t.slots[j], x.dropped)).key())
			if (j-home)&mask >= (j-i)&mask {
				break
			}
		}
		t.slots[i] = t.slots[j]
		i = j
	}
}
