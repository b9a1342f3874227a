package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
)

// Types of tokens (RFC 8693 section 3).
const (
	TypeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	TypeIDToken     = "urn:ietf:params:oauth:token-type:id_token"
	TypeJWT         = "urn:ietf:params:oauth:token-type:jwt"
)

// Exchange is one token exchange as RFC 8693 section 2.1 has it, for agents and
// shells: they hold tokens of others, which they cannot verify.
type Exchange struct {
	// Subject is the token of whom it is for, and SubjectType its type; empty:
	// TypeAccessToken. Without a Subject the client acts for itself
	// (client_credentials).
	Subject     Secret
	SubjectType string
	// Actor is the token of who is to act, if that is said by one, with its type.
	Actor     Secret
	ActorType string
	// Resources (RFC 8707) and Audiences are what it is for.
	Resources, Audiences []string
	Scopes               []string
	// Details are authorization_details (RFC 9396), a JSON array.
	Details json.RawMessage
	// RequestedType is the type that is wanted; empty: whatever there is.
	RequestedType string
}

// Exchange asks Stint for a token or a credential.
//
// Errors: *[Refused], *[NeedsApproval], *[NeedsLink], *[Unavailable].
func (c *Client) Exchange(ctx context.Context, x Exchange) (*Credential, error) {
	form, err := x.form()
	if err != nil {
		return nil, err
	}
	what := strings.Join(append(append([]string{}, x.Resources...), x.Audiences...), " ")
	return c.obtain(ctx, form, what, x.Scopes)
}

func (x *Exchange) form() (url.Values, error) {
	form := url.Values{"resource": x.Resources, "audience": x.Audiences}
	set := func(name, value string) {
		if value != "" {
			form.Set(name, value)
		}
	}
	switch {
	case x.Subject.empty() && !x.Actor.empty():
		return nil, errors.New("client: Exchange.Actor acts for nobody: Exchange.Subject is empty")
	case x.Subject.empty():
		set("grant_type", "client_credentials")
	default:
		set("grant_type", tokenExchange)
		set("subject_token", x.Subject.Reveal())
		set("subject_token_type", orAccessToken(x.SubjectType))
	}
	if !x.Actor.empty() { // RFC 8693 section 2.1: the type goes with the token
		set("actor_token", x.Actor.Reveal())
		set("actor_token_type", orAccessToken(x.ActorType))
	}
	set("scope", strings.Join(x.Scopes, " "))
	set("authorization_details", string(x.Details))
	set("requested_token_type", x.RequestedType)
	return form, nil
}

func orAccessToken(kind string) string {
	if kind == "" {
		return TypeAccessToken
	}
	return kind
}
