package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	tokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	// CredentialType is the type of credentials that are no access tokens.
	CredentialType = "https://stint.dev/token-type/credential"
)

// Call says what a credential is for.
type Call struct {
	// Token is the caller's, as [Client.Verify] returned it; nil: the one that
	// [Client.Protect] put into the context. With Self, the server acts for itself
	// and for no user (client_credentials).
	Token *Token
	Self  bool
	// Resource is what the credential is for (RFC 8707): another server, or something
	// at an upstream.
	Resource string
	// Scopes are all that it shall be good for. Empty: those that the mapping names
	// for Tool.
	Scopes []string
	// Tool is the tool that is being called, and Arguments what it was called with: a
	// JSON object, or nil. The mapping may narrow by both; Stint keeps a digest.
	Tool      string
	Arguments any
	// Once asks for a token that is good for one use, in a call of Tool.
	Once bool
	// Details are further authorization_details (RFC 9396), each a JSON object.
	Details []json.RawMessage
}

// Credential is what was vended for one call.
type Credential struct {
	// Token is the access token. For a credential that is none, it is the JSON
	// document: use Decode.
	Token Secret
	// Type is what it is (RFC 8693 section 3): an access token, or CredentialType.
	Type string
	// Bearer says that Token goes into the header Authorization.
	Bearer bool
	// Scopes and Details are what was really granted.
	Scopes  []string
	Details json.RawMessage
	Expires time.Time
	// Lease is the id of a credential's lease, by which it can be given back; empty
	// for a token of Stint.
	Lease string

	answer Secret
}

// Answer is all that Stint answered, as JSON: what this package does not know is in
// there as well.
func (c *Credential) Answer() Secret { return c.answer }

// Vend asks Stint for the credential of one call. Whoever holds tokens that no
// [Client.Verify] has seen uses [Client.Exchange].
//
// Errors: *[Refused], *[NeedsApproval], *[NeedsLink], *[Unavailable].
func (c *Client) Vend(ctx context.Context, call Call) (*Credential, error) {
	form, err := call.form(ctx)
	if err != nil {
		return nil, err
	}
	return c.obtain(ctx, form, call.Resource, call.Scopes)
}

