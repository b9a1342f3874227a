package store_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/store/storetest"
	"github.com/stint-dev/stint/internal/testbed"
)

var background = context.Background()

// impatient gives up quickly.
func impatient() store.RedisConfig {
	return store.RedisConfig{Timeout: duration(time.Second), DialTimeout: duration(time.Second), WaitTimeout: duration(200 * time.Millisecond)}
}

// link returns an entry behind a head.
func link(after broker.Head, what string) broker.Entry {
	now := time.Unix(1_800_000_000, 0)
	return after.Follow(broker.Record{Where: []broker.Key{broker.KeyOf(broker.BySubject, what)}, At: now, Expires: now.Add(time.Hour)},
		broker.Position{Epoch: 1, Seq: after.Pos.Seq + 1})
}

func intent(id string, keys ...broker.Key) *broker.Lease {
	l := &broker.Lease{ID: id, State: broker.Intent, Expires: time.Now().Add(time.Minute), Next: time.Now().Add(time.Minute)}
	for _, k := range keys {
		l.Keys = append(l.Keys, k.String())
	}
	return l
}

// everything is one of each call.
func everything(s storetest.Store, head broker.Head, n int) map[string]func() error {
	return map[string]func() error{
		"append": func() error { return s.Append(background, head, link(head, "a")) },
		"read":   func() error { _, err := s.Read(background, 0, 1, 0); return err },
		"wait":   func() error { _, err := s.Read(background, 1<<40, 1, 100*time.Millisecond); return err },
		"trim":   func() error { return s.Trim(background, 0) },
		"beat": func() error {
			_, err := s.Beat(background, broker.Replica{ID: "one"}, time.Minute)
			return err
		},
		"leave": func() error { return s.Leave(background, "one") },
		"create": func() error {
			return s.Create(background, intent(fmt.Sprint("lease ", n), broker.KeyOf(broker.BySession, "s")))
		},
		"lease": func() error {
			_, err := s.Lease(background, "nobody")
			if errors.Is(err, broker.ErrNotFound) {
				return nil
			}
			return err
		},
		"match": func() error { _, err := s.Match(background, broker.KeyOf(broker.BySession, "s")); return err },
		"due":   func() error { _, err := s.Due(background, time.Now(), 10); return err },
		"all":   func() error { return s.All(background, func(*broker.Lease) error { return nil }) },
		"open":  func() error { _, err := s.Open(background); return err },
		"use": func() error {
			_, err := s.Use(background, "jti", fmt.Sprint("id ", n), time.Now().Add(time.Minute))
			return err
		},
		"note": func() error {
			return s.Note(background, broker.Session{ID: fmt.Sprint("s", n), Subject: "a", Client: "c", First: time.Now(), Expires: time.Now().Add(time.Minute)})
		},
		"sessions": func() error { _, err := s.Sessions(background, "a", 10); return err },
		"ready":    func() error { return s.Ready(background) },
	}
}

// allFail holds every call against a Redis that is gone: an error, no claim to
// know anything, and in time.
func allFail(t *testing.T, s storetest.Store) {
	t.Helper()
	var wg sync.WaitGroup
	for name, call := range everything(s, broker.Head{}, 1) {
		wg.Go(func() {
			start := time.Now()
			err := call()
			took := time.Since(start)
			if err == nil || errors.Is(err, broker.ErrConflict) || errors.Is(err, broker.ErrNotFound) || !strings.HasPrefix(err.Error(), "redis: ") {
				t.Errorf("%s: %v", name, err)
			}
			if took > 5*time.Second {
				t.Errorf("%s took %s", name, took)
			}
		})
	}
	wg.Wait()
}

