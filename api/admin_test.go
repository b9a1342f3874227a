package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/api/adminapi"
	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/scopes"
)

// adminCall is one way to call an operation of the admin API.
type adminCall struct {
	operation, method, path string
	body                    any
}

// adminCalls are all operations, each as it succeeds.
func (w *world) adminCalls() []adminCall { w.Helper(); return w.adminCallsOn(w.leased()) }

func (w *world) adminCallsOn(lease string) []adminCall {
	idp := partyOf(w.idp.url)
	return []adminCall{
		{"status", "GET", "/status", nil}, {"listClients", "GET", "/clients", nil}, {"getClient", "GET", "/clients/desktop", nil},
		{"changeClient", "PATCH", "/clients/files-api", map[string]any{"disabled": true}},
		{"listIssuers", "GET", "/issuers", nil}, {"getIssuer", "GET", "/issuers/" + idp, nil},
		{"changeIssuer", "PATCH", "/issuers/" + partyOf(w.ci.url), map[string]any{"disabled": true}},
		{"listProviders", "GET", "/providers", nil}, {"listMappings", "GET", "/mappings", nil}, {"getMapping", "GET", "/mappings/" + partyOf(mcp), nil},
		{"listSessions", "GET", "/sessions", nil}, {"listLeases", "GET", "/leases", nil}, {"getLease", "GET", "/leases/" + lease, nil},
		{"createRevocation", "POST", "/revocations", map[string]any{"session": "abc"}},
		{"listKeys", "GET", "/keys", nil}, {"rotateKey", "POST", "/keys", map[string]any{}},
		{"newClientSecret", "POST", "/client-secrets", nil}, {"rotateSealingKey", "POST", "/keys/sealing", nil},
		{"revokeKey", "POST", "/keys/revocations", map[string]any{"kid": w.ring.Keys()[0].ID}}, // which signed the token as well
	}
}

// partyOf is the id of an issuer or mapping in paths, found by its name.
func partyOf(name string) string { return api.PartyID(name) }

// leased vends a credential, and returns the id of its lease.
func (w *world) leased() string {
	w.Helper()
	a := w.post("/oauth2/token", w.vending())
	var out struct {
		Lease string `json:"lease_id"`
	}
	if err := json.Unmarshal(a.body, &out); err != nil || out.Lease == "" {
		w.Fatalf("%d %s", a.status, a.body)
	}
	return out.Lease
}

// provoked collects which documented answers of which operations were seen.
type provoked map[string]bool

func (p provoked) want(t testing.TB, w *world, token string, c adminCall, status int, headers ...string) *answer {
	t.Helper()
	a, err := w.ask(token, c.method, c.path, c.body, headers...)
	if err != nil {
		t.Errorf("%s: against openapi.yaml: %v", c.operation, err)
	}
	if a.status != status {
		t.Errorf("%s: %d %s, want %d", c.operation, a.status, a.body, status)
	}
	p[fmt.Sprintf("%s %d", c.operation, a.status)] = true
	return a
}

// Every operation answers as openapi.yaml says, and every error that it documents is
// one that can be had.
func TestAdminAnswersAndErrors(t *testing.T) {
	t.Parallel()
	seen := provoked{}
	w := newWorld(t, options{})
	root := w.signedIn("root")
	for _, c := range w.adminCalls() {
		seen.want(t, w, root, c, successOf(c))
		seen.want(t, w, "none", c, http.StatusUnauthorized)
	}
	provokeBad(t, w, seen)
	provokeConflicts(t, seen)
	provokeFailures(t, seen)
	documented := 0
	for path, item := range w.document().Paths.Map() {
		for _, op := range item.Operations() {
			if !strings.HasPrefix(path, "/admin/") {
				continue
			}
			for status := range op.Responses.Map() {
				documented++
				if !seen[op.OperationID+" "+status] {
					t.Errorf("%s: %s is documented, and was not provoked", op.OperationID, status)
				}
			}
		}
	}
	if documented < 100 || len(seen) != documented {
		t.Errorf("%d answers are documented, %d were seen", documented, len(seen))
	}
	testbed.Report(t, "admin-api",
		testbed.Row{Name: "API operations covered", Value: float64(len(w.adminCalls())), Unit: "operations", Target: float64(len(api.AdminScopes)), Met: len(w.adminCalls()) == len(api.AdminScopes)},
		testbed.Row{Name: "documented answers provoked", Value: float64(len(seen)), Unit: "answers", Target: float64(documented), Met: len(seen) == documented},
	)
}

