package sample

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/internal/secret"
)

const maxRows = 100

// query runs the database's query with a login that was lent: a JSON document
// whose url is all that a driver needs.
func (s *MCPServer) query(ctx context.Context, login secret.String) (out *reportResult, err error) {
	var doc struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal([]byte(login.Reveal()), &doc); err != nil || doc.URL == "" {
		return nil, fmt.Errorf("the login has no url")
	}
	cfg, err := pgx.ParseConfig(doc.URL)
	if err != nil {
		return nil, fmt.Errorf("the login's url is none")
	}
	cfg.ConnectTimeout = patience
	step := Step{
		Server: s.cfg.Stint.Server, Text: "query the database", Method: "SQL", Began: time.Now(),
		URL: fmt.Sprintf("postgres://%s:%d/%s", cfg.Host, cfg.Port, cfg.Database),
		Request: []Field{
			{Name: "user", Value: cfg.User}, {Name: "password", Secret: secret.New(cfg.Password)}, {Name: "query", Value: s.cfg.Database.Query},
		},
	}
	defer func() {
		step.Err = err
		trace(s.cfg.Stint.Trace).step(step)
	}()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	out = &reportResult{Login: cfg.User, Columns: []string{}, Rows: [][]string{}}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, s.cfg.Database.Query, pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for _, c := range rows.FieldDescriptions() {
		out.Columns = append(out.Columns, c.Name)
	}
	for rows.Next() && len(out.Rows) < maxRows {
		values := rows.RawValues()
		row := make([]string, len(values))
		for i, v := range values {
			row[i] = string(v)
		}
		out.Rows = append(out.Rows, row)
	}
	rows.Close()
	step.Answer = []Field{{Name: "rows", Value: strconv.Itoa(len(out.Rows))}}
	return out, rows.Err()
}
