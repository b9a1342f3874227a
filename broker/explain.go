package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/scopes"
	"github.com/stint-dev/stint/scopes/grant"
)

// Question is a request that somebody could make.
type Question struct {
	Client *Client
	// Token is the subject token. Without one, and without a Subject, the client
	// acts for itself.
	Token *Token
	// Subject, Agent, Via and Held describe a subject without a token of it: who it
	// is, which agent it uses, who else has held its tokens, and the scopes they
	// hold; nil: what the issuer's tokens hold if they say only who.
	Subject *scopes.Subject
	Agent   string
	Via     []string
	Held    *scopes.Held

	Resources, Audiences []string
	Scope, Details       string
	Now                  time.Time
	// Live asks upstreams for the subject's own rights; otherwise they are assumed.
	Live bool
}

// grantType is the one that a client would ask by.
func (q *Question) grantType() string {
	if q.Token == nil && q.Subject == nil {
		return ClientCredentials
	}
	return TokenExchange
}

// Explanation is a decision with everything that led to it.
type Explanation struct {
	Allowed bool `json:"allowed"`
	// Code is that of the refusal, Answer what the caller would be told, and Reason
	// what the record would say, with what of that it seals.
	Code   Code   `json:"code,omitempty"`
	Answer string `json:"answer,omitempty"`
	Reason string `json:"reason,omitempty"`
	// URL is where the subject can do what is missing.
	URL string `json:"url,omitempty"`
	// Nearest says what would have allowed it, changing as little as possible.
	Nearest []string `json:"nearest,omitempty"`
	// Assumed is what the decision rests on and the question does not say.
	Assumed []string `json:"assumed,omitempty"`

	Client   string      `json:"client"`
	Subject  string      `json:"subject"`
	Groups   []string    `json:"groups,omitempty"`
	Agent    string      `json:"agent,omitempty"`
	Resource string      `json:"resource,omitempty"`
	Provider string      `json:"provider,omitempty"`
	Tool     string      `json:"tool,omitempty"`
	Held     scopes.Held `json:"held"`

	Policy *scopes.Explanation `json:"policy,omitempty"`
	// Narrowing is what was met, for an upstream, and what came of it.
	Narrowing *Narrowing `json:"narrowing,omitempty"`
}

// Narrowing is the meet, for people.
type Narrowing struct {
	Class  Class   `json:"class"`
	Inputs []Input `json:"inputs"`
	// Left is what each input, in order, left of the grant.
	Left  []grant.Grant `json:"left"`
	Grant grant.Grant   `json:"grant"`
	// Upstream is what the upstream would be sent, in its own terms.
	Upstream json.RawMessage `json:"upstream,omitempty"`
	ReadOnly bool            `json:"read_only"`
}

// Explain decides a question by the code that decides requests, and says how it
// came to that. Signatures, times and revocations are not looked at.
func (j *Judge) Explain(ctx context.Context, q *Question) *Explanation {
	out := &Explanation{Client: q.Client.ID}
	c, err := j.caseOf(q, out)
	if err == nil {
		out.Resource, out.Provider, out.Tool, out.Held = c.Target.Resource, c.Target.Provider, c.Tool, c.Held
		var policy scopes.Explanation
		var v Verdict
		v, err = j.decide(ctx, c, &policy)
		if policy.Resource != "" {
			out.Policy = &policy
			out.sayAssumed()
		}
		if v.Narrowed != nil {
			out.Narrowing = v.Narrowed.explain(j.Registry.Providers[c.Target.Provider])
		}
	}
	if err == nil {
		out.Allowed = true
		return out
	}
	failure := AsError(j.Registry.linkAt(err, out.Provider))
	out.Code, out.Answer, out.Reason, out.URL = failure.Code, failure.Public, failure.Reason(), failure.URL
	if failure.Personal != "" { // whoever asks here has said it, or holds the token
		out.Reason += " (" + failure.Personal + ")"
	}
	out.Nearest = out.nearest(j, q, err)
	return out
}

