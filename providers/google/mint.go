package google

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

// margin is how much earlier than asked a service account's token ends: clocks differ.
const margin = 2 * time.Second

// made is a token, with what Google said of it.
type made struct {
	token    secret.String
	expires  time.Time
	granted  grant.Grant
	evidence broker.Evidence
}

// Mint implements [broker.Provider]. Nothing that is made can be revoked, so that what
// is noted before says no more than until when it may live.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	if err := ctx.Err(); err != nil {
		return nil, broker.Fail(broker.Unavailable, err, "no time was left to ask Google")
	}
	asked, err := p.Parse(r.Rendered)
	if err != nil {
		return nil, fmt.Errorf("read rendered grant: %w", err)
	}
	var m *made
	switch p.cfg.Flow {
	case flowUser:
		m, err = p.mintUser(ctx, r)
	case flowDelegation:
		m, err = p.mintDelegated(ctx, r, asked)
	case flowStorage:
		m, err = p.mintBounded(ctx, r, asked)
	default:
		m, err = p.mintAccount(ctx, r, asked)
	}
	if err != nil {
		return nil, p.meaning(err)
	}
	if p.cfg.Attest {
		if err := p.attest(ctx, m, r.Rendered); err != nil {
			return nil, p.meaning(err)
		}
	}
	if ok, diffs := grant.Leq(asked, m.granted); !ok {
		return nil, fmt.Errorf("Google granted less than was asked: %v", diffs)
	}
	done, err := strictjson.Encode(handle{Until: m.expires.Unix(), Made: true})
	if err != nil {
		return nil, err
	}
	return &broker.Minted{
		Token: m.token, Granted: m.granted, Evidence: m.evidence, Expires: m.expires, Handle: done,
		Upstream: p.upstreamIDs(r),
	}, nil
}

// upstreamIDs are what Google's log has of a token's making.
func (p *provider) upstreamIDs(r broker.MintRequest) map[string]string {
	if p.cfg.Flow == flowUser {
		return map[string]string{"client_id": p.cfg.ClientID}
	}
	return map[string]string{"service_account": p.cfg.ServiceAccount, "principal": r.Pseudonym}
}

// note says before a token is made that there may be one, and until when.
func (p *provider) note(r broker.MintRequest) error {
	h, err := strictjson.Encode(handle{Until: r.Expires.Unix()})
	if err == nil {
		err = r.Note(h)
	}
	if err != nil {
		return fmt.Errorf("note the handle: %w", err)
	}
	return nil
}

// mintUser has a refresh token make an access token for fewer scopes (RFC 6749 section
// 6). Google does not replace a refresh token by its use, so that many may do this at
// once.
func (p *provider) mintUser(ctx context.Context, r broker.MintRequest) (*made, error) {
	var o userOrder
	if err := strictjson.Decode(r.Rendered, &o); err != nil {
		return nil, err
	}
	parent, err := p.parent(ctx, r.Subject)
	if err != nil {
		return nil, err
	}
	key, err := p.deps.Secret(ctx, p.cfg.ClientSecret)
	if err != nil {
		return nil, fmt.Errorf("read client_secret: %w", err)
	}
	if err := p.note(r); err != nil {
		return nil, err
	}
	a, err := p.token(ctx, p.cfg.Endpoints.Token, url.Values{
		"grant_type": {"refresh_token"}, "refresh_token": {parent.Refresh.Reveal()}, "scope": {o.Scope},
		"client_id": {p.cfg.ClientID}, "client_secret": {key.Reveal()},
	})
	switch codeOf(err) {
	case "invalid_grant", "invalid_rapt":
		return nil, errors.Join(needsLink(err), p.dead(ctx, r.Subject, parent.Refresh))
	case "invalid_scope": // it was linked, and not for this
		return nil, needsLink(err)
	}
	if err != nil {
		return nil, err
	}
	m := &made{token: secret.New(a.AccessToken), evidence: broker.Echoed}
	if m.expires, err = p.ends(a); err != nil {
		return nil, err
	}
	if a.Scope == nil || *a.Scope == "" { // RFC 6749 section 5.1 has it mean what was asked; Google always says
		return nil, errors.New("Google does not say what its token is good for")
	}
	m.granted, err = p.grantOf(shorts(*a.Scope), "")
	return m, err
}

// dead notes that what was linked is no good any more, unless it was linked anew
// meanwhile.
func (p *provider) dead(ctx context.Context, subject string, used secret.String) error {
	// Nothing is kept that would be good until then: so it is renewed.
	_, err := p.deps.Parents.Fresh(ctx, p.key(subject), p.deps.Now().Add(time.Hour), func(_ context.Context, old *upstream.Parent) (*upstream.Parent, error) {
		if old.Refresh.Equal(used) {
			return nil, upstream.ErrDead
		}
		return old, nil
	})
	if errors.Is(err, upstream.ErrDead) || errors.Is(err, broker.ErrNotFound) {
		return nil
	}
	return err
}

// life is what is left of what was asked, to the second.
func (p *provider) life(r broker.MintRequest) (time.Duration, error) {
	life := (min(r.Expires.Sub(p.deps.Now()), p.cfg.MaxLifetime.Duration) - margin).Truncate(time.Second)
	if life < time.Second {
		return 0, broker.Fail(broker.Unavailable, nil, "no time was left to ask Google")
	}
	return life, nil
}

