package vault_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/vault"
)

func sealer(t testing.TB, s vault.Store, now func() time.Time) *vault.Sealer {
	t.Helper()
	sealer, err := vault.NewSealer(t.Context(), s, now)
	if err != nil {
		t.Fatal(err)
	}
	return sealer
}

func seal(t testing.TB, s *vault.Sealer, plain, context string) []byte {
	t.Helper()
	sealed, err := s.Seal([]byte(plain), context)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func wantOpen(t testing.TB, s *vault.Sealer, sealed []byte, plain, context string) {
	t.Helper()
	got, err := s.Open(sealed, context)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != plain {
		t.Fatalf("opens to %q, not %q", got, plain)
	}
}

func TestWhatIsSealedOpensWithItsContextAlone(t *testing.T) {
	store, _, _ := open(t, sealed(t))
	s := sealer(t, store, time.Now)
	for _, plain := range []string{"", "x", "a refresh token"} {
		got := seal(t, s, plain, "lease 1")
		wantOpen(t, s, got, plain, "lease 1")
		for _, context := range []string{"lease 2", "lease", "lease 1 ", "", "\x01lease 1"} {
			if _, err := s.Open(got, context); err == nil {
				t.Errorf("opens in the context %q", context)
			}
		}
		if len(plain) > 3 && bytes.Contains(got, []byte(plain)) {
			t.Error("it is not encrypted")
		}
		if bytes.Equal(got, seal(t, s, plain, "lease 1")) {
			t.Error("the same twice")
		}
	}
	if _, err := s.Seal([]byte("x"), ""); err == nil {
		t.Error("sealed without a context")
	}
}

func TestEveryBitOfWhatIsSealedCounts(t *testing.T) {
	store, _, _ := open(t, sealed(t))
	s := sealer(t, store, time.Now)
	whole := seal(t, s, "text", "context")
	for i := range whole {
		for bit := range 8 {
			changed := bytes.Clone(whole)
			changed[i] ^= 1 << bit
			if _, err := s.Open(changed, "context"); err == nil {
				t.Errorf("opens with bit %d of byte %d changed", bit, i)
			}
		}
		if _, err := s.Open(whole[:i], "context"); err == nil {
			t.Errorf("opens when cut to %d bytes", i)
		}
	}
	if _, err := s.Open(append(bytes.Clone(whole), 0), "context"); err == nil {
		t.Error("opens with a byte more")
	}
	wantOpen(t, s, whole, "text", "context")
}

func TestAKeyUnderAnotherNameDoesNotOpen(t *testing.T) {
	store, _, _ := open(t, sealed(t))
	key := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	mustWrite(t, store, "keys/sealing", fields("01020304", key, "05060708", key, "active", "01020304"), 0)
	s := sealer(t, store, time.Now)
	got := seal(t, s, "text", "context")
	wantOpen(t, s, got, "text", "context")
	copy(got[1:], []byte{5, 6, 7, 8})
	_, err := s.Open(got, "context")
	wantText(t, err, "changed, or sealed for something else")
}

func testSealerAgreement(t *testing.T, p place) {
	stores := beside(t, p, 8)
	sealers := make([]*vault.Sealer, len(stores))
	var all sync.WaitGroup
	for i, s := range stores {
		all.Go(func() {
			var err error
			if sealers[i], err = vault.NewSealer(t.Context(), s, time.Now); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	for _, a := range sealers {
		for _, b := range sealers {
			wantOpen(t, b, seal(t, a, "text", "context"), "text", "context")
		}
	}
	if _, version, err := stores[0].Read(t.Context(), "keys/sealing"); err != nil || version != 1 {
		t.Fatalf("the ring was written %d times, %v", version, err)
	}
}

func testRotation(t *testing.T, p place) {
	store, _, _ := open(t, p.config)
	one, other := sealer(t, store, time.Now), sealer(t, store, time.Now)
	before := seal(t, one, "before", "context")
	id, err := one.Rotate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after := seal(t, one, "after", "context")
	if bytes.Equal(before[1:5], after[1:5]) || len(id) != 8 {
		t.Fatal("the key is the same")
	}
	wantOpen(t, one, before, "before", "context")
	wantOpen(t, other, after, "after", "context") // it looks for the key by itself
	wantOpen(t, other, before, "before", "context")
	if now := seal(t, other, "x", "context"); !bytes.Equal(now[1:5], after[1:5]) {
		t.Error("the other replica goes on with the old key")
	}
	third := sealer(t, store, time.Now)
	wantOpen(t, third, before, "before", "context")
	if _, err := one.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := third.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a, b := seal(t, one, "x", "c"), seal(t, third, "x", "c"); !bytes.Equal(a[1:5], b[1:5]) {
		t.Error("after a reload the old key seals")
	}
	wantOpen(t, third, before, "before", "context")
}

func testRotationRace(t *testing.T, p place) {
	stores := beside(t, p, 4)
	var sealers []*vault.Sealer
	for _, s := range stores {
		sealers = append(sealers, sealer(t, s, time.Now))
	}
	before := seal(t, sealers[0], "before", "context")
	var all sync.WaitGroup
	for _, s := range sealers {
		all.Go(func() {
			if _, err := s.Rotate(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, a := range sealers {
		if err := a.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantOpen(t, a, before, "before", "context")
		for _, b := range sealers {
			wantOpen(t, b, seal(t, a, "text", "context"), "text", "context")
		}
	}
}

func testUnknownKey(t *testing.T, p place) {
	store, _, d := open(t, p.config)
	counted := &counting{Store: store}
	s := sealer(t, counted, d.clock.Now)
	stranger := seal(t, s, "text", "context")
	stranger[1] ^= 1
	reads := counted.reads
	_, err := s.Open(stranger, "context")
	wantText(t, err, "there is no such key")
	wantCode(t, err, broker.Internal)
	for range 50 {
		_, err = s.Open(stranger, "context")
		wantCode(t, err, broker.Unavailable)
	}
	if counted.reads != reads+1 {
		t.Errorf("the store was read %d times", counted.reads-reads)
	}
	d.clock.Move(time.Minute)
	_, err = s.Open(stranger, "context")
	wantText(t, err, "there is no such key")
	if counted.reads != reads+2 {
		t.Errorf("the store was read %d times", counted.reads-reads)
	}
}

func testBadRing(t *testing.T, p place) {
	key := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, f := range map[string]vault.Fields{
		"no active key":      fields("01020304", key),
		"another active key": fields("01020304", key, "active", "05060708"),
		"a short key":        fields("01020304", key, "active", "01020304", "05060708", "AAAA"),
		"a strange name":     fields("01020304", key, "active", "01020304", "0102030G", key),
		"a name in capitals": fields("0102030a", key, "active", "0102030a", "0102030B", key),
		"nothing of a ring":  fields("key", key),
	} {
		store, _, _ := open(t, p.config)
		_, version, _ := store.Read(t.Context(), "keys/sealing")
		mustWrite(t, store, "keys/sealing", f, version)
		if _, err := vault.NewSealer(t.Context(), store, time.Now); err == nil {
			t.Errorf("%s: taken", name)
		}
		wantRead(t, store, "keys/sealing", f, version+1)
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// counting is a store that counts how often it is read.
type counting struct {
	vault.Store
	mu    sync.Mutex
	reads int
}

func (c *counting) Read(ctx context.Context, path string) (vault.Fields, int, error) {
	c.mu.Lock()
	c.reads++
	c.mu.Unlock()
	return c.Store.Read(ctx, path)
}

func FuzzOpen(f *testing.F) {
	store, _, _ := open(f, sealed(f))
	s := sealer(f, store, time.Now)
	whole := seal(f, s, "text", "context")
	f.Add(whole, "context")
	f.Add(whole[:5], "context")
	f.Add([]byte{1}, "")
	f.Add([]byte{}, "context")
	f.Add(append([]byte{1, 0, 0, 0, 0}, make([]byte, 28)...), "context")
	f.Fuzz(func(t *testing.T, sealed []byte, context string) {
		plain, err := s.Open(sealed, context)
		if err == nil && (!bytes.Equal(sealed, whole) || context != "context" || string(plain) != "text") {
			t.Fatalf("%x opens in %q", sealed, context)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	store, _, _ := open(b, sealed(b))
	s := sealer(b, store, time.Now)
	plain := make([]byte, 200)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Open(seal(b, s, string(plain), "lease"), "lease"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestASealerFailsWhereTheStoreDoes(t *testing.T) {
	store, _, _ := open(t, sealed(t))
	s := sealer(t, store, time.Now)
	stranger := seal(t, s, "text", "context")
	known := bytes.Clone(stranger)
	stranger[1] ^= 1
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	wantOpen(t, s, known, "text", "context") // what is in memory serves on
	if _, err := s.Open(stranger, "context"); err == nil {
		t.Error("opened by a key that cannot be loaded")
	}
	if _, err := s.Rotate(t.Context()); err == nil {
		t.Error("rotated without a store")
	}
	if _, err := vault.NewSealer(t.Context(), store, time.Now); err == nil {
		t.Error("loaded without a store")
	}
	if k, err := vault.Key(t.Context(), store, vault.PathAuditIndex); err == nil || !k.Equal(secret.String{}) {
		t.Error("a key without a store")
	}
}
