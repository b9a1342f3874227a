package grant

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/stint-dev/stint/internal/strictjson"
)

// Type is the kind of a dimension. It fixes how its elements are written and
// ordered.
type Type string

// The types of dimension. In brackets the fields of an [Atom].
const (
	IDSet     Type = "id-set"     // immutable ids; equal or not [id]
	OwnedSet  Type = "owned-set"  // OWNER/NAME, or OWNER/* for all of an owner's [owned]
	LevelMap  Type = "level-map"  // key to level, none < read < write < admin [key, level]
	ScopeSet  Type = "scope-set"  // scopes, some implying others [scope]
	PrefixSet Type = "prefix-set" // verb at bucket below a prefix that ends in "/" or is empty [verb, bucket, prefix]
	ActionSet Type = "action-set" // action at a resource: an exact name, all that begins with one ending in "/" or ":", or "*" [action, resource]
	RuleSet   Type = "rule-set"   // Kubernetes policy rules [verb, apiGroup, resource, resourceName], or [verb, "", url, urlMark]
	PrivSet   Type = "priv-set"   // table privileges [object, privilege, column, rows]
	Profile   Type = "profile"    // one pre-made identity, from a declared partial order [name]
	Duration  Type = "duration"   // at most so many seconds [seconds]
	Exact     Type = "exact"      // one value, equal or not [value]
)

const (
	star       = "*"
	urlMark    = "\x00url" // in the last field of a RuleSet atom: the third is a URL path
	maxElement = 512       // bytes
	maxAtoms   = 2048
	maxRules   = 256 // atoms of a RuleSet: every two of them have to be compared
)

// Dimension is one axis of a grant, as data: it is recorded with certificates,
// and whoever replays them needs nothing else.
type Dimension struct {
	Name string `json:"name"`
	Type Type   `json:"type"`
	// Optional says that nothing in this dimension does not make the whole grant
	// nothing: the dimension adds to the others, and has to be spelled.
	Optional bool `json:"optional,omitzero"`
	// Values closes the vocabulary: of IDSet, ScopeSet and Profile the elements,
	// of PrivSet the privileges, of PrefixSet the verbs, of ActionSet the actions. Empty leaves it open.
	Values []string `json:"values,omitempty"`
	// Levels closes a LevelMap: each key with the levels that exist for it.
	Levels map[string][]string `json:"levels,omitempty"`
	// Below is a partial order: each name with those directly below it. Of
	// ScopeSet what a scope implies, of Profile the lesser profiles, of PrivSet
	// the row policies that show fewer rows.
	Below map[string][]string `json:"below,omitempty"`
	// Reads are the values that only read: of IDSet, ScopeSet and Profile elements,
	// of PrivSet privileges, of PrefixSet and RuleSet verbs, of ActionSet actions, of LevelMap levels.
	// Absent, the dimension does not decide whether a grant only reads.
	Reads []string `json:"reads,omitempty"`
	// ReadsAt are the sub-resources of a RuleSet that can be only read. At others, such
	// as pods/exec, something is done whatever the verb; so it is at "*", which has them
	// all. Absent, the verbs alone decide.
	ReadsAt []string `json:"reads_at,omitempty"`
	// About says in a sentence what the dimension means to the upstream.
	About string `json:"about,omitempty"`
}

// dimension is a checked Dimension with what the comparisons need.
type dimension struct {
	Dimension
	values map[string]bool
	down   map[string][]string // transitive closure of Below, each name included
}

// Schema is the shape of a provider's grants.
type Schema struct {
	kind    string
	version int
	dims    []dimension
	encoded []byte
	hash    string
}

