package grant_test

import (
	"testing"

	"github.com/stint-dev/stint/scopes/grant"
)

var actions = grant.MustSchema("clouds", 1,
	grant.Dimension{Name: "actions", Type: grant.ActionSet, Optional: true, Reads: []string{"db:Get"}},
	grant.Dimension{Name: "objects", Type: grant.PrefixSet, Optional: true, Reads: []string{"get"}},
)

func TestActionsAreAtExactNamesOrBelowThem(t *testing.T) {
	for name, c := range map[string]struct {
		resource string
		ok       bool
	}{
		"an exact name":                {"arn:db:t/x", true},
		"all below a slash":            {"arn:db:t/", true},
		"all below a colon":            {"arn:db:", true},
		"everything":                   {"*", true},
		"a star at the end":            {"arn:db:t/*", false},
		"a star in the middle":         {"arn:*:t/x", false},
		"a question mark":              {"arn:db:t/?", false},
		"a variable":                   {"arn:db:${aws:username}", false},
		"nothing":                      {"", false},
		"a character that no name has": {"arn:db:t/\x00", false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := actions.ParseValue(map[string]any{"objects": []any{}, "actions": []any{map[string]any{"actions": []any{"db:Get"}, "resource": c.resource}}})
			if (err == nil) != c.ok {
				t.Errorf("%q: %v", c.resource, err)
			}
		})
	}
	for _, action := range []any{"db:*", "*", "db:Get?", "${x}", ""} {
		if _, err := actions.ParseValue(map[string]any{"objects": []any{}, "actions": []any{map[string]any{"actions": action, "resource": "arn:db:t/x"}}}); err == nil {
			t.Errorf("the action %q is taken", action)
		}
	}
}

// Where everything is optional, what has nothing in any dimension is nothing: it must
// never reach an upstream.
func TestNothingInEveryOptionalDimensionIsNothing(t *testing.T) {
	one, err1 := actions.ParseValue(map[string]any{"objects": []any{}, "actions": []any{map[string]any{"actions": "db:Get", "resource": "arn:db:t/x"}}})
	other, err2 := actions.ParseValue(map[string]any{"actions": []any{}, "objects": []any{map[string]any{"verbs": "get", "bucket": "b", "prefix": ""}}})
	none, err3 := actions.ParseValue(map[string]any{"actions": []any{}, "objects": []any{}})
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	if one.IsNothing() || other.IsNothing() || !one.ReadOnly() || !other.ReadOnly() {
		t.Errorf("%s and %s are not what they are", one, other)
	}
	if m := grant.Meet(one, other); !none.IsNothing() || !m.IsNothing() || m.String() != `"nothing"` {
		t.Errorf("what they have in common is %s", m)
	}
}
