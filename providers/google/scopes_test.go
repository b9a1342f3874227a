package google_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/providers/google"
	"github.com/stint-dev/stint/scopes/grant"
)

// harmless are methods that are not called by GET and change nothing that is Google's
// user's: they ask with a body, or have Google send word of what may be read anyway.
var harmless = []string{
	".watch", ".stop", ".query", ".search", ".batchGet", ".inspect", ".testIamPermissions", ".getIamPolicy",
	"logging.entries.list", "logging.entries.tail", "drive.files.download", ".watches.create", ".watches.delete", ".watches.renew",
	"workspaceevents.subscriptions.create", "workspaceevents.subscriptions.delete", "workspaceevents.subscriptions.patch", "workspaceevents.subscriptions.reactivate",
	".labels", ".query_exemplars", ".query_range", ".series",
	// A presentation is written to with one of its own scopes; these are for the charts
	// in it. The description does not tell them apart.
	"slides.presentations.batchUpdate",
}

// Whatever the table calls a read can, by Google's own description, change nothing.
func TestReadsOnlyRead(t *testing.T) {
	t.Parallel()
	known := methods(t)
	d := google.Describe()
	var scopes grant.Dimension
	for _, one := range d.Schema.Dimensions() {
		if one.Name == "scopes" {
			scopes = one
		}
	}
	if len(scopes.Reads) < 40 {
		t.Fatalf("%d reads", len(scopes.Reads))
	}
	for _, name := range scopes.Reads {
		of := known[full(name)]
		if len(of) == 0 && name != "openid" {
			t.Errorf("no method takes %s", name)
		}
		for method, how := range of {
			if how != "GET" && !slices.ContainsFunc(harmless, func(end string) bool { return strings.HasSuffix(method, end) }) {
				t.Errorf("%s is enough for %s %s", name, how, method)
			}
		}
	}
	for _, name := range []string{"youtube.readonly", "analytics.readonly", "userinfo.email", "contacts.other.readonly", "cloud-platform.read-only", "drive.apps.readonly", "fusiontables.readonly"} {
		if slices.Contains(scopes.Reads, name) {
			t.Errorf("%s is called a read, which changes things whatever its name says", name)
		}
	}
}

// Whatever a scope is said to imply can, by Google's own description, be done with it.
func TestImpliedScopesAreImplied(t *testing.T) {
	t.Parallel()
	known := methods(t)
	edges := 0
	for _, d := range google.Describe().Schema.Dimensions() {
		for above, below := range d.Below {
			for _, b := range below {
				edges++
				if len(known[full(b)]) == 0 {
					t.Errorf("no method takes %s", b)
				}
				for method := range known[full(b)] {
					if known[full(above)][method] == "" {
						t.Errorf("%s is enough for %s, %s is not", b, method, above)
					}
				}
			}
		}
	}
	if edges < 25 {
		t.Errorf("%d edges", edges)
	}
}

// All that Google has can be written in a grant, but for what is older than its form.
func TestEveryScopeHasAName(t *testing.T) {
	t.Parallel()
	known := methods(t)
	if len(known) < 400 {
		t.Fatalf("%d scopes", len(known))
	}
	b := newBed(t)
	b.Account = account
	p := b.open(t, b.settings("service_account"))
	for scope := range known {
		if strings.HasPrefix(scope, "https://www.google.com/") || scope == "email" || scope == "profile" {
			continue
		}
		name := strings.TrimPrefix(scope, prefix)
		if scope == "https://mail.google.com/" {
			name = "mail.google.com"
		}
		g := parse(t, p, `{"scopes":["`+name+`"]}`)
		sent, err := p.Render(g)
		if err != nil || string(sent) != `{"scope":["`+scope+`"]}` {
			t.Errorf("%s is rendered as %s (%v)", scope, sent, err)
		}
	}
}
