package storetest

import (
	"context"
	"errors"
	"math"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

const epoch = 1_800_000_000_000

// begin is the time that records of the suite carry: whole seconds, as the feed
// has them.
var begin = time.Unix(1_800_000_000, 0)

func record(values ...string) broker.Record {
	r := broker.Record{At: begin, Expires: begin.Add(time.Hour)}
	for _, v := range values {
		r.Where = append(r.Where, broker.KeyOf(broker.BySubject, v))
	}
	return r
}

// chain returns n entries behind a head.
func chain(after broker.Head, n int, what string) []broker.Entry {
	out := make([]broker.Entry, n)
	for i := range out {
		out[i] = after.Follow(record(id("%s %d", what, i)), broker.Position{Epoch: epoch, Seq: after.Pos.Seq + 1})
		after = out[i].Head()
	}
	return out
}

func last(entries []broker.Entry) broker.Head { return entries[len(entries)-1].Head() }

// whole reads the feed a few entries at a time, and holds every id against the
// bytes: DecodeEntry computes it.
func whole(t testing.TB, f broker.Feed) (out []broker.Entry) {
	t.Helper()
	seq := uint64(0)
	for {
		part := get[[]broker.Entry](t)(f.Read(soon(t), seq, 7, 0))
		if len(part) == 0 {
			return out
		}
		for _, e := range part {
			again := get[broker.Entry](t)(broker.DecodeEntry(e.Encode()))
			if again.ID != e.ID {
				t.Errorf("entry %s came back with another id", e.Pos)
			}
			if len(out) > 0 && e.Prev != out[len(out)-1].ID {
				t.Errorf("entry %s does not follow the one before it", e.Pos)
			}
			out = append(out, e)
		}
		seq = out[len(out)-1].Pos.Seq
	}
}

func same(t testing.TB, what string, got, want []broker.Entry) {
	t.Helper()
	if !slices.EqualFunc(got, want, func(a, b broker.Entry) bool {
		return a.ID == b.ID && a.Prev == b.Prev && a.Pos == b.Pos && reflect.DeepEqual(a.Encode(), b.Encode())
	}) {
		t.Errorf("%s: %d entries, not the %d that were expected", what, len(got), len(want))
	}
}

var feedSuite = suite{
	{"an empty feed has no entries", func(t *testing.T, b *Bed) {
		same(t, "empty", whole(t, b.Store), nil)
		must(t, b.Store.Trim(soon(t), 10))
		must(t, b.Store.Ready(soon(t)))
	}},
	{"what is appended is read back, in order, behind a sequence number and up to a limit", func(t *testing.T, b *Bed) {
		entries := chain(broker.Head{}, 12, "a")
		entries[11] = entries[10].Head().Follow(broker.Record{
			Where: []broker.Key{broker.KeyOf(broker.ByEverything), broker.KeyOf(broker.ByScope, "r", "s")},
			At:    begin, Expires: begin.Add(time.Hour), Until: begin.Add(time.Minute),
		}, broker.Position{Epoch: epoch + 1, Seq: 500}) // with a gap
		must(t, b.Store.Append(soon(t), broker.Head{}, entries[:1]...))
		must(t, b.Store.Append(soon(t), entries[0].Head(), entries[1:]...))
		same(t, "whole", whole(t, b.Store), entries)
		for after, want := range map[uint64][]broker.Entry{0: entries[:4], 3: entries[3:7], 10: entries[10:], 11: entries[11:], 12: entries[11:], 499: entries[11:], 500: nil, 501: nil, math.MaxUint64: nil} {
			same(t, id("after %d", after), get[[]broker.Entry](t)(b.Store.Read(soon(t), after, 4, 0)), want)
		}
		if _, err := b.Store.Read(soon(t), 0, 0, 0); err == nil {
			t.Error("a limit of nothing was accepted")
		}
	}},
	{"an append behind anything but the head is a conflict and adds nothing", func(t *testing.T, b *Bed) {
		entries := chain(broker.Head{}, 3, "a")
		if err := b.Store.Append(soon(t), entries[0].Head(), entries[1]); !errors.Is(err, broker.ErrConflict) {
			t.Errorf("behind something, where there is nothing: %v", err)
		}
		must(t, b.Store.Append(soon(t), broker.Head{}, entries...))
		fork := chain(broker.Head{}, 3, "another past")
		ahead := chain(entries[2].Head(), 2, "ahead")
		for name, after := range map[string]broker.Head{
			"nothing, where there is something":      {},
			"an entry that is not the last":          entries[1].Head(),
			"another entry of the same number":       fork[2].Head(),
			"the last id under another number":       {Pos: broker.Position{Epoch: epoch, Seq: 4}, ID: entries[2].ID},
			"an entry that was never there":          ahead[1].Head(),
			"the last number with the id before it":  {Pos: entries[2].Pos, ID: entries[1].ID},
			"the last number with an id of no bytes": {Pos: entries[2].Pos},
		} {
			if err := b.Store.Append(soon(t), after, chain(after, 2, "b")...); !errors.Is(err, broker.ErrConflict) {
				t.Errorf("behind %s: %v", name, err)
			}
		}
		same(t, "afterwards", whole(t, b.Store), entries)
	}},
	{"entries that do not follow one another are refused, which is no conflict", func(t *testing.T, b *Bed) {
		entries := chain(broker.Head{}, 3, "a")
		must(t, b.Store.Append(soon(t), broker.Head{}, entries...))
		next := chain(last(entries), 3, "b")
		renamed, late := next[0], last(entries).Follow(record("late"), entries[2].Pos)
		renamed.ID[0]++
		for name, bad := range map[string][]broker.Entry{
			"none":                      {},
			"a piece is missing":        {next[0], next[2]},
			"the first does not follow": {next[1]},
			"backwards":                 {next[1], next[0]},
			"an id that is not its own": {renamed},
			"a number that is taken":    {late},
		} {
			if err := b.Store.Append(soon(t), last(entries), bad...); err == nil || errors.Is(err, broker.ErrConflict) {
				t.Errorf("%s: %v", name, err)
			}
		}
		same(t, "afterwards", whole(t, b.Store), entries)
	}},
	{"an empty feed takes entries whose predecessors were trimmed long ago", func(t *testing.T, b *Bed) {
		old := chain(broker.Head{}, 60, "a")
		must(t, b.Store.Append(soon(t), broker.Head{}, old[40:]...))
		same(t, "whole", whole(t, b.Store), old[40:])
	}},
	{"writers who start over on conflicts lose nothing and repeat nothing", manyWriters},
	{"a waiting reader has an entry within milliseconds of its append", promptReader},
	{"a wait without news ends in time, with nothing", func(t *testing.T, b *Bed) {
		entries := chain(broker.Head{}, 1, "a")
		must(t, b.Store.Append(soon(t), broker.Head{}, entries...))
		for _, wait := range []time.Duration{-time.Second, 0, time.Nanosecond, 300 * time.Microsecond, 40 * time.Millisecond} {
			for _, after := range []uint64{1, 99} {
				start := time.Now()
				got, err := b.Store.Read(soon(t), after, 10, wait)
				took := time.Since(start)
				if err != nil || len(got) > 0 || took < wait-time.Millisecond || took > wait+2*time.Second {
					t.Errorf("a wait of %s behind %d: %d entries after %s, %v", wait, after, len(got), took, err)
				}
			}
		}
	}},
	{"a waiting reader ends at once when its context does", func(t *testing.T, b *Bed) {
		ctx, cancel := context.WithCancel(context.Background())
		var cancelled atomic.Int64
		timer := time.AfterFunc(50*time.Millisecond, func() { cancelled.Store(time.Now().UnixNano()); cancel() })
		defer timer.Stop()
		_, err := b.Store.Read(ctx, 0, 10, 30*time.Second)
		if late := time.Since(time.Unix(0, cancelled.Load())); !errors.Is(err, context.Canceled) || late > 600*time.Millisecond {
			t.Errorf("%v, %s after the context had ended", err, late)
		}
	}},
	{"trimming drops entries up to a number, but never the newest", func(t *testing.T, b *Bed) {
		entries := chain(broker.Head{}, 20, "a")
		must(t, b.Store.Append(soon(t), broker.Head{}, entries...))
		for _, c := range []struct {
			upto uint64
			left []broker.Entry
		}{{0, entries}, {5, entries[5:]}, {3, entries[5:]}, {19, entries[19:]}, {20, entries[19:]}, {1000, entries[19:]}, {math.MaxUint64, entries[19:]}} {
			must(t, b.Store.Trim(soon(t), c.upto))
			same(t, id("up to %d", c.upto), whole(t, b.Store), c.left)
		}
		next := chain(last(entries), 2, "b")
		must(t, b.Store.Append(soon(t), last(entries), next...))
		same(t, "goes on", whole(t, b.Store), append(entries[19:], next...))
	}},
	{"a trimmed number with more digits than the rest is still compared as a number", func(t *testing.T, b *Bed) {
		big := broker.Head{}.Follow(record("a"), broker.Position{Epoch: epoch, Seq: 9_007_199_254_740_993}) // 2^53 + 1
		next := chain(big.Head(), 2, "b")
		must(t, b.Store.Append(soon(t), broker.Head{}, append([]broker.Entry{big}, next...)...))
		must(t, b.Store.Trim(soon(t), 999))
		same(t, "nothing to trim", whole(t, b.Store), append([]broker.Entry{big}, next...))
		must(t, b.Store.Trim(soon(t), big.Pos.Seq))
		same(t, "one to trim", whole(t, b.Store), next)
	}},
	{"the feed survives reopening, and goes on", func(t *testing.T, b *Bed) {
		entries := chain(broker.Head{}, 5, "a")
		must(t, b.Store.Append(soon(t), broker.Head{}, entries...))
		s := b.Reopen()
		same(t, "reopened", whole(t, s), entries)
		next := chain(last(entries), 1, "b")
		must(t, s.Append(soon(t), last(entries), next...))
		same(t, "goes on", whole(t, s), append(entries, next...))
	}},
}

func manyWriters(t *testing.T, b *Bed) {
	const writers, each = 16, 20
	first := chain(broker.Head{}, 1, "first")
	must(t, b.Store.Append(soon(t), broker.Head{}, first...))
	ctx := soon(t)
	var conflicts atomic.Int64
	together(writers, func(w int) {
		head := first[0].Head()
		for i := range each {
			for {
				e := head.Follow(record(id("%d/%d", w, i)), broker.Position{Epoch: epoch, Seq: head.Pos.Seq + 1})
				err := b.Store.Append(ctx, head, e)
				if err == nil {
					head = e.Head()
					break
				}
				if !errors.Is(err, broker.ErrConflict) {
					t.Error(err)
					return
				}
				conflicts.Add(1)
				behind, err := b.Store.Read(ctx, head.Pos.Seq, 1000, 0)
				if err != nil || len(behind) == 0 {
					t.Errorf("a conflict, and %d entries behind: %v", len(behind), err)
					return
				}
				head = last(behind)
			}
		}
	})
	all := whole(t, b.Store)
	count := make(map[broker.Key]int)
	for _, e := range all {
		count[e.Where[0]]++
	}
	if len(all) != 1+writers*each || conflicts.Load() == 0 {
		t.Errorf("%d entries after %d conflicts, want %d after some", len(all), conflicts.Load(), 1+writers*each)
	}
	for w := range writers {
		for i := range each {
			if n := count[broker.KeyOf(broker.BySubject, id("%d/%d", w, i))]; n != 1 {
				t.Errorf("record %d of writer %d is there %d times", i, w, n)
			}
		}
	}
}

func promptReader(t *testing.T, b *Bed) {
	head := broker.Head{}
	var took []time.Duration
	for range 20 {
		type answer struct {
			at      time.Time
			entries []broker.Entry
			err     error
		}
		answers := make(chan answer, 1)
		go func() {
			entries, err := b.Store.Read(soon(t), head.Pos.Seq, 10, 15*time.Second)
			answers <- answer{time.Now(), entries, err}
		}()
		time.Sleep(10 * time.Millisecond) // lets the reader wait; if it does not yet, all the better for it
		e := chain(head, 1, "a")
		must(t, b.Store.Append(soon(t), head, e...))
		appended := time.Now()
		a := <-answers
		must(t, a.err)
		same(t, "what the reader got", a.entries, e)
		took = append(took, a.at.Sub(appended))
		head = last(e)
	}
	slices.Sort(took)
	t.Logf("after the append: median %s, longest %s", took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > 50*time.Millisecond {
		t.Errorf("the median reader woke after %s", took[len(took)/2])
	}
}

var beatSuite = suite{
	{"a heartbeat answers with the clock, the head and the replicas", func(t *testing.T, b *Bed) {
		me := broker.Replica{ID: "one", Applied: broker.Position{Epoch: epoch, Seq: 3}, Since: 17}
		before := b.Now()
		beat := get[broker.Beat](t)(b.Store.Beat(soon(t), me, time.Minute))
		if beat.Now.Before(before.Add(-time.Second)) || beat.Now.After(b.Now().Add(time.Second)) {
			t.Errorf("clock: %s, which is not about %s", beat.Now, before)
		}
		if beat.Head != (broker.Head{}) || !slices.Equal(beat.Replicas, []broker.Replica{me}) {
			t.Errorf("of an empty feed: %+v", beat)
		}
		entries := chain(broker.Head{}, 3, "a")
		must(t, b.Store.Append(soon(t), broker.Head{}, entries...))
		other := broker.Replica{ID: "another", Since: 18}
		beat = get[broker.Beat](t)(b.Store.Beat(soon(t), other, time.Minute))
		if beat.Head != last(entries) || !slices.Equal(beat.Replicas, []broker.Replica{other, me}) {
			t.Errorf("of two: %+v", beat)
		}
		me.Applied.Seq = 9
		beat = get[broker.Beat](t)(b.Store.Beat(soon(t), me, time.Minute))
		if !slices.Equal(beat.Replicas, []broker.Replica{other, me}) {
			t.Errorf("having gone on: %+v", beat.Replicas)
		}
		must(t, b.Store.Trim(soon(t), math.MaxUint64))
		if beat = get[broker.Beat](t)(b.Store.Beat(soon(t), me, time.Minute)); beat.Head != last(entries) {
			t.Errorf("head of a trimmed feed: %+v", beat.Head)
		}
	}},
	{"a replica that is silent for its life is gone", func(t *testing.T, b *Bed) {
		get[broker.Beat](t)(b.Store.Beat(soon(t), broker.Replica{ID: "silent"}, 100*time.Millisecond))
		beat := get[broker.Beat](t)(b.Store.Beat(soon(t), broker.Replica{ID: "here"}, time.Minute))
		if len(beat.Replicas) != 2 {
			t.Errorf("at first: %+v", beat.Replicas)
		}
		b.Forward(110 * time.Millisecond)
		beat = get[broker.Beat](t)(b.Store.Beat(soon(t), broker.Replica{ID: "here"}, time.Minute))
		if !slices.Equal(beat.Replicas, []broker.Replica{{ID: "here"}}) {
			t.Errorf("later: %+v", beat.Replicas)
		}
	}},
	{"a replica that leaves is gone at once", func(t *testing.T, b *Bed) {
		get[broker.Beat](t)(b.Store.Beat(soon(t), broker.Replica{ID: "leaving"}, time.Minute))
		must(t, b.Store.Leave(soon(t), "leaving"))
		must(t, b.Store.Leave(soon(t), "never here"))
		beat := get[broker.Beat](t)(b.Store.Beat(soon(t), broker.Replica{ID: "here"}, time.Minute))
		if len(beat.Replicas) != 1 {
			t.Errorf("%+v", beat.Replicas)
		}
	}},
	{"a heartbeat without a name or a life is refused", func(t *testing.T, b *Bed) {
		for _, c := range []struct {
			id   string
			life time.Duration
		}{{"", time.Minute}, {"one", 0}, {"one", -time.Second}} {
			if _, err := b.Store.Beat(soon(t), broker.Replica{ID: c.id}, c.life); err == nil {
				t.Errorf("%q for %s was accepted", c.id, c.life)
			}
		}
	}},
	{"the head of a heartbeat is never older than what was appended before it", func(t *testing.T, b *Bed) {
		ctx := soon(t)
		head := broker.Head{}
		var appended atomic.Uint64
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 100 {
				e := chain(head, 1, "a")
				if err := b.Store.Append(ctx, head, e...); err != nil {
					t.Error(err)
					return
				}
				head = last(e)
				appended.Store(head.Pos.Seq)
			}
		}()
		defer func() { <-done }()
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			least := appended.Load()
			beat := get[broker.Beat](t)(b.Store.Beat(ctx, broker.Replica{ID: "one"}, time.Minute))
			if beat.Head.Pos.Seq < least {
				t.Fatalf("head %s, though %d had been appended", beat.Head.Pos, least)
			}
		}
	}},
}
