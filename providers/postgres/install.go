package postgres

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/internal/secret"
)

// Version is that of the functions and tables in the database. It rises with
// every change that the Stint before could not work with; a function that was added
// since is missed when it is called.
const Version = 1

//go:embed sql/*.sql
var scripts embed.FS

// Roles are the names of the two roles that Stint has in a cluster.
type Roles struct {
	// Ceiling owns the schema and holds, with grant option, the most that is handed
	// out. Empty: stint_ceiling.
	Ceiling string
	// Broker is what the broker logs in as. Empty: stint_broker.
	Broker string
}

func (r Roles) fill() (Roles, error) {
	fill(&r.Ceiling, "stint_ceiling")
	fill(&r.Broker, "stint_broker")
	for _, name := range []string{r.Ceiling, r.Broker} {
		if err := checkName(name); err != nil {
			return r, err
		}
	}
	if r.Ceiling == r.Broker || strings.HasPrefix(r.Ceiling, "stint_v_") || strings.HasPrefix(r.Broker, "stint_v_") {
		return r, fmt.Errorf("%q and %q cannot be the two roles", r.Ceiling, r.Broker)
	}
	return r, nil
}

// InstallSQL returns the script that puts Stint into a database, or brings what is
// there up to this version; run twice it changes nothing. It is one transaction,
// in plain SQL, for whoever wants to read it first.
func InstallSQL(r Roles) (string, error) { return installSQL(scripts, r, Version) }

// UninstallSQL returns the script that ends all leases and takes Stint out of a
// database.
func UninstallSQL(r Roles) (string, error) {
	r, err := r.fill()
	if err != nil {
		return "", err
	}
	text, err := scripts.ReadFile("sql/uninstall.sql")
	return r.replace(string(text), Version), err
}

// migration is the name of a file that brings the tables to a version.
var migration = regexp.MustCompile(`^([0-9]{3})\.sql$`)

func installSQL(files fs.FS, r Roles, version int) (string, error) {
	r, err := r.fill()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	read := func(name string) string {
		text, e := fs.ReadFile(files, "sql/"+name)
		if e != nil && err == nil {
			err = fmt.Errorf("read script: %w", e)
		}
		return string(text)
	}
	b.WriteString(read("begin.sql"))
	entries, e := fs.ReadDir(files, "sql") // sorted by name
	if e != nil {
		return "", fmt.Errorf("list scripts: %w", e)
	}
	for _, entry := range entries {
		m := migration.FindStringSubmatch(entry.Name())
		if m == nil {
			continue
		}
		n, _ := strconv.Atoi(m[1]) // three digits
		fmt.Fprintf(&b, "\nDO $migrate$\nBEGIN\nIF NOT EXISTS (SELECT FROM stint.migration WHERE version = %d) THEN\n\n%s\nINSERT INTO stint.migration (version) VALUES (%[1]d);\nEND IF;\nEND\n$migrate$;\n\n", n, read(entry.Name()))
	}
	b.WriteString(read("functions.sql") + "\n" + read("attest.sql") + read("end.sql"))
	return r.replace(b.String(), version), err
}

// replace fills in the names: {ceiling} as an identifier, {'ceiling'} as a text.
func (r Roles) replace(script string, version int) string {
	text := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	return strings.NewReplacer(
		"{version}", strconv.Itoa(version),
		"{ceiling}", pgx.Identifier{r.Ceiling}.Sanitize(), "{broker}", pgx.Identifier{r.Broker}.Sanitize(),
		"{'ceiling'}", text(r.Ceiling), "{'broker'}", text(r.Broker),
	).Replace(script)
}

// Install runs what [InstallSQL] returns, as whoever dsn says. If password is not
// empty it becomes the broker role's, of which the server sees a verifier only.
func Install(ctx context.Context, dsn secret.String, r Roles, password secret.String) error {
	script, err := InstallSQL(r)
	if err != nil {
		return err
	}
	if !password.Empty() {
		verifier, err := scramVerifier(password)
		if err != nil {
			return err
		}
		r, _ = r.fill() // checked
		script += fmt.Sprintf("ALTER ROLE %s PASSWORD '%s';\n", pgx.Identifier{r.Broker}.Sanitize(), verifier.Reveal())
	}
	return run(ctx, dsn, script)
}

// Rehearse is [Install] in a transaction that is undone: it says what would go
// wrong, and changes nothing.
func Rehearse(ctx context.Context, dsn secret.String, r Roles) error {
	script, err := InstallSQL(r)
	if err != nil {
		return err
	}
	script, ok := strings.CutSuffix(script, "COMMIT;\n")
	if !ok {
		panic("postgres: the script does not end with COMMIT") // written in code
	}
	return run(ctx, dsn, script+"ROLLBACK;\n")
}

// Uninstall runs what [UninstallSQL] returns, as whoever dsn says.
func Uninstall(ctx context.Context, dsn secret.String, r Roles) error {
	script, err := UninstallSQL(r)
	if err != nil {
		return err
	}
	return run(ctx, dsn, script)
}

// run runs a script. Its errors are for the DBA who runs it, and whole.
func run(ctx context.Context, dsn secret.String, script string) error {
	c, err := pgx.Connect(ctx, dsn.Reveal())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	if _, err := c.PgConn().Exec(ctx, script).ReadAll(); err != nil {
		return fmt.Errorf("run script: %w", err)
	}
	return nil
}