// What GET has, HEAD has, without a body.
func TestAdminTakesHead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	root := w.signedIn("root")
	for _, c := range w.adminCalls() {
		if c.method != "GET" {
			continue
		}
		a, err := w.ask(root, http.MethodHead, c.path, nil)
		if a.status != http.StatusOK || len(a.body) > 0 || err != nil {
			t.Errorf("%s: %d, %d bytes, %v", c.operation, a.status, len(a.body), err)
		}
	}
}

func successOf(c adminCall) int {
	if c.method == "POST" {
		return http.StatusCreated
	}
	return http.StatusOK
}

// provokeBad sends what is malformed, forbidden, unknown or too large.
func provokeBad(t *testing.T, w *world, seen provoked) {
	t.Helper()
	root, nobody := w.signedIn("root"), w.signedIn("bob")
	for _, c := range w.adminCalls() {
		if c.method != "GET" { // bob may read
			seen.want(t, w, nobody, c, http.StatusForbidden)
		}
		bad, large := c, c
		switch {
		case strings.HasPrefix(c.operation, "list") && c.operation != "listKeys" && c.operation != "listProviders":
			bad.path += "?limit=0"
			seen.want(t, w, root, bad, http.StatusBadRequest)
		case c.operation == "newClientSecret", c.operation == "rotateSealingKey":
			seen.want(t, w, root, c, http.StatusBadRequest, "Idempotency-Key", "short")
		case c.body != nil:
			bad.body, large.body = `{"no": 1}`, `{"reason": "`+strings.Repeat("x", 70_000)+`"}`
			seen.want(t, w, root, bad, http.StatusBadRequest)
			seen.want(t, w, root, large, http.StatusRequestEntityTooLarge)
		}
		unknown := c
		switch c.operation {
		case "getClient", "getIssuer", "getMapping", "getLease", "changeClient", "changeIssuer":
			unknown.path = c.path[:strings.LastIndex(c.path, "/")+1] + "nobody"
			seen.want(t, w, root, unknown, http.StatusNotFound)
		case "revokeKey":
			unknown.body = map[string]any{"kid": "nobody"}
			seen.want(t, w, root, unknown, http.StatusNotFound)
		}
	}
	// And somebody who may turn off, but not read.
	operator := w.exchangeFor(t, "operate-only", "maintainers")
	for _, c := range w.adminCalls() {
		if c.method == "GET" {
			seen.want(t, w, operator, c, http.StatusForbidden)
		}
	}
}

// exchangeFor signs somebody of a group in.
func (w *world) exchangeFor(t testing.TB, who, group string) string {
	t.Helper()
	issued, err := w.b.Exchange(t.Context(), &broker.ExchangeRequest{
		GrantType: exchange, Client: w.reg.Clients["stint-admin"], SubjectToken: secret.New(w.idToken(who, group)), SubjectType: broker.TypeID,
		Resources: []string{w.self + "/admin/v1"}, Scope: "read operate administer approve",
	})
	if err != nil {
		t.Fatal(err)
	}
	return issued.Token.Reveal()
}

// provokeConflicts sends what collides with something.
func provokeConflicts(t *testing.T, seen provoked) {
	t.Helper()
	w := newWorld(t, options{config: func(c *api.Config) { c.Answers = &halfDone{c.Answers} }})
	root := w.signedIn("root")
	for _, c := range w.adminCalls() {
		if c.method == "GET" {
			continue
		}
		if c.method == "PATCH" {
			seen.want(t, w, root, c, http.StatusPreconditionFailed, "If-Match", `"77"`)
		}
		seen.want(t, w, root, c, http.StatusConflict, "Idempotency-Key", "half done "+c.operation)
		seen.want(t, w, root, c, http.StatusUnprocessableEntity, "Idempotency-Key", "other "+c.operation)
	}
}

// halfDone knows of some keys that a request is being carried out, and of others that
// another request had them.
type halfDone struct{ broker.Answers }

func (h *halfDone) Claim(ctx context.Context, name string, data []byte, expires time.Time) ([]byte, error) {
	switch {
	case strings.Contains(name, "half done"):
		return data, nil
	case strings.Contains(name, "other"):
		return []byte(`{"request":"another","status":201}`), nil
	}
	return h.Answers.Claim(ctx, name, data, expires)
}

