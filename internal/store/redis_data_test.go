package store_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/store/storetest"
	"github.com/stint-dev/stint/internal/testbed"
)

func freshRedis(t testing.TB) (*redisWorld, *store.Redis) {
	t.Helper()
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{}), cfg: patient()}
	return w, w.open(t, "stint:")
}

// keysLike returns the keys of a pattern.
func (w *redisWorld) keysLike(pattern string) []string {
	if text := w.Do("KEYS", pattern); text != "" {
		return strings.Split(text, "\n")
	}
	return nil
}

func (w *redisWorld) ttl(t testing.TB, pattern string) time.Duration {
	t.Helper()
	keys := w.keysLike(pattern)
	if len(keys) != 1 {
		t.Fatalf("keys like %s: %q", pattern, keys)
	}
	ms, err := strconv.Atoi(w.Do("PTTL", keys[0]))
	must(t, err)
	return time.Duration(ms) * time.Millisecond
}

func TestAClosedLeaseStaysForAnHourAndThenGoesByItself(t *testing.T) {
	for name, c := range map[string]struct{ expires, least, most time.Duration }{
		"it ran out before":  {-5 * time.Minute, 59 * time.Minute, time.Hour},
		"it would still run": {30 * time.Minute, 89 * time.Minute, 90 * time.Minute},
		"for ever":           {1 << 62, 1000 * time.Hour, math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			w, s := freshRedis(t)
			l := intent("one", broker.KeyOf(broker.BySession, "s"))
			l.Expires = time.Now().Add(c.expires)
			must(t, s.Create(background, l))
			if ttl := w.ttl(t, "stint:lease:*"); ttl >= 0 {
				t.Errorf("an open lease goes in %s", ttl)
			}
			l.State = broker.Closed
			must(t, s.Update(background, l))
			if ttl := w.ttl(t, "stint:lease:*"); ttl < c.least || ttl > c.most {
				t.Errorf("it goes in %s", ttl)
			}
			if all := w.keysLike("*"); len(all) != 1 {
				t.Errorf("beside the lease there is something left: %q", all)
			}
			w.Do("PEXPIRE", w.keysLike("stint:lease:*")[0], "0")
			if _, err := s.Lease(background, "one"); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("afterwards: %v", err)
			}
			must(t, s.Create(background, intent("one")))
		})
	}
}

func TestAOneTimeIDIsKeptForNoLessThanItWasAsked(t *testing.T) {
	for _, life := range []time.Duration{-time.Hour, 0, time.Nanosecond, 1500 * time.Microsecond, 10 * time.Minute} {
		w, s := freshRedis(t)
		_, err := s.Use(background, "jti", "one", time.Now().Add(life))
		must(t, err)
		if ttl := w.ttl(t, "stint:once:*"); ttl < life+50*time.Second || ttl > max(life, 0)+61*time.Second {
			t.Errorf("asked for %s, it is kept for %s", life, ttl)
		}
	}
}

func TestSessionsLeaveNothingBehind(t *testing.T) {
	w, s := freshRedis(t)
	for i := range 20 {
		must(t, s.Note(background, broker.Session{ID: fmt.Sprint(i), Subject: "alice", Client: "c", First: time.Now(), Expires: time.Now().Add(300 * time.Millisecond)}))
	}
	if n := len(w.keysLike("stint:session:*")); n != 20 {
		t.Fatalf("%d sessions", n)
	}
	eventually(t, func() error {
		if left := w.keysLike("*"); len(left) > 0 {
			return fmt.Errorf("left: %q", left)
		}
		return nil
	})
	// Among longer ones, those that have ended go as new ones come.
	must(t, s.Note(background, broker.Session{ID: "long", Subject: "alice", Client: "c", First: time.Now(), Expires: time.Now().Add(time.Hour)}))
	for i := range 10 {
		must(t, s.Note(background, broker.Session{ID: fmt.Sprint("short", i), Subject: "alice", Client: "c", First: time.Now(), Expires: time.Now().Add(100 * time.Millisecond)}))
	}
	time.Sleep(150 * time.Millisecond)
	must(t, s.Note(background, broker.Session{ID: "last", Subject: "alice", Client: "c", First: time.Now(), Expires: time.Now().Add(time.Hour)}))
	for _, set := range w.keysLike("stint:sessions:*") {
		if n := w.Do("ZCARD", set); n != "2" {
			t.Errorf("%s has %s members, not 2", set, n)
		}
	}
}

