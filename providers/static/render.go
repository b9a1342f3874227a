package static

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// Nothing is sent upstream before there is a request. What is rendered is what requests
// will be held to, as the record has it: a list of methods and addresses.

type terms struct {
	Requests []term `json:"requests"`
}

// term is a method below HOST/PATH/.
type term struct {
	Method string `json:"method"`
	Below  string `json:"below"`
}

// everywhere is all methods at all hosts.
var everywhere = term{"*", "*"}

// Render implements [broker.Provider].
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	all, calls := g.Dimension("calls")
	if !all && len(calls) == 0 {
		return nil, fmt.Errorf("nothing: %w", broker.ErrInexpressible)
	}
	var t terms
	if all {
		t.Requests = []term{everywhere}
	}
	if err := p.check(g); err != nil {
		return nil, fmt.Errorf("%w: %w", err, broker.ErrInexpressible)
	}
	for _, c := range calls {
		t.Requests = append(t.Requests, term{c[0], c[1] + "/" + c[2]})
	}
	return strictjson.Encode(t)
}

// Parse implements [broker.Provider].
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	var t terms
	if err := strictjson.Decode(rendered, &t); err != nil {
		return grant.Grant{}, err
	}
	if len(t.Requests) == 1 && t.Requests[0] == everywhere {
		return schema.Everything(), nil
	}
	var list []any
	for _, r := range t.Requests {
		host, prefix, ok := strings.Cut(r.Below, "/")
		if !ok || !slices.Contains(broker.Methods, r.Method) {
			return grant.Grant{}, fmt.Errorf("%q at %q is no request", r.Method, r.Below)
		}
		list = append(list, map[string]any{"verbs": []any{r.Method}, "bucket": host, "prefix": prefix})
	}
	g, err := schema.ParseValue(map[string]any{"calls": list})
	if err == nil && g.IsNothing() {
		err = errors.New("no requests")
	}
	return g, err
}
