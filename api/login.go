package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"embed"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
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

// Admin is how administrators get in over the network.
type Admin struct {
	// Resource is the identifier of the admin API as a resource.
	Resource string
	// Issuer is where people sign in, and Client the client of ours that they do it by.
	Issuer string
	Client *broker.Client
	SignIn SignIn
}

func (s *Server) signInClient() string {
	if s.cfg.Admin == nil {
		return ""
	}
	return s.cfg.Admin.Client.ID
}

// The cookies. Their names bind them to this origin, over TLS (RFC 6265bis section
// 4.1.3.2); browsers make an exception for loopback addresses.
const (
	sessionCookie = "__Host-stint"
	signInCookie  = "__Host-stint-sign-in"
)

// maxCookie is how long a cookie's value may be, in bytes: browsers keep 4096 of name,
// value and attributes (RFC 6265bis section 5.7).
const maxCookie = 3800

// signInTime is how long a sign-in may take.
const signInTime = 10 * time.Minute

// handover is a command line that waits for somebody to sign in.
type handover struct {
	Port      string `json:"port,omitempty"`
	Challenge string `json:"challenge,omitempty"`
	State     string `json:"state,omitempty"`
}

// read takes a handover from parameters. ok is false if something is there that is none.
func (h *handover) read(v url.Values) (ok bool) {
	h.Port, h.Challenge, h.State = v.Get("port"), v.Get("code_challenge"), v.Get("state")
	if h.Port == "" {
		return true
	}
	port, err := strconv.Atoi(h.Port)
	challenge, err2 := base64.RawURLEncoding.DecodeString(h.Challenge)
	return err == nil && err2 == nil && port > 0 && port < 1<<16 && len(challenge) == sha256.Size &&
		len(h.State) >= 16 && len(h.State) <= 128 && strings.Trim(h.State, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// code is what both the page and the command line show, so that a person can compare.
func (h *handover) code() string { return HandoverCode(h.Challenge) }

// HandoverCode is the code that the page and the command line show for a challenge.
func HandoverCode(challenge string) string {
	sum := sha256.Sum256([]byte("stint login\x00" + challenge))
	const letters = "BCDFGHJKLMNPQRSTVWXZ2456789BCDFG"
	var out []byte
	for i, b := range sum[:8] {
		if i == 4 {
			out = append(out, '-')
		}
		out = append(out, letters[b&31])
	}
	return string(out)
}

func (h *handover) query() string {
	return url.Values{"port": {h.Port}, "code_challenge": {h.Challenge}, "state": {h.State}}.Encode()
}

// signingIn is what the browser keeps, sealed, while somebody signs in.
type signingIn struct {
	State    string   `json:"state"`
	Nonce    string   `json:"nonce"`
	Verifier string   `json:"verifier"`
	Ends     int64    `json:"ends"`
	For      handover `json:"for,omitzero"`
}

//go:embed pages/pages.html
var pagesText embed.FS

// pages are parsed with the first page, and not with the program.
var pages = sync.OnceValue(func() *template.Template { return template.Must(template.ParseFS(pagesText, "pages/pages.html")) })

// view is what pages show.
type view struct {
	Title, Nonce, Issuer, Base, At string
	Text, Request                  string
	Subject, Until, CSRF           string
	Scopes                         []string
	Code                           string
	handover
}

func (s *Server) base() string {
	u, _ := url.Parse(s.cfg.Issuer) // New has checked it
	return u.Path
}

// page writes a page. redirects are origins besides our own that its forms may end up
// at.
func (s *Server) page(c echo.Context, status int, name string, v view, redirects ...string) error {
	v.Nonce, v.Issuer, v.Base, v.At = rand.Text(), s.cfg.Issuer, s.base(), s.cfg.Admin.Issuer
	h := c.Response().Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'nonce-"+v.Nonce+"'; form-action "+
		strings.Join(append([]string{"'self'"}, redirects...), " ")+"; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set(echo.HeaderContentType, "text/html; charset=utf-8")
	c.Response().WriteHeader(status)
	return pages().ExecuteTemplate(c.Response(), name, v)
}

// said is a page with a sentence.
func (s *Server) said(c echo.Context, status int, title, text string) error {
	return s.page(c, status, "said", view{Title: title, Text: text, Request: requestID(c)})
}

// isPage reports whether a request is for a page, and not of a program.
func isPage(c echo.Context) bool {
	return strings.Contains(c.Path(), "/login") && !strings.HasSuffix(c.Path(), "/login/token") && c.Request().Header.Get("Authorization") == ""
}

// refusedPage says on a page what an error says, and logs it.
func (s *Server) refusedPage(c echo.Context, title string, err error) error {
	p := toProblem(adminEndpoint, err)
	s.logRefusal(c, p, err)
	s.cfg.Metrics.refused(c.Path(), p.Error)
	if p.retryAfter > 0 {
		c.Response().Header().Set("Retry-After", strconv.Itoa(int(p.retryAfter.Seconds()+0.999)))
	}
	text := p.Description
	if text == "" {
		text = "Something went wrong here."
	}
	return s.said(c, p.status, title, text)
}

func setCookie(c echo.Context, name, value string, age time.Duration) {
	cookie := &http.Cookie{Name: name, Value: value, Path: "/", MaxAge: int(age.Seconds()), Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	if value == "" {
		cookie.MaxAge = -1
	}
	c.SetCookie(cookie)
}

// signedIn returns the token of whoever is signed in; nil if nobody is.
func (s *Server) signedIn(c echo.Context) (raw secret.String, t *broker.Token, err error) {
	cookie, err := c.Cookie(sessionCookie)
	if err != nil || cookie.Value == "" {
		return raw, nil, nil //nolint:nilerr // there is no cookie
	}
	raw = secret.New(cookie.Value)
	t, err = s.broker.Admit(c.Request().Context(), raw, s.cfg.Admin.Resource)
	if broker.CodeOf(err) == broker.BadToken {
		setCookie(c, sessionCookie, "", 0)
		return raw, nil, nil
	}
	return raw, t, err
}

// loginRoutes adds the pages.
func (s *Server) loginRoutes(g *echo.Group) {
	get(g.Match, "/login", s.limited(s.loginPage))
	g.GET("/login/start", s.limited(s.loginStart))
	g.GET("/login/callback", s.limited(s.loginCallback))
	g.POST("/login/end", s.limited(s.loginEnd))
	get(g.Match, "/login/cli", s.limited(s.cliPage))
	g.POST("/login/cli", s.limited(s.cliAnswer))
	g.POST("/login/token", s.limited(s.cliToken))
}

func (s *Server) loginPage(c echo.Context) error {
	_, t, err := s.signedIn(c)
	switch {
	case err != nil:
		return s.refusedPage(c, "Not now", err)
	case t == nil:
		return s.page(c, http.StatusOK, "out", view{Title: "Sign in"})
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

// loginStart sends a browser to the organisation's provider.
func (s *Server) loginStart(c echo.Context) error {
	in := signingIn{State: rand.Text(), Nonce: rand.Text(), Verifier: rand.Text() + rand.Text(), Ends: s.now().Add(signInTime).Unix()}
	if !in.For.read(c.QueryParams()) {
		return s.said(c, http.StatusBadRequest, "This does not work", "The address is not what a command line would have opened.")
	}
	where, err := s.cfg.Admin.SignIn.Begin(c.Request().Context(), in.State, in.Nonce, in.Verifier)
	if err != nil {
		return s.refusedPage(c, "Signing in is not possible now", err)
	}
	doc, err := json.Marshal(in)
	if err != nil {
		return err
	}
	sealed, err := s.cfg.Sealer.Seal(doc, signInCookie)
	if err != nil {
		return s.refusedPage(c, "Signing in is not possible now", err)
	}
	setCookie(c, signInCookie, base64.RawURLEncoding.EncodeToString(sealed), signInTime)
	return c.Redirect(http.StatusSeeOther, where)
}

// begun returns what this browser began, if the state that came back is of it.
func (s *Server) begun(c echo.Context, state string) (in signingIn, ok bool) {
	cookie, err := c.Cookie(signInCookie)
	if err != nil {
		return in, false
	}
	sealed, err := base64.RawURLEncoding.DecodeString(cookie.Value)
	if err != nil {
		return in, false
	}
	doc, err := s.cfg.Sealer.Open(sealed, signInCookie)
	if err != nil || strictjson.Decode(doc, &in) != nil {
		return in, false
	}
	return in, s.now().Unix() < in.Ends && subtle.ConstantTimeCompare([]byte(in.State), []byte(state)) == 1
}

// loginCallback is where the provider sends the browser back to.
func (s *Server) loginCallback(c echo.Context) error {
	q := c.QueryParams()
	in, ok := s.begun(c, q.Get("state"))
	if !ok {
		return s.said(c, http.StatusBadRequest, "Sign in again", "This browser did not begin this sign-in, or it took longer than ten minutes.")
	}
	setCookie(c, signInCookie, "", 0)
	if e := q.Get("error"); e != "" {
		return s.said(c, http.StatusForbidden, "You are not signed in", "The provider said: "+printable(e)+".")
	}
	ctx := c.Request().Context()
	id, err := s.cfg.Admin.SignIn.Finish(ctx, q.Get("iss"), q.Get("code"), in.Verifier, in.Nonce)
	if err != nil {
		s.noteSignIn(c, err)
		return s.refusedPage(c, "You are not signed in", err)
	}
	issued, err := s.exchange(c, id, broker.TypeID)
	switch broker.CodeOf(err) {
	case "":
	case broker.BadScope:
		return s.said(c, http.StatusForbidden, "You may do nothing here", "You are who you say, but no rule lets you administer this installation. Somebody who may can change the mapping of the admin API.")
	default:
		return s.refusedPage(c, "You are not signed in", err)
	}
	if issued.Token.Len() > maxCookie {
		return s.said(c, http.StatusForbidden, "You are not signed in", "Your token is longer than a browser keeps: you are in very many groups that the mappings name.")
	}
	setCookie(c, sessionCookie, issued.Token.Reveal(), issued.Expires.Sub(s.now()))
	next := s.base() + "/login"
	if in.For.Port != "" {
		next += "/cli?" + in.For.query()
	}
	return c.Redirect(http.StatusSeeOther, next)
}

// noteSignIn records a sign-in that did not come to an exchange.
func (s *Server) noteSignIn(c echo.Context, err error) {
	s.broker.Refuse(c.Request().Context(), &broker.ExchangeRequest{
		GrantType: broker.TokenExchange, RequestID: requestID(c), Trace: traceID(c), Address: c.RealIP(),
	}, s.cfg.Admin.Client.ID, err)
}

// exchange gets a token for the admin API, for whoever a token speaks for: by the same
// steps as any other exchange, with the same record.
func (s *Server) exchange(c echo.Context, subject secret.String, kind string) (*broker.Issued, error) {
	return s.broker.Exchange(c.Request().Context(), &broker.ExchangeRequest{
		GrantType: broker.TokenExchange, Client: s.cfg.Admin.Client, SubjectToken: subject, SubjectType: kind,
		Resources: []string{s.cfg.Admin.Resource}, Scope: strings.Join([]string{scopeRead, scopeOperate, scopeAdminister, scopeApprove}, " "),
		RequestID: requestID(c), Trace: traceID(c), Address: c.RealIP(),
	})
}

// loginEnd signs out: the token is revoked, and with it what a command line got by it.
func (s *Server) loginEnd(c echo.Context) error {
	bearer := c.Request().Header.Get("Authorization") != ""
	var t *broker.Token
	var err error
	if bearer {
		t, err = s.bearer(c)
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
		return c.Redirect(http.StatusSeeOther, s.base()+"/login")
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
	setCookie(c, sessionCookie, "", 0)
	return c.Redirect(http.StatusSeeOther, s.base()+"/login")
}

// cliPage asks whoever is signed in whether a command line may act for him.
func (s *Server) cliPage(c echo.Context) error {
	var h handover
	if !h.read(c.QueryParams()) || h.Port == "" {
		return s.said(c, http.StatusBadRequest, "This does not work", "The address is not what a command line would have opened.")
	}
	_, t, err := s.signedIn(c)
	switch {
	case err != nil:
		return s.refusedPage(c, "Not now", err)
	case t == nil:
		return c.Redirect(http.StatusSeeOther, s.base()+"/login/start?"+h.query())
	}
	v, err := s.viewOf(t, "Let the command line in?")
	if err != nil {
		return s.refusedPage(c, "Not now", err)
	}
	v.handover, v.Code = h, h.code()
	return s.page(c, http.StatusOK, "cli", v, "http://127.0.0.1:"+h.Port)
}

// handedOver is what a command line gets as a code, sealed.
type handedOver struct {
	Token     string `json:"token"`
	Challenge string `json:"challenge"`
	Ends      int64  `json:"ends"`
}

// handoverTime is how long a command line may take to come for its token.
const handoverTime = time.Minute

const handoverContext = "stint login"

// cliAnswer sends the browser to the command line, with a code if it may come in.
func (s *Server) cliAnswer(c echo.Context) error {
	form, err := s.form(c)
	if err != nil {
		return s.refusedPage(c, "This does not work", err)
	}
	var h handover
	raw, t, err := s.signedIn(c)
	switch {
	case err != nil:
		return s.refusedPage(c, "Not now", err)
	case t == nil || !h.read(form) || h.Port == "" || !s.ownForm(c, t, form):
		return s.said(c, http.StatusForbidden, "The command line was not let in", "This did not come from a page of ours that was made for you.")
	}
	back := url.Values{"state": {h.State}}
	if form.Get("answer") != "allow" {
		back.Set("error", "access_denied")
	} else {
		doc, err := json.Marshal(handedOver{raw.Reveal(), h.Challenge, s.now().Add(handoverTime).Unix()})
		if err != nil {
			return err
		}
		code, err := s.cfg.Sealer.Seal(doc, handoverContext)
		if err != nil {
			return s.refusedPage(c, "Not now", err)
		}
		back.Set("code", base64.RawURLEncoding.EncodeToString(code))
	}
	return c.Redirect(http.StatusSeeOther, "http://127.0.0.1:"+h.Port+"/?"+back.Encode())
}

// tokenForCLI is what a command line is answered (RFC 6749 section 5.1).
type tokenForCLI struct {
	Token     string `json:"access_token"`
	Type      string `json:"token_type"`
	ExpiresIn int64  `json:"expires_in"`
	Scope     string `json:"scope"`
	Resource  string `json:"resource"`
}

// cliToken exchanges a code, once, for a token that descends from the browser's.
func (s *Server) cliToken(c echo.Context) error {
	form, err := s.form(c)
	if err != nil {
		return s.fail(c, err)
	}
	refused := problem{Error: "invalid_grant", Description: "the code is not good, or not any more: run stint login again", status: http.StatusBadRequest}
	sealed, err := base64.RawURLEncoding.DecodeString(form.Get("code"))
	if err != nil {
		return s.answer(c, refused)
	}
	doc, err := s.cfg.Sealer.Open(sealed, handoverContext)
	var h handedOver
	if err != nil || strictjson.Decode(doc, &h) != nil {
		return s.answer(c, refused)
	}
	sum := sha256.Sum256([]byte(form.Get("code_verifier")))
	if s.now().Unix() >= h.Ends || subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(h.Challenge)) != 1 {
		return s.answer(c, refused)
	}
	used := sha256.Sum256(sealed)
	was, err := s.cfg.Answers.Claim(c.Request().Context(), handoverContext+"\x00"+string(used[:]), []byte("used"), s.now().Add(2*handoverTime))
	switch {
	case err != nil:
		return s.fail(c, broker.Fail(broker.Unavailable, err, "codes cannot be checked now"))
	case was != nil:
		return s.answer(c, refused)
	}
	issued, err := s.exchange(c, secret.New(h.Token), broker.TypeAccess)
	if err != nil {
		return s.fail(c, err)
	}
	return c.JSON(http.StatusOK, tokenForCLI{
		issued.Token.Reveal(), issued.TokenType, int64(issued.Expires.Sub(s.now()).Seconds()), strings.Join(issued.Scope, " "), s.cfg.Admin.Resource,
	})
}

// printable is a piece of a stranger's text, as it may be shown.
func printable(text string) string {
	return describe(text[:min(len(text), 64)])
}
