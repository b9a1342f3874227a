package api_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// while runs f in several goroutines, over and over, until during returns.
func while(t testing.TB, f func(), during func()) {
	t.Helper()
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() && !t.Failed() {
				f()
			}
		})
	}
	during()
	stop.Store(true)
	wg.Wait()
}

// Keys are rotated while tokens are made and looked at: each token that was issued
// is good everywhere, by the keys that are published when its answer is there, and
// by those of the time after.
func TestRaceRotationAgainstVerification(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	alice := w.token("idp", "at+jwt", nil)
	var mu sync.Mutex
	kids, made := map[string]bool{}, []string{}
	published := func() jose.JSONWebKeySet {
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(w.get("/oauth2/jwks").body, &set); err != nil {
			t.Error(err)
		}
		return set
	}
	while(t, func() {
		a := w.exchange(alice)
		if a.status != 200 {
			t.Errorf("issue: %d %s", a.status, a.body)
			return
		}
		token := issued(t, a)
		set := published()
		var h struct {
			Kid string `json:"kid"`
		}
		if err := json.Unmarshal([]byte(headerOf(t, token)), &h); err != nil || len(set.Key(h.Kid)) != 1 {
			t.Errorf("%d keys of %s are published, %v", len(set.Key(h.Kid)), h.Kid, err)
		}
		if a := w.introspect("files-mcp", token); !strings.Contains(string(a.body), `"active":true`) {
			t.Errorf("introspected: %d %s", a.status, a.body)
		}
		if a := w.exchangeAs("files-mcp", token, "access_token", nil); a.status != 200 {
			t.Errorf("exchanged: %d %s", a.status, a.body)
		}
		mu.Lock()
		defer mu.Unlock()
		kids[h.Kid] = true
		made = append(made, token)
	}, func() {
		raced := func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(kids) > 1
		}
		for i := 0; i < 30 || i < 1000 && !raced(); i++ { // on a busy machine nobody else may have run yet
			if _, err := w.ring.Rotate(context.Background(), true); err != nil {
				t.Error(err)
			}
			if err := w.ring.Reload(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	if len(kids) < 2 {
		t.Errorf("%d tokens by %d keys: nothing was raced", len(made), len(kids))
	}
	for _, token := range made {
		w.active(t, "afterwards", "files-mcp", token, true)
	}
}

// A policy is replaced while decisions are made: each is by one of the two, whole,
// and says by which.
func TestRaceReloadAgainstDecision(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	old := w.b.Judge().Policy()
	// The next one allows less, and for a shorter time.
	text := strings.NewReplacer("max_lifetime: 4m", "max_lifetime: 2m", `allow: ["*"]`, "allow: [files:read, files:mine]").Replace(filesYAML)
	next := w.policy(text, apiYAML)
	if old.Versions()[mcp] == next.Versions()[mcp] {
		t.Fatal("two policies of one version")
	}
	life := map[string]int64{old.Versions()[mcp]: 240, next.Versions()[mcp]: 120}
	alice := w.token("idp", "at+jwt", nil)
	var seen [2]atomic.Int64
	while(t, func() {
		a := w.exchangeAs("desktop", alice, "access_token", url.Values{"scope": {"files:read files:list"}})
		only := w.exchangeAs("desktop", alice, "access_token", url.Values{"scope": {"files:read"}})
		if only.status != 200 || a.status != 200 && a.status != 400 {
			t.Errorf("%d %s, %d %s", a.status, a.body, only.status, only.body)
			return
		}
		if a.status == 200 { // which the old one alone allows
			if c := claimsOf(t, issued(t, a)); c.Stint.Policy != old.Versions()[mcp] || c.Expires-c.IssuedAt != 240 {
				t.Errorf("allowed by %s for %d seconds", c.Stint.Policy, c.Expires-c.IssuedAt)
			}
		}
		c := claimsOf(t, issued(t, only))
		if got := c.Expires - c.IssuedAt; got == 0 || got != life[c.Stint.Policy] {
			t.Errorf("by version %s for %d seconds", c.Stint.Policy, got)
		}
		seen[slices.Index([]string{old.Versions()[mcp], next.Versions()[mcp]}, c.Stint.Policy)].Add(1)
	}, func() {
		for seen[0].Load() < 150 || seen[1].Load() < 150 {
			w.b.Judge().SetPolicy(next) // without the record, to be fast
			w.b.Judge().SetPolicy(old)
			if t.Failed() {
				return
			}
		}
	})
}

// Once a revocation has been answered, no question that is asked afterwards is
// answered as if it had not been: not of the token, not of what is made of it at
// that moment, and not of the single use that it had.
func TestRaceRevocationAgainstUse(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	for range 15 {
		token := w.granted(t, "a token", w.exchangeAs("desktop", w.token("idp", "at+jwt", nil), "access_token", url.Values{
			"scope": nil, "authorization_details": {`[{"type":"mcp_tool_call","tool":"read_file","once":true}]`},
		}))
		var revoked atomic.Bool
		var mu sync.Mutex
		var children []string
		while(t, func() {
			after := revoked.Load()
			a := w.exchangeAs("files-mcp", token, "access_token", nil)
			looked := w.introspect("files-mcp", token)
			if a.status == 200 {
				mu.Lock()
				children = append(children, issued(t, a))
				mu.Unlock()
			}
			if after && (a.status != 400 || strings.Contains(string(looked.body), `"active":true`)) {
				t.Errorf("after the revocation: %d %s, %d %s", a.status, a.body, looked.status, looked.body)
			}
		}, func() {
			a := w.send("/oauth2/revoke", formType, url.Values{"token": {token}}.Encode(), nil)
			if a.status != http.StatusOK {
				t.Errorf("revoke: %d %s", a.status, a.body)
			}
			revoked.Store(true)
			if a := w.post("/oauth2/introspect", w.asFilesMCP(url.Values{"token": {token}, "consume": {"true"}})); strings.TrimSpace(string(a.body)) != `{"active":false}` {
				t.Errorf("used up after the revocation: %d %s", a.status, a.body)
			}
		})
		for _, child := range children { // made before, during or after
			w.active(t, "a child", "files-mcp", child, false)
		}
	}
}
