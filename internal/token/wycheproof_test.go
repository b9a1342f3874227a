package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"hash"
	"os"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// stricter are vectors that are called valid and refused here: 372 and 373 have a
// ? inside base64url, and a token has one text; 346, 347, 350 and 351 are signed
// by another algorithm than the one that the key says it is for, which the
// vectors 332 to 340 call invalid.
var stricter = map[int]bool{372: true, 373: true, 346: true, 347: true, 350: true, 351: true}

// twins are vectors that are called invalid for their padding, which was lost
// somewhere: they are, letter for letter, the valid vector 357. What they meant
// to test is in TestPaddingIsRefused.
var twins = map[int]bool{367: true, 370: true}

type vectors struct {
	Groups []struct {
		Comment string          `json:"comment"`
		Private json.RawMessage `json:"private"`
		Public  json.RawMessage `json:"public"`
		Tests   []struct {
			ID      int    `json:"tcId"`
			Comment string `json:"comment"`
			JWS     string `json:"jws"`
			Result  string `json:"result"`
		} `json:"tests"`
	} `json:"testGroups"`
}

func readVectors(t *testing.T) (v vectors) {
	t.Helper()
	data, err := os.ReadFile("testdata/wycheproof/json_web_signature_test.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWycheproof(t *testing.T) {
	tests, valid := 0, 0
	texts := map[int]string{}
	for _, g := range readVectors(t).Groups {
		for _, tc := range g.Tests {
			tests++
			texts[tc.ID] = tc.JWS
			got := accepts(t, g.Public, g.Private, tc.JWS)
			want := tc.Result == "valid" && !stricter[tc.ID]
			if twins[tc.ID] {
				want = true
			}
			if got != want {
				t.Errorf("%s, test %d (%s): accepted %v, want %v", g.Comment, tc.ID, tc.Comment, got, want)
			}
			if got {
				valid++
			}
		}
	}
	if tests != 401 || valid < 40 {
		t.Errorf("%d tests, %d valid: the vectors are not all there", tests, valid)
	}
	for id := range twins {
		if texts[id] != texts[357] {
			t.Errorf("vector %d is not vector 357 any more: judge it by what it says", id)
		}
	}
}

func TestPaddingIsRefused(t *testing.T) {
	const header, payload, mac = "eyJraWQiOiJoczI1Ni1rZXkiLCJhbGciOiJIUzI1NiJ9", "VGVzdA", "c1LROH7eNQwUT8KMVEO52VC3WZ9e_AnDWbZ7aMmowV8"
	if _, err := parseJWS(header + "." + payload + "." + mac); err != nil {
		t.Fatal(err)
	}
	for _, padded := range []string{header + "=." + payload + "." + mac, header + "." + payload + "==." + mac, header + "." + payload + "." + mac + "="} {
		if _, err := parseJWS(padded); err == nil {
			t.Errorf("%s was read", padded)
		}
	}
}

// accepts verifies as this package does. Symmetric keys have no place in it; for
// them the text is read by our code, and the MAC computed here.
func accepts(t *testing.T, public, private json.RawMessage, text string) bool {
	t.Helper()
	j, err := parseJWS(text)
	if err != nil {
		return false
	}
	if public == nil {
		var k struct {
			K   []byte `json:"-"`
			Alg string `json:"alg"`
		}
		var jwk jose.JSONWebKey
		if err := jwk.UnmarshalJSON(private); err != nil {
			t.Fatal(err)
		}
		k.K, k.Alg = jwk.Key.([]byte), jwk.Algorithm
		if _, err := ParseKeys(set(private), []string{"RS256", "ES256"}, false); err == nil {
			t.Error("a symmetric key was taken for verifying")
		}
		h := map[string]func() hash.Hash{"HS256": sha256.New, "HS384": sha512.New384, "HS512": sha512.New}[k.Alg]
		if h == nil || j.alg != k.Alg {
			return false
		}
		mac := hmac.New(h, k.K)
		mac.Write([]byte(j.input))
		return hmac.Equal(mac.Sum(nil), j.signature)
	}
	var all []string
	for a := range algorithms {
		all = append(all, a)
	}
	var named jwkUse
	if err := json.Unmarshal(public, &named); err != nil {
		t.Fatal(err)
	}
	if named.Alg == "" { // the vectors' keys without alg are for one: the issuer's configuration would say which
		all = []string{"RS256", "ES256"}
	}
	s, err := ParseKeys(set(public), all, false)
	if err != nil {
		return false
	}
	k := s.find(j.joseHeader)
	return k != nil && j.verify(k) == nil
}

func set(key json.RawMessage) []byte { return []byte(`{"keys":[` + string(key) + `]}`) }

// Of the gaps that plain go-jose leaves, at least these vectors must tell it from
// us: otherwise the comparison says nothing.
func TestPlainGoJoseWouldAcceptSomeOfThem(t *testing.T) {
	gaps := 0
	all := []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512}
	for _, g := range readVectors(t).Groups {
		if g.Public == nil {
			continue
		}
		var key jose.JSONWebKey
		if err := key.UnmarshalJSON(g.Public); err != nil {
			continue
		}
		for _, tc := range g.Tests {
			if tc.Result == "valid" {
				continue
			}
			if j, err := jose.ParseSignedCompact(tc.JWS, all); err == nil {
				if _, err := j.Verify(key); err == nil {
					gaps++
				}
			}
		}
	}
	if gaps < 10 {
		t.Errorf("go-jose accepts %d invalid vectors: have they changed?", gaps)
	}
}
