package grant

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stint-dev/stint/internal/strictjson"
)

// Parse reads a grant: a JSON object with every dimension of the schema, "*"
// for everything, or "nothing". The error says which dimension is wrong and how.
func (s *Schema) Parse(data []byte) (Grant, error) {
	var whole any
	if err := strictjson.Decode(data, &whole); err != nil {
		return Grant{}, err
	}
	return s.ParseValue(whole)
}

// ParseValue is [Schema.Parse] for JSON that has been decoded into maps, slices,
// strings and float64.
func (s *Schema) ParseValue(whole any) (Grant, error) {
	switch whole {
	case star:
		return s.Everything(), nil
	case nothingText:
		return s.Nothing(), nil
	}
	given, ok := whole.(map[string]any)
	if !ok {
		return Grant{}, fmt.Errorf("a grant is an object with %s", s.names())
	}
	if err := s.checkNames(given); err != nil {
		return Grant{}, err
	}
	dims := make([]value, len(s.dims))
	for i := range s.dims {
		v, ok := given[s.dims[i].Name]
		if !ok {
			return Grant{}, fmt.Errorf("%s is missing: spell everything as \"*\"", s.dims[i].Name)
		}
		var err error
		if dims[i], err = s.dims[i].parse(v); err != nil {
			return Grant{}, fmt.Errorf("%s: %w", s.dims[i].Name, err)
		}
	}
	return s.make(dims), nil
}

// Limit reads a limit: an object with some of the schema's dimensions. The
// others are everything, so that a limit narrows only what it names.
func (s *Schema) Limit(given map[string]any) (Grant, error) {
	if err := s.checkNames(given); err != nil {
		return Grant{}, err
	}
	g := s.Everything()
	for i := range s.dims {
		v, ok := given[s.dims[i].Name]
		if !ok {
			continue
		}
		parsed, err := s.dims[i].parse(v)
		if err != nil {
			return Grant{}, fmt.Errorf("%s: %w", s.dims[i].Name, err)
		}
		g.dims[i] = parsed
	}
	return s.make(g.dims), nil
}

func (s *Schema) checkNames(given map[string]any) error {
	for name := range given {
		if !slices.ContainsFunc(s.dims, func(d dimension) bool { return d.Name == name }) {
			return fmt.Errorf("there is no %q in a grant of %s: it has %s", name, s.kind, s.names())
		}
	}
	return nil
}

func (s *Schema) names() string {
	names := make([]string, len(s.dims))
	for i := range s.dims {
		names[i] = s.dims[i].Name
	}
	return strings.Join(names, ", ")
}

func (d *dimension) parse(v any) (value, error) {
	if v == star {
		return value{all: true}, nil
	}
	var atoms []Atom
	var err error
	switch {
	case d.kind().single:
		atoms, err = d.parseSingle(v)
	case d.Type == LevelMap:
		atoms, err = d.parseLevels(v)
	default:
		atoms, err = d.parseList(v)
	}
	if err != nil {
		return value{}, err
	}
	if len(atoms) > d.limit() {
		return value{}, fmt.Errorf("more than %d elements", d.limit())
	}
	for _, a := range atoms {
		if err := d.check(a); err != nil {
			return value{}, err
		}
	}
	return d.normalise(atoms), nil
}

func (d *dimension) parseSingle(v any) ([]Atom, error) {
	if list, ok := v.([]any); ok && len(list) == 0 {
		return nil, nil // nothing, spelled
	}
	if d.Type != Duration {
		text, ok := v.(string)
		if !ok {
			return nil, errors.New(`one text, "*" or [] is wanted`)
		}
		return []Atom{{text}}, nil
	}
	seconds, err := parseSeconds(v)
	if err != nil || seconds == 0 {
		return nil, err
	}
	return []Atom{{strconv.FormatInt(seconds, 10)}}, nil
}

// maxSeconds is a hundred years: beyond any lease.
const maxSeconds = 100 * 366 * 24 * 3600

func parseSeconds(v any) (int64, error) {
	wrong := errors.New(`whole seconds or a duration such as "15m" is wanted`)
	var n int64
	switch v := v.(type) {
	case float64:
		if n = int64(v); float64(n) != v {
			return 0, wrong
		}
	case int:
		n = int64(v)
	case string:
		d, err := time.ParseDuration(v)
		if err != nil || d%time.Second != 0 {
			return 0, wrong
		}
		n = int64(d / time.Second)
	default:
		return 0, wrong
	}
	if n < 0 || n > maxSeconds {
		return 0, errors.New("a duration lies between 0 and 100 years")
	}
	return n, nil
}

func (d *dimension) parseLevels(v any) ([]Atom, error) {
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New(`an object of levels is wanted, or "*"`)
	}
	atoms := make([]Atom, 0, len(m))
	for key, l := range m {
		text, ok := l.(string)
		if !ok {
			return nil, fmt.Errorf("%s: a level is a text", key)
		}
		if text != "none" {
			atoms = append(atoms, Atom{key, text})
		}
	}
	return atoms, nil
}

func (d *dimension) parseList(v any) ([]Atom, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, errors.New(`a list is wanted, or "*"`)
	}
	if len(list) > d.limit() {
		return nil, fmt.Errorf("more than %d elements", d.limit())
	}
	var atoms []Atom
	for i, e := range list {
		if text, ok := e.(string); ok && len(d.kind().fields) == 1 {
			atoms = append(atoms, Atom{text})
			continue
		}
		m, ok := e.(map[string]any)
		if !ok || len(d.kind().fields) == 1 {
			return nil, fmt.Errorf("element %d: %s", i+1, d.wants())
		}
		some, err := d.parseEntry(m)
		if err != nil {
			return nil, fmt.Errorf("element %d: %w", i+1, err)
		}
		if atoms = append(atoms, some...); len(atoms) > d.limit() {
			return nil, fmt.Errorf("more than %d elements", d.limit())
		}
	}
	return atoms, nil
}

