package providertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// Clauses that need no upstream.

// rounds is how many random grants each of them is tried on.
const rounds = 100

func describes(_ context.Context, h *Harness) error {
	d := h.Provider.Describe()
	switch {
	case d.Kind == "" || d.About == "" || d.Scheme == "" || d.Details == "":
		return errors.New("kind, about, scheme or details is missing")
	case d.Schema == nil || d.Schema.Kind() != d.Kind:
		return errors.New("the schema is missing, or another kind's")
	case !slices.Contains([]broker.Class{broker.Exact, broker.Coarse, broker.Profile, broker.Object, broker.None}, d.Class):
		return fmt.Errorf("no class is called %q", d.Class)
	case len(d.Modes) == 0 || d.Class == broker.None && slices.Contains(d.Modes, broker.Vend):
		return fmt.Errorf("no credential of the class %q is used as %q", d.Class, d.Modes)
	case injects(d) && (d.Inject == nil || len(d.Origins) == 0):
		return errors.New("it injects, and does not say what or where")
	case d.Sweeps != (d.Sweep != nil):
		return errors.New("whether it sweeps is not what it says")
	case d.Renews != (d.Renew != nil):
		return errors.New("whether it renews is not what it says")
	case d.Links != (d.Link != nil):
		return errors.New("whether accounts are linked is not what it says")
	case d.Reads == "":
		return errors.New("nothing says by what it is known what only reads")
	case d.TokenType != "Bearer" && d.TokenType != "N_A":
		return fmt.Errorf("no token type is called %q", d.TokenType)
	case d.MinLifetime <= 0 || d.MaxLifetime < 0 || d.MaxLifetime > 0 && d.MaxLifetime < d.MinLifetime:
		return errors.New("the lifetimes are no bounds")
	case !slices.Contains([]string{"token", "family", "grant", "principal", "none"}, d.Revokes):
		return fmt.Errorf("revoking cannot end %q", d.Revokes)
	case d.Ready == nil:
		return errors.New("it cannot say whether it is ready")
	case (d.Class == broker.Exact || injects(d)) && len(h.Acts) < 2:
		return errors.New("the harness has no acts to tell grants apart by")
	}
	return nil
}

func ready(ctx context.Context, h *Harness) error { return h.Provider.Describe().Ready(ctx) }

func rendersBack(_ context.Context, h *Harness) error {
	r := random(1)
	for range rounds {
		g := h.Grant(r)
		rendered, err := h.Provider.Render(g)
		if err != nil {
			return fmt.Errorf("render %s: %w", g, err)
		}
		back, err := h.Provider.Parse(rendered)
		if err != nil {
			return fmt.Errorf("parse %s: %w", rendered, err)
		}
		if !back.Equal(g) {
			return fmt.Errorf("meant is %s, sent would be %s", g, back)
		}
		again, err := h.Provider.Render(g)
		if err != nil || !bytes.Equal(again, rendered) {
			return fmt.Errorf("%s is rendered once as %s and once as %s (%v)", g, rendered, again, err)
		}
	}
	return nil
}

// noticesChanges changes what is rendered in every place there is, and the grant
// in every dimension.
func noticesChanges(_ context.Context, h *Harness) error {
	r := random(2)
	changes := 0
	for range rounds {
		g := h.Grant(r)
		rendered, err := h.Provider.Render(g)
		if err != nil {
			return fmt.Errorf("render %s: %w", g, err)
		}
		for _, m := range mutants(rendered) {
			changes++
			if back, err := h.Provider.Parse(m); err == nil && back.Equal(g) {
				return fmt.Errorf("%s reads back as %s, as %s does", m, g, rendered)
			}
		}
		for place, other := range crossed(g, h.Grant(r)) {
			changes++
			sent, err := h.Provider.Render(other)
			if err == nil && bytes.Equal(sent, rendered) {
				return fmt.Errorf("a change of %s is not rendered: %s and %s are both %s", place, g, other, sent)
			}
		}
	}
	if changes < rounds {
		return fmt.Errorf("only %d changes were tried", changes)
	}
	return nil
}