// provokeFailures has too many come, the replica fall behind, and the server fail.
func provokeFailures(t *testing.T, seen provoked) {
	t.Helper()
	limits := api.Limits{AddressRate: 0.001, AddressBurst: 1}
	few := newWorld(t, options{limits: limits})
	calls := few.adminCallsOn("any")
	if a, _ := few.ask("none", "GET", "/status", nil); a.status != http.StatusUnauthorized {
		t.Fatalf("the first: %d %s", a.status, a.body)
	}
	for _, c := range calls {
		seen.want(t, few, "none", c, http.StatusTooManyRequests)
	}
	late := newWorld(t, options{})
	token, calls := late.signedIn("root"), late.adminCalls()
	_ = late.store.Close()
	late.clock.move(time.Minute)
	for _, c := range calls {
		seen.want(t, late, token, c, http.StatusServiceUnavailable)
	}
	broken := &unable{}
	slip := newWorld(t, options{wrap: func(b api.Broker) api.Broker { broken.Broker = b; return broken }})
	token, calls = slip.signedIn("root"), slip.adminCalls()
	broken.fails = true
	for _, c := range calls {
		a := seen.want(t, slip, token, c, http.StatusInternalServerError)
		if !silentFailure(a) {
			t.Errorf("%s: %s", c.operation, a.body)
		}
	}
}

// unable fails, in a way that has no code, to say whether a token is good.
type unable struct {
	api.Broker
	fails bool
}

func (u *unable) Admit(ctx context.Context, raw secret.String, resource, certificate string) (*broker.Token, error) {
	if u.fails {
		return nil, errors.New(inside)
	}
	return u.Broker.Admit(ctx, raw, resource, certificate)
}

// What is written is recorded, with who did it, and what was before and is after.
func TestAdminWritesAreRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	root := w.signedIn("root")
	who := w.events.Index("https://idp.test#root")
	for _, c := range w.adminCalls() {
		if c.method == "GET" {
			continue
		}
		if a, _ := w.ask(root, c.method, c.path, c.body); a.status >= 300 {
			t.Fatalf("%s: %d %s", c.operation, a.status, a.body)
		}
	}
	var changes []audit.Change
	w.flush()
	for line := range strings.Lines(w.journalled()) {
		var e audit.Event
		if json.Unmarshal([]byte(line), &e) == nil && e.Change != nil && e.Party.Operator == who {
			changes = append(changes, *e.Change)
		}
	}
	for _, want := range []audit.Change{{What: "client files-api", Before: "on", After: "off"}, {What: "issuer https://ci.test", Before: "on", After: "off"}} {
		if !slices.Contains(changes, want) {
			t.Errorf("no event says %+v: %+v", want, changes)
		}
	}
	if n := strings.Count(w.journalled(), `"operator":"`+who+`"`); n < 6 {
		t.Errorf("%d events name the operator", n)
	}
	if strings.Contains(w.journalled(), "idp.test#root") {
		t.Error("the record names a person in clear")
	}
}

// A client that is turned off is refused everything, at once, and what it held is dead;
// turned on again it begins anew.
func TestATurnedOffClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	root := w.signedIn("root")
	held := issued(t, w.post("/oauth2/token", w.form()))
	lease := w.leased()
	off := adminCall{"changeClient", "PATCH", "/clients/desktop", map[string]any{"disabled": true, "reason": "stolen"}}
	seen := provoked{}
	tag := seen.want(t, w, root, adminCall{"getClient", "GET", "/clients/desktop", nil}, 200).header.Get("ETag")
	a := seen.want(t, w, root, off, 200, "If-Match", tag)
	var shown adminapi.Client
	if err := json.Unmarshal(a.body, &shown); err != nil || !shown.Disabled || shown.Switch.Reason != "stolen" {
		t.Errorf("%s", a.body)
	}
	seen.want(t, w, root, off, http.StatusPreconditionFailed, "If-Match", tag)
	if a := w.post("/oauth2/token", w.form()); a.status != http.StatusUnauthorized {
		t.Errorf("it asks: %d %s", a.status, a.body)
	}
	w.inactive(t, held)
	eventually(t, "its lease ends", func() bool {
		l, err := w.b.Lease(t.Context(), lease)
		return err == nil && (l.State == broker.Closing || l.State == broker.Closed)
	})
	on := adminCall{"changeClient", "PATCH", "/clients/desktop", map[string]any{"disabled": false}}
	seen.want(t, w, root, on, 200)
	w.clock.move(2 * time.Second) // what is issued in the second of a revocation is dead with it
	w.settle()
	issued(t, w.post("/oauth2/token", w.form()))
	w.inactive(t, held)
}

