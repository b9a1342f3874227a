package api_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/vault"
)

// This file and its neighbours of the name attacks_* play known attacks against a
// whole server. docs/attacks.md says which attack is held by which test.

// target is a server under attack. It reads the record as it grows.
type target struct {
	*world
	t      testing.TB
	seen   uint64
	record map[string][]audit.Event // by request
}

func newTarget(t testing.TB, o options) *target {
	t.Helper()
	o.limits = unlimited
	return &target{world: newWorld(t, o), t: t, record: map[string][]audit.Event{}}
}

// recorded returns the events about the request that an answer is to.
func (w *target) recorded(a *answer) []audit.Event {
	w.t.Helper()
	w.flush()
	err := audit.ReadJournal(filepath.Join(w.dir, "journal"), w.seen+1, func(f audit.Frame, seq uint64) error {
		w.seen = seq
		if f.Type != audit.FrameEvent {
			return nil
		}
		var e audit.Event
		if err := json.Unmarshal(f.Payload, &e); err != nil {
			return err
		}
		w.record[e.Request] = append(w.record[e.Request], e)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.record[a.header.Get("X-Request-Id")]
}

// refusal is what an attack has to come to.
type refusal struct {
	status             int
	error, description string
	reason             string // part of the record's reason; empty: it is no exchange, and not recorded
}

func badSubject(reason string) refusal {
	return refusal{400, "invalid_request", "subject token is not accepted", reason}
}

func badActor(reason string) refusal {
	return refusal{400, "invalid_request", "actor token is not accepted", reason}
}

func badLogin(reason string) refusal {
	return refusal{401, "invalid_client", "client authentication failed", reason}
}

func badScope(reason string) refusal {
	return refusal{400, "invalid_scope", "not all that was asked for is granted", reason}
}

func badForm(text string) refusal { return refusal{400, "invalid_request", text, text} }

// refused checks the answer to an attack, and that it is recorded once, with the
// reason that the caller is not told.
func (w *target) refused(t testing.TB, what string, a *answer, want refusal) {
	t.Helper()
	var got struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
		Token       any    `json:"access_token"`
	}
	if err := json.Unmarshal(a.body, &got); err != nil || got.Token != nil {
		t.Errorf("%s: %d %s", what, a.status, a.body)
		return
	}
	if a.status != want.status || got.Error != want.error || got.Description != want.description {
		t.Errorf("%s: %d %s, want %d %s: %s", what, a.status, a.body, want.status, want.error, want.description)
		return
	}
	events := w.recorded(a)
	if want.reason == "" {
		if len(events) != 0 {
			t.Errorf("%s: recorded: %+v", what, events)
		}
		return
	}
	if len(events) != 1 {
		t.Errorf("%s: %d events, want one", what, len(events))
		return
	}
	e := events[0]
	if e.Kind != audit.KindExchange || e.Outcome != audit.Refused || e.Token != nil || e.Lease != nil || !strings.Contains(e.Reason, want.reason) {
		t.Errorf("%s: recorded as %s, %s, %q; want a refusal for %q", what, e.Kind, e.Outcome, e.Reason, want.reason)
	}
	if !strings.Contains(want.description, want.reason) && bytes.Contains(a.body, []byte(e.Reason)) {
		t.Errorf("%s: the caller is told what only the record should say: %s", what, a.body)
	}
}

// granted checks that what an attack was made of is accepted when nothing is wrong
// with it, and returns what was issued.
func (w *target) granted(t testing.TB, what string, a *answer) string {
	t.Helper()
	if a.status != 200 {
		events := w.recorded(a)
		t.Fatalf("%s, which nothing is wrong with: %d %s, recorded: %+v", what, a.status, a.body, events)
	}
	return issued(t, a)
}

// recordedAs checks that what an answer is to is recorded once, as a refusal of a
// kind and for a reason.
func (w *target) recordedAs(t testing.TB, what string, a *answer, kind audit.Kind, reason string) {
	t.Helper()
	events := w.recorded(a)
	if len(events) != 1 || events[0].Kind != kind || events[0].Outcome != audit.Refused || events[0].Code == "" || !strings.Contains(events[0].Reason, reason) {
		t.Errorf("%s: %d %s, recorded as %+v; want a refusal of the kind %s for %q", what, a.status, a.body, events, kind, reason)
	}
}

// send sends a body to the public listener.
func (w *target) send(path, contentType, body string, change func(*http.Request)) *answer {
	w.t.Helper()
	req := must(http.NewRequest(http.MethodPost, "http://"+w.public+path, strings.NewReader(body)))(w.t)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	req.SetBasicAuth("desktop", w.secret.Reveal())
	if change != nil {
		change(req)
	}
	a := w.doRequest(w.http, req)
	if problem := invariant(req, a); problem != "" {
		w.t.Errorf("%s: %d %s", problem, a.status, a.body)
	}
	return a
}

// exchangeAs posts a good exchange of a subject token by a client with a secret.
func (w *target) exchangeAs(client, subject, typ string, change url.Values) *answer {
	w.t.Helper()
	form := url.Values{
		"grant_type": {exchange}, "subject_token": {subject}, "subject_token_type": {tokenType(typ)},
		"resource": {mcp}, "scope": {"files:read"}, "client_id": {client}, "client_secret": {w.secret.Reveal()},
	}
	for name, values := range change {
		form[name] = values
	}
	if client != "files-mcp" { // the one that authenticates in the body
		form.Del("client_id")
		form.Del("client_secret")
	}
	return w.send("/oauth2/token", formType, form.Encode(), func(r *http.Request) {
		if r.Header.Del("Authorization"); client != "files-mcp" {
			r.SetBasicAuth(client, w.secret.Reveal())
		}
	})
}

// exchange posts a good exchange of a subject token by desktop.
func (w *target) exchange(subject string) *answer {
	w.t.Helper()
	return w.exchangeAs("desktop", subject, "access_token", nil)
}

// itself posts a request of files-mcp for itself.
func (w *target) itself() *answer {
	w.t.Helper()
	return w.post("/oauth2/token", w.asFilesMCP(url.Values{"grant_type": {broker.ClientCredentials}, "resource": {mcp}, "scope": {"files:read"}}))
}

// asserted posts an exchange by the gateway with an assertion.
func (w *target) asserted(assertion string) *answer {
	w.t.Helper()
	form := url.Values{
		"grant_type": {exchange}, "subject_token": {w.token("idp", "at+jwt", map[string]any{"client_id": "helper-at-idp"})},
		"subject_token_type": {access}, "resource": {mcp}, "scope": {"files:read"},
		"client_assertion_type": {assertionType}, "client_assertion": {assertion},
	}
	return w.send("/oauth2/token", formType, form.Encode(), func(r *http.Request) { r.Header.Del("Authorization") })
}

// introspect asks, as the resource that a token is for.
func (w *target) introspect(client, token string) *answer {
	w.t.Helper()
	form := url.Values{"token": {token}}
	if client == "files-mcp" {
		form = w.asFilesMCP(form)
	}
	return w.send("/oauth2/introspect", formType, form.Encode(), func(r *http.Request) {
		if r.Header.Del("Authorization"); client != "files-mcp" {
			r.SetBasicAuth(client, w.secret.Reveal())
		}
	})
}

// active checks what introspection says of a token.
func (w *target) active(t testing.TB, what, client, token string, want bool) {
	t.Helper()
	a := w.introspect(client, token)
	var got struct {
		Active *bool `json:"active"`
	}
	if err := json.Unmarshal(a.body, &got); err != nil || a.status != 200 || got.Active == nil || *got.Active != want {
		t.Errorf("%s: %d %s, want active %t", what, a.status, a.body, want)
	}
	if text := strings.TrimSpace(string(a.body)); !want && text != `{"active":false}` {
		t.Errorf("%s: more is said than that it is inactive: %s", what, text)
	}
}

const (
	formType      = "application/x-www-form-urlencoded"
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

func tokenType(name string) string { return "urn:ietf:params:oauth:token-type:" + name }

// forge writes a JWT as no honest issuer would: any header over any claims, and
// whatever sign makes of both.
func forge(t testing.TB, header, claims any, sign func(input string) []byte) string {
	t.Helper()
	part := func(v any) string {
		text, ok := v.(string)
		if !ok {
			text = string(must(json.Marshal(v))(t))
		}
		return base64.RawURLEncoding.EncodeToString([]byte(text))
	}
	input := part(header) + "." + part(claims)
	return input + "." + base64.RawURLEncoding.EncodeToString(sign(input))
}

// es256 signs as a key does.
func es256(t testing.TB, key *ecdsa.PrivateKey) func(string) []byte {
	return func(input string) []byte {
		t.Helper()
		sum := sha256.Sum256([]byte(input))
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		n := (key.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))...)
	}
}

