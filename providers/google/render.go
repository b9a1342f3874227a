package google

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// What is sent, a form a flow. A user's is the parameter scope of a token request; a
// service account's, the member scope of one for its token; delegation's, the claims of
// an assertion. storage's is in boundary.go.
type (
	userOrder struct {
		Scope string `json:"scope"`
	}
	accountOrder struct {
		Scope []string `json:"scope"`
	}
	delegationOrder struct {
		Scope string `json:"scope"`
		Sub   string `json:"sub"`
	}
)

// Render implements [broker.Provider].
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	if g.IsNothing() {
		return nil, errors.New("nothing is never asked for")
	}
	if p.cfg.Flow == flowStorage {
		return renderBoundary(g)
	}
	all, atoms := g.Dimension("scopes")
	if all || len(atoms) == 0 {
		return nil, fmt.Errorf("Google has no word for all scopes: %w", broker.ErrInexpressible)
	}
	scopes := make([]string, len(atoms))
	for i, a := range atoms {
		s, ok := full(a[0])
		if !ok {
			return nil, fmt.Errorf("%q is no scope of Google's: %w", a[0], broker.ErrInexpressible)
		}
		scopes[i] = s
	}
	slices.Sort(scopes)
	switch p.cfg.Flow {
	case flowServiceAccount:
		return strictjson.Encode(accountOrder{scopes})
	case flowDelegation:
		open, account := g.Dimension("account")
		if open || len(account) != 1 || !p.speaksFor(account[0][0]) {
			return nil, fmt.Errorf("a token is for one of the accounts of the settings: %w", broker.ErrInexpressible)
		}
		return strictjson.Encode(delegationOrder{strings.Join(scopes, " "), account[0][0]})
	}
	return strictjson.Encode(userOrder{strings.Join(scopes, " ")})
}

// speaksFor reports whether an account is somebody's, and none of those that never are.
func (p *provider) speaksFor(mail string) bool {
	for _, m := range p.cfg.Users {
		if m == mail {
			return !slices.Contains(p.cfg.Never, mail)
		}
	}
	return false
}

// Parse implements [broker.Provider].
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	switch p.cfg.Flow {
	case flowStorage:
		return p.parseBoundary(rendered)
	case flowServiceAccount:
		var o accountOrder
		if err := strictjson.Decode(rendered, &o); err != nil {
			return grant.Grant{}, err
		}
		return p.granted(o.Scope, "")
	case flowDelegation:
		var o delegationOrder
		if err := strictjson.Decode(rendered, &o); err != nil {
			return grant.Grant{}, err
		}
		if !p.speaksFor(o.Sub) {
			return grant.Grant{}, errors.New("it is for no account of the settings")
		}
		return p.granted(strings.Split(o.Scope, " "), o.Sub)
	}
	var o userOrder
	if err := strictjson.Decode(rendered, &o); err != nil {
		return grant.Grant{}, err
	}
	return p.granted(strings.Split(o.Scope, " "), "")
}

// granted reads scopes as Google has them: each has to be one, and none may be implied
// by another, which would be sent and not be seen.
func (p *provider) granted(scopes []string, account string) (grant.Grant, error) {
	list := make([]any, len(scopes))
	for i, s := range scopes {
		name := short(s)
		if name == s && others[name] != s {
			return grant.Grant{}, errors.New("what stands there is no scope of Google's")
		}
		list[i] = name
	}
	if len(list) == 0 {
		return grant.Grant{}, errors.New("no scopes at all")
	}
	g, err := p.grantOf(list, account)
	if err != nil {
		return g, err
	}
	if _, atoms := g.Dimension("scopes"); len(atoms) != len(scopes) {
		return g, errors.New("a scope is there twice, or implied by another")
	}
	return g, nil
}

// grantOf is the grant of scopes by their names; of an account, in the flow that has
// them.
func (p *provider) grantOf(names []any, account string) (grant.Grant, error) {
	given := map[string]any{"scopes": names}
	if p.cfg.Flow == flowDelegation {
		given["account"] = account
	}
	return p.schema.ParseValue(given)
}
