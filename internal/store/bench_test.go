package store_test

import (
	"testing"

	"github.com/stint-dev/stint/internal/store/storetest"
	"github.com/stint-dev/stint/internal/testbed"
)

// both runs a benchmark against both stores: Redis syncs each write, as the
// embedded store does, and is not told to wait for replicas.
func both(b *testing.B, run func(*testing.B, *storetest.Bed)) {
	b.Run("embedded", func(b *testing.B) { run(b, embeddedBed(b)) })
	b.Run("redis", func(b *testing.B) {
		w := &redisWorld{RedisServer: testbed.Redis(b, testbed.RedisOptions{AppendOnly: true}), cfg: patient()}
		run(b, w.bed(b))
	})
	b.Run("redis in memory", func(b *testing.B) {
		w := &redisWorld{RedisServer: testbed.Redis(b, testbed.RedisOptions{}), cfg: patient()}
		run(b, w.bed(b))
	})
}

func BenchmarkLedgerCreate(b *testing.B) { both(b, storetest.BenchmarkCreate) }

func BenchmarkOnce(b *testing.B) { both(b, storetest.BenchmarkUse) }

func BenchmarkAppend(b *testing.B) { both(b, storetest.BenchmarkAppend) }
