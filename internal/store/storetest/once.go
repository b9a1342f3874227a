package storetest

import (
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

var onceSuite = suite{
	{"of a hundred uses at once, one is the first", func(t *testing.T, b *Bed) {
		for round := range 5 {
			var firsts, others atomic.Int64
			together(100, func(int) {
				first, err := b.Store.Use(soon(t), "jti", id("id %d", round), b.Now().Add(time.Minute))
				switch {
				case err != nil:
					t.Error(err)
				case first:
					firsts.Add(1)
				default:
					others.Add(1)
				}
			})
			if firsts.Load() != 1 || others.Load() != 99 {
				t.Errorf("%d first uses, and %d others", firsts.Load(), others.Load())
			}
		}
	}},
	{"an id is used up for one purpose, and whole", func(t *testing.T, b *Bed) {
		for _, c := range [][2]string{{"a", "bc"}, {"ab", "c"}, {"", "abc"}, {"abc", ""}, {"a", "bc\x00"}, {"x", string(make([]byte, 100_000))}} {
			for i, want := range []bool{true, false, false} {
				if first := get[bool](t)(b.Store.Use(soon(t), c[0], c[1], b.Now().Add(time.Minute))); first != want {
					t.Errorf("use %d of %.10q for %q: first is %t", i+1, c[1], c[0], first)
				}
			}
		}
	}},
	{"an id that runs out, or has run out before, is used once all the same", func(t *testing.T, b *Bed) {
		for name, expires := range map[string]time.Time{"soon": b.Now().Add(50 * time.Millisecond), "long ago": b.Now().Add(-time.Hour), "never set": {}} {
			if !get[bool](t)(b.Store.Use(soon(t), "jti", name, expires)) {
				t.Errorf("%s: the first use is not the first", name)
			}
		}
		b.Forward(40 * time.Millisecond)
		for _, name := range []string{"soon", "long ago", "never set"} {
			if get[bool](t)(b.Store.Use(soon(t), "jti", name, b.Now().Add(time.Minute))) {
				t.Errorf("%s: the second use is the first", name)
			}
		}
	}},
	{"looking whether an id was used uses nothing up", func(t *testing.T, b *Bed) {
		for i, want := range []bool{false, true} {
			for range 2 {
				if used := get[bool](t)(b.Store.Used(soon(t), "jti", "one")); used != want {
					t.Errorf("after %d uses: used is %t", i, used)
				}
			}
			if first := get[bool](t)(b.Store.Use(soon(t), "jti", "one", b.Now().Add(time.Minute))); first == want {
				t.Errorf("use %d: first is %t", i+1, first)
			}
		}
		for _, other := range [][2]string{{"jti", "on"}, {"jt", "ione"}, {"other", "one"}} {
			if get[bool](t)(b.Store.Used(soon(t), other[0], other[1])) {
				t.Errorf("%v was never used", other)
			}
		}
		if !get[bool](t)(b.Reopen().Used(soon(t), "jti", "one")) {
			t.Error("reopened, it was never used")
		}
	}},
	{"a used id survives reopening", func(t *testing.T, b *Bed) {
		for i := range 20 {
			get[bool](t)(b.Store.Use(soon(t), "jti", id("id %d", i), b.Now().Add(time.Minute)))
		}
		s := b.Reopen()
		for i := range 20 {
			if get[bool](t)(s.Use(soon(t), "jti", id("id %d", i), b.Now().Add(time.Minute))) {
				t.Errorf("id %d can be used again", i)
			}
		}
	}},
}

func session(b *Bed, name, subject, client string, ago time.Duration) broker.Session {
	now := b.Now().UTC().Truncate(time.Microsecond)
	return broker.Session{ID: name, Subject: subject, Client: client, Agent: "an agent", First: now.Add(-ago), Expires: now.Add(time.Hour)}
}

func sessionsAre(t testing.TB, what string, got []broker.Session, err error, want ...broker.Session) {
	t.Helper()
	must(t, err)
	for i := range got {
		got[i].First, got[i].Expires = got[i].First.UTC(), got[i].Expires.UTC()
	}
	if len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\ngot  %+v\nwant %+v", what, got, want)
	}
}