// What a process leaves that dies in the middle of Create or Update.
func TestWhatACrashLeavesUnderAKeyIsRecognised(t *testing.T) {
	w, s := freshRedis(t)
	k := broker.KeyOf(broker.BySession, "s")
	set := "stint:key:{" + k.String() + "}"
	past, future := fmt.Sprint(time.Now().Add(-time.Minute).UnixMilli()), fmt.Sprint(time.Now().Add(time.Minute).UnixMilli())
	match := func(want ...string) {
		t.Helper()
		got, err := s.Match(background, k)
		must(t, err)
		if !slices.Equal(got, want) {
			t.Errorf("match: %q, not %q", got, want)
		}
	}
	must(t, s.Create(background, intent("open", k)))
	w.Do("ZADD", set, past, "open")                  // however long ago it was filed
	w.Do("ZADD", set, future, "about to be created") // perhaps this very moment
	w.Do("ZADD", set, past, "never created")
	match("about to be created", "open")
	if members := w.Do("ZRANGE", set, "0", "-1"); strings.Contains(members, "never") {
		t.Errorf("it is still there: %q", members)
	}

	// Closed, and then the process died.
	closed := intent("closed", k)
	must(t, s.Create(background, closed))
	closed.State = broker.Closed
	must(t, s.Update(background, closed))
	w.Do("ZADD", set, past, "closed")
	match("about to be created", "open")

	// Where nobody asks for the key, closing another lease of it will do.
	other := intent("other", k)
	must(t, s.Create(background, other))
	w.Do("ZADD", set, past, "never created")
	other.State = broker.Closed
	must(t, s.Update(background, other))
	if members := w.Do("ZRANGE", set, "0", "-1"); strings.Contains(members, "never") || !strings.Contains(members, "open") {
		t.Errorf("after closing another: %q", members)
	}
}

