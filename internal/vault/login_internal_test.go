package vault

import (
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/secret"
)

func TestPlainHTTPGoesToLoopbackWhateverANameLeadsTo(t *testing.T) {
	c, err := newTransport(ServerConfig{Address: "http://localhost:8200"})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := c.next.DialContext(t.Context(), "tcp", "192.0.2.1:8200"); err == nil || !strings.Contains(err.Error(), "is no loopback address") {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it was tried for %s", took)
	}
}

func TestTheWaitAfterAFailureDoublesUpToABound(t *testing.T) {
	for failures, most := range map[int]time.Duration{
		0: backoffLeast, 1: 2 * backoffLeast, 3: 8 * backoffLeast, 6: backoffMost, 40: backoffMost, 1 << 30: backoffMost,
	} {
		var least, longest = time.Hour, time.Duration(0)
		for range 2000 {
			d := backoff(failures)
			least, longest = min(least, d), max(longest, d)
		}
		if least < most/2 || longest > most || longest-least < most/3 {
			t.Errorf("after %d failures %s to %s, of at most %s", failures, least, longest, most)
		}
	}
}

func TestATokenIsSeenToAtTwoThirdsOfItsLife(t *testing.T) {
	now := time.Now()
	l := &login{now: func() time.Time { return now }}
	for range 1000 {
		h := l.hold(secret.New("hvs.x"), time.Hour, true)
		if at := h.due.Sub(now); at > 40*time.Minute || at < 34*time.Minute || !h.expires.Equal(now.Add(time.Hour)) {
			t.Fatalf("after %s", at)
		}
	}
	if h := l.hold(secret.New("hvs.x"), 0, false); !h.due.IsZero() || !h.expires.IsZero() {
		t.Error("a token that lives for ever is seen to")
	}
}
