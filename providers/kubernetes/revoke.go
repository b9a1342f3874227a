package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

// cached is how long API servers may take for good what they have found good: 10 seconds,
// and some more, because they learn of deletions from etcd and have clocks of their own.
const cached = 13 * time.Second

const streams = "what was open, such as a watch, runs until the API server closes it"

// Revoke implements [broker.Provider]. The first time, what was made is deleted: bindings
// first, which ends what the token may do, then roles, then the Secret, which ends the
// token, then the account, which says where the others are. That takes effect at once, or
// where API servers have seen the token, within 10 seconds; a second Secret remembers
// since when, until it is over.
func (p *provider) Revoke(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if !leaseID(r.Lease) {
		return broker.Outcome{State: broker.AlreadyDead, Note: "no lease of this provider has such an id"}, nil
	}
	out := broker.Outcome{State: broker.AlreadyDead, Note: "there is nothing of this lease"}
	for _, n := range p.cfg.namespaces() {
		o, err := p.end(ctx, n, r.Lease)
		if err != nil {
			return broker.Outcome{}, err
		}
		if rank(o.State) > rank(out.State) {
			out = o
		}
	}
	var h handle
	if len(r.Handle) > 0 {
		if err := strictjson.Decode(r.Handle, &h); err != nil {
			return broker.Outcome{}, fmt.Errorf("read handle: %w", err)
		}
	}
	if ends := time.Unix(h.Lasts, 0); out.State.Final() && p.cfg.Accounts == profiles && p.deps.Now().Before(ends) {
		return broker.Outcome{
			State: broker.NotRevocableUntil, Until: ends, Note: "the API server made another token than was asked for; it was given to nobody",
		}, nil
	}
	return out, nil
}

// rank orders outcomes: what is least over counts.
func rank(s broker.OutcomeState) int {
	return slices.Index([]broker.OutcomeState{broker.AlreadyDead, broker.Revoked, broker.DisabledPendingKill}, s)
}

// end takes what there is of a lease in a namespace of Secrets a step further.
func (p *provider) end(ctx context.Context, namespace, lease string) (broker.Outcome, error) {
	accounts, secrets := core+namespace+"/serviceaccounts/", core+namespace+"/secrets/"
	lock, err1 := p.get(ctx, secrets+lockName(lease), lease)
	grave, err2 := p.get(ctx, secrets+graveName(lease), lease)
	var own *meta
	var err3 error
	if p.cfg.Accounts == perLease {
		own, err3 = p.get(ctx, accounts+accountName(lease), lease)
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return broker.Outcome{}, fmt.Errorf("look for the lease: %w", err)
	}
	switch {
	case lock == nil && grave == nil && own == nil:
		return broker.Outcome{State: broker.AlreadyDead, Note: "there is nothing of this lease"}, nil
	case lock == nil && own == nil:
		return p.bury(ctx, secrets, lease, grave)
	case grave == nil && lock != nil: // a token may have been made
		var err error
		if grave, err = p.dig(ctx, namespace, lease); err != nil {
			return broker.Outcome{}, err
		}
	}
	if err := p.unbind(ctx, lease, own, lock); err != nil {
		return broker.Outcome{}, err
	}
	if lock != nil {
		if err := p.remove(ctx, secrets+lockName(lease), lock.Metadata.UID); err != nil {
			return broker.Outcome{}, fmt.Errorf("delete the Secret: %w", err)
		}
	}
	if own != nil {
		if err := p.remove(ctx, accounts+accountName(lease), own.Metadata.UID); err != nil {
			return broker.Outcome{}, fmt.Errorf("delete the account: %w", err)
		}
	}
	if grave == nil {
		return broker.Outcome{State: broker.AlreadyDead, Note: "no token was made"}, nil
	}
	return p.mark(ctx, secrets, lease)
}

// unbind deletes roles and bindings, wherever the lease reaches.
func (p *provider) unbind(ctx context.Context, lease string, own, lock *meta) error {
	said := cmp.Or(own, lock).Metadata.Annotations[noteReach]
	if said == "" || p.cfg.Accounts == profiles {
		return nil
	}
	name := accountName(lease)
	for _, kind := range []string{"rolebindings", "roles"} {
		for n := range strings.SplitSeq(said, ",") {
			path := rbac + "namespaces/" + n + "/" + kind + "/" + name
			if n == star {
				path = rbac + "cluster" + kind + "/" + name
			} else if !dnsLabel(n) {
				return fmt.Errorf("what says where lease %s reaches was changed", lease)
			}
			switch err := p.remove(ctx, path, ""); {
			case isReason(err, forbidden):
				// Most likely we were not let make anything there, either. If we were, what is
				// left is about an account that will be gone, and never come back.
				p.deps.Log.WarnContext(ctx, "may not delete in a namespace what may have been made there", "provider", p.name, "namespace", n, "kind", kind, "name", name)
			case err != nil:
				return fmt.Errorf("delete %s: %w", kind, err)
			}
		}
	}
	return nil
}

