package vault

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// The paths of what Stint makes for itself.
const (
	PathClientSecrets = "keys/client-secrets" // the key of client secrets' hashes
	PathAuditIndex    = "keys/audit-index"    // the key of the audit record's indexes of subjects
	pathSealing       = "keys/sealing"        // the ring of keys that seal
	pathAnchor        = "feed/anchor"
)

// keySize is the size of all keys here, in bytes.
const keySize = 32

// tries is how often a compare-and-set is tried when others are writing too.
const tries = 20

// Key returns the 32-byte key at a path, making it on first use. Replicas that
// start together agree: the first that writes has made it. It is an error if
// there was a key once that was deleted, as what it is needed for would be lost.
func Key(ctx context.Context, s Store, path string) (key secret.String, err error) {
	load := func() error {
		f, _, err := s.Read(ctx, path)
		if err != nil {
			return err
		}
		key, err = decodeKey(f["key"])
		return err
	}
	create := func() error {
		key = newKey()
		_, err := s.Write(ctx, path, Fields{"key": encodeKey(key)}, 0)
		return err
	}
	if err := firstUse(ctx, load, create); err != nil {
		return secret.String{}, fmt.Errorf("key %s: %w", path, err)
	}
	return key, nil
}

// firstUse loads something, or creates it if it is not there; if somebody else
// creates it first, it is theirs that is loaded.
func firstUse(ctx context.Context, load, create func() error) error {
	var missing error
	for range tries {
		if missing = load(); !errors.Is(missing, broker.ErrNotFound) {
			return missing
		}
		if err := create(); !errors.Is(err, broker.ErrConflict) {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	// Its text alone: whoever sees ErrNotFound would try to make it once more.
	return unavailable(errors.New("can neither be read nor made: " + missing.Error()))
}

func newKey() secret.String {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // it does not return if there is no randomness
	return secret.New(string(key))
}

func encodeKey(key secret.String) secret.String {
	return secret.New(base64.StdEncoding.EncodeToString([]byte(key.Reveal())))
}

func decodeKey(text secret.String) (secret.String, error) {
	key, err := base64.StdEncoding.Strict().DecodeString(text.Reveal())
	if err != nil || len(key) != keySize {
		return secret.String{}, fmt.Errorf("not a key of %d bytes in base64", keySize)
	}
	return secret.New(string(key)), nil
}

// pause waits a moment before the next try of a compare-and-set.
func pause(ctx context.Context) error {
	timer := time.NewTimer(backoff(0) / 20)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
}
