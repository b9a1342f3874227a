package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/secret"
)

func (d *demo) lendLogin(ctx context.Context) error {
	token, _, err := d.forMCP(ctx, d.aliceSignIn, sample.ReportsRead)
	if err != nil {
		return err
	}
	text, err := d.call(ctx, token, "report", nil)
	if err != nil {
		return err
	}
	var report struct {
		Login   string     `json:"login"`
		Expires time.Time  `json:"expires"`
		Rows    [][]string `json:"rows"`
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return fmt.Errorf("the answer of report: %w", err)
	}
	lent, err := d.find("MCP server", "for a database login")
	if err != nil {
		return err
	}
	for _, f := range lent.Answer {
		if f.Name == "credential.url" {
			d.login = f.Secret
		}
	}
	d.that(len(report.Rows) == 2 && strings.HasPrefix(report.Login, "stint_"), "The report was read with a login that was made for it, "+report.Login+".", text)
	life := time.Until(report.Expires)
	d.that(life > 0 && life <= 5*time.Minute, "PostgreSQL itself ends that login in 5 minutes at most: it lives no longer than what it was made from.", life)
	if d.conn, err = d.connect(ctx, "log in with it, as whoever stole it would"); err != nil {
		return err
	}
	d.that(d.sql(ctx, "SELECT count(*) FROM sales.orders") == nil, "It reads sales.orders.", "it does not")
	for _, try := range []struct{ query, text string }{
		{"DELETE FROM sales.orders", "It cannot change that table."},
		{"SELECT count(*) FROM sales.customers", "It cannot read sales.customers, which Stint could lend, but the mapping does not."},
		{"SELECT count(*) FROM sales.salaries", "It cannot read sales.salaries, which the DBA lets Stint lend to nobody."},
	} {
		err := d.sql(ctx, try.query)
		pg := (*pgconn.PgError)(nil)
		d.that(errors.As(err, &pg) && pg.Code == "42501", try.text, fmt.Sprintf("the error is %v", err)) // insufficient_privilege
	}
	return nil
}

// connect logs in at the database with the login that was lent.
func (d *demo) connect(ctx context.Context, why string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(d.login.Reveal())
	if err != nil {
		return nil, errors.New("the login has no url that a driver could use")
	}
	cfg.ConnectTimeout = 5 * time.Second
	step := d.sqlStep(why)
	step.Request = []sample.Field{{Name: "user", Value: cfg.User}, {Name: "password", Secret: secret.New(cfg.Password)}}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	d.seeSQL(step, "logged in", err)
	return conn, err
}

// sql runs a query on the connection that is open.
func (d *demo) sql(ctx context.Context, query string) error {
	step := d.sqlStep("query")
	step.Request = []sample.Field{{Name: "query", Value: query}}
	results, err := d.conn.PgConn().Exec(ctx, query).ReadAll()
	answer := ""
	if err == nil && len(results) == 1 && len(results[0].Rows) == 1 {
		answer = string(results[0].Rows[0][0])
	}
	d.seeSQL(step, answer, err)
	return err
}

func (d *demo) sqlStep(why string) sample.Step {
	return sample.Step{Server: "intruder", Text: why, Method: "SQL", URL: "postgres://" + address(d.box.Warehouse) + "/warehouse", Began: time.Now()}
}

func (d *demo) seeSQL(step sample.Step, answer string, err error) {
	step.Ended = time.Now()
	pg := (*pgconn.PgError)(nil)
	switch {
	case errors.As(err, &pg):
		answer = pg.Severity + ": " + pg.Message + " (SQLSTATE " + pg.Code + ")"
	case err != nil:
		answer = "the connection is closed"
	}
	step.Answer = []sample.Field{{Value: answer}}
	d.see(step)
}

