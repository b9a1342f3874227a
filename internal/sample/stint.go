package sample

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/internal/secret"
)

// StintConfig says which Stint to ask, and as whom.
type StintConfig struct {
	// Issuer is Stint's issuer identifier.
	Issuer string
	// ClientID and Secret are the client's own credentials there
	// (client_secret_basic).
	ClientID string
	Secret   secret.String
	// Server is how steps name the client, and Trace is told of them; it may be nil.
	// Trace is called from many goroutines.
	Server string
	Trace  func(Step)
}

// retry is how long a server goes on asking while Stint is not there: whoever called it
// waits.
const retry = time.Second

// asker is a server that works with Stint, by the package that every server can import.
// What it adds is that it tells of what goes over the wire.
type asker struct {
	*client.Client
	http *http.Client
}

// newAsker returns an asker for a server that tokens call resource. It asks nobody
// anything yet. Errors say what is missing in cfg.
func newAsker(cfg StintConfig, resource string) (*asker, error) {
	if cfg.ClientID == "" || cfg.Secret.Empty() {
		return nil, errors.New("stint: the client's own id or secret is missing")
	}
	a := &asker{http: newClient()}
	a.http.Transport = &telling{next: a.http.Transport, cfg: cfg}
	var err error
	a.Client, err = client.New(client.Config{
		Issuer: cfg.Issuer, Resource: resource, ID: cfg.ClientID, Secret: client.NewSecret(cfg.Secret.Reveal()), HTTP: a.http, Retry: retry,
	})
	return a, err
}

// Close closes the connections that are idle.
func (a *asker) Close() { a.http.CloseIdleConnections() }

// check verifies a token that a caller shows, and asks whether it has been revoked. A
// token for one call is not used up by this. why is the text of the step.
func (a *asker) check(ctx context.Context, raw secret.String, why string) (*client.Token, error) {
	t, err := a.VerifyToVend(ctx, raw.Reveal())
	if err != nil {
		return nil, err
	}
	return t, a.Introspect(because(ctx, why), t)
}

// vend asks for what a call needs, and takes nothing else: what is given has the scope
// that was asked for.
func (a *asker) vend(ctx context.Context, call client.Call, why string) (*client.Credential, error) {
	cred, err := a.Vend(because(ctx, why), call)
	if err != nil {
		return nil, err
	}
	given, asked := slices.Sorted(slices.Values(cred.Scopes)), slices.Sorted(slices.Values(call.Scopes))
	if !slices.Equal(given, asked) {
		return nil, fmt.Errorf("the answer is good for %q, not for what was asked", strings.Join(cred.Scopes, " "))
	}
	return cred, nil
}

// Holder is a client of Stint that holds tokens of others, as an agent does: it hands them
// on, and verifies none.
type Holder struct{ asker *asker }

// NewHolder returns a holder. It asks nobody anything yet. Errors say what is missing in
// cfg.
func NewHolder(cfg StintConfig) (*Holder, error) {
	a, err := newAsker(cfg, "")
	return &Holder{a}, err
}

// Close closes the connections that are idle.
func (h *Holder) Close() { h.asker.Close() }

// Exchange asks for a token or credential. why is the text of the step. Errors are those
// of [client.Client.Exchange].
func (h *Holder) Exchange(ctx context.Context, x client.Exchange, why string) (*client.Credential, error) {
	return h.asker.Exchange(because(ctx, why), x)
}

type whyKey struct{}

// because says what the requests are for that are made in a context.
func because(ctx context.Context, why string) context.Context {
	return context.WithValue(ctx, whyKey{}, why)
}

// telling tells of the requests that are made for something.
type telling struct {
	next http.RoundTripper
	cfg  StintConfig
}

// RoundTrip implements [http.RoundTripper].
func (t *telling) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	why, _ := r.Context().Value(whyKey{}).(string)
	if why == "" || r.Body == nil { // metadata and keys, which are read once
		return t.next.RoundTrip(r)
	}
	form, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	step := Step{Server: t.cfg.Server, Text: why, Method: r.Method, URL: r.URL.String(), Began: time.Now()}
	step.Request = append([]Field{{Name: "Authorization", Value: "Basic " + url.QueryEscape(t.cfg.ClientID) + ":", Secret: t.cfg.Secret}}, formFields(string(form))...)
	defer func() {
		if step.Status == 0 {
			step.Err = err
		}
		trace(t.cfg.Trace).step(step)
	}()
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(form))
	if resp, err = t.next.RoundTrip(r); err != nil {
		return nil, err
	}
	body, err := readBody(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	step.Status, step.Answer = resp.StatusCode, answerFields(body)
	return resp, nil
}
