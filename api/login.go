package api

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// SignIn is the organisation's provider, at which people sign in.
type SignIn interface {
	// Begin returns where a browser has to go (OpenID Connect Core section 3.1.2.1), with
	// PKCE by a verifier (RFC 7636).
	Begin(ctx context.Context, state, nonce, verifier string) (where string, err error)
	// Finish exchanges a code for an ID token, whose nonce it checks; its signature is for
	// others to verify. iss is the parameter of that name (RFC 9207), empty if there was
	// none. An error with the code BadToken means that the sign-in is refused, Unavailable
	// that the provider could not be asked.
	Finish(ctx context.Context, iss, code, verifier, nonce string) (idToken secret.String, err error)
}

// Door is where people sign in to something of Stint's own: to administer it, or to link
// accounts.
type Door struct {
	// Resource is the identifier of what they get in to, as a resource.
	Resource string
	// Issuer is where people sign in, and Client the client of ours that they do it by.
	Issuer string
	Client *broker.Client
	SignIn SignIn
}

// door is one with its pages. What signs people in at one is worth nothing at another.
type door struct {
	*Server
	Door
	// path is where its pages are, below the issuer, and scope what is asked for there.
	path, scope string
	// session and begun name its cookies: see below.
	session, begun string
	// sealed says that the cookie of the session is encrypted: it cannot be taken for a
	// token, nor a token for it.
	sealed bool
	// out and ask are its pages for who is not signed in, and for command lines; none says
	// what who may do nothing is told.
	out, ask, none string
	// handover binds the codes for command lines.
	handover string
	// next is where somebody goes who has signed in to go there; empty: to its first page.
	next func(to string) string
}

// The cookies. Their names bind them to this origin, over TLS (RFC 6265bis section
// 4.1.3.2); browsers make an exception for loopback addresses.
const (
	sessionCookie = "__Host-stint"
	signInCookie  = "__Host-stint-sign-in"
)

// administrators returns the door for administrators; nil without one.
func (s *Server) administrators() *door {
	if s.cfg.Admin == nil {
		return nil
	}
	return &door{
		Server: s, Door: *s.cfg.Admin, path: "/login", scope: strings.Join([]string{scopeRead, scopeOperate, scopeAdminister, scopeApprove}, " "),
		session: sessionCookie, begun: signInCookie, out: "out", ask: "cli", handover: "stint login",
		none: "You are who you say, but no rule lets you administer this installation. Somebody who may can change the mapping of the admin API.",
		next: func(string) string { return "" },
	}
}

// doorOf returns the door that a page is behind.
func (s *Server) doorOf(c echo.Context) *door {
	if route, _ := strings.CutPrefix(c.Path(), s.base()); s.cfg.Connect != nil && (route == broker.ConnectPath || strings.HasPrefix(route, broker.ConnectPath+"/")) {
		return s.people()
	}
	return s.administrators()
}

func (s *Server) signInClient() string {
	if s.cfg.Admin == nil {
		return ""
	}
	return s.cfg.Admin.Client.ID
}

// maxCookie is how long a cookie's value may be, in bytes: browsers keep 4096 of name,
// value and attributes (RFC 6265bis section 5.7).
const maxCookie = 3800

// signInTime is how long a sign-in may take.
const signInTime = 10 * time.Minute

// signingIn is what the browser keeps, sealed, while somebody signs in.
type signingIn struct {
	State    string   `json:"state"`
	Nonce    string   `json:"nonce"`
	Verifier string   `json:"verifier"`
	Ends     int64    `json:"ends"`
	For      handover `json:"for,omitzero"`
	// To is where to go then, below the door.
	To string `json:"to,omitempty"`
}

func setCookie(c echo.Context, name, value string, age time.Duration) {
	cookie := &http.Cookie{Name: name, Value: value, Path: "/", MaxAge: int(age.Seconds()), Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	if value == "" {
		cookie.MaxAge = -1
	}
	c.SetCookie(cookie)
}

// signedIn returns the token of whoever is signed in; nil if nobody is.
func (s *door) signedIn(c echo.Context) (raw secret.String, t *broker.Token, err error) {
	cookie, err := c.Cookie(s.session)
	if err != nil || cookie.Value == "" {
		return raw, nil, nil //nolint:nilerr // there is no cookie
	}
	raw = secret.New(cookie.Value)
	if s.sealed {
		text, ok := s.opened(cookie.Value, s.session)
		if !ok {
			setCookie(c, s.session, "", 0)
			return raw, nil, nil
		}
		raw = secret.New(string(text))
	}
	t, err = s.broker.Admit(c.Request().Context(), raw, s.Resource, broker.Shown(c.Request().TLS))
	if broker.CodeOf(err) == broker.BadToken {
		setCookie(c, s.session, "", 0)
		return raw, nil, nil
	}
	return raw, t, err
}

// opened returns what was sealed for a context and sent as a text.
func (s *Server) opened(text, context string) ([]byte, bool) {
	sealed, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil, false
	}
	plain, err := s.cfg.Sealer.Open(sealed, context)
	return plain, err == nil
}

