package client

import (
	"fmt"
	"time"
)

// Refused says that Stint, or a check of this package, refused. Use [errors.As].
type Refused struct {
	// Code is the OAuth error, such as invalid_scope (RFC 6749 section 5.2, RFC 8707
	// section 2, RFC 9396 section 5).
	Code string
	// Description may be shown to whoever called the server.
	Description string
	// Status is that of HTTP; zero if Stint was not asked.
	Status int
}

func (e *Refused) Error() string { return describe(e.Code, e.Description) }

// NeedsApproval says that a person has to approve the call, at URL, before it is
// made again.
type NeedsApproval struct{ URL, Description string }

func (e *NeedsApproval) Error() string { return describe("approval is needed", e.Description) }

// NeedsLink says that the user has to link an account of theirs, at URL, before the
// call is made again. Claims is what an upstream wants of the user's next sign-in, as the
// parameter of that name (OpenID Connect Core section 5.5); empty: nothing.
type NeedsLink struct{ URL, Description, Claims string }

func (e *NeedsLink) Error() string { return describe("an account has to be linked", e.Description) }

// Unavailable says that Stint could not be asked or could not answer. The caller's
// token may be good: it is no reason for a 401.
type Unavailable struct {
	// RetryAfter is how long to wait before the next attempt; zero: it did not say.
	RetryAfter time.Duration
	Err        error
}

func (e *Unavailable) Error() string { return fmt.Sprintf("stint is not available: %v", e.Err) }
func (e *Unavailable) Unwrap() error { return e.Err }

// InvalidToken says that a caller's token is not good for this server. Reason is
// for this server's log: the caller is told only that it is not good.
type InvalidToken struct{ Reason string }

func (e *InvalidToken) Error() string { return "invalid token: " + e.Reason }

// InsufficientScope says that a caller's token is good, but not for this.
type InsufficientScope struct {
	// Scopes are all that it needs.
	Scopes []string
}

func (e *InsufficientScope) Error() string {
	return fmt.Sprintf("the token needs the scopes %q", e.Scopes)
}

func describe(what, description string) string {
	if description == "" {
		return what
	}
	return what + ": " + description
}
