package main

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/stint-dev/stint/client"
)

// advice is what to do about an OAuth error.
var advice = map[string]string{
	"invalid_client":                "look at --client, and at its secret or key: an administrator makes another with stint client add",
	"invalid_request":               "if it is about the subject token: it may have expired, been revoked or used before, or be for another client; get a new one. At the server, stint explain --token - says why",
	"invalid_target":                "look at --resource and --audience, and at the client's targets in the configuration",
	"invalid_scope":                 "look at --scope; at the server, stint explain says which rule is missing",
	"invalid_authorization_details": "look at --details; stint providers show KIND prints what a kind takes",
	"unauthorized_client":           "the client's grant_types do not have what was asked: --self needs client_credentials, --subject-token token-exchange",
}

// said makes of an error of the client what is said to people: what was answered,
// and what to do about it.
func (a *asker) said(err error) error {
	refused, down := (*client.Refused)(nil), (*client.Unavailable)(nil)
	approval, link := (*client.NeedsApproval)(nil), (*client.NeedsLink)(nil)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &approval):
		return byPerson(approval.Error(), "somebody has to approve it", approval.URL)
	case errors.As(err, &link):
		if link.URL == "" && link.Claims != "" {
			return byPerson(link.Error(), "the user has to sign in anew, with what the upstream wants of it: "+harmless(link.Claims), "")
		}
		return byPerson(link.Error(), "the user has to link an account", link.URL)
	case errors.As(err, &refused):
		text := "refused: " + harmless(refused.Error())
		if todo := advice[refused.Code]; todo != "" {
			text += "\n" + todo
		}
		return &exitError{exitRefused, errors.New(text)}
	case errors.As(err, &down):
		text := harmless(down.Error())
		if down.RetryAfter > 0 {
			return fmt.Errorf("%s\ntry again in %s", text, down.RetryAfter.Round(time.Second))
		}
		return fmt.Errorf("%s\nis --issuer %s right, and is it running?", text, harmless(a.issuer))
	}
	return err
}

// byPerson is the error for what waits for a person.
func byPerson(what, who, at string) error {
	text := fmt.Sprintf("%s\n%s, and then try again", harmless(what), who)
	if u, err := url.Parse(at); err == nil && (u.Scheme == "https" || u.Scheme == "http") && harmless(at) == at {
		text += ": " + at
	}
	return &exitError{exitPerson, errors.New(text)}
}

// harmless takes out of a text that came over the network what a terminal may obey.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
