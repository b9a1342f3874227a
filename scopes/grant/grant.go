// Package grant says what a credential may do, in its upstream's own terms, and
// compares such statements.
//
// A [Grant] is a product of dimensions, ordered pointwise: everything is spelled
// "*", nothing in a mandatory dimension makes the whole grant nothing, and an
// absent dimension is an error, because upstreams read an empty list as "all".
// A provider declares its dimensions as data, a [Schema]; [Meet], [Leq], [Union]
// and the canonical form are written once, here, for all of them.
//
// Meet and Leq are written apart and share no comparison, so that each checks
// the other: the broker meets its inputs, then asks Leq whether the result is
// below every one of them. Both are sound; where a dimension cannot say a thing,
// they err on the side of less. The package does no I/O.
package grant

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

// Atom is one element of a dimension: its fields in the order of the type's
// description (see [Type]), unused ones empty.
type Atom [4]string

// value is what one dimension allows: everything, or the atoms and whatever is
// below them. Atoms are sorted, and none is below another.
type value struct {
	all   bool
	atoms []Atom
}

func (v value) nothing() bool { return !v.all && len(v.atoms) == 0 }

// Grant is what a credential may do at one kind of upstream. It is immutable.
// The zero Grant is nothing, of no schema.
type Grant struct {
	schema *Schema
	dims   []value // one a dimension, in the schema's order; nil: nothing
}

// Schema returns the schema that g belongs to.
func (g Grant) Schema() *Schema { return g.schema }

// IsNothing reports whether g allows nothing at all. Nothing is never rendered
// to an upstream.
func (g Grant) IsNothing() bool { return g.dims == nil }

// Dimension returns what g allows in the named dimension: everything, or the
// atoms, sorted. A name that the schema does not have yields nothing.
func (g Grant) Dimension(name string) (everything bool, atoms []Atom) {
	if g.IsNothing() {
		return false, nil
	}
	for i := range g.schema.dims {
		if g.schema.dims[i].Name == name {
			return g.dims[i].all, slices.Clone(g.dims[i].atoms)
		}
	}
	return false, nil
}

// ReadOnly reports whether g allows nothing but reading: every element of every
// dimension that tells reading from writing only reads. A schema in which no
// dimension tells makes no grant read-only.
func (g Grant) ReadOnly() bool {
	told := g.IsNothing()
	for i := range g.dims {
		d := &g.schema.dims[i]
		if len(d.Reads) == 0 {
			continue
		}
		told = true
		if g.dims[i].all || slices.ContainsFunc(g.dims[i].atoms, func(a Atom) bool { return !d.onlyReads(a) }) {
			return false
		}
	}
	return told
}

// onlyReads reports whether an atom allows nothing but reading.
func (d *dimension) onlyReads(a Atom) bool {
	if !slices.Contains(d.Reads, a[d.kind().reads]) {
		return false
	}
	if len(d.ReadsAt) == 0 || a[3] == urlMark {
		return true
	}
	_, sub, below := strings.Cut(a[2], "/")
	return a[2] != star && (!below || slices.Contains(d.ReadsAt, sub))
}

// Equal reports whether two grants of one schema allow the same.
func (g Grant) Equal(h Grant) bool {
	return same(g.schema, h.schema) && string(g.Canonical()) == string(h.Canonical())
}

// String returns the canonical form, for people and logs.
func (g Grant) String() string { return string(g.Canonical()) }

// Hash returns the lower-case hexadecimal SHA-256 of the canonical form.
func (g Grant) Hash() string {
	sum := sha256.Sum256(g.Canonical())
	return hex.EncodeToString(sum[:])
}

// make builds a grant of normalised values, or nothing.
func (s *Schema) make(dims []value) Grant {
	some := false
	for i := range dims {
		if dims[i].nothing() && !s.dims[i].Optional {
			return Grant{schema: s}
		}
		some = some || !dims[i].nothing()
	}
	if !some { // optional, all of them, and nothing in any
		return Grant{schema: s}
	}
	return Grant{schema: s, dims: dims}
}

// Nothing returns the grant that allows nothing.
func (s *Schema) Nothing() Grant { return Grant{schema: s} }

// Everything returns the grant that allows everything the schema can say.
func (s *Schema) Everything() Grant {
	dims := make([]value, len(s.dims))
	for i := range dims {
		dims[i].all = true
	}
	return s.make(dims)
}

// with returns g with another value in its i-th dimension.
func (g Grant) with(i int, v value) Grant {
	dims := slices.Clone(g.dims)
	dims[i] = v
	return g.schema.make(dims)
}

// Union returns the grant that allows what a or b allows. The union of two
// products is a product only if one is below the other or they differ in a
// single dimension; otherwise ok is false, because any product that holds both
// would allow more than either.
func Union(a, b Grant) (union Grant, ok bool) {
	if !same(a.schema, b.schema) {
		return Grant{}, false
	}
	if below, _ := Leq(a, b); below {
		return b, true
	}
	if below, _ := Leq(b, a); below {
		return a, true
	}
	differs := -1
	for i := range a.dims {
		if !equal(a.dims[i], b.dims[i]) {
			if differs >= 0 {
				return Grant{}, false
			}
			differs = i
		}
	}
	d := &a.schema.dims[differs]
	if d.kind().single {
		return Grant{}, false
	}
	atoms := slices.Concat(a.dims[differs].atoms, b.dims[differs].atoms)
	if len(atoms) > d.limit() {
		return Grant{}, false
	}
	return a.with(differs, d.normalise(atoms)), true
}

func equal(a, b value) bool { return a.all == b.all && slices.Equal(a.atoms, b.atoms) }

func compareAtoms(a, b Atom) int {
	for i := range a {
		if c := cmp.Compare(a[i], b[i]); c != 0 {
			return c
		}
	}
	return 0
}

func (a Atom) String() string {
	return strings.TrimRight(strings.Join(a[:], " "), " ")
}
