package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/store"
)

func TestASecondProcessIsRefused(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "stint.db")
	openEmbedded(t, path, c)
	start := time.Now()
	_, err := store.OpenEmbedded(path, c.Now)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("opened twice: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s to be refused", took)
	}
}

func TestFilesThatAreNoStoreAreRefused(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	text := filepath.Join(dir, "text")
	must(t, os.WriteFile(text, []byte(strings.Repeat("not a store ", 2000)), 0o600))
	other := filepath.Join(dir, "other")
	keys, err := store.OpenSubjectKeys(other, plainSealer{})
	must(t, err)
	must(t, keys.Close())
	for _, path := range []string{text, other, dir, ""} {
		if s, err := store.OpenEmbedded(path, c.Now); err == nil {
			_ = s.Close()
			t.Errorf("%s was opened", path)
		}
	}
	if _, err := store.OpenEmbedded(filepath.Join(dir, "new"), nil); err == nil {
		t.Error("a store without a clock was opened")
	}
}

func TestTheFileIsForItsOwnerAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "folder", "stint.db")
	openEmbedded(t, path, newClock())
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(name)
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o", name, info.Mode().Perm())
		}
	}
}

func TestAClosedStoreSaysSo(t *testing.T) {
	s := openEmbedded(t, filepath.Join(t.TempDir(), "stint.db"), &clock{at: time.Now()})
	waiting := make(chan error, 1)
	go func() { _, err := s.Read(background, 0, 1, time.Hour); waiting <- err }()
	time.Sleep(20 * time.Millisecond)
	must(t, s.Close())
	must(t, s.Close())
	select {
	case err := <-waiting:
		if err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("the reader that waited: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the reader waits for ever")
	}
	for name, call := range everything(s, broker.Head{}, 1) {
		if err := call(); err == nil || !strings.Contains(err.Error(), "the store is closed") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnEndedContextStopsEveryCall(t *testing.T) {
	s := openEmbedded(t, filepath.Join(t.TempDir(), "stint.db"), newClock())
	ctx, cancel := context.WithCancel(background)
	cancel()
	if err := s.Append(ctx, broker.Head{}, link(broker.Head{}, "a")); !errors.Is(err, context.Canceled) {
		t.Errorf("append: %v", err)
	}
	if _, err := s.Read(ctx, 0, 1, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	if entries, err := s.Read(background, 0, 1, 0); err != nil || len(entries) != 0 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

func TestAClosedLeaseGoesAnHourAfterItRanOut(t *testing.T) {
	c := newClock()
	s := openEmbedded(t, filepath.Join(t.TempDir(), "stint.db"), c)
	for _, l := range []struct {
		name    string
		expires time.Duration
	}{{"ran out", -time.Hour}, {"would still run", 30 * time.Minute}} {
		lease := intent(l.name)
		lease.Expires = c.Now().Add(l.expires)
		must(t, s.Create(background, lease))
		lease.State = broker.Closed
		must(t, s.Update(background, lease))
	}
	left := func(want ...string) {
		t.Helper()
		for _, name := range []string{"ran out", "would still run"} {
			_, err := s.Lease(background, name)
			if there := strings.Contains(strings.Join(want, ","), name); there != (err == nil) || !there && !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	c.Forward(59 * time.Minute)
	left("ran out", "would still run")
	c.Forward(2 * time.Minute)
	left("would still run")
	must(t, s.Create(background, intent("ran out"))) // the id is free again
	c.Forward(28 * time.Minute)
	left("ran out", "would still run")
	c.Forward(2 * time.Minute)
	left("ran out")
	if err := s.Update(background, intent("would still run")); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("update of what is gone: %v", err)
	}
}

// count returns how many entries each bucket of a closed store's file has.
func count(t testing.TB, path string) map[string]int {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	must(t, err)
	defer func() { _ = db.Close() }()
	out := make(map[string]int)
	must(t, db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			if n := b.Stats().KeyN; n > 0 {
				out[string(name)] = n
			}
			return nil
		})
	}))
	return out
}

func TestWhatHasRunOutIsSwept(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "stint.db")
	s := openEmbedded(t, path, c)
	for i := range 50 {
		_, err := s.Use(background, "jti", fmt.Sprint(i), c.Now().Add(time.Minute))
		must(t, err)
		must(t, s.Note(background, broker.Session{ID: fmt.Sprint(i), Subject: "a", Client: "c", First: c.Now(), Expires: c.Now().Add(time.Minute)}))
		l := intent(fmt.Sprint("lease ", i), broker.KeyOf(broker.BySession, "s"))
		l.Expires = c.Now()
		must(t, s.Create(background, l))
		l.State = broker.Closed
		must(t, s.Update(background, l))
		_, err = s.Beat(background, broker.Replica{ID: fmt.Sprint("replica ", i)}, time.Minute)
		must(t, err)
	}
	c.Forward(3 * time.Hour)
	for range 10 { // an idle server has heartbeats alone
		_, err := s.Beat(background, broker.Replica{ID: "one"}, time.Minute)
		must(t, err)
	}
	must(t, s.Close())
	if got := count(t, path); len(got) != 2 || got["meta"] != 1 || got["replicas"] != 1 {
		t.Errorf("left: %v", got)
	}
}

