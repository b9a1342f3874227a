package broker

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code is the kind of an error: what a caller may know about it. Which OAuth
// error and HTTP status it becomes is known to api alone.
type Code string

// The codes, in the order in which a request can fail with them.
const (
	BadRequest    Code = "bad_request"    // malformed, or a parameter repeated
	BadClient     Code = "bad_client"     // client authentication failed
	Denied        Code = "denied"         // this client may not do this
	BadToken      Code = "bad_token"      // a subject or actor token is not accepted
	BadTarget     Code = "bad_target"     // the target is unknown, or not this client's
	BadDetails    Code = "bad_details"    // authorization details are malformed
	BadScope      Code = "bad_scope"      // a scope is unknown or not granted, or the meet is empty
	NeedsApproval Code = "needs_approval" // a human has to approve
	NeedsLink     Code = "needs_link"     // the user has to link an account
	Conflict      Code = "conflict"       // somebody else is at it
	Changed       Code = "changed"        // it has changed since it was read
	Limited       Code = "limited"        // too many requests
	Unavailable   Code = "unavailable"    // something that is needed is down
	Internal      Code = "internal"       // our own failure
)

// Error is an error with a code and two texts: Public for the caller, Err for
// the record.
type Error struct {
	Code   Code
	Public string
	Err    error
	// Personal is what of the reason may name a person, as the texts of a foreign
	// token do. It is sealed in the record, and is in no log and in no text of the
	// error.
	Personal string
	// URL is where a person can do what is missing (NeedsApproval, NeedsLink).
	URL string
	// Claims is what an upstream wants of the subject's next sign-in, as the claims
	// parameter of OpenID Connect Core section 5.5 (NeedsLink); empty: nothing.
	Claims string
	// RetryAfter says when to try again (Limited, Unavailable).
	RetryAfter time.Duration
}

// Fail makes an error. err, which may be nil, is for the record; public is what
// the caller is told.
func Fail(code Code, err error, public string) *Error {
	return &Error{Code: code, Public: public, Err: err}
}

func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s: %s", e.Code, e.Public)
	}
	return fmt.Sprintf("%s: %s: %v", e.Code, e.Public, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// naming adds to a new error what of its reason may name a person.
func (e *Error) naming(format string, args ...any) *Error {
	const most = 1024
	if e.Personal = fmt.Sprintf(format, args...); len(e.Personal) > most {
		e.Personal = strings.ToValidUTF8(e.Personal[:most], "") + "..."
	}
	return e
}

// Reason is the error's text for the record.
func (e *Error) Reason() string {
	if e.Err == nil {
		return e.Public
	}
	return e.Err.Error()
}

// AsError returns err as an [Error]: itself if it is one, else one with the code
// Internal, of which a caller is told nothing.
func AsError(err error) *Error {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e
	}
	return &Error{Code: Internal, Err: err}
}

// CodeOf returns the code of err, or the empty code for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return AsError(err).Code
}

// Errors that implementations of the contracts return, wrapped.
var (
	// ErrNotFound: there is no such thing in the store.
	ErrNotFound = errors.New("not found")
	// ErrConflict: it has changed since it was read, or exists already.
	ErrConflict = errors.New("changed meanwhile")
	// ErrLater: a later version of Stint wrote it. This one cannot tell what it means,
	// and neither goes by it nor writes over it.
	ErrLater = errors.New("a later version of Stint wrote this, which this one cannot read: run that version")
	// ErrInexpressible: the upstream cannot be asked for exactly this grant.
	ErrInexpressible = errors.New("the upstream cannot narrow to this grant")
)
