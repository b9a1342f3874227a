package broker

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"
)

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// feed builds a chain of entries.
type chain struct {
	head    Head
	entries []Entry
}

func (c *chain) add(r Record) Entry {
	if c.head == (Head{}) {
		c.head.Pos = Position{Epoch: 7}
	}
	h := c.head
	if len(c.entries) == 0 {
		h = Head{}
	}
	e := h.Follow(r, Position{c.head.Pos.Epoch, c.head.Pos.Seq + 1})
	c.entries = append(c.entries, e)
	c.head = e.Head()
	return e
}

func record(at time.Time, where ...Key) Record {
	return Record{Where: where, At: at, Expires: at.Add(time.Hour)}
}

func lineage(seqs ...uint64) *Lineage {
	l := &Lineage{Subject: "idp#alice", Session: "s1", Root: &Root{Issuer: "idp", ID: "root", Agent: "desktop", Time: t0}}
	for i, s := range seqs {
		l.Hops = append(l.Hops, Hop{
			ID: fmt.Sprintf("hop%d", i), Pos: Position{7, s}, Client: fmt.Sprintf("client%d", i), Agent: fmt.Sprintf("agent%d", i),
			Resource: fmt.Sprintf("res%d", i), Tool: "tool", Scopes: []string{"a", "b"}, Policy: fmt.Sprintf("pol%d", i),
		})
	}
	return l
}

