package aws

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/sts"
	"github.com/stint-dev/stint/scopes/grant"
)

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	actionName = regexp.MustCompile(`^[a-z0-9-]{1,64}:[A-Za-z0-9]{1,128}$`)
)

// Render implements [broker.Provider]: the session policy.
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	if g.IsNothing() {
		return nil, errors.New("nothing is never asked for")
	}
	if err := p.check(g); err != nil {
		return nil, fmt.Errorf("%w: %w", err, broker.ErrInexpressible)
	}
	var all []sts.Permission
	everything, objects := g.Dimension("s3")
	anything, actions := g.Dimension("actions")
	if everything || anything {
		return nil, fmt.Errorf("%s has everything in a dimension: %w", g, broker.ErrInexpressible)
	}
	for _, o := range objects {
		one := sts.Permission{Action: verbs[o[0]], Resource: p.bucket(o[1]), Prefix: o[2]}
		if o[0] != "list" {
			one = sts.Permission{Action: verbs[o[0]], Resource: p.bucket(o[1]) + "/" + o[2], Below: true}
		}
		all = append(all, one)
	}
	for _, a := range actions {
		all = append(all, sts.Permission{Action: a[0], Resource: a[1], Below: strings.HasSuffix(a[1], "/") || strings.HasSuffix(a[1], ":")})
	}
	return sts.Policy(all)
}

// bucket is the ARN of a bucket.
func (p *provider) bucket(name string) string { return "arn:" + p.parts[1] + ":s3:::" + name }

// check says what of a grant can never be asked for: names that are none, and actions
// at everything that have more particular resources.
func (p *provider) check(g grant.Grant) error {
	_, objects := g.Dimension("s3")
	for _, o := range objects {
		if !bucketName.MatchString(o[1]) || strings.Contains(o[1], "..") {
			return fmt.Errorf("s3: %q is no name of a bucket", o[1])
		}
		if err := checkPrefix(o[2]); err != nil {
			return fmt.Errorf("s3: %w", err)
		}
	}
	_, actions := g.Dimension("actions")
	for _, a := range actions {
		if err := p.checkAction(a[0], a[1]); err != nil {
			return fmt.Errorf("actions: %w", err)
		}
	}
	return nil
}

// checkPrefix refuses parts of keys that some programs do not take literally.
func checkPrefix(prefix string) error {
	for part := range strings.SplitSeq(strings.TrimSuffix(prefix, "/"), "/") {
		if prefix != "" && (part == "" || part == "." || part == "..") {
			return fmt.Errorf("%q has a part that is empty, . or ..", prefix)
		}
	}
	return nil
}

func (p *provider) checkAction(action, resource string) error {
	switch {
	case !actionName.MatchString(action):
		return fmt.Errorf("%q is no action, spelled out as in dynamodb:GetItem", action)
	case isVerb(action):
		return fmt.Errorf("%s is said by the dimension s3", action)
	case resource == "*":
		if !everywhere(action) {
			return fmt.Errorf("%s is not known to need all resources: name them", action)
		}
		return nil
	}
	parts := strings.SplitN(resource, ":", 6)
	switch {
	case len(parts) != 6 || parts[0] != "arn" || parts[2] == "":
		return fmt.Errorf("%q is no ARN, nor one that ends in / or : below its account", resource)
	case parts[1] != p.parts[1]:
		return fmt.Errorf("%q is in another partition than the role", resource)
	}
	return nil
}

// isVerb reports whether an action is one of the dimension s3, however it is spelled:
// to IAM letters are the same in both cases.
func isVerb(action string) bool {
	for _, v := range verbs {
		if strings.EqualFold(v, action) {
			return true
		}
	}
	return false
}

// Parse implements [broker.Provider]. It shares no code with Render.
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	all, err := sts.ReadPolicy(rendered)
	if err != nil {
		return grant.Grant{}, err
	}
	objects, actions := []any{}, []any{}
	for _, one := range all {
		i := slices.Index([]string{"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"}, one.Action)
		if i < 0 {
			if one.Below && !strings.HasSuffix(one.Resource, "/") && !strings.HasSuffix(one.Resource, ":") {
				return grant.Grant{}, fmt.Errorf("%s begins in the middle of a name", one.Resource)
			}
			if !one.Below && (strings.HasSuffix(one.Resource, "/") || strings.HasSuffix(one.Resource, ":")) {
				return grant.Grant{}, fmt.Errorf("%s is an exact name, which no grant has", one.Resource)
			}
			actions = append(actions, map[string]any{"actions": one.Action, "resource": one.Resource})
			continue
		}
		verb := []string{"get", "put", "delete", "list"}[i]
		where, ok := strings.CutPrefix(one.Resource, "arn:"+p.parts[1]+":s3:::")
		bucket, prefix, below := strings.Cut(where, "/")
		if verb == "list" {
			prefix = one.Prefix
			ok = ok && !below && !one.Below
		} else {
			ok = ok && below && one.Below
		}
		if !ok || bucket == "" {
			return grant.Grant{}, fmt.Errorf("%s at %s is no verb at a bucket", one.Action, one.Resource)
		}
		objects = append(objects, map[string]any{"verbs": verb, "bucket": bucket, "prefix": prefix})
	}
	return schema.ParseValue(map[string]any{"s3": objects, "actions": actions})
}
