package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/testbed"
)

// reportsMapping is of the MCP server that init writes, with a database behind it.
const reportsMapping = `resource: https://mcp.example/notes
scopes:
  reports:read:
    access: read
    vend:
      warehouse:
        privileges: [{object: app.orders, privileges: SELECT, columns: [id, total], rows: "*"}]
  audit:read:
    access: read
    vend:
      warehouse:
        privileges: [{object: app.log, privileges: SELECT, columns: "*", rows: "*"}]
tools:
  report: {scopes: [reports:read], arguments: {year: string}}
rules:
  - allow: [reports:read]
    to: {groups: [everyone]}
  - allow: [audit:read]
    to: {claims: {department: audit}}
`

// explainable makes a configuration with a warehouse, and an agent that may do
// nothing there.
func explainable(t *testing.T, port int, database string) (file string) {
	t.Helper()
	dir := initialised(t)
	file = filepath.Join(dir, theConfig)
	t.Setenv("STINT_TEST_WAREHOUSE", "of the broker role")
	edit(t, file, "targets: [https://api.example/notes]", "targets: [https://api.example/notes, warehouse]",
		"    algorithms: [RS256, ES256]\n", "    algorithms: [RS256, ES256]\n    claims: [department]\n",
		"agents:\n", "agents:\n  - {name: idle, identities: {\"https://idp.example\": idle-app}, ceiling: {access: read, scopes: {}, vend: {}}}\n",
		"", fmt.Sprintf("\nproviders:\n  - name: warehouse\n    kind: postgres\n    settings: {host: 127.0.0.1, port: %d, "+
			"database: %s, password: \"env:STINT_TEST_WAREHOUSE\", entitlement: subject_roles}\n", port, database))
	if err := os.WriteFile(filepath.Join(dir, "mappings", "mcp.yaml"), []byte(reportsMapping), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := stintCLI(t, "check", "-c", file); code != 0 {
		t.Fatalf("check: %d: %s", code, out)
	}
	return file
}

var (
	aliceAsks    = []string{"--subject", aliceAtIdP, "--group", "everyone"}
	forReports   = []string{"--audience", "warehouse", "--scope", "reports:read"}
	ordersDetail = `[{"type":"postgres","provider":"warehouse","privileges":[{"object":"app.orders","privileges":["SELECT"],"columns":["%s"],"rows":"*"}]}]`
)

func TestQuestionsAreExplained(t *testing.T) {
	file := explainable(t, testbed.FreePort(t), "nowhere")
	asks := func(parts ...[]string) (args []string) {
		for _, p := range parts {
			args = append(args, p...)
		}
		return args
	}
	as := func(args ...string) []string { return args }
	for name, tc := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"a credential is narrowed, step by step": {asks(aliceAsks, forReports), 0, []string{
			"ALLOWED", "narrowed for warehouse, which is exact:", "  subject token - ", "  mapping - version ", "  entitlement - no limit from here: assumed",
			"    allows  ", "    leaves  ", `"columns":["id","total"]`, "the upstream would be sent", "it only reads",
		}},
		"details narrow it":         {asks(aliceAsks, forReports, as("--details", fmt.Sprintf(ordersDetail, "id"))), 0, []string{"ALLOWED", `leaves  {"privileges":[{"columns":["id"]`}},
		"details ask for too much":  {asks(aliceAsks, forReports, as("--details", fmt.Sprintf(ordersDetail, "phone"))), exitRefused, []string{"REFUSED", "nearest"}},
		"details that are no JSON":  {asks(aliceAsks, forReports, as("--details", "[{")), exitRefused, []string{"REFUSED  bad_details"}},
		"a tool says what it needs": {asks(aliceAsks, as("--audience", "warehouse", "--tool", "report", "--arguments", `{"year":"2030"}`)), 0, []string{"ALLOWED", "tool      report", "scope reports:read (read)  granted"}},
		"a tool and details":        {asks(aliceAsks, as("--audience", "warehouse", "--tool", "report", "--details", fmt.Sprintf(ordersDetail, "total"))), 0, []string{"tool      report", `leaves  {"privileges":[{"columns":["total"]`}},
		"a tool that is not there":  {asks(aliceAsks, forReports, as("--tool", "reprot")), exitRefused, []string{"an entry for the tool reprot"}},
		"arguments that are none":   {asks(aliceAsks, forReports, as("--tool", "report", "--arguments", "[1]")), exitUsage, []string{"--arguments: "}},
		"a tool, and details that are no JSON": {
			asks(aliceAsks, forReports, as("--tool", "report", "--details", "[{")), exitUsage, []string{"--details: "},
		},
		"a token that holds it":         {asks(aliceAsks, forReports, as("--held", "reports:read")), 0, []string{"the token holds: reports:read"}},
		"a token that holds nothing":    {asks(aliceAsks, forReports, as("--held", "")), exitRefused, []string{"FAIL  token", "a subject token with the scope reports:read"}},
		"a token for something else":    {asks(aliceAsks, forReports, as("--held", "notes:read", "--held-at", theTarget)), exitRefused, []string{"FAIL  token", "at " + theTarget + " is forwarded as reports:read"}},
		"somebody lesser on the way":    {asks(aliceAsks, forReports, as("--via", "idle")), exitRefused, []string{"FAIL  ceiling", "raise the ceiling"}},
		"an agent that may":             {asks(aliceAsks, forReports, as("--agent", "desktop")), 0, []string{"agent     desktop"}},
		"a claim that a rule asks for":  {asks(aliceAsks, as("--claim", "department=audit", "--audience", "warehouse", "--scope", "audit:read")), 0, []string{"ALLOWED", "app.log"}},
		"a claim with another value":    {asks(aliceAsks, as("--claim", "department=sales", "--audience", "warehouse", "--scope", "audit:read")), exitRefused, []string{"nearest  audit:read: the rule at", "department"}},
		"a claim that is not read":      {asks(aliceAsks, forReports, as("--claim", "dept=audit")), exitUsage, []string{"are not read for \"dept\"; its list of claims has department"}},
		"a claim without a value":       {asks(aliceAsks, forReports, as("--claim", "department")), exitUsage, []string{"--claim is NAME=VALUE"}},
		"what the upstream cannot tell": {asks(aliceAsks, forReports, as("--live")), exitRefused, []string{"REFUSED  unavailable"}},
		"a client that is not there":    {asks(aliceAsks, forReports, as("--client", "notes")), exitUsage, []string{`there is no client "notes"; there are notes-mcp`}},
		"a file that is not there":      {asks(forReports, as("--token", "/does/not/exist")), exitFailed, []string{"/does/not/exist"}},
		"an issuer that is not there":   {asks(forReports, as("--subject", "https://idp.exmple#alice")), exitUsage, []string{`--subject: "https://idp.exmple" is no configured issuer; the issuers are https://idp.example`}},
		"a subject without an issuer":   {asks(forReports, as("--subject", "alice")), exitUsage, []string{"--subject is ISSUER#SUB; the issuers are https://idp.example"}},
		"an issuer without a subject":   {asks(forReports, as("--subject", "https://idp.example#")), exitUsage, []string{"--subject is ISSUER#SUB"}},
		"an agent that is not there":    {asks(aliceAsks, forReports, as("--agent", "dektop")), exitUsage, []string{`no agent or client "dektop"; the agents are desktop, idle, the clients notes-mcp`}},
		"one on the way that is not":    {asks(aliceAsks, forReports, as("--via", "desktop", "--via", "x")), exitUsage, []string{`no agent or client "x"`}},
		"a group of nobody":             {asks(forReports, as("--group", "everyone")), exitUsage, []string{"describe the subject of --subject"}},
		"an agent of nobody":            {asks(forReports, as("--agent", "desktop")), exitUsage, []string{"describe the subject of --subject"}},
		"a token, and who held it":      {asks(forReports, as("--token", "-", "--via", "desktop")), exitUsage, []string{"a token says who has held it"}},
		"a group that is not there": {asks(aliceAsks, forReports, as("--group", "editor")), 0, []string{
			"ALLOWED", `warning  no issuer has the group "editor", so that no mapping can name it; there are editors, everyone`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := stintCLI(t, append([]string{"explain", "-c", file, "--client", "notes-mcp"}, tc.args...)...)
			if code != tc.code {
				t.Errorf("%d: %s", code, out)
			}
			for _, want := range tc.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if strings.Contains(out, "warning") != (name == "a group that is not there") {
				t.Errorf("it warns:\n%s", out)
			}
		})
	}
}

