package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/labstack/echo/v4"
	"github.com/ory/fosite"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// Types of client assertions (RFC 7523 section 2.2, draft-ietf-oauth-spiffe-client-auth),
// with what broker.Credentials calls them.
var assertionTypes = map[string]string{
	"urn:ietf:params:oauth:client-assertion-type:jwt-bearer": "private_key_jwt",
	"urn:ietf:params:oauth:client-assertion-type:jwt-spiffe": "spiffe_jwt",
}

// bad is the error for a request that is malformed.
func bad(text string) error { return broker.Fail(broker.BadRequest, nil, text) }

// form reads the body of a POST as a form, in the one way that leaves no room
// for two readings: no parameters in the address, no parameter twice but those
// that may be, and empty ones as if they were absent (RFC 6749 section 3.2).
func (s *Server) form(c echo.Context, repeatable ...string) (url.Values, error) {
	r := c.Request()
	if !hasType(r, "application/x-www-form-urlencoded") || r.Header.Get("Content-Encoding") != "" {
		return nil, bad("the body has to be application/x-www-form-urlencoded")
	}
	if r.URL.RawQuery != "" {
		return nil, bad("parameters belong into the body")
	}
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	values, err := url.ParseQuery(body)
	if err != nil {
		return nil, bad("the body is no form")
	}
	for name, list := range values {
		list = slices.DeleteFunc(list, func(v string) bool { return v == "" })
		switch {
		case notText(name) || slices.ContainsFunc(list, notText):
			return nil, bad("a parameter is not UTF-8 text")
		case len(list) > 1 && !slices.Contains(repeatable, name):
			return nil, bad("a parameter is repeated")
		case len(list) > 16:
			return nil, bad("a parameter is repeated too often")
		case len(list) == 0:
			delete(values, name)
		default:
			values[name] = list
		}
	}
	return values, nil
}

// notText reports whether a value is anything but UTF-8 without NUL.
func notText(v string) bool { return !utf8.ValidString(v) || strings.IndexByte(v, 0) >= 0 }

// hasType reports whether a request says, once, that its body is of a media type
// in UTF-8.
func hasType(r *http.Request, want string) bool {
	given := r.Header["Content-Type"]
	if len(given) != 1 {
		return false
	}
	kind, params, err := mime.ParseMediaType(given[0])
	charset, named := params["charset"]
	return err == nil && kind == want && (!named || strings.EqualFold(charset, "utf-8"))
}

// readBody reads a request's body, which has been limited. It may be called again.
func readBody(r *http.Request) (string, error) {
	if b, ok := r.Body.(*bodyRead); ok {
		return b.all, nil
	}
	var b strings.Builder
	if n := r.ContentLength; n > 0 { // a claim, not yet the truth
		b.Grow(int(min(n, 4<<10)))
	}
	piece := pieces.Get().(*[4096]byte)
	_, err := io.CopyBuffer(&b, r.Body, piece[:])
	pieces.Put(piece)
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return "", errTooLarge
	}
	if err != nil {
		return "", bad("the body could not be read")
	}
	r.Body = &bodyRead{*strings.NewReader(b.String()), b.String()}
	return b.String(), nil
}

var pieces = sync.Pool{New: func() any { return new([4096]byte) }}

// bodyRead is a body that is in memory.
type bodyRead struct {
	strings.Reader
	all string
}

func (*bodyRead) Close() error { return nil }

// errTooLarge is what a body beyond the limit comes to.
var errTooLarge = bad("the body is too large")

// credentials reads how the client authenticates: RFC 6749 section 2.3, RFC 7523
// section 2.2, RFC 8705 section 2. More than one way in a request is an error; a
// certificate is a way only where there is no other, as it is the connection's. It is
// never read of a header, whoever has set that.
func credentials(r *http.Request, form url.Values) (broker.Credentials, error) {
	id, word := form.Get("client_id"), form.Get("client_secret")
	assertion, kind := form.Get("client_assertion"), form.Get("client_assertion_type")
	ways := len(r.Header["Authorization"])
	if word != "" {
		ways++
	}
	if assertion != "" || kind != "" {
		ways++
	}
	switch {
	case ways > 1:
		return broker.Credentials{}, bad("more than one way to authenticate")
	case len(r.Header["Authorization"]) > 0:
		return basic(r, id)
	case word != "":
		return broker.Credentials{Method: "client_secret_post", ID: id, Secret: secret.New(word)}, nil
	case (assertion == "") != (kind == ""):
		return broker.Credentials{}, bad("client_assertion and client_assertion_type go together")
	case kind != "" && assertionTypes[kind] == "":
		return broker.Credentials{}, badClient("client_assertion_type is not supported")
	case assertion != "":
		return broker.Credentials{Method: assertionTypes[kind], ID: id, Assertion: secret.New(assertion)}, nil
	case r.TLS != nil && len(r.TLS.PeerCertificates) > 0:
		return broker.Credentials{Method: broker.ByTLS, ID: id, Chain: r.TLS.PeerCertificates}, nil
	}
	return broker.Credentials{ID: id}, nil
}

