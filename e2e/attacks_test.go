//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"
)

// many asks the same of both replicas at the same time, again and again, and
// counts the answers by what they come to.
func (w *world) many(t *testing.T, path, as string, form url.Values, what func(*answer) string) map[string]int {
	t.Helper()
	const each = 50
	counts := make(map[string]int)
	var mu sync.Mutex
	var asking sync.WaitGroup
	begin := make(chan struct{})
	for i := range 2 * each {
		r := w.replicas()[i%2]
		asking.Go(func() {
			<-begin
			a, err := w.try(t.Context(), r, path, as, form)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				counts[err.Error()]++
				return
			}
			counts[what(a)]++
		})
	}
	close(begin)
	asking.Wait()
	return counts
}

func wantCounts(t *testing.T, got map[string]int, want map[string]int) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// RFC 7523 section 3, number 7: whoever overhears a client's assertion cannot use
// it, at whichever replica, however fast.
func testAssertionReplay(t *testing.T, w *world) {
	status := func(a *answer) string { return fmt.Sprint(a.Status, " ", a.Error) }
	token := w.alice(t, w.a, "orders:read")
	form := w.assertionForm(t, token)
	wantCounts(t, w.many(t, "/oauth2/token", "", form, status), map[string]int{"200 ": 1, "401 invalid_client": 99})
	// Nor after everything was started again.
	w.a.stop(t)
	w.b.kill()
	w.redis.Restart()
	w.a.start(t)
	w.b.start(t)
	wantCounts(t, w.many(t, "/oauth2/token", "", form, status), map[string]int{"401 invalid_client": 100})
	// What is refused for another reason is not used up by whoever guesses at it.
	form = w.assertionForm(t, token)
	form.Set("client_id", "desktop")
	w.ask(t, w.a, "/oauth2/token", "", form).want(t, http.StatusUnauthorized, "invalid_client")
	form.Set("client_id", "orders-jwt")
	w.ask(t, w.b, "/oauth2/token", "", form).want(t, http.StatusOK, "")
}

// A token that is for one call is good for one, at whichever replica it is used up.
func testOnce(t *testing.T, w *world) {
	form := exchangeForm(w.alice(t, w.a, "orders:read"), api, "orders:read")
	form.Set("authorization_details", `[{"type":"mcp_tool_call","tool":"list_orders","arguments":{},"once":true}]`)
	token := w.ask(t, w.b, "/oauth2/token", "orders-mcp", form).want(t, http.StatusOK, "").Token
	used := w.many(t, "/oauth2/introspect", "orders-api", url.Values{"token": {token}, "consume": {"true"}}, func(a *answer) string {
		return fmt.Sprint(a.Status, " active: ", a.Active)
	})
	wantCounts(t, used, map[string]int{"200 active: true": 1, "200 active: false": 99})
}
