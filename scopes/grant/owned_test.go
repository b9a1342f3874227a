package grant_test

import (
	"testing"

	"github.com/stint-dev/stint/scopes/grant"
)

func TestWhatSomebodyOwnsHasOneForm(t *testing.T) {
	s := grant.MustSchema("code", 1, grant.Dimension{Name: "repositories", Type: grant.OwnedSet})
	for text, ok := range map[string]bool{
		"acme/web": true, "acme/*": true, "acme/web.js": true, "1/2": true,
		"acme": false, "acme/": false, "/web": false, "acme/web/x": false, "*/web": false, "acme/w*": false, "acme/**": false,
		"acme*/*": false, "*/*": false, "": false, "acme/\x00": false, "a/b/*": false,
	} {
		if _, err := s.ParseValue(map[string]any{"repositories": []any{text}}); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
	g, err := s.ParseValue(map[string]any{"repositories": []any{"acme/web", "acme/*", "other/x"}})
	if err != nil || g.String() != `{"repositories":["acme/*","other/x"]}` {
		t.Errorf("%s, %v", g, err)
	}
}