// caseOf turns a question into what there is to decide, as an exchange does with
// a request.
func (j *Judge) caseOf(q *Question, out *Explanation) (*Case, error) {
	r := j.Registry
	if r.clientOff(q.Client) {
		return nil, badClient("client %s is disabled", q.Client.ID)
	}
	if err := q.Client.registered(q.grantType()); err != nil {
		return nil, err
	}
	c := &Case{Client: q.Client, Agent: q.Agent, Others: q.Via, Now: q.Now, Live: q.Live}
	switch {
	case q.Token != nil:
		lineage, err := j.tokenCase(q, c)
		if err != nil {
			return nil, err
		}
		c.Name, c.Others = lineage.Subject, lineage.holders()
	case q.Subject != nil:
		c.Subject, c.Name = *q.Subject, q.Subject.Name()
		c.Subject.Groups = r.pinned(c.Subject.Issuer, c.Subject.Groups)
	default:
		c.Subject, c.Name, c.Agent = r.subject(q.Client, nil), q.Client.ID, q.Client.ID
	}
	out.Subject, out.Groups, out.Agent = c.Name, c.Subject.Groups, c.Agent
	var err error
	if c.Target, err = j.Target(q.Client, q.Resources, q.Audiences); err != nil {
		return nil, err
	}
	switch i := r.Issuers[c.Subject.Issuer]; {
	case q.Held != nil:
		c.Held = *q.Held
	case q.Token != nil || q.Subject == nil:
		c.Held = r.held(q.Token, c.Target)
	case i == nil:
		return nil, refused("subject token", "issuer %s is unknown", printable(c.Subject.Issuer))
	default:
		if err := r.assume(q.Client, i, out); err != nil {
			return nil, err
		}
		c.Held = r.held(&Token{Issuer: i.Issuer}, c.Target)
	}
	d, err := r.readDetails(q.Details, c.Target, q.Token)
	if err != nil {
		return nil, err
	}
	c.Tool, c.Arguments, c.Details = d.tool, d.arguments, d.provider
	if c.Scopes, err = scopes.Parse(q.Scope); err != nil {
		return nil, Fail(BadScope, err, "scope is malformed")
	}
	return c, nil
}

// assume says what kind of token of an issuer a client could present, for a
// question that describes none. It fails if there is none.
func (r *Registry) assume(c *Client, i *Issuer, out *Explanation) error {
	accepts := func(uses ...Use) bool {
		return slices.ContainsFunc(uses, func(u Use) bool { return slices.Contains(i.Accept, string(u)) })
	}
	delegate, identity := slices.Contains(i.Delegates, c.ID), c.Identities[i.Issuer]
	switch {
	case r.issuerOff(i):
		return refused("subject token", "issuer %s is unknown or disabled", i.Issuer)
	case delegate && len(i.Audiences) > 0, identity != "" && (accepts(IDToken) || len(i.Audiences) > 0):
		out.Assumed = append(out.Assumed, fmt.Sprintf("the subject token is one of %s that this client may present", i.Issuer))
	case c.Resource != "" && accepts(AccessToken, OtherJWT):
		out.Assumed = append(out.Assumed, fmt.Sprintf("the subject token is of %s itself, and for %s; one of ours is worth the scopes that it holds: say them by --held", i.Issuer, c.Resource))
	default:
		return refused("subject token", "client %s has no consent to any token of %s: it can only present tokens of ours, whose scopes have to be said", c.ID, i.Issuer)
	}
	return nil
}

// sayAssumed puts what is assumed of the token where its part in the decision is
// shown.
func (e *Explanation) sayAssumed() {
	if len(e.Assumed) == 0 {
		return
	}
	for _, s := range e.Policy.Scopes {
		for i := range s.Steps {
			if s.Steps[i].Limit == "token" {
				s.Steps[i].Says += " (assumed: " + strings.Join(e.Assumed, "; ") + ")"
			}
		}
	}
}

// issuer is the subject's; empty for a client that acts for itself.
func (q *Question) issuer() string {
	switch {
	case q.Token != nil:
		return q.Token.Issuer
	case q.Subject != nil:
		return q.Subject.Issuer
	}
	return ""
}

