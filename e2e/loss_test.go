//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What Redis or Vault lose, or do not answer, grants nothing and forgives nothing.
func TestLossesAndOutages(t *testing.T) {
	w := newWorld(t, options{})
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"Redis is unusable", testRedisFaults},
		{"Vault is sealed", testVaultSealed},
		{"Vault is stopped", testVaultStopped},
		{"Redis is flushed while replicas run", testFlush},
		{"leases are rebuilt from the journals after Redis lost them", testRecover},
		{"Redis is restored from an old snapshot under replicas that start", testSnapshot},
		{"Redis is restored from an old snapshot under replicas that know nothing", testSnapshotAndJournals},
	} {
		if !t.Run(test.name, func(t *testing.T) { test.run(t, w) }) {
			break
		}
	}
}

// logged waits for a line of a log that has all of the texts, and fails the test
// if none comes.
func logged(t *testing.T, r *replica, from int, texts ...string) {
	t.Helper()
	eventually(t, 10*time.Second, "replica "+r.Name+" logs "+strings.Join(texts, " and "), func() error {
	lines:
		for line := range strings.Lines(r.log(t, from)) {
			for _, text := range texts {
				if !strings.Contains(line, text) {
					continue lines
				}
			}
			return nil
		}
		return errors.New("there is no such line")
	})
}

// neverAlive watches a token that was revoked for a while: it may be unknown (503)
// and is never good. It returns how often that was asked.
func (w *world) neverAlive(t *testing.T, during time.Duration, token string) {
	t.Helper()
	for until := time.Now().Add(during); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		for _, r := range []*replica{w.a, w.b} {
			i := w.introspect(t, r, token)
			if i.Active || i.Status != http.StatusOK && i.Status != http.StatusServiceUnavailable {
				t.Fatalf("replica %s: %s", r.Name, i)
			}
			e := w.exchange(t, r, "orders-mcp", token, api, "orders:read")
			if e.Status != http.StatusBadRequest && e.Status != http.StatusServiceUnavailable {
				t.Fatalf("replica %s: %s", r.Name, e)
			}
		}
	}
}

// serves waits until both replicas serve a token that is good: introspection and
// exchange.
func (w *world) serves(t *testing.T, token string) {
	t.Helper()
	for _, r := range []*replica{w.a, w.b} {
		eventually(t, 20*time.Second, "replica "+r.Name+" serves", func() error {
			if i := w.introspect(t, r, token); i.Status != http.StatusOK || !i.Active {
				return fmt.Errorf("introspection: %s", i)
			}
			if e := w.exchange(t, r, "orders-mcp", token, api, "orders:read"); e.Status != http.StatusOK {
				return fmt.Errorf("exchange: %s", e)
			}
			return okay("http://" + r.Addr + "/readyz")
		})
	}
}

// revoked is a token of alice's that was taken back, everywhere.
func (w *world) revoked(t *testing.T) string {
	t.Helper()
	token := w.alice(t, w.a, everyScope)
	w.deadBy(t, w.revoke(t, w.a, "--session", w.session(t, token)).Bound, token)
	return token
}

func testFlush(t *testing.T, w *world) {
	good, dead := w.alice(t, w.a, everyScope), w.revoked(t)
	from := []int{w.a.size(t), w.b.size(t)}
	w.redis.Do("FLUSHALL")
	w.neverAlive(t, 4*time.Second, dead)
	w.serves(t, good)
	w.neverAlive(t, 0, dead)
	// Either replica puts it back; the other finds that it is back.
	eventually(t, 5*time.Second, "a log tells of the loss", func() error {
		if text := w.a.log(t, from[0]) + w.b.log(t, from[1]); !strings.Contains(text, `"msg":"put back lost revocations"`) {
			return errors.New("neither does")
		}
		return nil
	})
	// And it is in Redis again, for a replica that starts now.
	w.a.stop(t)
	w.a.start(t)
	w.deadBy(t, time.Time{}, dead)
}

