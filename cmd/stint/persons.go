package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/vault"
)

// persons is what it takes to find a person in the record, and to read what it
// says of persons.
type persons struct {
	subject string             // index of the one asked for, or its beginning
	keys    *store.SubjectKeys // nil: nothing is to be revealed
	secrets vault.Store        // nil: not needed
}

// shownEvent is an event with what it says of a person, if that was asked for.
type shownEvent struct {
	*audit.Event
	Revealed *audit.Personal `json:"revealed,omitempty"`
	// Unreadable says why there is nothing.
	Unreadable string `json:"unreadable,omitempty"`
}

var indexStart = regexp.MustCompile(`^[0-9a-f]{8,32}$`)

// openPersons opens what subject and reveal need of the installation: its secrets,
// beside a running server, and the keys of subjects, which a server that runs has
// to itself.
func openPersons(ctx context.Context, cfg *config.Config, subject string, reveal bool) (p *persons, err error) {
	p = &persons{subject: subject}
	byName := strings.Contains(subject, "#")
	if subject != "" && !byName && !indexStart.MatchString(subject) {
		return nil, usage("--subject is ISSUER#SUB, or at least 8 characters of an index")
	}
	if !byName && !reveal {
		return p, nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.secrets, _, err = vault.Open(inFolder(cfg), vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now, ReadOnly: true}); err != nil {
		return p, err
	}
	if byName {
		key, err := vault.Key(ctx, p.secrets, vault.PathAuditIndex)
		if err != nil {
			return p, err
		}
		p.subject = audit.Index([]byte(key.Reveal()), subject)
	}
	if reveal {
		err = p.openKeys(ctx, cfg)
	}
	return p, err
}

func (p *persons) openKeys(ctx context.Context, cfg *config.Config) error {
	if l, err := dialLocal(cfg); err == nil {
		l.client.CloseIdleConnections()
		return errors.New("the running server has the keys of subjects to itself: stop it to reveal anything")
	}
	path := filepath.Join(cfg.Data, subjectsFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there are no keys of subjects: %s does not exist", path)
	}
	sealer, err := vault.NewSealer(ctx, p.secrets, time.Now)
	if err != nil {
		return err
	}
	p.keys, err = store.OpenSubjectKeys(path, sealer)
	return err
}

// shown adds to an event what it says of a person, if that was asked for.
func (p *persons) shown(ctx context.Context, e *audit.Event) *shownEvent {
	s := &shownEvent{Event: e}
	if p.keys == nil || len(e.Personal) == 0 {
		return s
	}
	key, err := p.keys.Find(ctx, e.Party.Subject)
	if errors.Is(err, broker.ErrNotFound) {
		err = errors.New("the subject's key is not here, or was destroyed")
	}
	if err == nil {
		var personal audit.Personal
		if personal, err = audit.Reveal(e, key); err == nil {
			s.Revealed = &personal
			return s
		}
	}
	s.Unreadable = err.Error()
	return s
}

// Close closes what was opened.
func (p *persons) Close() (err error) {
	if p.keys != nil {
		err = p.keys.Close()
	}
	if p.secrets != nil {
		err = errors.Join(err, p.secrets.Close())
	}
	return err
}
