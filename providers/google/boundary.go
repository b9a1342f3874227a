package google

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// verbs are what can be done with objects. put makes an object that is not there yet;
// to replace one, Google wants delete too.
var verbs = []string{"get", "list", "put", "delete"}

// roles are what a boundary can name, each with the verbs that it comes to at objects:
// there is no other word for them. Version 2026-11. What else is in them is no more than
// that: objectUser may set the metadata of what it could as well replace, and
// legacyBucketReader, of a whole bucket, reads that of the bucket.
var roles = map[string][]string{
	"roles/storage.legacyObjectReader": {"get"},
	"roles/storage.legacyBucketReader": {"list"},
	"roles/storage.objectCreator":      {"put"},
	"roles/storage.objectViewer":       {"get", "list"},
	"roles/storage.legacyBucketWriter": {"list", "put", "delete"},
	"roles/storage.objectUser":         {"get", "list", "put", "delete"},
}

// Google's limits, and what stands in front of roles.
const (
	maxRules    = 10
	maxBoundary = 2048
	inRole      = "inRole:"
)

// What conditions are made of: the first is that an object is below a prefix, the second
// that no more is listed.
const (
	bucketsPath  = "//storage.googleapis.com/projects/_/buckets/"
	objectBegins = "resource.name.startsWith('projects/_/buckets/"
	objectsPath  = "/objects/"
	listBegins   = "api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith('"
	clauseEnds   = "')"
	orClause     = " || "
)

type (
	options struct {
		AccessBoundary boundary `json:"accessBoundary"`
	}
	boundary struct {
		Rules []boundaryRule `json:"accessBoundaryRules"`
	}
	boundaryRule struct {
		Resource    string    `json:"availableResource"`
		Permissions []string  `json:"availablePermissions"`
		Condition   condition `json:"availabilityCondition"`
	}
	condition struct {
		Expression string `json:"expression"`
	}
)

// place is a bucket with a prefix.
type place struct{ bucket, prefix string }

// checkPlace refuses what would be more than text in a name or a condition.
func checkPlace(bucket, prefix string) error {
	switch {
	case len(bucket) < 3 || len(bucket) > 222 || strings.Trim(bucket, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "":
		return fmt.Errorf("%q is no name of a bucket", bucket)
	case strings.ContainsAny(prefix, `'"\*?$`) || prefix != "" && !strings.HasSuffix(prefix, "/") || strings.HasPrefix(prefix, "/"):
		return fmt.Errorf("%q is no prefix that can be used: it is empty or ends in /, without quotes, backslashes and wildcards", prefix)
	}
	return nil
}

// renderBoundary writes the parameter options of a token exchange: a rule for each place,
// with the roles that come to the verbs there.
func renderBoundary(g grant.Grant) ([]byte, error) {
	all, atoms := g.Dimension("storage")
	if all || len(atoms) == 0 {
		return nil, fmt.Errorf("a boundary is around something: %w", broker.ErrInexpressible)
	}
	own := make(map[place][]string)
	for _, a := range atoms {
		if err := checkPlace(a[1], a[2]); err != nil {
			return nil, fmt.Errorf("%w: %w", err, broker.ErrInexpressible)
		}
		at := place{a[1], a[2]}
		own[at] = append(own[at], a[0])
	}
	places := make([]place, 0, len(own))
	for at := range own {
		places = append(places, at)
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(strings.Compare(a.bucket, b.bucket), strings.Compare(a.prefix, b.prefix))
	})
	out := options{boundary{[]boundaryRule{}}}
	for _, at := range places {
		rule, err := ruleFor(at, own)
		if err != nil {
			return nil, err
		}
		out.AccessBoundary.Rules = append(out.AccessBoundary.Rules, rule)
	}
	text, err := strictjson.Encode(out)
	if err != nil {
		return nil, err
	}
	if len(places) > maxRules || len(text) > maxBoundary {
		return nil, fmt.Errorf("a boundary of %d rules and %d bytes, where Google takes %d and %d: %w", len(places), len(text), maxRules, maxBoundary, broker.ErrInexpressible)
	}
	return text, nil
}

