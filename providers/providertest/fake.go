package providertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// FakeSchema is the shape of a [Fake]'s grants: repositories, and permissions
// with levels, as of a code host.
var FakeSchema = grant.MustSchema("fake", 1,
	grant.Dimension{Name: "repositories", Type: grant.IDSet},
	grant.Dimension{Name: "permissions", Type: grant.LevelMap, Reads: []string{"read"}, Levels: map[string][]string{
		"contents": {"read", "write"}, "issues": {"read", "write"}, "settings": {"read", "write", "admin"},
	}},
)

// Fake is a provider with its upstream, in memory. It keeps the contract: what
// it minted it knows, enforces, lists and ends. Its credentials are bearer
// tokens; resources are fake://NAME/REPOSITORY.
type Fake struct {
	name string
	now  func() time.Time

	mu     sync.Mutex
	leases map[string]*fakeLease // by lease id; a revoked one stays, without a token
	rights map[string]grant.Grant
	mints  int
	down   error
	site   *fakeSite // nil: nothing is linked
}

type fakeLease struct {
	token   secret.String
	granted grant.Grant
	expires time.Time
	ended   bool
	asked   broker.MintRequest
}

var _ broker.Provider = (*Fake)(nil)

// fakeMax is the longest that a fake's credential lives.
const fakeMax = time.Hour

// NewFake returns a fake provider of a name, by a clock.
func NewFake(name string, now func() time.Time) *Fake {
	return &Fake{name: name, now: now, leases: make(map[string]*fakeLease), rights: make(map[string]grant.Grant)}
}

// Entitle sets what a subject may do by itself. Without it the upstream does not
// know the subject, which limits nothing.
func (f *Fake) Entitle(subject string, g grant.Grant) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rights[subject] = g
}

// Break makes every call fail with err, before it does anything, until it is
// nil.
func (f *Fake) Break(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = err
}

// Live returns the leases whose credentials are accepted, sorted.
func (f *Fake) Live() (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, l := range f.leases {
		if f.alive(l) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Mints returns how many credentials were ever minted.
func (f *Fake) Mints() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mints
}

// Asked returns the request that minted a lease.
func (f *Fake) Asked(lease string) (broker.MintRequest, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.leases[lease]
	if l == nil {
		return broker.MintRequest{}, false
	}
	return l.asked, true
}

// Accepts reports whether the upstream takes a token.
func (f *Fake) Accepts(token secret.String) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.leases {
		if f.alive(l) && l.token.Equal(token) {
			return true
		}
	}
	return false
}

// Use is the upstream: it does something at a repository that takes a permission
// of a level, if the token allows it. The error wraps [ErrRefused].
func (f *Fake) Use(token secret.String, repository, permission, level string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	need, err := FakeSchema.ParseValue(map[string]any{"repositories": []any{repository}, "permissions": map[string]any{permission: level}})
	if err != nil {
		return err
	}
	for _, l := range f.leases {
		if !f.alive(l) || !l.token.Equal(token) {
			continue
		}
		if ok, diffs := grant.Leq(need, l.granted); !ok {
			return fmt.Errorf("not granted: %v: %w", diffs, ErrRefused)
		}
		return nil
	}
	return fmt.Errorf("no such token: %w", ErrRefused)
}

func (f *Fake) alive(l *fakeLease) bool { return !l.ended && f.now().Before(l.expires) }

// Describe implements [broker.Provider].
func (f *Fake) Describe() broker.Description {
	link := f.link()
	return broker.Description{
		Kind: "fake", About: "an upstream in memory, for tests", Class: broker.Exact, Modes: []broker.Mode{broker.Vend}, Schema: FakeSchema,
		Sweeps: true, Renews: true, Renew: f.renew, Reads: "the schema", Scheme: "fake", Details: "fake", TokenType: "Bearer", MinLifetime: time.Second, MaxLifetime: fakeMax, Settable: true,
		Revokes: "token", Evidence: broker.Attested, Identity: []string{"lease"}, Sweep: f.sweep, Ready: f.ready,
		Links: link != nil, Link: link,
	}
}

func (f *Fake) ready(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down
}

// check is what every call begins with; it is called with the lock held.
func (f *Fake) check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return broker.Fail(broker.Unavailable, err, "the fake was given no time")
	}
	if f.down != nil {
		return broker.Fail(broker.Unavailable, f.down, "the fake is down")
	}
	return nil
}

