package broker

import (
	"context"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

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
	case i == nil || r.issuerOff(i):
		return refused(which, "issuer %s is unknown or disabled", t.Issuer)
	case !slices.Contains(i.Accept, string(t.Use)):
		return refused(which, "issuer %s: a token used as %s is not accepted", t.Issuer, t.Use)
	case now.Sub(t.IssuedAt) > i.MaxSubjectAge.Duration:
		return refused(which, "issued %s ago, more than max_subject_age", now.Sub(t.IssuedAt).Round(time.Second))
	case !t.AuthTime.IsZero() && now.Sub(t.AuthTime) > i.MaxSessionAge.Duration:
		return refused(which, "signed in %s ago, more than max_session_age", now.Sub(t.AuthTime).Round(time.Second))
	case t.Subject == "":
		return refused(which, "it has no subject")
	case t.SessionID != "" && t.AuthTime.IsZero() && !i.UndatedSessions:
		// Its session could be of any age: tokens are renewed, and iat with them.
		return refused(which, "it has a sid and no auth_time, so that max_session_age cannot be held against it; undated_sessions accepts it")
	case !Legible(t.Subject) || !Legible(t.ID):
		return refused(which, "its sub or jti is of more than %d bytes, or has characters that cannot be printed", maxName)
	}
	for _, a := range t.Actors {
		if !Legible(a.Subject) || !Legible(a.Issuer) {
			return refused(which, "its act is of more than %d bytes, or has characters that cannot be printed", maxName)
		}
	}
	return nil
}

// shown reports whether who presents a token may: it is bound to no certificate, or to
// that of the connection (RFC 8705 section 3), or it was shown to the resource that it is
// for, which is registered to have checked it.
func (t *Token) shown(r *ExchangeRequest) bool {
	return t.Certificate == "" || t.Certificate == r.Certificate ||
		r.Client.AcceptBound && r.Client.Resource != "" && slices.Contains(t.Audience, r.Client.Resource)
}

// maxName bounds the names in a foreign token, in bytes.
const maxName = 512

// Legible reports whether the name of a subject or token can be kept and shown, as
// every one that is accepted can: at most 512 bytes, no control characters, nor what
// turns or hides text.
func Legible(s string) bool {
	return len(s) <= maxName && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// name returns the subject as ISSUER#SUB; a token of ours has it so already.
func (t *Token) name() string {
	if t.Ours {
		return t.Subject
	}
	return t.Issuer + "#" + t.Subject
}

// shown names an actor of the subject token for the record: software by its name,
// and whoever else it may be by an index.
func (x *exchange) shown(a Actor) string {
	if a.Issuer == "" {
		a.Issuer = x.subject.Issuer
	}
	name := a.Name()
	if i := x.b.reg.Issuers[a.Issuer]; x.b.reg.nameOf(a.Issuer, a.Subject) == "" && (i == nil || i.Actors[a.Subject] == "") {
		return x.b.recorder.Index(name)
	}
	return name
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
			return "", refused("subject token", "issued to software that no agent or client names at %s", t.Issuer).naming("issued to %q, held by %q", t.ClientID, t.Actors)
		}
	}
	return name, nil
}

// consents checks that a token may be exchanged by this client at all:
// without that, whoever holds a stolen token could.
func (r *Registry) consents(which string, c *Client, t *Token) error {
	if t.Ours {
		if t.ClientID == c.ID || c.Resource != "" && slices.Contains(t.Audience, c.Resource) {
			return nil
		}
		return refused(which, "it was issued to %s for %q, not to or for client %s", t.ClientID, t.Audience, c.ID)
	}
	i := r.Issuers[t.Issuer]
	identity := c.Identities[t.Issuer]
	issuedTo := identity != "" && t.ClientID == identity
	forIt := c.Resource != "" && slices.Contains(t.Audience, c.Resource)
	if t.Use == IDToken { // the audience of an ID token is the client (OpenID Connect Core section 2)
		forIt = identity != "" && slices.Contains(t.Audience, identity)
		if len(t.Audience) > 1 && t.ClientID != "" { // and of several, the one that azp names
			forIt = forIt && issuedTo
		}
	}
	if !forIt && !slices.ContainsFunc(t.Audience, func(a string) bool { return slices.Contains(i.Audiences, a) }) {
		return refused(which, "its audience is none that is accepted").naming("audience %q", t.Audience)
	}
	switch {
	case i.MayAct && t.MayAct != nil:
		if iss := t.MayAct.Issuer; (iss == "" || iss == r.Self) && t.MayAct.Subject == c.ID ||
			(iss == "" || iss == t.Issuer) && identity != "" && t.MayAct.Subject == identity {
			return nil
		}
		return refused(which, "may_act names somebody else than client %s", c.ID).naming("may_act %q", t.MayAct.Name())
	case slices.Contains(i.Delegates, c.ID), issuedTo, forIt:
		return nil
	}
	return refused(which, "client %s has no consent: it is no delegate, and the token was issued neither to nor for it", c.ID)
}