func TestALeaseThatSomebodyDeletedIsDueOnlyOnce(t *testing.T) {
	w, s := freshRedis(t)
	l := intent("one")
	l.Next = time.Now().Add(-time.Second)
	must(t, s.Create(background, l))
	w.Do("DEL", w.keysLike("stint:lease:*")[0])
	if ids, err := s.Due(background, time.Now(), 10); err != nil || len(ids) != 0 {
		t.Errorf("due: %q, %v", ids, err)
	}
	if left := w.keysLike("*"); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestADamagedLeaseHidesNoOther(t *testing.T) {
	w, s := freshRedis(t)
	for i := range 5 {
		must(t, s.Create(background, intent(fmt.Sprint("lease ", i))))
	}
	for _, damage := range []string{`{"id":"another","version":0,"state":"intent"}`, `{`, ``} {
		w.Do("HSET", w.keysLike("stint:lease:*lease 3")[0], "d", damage)
		n := 0
		if err := s.All(background, func(*broker.Lease) error { n++; return nil }); err == nil || n != 4 {
			t.Errorf("%d leases, %v", n, err)
		}
		if _, err := s.Lease(background, "lease 3"); err == nil || errors.Is(err, broker.ErrNotFound) {
			t.Errorf("the damaged one: %v", err)
		}
	}
}

func TestEntriesThatWereTakenOutAtTheEndCanBePutBack(t *testing.T) {
	for name, lose := range map[string]struct {
		how  []string
		left int
	}{
		"the last":          {[]string{"XDEL", "stint:{feed}", "3-0"}, 2},
		"all but the first": {[]string{"XDEL", "stint:{feed}", "2-0", "3-0"}, 1},
		"all":               {[]string{"XTRIM", "stint:{feed}", "MAXLEN", "0"}, 0},
		"the whole key":     {[]string{"DEL", "stint:{feed}"}, 0},
		"the database":      {[]string{"FLUSHALL"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w, s := freshRedis(t)
			one := link(broker.Head{}, "a")
			two := link(one.Head(), "b")
			three := link(two.Head(), "c")
			entries := []broker.Entry{one, two, three}
			must(t, s.Append(background, broker.Head{}, entries...))
			w.Do(lose.how...)
			heads := []broker.Head{{}, one.Head(), two.Head()}
			beat, err := s.Beat(background, broker.Replica{ID: "one"}, time.Minute)
			if err != nil || beat.Head != heads[lose.left] {
				t.Errorf("the loss does not show: head %v, %v", beat.Head, err)
			}
			must(t, s.Append(background, heads[lose.left], entries[lose.left:]...))
			back, err := s.Read(background, 0, 10, 0)
			if err != nil || len(back) != 3 || back[2].ID != three.ID {
				t.Errorf("%d entries are back, %v", len(back), err)
			}
		})
	}
}

func TestAnEntryThatSomebodyChangedIsAnError(t *testing.T) {
	one := link(broker.Head{}, "a")
	two := link(one.Head(), "b")
	for name, fields := range map[string][]string{
		"other bytes under the id":  {"2-0", "i", string(two.ID[:]), "e", string(link(one.Head(), "c").Encode())},
		"another id for the bytes":  {"2-0", "i", string(one.ID[:]), "e", string(two.Encode())},
		"another sequence number":   {"3-0", "i", string(two.ID[:]), "e", string(two.Encode())},
		"no entry":                  {"2-0", "i", string(two.ID[:]), "e", "{}"},
		"fields of another program": {"2-0", "x", "y"},
		"an id within a number":     {"2-7", "i", string(two.ID[:]), "e", string(two.Encode())},
	} {
		t.Run(name, func(t *testing.T) {
			w, s := freshRedis(t)
			must(t, s.Append(background, broker.Head{}, one))
			w.Do(append([]string{"XADD", "stint:{feed}"}, fields...)...)
			if entries, err := s.Read(background, 0, 10, 0); err == nil {
				t.Errorf("read: %d entries", len(entries))
			}
			if _, err := s.Beat(background, broker.Replica{ID: "one"}, time.Minute); err == nil {
				t.Error("a heartbeat was answered")
			}
		})
	}
}

func TestScriptsThatRedisForgotAreSentAgain(t *testing.T) {
	w, s := freshRedis(t)
	head := broker.Head{}
	for i := range 3 {
		for name, call := range everything(s, head, i) {
			w.Do("SCRIPT", "FLUSH")
			must(t, call())
			if name == "append" {
				entries, err := s.Read(background, 0, 100, 0)
				must(t, err)
				head = entries[len(entries)-1].Head()
			}
		}
	}
}

// Every command that deploy/redis.acl allows is used, and none is refused.
func TestTheDeployedACLAllowsWhatIsUsedAndNothingElse(t *testing.T) {
	acl := deployedACL(t)
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{AppendOnly: true, Config: acl}), cfg: patient()}
	w.cfg.Username, w.secrets = "stint", passwordSecrets()
	w.cfg.ReplicasToWait = 1
	testbed.Redis(t, testbed.RedisOptions{ReplicaOf: w.RedisServer})
	used := make(map[string]bool)
	var mu sync.Mutex
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		for line := range strings.Lines(w.Do("INFO", "commandstats")) {
			if name, _, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls="); ok {
				used[name] = true
			}
		}
	}
	storetest.Run(t, func(t *testing.T) *storetest.Bed {
		b := w.bed(t)
		reopen := b.Reopen
		b.Reopen = func() storetest.Store {
			look() // a restart forgets
			s := reopen()
			eventually(t, func() error { return s.Ready(context.Background()) })
			return s
		}
		return b
	})
	s := w.open(t, "stint:") // what the suite has no way to bring about
	one := link(broker.Head{}, "a")
	must(t, s.Append(background, broker.Head{}, one))
	w.Do("DEL", "stint:{feed}")
	l := intent("one", broker.KeyOf(broker.BySession, "s"))
	l.Next = time.Time{}
	must(t, s.Create(background, l))
	w.Do("DEL", w.keysLike("stint:lease:*:one")[0])
	w.Do("ZADD", "stint:key:{"+l.Keys[0]+"}", "1", "one")
	must(t, s.Append(background, broker.Head{}, one))
	w.Do("XTRIM", "stint:{feed}", "MAXLEN", "0")
	must(t, s.Append(background, broker.Head{}, one))
	for _, call := range everything(s, one.Head(), 1) {
		must(t, call())
	}
	look()
	if log := w.Do("ACL", "LOG"); log != "" {
		t.Errorf("refused: %s", log)
	}
	allowed := 0
	for word := range strings.FieldsSeq(acl[strings.Index(acl, "user stint"):]) {
		if name, ok := strings.CutPrefix(word, "+"); ok {
			if allowed++; !used[name] {
				t.Errorf("%s is allowed and never used", name)
			}
		}
	}
	if allowed < 20 {
		t.Errorf("%d commands are allowed: the test does not read the file", allowed)
	}
	for _, command := range [][]string{
		{"FLUSHALL"}, {"FLUSHDB"}, {"KEYS", "*"}, {"SCAN", "0"}, {"CONFIG", "GET", "*"}, {"DEBUG", "SLEEP", "0"}, {"ACL", "LIST"},
		{"SHUTDOWN"}, {"DEL", "stint:{feed}"}, {"GET", "other"}, {"SET", "other", "1"}, {"PUBLISH", "stint:x", "y"}, {"MONITOR"}, {"CLIENT", "LIST"},
		{"REPLICAOF", "NO", "ONE"}, {"XADD", "other", "*", "a", "b"},
	} {
		if said := w.Do(append([]string{"ACL", "DRYRUN", "stint"}, command...)...); said == "OK" {
			t.Errorf("%s is allowed", strings.Join(command, " "))
		}
	}
	if said := w.Do("ACL", "DRYRUN", "stint", "GET", "stint:x"); said != "OK" {
		t.Errorf("GET of an own key: %s", said)
	}
}

