package sample

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/testbed"
)

// lend makes a login at a real database as Stint would, and has the fake hand it
// out.
func lend(t *testing.T, w *world, pg *testbed.PostgresServer, database, role string) {
	t.Helper()
	pg.Exec(t, database, `CREATE ROLE `+role+` LOGIN PASSWORD 'lent-password'; GRANT USAGE ON SCHEMA sales TO `+role+`; GRANT SELECT ON sales.orders TO `+role)
	w.set(func(f *stintFake) {
		f.login = map[string]any{
			"host": pg.Host, "port": pg.Port, "dbname": database, "sslmode": "disable", "user": role, "password": "lent-password",
			"url": pg.UserDSN(role, "lent-password", database), "expires_at": "2030-01-01T00:00:00Z",
		}
	})
}

func TestAReportIsReadWithALoginThatWasLent(t *testing.T) {
	pg := testbed.Postgres(t)
	database := pg.Database(t)
	pg.Exec(t, database, `CREATE SCHEMA sales; CREATE TABLE sales.orders (item text, total numeric, at date);
		INSERT INTO sales.orders VALUES ('tea', 12.50, '2026-01-02'), ('coffee', NULL, '2026-01-03'); CREATE TABLE sales.salaries (amount int)`)
	w := newWorld(t, &Database{Resource: warehouse, Query: `SELECT item, total, at FROM sales.orders ORDER BY at`})
	lend(t, w, pg, database, "lent_1")
	held := w.issue(w.alice(ReportsRead, OrdersRead))

	text, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "report", nil)
	if err != nil {
		t.Fatal(err)
	}
	var got reportResult
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if got.Login != "lent_1" || !slices.Equal(got.Columns, []string{"item", "total", "at"}) || len(got.Rows) != 2 ||
		!slices.Equal(got.Rows[0], []string{"tea", "12.50", "2026-01-02"}) || !slices.Equal(got.Rows[1], []string{"coffee", "", "2026-01-03"}) {
		t.Errorf("the report is %s", text)
	}
	if strings.Contains(text, "lent-password") {
		t.Error("the password is in the report")
	}
	form := w.forms("/oauth2/token")[0]
	if form.Get("resource") != warehouse || form.Get("scope") != ReportsRead {
		t.Errorf("asked was %v", form)
	}
	login := w.steps.find(t, "for a database login")
	if got := login.get("credential.password"); got.Secret.Reveal() != "lent-password" || got.Value != "" {
		t.Error("the step does not hold the password, or shows it")
	}
	if got := w.steps.find(t, "query the database"); got.get("user").Value != "lent_1" || got.get("rows").Value != "2" || got.Err != nil {
		t.Errorf("the step is %v", got)
	}

	t.Run("a table that was not lent cannot be read", func(t *testing.T) {
		w.mcp.cfg.Database.Query = `SELECT * FROM sales.salaries`
		_, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "report", nil)
		if te := (*ToolError)(nil); !errors.As(err, &te) || !strings.Contains(te.Text, "permission denied for table salaries") {
			t.Errorf("the error is %v", err)
		}
	})
	t.Run("nothing can be written", func(t *testing.T) {
		pg.Exec(t, database, `GRANT ALL ON sales.orders TO lent_1`)
		w.mcp.cfg.Database.Query = `INSERT INTO sales.orders VALUES ('gold') RETURNING item`
		_, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "report", nil)
		if te := (*ToolError)(nil); !errors.As(err, &te) || !strings.Contains(te.Text, "read-only transaction") {
			t.Errorf("the error is %v", err)
		}
	})
	t.Run("a login that is gone opens nothing", func(t *testing.T) {
		pg.Exec(t, database, `ALTER ROLE lent_1 NOLOGIN`)
		_, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "report", nil)
		if te := (*ToolError)(nil); !errors.As(err, &te) || !strings.Contains(te.Text, "not permitted to log in") || strings.Contains(te.Text, "lent-password") {
			t.Errorf("the error is %v", err)
		}
	})
}

func TestALoginThatIsNoneIsSaidSo(t *testing.T) {
	w := newWorld(t, &Database{Resource: warehouse, Query: `SELECT 1`})
	held := w.issue(w.alice(ReportsRead))
	for name, login := range map[string]map[string]any{
		"no url":             {"user": "x"},
		"a url that is none": {"url": "postgres://u:the-password@[::1"},
	} {
		t.Run(name, func(t *testing.T) {
			w.set(func(f *stintFake) { f.login = login })
			_, err := (Agent{}).CallTool(t.Context(), w.mcp.URL(), held, "report", nil)
			if te := (*ToolError)(nil); !errors.As(err, &te) || !strings.Contains(te.Text, "the login") || strings.Contains(te.Text, "the-password") {
				t.Errorf("the error is %v", err)
			}
		})
	}
}