func (d *dimension) wants() string {
	fields := d.kind().fields
	if len(fields) == 1 {
		return "a text is wanted"
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	return "an object with " + strings.Join(names, ", ") + " is wanted"
}

// parseEntry reads one object. Each field is a text or a list of texts, and the
// object stands for every combination.
func (d *dimension) parseEntry(m map[string]any) ([]Atom, error) {
	fields := d.kind().fields
	var e entry
	want := len(fields)
	if _, url := m[urlField]; url && d.Type == RuleSet {
		e[1], e[3] = []string{""}, []string{urlMark}
		want = 2
	}
	product := 1
	for i, f := range fields {
		if e[i] != nil {
			continue
		}
		name := f.name
		if i == 2 && e[3] != nil {
			name = urlField
		}
		texts, err := parseTexts(m[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if e[i] = texts; product*len(texts) > d.limit() {
			return nil, fmt.Errorf("stands for more than %d elements", d.limit())
		}
		product *= len(texts)
	}
	if len(m) != want {
		return nil, errors.New(d.wants())
	}
	atoms := []Atom{{}}
	for i := range fields {
		next := make([]Atom, 0, len(atoms)*len(e[i]))
		for _, a := range atoms {
			for _, t := range e[i] {
				a[i] = t
				next = append(next, a)
			}
		}
		atoms = next
	}
	return atoms, nil
}

func parseTexts(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, errors.New(`missing: spell everything as "*"`)
	case string:
		return []string{v}, nil
	case []any:
		if len(v) == 0 {
			return nil, errors.New("empty: leave the element out")
		}
		texts := make([]string, len(v))
		for i := range v {
			t, ok := v[i].(string)
			if !ok {
				return nil, errors.New("a text or a list of texts is wanted")
			}
			texts[i] = t
		}
		return texts, nil
	}
	return nil, errors.New("a text or a list of texts is wanted")
}

// check refuses what the type or the schema does not know.
func (d *dimension) check(a Atom) error {
	k := d.kind()
	for i, f := range k.fields {
		if a[3] == urlMark && i > 0 {
			if i == 2 {
				if err := checkURL(a[2]); err != nil {
					return err
				}
			}
			continue
		}
		if err := checkText(a[i], d.Type, f.order, i); err != nil {
			return err
		}
	}
	if k.closes >= 0 && d.values != nil && !d.values[a[k.closes]] {
		return fmt.Errorf("%q is none of %s", a[k.closes], strings.Join(d.Values, ", "))
	}
	if d.Type == LevelMap {
		if !slices.Contains(levels, a[1]) {
			return fmt.Errorf("%s: %q is none of none, read, write, admin", a[0], a[1])
		}
		if legal, ok := d.Levels[a[0]]; d.Levels != nil && !ok {
			return fmt.Errorf("there is no %q", a[0])
		} else if d.Levels != nil && !slices.Contains(legal, a[1]) {
			return fmt.Errorf("%s has no level %q, only %s", a[0], a[1], strings.Join(legal, ", "))
		}
	}
	return nil
}

func checkText(t string, typ Type, o order, i int) error {
	core := typ == RuleSet && i == 1 // the core API group is the empty text
	switch {
	case !utf8.ValidString(t) || strings.ContainsFunc(t, unicode.IsControl):
		return fmt.Errorf("%q has characters that no name has", t)
	case len(t) > maxElement:
		return fmt.Errorf("a text of more than %d bytes", maxElement)
	case t == "" && o != prefix && !core:
		return errors.New("an empty text")
	case strings.Contains(t, star) && !mayStar(t, o):
		return fmt.Errorf("%q: \"*\" stands for everything only by itself, and not here", t)
	case (typ == PrefixSet || typ == ActionSet) && strings.ContainsAny(t, "?$"):
		// ? and ${ are wildcards and variables to the upstreams that take these.
		return fmt.Errorf("%q: ? and $ are not taken", t)
	case o == owned && !isOwned(t):
		return fmt.Errorf("%q is not OWNER/NAME or OWNER/*", t)
	case o == prefix && t != "" && !strings.HasSuffix(t, "/"):
		return fmt.Errorf("%q: a prefix is empty or ends in /", t)
	}
	return nil
}

func mayStar(t string, o order) bool {
	switch o {
	case starred, rows, stem:
		return t == star
	case resource:
		sub, ok := strings.CutPrefix(t, "*/")
		return t == star || ok && sub != "" && !strings.Contains(sub, star)
	case owned:
		return strings.Count(t, star) == 1 && strings.HasSuffix(t, "/"+star)
	case flat, level, named, prefix, number:
	}
	return false
}

// isOwned reports whether a text is an owner and something of his.
func isOwned(t string) bool {
	owner, name, ok := strings.Cut(t, "/")
	return ok && owner != "" && name != "" && !strings.Contains(name, "/")
}

func checkURL(t string) error {
	stem := strings.TrimSuffix(t, star)
	if t == star || strings.HasPrefix(t, "/") && !strings.Contains(stem, star) && len(t) <= maxElement &&
		utf8.ValidString(t) && !strings.ContainsFunc(t, unicode.IsControl) {
		return nil
	}
	return fmt.Errorf("%q is no path, nor a path that ends in *", t)
}
