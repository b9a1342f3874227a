package scopes

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

// conditions are the Cedar parts of one mapping: the `when` of its rules, and
// the file beside it. Cedar is used in this file alone.
type conditions struct {
	validator *validate.Validator
	when      []*cedar.Policy
	file      *cedar.PolicySet
	names     map[cedar.PolicyID]map[string]bool // the actions that a policy of the file names
	refs      map[cedar.PolicyID]string
	groups    map[string]bool // those that the policies mention
	arguments map[string]string
	scopes    []string
}

// newConditions makes the schema that conditions of the resource are checked
// against: one action a scope, and the context that decisions are made in.
func newConditions(r *resource) *conditions {
	c := &conditions{
		names: make(map[cedar.PolicyID]map[string]bool), refs: make(map[cedar.PolicyID]string),
		groups: make(map[string]bool), arguments: make(map[string]string), scopes: sortedKeys(r.scopes),
	}
	for _, t := range r.tools {
		maps.Copy(c.arguments, t.arguments)
	}
	return c
}

// cedarSchema is what `stint check` holds conditions against, in Cedar's own
// language.
func (c *conditions) cedarSchema() string {
	var args, actions []string
	for _, name := range sortedKeys(c.arguments) {
		typ := map[string]string{"string": "String", "long": "Long", "bool": "Bool"}[c.arguments[name]]
		args = append(args, fmt.Sprintf("%s?: %s", name, typ))
	}
	for _, s := range c.scopes {
		actions = append(actions, string(types.String(s).MarshalCedar()))
	}
	return `
entity Group;
entity User in [Group] { issuer: String, id: String };
entity Resource;
action ` + strings.Join(actions, ", ") + ` appliesTo {
	principal: User,
	resource: Resource,
	context: {
		client: String,
		agent: String,
		tool: String,
		time: { hour: Long, minute: Long, weekday: String, unix: Long },
		args: { ` + strings.Join(args, ", ") + ` },
	}
};`
}

func (c *conditions) check(p *cedar.Policy) error {
	if c.validator == nil {
		var s schema.Schema
		err := s.UnmarshalCedar([]byte(c.cedarSchema()))
		resolved, unresolved := s.Resolve()
		if err = cmp.Or(err, unresolved); err != nil {
			return fmt.Errorf("schema of the conditions: %w", err)
		}
		c.validator = validate.New(resolved)
	}
	if err := c.validator.Policy("", (*xast.Policy)(p.AST())); err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "policy : "))
	}
	return nil
}

// where is how the parser says where in its input it stopped.
var where = regexp.MustCompile(`^parser error: (?:(?:parse error at )?<input>:(\d+):(\d+):? )?`)

// syntax takes the place out of the parser's error. The line is 0 where it says none.
func syntax(err error) (line, column int, text string) {
	text = err.Error()
	if m := where.FindStringSubmatch(text); m != nil {
		if line, _ = strconv.Atoi(m[1]); line > 0 { // some errors have no place, or line 0
			column, _ = strconv.Atoi(m[2])
		}
		text = text[len(m[0]):]
	}
	return line, column, text
}

// addWhen compiles the condition of a rule and returns its number.
func (c *conditions) addWhen(expr string) (int, error) {
	list, err := cedar.NewPolicyListFromBytes("", []byte("permit (principal, action, resource) when { "+expr+"\n};"))
	if err != nil {
		_, _, text := syntax(err) // the input is ours
		return 0, errors.New(text)
	}
	// Text that ends the condition and begins something else is no condition.
	if len(list) != 1 || len(list[0].AST().Conditions) != 1 {
		return 0, errors.New("one expression is wanted")
	}
	p := list[0]
	if err := cmp.Or(c.check(p), c.mention(p)); err != nil {
		return 0, err
	}
	c.when = append(c.when, p)
	return len(c.when) - 1, nil
}

// addFile compiles a Cedar file.
func (c *conditions) addFile(name string, text []byte) (problems Problems) {
	set, err := cedar.NewPolicySetFromBytes(name, text)
	if err != nil {
		line, column, text := syntax(err)
		return Problems{{Pos{name, line, column}, text}}
	}
	for _, id := range slices.Sorted(maps.Keys(maps.Collect(set.All()))) {
		p := set.Get(id)
		at := Pos{name, p.Position().Line, p.Position().Column}
		if err := cmp.Or(c.check(p), c.mention(p)); err != nil {
			problems = append(problems, Problem{at, err.Error()})
		}
		c.refs[id] = fmt.Sprintf("%s:%d", name, at.Line)
		c.names[id] = actionsOf(p)
	}
	c.file = set
	return problems
}

// mention remembers the groups that a policy names, so that a subject's others
// need not be shown to it.
func (c *conditions) mention(p *cedar.Policy) error {
	data, err := p.MarshalJSON()
	var tree any
	err = cmp.Or(err, json.Unmarshal(data, &tree))
	c.mentionIn(tree)
	return err
}

func (c *conditions) mentionIn(tree any) {
	switch t := tree.(type) {
	case []any:
		for _, v := range t {
			c.mentionIn(v)
		}
	case map[string]any:
		if id, ok := t["id"].(string); ok && t["type"] == "Group" {
			c.groups[id] = true
		}
		for _, v := range t {
			c.mentionIn(v)
		}
	}
}

