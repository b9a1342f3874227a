package google_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/google"
	"github.com/stint-dev/stint/scopes/grant"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for name, c := range map[string]struct {
		flow   string
		change func(*google.Config)
		wants  string
	}{
		"users":                              {"user", func(*google.Config) {}, ""},
		"a service account":                  {"service_account", func(*google.Config) {}, ""},
		"storage":                            {"storage", func(*google.Config) {}, ""},
		"delegation":                         {"delegation", func(*google.Config) {}, ""},
		"another flow":                       {"user", func(c *google.Config) { c.Flow = "key" }, "none of user"},
		"users without a secret":             {"user", func(c *google.Config) { c.ClientSecret = "" }, "client_secret"},
		"users who consent to nothing":       {"user", func(c *google.Config) { c.Scopes = nil }, "scopes"},
		"a scope by its address":             {"user", func(c *google.Config) { c.Scopes = []string{prefix + "drive"} }, "without"},
		"users with a service account":       {"user", func(c *google.Config) { c.ServiceAccount = account }, "not of the flow user"},
		"a service account with a secret":    {"service_account", func(c *google.Config) { c.ClientSecret = "env:X" }, "flow user alone"},
		"a pool that is none":                {"storage", func(c *google.Config) { c.Provider = "stint" }, "provider: write"},
		"a pool by the project's name":       {"storage", func(c *google.Config) { c.Provider = strings.Replace(pool, "117", "acme", 1) }, "provider: write"},
		"a pool with an empty name":          {"storage", func(c *google.Config) { c.Provider = strings.Replace(pool, "stint/", "/", 1) }, "provider: write"},
		"a service account that climbs":      {"storage", func(c *google.Config) { c.ServiceAccount = "x@y/../z" }, "e-mail"},
		"a delegate that is none":            {"storage", func(c *google.Config) { c.Delegates = []string{"x"} }, "e-mail"},
		"a boundary that Google would tell":  {"storage", func(c *google.Config) { c.Attest = true }, "attest"},
		"a service account's that outlives":  {"storage", func(c *google.Config) { c.Outlives = true }, "outlives"},
		"users of a service account":         {"service_account", func(c *google.Config) { c.Users = map[string]string{"a#b": "a@b"} }, "delegation alone"},
		"delegation for nobody":              {"delegation", func(c *google.Config) { c.Users = nil }, "users"},
		"a subject without an issuer":        {"delegation", func(c *google.Config) { c.Users["alice"] = "a@b" }, "ISSUER#SUB"},
		"an address in another spelling":     {"delegation", func(c *google.Config) { c.Users["x#y"] = "Alice@acme.example" }, "lower case"},
		"delegation for an administrator":    {"delegation", func(c *google.Config) { c.Users["x#y"] = "root@acme.example" }, "no token is made for"},
		"a life of a day":                    {"storage", func(c *google.Config) { c.MaxLifetime.Duration = 24 * time.Hour }, "max_lifetime"},
		"an administrator in upper case":     {"delegation", func(c *google.Config) { c.Never = []string{"Root@acme.example"} }, "lower case"},
		"an endpoint that is no address":     {"storage", func(c *google.Config) { c.Endpoints.STS = "://" }, "no URL"},
		"an account with a blank in its end": {"storage", func(c *google.Config) { c.ServiceAccount = "a@b c" }, "e-mail"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := b.settings(c.flow)
			c.change(&cfg)
			_, err := google.Open(t.Context(), "work", func(v any) error { *v.(*google.Config) = cfg; return nil }, b.deps)
			if (err == nil) != (c.wants == "") || err != nil && !strings.Contains(err.Error(), c.wants) {
				t.Errorf("%v, wanted %q", err, c.wants)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.link(t, "drive", "gmail.send")
	obj := func(kv ...any) []map[string]any {
		m := make(map[string]any)
		for i := 0; i < len(kv); i += 2 {
			m[kv[i].(string)] = kv[i+1]
		}
		return []map[string]any{m}
	}
	list := func(s ...any) []any { return s }
	for name, c := range map[string]struct {
		flow      string
		resources []string
		details   []map[string]any
		want      string // the request, or a code
	}{
		"a scope":                            {"user", []string{"google://work/drive.readonly"}, nil, `{"scopes":["drive.readonly"]}`},
		"two scopes":                         {"user", []string{"google://work/drive.readonly", "google://work/tasks"}, nil, `{"scopes":["drive.readonly","tasks"]}`},
		"a scope by its address":             {"user", []string{"google://work/" + prefix + "drive"}, nil, "bad_target"},
		"a scope of another":                 {"user", []string{"google://other/drive"}, nil, "bad_target"},
		"a scope in another spelling":        {"user", []string{"google://work/dr%69ve"}, nil, "bad_target"},
		"details":                            {"user", nil, obj("scopes", list("gmail.send"), "provider", "work"), `{"scopes":["gmail.send"]}`},
		"details of nothing":                 {"user", nil, obj("scopes", list()), "bad_details"},
		"details of another provider":        {"user", nil, obj("scopes", list("tasks"), "provider", "x"), "bad_details"},
		"details with what is no scope":      {"user", nil, obj("scopes", list("https://x")), "bad_details"},
		"details within a resource":          {"user", []string{"google://work/drive"}, obj("scopes", list("drive.readonly")), `{"scopes":["drive.readonly"]}`},
		"details beyond a resource":          {"user", []string{"google://work/drive.readonly"}, obj("scopes", list("drive")), "bad_details"},
		"details with a storage":             {"user", nil, obj("scopes", list("drive"), "storage", "*"), "bad_details"},
		"the subject's own account":          {"delegation", nil, obj("scopes", list("drive"), "account", "*"), `{"account":"alice@acme.example","scopes":["drive"]}`},
		"another's account":                  {"delegation", nil, obj("scopes", list("drive"), "account", "bob@acme.example"), "bad_details"},
		"a bucket":                           {"storage", []string{"gs://work/sales/"}, nil, `{"storage":[{"bucket":"sales","prefix":"","verbs":["delete","get","list","put"]}]}`},
		"a bucket without a slash":           {"storage", []string{"gs://work/sales"}, nil, `{"storage":[{"bucket":"sales","prefix":"","verbs":["delete","get","list","put"]}]}`},
		"a prefix":                           {"storage", []string{"gs://work/sales/2026/"}, nil, `{"storage":[{"bucket":"sales","prefix":"2026/","verbs":["delete","get","list","put"]}]}`},
		"a prefix as Google writes it":       {"storage", []string{"gs://sales/2026/"}, nil, `{"storage":[{"bucket":"sales","prefix":"2026/","verbs":["delete","get","list","put"]}]}`},
		"an object as Google writes it":      {"storage", []string{"gs://sales/2026/x"}, nil, "bad_target"},
		"a bucket of nobody's":               {"storage", []string{"gs://Sales/"}, nil, "bad_target"},
		"an object":                          {"storage", []string{"gs://work/sales/2026/x"}, nil, "bad_target"},
		"a prefix with a wildcard":           {"storage", []string{"gs://work/sales/*/"}, nil, "bad_target"},
		"a prefix that is spelled otherwise": {"storage", []string{"gs://work/sales/%2e/"}, nil, "bad_target"},
		"a prefix that ends a condition":     {"storage", []string{"gs://work/sales/x') || true || ('/"}, nil, "bad_target"},
		"a place by the wrong name":          {"storage", []string{"google://work/drive"}, nil, "bad_target"},
	} {
		t.Run(name, func(t *testing.T) {
			p := b.open(t, b.settings(c.flow))
			everything := p.Describe().Schema.Everything()
			out, err := p.Resolve(t.Context(), broker.ResolveRequest{Subject: alice, Resources: c.resources, Details: c.details, Grants: []grant.Grant{everything, everything}})
			if err != nil {
				if string(broker.CodeOf(err)) != c.want {
					t.Errorf("%v, wanted %s", err, c.want)
				}
				return
			}
			if out.Request.String() != c.want || len(out.Parts) != len(c.resources) || (out.Wanted != nil) != (c.details != nil) {
				t.Errorf("%+v, wanted %s", out, c.want)
			}
		})
	}
}

// What the owner of a linked account has consented to is part of the meet; what he has
// not linked, he is asked to.
func TestEntitlement(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p := b.open(t, b.settings("user"))
	ask := func(subject string, live bool) (*broker.Resolved, error) {
		return p.Resolve(t.Context(), broker.ResolveRequest{Subject: subject, Live: live})
	}
	if _, err := ask(alice, true); broker.CodeOf(err) != broker.NeedsLink {
		t.Errorf("nothing is linked: %v", err)
	}
	if out, err := ask(alice, false); err != nil || !strings.Contains(out.Basis, "assumed") {
		t.Errorf("%+v, %v", out, err)
	}
	b.link(t, "drive.readonly", "tasks")
	if out, err := ask(alice, true); err != nil || out.Entitlement.String() != `{"scopes":["drive.readonly","tasks"]}` {
		t.Errorf("%+v, %v", out, err)
	}
	asked := func(scope string) error {
		_, err := p.Resolve(t.Context(), broker.ResolveRequest{Subject: alice, Live: true, Grants: []grant.Grant{
			parse(t, p, `{"scopes":["`+scope+`"]}`), p.Describe().Schema.Everything(),
		}})
		return err
	}
	if err := asked("calendar"); broker.CodeOf(err) != broker.NeedsLink {
		t.Errorf("a scope that linking would ask for, and did not get: %v", err)
	}
	if err := asked("youtube"); err != nil {
		t.Errorf("a scope that linking does not ask for: %v", err)
	}
	if err := asked("tasks"); err != nil {
		t.Errorf("a scope that was consented to: %v", err)
	}
	if _, err := ask("https://idp.example#bob", true); broker.CodeOf(err) != broker.NeedsLink {
		t.Errorf("another's link: %v", err)
	}
	d := b.open(t, b.settings("delegation"))
	mapped := parse(t, d, `{"account":"*","scopes":["drive"]}`)
	other := parse(t, d, `{"account":"bob@acme.example","scopes":["drive"]}`)
	out, err := d.Resolve(t.Context(), broker.ResolveRequest{Subject: alice, Grants: []grant.Grant{mapped, other}})
	if err != nil || out.Grants[0].String() != `{"account":"alice@acme.example","scopes":["drive"]}` || !out.Grants[1].IsNothing() {
		t.Errorf("%+v, %v", out, err)
	}
	if ok, _ := grant.Leq(other, out.Entitlement); ok {
		t.Error("alice may act for bob")
	}
	if _, err := d.Resolve(t.Context(), broker.ResolveRequest{Subject: "https://other.example#alice"}); broker.CodeOf(err) != broker.BadTarget {
		t.Errorf("another issuer's alice: %v", err)
	}
}

// An account is linked by a code with PKCE, and what is kept of it is the refresh token
// alone. Unlinking ends the grant; relinking the same account must not.
func TestLinking(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p := b.open(t, b.settings("user"))
	link := p.Describe().Link
	r := broker.LinkRequest{Subject: alice, Redirect: "https://stint.example/connect/work/callback", State: "state-1", Verifier: strings.Repeat("v", 43)}
	code := func(r broker.LinkRequest) string { return redirected(t, link, r) }
	b.Consents(doubles.GoogleGrant{Account: "1001", Email: "alice@gmail.example", Scopes: []string{"openid", full("userinfo.email"), full("drive")}})
	a, err := link.Finish(t.Context(), r, code(r))
	if err != nil || a.ID != "1001" || a.Name != "alice@gmail.example" || !slices.Equal(a.Scopes, []string{"openid", "userinfo.email", "drive"}) {
		t.Fatalf("%+v, %v", a, err)
	}
	kept := func() *upstream.Parent {
		parent, err := b.deps.Parents.Get(t.Context(), upstream.ParentKey{Provider: "work", Subject: alice})
		if err != nil {
			t.Fatal(err)
		}
		return parent
	}
	first := kept()
	if !first.Access.Empty() || first.Refresh.Empty() {
		t.Error("the access token is kept, which is good for everything")
	}
	if got, err := link.Linked(t.Context(), alice); err != nil || got.ID != "1001" {
		t.Errorf("%+v, %v", got, err)
	}
	stolen := r
	stolen.Verifier = strings.Repeat("w", 43)
	if _, err := link.Finish(t.Context(), stolen, code(r)); broker.CodeOf(err) != broker.BadToken {
		t.Errorf("a code with another's verifier: %v", err)
	}
	if _, err := link.Finish(t.Context(), r, "4/unheard-of"); broker.CodeOf(err) != broker.BadToken || strings.Contains(err.Error(), "upstream text") {
		t.Errorf("a code that is none: %v", err)
	}
	if _, err := link.Finish(t.Context(), r, code(r)); err != nil {
		t.Fatal(err)
	}
	if b.Granted(first.Refresh.Reveal()).Dead {
		t.Error("relinking an account ended its own grant")
	}
	second := kept()
	b.Consents(doubles.GoogleGrant{Account: "2002", Scopes: []string{full("drive")}})
	if _, err := link.Finish(t.Context(), r, code(r)); err != nil {
		t.Fatal(err)
	}
	if !b.Granted(second.Refresh.Reveal()).Dead {
		t.Error("the account that was linked before is still granted")
	}
	last := kept()
	if o, err := link.Unlink(t.Context(), alice); err != nil || o.State != broker.Revoked || !b.Granted(last.Refresh.Reveal()).Dead {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := link.Unlink(t.Context(), alice); err == nil {
		t.Error("what is not linked is unlinked")
	}
}

// redirected is a browser that is sent to the double, and back at once with a code.
func redirected(t *testing.T, link *broker.Link, r broker.LinkRequest) string {
	t.Helper()
	where, err := link.Begin(t.Context(), r)
	if err != nil || !strings.Contains(where, "code_challenge_method=S256") || strings.Contains(where, r.Verifier) {
		t.Fatalf("%s, %v", where, err)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Get(where)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	back, err := resp.Location()
	if err != nil || back.Query().Get("state") != r.State {
		t.Fatalf("%s, %v", back, err)
	}
	return back.Query().Get("code")
}

// What is sent to Cloud Storage is this, letter by letter.
func TestABoundaryAsItIsSent(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p := b.open(t, b.settings("storage"))
	sent, err := p.Render(stored(t, p, at("sales", "a/", "get", "list"), at("sales", "", "put")))
	want := `{"accessBoundary":{"accessBoundaryRules":[` +
		`{"availabilityCondition":{"expression":"resource.name.startsWith('projects/_/buckets/sales/objects/')"},` +
		`"availablePermissions":["inRole:roles/storage.objectCreator"],"availableResource":"//storage.googleapis.com/projects/_/buckets/sales"},` +
		`{"availabilityCondition":{"expression":"resource.name.startsWith('projects/_/buckets/sales/objects/a/') || ` +
		`api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith('a/')"},` +
		`"availablePermissions":["inRole:roles/storage.objectViewer"],"availableResource":"//storage.googleapis.com/projects/_/buckets/sales"}]}}`
	if err != nil || string(sent) != want {
		t.Errorf("%s, %v", sent, err)
	}
	for name, text := range map[string]string{
		"a condition that is always true": strings.Replace(want, "resource.name.startsWith('projects/_/buckets/sales/objects/')", "true", 1),
		"a condition with more to it":     strings.Replace(want, "startsWith('a/')\"", "startsWith('a/') || true\"", 1),
		"a condition of another bucket":   strings.Replace(want, "buckets/sales/objects/a/", "buckets/other/objects/a/", 1),
		"a list beyond the objects":       strings.Replace(want, "startsWith('a/')\"", "startsWith('')\"", 1),
		"a role that is not in the table": strings.Replace(want, "objectViewer", "objectAdmin", 1),
		"a role by no prefix":             strings.Replace(want, "inRole:roles/storage.objectViewer", "roles/storage.objectViewer", 1),
		"no condition":                    strings.Replace(want, `"availabilityCondition":{"expression":"resource.name.startsWith('projects/_/buckets/sales/objects/')"},`, "", 1),
		"no rules":                        `{"accessBoundary":{"accessBoundaryRules":[]}}`,
		"no boundary":                     `{"accessBoundary":null}`,
	} {
		if text == want {
			t.Fatalf("%s: nothing has changed", name)
		}
		if g, err := p.Parse([]byte(text)); err == nil {
			t.Errorf("%s is read as %s", name, g)
		}
	}
}

// What would be sent and not be seen is not read.
func TestScopesAreReadAsTheyAreSent(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p := b.open(t, b.settings("user"))
	for name, list := range map[string]string{
		"a scope that another implies": full("drive") + " " + full("drive.readonly"),
		"a scope twice":                full("drive") + " " + full("drive"),
		"no scope":                     "",
		"a blank more":                 full("drive") + "  " + full("tasks"),
		"a scope by its name":          "drive",
		"a scope of nobody's":          "https://example.com/auth/drive",
	} {
		if g, err := p.Parse([]byte(`{"scope":"` + list + `"}`)); err == nil {
			t.Errorf("%s is read as %s", name, g)
		}
	}
}

// Of what the settings or a mapping name and Google has not, the reason is said.
func TestCheckOfMappings(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	s, u := b.open(t, b.settings("storage")), b.open(t, b.settings("user"))
	if err := u.Describe().Check(parse(t, u, `{"scopes":["https://www.googleapis.com/auth/drive"]}`)); err == nil {
		t.Error("a scope by its address is taken")
	}
	if err := s.Describe().Check(stored(t, s, at("Sales", "", "get"))); err == nil {
		t.Error("a bucket that cannot be is taken")
	}
	if u.Describe().Claims != nil || !s.Describe().Claims("gs://sales/2026/") || s.Describe().Claims("gs://sales/2026/x") || s.Describe().Claims("s3://sales/") {
		t.Error("what is claimed is not what can be read")
	}
	for _, p := range []broker.Provider{s, u} {
		if err := p.Describe().Check(p.Describe().Schema.Everything()); err != nil {
			t.Error(err)
		}
	}
}
