package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/stint-dev/stint/broker"
)

// Revoke implements [broker.Provider], in steps that are committed one by one:
// the role cannot log in and row policies show it nothing; its sessions end; it
// is dropped. A step that fails undoes none before it.
func (p *provider) Revoke(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if !leaseID.MatchString(r.Lease) {
		return broker.Outcome{State: broker.AlreadyDead, Note: "no lease of this provider has such an id"}, nil
	}
	ctx, cancel := p.within(ctx)
	defer cancel()
	switch state, err := p.step(ctx, "revoke", r.Lease); {
	case err != nil:
		return broker.Outcome{}, err
	case state == "gone": // a session may have outlived the role all the same
		_, err := p.step(ctx, "strays", "")
		return broker.Outcome{State: broker.AlreadyDead, Note: "there is no such role"}, err
	case state != "disabled":
		return broker.Outcome{}, fmt.Errorf("revoke: the role of lease %s is locked; its sessions were ended", r.Lease)
	}
	for wait := 20 * time.Millisecond; ; wait *= 2 {
		state, err := p.step(ctx, "reap", r.Lease)
		switch {
		case err != nil && !again(err):
			return broker.Outcome{}, fmt.Errorf("lease %s cannot log in any more, but: %w", r.Lease, err)
		case err == nil && state != "retry":
			if _, err := p.step(ctx, "strays", ""); err != nil {
				return broker.Outcome{}, err
			}
			return broker.Outcome{State: broker.Revoked}, nil
		case wait > 40*time.Millisecond:
			return broker.Outcome{State: broker.DisabledPendingKill, Note: "sessions are being ended"}, nil
		}
		select {
		case <-ctx.Done():
			return broker.Outcome{State: broker.DisabledPendingKill, Note: "sessions are being ended"}, nil
		case <-time.After(wait):
		}
	}
}

// step calls one of the functions that take back.
func (p *provider) step(ctx context.Context, name, lease string) (state string, err error) {
	switch name {
	case "revoke":
		err = p.pool.QueryRow(ctx, `SELECT stint.revoke($1)`, lease).Scan(&state)
	case "reap":
		err = p.pool.QueryRow(ctx, `SELECT stint.reap($1)`, lease).Scan(&state)
	case "strays":
		_, err = p.pool.Exec(ctx, `SELECT stint.strays()`)
	}
	return state, fault(name, err)
}

// sweep ends the leases that are alive here and that keep does not know, the
// sessions that outlived their roles, and the groups that nobody uses.
func (p *provider) sweep(ctx context.Context, keep func(lease string) bool) (ended []string, err error) {
	leases, err := p.alive(ctx)
	if err != nil {
		return nil, err
	}
	var failures []error
	for _, id := range leases {
		if ctx.Err() != nil {
			return ended, errors.Join(append(failures, ctx.Err())...)
		}
		if keep(id) {
			continue
		}
		switch o, err := p.Revoke(ctx, broker.RevokeLease{Lease: id}); {
		case err != nil:
			failures = append(failures, err)
		case o.State == broker.Revoked:
			ended = append(ended, id)
		}
	}
	ctx, cancel := p.within(ctx)
	defer cancel()
	if _, err := p.step(ctx, "strays", ""); err != nil {
		failures = append(failures, err)
	}
	idle := pgtype.Interval{Microseconds: p.cfg.IdleGroups.Microseconds(), Valid: true}
	var collected, stuck int
	if err := p.pool.QueryRow(ctx, `SELECT collected, stuck FROM stint.tidy($1)`, idle).Scan(&collected, &stuck); err != nil {
		failures = append(failures, fault("collect groups", err))
	}
	if stuck > 0 {
		p.deps.Log.WarnContext(ctx, "group roles that nobody uses could not be dropped", "provider", p.name, "count", stuck)
	}
	return ended, errors.Join(failures...)
}

func (p *provider) alive(ctx context.Context) ([]string, error) {
	ctx, cancel := p.within(ctx)
	defer cancel()
	rows, err := p.pool.Query(ctx, `SELECT lease FROM stint.list()`)
	if err != nil {
		return nil, fault("list leases", err)
	}
	leases, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return leases, fault("list leases", err)
}
