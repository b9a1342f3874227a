package broker

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/scopes"
	"github.com/stint-dev/stint/scopes/grant"
)

// Judge decides. It is all that the server, `stint explain` and the tests know
// of what is allowed, and it needs neither tokens nor a store.
type Judge struct {
	Registry *Registry
	policy   atomic.Pointer[scopes.Policy]
}

// NewJudge returns a judge by a policy.
func NewJudge(r *Registry, p *scopes.Policy) *Judge {
	j := &Judge{Registry: r}
	j.policy.Store(p)
	return j
}

// Policy returns the policy in force.
func (j *Judge) Policy() *scopes.Policy { return j.policy.Load() }

// SetPolicy replaces the policy at once: a decision is by the old or the new one,
// never by parts of both.
func (j *Judge) SetPolicy(p *scopes.Policy) { j.policy.Store(p) }

// Target is what a request is aimed at.
type Target struct {
	// Resource is the resource that a token is asked for; or, with a Provider, the
	// asking client's own, whose mapping says what scopes are worth there.
	Resource string
	// Provider is the upstream that a credential is asked of; empty for a token.
	Provider string
	// URIs name things at the upstream.
	URIs []string
}

// Target finds what resource and audience parameters (RFC 8707, RFC 8693
// section 2.1) name: all the same one thing, and one that the client may ask
// for. The error has the code BadTarget.
func (j *Judge) Target(c *Client, resources, audiences []string) (Target, error) {
	var t Target
	names := slices.Concat(resources, audiences)
	if len(names) == 0 {
		return t, Fail(BadTarget, nil, "say for what: resource or audience is missing")
	}
	policy := j.Policy()
	for i, name := range names {
		one, err := j.target(policy, c, name, i >= len(resources))
		if err != nil {
			return t, err
		}
		// Each by itself, and first: whoever names two learns of neither whether it
		// exists.
		if err := c.asksFor(one); err != nil {
			return t, err
		}
		if i > 0 && (one.Resource != t.Resource || one.Provider != t.Provider) {
			return t, Fail(BadTarget, nil, "one target at a time")
		}
		one.URIs = append(t.URIs, one.URIs...)
		t = one
	}
	return t, nil
}

// asksFor checks that a client may ask for a target. What is unknown and what is
// another client's are the same to the caller.
func (c *Client) asksFor(t Target) error {
	allowed := t.Resource
	if t.Provider != "" {
		allowed = t.Provider
	}
	if !c.targets[allowed] {
		return Fail(BadTarget, fmt.Errorf("%s is no target of client %s", allowed, c.ID), "unknown target")
	}
	if t.Provider != "" && t.Resource == "" {
		return Fail(BadTarget, fmt.Errorf("client %s is no resource, so that no mapping says what it may be vended", c.ID), "unknown target")
	}
	return nil
}

func (j *Judge) target(policy *scopes.Policy, c *Client, name string, logical bool) (Target, error) {
	unknown := func(why string) (Target, error) {
		return Target{}, Fail(BadTarget, fmt.Errorf("%s: %s", printable(name), why), "unknown target")
	}
	if policy.Has(name) {
		return Target{Resource: name}, nil
	}
	if logical && j.Registry.Providers[name] != nil {
		return Target{Resource: c.Resource, Provider: name}, nil
	}
	if err := scopes.CheckResource(name); err != nil {
		return unknown("it " + err.Error())
	}
	u, err := url.Parse(name)
	if err != nil { // which would repeat the whole of it: it may be a token in the wrong place
		return unknown("it is no URI")
	}
	if p := j.Registry.Providers[u.Host]; p != nil && p.Describe().Scheme == u.Scheme {
		return Target{Resource: c.Resource, Provider: u.Host, URIs: []string{name}}, nil
	}
	switch claimed := j.Registry.claimants(name); len(claimed) {
	case 0:
		return unknown("no mapping and no provider has this name")
	case 1:
		return Target{Resource: c.Resource, Provider: claimed[0], URIs: []string{name}}, nil
	default:
		return unknown("it is claimed by the providers " + strings.Join(claimed, ", "))
	}
}

