package store

import (
	"context"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// Used implements [broker.Once].
func (e *Embedded) Used(ctx context.Context, purpose, id string) (used bool, err error) {
	now := e.now()
	err = e.view(ctx, func(tx *bolt.Tx) error {
		at, _, ok := cutStamp(tx.Bucket(bucketOnce).Get([]byte(digest(purpose, id))))
		used = ok && at > nanos(now)
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("embedded store: look for a one-time id: %w", err)
	}
	return used, nil
}

// Used implements [broker.Once].
func (r *Redis) Used(ctx context.Context, purpose, id string) (bool, error) {
	ctx, cancel := r.bound(ctx, 0)
	defer cancel()
	n, err := r.client.Exists(ctx, r.key("once:", digest(purpose, id))).Result()
	if err != nil {
		return false, fmt.Errorf("redis: look for a one-time id: %w", err)
	}
	return n > 0, nil
}
