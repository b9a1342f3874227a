package api

import (
	"crypto/rand"
	"embed"
	"html/template"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/labstack/echo/v4"
)

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
	Code, Home                     string
	Provider, Site                 string
	Where                          template.URL
	Accounts                       []accountView
	handover
}

func (s *Server) base() string {
	u, _ := url.Parse(s.cfg.Issuer) // New has checked it
	return u.Path
}

// page writes a page. redirects are origins besides our own that its forms may end up
// at.
func (s *Server) page(c echo.Context, status int, name string, v view, redirects ...string) error {
	d := s.doorOf(c)
	v.Nonce, v.Issuer, v.Base, v.At, v.Home = rand.Text(), s.cfg.Issuer, s.base(), d.Issuer, s.base()+d.path
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
func (s *Server) isPage(c echo.Context) bool {
	route, _ := strings.CutPrefix(c.Path(), s.base())
	first, rest, _ := strings.Cut(strings.TrimPrefix(route, "/"), "/")
	return (first == "login" || first == "connect") && rest != "token" && !strings.HasPrefix(rest, "v1/") && c.Request().Header.Get("Authorization") == ""
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

// printable is a piece of a stranger's text, as it may be shown.
func printable(text string) string {
	return describe(text[:min(len(text), 64)])
}
