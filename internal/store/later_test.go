package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	bolt "go.etcd.io/bbolt"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
)

// planted is a store, and how to put a thing there as a later version would.
type planted struct {
	s interface {
		broker.Feed
		broker.Ledger
	}
	// entry puts an entry at the end of the feed, and lease another text in a lease's place.
	entry func(seq uint64, id broker.ChainID, data []byte)
	lease func(id string, data []byte)
}

func plantedEmbedded(t *testing.T) planted {
	t.Helper()
	e, err := OpenEmbedded(filepath.Join(t.TempDir(), "stint.db"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	put := func(bucket, key, data []byte) {
		if err := e.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucket).Put(key, data) }); err != nil {
			t.Fatal(err)
		}
	}
	return planted{e, func(seq uint64, _ broker.ChainID, data []byte) { put(bucketFeed, number(seq), data) }, func(id string, data []byte) {
		put(bucketLeases, []byte(id), append(number(0), data...))
	}}
}

func plantedRedis(t *testing.T) planted {
	t.Helper()
	server := testbed.Redis(t, testbed.RedisOptions{})
	r, err := OpenRedis(RedisConfig{Address: server.Addr}, RedisSecrets{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return planted{r, func(seq uint64, id broker.ChainID, data []byte) {
		err := r.client.XAdd(t.Context(), &redis.XAddArgs{Stream: r.feed(), ID: streamID(seq), Values: []any{"i", id[:], "e", data}}).Err()
		if err != nil {
			t.Fatal(err)
		}
	}, func(id string, data []byte) {
		if err := r.client.HSet(t.Context(), r.lease(id), "d", data).Err(); err != nil {
			t.Fatal(err)
		}
	}}
}

// A revocation that this version cannot read is not passed over: neither what it reads
// nor its heartbeat tells a replica that it knows all.
func TestAnEntryOfALaterVersionStopsTheReader(t *testing.T) {
	for name, open := range map[string]func(*testing.T) planted{"embedded": plantedEmbedded, "redis": plantedRedis} {
		t.Run(name, func(t *testing.T) {
			p, now := open(t), time.Now()
			first := broker.Head{}.Follow(broker.Record{At: now, Expires: now}, broker.Position{Epoch: 1, Seq: 1})
			if err := p.s.Append(t.Context(), broker.Head{}, first); err != nil {
				t.Fatal(err)
			}
			next := first.Head().Follow(broker.Record{At: now, Expires: now.Add(time.Hour)}, broker.Position{Epoch: 1, Seq: 2})
			data := []byte(strings.Replace(string(next.Encode()), `"v":1`, `"v":2,"all":true`, 1))
			sum := sha256.Sum256(data)
			p.entry(2, broker.ChainID(sum[:16]), data)
			if got, err := p.s.Read(t.Context(), 0, 10, 0); !errors.Is(err, broker.ErrLater) {
				t.Errorf("read: %d entries, %v", len(got), err)
			}
			if _, err := p.s.Beat(t.Context(), broker.Replica{ID: "a"}, time.Minute); !errors.Is(err, broker.ErrLater) {
				t.Errorf("a heartbeat: %v", err)
			}
			mine := first.Head().Follow(broker.Record{At: now, Expires: now}, broker.Position{Epoch: 1, Seq: 2})
			if err := p.s.Append(t.Context(), first.Head(), mine); !errors.Is(err, broker.ErrConflict) {
				t.Errorf("written over it: %v", err)
			}
		})
	}
}

// A lease of a later version is reported, and not written back without what is new in it.
func TestALeaseOfALaterVersionIsLeftAlone(t *testing.T) {
	for name, open := range map[string]func(*testing.T) planted{"embedded": plantedEmbedded, "redis": plantedRedis} {
		t.Run(name, func(t *testing.T) {
			p := open(t)
			for _, id := range []string{"later", "ours"} {
				l := &broker.Lease{ID: id, State: broker.Active, Provider: "db", Pos: "1.1", Expires: time.Now().Add(time.Hour), Next: time.Now()}
				if err := p.s.Create(t.Context(), l); err != nil {
					t.Fatal(err)
				}
			}
			p.lease("later", []byte(`{"v":2,"id":"later","version":0,"state":"active","handles":["a","b"]}`))
			if l, err := p.s.Lease(t.Context(), "later"); !errors.Is(err, broker.ErrLater) {
				t.Errorf("read: %+v, %v", l, err)
			}
			seen := ""
			err := p.s.All(t.Context(), func(l *broker.Lease) error { seen += l.ID; return nil })
			if seen != "ours" || !errors.Is(err, broker.ErrLater) {
				t.Errorf("gone through: %q, %v", seen, err)
			}
		})
	}
}

func TestFilesOfALaterFormat(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stint.db")
	db, _, err := openBolt(file, "stint store 2", buckets...)
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenEmbedded(file, time.Now); !errors.Is(err, broker.ErrLater) || !strings.Contains(err.Error(), file) {
		t.Errorf("opened: %v", err)
	}
	for found, later := range map[string]bool{"stint store 1": false, "stint store 0": false, "stint store x": false, "stint subject keys 2": false, "": false, "stint store 10": true} {
		err := checkFormat(found, embeddedFormat)
		if (err == nil) != (found == embeddedFormat) || errors.Is(err, broker.ErrLater) != later {
			t.Errorf("%q: %v", found, err)
		}
	}
}

// Whoever writes to Redis without joining the replicas asks first.
func TestARedisOfALaterFormatIsNotWrittenTo(t *testing.T) {
	server := testbed.Redis(t, testbed.RedisOptions{})
	r, err := OpenRedis(RedisConfig{Address: server.Addr}, RedisSecrets{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	for format, want := range map[string]error{"": nil, "stint redis 1": nil, "stint redis 2": broker.ErrLater} {
		server.Do("DEL", "stint:{feed}:format")
		if format != "" {
			server.Do("SET", "stint:{feed}:format", format)
		}
		if err := r.CheckFormat(t.Context()); !errors.Is(err, want) {
			t.Errorf("%q: %v", format, err)
		}
		if err := r.Ready(t.Context()); !errors.Is(err, want) {
			t.Errorf("%q, ready: %v", format, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.CheckFormat(ctx); err == nil {
		t.Error("what was not answered is taken for in order")
	}
}
