package api

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

// Linker is what people who link accounts need.
type Linker interface {
	Accounts(ctx context.Context, l broker.Linking) ([]broker.Linkable, error)
	OfferLink(ctx context.Context, l broker.Linking, redirect string) (*broker.LinkOffer, error)
	BeginLink(ctx context.Context, l broker.Linking, a broker.LinkAnswer) (where string, err error)
	FinishLink(ctx context.Context, l broker.Linking, a broker.LinkAnswer) (*broker.Account, error)
	Unlink(ctx context.Context, l broker.Linking) (broker.Outcome, error)
	// RefuseLink records an answer that did not come to FinishLink.
	RefuseLink(ctx context.Context, l broker.Linking, err error)
}

// The cookies of those who link accounts: the second is one for each upstream.
const (
	connectCookie = "__Host-stint-connect"
	connectSignIn = "__Host-stint-connect-sign-in"
	linkCookie    = "__Host-stint-link-"
)

// linkTime is how long linking an account may take.
const linkTime = 10 * time.Minute

// scopeAccounts is the scope of the resource at which accounts are linked.
const scopeAccounts = "accounts"

// people returns the door for those who link accounts. What they get there speaks of who
// they are, and lets them do nothing else.
func (s *Server) people() *door {
	return &door{
		Server: s, Door: *s.cfg.Connect, path: broker.ConnectPath, scope: scopeAccounts, session: connectCookie, begun: connectSignIn,
		sealed: true, out: "connect-out", ask: "connect-cli", handover: "stint connect",
		none: "You are who you say, but accounts cannot be linked by this sign-in.",
		next: func(to string) string {
			if !isProvider(to) {
				return ""
			}
			return "/" + to
		},
	}
}

