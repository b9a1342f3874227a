package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/api/adminapi"
	"github.com/stint-dev/stint/broker"
)

// problem is an error on the wire: RFC 6749 section 5.2, with the members that
// interaction_required adds.
type problem struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
	URL         string `json:"url,omitempty"`
	// Interaction says what interaction_required is for: approval or link.
	Interaction string `json:"interaction,omitempty"`
	// Claims is what the subject's next sign-in has to bring (interaction_required).
	Claims string `json:"claims,omitempty"`

	code       broker.Code
	scope      string // what is missing
	status     int
	retryAfter time.Duration
	challenge  bool // add WWW-Authenticate
}

// endpoint is where an error goes: the same code means other things there.
type endpoint int

const (
	tokenEndpoint endpoint = iota
	revocationEndpoint
	introspectionEndpoint
	adminEndpoint
)

// endpointOf returns the endpoint that a request is for, by its route.
func endpointOf(c echo.Context) endpoint {
	switch route := c.Path(); {
	case strings.HasSuffix(route, "/oauth2/revoke"):
		return revocationEndpoint
	case strings.HasSuffix(route, "/oauth2/introspect"):
		return introspectionEndpoint
	case strings.Contains(route, "/admin/v1/"), strings.Contains(route, "/connect/v1/"):
		return adminEndpoint
	}
	return tokenEndpoint
}

// row is what a code becomes at each endpoint.
type row struct {
	name   string // the OAuth error
	status [4]int // at the token, revocation, introspection and admin endpoints
}

// table is the map from codes to the wire. A code that is not in it, and every
// error that has none, is server_error without a word of explanation.
var table = map[broker.Code]row{
	broker.BadRequest: {"invalid_request", [4]int{400, 400, 400, 400}},
	broker.BadClient:  {"invalid_client", [4]int{401, 401, 401, 401}},
	// RFC 8693 section 2.2.2: a refused subject token is invalid_request. What is
	// no token is nothing to revoke (RFC 7009 section 2.2) and inactive (RFC 7662
	// section 2.2): those endpoints answer 200, and do not come here with it.
	broker.BadToken:      {"invalid_request", [4]int{400, 400, 400, 401}},
	broker.BadScope:      {"invalid_scope", [4]int{400, 400, 400, 403}},
	broker.BadTarget:     {"invalid_target", [4]int{400, 400, 400, 404}}, // RFC 8707 section 2
	broker.BadDetails:    {"invalid_authorization_details", [4]int{400, 400, 400, 400}},
	broker.Denied:        {"unauthorized_client", [4]int{400, 400, 403, 403}},
	broker.NeedsApproval: {"interaction_required", [4]int{400, 400, 400, 409}},
	broker.NeedsLink:     {"interaction_required", [4]int{400, 400, 400, 409}},
	broker.Conflict:      {"invalid_request", [4]int{409, 409, 409, 409}},
	broker.Changed:       {"invalid_request", [4]int{412, 412, 412, 412}},
	broker.Limited:       {"temporarily_unavailable", [4]int{429, 429, 429, 429}},
	// 503 and not 401: the caller keeps its token and comes again.
	broker.Unavailable: {"temporarily_unavailable", [4]int{503, 503, 503, 503}},
}

// internalStatus is that of server_error. A revocation that failed is 503 (RFC
// 7009 section 2.2.1): the token must be taken to live, and the call repeated.
var internalStatus = [4]int{500, 503, 500, 500}

// toProblem is the one place that decides which words of an error reach a
// caller: the public text of an error with a code, and of others nothing.
func toProblem(at endpoint, err error) problem {
	e := (*broker.Error)(nil)
	if !errors.As(err, &e) {
		return problem{Error: "server_error", code: broker.Internal, status: internalStatus[at]}
	}
	r, known := table[e.Code]
	if !known {
		return problem{Error: "server_error", code: broker.Internal, status: internalStatus[at]}
	}
	p := problem{
		Error: r.name, code: e.Code, Description: describe(e.Public), URL: e.URL, Claims: e.Claims, status: r.status[at],
		retryAfter: e.RetryAfter, challenge: e.Code == broker.BadClient,
	}
	if at == adminEndpoint && e.Code == broker.Unavailable {
		p.Description = "not done: something that is needed is unavailable; /readyz at listen.ops and the log say what"
	}
	switch e.Code {
	case broker.NeedsApproval:
		p.Interaction = "approval"
	case broker.NeedsLink:
		p.Interaction = "link"
	}
	if e.Code == broker.Limited || e.Code == broker.Unavailable { // never without a time
		p.retryAfter = max(p.retryAfter, time.Second)
	}
	return p
}

// unquote takes the escapes of quotation marks out of a text.
var unquote = strings.NewReplacer(`\"`, "'", `"`, "'")

// describe keeps a text to what error_description may hold: printable ASCII
// without quotation mark and backslash (RFC 6749 section 5.2). Some texts repeat a
// piece of what the caller sent.
func describe(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\\':
			return '/'
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, unquote.Replace(text))
}

// unsupportedGrantType has no code: the broker never sees it.
var unsupportedGrantType = problem{Error: "unsupported_grant_type", Description: "the grant type is not supported", status: http.StatusBadRequest}

// write sends the problem.
func (p problem) write(c echo.Context) error {
	h := c.Response().Header()
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.retryAfter+time.Second-1)/time.Second)))
	}
	if endpointOf(c) == adminEndpoint {
		return p.writeDetails(c)
	}
	if p.challenge {
		h.Set("WWW-Authenticate", `Basic realm="stint", charset="UTF-8"`) // RFC 6749 section 5.2
	}
	return c.JSON(p.status, p)
}

// titles are what the admin API calls its errors (RFC 9457 section 3.1.3).
var titles = map[broker.Code]string{
	broker.BadRequest: "The request is malformed", broker.BadToken: "A token is needed", broker.Denied: "This is not allowed",
	broker.BadClient: "Who asks is not known", broker.BadDetails: "The details are malformed", broker.NeedsApproval: "A human has to approve",
	broker.NeedsLink: "An account has to be linked", broker.BadScope: "The token may not do this", broker.BadTarget: "There is no such thing", broker.Conflict: "Somebody else is at it",
	broker.Changed: "It has changed since", broker.Limited: "Too many requests", broker.Unavailable: "Not now", tooLarge: "The body is too large",
	noMethod: "The method is not allowed here",
}

// Codes of errors of HTTP alone, which the broker never sees.
const (
	tooLarge broker.Code = "too_large"
	noMethod broker.Code = "method_not_allowed"
)

// writeDetails sends the problem as RFC 9457 has it.
func (p problem) writeDetails(c echo.Context) error {
	title := titles[p.code]
	if title == "" {
		p.code, title = broker.Internal, "Something went wrong here"
	}
	if h := c.Response().Header(); p.status == http.StatusUnauthorized && h.Get("WWW-Authenticate") == "" {
		h.Set("WWW-Authenticate", `Bearer realm="stint"`)
	}
	c.Response().Header().Set(echo.HeaderContentType, "application/problem+json")
	c.Response().WriteHeader(p.status)
	return json.NewEncoder(c.Response()).Encode(adminapi.Problem{
		Type: "https://stint.dev/problems/" + string(p.code), Title: title, Status: p.status, Detail: p.Description,
		Instance: "urn:stint:request:" + requestID(c), Code: adminapi.ProblemCode(p.code), Scope: p.scope,
	})
}