func TestARedisThatIsGoneIsAnErrorInTimeAndThenForgotten(t *testing.T) {
	for name, lose := range map[string]func(*redisWorld) (back func()){
		"killed": func(w *redisWorld) func() { w.Process.Kill(); return w.Restart },
		"frozen": func(w *redisWorld) func() {
			w.Process.Signal(syscall.SIGSTOP)
			return func() { w.Process.Signal(syscall.SIGCONT) }
		},
		// Of a pipeline that never left, the client's commands hold no error.
		"not open to the user any more": func(w *redisWorld) func() {
			w.Do("ACL", "SETUSER", "stint", "off")
			w.Do("CLIENT", "KILL", "USER", "stint")
			return func() { w.Do("ACL", "SETUSER", "stint", "on") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			redis := testbed.Redis(t, testbed.RedisOptions{AppendOnly: true, Config: "user stint on >word ~* &* +@all"})
			w := &redisWorld{RedisServer: redis, cfg: impatient(), secrets: store.RedisSecrets{Password: secret.New("word")}}
			w.cfg.Username = "stint"
			s := w.open(t, "stint:")
			must(t, s.Ready(background))
			back := lose(w)
			allFail(t, s)
			allFail(t, s)
			back()
			eventually(t, func() error { return s.Ready(background) })
			entries, err := s.Read(background, 0, 1, 0) // what was sent to a frozen Redis may have been done
			must(t, err)
			head := broker.Head{}
			if len(entries) > 0 {
				head = entries[0].Head()
			}
			for name, call := range everything(s, head, 2) {
				if err := call(); err != nil {
					t.Errorf("%s, when Redis is back: %v", name, err)
				}
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatTooFewReplicasConfirmHasFailed(t *testing.T) {
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{}), cfg: impatient()}
	replica := testbed.Redis(t, testbed.RedisOptions{ReplicaOf: w.RedisServer})
	w.cfg.Timeout, w.cfg.WaitTimeout = duration(5*time.Second), duration(2*time.Second)
	patient := w.open(t, "stint:")
	w.cfg.WaitTimeout = duration(150 * time.Millisecond)
	w.cfg.ReplicasToWait = 1
	s := w.open(t, "stint:")
	must(t, patient.Append(background, broker.Head{}, link(broker.Head{}, "a")))
	for what, lose := range map[string]func() (back func()){
		"is dead": func() func() { replica.Process.Kill(); return replica.Restart },
		"does not answer": func() func() {
			replica.Process.Signal(syscall.SIGSTOP)
			return func() { replica.Process.Signal(syscall.SIGCONT) }
		},
		"follows no longer": func() func() { replica.Do("REPLICAOF", "NO", "ONE"); return func() { follow(replica, w.RedisServer) } },
		"follows not enough": func() func() {
			w.cfg.ReplicasToWait = 2
			s = w.open(t, "stint:")
			return func() { w.cfg.ReplicasToWait = 1; s = w.open(t, "stint:") }
		},
	} {
		entries, err := s.Read(background, 0, 100, 0)
		must(t, err)
		head := entries[len(entries)-1].Head()
		back := lose()
		start := time.Now()
		if err := s.Append(background, head, link(head, what)); err == nil || errors.Is(err, broker.ErrConflict) || !strings.Contains(err.Error(), "confirmed") {
			t.Errorf("append while the replica %s: %v", what, err)
		}
		if took := time.Since(start); took < 150*time.Millisecond {
			t.Errorf("append while the replica %s: given up after %s", what, took)
		}
		if first, err := s.Use(background, "jti", what, time.Now().Add(time.Minute)); err == nil || first {
			t.Errorf("use while the replica %s: first %t, %v", what, first, err)
		}
		if beat, err := s.Beat(background, broker.Replica{ID: "one"}, time.Minute); err == nil || !beat.Now.IsZero() {
			t.Errorf("heartbeat while the replica %s: %+v, %v", what, beat, err)
		}
		// It was written all the same, and whoever does not wait for replicas sees it.
		if first, err := patient.Use(background, "jti", what, time.Now().Add(time.Minute)); err != nil || first {
			t.Errorf("the second use: first %t, %v", first, err)
		}
		if entries, err = patient.Read(background, head.Pos.Seq, 100, 0); err != nil || len(entries) != 1 {
			t.Errorf("behind the head: %d entries, %v", len(entries), err)
		}
		back()
		eventually(t, func() error { return s.Ready(background) })
		head = entries[0].Head()
		eventually(t, func() error { // a replica may take a moment to be in step
			err := s.Append(background, head, link(head, "later"))
			if errors.Is(err, broker.ErrConflict) {
				return nil // a try before this one had been written
			}
			return err
		})
		eventually(t, func() error { _, err := s.Beat(background, broker.Replica{ID: "one"}, time.Minute); return err })
	}
}

func follow(replica, master *testbed.RedisServer) {
	host, port, _ := net.SplitHostPort(master.Addr)
	replica.Do("REPLICAOF", host, port)
}

func TestReadyRefusesARedisThatWouldForget(t *testing.T) {
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{}), cfg: impatient()}
	s := w.open(t, "stint:")
	must(t, s.Ready(background))
	w.Do("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
	if err := s.Ready(background); err == nil || !strings.Contains(err.Error(), "noeviction") {
		t.Errorf("with eviction: %v", err)
	}
	w.Do("CONFIG", "SET", "maxmemory-policy", "noeviction")
	must(t, s.Ready(background))

	w.cfg.ReplicasToWait = 1
	if err := w.open(t, "stint:").Ready(background); err == nil || !strings.Contains(err.Error(), "0 replicas") {
		t.Errorf("without the replicas that have to confirm: %v", err)
	}
	r := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{ReplicaOf: w.RedisServer}), cfg: impatient()}
	s = r.open(t, "stint:")
	if err := s.Ready(background); err == nil || !strings.Contains(err.Error(), "slave") {
		t.Errorf("a replica: %v", err)
	}
	if err := s.Append(background, broker.Head{}, link(broker.Head{}, "a")); err == nil || errors.Is(err, broker.ErrConflict) {
		t.Errorf("append to a replica: %v", err)
	}
	if _, err := s.Beat(background, broker.Replica{ID: "one"}, time.Minute); err == nil {
		t.Error("a replica took a heartbeat")
	}
}

