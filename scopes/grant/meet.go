package grant

import (
	"slices"
	"strconv"
	"strings"
)

// Meet returns the most that both a and b allow. Grants of different schemas
// have nothing in common.
func Meet(a, b Grant) Grant {
	if !same(a.schema, b.schema) || a.IsNothing() || b.IsNothing() {
		return Grant{schema: a.schema}
	}
	dims := make([]value, len(a.dims))
	for i := range dims {
		dims[i] = a.schema.dims[i].meet(a.dims[i], b.dims[i])
	}
	return a.schema.make(dims)
}

func (d *dimension) meet(a, b value) value {
	switch {
	case a.all:
		return b
	case b.all:
		return a
	}
	groups := make(map[string][]Atom, len(b.atoms))
	for _, y := range b.atoms {
		k := d.group(y)
		groups[k] = append(groups[k], y)
	}
	var atoms []Atom
	for _, x := range a.atoms {
		for _, y := range groups[d.group(x)] {
			atoms = append(atoms, d.lower(x, y)...)
		}
	}
	return d.normalise(atoms)
}

// group returns the fields in which two atoms must be equal to have anything in
// common.
func (d *dimension) group(a Atom) string {
	fields := d.kind().fields
	key := make([]byte, 0, 64)
	for i, f := range fields {
		if f.order == flat || f.order == named && len(d.Below) == 0 {
			key = append(append(key, a[i]...), 0)
		}
	}
	return string(key)
}

// lower returns the greatest atoms that are below both x and y.
func (d *dimension) lower(x, y Atom) []Atom {
	fields := d.kind().fields
	if d.Type == RuleSet && (x[3] == urlMark) != (y[3] == urlMark) {
		return nil
	}
	out := []Atom{{}}
	for i, f := range fields {
		var texts []string
		if d.Type == RuleSet && x[3] == urlMark && i >= 2 {
			if texts = lowerURL(x[2], y[2]); i == 3 {
				texts = []string{urlMark}
			}
		} else {
			texts = d.lowerField(f.order, x[i], y[i])
		}
		next := make([]Atom, 0, len(out)*len(texts))
		for _, a := range out {
			for _, t := range texts {
				a[i] = t
				next = append(next, a)
			}
		}
		out = next
	}
	return out
}

// lowerField returns the greatest texts below both x and y in one field.
func (d *dimension) lowerField(o order, x, y string) []string {
	if x == y {
		return []string{x}
	}
	switch o {
	case starred, rows:
		if x == star {
			return []string{y}
		}
		if y == star {
			return []string{x}
		}
		if o == rows {
			return d.lowerNames(x, y)
		}
	case level:
		return []string{levels[min(slices.Index(levels, x), slices.Index(levels, y))]}
	case named:
		return d.lowerNames(x, y)
	case prefix:
		if len(x) < len(y) {
			x, y = y, x
		}
		if strings.HasPrefix(x, y) {
			return []string{x}
		}
	case stem:
		return lowerStem(x, y)
	case resource:
		return lowerResource(x, y)
	case owned:
		if strings.HasSuffix(x, "/"+star) {
			x, y = y, x
		}
		if owner, whole := strings.CutSuffix(y, star); whole && strings.HasPrefix(x, owner) {
			return []string{x}
		}
	case number:
		a, _ := strconv.ParseInt(x, 10, 64) // parsing has checked both
		b, _ := strconv.ParseInt(y, 10, 64)
		return []string{strconv.FormatInt(min(a, b), 10)}
	case flat:
	}
	return nil
}

// lowerNames returns the maximal names below both x and y in the order Below.
func (d *dimension) lowerNames(x, y string) []string {
	common := make([]string, 0, 4)
	for _, n := range d.downSet(x) {
		if slices.Contains(d.downSet(y), n) {
			common = append(common, n)
		}
	}
	return slices.DeleteFunc(slices.Clone(common), func(n string) bool {
		return slices.ContainsFunc(common, func(m string) bool {
			return m != n && slices.Contains(d.downSet(m), n)
		})
	})
}

// downSet returns a name and all that is below it.
func (d *dimension) downSet(name string) []string {
	if s, ok := d.down[name]; ok {
		return s
	}
	return []string{name}
}

// lowerStem meets two resources of actions that differ.
func lowerStem(x, y string) []string {
	for range 2 {
		open := strings.HasSuffix(x, "/") || strings.HasSuffix(x, ":")
		if x == star || open && strings.HasPrefix(y, x) {
			return []string{y}
		}
		x, y = y, x
	}
	return nil
}

// lowerResource meets two Kubernetes resource patterns that differ.
func lowerResource(x, y string) []string {
	for range 2 {
		sub, anyOf := strings.CutPrefix(x, "*/")
		if x == star || anyOf && strings.HasSuffix(y, "/"+sub) && y != star {
			return []string{y}
		}
		x, y = y, x
	}
	return nil
}

// lowerURL meets two non-resource URLs, either of which may end in "*".
func lowerURL(x, y string) []string {
	if x == y {
		return []string{x}
	}
	for range 2 {
		if p, glob := strings.CutSuffix(x, star); glob && strings.HasPrefix(strings.TrimSuffix(y, star), p) {
			return []string{y}
		}
		x, y = y, x
	}
	return nil
}

// normalise sorts atoms and drops those that are below another. More than
// [maxAtoms] become nothing: the most that is known to be below them.
func (d *dimension) normalise(atoms []Atom) value {
	slices.SortFunc(atoms, compareAtoms)
	atoms = slices.Compact(atoms)
	if len(atoms) > d.limit() {
		return value{}
	}
	groups := make(map[string][]Atom, len(atoms))
	for _, a := range atoms {
		k := d.group(a)
		groups[k] = append(groups[k], a)
	}
	kept := make([]Atom, 0, len(atoms))
	for _, a := range atoms {
		below := slices.ContainsFunc(groups[d.group(a)], func(b Atom) bool {
			low := d.lower(a, b)
			return b != a && len(low) == 1 && low[0] == a
		})
		if !below {
			kept = append(kept, a)
		}
	}
	return value{atoms: kept}
}
