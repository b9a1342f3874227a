package api_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

// issuedClaims are the claims of a token of ours.
type issuedClaims struct {
	Issuer   string            `json:"iss"`
	Subject  string            `json:"sub"`
	Audience string            `json:"aud"`
	ClientID string            `json:"client_id"`
	ID       string            `json:"jti"`
	IssuedAt int64             `json:"iat"`
	Expires  int64             `json:"exp"`
	Scope    string            `json:"scope"`
	Act      json.RawMessage   `json:"act"`
	Details  []map[string]any  `json:"authorization_details"`
	Stint    broker.StintClaim `json:"stint"`
}

func claimsOf(t testing.TB, token string) (c issuedClaims) {
	t.Helper()
	if err := json.Unmarshal([]byte(payloadOf(t, token)), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func stintOf(t testing.TB, token string) broker.StintClaim {
	t.Helper()
	return claimsOf(t, token).Stint
}

func raw(text string) json.RawMessage { return json.RawMessage(text) }

// Times are plain numbers of seconds in a year that can be, and hold with a skew
// of 30 seconds, for every kind of token that comes in.
func TestAttackTimes(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	now := w.clock.Now()
	for name, tc := range map[string]struct {
		change map[string]any
		reason string
		alsoBy bool // whether an assertion is refused for it, too
	}{
		"exp in milliseconds":        {map[string]any{"exp": now.Add(time.Hour).UnixMilli()}, "no time between 1970 and 9999", true},
		"exp negative":               {map[string]any{"exp": -1}, "no time between 1970 and 9999", true},
		"exp zero":                   {map[string]any{"exp": 0}, "no time between 1970 and 9999", true},
		"exp a text":                 {map[string]any{"exp": raw(`"1893589200"`)}, "no number of seconds", true},
		"exp 1e300":                  {map[string]any{"exp": raw("1e300")}, "no number of seconds", true},
		"exp with an exponent":       {map[string]any{"exp": raw("1.8935892e9")}, "no number of seconds", true},
		"exp null":                   {map[string]any{"exp": raw("null")}, "no number of seconds", true},
		"exp true":                   {map[string]any{"exp": true}, "no number of seconds", true},
		"exp a list":                 {map[string]any{"exp": raw("[1893589200]")}, "no number of seconds", true},
		"exp beyond 64 bits":         {map[string]any{"exp": raw("18446744073709551616")}, "no number of seconds", true},
		"no exp":                     {map[string]any{"exp": nil}, "no claim exp", true},
		"exp in two years":           {map[string]any{"exp": now.Add(2 * 365 * 24 * time.Hour).Unix()}, "more than", true},
		"exp at the end of the skew": {map[string]any{"exp": "-30s", "iat": "-1m"}, "expired", true},
		"nbf beyond the skew":        {map[string]any{"nbf": "+31s"}, "not valid yet", true},
		"nbf in milliseconds":        {map[string]any{"nbf": now.UnixMilli()}, "nbf", true},
		"iat beyond the skew":        {map[string]any{"iat": "+31s"}, "in the future", true},
		"iat a text":                 {map[string]any{"iat": raw(`"1893585600"`)}, "iat", true},
		"no iat":                     {map[string]any{"iat": nil}, "no claim iat", false},
		"exp before iat":             {map[string]any{"iat": "+20s", "exp": "+10s"}, "before it was issued", true},
		"iat long ago":               {map[string]any{"iat": "-61m", "auth_time": nil}, "max_subject_age", false},
		"auth_time in the future":    {map[string]any{"auth_time": "+31s"}, "signed in after", true},
		"auth_time long ago":         {map[string]any{"auth_time": "-721h"}, "max_session_age", false},
	} {
		w.refused(t, "subject: "+name, w.exchange(w.token("idp", "at+jwt", tc.change)), badSubject(tc.reason))
		robot := map[string]any{"sub": "robot", "sid": "r"}
		for n, v := range tc.change {
			robot[n] = v
		}
		actor := url.Values{"actor_token": {w.token("idp", "at+jwt", robot)}, "actor_token_type": {access}}
		w.refused(t, "actor: "+name, w.exchangeAs("desktop", w.token("idp", "at+jwt", nil), "access_token", actor), badActor(tc.reason))
		if tc.alsoBy {
			w.refused(t, "assertion: "+name, w.asserted(w.assertion(tc.change)), badLogin(tc.reason))
		}
	}
	// Within the skew a token is good, but there is no time left to give.
	w.refused(t, "expired within the skew", w.exchange(w.token("idp", "at+jwt", map[string]any{"exp": "-29s"})), badSubject("it expires now"))
	w.refused(t, "expiring now", w.exchange(w.token("idp", "at+jwt", map[string]any{"exp": "+0s"})), badSubject("it expires now"))
	for name, change := range map[string]map[string]any{
		"a second left": {"exp": "+1s"}, "nbf and iat within the skew": {"nbf": "+30s", "iat": "+30s"},
		"a fraction": {"exp": raw("1893589200.9")}, "just young enough": {"iat": "-60m"},
	} {
		w.granted(t, name, w.exchange(w.token("idp", "at+jwt", change)))
	}
	for name, change := range map[string]map[string]any{"without iat": {"iat": nil}, "expired within the skew": {"exp": "-29s", "iat": "-1m"}} {
		w.granted(t, "an assertion "+name, w.asserted(w.assertion(change)))
	}
}

// A clock that jumps back makes nothing valid for longer than it was said to be.
func TestAttackClockThatJumpsBack(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	before := w.token("idp", "at+jwt", map[string]any{"iat": "+0s"})
	w.clock.move(-2 * time.Minute)
	w.settle()
	w.refused(t, "of the future", w.exchange(before), badSubject("issued in the future"))
	after := claimsOf(t, w.granted(t, "of now", w.exchange(w.token("idp", "at+jwt", map[string]any{"exp": "+1m"}))))
	if left := after.Expires - w.clock.Now().Unix(); left > 60 {
		t.Errorf("what comes of it lives %d seconds", left)
	}
}

// Whom a token is for is compared letter by letter, and what we make is for one.
func TestAttackAudiences(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	wrong := map[string]any{
		"a prefix": self[:len(self)-1], "more behind": self + ".evil.test", "a slash behind": self + "/", "a path behind": self + "/oauth2/token", "in capitals": strings.ToUpper(self),
		"a capital": "https://Stint.test", "a port": self + ":443", "another scheme": "http://stint.test", "no scheme": "stint.test",
		"userinfo": "https://stint.test@evil.test", "a user": "https://x@stint.test", "a fragment": self + "#x", "a query": self + "?", "a dot behind": self + ".",
		"a space behind": self + " ", "escaped": "https://st%69nt.test", "a wildcard": "*", "empty": "", "somebody else": "https://other.test",
		"a list of others": []string{"https://other.test", self + "/"}, "both in one text": self + " https://other.test",
		"the agent": "desktop-at-idp", "a client of ours": "desktop", "the target": "https://api.test/files",
	}
	for name, aud := range wrong {
		w.refused(t, name, w.exchange(w.token("idp", "at+jwt", map[string]any{"aud": aud})), badSubject("audience"))
	}
	for name, aud := range map[string]any{
		"none": nil, "an object": map[string]any{"a": self}, "a list in a list": []any{[]string{self}}, "a number": 7, "null": raw("null"), "a list with null": []any{self, nil},
		"an empty list": []string{}, "true": true, "17 of them": strings.Split(strings.Repeat(self+" ", 16)+self, " "),
	} {
		w.refused(t, name, w.exchange(w.token("idp", "at+jwt", map[string]any{"aud": aud})), badSubject("aud"))
	}
	// A foreign token may be for others, too. What we make of it is not.
	both := w.granted(t, "us and others", w.exchange(w.token("idp", "at+jwt", map[string]any{"aud": []string{"https://other.test", self}})))
	if got := claimsOf(t, both).Audience; got != mcp {
		t.Errorf("what we issue is for %q", got)
	}
	for name, aud := range wrong { // of an assertion there is no "us and others"
		w.refused(t, "assertion: "+name, w.asserted(w.assertion(map[string]any{"aud": aud})), badLogin("assertion for"))
		w.refused(t, "assertion: us and "+name, w.asserted(w.assertion(map[string]any{"aud": []any{self, aud}})), badLogin("assertion"))
	}
	// An ID token is for its client, and no access token, whatever it is called.
	id := w.token("idp", "JWT", map[string]any{"aud": "desktop-at-idp", "nonce": "n"})
	w.refused(t, "an ID token as an access token", w.exchangeAs("desktop", id, "access_token", nil), badSubject("declared access_token"))
	w.refused(t, "an ID token of another client", w.exchangeAs("files-mcp", id, "id_token", nil), badSubject("audience"))
	w.granted(t, "an ID token", w.exchangeAs("desktop", id, "id_token", nil))
	worn := w.token("idp", "at+jwt", map[string]any{"aud": "desktop-at-idp", "nonce": "n"})
	w.refused(t, "an ID token dressed as an access token", w.exchange(worn), badSubject("an ID token in the place of another"))
}

// What a token asks to be for is compared in the same way.
func TestAttackTargets(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	badTarget := func(reason string) refusal { return refusal{400, "invalid_target", "unknown target", reason} }
	reasons := map[string]string{"a space before": "no URI", "a backslash": "no URI", "no URI": "no absolute URI", "a fragment": "fragment", "userinfo": "names a user", "another client's": "no target of client desktop", "an upstream": "no target of client desktop"}
	for name, resource := range map[string]string{
		"a slash behind": mcp + "/", "in capitals": strings.ToUpper(mcp), "a capital": "https://Mcp.test/files", "a port": "https://mcp.test:443/files", "a prefix": "https://mcp.test",
		"more behind": mcp + "/x", "escaped": "https://mcp.test/file%73", "dots": "https://mcp.test/x/../files", "userinfo": "https://x@mcp.test/files", "a query": mcp + "?x",
		"a fragment": mcp + "#", "another scheme": "http://mcp.test/files", "a space before": " " + mcp, "a backslash": `https://mcp.test\files`, "no URI": "files",
		"another client's": "https://api.test/files", "ourselves": self, "an upstream": "fake://code/web", "nobody's": "https://nowhere.test/",
	} {
		reason, known := reasons[name]
		if !known {
			reason = "no mapping and no provider has this name"
		}
		form := w.form()
		form.Set("resource", resource)
		w.refused(t, name, w.post("/oauth2/token", form), badTarget(reason))
		form.Del("resource")
		form.Set("audience", resource)
		w.refused(t, name+" as an audience", w.post("/oauth2/token", form), badTarget(reason))
	}
	for provider, reason := range map[string]string{"code": "no target of client desktop", "db": "no target of client desktop", "Code": "no absolute URI", "nobody": "no absolute URI"} {
		form := w.form()
		form.Del("resource")
		form.Set("audience", provider)
		w.refused(t, "the upstream "+provider, w.post("/oauth2/token", form), badTarget(reason))
	}
	form := w.form()
	form.Del("resource")
	w.refused(t, "none", w.post("/oauth2/token", form), refusal{400, "invalid_target", "say for what: resource or audience is missing", "missing"})
}

// act is history that its issuer tells of its own: bounded, and rebuilt by us from
// nothing but names.
func TestAttackActs(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	nested := func(depth int) any {
		var act map[string]any
		for range depth {
			outer := map[string]any{"sub": "desktop-at-idp"}
			if act != nil {
				outer["act"] = act
			}
			act = outer
		}
		return act
	}
	for name, tc := range map[string]struct {
		act    any
		reason string
	}{
		"eleven of them":           {nested(11), "act: more than 10 actors"},
		"five hundred":             {raw(strings.Repeat(`{"sub":"x","act":`, 500) + "1" + strings.Repeat("}", 500)), "nested"},
		"ten, and one more by us":  {nested(10), "a chain of more than 10 actors"},
		"a text":                   {"desktop-at-idp", "act"},
		"a list":                   {[]any{map[string]any{"sub": "desktop-at-idp"}}, "act"},
		"null":                     {raw("null"), "act"},
		"a number":                 {1, "act"},
		"of 9 kB":                  {map[string]any{"sub": "desktop-at-idp", "x": strings.Repeat("x", 9<<10)}, "more than 8192 bytes"},
		"without a subject":        {map[string]any{"client_id": "desktop-at-idp"}, "without sub"},
		"with an empty subject":    {map[string]any{"sub": ""}, "without sub"},
		"with a subject twice":     {raw(`{"sub":"x","sub":"desktop-at-idp"}`), "duplicate"},
		"that says it is ours":     {map[string]any{"iss": self, "sub": "desktop"}, "an actor of issuer"},
		"ours deep down":           {map[string]any{"sub": "desktop-at-idp", "act": map[string]any{"iss": self, "sub": "files-mcp"}}, "an actor of issuer"},
		"of another issuer":        {map[string]any{"iss": "https://ci.test", "sub": "x"}, "an actor of issuer"},
		"that nobody configured":   {map[string]any{"sub": "stranger"}, "no agent or client names"},
		"called as a client of us": {map[string]any{"sub": "desktop"}, "no agent or client names"},
		"within that is no object": {map[string]any{"sub": "desktop-at-idp", "act": "x"}, "act"},
	} {
		w.refused(t, name, w.exchange(w.token("idp", "at+jwt", map[string]any{"act": tc.act})), badSubject(tc.reason))
	}
	// What stands beside the names means nothing, and does not come along; a party
	// that is there twice is no circle.
	got := claimsOf(t, w.granted(t, "an act with more in it", w.exchange(w.token("idp", "at+jwt", map[string]any{"act": map[string]any{
		"sub": "desktop-at-idp", "scope": "files:write", "aud": "https://api.test/files", "exp": 1, "may_act": map[string]any{"sub": "x"},
		"act": map[string]any{"sub": "helper-at-idp", "act": map[string]any{"sub": "desktop-at-idp", "groups": []string{"maintainers"}}},
	}}))))
	want := `{"iss":"https://stint.test","sub":"desktop","act":{"iss":"https://idp.test","sub":"desktop-at-idp","act":{"iss":"https://idp.test","sub":"helper-at-idp","act":{"iss":"https://idp.test","sub":"desktop-at-idp"}}}}`
	if string(got.Act) != want || got.Scope != "files:read" || got.Audience != mcp {
		t.Errorf("act %s\nwant %s\n%+v", got.Act, want, got)
	}
	w.granted(t, "nine actors", w.exchange(w.token("idp", "at+jwt", map[string]any{"act": nested(9)})))
}

// Our own claim and details count in tokens of ours alone.
func TestAttackClaimsThatAreOurs(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	got := claimsOf(t, w.granted(t, "a foreign token", w.exchange(w.token("idp", "at+jwt", map[string]any{
		"stint":                 map[string]any{"v": 1, "pos": "9999999999999.9", "ses": "mine", "agt": "gateway", "tool": "read_file", "clm": map[string]string{"repository": "acme/web"}},
		"authorization_details": []any{map[string]any{"type": "fake", "repositories": "*"}}, "scope": "files:write",
	}))))
	if s := got.Stint; s.Session == "mine" || s.Pos == "9999999999999.9" || s.Agent != "desktop" || s.Tool != "" || s.Claims != nil || got.Details != nil || got.Scope != "files:read" {
		t.Errorf("a foreign issuer wrote %+v", got)
	}
}
