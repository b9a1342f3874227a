package audit

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

// texts are what a string may hold that is written in more than one way, or not at
// all.
var texts = []string{
	"", "", "plain", "with \"quotes\" and \\", "<b>&amp;</b>", "\x00\x01\x1f\x7f", "\b\f\n\r\t/", "\xff", "a\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80",
	"\u2028 and \u2029", "\u2027\u202a\ue2e2", "é", "\ufffd", "日本", "😀", strings.Repeat("long ", 300),
}

var raws = []json.RawMessage{
	nil, nil, {}, json.RawMessage(`{}`), json.RawMessage(` {"a" : [1, 2.50e3 ,"x y"] } `), json.RawMessage(`{"a":"<\u003c&\u2028"}`),
	json.RawMessage("\"\u2028\u2029\u2027\""), json.RawMessage("\"\xff\""), json.RawMessage(`{"repositories":["acme/*"],"permissions":{"issues":"read"}}`),
	json.RawMessage(`"*"`), json.RawMessage(`{`), json.RawMessage(`{"a":1}}`), json.RawMessage("\"\n\""), json.RawMessage(`nul`),
}

// fill gives a value something at random, wherever it may be nil or empty also that.
func fill(r *rand.Rand, v reflect.Value) {
	switch v.Interface().(type) {
	case time.Time:
		zones := []*time.Location{time.UTC, time.FixedZone("", 7200), time.FixedZone("", -5430), time.FixedZone("", 24*3600)}
		v.Set(reflect.ValueOf(time.Unix(r.Int64N(1<<33)-1<<32, r.Int64N(4)*r.Int64N(1e9)).In(zones[r.IntN(4)*r.IntN(2)])))
		return
	case json.RawMessage:
		v.Set(reflect.ValueOf(raws[r.IntN(len(raws))*r.IntN(8)/7]))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(texts[r.IntN(len(texts))])
	case reflect.Int, reflect.Int64:
		v.SetInt(r.Int64N(3) * (r.Int64() - r.Int64()))
	case reflect.Uint8:
		v.SetUint(r.Uint64N(256))
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Pointer:
		if r.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(r, v.Elem())
		}
	case reflect.Slice:
		if r.IntN(4) > 0 {
			v.Set(reflect.MakeSlice(v.Type(), r.IntN(4), 4))
		}
		for i := range v.Len() {
			fill(r, v.Index(i))
		}
	case reflect.Map:
		if r.IntN(4) > 0 {
			v.Set(reflect.MakeMap(v.Type()))
			for range r.IntN(12) {
				key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				fill(r, key)
				fill(r, value)
				v.SetMapIndex(key, value)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if r.IntN(3) > 0 {
				fill(r, v.Field(i))
			}
		}
	default:
		panic("a field of a kind that is not filled: " + v.Type().String())
	}
}

// alike holds what is written of a value against encoding/json.
func alike(t *testing.T, v any, write func([]byte) ([]byte, error)) (written bool) {
	t.Helper()
	want, wantErr := json.Marshal(v)
	got, err := write([]byte("before"))
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%v, but encoding/json: %v\n%+v", err, wantErr, v)
	}
	if err == nil && string(got) != "before"+string(want) {
		t.Fatalf("written\n%s\nbut by encoding/json\nbefore%s", got, want)
	}
	return err == nil
}

func TestEventsAreWrittenAsEncodingJSONWritesThem(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	written := 0
	for range 20_000 {
		var e Event
		fill(r, reflect.ValueOf(&e).Elem())
		if alike(t, &e, e.appendJSON) {
			written++
		}
		var p Personal
		fill(r, reflect.ValueOf(&p).Elem())
		alike(t, &p, func(b []byte) ([]byte, error) { return p.appendJSON(b), nil })
	}
	if written < 5000 {
		t.Errorf("only %d of 20000 events can be written at all", written)
	}
}

func FuzzEventStrings(f *testing.F) {
	for i, s := range texts {
		f.Add(s, []byte(raws[i%len(raws)]), int64(i))
	}
	f.Fuzz(func(t *testing.T, s string, raw []byte, n int64) {
		e := &Event{
			ID: s, Reason: s, Time: time.Unix(n, n).UTC(), Party: Party{Actors: []string{s}}, Micros: map[string]int64{s: n},
			Certificate: &Certificate{Grant: raw, Inputs: []Input{{s, raw}}}, Personal: raw,
		}
		alike(t, e, e.appendJSON)
	})
}

// exchanged is an event such as most are.
func exchanged() *Event {
	return &Event{
		Version: 1, ID: "06fqnz3d0w8mz5ymxk1zj9vqw8", Time: time.Unix(1_900_000_000, 123456000).UTC(), Replica: "replica-1", Kind: KindExchange,
		Outcome: Granted, Request: "0123456789abcdef", GrantType: "urn:ietf:params:oauth:grant-type:token-exchange",
		Party: Party{
			Client: "files-mcp", Agent: "desktop", Subject: "d31a92eca0b5daa9acda4d938ad14e46", Session: "c2Vzc2lvbi1pZC1vZi1hLXVzZXI",
			Actors: []string{"https://stint.example#desktop"},
		},
		Target:   Target{Resource: "https://api.example/files", Scopes: []string{"files:read"}},
		Decision: &Decision{Policy: "sha256:0123456789ab", Granted: []string{"files:read"}, Rules: []string{"files.yaml:31: allows files:read"}},
		Token: &Token{
			ID: "Zm9yIGV4YW1wbGUgdGhpcyBvbmU", Type: "at+jwt", Issuer: "https://stint.example", Parent: "cGFyZW50LXRva2VuLWlk",
			Root: "cm9vdC10b2tlbi1pZA", Position: "1700000000000.123456", Hops: 1, Expires: 1_900_000_300,
		},
		Micros:   map[string]int64{"verify": 61, "decide": 3, "sign": 28},
		Personal: bytes.Repeat([]byte{0xa5}, 120),
	}
}

func BenchmarkEventJSON(b *testing.B) {
	e := exchanged()
	b.Run("encoding/json", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := json.Marshal(e); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("appended", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		var err error
		for b.Loop() {
			if buf, err = e.appendJSON(buf[:0]); err != nil {
				b.Fatal(err)
			}
		}
	})
}