// actionsOf returns the scopes that the head of a policy names.
func actionsOf(p *cedar.Policy) map[string]bool {
	out := make(map[string]bool)
	switch a := (*xast.Policy)(p.AST()).Action.(type) {
	case xast.ScopeTypeEq:
		out[string(a.Entity.ID)] = true
	case xast.ScopeTypeInSet:
		for _, e := range a.Entities {
			out[string(e.ID)] = true
		}
	case xast.ScopeTypeIn:
		out[string(a.Entity.ID)] = true
	}
	return out
}

// permits lists the scopes that some permit of the file could give.
func (c *conditions) permits(r *resource) (names []string) {
	if c.file == nil {
		return nil
	}
	for id, p := range c.file.All() {
		if p.Effect() != cedar.Permit {
			continue
		}
		for name, s := range r.scopes {
			if c.names[id][name] || len(c.names[id]) == 0 && s.access == Read {
				names = append(names, name)
			}
		}
	}
	return names
}

// cedarRequest is a request as Cedar sees it.
type cedarRequest struct {
	entities types.EntityMap
	request  cedar.Request
}

func (e *evaluation) cedarRequest(s *scope) *cedarRequest {
	if e.cedar == nil {
		e.cedar = e.newCedarRequest()
	}
	e.cedar.request.Action = cedar.NewEntityUID("Action", types.String(s.name))
	return e.cedar
}

func (e *evaluation) newCedarRequest() *cedarRequest {
	c, req := e.resource.conditions, e.req
	user := cedar.NewEntityUID("User", types.String(req.Subject.Name()))
	var groups []cedar.EntityUID
	for _, g := range req.Subject.Groups {
		if c.groups[g] {
			groups = append(groups, cedar.NewEntityUID("Group", types.String(g)))
		}
	}
	now := req.Now.UTC()
	return &cedarRequest{
		entities: types.EntityMap{user: {
			UID: user, Parents: cedar.NewEntityUIDSet(groups...),
			Attributes: cedar.NewRecord(cedar.RecordMap{"issuer": types.String(req.Subject.Issuer), "id": types.String(req.Subject.ID)}),
		}},
		request: cedar.Request{
			Principal: user,
			Resource:  cedar.NewEntityUID("Resource", types.String(e.resource.id)),
			Context: cedar.NewRecord(cedar.RecordMap{
				"client": types.String(req.Client), "agent": types.String(req.Agent), "tool": types.String(req.Tool),
				"time": timeRecord(now), "args": c.argumentRecord(req.Arguments),
			}),
		},
	}
}

func timeRecord(now time.Time) cedar.Record {
	return cedar.NewRecord(cedar.RecordMap{
		"hour": types.Long(now.Hour()), "minute": types.Long(now.Minute()),
		"weekday": types.String(strings.ToLower(now.Weekday().String())), "unix": types.Long(now.Unix()),
	})
}

// argumentRecord shows conditions the declared arguments that have their
// declared type. Another type is as good as absent.
func (c *conditions) argumentRecord(args map[string]any) cedar.Record {
	out := make(cedar.RecordMap)
	for name, typ := range c.arguments {
		switch v := args[name].(type) {
		case string:
			if typ == "string" {
				out[types.String(name)] = types.String(v)
			}
		case bool:
			if typ == "bool" {
				out[types.String(name)] = types.Boolean(v)
			}
		case float64:
			if n := int64(v); typ == "long" && float64(n) == v && n > -1<<53 && n < 1<<53 {
				out[types.String(name)] = types.Long(n)
			}
		}
	}
	return cedar.NewRecord(out)
}

// condition evaluates the condition of a rule.
func (e *evaluation) condition(r *rule, s *scope) (holds bool, err error) {
	if r.condition < 0 {
		return true, nil
	}
	in := e.cedarRequest(s)
	decision, diag := cedar.Authorize(one{e.resource.conditions.when[r.condition]}, in.entities, in.request)
	if len(diag.Errors) > 0 {
		return false, errors.New(diag.Errors[0].Message)
	}
	return decision == cedar.Allow, nil
}

// one is a policy set of one.
type one struct{ policy *cedar.Policy }

func (o one) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) { yield("", o.policy) }
}

// verdict is what the Cedar file says of a scope.
type verdict struct {
	permit, forbid string // the policy that did
	err            error
}

// file evaluates the Cedar file. An error in any policy denies: Cedar itself
// would skip a policy that errs, and an erring forbid would permit.
func (e *evaluation) file(s *scope, tr *scopeTrace) (v verdict) {
	c := e.resource.conditions
	if c.file == nil {
		return v
	}
	in := e.cedarRequest(s)
	decision, diag := cedar.Authorize(c.file, in.entities, in.request)
	for _, d := range diag.Errors {
		v.err = cmp.Or(v.err, fmt.Errorf("%s: %s", c.refs[d.PolicyID], d.Message))
		tr.spoke(c.refs[d.PolicyID], "could not be evaluated: "+d.Message)
	}
	for _, reason := range diag.Reasons {
		ref := c.refs[reason.PolicyID]
		switch {
		case decision == cedar.Deny:
			tr.spoke(ref, "forbids")
			v.forbid = ref
		case s.access > Read && !c.names[reason.PolicyID][s.name]:
			tr.spoke(ref, "permits, but does not name this "+s.access.String()+" scope")
		default:
			tr.spoke(ref, "permits")
			v.permit = ref
		}
	}
	return v
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