// actorToken checks who is to act: the client itself, by a token of ours, or an
// agent that the issuer of the token vouches for.
func (x *exchange) actorToken(ctx context.Context) error {
	const which = "actor token"
	t, err := x.verify(ctx, which, x.r.ActorToken, x.r.ActorType)
	if err != nil {
		return err
	}
	var name string
	if t.Ours {
		if t.Subject != x.r.Client.ID || t.ClientID != x.r.Client.ID {
			return refused(which, "it is of the subject %s, not of the client %s itself", x.b.recorder.Index(t.Subject), x.r.Client.ID).naming("of %q", t.Subject)
		}
		name = t.Subject
	} else {
		i := x.b.reg.Issuers[t.Issuer]
		if name = i.Actors[t.Subject]; name == "" {
			return refused(which, "the subject %s is no actor of issuer %s", x.b.recorder.Index(t.name()), t.Issuer).naming("of %q", t.Subject)
		}
		if !slices.ContainsFunc(t.Audience, func(a string) bool { return slices.Contains(i.Audiences, a) }) {
			return refused(which, "its audience is none that is accepted").naming("audience %q", t.Audience)
		}
		// Whoever was called by an agent holds its token, and is not the agent.
		if err := x.b.reg.consents(which, x.r.Client, t); err != nil {
			return err
		}
	}
	if t.name() == x.subject.name() {
		return refused(which, "it is of the subject itself")
	}
	l, err := ancestry(which, t, name)
	if err != nil {
		return err
	}
	if err := x.alive(which, l); err != nil {
		return err
	}
	if err := x.unused(ctx, which, t); err != nil {
		return err
	}
	x.actor, x.agent, x.by = t, name, l.actorKeys()
	x.event.Party.Agent = name
	return nil
}

// gone reports whether somebody on the way is no longer configured, or disabled:
// the issuer it began with or that of an actor, a client, or an agent. What was
// issued while they were trusted ends with the trust.
func (r *Registry) gone(l *Lineage) bool {
	for _, name := range l.holders() {
		if _, ok := r.ceiling(name); !ok {
			return true
		}
	}
	if l.Root != nil && !r.trusts(l.Root.Issuer) {
		return true
	}
	return slices.ContainsFunc(l.Hops, func(h Hop) bool {
		return h.by(ByIssuer, func(k Key) bool { return !r.trustsKey(k) })
	})
}

// trustsKey is trusts for the key of an issuer. There are few issuers.
func (r *Registry) trustsKey(k Key) bool {
	for id := range r.Issuers {
		if KeyOf(ByIssuer, id) == k {
			return r.trusts(id)
		}
	}
	return false
}

func (r *Registry) trusts(issuer string) bool {
	i := r.Issuers[issuer]
	return i != nil && !r.issuerOff(i)
}

// trustedKeys are the keys of those who are configured and not disabled.
func (r *Registry) trustedKeys() map[Key]bool {
	trusted := make(map[Key]bool)
	for id := range r.Issuers {
		trusted[KeyOf(ByIssuer, id)] = r.trusts(id)
	}
	for id, c := range r.Clients {
		trusted[KeyOf(ByClient, id)], trusted[KeyOf(ByAgent, id)] = !r.clientOff(c), !r.clientOff(c)
	}
	for name, a := range r.Agents {
		trusted[KeyOf(ByAgent, name)] = !a.Disabled
	}
	return trusted
}

// distrusted is gone for the keys that a lease is filed under.
func distrusted(keys []Key, trusted map[Key]bool) bool {
	return slices.ContainsFunc(keys, func(k Key) bool {
		return (k.Kind == ByIssuer || k.Kind == ByClient || k.Kind == ByAgent) && !trusted[k]
	})
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
	s.Groups = r.pinned(s.Issuer, s.Groups)
	return s
}

// pinned returns those of the groups that an issuer may speak of.
func (r *Registry) pinned(issuer string, groups []string) []string {
	foreign := func(g string) bool { return !r.groups[[2]string{issuer, g}] }
	if slices.ContainsFunc(groups, foreign) {
		return slices.DeleteFunc(slices.Clone(groups), foreign)
	}
	return groups
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
