// Package aws vends temporary credentials of Amazon Web Services: sessions of one role,
// each narrowed by a session policy that is written for it.
//
// What a session may do is what its role may do and its policy allows, both: the policy
// can only take away. So the role is the limit of all that can be vended here, and the
// mapping says who gets which part of it. AWS knows nothing of the subject's own rights,
// so that there is no entitlement to ask for: role and mapping are the limit.
//
//	role: arn:aws:iam::123456789012:role/stint-data
//	region: eu-west-1
//
// Nothing that AWS issued is kept for that. The role trusts Stint as an OpenID Connect
// provider: Stint signs a token for each session (auth: web_identity), which AWS checks by
// Stint's metadata. The trust policy has to name audience and subject, and has to allow
// what the token says of whom it is for:
//
//	{"Effect": "Allow",
//	 "Principal": {"Federated": "arn:aws:iam::123456789012:oidc-provider/stint.example"},
//	 "Action": ["sts:AssumeRoleWithWebIdentity", "sts:TagSession", "sts:SetSourceIdentity"],
//	 "Condition": {"StringEquals": {"stint.example:aud": "sts.amazonaws.com"}}}
//
// Where that cannot be, auth: assume_role signs with keys from the store of secrets.
//
// A grant has two dimensions, either of which may be nothing, but not both: s3, which is
// verbs at buckets below prefixes, and actions, which are actions of any service, each
// spelled out, at exact ARNs or below one that ends in "/" or ":". Of each session it is
// said whom it is for: the source identity is the subject's pseudonym, the session is
// named after the lease, and tags, which go along to further roles, hold subject, agent,
// client and lease. Where a policy is too large with them, the request is refused: they
// are never left out.
//
// The answer is held against what was asked for: when the session ends, whose it is, and
// of which role. It does not say what policy applies, so that this is only asserted.
// A session cannot be revoked by itself. It ends when it ends, a quarter of an hour from
// the beginning at the earliest; or, with revocation: deny_policy, when a policy of the
// role that denies everything to it has taken effect.
package aws

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/sts"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

// verbs are those of the dimension s3, with the actions that they are.
var verbs = map[string]string{
	"get": "s3:GetObject", "put": "s3:PutObject", "delete": "s3:DeleteObject", "list": "s3:ListBucket",
}

var schema = grant.MustSchema("aws", 1,
	grant.Dimension{
		Name: "s3", Type: grant.PrefixSet, Optional: true, Values: []string{"get", "put", "delete", "list"}, Reads: []string{"get", "list"},
		About: "Objects in buckets, by the beginning of their keys. get, put and delete are s3:GetObject, s3:PutObject and s3:DeleteObject; list is s3:ListBucket of keys that begin so.",
	},
	grant.Dimension{
		Name: "actions", Type: grant.ActionSet, Optional: true, Reads: readActions(),
		About: "Actions of any service, each spelled out as in dynamodb:GetItem, at an exact ARN, or below one that ends in / or :. The resource is * for actions that know no other.",
	},
)

type provider struct {
	name  string
	cfg   Config
	deps  upstream.Deps
	parts []string // of the role's ARN
	sts   *sts.Service
	about broker.Description
	deny  *denier
}

var _ broker.Provider = (*provider)(nil)

// Describe is what all providers of this kind say of themselves.
func Describe() broker.Description {
	return broker.Description{
		Kind: "aws", About: "sessions of an AWS role, each narrowed by a session policy of its own",
		Class: broker.Exact, Modes: []broker.Mode{broker.Vend}, Schema: schema, Scheme: "aws", Details: "aws", TokenType: "N_A",
		MinLifetime: minLifetime, MaxLifetime: sts.MaxLife, Settable: true, Revokes: "none", Evidence: broker.Asserted,
		Identity: []string{
			"CloudTrail, userIdentity: the session's name is the lease, sourceIdentity the subject's pseudonym",
			"tags of the session, which policies can ask for as aws:PrincipalTag: stint-subject, stint-agent, stint-client, stint-lease",
		},
		Reads: readsVersion,
	}
}

// Open makes a provider of its settings. It asks AWS for nothing.
func Open(_ context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	p := &provider{name: name, deps: d, about: Describe()}
	if err := decode(&p.cfg); err != nil {
		return nil, err
	}
	if err := p.cfg.Check(); err != nil {
		return nil, err
	}
	p.parts = strings.SplitN(p.cfg.Role, ":", 6)
	var err error
	if p.sts, err = p.service(p.cfg.Endpoint, p.cfg.Region); err != nil {
		return nil, err
	}
	p.about.MaxLifetime, p.about.Check, p.about.Ready = p.cfg.MaxLifetime.Duration, p.check, p.ready
	p.about.Claims = p.claims
	if p.cfg.Revocation == "deny_policy" {
		iam, err := p.service(p.cfg.Deny.Endpoint, p.cfg.Deny.Region)
		if err != nil {
			return nil, err
		}
		p.deny = &denier{provider: p, iam: iam}
		p.about.Revokes = "token"
	}
	return p, nil
}

// service returns a client of one endpoint.
func (p *provider) service(endpoint, region string) (*sts.Service, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	h, err := p.deps.HTTP([]string{u.Hostname()}, nil)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", u.Hostname(), err)
	}
	return &sts.Service{Endpoint: endpoint, Region: region, Client: upstream.NewClient("aws", h), Now: p.deps.Now}, nil
}

// Describe implements [broker.Provider].
func (p *provider) Describe() broker.Description { return p.about }

// ready looks whether there is what a session is asked for with. AWS is not asked:
// there is no question to STS that needs no session.
func (p *provider) ready(ctx context.Context) error {
	if p.cfg.Auth == "assume_role" {
		_, err := p.keys(ctx)
		return err
	}
	_, err := p.token(ctx, broker.MintRequest{Lease: "ready", Pseudonym: "ready"})
	return err
}
