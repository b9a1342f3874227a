package oauth

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

const (
	accessType = "urn:ietf:params:oauth:token-type:access_token"
	// assertionLife is how long what Stint says of a subject may be shown.
	assertionLife = time.Minute
)

// handle is what is needed to end a token.
type handle struct {
	Token string `json:"token"`
	Ends  int64  `json:"ends"` // seconds since 1970
}

// Mint implements [broker.Provider]. Nothing exists that could be ended before the answer
// is there.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	asked, err := readOrder(r.Rendered)
	if err != nil {
		return nil, fmt.Errorf("read rendered grant: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, broker.Fail(broker.Unavailable, err, "no time was left to ask the upstream")
	}
	// What has been sent takes effect, whoever goes away.
	began := p.deps.Now()
	got, err := p.obtain(context.WithoutCancel(ctx), r.Subject, r.Assertion, asked)
	if err != nil {
		return nil, err
	}
	life := p.cfg.Lifetime.Duration
	if got.Expires >= 1 && got.Expires < 1e9 {
		life = time.Duration(got.Expires) * time.Second
	}
	expires := began.Add(life).Truncate(time.Second)
	h := handle{got.Access, expires.Unix()}
	encoded, err := strictjson.Encode(h)
	if err == nil {
		err = r.Note(encoded)
	}
	if err != nil {
		_, ended := p.end(context.WithoutCancel(ctx), h)
		return nil, errors.Join(fmt.Errorf("note the handle: %w", err), ended)
	}
	out := &broker.Minted{Token: secret.New(got.Access), Expires: expires, Handle: encoded, Upstream: map[string]string{}}
	out.Granted, out.Evidence, err = p.granted(context.WithoutCancel(ctx), got)
	if err != nil {
		return nil, err
	}
	if below, _ := grant.Leq(out.Granted, r.Grant); below && !out.Granted.Equal(r.Grant) {
		_, missing := grant.Leq(r.Grant, out.Granted)
		return nil, fmt.Errorf("the server grants less than was asked: without %v", missing)
	}
	return out, nil
}

// obtain gets a token for some scopes, by the flow of the settings. One that is not what
// was asked for is ended.
func (p *provider) obtain(ctx context.Context, subject string, assertion secret.String, scopes []string) (*tokens, error) {
	got, err := p.made(ctx, subject, assertion, scopes)
	if err != nil {
		return nil, err
	}
	switch t := got.Issued; {
	case !strings.EqualFold(got.Type, "bearer"): // RFC 6749 section 7.1
		err = fmt.Errorf("the server made a token of the type %.80q", got.Type)
	case p.cfg.Flow == flowExchange && t != accessType: // RFC 8693 section 2.2.1
		err = fmt.Errorf("the server issued a %.80q", t)
	default:
		return got, nil
	}
	_, ended := p.end(ctx, handle{Token: got.Access})
	return nil, errors.Join(err, ended)
}