// dig makes the Secret that remembers.
func (p *provider) dig(ctx context.Context, namespace, lease string) (*meta, error) {
	err := p.ask(ctx, call{method: http.MethodPost, path: core + namespace + "/secrets", body: map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "stint.dev/ended",
		"metadata": map[string]any{
			"name":   graveName(lease),
			"labels": map[string]string{labelManaged: "stint", labelProvider: p.name, labelLease: lease},
		},
	}})
	if err != nil && !isReason(err, alreadyExists) {
		return nil, fmt.Errorf("note that the token is being ended: %w", err)
	}
	return &meta{}, nil
}

// mark writes down since when the token is disabled.
func (p *provider) mark(ctx context.Context, secrets, lease string) (broker.Outcome, error) {
	now := p.deps.Now().UTC()
	err := p.ask(ctx, call{
		method: http.MethodPatch, path: secrets + graveName(lease), header: http.Header{"Content-Type": {"application/merge-patch+json"}},
		body: map[string]any{"metadata": map[string]any{"annotations": map[string]string{noteEnded: now.Format(time.RFC3339Nano)}}},
	})
	if err != nil && !isReason(err, notFound) { // another has been there
		return broker.Outcome{}, fmt.Errorf("note since when the token is disabled: %w", err)
	}
	return pending(now.Add(cached)), nil
}

func pending(until time.Time) broker.Outcome {
	return broker.Outcome{State: broker.DisabledPendingKill, Until: until, Note: "API servers remember for some seconds that they took the token"}
}

// bury finishes what has been disabled for long enough.
func (p *provider) bury(ctx context.Context, secrets, lease string, grave *meta) (broker.Outcome, error) {
	since, err := time.Parse(time.RFC3339Nano, grave.Metadata.Annotations[noteEnded])
	if err != nil { // whoever was at it did not come to say
		return p.mark(ctx, secrets, lease)
	}
	if until := since.Add(cached); p.deps.Now().Before(until) {
		return pending(until), nil
	}
	if err := p.remove(ctx, secrets+graveName(lease), grave.Metadata.UID); err != nil {
		return broker.Outcome{}, fmt.Errorf("forget the lease: %w", err)
	}
	return broker.Outcome{State: broker.Revoked, Note: streams}, nil
}

// sweep ends the leases that keep does not know, and waits for it.
func (p *provider) sweep(ctx context.Context, keep func(lease string) bool) (ended []string, err error) {
	leases, err := p.alive(ctx)
	if err != nil {
		return nil, err
	}
	leases = slices.DeleteFunc(leases, keep)
	var failures []error
	for len(leases) > 0 {
		var wait time.Time
		var left []string
		for _, id := range leases {
			switch o, err := p.Revoke(ctx, broker.RevokeLease{Lease: id}); {
			case err != nil:
				failures = append(failures, err)
			case o.State == broker.Revoked:
				ended = append(ended, id)
			case !o.State.Final():
				left = append(left, id)
				if o.Until.After(wait) {
					wait = o.Until
				}
			}
		}
		if leases = left; len(leases) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return ended, errors.Join(append(failures, ctx.Err())...)
		case <-time.After(max(wait.Sub(p.deps.Now()), again)):
		}
	}
	return ended, errors.Join(failures...)
}

// maxPages bounds how much is listed at once: a hundred objects a page.
const maxPages = 100

// alive lists the leases of which there is something.
func (p *provider) alive(ctx context.Context) ([]string, error) {
	seen := make(map[string]bool)
	for _, n := range p.cfg.namespaces() {
		kinds := []string{"secrets"}
		if p.cfg.Accounts == perLease {
			kinds = append(kinds, "serviceaccounts")
		}
		for _, kind := range kinds {
			if err := p.list(ctx, core+n+"/"+kind, seen); err != nil {
				return nil, fmt.Errorf("list leases: %w", err)
			}
		}
	}
	out := make([]string, 0, len(seen))
	for id := range seen {
		out = append(out, id)
	}
	slices.Sort(out)
	return out, nil
}

func (p *provider) list(ctx context.Context, path string, seen map[string]bool) error {
	query := url.Values{"labelSelector": {labelManaged + "=stint," + labelProvider + "=" + p.name}, "limit": {"100"}}
	for range maxPages {
		var page struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []meta `json:"items"`
		}
		// Of Secrets nothing but the metadata is wanted.
		err := p.ask(ctx, call{
			method: http.MethodGet, path: path, query: query, into: &page,
			header: http.Header{"Accept": {"application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}},
		})
		if err != nil {
			return err
		}
		for _, m := range page.Items {
			if id := m.Metadata.Labels[labelLease]; leaseID(id) {
				seen[id] = true
			}
		}
		if page.Metadata.Continue == "" {
			return nil
		}
		query.Set("continue", page.Metadata.Continue)
	}
	return errors.New("there are too many leases to list")
}
