package scopes

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Templates stand in the texts of a grant: "{sub}" for the subject, "{args.NAME}"
// for an argument of the tool call. What is filled in can never widen a grant:
// it is no wildcard, and it cannot climb out of the place where it stands.

// hasTemplate reports whether some text in v has a placeholder.
func hasTemplate(v any) bool {
	found := false
	walk(v, func(s string) string {
		found = found || strings.ContainsAny(s, "{}")
		return s
	})
	return found
}

// checkTemplates refuses placeholders that cannot be filled in.
func checkTemplates(v any) (err error) {
	walk(v, func(s string) string {
		if _, e := fill(s, func(name string) (string, error) { return "x", nil }); e != nil && err == nil {
			err = e
		}
		return s
	})
	return err
}

// sample fills every placeholder with a harmless text, for checking at load.
func sample(v any) any {
	return walk(v, func(s string) string {
		out, _ := fill(s, func(string) (string, error) { return "x", nil })
		return out
	})
}

// walk applies f to every text in v and returns a copy.
func walk(v any, f func(string) string) any {
	switch v := v.(type) {
	case string:
		return f(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = walk(v[i], f)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k := range v {
			out[k] = walk(v[k], f)
		}
		return out
	}
	return v
}

// namesSubject reports whether some text in v has {sub}.
func namesSubject(v any) bool {
	found := false
	walk(v, func(s string) string {
		found = found || strings.Contains(s, "{sub}")
		return s
	})
	return found
}

// expand fills in the placeholders of v. Arguments come from a tool call and
// are hostile; so may the subject be. Without a subject {sub} is refused.
func expand(v any, sub string, args map[string]any) (out any, err error) {
	lookup := func(name string) (string, error) {
		if name == "sub" && sub == "" {
			return "", errors.New("{sub} stands for subjects of another issuer")
		}
		if name == "sub" {
			return sub, checkFilling("the subject", sub)
		}
		name = strings.TrimPrefix(name, "args.")
		text, err := argument(args, name)
		if err != nil {
			return "", err
		}
		return text, checkFilling("argument "+name, text)
	}
	out = walk(v, func(s string) string {
		filled, e := fill(s, lookup)
		if e != nil && err == nil {
			err = e
		}
		return filled
	})
	return out, err
}

func argument(args map[string]any, name string) (string, error) {
	switch v := args[name].(type) {
	case string:
		return v, nil
	case float64:
		if n := int64(v); float64(n) == v && n > -1<<53 && n < 1<<53 {
			return strconv.FormatInt(n, 10), nil
		}
	}
	return "", fmt.Errorf("argument %s is missing, or no text or whole number", name)
}

// checkFilling refuses what could mean more than one name.
func checkFilling(what, s string) error {
	switch {
	case s == "" || s == "." || s == ".." || len(s) > 256:
		return fmt.Errorf("%s cannot stand in a grant", what)
	case !utf8.ValidString(s) || strings.ContainsAny(s, "*?${}/\\") || strings.ContainsFunc(s, unicode.IsControl) || strings.ContainsFunc(s, unicode.IsSpace):
		return fmt.Errorf("%s has characters that cannot stand in a grant", what)
	}
	return nil
}

// fill replaces the placeholders in one text.
func fill(s string, lookup func(name string) (string, error)) (string, error) {
	var b strings.Builder
	for {
		before, rest, open := strings.Cut(s, "{")
		if strings.Contains(before, "}") {
			return "", fmt.Errorf("%q: a } without its {", s)
		}
		b.WriteString(before)
		if !open {
			return b.String(), nil
		}
		name, after, closed := strings.Cut(rest, "}")
		arg, isArg := strings.CutPrefix(name, "args.")
		if !closed || name != "sub" && (!isArg || arg == "") {
			return "", fmt.Errorf("%q: there are {sub} and {args.NAME}", "{"+rest)
		}
		text, err := lookup(name)
		if err != nil {
			return "", err
		}
		b.WriteString(text)
		s = after
	}
}