// mintAccount makes a token of the service account. What it is good for Google does not
// say by itself.
func (p *provider) mintAccount(ctx context.Context, r broker.MintRequest, asked grant.Grant) (*made, error) {
	var o accountOrder
	if err := strictjson.Decode(r.Rendered, &o); err != nil {
		return nil, err
	}
	as, err := p.federated(ctx, r.Pseudonym, r.Lease)
	if err != nil {
		return nil, err
	}
	life, err := p.life(r)
	if err != nil {
		return nil, err
	}
	if err := p.note(r); err != nil {
		return nil, err
	}
	m := &made{granted: asked, evidence: broker.Asserted}
	m.token, m.expires, err = p.accessToken(ctx, as, o.Scope, life)
	return m, err
}

// mintBounded makes a token of the service account, which stays here, and exchanges it
// for one within a boundary. That cannot be bounded again.
func (p *provider) mintBounded(ctx context.Context, r broker.MintRequest, asked grant.Grant) (*made, error) {
	as, err := p.federated(ctx, r.Pseudonym, r.Lease)
	if err != nil {
		return nil, err
	}
	life, err := p.life(r)
	if err != nil {
		return nil, err
	}
	open, ends, err := p.accessToken(ctx, as, []string{federationScope}, life)
	if err != nil {
		return nil, err
	}
	if err := p.note(r); err != nil {
		return nil, err
	}
	a, err := p.token(ctx, p.cfg.Endpoints.STS, url.Values{
		"grant_type": {grantExchange}, "requested_token_type": {typeAccess}, "subject_token_type": {typeAccess},
		"subject_token": {open.Reveal()}, "options": {string(r.Rendered)},
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("draw a boundary: %w", err)
	case a.AccessToken == open.Reveal():
		return nil, errors.New("Google's answer is the token without a boundary")
	case a.IssuedType != typeAccess:
		return nil, errors.New("Google's answer is another type of token")
	}
	m := &made{token: secret.New(a.AccessToken), expires: ends, granted: asked, evidence: broker.Asserted}
	if a.ExpiresIn == nil { // it ends with what it was made of
		return m, nil
	}
	said, err := p.ends(a)
	if err == nil && said.Sub(ends).Abs() > margin { // and not within what rounding comes to
		m.expires = said
	}
	return m, err
}

// mintDelegated has the service account assert that the token is for the subject's
// account, by the grant's word for it.
func (p *provider) mintDelegated(ctx context.Context, r broker.MintRequest, asked grant.Grant) (*made, error) {
	var o delegationOrder
	if err := strictjson.Decode(r.Rendered, &o); err != nil {
		return nil, err
	}
	if p.cfg.Users[r.Subject] != o.Sub {
		return nil, errors.New("the account is not the subject's")
	}
	as, err := p.federated(ctx, r.Pseudonym, r.Lease)
	if err != nil {
		return nil, err
	}
	now := p.deps.Now()
	assertion, err := p.signed(ctx, as, map[string]any{
		"iss": p.cfg.ServiceAccount, "sub": o.Sub, "scope": o.Scope, "aud": p.cfg.Endpoints.Token,
		"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	})
	if err != nil {
		return nil, err
	}
	if err := p.note(r); err != nil {
		return nil, err
	}
	a, err := p.token(ctx, p.cfg.Endpoints.Token, url.Values{"grant_type": {grantBearer}, "assertion": {assertion.Reveal()}})
	if err != nil {
		return nil, fmt.Errorf("ask for the user's token: %w", err)
	}
	m := &made{token: secret.New(a.AccessToken), granted: asked, evidence: broker.Asserted}
	if m.expires, err = p.ends(a); err != nil {
		return nil, err
	}
	if a.Scope != nil && *a.Scope != "" {
		m.evidence = broker.Echoed
		m.granted, err = p.grantOf(shorts(*a.Scope), o.Sub)
	}
	return m, err
}

// attest has Google say what a token is good for. That counts, whatever was said before.
func (p *provider) attest(ctx context.Context, m *made, rendered []byte) error {
	i, err := p.tokenInfo(ctx, m.token)
	if err != nil {
		return err
	}
	account := ""
	switch p.cfg.Flow {
	case flowUser:
		if i.Audience != p.cfg.ClientID {
			return errors.New("the token was made for another client")
		}
	case flowDelegation:
		var o delegationOrder
		if err := strictjson.Decode(rendered, &o); err != nil {
			return err
		}
		// Google says whose it is where the token is good for that.
		if account = o.Sub; i.Email != "" && !strings.EqualFold(i.Email, o.Sub) {
			return errors.New("the token is for another account")
		}
	}
	if m.granted, err = p.grantOf(shorts(i.Scope), account); err != nil {
		return fmt.Errorf("read what the token is good for: %w", err)
	}
	m.evidence = broker.Attested
	return nil
}

// meaning is the error for what Google refused, as far as the caller may know it. What
// is wrong between Stint and Google is none of his.
func (p *provider) meaning(err error) error {
	if e := (*broker.Error)(nil); errors.As(err, &e) {
		return err
	}
	switch codeOf(err) {
	case "invalid_scope", "unauthorized_client", "admin_policy_enforced", "access_denied":
		return broker.Fail(broker.BadScope, err, "the upstream does not give out these scopes")
	}
	return err
}