// closed seals something for a context, as a text.
func (s *Server) closed(plain []byte, context string) (string, error) {
	sealed, err := s.cfg.Sealer.Seal(plain, context)
	return base64.RawURLEncoding.EncodeToString(sealed), err
}

// routes adds the pages by which people sign in, and the command line with them.
func (s *door) routes(g *echo.Group, first echo.HandlerFunc) {
	get(g.Match, s.path, s.limited(first))
	g.GET(s.path+"/start", s.limited(s.start))
	g.GET(s.path+"/callback", s.limited(s.callback))
	g.POST(s.path+"/end", s.limited(s.end))
	get(g.Match, s.path+"/cli", s.limited(s.cliPage))
	g.POST(s.path+"/cli", s.limited(s.cliAnswer))
	g.POST(s.path+"/token", s.limited(s.cliToken))
}

func (s *door) loginPage(c echo.Context) error {
	_, t, err := s.signedIn(c)
	switch {
	case err != nil:
		return s.refusedPage(c, "Not now", err)
	case t == nil:
		return s.page(c, http.StatusOK, s.out, view{Title: "Sign in"})
	}
	v, err := s.viewOf(t, "You are signed in")
	if err != nil {
		return s.refusedPage(c, "Not now", err)
	}
	return s.page(c, http.StatusOK, "in", v)
}

// viewOf is what is shown to whoever is signed in.
func (s *Server) viewOf(t *broker.Token, title string) (view, error) {
	csrf, err := s.cfg.Sealer.Seal([]byte(t.ID), "csrf")
	return view{
		Title: title, Subject: t.Subject, Scopes: t.Scope, Until: t.Expires.UTC().Format("2006-01-02 15:04 MST"),
		CSRF: base64.RawURLEncoding.EncodeToString(csrf),
	}, err
}

// ownForm reports whether a form was sent from a page of ours that was made for this
// token. The browser's own word for it (Origin, Sec-Fetch-Site) counts as well.
func (s *Server) ownForm(c echo.Context, t *broker.Token, form url.Values) bool {
	if new(http.CrossOriginProtection).Check(c.Request()) != nil {
		return false
	}
	sealed, err := base64.RawURLEncoding.DecodeString(form.Get("csrf"))
	if err != nil {
		return false
	}
	id, err := s.cfg.Sealer.Open(sealed, "csrf")
	return err == nil && subtle.ConstantTimeCompare(id, []byte(t.ID)) == 1
}

// start sends a browser to the organisation's provider.
func (s *door) start(c echo.Context) error {
	in := signingIn{State: rand.Text(), Nonce: rand.Text(), Verifier: rand.Text() + rand.Text(), Ends: s.now().Add(signInTime).Unix()}
	if !in.For.read(c.QueryParams()) {
		return s.said(c, http.StatusBadRequest, "This does not work", "The address is not what a command line would have opened.")
	}
	in.To = s.next(c.QueryParam("to"))
	where, err := s.SignIn.Begin(c.Request().Context(), in.State, in.Nonce, in.Verifier)
	if err != nil {
		return s.refusedPage(c, "Signing in is not possible now", err)
	}
	doc, err := json.Marshal(in)
	if err != nil {
		return err
	}
	sealed, err := s.closed(doc, s.begun)
	if err != nil {
		return s.refusedPage(c, "Signing in is not possible now", err)
	}
	setCookie(c, s.begun, sealed, signInTime)
	return c.Redirect(http.StatusSeeOther, where)
}

// began returns what this browser began, if the state that came back is of it.
func (s *door) began(c echo.Context, state string) (in signingIn, ok bool) {
	cookie, err := c.Cookie(s.begun)
	if err != nil {
		return in, false
	}
	doc, ok := s.opened(cookie.Value, s.begun)
	if !ok || strictjson.Decode(doc, &in) != nil {
		return in, false
	}
	return in, s.now().Unix() < in.Ends && subtle.ConstantTimeCompare([]byte(in.State), []byte(state)) == 1
}