// obtain asks the token endpoint for what is then called a credential for what. asked
// are the scopes that were asked for.
func (c *Client) obtain(ctx context.Context, form url.Values, what string, asked []string) (*Credential, error) {
	var raw json.RawMessage
	began := c.cfg.Now()
	if err := c.post(ctx, func(m *metadata) string { return m.Token }, form, &raw); err != nil {
		return nil, fmt.Errorf("credential for %s: %w", what, err)
	}
	var in struct {
		Token     string          `json:"access_token"`
		Type      string          `json:"issued_token_type"`
		TokenType string          `json:"token_type"`
		Scope     *string         `json:"scope"`
		ExpiresIn int64           `json:"expires_in"`
		Lease     string          `json:"lease_id"`
		Details   json.RawMessage `json:"authorization_details"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, fmt.Errorf("credential for %s: %w", what, &Unavailable{Err: fmt.Errorf("the answer: %w", err)})
	}
	out := &Credential{
		Token: NewSecret(in.Token), Type: in.Type, Bearer: strings.EqualFold(in.TokenType, "Bearer"), Scopes: asked, Details: in.Details,
		Expires: began.Add(time.Duration(in.ExpiresIn) * time.Second), Lease: in.Lease, answer: NewSecret(string(raw)),
	}
	if in.Scope != nil { // absent: it is what was asked for (RFC 8693 section 2.2.1)
		out.Scopes = strings.Fields(*in.Scope)
	}
	if len(asked) > 0 && slices.ContainsFunc(out.Scopes, func(s string) bool { return !slices.Contains(asked, s) }) {
		return nil, fmt.Errorf("credential for %s: %w", what, &Unavailable{Err: fmt.Errorf("the answer is good for %q, and %q were asked for", out.Scopes, asked)})
	}
	if in.Token == "" || in.ExpiresIn <= 0 || !out.Bearer && in.Type != CredentialType {
		return nil, fmt.Errorf("credential for %s: %w", what, &Unavailable{Err: fmt.Errorf("the answer is a %q of type %q", in.TokenType, in.Type)})
	}
	return out, nil
}

// Renew lets a credential that is out live longer: the call is the one for another of
// the same upstream, and everything that the credential of the lease may do has to be
// granted by it now. It returns when the credential ends. Not every upstream can; after
// any error the credential ends when it would have.
//
// Errors: as of [Client.Vend].
func (c *Client) Renew(ctx context.Context, call Call, lease string) (expires time.Time, err error) {
	form, err := call.form(ctx)
	if err != nil {
		return expires, err
	}
	form.Set("lease_id", lease)
	var out struct {
		Lease     string `json:"lease_id"`
		ExpiresIn int64  `json:"expires_in"`
	}
	began := c.cfg.Now()
	err = c.post(ctx, func(m *metadata) string { return m.Issuer + "/oauth2/renew" }, form, &out)
	if err == nil && (out.Lease != lease || out.ExpiresIn <= 0) {
		err = &Unavailable{Err: fmt.Errorf("the answer is of lease %q, for %d s", out.Lease, out.ExpiresIn)}
	}
	if err != nil {
		return expires, fmt.Errorf("renew lease %s: %w", lease, err)
	}
	return began.Add(time.Duration(out.ExpiresIn) * time.Second), nil
}

// form is the request of RFC 8693 section 2.1.
func (call *Call) form(ctx context.Context) (url.Values, error) {
	t := call.Token
	if t == nil && !call.Self {
		if t = FromContext(ctx); t == nil {
			return nil, errors.New("client: Call.Token is nil, and the context has no token: Client.Protect is not before this handler")
		}
	}
	form := url.Values{"resource": {call.Resource}}
	switch {
	case call.Self && call.Token != nil:
		return nil, errors.New("client: Call.Self and Call.Token exclude one another")
	case call.Self:
		form.Set("grant_type", "client_credentials")
	default:
		form.Set("grant_type", tokenExchange)
		form.Set("subject_token", t.raw.Reveal())
		form.Set("subject_token_type", TypeAccessToken)
	}
	if len(call.Scopes) > 0 {
		form.Set("scope", strings.Join(call.Scopes, " "))
	}
	details := call.Details
	if call.Tool != "" || call.Once {
		one, err := call.detail()
		if err != nil {
			return nil, err
		}
		details = append([]json.RawMessage{one}, details...)
	}
	if len(details) > 0 {
		all, err := json.Marshal(details)
		if err != nil {
			return nil, fmt.Errorf("client: Call.Details: %w", err)
		}
		form.Set("authorization_details", string(all))
	}
	return form, nil
}

// detail names the tool call (RFC 9396 section 2).
func (call *Call) detail() (json.RawMessage, error) {
	if call.Tool == "" {
		return nil, errors.New("client: Call.Once is for a call of Call.Tool, which is empty")
	}
	arguments, err := json.Marshal(call.Arguments)
	if err != nil {
		return nil, fmt.Errorf("client: Call.Arguments: %w", err)
	}
	if string(arguments) == "null" { // as some callers say that there are none
		arguments = nil
	}
	return json.Marshal(struct {
		Type      string          `json:"type"`
		Tool      string          `json:"tool"`
		Arguments json.RawMessage `json:"arguments,omitempty"`
		Once      bool            `json:"once,omitempty"`
	}{"mcp_tool_call", call.Tool, arguments, call.Once})
}

// Decode reads a credential that is no access token, such as a database login.
func (c *Credential) Decode(into any) error {
	if c.Bearer {
		return errors.New("client: the credential is an access token, and no document")
	}
	return json.Unmarshal([]byte(c.Token.Reveal()), into)
}

// Authorize puts an access token into a request.
func (c *Credential) Authorize(r *http.Request) {
	if c.Bearer {
		r.Header.Set("Authorization", "Bearer "+c.Token.Reveal())
	}
}

// Return gives a credential back as soon as it is of no more use (RFC 7009); an
// upstream login ends then. A credential that is never returned ends at its
// expiry.
func (c *Client) Return(ctx context.Context, cred *Credential) error {
	what := cred.Lease
	if what == "" {
		what = cred.Token.Reveal()
	}
	if err := c.post(ctx, func(m *metadata) string { return m.Revocation }, url.Values{"token": {what}}, nil); err != nil {
		return fmt.Errorf("return credential: %w", err)
	}
	return nil
}

// Introspect asks Stint whether a token that was verified is still good: it has
// not been revoked (RFC 7662). Errors: *[InvalidToken]; *[Unavailable].
func (c *Client) Introspect(ctx context.Context, t *Token) error {
	return c.introspect(ctx, t, url.Values{"token": {t.raw.Reveal()}})
}

// useOnce uses up a token that is for one call; others stay as they are.
func (c *Client) useOnce(ctx context.Context, t *Token) error {
	if !t.Once {
		return nil
	}
	return c.introspect(ctx, t, url.Values{"token": {t.raw.Reveal()}, "consume": {"true"}})
}

func (c *Client) introspect(ctx context.Context, t *Token, form url.Values) error {
	var in struct {
		Active bool   `json:"active"`
		ID     string `json:"jti"`
	}
	err := c.post(ctx, func(m *metadata) string { return m.Introspection }, form, &in)
	if err != nil {
		return fmt.Errorf("ask about a token: %w", err)
	}
	if !in.Active || in.ID != "" && in.ID != t.ID {
		return &InvalidToken{"it was revoked, or used before"}
	}
	return nil
}
