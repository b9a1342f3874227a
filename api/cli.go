package api

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

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

// cliPage asks whoever is signed in whether a command line may act for him.
func (s *door) cliPage(c echo.Context) error {
	var h handover
	if !h.read(c.QueryParams()) || h.Port == "" {
		return s.said(c, http.StatusBadRequest, "This does not work", "The address is not what a command line would have opened.")
	}
	_, t, err := s.signedIn(c)
	switch {
	case err != nil:
		return s.refusedPage(c, "Not now", err)
	case t == nil:
		return c.Redirect(http.StatusSeeOther, s.base()+s.path+"/start?"+h.query())
	}
	v, err := s.viewOf(t, "Let the command line in?")
	if err != nil {
		return s.refusedPage(c, "Not now", err)
	}
	v.handover, v.Code = h, h.code()
	return s.page(c, http.StatusOK, s.ask, v, "http://127.0.0.1:"+h.Port)
}

// handedOver is what a command line gets as a code, sealed.
type handedOver struct {
	ID        string `json:"id"`
	Token     string `json:"token"`
	Challenge string `json:"challenge"`
	Ends      int64  `json:"ends"`
}

// handoverTime is how long a command line may take to come for its token.
const handoverTime = time.Minute

// cliAnswer sends the browser to the command line, with a code if it may come in.
func (s *door) cliAnswer(c echo.Context) error {
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
		doc, err := json.Marshal(handedOver{rand.Text(), raw.Reveal(), h.Challenge, s.now().Add(handoverTime).Unix()})
		if err != nil {
			return err
		}
		code, err := s.closed(doc, s.handover)
		if err != nil {
			return s.refusedPage(c, "Not now", err)
		}
		back.Set("code", code)
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
func (s *door) cliToken(c echo.Context) error {
	form, err := s.form(c)
	if err != nil {
		return s.fail(c, err)
	}
	refused := problem{Error: "invalid_grant", Description: "the code is not good, or not any more: run the command again", status: http.StatusBadRequest}
	doc, ok := s.opened(form.Get("code"), s.handover)
	var h handedOver
	if !ok || strictjson.Decode(doc, &h) != nil {
		return s.answer(c, refused)
	}
	sum := sha256.Sum256([]byte(form.Get("code_verifier")))
	if s.now().Unix() >= h.Ends || subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(h.Challenge)) != 1 {
		return s.answer(c, refused)
	}
	used := sha256.Sum256(doc)
	was, err := s.cfg.Answers.Claim(c.Request().Context(), s.handover+"\x00"+string(used[:]), []byte("used"), s.now().Add(2*handoverTime))
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
		issued.Token.Reveal(), issued.TokenType, int64(issued.Expires.Sub(s.now()).Seconds()), strings.Join(issued.Scope, " "), s.Resource,
	})
}
