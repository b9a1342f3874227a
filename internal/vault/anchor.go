package vault

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// Anchor keeps the head of the revocation feed outside the feed's own store. It
// goes forward only, whichever replica writes it.
type Anchor struct{ store Store }

// NewAnchor returns the anchor in a store.
func NewAnchor(s Store) *Anchor { return &Anchor{s} }

// LoadHead returns the newest head that was saved; zero if none ever was.
func (a *Anchor) LoadHead(ctx context.Context) (broker.Head, error) {
	h, _, err := a.load(ctx)
	return h, err
}

func (a *Anchor) load(ctx context.Context) (h broker.Head, version int, err error) {
	f, version, err := a.store.Read(ctx, pathAnchor)
	if errors.Is(err, broker.ErrNotFound) {
		return broker.Head{}, 0, nil
	}
	if err != nil {
		return broker.Head{}, 0, fmt.Errorf("read the feed's anchor: %w", err)
	}
	if h.Pos, err = broker.ParsePosition(f["position"].Reveal()); err != nil {
		return broker.Head{}, 0, fmt.Errorf("read the feed's anchor: %w", err)
	}
	id, err := base64.RawURLEncoding.Strict().DecodeString(f["id"].Reveal())
	if err != nil || len(id) != len(h.ID) {
		return broker.Head{}, 0, errors.New("read the feed's anchor: no id of an entry")
	}
	h.ID = broker.ChainID(id)
	return h, version, nil
}

// SaveHead remembers a head, unless a newer one is remembered already. An error
// that wraps [broker.ErrConflict] says that the chain has forked: at the same
// position there is another entry.
func (a *Anchor) SaveHead(ctx context.Context, h broker.Head) error {
	if h == (broker.Head{}) {
		return nil
	}
	for range tries {
		old, version, err := a.load(ctx)
		if err != nil {
			return err
		}
		if old.Pos == h.Pos && old.ID != h.ID && version > 0 {
			return fmt.Errorf("the feed's anchor has another entry at %s: %w", h.Pos, broker.ErrConflict)
		}
		if version > 0 && !newer(h.Pos, old.Pos) {
			return nil
		}
		_, err = a.store.Write(ctx, pathAnchor, Fields{
			"position": secret.New(h.Pos.String()), "id": secret.New(base64.RawURLEncoding.EncodeToString(h.ID[:])),
		}, version)
		if err == nil {
			return nil
		}
		if !errors.Is(err, broker.ErrConflict) {
			return fmt.Errorf("write the feed's anchor: %w", err)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return unavailable(errors.New("write the feed's anchor: others kept writing it"))
}

// newer reports whether a is behind b in time: in a later epoch, or further in
// the same one.
func newer(a, b broker.Position) bool {
	return a.Epoch > b.Epoch || a.Epoch == b.Epoch && a.Seq > b.Seq
}

var _ broker.Anchor = (*Anchor)(nil)
