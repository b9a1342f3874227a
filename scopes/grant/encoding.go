package grant

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/stint-dev/stint/internal/strictjson"
)

const nothingText = "nothing"

// Canonical returns g as JSON that is the same for every grant that allows the
// same: RFC 8785, sorted, without what is below another element. Everything is
// written out, dimension by dimension; nothing is the text "nothing".
func (g Grant) Canonical() []byte {
	if g.IsNothing() {
		return []byte(`"` + nothingText + `"`)
	}
	b := []byte{'{'}
	for i := range g.dims {
		if i > 0 {
			b = append(b, ',')
		}
		b = strictjson.AppendString(b, g.schema.dims[i].Name)
		b = append(b, ':')
		b = g.schema.dims[i].encode(b, g.dims[i])
	}
	return append(b, '}')
}

func (d *dimension) encode(b []byte, v value) []byte {
	switch {
	case v.all:
		return append(b, `"*"`...)
	case d.Type == Duration && len(v.atoms) == 1:
		return append(b, v.atoms[0][0]...)
	case d.kind().single && len(v.atoms) == 1:
		return strictjson.AppendString(b, v.atoms[0][0])
	case d.Type == LevelMap:
		b = append(b, '{')
		for i, a := range v.atoms {
			if i > 0 {
				b = append(b, ',')
			}
			b = strictjson.AppendString(b, a[0])
			b = append(b, ':')
			b = strictjson.AppendString(b, a[1])
		}
		return append(b, '}')
	}
	b = append(b, '[')
	for i, e := range d.entries(v.atoms) {
		if i > 0 {
			b = append(b, ',')
		}
		b = d.encodeEntry(b, e)
	}
	return append(b, ']')
}

// entry is one element as it is written: for each field the texts that stand
// for one atom each.
type entry [4][]string

// entries gathers atoms that differ in one list field alone, last list first.
func (d *dimension) entries(atoms []Atom) []entry {
	out := make([]entry, len(atoms))
	for i, a := range atoms {
		for f := range a {
			out[i][f] = []string{a[f]}
		}
	}
	fields := d.kind().fields
	for f := len(fields) - 1; f >= 0; f-- {
		if fields[f].list {
			out = gather(out, f)
		}
	}
	return out
}

func gather(in []entry, f int) []entry {
	at := make(map[string]int, len(in))
	var out []entry
	for _, e := range in {
		rest := e
		rest[f] = nil
		key := fmt.Sprintf("%q", rest)
		if i, ok := at[key]; ok {
			out[i][f] = append(out[i][f], e[f]...)
			continue
		}
		at[key] = len(out)
		out = append(out, e)
	}
	for i := range out {
		slices.Sort(out[i][f])
	}
	return out
}

func (d *dimension) encodeEntry(b []byte, e entry) []byte {
	fields := d.kind().fields
	if len(fields) == 1 {
		return strictjson.AppendString(b, e[0][0])
	}
	names := make([]int, len(fields))
	for i := range names {
		names[i] = i
	}
	url := e[3] != nil && e[3][0] == urlMark
	if url {
		names = []int{0, 2}
	}
	name := func(i int) string {
		if url && i == 2 {
			return urlField
		}
		return fields[i].name
	}
	slices.SortFunc(names, func(x, y int) int { return strings.Compare(name(x), name(y)) })
	b = append(b, '{')
	for n, i := range names {
		if n > 0 {
			b = append(b, ',')
		}
		b = append(strictjson.AppendString(b, name(i)), ':')
		if !fields[i].list || slices.Equal(e[i], []string{star}) {
			b = strictjson.AppendString(b, e[i][0])
			continue
		}
		b = append(b, '[')
		for j, t := range e[i] {
			if j > 0 {
				b = append(b, ',')
			}
			b = strictjson.AppendString(b, t)
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

// urlField is how a Kubernetes rule names paths that are no resources.
const urlField = "nonResourceURLs"

// MarshalJSON writes the canonical form.
func (g Grant) MarshalJSON() ([]byte, error) { return g.Canonical(), nil }

var _ json.Marshaler = Grant{}
