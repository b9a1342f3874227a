package vault

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// order is what Vault is asked for: the child's policy, and what the child asks
// of the engine. It is sent as it stands here; only the time is added, under the
// name that Lifetime says.
type order struct {
	Lifetime string            `json:"lifetime"`
	Method   string            `json:"method"`
	Mount    string            `json:"mount"`
	Params   map[string]string `json:"params"`
	Path     string            `json:"path"`
	Policy   string            `json:"policy"`
}

func (o order) equal(b order) bool {
	return o.Lifetime == b.Lifetime && o.Method == b.Method && o.Mount == b.Mount && o.Path == b.Path &&
		o.Policy == b.Policy && maps.Equal(o.Params, b.Params)
}

// named returns the one mount and the one role that a grant names; empty where
// it names none, or all.
func named(g grant.Grant) (mount, role string) {
	if _, atoms := g.Dimension("mount"); len(atoms) == 1 {
		mount = atoms[0][0]
	}
	if _, atoms := g.Dimension("role"); len(atoms) == 1 {
		role = atoms[0][0]
	}
	return mount, role
}

// Render implements [broker.Provider]: the order as RFC 8785 has it.
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	if g.IsNothing() {
		return nil, errors.New("nothing is never asked for")
	}
	mount, name := named(g)
	r, known := p.cfg.Roles[name]
	switch {
	case !known:
		return nil, fmt.Errorf("a credential has one role, and %s names none: %w", g, broker.ErrInexpressible)
	case mount != r.Mount:
		return nil, fmt.Errorf("the role %s is at the mount %s, the grant says %s: %w", name, r.Mount, g, broker.ErrInexpressible)
	}
	chosen, err := r.choose(g)
	if err != nil {
		return nil, fmt.Errorf("the role %s: %w: %w", name, err, broker.ErrInexpressible)
	}
	return strictjson.Encode(r.order(chosen))
}

// check says what is wrong with the choices of a grant that names a role.
func (p *provider) check(g grant.Grant) error {
	_, name := named(g)
	r, known := p.cfg.Roles[name]
	everything, atoms := g.Dimension("params")
	if !known || everything {
		return nil
	}
	left := maps.Clone(r.Choose)
	for _, a := range atoms {
		parameter, value, _ := strings.Cut(a[0], "=")
		if !slices.Contains(r.Choose[parameter], value) {
			return fmt.Errorf("params: the role %s does not let %s be chosen", name, a[0])
		}
		delete(left, parameter)
	}
	if len(left) > 0 {
		return fmt.Errorf("params: the role %s wants a choice of %s", name, strings.Join(slices.Sorted(maps.Keys(left)), ", "))
	}
	return nil
}

// choose returns what a grant chooses: one value of each parameter that there is to
// choose, and of no other.
func (r Role) choose(g grant.Grant) (map[string]string, error) {
	everything, atoms := g.Dimension("params")
	if everything && len(r.Choose) > 0 {
		return nil, fmt.Errorf("choose %s", strings.Join(slices.Sorted(maps.Keys(r.Choose)), ", "))
	}
	chosen := make(map[string]string, len(atoms))
	for _, a := range atoms {
		name, value, _ := strings.Cut(a[0], "=")
		if chosen[name] != "" || !slices.Contains(r.Choose[name], value) {
			return nil, fmt.Errorf("%s is not one that can be chosen, or more than one", a[0])
		}
		chosen[name] = value
	}
	if len(chosen) != len(r.Choose) {
		return nil, fmt.Errorf("choose one each of %s", strings.Join(slices.Sorted(maps.Keys(r.Choose)), ", "))
	}
	return chosen, nil
}

// Parse implements [broker.Provider].
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	name, o, err := p.read(rendered)
	if err != nil {
		return grant.Grant{}, err
	}
	return p.granted(name, o)
}

// read finds the role whose order was rendered.
func (p *provider) read(rendered []byte) (name string, o order, err error) {
	if err := strictjson.Decode(rendered, &o); err != nil {
		return "", o, err
	}
	// A member that is missing would read as an empty one.
	again, err1 := strictjson.Encode(o)
	given, err2 := strictjson.Canonical(rendered)
	if err := errors.Join(err1, err2); err != nil {
		return "", o, err
	}
	if !bytes.Equal(again, given) {
		return "", o, errors.New("the order is not complete")
	}
	for name, r := range p.cfg.Roles {
		if _, ok := r.chose(o); ok { // of one role: Check has seen to it
			return name, o, nil
		}
	}
	return "", o, errors.New("the order is that of no role")
}

// granted is the grant that an order of a role is for.
func (p *provider) granted(name string, o order) (grant.Grant, error) {
	chosen, ok := p.cfg.Roles[name].chose(o)
	if !ok {
		return grant.Grant{}, fmt.Errorf("the order is not one of the role %s", name)
	}
	params := make([]any, 0, len(chosen))
	for _, parameter := range slices.Sorted(maps.Keys(chosen)) {
		params = append(params, parameter+"="+chosen[parameter])
	}
	return p.grantOf(name, params)
}

// grantOf is the grant of a role with some choices: "*" is all of them.
func (p *provider) grantOf(name string, params any) (grant.Grant, error) {
	r := p.cfg.Roles[name]
	out := map[string]any{"mount": r.Mount, "role": name}
	if p.chooses {
		if out["params"] = params; len(r.Choose) == 0 {
			out["params"] = []any{}
		}
	}
	return p.schema.ParseValue(out)
}