func TestAnExplanationInJSONHasTheWarnings(t *testing.T) {
	file := explainable(t, testbed.FreePort(t), "nowhere")
	out, code := stintCLI(t, append([]string{"explain", "-c", file, "-o", "json", "--client", "notes-mcp", "--group", "staff"}, append(forReports, aliceAsks...)...)...)
	var got struct {
		Allowed   bool
		Subject   string
		Narrowing struct{ Inputs []struct{ Name string } }
		Warnings  []string
	}
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil {
		t.Fatalf("%d, %v: %s", code, err, out)
	}
	if !got.Allowed || got.Subject != aliceAtIdP || len(got.Narrowing.Inputs) != 5 || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], `"staff"`) {
		t.Errorf("got %+v", got)
	}
}

// With --live the database is asked what the subject may do there by herself.
func TestAnExplanationAsksTheUpstreamIfItIsToldTo(t *testing.T) {
	pg := testbed.Postgres(t)
	db := pg.Database(t)
	atDatabase(t, pg)
	t.Setenv("PGDATABASE", db)
	file := explainable(t, pg.Port, db)
	if out, code := stintCLI(t, "postgres", "install", "--broker-password", "env:STINT_TEST_WAREHOUSE"); code != 0 {
		t.Fatalf("%d: %s", code, out)
	}
	pg.Exec(t, db, `CREATE SCHEMA app; CREATE TABLE app.orders (id int, total int); GRANT USAGE ON SCHEMA app TO stint_ceiling WITH GRANT OPTION;
		GRANT SELECT ON app.orders TO stint_ceiling WITH GRANT OPTION`)
	asked := append(append([]string{"explain", "-c", file, "--client", "notes-mcp"}, aliceAsks...), forReports...)
	if out, code := stintCLI(t, asked...); code != 0 || !strings.Contains(out, "no limit from here: assumed") {
		t.Errorf("without: %d: %s", code, out)
	}
	if out, code := stintCLI(t, append(asked, "--live")...); code != exitRefused || !strings.Contains(out, "names no role for the subject") || !strings.Contains(out, "nearest  a wider entitlement: it lacks") {
		t.Errorf("with a subject that has no role: %d: %s", code, out)
	}
	pg.Exec(t, db, `CREATE ROLE alice_of_explain; GRANT USAGE ON SCHEMA app TO alice_of_explain; GRANT SELECT ON app.orders TO alice_of_explain;
		INSERT INTO stint.subject_role VALUES ('`+aliceAtIdP+`', 'alice_of_explain')`)
	if out, code := stintCLI(t, append(asked, "--live")...); code != 0 || !strings.Contains(out, "live: privileges of the subject's role") {
		t.Errorf("with one that has: %d: %s", code, out)
	}
	pg.Exec(t, db, `REVOKE SELECT ON app.orders FROM alice_of_explain; GRANT SELECT (id) ON app.orders TO alice_of_explain`)
	if out, code := stintCLI(t, append(asked, "--live")...); code != exitRefused || !strings.Contains(out, "less than asked") {
		t.Errorf("with less than is asked: %d: %s", code, out)
	}
}
