package sts

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

// MaxPolicy is how many characters a session policy may have.
const MaxPolicy = 2048

// Permission is one thing that a session policy allows: an action at a resource, which
// is exact, or a prefix if Below is set, or "*".
type Permission struct {
	Action, Resource string
	Below            bool
	// Prefix narrows s3:ListBucket to keys that begin so; empty: all of the bucket.
	Prefix string
}

const (
	version    = "2012-10-17"
	listBucket = "s3:ListBucket"
)

// statement is written member by member: nothing may be left out that constrains.
type statement struct {
	actions, resources, prefixes []string
}

func (s statement) encode() map[string]any {
	out := map[string]any{"Effect": "Allow", "Action": s.actions, "Resource": s.resources}
	if len(s.prefixes) > 0 {
		out["Condition"] = map[string]any{"StringLike": map[string]any{"s3:prefix": s.prefixes}}
	}
	return out
}

var (
	action = regexp.MustCompile(`^[a-z0-9-]{1,64}:[A-Za-z0-9]{1,128}$`)
	// plain is what is taken in a resource: what is printed, without the characters that
	// mean something in a policy.
	plain = regexp.MustCompile(`^[!#%-)+->@-[\]-~ ]+$`)
)

// Policy writes what is allowed as a session policy: explicit actions, at exact
// resources or prefixes. Statements are merged, so that as much as can be fits. The
// error is [broker.ErrInexpressible] if it cannot be said, or not in as few characters
// as there may be.
func Policy(all []Permission) ([]byte, error) {
	if len(all) == 0 {
		return nil, errors.New("nothing is never asked for")
	}
	for _, p := range all {
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("%w: %w", err, broker.ErrInexpressible)
		}
	}
	var statements []any
	for _, s := range merge(all) {
		statements = append(statements, s.encode())
	}
	text, err := strictjson.Encode(map[string]any{"Version": version, "Statement": statements})
	if err != nil {
		return nil, fmt.Errorf("encode policy: %w", err)
	}
	if len(text) > MaxPolicy {
		return nil, fmt.Errorf("a policy of %d characters, of at most %d: %w", len(text), MaxPolicy, broker.ErrInexpressible)
	}
	return text, nil
}

func (p Permission) check() error {
	switch {
	case !action.MatchString(p.Action):
		return fmt.Errorf("%q is no action", p.Action)
	case p.Resource == "*" && (p.Below || p.Prefix != ""):
		return errors.New("everything has nothing below it")
	case p.Resource != "*" && !plain.MatchString(p.Resource):
		return fmt.Errorf("%q has characters that a policy does not take", p.Resource)
	case p.Prefix != "" && (p.Action != listBucket || !plain.MatchString(p.Prefix)):
		return fmt.Errorf("%q is no prefix to list by", p.Prefix)
	}
	return nil
}

// pattern is a resource as a policy has it.
func (p Permission) pattern() string {
	if p.Below {
		return p.Resource + "*"
	}
	return p.Resource
}

// merge gathers permissions: those of one resource by their actions, and resources that
// allow the same actions into one statement; listings by their prefixes.
func merge(all []Permission) []statement {
	at, listed := map[string][]string{}, map[string][]string{}
	for _, p := range all {
		if p.Prefix == "" {
			at[p.pattern()] = append(at[p.pattern()], p.Action)
			continue
		}
		listed[p.Resource] = append(listed[p.Resource], p.Prefix+"*")
	}
	var out []statement
	for _, g := range gather(at) {
		out = append(out, statement{actions: g.values, resources: g.keys})
	}
	for _, g := range gather(listed) {
		out = append(out, statement{actions: []string{listBucket}, resources: g.keys, prefixes: g.values})
	}
	return out
}

type gathered struct{ keys, values []string }