// NewSchema checks and builds a schema. kind names the provider; version rises
// with every change that alters what an existing grant means.
func NewSchema(kind string, version int, dims ...Dimension) (*Schema, error) {
	if kind == "" || version < 1 || len(dims) == 0 || len(dims) > 16 {
		return nil, errors.New("a schema needs a kind, a version from 1 and 1 to 16 dimensions")
	}
	s := &Schema{kind: kind, version: version}
	dims = slices.Clone(dims)
	slices.SortFunc(dims, func(a, b Dimension) int { return compareAtoms(Atom{a.Name}, Atom{b.Name}) })
	for i, d := range dims {
		if i > 0 && dims[i-1].Name == d.Name {
			return nil, fmt.Errorf("dimension %q is declared twice", d.Name)
		}
		c, err := newDimension(d)
		if err != nil {
			return nil, fmt.Errorf("dimension %q: %w", d.Name, err)
		}
		s.dims = append(s.dims, c)
	}
	var err error
	if s.encoded, err = strictjson.Encode(wireSchema{kind, version, dims}); err != nil {
		return nil, fmt.Errorf("encode schema: %w", err)
	}
	sum := sha256.Sum256(s.encoded)
	s.hash = hex.EncodeToString(sum[:])
	return s, nil
}

// MustSchema is [NewSchema] for schemas that are written in code: it panics
// where NewSchema errs.
func MustSchema(kind string, version int, dims ...Dimension) *Schema {
	s, err := NewSchema(kind, version, dims...)
	if err != nil {
		panic(kind + ": " + err.Error())
	}
	return s
}

type wireSchema struct {
	Kind       string      `json:"kind"`
	Version    int         `json:"version"`
	Dimensions []Dimension `json:"dimensions"`
}

// DecodeSchema reads what [Schema.Encode] wrote.
func DecodeSchema(data []byte) (*Schema, error) {
	var w wireSchema
	if err := strictjson.Decode(data, &w); err != nil {
		return nil, fmt.Errorf("decode schema: %w", err)
	}
	return NewSchema(w.Kind, w.Version, w.Dimensions...)
}

// Encode returns the schema as canonical JSON.
func (s *Schema) Encode() []byte { return slices.Clone(s.encoded) }

// Hash returns the lower-case hexadecimal SHA-256 of [Schema.Encode].
func (s *Schema) Hash() string { return s.hash }

// Kind returns the name that the schema was made with.
func (s *Schema) Kind() string { return s.kind }

// Dimensions returns the dimensions, sorted by name.
func (s *Schema) Dimensions() []Dimension {
	out := make([]Dimension, len(s.dims))
	for i := range s.dims {
		out[i] = s.dims[i].Dimension
	}
	return out
}

func newDimension(d Dimension) (dimension, error) {
	c := dimension{Dimension: d}
	kind, known := kinds[d.Type]
	switch {
	case !known:
		return c, fmt.Errorf("no such type: %q", d.Type)
	case d.Name == "" || !utf8.ValidString(d.Name) || len(d.Name) > 64:
		return c, errors.New("a name has 1 to 64 bytes")
	case len(d.Values) > 0 && kind.closes < 0:
		return c, fmt.Errorf("values mean nothing to a %s", d.Type)
	case len(d.Levels) > 0 && d.Type != LevelMap:
		return c, fmt.Errorf("levels mean nothing to a %s", d.Type)
	case len(d.Reads) > 0 && kind.reads < 0:
		return c, fmt.Errorf("reads mean nothing to a %s", d.Type)
	case len(d.ReadsAt) > 0 && d.Type != RuleSet:
		return c, fmt.Errorf("reads_at means nothing to a %s", d.Type)
	case len(d.Below) > 0 && !kind.ordered:
		return c, fmt.Errorf("below means nothing to a %s", d.Type)
	}
	if len(d.Values) > 0 {
		c.values = make(map[string]bool, len(d.Values))
		for _, v := range d.Values {
			c.values[v] = true
		}
	}
	for key, legal := range d.Levels {
		for _, l := range legal {
			if !slices.Contains(levels, l) {
				return c, fmt.Errorf("key %q: no such level: %q", key, l)
			}
		}
	}
	return c, c.closeOrder()
}