// another starts a second server of the same installation, another replica or the
// same after a restart, and returns where it listens.
func (w *target) another(t testing.TB, name string, change func(*broker.Deps)) string {
	t.Helper()
	ctx, discard := context.Background(), slog.New(slog.DiscardHandler)
	d := broker.Deps{
		Tokens: w.tokens, Keys: w.ring, Feed: w.store, Anchor: vault.NewAnchor(w.secrets), Ledger: w.store, Once: w.store, Sessions: w.store,
		Recorder: w.events, Sealer: must(vault.NewSealer(ctx, w.secrets, w.clock.Now))(t), Judge: w.b.Judge(), Log: discard, Now: w.clock.Now,
	}
	if change != nil {
		change(&d)
	}
	b := must(broker.New(broker.Config{
		Replica: name, TokenLifetime: 5 * time.Minute, CredentialLifetime: 15 * time.Minute, Skew: 30 * time.Second,
		MaxStaleness: 2 * time.Second, MaxClockOffset: time.Second, MintTimeout: 5 * time.Second, RevokeTimeout: 5 * time.Second,
		ClientSecretKey: []byte(must(vault.Key(ctx, w.secrets, vault.PathClientSecrets))(t).Reveal()),
	}, d))(t)
	if err := b.Start(ctx); err != nil {
		t.Fatal(err)
	}
	background, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); b.Run(background) }()
	t.Cleanup(func() { cancel(); <-done })
	server := must(api.New(api.Config{
		Issuer: w.self, Limits: unlimited, Keys: w.ring, IssuerHealth: w.tokens.Ready, Operations: w.world, Answers: w.store, Sealer: w.sealer, Log: discard, Now: w.clock.Now,
		Metrics: api.NewMetrics("test", b.Status),
	}, b))(t)
	s := httptest.NewServer(server.Public())
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}
