package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/store"
)

const runThatVersion = "run that version"

// keep puts a frame into the journal, as a later version would.
func keep(t *testing.T, s *server, kind audit.FrameType, payload string) {
	t.Helper()
	if err := s.journal.Append(audit.Frame{Type: kind, Payload: []byte(payload)}); err != nil {
		t.Fatal(err)
	}
}

// What is in an event of a later version may mean something else.
func TestEventsOfALaterVersionAreNotShown(t *testing.T) {
	s, file := unserved(t)
	e := recorded(t, s, nil, audit.Personal{})
	keep(t, s, audit.FrameEvent, `{"v":1,"id":"`+strings.Repeat("0", 26)+`","kind":"exchange","added":true}`)
	audited(t, file, 0, "tail") // members that are not known are passed over
	keep(t, s, audit.FrameEvent, `{"v":2,"id":"`+e.ID+`","outcome":{"of":"a new type"}}`)
	for _, args := range [][]string{{"tail"}, {"tail", "-o", "json"}, {"show", e.ID}} {
		if out, code := stintCLI(t, append([]string{"audit", "-c", file}, args...)...); code == 0 || !strings.Contains(out, runThatVersion) {
			t.Errorf("%q: %d: %s", args, code, out)
		}
	}
}

// Leases that cannot be read are not left out: the recovery is left to whoever can.
func TestRecoverLeavesALaterJournalAlone(t *testing.T) {
	for name, frame := range map[string]audit.Frame{
		"a lease":               {Type: audit.FrameLease, Payload: []byte(`{"v":2,"id":"later","handles":[]}`)},
		"a frame of a new type": {Type: audit.FrameSchema + 1, Payload: []byte("x")},
	} {
		t.Run(name, func(t *testing.T) {
			s, file := unserved(t)
			keep(t, s, audit.FrameLease, `{"id":"ours","version":0,"state":"active","provider":"db","keys":[],"pos":"1.1","created":"2026-11-23T00:00:00Z","expires":"`+
				time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`","next":"2026-11-23T00:00:00Z"}`)
			keep(t, s, frame.Type, string(frame.Payload))
			db := s.cfg.Path(s.cfg.Store.File)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if out, code := stintCLI(t, "recover", "-c", file); code != exitRefused || !strings.Contains(out, runThatVersion) {
				t.Errorf("%d: %s", code, out)
			}
			kept, err := store.OpenEmbedded(filepath.Clean(db), time.Now)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = kept.Close() }()
			if n, err := kept.Open(t.Context()); n != 0 || err != nil {
				t.Errorf("%d leases were restored, %v", n, err)
			}
		})
	}
}

// A server does not start on a journal whose last revocation it cannot read.
func TestAServerDoesNotStartOnALaterFeed(t *testing.T) {
	s, file := unserved(t)
	now := time.Now()
	e := broker.Head{}.Follow(broker.Record{At: now, Expires: now}, broker.Position{Epoch: 1, Seq: 1})
	keep(t, s, audit.FrameFeed, strings.Replace(string(e.Encode()), `"v":1`, `"v":2,"new":1`, 1))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if out, code := stintCLI(t, "serve", "-c", file); code != exitRefused || !strings.Contains(out, runThatVersion) {
		t.Errorf("%d: %s", code, out)
	}
}
