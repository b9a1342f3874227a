package broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/scopes/grant"
)

// This file is the use of credentials that stay here: requests that are made through
// Stint by a token of ours, which stands for a lease.

// callPath is behind our issuer identifier in the audience of such tokens, and in the
// addresses of the requests.
const callPath = "/call"

// stays reports whether credentials are not to be handed out, and injects whether there
// is a way to use them all the same.
func (d *Description) stays() bool {
	return d.Class == None || len(d.Modes) > 0 && d.Modes[0] == Inject
}

func (d *Description) injects() bool {
	return len(d.Modes) > 0 && d.Modes[0] == Inject && d.Inject != nil
}

// CallRequest is a request that somebody wants made with a credential that stays here.
// Nothing of it has been checked.
type CallRequest struct {
	Token secret.String
	// Provider, Host (with the port, if there is one), Path and Query are the address;
	// Method, Header and Body the request itself. The caller has taken out of Header what
	// is the hop's own or could be a credential.
	Provider, Method, Host, Path, Query string
	Header                              map[string][]string
	Body                                []byte
	// RequestID is shown to the caller and recorded; Trace is the W3C trace id.
	RequestID, Trace string
	// Address is the caller's network address, and Certificate the thumbprint of the
	// certificate that its connection was made with; empty without one.
	Address, Certificate string
}

// Call is a request that may be made, once, with what is to be put into it.
type Call struct {
	Injection
	// Lease is by which it is made, Client who makes it, and Origin where it goes to.
	Lease, Client, Origin string
	// Hosts are all that the provider's requests may go to, without ports.
	Hosts []string
	// Done records what came of the request, durably: the status of the upstream's answer,
	// or why there is none. On an error the answer is for nobody: it could not be recorded,
	// or the lease has been revoked meanwhile.
	Done func(ctx context.Context, status int, failure error) error
}

// calling is the work on one request.
type calling struct {
	Call
	b        *Broker
	lineage  *Lineage
	event    *audit.Event
	personal audit.Personal
}

// Call checks a request that is to be made by a lease: that the token is for this and has
// not been revoked, that the lease is there and active, and that the provider finds the
// request within the grant. Whoever makes the request calls its Done with what came of
// it before he answers anybody. A path that is not canonical, so that the upstream could
// read another in it, is refused. Errors: BadToken; BadRequest; BadTarget, for a host that
// is none of the provider's; BadScope, for what the grant does not allow; NeedsLink;
// Limited; Unavailable.
func (b *Broker) Call(ctx context.Context, r *CallRequest) (*Call, error) {
	c := &calling{b: b, personal: audit.Personal{Address: r.Address}}
	c.event = &audit.Event{Kind: audit.KindCall, Request: r.RequestID, Trace: r.Trace}
	t, err := b.admitCall(ctx, r, c)
	if err != nil {
		// Anybody can have that happen as often as he likes.
		c.personal.Detail = ended(c.event, err)
		if failure := b.recorder.Note(ctx, c.event, c.personal); failure != nil {
			b.log.ErrorContext(ctx, "record refusal", "error", failure)
		}
		return nil, err
	}
	if err := b.holdCall(ctx, r, c, t); err != nil {
		b.recordRefusal(ctx, c.event, c.personal, err)
		return nil, err
	}
	c.Done = c.done
	return &c.Call, nil
}

// admitCall checks the token.
func (b *Broker) admitCall(ctx context.Context, r *CallRequest, c *calling) (*Token, error) {
	const which = "access token"
	if err := b.current(b.now()); err != nil {
		return nil, err
	}
	t, err := b.tokens.Verify(ctx, r.Token)
	switch {
	case CodeOf(err) == Unavailable:
		return nil, err
	case err != nil:
		return nil, refused(which, "%w", err)
	case !t.Ours || t.Use != AccessToken || !t.forCalls() || len(t.Audience) != 1 || t.Audience[0] != b.reg.Self+callPath:
		return nil, refused(which, "it is not for requests through Stint")
	case t.Certificate != "" && t.Certificate != r.Certificate:
		return nil, refused(which, "it is bound to another certificate than that of the connection")
	case t.Stint.Call.Provider != r.Provider:
		return nil, refused(which, "it is for requests to provider %s", t.Stint.Call.Provider)
	}
	if c.lineage, err = ancestry(which, t, ""); err != nil {
		return nil, err
	}
	return t, b.aliveCall(c)
}

// forCalls reports whether a token is good for requests through Stint, and so for nothing
// else; t may be nil.
func (t *Token) forCalls() bool { return t != nil && t.Ours && t.Stint != nil && t.Stint.Call != nil }

// aliveCall checks that nothing behind a token has been revoked or turned off.
func (b *Broker) aliveCall(c *calling) error {
	if err := b.index.Check(c.lineage); err != nil {
		return refused("access token", "%w", err)
	}
	if b.reg.gone(c.lineage) {
		return refused("access token", "somebody on its way is turned off")
	}
	return nil
}

