package broker

import (
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/scopes"
)

// This file says what a verified token means here: whether it is accepted, whose
// it is, which software it is used by, and what it allows by itself.

// accepts checks that a token may be used as what it is, at all.
func (r *Registry) accepts(which string, t *Token, now time.Time) error {
	if t.Ours {
		return nil
	}
	i := r.Issuers[t.Issuer]
	switch {
	case i == nil || i.Disabled:
		return refused(which, "issuer %s is unknown or disabled", t.Issuer)
	case !slices.Contains(i.Accept, string(t.Use)):
		return refused(which, "issuer %s: a token used as %s is not accepted", t.Issuer, t.Use)
	case now.Sub(t.IssuedAt) > i.MaxSubjectAge.Duration:
		return refused(which, "issued %s ago, more than max_subject_age", now.Sub(t.IssuedAt).Round(time.Second))
	case !t.AuthTime.IsZero() && now.Sub(t.AuthTime) > i.MaxSessionAge.Duration:
		return refused(which, "signed in %s ago, more than max_session_age", now.Sub(t.AuthTime).Round(time.Second))
	case t.Subject == "":
		return refused(which, "it has no subject")
	}
	return nil
}

// name returns the subject as ISSUER#SUB; a token of ours has it so already.
func (t *Token) name() string {
	if t.Ours {
		return t.Subject
	}
	return t.Issuer + "#" + t.Subject
}

// agent finds the software that the subject uses.
func (r *Registry) agent(t *Token) (string, error) {
	if t.Ours && t.Stint != nil && len(t.Actors) == 0 {
		return t.Stint.Agent, nil // the client was left out of the token by impersonation
	}
	name := r.agentOf(t)
	// An ID token was issued to somebody, also if it does not say to which of several.
	if name == "" && (t.ClientID != "" || len(t.Actors) > 0 || t.Use == IDToken) && !t.Ours {
		if i := r.Issuers[t.Issuer]; !i.AnyAgent {
			return "", refused("subject token", "issued to %q at %s, which no agent or client names", printable(t.ClientID), t.Issuer)
		}
	}
	return name, nil
}

// consents checks that the subject token may be exchanged by this client at all:
// without that, whoever holds a stolen token could.
func (r *Registry) consents(c *Client, t *Token) error {
	if t.Ours {
		if t.ClientID == c.ID || c.Resource != "" && slices.Contains(t.Audience, c.Resource) {
			return nil
		}
		return refused("subject token", "it was issued to %s for %q, not to or for client %s", t.ClientID, t.Audience, c.ID)
	}
	i := r.Issuers[t.Issuer]
	identity := c.Identities[t.Issuer]
	issuedTo := identity != "" && t.ClientID == identity
	forIt := c.Resource != "" && slices.Contains(t.Audience, c.Resource)
	if t.Use == IDToken { // the audience of an ID token is the client (OpenID Connect Core section 2)
		forIt = identity != "" && slices.Contains(t.Audience, identity)
	}
	if !forIt && !slices.ContainsFunc(t.Audience, func(a string) bool { return slices.Contains(i.Audiences, a) }) {
		return refused("subject token", "its audience %q is none that is accepted", t.Audience)
	}
	switch {
	case i.MayAct && t.MayAct != nil:
		if iss := t.MayAct.Issuer; (iss == "" || iss == r.Self) && t.MayAct.Subject == c.ID ||
			(iss == "" || iss == t.Issuer) && identity != "" && t.MayAct.Subject == identity {
			return nil
		}
		return refused("subject token", "may_act names %s, not client %s", t.MayAct.Name(), c.ID)
	case slices.Contains(i.Delegates, c.ID), issuedTo, forIt:
		return nil
	}
	return refused("subject token", "client %s has no consent: it is no delegate, and the token was issued neither to nor for it", c.ID)
}

// gone reports whether somebody on the way is no longer configured, or disabled:
// the issuer it began with, a client, or an agent. What was issued while they were
// trusted ends with the trust.
func (r *Registry) gone(l *Lineage) bool {
	for _, name := range l.holders() {
		if _, ok := r.ceiling(name); !ok {
			return true
		}
	}
	if l.Root == nil {
		return false
	}
	i := r.Issuers[l.Root.Issuer]
	return i == nil || i.Disabled
}

// holders lists everybody who has held what a token descends from.
func (l *Lineage) holders() (names []string) {
	if r := l.Root; r != nil && r.Agent != "" {
		names = append(names, r.Agent)
	}
	for _, h := range l.Hops {
		names = append(names, h.Client)
		if h.Agent != "" {
			names = append(names, h.Agent)
		}
	}
	return names
}

// subject returns the subject of a token as policy sees it; without one it is the
// client itself.
func (r *Registry) subject(c *Client, t *Token) scopes.Subject {
	if t == nil {
		return scopes.Subject{Issuer: r.Self, ID: c.ID}
	}
	s := scopes.Subject{Issuer: t.Issuer, ID: t.Subject, Groups: t.Groups, Claims: t.Claims}
	if t.Ours {
		if iss, sub, foreign := strings.Cut(t.Subject, "#"); foreign {
			s.Issuer, s.ID = iss, sub
		}
		s.Claims = t.Stint.Claims
	}
	return s
}

// held returns what a token allows by itself; nil is a client that acts for itself.
func (r *Registry) held(t *Token, at Target) scopes.Held {
	switch {
	case t == nil:
		return scopes.Held{Everything: true}
	case t.Ours:
		return scopes.Held{Resource: t.Audience[0], Scopes: t.Scope}
	}
	use := r.Issuers[t.Issuer].Scopes
	h := scopes.Held{Resource: at.Resource}
	switch {
	case use.IdentityOnly:
		h.Everything = true
	case use.Ours:
		h.Scopes = t.Scope
	default:
		for _, s := range t.Scope {
			h.Scopes = append(h.Scopes, use.Mapped[s][at.Resource]...)
		}
	}
	return h
}
