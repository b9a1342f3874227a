package vault

import (
	"bytes"
	"errors"
	"fmt"
	"maps"

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
	return strictjson.Encode(r.order())
}

// Parse implements [broker.Provider].
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	name, _, err := p.read(rendered)
	if err != nil {
		return grant.Grant{}, err
	}
	return p.grantOf(name)
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
		if r.order().equal(o) { // of one role: Check has seen to it
			return name, o, nil
		}
	}
	return "", o, errors.New("the order is that of no role")
}

// grantOf is the grant of a role.
func (p *provider) grantOf(name string) (grant.Grant, error) {
	return p.schema.ParseValue(map[string]any{"mount": p.cfg.Roles[name].Mount, "role": name})
}