// holdCall holds a request to the lease that its token stands for.
func (b *Broker) holdCall(ctx context.Context, r *CallRequest, c *calling, t *Token) error {
	c.note(r, t)
	if err := checkCall(r); err != nil {
		return err
	}
	p := b.reg.Providers[r.Provider]
	if p == nil {
		return refused("access token", "provider %s is not configured any more", r.Provider)
	}
	d := p.Describe()
	if !d.injects() {
		return refused("access token", "provider %s does not inject any more", r.Provider)
	}
	if err := c.to(&d, r.Host); err != nil {
		return err
	}
	req := InjectRequest{
		Lease: t.ID, Method: r.Method, Host: r.Host, Path: r.Path, Query: r.Query, Header: r.Header, Body: r.Body,
	}
	var err error
	if req.Grant, req.Handle, err = b.allowedBy(ctx, t, d.Schema); err != nil {
		return err
	}
	in, err := safely(func() (*Injection, error) { return d.Inject(ctx, req) })
	switch {
	case err == nil && in == nil:
		return errors.New("the provider answered with nothing")
	case err == nil:
		c.Injection = *in
		c.event.Call.What = printable(in.What)
		return nil
	}
	if e := AsError(err); e.Code != Internal {
		return e
	}
	return unavailable(fmt.Errorf("inject: %w", err))
}

// note puts into the event who asks for what.
func (c *calling) note(r *CallRequest, t *Token) {
	c.Lease, c.Client = t.ID, t.ClientID
	e := c.event
	e.Party = audit.Party{Client: t.ClientID, Agent: t.Stint.Agent, Session: t.Stint.Session, Subject: t.Subject}
	if strings.Contains(t.Subject, "#") {
		e.Party.Subject, c.personal.Subject = "", t.Subject
	}
	e.Target = audit.Target{Resource: t.Stint.Call.Resource, Provider: r.Provider, Tool: t.Stint.Tool}
	e.Token = &audit.Token{ID: t.ID, Issuer: t.Issuer, Expires: t.Expires.Unix()}
	e.Lease = &audit.Lease{ID: t.ID, Provider: r.Provider}
	sum := sha256.Sum256([]byte(r.Path))
	e.Call = &audit.Call{Method: printable(r.Method), Host: printable(r.Host), Path: hex.EncodeToString(sum[:])}
}

// to finds the origin of a host. There is one spelling for each.
func (c *calling) to(d *Description, host string) error {
	for _, o := range d.Origins {
		u, err := url.Parse(o)
		if err != nil || u.Host == "" {
			return fmt.Errorf("origin %q is none", o)
		}
		c.Hosts = append(c.Hosts, u.Hostname())
		if u.Host == host {
			c.Origin = u.Scheme + "://" + u.Host
		}
	}
	if c.Origin == "" {
		return Fail(BadTarget, fmt.Errorf("host %s is none of the provider's", printable(host)), "this provider has no such host")
	}
	return nil
}

// allowedBy looks for the lease of a token, and returns what it allows. What the ledger says
// of that has to be what we signed.
func (b *Broker) allowedBy(ctx context.Context, t *Token, s *grant.Schema) (g grant.Grant, handle []byte, err error) {
	const which = "access token"
	l, err := b.ledger.Lease(ctx, t.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		return g, nil, refused(which, "there is no lease %s any more", t.ID)
	case err != nil:
		return g, nil, unavailable(fmt.Errorf("look for a lease: %w", err))
	case l.State != Active || !b.now().Before(l.Expires):
		return g, nil, refused(which, "the lease is %s until %s", l.State, l.Expires)
	case l.Provider != t.Stint.Call.Provider:
		return g, nil, refused(which, "its lease is of provider %s", l.Provider)
	}
	if g, err = s.Parse(l.Grant); err != nil {
		return g, nil, refused(which, "the provider's grants have another form by now: %w", err)
	}
	if g.IsNothing() || g.Hash() != t.Stint.Call.Grant {
		return g, nil, refused(which, "the lease allows something else than was granted")
	}
	if len(l.Handle) > 0 {
		if handle, err = b.sealer.Open(l.Handle, handleContext(l)); err != nil {
			return g, nil, fmt.Errorf("open handle: %w", err)
		}
	}
	return g, handle, nil
}

// done is Done of [Call].
func (c *calling) done(ctx context.Context, status int, failure error) error {
	ctx = context.WithoutCancel(ctx)
	c.event.Outcome, c.event.Call.Status = audit.Done, status
	err := c.b.aliveCall(c)
	if failure == nil {
		failure = err
	}
	if failure != nil {
		c.personal.Detail = ended(c.event, failure)
	}
	if err := c.b.recorder.Record(ctx, c.event, c.personal); err != nil {
		return unavailable(fmt.Errorf("record a request: %w", err))
	}
	return err
}

// checkCall refuses what an upstream could understand in another way than we do.
func checkCall(r *CallRequest) error {
	bad := func(text string) error { return Fail(BadRequest, nil, text) }
	switch {
	case !slices.Contains(Methods, r.Method):
		return bad("the method is none of " + strings.Join(Methods, ", "))
	case (r.Method == http.MethodGet || r.Method == http.MethodHead) && len(r.Body) > 0:
		// Some frameworks read a form there, and in it another method.
		return bad("a request that reads has no body")
	}
	if why := NotCanonical(r.Path); why != "" {
		return bad("path: " + why)
	}
	if why := notQuery(r.Query); why != "" {
		return bad("query: " + why)
	}
	return nil
}
