package token

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

// published returns the ids of the keys that a ring publishes.
func published(t *testing.T, r *Ring) (ids []string) {
	t.Helper()
	var set struct {
		Keys []struct {
			Kid string `json:"kid"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(r.JWKS(), &set); err != nil {
		t.Fatalf("%s: %v", r.JWKS(), err)
	}
	for _, k := range set.Keys {
		ids = append(ids, k.Kid)
	}
	return ids
}

func ids(keys []KeyInfo) (out []string) {
	for _, k := range keys {
		out = append(out, k.ID)
	}
	return out
}

func TestAKeyOfWhichNoTokenIsAliveIsNotPublished(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	first := w.ring.Keys()[0]
	w.ring.cfg.Algorithm = "EdDSA"
	second, err := w.ring.Rotate(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	w.clock.Move(time.Hour - time.Second)
	if got := published(t, w.ring); !slices.Equal(got, []string{first.ID, second.ID}) {
		t.Errorf("while its tokens live: %v", got)
	}
	if got := w.ring.Algorithms(); !slices.Equal(got, []string{"ES256", "EdDSA"}) {
		t.Errorf("while its tokens live: %v", got)
	}
	w.clock.Move(time.Second)
	if got := published(t, w.ring); !slices.Equal(got, []string{second.ID}) {
		t.Errorf("afterwards, without another rotation: %v", got)
	}
	if got := w.ring.Algorithms(); !slices.Equal(got, []string{"EdDSA"}) {
		t.Errorf("afterwards: %v", got)
	}
}

func TestARevokedKeyIsGone(t *testing.T) {
	for name, tc := range map[string]struct {
		which  int // of retired, active and next
		signs  int // of those; -1: a new one
		remain []int
	}{
		"the one that signs: the waiting one takes its place": {1, 2, []int{0, 2}},
		"a retired one":  {0, 1, []int{1, 2}},
		"one that waits": {2, 1, []int{0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ctx := context.Background()
			for range 2 {
				if _, err := w.ring.Rotate(ctx, false); err != nil {
					t.Fatal(err)
				}
				w.clock.Move(5 * time.Minute)
			}
			// The second signs, the third waits for five minutes more.
			before := w.ring.Keys()
			if before[1].State != "active" || before[2].State != "next" {
				t.Fatalf("before: %+v", before)
			}
			signs, err := w.ring.Revoke(ctx, before[tc.which].ID)
			if err != nil || signs.ID != before[tc.signs].ID || signs.State != "active" {
				t.Fatalf("%+v, %v", signs, err)
			}
			var want []string
			for _, i := range tc.remain {
				want = append(want, before[i].ID)
			}
			if got := published(t, w.ring); !slices.Equal(got, want) {
				t.Errorf("published: %v, not %v", got, want)
			}
			raw, err := w.svc.Sign(ctx, ourClaims(w.clock.Now()))
			if err != nil || kid(t, raw.Reveal()) != signs.ID {
				t.Errorf("signed by another key: %v", err)
			}
		})
	}
}

func TestRevokingTheOnlyKeyMakesAnother(t *testing.T) {
	w := newWorld(t, nil)
	old := w.ring.Keys()[0]
	signs, err := w.ring.Revoke(context.Background(), old.ID)
	if err != nil || signs.ID == old.ID || !slices.Equal(published(t, w.ring), []string{signs.ID}) {
		t.Fatalf("%+v, %v", signs, err)
	}
	if _, err := w.ring.Revoke(context.Background(), old.ID); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a second time: %v", err)
	}
	// Whoever opens the keys later knows of it, as long as it may matter.
	again, err := OpenRing(context.Background(), w.ring.cfg, w.ring.store)
	if err != nil || !slices.Equal(again.Withdrawn(), []string{old.ID}) {
		t.Fatalf("withdrawn: %v, %v", again.Withdrawn(), err)
	}
	w.clock.Move(w.ring.cfg.Retain - time.Second)
	if got := w.ring.Withdrawn(); !slices.Equal(got, []string{old.ID}) {
		t.Errorf("while something of it lives: %v", got)
	}
	w.clock.Move(time.Second)
	if got := w.ring.Withdrawn(); len(got) != 0 {
		t.Errorf("afterwards: %v", got)
	}
	if _, err := w.ring.Rotate(context.Background(), true); err != nil {
		t.Fatal(err)
	}
	if doc, _, err := w.ring.store.LoadKeys(context.Background()); err != nil || strings.Contains(doc.Reveal(), "revoked") {
		t.Errorf("the document remembers it: %v", err)
	}
}

// The key before a revoked one retired when that began, not when its successor
// does: it neither signs again nor lives longer.
func TestRevokingAKeyDoesNotBringBackTheOneBefore(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	first := w.ring.Keys()[0]
	second, err := w.ring.Rotate(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	w.clock.Move(30 * time.Minute)
	third, err := w.ring.Revoke(ctx, second.ID)
	if err != nil || third.ID == first.ID || third.ID == second.ID {
		t.Fatalf("%+v, %v", third, err)
	}
	w.clock.Move(30 * time.Minute)
	if got := published(t, w.ring); !slices.Equal(got, []string{third.ID}) {
		t.Errorf("published an hour after it retired: %v", got)
	}
	if k, _ := w.ring.find(joseHeader{kid: first.ID}, w.clock.Now()); k != nil {
		t.Error("it verifies an hour after it retired")
	}
	if _, err := w.ring.Rotate(ctx, true); err != nil || slices.Contains(ids(w.ring.Keys()), first.ID) {
		t.Errorf("the next rotation keeps it: %v", err)
	}
}

// A token that a replica has just verified is remembered there; the key that it
// was signed with is not to be trusted by memory.
func TestTokensOfARevokedKeyAreRefusedAtOnceAndAtEveryReplica(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	raw, err := w.svc.Sign(ctx, ourClaims(w.clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	other, err := OpenRing(ctx, w.ring.cfg, w.ring.store)
	if err != nil {
		t.Fatal(err)
	}
	remote, err := New(w.svc.cfg, other, &http.Client{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from memory
		if _, err := w.svc.Verify(ctx, raw); err != nil {
			t.Fatal(err)
		}
		if _, err := remote.Verify(ctx, raw); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.ring.Revoke(ctx, kid(t, raw.Reveal())); err != nil {
		t.Fatal(err)
	}
	if _, err := w.svc.Verify(ctx, raw); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("where it was revoked: %v", err)
	}
	if err := other.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Verify(ctx, raw); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("at another replica that read the keys again: %v", err)
	}
}
