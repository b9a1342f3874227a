package token

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// Of a claim of a later version the number is read, and who the token is from, so that it
// can be taken back: nothing else.
func TestAClaimOfALaterVersion(t *testing.T) {
	w := newWorld(t, nil)
	plain, err := w.svc.Sign(t.Context(), ourClaims(w.clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	j, err := parseJWS(plain.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		claim string
		later bool
	}{
		"members that are new":        {`{"v":2,"pos":"1.2","once":true,"new":{}}`, true},
		"members of other types":      {`{"pos":{"e":1,"s":2},"v":3}`, true},
		"the same with no number":     {`{"pos":{"e":1,"s":2}}`, false},
		"a number that is ours":       {`{"v":1,"pos":7}`, false},
		"two numbers, of which lower": {`{"v":2,"pos":{},"v":1}`, false},
	} {
		var all map[string]json.RawMessage
		if err := json.Unmarshal(j.payload, &all); err != nil {
			t.Fatal(err)
		}
		all["stint"] = json.RawMessage("0")
		payload, _ := json.Marshal(all) // which would leave out what is there twice
		text, err := w.ring.sign([]byte(strings.Replace(string(payload), `"stint":0`, `"stint":`+c.claim, 1)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := w.verify(text)
		if !c.later {
			if broker.CodeOf(err) != broker.BadToken {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			continue
		}
		if err != nil || !got.Ours || got.ID != "o1" || got.ClientID != "desktop" || got.Stint.Version < 2 || got.Stint.Pos != "" || got.Stint.Once {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestADocumentOfKeysOfALaterVersion(t *testing.T) {
	store, c := &memory{}, newClock()
	cfg := RingConfig{Algorithm: "ES256", Retain: time.Hour, Now: c.Now}
	ring, err := OpenRing(context.Background(), cfg, store)
	if err != nil {
		t.Fatal(err)
	}
	before, ours := string(ring.JWKS()), store.doc.Reveal()
	for _, version := range []string{`"v":2`, `"v":2,"new":[]`} {
		later := secret.New(strings.Replace(ours, `"v":1`, version, 1))
		store.doc, store.version = later, store.version+1
		if err := ring.Reload(t.Context()); !errors.Is(err, broker.ErrLater) || string(ring.JWKS()) != before {
			t.Errorf("by a replica that runs: %v", err)
		}
		if _, err := ring.Rotate(t.Context(), true); !errors.Is(err, broker.ErrLater) || store.doc.Reveal() != later.Reveal() {
			t.Errorf("rotated: %v, or written over", err)
		}
		if _, err := OpenRing(t.Context(), cfg, store); !errors.Is(err, broker.ErrLater) {
			t.Errorf("by one that starts: %v", err)
		}
	}
}