func (d *demo) refuseBob(ctx context.Context) error {
	signIn, p, err := d.signedIn(ctx, "bob")
	if err != nil {
		return err
	}
	d.that(p.Subject == "bob" && len(p.Groups) == 0, "Bob can sign in. He is in no group.", p)
	_, _, err = d.forMCP(ctx, signIn, sample.OrdersRead)
	d.refused(err, http.StatusBadRequest, "invalid_scope", "Stint refuses his agent what it gave to Alice's.")
	e, err := explain(ctx, d.box.server.plan, question{
		client: "desktop", token: "-", tokenReader: strings.NewReader(signIn.Reveal()), resources: []string{d.box.MCP}, scope: sample.OrdersRead,
	})
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	var out bytes.Buffer
	pr := &printer{w: &out}
	showExplanation(pr, e)
	pr.flush()
	d.output("$ stint explain --client desktop --token bob.jwt --scope orders:read \\", "      --resource "+d.box.MCP)
	d.output(strings.Split(strings.TrimSpace(strings.ReplaceAll(out.String(), d.box.Dir+string(filepath.Separator), "")), "\n")...)
	near := strings.Join(e.Nearest, "; ")
	d.that(!e.Allowed && strings.Contains(near, "orders-mcp.yaml") && strings.Contains(near, "group engineering"),
		"`stint explain` finds the rule that lacks least, and what it lacks: the group engineering.", near)
	return nil
}

func (d *demo) takeBack(ctx context.Context) error {
	session, err := d.sessionOf(d.aliceToken)
	if err != nil {
		return err
	}
	receipt, err := d.revoke(ctx, broker.Selector{Session: session}, "laptop stolen")
	if err != nil {
		return err
	}
	d.that(receipt.Position != "", "The revocation has a place in the feed that every replica follows.", receipt)
	p, err := payloadOf(d.aliceToken)
	if err != nil {
		return err
	}
	left := time.Until(time.Unix(p.Expires, 0))
	_, err = d.call(ctx, d.aliceToken, "list_orders", nil)
	d.refused(err, http.StatusUnauthorized, "", "The next tool call is refused.")
	d.that(left > time.Minute, "Her token would have been good for minutes to come.", left)
	_, _, err = d.forMCP(ctx, d.aliceSignIn, sample.OrdersRead)
	d.refused(err, http.StatusBadRequest, "invalid_request", "Her sign-in is worth nothing any more: no new token comes of it.")
	if d.box.Warehouse != 0 {
		d.loginIsGone(ctx)
	}
	_, err = d.call(ctx, d.carolToken, "list_orders", nil)
	d.that(err == nil, "Carol works on: nothing of hers was touched.", err)
	return nil
}

// loginIsGone waits for the login to end upstream, which a revocation does not.
func (d *demo) loginIsGone(ctx context.Context) {
	d.that(d.roleIsGone(ctx), "PostgreSQL has dropped the login's role.", "it is still there")
	d.that(d.sql(ctx, "SELECT count(*) FROM sales.orders") != nil, "The connection that was open with it is cut.", "it still works")
	conn, err := d.connect(ctx, "log in again")
	if err == nil {
		_ = conn.Close(ctx)
	}
	pg := (*pgconn.PgError)(nil)
	// invalid_authorization_specification and its kind
	d.that(errors.As(err, &pg) && strings.HasPrefix(pg.Code, "28"), "Nobody can log in with it any more.", fmt.Sprintf("the error is %v", err))
}

// roleIsGone asks the catalogue, as the superuser, for some seconds.
func (d *demo) roleIsGone(ctx context.Context) bool {
	role := d.conn.Config().User
	look := `DO $$BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = '` + strings.ReplaceAll(role, "'", "''") + `') THEN RAISE 'it is there'; END IF; END$$`
	for began := time.Now(); time.Since(began) < 10*time.Second && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if d.box.warehouse.Run(ctx, "warehouse", look) == nil {
			return true
		}
	}
	return false
}

// sessionOf finds the session of a token in the record, as an operator would.
func (d *demo) sessionOf(token secret.String) (session string, err error) {
	p, err := payloadOf(token)
	if err != nil {
		return "", err
	}
	err = readEvents(d.box.cfg.Journal(), 1, func(e *audit.Event, _ uint64) {
		if e.Token != nil && e.Token.ID == p.ID {
			session = e.Party.Session
		}
	})
	if err == nil && session == "" {
		err = fmt.Errorf("the record has no session of the token %s", p.ID)
	}
	return session, err
}