// cutter stands before Redis. While it is armed, writes arrive and their answers
// do not: the connection breaks.
type cutter struct {
	net.Listener
	armed  atomic.Bool
	writes atomic.Int64 // that arrived while it was armed
}

func cut(t testing.TB, addr string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	c := &cutter{Listener: l}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", addr)
			if err != nil {
				_ = in.Close()
				continue
			}
			var doomed atomic.Bool
			go pump(in, out, func(request string) bool {
				if c.armed.Load() && (strings.HasPrefix(request, "*") && (strings.Contains(request, "evalsha") || strings.Contains(request, "\r\nset\r\n"))) {
					doomed.Store(true)
					c.writes.Add(1)
				}
				return true
			})
			go pump(out, in, func(string) bool { return !doomed.Load() })
		}
	}()
	return c
}

// pump passes on what comes, as long as it may pass.
func pump(from, to net.Conn, pass func(string) bool) {
	defer func() { _, _ = from.Close(), to.Close() }()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !pass(string(buf[:n])) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func TestAWriteWhoseAnswerIsLostIsNotSentAgain(t *testing.T) {
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{}), cfg: impatient()}
	direct := w.open(t, "stint:")
	c := cut(t, w.Addr)
	cfg := impatient()
	cfg.Address = c.Addr().String()
	s, err := store.OpenRedis(cfg, store.RedisSecrets{}, time.Now)
	must(t, err)
	defer func() { _ = s.Close() }()
	first := link(broker.Head{}, "a")
	must(t, s.Append(background, broker.Head{}, first))
	must(t, s.Create(background, intent("one")))
	l, err := s.Lease(background, "one")
	must(t, err)

	c.armed.Store(true)
	if err := s.Append(background, first.Head(), link(first.Head(), "b")); err == nil || errors.Is(err, broker.ErrConflict) {
		t.Errorf("append: %v", err)
	}
	if first, err := s.Use(background, "jti", "one", time.Now().Add(time.Minute)); err == nil || first {
		t.Errorf("use: first %t, %v", first, err)
	}
	if err := s.Update(background, l); err == nil || errors.Is(err, broker.ErrConflict) || l.Version != 0 {
		t.Errorf("update: %v, version %d", err, l.Version)
	}
	if n := c.writes.Load(); n != 3 {
		t.Errorf("three writes were sent %d times", n)
	}
	c.armed.Store(false)
	// All three were done.
	entries, err := direct.Read(background, 0, 10, 0)
	if err != nil || len(entries) != 2 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	if first, err := direct.Use(background, "jti", "one", time.Now().Add(time.Minute)); err != nil || first {
		t.Errorf("the second use: first %t, %v", first, err)
	}
	if err := s.Update(background, l); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("the second update: %v", err)
	}
}

