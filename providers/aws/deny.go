package aws

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/sts"
	"github.com/stint-dev/stint/internal/upstream"
)

// denier keeps the inline policy by which the role denies everything to sessions that
// were revoked. IAM has no compare-and-set: so who changes the policy first takes the
// lock that the store of secrets is, and the list there is the truth, from which the
// policy is written whole.
type denier struct {
	provider *provider
	iam      *sts.Service
}

// maxDenied is how many sessions are denied at a time: what the 10,240 characters of a
// role's inline policies have room for, with as much again for others.
const maxDenied = 160

// denied is what is kept of a session: when it ends, when it was denied, and whether it
// was said to be revoked.
type denied struct {
	until, since time.Time
	done         bool
}

func (d denied) String() string {
	return fmt.Sprintf("%d %d %t", d.until.Unix(), d.since.Unix(), d.done)
}

func readDenied(text string) (d denied, err error) {
	parts := strings.Split(text, " ")
	if len(parts) != 3 {
		return d, errors.New("what is kept of denied sessions is none of ours")
	}
	until, err1 := strconv.ParseInt(parts[0], 10, 64)
	since, err2 := strconv.ParseInt(parts[1], 10, 64)
	done, err3 := strconv.ParseBool(parts[2])
	return denied{time.Unix(until, 0), time.Unix(since, 0), done}, errors.Join(err1, err2, err3)
}

func (d *denier) key() upstream.ParentKey { return upstream.ParentKey{Provider: d.provider.name} }

// revoke denies a session, and says that it is revoked when that has taken effect.
func (d *denier) revoke(ctx context.Context, lease string, until time.Time) (broker.Outcome, error) {
	if !sourceIdentity.MatchString(lease) {
		return broker.Outcome{}, fmt.Errorf("%q is no session's name", lease)
	}
	parents := d.provider.deps.Parents
	if err := parents.Begin(ctx, d.key(), &upstream.Parent{}, nil); err != nil {
		return broker.Outcome{}, err
	}
	if kept, err := parents.Get(ctx, d.key()); err != nil {
		return broker.Outcome{}, err
	} else if text, ok := kept.Facts[lease]; ok {
		if entry, err := readDenied(text); err != nil || !d.ripe(entry) {
			return d.outcome(entry), err
		}
	}
	var out broker.Outcome
	_, err := parents.Fresh(ctx, d.key(), d.provider.deps.Now(), func(ctx context.Context, old *upstream.Parent) (*upstream.Parent, error) {
		var list map[string]string
		var err error
		list, out, err = d.next(ctx, old.Facts, lease, until)
		return &upstream.Parent{Facts: list}, err
	})
	if err != nil {
		return broker.Outcome{}, fmt.Errorf("deny a session: %w", err)
	}
	return out, nil
}

// ripe reports whether a session has been denied for long enough to be called revoked,
// which it has not been yet.
func (d *denier) ripe(e denied) bool {
	return !e.done && !d.provider.deps.Now().Before(e.since.Add(d.provider.cfg.Deny.Settle.Duration))
}

// outcome is that of an entry as it is kept.
func (d *denier) outcome(e denied) broker.Outcome {
	switch {
	case e.done:
		return broker.Outcome{State: broker.AlreadyDead, Note: "the role denies everything to it"}
	case d.ripe(e):
		return broker.Outcome{State: broker.Revoked, Note: "the role denies everything to it"}
	}
	return broker.Outcome{State: broker.DisabledPendingKill, Until: e.until, Note: "the role denies everything to it as soon as AWS knows everywhere"}
}

// next changes the list, and the policy if it has to.
func (d *denier) next(ctx context.Context, facts map[string]string, lease string, until time.Time) (list map[string]string, out broker.Outcome, err error) {
	now := d.provider.deps.Now()
	list = make(map[string]string, len(facts)+1)
	for name, text := range facts {
		e, err := readDenied(text)
		if err != nil {
			return nil, out, err
		}
		if now.Before(e.until.Add(skew)) {
			list[name] = text
		}
	}
	entry := denied{until: until, since: now}
	if text, ok := list[lease]; ok {
		if entry, err = readDenied(text); err != nil {
			return nil, out, err
		}
	} else {
		if len(list) >= maxDenied {
			return nil, out, fmt.Errorf("%d sessions are denied already: there is room when one of them has ended", len(list))
		}
		list[lease] = ""
		if err := d.put(ctx, slices.Sorted(maps.Keys(list))); err != nil {
			return nil, out, err
		}
		entry.since = d.provider.deps.Now()
	}
	out = d.outcome(entry)
	entry.done = entry.done || out.State == broker.Revoked
	list[lease] = entry.String()
	return list, out, nil
}

// denial is the policy that denies everything to sessions of these names. aws:userid is
// the role's id, a colon and the session's name.
func denial(leases []string) ([]byte, error) {
	var who []string
	for _, l := range leases {
		who = append(who, "*:"+l)
	}
	return strictjson.Encode(map[string]any{"Version": "2012-10-17", "Statement": []any{map[string]any{
		"Effect": "Deny", "Action": "*", "Resource": "*",
		"Condition": map[string]any{"StringLike": map[string]any{"aws:userid": who}},
	}}})
}

// put writes the policy, by a session that can do nothing else.
func (d *denier) put(ctx context.Context, leases []string) error {
	p := d.provider
	policy, err1 := denial(leases)
	own, err2 := sts.Policy([]sts.Permission{{Action: "iam:PutRolePolicy", Resource: p.cfg.Role}})
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	const name = "stint-deny"
	s, err := p.assume(ctx, broker.MintRequest{Lease: name, Pseudonym: name}, p.cfg.Deny.Role, name, string(own), sts.MinLife)
	if err != nil {
		// A session whose answer was lost holds nobody up: it has changed nothing.
		return broker.Fail(broker.CodeOf(err), fmt.Errorf("a session to change the policy: %s", err), "the upstream does not let us in") //nolint:errorlint // see above
	}
	_, err = d.iam.Call(ctx, "iam", &s.Keys, url.Values{
		"Action": {"PutRolePolicy"}, "Version": {"2010-05-08"}, "RoleName": {roleName(p.cfg.Role)},
		"PolicyName": {p.cfg.Deny.Policy}, "PolicyDocument": {string(policy)},
	})
	return err
}