// basic reads the Authorization header. Whoever tries to authenticate by it is
// answered 401, whatever is wrong (RFC 6749 section 5.2).
func basic(r *http.Request, id string) (broker.Credentials, error) {
	user, pass, ok := r.BasicAuth()
	if !ok {
		return broker.Credentials{}, badClient("Authorization is not Basic")
	}
	// RFC 6749 section 2.3.1: both are form-encoded before they are joined.
	name, err1 := url.QueryUnescape(user)
	word, err2 := url.QueryUnescape(pass)
	switch {
	case err1 != nil || err2 != nil:
		return broker.Credentials{}, badClient("the credentials in Authorization are not encoded")
	case id != "" && id != name:
		return broker.Credentials{}, bad("client_id is not that of the credentials")
	}
	return broker.Credentials{Method: "client_secret_basic", ID: name, Secret: secret.New(word)}, nil
}

// badClient is the error for credentials that cannot be read. The caller is told
// no more than whoever has the wrong ones.
func badClient(why string) error {
	return broker.Fail(broker.BadClient, errors.New(why), "client authentication failed")
}

// exchangeRequest reads the form of a token request. Nothing else does.
func exchangeRequest(form url.Values) *broker.ExchangeRequest {
	return &broker.ExchangeRequest{
		GrantType:     form.Get("grant_type"),
		SubjectToken:  secret.New(form.Get("subject_token")),
		SubjectType:   form.Get("subject_token_type"),
		ActorToken:    secret.New(form.Get("actor_token")),
		ActorType:     form.Get("actor_token_type"),
		RequestedType: form.Get("requested_token_type"),
		Resources:     form["resource"],
		Audiences:     form["audience"],
		Scope:         form.Get("scope"),
		Details:       form.Get("authorization_details"),
	}
}

// token serves the token endpoint: RFC 6749 section 3.2, RFC 8693 section 2.
func (s *Server) token(c echo.Context) error {
	return s.grant(c, func(*broker.ExchangeRequest, url.Values) error { return nil }, writeIssued)
}

// renew lets a credential that is out live longer. The request is the one for another
// such credential, with lease_id; so is the decision, and what is answered is how long
// the one that there is will live.
func (s *Server) renew(c echo.Context) error {
	return s.grant(c, func(r *broker.ExchangeRequest, form url.Values) error {
		if r.Renew = form.Get("lease_id"); r.Renew == "" {
			return bad("lease_id is missing")
		}
		return nil
	}, writeRenewed)
}

// grant serves a request that may come to an exchange: more reads what only one of the
// endpoints takes, and write writes what was granted.
func (s *Server) grant(c echo.Context, more func(*broker.ExchangeRequest, url.Values) error, write func(echo.Context, *broker.Issued, time.Time) error) error {
	form, err := s.form(c, "resource", "audience") // RFC 8693 section 2.1
	if err != nil {
		return s.refuse(c, &broker.ExchangeRequest{}, err)
	}
	req := c.Request()
	req.PostForm, req.Form = form, form
	r := exchangeRequest(form)
	r.RequestID, r.Trace, r.Address = requestID(c), traceID(c), c.RealIP()
	r.Certificate = broker.Shown(req.TLS)
	switch r.GrantType {
	case broker.TokenExchange, broker.ClientCredentials:
	case "":
		return s.refuse(c, r, bad("grant_type is missing"))
	default:
		s.note(c, r, bad(unsupportedGrantType.Description))
		return s.answer(c, unsupportedGrantType)
	}
	if err := errors.Join(r.Check(), more(r, form)); err != nil {
		return s.refuse(c, r, err)
	}
	t := &tokenSession{request: r, server: s}
	if _, err := s.oauth.NewAccessRequest(req.Context(), req, t); err != nil {
		if t.authenticated == nil { // an exchange records its own end
			return s.refuse(c, r, err)
		}
		return s.fail(c, err)
	}
	return write(c, t.issued, s.now())
}

// renewed is how long a credential lives that was renewed.
type renewed struct {
	Lease   string          `json:"lease_id"`
	Seconds int64           `json:"expires_in"`
	Expires string          `json:"expires_at"`
	Details json.RawMessage `json:"authorization_details,omitempty"`
}

func writeRenewed(c echo.Context, i *broker.Issued, now time.Time) error {
	return c.JSON(http.StatusOK, renewed{
		Lease: i.Lease, Seconds: max(int64(i.Expires.Sub(now)/time.Second), 0),
		Expires: i.Expires.UTC().Format(time.RFC3339), Details: i.Details,
	})
}

// tokenSession is what travels through fosite with a request: the request, and
// what came of it.
type tokenSession struct {
	fosite.DefaultSession
	server        *Server
	request       *broker.ExchangeRequest
	authenticated *broker.Client
	issued        *broker.Issued
}

// oauthClient is a client as fosite wants to see it. fosite decides nothing by it.
type oauthClient struct{ *broker.Client }

