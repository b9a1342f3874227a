package api

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/broker"
)

// What the command line of a person asks: the same as the pages show, with a token of
// ours for the same resource.

// LinkedAccount is an upstream at which accounts are linked, and the account that is.
type LinkedAccount struct {
	Provider string `json:"provider"`
	Kind     string `json:"kind"`
	About    string `json:"about,omitempty"`
	// URL is where an account is linked.
	URL    string `json:"url"`
	Linked bool   `json:"linked"`
	// Account is the upstream's id of it, and Name what people call it.
	Account string    `json:"account,omitempty"`
	Name    string    `json:"name,omitempty"`
	Scopes  []string  `json:"scopes,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Expires time.Time `json:"expires,omitzero"`
	// Problem says why it cannot be used, or why it is not known.
	Problem string `json:"problem,omitempty"`
}

// LinkedAccounts are those of a person.
type LinkedAccounts struct {
	Subject string          `json:"subject"`
	Items   []LinkedAccount `json:"items"`
}

// UnlinkedAccount is what came of unlinking one.
type UnlinkedAccount struct {
	Provider string `json:"provider"`
	// Outcome is what became of it upstream; Until is when it ends, where it could not
	// be revoked.
	Outcome string    `json:"outcome"`
	Until   time.Time `json:"until,omitzero"`
}

// mine returns the token of a request, if it lets its subject see to his accounts; nil if
// an answer has been written.
func (s *door) mine(c echo.Context) (*broker.Token, error) {
	t, err := s.bearer(c, s.Resource)
	if err != nil {
		return nil, s.fail(c, err)
	}
	if !slices.Contains(t.Scope, scopeAccounts) {
		c.Response().Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer error="insufficient_scope", scope="%s"`, scopeAccounts))
		return nil, s.fail(c, broker.Fail(broker.BadScope, nil, "the token has not the scope "+scopeAccounts+", which this needs"))
	}
	return t, nil
}

func (s *door) listAccounts(c echo.Context) error {
	t, err := s.mine(c)
	if t == nil {
		return err
	}
	all, err := s.broker.Accounts(c.Request().Context(), s.linking(c, t))
	if err != nil {
		return s.fail(c, err)
	}
	out := LinkedAccounts{Subject: t.Subject, Items: []LinkedAccount{}}
	for _, l := range all {
		a := LinkedAccount{Provider: l.Provider, Kind: l.Kind, About: l.About, URL: s.Resource + "/" + l.Provider, Problem: l.Problem}
		if l.Account != nil {
			a.Linked, a.Account, a.Name, a.Scopes, a.Since, a.Expires = true, l.Account.ID, l.Account.Name, l.Account.Scopes, l.Account.Since, l.Account.Expires
			a.Problem = l.Account.Broken
		}
		out.Items = append(out.Items, a)
	}
	return c.JSON(http.StatusOK, out)
}

func (s *door) removeAccount(c echo.Context) error {
	t, err := s.mine(c)
	if t == nil {
		return err
	}
	out, err := s.broker.Unlink(c.Request().Context(), s.linking(c, t))
	if err != nil {
		return s.fail(c, err)
	}
	return c.JSON(http.StatusOK, UnlinkedAccount{Provider: c.Param("provider"), Outcome: string(out.State), Until: out.Until})
}
