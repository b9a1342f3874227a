package aws

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/sts"
)

// audience is whom our tokens are for.
const audience = "sts.amazonaws.com"

// tokenLife is how long a token of ours is good for: until STS has read it.
const tokenLife = 5 * time.Minute

// sourceIdentity is what AWS takes as one.
var sourceIdentity = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{2,64}$`)

// Mint implements [broker.Provider]. A call that is under way is not given up when the
// caller does: its answer says what there is.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	granted, err := p.Parse(r.Rendered)
	if err != nil {
		return nil, fmt.Errorf("read rendered grant: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, broker.Fail(broker.Unavailable, err, "no time was left to ask AWS")
	}
	life := (min(r.Expires.Sub(p.deps.Now()), p.cfg.MaxLifetime.Duration) - margin).Truncate(time.Second)
	if life < sts.MinLife {
		return nil, fmt.Errorf("no session for less than %s", minLifetime)
	}
	// From here on there may be a session, until then at the latest.
	h := handle{Until: p.deps.Now().Add(life + skew).Unix()}
	if err := note(r, h); err != nil {
		return nil, err
	}
	s, err := p.assume(context.WithoutCancel(ctx), r, p.cfg.Role, r.Lease, string(r.Rendered), life)
	if err != nil {
		if errors.Is(err, sts.ErrRefused) {
			err = errors.Join(err, note(r, handle{Nothing: true}))
		}
		return nil, err
	}
	h.Made, h.Until = true, s.Expires.Unix()
	if err := note(r, h); err != nil {
		return nil, err
	}
	if err := p.holds(s, r); err != nil {
		return nil, err
	}
	out := &broker.Minted{
		Granted: granted, Evidence: broker.Asserted, Expires: s.Expires,
		Upstream: map[string]string{"access_key_id": s.Keys.ID, "arn": s.ARN},
	}
	if out.Document, err = p.document(s); err != nil {
		return nil, err
	}
	out.Handle, err = strictjson.Encode(h)
	return out, err
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

// assume asks for a session of a role by which it is known whom it is for.
func (p *provider) assume(ctx context.Context, r broker.MintRequest, role, name, policy string, life time.Duration) (*sts.Session, error) {
	if !sourceIdentity.MatchString(r.Pseudonym) {
		return nil, fmt.Errorf("%q cannot be a source identity", r.Pseudonym)
	}
	ask := sts.Role{ARN: role, Session: name, Policy: policy, Life: life}
	if p.cfg.Auth == "assume_role" {
		keys, err := p.keys(ctx)
		if err != nil {
			return nil, err
		}
		ask.ExternalID, ask.SourceIdentity, ask.Tags = p.cfg.ExternalID, r.Pseudonym, tags(r)
		return p.sts.AssumeRole(ctx, keys, ask)
	}
	token, err := p.token(ctx, r)
	if err != nil {
		return nil, err
	}
	return p.sts.AssumeRoleWithWebIdentity(ctx, token, ask)
}

func (p *provider) keys(ctx context.Context) (k sts.Keys, err error) {
	id, err1 := p.deps.Secret(ctx, p.cfg.AccessKey)
	key, err2 := p.deps.Secret(ctx, p.cfg.SecretKey)
	if err := errors.Join(err1, err2); err != nil {
		return k, fmt.Errorf("keys: %w", err)
	}
	return sts.Keys{ID: strings.TrimSpace(id.Reveal()), Secret: secret.New(strings.TrimSpace(key.Reveal()))}, nil
}

// tags say whom a session is for, in CloudTrail and to policies.
func tags(r broker.MintRequest) []sts.Tag {
	out := []sts.Tag{{Key: "stint-subject", Value: tagged(r.Pseudonym)}, {Key: "stint-lease", Value: tagged(r.Lease)}}
	for _, t := range []sts.Tag{{Key: "stint-agent", Value: tagged(r.Actor)}, {Key: "stint-client", Value: tagged(r.Client)}} {
		if t.Value != "" {
			out = append(out, t)
		}
	}
	return out
}

// tagged is a text as the value of a tag: letters, digits and some marks, 256 of them.
// What is not taken becomes an underscore.
func tagged(text string) string {
	out := strings.Map(func(c rune) rune {
		if c < 0x80 && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.ContainsRune(" _.:/=+-@", c)) {
			return c
		}
		return '_'
	}, text)
	return out[:min(len(out), 256)]
}

// token is what AWS reads of whom a session is for.
func (p *provider) token(ctx context.Context, r broker.MintRequest) (secret.String, error) {
	principal, transitive := map[string]any{}, []any{}
	for _, t := range tags(r) {
		principal[t.Key] = []any{t.Value}
		transitive = append(transitive, t.Key)
	}
	token, err := p.deps.Assert(ctx, map[string]any{
		"aud": audience, "sub": r.Pseudonym, "exp": p.deps.Now().Add(tokenLife).Unix(), "jti": rand.Text(),
		"https://aws.amazon.com/tags":            map[string]any{"principal_tags": principal, "transitive_tag_keys": transitive},
		"https://aws.amazon.com/source_identity": r.Pseudonym,
	})
	if err != nil {
		return token, fmt.Errorf("sign a token: %w", err)
	}
	return token, nil
}

// holds compares what was answered with what was asked. The end is for the broker to
// compare: it is the session's own.
func (p *provider) holds(s *sts.Session, r broker.MintRequest) error {
	want := "arn:" + p.parts[1] + ":sts::" + p.parts[4] + ":assumed-role/" + roleName(p.cfg.Role) + "/" + r.Lease
	switch {
	case s.ARN != want:
		return fmt.Errorf("the session is not %s but another", want)
	case s.SourceIdentity != r.Pseudonym:
		return errors.New("the session has not the source identity that it was asked for with")
	case !strings.HasSuffix(s.ID, ":"+r.Lease):
		return errors.New("the session's id does not name the lease")
	case p.cfg.Auth == "web_identity" && (s.Subject != r.Pseudonym || s.Audience != audience):
		return errors.New("the session was made by another token")
	}
	return nil
}

// document is the credential: its fields are called as Vault calls those of its AWS
// engine, which `stint vend` knows.
func (p *provider) document(s *sts.Session) (secret.String, error) {
	text, err := strictjson.Encode(map[string]any{
		"access_key": s.Keys.ID, "secret_key": s.Keys.Secret.Reveal(), "session_token": s.Keys.Session.Reveal(),
		"region": p.cfg.Region, "arn": s.ARN, "expires_at": s.Expires.UTC().Format(time.RFC3339),
	})
	return secret.New(string(text)), err
}
