package api_test

import (
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/testbed"
)

// memories are the stores that remember what was used, the same for all replicas.
func memories() map[string]func(t *testing.T, w *target) func(*broker.Deps) {
	return map[string]func(t *testing.T, w *target) func(*broker.Deps){
		"embedded": func(*testing.T, *target) func(*broker.Deps) { return nil },
		"Redis": func(t *testing.T, w *target) func(*broker.Deps) {
			server := testbed.Redis(t, testbed.RedisOptions{AppendOnly: true})
			long := store.Duration{Duration: 20 * time.Second}
			cfg := store.RedisConfig{Address: server.Addr, Timeout: long, DialTimeout: long}
			s := must(store.OpenRedis(cfg, store.RedisSecrets{}, w.clock.Now))(t)
			t.Cleanup(func() { _ = s.Close() })
			return func(d *broker.Deps) { d.Once = s }
		},
	}
}

// sendTo sends a form to one of several servers.
func (w *target) sendTo(t testing.TB, server, path string, form url.Values) *answer {
	t.Helper()
	req := must(http.NewRequest(http.MethodPost, "http://"+server+path, strings.NewReader(form.Encode())))(t)
	req.Header.Set("Content-Type", formType)
	return w.doRequest(w.http, req)
}

func (w *target) assertedForm(assertion string) url.Values {
	w.t.Helper()
	return url.Values{
		"grant_type": {exchange}, "subject_token": {w.token("idp", "at+jwt", map[string]any{"client_id": "helper-at-idp"})}, "subject_token_type": {access},
		"resource": {mcp}, "scope": {"files:read"}, "client_assertion_type": {assertionType}, "client_assertion": {assertion},
	}
}

// atOnce runs f a hundred times at once and counts what it says.
func atOnce(f func(i int) string) map[string]int {
	var wg sync.WaitGroup
	var mu sync.Mutex
	said := map[string]int{}
	begin := make(chan struct{})
	for i := range 100 {
		wg.Go(func() {
			<-begin
			got := f(i)
			mu.Lock()
			defer mu.Unlock()
			said[got]++
		})
	}
	close(begin)
	wg.Wait()
	return said
}

// Of a hundred that present one assertion at once, at two replicas, one is let in;
// and so it is with the calls that a token for one call is used for.
func TestAttackReplay(t *testing.T) {
	t.Parallel()
	for name, memory := range memories() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTarget(t, options{})
			once := memory(t, w)
			replicas := []string{w.another(t, "a", once), w.another(t, "b", once)}
			assertion := w.assertion(nil)
			said := atOnce(func(i int) string {
				a := w.sendTo(t, replicas[i%2], "/oauth2/token", w.assertedForm(assertion))
				if a.status == 200 {
					return "accepted"
				}
				w.mustBe(t, a, badLogin(""))
				return "refused"
			})
			if said["accepted"] != 1 || said["refused"] != 99 {
				t.Errorf("an assertion: %v", said)
			}
			if used := strings.Count(w.journalled(), "assertion used before"); used != 99 {
				t.Errorf("%d of them are recorded", used)
			}
			once1 := w.granted(t, "a token for one call", w.exchangeAs("desktop", w.token("idp", "at+jwt", nil), "access_token", url.Values{
				"scope": nil, "authorization_details": {`[{"type":"mcp_tool_call","tool":"read_file","once":true}]`},
			}))
			said = atOnce(func(i int) string {
				a := w.sendTo(t, replicas[i%2], "/oauth2/introspect", w.asFilesMCP(url.Values{"token": {once1}, "consume": {"true"}}))
				if strings.Contains(string(a.body), `"active":true`) {
					return "used"
				}
				return strings.TrimSpace(string(a.body))
			})
			if said["used"] != 1 || said[`{"active":false}`] != 99 {
				t.Errorf("a token for one call: %v", said)
			}
		})
	}
}

// mustBe checks an answer, and not the record.
func (w *target) mustBe(t testing.TB, a *answer, want refusal) {
	t.Helper()
	name, description, _ := errorOf(t, a)
	if a.status != want.status || name != want.error || description != want.description {
		t.Errorf("%d %s, want %d %s: %s", a.status, a.body, want.status, want.error, want.description)
	}
}

// What was used is used after a restart, too, until it could not be valid by
// anybody's clock; what was refused for something else has not been used.
func TestAttackReplayAfterARestart(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	assertion, spared := w.assertion(nil), w.assertion(map[string]any{"nbf": "+40s"})
	w.granted(t, "an assertion", w.asserted(assertion))
	w.refused(t, "one that is not valid yet", w.asserted(spared), badLogin("not valid yet"))
	server := w.restarted(t, "r2")
	w.refused(t, "again", w.sendTo(t, server, "/oauth2/token", w.assertedForm(assertion)), badLogin("used before"))
	w.clock.move(40 * time.Second)
	w.current(t, server)
	w.granted(t, "the one that was not valid yet", w.sendTo(t, server, "/oauth2/token", w.assertedForm(spared)))
	w.clock.move(49 * time.Second) // in the last second that the skew leaves it
	w.current(t, server)
	a := w.sendTo(t, server, "/oauth2/token", w.assertedForm(assertion))
	w.refused(t, "again, at the end", a, badLogin("used before"))
}

// When it is not known whether an assertion was used, it is refused, and the
// client is told to come again.
func TestAttackReplayWithoutAMemory(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	server := testbed.Redis(t, testbed.RedisOptions{})
	s := must(store.OpenRedis(store.RedisConfig{Address: server.Addr}, store.RedisSecrets{}, w.clock.Now))(t)
	t.Cleanup(func() { _ = s.Close() })
	replica := w.another(t, "a", func(d *broker.Deps) { d.Once = s })
	w.granted(t, "an assertion", w.sendTo(t, replica, "/oauth2/token", w.assertedForm(w.assertion(nil))))
	server.Process.Kill()
	for range 3 {
		a := w.sendTo(t, replica, "/oauth2/token", w.assertedForm(w.assertion(nil)))
		w.mustBe(t, a, refusal{503, "temporarily_unavailable", "something that is needed is unavailable; try again, with a new client assertion if there was one", ""})
		if a.header.Get("Retry-After") == "" {
			t.Error("not told when to come again")
		}
	}
}

// current waits until a server is current by a clock that was moved.
func (w *target) current(t testing.TB, server string) {
	t.Helper()
	eventually(t, "the server is current", func() bool {
		return w.sendTo(t, server, "/oauth2/introspect", w.asFilesMCP(url.Values{"token": {"x"}})).status != 503
	})
}

// restarted opens the store anew, from what is on the disk, and starts a server
// with it. The one that was there before is of no more use.
func (w *target) restarted(t testing.TB, name string) string {
	t.Helper()
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	w.store = must(store.OpenEmbedded(filepath.Join(w.dir, "store.db"), w.clock.Now))(t)
	t.Cleanup(func() { _ = w.store.Close() })
	return w.another(t, name, nil)
}
