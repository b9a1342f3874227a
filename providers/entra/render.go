package entra

import (
	"errors"
	"fmt"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// order is what Entra is asked for: by which registration, in which tenant, and for which
// scopes. The last is for those who read it: Entra goes by the first.
type order struct {
	ClientID string `json:"client_id"`
	Scope    string `json:"scope"`
	Tenant   string `json:"tenant"`
}

// Render implements [broker.Provider].
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	if g.IsNothing() {
		return nil, errors.New("nothing is never asked for")
	}
	tenant, name := named(g)
	profile, known := p.cfg.Profiles[name]
	if !known || tenant != p.cfg.Tenant {
		return nil, fmt.Errorf("a token has one profile, of the tenant of the settings: %w", broker.ErrInexpressible)
	}
	return strictjson.Encode(order{profile.ClientID, profile.order(p.cfg.API), tenant})
}

// Parse implements [broker.Provider].
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	name, _, err := p.read(rendered)
	if err != nil {
		return grant.Grant{}, err
	}
	return p.grantOf(name)
}

// read finds the profile that an order is that of.
func (p *provider) read(rendered []byte) (name string, o order, err error) {
	if err := strictjson.Decode(rendered, &o); err != nil {
		return "", o, err
	}
	for name, profile := range p.cfg.Profiles {
		if profile.ClientID != o.ClientID { // of one profile: Check has seen to it
			continue
		}
		if o.Tenant != p.cfg.Tenant || o.Scope != profile.order(p.cfg.API) {
			return "", o, errors.New("the order is not what its profile asks for")
		}
		return name, o, nil
	}
	return "", o, errors.New("the order is that of no profile")
}
