//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/testbed"
)

// load are clients that go on asking while something is changed, at whichever replica
// says that it is ready, as a load balancer would have them.
type load struct {
	w        *world
	subject  string
	secret   atomic.Pointer[string] // of the client orders-mcp, which is changed
	ready    sync.Map               // replica -> bool
	stopping chan struct{}
	workers  sync.WaitGroup

	asked, again atomic.Int64
	mu           sync.Mutex
	refused      []string
}

// startLoad begins, with logins to the database or without.
func startLoad(t *testing.T, w *world, logins bool) *load {
	t.Helper()
	l := &load{w: w, subject: w.alice(t, w.a, everyScope), stopping: make(chan struct{})}
	mine := w.secrets["orders-mcp"]
	l.secret.Store(&mine)
	for _, r := range w.replicas() {
		l.ready.Store(r, true)
		l.workers.Go(func() { l.balance(r) })
	}
	for i := range 4 {
		l.workers.Go(func() { l.exchanges(i) })
	}
	if logins {
		l.workers.Go(l.leases)
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	select {
	case <-l.stopping:
	default:
		close(l.stopping)
	}
	l.workers.Wait()
}

func (l *load) stopped() bool {
	select {
	case <-l.stopping:
		return true
	default:
		return false
	}
}

// balance asks a replica whether it is ready, ten times a second.
func (l *load) balance(r *replica) {
	for !l.stopped() {
		l.ready.Store(r, okay("http://"+r.Addr+"/readyz") == nil)
		time.Sleep(100 * time.Millisecond)
	}
}

// send asks a replica that is ready as orders-mcp, beginning with the n-th. Where nobody
// listens, another is asked: no answer is no refusal.
func (l *load) send(n int, path string, form url.Values) (status int, body []byte) {
	for try := range 100 {
		all := l.w.replicas()
		r := all[(n+try)%len(all)]
		if up, _ := l.ready.Load(r); up != true {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		req, err := http.NewRequest(http.MethodPost, "http://"+r.Addr+path, strings.NewReader(form.Encode()))
		if err != nil {
			return 0, []byte(err.Error())
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth("orders-mcp", *l.secret.Load())
		resp, err := client.Do(req)
		if refused := (*net.OpError)(nil); errors.As(err, &refused) && refused.Op == "dial" {
			l.again.Add(1)
			continue
		}
		if err != nil {
			return 0, []byte(err.Error())
		}
		body, _ = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		return resp.StatusCode, body
	}
	return 0, []byte("no replica was ready")
}

// good counts a request, and keeps what it was refused with.
func (l *load) good(what string, status int, body []byte, want string) bool {
	l.asked.Add(1)
	if status == http.StatusOK && strings.Contains(string(body), want) {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.refused) < 20 {
		l.refused = append(l.refused, fmt.Sprintf("%s: %d %s", what, status, body))
	}
	return false
}

func member(body []byte, name string) string {
	var out map[string]any
	_ = json.Unmarshal(body, &out)
	text, _ := out[name].(string)
	return text
}

// exchanges gets a token at one replica and gives it back at the other, which has to know
// the key that it was signed by, and asks whether the subject's is still good.
func (l *load) exchanges(n int) {
	for i := n; !l.stopped(); i++ {
		status, body := l.send(i, "/oauth2/token", exchangeForm(l.subject, api, "orders:read"))
		if l.good("an exchange", status, body, "access_token") {
			status, body = l.send(i+1, "/oauth2/revoke", url.Values{"token": {member(body, "access_token")}})
			l.good("a revocation", status, body, "")
		}
		status, body = l.send(i+1, "/oauth2/introspect", url.Values{"token": {l.subject}})
		l.good("an introspection", status, body, `"active":true`)
	}
}

// leases gets a login at one replica, and gives it back at the other, which has to open
// what the first one sealed.
func (l *load) leases() {
	for i := 0; !l.stopped(); i++ {
		status, body := l.send(i, "/oauth2/token", exchangeForm(l.subject, "warehouse", "reports:read"))
		if !l.good("a login", status, body, "lease_id") {
			continue
		}
		status, body = l.send(i+1, "/oauth2/revoke", url.Values{"token": {member(body, "lease_id")}})
		l.good("giving a login back", status, body, "")
	}
}

// Signing keys, sealing keys and a client's secret are rotated under load, and nobody
// notices.
func TestRotationsRefuseNobody(t *testing.T) {
	w := newWorld(t, options{prepare: func(w *world) { w.Drain = "drain: 1s, " }})
	l := startLoad(t, w, true)
	during := func(what string, do func()) {
		t.Helper()
		before := l.asked.Load()
		time.Sleep(time.Second)
		do()
		time.Sleep(2500 * time.Millisecond) // replicas look for keys at most every two seconds
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.refused) > 0 {
			t.Fatalf("%s: refused: %s", what, strings.Join(l.refused, "\n"))
		}
		t.Logf("%s: %d requests, none refused", what, l.asked.Load()-before)
	}
	during("nothing", func() {})
	during("a signing key that waits", func() { must(t, "keys", "rotate", "--config", w.a.config) })
	during("a signing key at once", func() { must(t, "keys", "rotate", "--now", "--config", w.b.config) })
	during("a sealing key", func() { must(t, "keys", "rotate", "--sealing", "--config", w.a.config) })
	var made struct {
		Secret string `json:"secret"`
		Entry  struct {
			Auth struct {
				Hashes []string `json:"secret_hashes"`
			} `json:"auth"`
		} `json:"entry"`
	}
	out := must(t, "clients", "add", "orders-mcp", "--resource", mcp, "--target", api, "--config", w.a.config, "-o", "json")
	if err := json.Unmarshal([]byte(out), &made); err != nil || len(made.Entry.Auth.Hashes) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	entry := w.Clients[strings.Index(w.Clients, "id: orders-mcp"):]
	_, entry, _ = strings.Cut(entry, `secret_hashes: ["`)
	old, _, _ := strings.Cut(entry, `"`)
	change := func(hashes ...string) func() {
		return func() {
			t.Helper()
			begin := strings.Index(w.Clients, "id: orders-mcp")
			head, rest := w.Clients[:begin], w.Clients[begin:]
			from := strings.Index(rest, "secret_hashes: [")
			to := from + strings.Index(rest[from:], "]")
			w.Clients = head + rest[:from] + `secret_hashes: ["` + strings.Join(hashes, `", "`) + `"` + rest[to:]
			for _, r := range w.replicas() {
				w.writeConfig(t, r)
				r.stop(t)
				r.start(t)
				time.Sleep(300 * time.Millisecond) // until whoever balances has seen it
			}
		}
	}
	during("a second secret", change(old, made.Entry.Auth.Hashes[0]))
	during("the client uses it", func() { l.secret.Store(&made.Secret) })
	during("the first secret goes", change(made.Entry.Auth.Hashes[0]))
	l.stop()
	rotated := l.asked.Load()
	if rotated < 500 {
		t.Errorf("only %d requests", rotated)
	}
	testbed.Report(t, "rotation",
		testbed.Row{Name: "requests refused during rotations", Value: float64(len(l.refused)), Unit: "requests", Target: 0, Met: len(l.refused) == 0},
		testbed.Row{Name: "requests during rotations", Value: float64(rotated), Unit: "requests", Target: 500, Met: rotated >= 500},
		testbed.Row{Name: "requests sent again because nobody listened", Value: float64(l.again.Load()), Unit: "requests", Target: 0, Met: l.again.Load() == 0},
	)
}
