package postgres

import (
	"strings"
	"testing"
)

func TestObjects(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   string
		want object
		bad  string
	}{
		"plain names":                              {`app.orders`, object{"app", "orders"}, ""},
		"names with digits and underscores":        {`_a1.b_2`, object{"_a1", "b_2"}, ""},
		"names that SQL has a meaning for":         {`public.user`, object{"public", "user"}, ""},
		"names that need quotes":                   {`"App"."Or.ders"`, object{"App", "Or.ders"}, ""},
		"a quote in a name":                        {`app."a""b"`, object{"app", `a"b`}, ""},
		"a dot and a quote":                        {`app."a"".""b"`, object{"app", `a"."b`}, ""},
		"letters beyond ASCII":                     {`app."größe"`, object{"app", "größe"}, ""},
		"a name of 63 bytes":                       {`a.` + strings.Repeat("b", 63), object{"a", strings.Repeat("b", 63)}, ""},
		"a name of 64 bytes":                       {`a.` + strings.Repeat("b", 64), object{}, "63 bytes"},
		"upper case without quotes":                {`app.Orders`, object{}, "double quotes"},
		"quotes where none are needed":             {`"app".orders`, object{}, "write it app.orders"},
		"one part":                                 {`orders`, object{}, "schema.table"},
		"three parts":                              {`a.b.c`, object{}, "schema.table"},
		"three parts, quoted":                      {`a."b"."c"`, object{}, "schema.table"},
		"nothing":                                  {``, object{}, "name"},
		"an empty name":                            {`a.`, object{}, "name"},
		"an empty name in quotes":                  {`a.""`, object{}, "1 to 63"},
		"a quote that is not closed":               {`a."b`, object{}, "not closed"},
		"something behind a quote":                 {`a."b"c`, object{}, "schema.table"},
		"a quote in the middle":                    {`a.b"c"`, object{}, "double quotes"},
		"a star":                                   {`a."*"`, object{}, "characters"},
		"a newline":                                {"a.\"b\nc\"", object{}, "characters"},
		"bytes that are no text":                   {"a.\"\xff\"", object{}, "characters"},
		"the catalogue":                            {`pg_catalog.pg_authid`, object{}, "never granted"},
		"the information schema":                   {`information_schema.tables`, object{}, "never granted"},
		"our own schema":                           {`stint.lease`, object{}, "never granted"},
		"a schema that only looks like our own":    {`stints.lease`, object{"stints", "lease"}, ""},
		"a digit in front":                         {`1a.b`, object{}, "double quotes"},
		"a digit in front, in quotes":              {`"1a".b`, object{"1a", "b"}, ""},
		"an apostrophe, a semicolon and a comment": {`app."'; --"`, object{"app", "'; --"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseObject(c.in)
			if c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)) {
				t.Errorf("%v, %v, wanted %q", got, err, c.bad)
			}
			if c.bad == "" && (err != nil || got != c.want || got.String() != c.in) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

func FuzzObjects(f *testing.F) {
	for _, s := range []string{`app.orders`, `"A"."B"`, `a."b""c"`, `a.b.c`, `"`, `".".""`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseObject(s)
		if err != nil {
			return
		}
		// One object, one spelling, and the other way round.
		if again, err := parseObject(o.String()); err != nil || again != o || o.String() != s {
			t.Errorf("%q is %v, which is %q, which is %v, %v", s, o, o.String(), again, err)
		}
	})
}