// inactive checks that a token is dead.
func (w *world) inactive(t testing.TB, token string) {
	t.Helper()
	a := w.post("/oauth2/introspect", w.asFilesMCP(url.Values{"token": {token}}))
	if a.status != 200 || strings.TrimSpace(string(a.body)) != `{"active":false}` {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// What locks administrators out, they cannot do from outside.
func TestAdministratorsStayIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	root := w.signedIn("root")
	off := map[string]any{"disabled": true}
	for path, token := range map[string]string{"/clients/stint-admin": root, "/issuers/" + partyOf(w.idp.url): root} {
		if a, _ := w.ask(token, "PATCH", path, off); a.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	// A client that is called as the socket's users are is not on the socket.
	local := &broker.Client{ID: "local", GrantTypes: []string{broker.ClientCredentials}, Targets: []string{w.self + "/admin/v1"}, Ceiling: &scopes.Ceiling{Everything: true}}
	acting := w.actingForItself(t, local)
	if a, _ := w.ask(acting, "PATCH", "/issuers/"+partyOf(w.idp.url), off); a.status != http.StatusBadRequest {
		t.Errorf("a client called local: %d %s", a.status, a.body)
	}
	if a, _ := w.ask(acting, "POST", "/revocations", map[string]string{"session": "abc"}); a.status != http.StatusCreated || !strings.Contains(w.journalled(), `"operator":"client:local"`) {
		t.Errorf("a client called local in the record: %d", a.status)
	}
	if a, _ := w.ask("", "PATCH", "/clients/stint-admin", off); a.status != http.StatusBadRequest {
		t.Errorf("their client, on the socket: %d %s", a.status, a.body)
	}
	if a, _ := w.ask("", "PATCH", "/issuers/"+partyOf(w.idp.url), off); a.status != http.StatusOK {
		t.Errorf("their issuer, on the socket: %d %s", a.status, a.body)
	}
	if a, _ := w.ask(root, "GET", "/status", nil); a.status != http.StatusUnauthorized {
		t.Errorf("a token of an issuer that is off: %d %s", a.status, a.body)
	}
}

// A token gives what its scopes say, is for the admin API alone, and cannot be made
// into more.
func TestAdminTokensGiveNoMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	reader := w.signedIn("bob")
	if _, err := w.b.Exchange(t.Context(), &broker.ExchangeRequest{
		GrantType: exchange, Client: w.reg.Clients["stint-admin"], SubjectToken: secret.New(reader), SubjectType: broker.TypeAccess,
		Resources: []string{w.self + "/admin/v1"}, Scope: "administer",
	}); broker.CodeOf(err) != broker.BadScope {
		t.Errorf("a reader's token was exchanged for administer: %v", err)
	}
	form := w.form()
	form.Set("resource", w.self+"/admin/v1")
	if a := w.post("/oauth2/token", form); a.status != http.StatusBadRequest {
		t.Errorf("another client asks for the admin API: %d %s", a.status, a.body)
	}
	other := issued(t, w.post("/oauth2/token", w.form()))
	for what, token := range map[string]string{
		"for another resource": other, "foreign": w.token("idp", "at+jwt", nil), "an ID token": w.idToken("root"), "no token": "abc",
		"cut": reader[:len(reader)-4],
	} {
		if a, _ := w.ask(token, "GET", "/status", nil); a.status != http.StatusUnauthorized {
			t.Errorf("a token %s: %d %s", what, a.status, a.body)
		}
	}
	w.reg.Clients["stint-admin"].Disabled = true // as the configuration would have it
	if a, _ := w.ask(reader, "GET", "/status", nil); a.status != http.StatusUnauthorized {
		t.Errorf("a token of a client that is disabled: %d %s", a.status, a.body)
	}
	w.reg.Clients["stint-admin"].Disabled = false
	if a, _ := w.ask("none", "GET", "/status?access_token="+reader, nil); a.status != http.StatusUnauthorized {
		t.Errorf("a token in the address: %d", a.status)
	}
	if a := w.browse("GET", "/admin/v1/status", nil, &http.Cookie{Name: "__Host-stint", Value: reader}); a.status != http.StatusUnauthorized {
		t.Errorf("the cookie opens the API: %d", a.status)
	}
}

// The same request with the same key is carried out once, and answered as it was.
func TestIdempotencyKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	root, other := w.signedIn("root"), w.exchangeFor(t, "root2", "maintainers")
	call := func(token, path string, body any, key string) *answer {
		a, err := w.ask(token, "POST", path, body, "Idempotency-Key", key)
		if err != nil {
			t.Error(err)
		}
		return a
	}
	first := call(root, "/client-secrets", nil, "key number 1")
	again := call(root, "/client-secrets", nil, "key number 1")
	if string(first.body) != string(again.body) || again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%s\n%s", first.body, again.body)
	}
	if second := call(root, "/client-secrets", nil, "key number 2"); string(second.body) == string(first.body) {
		t.Error("another key is answered the same")
	}
	var s struct{ Secret string }
	if err := json.Unmarshal(first.body, &s); err != nil || len(s.Secret) < 40 {
		t.Fatalf("%s", first.body)
	}
	raw := must(w.store.Claim(t.Context(), w.events.Index("https://idp.test#root")+"\x00key number 1", []byte("x"), w.clock.Now().Add(time.Minute)))(t)
	if raw == nil || strings.Contains(string(raw), s.Secret) {
		t.Errorf("the store has the secret in clear, or nothing: %s", raw)
	}
	before := w.b.Status(t.Context()).Records
	for range 3 {
		if a := call(root, "/revocations", map[string]string{"session": "abc"}, "key number 3"); a.status != http.StatusCreated {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if got := w.b.Status(t.Context()).Records; got != before+1 {
		t.Errorf("%d records, and %d before", got, before)
	}
	if a := call(other, "/revocations", map[string]string{"session": "def"}, "key number 3"); a.status != http.StatusCreated || a.header.Get("Idempotency-Replayed") != "" {
		t.Errorf("somebody else's key of the same name: %d %s", a.status, a.body)
	}
}

// Pages follow one another without gap or repetition.
func TestAdminPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	root := w.signedIn("root")
	for range 7 {
		w.leased()
	}
	for path, want := range map[string]int{"/clients": len(w.reg.Clients), "/issuers": len(w.reg.Issuers), "/mappings": 3, "/leases": 7, "/sessions": -1} {
		seen, cursor, pages := map[string]bool{}, "", 0
		for {
			a, err := w.ask(root, "GET", path+"?limit=2&cursor="+url.QueryEscape(cursor), nil)
			if err != nil || a.status != 200 {
				t.Fatalf("%s: %d %s %v", path, a.status, a.body, err)
			}
			var list struct {
				Items []map[string]any
				Next  string
			}
			if err := json.Unmarshal(a.body, &list); err != nil {
				t.Fatal(err)
			}
			for _, item := range list.Items {
				key := fmt.Sprint(item["id"], item["client"])
				if seen[key] {
					t.Errorf("%s: %s is there twice", path, key)
				}
				seen[key] = true
			}
			if pages++; len(list.Items) > 2 || list.Next == "" || pages > 20 {
				break
			}
			cursor = list.Next
		}
		if want >= 0 && len(seen) != want || len(seen) == 0 {
			t.Errorf("%s: %d items on %d pages, want %d", path, len(seen), pages, want)
		}
	}
	a, _ := w.ask(root, "GET", "/leases?subject="+url.QueryEscape("https://idp.test#alice")+"&client=files-mcp&provider=code", nil)
	if n := strings.Count(string(a.body), `"provider":"code"`); n != 7 {
		t.Errorf("alice's leases: %d in %s", n, a.body)
	}
	if a, _ := w.ask(root, "GET", "/leases?subject="+url.QueryEscape("https://idp.test#bob"), nil); string(a.body) != "{\"items\":[]}\n" {
		t.Errorf("bob's leases: %s", a.body)
	}
	id := w.leased()
	if a, _ := w.ask(root, "GET", "/leases/"+id, nil); strings.Contains(string(a.body), "handle") {
		t.Errorf("a lease with its handle: %s", a.body)
	}
	kept := must(w.store.Lease(t.Context(), id))(t)
	one, many := must(w.b.Lease(t.Context(), id))(t), must2(w.b.Leases(t.Context(), broker.LeaseFilter{}, "", 100))(t)
	if len(kept.Handle) == 0 || one.Handle != nil || slices.ContainsFunc(many, func(l *broker.Lease) bool { return l.Handle != nil }) {
		t.Error("a lease with its handle")
	}
}

