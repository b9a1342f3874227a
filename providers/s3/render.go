package s3

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/sts"
	"github.com/stint-dev/stint/scopes/grant"
)

// verbs are those of a grant, with the actions that they are.
var verbs = map[string]string{
	"get": "s3:GetObject", "put": "s3:PutObject", "delete": "s3:DeleteObject", "list": "s3:ListBucket",
}

// methods are those of presigned URLs.
var methods = map[string]string{"get": "GET", "put": "PUT", "delete": "DELETE"}

var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// split is a resource in its parts.
func split(resource string) (bucket, key string, below bool) {
	bucket, key, _ = strings.Cut(resource, "/")
	return bucket, key, strings.HasSuffix(resource, "/")
}

// check says what of a grant can never be asked for.
func (p *provider) check(g grant.Grant) error {
	_, atoms := g.Dimension("objects")
	for _, a := range atoms {
		if err := checkObject(a[0], a[1]); err != nil {
			return fmt.Errorf("objects: %w", err)
		}
		if a[0] == "list" && p.cfg.STS == "none" {
			return errors.New("objects: list is no method of a URL for one object")
		}
	}
	return nil
}

func checkObject(verb, resource string) error {
	bucket, key, below := split(resource)
	switch {
	case !strings.Contains(resource, "/") || strings.HasSuffix(resource, ":"):
		return fmt.Errorf("%q is no bucket/key, nor bucket/ or bucket/prefix/", resource)
	case !bucketName.MatchString(bucket) || strings.Contains(bucket, ".."):
		return fmt.Errorf("%q is no name of a bucket", bucket)
	case verb == "list" && !below:
		return fmt.Errorf("%q: what is listed ends in /", resource)
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(key, "/"), "/") {
		if key != "" && (part == "" || part == "." || part == "..") {
			return fmt.Errorf("%q has a part that is empty, . or ..", resource)
		}
	}
	return nil
}

// Render implements [broker.Provider]: the session policy, or what a URL is for.
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	everything, atoms := g.Dimension("objects")
	switch {
	case g.IsNothing():
		return nil, errors.New("nothing is never asked for")
	case everything:
		return nil, fmt.Errorf("all there is cannot be asked for: %w", broker.ErrInexpressible)
	}
	if err := p.check(g); err != nil {
		return nil, fmt.Errorf("%w: %w", err, broker.ErrInexpressible)
	}
	if p.cfg.STS == "none" {
		return renderURL(atoms)
	}
	var all []sts.Permission
	for _, a := range atoms {
		bucket, key, below := split(a[1])
		one := sts.Permission{Action: verbs[a[0]], Resource: "arn:aws:s3:::" + a[1], Below: below}
		if a[0] == "list" {
			one = sts.Permission{Action: verbs[a[0]], Resource: "arn:aws:s3:::" + bucket, Prefix: key}
		}
		all = append(all, one)
	}
	text, err := sts.Policy(all)
	if err != nil || p.cfg.PolicyDialect == "aws" {
		return text, err
	}
	return withPrincipal(text)
}

// order is what a URL is for.
type order struct {
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
	Method string `json:"method"`
}

func renderURL(atoms []grant.Atom) ([]byte, error) {
	if len(atoms) != 1 {
		return nil, fmt.Errorf("a URL is for one object and one method: %w", broker.ErrInexpressible)
	}
	bucket, key, below := split(atoms[0][1])
	if below {
		return nil, fmt.Errorf("a URL is for one object, not all below %s: %w", atoms[0][1], broker.ErrInexpressible)
	}
	return strictjson.Encode(order{Bucket: bucket, Key: key, Method: methods[atoms[0][0]]})
}

// withPrincipal writes a principal into each statement of a policy.
func withPrincipal(text []byte) ([]byte, error) {
	var whole map[string]any
	if err := strictjson.Decode(text, &whole); err != nil {
		return nil, err
	}
	list, _ := whole["Statement"].([]any)
	for _, s := range list {
		s.(map[string]any)["Principal"] = "*"
	}
	out, err := strictjson.Encode(whole)
	if err == nil && len(out) > sts.MaxPolicy {
		err = fmt.Errorf("a policy of %d characters: %w", len(out), broker.ErrInexpressible)
	}
	return out, err
}

// withoutPrincipal takes it out again: it has to be there.
func withoutPrincipal(text []byte) ([]byte, error) {
	var whole map[string]any
	if err := strictjson.Decode(text, &whole); err != nil {
		return nil, err
	}
	list, _ := whole["Statement"].([]any)
	for _, v := range list {
		s, _ := v.(map[string]any)
		if s["Principal"] != "*" {
			return nil, errors.New("a statement without its principal")
		}
		delete(s, "Principal")
	}
	return strictjson.Encode(whole)
}

// Parse implements [broker.Provider]. It shares no code with Render.
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	switch {
	case p.cfg.STS == "none":
		return parseURL(rendered)
	case p.cfg.PolicyDialect == "principal":
		var err error
		if rendered, err = withoutPrincipal(rendered); err != nil {
			return grant.Grant{}, err
		}
	}
	return parsePolicy(rendered)
}

func parseURL(rendered []byte) (grant.Grant, error) {
	var o order
	if err := strictjson.Decode(rendered, &o); err != nil {
		return grant.Grant{}, err
	}
	i := slices.Index([]string{"GET", "PUT", "DELETE"}, o.Method)
	if i < 0 || o.Bucket == "" || strings.Contains(o.Bucket, "/") || o.Key == "" || strings.HasSuffix(o.Key, "/") {
		return grant.Grant{}, errors.New("one method at one object is wanted")
	}
	return schema.ParseValue(map[string]any{"objects": []any{
		map[string]any{"actions": []string{"get", "put", "delete"}[i], "resource": o.Bucket + "/" + o.Key},
	}})
}

func parsePolicy(text []byte) (grant.Grant, error) {
	all, err := sts.ReadPolicy(text)
	if err != nil {
		return grant.Grant{}, err
	}
	list := []any{}
	for _, one := range all {
		where, ok := strings.CutPrefix(one.Resource, "arn:aws:s3:::")
		i := slices.Index([]string{"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"}, one.Action)
		if !ok || i < 0 {
			return grant.Grant{}, fmt.Errorf("%s at %s is no verb at an object", one.Action, one.Resource)
		}
		if i == 3 {
			if one.Below || strings.Contains(where, "/") {
				return grant.Grant{}, fmt.Errorf("%s is no bucket to list", one.Resource)
			}
			where += "/" + one.Prefix
			one.Below = true
		}
		if one.Below != strings.HasSuffix(where, "/") || !strings.Contains(where, "/") {
			return grant.Grant{}, fmt.Errorf("%s begins in the middle of a name", one.Resource)
		}
		list = append(list, map[string]any{"actions": []string{"get", "put", "delete", "list"}[i], "resource": where})
	}
	return schema.ParseValue(map[string]any{"objects": list})
}