// tokenCase reads the parties off a token.
func (j *Judge) tokenCase(q *Question, c *Case) (l *Lineage, err error) {
	r := j.Registry
	if err := r.accepts("subject token", q.Token, q.Now); err != nil {
		return nil, err
	}
	if c.Agent, err = r.agent(q.Token); err != nil {
		return nil, err
	}
	if l, err = ancestry("subject token", q.Token, c.Agent); err != nil {
		return nil, err
	}
	if r.gone(l) {
		return nil, refused("subject token", "its issuer, or a client or agent on its way, is unknown or disabled")
	}
	c.Subject = r.subject(q.Client, q.Token)
	return l, r.consents("subject token", q.Client, q.Token)
}

// explain tells a meet step by step.
func (n *Narrowed) explain(p Provider) *Narrowing {
	d := p.Describe()
	out := &Narrowing{Class: d.Class, Inputs: slices.Clone(n.Inputs), Grant: n.Grant, ReadOnly: n.Grant.ReadOnly()}
	g := d.Schema.Everything()
	for i, in := range n.Inputs {
		g = grant.Meet(g, in.Grant)
		out.Left = append(out.Left, g)
		if in.Name == "entitlement" && in.Grant.Equal(d.Schema.Everything()) {
			// Not that the subject may do everything: nobody was asked what it may.
			out.Inputs[i].Note = "no limit from here: " + in.Note
		}
	}
	out.Upstream = n.Rendered
	if !json.Valid(out.Upstream) {
		out.Upstream, _ = json.Marshal(string(n.Rendered))
	}
	return out
}

// nearest says what would have allowed it.
func (e *Explanation) nearest(j *Judge, q *Question, err error) (out []string) {
	if e.Policy != nil && !e.Policy.Allowed {
		for _, s := range e.Policy.Scopes {
			if s.Nearest != "" {
				out = append(out, s.Scope+": "+s.Nearest)
			}
		}
		if e.Policy.Why == scopes.UnknownTool {
			out = append(out, fmt.Sprintf("an entry for the tool %s in the mapping of %s", printable(e.Tool), e.Policy.Resource))
		}
		if len(out) > 0 {
			return out
		}
	}
	switch CodeOf(err) {
	case BadClient:
		return []string{fmt.Sprintf("client %s is disabled: enable it", q.Client.ID)}
	case Denied:
		if q.Client.registered(q.grantType()) != nil {
			return []string{fmt.Sprintf("grant_types of client %s with %s", q.Client.ID, q.grantType())}
		}
	case BadTarget:
		return []string{fmt.Sprintf("the targets of client %s are %s", q.Client.ID, listed(q.Client.Targets))}
	case BadToken:
		if i := j.Registry.Issuers[q.issuer()]; i != nil && j.Registry.issuerOff(i) {
			return []string{fmt.Sprintf("issuer %s is disabled: enable it", i.Issuer)}
		}
		if e.Policy == nil && q.Token == nil && q.Subject != nil && q.Held == nil {
			return []string{"the scopes that a token of ours holds (--held), or consent of the issuer: a delegate, or an identity there"}
		}
	case NeedsApproval:
		return []string{"a rule that allows it without approval"}
	case NeedsLink:
		if e.URL != "" {
			return []string{"the subject links an account at " + e.URL}
		}
	case BadScope:
		if e.Policy != nil && len(e.Policy.Decision.Asked) == 0 {
			return []string{"scopes to ask for: " + listed(j.Policy().Scopes(e.Policy.Resource))}
		}
		if errors.Is(err, ErrInexpressible) {
			return []string{"a grant that this upstream can be asked for; see stint providers show"}
		}
	}
	if e.Narrowing != nil {
		return e.Narrowing.nearest()
	}
	return nil
}

// nearest finds the limits without which more would have been left.
func (n *Narrowing) nearest() (out []string) {
	for i, limit := range n.Inputs {
		others := n.Inputs[0].Grant.Schema().Everything()
		for k, in := range n.Inputs {
			if k != i {
				others = grant.Meet(others, in.Grant)
			}
		}
		if others.IsNothing() {
			continue
		}
		if ok, diffs := grant.Leq(others, limit.Grant); !ok {
			lacks := diffs[0].String()
			if len(diffs) > 1 {
				lacks += fmt.Sprintf(", and %d more", len(diffs)-1)
			}
			out = append(out, fmt.Sprintf("a wider %s: it lacks %s", limit.Name, lacks))
		}
	}
	if len(out) == 0 {
		out = append(out, "more than one limit would have to be wider")
	}
	return out
}

func listed(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
