package postgres

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// object is a table, view or the like, by the names that the catalogue has.
type object struct{ schema, table string }

// maxName is PostgreSQL's own limit, in bytes: NAMEDATALEN less one.
const maxName = 63

// String writes the object as grants name it: SCHEMA.TABLE, each part in double
// quotes, with those inside it doubled, unless it is lower-case letters, digits
// and underscores, the first no digit. There is one spelling for one object.
func (o object) String() string { return spell(o.schema) + "." + spell(o.table) }

func spell(name string) string {
	plain := name != "" && !(name[0] >= '0' && name[0] <= '9')
	for i := range len(name) {
		c := name[i]
		plain = plain && (c == '_' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9')
	}
	if plain {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// parseObject reads what [object.String] writes, and nothing else: a name that
// SQL would fold to another is refused, so that nobody has to guess which is meant.
// The error may be shown to whoever wrote the name.
func parseObject(s string) (object, error) {
	var o object
	var err error
	rest := s
	if o.schema, rest, err = cutName(rest); err != nil {
		return object{}, fmt.Errorf("%q: %w", s, err)
	}
	if !strings.HasPrefix(rest, ".") {
		return object{}, fmt.Errorf("%q is not of the form schema.table", s)
	}
	if o.table, rest, err = cutName(rest[1:]); err != nil {
		return object{}, fmt.Errorf("%q: %w", s, err)
	}
	switch {
	case rest != "":
		return object{}, fmt.Errorf("%q is not of the form schema.table", s)
	case o.String() != s:
		return object{}, fmt.Errorf("%q: write it %s", s, o)
	case strings.HasPrefix(o.schema, "pg_") || o.schema == "information_schema" || o.schema == "stint":
		return object{}, fmt.Errorf("%q: schema %s is never granted", s, o.schema)
	}
	return o, nil
}

// cutName takes one part off the front.
func cutName(s string) (name, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexByte(s, '.')
		if end < 0 {
			end = len(s)
		}
		name, rest = s[:end], s[end:]
		if name == "" || spell(name) != name {
			return "", "", fmt.Errorf("name %q: what is not lower-case letters, digits and underscores is written in double quotes", name)
		}
		return name, rest, checkName(name)
	}
	var b strings.Builder
	for rest = s[1:]; ; rest = rest[1:] {
		if rest == "" {
			return "", "", errors.New("a quote is not closed")
		}
		if rest[0] == '"' {
			if rest = rest[1:]; !strings.HasPrefix(rest, `"`) {
				return b.String(), rest, checkName(b.String())
			}
		}
		b.WriteByte(rest[0])
	}
}

// checkName refuses what is no identifier of PostgreSQL, or none that a grant
// could hold.
func checkName(s string) error {
	switch {
	case s == "" || len(s) > maxName:
		return fmt.Errorf("a name has 1 to %d bytes", maxName)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) || strings.Contains(s, "*"):
		return fmt.Errorf("name %q has characters that are not taken", s)
	}
	return nil
}

// A lease id becomes part of a role's name.
var leaseID = regexp.MustCompile(`^[a-z0-9]{16,40}$`)

// rowName is the name of a row policy.
var rowName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