// callback is where the provider sends the browser back to.
func (s *door) callback(c echo.Context) error {
	q := c.QueryParams()
	in, ok := s.began(c, q.Get("state"))
	if !ok {
		return s.said(c, http.StatusBadRequest, "Sign in again", "This browser did not begin this sign-in, or it took longer than ten minutes.")
	}
	setCookie(c, s.begun, "", 0)
	if e := q.Get("error"); e != "" {
		return s.said(c, http.StatusForbidden, "You are not signed in", "The provider said: "+printable(e)+".")
	}
	ctx := c.Request().Context()
	id, err := s.SignIn.Finish(ctx, q.Get("iss"), q.Get("code"), in.Verifier, in.Nonce)
	if err != nil {
		s.noteSignIn(c, err)
		return s.refusedPage(c, "You are not signed in", err)
	}
	issued, err := s.exchange(c, id, broker.TypeID)
	switch broker.CodeOf(err) {
	case "":
	case broker.BadScope:
		return s.said(c, http.StatusForbidden, "You may do nothing here", s.none)
	default:
		return s.refusedPage(c, "You are not signed in", err)
	}
	value, err := s.kept(issued.Token)
	if err != nil {
		return s.refusedPage(c, "You are not signed in", err)
	}
	if len(value) > maxCookie {
		return s.said(c, http.StatusForbidden, "You are not signed in", "Your token is longer than a browser keeps: you are in very many groups that the mappings name.")
	}
	setCookie(c, s.session, value, issued.Expires.Sub(s.now()))
	next := s.base() + s.path + in.To
	if in.For.Port != "" {
		next = s.base() + s.path + "/cli?" + in.For.query()
	}
	return c.Redirect(http.StatusSeeOther, next)
}

// kept is a token as the browser keeps it.
func (s *door) kept(token secret.String) (string, error) {
	if s.sealed {
		return s.closed([]byte(token.Reveal()), s.session)
	}
	return token.Reveal(), nil
}

// noteSignIn records a sign-in that did not come to an exchange.
func (s *door) noteSignIn(c echo.Context, err error) {
	s.broker.Refuse(c.Request().Context(), &broker.ExchangeRequest{
		GrantType: broker.TokenExchange, RequestID: requestID(c), Trace: traceID(c), Address: c.RealIP(),
	}, s.Client.ID, err)
}

// exchange gets a token for what is behind the door, for whoever a token speaks for: by the same
// steps as any other exchange, with the same record.
func (s *door) exchange(c echo.Context, subject secret.String, kind string) (*broker.Issued, error) {
	return s.broker.Exchange(c.Request().Context(), &broker.ExchangeRequest{
		GrantType: broker.TokenExchange, Client: s.Client, SubjectToken: subject, SubjectType: kind,
		Resources: []string{s.Resource}, Scope: s.scope,
		RequestID: requestID(c), Trace: traceID(c), Address: c.RealIP(),
	})
}

// end signs out: the token is revoked, and with it what a command line got by it.
func (s *door) end(c echo.Context) error {
	bearer := c.Request().Header.Get("Authorization") != ""
	var t *broker.Token
	var err error
	if bearer {
		t, err = s.bearer(c, s.Resource)
	} else {
		_, t, err = s.signedIn(c)
	}
	form, formErr := s.form(c)
	switch {
	case bearer && err != nil:
		p := toProblem(adminEndpoint, err)
		if p.status == http.StatusUnauthorized {
			c.Response().Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`) // RFC 6750 section 3.1
		}
		s.logRefusal(c, p, err)
		return s.answer(c, p)
	case err != nil:
		return s.refusedPage(c, "You are still signed in", err)
	case t == nil:
		return c.Redirect(http.StatusSeeOther, s.base()+s.path)
	case !bearer && (formErr != nil || !s.ownForm(c, t, form)):
		return s.said(c, http.StatusForbidden, "You are still signed in", "This did not come from a page of ours that was made for you.")
	}
	person := s.person(t)
	_, err = s.broker.Revoke(c.Request().Context(), broker.Revocation{
		Selector: broker.Selector{Token: t.ID}, Reason: "signed out", Operator: person, RequestID: requestID(c),
	})
	switch {
	case bearer && err != nil:
		return s.fail(c, err)
	case bearer:
		return c.NoContent(http.StatusNoContent)
	case err != nil:
		return s.refusedPage(c, "You are still signed in", err)
	}
	setCookie(c, s.session, "", 0)
	return c.Redirect(http.StatusSeeOther, s.base()+s.path)
}
