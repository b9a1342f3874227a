package vault_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/vault"
)

// The suite that both stores pass. again opens what is there once more: for
// Vault beside the first, for a file after it is closed.
type place struct {
	config vault.Config
	shared bool // by several processes
}

func TestSealedFile(t *testing.T) {
	suite(t, func(t *testing.T) place { return place{sealed(t), false} })
}

func TestVault(t *testing.T) {
	v := testbed.VaultIfCached(t)
	n := 0
	suite(t, func(t *testing.T) place {
		n++
		return place{asRoot(t, v, fmt.Sprintf("test/%d", n)), true}
	})
}

func suite(t *testing.T, make func(*testing.T) place) {
	for name, test := range map[string]func(*testing.T, place){
		"what is written is read":                               testReadWrite,
		"a write needs the version that is there":               testCompareAndSet,
		"of many writers each increment counts once":            testRace,
		"deleting makes place for version one":                  testDelete,
		"names are listed one level deep":                       testList,
		"no path climbs":                                        testPaths,
		"what could not be kept as it is, is refused":           testFields,
		"values survive whatever is in them":                    testValues,
		"all is there after reopening":                          testReopen,
		"a closed store answers with errors":                    testClosed,
		"replicas that start together agree on a key":           testKeyAgreement,
		"a key stays the same, and differs by path":             testKey,
		"a key that is damaged is not replaced":                 testKeyDamaged,
		"the anchor goes forward only":                          testAnchor,
		"of many replicas' anchors the newest stays":            testAnchorRace,
		"sealers that start together open each other's":         testSealerAgreement,
		"what was sealed before a rotation opens after it":      testRotation,
		"two rotations at once end with one active key":         testRotationRace,
		"references name fields of the store":                   testReferences,
		"no error, log or printed value has a secret in it":     testCanary,
		"the store is ready":                                    testReady,
		"an unknown key is looked for, and not all the time":    testUnknownKey,
		"a ring that has no active key or a bad one is refused": testBadRing,
	} {
		t.Run(name, func(t *testing.T) { test(t, make(t)) })
	}
}

