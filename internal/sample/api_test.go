package sample

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stint-dev/stint/internal/secret"
)

// ask sends a request to the API.
func ask(t *testing.T, w *world, method, authorization, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.api.URL()+"/orders", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	client := newClient()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp
}

func (w *world) forAPI(scope ...string) fakeToken {
	return fakeToken{aud: w.api.Resource(), sub: "https://idp.example#alice", client: "orders-mcp", scope: scope}
}

func TestTheAPITakesTokensForItselfAlone(t *testing.T) {
	w := newWorld(t, nil)
	gone := w.issue(w.forAPI(OrdersRead))
	w.has(gone, func(tok *fakeToken) { tok.gone = true })
	bearer := func(s secret.String) string { return "Bearer " + s.Reveal() }
	const order = `{"item":"coffee","quantity":1}`
	tests := map[string]struct {
		method, authorization, body string
		status                      int
		challenge                   string
	}{
		"read with the scope to read":   {"GET", bearer(w.issue(w.forAPI(OrdersRead))), "", 200, ""},
		"write with the scope to write": {"POST", bearer(w.issue(w.forAPI(OrdersWrite))), order, 201, ""},
		"the scheme in small letters":   {"GET", "bearer " + w.issue(w.forAPI(OrdersRead)).Reveal(), "", 200, ""},
		"write with the scope to read":  {"POST", bearer(w.issue(w.forAPI(OrdersRead))), order, 403, `Bearer realm="orders", error="insufficient_scope", scope="orders:write"`},
		"read with the scope to write":  {"GET", bearer(w.issue(w.forAPI(OrdersWrite))), "", 403, `Bearer realm="orders", error="insufficient_scope", scope="orders:read"`},
		"no token":                      {"GET", "", "", 401, `Bearer realm="orders"`},
		"another scheme":                {"GET", "Basic YTpi", "", 401, `Bearer realm="orders"`},
		"an empty token":                {"GET", "Bearer ", "", 401, `Bearer realm="orders"`},
		"a token for the MCP server":    {"GET", bearer(w.issue(w.alice(OrdersRead))), "", 401, `Bearer realm="orders", error="invalid_token"`},
		"a token that nobody made":      {"GET", "Bearer made-up", "", 401, `Bearer realm="orders", error="invalid_token"`},
		"a revoked token":               {"GET", bearer(gone), "", 401, `Bearer realm="orders", error="invalid_token"`},
		"an order of nothing":           {"POST", bearer(w.issue(w.forAPI(OrdersWrite))), `{"quantity":1}`, 400, ""},
		"what is no order":              {"POST", bearer(w.issue(w.forAPI(OrdersWrite))), `[]`, 400, ""},
		"more than an order can be":     {"POST", bearer(w.issue(w.forAPI(OrdersWrite))), order + strings.Repeat(" ", maxBody), 400, ""},
		"a method that there is not":    {"DELETE", bearer(w.issue(w.forAPI(OrdersWrite))), "", 405, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			resp := ask(t, w, tt.method, tt.authorization, tt.body)
			if got := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != tt.status || got != tt.challenge {
				t.Errorf("%d %s", resp.StatusCode, got)
			}
		})
	}
}

func TestTheAPIAsksAgainWhenStintIsBack(t *testing.T) {
	w := newWorld(t, nil)
	held := "Bearer " + w.issue(w.forAPI(OrdersRead)).Reveal()
	w.set(func(f *stintFake) { f.down = true })
	resp := ask(t, w, "GET", held, "")
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || resp.Header.Get("WWW-Authenticate") != "" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	w.set(func(f *stintFake) { f.down = false })
	if resp := ask(t, w, "GET", held, ""); resp.StatusCode != http.StatusOK {
		t.Errorf("later: %d", resp.StatusCode)
	}
}

func TestTheAPIsOwnBadSecretIsNotTheCallersFault(t *testing.T) {
	w := newWorld(t, nil)
	held := "Bearer " + w.issue(w.forAPI(OrdersRead)).Reveal()
	w.set(func(f *stintFake) {
		c := f.clients["orders-api"]
		c.secret = "another one"
		f.clients["orders-api"] = c
	})
	if resp := ask(t, w, "GET", held, ""); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%d", resp.StatusCode)
	}
}

func TestATokenForOneCallOpensTheAPIOnce(t *testing.T) {
	w := newWorld(t, nil)
	tok := w.forAPI(OrdersWrite)
	tok.once = true
	held := "Bearer " + w.issue(tok).Reveal()
	var mu sync.Mutex
	statuses := make(map[int]int)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			resp := ask(t, w, "POST", held, `{"item":"tea","quantity":1}`)
			mu.Lock()
			defer mu.Unlock()
			statuses[resp.StatusCode]++
		})
	}
	all.Wait()
	if statuses[http.StatusCreated] != 1 || statuses[http.StatusUnauthorized] != 7 {
		t.Errorf("the answers are %v", statuses)
	}
}

func TestATokenForOneCallIsNotUsedUpByACallItIsNotGoodFor(t *testing.T) {
	w := newWorld(t, nil)
	tok := w.forAPI(OrdersWrite)
	tok.once = true
	held := "Bearer " + w.issue(tok).Reveal()
	if resp := ask(t, w, "GET", held, ""); resp.StatusCode != http.StatusForbidden {
		t.Fatalf("%d", resp.StatusCode)
	}
	if resp := ask(t, w, "POST", held, `{"item":"tea","quantity":1}`); resp.StatusCode != http.StatusCreated {
		t.Errorf("%d", resp.StatusCode)
	}
}

func TestAnswersAreTakenApartWithoutTheirSecrets(t *testing.T) {
	const body = `{"access_token":"abc","scope":"a b","n":5,"list":["x"],"credential":{"host":"h","password":"p","url":"u"},"empty":{}}`
	got := answerFields([]byte(body))
	type flat struct{ name, value, secret string }
	var all []flat
	for _, f := range got {
		all = append(all, flat{f.Name, f.Value, f.Secret.Reveal()})
	}
	want := []flat{
		{"access_token", "", "abc"}, {"scope", "a b", ""}, {"n", "5", ""}, {"list", `["x"]`, ""},
		{"credential.host", "h", ""}, {"credential.password", "", "p"}, {"credential.url", "", "u"}, {"empty", "{}", ""},
	}
	if len(all) != len(want) {
		t.Fatalf("%v", all)
	}
	for i := range want {
		if all[i] != want[i] {
			t.Errorf("%v, not %v", all[i], want[i])
		}
	}
	if f := answerFields([]byte("not found\n")); len(f) != 1 || f[0].Name != "" || f[0].Value != "not found" {
		t.Errorf("%v", f)
	}
	if f := answerFields(nil); len(f) != 0 {
		t.Errorf("%v", f)
	}
	if !json.Valid([]byte(body)) {
		t.Error("the test is wrong")
	}
}
