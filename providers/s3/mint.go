package s3

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/sts"
	"github.com/stint-dev/stint/scopes/grant"
)

// Mint implements [broker.Provider]. A call that is under way is not given up when the
// caller does: its answer says what there is.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	granted, err := p.Parse(r.Rendered)
	if err != nil {
		return nil, fmt.Errorf("read rendered grant: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, broker.Fail(broker.Unavailable, err, "no time was left to ask the store")
	}
	store, err := p.service(ctx)
	if err != nil {
		return nil, err
	}
	keys, err := p.keys(ctx)
	if err != nil {
		return nil, err
	}
	if p.cfg.STS == "none" {
		return p.presign(ctx, store, keys, r, granted)
	}
	life := (min(r.Expires.Sub(p.deps.Now()), p.cfg.MaxLifetime.Duration) - margin).Truncate(time.Second)
	if life < sts.MinLife {
		return nil, fmt.Errorf("no keys for less than %s", minSession)
	}
	h := handle{Until: p.deps.Now().Add(life + skew).Unix()}
	if err := note(r, h); err != nil {
		return nil, err
	}
	s, err := store.AssumeRole(context.WithoutCancel(ctx), keys, sts.Role{ARN: p.cfg.Role, Session: r.Lease, Policy: string(r.Rendered), Life: life})
	if err != nil {
		if errors.Is(err, sts.ErrRefused) {
			err = errors.Join(err, note(r, handle{Nothing: true}))
		}
		return nil, err
	}
	return p.minted(s, keys, r, granted)
}

// minted holds what was answered to what was asked.
func (p *provider) minted(s *sts.Session, keys sts.Keys, r broker.MintRequest, granted grant.Grant) (*broker.Minted, error) {
	out := &broker.Minted{
		Granted: granted, Evidence: broker.Asserted, Expires: s.Expires, Upstream: map[string]string{"access_key_id": s.Keys.ID},
	}
	var err error
	if p.cfg.STS == "minio" {
		// What MinIO enforces stands in the session token, which it made.
		out.Evidence = broker.Attested
		if out.Granted, err = p.attested(s, keys, out); err != nil {
			return nil, err
		}
	}
	h := handle{Made: true, Until: out.Expires.Unix()}
	if err := note(r, h); err != nil {
		return nil, err
	}
	text, err1 := strictjson.Encode(map[string]any{
		"access_key": s.Keys.ID, "secret_key": s.Keys.Secret.Reveal(), "session_token": s.Keys.Session.Reveal(),
		"endpoint": p.cfg.Endpoint, "region": p.cfg.Region, "expires_at": out.Expires.UTC().Format(time.RFC3339),
	})
	out.Document = secret.New(string(text))
	var err2 error
	out.Handle, err2 = strictjson.Encode(h)
	return out, errors.Join(err1, err2)
}

// attested reads a session token of MinIO's: whose session it is, until when, and by
// which policy. One without a policy has everything that its user has.
func (p *provider) attested(s *sts.Session, keys sts.Keys, out *broker.Minted) (grant.Grant, error) {
	parts := strings.Split(s.Keys.Session.Reveal(), ".")
	if len(parts) != 3 {
		return grant.Grant{}, errors.New("the session token is no JWT")
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return grant.Grant{}, errors.New("the session token is no JWT")
	}
	var claims struct {
		Parent string `json:"parent"`
		Policy string `json:"sessionPolicy"`
		Exp    int64  `json:"exp"`
	}
	if err := strictjson.DecodeKnown(text, &claims); err != nil {
		return grant.Grant{}, errors.New("the session token has no claims")
	}
	if claims.Parent != keys.ID {
		return grant.Grant{}, errors.New("the session is that of another user")
	}
	if until := time.Unix(claims.Exp, 0); until.After(out.Expires) {
		out.Expires = until
	}
	if claims.Policy == "" {
		return schema.Everything(), nil
	}
	policy, err := base64.StdEncoding.DecodeString(claims.Policy)
	if err != nil {
		return grant.Grant{}, errors.New("the session's policy cannot be read")
	}
	g, err := parsePolicy(policy)
	if err != nil {
		return grant.Grant{}, fmt.Errorf("the session's policy is not of our making: %w", err)
	}
	return g, nil
}

// presign makes a URL. The store is not asked: whether there is such an object, it says
// to who uses the URL.
func (p *provider) presign(ctx context.Context, store *sts.Service, keys sts.Keys, r broker.MintRequest, granted grant.Grant) (*broker.Minted, error) {
	var o order
	if err := strictjson.Decode(r.Rendered, &o); err != nil {
		return nil, err
	}
	now := p.deps.Now().Truncate(time.Second) // dates of signatures are whole seconds
	life := min(r.Expires.Sub(now), p.cfg.MaxLifetime.Duration, maxURL).Truncate(time.Second)
	if life < time.Second {
		return nil, fmt.Errorf("no URL for less than %s", minURL)
	}
	h := handle{Made: true, Until: now.Add(life).Unix()}
	if err := note(r, h); err != nil {
		return nil, err
	}
	address, err := store.Presign(ctx, keys, o.Method, o.Bucket, o.Key, now, life)
	if err != nil {
		return nil, err
	}
	text, err1 := strictjson.Encode(map[string]any{
		"method": o.Method, "url": address, "headers": map[string]any{}, "expires_at": now.Add(life).UTC().Format(time.RFC3339),
	})
	handle, err2 := strictjson.Encode(h)
	return &broker.Minted{
		Document: secret.New(string(text)), Granted: granted, Evidence: broker.Asserted, Expires: now.Add(life), Handle: handle,
	}, errors.Join(err1, err2)
}

// note makes a handle durable.
func note(r broker.MintRequest, h handle) error {
	text, err := strictjson.Encode(h)
	if err == nil {
		err = r.Note(text)
	}
	if err != nil {
		return fmt.Errorf("note the handle: %w", err)
	}
	return nil
}
