package postgres_test

import (
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/providers/postgres"
	"github.com/stint-dev/stint/scopes/grant"
)

// offline is a provider whose database does not exist.
func offline(t testing.TB) broker.Provider {
	t.Helper()
	p, err := postgres.Open(t.Context(), "main", func(v any) error {
		*v.(*postgres.Config) = postgres.Config{
			Host: "127.0.0.1", Port: testbed.FreePort(t), Database: "x", Password: "secret:broker", Entitlement: "subject_roles",
			Rows: map[string]postgres.RowPolicy{"region": {Shows: []string{"own"}}, "own": {}},
		}
		return nil
	}, deps)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestResolve(t *testing.T) {
	t.Parallel()
	p := offline(t)
	detail := func(entries ...string) map[string]any {
		list := make([]any, len(entries))
		for i, e := range entries {
			table, privilege, _ := strings.Cut(e, " ")
			list[i] = map[string]any{"object": table, "privileges": privilege, "columns": "*", "rows": "*"}
		}
		return map[string]any{"privileges": list}
	}
	with := func(d map[string]any, key string, value any) map[string]any { d[key] = value; return d }
	for name, c := range map[string]struct {
		resources []string
		details   []map[string]any
		code      broker.Code
		told      string
		request   string // what the request is to be, as entries
		parts     int
	}{
		"nothing named":                      {nil, nil, "", "", "*", 0},
		"a table":                            {[]string{"postgres://main/app.orders"}, nil, "", "", on("app.orders", "SELECT,INSERT,UPDATE,DELETE", "*", "*"), 1},
		"a table with a quoted name":         {[]string{"postgres://main/app.%22Or%2Fders%22"}, nil, "", "", on(`app."Or/ders"`, "SELECT,INSERT,UPDATE,DELETE", "*", "*"), 1},
		"two tables":                         {[]string{"postgres://main/app.a", "postgres://main/app.b"}, nil, "", "", on("app.a", "SELECT,INSERT,UPDATE,DELETE", "*", "*") + "," + on("app.b", "SELECT,INSERT,UPDATE,DELETE", "*", "*"), 2},
		"another provider":                   {[]string{"postgres://other/app.orders"}, nil, broker.BadTarget, "name a table", "", 0},
		"another scheme":                     {[]string{"mysql://main/app.orders"}, nil, broker.BadTarget, "name a table", "", 0},
		"no table":                           {[]string{"postgres://main"}, nil, broker.BadTarget, "name a table", "", 0},
		"a table and a query":                {[]string{"postgres://main/app.orders?x=1"}, nil, broker.BadTarget, "name a table", "", 0},
		"a port":                             {[]string{"postgres://main:5432/app.orders"}, nil, broker.BadTarget, "name a table", "", 0},
		"a table without its schema":         {[]string{"postgres://main/orders"}, nil, broker.BadTarget, "schema.table", "", 0},
		"a path below a table":               {[]string{"postgres://main/app.orders/x"}, nil, broker.BadTarget, "double quotes", "", 0},
		"a catalogue":                        {[]string{"postgres://main/pg_catalog.pg_authid"}, nil, broker.BadTarget, "never granted", "", 0},
		"details":                            {nil, []map[string]any{detail("app.orders SELECT")}, "", "", on("app.orders", "SELECT", "*", "*"), 0},
		"details with the provider":          {nil, []map[string]any{with(detail("app.orders SELECT"), "provider", "main")}, "", "", on("app.orders", "SELECT", "*", "*"), 0},
		"details for another provider":       {nil, []map[string]any{with(detail("app.orders SELECT"), "provider", "other")}, broker.BadDetails, "provider is not main", "", 0},
		"details with a provider of numbers": {nil, []map[string]any{with(detail("app.orders SELECT"), "provider", 1.0)}, broker.BadDetails, "provider is not main", "", 0},
		"details with something unknown":     {nil, []map[string]any{with(detail("app.orders SELECT"), "tables", "x")}, broker.BadDetails, `there is no "tables"`, "", 0},
		"details without privileges":         {nil, []map[string]any{{}}, broker.BadDetails, "missing", "", 0},
		"details that ask for nothing":       {nil, []map[string]any{{"privileges": []any{}}}, broker.BadDetails, "nothing is asked for", "", 0},
		"details with an unknown privilege":  {nil, []map[string]any{detail("app.orders TRUNCATE")}, broker.BadDetails, "none of SELECT", "", 0},
		"details with a bad name":            {nil, []map[string]any{detail("Orders SELECT")}, broker.BadDetails, "double quotes", "", 0},
		"two details are asked for together": {nil, []map[string]any{detail("app.a SELECT"), detail("app.b DELETE")}, "", "", on("app.a", "SELECT", "*", "*") + "," + on("app.b", "DELETE", "*", "*"), 0},
		"a table, and details within it":     {[]string{"postgres://main/app.a"}, []map[string]any{detail("app.a SELECT")}, "", "", on("app.a", "SELECT", "*", "*"), 1},
		"a table, and details beyond it":     {[]string{"postgres://main/app.a"}, []map[string]any{detail("app.a SELECT", "app.b SELECT")}, broker.BadDetails, "no resource names", "", 0},
		"two tables, and details of one":     {[]string{"postgres://main/app.a", "postgres://main/app.b"}, []map[string]any{detail("app.a SELECT")}, broker.BadDetails, "nothing of resource 2", "", 0},
		"details with an unknown row policy": {nil, []map[string]any{{"privileges": []any{map[string]any{"object": "app.a", "privileges": "SELECT", "columns": "*", "rows": "x"}}}}, broker.BadDetails, "no row policy", "", 0},
		"details that delete a column":       {nil, []map[string]any{{"privileges": []any{map[string]any{"object": "app.a", "privileges": "DELETE", "columns": "x", "rows": "*"}}}}, broker.BadDetails, "DELETE goes with all columns", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			mapped, top := parse(t, p, on("app.x", "SELECT", "*", "*")), p.Describe().Schema.Everything()
			out, err := p.Resolve(t.Context(), broker.ResolveRequest{Subject: alice, Resources: c.resources, Details: c.details, Grants: []grant.Grant{mapped, top}})
			if c.code != "" {
				if e := broker.AsError(err); err == nil || e.Code != c.code || !strings.Contains(e.Public, c.told) {
					t.Fatalf("%v, %v", out, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := top
			if c.request != "*" {
				want = parse(t, p, c.request)
			}
			if !out.Request.Equal(want) || len(out.Parts) != c.parts || (out.Wanted != nil) != (c.details != nil) || out.Basis != "assumed" {
				t.Errorf("request %s, %d parts, wanted %v, basis %s", out.Request, len(out.Parts), out.Wanted, out.Basis)
			}
			if out.Wanted != nil && !out.Wanted.Equal(want) {
				t.Errorf("wanted %s", out.Wanted)
			}
		})
	}
	t.Run("a mapping with a bad name is our own failure", func(t *testing.T) {
		_, err := p.Resolve(t.Context(), broker.ResolveRequest{Grants: []grant.Grant{parse(t, p, on("Orders", "SELECT", "*", "*"))}})
		if broker.CodeOf(err) != broker.Internal || !strings.Contains(err.Error(), "double quotes") {
			t.Error(err)
		}
	})
	t.Run("a database that cannot be asked", func(t *testing.T) {
		_, err := p.Resolve(t.Context(), broker.ResolveRequest{Subject: alice, Live: true, Grants: []grant.Grant{parse(t, p, customers)}})
		if broker.CodeOf(err) != broker.Unavailable {
			t.Error(err)
		}
	})
	t.Run("row policies are ordered as declared", func(t *testing.T) {
		own, region := parse(t, p, on("app.x", "SELECT", "*", "own")), parse(t, p, on("app.x", "SELECT", "*", "region"))
		if ok, _ := grant.Leq(own, region); !ok || !grant.Meet(own, region).Equal(own) {
			t.Error("own is not below region")
		}
	})
}

func testEntitlement(t *testing.T, pg *testbed.PostgresServer) {
	w := newShop(t, pg, func(c *postgres.Config) { c.Entitlement = "subject_roles" })
	w.sql(t, `
		CREATE ROLE team; CREATE ROLE ann IN ROLE team; CREATE ROLE boss SUPERUSER; CREATE ROLE past VALID UNTIL '2020-01-01'; CREATE ROLE owner; CREATE ROLE blind;
		GRANT USAGE ON SCHEMA app TO team, past, owner; GRANT SELECT ON app.customers TO team, past, blind; GRANT UPDATE (phone) ON app.customers TO ann;
		GRANT SELECT ON app.orders TO team; GRANT ALL ON app.hidden TO ann; ALTER TABLE app.orders OWNER TO owner;
		INSERT INTO stint.subject_role VALUES ('`+alice+`', 'ann'), ('past', 'past'), ('boss', 'boss'), ('gone', 'no such role'), ('owner', 'owner'), ('blind', 'blind')`)
	own := func(t *testing.T, subject string, grants ...grant.Grant) (grant.Grant, string) {
		t.Helper()
		r, err := w.provider.Resolve(t.Context(), broker.ResolveRequest{Subject: subject, Grants: grants, Live: true})
		if err != nil {
			t.Fatal(err)
		}
		return r.Entitlement, r.Basis
	}
	both := w.grant(t, on("app.customers", "SELECT,UPDATE,DELETE", "*", "*"), on("app.orders", "SELECT", "*", "*"))
	for name, c := range map[string]struct {
		subject string
		want    []string
		basis   string
	}{
		// Row security applies to ann: she has the rows that are hers in any case.
		"a role and what it inherits":                 {alice, []string{on("app.customers", "SELECT", "*", "*"), on("app.customers", "UPDATE", "phone", "*"), on("app.orders", "SELECT", "*", "own")}, "live"},
		"a superuser":                                 {"boss", []string{on("app.customers", "SELECT,INSERT,UPDATE,DELETE", "*", "*"), on("app.orders", "SELECT,INSERT,UPDATE,DELETE", "*", "*")}, "live"},
		"an owner, to whom row security is no matter": {"owner", []string{on("app.orders", "SELECT,INSERT,UPDATE,DELETE", "*", "*")}, "live"},
		"a role that has expired":                     {"past", nil, "no role"},
		"a role that is gone":                         {"gone", nil, "no role"},
		"a subject that nobody knows":                 {bob, nil, "no role"},
		"a subject that is code":                      {`' OR true --`, nil, "no role"},
		"a role that may not use the schema":          {"blind", nil, "live"},
	} {
		t.Run(name, func(t *testing.T) {
			got, basis := own(t, c.subject, both, w.provider.Describe().Schema.Everything())
			if want := w.grant(t, c.want...); !got.Equal(want) || !strings.Contains(basis, c.basis) {
				t.Errorf("%s (%s), wanted %s", got, basis, want)
			}
		})
	}
	t.Run("everything that a role has, where everything is in question", func(t *testing.T) {
		got, _ := own(t, alice, w.provider.Describe().Schema.Everything())
		want := w.grant(t, on("app.customers", "SELECT", "*", "*"), on("app.customers", "UPDATE", "phone", "*"), on("app.orders", "SELECT", "*", "own"), on("app.hidden", "SELECT,INSERT,UPDATE,DELETE", "*", "*"))
		if !got.Equal(want) {
			t.Error(got)
		}
		if got, _ := own(t, "boss", w.provider.Describe().Schema.Everything()); strings.Contains(got.String(), "stint.") {
			t.Error("our own tables are among it")
		}
	})
	t.Run("what is taken from a role is not its any more", func(t *testing.T) {
		w.sql(t, `REVOKE SELECT ON app.customers FROM team`)
		if got, _ := own(t, alice, w.grant(t, customers)); !got.Equal(w.grant(t, on("app.customers", "UPDATE", "phone", "*"))) {
			t.Error(got)
		}
	})
	t.Run("nothing is asked where nothing would be left", func(t *testing.T) {
		if got, basis := own(t, alice, w.grant(t, customers), w.grant(t, on("app.orders", "SELECT", "*", "*"))); !strings.Contains(basis, "not asked") {
			t.Error(got, basis)
		}
	})
	t.Run("where there are no roles for subjects, nobody is known", func(t *testing.T) {
		cfg := w.cfg
		cfg.Entitlement = "none"
		r, err := w.open(t, cfg).Resolve(t.Context(), broker.ResolveRequest{Subject: bob, Grants: []grant.Grant{both}, Live: true})
		if err != nil || !r.Entitlement.Equal(w.provider.Describe().Schema.Everything()) || r.Basis != "this database does not know the subject" {
			t.Error(r, err)
		}
	})
}
