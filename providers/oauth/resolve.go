package oauth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// Resolve implements [broker.Provider]. Scopes have no other names. A resource is the whole
// of the server: what is asked of it is for scopes or details to say.
func (p *provider) Resolve(_ context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	out := &broker.Resolved{
		Request: p.schema.Everything(), Entitlement: p.schema.Everything(), Grants: r.Grants,
		Basis: "the server holds the subject's token to the subject's rights",
	}
	if p.cfg.Flow == flowAssertion {
		out.Basis = "the server says what the subject may do when it answers"
	}
	for _, uri := range r.Resources {
		if uri != "oauth://"+p.name && uri != "oauth://"+p.name+"/" {
			return nil, broker.Fail(broker.BadTarget, nil, "there is one resource here: oauth://"+p.name)
		}
		out.Parts = append(out.Parts, p.schema.Everything())
	}
	for i, d := range r.Details {
		wanted, err := p.wanted(d)
		if err == nil && i > 0 {
			err = errors.New("a token is one grant: one object is wanted")
		}
		if err != nil {
			return nil, broker.Fail(broker.BadDetails, err, "authorization_details: "+err.Error())
		}
		out.Wanted, out.Request = &wanted, wanted
	}
	return out, nil
}

func (p *provider) wanted(d map[string]any) (grant.Grant, error) {
	given := maps.Clone(d)
	if name, there := given["provider"]; there && name != p.name {
		return grant.Grant{}, fmt.Errorf("provider is not %s", p.name)
	}
	delete(given, "provider")
	return p.schema.ParseValue(given)
}

// Render implements [broker.Provider].
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	everything, atoms := g.Dimension("scopes")
	switch {
	case g.IsNothing():
		return nil, errors.New("nothing is never asked for")
	case everything:
		return nil, fmt.Errorf("scopes have to be spelled: %w", broker.ErrInexpressible)
	}
	scopes := make([]string, len(atoms))
	for i, a := range atoms {
		scopes[i] = a[0]
	}
	return strictjson.Encode(map[string]any{"scope": strings.Join(scopes, " ")})
}

// Parse implements [broker.Provider].
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	scopes, err := readOrder(rendered)
	if err != nil {
		return grant.Grant{}, err
	}
	return p.schema.ParseValue(map[string]any{"scopes": texts(scopes)})
}

// readOrder reads what Render wrote: scopes, each once.
func readOrder(rendered []byte) ([]string, error) {
	var in struct {
		Scope string `json:"scope"`
	}
	if err := strictjson.Decode(rendered, &in); err != nil {
		return nil, err
	}
	scopes := strings.Split(in.Scope, " ")
	sorted := slices.Clone(scopes)
	slices.Sort(sorted)
	if len(slices.Compact(sorted)) != len(scopes) || slices.ContainsFunc(scopes, func(s string) bool { return !isScope(s) }) {
		return nil, errors.New("no list of scopes, each once")
	}
	return scopes, nil
}