// crossed returns grants that differ from g in one place of one dimension, by
// what another grant has there; and that place.
func crossed(g, other grant.Grant) map[string]grant.Grant {
	out := make(map[string]grant.Grant)
	var mine, theirs map[string]any
	if json.Unmarshal(g.Canonical(), &mine) != nil || json.Unmarshal(other.Canonical(), &theirs) != nil {
		return out
	}
	add := func(place string, v any, dimension string) {
		changed := maps.Clone(mine)
		changed[dimension] = v
		if c, err := g.Schema().ParseValue(changed); err == nil && !c.Equal(g) && !c.IsNothing() {
			out[place] = c
		}
	}
	for _, d := range names(mine) {
		add(d, theirs[d], d)
		switch x := mine[d].(type) {
		case map[string]any:
			y, _ := theirs[d].(map[string]any)
			for k := range x {
				less, swapped := maps.Clone(x), maps.Clone(x)
				delete(less, k)
				swapped[k] = y[k]
				add(d+" without "+k, less, d)
				add(d+" with another "+k, swapped, d)
			}
		case []any:
			y, _ := theirs[d].([]any)
			for i := range x {
				add(fmt.Sprintf("%s without element %d", d, i), slices.Delete(slices.Clone(x), i, i+1), d)
			}
			for i := range y {
				add(fmt.Sprintf("%s with another's element %d", d, i), append(slices.Clone(x), y[i]), d)
			}
		}
	}
	return out
}

// mutants returns what is rendered with one thing changed, in every way: of JSON
// each text, number, member and element, of anything else each byte.
func mutants(rendered []byte) (out [][]byte) {
	var v any
	if json.Unmarshal(rendered, &v) != nil {
		for i := range rendered {
			m := slices.Clone(rendered)
			m[i] ^= 1
			out = append(out, m, slices.Delete(slices.Clone(rendered), i, i+1))
		}
		return out
	}
	emit := func() {
		if m, err := json.Marshal(v); err == nil {
			out = append(out, m)
		}
	}
	mutate(&v, emit)
	return out
}

// mutate calls emit while one thing in v is changed, and changes it back.
func mutate(v *any, emit func()) {
	before := *v
	defer func() { *v = before }()
	try := func(changed any) { *v = changed; emit(); *v = before }
	switch x := before.(type) {
	case string:
		try(x + "x")
		try([]any{x, x + "x"})
	case float64:
		try(x + 1)
	case bool:
		try(!x)
	case []any:
		for i := range x {
			try(slices.Delete(slices.Clone(x), i, i+1))
			mutate(&x[i], emit)
		}
		if len(x) > 0 {
			try([]any{})
		}
	case map[string]any:
		for _, k := range names(x) {
			value := x[k]
			delete(x, k)
			emit()
			x[k] = value
			mutateMember(x, k, emit)
		}
		x["unheard-of"] = "x"
		emit()
		delete(x, "unheard-of")
	}
}

func mutateMember(m map[string]any, k string, emit func()) {
	value := m[k]
	mutate(&value, func() {
		before := m[k]
		m[k] = value
		emit()
		m[k] = before
	})
}

func refusesToRender(_ context.Context, h *Harness) error {
	s := h.Provider.Describe().Schema
	if sent, err := h.Provider.Render(s.Nothing()); err == nil {
		return fmt.Errorf("nothing is rendered as %s", sent)
	}
	for _, g := range h.Inexpressible {
		if sent, err := h.Provider.Render(g); !errors.Is(err, broker.ErrInexpressible) {
			return fmt.Errorf("%s is rendered as %s (%v)", g, sent, err)
		}
	}
	for _, text := range []string{"", "null", "{}", "[]", `"*"`, `"nothing"`, "\x00"} {
		if g, err := h.Provider.Parse([]byte(text)); err == nil {
			return fmt.Errorf("%q is read as %s", text, g)
		}
	}
	return nil
}

// agreesWithOracle compares Leq with somebody who knows better. Leq may refuse
// what it cannot see; it must never allow.
func agreesWithOracle(ctx context.Context, h *Harness) error {
	if h.Within == nil {
		return nil
	}
	r := random(3)
	below, missed := 0, 0
	for i := range h.Pairs {
		a, b := h.Grant(r), h.Grant(r)
		if i%2 == 0 {
			a = grant.Meet(a, b)
		}
		if a.IsNothing() {
			continue
		}
		ok, diffs := grant.Leq(a, b)
		really, err := h.Within(ctx, a, b)
		h.result.Pairs++
		switch {
		case err != nil:
			return fmt.Errorf("ask the oracle: %w", err)
		case ok && !really:
			h.result.Violations++
			return fmt.Errorf("%s is said to be below %s, and allows more", a, b)
		case !ok && len(diffs) == 0:
			return fmt.Errorf("%s is not below %s, and nothing says why", a, b)
		case really:
			below++
		}
		if really && !ok {
			missed++
		}
	}
	if below == 0 || missed > below/4 {
		return fmt.Errorf("of %d grants that are below another, %d were not seen to be", below, missed)
	}
	return nil
}