func (p *provider) made(ctx context.Context, subject string, assertion secret.String, scopes []string) (*tokens, error) {
	if p.cfg.Flow == flowRefresh {
		got, _, err := p.refreshed(ctx, subject, scopes)
		return got, err
	}
	form := url.Values{"scope": {p.join(scopes)}}
	if p.cfg.Flow == flowExchange {
		if assertion.Empty() {
			return nil, broker.Fail(broker.BadRequest, nil, "this upstream needs the subject's own token")
		}
		form.Set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
		form.Set("subject_token", assertion.Reveal())
		form.Set("subject_token_type", accessType)
		form.Set("requested_token_type", accessType)
	} else {
		issuer, sub, _ := strings.Cut(subject, "#")
		if issuer != p.cfg.SubjectsOf || sub == p.cfg.ClientID {
			// Of another issuer it is somebody else's name; and nobody is the client.
			return nil, broker.Fail(broker.BadTarget, nil, "the upstream does not know this issuer's subjects")
		}
		said, err := p.say(ctx, sub)
		if err != nil {
			return nil, err
		}
		form.Set("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
		form.Set("assertion", said.Reveal())
	}
	got, err := p.token(ctx, form)
	if err != nil {
		return nil, refusedSubject(err)
	}
	return got, nil
}

// refusedSubject is the error for a server that does not take who the subject is said to
// be.
func refusedSubject(err error) error {
	if broker.CodeOf(err) == broker.Internal {
		return fmt.Errorf("get a token: %w", err)
	}
	return err
}

// say is what Stint asserts of a subject, or of itself as the client (RFC 7523 section 3):
// who it is, for this server, now.
func (p *provider) say(ctx context.Context, sub string) (secret.String, error) {
	m, err := p.endpoints(ctx)
	if err != nil {
		return secret.String{}, err
	}
	aud := m.Issuer
	if aud == "" {
		aud = m.Token
	}
	return p.deps.Assert(ctx, map[string]any{"aud": aud, "sub": sub, "jti": rand.Text(), "exp": p.deps.Now().Add(assertionLife).Unix()})
}

// granted is what the server says that a token is for: in its answer, else when it is
// asked about the token.
func (p *provider) granted(ctx context.Context, got *tokens) (grant.Grant, broker.Evidence, error) {
	scope := got.Scope
	if scope == nil {
		var err error
		if scope, err = p.introspected(ctx, secret.New(got.Access)); err != nil {
			return grant.Grant{}, "", err
		}
	}
	list := p.said(*scope)
	if !inScopes(list, p.cfg.all()) {
		// More than any grant can say, or nothing: what it is for is not known.
		return p.schema.Everything(), broker.Attested, nil
	}
	g, err := p.schema.ParseValue(map[string]any{"scopes": texts(list)})
	return g, broker.Attested, err
}

// introspected asks what a token is for (RFC 7662).
func (p *provider) introspected(ctx context.Context, token secret.String) (*string, error) {
	active, scope, err := p.introspect(ctx, token)
	switch {
	case errors.Is(err, errNoEndpoint):
		return nil, errors.New("the server does not say what the token is for, and cannot be asked")
	case err != nil:
		return nil, err
	case !active || scope == nil:
		return nil, errors.New("the server does not say what the token is for")
	}
	return scope, nil
}

func (p *provider) introspect(ctx context.Context, token secret.String) (active bool, scope *string, err error) {
	m, err := p.endpoints(ctx)
	if err != nil {
		return false, nil, err
	}
	a, err := p.post(ctx, m.Introspect, url.Values{"token": {token.Reveal()}, "token_type_hint": {"access_token"}})
	if err != nil {
		return false, nil, err
	}
	var got struct {
		Active bool    `json:"active"`
		Scope  *string `json:"scope"`
	}
	if err := a.JSON(&got); err != nil || a.Status != http.StatusOK {
		return false, nil, fmt.Errorf("the introspection endpoint answers %d: %w", a.Status, err)
	}
	return got.Active, got.Scope, nil
}

func texts(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}

// Revoke implements [broker.Provider].
func (p *provider) Revoke(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if len(r.Handle) == 0 {
		return broker.Outcome{State: broker.UnknownUntil, Until: r.Expires, Note: "if the server made a token, nobody has it"}, nil
	}
	var h handle
	if err := strictjson.Decode(r.Handle, &h); err != nil || h.Token == "" {
		return broker.Outcome{}, errors.Join(errors.New("read handle"), err)
	}
	return p.end(ctx, h)
}

// end ends one access token, if that ends nothing else.
func (p *provider) end(ctx context.Context, h handle) (broker.Outcome, error) {
	ends := time.Unix(h.Ends, 0)
	if h.Ends == 0 {
		ends = p.deps.Now().Add(p.cfg.Lifetime.Duration)
	}
	if p.cfg.Revokes != "token" {
		if !p.deps.Now().Before(ends) {
			return broker.Outcome{State: broker.AlreadyDead, Note: "it has run out"}, nil
		}
		return broker.Outcome{State: broker.NotRevocableUntil, Until: ends, Note: "the server ends more than one token, or none"}, nil
	}
	token := secret.New(h.Token)
	switch active, _, err := p.introspect(ctx, token); {
	case errors.Is(err, errNoEndpoint):
	case err != nil:
		return broker.Outcome{}, err
	case !active:
		return broker.Outcome{State: broker.AlreadyDead}, nil
	}
	m, err := p.endpoints(ctx)
	if err != nil {
		return broker.Outcome{}, err
	}
	a, err := p.post(ctx, m.Revoke, url.Values{"token": {h.Token}, "token_type_hint": {"access_token"}})
	if err != nil {
		return broker.Outcome{}, err
	}
	if a.Status != http.StatusOK && a.Status != http.StatusNoContent {
		return broker.Outcome{}, fmt.Errorf("the revocation endpoint answers %d", a.Status)
	}
	return broker.Outcome{State: broker.Revoked}, nil
}
