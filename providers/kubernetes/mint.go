package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// What objects of ours carry.
const (
	labelManaged  = "app.kubernetes.io/managed-by"
	labelProvider = "stint.dev/provider"
	labelLease    = "stint.dev/lease"
	// Where there is something of the lease's: namespaces, and "*" for the cluster.
	noteReach = "stint.dev/reach"
	// When the token was disabled, as RFC 3339 has it: of a tombstone.
	noteEnded = "stint.dev/ended"
)

func accountName(lease string) string { return "stint-" + lease }
func lockName(lease string) string    { return "lease-" + lease }
func graveName(lease string) string   { return "ended-" + lease }

// account is whose token is made, and the Secret that it is bound to.
type account struct {
	namespace, name, uid string
	secret, secretUID    string
}

// Mint implements [broker.Provider]. Everything that is made has the lease's id in its
// name, so that there is no handle to note. A call that is under way is not given up when
// the caller does: what it makes could come after it was looked for.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	if !leaseID(r.Lease) {
		return nil, fmt.Errorf("lease id %q cannot be in a name", r.Lease)
	}
	var o order
	var a account
	var err error
	if p.cfg.Accounts == profiles {
		a, err = p.profile(ctx, r)
	} else {
		o, a, err = p.perLease(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	if a, err = p.lock(ctx, r, a, o.reach()); err != nil {
		return nil, err
	}
	t, err := p.request(ctx, r, a)
	if err != nil {
		return nil, err
	}
	if err := t.claims.of(a, p.cfg.Audiences); err != nil {
		return nil, p.foreign(r, t, err)
	}
	m := &broker.Minted{
		Token: t.token, Evidence: broker.Attested, Expires: time.Unix(t.claims.Expires, 0),
		Upstream: map[string]string{"account": a.namespace + "/" + a.name, "jti": t.claims.ID},
	}
	if err := p.attestIdentity(ctx, t, a); err != nil {
		return nil, err
	}
	if p.cfg.Accounts == profiles {
		m.Granted, err = p.Parse(r.Rendered)
		return m, err
	}
	m.Granted, m.Evidence, err = p.attest(ctx, t, o)
	if err != nil {
		return nil, err
	}
	if below, _ := grant.Leq(m.Granted, r.Grant); below && !m.Granted.Equal(r.Grant) {
		_, missing := grant.Leq(r.Grant, m.Granted)
		return nil, fmt.Errorf("the cluster grants less than was asked: without %v", missing)
	}
	return m, nil
}

// make has an object made, and reads what came of it. What is asked for by somebody who
// has gone is not asked for any more.
func (p *provider) make(ctx context.Context, path string, object map[string]any, into any) error {
	if err := ctx.Err(); err != nil {
		return broker.Fail(broker.Unavailable, err, "no time was left to ask the upstream")
	}
	return p.ask(context.WithoutCancel(ctx), call{method: http.MethodPost, path: path, body: object, into: into})
}

// metadata is that of an object of a lease's.
func (p *provider) metadata(name string, r broker.MintRequest, reach string) map[string]any {
	return map[string]any{
		"name":   name,
		"labels": map[string]string{labelManaged: "stint", labelProvider: p.name, labelLease: r.Lease},
		"annotations": map[string]string{
			noteReach: reach, "stint.dev/subject": printable(r.Pseudonym),
			"stint.dev/agent": printable(r.Actor), "stint.dev/client": printable(r.Client),
		},
	}
}

// printable makes of a name what can stand in an annotation.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "")
	}
	return s
}

// reach says where an order makes something.
func (o order) reach() string {
	where := o.Namespaces
	if len(o.Cluster) > 0 {
		where = append(where[:len(where):len(where)], star)
	}
	return strings.Join(where, ",")
}