// Old ids go as new ones come, faster than they come.
func TestOneTimeIDsDoNotPileUp(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "stint.db")
	s := openEmbedded(t, path, c)
	var wg sync.WaitGroup
	for round := range 10 {
		for i := range 100 {
			wg.Go(func() {
				if _, err := s.Use(background, "jti", fmt.Sprint(round, "/", i), c.Now().Add(time.Minute)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		c.Forward(3 * time.Minute)
	}
	must(t, s.Close())
	if got := count(t, path); got["once"] != 100 || got["once ends"] != 100 {
		t.Errorf("left: %v", got)
	}
}

const childFile = "STINT_STORE_TEST_CHILD"

// The process that TestWhatWasAcknowledgedSurvivesAKill kills.
func TestMain(m *testing.M) {
	if path := os.Getenv(childFile); path != "" {
		child(path)
	}
	os.Exit(m.Run())
}

// child appends and says so, until it is killed.
func child(path string) {
	s, err := store.OpenEmbedded(path, time.Now)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for head := (broker.Head{}); ; {
		e := link(head, "a")
		if err := s.Append(background, head, e); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		head = e.Head()
		n := strconv.FormatUint(head.Pos.Seq, 10)
		if first, err := s.Use(background, "jti", n, time.Now().Add(time.Hour)); err != nil || !first {
			fmt.Println(first, err)
			os.Exit(1)
		}
		fmt.Println(n)
	}
}

func TestWhatWasAcknowledgedSurvivesAKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stint.db")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childFile+"="+path)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	said := 0
	for said < 300 && lines.Scan() {
		if said, err = strconv.Atoi(lines.Text()); err != nil {
			t.Fatalf("the child says %q", lines.Text())
		}
		if said == 100 { // it is another process indeed
			if _, err := store.OpenEmbedded(path, time.Now); err == nil || !strings.Contains(err.Error(), "in use by another process") {
				t.Errorf("opened while the child has it: %v", err)
			}
		}
	}
	must(t, cmd.Process.Kill())
	for lines.Scan() {
		if n, err := strconv.Atoi(lines.Text()); err == nil {
			said = n
		}
	}
	_ = cmd.Wait()
	s, err := store.OpenEmbedded(path, time.Now)
	must(t, err)
	defer func() { _ = s.Close() }()
	entries, err := s.Read(background, 0, 1<<30, 0)
	must(t, err)
	if len(entries) < said || said < 300 {
		t.Fatalf("%d entries, though %d were acknowledged", len(entries), said)
	}
	for i, e := range entries {
		if i > 0 && e.Prev != entries[i-1].ID {
			t.Fatalf("entry %s does not follow the one before", e.Pos)
		}
	}
	for n := 1; n <= said; n++ {
		if first, err := s.Use(background, "jti", strconv.Itoa(n), time.Now().Add(time.Hour)); err != nil || first {
			t.Fatalf("id %d of %d can be used again: %v", n, said, err)
		}
	}
}
