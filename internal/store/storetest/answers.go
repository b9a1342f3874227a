package storetest

import (
	"sync/atomic"
	"testing"
	"time"
)

var answerSuite = suite{
	{"of many claims at once, one is the first", func(t *testing.T, b *Bed) {
		var firsts atomic.Int64
		together(50, func(i int) {
			was, err := b.Store.Claim(soon(t), "one", []byte(id("claim %d", i)), b.Now().Add(time.Minute))
			switch {
			case err != nil:
				t.Error(err)
			case was == nil:
				firsts.Add(1)
			}
		})
		if firsts.Load() != 1 {
			t.Errorf("%d first claims", firsts.Load())
		}
	}},
	{"an answer replaces a claim, survives reopening, and ends", func(t *testing.T, b *Bed) {
		if was := get[[]byte](t)(b.Store.Claim(soon(t), "a", []byte("claim"), b.Now().Add(time.Minute))); was != nil {
			t.Fatalf("the first claim found %q", was)
		}
		if was := get[[]byte](t)(b.Store.Claim(soon(t), "b", []byte("claim"), b.Now().Add(time.Minute))); was != nil {
			t.Fatalf("another name found %q", was)
		}
		must(t, b.Store.Answer(soon(t), "a", []byte("answer"), b.Now().Add(time.Hour)))
		must(t, b.Store.Answer(soon(t), "b", []byte("soon over"), b.Now().Add(50*time.Millisecond)))
		s := b.Reopen()
		if was := get[[]byte](t)(s.Claim(soon(t), "a", []byte("again"), b.Now().Add(time.Minute))); string(was) != "answer" {
			t.Errorf("found %q, not the answer", was)
		}
		b.Forward(100 * time.Millisecond)
		if was := get[[]byte](t)(s.Claim(soon(t), "b", []byte("again"), b.Now().Add(time.Minute))); was != nil {
			t.Errorf("an answer that has ended is %q", was)
		}
	}},
	{"what is forgotten can be claimed again", func(t *testing.T, b *Bed) {
		get[[]byte](t)(b.Store.Claim(soon(t), "a", []byte("claim"), b.Now().Add(time.Minute)))
		must(t, b.Store.Answer(soon(t), "a", nil, time.Time{}))
		b.Forward(10 * time.Millisecond)
		if was := get[[]byte](t)(b.Store.Claim(soon(t), "a", []byte("again"), b.Now().Add(time.Minute))); was != nil {
			t.Errorf("it is still %q", was)
		}
	}},
}