var sessionSuite = suite{
	{"sessions are listed newest first, by subject or all", func(t *testing.T, b *Bed) {
		one := session(b, "s1", "alice", "c", 3*time.Minute)
		two := session(b, "s2", "bob", "c", 2*time.Minute)
		three := session(b, "s1", "alice", "d", time.Minute) // of another client
		none := session(b, "s4", "", "c", 0)
		for _, s := range []broker.Session{two, none, one, three} {
			must(t, b.Store.Note(soon(t), s))
		}
		all := func(subject string, limit int) ([]broker.Session, error) {
			return b.Store.Sessions(soon(t), subject, limit)
		}
		got, err := all("alice", 10)
		sessionsAre(t, "of alice", got, err, three, one)
		got, err = all("bob", 10)
		sessionsAre(t, "of bob", got, err, two)
		got, err = all("", 10)
		sessionsAre(t, "of everybody", got, err, none, three, two, one)
		got, err = all("", 2)
		sessionsAre(t, "the newest two", got, err, none, three)
		got, err = all("carol", 10)
		sessionsAre(t, "of nobody", got, err)
		for _, limit := range []int{0, -1} {
			got, err = all("", limit)
			sessionsAre(t, "none at all", got, err)
		}
	}},
	{"a session is written once", func(t *testing.T, b *Bed) {
		first := session(b, "s1", "alice", "c", 3*time.Minute)
		must(t, b.Store.Note(soon(t), first))
		again := first
		again.First, again.Agent = again.First.Add(time.Minute), "another agent"
		must(t, b.Store.Note(soon(t), again))
		got, err := b.Store.Sessions(soon(t), "alice", 10)
		sessionsAre(t, "noted twice", got, err, first)
		together(30, func(i int) {
			s := session(b, "s2", "bob", "c", time.Duration(i)*time.Second)
			if err := b.Store.Note(soon(t), s); err != nil {
				t.Error(err)
			}
		})
		if got, err = b.Store.Sessions(soon(t), "bob", 100); err != nil || len(got) != 1 {
			t.Errorf("noted by many at once: %d sessions, %v", len(got), err)
		}
	}},
	{"a session that has ended is no longer listed, and can come again", func(t *testing.T, b *Bed) {
		stays := session(b, "s1", "alice", "c", time.Minute)
		ends := session(b, "s2", "alice", "c", 2*time.Minute)
		ends.Expires = b.Now().Add(150 * time.Millisecond)
		ended := session(b, "s3", "alice", "c", 0)
		ended.Expires = b.Now().Add(-time.Second)
		for _, s := range []broker.Session{stays, ends, ended} {
			must(t, b.Store.Note(soon(t), s))
		}
		b.Forward(200 * time.Millisecond)
		for _, subject := range []string{"alice", ""} {
			got, err := b.Store.Sessions(soon(t), subject, 10)
			sessionsAre(t, "later, of "+subject, got, err, stays)
		}
		again := session(b, "s2", "alice", "c", 0)
		must(t, b.Store.Note(soon(t), again))
		for _, subject := range []string{"alice", ""} {
			got, err := b.Store.Sessions(soon(t), subject, 10)
			sessionsAre(t, "again, of "+subject, got, err, again, stays)
		}
	}},
	{"a session that ends before older ones does not hide them", func(t *testing.T, b *Bed) {
		for i := range 30 {
			s := session(b, id("short %d", i), "alice", "c", 0)
			s.Expires = b.Now().Add(150 * time.Millisecond)
			must(t, b.Store.Note(soon(t), s))
		}
		old := session(b, "long", "alice", "c", time.Hour)
		must(t, b.Store.Note(soon(t), old))
		b.Forward(200 * time.Millisecond)
		got, err := b.Store.Sessions(soon(t), "alice", 5)
		sessionsAre(t, "of alice", got, err, old)
	}},
	{"sessions survive reopening", func(t *testing.T, b *Bed) {
		s := session(b, "s1", "alice", "c", time.Minute)
		must(t, b.Store.Note(soon(t), s))
		got, err := b.Reopen().Sessions(soon(t), "alice", 10)
		sessionsAre(t, "reopened", got, err, s)
	}},
}