// closeOrder fills down, and refuses what is no partial order. A Profile is one
// name, so two of them must not have two different greatest names below both:
// their meet could not be said.
func (d *dimension) closeOrder() error {
	d.down = make(map[string][]string)
	names := make(map[string]bool)
	for above, below := range d.Below {
		names[above] = true
		for _, b := range below {
			names[b] = true
		}
	}
	for name := range names {
		if name == star || name == "" {
			return fmt.Errorf("%q has its own place in every order", name)
		}
		seen := map[string]bool{}
		var walk func(string) bool
		walk = func(n string) bool {
			for _, b := range d.Below[n] {
				if b == name {
					return false
				}
				if !seen[b] {
					seen[b] = true
					if !walk(b) {
						return false
					}
				}
			}
			return true
		}
		if !walk(name) {
			return fmt.Errorf("%q is below itself", name)
		}
		all := []string{name}
		for n := range seen {
			all = append(all, n)
		}
		slices.Sort(all)
		d.down[name] = all
	}
	if d.Type != Profile {
		return nil
	}
	for a := range names {
		for b := range names {
			if len(d.lowerNames(a, b)) > 1 {
				return fmt.Errorf("%q and %q have no single greatest name below both", a, b)
			}
		}
	}
	return nil
}

// kind is what is fixed by a dimension's type.
type kind struct {
	fields  []field
	single  bool // at most one atom
	ordered bool // Below has a meaning
	closes  int  // the field that Values closes; -1: none
	reads   int  // the field that Reads speaks of; -1: none
}

// field is one field of an atom: its name in JSON, its order, and whether the
// canonical form gathers atoms that differ in it alone into one list.
type field struct {
	name  string
	order order
	list  bool
}

// order is how the texts in a field compare.
type order int

const (
	flat     order = iota // equal or not
	starred               // equal, or "*" above all
	level                 // none < read < write < admin
	named                 // the partial order Below
	rows                  // the partial order Below, and "*" above all
	prefix                // a path prefix is above what it begins
	stem                  // "*" > what ends in "/" or ":" > what it begins
	resource              // "*" > "*/sub" > "name/sub"; "*" > "name"
	owned                 // "OWNER/*" > "OWNER/NAME"
	number                // by value
)

var kinds = map[Type]kind{
	IDSet:     {fields: []field{{order: flat}}, closes: 0},
	LevelMap:  {fields: []field{{order: flat}, {order: level}}, closes: -1, reads: 1},
	OwnedSet:  {fields: []field{{order: owned}}, closes: -1},
	ScopeSet:  {fields: []field{{order: named}}, ordered: true, closes: 0},
	PrefixSet: {fields: []field{{"verbs", flat, true}, {"bucket", flat, false}, {"prefix", prefix, false}}, closes: 0},
	ActionSet: {fields: []field{{"actions", flat, true}, {"resource", stem, false}}, closes: 0},
	RuleSet: {fields: []field{{"verbs", starred, true}, {"apiGroups", starred, false},
		{"resources", resource, false}, {"resourceNames", starred, false}}, closes: -1},
	PrivSet: {fields: []field{{"object", flat, false}, {"privileges", flat, true},
		{"columns", starred, true}, {"rows", rows, false}}, ordered: true, closes: 1, reads: 1},
	Profile:  {fields: []field{{order: named}}, single: true, ordered: true, closes: 0},
	Duration: {fields: []field{{order: number}}, single: true, closes: -1, reads: -1},
	Exact:    {fields: []field{{order: flat}}, single: true, closes: -1, reads: -1},
}

func (d *dimension) kind() kind { return kinds[d.Type] }

// limit returns how many atoms a value may have.
func (d *dimension) limit() int {
	if d.Type == RuleSet {
		return maxRules
	}
	return maxAtoms
}

// levels are those of a LevelMap, ascending.
var levels = []string{"read", "write", "admin"}

// same reports whether two schemas are one, wherever they were decoded.
func same(a, b *Schema) bool { return a == b || a != nil && b != nil && a.hash == b.hash }