func TestMoreCallersThanConnectionsWaitTheirTurn(t *testing.T) {
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{}), cfg: patient()}
	w.cfg.PoolSize = 2
	s := w.open(t, "stint:")
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if first, err := s.Use(background, "jti", fmt.Sprint(i), time.Now().Add(time.Minute)); err != nil || !first {
				t.Errorf("first %t, %v", first, err)
			}
		})
	}
	wg.Wait()
	// The connections of readers that were called off come back as well.
	ctx, cancel := context.WithCancel(background)
	for range 2 {
		wg.Go(func() { _, _ = s.Read(ctx, 0, 1, time.Hour) })
	}
	time.Sleep(50 * time.Millisecond)
	cancel()
	wg.Wait()
	must(t, s.Ready(background))
}

func TestNoErrorHoldsThePassword(t *testing.T) {
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{Config: deployedACL(t)}), cfg: impatient()}
	const canary = "canary-2b7e151628aed2a6"
	for name, open := range map[string]func() error{
		"a wrong password": func() error { return w.open(t, "stint:").Ready(background) },
		"another prefix": func() error {
			w.secrets.Password = secret.New(password)
			return w.open(t, "other:").Create(background, intent("one", broker.KeyOf(broker.BySession, "s")))
		},
		"no user": func() error {
			w.cfg.Username, w.secrets.Password = "", secret.String{}
			return w.open(t, "stint:").Ready(background)
		},
		"no password": func() error {
			cfg := w.cfg
			cfg.Address, cfg.Username = w.Addr, "stint"
			_, err := store.OpenRedis(cfg, store.RedisSecrets{}, time.Now)
			return err
		},
	} {
		w.cfg.Username, w.secrets.Password = "stint", secret.New(canary)
		err := open()
		if err == nil {
			t.Errorf("%s was accepted", name)
		} else if text := fmt.Sprintf("%v %+v", err, w.secrets); strings.Contains(text, canary) || strings.Contains(text, password) {
			t.Errorf("%s: the error holds the password: %s", name, text)
		}
	}
}

// A replica of ours is current as of a heartbeat only if it saw what had been
// appended by the time that the heartbeat was confirmed.
func TestTheHeadOfAHeartbeatIsReadAfterTheReplicasConfirmed(t *testing.T) {
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{}), cfg: patient()}
	replica := testbed.Redis(t, testbed.RedisOptions{ReplicaOf: w.RedisServer})
	other := w.open(t, "stint:")
	w.cfg.ReplicasToWait = 1
	s := w.open(t, "stint:")
	must(t, s.Ready(background))
	replica.Process.Signal(syscall.SIGSTOP)
	beats := make(chan broker.Beat, 1)
	go func() {
		beat, err := s.Beat(background, broker.Replica{ID: "one"}, time.Minute)
		if err != nil {
			t.Error(err)
		}
		beats <- beat
	}()
	eventually(t, func() error { // the heartbeat is written, and waits
		if w.Do("EXISTS", "stint:{feed}:replicas") == "0" {
			return errors.New("no heartbeat")
		}
		return nil
	})
	e := link(broker.Head{}, "a")
	must(t, other.Append(background, broker.Head{}, e))
	replica.Process.Signal(syscall.SIGCONT)
	if beat := <-beats; beat.Head != e.Head() {
		t.Errorf("head %s, though %s was there before the confirmation", beat.Head.Pos, e.Pos)
	}
}
