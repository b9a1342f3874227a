package main

import (
	"slices"
	"testing"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
)

// What a store lost of the feed is given back by the journals.
func TestTheJournalGivesBackEntriesOfTheFeed(t *testing.T) {
	s, _ := unserved(t)
	var head broker.Head
	var all []broker.ChainID
	for seq := range uint64(3) {
		r := broker.Record{Where: []broker.Key{broker.KeyOf(broker.ByToken, "x")}, At: time.Unix(1, 0), Expires: time.Unix(2, 0)}
		e := head.Follow(r, broker.Position{Epoch: 1, Seq: seq + 1})
		lease := audit.Frame{Type: audit.FrameLease, Payload: []byte("{}")} // no part of it
		if err := s.events.Keep(audit.Frame{Type: audit.FrameFeed, Payload: e.Encode()}, lease); err != nil {
			t.Fatal(err)
		}
		head, all = e.Head(), append(all, e.ID)
	}
	for name, tc := range map[string]struct {
		after uint64
		want  []broker.ChainID
	}{
		"all of it":       {0, all},
		"what comes next": {1, all[1:]},
		"the last":        {2, all[2:]},
		"nothing":         {3, nil},
		"nothing either":  {4, nil},
	} {
		got, err := s.history(tc.after)
		var ids []broker.ChainID
		for _, e := range got {
			ids = append(ids, e.ID)
		}
		if err != nil || !slices.Equal(ids, tc.want) {
			t.Errorf("%s: after %d: %v, %v", name, tc.after, got, err)
		}
	}
	if err := s.events.Keep(audit.Frame{Type: audit.FrameFeed, Payload: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.history(0); err == nil {
		t.Errorf("an entry that cannot be read was passed over: %v", got)
	}
}
