package token

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestProbe(t *testing.T) {
	f := newForeign(t)
	var s string
	s = server(t, func(w http.ResponseWriter, req *http.Request) {
		switch path, _ := strings.CutSuffix(req.URL.Path, "/.well-known/openid-configuration"); path {
		case "/good":
			_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, s+"/good", s+"/keys")
		case "/liar":
			_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, s+"/good", s+"/keys")
		case "/keys":
			_, _ = w.Write(f.keys())
		default:
			http.NotFound(w, req)
		}
	}).URL
	issuer := func(path string, algs ...string) Issuer { return Issuer{ID: s + path, Algorithms: algs} }
	cfg := Config{
		Issuers: []Issuer{issuer("/good", "RS256", "ES256"), issuer("/liar", "ES256"), issuer("/absent", "ES256"),
			{ID: "direct", Algorithms: []string{"ES512"}, JWKSURI: s + "/keys"}, {ID: "from a file"}},
		IssuerKeys: map[string][]byte{"from a file": f.keys()},
		Clients:    map[string]ClientKeys{"here": {JWKSURI: s + "/keys"}, "nowhere": {JWKSURI: s + "/other"}, "within": {JWKS: f.keys()}},
	}
	issuers, clients := Probe(context.Background(), cfg, http.DefaultClient)
	got := make(map[string]string)
	for _, of := range []map[string]error{issuers, clients} {
		for id, err := range of {
			got[strings.TrimPrefix(id, s)] = fmt.Sprint(err)
		}
	}
	want := map[string]string{
		"/good": "<nil>", "/liar": "is of issuer", "/absent": "status 404", "direct": "without a key that can be used",
		"here": "<nil>", "nowhere": "status 404",
	}
	if len(got) != len(want) {
		t.Errorf("got %v", got)
	}
	for id, text := range want {
		if !strings.Contains(got[id], text) {
			t.Errorf("%s: got %q, want %q", id, got[id], text)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if issuers, _ := Probe(ctx, cfg, http.DefaultClient); issuers[s+"/good"] == nil {
		t.Error("an issuer was reached without asking")
	}
}