// gather returns the keys that have the same values together, in an order that is
// always the same.
func gather(of map[string][]string) []gathered {
	var out []gathered
	for _, key := range slices.Sorted(maps.Keys(of)) {
		values := slices.Compact(slices.Sorted(slices.Values(of[key])))
		i := slices.IndexFunc(out, func(g gathered) bool { return slices.Equal(g.values, values) })
		if i < 0 {
			out = append(out, gathered{values: values})
			i = len(out) - 1
		}
		out[i].keys = append(out[i].keys, key)
	}
	return out
}

// ReadPolicy reads a session policy of the form that [Policy] writes: allowing alone,
// explicit, and without a condition but for listings. It shares no code with Policy. A
// text for a list of one is read too, as services write policies anew.
func ReadPolicy(text []byte) ([]Permission, error) {
	var whole map[string]any
	if err := strictjson.Decode(text, &whole); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	list, ok := whole["Statement"].([]any)
	if len(whole) != 2 || whole["Version"] != "2012-10-17" || !ok || len(list) == 0 {
		return nil, errors.New("policy: a Version of 2012-10-17 and Statements are wanted, and nothing else")
	}
	var out []Permission
	for i, s := range list {
		some, err := readStatement(s)
		if err != nil {
			return nil, fmt.Errorf("policy: statement %d: %w", i+1, err)
		}
		out = append(out, some...)
	}
	return out, nil
}

func readStatement(v any) ([]Permission, error) {
	s, ok := v.(map[string]any)
	if !ok || s["Effect"] != "Allow" {
		return nil, errors.New("a statement that allows is wanted")
	}
	actions, err1 := readTexts(s["Action"])
	resources, err2 := readTexts(s["Resource"])
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	members, prefixes := 3, []string{"*"}
	if condition, ok := s["Condition"]; ok {
		members++
		var err error
		if prefixes, err = readPrefixes(condition); err != nil {
			return nil, err
		}
		if len(actions) != 1 || actions[0] != "s3:ListBucket" {
			return nil, errors.New("only listings have a condition")
		}
	}
	if len(s) != members {
		return nil, errors.New("members that are not known")
	}
	var out []Permission
	for _, a := range actions {
		if strings.ContainsAny(a, "*?$") || strings.Count(a, ":") != 1 {
			return nil, fmt.Errorf("%q is no action", a)
		}
		for _, r := range resources {
			for _, p := range prefixes {
				one, err := readPermission(a, r, p)
				if err != nil {
					return nil, err
				}
				out = append(out, one)
			}
		}
	}
	return out, nil
}

func readPermission(a, r, prefix string) (Permission, error) {
	p := Permission{Action: a, Resource: r}
	if r != "*" {
		p.Resource, p.Below = strings.CutSuffix(r, "*")
		if p.Resource == "" || strings.ContainsAny(p.Resource, "*?$") {
			return p, fmt.Errorf("%q is no resource", r)
		}
	}
	stem, open := strings.CutSuffix(prefix, "*")
	if !open || strings.ContainsAny(stem, "*?$") {
		return p, fmt.Errorf("%q is no prefix", prefix)
	}
	p.Prefix = stem
	return p, nil
}

func readPrefixes(v any) ([]string, error) {
	c, _ := v.(map[string]any)
	like, _ := c["StringLike"].(map[string]any)
	if len(c) != 1 || len(like) != 1 {
		return nil, errors.New("one condition is known, StringLike on s3:prefix")
	}
	texts, err := readTexts(like["s3:prefix"])
	if err != nil {
		return nil, err
	}
	for _, t := range texts {
		if t == "*" { // which is not the same as no condition
			return nil, errors.New("a prefix of nothing")
		}
	}
	return texts, nil
}

func readTexts(v any) ([]string, error) {
	if one, ok := v.(string); ok {
		return []string{one}, nil
	}
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return nil, errors.New("a list of texts is wanted")
	}
	out := make([]string, len(list))
	for i := range list {
		if out[i], ok = list[i].(string); !ok {
			return nil, errors.New("a list of texts is wanted")
		}
	}
	return out, nil
}
