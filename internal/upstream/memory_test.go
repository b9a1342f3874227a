package upstream_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/upstream"
)

func TestAnswersAreRememberedForAWhile(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	m := upstream.NewMemory[string, string](func() time.Time { return now })
	asked := 0
	get := func(key, answer string, allows bool, err error) (string, error) {
		return m.Get(t.Context(), key, func(context.Context) (string, bool, error) { asked++; return answer, allows, err })
	}
	for _, step := range []struct {
		what, key, answer string
		allows            bool
		err               error
		after             time.Duration
		want              string
		asked             int
	}{
		{"a yes is asked for", "a", "yes", true, nil, 0, "yes", 1},
		{"and remembered", "a", "changed", false, nil, 59 * time.Second, "yes", 1},
		{"for a minute", "a", "no", false, nil, time.Second, "no", 2},
		{"a no is remembered", "a", "yes", true, nil, 4 * time.Second, "no", 2},
		{"for five seconds", "a", "yes", true, nil, time.Second, "yes", 3},
		{"of each by itself", "b", "other", true, nil, 0, "other", 4},
		{"an error is not remembered", "c", "", true, errors.New("down"), 0, "", 5},
		{"an error is not remembered, and asked for again", "c", "there", true, nil, 0, "there", 6},
	} {
		now = now.Add(step.after)
		got, err := get(step.key, step.answer, step.allows, step.err)
		if got != step.want || asked != step.asked || (err != nil) != (step.err != nil) {
			t.Errorf("%s: %q, %v, asked %d times", step.what, got, err, asked)
		}
	}
	m.Forget("b")
	if got, _ := get("b", "new", true, nil); got != "new" {
		t.Errorf("forgotten, and %q", got)
	}
}

// Of several who want the same, one asks; and when he gives up, that is his alone.
func TestWhoWaitsDoesNotGiveUpWithWhoAsks(t *testing.T) {
	m := upstream.NewMemory[string, string](time.Now)
	first, giveUp := context.WithCancel(t.Context())
	began := make(chan struct{})
	var asked atomic.Int64
	gone := make(chan error)
	go func() {
		_, err := m.Get(first, "x", func(ctx context.Context) (string, bool, error) {
			asked.Add(1)
			close(began)
			<-ctx.Done()
			return "", true, ctx.Err()
		})
		gone <- err
	}()
	<-began
	answers := make(chan string)
	for range 4 {
		go func() {
			got, err := m.Get(t.Context(), "x", func(context.Context) (string, bool, error) { asked.Add(1); return "there", true, nil })
			if err != nil {
				t.Error(err)
			}
			answers <- got
		}()
	}
	giveUp()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for range 4 {
		if got := <-answers; got != "there" {
			t.Errorf("%q", got)
		}
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	hold := make(chan struct{})
	go func() {
		_, _ = m.Get(t.Context(), "y", func(context.Context) (string, bool, error) { close(hold); <-t.Context().Done(); return "", false, nil })
	}()
	<-hold
	if _, err := m.Get(short, "y", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("who has no time waits: %v", err)
	}
}