func TestWhatARecordSelects(t *testing.T) {
	at := func(seconds int) time.Time { return t0.Add(time.Duration(seconds) * time.Second) }
	for name, tc := range map[string]struct {
		record Record // at sequence number 5
		l      *Lineage
		dead   bool
	}{
		"a token by its id":                         {record(at(0), KeyOf(ByToken, "", "hop0")), lineage(3), true},
		"a token made later":                        {record(at(0), KeyOf(ByToken, "", "hop0")), lineage(5), false},
		"a descendant":                              {record(at(0), KeyOf(ByToken, "", "hop0")), lineage(3, 9), true},
		"a foreign token by its id":                 {record(at(0), KeyOf(ByToken, "idp", "root")), lineage(9), true},
		"a foreign token issued later":              {record(at(-31), KeyOf(ByToken, "idp", "root")), lineage(9), false},
		"a foreign token within the skew":           {record(at(-30), KeyOf(ByToken, "idp", "root")), lineage(9), true},
		"a foreign id of another issuer":            {record(at(0), KeyOf(ByToken, "ci", "root")), lineage(9), false},
		"an id of ours is not a foreign one":        {record(at(0), KeyOf(ByToken, "idp", "hop0")), lineage(3), false},
		"a subject":                                 {record(at(0), KeyOf(BySubject, "idp#alice")), lineage(9), true},
		"a subject who signed in since":             {record(at(-31), KeyOf(BySubject, "idp#alice")), lineage(9), false},
		"another subject":                           {record(at(0), KeyOf(BySubject, "idp#bob")), lineage(3), false},
		"a session":                                 {record(at(0), KeyOf(BySession, "s1")), lineage(9), true},
		"a session stays dead":                      {record(at(-3600), KeyOf(BySession, "s1")), lineage(9), true},
		"a client on the way":                       {record(at(0), KeyOf(ByClient, "client0")), lineage(3, 9), true},
		"a client on the way, later":                {record(at(0), KeyOf(ByClient, "client0")), lineage(5, 9), false},
		"a resource":                                {record(at(0), KeyOf(ByResource, "res0")), lineage(3), true},
		"a tool at a resource":                      {record(at(0), KeyOf(ByTool, "res0", "tool")), lineage(3), true},
		"the tool at another resource":              {record(at(0), KeyOf(ByTool, "res9", "tool")), lineage(3), false},
		"a scope":                                   {record(at(0), KeyOf(ByScope, "res0", "b")), lineage(3), true},
		"another scope":                             {record(at(0), KeyOf(ByScope, "res0", "c")), lineage(3), false},
		"a version of policy":                       {record(at(0), KeyOf(ByPolicy, "pol0")), lineage(3), true},
		"the agent at the beginning":                {record(at(0), KeyOf(ByAgent, "desktop")), lineage(9), true},
		"an agent on the way":                       {record(at(0), KeyOf(ByAgent, "agent0")), lineage(3), true},
		"everything":                                {record(at(0), KeyOf(ByEverything)), lineage(9), true},
		"everything before the login":               {record(at(-31), KeyOf(ByEverything)), lineage(9), false},
		"both conditions at one hop":                {record(at(0), KeyOf(ByClient, "client0"), KeyOf(ByResource, "res0")), lineage(3, 9), true},
		"both conditions at different hops":         {record(at(0), KeyOf(ByClient, "client0"), KeyOf(ByResource, "res1")), lineage(3, 4), false},
		"a subject and a client":                    {record(at(0), KeyOf(ByClient, "client1"), KeyOf(BySubject, "idp#alice")), lineage(3, 4), true},
		"a subject and a client, made later":        {record(at(0), KeyOf(ByClient, "client1"), KeyOf(BySubject, "idp#alice")), lineage(3, 6), false},
		"a subject and another client":              {record(at(0), KeyOf(ByClient, "other"), KeyOf(BySubject, "idp#alice")), lineage(3, 4), false},
		"a session and a client":                    {record(at(-3600), KeyOf(ByClient, "client1"), KeyOf(BySession, "s1")), lineage(3, 6), true},
		"no condition at all":                       {record(at(0)), lineage(3), false},
		"a client that acts for itself":             {record(at(0), KeyOf(BySubject, "idp#alice")), &Lineage{Subject: "idp#alice", Hops: lineage(3).Hops}, true},
		"a client that acts for itself, made later": {record(at(0), KeyOf(BySubject, "idp#alice")), &Lineage{Subject: "idp#alice", Hops: lineage(5).Hops}, false},
		"a foreign token that is not exchanged yet": {record(at(0), KeyOf(BySubject, "idp#alice")), lineage(), true},
	} {
		t.Run(name, func(t *testing.T) {
			x, c := NewIndex(30*time.Second), &chain{}
			for range 4 {
				x.Apply(c.add(record(at(0), KeyOf(ByToken, "", "other"))))
			}
			if err := x.Check(tc.l); err != nil {
				t.Fatalf("dead before: %v", err)
			}
			if n := x.Apply(c.add(tc.record)); n != 1 {
				t.Fatal("not applied")
			}
			for range 6 {
				x.Apply(c.add(record(at(0), KeyOf(ByToken, "", "other"))))
			}
			if err := x.Check(tc.l); (err != nil) != tc.dead {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestTokensOfAnotherEpochAreDead(t *testing.T) {
	x, c := NewIndex(0), &chain{}
	x.Apply(c.add(Record{At: t0, Expires: t0}))
	l := lineage(1)
	if err := x.Check(l); err != nil {
		t.Fatal(err)
	}
	e := c.head.Follow(record(t0, KeyOf(ByEverything)), Position{8, 2})
	if x.Apply(e) != 1 {
		t.Fatal("a new epoch does not follow")
	}
	if err := x.Check(l); err == nil {
		t.Error("a token of the old epoch lives")
	}
	l.Hops[0].Pos = Position{8, 2}
	l.Root.Time = t0.Add(time.Minute)
	if err := x.Check(l); err != nil {
		t.Errorf("a token of the new epoch: %v", err)
	}
	if back := e.Head().Follow(record(t0), Position{7, 3}); x.Apply(back) != 0 {
		t.Error("an older epoch follows")
	}
}

func TestEntriesThatDoNotFollowAreNotApplied(t *testing.T) {
	x, c := NewIndex(0), &chain{}
	for range 3 {
		x.Apply(c.add(record(t0, KeyOf(ByToken, "", "x"))))
	}
	stranger := Head{Pos: c.head.Pos, ID: ChainID{1}}.Follow(record(t0, KeyOf(BySubject, "a")), Position{7, 4})
	again := c.entries[2]
	for name, e := range map[string]Entry{"of another chain": stranger, "one that was applied": again} {
		if n := x.Apply(e); n != 0 {
			t.Errorf("%s: applied", name)
		}
	}
	if has, known := x.Holds(stranger.Head()); has || !known && has {
		t.Error("a stranger is held")
	}
	if has, known := x.Holds(c.entries[1].Head()); !has || !known {
		t.Error("an entry of the chain is not held")
	}
	if has, known := x.Holds(Head{Position{7, 2}, ChainID{9}}); has || !known {
		t.Error("another entry of the same number is held")
	}
}

func TestFrozen(t *testing.T) {
	x, c := NewIndex(0), &chain{}
	r := record(t0, KeyOf(BySubject, "idp#alice"))
	r.Until = t0.Add(time.Hour)
	x.Apply(c.add(r))
	fresh := lineage()
	fresh.Root.Time = t0.Add(time.Minute)
	if err := x.Check(fresh); err != nil {
		t.Errorf("a later login is dead: %v", err)
	}
	if until, frozen := x.Frozen(fresh, t0.Add(time.Minute)); !frozen || !until.Equal(r.Until) {
		t.Error("new grants are not frozen")
	}
	if _, frozen := x.Frozen(fresh, r.Until); frozen {
		t.Error("frozen for longer than said")
	}
	other := lineage()
	other.Subject = "idp#bob"
	if _, frozen := x.Frozen(other, t0); frozen {
		t.Error("somebody else is frozen")
	}
}

func TestTheFormatOfEntries(t *testing.T) {
	// The bytes are the format: a change breaks every feed and journal there is.
	e := Head{Position{1764, 4}, ChainID{1, 2, 3}}.Follow(Record{
		Where: []Key{KeyOf(ByToken, "", "abc"), KeyOf(ByClient, "c")}, At: time.Unix(1000, 0), Expires: time.Unix(2000, 0), Until: time.Unix(1500, 0),
	}, Position{1764, 5})
	const want = `{"v":1,"e":1764,"s":5,"p":"AQIDAAAAAAAAAAAAAAAAAA","w":["t:HD2jF7TfahDeC-Ne5yU3_Q","k:TzdhPtS_70KCR_eV15JBKg"],"at":1000,"x":2000,"u":1500}`
	if got := string(e.Encode()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	again, err := DecodeEntry(e.Encode())
	if err != nil || fmt.Sprint(again) != fmt.Sprint(e) {
		t.Errorf("reads back as %v, %v", again, err)
	}
	for name, bad := range map[string]string{
		"another version": `{"v":2,"e":1,"s":1,"p":"AQIDAAAAAAAAAAAAAAAAAA","w":[],"at":1,"x":2}`,
		"no JSON":         `x`,
		"no id before":    `{"v":1,"e":1,"s":1,"p":"AQID","w":[],"at":1,"x":2}`,
		"an unknown kind": `{"v":1,"e":1,"s":1,"p":"AQIDAAAAAAAAAAAAAAAAAA","w":["z:wGcxCNIPfTvFYaa1z5zSDA"],"at":1,"x":2}`,
		"a short digest":  `{"v":1,"e":1,"s":1,"p":"AQIDAAAAAAAAAAAAAAAAAA","w":["t:wGcx"],"at":1,"x":2}`,
		"many conditions": `{"v":1,"e":1,"s":1,"p":"AQIDAAAAAAAAAAAAAAAAAA","w":["t:a","t:a","t:a","t:a","t:a","t:a","t:a","t:a","t:a"],"at":1,"x":2}`,
		"another member":  `{"v":1,"e":1,"s":1,"p":"AQIDAAAAAAAAAAAAAAAAAA","w":[],"at":1,"x":2,"y":3}`,
	} {
		if _, err := DecodeEntry([]byte(bad)); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
	for _, bad := range []string{"", "1", "1.", ".1", "01.1", "1.1.1", "-1.1", "1.99999999999999999999"} {
		if p, err := ParsePosition(bad); err == nil {
			t.Errorf("%q is the position %v", bad, p)
		}
	}
	if Kind(99).String() != "unknown" || ByToken.String() != "token" {
		t.Error("names of kinds")
	}
}

// The index is compared with a list that is searched from end to end, over
// random records, checks, sweeps and new epochs.
func TestTheIndexDecidesAsAPlainListWould(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 20 {
		x, c := NewIndex(30*time.Second), &chain{}
		var list []Entry
		now := t0
		pick := func(prefix string, n int) string { return fmt.Sprint(prefix, r.IntN(n)) }
		keys := func() Key {
			switch r.IntN(6) {
			case 0:
				return KeyOf(ByToken, "", pick("hop", 400))
			case 1:
				return KeyOf(BySession, pick("s", 50))
			case 2:
				return KeyOf(ByClient, pick("client", 20))
			case 3:
				return KeyOf(ByTool, pick("res", 5), "tool")
			case 4:
				return KeyOf(BySubject, pick("u", 30))
			}
			return KeyOf(ByToken, "idp", pick("root", 100))
		}
		dead := 0
		for step := range 9000 {
			now = now.Add(time.Duration(r.IntN(12)) * time.Second)
			rec := Record{Where: []Key{keys()}, At: now.Truncate(time.Second), Expires: now.Add(time.Duration(r.IntN(7200)) * time.Second).Truncate(time.Second)}
			if r.IntN(5) == 0 {
				rec.Where = append(rec.Where, keys())
			}
			if r.IntN(4000) == 0 {
				rec.Where, rec.Expires = []Key{KeyOf(ByEverything)}, now.Add(time.Hour).Truncate(time.Second)
			}
			e := c.add(rec)
			list = append(list, e)
			if x.Apply(e) != 1 {
				t.Fatal("not applied")
			}
			if step%3000 == 2999 {
				for more := true; more; {
					_, more = x.Sweep(now)
				}
			}
			if r.IntN(10) > 0 {
				continue
			}
			l := &Lineage{Subject: pick("u", 30), Session: pick("s", 50), Root: &Root{Issuer: "idp", ID: pick("root", 100), Time: now.Add(-time.Duration(r.IntN(5000)) * time.Second)}}
			for range r.IntN(3) {
				seq := c.head.Pos.Seq - uint64(r.IntN(int(min(c.head.Pos.Seq, 300))))
				l.Hops = append(l.Hops, Hop{ID: pick("hop", 400), Pos: Position{7, seq}, Client: pick("client", 20), Resource: pick("res", 5), Tool: "tool"})
			}
			want := plainly(list, l, 30*time.Second, now)
			got := x.Check(l)
			if got == nil && want {
				t.Fatalf("round %d step %d: alive, the list says dead: %+v", round, step, l)
			}
			if got != nil && !plainly(list, l, 30*time.Second, time.Time{}) {
				t.Fatalf("round %d step %d: dead (%v), no record ever said so: %+v", round, step, got, l)
			}
			if want {
				dead++
			}
		}
		if dead < 50 {
			t.Errorf("only %d were dead", dead)
		}
		// What it kept turns back into the chain, byte for byte.
		from, kept := x.After(0)
		all := list[len(list)-len(kept):]
		for i := range kept {
			if string(kept[i].Encode()) != string(all[i].Encode()) || kept[i].ID != all[i].ID {
				t.Fatalf("entry %d turned into another:\n%s\n%s", i, kept[i].Encode(), all[i].Encode())
			}
		}
		if len(kept) > 0 && kept[0].Prev != from.ID {
			t.Error("it does not follow what it says")
		}
		again := NewIndex(0)
		if again.Apply(kept...) != len(kept) || again.Head() != x.Head() {
			t.Error("it does not apply anew")
		}
	}
}

// Numbers of records come round again in the table's slots, which have room for
// those that are kept: none is lost or taken for another meanwhile.
func TestEveryKeyIsFoundWhileTheIndexGrowsAndForgets(t *testing.T) {
	x, c := NewIndex(0), &chain{}
	var live []Entry
	now := t0
	for wave, of := range []struct{ records, keys int }{
		{16_900, 100}, {30_000, 15_000}, {5_000, 5_000}, {60_000, 60_000}, {9_000, 5_000}, {40_000, 100}, {20_000, 20_000},
	} {
		for i := range of.records {
			n := i % of.keys
			k := KeyOf(ByToken, "", fmt.Sprint(wave, n/2))
			k.Digest[15] = byte(n % 2) // its place and tag are those of another
			e := c.add(Record{Where: []Key{k}, At: now, Expires: now.Add(time.Hour)})
			if x.Apply(e) != 1 {
				t.Fatal("not applied")
			}
			live = append(live, e)
		}
		if wave%2 == 1 { // what was there before this wave is forgotten
			now = now.Add(time.Hour)
			for more := true; more; {
				_, more = x.Sweep(now)
			}
		}
		kept := x.plains()
		for _, e := range live[:len(live)-kept] {
			if p := x.find(e.Where[0]); p != nil && x.base.Pos.Seq+uint64(p.seq) <= e.Pos.Seq {
				t.Fatalf("wave %d: record %d is forgotten, and found", wave, e.Pos.Seq)
			}
		}
		live = live[len(live)-kept:]
		newest := make(map[Key]uint64)
		for _, e := range live {
			newest[e.Where[0]] = e.Pos.Seq
		}
		for k, seq := range newest {
			if p := x.find(k); p == nil || p.key() != k || x.base.Pos.Seq+uint64(p.seq) != seq {
				t.Fatalf("wave %d: record %d of %d kept is not found: %+v", wave, seq, kept, p)
			}
		}
		if x.table.used != len(newest) {
			t.Errorf("wave %d: %d slots are in use, for %d keys", wave, x.table.used, len(newest))
		}
	}
}

// plainly decides by going through every record that is alive at now; with no
// time, through all.
func plainly(list []Entry, l *Lineage, skew time.Duration, now time.Time) bool {
	for _, e := range list {
		if !e.Expires.After(now) && !now.IsZero() {
			continue
		}
		for i := range l.generations() {
			if !l.meets(i, e.Where) || len(e.Where) == 0 {
				continue
			}
			session := slices.ContainsFunc(e.Where, func(k Key) bool { return k.Kind == BySession })
			m := l.made(i)
			if len(e.Where) == 1 && (e.Where[0].Kind == BySubject || e.Where[0].Kind == BySession) {
				m = l.made(0)
			}
			before := m.pos.Epoch != 0 && m.pos.Seq < e.Pos.Seq || m.pos.Epoch == 0 && !m.time.After(e.At.Add(skew))
			if session || before {
				return true
			}
		}
	}
	return false
}

func TestSweepKeepsWhatIsAlive(t *testing.T) {
	x, c := NewIndex(0), &chain{}
	for i := range 3 * segmentSize {
		r := record(t0, KeyOf(ByToken, "", fmt.Sprint("t", i)))
		if i == segmentSize+5 {
			r.Expires = t0.Add(48 * time.Hour)
		}
		x.Apply(c.add(r))
	}
	upto, more := x.Sweep(t0.Add(30 * time.Minute))
	if upto != 0 || more || x.Len() != 3*segmentSize {
		t.Errorf("what is alive was swept: %d", upto)
	}
	upto, more = x.Sweep(t0.Add(2 * time.Hour))
	if upto != segmentSize || !more || x.Len() != 2*segmentSize {
		t.Errorf("swept to %d, %d left", upto, x.Len())
	}
	if upto, _ = x.Sweep(t0.Add(2 * time.Hour)); upto != segmentSize {
		t.Error("a segment with one that is alive was swept")
	}
	for i, want := range map[int]bool{5: false, segmentSize + 5: true, 2*segmentSize + 1: true} {
		l := &Lineage{Hops: []Hop{{ID: fmt.Sprint("t", i), Pos: Position{7, 0}}}}
		if err := x.Check(l); (err != nil) != want {
			t.Errorf("record %d: %v", i, err)
		}
	}
}

// Records with several conditions end as others do, however few with one condition
// there are.
func TestRecordsWithSeveralConditionsAreForgotten(t *testing.T) {
	const n = 3*segmentSize + 100
	for name, plainly := range map[string]func(i int) bool{
		"and there are no others": func(int) bool { return false },
		"and one is older":        func(i int) bool { return i == 0 },
		"and one is newer":        func(i int) bool { return i == n-1 },
		"between others":          func(i int) bool { return i%4 == 0 },
	} {
		t.Run(name, func(t *testing.T) {
			x, c := NewIndex(0), &chain{}
			client := KeyOf(ByClient, "desktop")
			for i := range n {
				k := KeyOf(BySubject, fmt.Sprint("u", i/2)) // two hang on each
				if plainly(i) {
					x.Apply(c.add(record(t0, k)))
				} else {
					x.Apply(c.add(record(t0, client, k)))
				}
			}
			if upto, more := x.Sweep(t0.Add(30 * time.Minute)); upto != 0 || more || x.Len() != n {
				t.Fatalf("what is alive was swept: %d", upto)
			}
			upto, more := uint64(0), true
			for more {
				upto, more = x.Sweep(t0.Add(2 * time.Hour))
			}
			if upto != 3*segmentSize || x.Len() != 100 || len(x.others) > 100 || cap(x.others) > 1000 || len(x.joint) > 50 {
				t.Errorf("swept to %d: %d left, %d of %d others, on %d keys", upto, x.Len(), len(x.others), cap(x.others), len(x.joint))
			}
			from, kept := x.After(0)
			if len(kept) != 100 || kept[0].Prev != from.ID || kept[99].Head() != c.head || kept[0].ID != c.entries[n-100].ID {
				t.Errorf("the chain is another: %d entries", len(kept))
			}
			for i, want := range map[int]bool{5: false, n - 103: false, n - 100: true, n - 1: true} {
				l := &Lineage{Subject: fmt.Sprint("u", i/2), Hops: []Hop{{ID: "x", Client: "desktop", Pos: Position{7, 0}}}}
				if err := x.Check(l); (err != nil) != want {
					t.Errorf("record %d: %v", i, err)
				}
			}
		})
	}
}

func TestMemoryOfAMillionRecords(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a moment")
	}
	const n = 1_000_000
	before := heap()
	x, c := NewIndex(0), &chain{}
	for i := range n {
		c.entries = c.entries[:0]
		c.entries = append(c.entries, Entry{})
		e := c.head.Follow(record(t0, KeyOf(ByToken, "", fmt.Sprint(i))), Position{7, uint64(i) + 1})
		if i == 0 {
			e = Head{}.Follow(record(t0, KeyOf(ByToken, "", "0")), Position{7, 1})
		}
		if x.Apply(e) != 1 {
			t.Fatal(i)
		}
		c.head = e.Head()
	}
	used := heap() - before
	if x.Len() != n {
		t.Fatal(x.Len())
	}
	if mib := float64(used) / (1 << 20); mib > 60 {
		t.Errorf("a million records take %.1f MiB", mib)
	} else {
		t.Logf("%.1f MiB", mib)
	}
	runtime.KeepAlive(x)
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkCheck(b *testing.B) {
	for _, n := range []int{0, 10_000, 1_000_000} {
		b.Run(fmt.Sprint("records=", n), func(b *testing.B) {
			x := NewIndex(0)
			h := Head{}
			for i := range n {
				e := h.Follow(record(t0, KeyOf(ByToken, "", fmt.Sprint("x", i))), Position{7, uint64(i) + 1})
				x.Apply(e)
				h = e.Head()
			}
			if n == 0 {
				x.Apply(Head{}.Follow(Record{At: t0, Expires: t0}, Position{7, 1}))
			}
			l := lineage(uint64(n), uint64(n))
			b.ReportAllocs()
			for b.Loop() {
				if err := x.Check(l); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