// revoke asks the running server over its socket, as `stint revoke` does.
func (d *demo) revoke(ctx context.Context, what broker.Selector, reason string) (*broker.Receipt, error) {
	l, err := dialLocal(d.box.cfg)
	if err != nil {
		return nil, err
	}
	in := struct {
		broker.Selector
		Reason string `json:"reason"`
	}{what, reason}
	step := sample.Step{
		Server: "operator", Text: "stint revoke --session " + what.Session + " --reason " + shellQuote(reason),
		Method: http.MethodPost, URL: "unix:" + d.box.cfg.Listen.Socket + " /admin/v1/revocations", Began: time.Now(),
		Request: []sample.Field{{Name: "session", Value: what.Session}, {Name: "reason", Value: reason}},
	}
	var out broker.Receipt
	if err := l.call(ctx, http.MethodPost, "/admin/v1/revocations", in, &out); err != nil {
		return nil, err
	}
	step.Status, step.Ended = http.StatusCreated, time.Now()
	step.Answer = []sample.Field{{Name: "position", Value: out.Position}, {Name: "bound", Value: out.Bound.UTC().Format(time.RFC3339)}}
	d.see(step)
	return &out, nil
}

func (d *demo) record(ctx context.Context) error {
	var events []*audit.Event
	ended := func(e *audit.Event) bool {
		return e.Kind == audit.KindLease && e.Lease.Outcome == string(broker.Revoked)
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) { // that a login has ended is recorded when it has
		events = nil
		if err := readEvents(d.box.cfg.Journal(), 1, func(e *audit.Event, _ uint64) { events = append(events, e) }); err != nil {
			return err
		}
		if d.box.Warehouse == 0 || slices.ContainsFunc(events, ended) || time.Since(began) > 5*time.Second || ctx.Err() != nil {
			break
		}
	}
	var granted, refused, revoked int
	for _, e := range events {
		d.output(strings.ReplaceAll(eventLine(e), d.box.Dir+string(filepath.Separator), ""))
		switch {
		case e.Kind == audit.KindExchange && e.Outcome == audit.Granted:
			granted++
		case e.Kind == audit.KindExchange && e.Outcome == audit.Refused && e.Reason != "":
			refused++
		case e.Kind == audit.KindRevocation && e.Outcome == audit.Done && e.Revocation.Reason == "laptop stolen":
			revoked++
		}
	}
	var gave, gaveNot int
	for _, step := range d.kept {
		switch {
		case step.URL != d.box.Stint+"/oauth2/token":
		case step.Status == http.StatusOK:
			gave++
		default:
			gaveNot++
		}
	}
	d.that(gave == granted && gaveNot == refused, fmt.Sprintf("Each of the %d answers that gave something is in it, and each of the %d refusals, with the reason.", gave, gaveNot),
		fmt.Sprintf("the record has %d and %d", granted, refused))
	text := "So is the revocation, with who and why."
	if d.box.Warehouse != 0 {
		text = "So is the revocation, with who and why, and that PostgreSQL has ended the login."
	}
	d.that(revoked == 1 && (d.box.Warehouse == 0 || slices.ContainsFunc(events, ended)), text, "it is not")
	return d.secretsStayOut()
}

// secretsStayOut looks for what must not be in the record, byte by byte.
func (d *demo) secretsStayOut() error {
	files, err := filepath.Glob(filepath.Join(d.box.cfg.Journal(), "*"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("there is no journal in %s: %w", d.box.cfg.Journal(), err)
	}
	found, persons := "", ""
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for _, s := range d.seen {
			if len(s.Reveal()) >= 8 && bytes.Contains(data, []byte(s.Reveal())) {
				found = shorten(s)
			}
		}
		for _, u := range d.box.idp.Users() {
			if bytes.Contains(data, []byte(u.Email)) || bytes.Contains(data, []byte("#"+u.Name)) {
				persons = u.Name
			}
		}
	}
	d.that(found == "" && len(d.seen) > 0, fmt.Sprintf("None of the %d tokens and passwords that went over the wire is in it.", len(d.distinct())), found)
	d.that(persons == "", "No person is named in it: they are an index, and what is personal is encrypted under a key for each of them.", persons)
	return nil
}

// distinct are the secrets that were seen, each once.
func (d *demo) distinct() map[string]bool {
	out := make(map[string]bool)
	for _, s := range d.seen {
		out[s.Digest()] = true
	}
	return out
}