// perLease makes an account and its roles. The account comes first: it says where the
// others are.
func (p *provider) perLease(ctx context.Context, r broker.MintRequest) (o order, a account, err error) {
	if o, err = p.ordered(r.Rendered); err != nil {
		return o, a, fmt.Errorf("read rendered grant: %w", err)
	}
	a = account{namespace: p.cfg.Namespace, name: accountName(r.Lease)}
	var m meta
	err = p.make(ctx, core+a.namespace+"/serviceaccounts", map[string]any{
		"apiVersion": "v1", "kind": "ServiceAccount", "metadata": p.metadata(a.name, r, o.reach()), "automountServiceAccountToken": false,
	}, &m)
	if err != nil {
		return o, a, fmt.Errorf("make an account: %w", err)
	}
	a.uid = m.Metadata.UID
	for _, n := range o.Namespaces {
		if err := p.bind(ctx, rbac+"namespaces/"+n+"/", "Role", a, r, o.Rules); err != nil {
			return o, a, err
		}
	}
	if len(o.Cluster) > 0 {
		err = p.bind(ctx, rbac, "ClusterRole", a, r, o.Cluster)
	}
	return o, a, err
}

// bind makes a role and binds it to an account.
func (p *provider) bind(ctx context.Context, where, kind string, a account, r broker.MintRequest, rules []policyRule) error {
	plural := strings.ToLower(kind)
	err := p.make(ctx, where+plural+"s", map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": p.metadata(a.name, r, ""), "rules": rules,
	}, nil)
	if err == nil {
		err = p.make(ctx, where+plural+"bindings", map[string]any{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind + "Binding", "metadata": p.metadata(a.name, r, ""),
			"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": a.name},
			"subjects": []any{map[string]any{"kind": "ServiceAccount", "namespace": a.namespace, "name": a.name}},
		}, nil)
	}
	switch {
	case isReason(err, forbidden):
		// Nobody can make a Role that allows more than he may do himself.
		return broker.Fail(broker.BadScope, fmt.Errorf("make a %s: %w", kind, err), "this is more than the cluster lets us grant")
	case isReason(err, notFound):
		return broker.Fail(broker.BadTarget, fmt.Errorf("make a %s: %w", kind, err), "a namespace that was asked for is not there")
	case err != nil:
		return fmt.Errorf("make a %s: %w", kind, err)
	}
	return nil
}

// profile finds an account that is there.
func (p *provider) profile(ctx context.Context, r broker.MintRequest) (a account, err error) {
	k, err := p.picked(r.Rendered)
	if err != nil {
		return a, fmt.Errorf("read rendered grant: %w", err)
	}
	a = account{namespace: k.Namespace, name: k.Account}
	var m meta
	err = p.ask(ctx, call{method: http.MethodGet, path: core + a.namespace + "/serviceaccounts/" + a.name, into: &m})
	if err != nil {
		return a, fmt.Errorf("look for the account of profile %s: %w", k.Profile, err)
	}
	a.uid = m.Metadata.UID
	return a, nil
}

// lock makes the Secret that the token will be bound to. There is nothing in it.
func (p *provider) lock(ctx context.Context, r broker.MintRequest, a account, reach string) (account, error) {
	var m meta
	a.secret = lockName(r.Lease)
	err := p.make(ctx, core+a.namespace+"/secrets", map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "stint.dev/lease", "immutable": true, "metadata": p.metadata(a.secret, r, reach),
	}, &m)
	if err != nil {
		return a, fmt.Errorf("make a secret: %w", err)
	}
	a.secretUID = m.Metadata.UID
	return a, nil
}

// foreign is the error for a token that is not the one that was asked for. That it can be
// ended is not known: until when it lives is noted.
func (p *provider) foreign(r broker.MintRequest, t *token, err error) error {
	ends := t.claims.Expires
	if ends <= 0 {
		ends = r.Expires.Unix()
	}
	noted, failure := strictjson.Encode(handle{Lasts: ends})
	if failure == nil {
		failure = r.Note(noted)
	}
	return errors.Join(fmt.Errorf("the API server made another token than was asked for: %w", err), failure)
}

// handle is what is noted of a token that is not what it should be.
type handle struct {
	Lasts int64 `json:"lasts"` // seconds since 1970
}