// Case is what there is to decide about.
type Case struct {
	Client  *Client
	Subject scopes.Subject
	// Name is the subject as ISSUER#SUB, or the id of a client acting for itself.
	Name string
	// Agent is the software that the subject uses, and Others everybody else on
	// the way: their ceilings all count.
	Agent  string
	Others []string
	Held   scopes.Held
	Target Target
	Scopes []string
	Tool   string
	// Arguments are those of the tool call, decoded.
	Arguments map[string]any
	// Details are the authorization details for the target's provider.
	Details []map[string]any
	Now     time.Time
	// Live asks upstreams for the subject's own rights.
	Live bool
}

// ceilings returns those of everybody on the way. Somebody who is unknown or
// disabled is an error.
func (j *Judge) ceilings(c *Case) ([]*scopes.Ceiling, error) {
	names := append([]string{c.Client.ID}, c.Others...)
	if c.Agent != "" {
		names = append(names, c.Agent)
	}
	slices.Sort(names)
	var out []*scopes.Ceiling
	for _, name := range slices.Compact(names) {
		ceiling, ok := j.Registry.ceiling(name)
		if !ok {
			return nil, fmt.Errorf("client or agent %s is unknown or disabled", printable(name))
		}
		out = append(out, ceiling)
	}
	return out, nil
}

// request is the case as policy sees it.
func (j *Judge) request(c *Case) (*scopes.Request, error) {
	ceilings, err := j.ceilings(c)
	if err != nil {
		return nil, Fail(BadToken, err, "the token is not accepted")
	}
	return &scopes.Request{
		Resource: c.Target.Resource, Scopes: c.Scopes, Tool: c.Tool, Arguments: c.Arguments,
		Subject: c.Subject, Agent: c.Agent, Client: c.Client.ID, Held: c.Held, Ceilings: ceilings, Now: c.Now,
	}, nil
}

// Verdict is a decision, and for an upstream the grant that follows from it.
type Verdict struct {
	Policy   *scopes.Policy
	Decision scopes.Decision
	Narrowed *Narrowed
}

// Input is one of the grants that are met.
type Input struct {
	Name  string      `json:"name"`
	Grant grant.Grant `json:"grant"`
	Note  string      `json:"note,omitempty"`
}

// Narrowed is a grant, with what it was met from and what is sent upstream.
type Narrowed struct {
	Inputs   []Input
	Grant    grant.Grant
	Rendered []byte
	Parsed   grant.Grant
	// Names are the ids that names were resolved to.
	Names map[string]string
}

// Decide applies policy, and for an upstream narrows the grant. Errors: BadToken,
// BadTarget, BadDetails, BadScope, NeedsApproval, Unavailable. The verdict is as
// complete as it came to be, whatever the error.
func (j *Judge) Decide(ctx context.Context, c *Case) (v Verdict, err error) {
	return j.decide(ctx, c, nil)
}

// decide is both Decide and, with an explanation to fill in, Explain.
func (j *Judge) decide(ctx context.Context, c *Case, ex *scopes.Explanation) (v Verdict, err error) {
	v.Policy = j.Policy()
	req, err := j.request(c)
	if err != nil {
		return v, err
	}
	if ex == nil {
		v.Decision = v.Policy.Decide(req)
	} else {
		*ex = v.Policy.Explain(req)
		v.Decision = ex.Decision
	}
	if err := refusal(c, v.Decision); err != nil {
		return v, err
	}
	if c.Target.Provider != "" {
		v.Narrowed, err = j.narrow(ctx, v.Policy, req, v.Decision.Granted, c)
	}
	return v, err
}

// refusal is the error that follows from a decision.
func refusal(c *Case, d scopes.Decision) error {
	if len(d.Asked) == 0 && len(d.Refused) == 0 {
		return Fail(BadScope, errors.New("no scope was asked for"), "say what: scope is missing")
	}
	if len(d.Refused) > 0 && (!c.Client.AcceptLess || len(d.Granted) == 0) {
		reasons := make([]string, len(d.Refused))
		for i, r := range d.Refused {
			reasons[i] = r.String()
		}
		return Fail(BadScope, errors.New(strings.Join(reasons, "; ")), "not all that was asked for is granted")
	}
	if d.Approval {
		return Fail(NeedsApproval, errors.New("a rule requires approval, which this version cannot ask for"), "this needs the approval of a human, which cannot be given yet")
	}
	return nil
}

// notGranted is the error for a grant that comes out as nothing, or as less than
// was asked.
func notGranted(format string, args ...any) error {
	return Fail(BadScope, fmt.Errorf(format, args...), "not all that was asked for is granted")
}