// isProvider reports whether a text has the form of a provider's name.
func isProvider(name string) bool {
	return name != "" && len(name) <= 63 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// connectRoutes adds the pages at which people link accounts, and what the command line
// asks.
func (s *Server) connectRoutes(g *echo.Group) {
	d := s.people()
	d.routes(g, d.accounts)
	g.GET(d.path+"/v1/accounts", s.limited(d.listAccounts))
	g.DELETE(d.path+"/v1/accounts/:provider", s.limited(d.removeAccount))
	get(g.Match, d.path+"/:provider", s.limited(d.offer))
	g.POST(d.path+"/:provider", s.limited(d.link))
	g.GET(d.path+"/:provider/callback", s.limited(d.linked))
	g.POST(d.path+"/:provider/unlink", s.limited(d.unlink))
}

// linking is what a request is about.
func (s *Server) linking(c echo.Context, t *broker.Token) broker.Linking {
	return broker.Linking{Person: t, Provider: c.Param("provider"), RequestID: requestID(c), Trace: traceID(c), Address: c.RealIP()}
}

// accountView is an upstream, as a page shows it.
type accountView struct {
	Provider, About, Problem string
	Account                  *broker.Account
	Since, Until             string
}

// day is a time as pages show it.
func day(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04 MST")
}

func viewOfAccount(l broker.Linkable) accountView {
	v := accountView{Provider: l.Provider, About: l.About, Problem: l.Problem, Account: l.Account}
	if a := l.Account; a != nil {
		v.Since, v.Until = day(a.Since), day(a.Expires)
	}
	return v
}

// accounts is the page of somebody's accounts.
func (s *door) accounts(c echo.Context) error {
	_, t, err := s.signedIn(c)
	switch {
	case err != nil:
		return s.refusedPage(c, "Not now", err)
	case t == nil:
		return s.page(c, http.StatusOK, s.out, view{Title: "Your accounts"})
	}
	all, err := s.broker.Accounts(c.Request().Context(), s.linking(c, t))
	if err != nil {
		return s.refusedPage(c, "Not now", err)
	}
	v, err := s.viewOf(t, "Your accounts")
	if err != nil {
		return s.refusedPage(c, "Not now", err)
	}
	for _, l := range all {
		v.Accounts = append(v.Accounts, viewOfAccount(l))
	}
	return s.page(c, http.StatusOK, "accounts", v)
}

// redirectURI is where an upstream sends people back to: one for each, so that the answer
// of one is not taken for another's (RFC 9700 section 4.4.2.2).
func (s *door) redirectURI(provider string) string {
	return s.Resource + "/" + provider + "/callback"
}

// offer is the page that says which account would be linked, and for whom.
func (s *door) offer(c echo.Context) error {
	_, t, err := s.signedIn(c)
	switch {
	case err != nil:
		return s.refusedPage(c, "Not now", err)
	case !isProvider(c.Param("provider")):
		return s.said(c, http.StatusNotFound, "No account can be linked", "Nothing has this name.")
	case t == nil || t.Expires.Before(s.now().Add(linkTime)): // he would not be back in time
		return c.Redirect(http.StatusSeeOther, s.base()+s.path+"/start?"+url.Values{"to": {c.Param("provider")}}.Encode())
	}
	l := s.linking(c, t)
	o, err := s.broker.OfferLink(c.Request().Context(), l, s.redirectURI(l.Provider))
	if err != nil {
		return s.refusedPage(c, "No account can be linked", err)
	}
	v, err := s.viewOf(t, "Link your account at "+o.Site+"?")
	if err != nil {
		return s.refusedPage(c, "Not now", err)
	}
	v.Provider, v.Site, v.Scopes, v.Accounts = l.Provider, o.Site, o.Scopes, []accountView{viewOfAccount(o.Linkable)}
	return s.page(c, http.StatusOK, "offer", v)
}

// attempt is what the browser keeps, sealed, while somebody is at an upstream: nothing
// that comes back counts but in this browser, in this session, and for this person.
type attempt struct {
	Provider string `json:"provider"`
	Subject  string `json:"subject"`
	Session  string `json:"session"` // the id of the token
	State    string `json:"state"`
	Verifier string `json:"verifier"`
	Ends     int64  `json:"ends"`
}

// asked returns who sent a form of ours; t is nil if an answer has been written.
func (s *door) asked(c echo.Context, title string) (t *broker.Token, err error) {
	form, formErr := s.form(c)
	_, t, err = s.signedIn(c)
	switch {
	case err != nil:
		return nil, s.refusedPage(c, title, err)
	case t == nil || formErr != nil || !s.ownForm(c, t, form):
		return nil, s.said(c, http.StatusForbidden, title, "This did not come from a page of ours that was made for you, or you are not signed in any more.")
	}
	return t, nil
}

// link sends a browser to an upstream.
func (s *door) link(c echo.Context) error {
	t, err := s.asked(c, "Nothing was linked")
	if t == nil {
		return err
	}
	l := s.linking(c, t)
	in := attempt{
		Provider: l.Provider, Subject: t.Subject, Session: t.ID, State: rand.Text(), Verifier: rand.Text() + rand.Text(),
		Ends: s.now().Add(linkTime).Unix(),
	}
	where, err := s.broker.BeginLink(c.Request().Context(), l, s.answerOf(in))
	if err != nil {
		return s.refusedPage(c, "Nothing was linked", err)
	}
	doc, err := json.Marshal(in)
	if err != nil {
		return err
	}
	sealed, err := s.closed(doc, linkCookie+l.Provider)
	if err != nil {
		return s.refusedPage(c, "Nothing was linked", err)
	}
	setCookie(c, linkCookie+l.Provider, sealed, linkTime)
	// Not by a redirect: browsers hold every hop after a form against form-action, and
	// which sites an upstream leads to in turn is not known here.
	c.Response().Header().Set("Refresh", "0; url="+where)
	site, err := url.Parse(where)
	if err != nil {
		return err
	}
	return s.page(c, http.StatusOK, "going", view{Title: "On to " + site.Host, Site: site.Host, Where: template.URL(where)}) //nolint:gosec // the broker has checked its scheme
}

// answerOf is what was begun, as the broker has it.
func (s *door) answerOf(in attempt) broker.LinkAnswer {
	return broker.LinkAnswer{Redirect: s.redirectURI(in.Provider), State: in.State, Verifier: in.Verifier, Ends: time.Unix(in.Ends, 0)}
}

// attempted returns what was begun in this browser by this person, if the state that
// came back is of it.
func (s *door) attempted(c echo.Context, t *broker.Token, provider, state string) (in attempt, ok bool) {
	cookie, err := c.Cookie(linkCookie + provider)
	if err != nil || t == nil || !isProvider(provider) {
		return in, false
	}
	doc, ok := s.opened(cookie.Value, linkCookie+provider)
	if !ok || strictjson.Decode(doc, &in) != nil {
		return in, false
	}
	return in, in.Provider == provider && in.Subject == t.Subject && in.Session == t.ID && s.now().Unix() < in.Ends &&
		subtle.ConstantTimeCompare([]byte(in.State), []byte(state)) == 1
}

// linked is where an upstream sends the browser back to (RFC 6749 section 4.1.2).
func (s *door) linked(c echo.Context) error {
	const title = "Nothing was linked"
	_, t, err := s.signedIn(c)
	if err != nil {
		return s.refusedPage(c, title, err)
	}
	q, l := c.QueryParams(), s.linking(c, t)
	refuse := func(status int, why, text string) error {
		if t != nil { // what strangers send leaves no event each
			s.broker.RefuseLink(c.Request().Context(), l, broker.Fail(broker.BadToken, errors.New(why), "nothing was linked"))
		}
		return s.said(c, status, title, text)
	}
	in, ok := s.attempted(c, t, l.Provider, q.Get("state"))
	if !ok {
		return refuse(http.StatusBadRequest, "an answer that was not begun in this browser, by this person, in time", "You did not begin this in this browser, somebody else is signed in by now, or it took longer than ten minutes. Begin again.")
	}
	setCookie(c, linkCookie+l.Provider, "", 0)
	for _, name := range []string{"state", "code", "iss", "error"} {
		if len(q[name]) > 1 { // RFC 6749 section 3.1
			return refuse(http.StatusBadRequest, "a parameter of the answer is there twice", "The upstream's answer is malformed. Begin again.")
		}
	}
	if e := q.Get("error"); e != "" {
		text := "The upstream said: " + printable(e) + "."
		if e == "access_denied" {
			text = "It was not allowed at the upstream."
		}
		return refuse(http.StatusForbidden, "the upstream answered with an error: "+printable(e), text)
	}
	a := s.answerOf(in)
	a.Issuer, a.Code = q.Get("iss"), q.Get("code")
	if _, err := s.broker.FinishLink(c.Request().Context(), l, a); err != nil {
		return s.refusedPage(c, title, err)
	}
	return c.Redirect(http.StatusSeeOther, s.base()+s.path)
}

// unlink is the button that ends a link.
func (s *door) unlink(c echo.Context) error {
	t, err := s.asked(c, "Nothing was unlinked")
	if t == nil {
		return err
	}
	out, err := s.broker.Unlink(c.Request().Context(), s.linking(c, t))
	if err != nil {
		return s.refusedPage(c, "It is not unlinked, or not all of it", err)
	}
	return s.said(c, http.StatusOK, "Unlinked", "Stint has forgotten the account, and ended what was made from it. "+Unlinked(string(out.State), out.Until))
}

// Unlinked says what became upstream of an account that was unlinked, by the outcome and
// by when it ends where it could not be revoked.
func Unlinked(state string, until time.Time) string {
	switch broker.OutcomeState(state) {
	case broker.Revoked:
		return "The upstream has revoked it."
	case broker.AlreadyDead:
		return "The upstream had ended it already."
	case broker.DisabledPendingKill:
		return "The upstream has turned it off, and is ending it."
	}
	text := "Whether the upstream has revoked it is not known"
	if broker.OutcomeState(state) == broker.NotRevocableUntil {
		text = "What Stint had of it cannot be revoked there"
	}
	if !until.IsZero() {
		text += ", and it ends by itself on " + day(until)
	}
	return text + "; the settings of your account there may offer to remove Stint."
}