func TestALeaseThatCannotBeFiledDoesNotComeToBe(t *testing.T) {
	w, s := freshRedis(t)
	k := broker.KeyOf(broker.BySession, "s")
	w.Do("SET", "stint:key:{"+k.String()+"}", "in the way")
	if err := s.Create(background, intent("one", broker.KeyOf(broker.BySubject, "a"), k)); err == nil || errors.Is(err, broker.ErrConflict) {
		t.Errorf("created: %v", err)
	}
	if _, err := s.Lease(background, "one"); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a lease that one of its keys does not know: %v", err)
	}
	if n, err := s.Open(background); n != 0 || err != nil {
		t.Errorf("%d leases are open, %v", n, err)
	}
}

// What a later version has written is not gone on with.
func TestRedisOfALaterFormatIsRefused(t *testing.T) {
	t.Parallel()
	server, s := freshRedis(t)
	me := broker.Replica{ID: "a"}
	if _, err := s.Beat(t.Context(), me, time.Minute); err != nil {
		t.Fatal(err)
	}
	if got := server.Do("GET", "stint:{feed}:format"); got != "stint redis 1" {
		t.Errorf("the format is %v", got)
	}
	server.Do("SET", "stint:{feed}:format", "stint redis 2")
	if _, err := s.Beat(t.Context(), me, time.Minute); err == nil || !strings.Contains(err.Error(), "run that version") {
		t.Errorf("%v", err)
	}
	server.Do("SET", "stint:{feed}:format", "stint redis 1")
	if _, err := s.Beat(t.Context(), me, time.Minute); err != nil {
		t.Error(err)
	}
}
