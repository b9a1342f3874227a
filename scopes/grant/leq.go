package grant

import (
	"fmt"
	"strconv"
	"strings"
)

// Diff is one thing that a grant allows and the other does not.
type Diff struct {
	Dimension string `json:"dimension"`
	Excess    string `json:"excess"` // the atom, or "*"
}

func (d Diff) String() string { return fmt.Sprintf("%s: %s", d.Dimension, d.Excess) }

// Leq reports whether b allows all that a allows; if not, the differences say
// what a has in excess. A union is compared element by element, so Leq may call
// a union of b's elements too small where it is not; it never errs the other
// way. Leq does not use the code of [Meet].
func Leq(a, b Grant) (bool, []Diff) {
	if a.IsNothing() {
		return true, nil
	}
	if !same(a.schema, b.schema) {
		return false, []Diff{{Dimension: "*", Excess: "grants of different schemas"}}
	}
	if b.IsNothing() {
		return false, []Diff{{Dimension: "*", Excess: "anything: the other grant is nothing"}}
	}
	var diffs []Diff
	for i := range a.schema.dims {
		d := &b.schema.dims[i]
		switch {
		case b.dims[i].all:
		case a.dims[i].all:
			diffs = append(diffs, Diff{Dimension: d.Name, Excess: star})
		default:
			for _, x := range a.dims[i].atoms {
				if !d.covered(x, b.dims[i].atoms) {
					diffs = append(diffs, Diff{Dimension: d.Name, Excess: x.display()})
				}
			}
		}
	}
	return len(diffs) == 0, diffs
}

func (d *dimension) covered(x Atom, by []Atom) bool {
	for _, y := range by {
		if d.under(x, y) {
			return true
		}
	}
	return false
}

// under reports whether atom x allows no more than atom y.
func (d *dimension) under(x, y Atom) bool {
	switch d.Type {
	case IDSet, Exact:
		return x[0] == y[0]
	case OwnedSet:
		owner, all := strings.CutSuffix(y[0], "/"+star)
		whose, _, _ := strings.Cut(x[0], "/")
		return x[0] == y[0] || all && whose == owner
	case LevelMap:
		return x[0] == y[0] && weight(x[1]) <= weight(y[1])
	case ScopeSet, Profile:
		return d.reaches(y[0], x[0])
	case PrefixSet:
		return x[0] == y[0] && x[1] == y[1] && beneath(x[2], y[2])
	case ActionSet:
		return x[0] == y[0] && resourceUnder(x[1], y[1])
	case PrivSet:
		return x[0] == y[0] && x[1] == y[1] &&
			(y[2] == star || x[2] == y[2]) &&
			(y[3] == star || d.reaches(y[3], x[3]))
	case Duration:
		xs, errX := strconv.ParseUint(x[0], 10, 62)
		ys, errY := strconv.ParseUint(y[0], 10, 62)
		return errX == nil && errY == nil && xs <= ys
	}
	return ruleUnder(x, y)
}

func weight(l string) int {
	switch l {
	case "read":
		return 1
	case "write":
		return 2
	}
	return 3
}

// reaches walks down the declared order, which has no circles, from one name to
// another.
func (d *dimension) reaches(from, to string) bool {
	if from == to {
		return true
	}
	for _, next := range d.Below[from] {
		if d.reaches(next, to) {
			return true
		}
	}
	return false
}

// beneath compares path prefixes segment by segment. Both are empty or end in
// a slash.
func beneath(x, y string) bool {
	xs, ys := strings.Split(x, "/"), strings.Split(y, "/")
	if len(ys) > len(xs) {
		return false
	}
	for i := range len(ys) - 1 {
		if xs[i] != ys[i] {
			return false
		}
	}
	return true
}

// resourceUnder compares the resources of two actions.
func resourceUnder(x, y string) bool {
	switch {
	case y == star || x == y:
		return true
	case x == star || len(x) < len(y):
		return false
	}
	last := y[len(y)-1]
	return (last == '/' || last == ':') && x[:len(y)] == y
}

// ruleUnder compares two Kubernetes rules of one verb, group, resource and name
// each, as the API server's own authoriser would.
func ruleUnder(x, y Atom) bool {
	verb := y[0] == star || x[0] == y[0]
	if x[3] == urlMark || y[3] == urlMark {
		if !verb || x[3] != y[3] {
			return false
		}
		if y[2] == x[2] {
			return true
		}
		stem := strings.TrimRight(y[2], star)
		return stem != y[2] && len(x[2]) >= len(stem) && x[2][:len(stem)] == stem
	}
	group := y[1] == star || x[1] == y[1]
	name := y[3] == star || x[3] == y[3]
	res := y[2] == star || x[2] == y[2]
	if parent, sub, ok := strings.Cut(x[2], "/"); ok && parent != "" && y[2] == "*/"+sub {
		res = true
	}
	return verb && group && res && name
}

// display shows an atom to people.
func (a Atom) display() string {
	if a[3] == urlMark {
		a[3] = ""
	}
	return a.String()
}