func testReady(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func testReadWrite(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	_, _, err := s.Read(t.Context(), "github/app")
	wantError(t, err, broker.ErrNotFound)
	mustWrite(t, s, "github/app", fields("id", "7", "private_key", "a\nb"), 0)
	wantRead(t, s, "github/app", fields("id", "7", "private_key", "a\nb"), 1)
	mustWrite(t, s, "github/app", fields("id", "8"), 1)
	wantRead(t, s, "github/app", fields("id", "8"), 2)
	_, _, err = s.Read(t.Context(), "github") // what has something under it is not itself something
	wantError(t, err, broker.ErrNotFound)
	_, _, err = s.Read(t.Context(), "github/app/more")
	wantError(t, err, broker.ErrNotFound)
}

func testCompareAndSet(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	refused := func(cas int) {
		t.Helper()
		_, err := s.Write(t.Context(), "a", fields("x", "wrong"), cas)
		wantError(t, err, broker.ErrConflict)
	}
	refused(1)
	refused(7)
	mustWrite(t, s, "a", fields("x", "1"), 0)
	refused(0)
	refused(2)
	wantRead(t, s, "a", fields("x", "1"), 1)
	mustWrite(t, s, "a", fields("x", "2"), 1)
	refused(0)
	refused(1)
	wantRead(t, s, "a", fields("x", "2"), 2)
}

func testRace(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	const writers, each = 8, 12
	mustWrite(t, s, "count", fields("n", "0"), 0)
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for done := 0; done < each; {
				f, version, err := s.Read(t.Context(), "count")
				if err != nil {
					t.Error(err)
					return
				}
				n, _ := strconv.Atoi(f["n"].Reveal())
				switch _, err := s.Write(t.Context(), "count", fields("n", strconv.Itoa(n+1)), version); {
				case err == nil:
					done++
				case !errors.Is(err, broker.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	wantRead(t, s, "count", fields("n", strconv.Itoa(writers*each)), writers*each+1)
}

func testDelete(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	if err := s.Delete(t.Context(), "nothing/here"); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, "a/b", fields("x", "1"), 0)
	mustWrite(t, s, "a/b", fields("x", "2"), 1)
	mustWrite(t, s, "a/c", fields("x", "3"), 0)
	if err := s.Delete(t.Context(), "a/b"); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.Read(t.Context(), "a/b")
	wantError(t, err, broker.ErrNotFound)
	_, err = s.Write(t.Context(), "a/b", fields("x", "4"), 2)
	wantError(t, err, broker.ErrConflict)
	wantRead(t, s, "a/c", fields("x", "3"), 1)
	mustWrite(t, s, "a/b", fields("x", "5"), 0)
	wantRead(t, s, "a/b", fields("x", "5"), 1)
}

func testList(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	for _, path := range []string{"b", "a", "sub/one", "sub/deep/two", "sub-other/three"} {
		mustWrite(t, s, path, fields("x", "y"), 0)
	}
	for path, want := range map[string][]string{
		"": {"a", "b", "sub-other/", "sub/"}, "sub": {"deep/", "one"}, "sub/deep": {"two"}, "a": nil, "none": nil,
	} {
		got, err := s.List(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("under %q are %q, not %q", path, got, want)
		}
	}
}

var badPaths = []string{
	"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a/..", "A", "ä", "a b", "a\x00", "a\n", "a%2fb", "a%2e%2e",
	"a\\b", "a?b=c", "a#b", "a;b", "a:b", "a*", "a.b", strings.Repeat("a", 256),
}

func testPaths(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	for _, path := range badPaths {
		_, _, err1 := s.Read(t.Context(), path)
		_, err2 := s.Write(t.Context(), path, fields("x", "y"), 0)
		err3 := s.Delete(t.Context(), path)
		_, err4 := s.List(t.Context(), path)
		for i, err := range []error{err1, err2, err3, err4} {
			if i == 3 && path == "" {
				continue // the top is listed
			}
			if err == nil || errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrConflict) || broker.CodeOf(err) != broker.Internal {
				t.Errorf("%q was sent on: %v", path, err)
			}
		}
	}
	for _, path := range []string{"a", "0", "-", "_", "a-b_c/d/9", strings.Repeat("a", 255)} {
		mustWrite(t, s, path, fields("x", "y"), 0)
	}
}

func testFields(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	for name, f := range map[string]vault.Fields{
		"nothing":            {},
		"a nameless field":   fields("", "x"),
		"a name too long":    fields(strings.Repeat("n", 129), "x"),
		"a value not UTF-8":  fields("x", "\xff"),
		"a name not UTF-8":   fields("\xff", "x"),
		"more than there is": fields("x", strings.Repeat("v", vault.MaxSize)),
	} {
		if _, err := s.Write(t.Context(), "a", f, 0); err == nil || broker.CodeOf(err) != broker.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, _, err := s.Read(t.Context(), "a")
	wantError(t, err, broker.ErrNotFound)
}

func testValues(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	f := fields("empty", "", "json", `{"a":1}`, "lines", "a\r\nb\n", "html", "<&>\u2028", "other", "äöü \U0001F511 \x00\x7f",
		"With Spaces/and:more", "x", "long", strings.Repeat("k", 200_000))
	mustWrite(t, s, "a", f, 0)
	wantRead(t, s, "a", f, 1)
}

func testReopen(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	mustWrite(t, s, "a/b", fields("x", "1"), 0)
	mustWrite(t, s, "a/b", fields("x", "2"), 1)
	key, err := vault.Key(t.Context(), s, vault.PathAuditIndex)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, _, _ = open(t, p.config)
	wantRead(t, s, "a/b", fields("x", "2"), 2)
	mustWrite(t, s, "a/b", fields("x", "3"), 2)
	if again, err := vault.Key(t.Context(), s, vault.PathAuditIndex); err != nil || !again.Equal(key) {
		t.Fatalf("another key, or %v", err)
	}
}

func testClosed(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	mustWrite(t, s, "a", fields("x", "1"), 0)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if p.shared {
		// The token of this test is not ours to end, and so none is asked for.
		wantCode(t, s.Ready(t.Context()), broker.Unavailable)
	}
	_, _, err1 := s.Read(t.Context(), "a")
	_, err2 := s.Write(t.Context(), "a", fields("x", "2"), 1)
	_, err3 := s.List(t.Context(), "")
	for _, err := range []error{err1, err2, err3, s.Delete(t.Context(), "a"), s.Ready(t.Context())} {
		if err == nil {
			t.Error("a closed store works")
		}
	}
}

// beside opens the place n times, or once if only one process may have it.
func beside(t *testing.T, p place, n int) []vault.Store {
	t.Helper()
	var stores []vault.Store
	for i := range n {
		if i > 0 && !p.shared {
			stores = append(stores, stores[0])
			continue
		}
		s, _, _ := open(t, p.config)
		stores = append(stores, s)
	}
	return stores
}

func testKeyAgreement(t *testing.T, p place) {
	stores := beside(t, p, 12)
	keys := make([]secret.String, len(stores))
	var all sync.WaitGroup
	for i, s := range stores {
		all.Go(func() {
			var err error
			if keys[i], err = vault.Key(t.Context(), s, vault.PathClientSecrets); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, k := range keys {
		if k.Len() != 32 || !k.Equal(keys[0]) {
			t.Fatal("the replicas have different keys")
		}
	}
	if _, version, err := stores[0].Read(t.Context(), vault.PathClientSecrets); err != nil || version != 1 {
		t.Fatalf("the key was written %d times, %v", version, err)
	}
}

func testKey(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	var got []string
	for _, path := range []string{vault.PathClientSecrets, vault.PathAuditIndex, vault.PathClientSecrets} {
		k, err := vault.Key(t.Context(), s, path)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, k.Reveal())
	}
	if got[0] != got[2] || got[0] == got[1] || bytes.Equal([]byte(got[0]), make([]byte, 32)) {
		t.Fatal("keys are not stable, not apart or not random")
	}
}

func testKeyDamaged(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	for i, f := range []vault.Fields{
		fields("key", "short"), fields("other", "x"), fields("key", base64.StdEncoding.EncodeToString(make([]byte, 31))),
		fields("key", strings.Repeat("!", 44)),
	} {
		path := fmt.Sprintf("keys/%d", i)
		mustWrite(t, s, path, f, 0)
		_, err := vault.Key(t.Context(), s, path)
		wantText(t, err, path+": not a key of 32 bytes in base64")
		wantRead(t, s, path, f, 1)
	}
}

func testReferences(t *testing.T, p place) {
	s, _, _ := open(t, p.config)
	mustWrite(t, s, "github/app", fields("private_key", "k\n", "empty", ""), 0)
	r := vault.Resolver{Store: s}
	if got, err := r.Resolve(t.Context(), "vault:github/app#private_key"); err != nil || got.Reveal() != "k\n" {
		t.Fatalf("%q, %v", got.Reveal(), err)
	}
	for _, ref := range []string{"vault:github/app#none", "vault:github/app#empty"} {
		_, err := r.Resolve(t.Context(), ref)
		wantText(t, err, ref+": there is nothing there")
	}
	_, err := r.Resolve(t.Context(), "vault:github/other#x")
	wantError(t, err, broker.ErrNotFound)
	wantText(t, err, "vault:github/other#x")
}