// narrow meets all limits, checks the result against each of them, and renders
// it: everything of the pipeline that comes before the upstream is called.
func (j *Judge) narrow(ctx context.Context, policy *scopes.Policy, req *scopes.Request, granted []string, c *Case) (*Narrowed, error) {
	provider := j.Registry.Providers[c.Target.Provider]
	d := provider.Describe()
	if d.stays() && !d.injects() {
		return nil, Fail(BadTarget, errors.New("credentials of this upstream carry everything; they are not vended"), "this upstream's credentials cannot be narrowed")
	}
	mapped, err := policy.Grant(req, granted, c.Target.Provider)
	if err != nil {
		return nil, Fail(BadScope, err, err.Error())
	}
	ceiling := d.Schema.Everything()
	for _, limit := range req.Ceilings {
		ceiling = grant.Meet(ceiling, limit.Limit(c.Target.Provider, d.Schema))
	}
	r, err := provider.Resolve(ctx, ResolveRequest{
		Subject: c.Name, Resources: c.Target.URIs, Details: c.Details,
		Grants: []grant.Grant{mapped, ceiling}, Live: c.Live,
	})
	if err != nil {
		return nil, err
	}
	mapped, ceiling = r.Grants[0], r.Grants[1]
	token, basis := d.Schema.Everything(), "the token says who, not what"
	if !req.Held.Everything {
		token, basis = mapped, "what its scopes are worth by the mapping"
		if all, err := policy.Grant(req, policy.Holds(req), c.Target.Provider); err == nil {
			token = all
		}
	}
	n := &Narrowed{Names: r.Names, Inputs: []Input{
		{"subject token", token, basis},
		{"mapping", mapped, "version " + policy.Versions()[c.Target.Resource]},
		{"entitlement", r.Entitlement, r.Basis},
		{"ceilings", ceiling, fmt.Sprintf("of %d clients and agents", len(req.Ceilings))},
		{"request", r.Request, ""},
	}}
	return n, n.meet(c, provider, r)
}

// meet fills in the grant.
func (n *Narrowed) meet(c *Case, provider Provider, r *Resolved) error {
	n.Grant = provider.Describe().Schema.Everything()
	for _, in := range n.Inputs {
		n.Grant = grant.Meet(n.Grant, in.Grant)
	}
	for _, in := range n.Inputs { // by other code than the meet
		if ok, diffs := grant.Leq(n.Grant, in.Grant); !ok {
			return fmt.Errorf("the meet is above its input %s: %v", in.Name, diffs)
		}
	}
	if n.Grant.IsNothing() {
		return notGranted("%s", n.emptiness())
	}
	if !c.Client.AcceptLess {
		if err := r.covered(n.Grant, grant.Meet(n.Inputs[1].Grant, r.Request)); err != nil {
			return err
		}
	}
	var err error
	if n.Rendered, err = provider.Render(n.Grant); err != nil {
		if errors.Is(err, ErrInexpressible) {
			return Fail(BadScope, err, "this upstream cannot be narrowed to what was asked for")
		}
		return fmt.Errorf("render grant: %w", err)
	}
	if n.Parsed, err = provider.Parse(n.Rendered); err != nil {
		return fmt.Errorf("read rendered grant: %w", err)
	}
	if !n.Parsed.Equal(n.Grant) {
		return fmt.Errorf("what would be sent is %s, what is meant %s", n.Parsed, n.Grant)
	}
	return nil
}

// emptiness says which input left nothing.
func (n *Narrowed) emptiness() string {
	g := n.Inputs[0].Grant
	for _, in := range n.Inputs {
		if g = grant.Meet(g, in.Grant); g.IsNothing() {
			return in.Name + " leaves nothing"
		}
	}
	return "nothing is left"
}

// covered reports as an error what was asked and is not in the grant. Nothing is
// silently narrowed: worth is what the scopes are worth within what was named.
func (r *Resolved) covered(g, worth grant.Grant) error {
	if ok, diffs := grant.Leq(worth, g); !ok {
		return notGranted("less than asked: without %v", diffs)
	}
	if r.Wanted != nil {
		if ok, diffs := grant.Leq(*r.Wanted, g); !ok {
			return notGranted("less than the details ask: without %v", diffs)
		}
	}
	for i, part := range r.Parts {
		if grant.Meet(part, g).IsNothing() {
			return notGranted("nothing of resource %d is granted", i+1)
		}
	}
	return nil
}