// Resolve implements [broker.Provider].
func (f *Fake) Resolve(ctx context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &broker.Resolved{Request: FakeSchema.Everything(), Grants: r.Grants, Entitlement: FakeSchema.Everything(), Basis: "assumed"}
	for i, uri := range r.Resources {
		u, err := url.Parse(uri)
		if err != nil || u.Scheme != "fake" || u.Host != f.name || len(u.Path) < 2 {
			return nil, broker.Fail(broker.BadTarget, err, "name a repository as fake://"+f.name+"/repository")
		}
		part, err := FakeSchema.Limit(map[string]any{"repositories": []any{strings.TrimPrefix(u.Path, "/")}})
		if err != nil {
			return nil, broker.Fail(broker.BadTarget, err, "no repository has this name")
		}
		out.Parts = append(out.Parts, part)
		if i > 0 {
			part, _ = grant.Union(out.Request, part) // they differ in one dimension
		}
		out.Request = part
	}
	for _, d := range r.Details {
		given := maps.Clone(d)
		if given["provider"] == f.name {
			delete(given, "provider")
		}
		wanted, err := FakeSchema.ParseValue(given)
		if err != nil || wanted.IsNothing() || out.Wanted != nil {
			return nil, broker.Fail(broker.BadDetails, err, "authorization_details: one object with repositories and permissions is wanted")
		}
		out.Wanted, out.Request = &wanted, grant.Meet(out.Request, wanted)
	}
	if !r.Live {
		return out, nil
	}
	if err := f.check(ctx); err != nil {
		return nil, err
	}
	if err := f.needsLink(r.Subject); err != nil {
		return nil, err
	}
	out.Basis = "the subject is not known here"
	if g, ok := f.rights[r.Subject]; ok {
		out.Entitlement, out.Basis = g, "live"
	}
	return out, nil
}

// fakeTerms is what a fake is asked for.
type fakeTerms struct {
	Repositories []string          `json:"repositories"`
	Permissions  map[string]string `json:"permissions"`
}

// Render implements [broker.Provider].
func (f *Fake) Render(g grant.Grant) ([]byte, error) {
	allRepositories, repositories := g.Dimension("repositories")
	allPermissions, permissions := g.Dimension("permissions")
	if g.IsNothing() || allRepositories || allPermissions {
		return nil, fmt.Errorf("nothing, and everything: %w", broker.ErrInexpressible)
	}
	t := fakeTerms{Permissions: make(map[string]string)}
	for _, a := range repositories {
		t.Repositories = append(t.Repositories, a[0])
	}
	for _, a := range permissions {
		t.Permissions[a[0]] = a[1]
	}
	return strictjson.Encode(t)
}

// Parse implements [broker.Provider].
func (f *Fake) Parse(rendered []byte) (grant.Grant, error) {
	var v map[string]any
	if err := strictjson.Decode(rendered, &v); err != nil {
		return grant.Grant{}, err
	}
	g, err := FakeSchema.ParseValue(v)
	if err == nil && g.IsNothing() {
		err = errors.New("nothing")
	}
	return g, err
}

// Mint implements [broker.Provider].
func (f *Fake) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	granted, err := f.Parse(r.Rendered)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.check(ctx); err != nil {
		return nil, err
	}
	if f.leases[r.Lease] != nil {
		return nil, broker.Fail(broker.Unavailable, fmt.Errorf("lease %s has ended, or was there before", r.Lease), "the credential has been taken back")
	}
	l := &fakeLease{token: secret.New("fake-" + rand.Text()), granted: granted, expires: r.Expires, asked: r}
	if most := f.now().Add(fakeMax); l.expires.After(most) {
		l.expires = most
	}
	f.leases[r.Lease] = l
	f.mints++
	return &broker.Minted{
		Token: l.token, Granted: granted, Evidence: broker.Attested, Expires: l.expires, Handle: []byte("handle of " + r.Lease),
		Upstream: map[string]string{"token": l.token.Digest()},
	}, nil
}

func (f *Fake) renew(ctx context.Context, r broker.RenewRequest) (*broker.Minted, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.check(ctx); err != nil {
		return nil, err
	}
	l := f.leases[r.Lease]
	if l == nil || !f.alive(l) {
		return nil, broker.Fail(broker.Unavailable, fmt.Errorf("lease %s has ended", r.Lease), "the credential has been taken back")
	}
	if most := f.now().Add(fakeMax); r.Expires.After(most) {
		r.Expires = most
	}
	l.expires = r.Expires
	return &broker.Minted{Granted: l.granted, Evidence: broker.Attested, Expires: l.expires}, nil
}

// Revoke implements [broker.Provider].
func (f *Fake) Revoke(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.check(ctx); err != nil {
		return broker.Outcome{}, err
	}
	l := f.leases[r.Lease]
	switch {
	case l == nil:
		f.leases[r.Lease] = &fakeLease{ended: true} // so that a late mint is refused
		return broker.Outcome{State: broker.AlreadyDead}, nil
	case !f.alive(l):
		l.ended = true
		return broker.Outcome{State: broker.AlreadyDead}, nil
	}
	l.ended = true
	return broker.Outcome{State: broker.Revoked}, nil
}

func (f *Fake) sweep(ctx context.Context, keep func(lease string) bool) (ended []string, err error) {
	for _, id := range f.Live() {
		if keep(id) {
			continue
		}
		if _, err := f.Revoke(ctx, broker.RevokeLease{Lease: id}); err != nil {
			return ended, err
		}
		ended = append(ended, id)
	}
	return ended, nil
}
