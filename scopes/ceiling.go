package scopes

import (
	"fmt"
	"maps"
	"slices"

	"github.com/stint-dev/stint/scopes/grant"
)

func (c *compiler) ceilings() {
	for _, name := range slices.Sorted(maps.Keys(c.world.Clients)) {
		if ceiling := c.world.Clients[name].Ceiling; ceiling != nil {
			c.ceiling("client "+name, ceiling)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.world.Agents)) {
		c.ceiling("agent "+name, c.world.Agents[name])
	}
}

func (c *compiler) ceiling(who string, in *Ceiling) {
	if in.Everything {
		return
	}
	if in.Access == 0 || in.Scopes == nil || in.Vend == nil {
		c.failf(in.Pos, `%s: a ceiling has access, scopes and vend, or is "*"`, who)
		return
	}
	in.scopes, in.vend = make(map[string]map[string]bool), make(map[string]grant.Grant)
	in.anyScope, in.anyVend = in.Scopes.Value == star, in.Vend.Value == star
	if m, ok := in.Scopes.Value.(map[string]any); ok {
		for id, v := range m {
			names, err := texts(v)
			if err != nil {
				c.failf(in.Scopes.Pos, `%s: ceiling: scopes of %s: a list of texts is wanted, or "*"`, who, id)
			}
			in.scopes[id] = nil
			if v != star {
				in.scopes[id] = set(names)
			}
		}
	} else if !in.anyScope {
		c.failf(in.Scopes.Pos, `%s: ceiling: scopes is "*", or an object of resources`, who)
	}
	if m, ok := in.Vend.Value.(map[string]any); ok {
		for provider, v := range m {
			schema := c.world.Providers[provider]
			if schema == nil {
				c.failf(in.Vend.Pos, "%s: ceiling: there is no provider %q; there are: %s", who, provider, list(maps.Keys(c.world.Providers)))
				continue
			}
			g, err := schema.ParseValue(v)
			if err != nil {
				c.failf(in.Vend.Pos, "%s: ceiling: vend %s: %v", who, provider, err)
			} else {
				c.expressible(in.Vend.Pos, fmt.Sprintf("%s: ceiling: vend %s", who, provider), provider, g)
			}
			in.vend[provider] = g
		}
	} else if !in.anyVend {
		c.failf(in.Vend.Pos, `%s: ceiling: vend is "*", or an object of providers`, who)
	}
}

func texts(v any) ([]string, error) {
	if v == star {
		return nil, nil
	}
	in, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("no list")
	}
	out := make([]string, len(in))
	for i := range in {
		if out[i], ok = in[i].(string); !ok {
			return nil, fmt.Errorf("no text")
		}
	}
	return out, nil
}

// allows reports whether a scope is within the ceiling.
func (c *Ceiling) allows(resource string, s *scope) bool {
	if c.Everything {
		return true
	}
	names, ok := c.scopes[resource]
	return s.access <= c.Access && (c.anyScope || ok && (names == nil || names[s.name]))
}

// Limit returns the most that the ceiling leaves of a provider's grants.
func (c *Ceiling) Limit(provider string, schema *grant.Schema) grant.Grant {
	if c.Everything || c.anyVend {
		return schema.Everything()
	}
	if g, ok := c.vend[provider]; ok {
		return g
	}
	return schema.Nothing()
}
