package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/providers/postgres"
)

// command runs stint with arguments, and returns what it printed and its exit
// code.
func command(t testing.TB, args ...string) (out string, code int, err error) {
	t.Helper()
	var b bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&b)
	root.SetErr(&b)
	err = root.ExecuteContext(t.Context())
	if e := (*exitError)(nil); errors.As(err, &e) {
		return b.String(), e.code, err
	}
	if err != nil {
		code = exitFailed
	}
	return b.String(), code, err
}

// atDatabase makes the environment of a DBA: everything but the database's name.
func atDatabase(t *testing.T, pg *testbed.PostgresServer) {
	t.Helper()
	for k, v := range map[string]string{
		"PGHOST": pg.Host, "PGPORT": fmt.Sprint(pg.Port), "PGUSER": "postgres", "PGPASSWORD": pg.Password, "PGSSLMODE": "disable",
		"PGDATABASE": "", "PGSERVICE": "", "PGPASSFILE": filepath.Join(t.TempDir(), "none"),
	} {
		t.Setenv(k, v)
	}
}

func TestPostgresFromInstallationToUninstallation(t *testing.T) {
	pg := testbed.Postgres(t)
	db := pg.Database(t)
	atDatabase(t, pg)
	t.Setenv("PGDATABASE", db)
	secretFile := filepath.Join(t.TempDir(), "broker")
	if err := os.WriteFile(secretFile, []byte("the broker's\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(want int, args ...string) string {
		t.Helper()
		out, code, err := command(t, append([]string{"postgres"}, args...)...)
		if code != want {
			t.Fatalf("stint postgres %s: exit code %d, %v\n%s", strings.Join(args, " "), code, err, out)
		}
		if strings.Contains(out, pg.Password) || strings.Contains(out, "the broker's") || err != nil && (strings.Contains(err.Error(), pg.Password)) {
			t.Fatalf("it prints a password: %s", out)
		}
		return out
	}
	exists := func(want string) {
		t.Helper()
		if got := pg.Query(t, db, `SELECT (to_regnamespace('stint') IS NOT NULL)::text || (to_regrole('stint_ceiling') IS NOT NULL)::text`); got[0] != want+want {
			t.Fatal(got)
		}
	}

	if out := run(exitRefused, "status"); !strings.Contains(out, "none") {
		t.Error(out)
	}
	run(exitRefused, "uninstall")
	if out := run(0, "install", "--dry-run"); !strings.Contains(out, "nothing was") || !strings.Contains(out, "made role stint_ceiling") {
		t.Error(out)
	}
	exists("false")
	if out := run(0, "install", "--broker-password", "file:"+secretFile); !strings.Contains(out, "made role stint_broker") || !strings.Contains(out, "made schema stint, version 1") || !strings.Contains(out, "set the password") {
		t.Error(out)
	}
	exists("true")
	if out := run(0, "install"); !strings.Contains(out, "version 1 was there") || strings.Contains(out, "made") || strings.Contains(out, "password") {
		t.Error(out)
	}
	c, err := pgx.Connect(t.Context(), pg.UserDSN("stint_broker", "the broker's", db))
	if err != nil {
		t.Fatalf("with the password of the file: %v", err)
	}
	defer func() { _ = c.Close(context.Background()) }()

	pg.Exec(t, db, `CREATE SCHEMA app; CREATE TABLE app.orders (id int, note text); GRANT USAGE ON SCHEMA app TO stint_ceiling WITH GRANT OPTION;
		GRANT SELECT, UPDATE (note) ON app.orders TO stint_ceiling WITH GRANT OPTION; CREATE TABLE app.open (); GRANT SELECT ON app.open TO PUBLIC`)
	const lease = "abcdefghijklmnop"
	if _, err := c.Exec(t.Context(), `SELECT stint.mint($1, 'SCRAM-SHA-256$4096:AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=',
		'{"tables":[{"columns":"*","privilege":"SELECT","rows":"*","schema":"app","table":"orders"}]}', 600, now() + interval '1 hour', 1, 'somebody', '{}')`, lease); err != nil {
		t.Fatal(err)
	}
	out := run(0, "status")
	for _, want := range []string{"SELECT, UPDATE (note)", lease, "stint_ceiling", "1h0m0s and 16 connections", "1 leases, 1 groups", "warning: everybody has SELECT on app.open"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	var s postgres.Standing
	if err := json.Unmarshal([]byte(run(0, "status", "-o", "json")), &s); err != nil || s.Version != 1 || len(s.Leases) != 1 || len(s.Lends) != 1 || len(s.Warnings) == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	pg.Exec(t, db, `CREATE OR REPLACE FUNCTION stint.version() RETURNS integer LANGUAGE sql AS 'SELECT 7'`)
	if out := run(exitRefused, "status"); !strings.Contains(out, "version 7 is installed, this is 1") {
		t.Error(out)
	}
	if out := run(0, "uninstall"); !strings.Contains(out, "ended 1 leases, dropped 1 groups") || !strings.Contains(out, "dropped role stint_ceiling") {
		t.Error(out)
	}
	exists("false")
}

func TestUninstallationKeepsWhatOtherDatabasesNeed(t *testing.T) {
	pg := testbed.Postgres(t)
	atDatabase(t, pg)
	for range 2 {
		if _, _, err := command(t, "postgres", "install", "--database", "dbname="+pg.Database(t)); err != nil {
			t.Fatal(err)
		}
	}
	out, _, err := command(t, "postgres", "uninstall", "--database", "dbname=test1")
	if err != nil || !strings.Contains(out, "kept role stint_ceiling, which is needed elsewhere") {
		t.Error(out, err)
	}
	if _, code, err := command(t, "postgres", "status", "--database", "dbname=test2"); code != 0 {
		t.Error(err)
	}
}

func TestPostgresPrintIsAllThatIsRun(t *testing.T) {
	for name, args := range map[string][]string{"install": nil, "uninstall": nil} {
		out, code, err := command(t, append([]string{"postgres", name, "--print", "--ceiling", "Top", "--broker", "b", "--database", "host=127.0.0.1 port=1"}, args...)...)
		if code != 0 || !strings.Contains(out, `"Top"`) || !strings.Contains(out, "COMMIT;\n") {
			t.Errorf("%s: %v\n%.200s", name, err, out)
		}
	}
	want, err := postgres.InstallSQL(postgres.Roles{})
	if err != nil {
		t.Fatal(err)
	}
	if out, _, _ := command(t, "postgres", "install", "--print"); out != want {
		t.Error("what is printed is not what is run")
	}
	out, _, err := command(t, "postgres", "install", "--print", "-o", "json")
	var got struct {
		Version int
		SQL     string
	}
	if json.Unmarshal([]byte(out), &got) != nil || got.SQL != want || got.Version != postgres.Version {
		t.Errorf("%.100s, %v", out, err)
	}
}

func TestPostgresCommandLinesThatAreWrong(t *testing.T) {
	t.Setenv("STINT_TEST_EMPTY", "")
	for name, c := range map[string]struct {
		args  []string
		code  int
		wants string
	}{
		"a password in the connection string":  {[]string{"install", "--database", "postgres://u:hunter2@h/d"}, exitUsage, "where others can read it"},
		"a password where a reference belongs": {[]string{"install", "--broker-password", "hunter2"}, exitUsage, "not written here, but named"},
		"the same for the DBA's":               {[]string{"status", "--password", "hunter2"}, exitUsage, "not written here, but named"},
		"a reference to nothing":               {[]string{"install", "--broker-password", "env:STINT_TEST_EMPTY"}, exitFailed, "nothing there"},
		"a reference without a configuration":  {[]string{"install", "--broker-password", "vault:a/b#c", "-c", "/does/not/exist.yaml"}, exitRefused, "exist.yaml"},
		"print and dry run":                    {[]string{"install", "--print", "--dry-run"}, exitUsage, "one of the two"},
		"one role for both":                    {[]string{"install", "--ceiling", "x", "--broker", "x"}, exitUsage, "cannot be the two roles"},
		"one role for both, to be printed":     {[]string{"install", "--print", "--ceiling", "x", "--broker", "x"}, exitUsage, "cannot be the two roles"},
		"a flag that is not there":             {[]string{"install", "--passwd", "x"}, exitUsage, "--help"},
		"a word too many":                      {[]string{"status", "sales"}, exitUsage, "sales"},
		"a database that is not there":         {[]string{"status", "--database", "host=127.0.0.1 port=1 sslmode=disable connect_timeout=2"}, exitFailed, "connect"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code, err := command(t, append([]string{"postgres"}, c.args...)...)
			if code != c.code || err == nil || !strings.Contains(err.Error(), c.wants) || strings.Contains(out+err.Error(), "hunter2") {
				t.Errorf("exit code %d, %v\n%s", code, err, out)
			}
		})
	}
}

func TestPostgresHelpHasExamples(t *testing.T) {
	for _, name := range []string{"install", "uninstall", "status"} {
		out, code, _ := command(t, "postgres", name, "--help")
		if code != 0 || !strings.Contains(out, "Examples:") || !strings.Contains(out, "PGPASSWORD") {
			t.Errorf("%s: %s", name, out)
		}
	}
	out, _, _ := command(t, "postgres", "--help")
	if !slices.Equal(strings.Fields(strings.Join(subcommands(out), " ")), []string{"install", "status", "uninstall"}) {
		t.Error(out)
	}
}

// subcommands reads the names of commands from a help text.
func subcommands(help string) (names []string) {
	_, rest, _ := strings.Cut(help, "Available Commands:\n")
	for line := range strings.Lines(rest) {
		if f := strings.Fields(line); len(f) > 0 && strings.HasPrefix(line, "  ") {
			names = append(names, f[0])
			continue
		}
		break
	}
	return names
}
