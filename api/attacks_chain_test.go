package api_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// held is what somebody in a chain of exchanges has.
type held struct {
	token  string
	claims issuedClaims
}

// worth is what scopes for one resource are worth at another, by the mapping.
var worth = map[string]map[string][]string{
	mcp:                      {"files:read": {"files:read"}, "files:write": {"files:write"}, "files:mine": {"files:mine"}},
	"https://api.test/files": {"files:read": {"read"}, "files:write": {"read", "write"}},
}

// grew says in what a token is more than the one that it was made of.
func grew(parent, child issuedClaims) string {
	var may []string
	for s := range strings.FieldsSeq(parent.Scope) {
		may = append(may, worth[child.Audience][s]...)
	}
	for s := range strings.FieldsSeq(child.Scope) {
		if !slices.Contains(may, s) {
			return "scope " + s
		}
	}
	p, c := parent.Stint, child.Stint
	switch {
	case child.Scope == "":
		return "no scope, which some read as all"
	case child.Expires > parent.Expires:
		return fmt.Sprintf("expiry by %d seconds", child.Expires-parent.Expires)
	case child.Subject != parent.Subject:
		return "subject " + child.Subject
	case child.Audience != mcp && child.Audience != "https://api.test/files":
		return "audience " + child.Audience
	case p.Tool != "" && c.Tool != p.Tool, p.Arguments != "" && c.Arguments != p.Arguments:
		return "tool call " + c.Tool + " " + c.Arguments
	case p.Tool != "" && len(child.Details) != 1:
		return "details"
	case c.Session != p.Session || c.Root == nil || *c.Root != *p.Root:
		return "session"
	case len(c.Via) != len(p.Via)+1 || c.Via[len(p.Via)].ID != parent.ID || len(c.Via) >= 10:
		return "lineage"
	case depth(child.Act) > 10 || depth(child.Act) < depth(parent.Act):
		return "chain of actors " + string(child.Act)
	}
	return ""
}

func depth(act json.RawMessage) int {
	var a struct {
		Act json.RawMessage `json:"act"`
	}
	if len(act) == 0 || json.Unmarshal(act, &a) != nil {
		return 0
	}
	return 1 + depth(a.Act)
}

// However a token is exchanged, and exchanged again, and whatever is asked on the
// way, nothing grows: scopes, audience, expiry, details, lineage, or what an
// upstream grants for it.
func TestAttackNothingGrowsHoweverOften(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	alice := []string{"engineering"}
	all := []string{"files:read", "files:write", "files:mine", "files:list", "read", "write"}
	made, refused, vended := 0, 0, 0
	for chain := range 12 {
		if chain%2 == 1 {
			alice = []string{"engineering", "maintainers"}
		}
		subject := w.token("idp", "at+jwt", map[string]any{"groups": alice, "exp": fmt.Sprintf("+%ds", 20+rnd.IntN(600)), "sid": fmt.Sprint("s", chain)})
		first := w.granted(t, "the first", w.exchangeAs("desktop", subject, "access_token", url.Values{"scope": {pick("files:read", "files:read files:mine")}}))
		holders := []held{{first, claimsOf(t, first)}}
		for range 40 {
			from := holders[rnd.IntN(len(holders))]
			resource := pick(mcp, mcp, "https://api.test/files", "fake://code/web", "fake://code/docs", "fake://code/secrets")
			asked := map[string]bool{}
			if own := strings.Fields(from.claims.Scope); rnd.IntN(2) == 0 { // no more than it holds
				asked[own[rnd.IntN(len(own))]] = true
			} else {
				for range 1 + rnd.IntN(3) {
					asked[all[rnd.IntN(len(all))]] = true
				}
			}
			if resource == "https://api.test/files" && rnd.IntN(2) == 0 {
				asked = map[string]bool{"read": true}
			}
			change := url.Values{"resource": {resource}, "scope": {strings.Join(slices.Collect(maps.Keys(asked)), " ")}}
			switch rnd.IntN(6) {
			case 0:
				change["authorization_details"] = []string{`[{"type":"mcp_tool_call","tool":"` + pick("read_file", "my_repo", "write_file") + `","arguments":{"repo":"` + pick("web", "docs") + `"}}]`}
				if rnd.IntN(2) == 0 {
					change["scope"] = nil
				}
			case 1:
				change["requested_token_type"] = []string{pick(access, tokenType("jwt"))}
			}
			a := w.exchangeAs("files-mcp", from.token, "access_token", change)
			switch {
			case a.status == 400:
				refused++
			case strings.Contains(string(a.body), `"lease_id"`):
				vended++
				w.within(t, from.claims, a)
			default:
				child := held{token: w.granted(t, "a hop", a)}
				child.claims = claimsOf(t, child.token)
				if more := grew(from.claims, child.claims); more != "" {
					t.Fatalf("seed %d: asked %v: %s\nparent %+v\nchild %+v", seed, change, more, from.claims, child.claims)
				}
				made++
				if child.claims.Audience == mcp {
					holders = append(holders, child)
				}
			}
		}
		w.clock.move(time.Duration(rnd.IntN(3000)) * time.Millisecond)
		w.settle()
	}
	t.Logf("%d made, %d refused, %d vended", made, refused, vended)
	if made < 50 || refused < 100 || vended < 15 { // chance decides: about 100, 300 and 50
		t.Errorf("seed %d: %d made, %d refused, %d vended: that shows little", seed, made, refused, vended)
	}
}

// within checks that a credential is no more than the mapping says that the
// token's scopes are worth, and ends with it.
func (w *target) within(t testing.TB, parent issuedClaims, a *answer) {
	t.Helper()
	var got struct {
		Expires time.Time `json:"expires_at"`
		Details []struct {
			Repositories []string          `json:"repositories"`
			Permissions  map[string]string `json:"permissions"`
		} `json:"authorization_details"`
	}
	if err := json.Unmarshal(a.body, &got); err != nil || len(got.Details) == 0 {
		t.Fatalf("%v: %s", err, a.body)
	}
	if got.Expires.Unix() > parent.Expires {
		t.Errorf("a credential outlives its token by %d seconds", got.Expires.Unix()-parent.Expires)
	}
	for _, d := range got.Details {
		for _, r := range d.Repositories {
			if r != "web" && r != "docs" {
				t.Errorf("repository %s for scopes %q", r, parent.Scope)
			}
		}
		for name, level := range d.Permissions {
			write := strings.Contains(parent.Scope, "files:write")
			if name != "contents" || level != "read" && !write {
				t.Errorf("%s: %s for scopes %q", name, level, parent.Scope)
			}
		}
	}
}