func (c oauthClient) GetID() string                      { return c.ID }
func (c oauthClient) GetHashedSecret() []byte            { return nil }
func (c oauthClient) GetRedirectURIs() []string          { return nil }
func (c oauthClient) GetGrantTypes() fosite.Arguments    { return c.GrantTypes }
func (c oauthClient) GetResponseTypes() fosite.Arguments { return nil }
func (c oauthClient) GetScopes() fosite.Arguments        { return nil }
func (c oauthClient) IsPublic() bool                     { return false }
func (c oauthClient) GetAudience() fosite.Arguments      { return nil }

// authenticate is fosite's way to the broker's authentication: fosite's own is
// outside our vectors, and counts a jti as used before it looks at the audience.
func (s *Server) authenticate(ctx context.Context, r *http.Request, form url.Values) (fosite.Client, error) {
	client, err := s.client(ctx, r, form)
	if err != nil {
		return nil, err
	}
	return oauthClient{client}, nil
}

// client authenticates the client of a request, and holds it to its rate.
func (s *Server) client(ctx context.Context, r *http.Request, form url.Values) (*broker.Client, error) {
	cred, err := credentials(r, form)
	if err != nil {
		return nil, err
	}
	client, err := s.broker.AuthenticateClient(ctx, cred)
	if err != nil {
		return nil, err
	}
	if wait, ok := s.clients.take(purpose(r)+client.ID, s.now()); !ok {
		return nil, limited(wait)
	}
	return client, nil
}

func limited(wait time.Duration) error {
	e := broker.Fail(broker.Limited, nil, "too many requests; slow down")
	e.RetryAfter = wait
	return e
}

// exchangeHandler is the one handler that fosite has: it does the exchange.
type exchangeHandler struct{}

var _ fosite.TokenEndpointHandler = exchangeHandler{}

// CanHandleTokenEndpointRequest implements [fosite.TokenEndpointHandler].
func (exchangeHandler) CanHandleTokenEndpointRequest(_ context.Context, r fosite.AccessRequester) bool {
	_, ours := r.GetSession().(*tokenSession)
	return ours
}

// CanSkipClientAuth implements [fosite.TokenEndpointHandler]: never.
func (exchangeHandler) CanSkipClientAuth(context.Context, fosite.AccessRequester) bool { return false }

// HandleTokenEndpointRequest implements [fosite.TokenEndpointHandler].
func (exchangeHandler) HandleTokenEndpointRequest(ctx context.Context, r fosite.AccessRequester) (err error) {
	t := r.GetSession().(*tokenSession)
	t.authenticated = r.GetClient().(oauthClient).Client
	t.request.Client = t.authenticated
	t.issued, err = t.server.broker.Exchange(ctx, t.request)
	return err
}

// PopulateTokenEndpointResponse implements [fosite.TokenEndpointHandler]. The
// response is written by writeIssued, which knows members that fosite does not.
func (exchangeHandler) PopulateTokenEndpointResponse(context.Context, fosite.AccessRequester, fosite.AccessResponder) error {
	return fosite.ErrUnknownRequest
}

// writeIssued writes a response: RFC 8693 section 2.2.1, RFC 9396 section 7, and
// for a lease its id and the credential as an object.
func writeIssued(c echo.Context, i *broker.Issued, now time.Time) error {
	seconds := int64(i.Expires.Sub(now) / time.Second)
	text := i.Token.Reveal()
	size := len(text) + len(i.Details) + 256
	if i.Document {
		size += 2 * len(text)
	}
	b := make([]byte, 0, size)
	b = append(b, `{"access_token":`...)
	if i.Lease == "" { // a token of ours: base64url and dots
		b = append(append(append(b, '"'), text...), '"')
	} else {
		b = strictjson.AppendString(b, text)
	}
	b = append(b, `,"issued_token_type":`...)
	b = strictjson.AppendString(b, i.Type)
	b = append(b, `,"token_type":"`...)
	b = append(b, i.TokenType...)
	b = append(b, `","expires_in":`...)
	b = strconv.AppendInt(b, max(seconds, 0), 10)
	if len(i.Scope) > 0 {
		b = append(b, `,"scope":"`...)
		for n, scope := range i.Scope { // scope tokens need no escapes (RFC 6749 section 3.3)
			if n > 0 {
				b = append(b, ' ')
			}
			b = append(b, scope...)
		}
		b = append(b, '"')
	}
	if len(i.Details) > 0 {
		b = append(append(b, `,"authorization_details":`...), i.Details...)
	}
	if i.Lease != "" {
		b = append(b, `,"lease_id":`...)
		b = strictjson.AppendString(b, i.Lease)
		b = append(b, `,"expires_at":"`...)
		b = i.Expires.UTC().AppendFormat(b, time.RFC3339)
		b = append(b, '"')
	}
	if i.Call != "" {
		b = append(b, `,"call":`...)
		b = strictjson.AppendString(b, i.Call)
	}
	if i.Document {
		if !json.Valid([]byte(text)) {
			return errors.New("a credential that is no JSON document")
		}
		b = append(append(b, `,"credential":`...), text...)
	}
	b = append(b, '}')
	return c.Blob(http.StatusOK, "application/json", b)
}
