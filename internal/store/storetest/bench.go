package storetest

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

// BenchmarkCreate creates leases that are filed under 12 keys each.
func BenchmarkCreate(b *testing.B, bed *Bed) {
	var n atomic.Int64
	each(b, func() error {
		i := n.Add(1)
		values := []string{id("token %d", i), id("lease %d", i), id("session %d", i%1000)}
		for k := range 9 {
			values = append(values, id("common %d", k))
		}
		return bed.Store.Create(context.Background(), lease(bed, id("lease %d", i), values...))
	})
}

// BenchmarkUse uses ids up.
func BenchmarkUse(b *testing.B, bed *Bed) {
	var n atomic.Int64
	each(b, func() error {
		first, err := bed.Store.Use(context.Background(), "jti", id("id %d", n.Add(1)), bed.Now().Add(time.Minute))
		if err == nil && !first {
			err = errors.New("used before")
		}
		return err
	})
}

// BenchmarkAppend appends entries one by one, as one replica does.
func BenchmarkAppend(b *testing.B, bed *Bed) {
	head := broker.Head{}
	for b.Loop() {
		e := chain(head, 1, "a")
		if err := bed.Store.Append(context.Background(), head, e...); err != nil {
			b.Fatal(err)
		}
		head = last(e)
	}
}

// each runs do by 1 and by 16 at a time.
func each(b *testing.B, do func() error) {
	for _, workers := range []int{1, 16} {
		b.Run(id("workers=%d", workers), func(b *testing.B) {
			b.ReportAllocs()
			var left atomic.Int64
			left.Store(int64(b.N))
			together(workers, func(int) {
				for left.Add(-1) >= 0 {
					if err := do(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
