package api_test

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stint-dev/stint/audit"
)

// canary is in every text of a foreign token that may name a person.
const canary = "Zanzibar"

// about is a token whose every name is a canary's, with changes.
func (w *target) about(typ string, change map[string]any) string {
	w.t.Helper()
	all := map[string]any{
		"sub": canary + "@acme.test", "email": canary + "@mail.test", "name": canary, "preferred_username": canary,
		"act": map[string]any{"sub": canary + "-acts", "act": map[string]any{"sub": canary + "-acted"}},
	}
	for name, v := range change {
		all[name] = v
	}
	return w.token("idp", typ, all)
}

// TestAttackPersonalDataInReasons refuses tokens that are full of names for every
// reason that there is, and then looks for the names: in the log, in the journal as
// it is on the disk, in the store, and in what callers are told.
func TestAttackPersonalDataInReasons(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	good := map[string]any{"act": nil}
	with := func(change map[string]any) map[string]any {
		all := map[string]any{"act": nil}
		for name, v := range change {
			all[name] = v
		}
		return all
	}
	at := "at+jwt"
	hers := w.granted(t, "a token of hers", w.exchange(w.about(at, good)))
	mine := w.granted(t, "another", w.exchangeAs("desktop", w.about(at, good), "access_token", url.Values{"scope": {"files:mine"}}))
	own := w.granted(t, "a client's own", w.itself())
	desktop := func(typ, kind string, change map[string]any) func() *answer {
		return func() *answer { return w.exchangeAs("desktop", w.about(typ, change), kind, nil) }
	}
	acting := func(actor string) func() *answer {
		return func() *answer {
			return w.exchangeAs("desktop", w.about(at, good), "access_token", url.Values{"actor_token": {actor}, "actor_token_type": {access}})
		}
	}
	asks := func(change url.Values) func() *answer {
		return func() *answer { return w.exchangeAs("desktop", w.about(at, good), "access_token", change) }
	}
	tries := map[string]struct {
		try    func() *answer
		reason string
	}{
		"another type":                       {desktop("JWT", "access_token", map[string]any{"nonce": "n", "act": nil}), "declared access_token"},
		"too old":                            {desktop(at, "access_token", with(map[string]any{"iat": "-61m", "auth_time": "-61m"})), "max_subject_age"},
		"a login that is too old":            {desktop(at, "access_token", with(map[string]any{"auth_time": "-721h"})), "max_session_age"},
		"a login of no known time":           {desktop(at, "access_token", with(map[string]any{"auth_time": nil})), "max_session_age"},
		"expired":                            {desktop(at, "access_token", with(map[string]any{"exp": "-1m"})), "expired"},
		"held by an actor that nobody names": {desktop(at, "access_token", nil), "no agent or client names"},
		"issued to nobody that is named":     {desktop(at, "access_token", with(map[string]any{"client_id": canary + "-app"})), "no agent or client names"},
		"for a person":                       {desktop(at, "access_token", with(map[string]any{"aud": []string{canary, "https://" + canary + ".test"}})), "audience"},
		"an ID token for a person":           {desktop("JWT", "id_token", map[string]any{"nonce": "n", "act": nil, "client_id": nil, "aud": canary + "-app"}), "no agent or client names"},
		"an ID token for several":            {desktop("JWT", "id_token", map[string]any{"nonce": "n", "act": nil, "azp": "desktop-at-idp", "client_id": nil, "aud": []string{canary, canary + "2"}}), "audience"},
		"may_act":                            {desktop(at, "access_token", with(map[string]any{"may_act": map[string]any{"sub": canary + "-may"}})), "may_act"},
		"may_act of an issuer":               {desktop(at, "access_token", with(map[string]any{"may_act": map[string]any{"sub": canary + "-may", "iss": "https://" + canary + ".test"}})), "may_act"},
		"control characters":                 {desktop(at, "access_token", with(map[string]any{"sub": canary + "\x00\x1b[2J"})), "cannot be printed"},
		"a client without consent":           {func() *answer { return w.exchangeAs("files-mcp", w.about(at, good), "access_token", nil) }, "no consent"},
		"ours, of another client":            {func() *answer { return w.exchangeAs("files-api", hers, "access_token", nil) }, "not to or for client"},
		"a person as the actor":              {acting(w.about(at, map[string]any{"sub": canary + "-other", "act": nil})), "is no actor"},
		"the subject as the actor":           {acting(w.about(at, good)), "is no actor"},
		"a person's token as the actor's":    {acting(hers), "not of the client"},
		"another client as the actor":        {acting(own), "not of the client"},
		"an actor for a person":              {acting(w.about(at, map[string]any{"sub": "robot", "act": nil, "aud": canary})), "audience"},
		"no target":                          {asks(url.Values{"resource": nil}), "resource or audience is missing"},
		"an unknown target":                  {asks(url.Values{"resource": {"https://nowhere.test/"}}), "no mapping"},
		"no scope":                           {asks(url.Values{"scope": nil}), "no scope"},
		"an unknown scope":                   {asks(url.Values{"scope": {"files:nope"}}), "unknown_scope"},
		"no rule":                            {desktop(at, "access_token", with(map[string]any{"groups": []string{canary}})), "no_rule"},
		"what cannot stand in a grant": {func() *answer {
			return w.exchangeAs("files-mcp", mine, "access_token", url.Values{
				"resource": {"fake://code/web"}, "scope": {"files:mine"},
				"authorization_details": {`[{"type":"mcp_tool_call","tool":"my_repo","arguments":{"repo":"` + canary + `*"}}]`},
			})
		}, "characters that cannot stand in a grant"},
	}
	for name, tc := range tries {
		a := tc.try()
		events := w.recorded(a)
		if a.status != http.StatusBadRequest || len(events) != 1 || events[0].Outcome != audit.Refused || !strings.Contains(events[0].Reason, tc.reason) {
			t.Errorf("%s: %d %s, recorded as %+v", name, a.status, a.body, events)
		}
		if strings.Contains(string(a.body), canary) {
			t.Errorf("%s: the caller is told %s", name, a.body)
		}
	}
	w.operate(t, map[string]string{"subject": "https://idp.test#" + canary + "@acme.test", "reason": "she left"})
	w.refused(t, "revoked", w.exchange(w.about(at, good)), badSubject("revoked"))
	w.post("/oauth2/revoke", w.asFilesMCP(url.Values{"token": {hers}}))
	w.introspect("files-api", hers)

	sinks := map[string]string{"the log": w.logs.String(), "the journal": w.journalled()}
	for _, file := range []string{"store.db", "subjects.db"} {
		sinks[file] = string(must(os.ReadFile(filepath.Join(w.dir, file)))(t))
	}
	segments := must(filepath.Glob(filepath.Join(w.dir, "journal", "*")))(t)
	for _, file := range segments {
		sinks[filepath.Base(file)] = string(must(os.ReadFile(file))(t))
	}
	if len(segments) == 0 {
		t.Error("there is no journal on the disk")
	}
	for name, text := range sinks {
		if i := strings.Index(strings.ToLower(text), strings.ToLower(canary)); i >= 0 {
			t.Errorf("%s names a person: %q", name, text[max(0, i-300):min(len(text), i+100)])
		}
	}
	if n := strings.Count(sinks["the log"], `"reason"`); n < len(tries) {
		t.Errorf("the log has %d reasons of %d refusals", n, len(tries))
	}
}

// What is left out of a reason is in the record, for whoever has the person's key.
func TestTheRecordSealsWhatItsReasonsLeaveOut(t *testing.T) {
	t.Parallel()
	w := newTarget(t, options{})
	a := w.exchange(w.about("at+jwt", map[string]any{"act": nil, "may_act": map[string]any{"sub": canary + "-may"}}))
	events := w.recorded(a)
	if len(events) != 1 || len(events[0].Personal) == 0 {
		t.Fatalf("%d %s, recorded as %+v", a.status, a.body, events)
	}
	key := must(w.subjects.SubjectKey(t.Context(), events[0].Party.Subject))(t)
	p := must(audit.Reveal(&events[0], key))(t)
	if p.Subject != "https://idp.test#"+canary+"@acme.test" || !strings.Contains(p.Detail, canary+"-may") {
		t.Errorf("%+v", p)
	}
}
