// Package vault is where secrets are kept: in HashiCorp Vault, or in a sealed
// file on one machine.
//
// Both are a [Store]: named fields under a path, with a version, written by
// compare-and-set. On it stand the keys that Stint makes for itself ([Key],
// [Sealer]), the feed's anchor ([Anchor]) and the references to secrets that an
// administrator writes ([Resolver]). [Engine] has Vault make credentials of its
// own, and ends them; a sealed file has no such thing.
//
// The package does not decide who may read what: whoever is handed a Store can
// read all of it. What a provider is handed is cut out of it elsewhere.
package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// Fields are what is kept under a path: secrets, by name.
type Fields = map[string]secret.String

// Bounds of what is kept.
const (
	// MaxSize is how much the fields under one path may hold, names and values, in
	// bytes. Vault's own storage takes no more than half a megabyte.
	MaxSize = 256 << 10
	maxPath = 255
	maxName = 128
)

// Store keeps secrets under paths. A path is names of a-z, 0-9, - and _, joined
// by slashes: what callers send can climb nowhere. Implementations are safe for
// concurrent use.
//
// Errors wrap [broker.ErrNotFound] and [broker.ErrConflict] as the methods say;
// others have the code [broker.Unavailable] if it may help to try again.
type Store interface {
	// Read returns the fields under a path and their version, 1 and up.
	// ErrNotFound if there are none.
	Read(ctx context.Context, path string) (Fields, int, error)
	// Write replaces the fields under a path if their version is still cas, and
	// returns the new version; cas 0 says that there must be none. ErrConflict if
	// that is not so. After another error they may have been written.
	Write(ctx context.Context, path string, f Fields, cas int) (version int, err error)
	// Delete removes a path for good; versions begin at 1 again. It is no error if
	// there is none. Stint's own policy in Vault does not allow it.
	Delete(ctx context.Context, path string) error
	// List returns the names right under a path, sorted; those that have more
	// under them end in a slash. The empty path is the top. There may be none.
	List(ctx context.Context, path string) ([]string, error)
	// Ready reports whether secrets can be read now.
	Ready(ctx context.Context) error
	// Close lets go of everything, a login to Vault too.
	Close() error
}

// Deps are what a store needs besides its configuration.
type Deps struct {
	Log *slog.Logger
	Now func() time.Time
	// ReadOnly opens a sealed file beside the process that has it open, as it is now.
	// Nothing can be written then.
	ReadOnly bool
}

// Open returns the store that cfg describes and, if it is a Vault, an engine on
// it; otherwise the engine is nil. Vault itself is asked nothing yet: the first
// call logs in.
func Open(cfg Config, d Deps) (Store, *Engine, error) {
	if err := cfg.Check(); err != nil {
		return nil, nil, fmt.Errorf("secrets: %w", err)
	}
	if d.Log == nil || d.Now == nil {
		return nil, nil, errors.New("secrets: a log and a clock are needed")
	}
	if cfg.Kind == KindFile {
		f, err := openFile(*cfg.File, d.ReadOnly)
		if err != nil {
			return nil, nil, err
		}
		return f, nil, nil
	}
	c, err := newClient(*cfg.Vault, d)
	if err != nil {
		return nil, nil, fmt.Errorf("vault: %w", err)
	}
	return c, &Engine{c}, nil
}

// checkPath refuses what is no path of a store.
func checkPath(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("a path of %d bytes: %d are the most", len(path), maxPath)
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return fmt.Errorf("%q is no path of a secret: names of a-z, 0-9, - and _, joined by slashes", path)
		}
	}
	return nil
}

// checkFields refuses what one of the stores could not keep as it is.
func checkFields(f Fields) error {
	if len(f) == 0 {
		return errors.New("no fields to keep")
	}
	size := 0
	for name, value := range f {
		switch text := value.Reveal(); {
		case name == "" || len(name) > maxName || !utf8.ValidString(name):
			return fmt.Errorf("%q is no name of a field", name)
		case !utf8.ValidString(text):
			return fmt.Errorf("the field %q is not UTF-8: keep it in base64", name)
		default:
			size += len(name) + len(text)
		}
	}
	if size > MaxSize {
		return fmt.Errorf("fields of %d bytes: %d are the most", size, MaxSize)
	}
	return nil
}

// unavailable is an error that may be gone when the caller comes again.
func unavailable(err error) error {
	return broker.Fail(broker.Unavailable, err, "the secret store is not available")
}
