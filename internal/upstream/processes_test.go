package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/upstream"
	secrets "github.com/stint-dev/stint/internal/vault"
)

// replica is what another process is told: it renews alice's parent some times, by a clock
// that is ahead, and gives up when its time is over.
type replica struct {
	Vault, CA, TokenFile, Upstream string
	Renewals                       int
	Ahead, Within                  time.Duration
}

func TestMain(m *testing.M) {
	text := os.Getenv("STINT_TEST_REPLICA")
	if text == "" {
		os.Exit(m.Run())
	}
	var r replica
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.Within)
	defer cancel()
	if err := r.run(ctx); err != nil {
		fmt.Println(broker.CodeOf(err), errors.Is(err, upstream.ErrDead))
		os.Exit(1)
	}
}

// parents are those in the real Vault, sealed by the keys that are there.
func (r replica) parents() (*upstream.Parents, error) {
	now := func() time.Time { return time.Now().Add(r.Ahead) }
	store, _, err := secrets.Open(secrets.Config{Kind: secrets.KindVault, Vault: &secrets.ServerConfig{
		Address: r.Vault, CA: r.CA, Prefix: "test/replicas", Auth: secrets.AuthConfig{Method: "token", TokenFile: r.TokenFile},
	}}, secrets.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		return nil, err
	}
	return upstream.NewParents(upstream.ParentConfig{
		Store: store, Now: now, Index: func(context.Context, string) (string, error) { return "alice", nil },
		Sealer: func(ctx context.Context) (broker.Sealer, error) { return secrets.NewSealer(ctx, store, time.Now) },
	}), nil
}

func (r replica) run(ctx context.Context) error {
	p, err := r.parents()
	if err != nil {
		return err
	}
	c := upstream.NewClient("main", &http.Client{Timeout: time.Minute})
	never := time.Unix(1<<40, 0)
	for range r.Renewals {
		_, err := p.Fresh(ctx, ofAlice, never, func(ctx context.Context, old *upstream.Parent) (*upstream.Parent, error) {
			a, err := c.Do(ctx, upstream.Request{Method: http.MethodPost, URL: r.Upstream, Body: []byte(old.Refresh.Reveal())})
			if err != nil {
				return nil, err
			}
			if a.Status != http.StatusOK {
				return nil, upstream.ErrDead
			}
			next := *old
			next.Refresh = secret.New(string(a.Body))
			return &next, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// start starts the replica as a process of its own; what it returns waits for its end.
func (r replica) start(t *testing.T) (*exec.Cmd, func() (output string, err error)) {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STINT_TEST_REPLICA="+string(text))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, func() (string, error) { err := cmd.Wait(); return strings.TrimSpace(out.String()), err }
}

// rotating is the thief as a server. It can hold a request before it has done anything, or
// its answer.
type rotating struct {
	*httptest.Server
	*thief
	before, after func(r *http.Request)
	shown         []string
	mu            sync.Mutex
}

func newRotating(t *testing.T) *rotating {
	u := &rotating{thief: newThief(), before: func(*http.Request) {}, after: func(*http.Request) {}}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := make([]byte, r.ContentLength)
		_, _ = r.Body.Read(text)
		u.mu.Lock()
		u.shown = append(u.shown, string(text))
		before, after := u.before, u.after
		u.mu.Unlock()
		if before(r); r.Context().Err() != nil {
			return
		}
		next, err := u.renew(&upstream.Parent{Refresh: secret.New(string(text))})
		if after(r); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, _ = w.Write([]byte(next.Refresh.Reveal()))
	}))
	t.Cleanup(u.Close)
	return u
}

func (u *rotating) hold(before, after func(*http.Request)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.before, u.after = before, after
}

// Two processes share a refresh token in a real Vault, and one of them is killed in the
// middle of using it.
func TestTwoProcessesShareARefreshToken(t *testing.T) {
	v := testbed.VaultIfCached(t)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(v.RootToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	begin := func(t *testing.T) (replica, *rotating, *upstream.Parents) {
		u := newRotating(t)
		r := replica{Vault: v.Addr, CA: v.CA, TokenFile: file, Upstream: u.URL, Renewals: 1, Within: time.Minute}
		p, err := r.parents()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Put(t.Context(), ofAlice, &upstream.Parent{Refresh: secret.New("r0")}); err != nil {
			t.Fatal(err)
		}
		return r, u, p
	}
	t.Run("none uses what the other has used", func(t *testing.T) {
		r, u, p := begin(t)
		r.Renewals = 12
		// It takes its time, so that the other is there before the one is done.
		u.hold(func(*http.Request) { time.Sleep(20 * time.Millisecond) }, func(*http.Request) {})
		_, first := r.start(t)
		_, second := r.start(t)
		for _, wait := range []func() (string, error){first, second} {
			if out, err := wait(); err != nil {
				t.Errorf("%s, %v", out, err)
			}
		}
		got, err := p.Get(t.Context(), ofAlice)
		if err != nil || u.reuses != 0 || u.n != 24 || got.Refresh.Reveal() != u.now {
			t.Errorf("renewed %d times, and %d times with an old token; %v", u.n, u.reuses, err)
		}
	})
	for name, dies := range map[string]struct {
		effect bool // the upstream has replaced the token before its user is killed
		said   string
	}{
		"one is killed before the upstream does anything": {false, ""},
		"one is killed before it keeps the answer":        {true, "internal true"},
	} {
		t.Run(name, func(t *testing.T) {
			r, u, p := begin(t)
			there := make(chan bool)
			hold := func(r *http.Request) { there <- true; <-r.Context().Done() }
			none := func(*http.Request) {}
			if dies.effect {
				u.hold(none, hold)
			} else {
				u.hold(hold, none)
			}
			cmd, wait := r.start(t)
			<-there
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_, _ = wait()
			u.hold(none, none)
			// While its answer could be under way, nobody shows the token again.
			soon := r
			soon.Within = 2 * time.Second
			_, wait = soon.start(t)
			if out, err := wait(); err == nil || out != "unavailable false" || len(u.shown) != 1 {
				t.Errorf("%q, %v, after %q was shown", out, err, u.shown)
			}
			// After that, once.
			r.Ahead = 31 * time.Second
			_, wait = r.start(t)
			out, err := wait()
			if out != dies.said || (err != nil) != dies.effect || len(u.shown) != 2 || u.shown[1] != "r0" {
				t.Errorf("%q, %v, after %q was shown", out, err, u.shown)
			}
			got, err := p.Get(t.Context(), ofAlice)
			if err != nil || (got.Account.Broken != "") != dies.effect {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}