// ruleFor is the rule for what is granted at a place. There is no role that deletes and
// does neither list nor put: where those are granted, by this place or one around it,
// they go with it.
func ruleFor(at place, own map[place][]string) (boundaryRule, error) {
	has := func(v string) bool { return slices.Contains(own[at], v) }
	around := func(v string) bool {
		for other, verbs := range own {
			if other.bucket == at.bucket && strings.HasPrefix(at.prefix, other.prefix) && slices.Contains(verbs, v) {
				return true
			}
		}
		return false
	}
	list := has("list")
	var named []string
	switch {
	case has("delete") && !(around("list") && around("put")):
		return boundaryRule{}, fmt.Errorf("no role of Google's deletes below %s/%s and does not list and put too: %w", at.bucket, at.prefix, broker.ErrInexpressible)
	case has("delete") && has("get"):
		named, list = []string{"roles/storage.objectUser"}, true
	case has("delete"):
		named, list = []string{"roles/storage.legacyBucketWriter"}, true
	case has("get") && list:
		named = []string{"roles/storage.objectViewer"}
	case has("get"):
		named = []string{"roles/storage.legacyObjectReader"}
	case list:
		named = []string{"roles/storage.legacyBucketReader"}
	}
	if has("put") && !has("delete") {
		named = append(named, "roles/storage.objectCreator")
	}
	for i := range named {
		named[i] = inRole + named[i]
	}
	var clauses []string
	if has("get") || has("put") || has("delete") {
		clauses = append(clauses, objectBegins+at.bucket+objectsPath+at.prefix+clauseEnds)
	}
	if list {
		clauses = append(clauses, listBegins+at.prefix+clauseEnds)
	}
	return boundaryRule{bucketsPath + at.bucket, named, condition{strings.Join(clauses, orClause)}}, nil
}

// parseBoundary reads what a boundary allows.
func (p *provider) parseBoundary(rendered []byte) (grant.Grant, error) {
	var o options
	if err := strictjson.Decode(rendered, &o); err != nil {
		return grant.Grant{}, err
	}
	if n := len(o.AccessBoundary.Rules); n == 0 || n > maxRules {
		return grant.Grant{}, fmt.Errorf("a boundary of %d rules", n)
	}
	entries := make([]any, 0, maxRules)
	for i, rule := range o.AccessBoundary.Rules {
		entry, err := rule.read()
		if err != nil {
			return grant.Grant{}, fmt.Errorf("rule %d: %w", i+1, err)
		}
		entries = append(entries, entry)
	}
	return p.schema.ParseValue(map[string]any{"storage": entries})
}

// read returns a rule as an element of the dimension storage.
func (r boundaryRule) read() (map[string]any, error) {
	bucket, ok := strings.CutPrefix(r.Resource, bucketsPath)
	if !ok {
		return nil, errors.New("it is about no bucket")
	}
	may := make(map[string]bool)
	for _, permission := range r.Permissions {
		name, ok := strings.CutPrefix(permission, inRole)
		some := roles[name]
		if !ok || some == nil {
			return nil, errors.New("a role that is not in the table")
		}
		for _, v := range some {
			if may[v] {
				return nil, errors.New("two roles that allow the same")
			}
			may[v] = true
		}
	}
	prefix, objects, lists, err := r.Condition.read(bucket)
	switch {
	case err != nil:
		return nil, err
	case checkPlace(bucket, prefix) != nil:
		return nil, errors.New("it is about no place that can be named")
	case lists != may["list"] || objects != (may["get"] || may["put"] || may["delete"]):
		return nil, errors.New("its roles and its condition are about different things")
	}
	list := make([]any, 0, len(may))
	for v := range may {
		list = append(list, v)
	}
	return map[string]any{"verbs": list, "bucket": bucket, "prefix": prefix}, nil
}

// read takes a condition apart: the prefix that all of it is about, and whether it is
// about objects, listing, or both.
func (c condition) read(bucket string) (prefix string, objects, lists bool, err error) {
	rest := c.Expression
	if after, ok := strings.CutPrefix(rest, objectBegins+bucket+objectsPath); ok {
		if prefix, rest, objects = strings.Cut(after, clauseEnds); !objects {
			return "", false, false, errors.New("a condition that does not end")
		}
		if rest == "" {
			return prefix, true, false, nil
		}
		var more bool
		if rest, more = strings.CutPrefix(rest, orClause); !more {
			return "", false, false, errors.New("a condition of another form")
		}
	}
	after, ok := strings.CutPrefix(rest, listBegins)
	if !ok {
		return "", false, false, errors.New("a condition of another form")
	}
	listed, rest, ok := strings.Cut(after, clauseEnds)
	if !ok || rest != "" || objects && listed != prefix {
		return "", false, false, errors.New("a condition about more than one thing")
	}
	return listed, objects, true, nil
}