func testRecover(t *testing.T, w *world) {
	token := w.alice(t, w.a, everyScope)
	own, lent, other := w.vend(t, w.a, token, "warehouse"), w.vend(t, w.a, token, "stock"), w.vend(t, w.b, token, "warehouse")
	w.redis.Do("FLUSHALL")
	w.serves(t, token)
	for _, r := range []*replica{w.a, w.b} {
		r.stop(t)
		out := must(t, "recover", "--config", r.config)
		if strings.HasPrefix(out, "0 ") {
			t.Errorf("replica %s: %s", r.Name, out)
		}
		if out := must(t, "recover", "--config", r.config); !strings.HasPrefix(out, "0 leases restored, ") {
			t.Errorf("replica %s, a second time: %s", r.Name, out)
		}
	}
	w.a.start(t)
	w.b.start(t)
	for _, l := range []*login{own, lent, other} {
		if err := l.works(t.Context()); err != nil {
			t.Errorf("%s is gone with what Redis lost: %v", l.user, err)
		}
	}
	got := w.revoke(t, w.b, "--session", w.session(t, token))
	w.deadBy(t, got.Bound, token)
	w.gone(t, own, lent, other)
}

// redisFiles is where Redis keeps what it appends.
func (w *world) redisFiles() string { return filepath.Join(w.redis.Dir, "appendonlydir") }

// snapshot copies what Redis has on disk.
func (w *world) snapshot(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "snapshot")
	if err := os.CopyFS(to, os.DirFS(w.redisFiles())); err != nil {
		t.Fatal(err)
	}
	return to
}

// restore has Redis start again from a copy.
func (w *world) restore(t *testing.T, from string) {
	t.Helper()
	w.redis.Process.Kill()
	if err := errors.Join(os.RemoveAll(w.redisFiles()), os.CopyFS(w.redisFiles(), os.DirFS(from))); err != nil {
		t.Fatal(err)
	}
	w.redis.Restart()
}

// anchored waits until Vault remembers a position of the feed.
func (w *world) anchored(t *testing.T, position string) {
	t.Helper()
	eventually(t, 10*time.Second, "Vault remembers "+position, func() error {
		saved := w.vault.Call(t, http.MethodGet, "secret/data/stint/feed/anchor", nil)["data"].(map[string]any)["data"].(map[string]any)
		if saved["position"] != position {
			return fmt.Errorf("it remembers %v", saved["position"])
		}
		return nil
	})
}

func testSnapshot(t *testing.T, w *world) {
	good, dead := w.alice(t, w.a, everyScope), w.alice(t, w.b, everyScope)
	old := w.snapshot(t)
	w.deadBy(t, w.revoke(t, w.a, "--session", w.session(t, dead)).Bound, dead)
	w.a.stop(t)
	w.b.stop(t)
	w.restore(t, old)
	from := w.a.size(t)
	w.a.start(t)
	w.b.start(t)
	w.deadBy(t, time.Time{}, dead)
	w.serves(t, good)
	logged(t, w.a, from, `"level":"ERROR"`, "the store lost part of the revocation feed")
}

func testSnapshotAndJournals(t *testing.T, w *world) {
	good, dead := w.alice(t, w.a, everyScope), w.alice(t, w.b, everyScope)
	l := w.vend(t, w.a, good, "warehouse")
	old := w.snapshot(t)
	got := w.revoke(t, w.a, "--session", w.session(t, dead))
	w.deadBy(t, got.Bound, dead)
	w.anchored(t, got.Position)
	for _, r := range []*replica{w.a, w.b} {
		r.stop(t)
		if err := os.RemoveAll(filepath.Join(r.data, "journal")); err != nil {
			t.Fatal(err)
		}
	}
	w.restore(t, old)
	from := w.a.size(t)
	w.a.start(t)
	w.b.start(t)
	logged(t, w.a, from, `"level":"ERROR"`, "alarm: part of the revocation feed is lost for good")
	// What was revoked cannot be told from what was not: both are dead, and so is
	// the login.
	w.deadBy(t, time.Time{}, dead)
	w.deadBy(t, time.Time{}, good)
	w.gone(t, l)
	eventually(t, 20*time.Second, "who signs in anew is served", func() error {
		a := w.exchange(t, w.b, "desktop", w.signIn(t, "alice"), mcp, everyScope)
		if a.Status != http.StatusOK {
			return fmt.Errorf("%s", a)
		}
		w.serves(t, a.Token)
		return nil
	})
}
