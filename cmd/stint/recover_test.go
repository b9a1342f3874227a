package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/store"
)

// The journal of a replica whose store has none of its leases.
func TestRecoverSaysWhatItSkipped(t *testing.T) {
	s, file := unserved(t)
	now := time.Now().UTC().Truncate(time.Second)
	for _, l := range []broker.Lease{
		{ID: "alive", State: broker.Intent, Provider: "db", Pos: "1.1", Expires: now.Add(time.Hour)},
		{ID: "alive", State: broker.Active, Provider: "db", Pos: "1.1", Expires: now.Add(time.Hour), Next: now.Add(time.Hour)},
		{ID: "intent", State: broker.Intent, Provider: "db", Pos: "1.1", Expires: now.Add(time.Hour)},
		{ID: "long-gone", State: broker.Active, Provider: "db", Pos: "1.1", Expires: now.Add(-2 * time.Hour)},
		{ID: "closed", State: broker.Closed, Provider: "db", Pos: "1.1", Expires: now, Outcome: broker.Revoked},
		{ID: "over", State: broker.Closed, Provider: "db", Pos: "1.1", Expires: now.Add(-2 * time.Hour)},
	} {
		payload, err := json.Marshal(&l)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.events.Keep(audit.Frame{Type: audit.FrameLease, Payload: payload}); err != nil {
			t.Fatal(err)
		}
	}
	db := s.cfg.Path(s.cfg.Store.File)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	out, code := stintCLI(t, "recover", "-c", file)
	for _, want := range []string{
		"2 leases restored, 1 of them to be ended at once", "1 leases closed that", "0 leases skipped: the store has them",
		"1 leases skipped: they were closed long ago", "1 leases skipped: they ran out more than an hour ago", "long-gone  db  " + now.Add(-2*time.Hour).Format(time.RFC3339),
	} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("%d: no %q in:\n%s", code, want, out)
		}
	}
	out, code = stintCLI(t, "recover", "-c", file, "--output", "json")
	var again recovery
	if err := json.Unmarshal([]byte(out), &again); code != 0 || err != nil {
		t.Fatalf("%d, %v: %s", code, err, out)
	}
	if again.Restored+again.Ending+again.Closed != 0 || again.Skipped.Known != 3 || again.Skipped.Over != 1 ||
		len(again.Skipped.Expired) != 1 || again.Skipped.Expired[0].Lease != "long-gone" {
		t.Errorf("a second time: %+v", again)
	}
	kept, err := store.OpenEmbedded(filepath.Clean(db), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = kept.Close() }()
	for id, want := range map[string]broker.LeaseState{"alive": broker.Active, "intent": broker.Closing, "closed": broker.Closed} {
		if l, err := kept.Lease(t.Context(), id); err != nil || l.State != want {
			t.Errorf("lease %s: %+v, %v", id, l, err)
		}
	}
}
