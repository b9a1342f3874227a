package sample

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stint-dev/stint/internal/secret"
)

// Types of tokens (RFC 8693 section 3), and Stint's own for credentials that are
// no tokens.
const (
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	typeCredential  = "https://stint.dev/token-type/credential"
	tokenExchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
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

// Stint asks a Stint server, as one of its clients: whether a token is good, and
// for a token or credential in exchange for another. It is safe for concurrent
// use.
type Stint struct {
	cfg  StintConfig
	http *http.Client

	mu   sync.Mutex
	meta *metadata // nil until it was read
}

// NewStint returns a client. It asks nobody anything yet. Errors say what is
// missing in cfg.
func NewStint(cfg StintConfig) (*Stint, error) {
	switch {
	case cfg.Issuer == "":
		return nil, errors.New("stint: the issuer is missing")
	case cfg.ClientID == "" || cfg.Secret.Empty():
		return nil, errors.New("stint: the client's own id or secret is missing")
	}
	return &Stint{cfg: cfg, http: newClient()}, nil
}

// Close closes the connections that are idle.
func (s *Stint) Close() { s.http.CloseIdleConnections() }

// Introspection is what Stint says of a token (RFC 7662 section 2.2). All else is
// empty unless it is Active.
type Introspection struct {
	Active bool
	Issuer string
	// Subject is whom the token speaks for, as ISSUER#SUB.
	Subject  string
	Audience []string
	// ClientID is the client that it was issued to, and Actors are those who act for
	// the subject, outermost first.
	ClientID string
	Actors   []string
	Scope    []string
	Expires  time.Time
	// Once says that the token is for one call, which has to consume it.
	Once bool
}

// introspected is the same on the wire.
type introspected struct {
	Active   bool     `json:"active"`
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience audience `json:"aud"`
	ClientID string   `json:"client_id"`
	Scope    string   `json:"scope"`
	Expires  int64    `json:"exp"`
	Act      *actor   `json:"act"`
	Once     bool     `json:"once"`
}

type actor struct {
	Subject string `json:"sub"`
	Act     *actor `json:"act"`
}

// audience is a text or a list of them (RFC 7519 section 4.1.3).
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if err := json.Unmarshal(b, &one); err == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// Introspect asks whether a token is good, and with consume uses up one that is
// for one call. why is the text of the step. A token for somebody else is not
// active. An error means that it is not known, and not that the token is bad.
func (s *Stint) Introspect(ctx context.Context, token secret.String, consume bool, why string) (*Introspection, error) {
	params := []Field{{Name: "token", Secret: token}, {Name: "token_type_hint", Value: "access_token"}}
	if consume {
		params = append(params, Field{Name: "consume", Value: "true"})
	}
	body, err := s.post(ctx, why, func(m *metadata) string { return m.IntrospectionEndpoint }, params)
	if r := (*Refusal)(nil); errors.As(err, &r) && r.Status == http.StatusForbidden {
		return &Introspection{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("introspect token: %w", err)
	}
	var in introspected
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("introspect token: %w", err)
	}
	if !in.Active {
		return &Introspection{}, nil
	}
	out := &Introspection{
		Active: true, Issuer: in.Issuer, Subject: in.Subject, Audience: in.Audience, ClientID: in.ClientID,
		Scope: strings.Fields(in.Scope), Expires: time.Unix(in.Expires, 0), Once: in.Once,
	}
	for a := in.Act; a != nil; a = a.Act {
		out.Actors = append(out.Actors, a.Subject)
	}
	return out, nil
}

// forUs reports whether a token is good for a resource of ours: introspection
// says that it is not expired and not revoked, and here is checked who made it,
// and for whom.
func (s *Stint) forUs(i *Introspection, resource string) bool {
	return i.Active && i.Issuer == s.cfg.Issuer && slices.Contains(i.Audience, resource)
}

// ExchangeRequest is what is asked for in exchange for a token (RFC 8693 section
// 2.1).
type ExchangeRequest struct {
	// Subject is the token that is held, and SubjectType its type; empty: an access
	// token.
	Subject     secret.String
	SubjectType string
	// Resource is what the new one is for (RFC 8707).
	Resource string
	// Scope is all that it shall be good for.
	Scope []string
	// Requested is the type that is wanted; empty: an access token.
	Requested string
	// Details are authorization_details (RFC 9396), a JSON array; nil: none.
	Details json.RawMessage
	// Why is the text of the step.
	Why string
}

// Issued is what Stint gave.
type Issued struct {
	// Token is the token, or the credential as a JSON document.
	Token secret.String
	// Type is issued_token_type, TokenType token_type: Bearer or N_A.
	Type, TokenType string
	Scope           []string
	// ExpiresIn is how long it is good for.
	ExpiresIn time.Duration
	// Lease is the id of a credential's lease; empty for a token.
	Lease string
}

// Exchange asks for a token or credential in exchange for another. What is given
// has the type and the scope that were asked for, nothing less and nothing else.
// The error wraps a [Refusal] if Stint refused.
func (s *Stint) Exchange(ctx context.Context, r ExchangeRequest) (*Issued, error) {
	if r.SubjectType == "" {
		r.SubjectType = typeAccessToken
	}
	if r.Requested == "" {
		r.Requested = typeAccessToken
	}
	params := []Field{
		{Name: "grant_type", Value: tokenExchange},
		{Name: "subject_token", Secret: r.Subject},
		{Name: "subject_token_type", Value: r.SubjectType},
		{Name: "requested_token_type", Value: r.Requested},
		{Name: "resource", Value: r.Resource},
		{Name: "scope", Value: strings.Join(r.Scope, " ")},
	}
	if len(r.Details) > 0 {
		params = append(params, Field{Name: "authorization_details", Value: string(r.Details)})
	}
	body, err := s.post(ctx, r.Why, func(m *metadata) string { return m.TokenEndpoint }, params)
	if err != nil {
		return nil, fmt.Errorf("exchange token for %s: %w", r.Resource, err)
	}
	i, err := r.issued(body)
	if err != nil {
		return nil, fmt.Errorf("exchange token for %s: %w", r.Resource, err)
	}
	return i, nil
}

// issued reads the answer of RFC 8693 section 2.2.1 and holds it to what was
// asked.
func (r ExchangeRequest) issued(body []byte) (*Issued, error) {
	var in struct {
		Token     string  `json:"access_token"`
		Type      string  `json:"issued_token_type"`
		TokenType string  `json:"token_type"`
		Scope     *string `json:"scope"`
		ExpiresIn int64   `json:"expires_in"`
		Lease     string  `json:"lease_id"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, err
	}
	i := &Issued{
		Token: secret.New(in.Token), Type: in.Type, TokenType: in.TokenType, Scope: r.Scope,
		ExpiresIn: time.Duration(in.ExpiresIn) * time.Second, Lease: in.Lease,
	}
	if in.Scope != nil { // absent: it is what was asked for
		i.Scope = strings.Fields(*in.Scope)
	}
	switch {
	case i.Token.Empty() || i.Type != r.Requested:
		return nil, fmt.Errorf("the answer has a token of type %q, not %s", i.Type, r.Requested)
	case r.Requested == typeAccessToken && !strings.EqualFold(i.TokenType, "Bearer"):
		return nil, fmt.Errorf("the answer has a token_type %q, not Bearer", i.TokenType)
	case !sameScope(i.Scope, r.Scope):
		return nil, fmt.Errorf("the answer is good for %q, not for what was asked", strings.Join(i.Scope, " "))
	}
	return i, nil
}

func sameScope(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// post sends a form to one of Stint's endpoints, with the client's credentials,
// and returns the body of a good answer. Others are a [Refusal].
func (s *Stint) post(ctx context.Context, why string, endpoint func(*metadata) string, params []Field) (body []byte, err error) {
	step := Step{Server: s.cfg.Server, Text: why, Method: http.MethodPost, Began: time.Now()}
	step.Request = append([]Field{{Name: "Authorization", Value: "Basic " + s.cfg.ClientID + ":", Secret: s.cfg.Secret}}, params...)
	defer func() {
		if step.Status == 0 {
			step.Err = err
		}
		trace(s.cfg.Trace).step(step)
	}()
	meta, err := s.metadata(ctx)
	if err != nil {
		return nil, err
	}
	step.URL = endpoint(meta)
	form := make([]string, len(params))
	for i, p := range params {
		form[i] = p.Name + "=" + url.QueryEscape(p.Value+p.Secret.Reveal())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, step.URL, strings.NewReader(strings.Join(form, "&")))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// RFC 6749 section 2.3.1: both are form-encoded before they are joined.
	req.SetBasicAuth(url.QueryEscape(s.cfg.ClientID), url.QueryEscape(s.cfg.Secret.Reveal()))
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if body, err = readBody(resp.Body); err != nil {
		return nil, err
	}
	step.Status, step.Answer = resp.StatusCode, answerFields(body)
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(resp, body)
	}
	return body, nil
}

// metadata reads where Stint's endpoints are, once (RFC 8414 section 3).
func (s *Stint) metadata(ctx context.Context) (*metadata, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta != nil {
		return s.meta, nil
	}
	u, err := url.Parse(s.cfg.Issuer)
	if err != nil {
		return nil, fmt.Errorf("stint: %w", err)
	}
	u.Path = "/.well-known/oauth-authorization-server" + strings.TrimSuffix(u.Path, "/")
	m, err := fetchMetadata(ctx, s.http, u.String(), s.cfg.Issuer)
	if err != nil {
		return nil, err
	}
	if m.TokenEndpoint == "" || m.IntrospectionEndpoint == "" {
		return nil, fmt.Errorf("metadata of %s: no token endpoint, or no introspection endpoint", s.cfg.Issuer)
	}
	s.meta = m
	return m, nil
}

// metadata is what is needed of an authorization server's metadata.
type metadata struct {
	Issuer                string   `json:"issuer"`
	AuthorizationEndpoint string   `json:"authorization_endpoint"`
	TokenEndpoint         string   `json:"token_endpoint"`
	IntrospectionEndpoint string   `json:"introspection_endpoint"`
	ChallengeMethods      []string `json:"code_challenge_methods_supported"`
	// IssParameter says that authorization responses name the issuer (RFC 9207).
	IssParameter bool `json:"authorization_response_iss_parameter_supported"`
}

func fetchMetadata(ctx context.Context, client *http.Client, address, issuer string) (*metadata, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := readBody(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("metadata of %s: %w", issuer, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metadata of %s: %w", issuer, refusal(resp, body))
	}
	var m metadata
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("metadata of %s: %w", issuer, err)
	}
	if m.Issuer != issuer { // RFC 8414 section 3.3
		return nil, fmt.Errorf("metadata of %s: it says it is of %q", issuer, m.Issuer)
	}
	return &m, nil
}

// Refusal is an answer that is an error: of an OAuth endpoint (RFC 6749 section
// 5.2), or of a resource (RFC 6750 section 3).
type Refusal struct {
	// Status is that of HTTP; 0 for an error that came in a redirect.
	Status int
	// Code and Description are error and error_description, empty if there are none.
	Code, Description string
	// Challenge is the header WWW-Authenticate, and RetryAfter the header of this
	// name.
	Challenge, RetryAfter string
}

func (r *Refusal) Error() string {
	text := "refused"
	if r.Status != 0 {
		text = fmt.Sprintf("%d %s", r.Status, http.StatusText(r.Status))
	}
	for _, more := range []string{r.Code, r.Description, r.Challenge} {
		if more != "" {
			text += ": " + more
		}
	}
	return text
}

func refusal(resp *http.Response, body []byte) *Refusal {
	r := &Refusal{
		Status: resp.StatusCode, RetryAfter: resp.Header.Get("Retry-After"),
		Challenge: strings.Join(resp.Header.Values("WWW-Authenticate"), ", "),
	}
	var in struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal(body, &in); err == nil {
		r.Code, r.Description = in.Error, in.Description
	}
	return r
}