// Without administrators in the configuration nobody gets in over the network.
func TestWithoutAdministrators(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{config: func(c *api.Config) { c.Admin = nil }})
	for _, path := range []string{"/admin/v1/status", "/login", "/login/start", "/login/callback"} {
		if a := w.get(path); a.status != http.StatusNotFound {
			t.Errorf("%s: %d", path, a.status)
		}
	}
	if a, _ := w.ask("", "GET", "/status", nil); a.status != http.StatusOK {
		t.Errorf("the socket: %d %s", a.status, a.body)
	}
}

// unread are switches that cannot be read for a while.
type unread struct {
	broker.SwitchStore
	down atomic.Bool
}

func (u *unread) LoadSwitches(ctx context.Context) (broker.Switches, int, error) {
	if u.down.Load() {
		return broker.Switches{}, 0, errors.New(inside)
	}
	return u.SwitchStore.LoadSwitches(ctx)
}

// Who is turned off at one replica is refused at the others as soon as the feed says so,
// also where the switches cannot be read; and after a restart.
func TestATurnedOffClientElsewhere(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	slow := &unread{SwitchStore: w.switches}
	// Replicas have registries of their own.
	judge := func() *broker.Judge {
		r := w.reg
		own := must(broker.NewRegistry(w.self, slices.Collect(maps.Values(r.Clients)), slices.Collect(maps.Values(r.Agents)), slices.Collect(maps.Values(r.Issuers)), r.Providers))(t)
		return broker.NewJudge(own, w.b.Judge().Policy())
	}
	elsewhere := w.another(t, "b", func(d *broker.Deps) { d.Switches, d.Judge = slow, judge() })
	ask := func(server string) *answer {
		form := w.asFilesMCP(url.Values{"grant_type": {broker.ClientCredentials}, "resource": {mcp}, "scope": {"files:read"}})
		return w.sendTo(t, server, "/oauth2/token", form)
	}
	w.granted(t, "before", ask(elsewhere))
	slow.down.Store(true)
	if a, _ := w.ask("", "PATCH", "/clients/files-mcp", map[string]any{"disabled": true}); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	eventually(t, "the other replica refuses it", func() bool { return ask(elsewhere).status == http.StatusUnauthorized })
	w.granted(t, "another client", w.sendTo(t, elsewhere, "/oauth2/token", w.assertedForm(w.assertion(nil))))
	restarted := w.another(t, "c", func(d *broker.Deps) { d.Switches, d.Judge = w.switches, judge() })
	if a := ask(restarted); a.status != http.StatusUnauthorized {
		t.Errorf("after a restart: %d %s", a.status, a.body)
	}
}

// actingForItself adds a client that may operate, and returns a token of its own.
func (w *world) actingForItself(t testing.TB, c *broker.Client) string {
	t.Helper()
	own := must(broker.NewRegistry(w.self, append(slices.Collect(maps.Values(w.reg.Clients)), c), slices.Collect(maps.Values(w.reg.Agents)), slices.Collect(maps.Values(w.reg.Issuers)), w.reg.Providers))(t)
	w.reg.Clients[c.ID] = own.Clients[c.ID]
	texts := []string{strings.ReplaceAll(adminYAML, "SELF", w.self) + "  - allow: [operate]\n    to: {clients: [local]}\n", filesYAML, apiYAML}
	if err := w.b.SetPolicy(t.Context(), w.policy(texts...)); err != nil {
		t.Fatal(err)
	}
	issued, err := w.b.Exchange(t.Context(), &broker.ExchangeRequest{GrantType: broker.ClientCredentials, Client: c, Resources: []string{w.self + "/admin/v1"}, Scope: "operate"})
	if err != nil {
		t.Fatal(err)
	}
	return issued.Token.Reveal()
}
